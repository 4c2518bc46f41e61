"""LeaseKeepAlive: one answer for each request of a client, in order, over all shards.

A keepalive goes to every shard at once, on streams that all clients with the same token share (`keepalive_lane`), and
is answered when every shard has answered or is given up: with the lowest TTL. It costs no task and no future. Nothing
is renewed that no client has asked for.

A client that does not read, or that sends faster than the shards answer, is not read from either: its bytes are given
back only as its answers leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from operator import is_not
from time import monotonic
from typing import Final

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.background import Background
from esp.core.identity import Identity
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.keepalive_lane import Lane
from esp.core.services.lease_repair import LeaseRepair
from esp.core.services.lease_table import LeaseTable, is_empty
from esp.core.services.metadata import call_head, load_bearing
from esp.core.services.revision import merged_header
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import Fields
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import Handler, ServerStream, Sink
from esp.core.wire.shares import Shares, address_of
from esp.core.wire.status import OK, Code, RpcError, Status

PATH: Final = b"/etcdserverpb.Lease/LeaseKeepAlive"
MAX_REQUEST_BYTES: Final = 4096
"""A request is 11 bytes at most, unless it has fields that no etcd knows."""
TAKEN_AT_ONCE: Final = 64
"""Requests that are sent on together; the client's next ones may have to wait for its next turn."""
IDLE_SECONDS: Final = 30.0
"""How long streams to the shards stay open without a client."""

_parse = rpc_pb2.LeaseKeepAliveRequest.FromString
NO_ANSWER: Final = -1


class Keepalive:
    """One request of a client, and what the shards answered so far.

    Attributes:
        body: the request, with its prefix.
        sent: when, on the monotonic clock.
        size: bytes of the client's window to give back when it is done with.
        ttls: by shard: what it answered, NO_ANSWER before or without an answer.
        failure: why the call cannot be answered, or a shard did not answer.
        answer: what the client gets, once that is known: a message with its prefix, or the end of the call.
    """

    __slots__ = ("_left", "answer", "body", "client", "failure", "headers", "id", "sent", "size", "ttls")

    def __init__(self, client: _Client, message: bytes, sent: float, shards: int) -> None:
        self.client = client
        self.id = _parse(message).ID
        self.body = prefix(message)
        self.sent = sent
        self.size = 0
        self.ttls = [NO_ANSWER] * shards
        self.headers: list[rpc_pb2.ResponseHeader | None] = [None] * shards
        self.failure: Status | None = None
        self.answer: bytes | Status | None = None
        self._left = shards

    @property
    def wanted(self) -> bool:
        """Whether the client still waits for it."""
        return not self.client.closed

    def answered(self, shard: int, ttl: int, header: rpc_pb2.ResponseHeader) -> None:
        """A shard's answer."""
        self.ttls[shard] = ttl if ttl > 0 else 0
        self.headers[shard] = header
        self._one_less()

    def failed(self, shard: int, status: Status) -> None:
        """A shard gives none; an error that says more than that it is away goes before others."""
        if self.failure is None or errors.is_unreachable(self.failure):
            self.failure = status
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self.client.complete(self)


class _Client(Sink):
    """A client's stream.

    Attributes:
        address: where it comes from.
        lanes: to each shard.
        metadata: what the shards must know of the client.
        closed: nothing is answered any more.
    """

    __slots__ = (
        "_half_closed",
        "_owed",
        "_queue",
        "_reader",
        "_service",
        "address",
        "closed",
        "lanes",
        "metadata",
        "stream",
    )

    def __init__(self, service: LeaseKeepAlive, stream: ServerStream, lanes: _Lanes) -> None:
        self.stream = stream
        self.address = address_of(stream.peer)
        self.lanes = lanes
        self.metadata = lanes.metadata
        self.closed = False
        self._service = service
        self._queue: deque[Keepalive] = deque()
        self._reader = MessageReader(MAX_REQUEST_BYTES, stream.head.encoding)
        self._half_closed = False
        self._owed = 0
        stream.sink = self

    # From the client.

    def request_data(self, payload: bytes, end: bool) -> None:
        """Some requests, or the half-close."""
        self.stream.connection.do(self._take_requests(payload, end))

    def half_message(self) -> int | None:
        """Which request has come in part only."""
        return self._reader.count if self._reader.held else None

    def _take_requests(self, payload: bytes, end: bool) -> Iterator[None]:
        """Takes the requests some at a time: thousands fit one frame."""
        left = len(payload)
        messages = self._reader.messages(payload)
        while not self.closed:
            try:
                now, shards = monotonic(), len(self.lanes.lanes)
                keepalives = [Keepalive(self, message, now, shards) for message in islice(messages, TAKEN_AT_ONCE)]
                is_last = len(keepalives) < TAKEN_AT_ONCE
                if is_last and end and self._reader.wanted:
                    raise Status(Code.INTERNAL, "the request ended within a message").error()
            except RpcError as error:
                self._end(error.status)
                return
            except DecodeError as error:
                self._end(Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}"))
                return
            if keepalives:
                if not self._service.admit(self.address, len(keepalives)):
                    self._end(errors.TOO_MANY_REQUESTS)
                    return
                keepalives[-1].size = size = left if is_last else max(0, left - self._reader.held)
                left -= size
                self._send(keepalives)
            if is_last:
                if not keepalives:
                    self.stream.consumed(left)
                self._half_closed = end
                self._answer()
                return
            yield

    def _send(self, keepalives: Sequence[Keepalive]) -> None:
        self._queue += keepalives
        body = b"".join([keepalive.body for keepalive in keepalives])
        for lane in self.lanes.lanes:
            lane.send(keepalives, body)

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone."""
        self.stream.sink = None
        self._close()

    def drained(self, size: int) -> None:
        """Answers that waited have left."""
        if self.stream.pending is None:
            owed, self._owed = self._owed, 0
            self.stream.consumed(owed)

    # To the client.

    def complete(self, keepalive: Keepalive) -> None:
        """All shards have answered, or will not. A bug that shows here is not that of the stream to the shard."""
        self._service.background.guard("a keepalive", partial(self._complete, keepalive), self.stream.on_bug)

    def _complete(self, keepalive: Keepalive) -> None:
        if self.closed:
            return
        keepalive.answer = self._service.answer(keepalive)
        if keepalive is self._queue[0]:
            self._answer()

    def _answer(self) -> None:
        """Sends what is known, in the order of the requests."""
        queue, stream = self._queue, self.stream
        done = 0
        while queue and not self.closed:
            answer = queue[0].answer
            if answer is None:
                break
            if isinstance(answer, Status):
                self._end(answer)
                break
            keepalive = queue.popleft()
            done += 1
            stream.start()
            if stream.send_data(answer, False):
                stream.consumed(keepalive.size)
            else:
                self._owed += keepalive.size
        self._service.release(self.address, done)
        if self._half_closed and not queue and not self.closed:
            self._end(OK)

    def _end(self, status: Status) -> None:
        self.stream.sink = None
        self._close()
        self.stream.finish(status)

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self._service.release(self.address, len(self._queue))
            self._queue.clear()
            self.lanes.clients -= 1
            self.lanes.idle_since = monotonic()


class _Lanes:
    """The lanes of all clients with the same metadata; `address` is that of the first."""

    __slots__ = ("address", "clients", "idle_since", "lanes", "metadata")

    def __init__(self, address: str, metadata: Fields, lanes: list[Lane]) -> None:
        self.address = address
        self.metadata = metadata
        self.lanes = lanes
        self.clients = 0
        self.idle_since = 0.0


class LeaseKeepAlive(Handler):
    """Serves the stream of each client.

    Attributes:
        background: tells the bugs that show in one client's answers, or in the streams to one shard.
    """

    streaming = True
    forwards = False

    def __init__(
        self,
        routing: Routing,
        table: LeaseTable,
        repair: LeaseRepair,
        context: WireContext,
        background: Background,
    ) -> None:
        self.background = background
        self._shards = routing.shards
        self._identity: Identity = routing.identity
        self._table = table
        self._repair = repair
        self._context = context
        self._lanes: dict[Forward, _Lanes] = {}
        # What the last answer was made of, which is mostly the same again; nothing is equal to what it begins with.
        self._merged: tuple[list[rpc_pb2.ResponseHeader | None], bytes] = ([rpc_pb2.ResponseHeader()], b"")
        limits = context.limits
        self._places = Shares(limits.max_keepalive_streams, limits.common_share)
        self._waiting = Shares(limits.max_keepalives, limits.common_share)

    def on_open(self, stream: ServerStream) -> None:
        """A client's stream begins."""
        metadata = load_bearing(stream.head)
        forward = call_head(PATH, metadata)
        lanes = self._lanes.get(forward)
        if lanes is None:
            address = address_of(stream.peer)
            if not self._has_room(address):
                stream.finish(errors.TOO_MANY_REQUESTS)
                return
            made = [Lane(shard, index, forward) for index, shard in enumerate(self._shards)]
            lanes = self._lanes[forward] = _Lanes(address, metadata, made)
        lanes.clients += 1
        _Client(self, stream, lanes)

    def _has_room(self, address: str) -> bool:
        """Takes a place for one more token; those that nobody uses go first."""
        while not self._places.take(address):
            idle = next((forward for forward, lanes in self._lanes.items() if not lanes.clients), None)
            if idle is None:
                self._context.reached("max_keepalive_streams")
                return False
            self._drop(idle)
        return True

    def _drop(self, forward: Forward) -> None:
        dropped = self._lanes.pop(forward)
        self._places.give(dropped.address)
        for lane in dropped.lanes:
            lane.close()

    def admit(self, address: str, count: int) -> bool:
        """Takes room for keepalives of a client that will wait; False when there is none."""
        if not self._waiting.take(address, count):
            self._context.reached("max_keepalives")
            return False
        return True

    def release(self, address: str, count: int) -> None:
        """Gives that room back."""
        self._waiting.give(address, count)

    def answer(self, keepalive: Keepalive) -> bytes | Status:
        """What the client gets, now that nothing more comes from the shards: a message, or the end of its call."""
        failure = keepalive.failure
        missed: Sequence[int] = ()
        if failure is None and min(keepalive.ttls) > 0:
            ttl = min(keepalive.ttls)
            for shard in list(self._table.left_out):
                self._table.answers(shard)
        elif failure is None or self._may_miss(keepalive, failure):
            ttl, missed = self._judged(keepalive)
        else:
            return failure
        if ttl:
            self._table.renewed(keepalive.id, keepalive.ttls, keepalive.sent, keepalive.client.metadata)
        for shard in missed:
            self._table.missed(keepalive.id, shard)
            self._repair.grant(keepalive.id, shard, keepalive.client.metadata)
        answer = rpc_pb2.LeaseKeepAliveResponse(ID=keepalive.id, TTL=ttl).SerializeToString()
        return prefix(self._header(keepalive.headers) + answer)

    def _header(self, headers: list[rpc_pb2.ResponseHeader | None]) -> bytes:
        """An answer that is nothing but a header: what stands in front of an answer without one."""
        known, merged = self._merged
        if any(map(is_not, known, headers)):
            header = merged_header([header for header in headers if header is not None], self._identity)
            merged = rpc_pb2.LeaseKeepAliveResponse(header=header).SerializeToString()
            self._merged = headers, merged
        return merged

    def _may_miss(self, keepalive: Keepalive, failure: Status) -> bool:
        """Whether it is answered without the shards that have not."""
        return self._table.tolerant and any(keepalive.headers) and errors.is_unreachable(failure)

    def _judged(self, keepalive: Keepalive) -> tuple[int, Sequence[int]]:
        """The TTL of a lease that not every shard has, 0 when that makes it dead; the shards that should get it."""
        lease_id, table = keepalive.id, self._table
        now = monotonic()
        lives: list[bool | None] = [None if ttl == NO_ANSWER else ttl > 0 for ttl in keepalive.ttls]
        left = [ttl for ttl in keepalive.ttls if ttl > 0]
        for shard, here in enumerate(lives):
            if here is None and (seconds := table.left(lease_id, shard, now)) is not None:
                lives[shard] = True
                left.append(seconds)
            elif here is not None:
                table.answers(shard)
        empty = [shard for shard, header in enumerate(keepalive.headers) if header is not None and is_empty(header)]
        judgement = table.judge(lease_id, lives, empty)
        if judgement.dead:
            if True in lives or table.get(lease_id) is not None:
                elsewhere = [shard for shard, here in enumerate(lives) if here is not False]
                self._repair.revoke(lease_id, elsewhere, keepalive.client.metadata)
            table.counters["half_dead"] += True in lives
            table.forget(lease_id)
            return 0, ()
        return min(left), judgement.missed

    def tick(self, now: float) -> None:
        """Looks at every stream to the shards, and closes those that no client uses."""
        for forward, lanes in list(self._lanes.items()):
            for lane in lanes.lanes:
                self.background.guard("keepalives to a shard", partial(lane.tick, now), lane.on_bug)
            if not lanes.clients and now - lanes.idle_since > IDLE_SECONDS:
                self._drop(forward)
