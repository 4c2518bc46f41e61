"""Watch over several shards: as from one etcd."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.tokens import MARK
from tests.harness import EspProcess, Esps, Etcds, Server, connect, peer, running_esps, wait_until, wipe
from tests.integration.watch_talk import EVERYTHING, STOPPED, Conversation, Create, Heard, Put, talking, watchers_in
from tests.stubs import rpc_pb2_grpc
from tests.watching import Watch, Writers, check, revision_of, watching

BELOW_I = {"key": b"\0", "range_end": b"i"}
Script = Callable[[Conversation], Heard]
Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


class Sides(NamedTuple):
    """An etcd, and esp over two more."""

    judge: LocalEtcd
    shards: list[LocalEtcd]
    esp: EspProcess

    def talk(self, script: Callable[[Conversation], Heard]) -> tuple[Heard, Heard]:
        """What the judge says in a conversation, and what esp says. Both begin at one revision, and without keys."""
        for etcd in (self.judge, self.shards[0]):
            wipe(etcd)
        self.level()
        with talking(self.judge, self.judge) as talk:
            expected = script(talk)
        with talking(self.esp, self.shards[0]) as talk:
            return expected, script(talk)

    def level(self) -> None:
        behind, ahead = sorted((self.judge, self.shards[0]), key=revision_of)
        with connect(behind) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            for _ in range(revision_of(ahead) - revision_of(behind)):
                kv.Put(Put(key=b"h"))
        assert revision_of(behind) == revision_of(ahead)


@pytest.fixture(scope="module", params=["old", "new"])
def sides(
    request: pytest.FixtureRequest, module_etcds: Etcds, tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path
) -> Iterator[Sides]:
    """Of the version that the tests use, and of the newest."""
    judge, *shards = module_etcds.several(3, binary=peer("etcd") if request.param == "new" else None)
    with running_esps(tmp_path_factory.mktemp("sides"), etcd_binary) as esps:
        yield Sides(judge, shards, esps(shards, ["i"]))


def comparable(message: rpc_pb2.WatchResponse) -> rpc_pb2.WatchResponse:
    """All but the ids of the cluster and its member."""
    copy = rpc_pb2.WatchResponse()
    copy.CopyFrom(message)
    copy.header.ClearField("cluster_id")
    copy.header.ClearField("member_id")
    return copy


# One shard: each script is run against an etcd and through esp, and every message must be the same.


def ids_are_given_and_skipped(talk: Conversation) -> Heard:
    for watch_id in (0, 2, 0, 0, 0, 7, -3, 2**40):
        talk.requests.create(key=b"a", watch_id=watch_id)
    return talk.hears(8)


def ids_are_not_given_twice(talk: Conversation) -> Heard:
    for watch_id in (5, 5, 0, 0):
        talk.requests.create(key=b"a", watch_id=watch_id)
    replies = talk.hears(4)
    talk.requests.cancel(5)
    talk.requests.create(key=b"a", watch_id=5)
    talk.requests.cancel(0)
    talk.requests.create(key=b"a")
    return replies + talk.hears(4)


def ranges_that_are_empty(talk: Conversation) -> Heard:
    talk.requests.create(key=b"b", range_end=b"a")
    talk.requests.create(key=b"b", range_end=b"b", watch_id=4)
    talk.requests.create(key=b"b", range_end=b"c")
    return talk.hears(3)


def an_empty_key(talk: Conversation) -> Heard:
    replies = [talk.created(), talk.created(range_end=b"b")]
    talk.puts(b"\0")
    replies += sorted(talk.hears(2), key=lambda message: message.watch_id)
    talk.puts(b"a")
    return replies + talk.hears()


def unknown_ids_are_not_answered(talk: Conversation) -> Heard:
    replies = [talk.created(key=b"a")]
    talk.requests.cancel(9)
    talk.requests.cancel(0)
    talk.requests.cancel(0)
    return [*replies, *talk.hears(), talk.created(key=b"a")]


def events_live(talk: Conversation) -> Heard:
    replies = [talk.created(key=b"a", range_end=b"c", prev_kv=True)]
    talk.puts(b"a", b"1")
    talk.puts(b"a", b"2")
    talk.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**BELOW_I))
    operations = [rpc_pb2.RequestOp(request_put=Put(key=key)) for key in (b"b", b"a", b"d")]
    talk.kv.Txn(rpc_pb2.TxnRequest(success=operations))
    return replies + talk.hears(4)


def events_that_are_filtered(talk: Conversation) -> Heard:
    replies = [
        talk.created(key=b"a", filters=[Create.NOPUT]),
        talk.created(key=b"a", filters=[Create.NODELETE]),
        talk.created(key=b"a", filters=[Create.NODELETE, Create.NOPUT]),
    ]
    talk.puts(b"a")
    talk.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"a"))
    return replies + talk.hears(2)


def history(talk: Conversation) -> Heard:
    for number in range(20):
        talk.puts(b"a", b"%d" % number)
    replies = [talk.created(key=b"a", start_revision=talk.base + 5), *talk.hears()]
    return [*replies, talk.created(key=b"a", start_revision=talk.base + 12, prev_kv=True), *talk.hears()]


def the_future(talk: Conversation) -> Heard:
    replies = [talk.created(key=b"a", start_revision=talk.base + number) for number in (3, 2)]
    for _ in range(3):
        talk.puts(b"a")
    return replies + sorted(talk.hears(3), key=lambda message: (message.header.revision, message.watch_id))


def compaction(talk: Conversation) -> Heard:
    for number in range(5):
        talk.puts(b"a", b"%d" % number)
    talk.compact(talk.base + 3)
    talk.requests.create(key=b"a", start_revision=talk.base + 1)
    replies = talk.hears(2)
    talk.requests.create(key=b"a", start_revision=talk.base + 2, watch_id=9)
    replies += talk.hears(2)
    talk.requests.create(key=b"a", watch_id=9)  # it is taken until it is canceled
    talk.requests.cancel(9)
    talk.requests.create(key=b"b", watch_id=9)
    replies += talk.hears(3)
    return [*replies, talk.created(key=b"a", start_revision=talk.base + 3), *talk.hears()]


def a_request_of_no_kind(talk: Conversation) -> Heard:
    talk.requests.nothing()
    return [talk.created(key=b"a")]


def progress_of_one(talk: Conversation) -> Heard:
    replies = [talk.created(key=b"a"), talk.created(key=b"b")]
    talk.puts(b"a")
    replies += talk.hears()
    talk.puts(b"c")
    talk.requests.progress()
    return replies + talk.hears()


def progress_of_watchers_with_a_past(talk: Conversation) -> Heard:
    talk.puts(b"a")
    replies = [talk.created(key=b"a", start_revision=talk.base + 1), *talk.hears(), talk.created(key=b"b")]
    talk.requests.progress()
    return replies + talk.hears()


def progress_asked_for_again_and_again(talk: Conversation) -> Heard:
    replies = [talk.created(key=b"a")]
    for _ in range(10):
        talk.requests.progress()
    return replies + talk.hears(10)


def a_start_before_the_beginning(talk: Conversation) -> Heard:
    """Which newer etcds refuse, and older ones take for the beginning, and so for compacted."""
    talk.puts(b"a")
    talk.compact(talk.puts(b"a"))
    talk.requests.create(key=b"a", start_revision=-5)
    replies = talk.hears()
    talk.requests.create(key=b"b")
    # An older etcd says a moment later that the first is compacted, before or after it answers the second.
    while not any(reply.canceled for reply in replies) or not any(
        reply.created and not reply.canceled for reply in replies[1:]
    ):
        replies += talk.hears()
    return sorted(replies, key=lambda reply: (reply.watch_id, not reply.created))


def filters_that_do_not_exist(talk: Conversation) -> Heard:
    replies = [talk.created(key=b"a", filters=[7, Create.NODELETE, 1000, 7])]
    talk.puts(b"a")
    talk.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"a"))
    talk.puts(b"a")
    return replies + talk.hears(2)


def a_large_history(talk: Conversation) -> Heard:
    for _ in range(5):
        talk.puts(b"a", bytes(700_000))
    replies = [talk.created(key=b"a", start_revision=talk.base + 1, fragment=True), *talk.hears()]
    while replies[-1].fragment:
        replies += talk.hears()
    return [*replies, talk.created(key=b"a", start_revision=talk.base + 1), *talk.hears()]


SCRIPTS: list[Script] = [
    ids_are_given_and_skipped,
    ids_are_not_given_twice,
    ranges_that_are_empty,
    an_empty_key,
    unknown_ids_are_not_answered,
    events_live,
    events_that_are_filtered,
    history,
    the_future,
    compaction,
    a_request_of_no_kind,
    progress_of_one,
    progress_of_watchers_with_a_past,
    progress_asked_for_again_and_again,
    a_start_before_the_beginning,
    filters_that_do_not_exist,
    a_large_history,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.__name__ for script in SCRIPTS])
def test_in_one_shard_every_message_is_as_etcd_sends_it(sides: Sides, script: Script) -> None:
    expected, heard = sides.talk(script)
    assert [comparable(message) for message in heard] == [comparable(message) for message in expected]
    assert {message.header.cluster_id for message in heard} == {cluster_of(sides.shards[0])}


def cluster_of(etcd: Server) -> int:
    with connect(etcd) as channel:
        return rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"a")).header.cluster_id


# Several shards.


def owner(key: bytes) -> int:
    """The shard of a key behind the fixture `esp`."""
    return (key >= b"i") + (key >= b"r")


def starts(shards: list[LocalEtcd], start: int = 0) -> dict[int, int]:
    """From where on a watcher that begins now, or at `start`, must be told of each shard's events."""
    return {number: start or revision_of(shard) + 1 for number, shard in enumerate(shards)}


def test_a_watcher_over_all_shards_is_told_everything(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(3)  # of its own: "from the beginning" is told only where nothing was ever compacted
    esp = start_esp(shards, ["i", "r"])
    with Writers(shards, ["a-", "j-", "z-"]) as writers:
        writers.wait_for_more(20)
    begun = starts(shards)
    with watching(esp, **EVERYTHING) as now, watching(esp, **EVERYTHING, start_revision=1) as always:
        with Writers(shards, ["a-", "j-", "z-"]) as writers:
            writers.wait_for_more()
        check(now, shards, owner, begun)
        check(always, shards, owner, starts(shards, 1))


def test_a_watcher_over_shards_is_created_once_and_its_messages_bear_tokens(
    esp: EspProcess, empty_shards: list[LocalEtcd]
) -> None:
    with talking(esp, empty_shards[0]) as talk:
        for number in range(10):
            talk.puts(b"a", b"%d" % number)
        first = talk.created(**EVERYTHING)
        assert first.watch_id == 0
        assert first.header.revision >= MARK
        assert talk.created(key=b"a").watch_id == 1
        talk.puts(b"z")
        [event] = talk.hears()
        assert event.header.revision > first.header.revision
        ids = {(reply.header.cluster_id, reply.header.member_id) for reply in (first, event)}
        assert len(ids) == 1, "one stable identity"
        assert ids.isdisjoint({(cluster_of(shard), 0) for shard in empty_shards})
        talk.requests.cancel(0)
        [end] = talk.hears()
        assert (end.watch_id, end.canceled, end.created, end.cancel_reason, end.compact_revision) == (
            0,
            True,
            False,
            "",
            0,
        )
        talk.puts(b"z")
        talk.puts(b"a")
        assert [message.watch_id for message in talk.hears()] == [1]


def test_a_revision_of_one_shard_says_nothing_about_several(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    """Answered as compacted, so that a client which comes back lists again instead of missing events."""
    with talking(esp, empty_shards[0]) as talk:
        begin = talk.created(key=b"a", range_end=b"z", start_revision=2)
        assert not begin.canceled
        [end] = talk.hears()
        assert (end.watch_id, end.canceled, end.cancel_reason, end.header.revision) == (begin.watch_id, True, "", 0)
        assert end.compact_revision > 0
        talk.requests.create(key=b"b", watch_id=begin.watch_id or 0)
        talk.requests.cancel(begin.watch_id)
        assert [message.canceled for message in talk.hears(2)] == [False, True]


def test_progress_is_told_under_no_id_only_within_one_shard(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    """Clients take it for all their watchers, and would resume each at another shard's revision."""
    with talking(esp, empty_shards[0]) as talk:
        talk.created(key=b"a")
        talk.created(key=b"a")
        talk.requests.progress()
        assert [message.watch_id for message in talk.hears()] == [-1]
        talk.created(key=b"z")
        talk.created(**EVERYTHING)
        talk.requests.progress()
        told = {message.watch_id: message.header.revision for message in talk.hears(4)}
        first, _, third = map(revision_of, empty_shards)
        assert told.pop(3) >= MARK
        assert told == {0: first, 1: first, 2: third}
        for watch_id in range(4):
            talk.requests.cancel(watch_id)
        assert [message.canceled for message in talk.hears(4)] == [True] * 4
        talk.requests.progress()
        assert talk.created(key=b"j").watch_id == 4
        talk.puts(b"j")
        assert [len(message.events) for message in talk.hears()] == [1], "no progress of nobody"


def test_progress_comes_by_itself_to_who_asked_for_it(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2, "--experimental-watch-progress-notify-interval=150ms")
    esp = start_esp(shards, ["m"])
    asked = {"progress_notify": True}

    def told(watch: Watch) -> int:
        return sum(not message.events for message in watch.messages)

    with (
        watching(esp, key=b"a-", range_end=b"b", **asked) as one,
        watching(esp, key=b"a-", range_end=b"b", **asked, start_revision=1) as past,
        watching(esp, key=b"a-", range_end=b"b") as silent,
        watching(esp, **EVERYTHING, **asked) as across,
    ):
        begun = starts(shards)
        with Writers(shards, ["a-", "z-"], pause=0.05) as writers:
            writers.wait_for_more(20)
        for watch in (one, past):
            watch.wait_for(lambda watch: told(watch) > 2)
            check(watch, shards[:1], lambda key: 0, {0: begun[0] if watch is one else 1})
            assert {message.watch_id for message in watch.messages} == {0}
        check(across, shards, lambda key: int(key >= b"m"), begun)
        across.wait_for(lambda watch: told(watch) > 2)
        assert told(silent) == 0


def test_a_half_closed_stream_goes_on(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    with talking(esp, empty_shards[0]) as talk:
        talk.created(key=b"a")
        talk.requests.half_close()
        talk.puts(b"a")
        assert talk.hears()[0].events[0].kv.key == b"a"


def test_when_the_proxy_ends_clients_go_elsewhere(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    with talking(esp, shards[0]) as talk:
        talk.created(**EVERYTHING)
        esp.process.send_signal(signal.SIGTERM)
        assert talk.hears_out() == ([], STOPPED)
    assert esp.wait() == 0
    wait_until(lambda: sum(map(watchers_in, shards)) == 0)


def token(etcd: Server, name: str) -> tuple[str, str]:
    with connect(etcd) as channel:
        request = rpc_pb2.AuthenticateRequest(name=name, password="secret")
        return "token", rpc_pb2_grpc.AuthStub(channel).Authenticate(request).token


@pytest.mark.needs_etcd(3, 5)  # 3.4 tells who comes with a token that it does not know that it has no permission
def test_permission_is_asked_for_at_each_create(start_etcd: Etcds, start_esp: Esps, etcdctl: Etcdctl) -> None:
    """And refused as etcd refuses it, though another watches the same already."""
    shard, other, without_auth = start_etcd.several(3)
    esp = start_esp([shard, other], ["m"])
    for command in (
        ["user", "add", "root:secret"],
        ["user", "grant-role", "root", "root"],
        ["user", "add", "some:secret"],
        ["role", "add", "reader"],
        ["role", "grant-permission", "reader", "read", "a"],
        ["user", "grant-role", "some", "reader"],
        ["auth", "enable"],
    ):
        etcdctl(shard, *command)
        etcdctl(other, *command)
    some, through_some = token(shard, "some"), token(esp, "some")
    for metadata, through_metadata in (
        ([], []),
        ([("token", "no such token")], [("token", "no such token")]),
        ([some], [through_some]),
    ):
        for create in ({"key": b"b"}, {"key": b"a", "range_end": b"c"}, {"key": b"b", "start_revision": 1}):
            with (
                talking(shard, without_auth, *metadata) as direct,
                talking(esp, without_auth, *through_metadata) as through,
            ):
                refusal = through.created(**create)
                assert refusal == direct.created(**create)
                assert refusal.canceled
                assert refusal.cancel_reason.startswith("rpc error: code = ")
    with talking(esp, without_auth, through_some) as first, talking(esp, without_auth, through_some) as second:
        assert not first.created(key=b"a").canceled
        assert not second.created(key=b"a").canceled
        etcdctl(shard, "--user", "root:secret", "role", "revoke-permission", "reader", "a")
        assert second.created(key=b"a").cancel_reason.endswith("etcdserver: permission denied")
        assert second.created(key=b"a", range_end=b"z").cancel_reason.endswith("etcdserver: permission denied")
