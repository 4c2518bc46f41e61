"""Watch over several shards: as from one etcd."""

from __future__ import annotations

import asyncio
import http.client
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import (
    EspProcess,
    Esps,
    Etcds,
    Server,
    connect,
    peer,
    program,
    running_esps,
    wait_until,
    wipe,
)
from tests.stubs import rpc_pb2_grpc
from tests.watching import Requests, Watch, Writers, check, history_of, resumable, revision_of, wanted, watching

Create = rpc_pb2.WatchCreateRequest
Put = rpc_pb2.PutRequest
EVERYTHING = {"key": b"\0", "range_end": b"\0"}
BELOW_I = {"key": b"\0", "range_end": b"i"}
STOPPED = (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
"""With this etcd's clients go on with a new stream."""
Heard = list[rpc_pb2.WatchResponse]
Script = Callable[["Conversation"], Heard]
Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


class Conversation:
    """One Watch stream, asked and heard in turns.

    Attributes:
        base: the revision of the etcd that owns the keys below "i", when the conversation began.
    """

    def __init__(
        self, server: Server, etcd: Server, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self.requests = Requests()
        self.base = revision_of(etcd)
        self.kv = rpc_pb2_grpc.KVStub(channel)
        self._etcd = etcd
        self._answers = rpc_pb2_grpc.WatchStub(channel).Watch(iter(self.requests), timeout=60, metadata=metadata)

    def hears(self, count: int = 1) -> Heard:
        return [next(self._answers) for _ in range(count)]

    def created(self, **create: Any) -> rpc_pb2.WatchResponse:
        """The reply to a create."""
        self.requests.create(**create)
        [reply] = self.hears()
        assert reply.created
        return reply

    def puts(self, key: bytes, value: bytes = b"v") -> int:
        return self.kv.Put(Put(key=key, value=value), timeout=30).header.revision

    def compact(self, revision: int) -> None:
        with connect(self._etcd) as channel:
            rpc_pb2_grpc.KVStub(channel).Compact(rpc_pb2.CompactionRequest(revision=revision))

    def hears_out(self) -> tuple[Heard, tuple[grpc.StatusCode, str]]:
        """Everything until the stream ends by itself, and how it does."""
        heard = []
        try:
            for answer in self._answers:
                heard.append(answer)  # noqa: PERF402 - what came before the error counts
        except grpc.RpcError as error:
            return heard, (error.code(), error.details())
        raise AssertionError("it ended well")

    def ends(self) -> None:
        self._answers.cancel()


@contextmanager
def talking(server: Server, etcd: Server, *metadata: tuple[str, str]) -> Iterator[Conversation]:
    with connect(server) as channel:
        conversation = Conversation(server, etcd, channel, metadata)
        yield conversation
        conversation.ends()


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
    request: pytest.FixtureRequest, session_etcds: Etcds, tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path
) -> Iterator[Sides]:
    """Of the version that the tests use, and of the newest."""
    judge, *shards = session_etcds.several(3, binary=peer("etcd") if request.param == "new" else None)
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
    """Which newer etcds refuse, and older ones take for the beginning, or for compacted."""
    talk.requests.create(key=b"a", start_revision=-5)
    replies = talk.hears()
    talk.requests.create(key=b"b")
    while not any(reply.created and not reply.canceled for reply in replies[1:]):
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


def test_a_watcher_over_shards_is_created_once_with_the_lowest_of_their_revisions(
    esp: EspProcess, empty_shards: list[LocalEtcd]
) -> None:
    with talking(esp, empty_shards[0]) as talk:
        for number in range(10):
            talk.puts(b"a", b"%d" % number)
        revisions = [revision_of(shard) for shard in empty_shards]
        first = talk.created(**EVERYTHING)
        assert (first.watch_id, first.header.revision) == (0, max(2, min(revisions)))  # 1: from the beginning
        assert talk.created(key=b"a").watch_id == 1
        talk.puts(b"z")
        [event] = talk.hears()
        assert event.header.revision == revisions[2] + 1
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
        told = {message.watch_id: message.header.revision for message in talk.hears(3)}
        first, _, third = map(revision_of, empty_shards)
        assert told == {0: first, 1: first, 2: third}
        for watch_id in (0, 1, 2):
            talk.requests.cancel(watch_id)
        assert [message.canceled for message in talk.hears(3)] == [True] * 3
        talk.requests.progress()
        talk.puts(b"j")
        assert [len(message.events) for message in talk.hears()] == [1]


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
        assert told(silent) == told(across) == 0


def watchers_in(etcd: Server) -> int:
    """How many watchers an etcd has."""
    host, _, port = etcd.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    line = next(line for line in text.splitlines() if line.startswith("etcd_debugging_mvcc_watcher_total "))
    return int(float(line.split()[1]))


def test_watchers_of_the_same_are_one_watcher_to_the_shard(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    same = {"key": b"a", "range_end": b"c"}
    with talking(esp, shards[0]) as talk, talking(esp, shards[0]) as other:
        for number in range(100):
            talk.created(**same)
            other.created(**same, start_revision=1 if number % 2 else 0)
        talk.puts(b"a")
        assert len({message.watch_id for message in talk.hears(100)}) == 100
        assert len({message.watch_id for message in other.hears(100)}) == 100
        wait_until(lambda: watchers_in(shards[0]) == 1)
        for different in ({"prev_kv": True}, {"fragment": True}, {"filters": [Create.NOPUT]}, {"range_end": b"d"}):
            talk.created(**(same | different))
        assert watchers_in(shards[0]) == 5
        with talking(esp, shards[0], ("hasleader", "true")) as demanding:
            demanding.created(**same)
            assert watchers_in(shards[0]) == 6
    wait_until(lambda: watchers_in(shards[0]) == 0)


def test_many_watchers_on_one_stream(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    count = 5000
    with talking(esp, empty_shards[0]) as talk:
        for number in range(count):
            talk.requests.create(key=b"%s%d" % (b"ajz"[number % 3 :][:1], number))
        assert [message.watch_id for message in talk.hears(count)] == list(range(count))
        for number in range(0, count, 100):
            talk.puts(b"%s%d" % (b"ajz"[number % 3 :][:1], number))
            assert [message.watch_id for message in talk.hears()] == [number]
        for number in range(count):
            talk.requests.cancel(number)
        assert [(message.watch_id, message.canceled) for message in talk.hears(count)] == [
            (number, True) for number in range(count)
        ]
    wait_until(lambda: sum(map(watchers_in, empty_shards)) == 0)


def test_many_streams_on_one_connection(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    with connect(esp) as channel:
        talks = [Conversation(esp, empty_shards[0], channel, ()) for _ in range(50)]
        for talk in talks:
            talk.requests.create(**EVERYTHING)
            talk.requests.create(key=b"j", start_revision=revision_of(empty_shards[1]) + 1)
        for talk in talks:
            assert [message.watch_id for message in talk.hears(2)] == [0, 1]
        talks[0].puts(b"j")
        for talk in talks:
            assert {message.watch_id for message in talk.hears(2)} == {0, 1}
        for talk in talks:
            talk.ends()
    wait_until(lambda: sum(map(watchers_in, empty_shards)) == 0)


async def two_thousand_streams(esp: EspProcess, shards: list[LocalEtcd]) -> None:
    """Half watch the same key of one shard, half a key of their own over all shards or from a revision."""
    channels = [grpc.aio.insecure_channel(esp.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    calls = [rpc_pb2_grpc.WatchStub(channels[number % 4]).Watch() for number in range(2000)]
    start = revision_of(shards[1]) + 1

    async def create(number: int) -> None:
        kind = number % 4
        if kind < 2:
            request = Create(key=b"all")
        elif kind == 2:
            request = Create(key=b"j%d" % number, start_revision=start)
        else:
            request = Create(key=b"b%d" % number, range_end=b"z")
        await calls[number].write(rpc_pb2.WatchRequest(create_request=request))
        reply = await calls[number].read()
        assert reply.created, number
        assert not reply.canceled, number

    async def hears(number: int, *keys: bytes) -> None:
        heard = [(await calls[number].read()).events[0].kv.key for _ in keys]
        assert heard == list(keys), number

    await asyncio.gather(*map(create, range(2000)))
    assert watchers_in(shards[0]) == 501, "one for all that watch the same key"
    kv = rpc_pb2_grpc.KVStub(channels[0])
    await kv.Put(Put(key=b"all"))
    for number in (2, 1002, 1998):
        await kv.Put(Put(key=b"j%d" % number))
    await asyncio.gather(*(hears(number, b"all") for number in range(2000) if number % 4 < 2))
    await asyncio.gather(*(hears(number, b"j%d" % number) for number in (2, 1002, 1998)))
    across = [number for number in range(2000) if number % 4 == 3]
    expected = {number: [b"j%d" % n for n in (2, 1002, 1998) if b"b%d" % number <= b"j%d" % n] for number in across}
    await asyncio.gather(*(hears(number, *keys) for number, keys in expected.items()))
    for call in calls:
        call.cancel()
    for channel in channels:
        await channel.close()


def test_thousands_of_streams_each_hear_their_own(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(3)
    asyncio.run(two_thousand_streams(start_esp(shards, ["i", "r"]), shards))
    wait_until(lambda: sum(map(watchers_in, shards)) == 0)


def test_a_create_that_etcd_finds_too_large_is_its_own_clients_trouble(start_etcd: Etcds, start_esp: Esps) -> None:
    judge, *shards = start_etcd.several(3)
    esp = start_esp(shards, ["m"])
    with talking(esp, shards[0]) as bystander:
        bystander.created(key=b"a")
        for size in (2**21 - 10, 2**21):  # the first is esp's to take and, with what esp adds, too large for etcd
            with talking(esp, shards[0]) as greedy:
                greedy.created(key=b"a")
                greedy.requests.create(key=b"b" * size)
                _, (code, text) = greedy.hears_out()
                assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert text.startswith("grpc: received message larger than max")
        with talking(judge, judge) as direct:
            direct.requests.create(key=b"b" * 2**21)
            assert direct.hears_out()[1] == (code, text)
        bystander.puts(b"a")
        assert [len(message.events) for message in bystander.hears()] == [1]


def test_a_message_of_a_hundred_megabytes_is_delivered_to_who_reads_it(start_etcd: Etcds, start_esp: Esps) -> None:
    """Larger than all that may wait for a connection; not in fragments, because the client did not ask for them."""
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    with talking(esp, shards[0]) as talk:
        value = bytes(1_000_000)
        for _ in range(100):
            begun = talk.puts(b"a", value)
        talk.created(key=b"a", start_revision=2)
        revisions: list[int] = []
        while len(revisions) < 100:
            revisions += [event.kv.mod_revision for event in talk.hears()[0].events]
        assert revisions == list(range(begun - 99, begun + 1))


def test_a_half_closed_stream_goes_on(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    with talking(esp, empty_shards[0]) as talk:
        talk.created(key=b"a")
        talk.requests.half_close()
        talk.puts(b"a")
        assert talk.hears()[0].events[0].kv.key == b"a"


def test_a_slow_client_is_sent_away_and_delays_nobody(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"], extra="limits: {max_watch_buffer_bytes: 1000000}")
    with watching(esp, key=b"a") as quick, talking(esp, shards[0]) as slow, connect(shards[0]) as direct:
        begun = slow.created(key=b"a").header.revision + 1
        kv = rpc_pb2_grpc.KVStub(direct)
        for number in range(400):
            kv.Put(Put(key=b"a", value=b"%d" % number * 20_000))
        check(quick, shards, owner, {0: begun})
        messages, status = slow.hears_out()
        events = [event for message in messages for event in message.events]
        assert status == STOPPED
        assert 0 < len(events) < 400
        assert [event.kv.mod_revision for event in events] == list(range(begun, begun + len(events)))
        resumable(esp, quick, wanted(quick, history_of(shards[0]), begun + len(events)))


def test_a_client_that_reads_a_long_history_slowly_is_waited_for(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"], extra="limits: {max_watch_buffer_bytes: 1000000}")
    with talking(esp, shards[0]) as talk:
        for _ in range(300):
            talk.puts(b"a", bytes(50_000))
        talk.created(key=b"a", start_revision=2)
        time.sleep(1)
        with talking(esp, shards[0]) as other:
            other.created(key=b"a", start_revision=300)
            assert other.hears()[0].events[0].kv.mod_revision == 300
        revisions: list[int] = []
        while len(revisions) < 300:
            revisions += [event.kv.mod_revision for event in talk.hears()[0].events]
        assert revisions == list(range(2, 302))


def test_when_the_proxy_ends_clients_go_elsewhere(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    with talking(esp, shards[0]) as talk:
        talk.created(**EVERYTHING)
        esp.process.send_signal(signal.SIGTERM)
        assert talk.hears_out() == ([], STOPPED)
    assert esp.wait() == 0
    wait_until(lambda: sum(map(watchers_in, shards)) == 0)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_etcdctl_goes_on_when_the_proxy_was_away(
    start_etcd: Etcds, start_esp: Esps, etcdctl: Etcdctl, sig: signal.Signals
) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    command = [program("etcdctl", "ESP_ETCDCTL"), "--endpoints", esp.address, "watch", "--prefix", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            wait_until(lambda: watchers_in(shards[0]) == 1)
            etcdctl(esp, "put", "a1", "1")
            assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", "a1\n", "1\n"]
            esp.stop(sig)
            etcdctl(shards[0], "put", "a2", "2")
            start_esp(shards, ["m"], "--listen", esp.url)
            etcdctl(esp, "put", "a3", "3")
            assert [watch.stdout.readline() for _ in range(6)] == ["PUT\n", "a2\n", "2\n", "PUT\n", "a3\n", "3\n"]
        finally:
            watch.kill()


def token(etcd: Server, name: str) -> tuple[str, str]:
    with connect(etcd) as channel:
        request = rpc_pb2.AuthenticateRequest(name=name, password="secret")
        return "token", rpc_pb2_grpc.AuthStub(channel).Authenticate(request).token


def test_permission_is_asked_for_at_each_create(start_etcd: Etcds, start_esp: Esps, etcdctl: Etcdctl) -> None:
    """And refused as etcd refuses it, though another watches the same already."""
    shard, other = start_etcd.several(2)
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
    some = token(shard, "some")
    for metadata in ([], [("token", "no such token")], [some]):
        for create in ({"key": b"b"}, {"key": b"a", "range_end": b"c"}, {"key": b"b", "start_revision": 1}):
            with talking(shard, other, *metadata) as direct, talking(esp, other, *metadata) as through:
                refusal = through.created(**create)
                assert refusal == direct.created(**create)
                assert refusal.canceled
                assert refusal.cancel_reason.startswith("rpc error: code = ")
    with talking(esp, other, some) as first, talking(esp, other, some) as second:
        assert not first.created(key=b"a").canceled
        assert not second.created(key=b"a").canceled
        etcdctl(shard, "--user", "root:secret", "role", "revoke-permission", "reader", "a")
        assert second.created(key=b"a").cancel_reason.endswith("etcdserver: permission denied")
        assert second.created(key=b"a", range_end=b"z").cancel_reason.endswith("etcdserver: permission denied")


def test_etcdctl_watches_all_keys_and_stays_idle_for_a_minute(
    esp: EspProcess, empty_shards: list[LocalEtcd], etcdctl: Etcdctl
) -> None:
    """With its keepalive, which a server that is too strict ends with "too many pings"."""
    command = [program("etcdctl", "ESP_ETCDCTL"), "--endpoints", esp.address, "watch", "--prefix", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        try:
            wait_until(lambda: all(watchers_in(shard) for shard in empty_shards))
            etcdctl(esp, "put", "a", "1")
            assert watch.stdout is not None
            assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", "a\n", "1\n"]
            time.sleep(61)
            for key in ("j", "z"):
                etcdctl(esp, "put", key, "2")
                assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", f"{key}\n", "2\n"]
        finally:
            watch.kill()
        assert watch.stderr is not None
        assert watch.stderr.read() == ""
