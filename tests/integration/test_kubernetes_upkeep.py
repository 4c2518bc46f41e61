"""Upkeep of several etcd clusters under Kubernetes; docs/kubernetes.md names the test of each statement."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, connect, outcome, peer, run_etcdctl, wait_ready, wait_until
from tests.integration.apiserver import WHOLE, ApiServer, write_config
from tests.stubs import rpc_pb2_grpc

REFUSED = grpc.StatusCode.FAILED_PRECONDITION
COMPACTED = (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")


def in_front_of(shards: list[LocalEtcd], start_esp: Esps, folder: Path, ranges: list[list[str]] = WHOLE) -> EspProcess:
    """An esp that is ready, by default with each resource whole in one of the shards."""
    config = write_config(folder, shards, ranges)
    esp = start_esp.launch("-c", config, config=config)
    esp.wait_ready()
    return esp


def revision_of(shard: LocalEtcd) -> int:
    with connect(shard) as channel:
        return ApiServer(channel).revision(b"nothing")


def is_readable(shard: LocalEtcd, revision: int) -> bool:
    """Whether a shard still has that revision."""
    with connect(shard) as channel:
        asked = rpc_pb2.RangeRequest(key=b"x", revision=revision)
        try:
            ApiServer(channel).kv.Range(asked)
        except grpc.RpcError as error:
            assert "compacted" in str(error.details())  # noqa: PT017 - it need not fail
            return False
    return True


class TestCompaction:
    """What an apiserver's compactor does every five minutes."""

    OFTEN = "limits: {sample_seconds: 0.1}"
    NOT_KNOWN = re.compile(
        r"esp: a compaction at revision \d+ has no known place in the other shards: .*; a later one will"
    )

    def write(self, server: ApiServer) -> None:
        """Something in each shard."""
        number = next(self.numbers)
        for resource in (b"pods", b"events", b"configmaps"):
            server.create(resource + b"/default/%d" % number)

    def compacted(self, server: ApiServer) -> list[list[int]]:
        """Compacts until it is done; the revisions of the shards before each try took its revision."""
        moments: list[list[int]] = []
        for _ in range(100):
            self.write(server)
            moments.append([revision_of(shard) for shard in self.shards])
            try:
                if server.compact():
                    return moments
            except grpc.RpcError as error:
                assert self.NOT_KNOWN.fullmatch(error.details() or ""), error  # noqa: PT017 - it need not fail
            time.sleep(0.1)
        pytest.fail("no compaction was placed")

    @pytest.fixture(autouse=True)
    def three(self, start_etcd: Etcds) -> None:
        self.shards = start_etcd.several(3)
        self.numbers = itertools.count()

    @pytest.fixture
    def serve(self, start_esp: Esps, tmp_path: Path) -> Callable[..., EspProcess]:
        def start(extra: str = self.OFTEN) -> EspProcess:
            config = write_config(tmp_path, self.shards, WHOLE, extra)
            esp = start_esp.launch("-c", config, config=config)
            esp.wait_ready()
            return esp

        return start

    def test_every_shard_is_compacted_and_keeps_what_came_after(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve())
        server.start()
        moments = self.compacted(server)
        # The last try compacts at the revision that the one before it took, of the third shard, by writing there.
        taken = [*moments[-2][:2], moments[-2][2] + 1]
        for shard, revision in zip(self.shards, taken, strict=True):
            assert is_readable(shard, revision), "nothing newer than that moment is gone, on any shard"
            assert not is_readable(shard, 1)
        assert not is_readable(self.shards[2], taken[2] - 1)
        before = [revision_of(shard) for shard in self.shards]
        self.compacted(server)
        for shard, revision in zip(self.shards, before, strict=True):
            wait_until(lambda shard=shard, revision=revision: not is_readable(shard, revision - 3))  # type: ignore[misc]

    def test_after_a_restart_the_first_is_refused_and_a_later_one_done(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        first = serve()
        server = apiserver(first)
        server.start()
        self.compacted(server)
        first.stop()
        again = apiserver(serve())
        again._compact_time, again._compact_revision = server._compact_time, server._compact_revision
        code, text = outcome(again.compact)
        assert code == REFUSED
        assert self.NOT_KNOWN.fullmatch(text)
        self.compacted(again)

    def test_another_proxy_places_it_too(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        one, other = apiserver(serve()), apiserver(serve())
        one.start()
        self.compacted(one)
        other._compact_time, other._compact_revision = one._compact_time, one._compact_revision
        other.watch_compactions()
        self.compacted(other)

    def test_a_revision_that_no_apiserver_has_written_is_refused(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve())
        server.start()
        self.compacted(server)
        for revision in (2, 3, 2**40):
            code, text = outcome(
                lambda revision=revision: server.kv.Compact(rpc_pb2.CompactionRequest(revision=revision))
            )  # type: ignore[misc]
            assert code == REFUSED
            assert text.startswith("esp: a compaction spans the shards")

    def test_a_shard_that_is_away_fails_it_and_is_compacted_the_next_time(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer]
    ) -> None:
        server = apiserver(serve())
        server.start()
        self.compacted(server)
        pods, events, _ = self.shards
        time.sleep(0.5)
        server.create(b"events/default/x")  # newer than what the next one compacts at
        server.create(b"configmaps/default/x")
        mark = [revision_of(shard) for shard in self.shards]
        server.compact()
        events.kill()
        assert outcome(server.compact)[0] == grpc.StatusCode.UNAVAILABLE
        assert not is_readable(pods, mark[0] - 1)
        events.start()
        wait_ready(events)
        assert is_readable(events, mark[1] - 1)

        def done() -> bool:
            with contextlib.suppress(grpc.RpcError):
                server.compact()
            return not is_readable(events, mark[1] - 1)

        wait_until(done)

    @pytest.mark.parametrize("extra", ["compaction: refuse", "compaction: {revisions_of: /registry/configmaps/x}"])
    def test_the_config_may_say_otherwise(
        self, serve: Callable[..., EspProcess], apiserver: Callable[..., ApiServer], extra: str
    ) -> None:
        server = apiserver(serve(f"{self.OFTEN}\n{extra}"))
        server.start()
        self.write(server)
        if extra == "compaction: refuse":
            server.compact()
            assert outcome(server.compact)[1].startswith("esp: a compaction spans the shards")
            return
        # Any revision is one of the third shard here, whose key was named.
        time.sleep(0.5)
        taken = server.create(b"configmaps/default/named")
        self.write(server)
        wait_until(lambda: compact(server, taken))
        assert not is_readable(self.shards[2], taken - 1)
        assert is_readable(self.shards[2], taken)


def compact(server: ApiServer, revision: int) -> bool:
    """Whether it is done; refused it may be for as long as no sample is old enough."""
    try:
        server.kv.Compact(rpc_pb2.CompactionRequest(revision=revision))
    except grpc.RpcError as error:
        assert error.code() == REFUSED  # noqa: PT017 - it need not fail
        return False
    return True


class TestShardsThatCompactThemselves:
    """With etcd's own --auto-compaction-retention, beside the apiserver's compactor or instead of it."""

    FLAGS = ("--auto-compaction-mode=periodic", "--auto-compaction-retention=1s")

    def test_an_apiserver_gets_on_as_with_one_etcd_that_does(
        self, start_etcd: Etcds, start_esp: Esps, tmp_path: Path, apiserver: Callable[..., ApiServer]
    ) -> None:
        shards = start_etcd.several(3, *self.FLAGS)
        judge = start_etcd(*self.FLAGS)
        config = write_config(tmp_path, shards, WHOLE, "limits: {sample_seconds: 0.1}")
        esp = start_esp.launch("-c", config, config=config)
        esp.wait_ready()
        servers = [apiserver(esp), apiserver(judge)]
        numbers = itertools.count()

        def write() -> None:
            number = next(numbers)
            for server, resource in itertools.product(servers, (b"pods", b"events", b"configmaps")):
                server.create(resource + b"/default/%d" % number)

        def has_compacted(server: ApiServer) -> bool:
            write()
            with contextlib.suppress(grpc.RpcError):
                return server.compact() > 0
            return False

        for server in servers:
            server.start()
            wait_until(lambda server=server: has_compacted(server))  # type: ignore[misc]
        _, listed = servers[0].listed(b"pods", limit=500)
        watching = servers[0].watch(b"pods", listed + 1)
        assert watching.next().created

        # They go on by themselves to where everything is newer than what the compactor would compact next.
        moments = [(etcd, revision_of(etcd)) for etcd in (*shards, judge)]

        def all_are_further() -> bool:
            write()
            return not any(is_readable(etcd, revision) for etcd, revision in moments)

        wait_until(all_are_further)
        assert [outcome(server.compact) for server in servers] == [COMPACTED, COMPACTED]
        for server in servers:
            wait_until(lambda server=server: has_compacted(server))  # type: ignore[misc]
        names, revision = servers[0].listed(b"pods", limit=500)
        assert names == servers[1].listed(b"pods", limit=500)[0]
        assert revision == servers[0].revision(b"pods")
        assert watching.events(1), "a watch of before goes on"


class TestSeveralProxies:
    """--etcd-servers with several proxies over the same shards."""

    def test_what_one_has_listed_is_watched_through_the_other(
        self, start_etcd: Etcds, start_esp: Esps, tmp_path: Path, apiserver: Callable[..., ApiServer]
    ) -> None:
        config = write_config(tmp_path, start_etcd.several(3), WHOLE)
        esps = [start_esp.launch("-c", config, config=config) for _ in range(2)]
        for esp in esps:
            esp.wait_ready()
        one, other = map(apiserver, esps)
        one.create(b"events/default/e")
        one.create(b"pods/default/a")
        _, revision = one.listed(b"pods", limit=500)
        made = one.create(b"pods/default/b")
        watching = other.watch(b"pods", revision + 1)
        assert watching.next().created
        assert [event.kv.mod_revision for event in watching.events(1)] == [made]
        assert other.update(b"pods/default/b") > made
        esps[0].process.kill()
        esps[0].process.wait()
        assert len(other.listed(b"pods", limit=1)[0]) == 2


def test_room_comes_back_by_defragmenting_each_shard_at_its_own_endpoint(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path, apiserver: Callable[..., ApiServer]
) -> None:
    etcdctl = peer("etcdctl")
    shards = start_etcd.several(3, binary=peer("etcd"))
    esp = in_front_of(shards, start_esp, tmp_path)
    server = apiserver(esp)
    for _ in range(20):
        server.kv.Put(rpc_pb2.PutRequest(key=b"/registry/pods/default/a", value=b"x" * 500_000))
    pods = shards[0]
    size = on_disk(pods)
    with connect(pods) as channel:
        ApiServer(channel).kv.Compact(rpc_pb2.CompactionRequest(revision=revision_of(pods), physical=True))
    assert on_disk(pods) >= size, "compaction makes room in the file"
    refused = run_etcdctl(etcdctl, esp, "defrag", check=False)
    for shard in shards:
        assert f"etcdctl --endpoints=http://{shard.address} defrag" in refused.stderr
        run_etcdctl(etcdctl, shard, "defrag")
    assert on_disk(pods) < size / 4
    assert server.listed(b"pods", limit=500)[0] == [b"pods/default/a"]


def on_disk(shard: LocalEtcd) -> int:
    with connect(shard) as channel:
        return int(rpc_pb2_grpc.MaintenanceStub(channel).Status(rpc_pb2.StatusRequest()).dbSize)


class TestBackup:
    """A snapshot of each shard, and all of them restored."""

    BUMP = 1_000_000_000

    def restore(self, shard: LocalEtcd, snapshot: Path) -> None:
        """Puts a snapshot where an etcd has its data, as docs/kubernetes.md says."""
        shard.data_dir.rename(shard.data_dir.with_suffix(".old"))
        command = [
            peer("etcdutl"),
            "snapshot",
            "restore",
            snapshot,
            f"--bump-revision={self.BUMP}",
            "--mark-compacted",
            f"--data-dir={shard.data_dir}",
            f"--name={shard.name}",
            f"--initial-cluster={shard.name}={shard.peer_url}",
            f"--initial-advertise-peer-urls={shard.peer_url}",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def test_restored_shards_are_each_as_of_their_snapshot_and_no_revision_comes_again(
        self, start_etcd: Etcds, start_esp: Esps, tmp_path: Path, apiserver: Callable[..., ApiServer]
    ) -> None:
        etcdctl = peer("etcdctl")
        shards = start_etcd.several(3, binary=peer("etcd"))
        esp = in_front_of(shards, start_esp, tmp_path)
        server = apiserver(esp)
        server.start()
        for resource in (b"pods", b"events", b"configmaps"):
            server.create(resource + b"/default/before")
        saved = [tmp_path / f"{shard.name}.db" for shard in shards]
        refused = run_etcdctl(etcdctl, esp, "snapshot", "save", str(tmp_path / "esp.db"), check=False)
        assert f"etcdctl --endpoints=http://{shards[0].address} snapshot save" in refused.stderr
        # What depends on others first, what they depend on last: no pod without its owner then, only the other way.
        for shard, path in zip(shards, saved, strict=True):
            run_etcdctl(etcdctl, shard, "snapshot", "save", str(path))
            server.create(b"replicasets/default/owner-%s" % shard.name.encode())
            server.create(b"pods/default/of-%s" % shard.name.encode())
        _, seen = server.listed(b"pods", limit=500)
        server.delete(b"pods/default/before")

        esp.stop()
        for shard, path in zip(shards, saved, strict=True):
            shard.kill()
            self.restore(shard, path)
            shard.start()
        wait_ready(*shards)
        server = apiserver(in_front_of(shards, start_esp, tmp_path))
        pods, owners = server.listed(b"pods", 500)[0], server.listed(b"replicasets", 500)[0]
        assert pods == [b"pods/default/before"]
        assert owners == [b"replicasets/default/owner-%s" % shard.name.encode() for shard in shards[:2]]
        for resource in (b"pods", b"events", b"configmaps"):
            assert server.revision(resource) > self.BUMP
        # A cache of before: its version is not one of now, so it has to list again, and is told.
        watching = server.watch(b"pods", seen + 1)
        assert watching.next().created
        assert watching.next().compact_revision > self.BUMP
        assert server.update(b"pods/default/before") > self.BUMP
        server.compact()


def test_keys_do_not_move_when_a_boundary_does(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path, apiserver: Callable[..., ApiServer]
) -> None:
    shards = start_etcd.several(3)
    esp = in_front_of(shards, start_esp, tmp_path)
    apiserver(esp).create(b"secrets/default/a")
    esp.stop()
    esp = in_front_of(shards, start_esp, tmp_path, [[*WHOLE[0], "{kubernetes: secrets}"], *WHOLE[1:]])
    assert apiserver(esp).count(b"secrets") == 0
