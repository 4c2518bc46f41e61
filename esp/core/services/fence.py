"""A fence around keys that are about to get another owner: while it stands, no call for these keys runs.

A reload gives ranges of keys to other shards. With one map after the other and nothing in between, a write that the
former owner acknowledges late would be lost to clients of the new one; with several processes, some would read and
write by the new map while others still do by the old one. So a fence stands in each process while the map changes:

1. It goes up (`Fence`). Calls that come from now on for the keys are held; all others go on.
2. Calls for the keys that had begun end (`ended`). Writes that have not after a while are cut: their clients are told
   that the outcome is unknown, and whether or not the former owner does the write, nobody sees it. Reads may go on: all
   that is acknowledged meanwhile was written after they began.
3. The next map is put in force, in all processes; or none does, and the old one stays.
4. The fence is taken down (`open`). The calls that were held begin anew, by the map in force.

A call is held for `HOLD_SECONDS` at most, and then refused as if its shard were not connected: nothing was done, and
clients of etcd try again by themselves. The fence itself stands until whoever put it up takes it down, because without
knowing what other processes do, either map may be wrong.

Watches are not held: nothing happens to the keys meanwhile, and they end with the map. With one shard, RPCs that esp
does not know pass, because esp cannot tell their keys.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic
from typing import Any, Final

from google.protobuf.message import Message

from esp.core import errors
from esp.core.keys import KeyRange, prefix_end
from esp.core.namespace import Namespace
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.services import metadata
from esp.core.services.anew import Anew, Find, Held
from esp.core.services.handlers import parse
from esp.core.wire.ended import Several
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import OVERLOADED, Handler, Refuse, ServerCall
from esp.core.wire.status import RpcError

HOLD_SECONDS: Final = 5.0
"""The longest that a call is held."""
LARGE_TXN: Final = 16_384
"""A transaction of more bytes is held without a look at its keys."""
_POLL_SECONDS: Final = 0.005

_Keys = Callable[[Any], Iterable[KeyRange]]


def _own(request: Any) -> Iterator[KeyRange]:
    yield KeyRange.of_request(request.key, request.range_end)


def _key(request: Any) -> Iterator[KeyRange]:
    yield KeyRange.of_request(request.key, b"")


def _name(request: Any) -> Iterator[KeyRange]:
    start = request.name + b"/"
    yield KeyRange(start, prefix_end(start))


def _leader(request: Any) -> Iterator[KeyRange]:
    yield KeyRange.of_request(request.leader.key, b"")


def _of_txn(request: Any) -> Iterator[KeyRange]:
    for compare in request.compare:
        yield KeyRange.of_request(compare.key, compare.range_end)
    for operation in (*request.success, *request.failure):
        kind = operation.WhichOneof("request")
        if kind == "request_txn":
            yield from _of_txn(operation.request_txn)
        elif kind == "request_put":
            yield from _key(operation.request_put)
        elif kind is not None:
            yield from _own(getattr(operation, kind))


_KV, _LOCK, _ELECTION = b"/etcdserverpb.KV/", b"/v3lockpb.Lock/", b"/v3electionpb.Election/"
_TXN: Final = _KV + b"Txn"
_OBSERVE: Final = _ELECTION + b"Observe"
_KEYS: Final[Mapping[bytes, tuple[type[Message], _Keys]]] = {
    _KV + b"Range": (rpc_pb2.RangeRequest, _own),
    _KV + b"RangeStream": (rpc_pb2.RangeRequest, _own),
    _KV + b"Put": (rpc_pb2.PutRequest, _key),
    _KV + b"DeleteRange": (rpc_pb2.DeleteRangeRequest, _own),
    _TXN: (rpc_pb2.TxnRequest, _of_txn),
    _LOCK + b"Lock": (v3lock_pb2.LockRequest, _name),
    _LOCK + b"Unlock": (v3lock_pb2.UnlockRequest, _key),
    _ELECTION + b"Campaign": (v3election_pb2.CampaignRequest, _name),
    _ELECTION + b"Proclaim": (v3election_pb2.ProclaimRequest, _leader),
    _ELECTION + b"Leader": (v3election_pb2.LeaderRequest, _name),
    _OBSERVE: (v3election_pb2.LeaderRequest, _name),
    _ELECTION + b"Resign": (v3election_pb2.ResignRequest, _leader),
}
"""The calls that run by the map, with the keys that they name. Watches end when the map changes, and begin anew."""
_READS: Final = frozenset((_KV + b"Range", _KV + b"RangeStream", _ELECTION + b"Leader"))


def _ranges_of(path: bytes, message: bytes) -> list[KeyRange]:
    kind, keys = _KEYS[path]
    return list(keys(parse(kind, message)))


class Fence:
    """Stands from the moment in which it is made until `open`.

    Args:
        ranges: the keys.
        sources: the names of the shards that own them so far.
        find: the handler of a request, by the map in force at that moment and without this fence.
        calls: the open calls of all clients.
        namespace: the namespace of clients' keys; None for none.
        counters: counts the calls that were `held`, `refused` and `cut`.

    Attributes:
        is_open: the fence has been taken down.
    """

    def __init__(
        self,
        ranges: Iterable[KeyRange],
        sources: Iterable[str],
        find: Find,
        calls: Iterable[ServerCall],
        namespace: Namespace | None = None,
        counters: Counter[str] | None = None,
    ) -> None:
        self.is_open = False
        self._counters: Counter[str] = Counter() if counters is None else counters
        self._ranges = [found for key_range in ranges if (found := _to_clients(key_range, namespace)) is not None]
        self._sources = frozenset(sources)
        self._anew = Anew(find)
        self._began = monotonic()
        self._held: dict[Held, None] = {}
        self._before: list[ServerCall] = []
        self._waiting: list[ServerCall] = []  # those that may wait for hours
        for stream in calls:
            head = stream.head
            if head.path not in _KEYS or head.field(metadata.SHARD) or head.path == _OBSERVE:
                continue
            if stream.awaits_message:
                stream.head = _with(head, _Fenced(self, head))
            elif head.handler.waits:
                self._waiting.append(stream)
            else:
                self._before.append(stream)

    @property
    def held(self) -> int:
        """The number of calls that are held."""
        return len(self._held)

    def around(self, head: RequestHead, handler: Handler) -> Handler:
        """The handler of a request while the fence stands, in place of `handler`."""
        if head.path not in _KEYS or head.field(metadata.SHARD) or isinstance(handler, Refuse) or handler.is_page:
            return handler
        if handler.streaming:  # of a proxy with one shard, which passes such a call on frame by frame
            return Refuse(errors.NO_CONNECTION)
        return _Fenced(self, _with(head, handler))

    def touches(self, path: bytes, message: bytes) -> bool:
        """Whether a call may be for the keys."""
        if path == _TXN and len(message) > LARGE_TXN:
            return True
        try:
            asked = _ranges_of(path, message)
        except RpcError:
            return False  # whoever serves the call says so
        return any(mine.intersect(each) is not None for each in asked for mine in self._ranges)

    def hold(self, stream: ServerCall, message: bytes) -> None:
        """Holds a call; refuses it if calls have been held for too long, or if there is no memory."""
        if self._is_late():
            self._counters["refused"] += 1
            stream.finish(errors.NO_CONNECTION)
        elif not stream.hold(len(message)):
            self._counters["refused"] += 1
            stream.finish(OVERLOADED)
        else:
            self._counters["held"] += 1
            Held(self._held, stream, message)

    def _is_late(self) -> bool:
        return monotonic() - self._began > HOLD_SECONDS

    def tick(self, _: float) -> None:
        """Refuses the calls that have been held for too long."""
        if self._held and self._is_late():
            self._counters["refused"] += len(self._held)
            for held in list(self._held):
                held.release()
                held.stream.finish(errors.NO_CONNECTION)

    async def ended(self, seconds: float) -> int:
        """Waits until all calls have ended that began before the fence went up; cuts writes that have not by then.

        Calls that may wait for hours are cut at once: a lock that the former owner grants from now on is worth nothing.

        Only calls count that were sent to a shard which owns the keys, or of which esp does not know where they were
        sent. Returns how many were cut.
        """
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            if not stream.is_over and self._may_touch(stream):
                stream.expire(errors.SERVER_STOPPED)
        until = self._began + seconds
        while self._left() and monotonic() < until:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_POLL_SECONDS)
        writes = [stream for stream in self._left() if stream.head.path not in _READS]
        for stream in writes:
            stream.expire(errors.REQUEST_TIMED_OUT)
        if writes:
            self._counters["cut"] += len(writes)
        return len(writes)

    def _left(self) -> list[ServerCall]:
        self._before = [stream for stream in self._before if not stream.is_over]
        return [stream for stream in self._before if self._may_touch(stream)]

    def _may_touch(self, stream: ServerCall) -> bool:
        server = None if stream.sink is None else stream.sink.sent_to()[0]
        if server is None:
            return True
        names = server.names if isinstance(server, Several) else (server.name,)
        return not self._sources.isdisjoint(names)

    def open(self) -> None:
        """Takes the fence down: the calls that were held begin, each in its client's turn."""
        self.is_open = True
        for held in list(self._held):
            self._anew.begin_in_turn(held)

    def begin(self, stream: ServerCall, message: bytes) -> None:
        """Begins a call that came while the fence stood, by the map in force now."""
        self._anew.begin(stream, message)


class _Fenced(Handler):
    """Serves calls of one head while a fence stands; later too, if their messages come only then.

    Args:
        head: the head as it is without the fence.
    """

    def __init__(self, fence: Fence, head: RequestHead) -> None:
        self.idempotent = head.handler.idempotent
        self._fence = fence
        self._head = head

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Holds the call if it is for the keys."""
        fence = self._fence
        if fence.is_open:
            fence.begin(stream, message)
        elif fence.touches(self._head.path, message):
            fence.hold(stream, message)
        else:
            stream.head = self._head
            self._head.handler.on_message(stream, message)


def _with(head: RequestHead, handler: Handler) -> RequestHead:
    """The same head with a handler of one whole message."""
    other = RequestHead(head.method, head.path, head.fields, head.content_length)
    other.is_grpc, other.encoding, other.forward, other.size = head.is_grpc, head.encoding, head.forward, head.size
    other.handler, other.unary = handler, True
    return other


def _to_clients(key_range: KeyRange, namespace: Namespace | None) -> KeyRange | None:
    """A range of the shards' keys, as clients name these keys; None if clients see none of them."""
    if namespace is None:
        return key_range
    seen = key_range.intersect(namespace.keys)
    if seen is None:
        return None
    length = len(namespace.prefix)
    end = None if seen.end is None or seen.end == namespace.keys.end else seen.end[length:]
    return KeyRange(seen.start[length:], end)
