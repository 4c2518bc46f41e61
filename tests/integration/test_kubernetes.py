"""The needs of a kube-apiserver; docs/kubernetes.md names the test of each. With a real one: scripts/kubernetes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, outcome, peer, wait_until
from tests.integration.apiserver import COMPACT_KEY, EVENTS, REST, WHOLE, ApiServer, write_config

REFUSED = grpc.StatusCode.FAILED_PRECONDITION
SLASH = [["{prefix: /registry/pods/}"], EVENTS, REST]
CUT = [["{start: /registry/pods/m, end: /registry/pods0}"], EVENTS, REST]
KNOWN = "a kube-apiserver is at work"


@pytest.fixture
def serve(start_esp: Esps, start_etcd: Etcds, tmp_path: Path) -> Callable[..., EspProcess]:
    """Call it with the ranges of three new shards, and more YAML, for an esp."""

    def start(ranges: Sequence[Sequence[str]], extra: str = "", binary: Path | None = None) -> EspProcess:
        config = write_config(tmp_path, start_etcd.several(3, binary=binary), ranges, extra)
        esp = start_esp.launch("-c", config, config=config)
        esp.wait_ready()
        return esp

    return start


def check(config: Path | None) -> tuple[int, list[str], list[str]]:
    """The exit code of `esp check`, and what it says of Kubernetes: problems and notes."""
    result = CliRunner().invoke(app, ["check", "-c", str(config), "-o", "json"])
    told = json.loads(result.stdout)
    problems, notes = (
        [finding["text"] for finding in told[kind] if finding["kind"] == "kubernetes"] for kind in ("problems", "notes")
    )
    return result.exit_code, problems, notes


class TestWhole:
    """Each resource whole in one shard, written with the shorthand."""

    def test_nothing_is_warned_of(self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]) -> None:
        esp = serve(WHOLE)
        server = apiserver(esp)
        server.start()
        server.compact()
        wait_until(lambda: KNOWN in esp.log())
        assert "WARNING" not in esp.log()
        assert check(esp.config) == (0, [], [])

    def test_the_revision_of_the_bare_key_is_that_of_the_list(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve(WHOLE))
        for number in range(20):
            server.create(b"configmaps/other/%d" % number)  # the other shards' revisions go their own way
            made = server.create(b"pods/default/%d" % number)
            assert server.revision(b"pods") >= made, "else a list from the cache would miss the new object"
            names, revision = server.listed(b"pods", limit=7)
            assert len(names) == number + 1
            assert revision == server.revision(b"pods") == made
        assert server.count(b"pods") == 20

    def test_a_list_in_pages_shows_one_moment(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve(WHOLE))
        for number in range(9):
            server.create(b"pods/default/%d" % number)
        first = server.page(b"pods", limit=4)
        server.delete(b"pods/default/5")
        server.create(b"pods/default/55")
        rest = server.page(b"pods", limit=0, revision=first.header.revision, after=first.kvs[-1].key)
        assert [row.key[-1:] for row in (*first.kvs, *rest.kvs)] == [b"%d" % number for number in range(9)]

    def test_a_list_by_range_stream(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve(WHOLE, binary=peer("etcd")))
        for number in range(30):
            server.create(b"pods/default/%02d" % number, b"x" * 100_000)
        chunks = server.streamed(b"pods", limit=25)
        assert sum(len(chunk.kvs) for chunk in chunks) == 25
        assert (chunks[-1].more, chunks[-1].count) == (True, 30)
        assert chunks[-1].header.revision == server.revision(b"pods")

    def test_list_then_watch_misses_nothing(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve(WHOLE))
        server.create(b"pods/default/a")
        _, revision = server.listed(b"pods", limit=500)
        made = server.create(b"pods/default/b")
        watching = server.watch(b"pods", revision + 1)
        assert watching.next().created
        changed = server.update(b"pods/default/b")
        deleted = server.delete(b"pods/default/a")
        events = watching.events(3)
        assert [event.kv.mod_revision for event in events] == [made, changed, deleted]
        assert [event.prev_kv.key[-1:] for event in events] == [b"", b"b", b"a"]

    def test_progress_reaches_the_revision_of_the_bare_key(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve(WHOLE))
        watching = server.watch(b"pods")
        assert watching.next().created
        server.create(b"events/default/e")
        wanted = server.create(b"pods/default/a")
        assert server.revision(b"pods") == wanted
        watching.events(1)
        watching.ask_progress()
        progress = watching.next()
        assert not progress.events
        assert progress.header.revision == wanted

    def test_writes_that_meet_are_told_apart(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve(WHOLE))
        server.create(b"pods/default/a")
        with pytest.raises(AssertionError):
            server.create(b"pods/default/a")


class TestInANamespace:
    """The apiserver knows nothing of it; the ranges in the config are keys of the shards."""

    OTHERS = ("{kubernetes: events, etcd_prefix: /t/registry}",), REST

    def test_a_resource_that_is_whole(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        whole = ["{kubernetes: pods, etcd_prefix: /t/registry}"]
        esp = serve([whole, *self.OTHERS], "namespace: /t")
        server = apiserver(esp)
        server.start()
        server.compact()
        wait_until(lambda: KNOWN in esp.log())
        made = server.create(b"pods/default/a")
        assert server.listed(b"pods", limit=7) == ([b"pods/default/a"], made)
        assert server.revision(b"pods") == made
        assert "WARNING" not in esp.log()
        assert check(esp.config) == (0, [], [])

    def test_a_resource_that_is_cut(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        cut = ["{start: /t/registry/pods/m, end: /t/registry/pods0}"]
        esp = serve([cut, *self.OTHERS], "namespace: /t")
        assert 'for Kubernetes: the objects below "/t/registry/pods/" are in several shards, s2, s0' in esp.log()
        server = apiserver(esp)
        server.create(b"pods/z/1")
        server.compact()
        wait_until(lambda: "until then such requests are refused" in esp.log())
        code, text = outcome(lambda: server.listed(b"pods", 500))
        assert code == REFUSED
        assert text.startswith('esp: a Range spans the shards s2, s0 (boundary "/t/registry/pods/m"); ')


class TestTheKeyWithoutASlash:
    """`{prefix: /registry/pods/}` leaves `/registry/pods` to another shard."""

    def test_serve_and_check_warn(self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]) -> None:
        esp = serve(SLASH)
        text = 'the key "/registry/pods" is in another shard than the objects below "/registry/pods/", s2, s0'
        assert f"for Kubernetes: {text}" in esp.log()
        code, problems, notes = check(esp.config)
        assert (code, problems, [note.startswith(text) for note in notes]) == (0, [], [True])
        server = apiserver(esp)
        server.compact()
        code, problems, notes = check(esp.config)
        assert (code, [problem.startswith(text) for problem in problems], notes) == (1, [True], [])

    def test_its_revision_is_of_another_clock(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve(SLASH))
        for number in range(5):
            made = server.create(b"pods/default/%d" % number)
        assert server.revision(b"pods") < made, "what the warning is about"

    TEXT = (
        'esp: a list by the key "/registry/pods" spans the shards s2, s0 (boundary "/registry/pods/"); Kubernetes\' '
        "resource has to be in one shard: give it {kubernetes: RESOURCE} there, or write across_shards: serve"
    )

    def test_reading_it_is_refused_once_an_apiserver_is_known(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve(SLASH)
        server = apiserver(esp)
        made = server.create(b"pods/default/a")
        server.watch(b"pods", made + 1).ask_progress()
        wait_until(lambda: KNOWN in esp.log())
        # In each form that an apiserver, or etcdctl, gives it.
        for request in (
            rpc_pb2.RangeRequest(key=b"/registry/pods"),
            rpc_pb2.RangeRequest(key=b"/registry/pods", limit=1),
            rpc_pb2.RangeRequest(key=b"/registry/pods", revision=2, serializable=True),
        ):
            assert outcome(lambda request=request: server.kv.Range(request)) == (REFUSED, self.TEXT)  # type: ignore[misc]
        assert server.listed(b"pods", 500)[1] == made, "the objects are all in one shard, and are listed rightly"
        assert server.revision(b"configmaps") > 0, "other keys are read as ever"
        assert esp.log().count("refused, and so are others like it") == 1

    def test_the_config_may_say_otherwise(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve(SLASH, "across_shards: serve")
        server = apiserver(esp)
        assert server.watch(b"pods").next().created
        wait_until(lambda: KNOWN in esp.log())
        assert server.revision(b"pods") == 1


class TestCut:
    """A boundary inside a resource."""

    TEXT = (
        'esp: {} spans the shards s2, s0 (boundary "/registry/pods/m"); Kubernetes\' resource has to be in one shard: '
        "give it {{kubernetes: RESOURCE}} there, or write across_shards: serve"
    )

    def refusals(self, server: ApiServer) -> list[tuple[grpc.StatusCode, str]]:
        return [outcome(lambda: server.listed(b"pods", 500)), outcome(lambda: server.delete_all(b"pods"))]

    def test_lists_watches_and_deletes_are_refused_once_an_apiserver_is_known(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve(CUT)
        assert 'for Kubernetes: the objects below "/registry/pods/" are in several shards, s2, s0' in esp.log()
        server = apiserver(esp)
        server.create(b"pods/a/1")
        server.create(b"pods/z/1")
        assert len(server.listed(b"pods", 500)[0]) == 2, "nobody is known to be an apiserver yet"
        server.compact()
        wait_until(lambda: "until then such requests are refused" in esp.log())
        assert self.refusals(server) == [
            (REFUSED, self.TEXT.format("a Range")),
            (REFUSED, self.TEXT.format("a DeleteRange")),
        ]
        refusal = server.watch(b"pods").next()
        assert (refusal.watch_id, refusal.created, refusal.canceled) == (-1, True, True)
        assert refusal.cancel_reason == self.TEXT.format("a Watch")
        # A namespace that lies in one shard, an object, and other resources are none of that.
        assert [row.key for row in server.page(b"pods/a").kvs] == [b"/registry/pods/a/1"]
        server.update(b"pods/z/1")
        server.create(b"events/a/1")
        assert server.count(b"events") == 1
        code, problems, _ = check(esp.config)
        assert code == 1
        assert problems[0].startswith('the objects below "/registry/pods/" are in several shards, s2, s0')

    def test_a_restart_knows_at_once_by_what_is_written(
        self,
        serve: Callable[..., EspProcess],
        apiserver: Callable[..., ApiServer],
        start_esp: Esps,
    ) -> None:
        first = serve(CUT)
        apiserver(first).compact()
        first.stop()
        second = start_esp.launch("-c", str(first.config), config=first.config)
        second.wait_ready()
        wait_until(lambda: KNOWN in second.log())
        assert self.refusals(apiserver(second))[0][0] == REFUSED

    def test_a_watch_of_its_compactor_makes_esp_look(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve(CUT)
        server = apiserver(esp)
        # Written where no transaction passes by.
        server.kv.Put(rpc_pb2.PutRequest(key=COMPACT_KEY, value=b"0"))
        server.watch_compactions()
        wait_until(lambda: KNOWN in esp.log())
        assert self.refusals(server)[0][0] == REFUSED

    def test_the_first_watcher_of_a_cache_is_sign_enough_on_a_new_cluster(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        """Nothing has been written yet that would be a sign."""
        server = apiserver(serve(CUT))
        _, revision = server.listed(b"pods", 500)
        assert server.watch(b"configmaps").next().created, "whole, so served; from now on an apiserver is known"
        assert self.refusals(server)[0] == (REFUSED, self.TEXT.format("a Range"))
        # From the list of before, which no revision of a shard fits: that is gone, so list again, and be refused.
        watching = server.watch(b"pods", revision + 1)
        assert watching.next().created
        assert watching.next().compact_revision > 0
        assert server.watch(b"pods").next().cancel_reason == self.TEXT.format("a Watch")

    def test_the_very_watcher_that_is_cut_is_refused_too(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        assert apiserver(serve(CUT)).watch(b"pods").next().cancel_reason == self.TEXT.format("a Watch")

    def test_other_watchers_are_no_sign(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve(CUT)
        server = apiserver(esp)
        assert server.watch(b"pods", cached=False).next().created
        assert server.watch(b"pods/default").next().created
        assert server.watch(b"mine").next().created
        assert apiserver(esp, b"/mine/").watch(b"pods").next().created
        assert not server.listed(b"pods", 500)[0]
        assert KNOWN not in esp.log()

    def test_so_does_the_lease_that_it_renews(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve(CUT)
        server = apiserver(esp)
        server.start()
        wait_until(lambda: KNOWN in esp.log())
        assert self.refusals(server)[0][0] == REFUSED

    def test_a_watch_that_began_before_ends_and_is_then_refused(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve(CUT))
        divided, whole = server.watch(b"pods", cached=False), server.watch(b"events", cached=False)
        assert divided.next().created
        assert whole.next().created
        server.compact()
        assert outcome(divided.next) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
        assert server.watch(b"pods").next().canceled
        server.create(b"events/default/e")
        assert whole.events(1), "others go on"

    def test_a_transaction_that_only_looks_like_one_changes_nothing(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve([["{start: /locks/m, end: /locks0}"], EVENTS, REST])
        server = apiserver(esp)
        for key in (b"/masterleases/x", b"/leases/kube-system/apiserver-1"):
            compare = rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.CREATE)
            server.kv.Txn(rpc_pb2.TxnRequest(compare=[compare]))
        # What comes after it has been looked at is the sign that it has been.
        server.compact()
        wait_until(lambda: KNOWN in esp.log())
        assert server.kv.Range(rpc_pb2.RangeRequest(key=b"/locks/", range_end=b"/locks0")).count == 0

    def test_the_config_may_say_otherwise(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve(CUT, "across_shards: serve")
        server = apiserver(esp)
        server.create(b"pods/a/1")
        server.create(b"pods/z/1")
        server.compact()
        wait_until(lambda: KNOWN in esp.log())
        assert len(server.listed(b"pods", 500)[0]) == 2
        assert "such requests are refused" not in esp.log()


class TestAnotherPrefix:
    """An apiserver with --etcd-prefix=/k8s/blue."""

    ROOT = b"/k8s/blue/"
    CUT = (["{start: /k8s/blue/pods/m, end: /k8s/blue/pods0}"], EVENTS, REST)

    def test_it_is_found_by_what_the_apiserver_writes(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        esp = serve(self.CUT)
        server = apiserver(esp, self.ROOT)
        server.start()
        server.renew()
        wait_until(lambda: 'below "/k8s/blue/pods/" are in several shards' in esp.log())
        assert outcome(lambda: server.listed(b"pods", 500))[0] == REFUSED
        server.compact()
        code, problems, _ = check(esp.config)
        assert code == 1
        assert problems[0].startswith('the objects below "/k8s/blue/pods/" are in several shards')

    def test_a_config_that_names_it_is_warned_at_the_start(self, serve: Callable[..., EspProcess]) -> None:
        named = "{kubernetes: events, etcd_prefix: /k8s/blue}"
        esp = serve([[named], ["{prefix: /k8s/blue/pods/}"], REST])
        assert 'for Kubernetes: the key "/k8s/blue/pods" is in another shard' in esp.log()

    def test_with_a_config_that_names_it_the_first_watcher_of_a_cache_is_sign_enough(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        named = "{kubernetes: events, etcd_prefix: /k8s/blue}"
        server = apiserver(serve([[named], self.CUT[0], REST]), self.ROOT)
        assert server.watch(b"configmaps").next().created
        assert outcome(lambda: server.listed(b"pods", 500))[0] == REFUSED
