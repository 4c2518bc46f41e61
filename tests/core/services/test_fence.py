"""The fence around keys that are about to get another owner, with a client in memory and maps that note their calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import monotonic
from typing import Any

import pytest

from esp.core.keys import KeyRange
from esp.core.namespace import Namespace
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.services import fence
from esp.core.services.fence import LARGE_TXN, Fence
from esp.core.wire.ended import Passed, Several
from esp.core.wire.limits import Limits
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import OVERLOADED, Handler, Refuse, ServerStream, Sink
from esp.core.wire.status import Code, Status
from tests.core.wire.conversation import call, data, headers, meet, message, refusal, rst

KV = b"/etcdserverpb.KV/"
PUT, RANGE, TXN = KV + b"Put", KV + b"Range", KV + b"Txn"
Op = rpc_pb2.RequestOp
NOT_CONNECTED = Code.UNAVAILABLE, "there is no connection available"


class _Map(Handler):
    """The handler of all RPCs by one map; notes its calls, which the test answers."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        assert stream.head.handler is self
        self.world.began.append((self.name, stream.id, message[5:], stream.head.forward))
        stream.sink = self.world.sinks.get(stream.id) or Sink()

    def on_open(self, stream: ServerStream) -> None:
        self.world.began.append((self.name, stream.id, b"open", stream.head.forward))


class World:
    """A proxy as far as the fence sees it.

    Attributes:
        began: the calls that have begun: by which map, which stream, the message, the head for the next hop.
        sinks: what serves a call, by stream.
        counters: what became of calls.
    """

    def __init__(self, limits: Limits | None = None, namespace: Namespace | None = None) -> None:
        self.began: list[tuple[str, int, bytes, Any]] = []
        self.sinks: dict[int, Sink] = {}
        self.counters: Counter[str] = Counter()
        self.namespace = namespace
        self.map: Handler = _Map("old", self)
        self.fence: Fence | None = None
        self.client, self.server = meet(limits, find=self.find)
        self._next = 1

    def find(self, head: RequestHead) -> Handler:
        head.forward = head.path, head.encode_metadata(dropping=frozenset((b"esp-shard", b"esp-read")))
        head.keep(frozenset((b"esp-shard", b"esp-read")))
        return self.map if self.fence is None else self.fence.around(head, self.map)

    def calls(self, path: bytes, request: Any, *extra: tuple[bytes, bytes]) -> int:
        """A call with its message; its stream."""
        stream = self.opens(path, *extra)
        self.completes(stream, request)
        return stream

    def opens(self, path: bytes, *extra: tuple[bytes, bytes]) -> int:
        stream, self._next = self._next, self._next + 2
        self.client.sends(headers(stream, call(path, *extra)))
        return stream

    def completes(self, stream: int, request: Any) -> None:
        whole = message(request.SerializeToString())
        pieces = [whole[start : start + 16_384] for start in range(0, len(whole), 16_384)]
        self.client.sends(*(data(stream, piece, end=piece is pieces[-1]) for piece in pieces))

    def closes(self, *ranges: KeyRange) -> Fence:
        streams = list(self.server.connection.streams.values())
        self.fence = Fence(ranges or [KeyRange(b"m", b"t")], ["b"], self.find, streams, self.namespace, self.counters)
        self.server.connection.forget_heads()
        return self.fence

    def changes_the_map(self, other: Handler | None = None) -> None:
        """Another map is in force, and the fence is taken down."""
        taken_down, self.fence = self.fence, None
        self.map = other or _Map("new", self)
        self.server.connection.forget_heads()
        assert taken_down is not None
        taken_down.open()

    def begun(self) -> list[tuple[str, int]]:
        return [(name, stream) for name, stream, *_ in self.began]

    def answers(self, stream: int) -> None:
        self.server.connection.streams[stream].respond(b"")


def put(key: bytes) -> rpc_pb2.PutRequest:
    return rpc_pb2.PutRequest(key=key, value=b"v")


def test_calls_for_the_keys_begin_by_the_next_map_and_all_others_at_once() -> None:
    world = World()
    world.closes()
    held, passes = world.calls(PUT, put(b"n")), world.calls(PUT, put(b"a"))
    assert world.begun() == [("old", passes)]
    world.changes_the_map()
    assert world.begun() == [("old", passes), ("new", held)]
    assert world.calls(PUT, put(b"n")) == 5
    assert world.begun()[2:] == [("new", 5)]
    assert world.counters == {"held": 1}
    for stream in (held, passes, 5):
        world.answers(stream)
    world.server.flush()
    world.server.holds_nothing()


TOUCHING = {
    "Range": (KV + b"Range", rpc_pb2.RangeRequest(key=b"a", range_end=b"\0")),
    "RangeStream": (KV + b"RangeStream", rpc_pb2.RangeRequest(key=b"n")),
    "DeleteRange": (KV + b"DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"mm")),
    "compare": (TXN, rpc_pb2.TxnRequest(compare=[rpc_pb2.Compare(key=b"n")])),
    "put": (TXN, rpc_pb2.TxnRequest(failure=[Op(request_put=put(b"n"))])),
    "delete": (TXN, rpc_pb2.TxnRequest(success=[Op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"n"))])),
    "nested": (
        TXN,
        rpc_pb2.TxnRequest(
            success=[Op(request_txn=rpc_pb2.TxnRequest(success=[Op(request_range=rpc_pb2.RangeRequest(key=b"n"))]))]
        ),
    ),
    "large": (TXN, rpc_pb2.TxnRequest(success=[Op(request_put=rpc_pb2.PutRequest(key=b"a", value=b"v" * LARGE_TXN))])),
    "Lock": (b"/v3lockpb.Lock/Lock", v3lock_pb2.LockRequest(name=b"n")),
    "Unlock": (b"/v3lockpb.Lock/Unlock", v3lock_pb2.UnlockRequest(key=b"n/1")),
    "Campaign": (b"/v3electionpb.Election/Campaign", v3election_pb2.CampaignRequest(name=b"n")),
    "Proclaim": (
        b"/v3electionpb.Election/Proclaim",
        v3election_pb2.ProclaimRequest(leader=v3election_pb2.LeaderKey(key=b"n/1")),
    ),
    "Resign": (
        b"/v3electionpb.Election/Resign",
        v3election_pb2.ResignRequest(leader=v3election_pb2.LeaderKey(key=b"n/1")),
    ),
    "Leader": (b"/v3electionpb.Election/Leader", v3election_pb2.LeaderRequest(name=b"n")),
    "Observe": (b"/v3electionpb.Election/Observe", v3election_pb2.LeaderRequest(name=b"n")),
}


@pytest.mark.parametrize("name", TOUCHING)
def test_every_rpc_that_runs_by_the_map_is_held_if_it_is_for_the_keys(name: str) -> None:
    path, request = TOUCHING[name]
    world = World()
    world.closes()
    stream = world.calls(path, request)
    assert world.begun() == []
    world.changes_the_map()
    assert [one[:3] for one in world.began] == [("new", stream, request.SerializeToString())]
    world = World()
    world.closes(KeyRange(b"x", None))
    world.calls(path, request)
    wanted = [] if name in ("Range", "large") else [("old", 1)]
    assert world.begun() == wanted


def test_what_is_malformed_empty_or_for_no_key_passes() -> None:
    world = World()
    world.closes(KeyRange(b"", None))
    world.client.sends(headers(1, call(PUT)), data(1, message(b"\xff"), end=True))
    world.client.sends(headers(3, call(TXN)), data(3, message(), end=True))
    world.client.sends(headers(5, call(b"/etcdserverpb.Lease/LeaseGrant")), data(5, message(), end=True))
    world.client.sends(headers(7, call(PUT, (b"esp-shard", b"b"))), data(7, message(), end=True))
    assert world.begun() == [("old", 1), ("old", 3), ("old", 5), ("old", 7)]


def test_a_message_that_comes_later_than_its_head_is_served_by_the_map_in_force() -> None:
    world = World()
    during, passing, after = (world.opens(PUT) for _ in range(3))
    world.closes()
    world.completes(during, put(b"n"))
    world.completes(passing, put(b"a"))
    assert world.begun() == [("old", passing)]
    world.changes_the_map()
    world.completes(after, put(b"n"))
    assert world.begun() == [("old", passing), ("new", during), ("new", after)]


def test_a_second_fence_holds_what_the_first_has_held_too() -> None:
    world = World()
    stream = world.opens(PUT)
    world.closes()
    world.changes_the_map()
    world.closes()
    world.completes(stream, put(b"n"))
    assert world.begun() == []
    world.changes_the_map(_Map("newest", world))
    assert world.begun() == [("newest", stream)]


def test_the_metadata_of_a_held_call_go_on_as_they_came() -> None:
    world = World()
    world.closes()
    world.calls(PUT, put(b"n"), (b"token", b"secret"), (b"esp-read", b"each"))
    world.changes_the_map()
    world.calls(PUT, put(b"n"), (b"token", b"secret"), (b"esp-read", b"each"))
    assert world.began[0][3] == world.began[1][3]


def test_a_next_map_that_refuses_the_call_says_so() -> None:
    world = World()
    world.closes()
    stream = world.calls(PUT, put(b"n"))
    world.server.says()
    world.changes_the_map(Refuse(Status(Code.UNIMPLEMENTED, "none")))
    world.server.flush()
    world.server.answers(refusal(stream, Code.UNIMPLEMENTED, "none"))


def test_without_a_change_the_calls_begin_by_the_map_of_before() -> None:
    world = World()
    world.closes()
    stream = world.calls(PUT, put(b"n"))
    world.changes_the_map(world.map)
    assert world.begun() == [("old", stream)]


def test_a_client_that_goes_away_meanwhile_leaves_nothing_behind() -> None:
    world = World()
    up = world.closes()
    stream = world.calls(PUT, put(b"n"))
    assert up.held == 1
    world.client.sends(rst(stream))
    assert up.held == 0
    world.changes_the_map()
    assert world.begun() == []
    world.server.holds_nothing()


def test_calls_are_held_for_a_while_then_refused_as_if_the_shard_were_away(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    up = world.closes()
    first = world.calls(PUT, put(b"n"))
    up.tick(monotonic())
    assert up.held == 1
    monkeypatch.setattr(fence, "HOLD_SECONDS", -1.0)
    world.server.says()
    up.tick(monotonic())
    second = world.calls(PUT, put(b"n"))
    passes = world.calls(PUT, put(b"a"))
    world.server.flush()
    world.server.answers(refusal(first, *NOT_CONNECTED), refusal(second, *NOT_CONNECTED))
    world.changes_the_map()
    assert world.begun() == [("old", passes)]
    assert world.counters == {"held": 1, "refused": 2}


def test_there_is_no_more_memory_for_held_calls_than_for_all_others() -> None:
    world = World(Limits(max_buffered_bytes=1 << 20, connection_window_bytes=1 << 20, max_message_bytes=1 << 18))
    up = world.closes()
    for _ in range(12):
        world.calls(PUT, rpc_pb2.PutRequest(key=b"n", value=b"v" * 16_000 * 8))
    assert 0 < up.held < 12
    assert world.counters == {"held": up.held, "refused": 12 - up.held}
    assert OVERLOADED.message.encode()[:20] in world.server.says()


class _At(Sink):
    """A call at a shard, or at several."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.was_cancelled = False

    def sent_to(self) -> tuple[Passed | Several | None, float, bytes]:
        return Several(self.names) if self.names else None, 0.0, b""

    def cancelled(self, code: int, reason: str) -> None:
        self.was_cancelled = True


def test_of_what_had_begun_writes_at_the_former_owner_and_locks_are_cut_and_nothing_else() -> None:
    world = World()
    waits = b"/v3lockpb.Lock/Lock"
    world.sinks = {1: _At("b"), 3: _At("a"), 5: _At(), 7: _At("b"), 9: _At("a", "b")}
    for path in (PUT, PUT, TXN, RANGE, KV + b"DeleteRange"):
        world.calls(path, put(b"z"))
    world.map = _Map("waiting", world)
    world.map.waits = True
    world.server.connection.forget_heads()
    world.calls(waits, v3lock_pb2.LockRequest(name=b"n"))
    up = world.closes()
    assert asyncio.run(up.ended(0.0)) == 3
    cut = [number for number, sink in world.sinks.items() if isinstance(sink, _At) and sink.was_cancelled]
    assert cut == [1, 5, 9]
    world.server.flush()
    assert world.server.says().count(b"etcdserver: request timed out") == 3
    assert sorted(world.server.connection.streams) == [
        3,
        7,
    ]  # a lock granted by the former owner would be worth nothing
    assert world.counters == {"cut": 3}


def test_the_fence_waits_no_longer_than_for_the_last_answer() -> None:
    world = World()
    world.sinks = {1: _At("b"), 3: _At("a")}
    world.calls(PUT, put(b"z"))
    world.calls(PUT, put(b"a"))
    up = world.closes()

    async def test() -> None:
        ended = asyncio.ensure_future(up.ended(60.0))
        await asyncio.sleep(0.02)
        assert not ended.done()
        world.answers(1)
        async with asyncio.timeout(20):
            assert await ended == 0

    asyncio.run(test())


@pytest.mark.parametrize(
    ("moved", "key", "end", "is_held"),
    [
        (KeyRange(b"ns/m", b"ns/t"), b"n", b"", True),
        (KeyRange(b"ns/m", b"ns/t"), b"a", b"", False),
        (KeyRange(b"ns/m", None), b"z", b"", True),
        (KeyRange(b"", b"ns/m"), b"a", b"", True),
        (KeyRange(b"", b"ns/m"), b"m", b"", False),
        (KeyRange(b"ns/m", b"o"), b"a", b"\0", True),
        (KeyRange(b"o", None), b"a", b"\0", False),
    ],
)
def test_in_a_namespace_the_keys_are_those_that_clients_name(
    moved: KeyRange, key: bytes, end: bytes, is_held: bool
) -> None:
    world = World(namespace=Namespace.of(b"ns/"))
    world.closes(moved)
    world.calls(RANGE, rpc_pb2.RangeRequest(key=key, range_end=end))
    assert bool(world.begun()) is not is_held


def test_with_one_shard_calls_that_it_would_pass_on_frame_by_frame_are_refused() -> None:
    world = World()
    world.map.streaming = True
    world.closes()
    world.server.says()
    stream = world.opens(KV + b"RangeStream")
    world.server.answers(refusal(stream, *NOT_CONNECTED), rst(stream, 0))  # type: ignore[arg-type]
    watch = world.opens(b"/etcdserverpb.Watch/Watch")
    assert world.begun() == [("old", watch)]
