"""One client's LeaseKeepAlive call: keepalives from its stream go to every shard, and are answered in their order.

A client's window opens only as its answers leave. So esp does not read from a client that does not read, or that sends
faster than the shards answer. Only a few keepalives of each client are at the shards at a time, and its others wait
here. The reason: etcd takes the keepalives of a stream one after the other, so a client with many would hold up all
others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from time import monotonic
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.background import Background
from esp.core.own_keys import is_own_lease
from esp.core.pb import rpc_pb2
from esp.core.services.lease.keepalive_lane import Lane
from esp.core.wire.hpack import Fields
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.server_stream import ServerCall, Sink
from esp.core.wire.shares import address_of
from esp.core.wire.status import OK, Code, RpcError, Status
from esp.core.wire.traces import shares

MAX_REQUEST_BYTES: Final = 4096
"""The most bytes of a request. A request without unknown fields has 11 bytes at most."""
MOST_AT_WORK: Final = 32
"""The most keepalives of a client's stream at the shards; half of them must be answered before further ones go."""
FEW_AT_WORK: Final = 2
"""The same, if others have many keepalives at the shards."""
MUCH_AT_WORK: Final = 64
"""With so many keepalives on one stream to a shard, no client may have more than a few on it."""

_parse = rpc_pb2.LeaseKeepAliveRequest.FromString
_REQUEST_TAG: Final = 1 << 3
_ANSWER_TAG: Final = bytes((2 << 3,))
NO_ANSWER: Final = -1


class Keepalive:
    """One request of a client, and the shards' answers so far.

    Attributes:
        id: the lease that the shards are asked for.
        told: the lease that the client has named. If clients see no such lease, the shards are asked for lease 0, which
            cannot exist.
        body: the request, with its prefix.
        sent: the time of sending, on the monotonic clock.
        size: bytes of the client's window to give back when the keepalive is over.
        echo: the field of the id as it stands in an answer; b"" if only a parser can tell.
        ttls: by the shard's name: the TTL that the shard answered, NO_ANSWER before or without an answer.
        headers: by the shard's name: the header of the answer; None before or without an answer.
        failure: why esp cannot answer the call, or why a shard did not answer.
        is_sure: the shards that do not know the lease were asked twice.
        answer: the client's answer, once known: a message with its prefix, or the end of the call.
    """

    __slots__ = (
        "_left",
        "answer",
        "body",
        "call",
        "echo",
        "failure",
        "headers",
        "id",
        "is_sure",
        "sent",
        "size",
        "told",
        "ttls",
    )

    def __init__(self, call: KeepaliveCall, message: bytes, sent: float, shards: Iterable[str]) -> None:
        self.call = call
        lease_id = self.id = self.told = _parse(message).ID
        if is_own_lease(lease_id) and call.hides_own_leases:
            lease_id, message = 0, b""
            self.id = 0
        # Nothing but the id, in the shortest form: an answer then has the same bytes behind another tag.
        is_plain = lease_id > 0 and message[0] == _REQUEST_TAG and len(message) == (lease_id.bit_length() + 13) // 7
        self.echo = _ANSWER_TAG + message[1:] if is_plain else b""
        self.body = prefix(message)
        self.sent = sent
        self.size = 0
        self.ttls: dict[str, int] = dict.fromkeys(shards, NO_ANSWER)
        self.headers: dict[str, rpc_pb2.ResponseHeader | None] = dict.fromkeys(shards)
        self.failure: Status | None = None
        self.is_sure = False
        self.answer: bytes | Status | None = None
        self._left = len(self.ttls)

    @property
    def wanted(self) -> bool:
        """Whether the client still waits for the answer."""
        return not self.call.closed

    @property
    def metadata(self) -> Fields:
        """The client's metadata for the shards."""
        return self.call.metadata

    def lane(self, shard: str) -> Lane | None:
        """The lane to a shard now; None if the shard has left the layout."""
        return self.call.lanes.lanes.get(shard)

    def waits_again(self, shards: Collection[str]) -> None:
        """These shards, which have answered, will answer once more."""
        self.is_sure = True
        self._left = len(shards)
        for shard in shards:
            self.ttls[shard], self.headers[shard] = NO_ANSWER, None

    def answered(self, shard: str, ttl: int, header: rpc_pb2.ResponseHeader) -> None:
        """Takes a shard's answer."""
        self.ttls[shard] = ttl if ttl > 0 else 0
        self.headers[shard] = header
        self._left -= 1  # `_one_less`, spelled out
        if not self._left:
            self.call.complete(self)

    def failed(self, shard: str, status: Status) -> None:
        """Takes a shard's failure. An error of another kind counts more than an unreachable shard."""
        if self.failure is None or errors.is_unreachable(self.failure):
            self.failure = status
        self._one_less()

    def spared(self, shard: str) -> None:
        """The shard has left the layout before it answered: its answer is not needed any more."""
        if len(self.ttls) == 1:  # no shard is left that could answer
            self.failed(shard, errors.SERVER_STOPPED)
            return
        del self.ttls[shard], self.headers[shard]
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self.call.complete(self)


def _malformed(error: DecodeError) -> Status:
    return Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")


class Service(Protocol):
    """The service, as a call sees it: judges the shards' answers, and counts the keepalives that wait.

    Attributes:
        background: logs and counts bugs in one client's answers.
    """

    background: Background

    def admit(self, address: str, count: int) -> bool:
        """Takes room for `count` keepalives of a client that will wait; False if there is no room."""

    def release(self, address: str, count: int) -> None:
        """Gives back the room of `count` keepalives."""

    def answer(self, keepalive: Keepalive) -> bytes | Status | None:
        """The client's answer, once no more answers come from the shards: a message, or the end of its call.

        None if shards are asked once more.
        """


class KeepaliveCall(Sink):
    """A client's LeaseKeepAlive call.

    Attributes:
        address: the client's address.
        lanes: the lane to each shard.
        metadata: the client's metadata for the shards.
        closed: no more answers are sent.
    """

    __slots__ = (
        "_ends",
        "_half_closed",
        "_held",
        "_left",
        "_messages",
        "_owed",
        "_payloads",
        "_queue",
        "_reader",
        "_service",
        "_unread",
        "address",
        "closed",
        "lanes",
        "metadata",
        "stream",
    )

    def __init__(self, service: Service, stream: ServerCall, lanes: Lanes) -> None:
        self.stream = stream
        self.address = address_of(stream.peer)
        self.lanes = lanes
        self.metadata = lanes.metadata
        self.closed = False
        self._service = service
        self._queue: deque[Keepalive] = deque()
        self._reader = MessageReader(MAX_REQUEST_BYTES, stream.head.encoding)
        self._payloads: deque[tuple[bytes, bool]] = deque()  # each with True if it is the last
        self._messages: Iterator[bytes] | None = None  # of the payload that is read at present
        self._ends = False  # that payload is the last
        self._left = 0  # bytes of that payload that no keepalive counts yet
        self._unread = 0
        self._held = 0
        self._half_closed = False
        self._owed = 0
        stream.sink = self

    @property
    def hides_own_leases(self) -> bool:
        """Whether clients see no leases of proxies, because the shards hold the map."""
        return any(lane.shard.guard is not None for lane in self.lanes.lanes.values())

    # From the client.

    def request_data(self, payload: bytes, end: bool) -> None:
        """Takes some requests, or the half-close."""
        if not end and not self._payloads and self._messages is None:
            message = self._reader.sole(payload)
            if message is not None and self._room() > 0 and not self.closed:
                self._take_sole(message, len(payload))
                return
        self._payloads.append((payload, end))
        self._unread += len(payload)
        self._take_requests()

    def _take_sole(self, message: bytes, size: int) -> None:
        """Takes the one request in a payload of `size` bytes, as nearly all come."""
        try:
            keepalive = Keepalive(self, message, monotonic(), self.lanes.lanes)
        except DecodeError as error:
            self._end(_malformed(error))
            return
        if not self._service.admit(self.address, 1):
            self._end(errors.TOO_MANY_REQUESTS)
            return
        keepalive.size = size
        stream = self.stream
        stream.connection.context.counters.messages_received[stream.head.path] += 1
        self._send((keepalive,), keepalive.body)

    def half_message(self) -> int | None:
        """The number of the request that has come only in part; None if there is none."""
        return self._reader.count if self._reader.held else None

    def _take_requests(self) -> None:
        """Takes requests while few are at work; further requests wait, and count as held memory."""
        try:
            while (self._messages or self._payloads) and not self.closed and (room := self._room()) > 0:
                self._take_some(room)
        except RpcError as error:
            self._end(error.status)
        except DecodeError as error:
            self._end(_malformed(error))
        if self._half_closed and not self._queue and not self.closed:
            self._end(OK)
        held, self._held = self._held, self._unread
        if held > self._held:
            self.stream.release(held - self._held)
        elif held < self._held and not self.stream.hold(self._held - held):
            self._held = held
            self.stream.cut()

    def _room(self) -> int:
        """The number of keepalives that may still be sent; below 0 if too many are at work."""
        most = MOST_AT_WORK if self.lanes.at_work < MUCH_AT_WORK else FEW_AT_WORK
        return most - len(self._queue)

    def _take_some(self, room: int) -> None:
        """Takes `room` keepalives of one payload, or all that it has.

        Raises:
            RpcError: the payload is malformed, or too many keepalives wait.
            DecodeError: a message is no keepalive.
        """
        if self._messages is None:
            payload, self._ends = self._payloads.popleft()
            self._left = len(payload)
            self._messages = self._reader.messages(payload)
        now, shards = monotonic(), self.lanes.lanes
        keepalives = [Keepalive(self, message, now, shards) for message in islice(self._messages, room)]
        is_over = len(keepalives) < room
        if is_over and self._ends and self._reader.wanted:
            raise Status(Code.INTERNAL, "the request ended within a message").error()
        size = self._left if is_over else max(0, self._left - self._reader.held)
        self._left -= size
        self._unread -= size
        if keepalives:
            if not self._service.admit(self.address, len(keepalives)):
                raise errors.TOO_MANY_REQUESTS.error()
            keepalives[-1].size = size
            counters = self.stream.connection.context.counters
            counters.messages_received[self.stream.head.path] += len(keepalives)
            self._send(keepalives, b"".join([keepalive.body for keepalive in keepalives]))
        else:
            self.stream.consumed(size)
        if is_over:
            self._messages = None
            self._half_closed = self._ends

    def _send(self, keepalives: Sequence[Keepalive], body: bytes) -> None:
        self._queue += keepalives
        self.lanes.at_work += len(keepalives)
        for lane in self.lanes.lanes.values():
            lane.send(keepalives, body)
        if self.stream.trace:
            for shard in self.lanes.lanes:
                shares(self.stream.trace, shard, keepalives[0].sent)

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
        """All shards have answered, or will not: answers the client. A bug here ends no stream to a shard."""
        if self.closed:
            return
        try:
            keepalive.answer = self._service.answer(keepalive)
            if keepalive.answer is not None and keepalive is self._queue[0]:
                self._answer()
        except Exception as error:
            self._service.background.failed("a keepalive", error, self.stream.on_bug)

    def _answer(self) -> None:
        """Sends the answers that are known, in the order of the requests."""
        queue, stream, counters = self._queue, self.stream, self.stream.connection.context.counters
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
        counters.messages_sent[stream.head.path] += done
        self._service.release(self.address, done)
        self.lanes.at_work -= done
        if (self._payloads or self._messages or self._half_closed) and not self.closed and self._room() >= len(queue):
            clock = stream.connection.clock
            began = clock()
            self._take_requests()
            stream.connection.charge(clock() - began)

    def _end(self, status: Status) -> None:
        self.stream.sink = None
        self._close()
        self.stream.finish(status)

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self._service.release(self.address, len(self._queue))
            self.lanes.at_work -= len(self._queue)
            self._queue.clear()
            self._payloads.clear()
            self._messages = None
            self._unread = 0
            self.stream.release(self._held)
            self._held = 0
            self.lanes.clients -= 1
            self.lanes.idle_since = monotonic()


class Lanes:
    """The lanes of all clients with the same metadata.

    Attributes:
        address: the address of the first of the clients.
        lanes: the lanes by the names of their shards.
        at_work: the number of keepalives without an answer.
    """

    __slots__ = ("address", "at_work", "clients", "idle_since", "lanes", "metadata")

    def __init__(self, address: str, metadata: Fields, lanes: dict[str, Lane]) -> None:
        self.address = address
        self.metadata = metadata
        self.lanes = lanes
        self.clients = 0
        self.at_work = 0
        self.idle_since = 0.0
