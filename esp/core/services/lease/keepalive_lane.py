"""Keepalives on their way to one shard, on a stream that many clients share.

etcd answers the keepalives of a stream in their order, so a queue of sent keepalives says which client gets an answer.
But for a lease that has ended and is not revoked yet, etcd holds back the answer, and all later answers with it. If a
keepalive holds up the others for STALL_SECONDS, esp sends it once more on a second stream, for slow keepalives, and
sends the others once more on a new stream. To send a keepalive twice does no harm as long as its client waits for the
answer.

A shard that answers nothing for SILENT_SECONDS counts as unreachable. While only slow keepalives are under way, esp
asks the shard about lease 0, which cannot exist, so that it notices silence then, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.gathered import Gathered
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import INTERNAL_ERROR
from esp.core.wire.status import Code, RpcError, Status

STALL_SECONDS: Final = 0.25
SILENT_SECONDS: Final = 1.0
MAX_ANSWER_BYTES: Final = 65_536
UNUSUAL: Final = -1
"""An answer of another form than most."""

_parse = rpc_pb2.LeaseKeepAliveResponse.FromString
_HEADER_TAG: Final = 1 << 3 | 2
_TTL_TAG: Final = 3 << 3


class LaneKeepalive(Protocol):
    """A keepalive that waits for a shard's answer.

    Attributes:
        id: the lease.
        body: the request, with its gRPC prefix.
        echo: the field of the id as it stands in an answer; b"" if only a parser can tell.
        wanted: whether its client still waits.
    """

    @property
    def id(self) -> int:
        """The lease."""

    @property
    def echo(self) -> bytes:
        """The field of the id as it stands in an answer; b"" if only a parser can tell."""

    @property
    def body(self) -> bytes:
        """The request, with its gRPC prefix."""

    @property
    def wanted(self) -> bool:
        """Whether the client still waits."""

    def answered(self, shard: str, ttl: int, header: rpc_pb2.ResponseHeader) -> None:
        """Takes the shard's answer. Equal headers are mostly the same object."""

    def failed(self, shard: str, status: Status) -> None:
        """Takes the reason, `status`, why the shard will not answer."""

    def spared(self, shard: str) -> None:
        """The shard has left the layout; its answer is not needed any more."""


class _Probe:
    """A keepalive of esp's own that shows whether the shard answers at all."""

    __slots__ = ()
    id: Final = 0
    echo: Final = b""
    body: Final = prefix(rpc_pb2.LeaseKeepAliveRequest().SerializeToString())
    wanted: Final = True

    def answered(self, shard: str, ttl: int, header: rpc_pb2.ResponseHeader) -> None:
        """Does nothing: the shard answers."""

    def failed(self, shard: str, status: Status) -> None:
        """Does nothing: the lane itself notices that the shard does not answer."""

    def spared(self, shard: str) -> None:
        """Does nothing: the shard has left the layout."""


_PROBE: Final = _Probe()


class _Call(ClientStream):
    """The call of a `_KeepaliveStream`, once there is a connection for it.

    Attributes:
        requests: sends keepalives, those of one turn together.
        counts: the keepalives that were sent, and their answers, on all such calls to the shard.
    """

    __slots__ = ("counts", "requests", "stream")

    def __init__(self, connection: ClientConnection, stream: _KeepaliveStream) -> None:
        super().__init__(connection)
        self.stream = stream
        self.requests = Gathered()
        self.counts = self.count_messages(stream.lane.forward[0])

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The head of the answers, or the end of the stream."""
        if end:
            if head.lacks_status:
                self.stream.fault("ends without a grpc-status")
                return
            status = head.outcome()
            self.stream.lane.shard.consider_moving(self.connection, status)
            self.stream.ended(status)
        elif head.http_status != 200 or not head.is_grpc:
            self.cancel()
            if head.lacks_status:
                self.stream.fault("is no gRPC")
            else:
                self.stream.ended(head.outcome())

    def on_data(self, payload: bytes, end: bool) -> None:
        """Answers."""
        self.consumed(len(payload))
        self.stream.answers(payload)
        if end:
            self.stream.ended(errors.SERVER_STOPPED)

    def on_reset(self, code: int, reason: str) -> None:
        """The stream broke."""
        self.stream.ended(errors.SERVER_STOPPED)

    def on_retired(self) -> None:
        """The shard has moved on to another connection, perhaps away from a member without a leader."""
        self.stream.move()


class _KeepaliveStream:
    """A keepalive stream, from the moment when it is wanted.

    Attributes:
        in_flight: keepalives without an answer, in order: sent, or waiting for a connection.
        progress: the latest of these times: the last answer came; the first of `in_flight` was added; it was sent.
        wanted: the time at which the stream was wanted.
        has_answered: at least one answer has come.
        closed: the stream is not used any more.
    """

    __slots__ = ("_call", "_header", "_reader", "closed", "has_answered", "in_flight", "lane", "progress", "wanted")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.in_flight: deque[LaneKeepalive] = deque()
        self.progress = 0.0
        self.has_answered = False
        self.closed = False
        self.wanted = monotonic()
        self._call: _Call | None = None
        self._header = b"", rpc_pb2.ResponseHeader()
        self._reader = MessageReader(MAX_ANSWER_BYTES)

    def is_stalled(self, now: float) -> bool:
        """Whether the keepalives were sent, and have waited for long."""
        return self._call is not None and now - self.progress > STALL_SECONDS

    def send(self, keepalives: Iterable[LaneKeepalive], body: bytes) -> None:
        """Sends keepalives, or keeps them until there is a connection."""
        if not self.in_flight:
            self.progress = monotonic()
        before = len(self.in_flight)
        self.in_flight += keepalives
        if self._call is not None:
            self._call.counts.sent += len(self.in_flight) - before
            self._call.requests.send(self._call, body)

    def go(self, connection: ClientConnection) -> None:
        """Opens the call on `connection`, and sends the keepalives that wait."""
        if not self.closed:
            self._call = call = _Call(connection, self)
            self.progress = monotonic()
            body = b"".join([keepalive.body for keepalive in self.in_flight])
            call.counts.sent += len(self.in_flight)
            connection.call(call, self.lane.forward, b"", body, end=False)

    def on_bug(self) -> None:
        """Ends the stream: an exception came out of it."""
        self.close()
        self.lane.ended(self, INTERNAL_ERROR)

    def move(self) -> None:
        """Ends the stream, and sends its keepalives again on another."""
        if not self.closed:
            self.close()
            self.lane.moved(self)

    def tick(self, now: float) -> None:
        """Ends a stream that has waited too long for a connection, or will never get one."""
        shard = self.lane.shard
        if self._call is not None:
            return
        if shard.barred is not None or now - self.wanted > shard.context.limits.max_waiting_seconds:
            shard.forget_opener(self)
            self.ended(shard.barred or errors.NO_CONNECTION)

    def answers(self, payload: bytes) -> None:
        """Gives each answer to the keepalive that it belongs to."""
        lane, in_flight = self.lane, self.in_flight
        assert self._call is not None, "its call has been sent"
        counts = self._call.counts
        message = self._reader.sole(payload)
        if message is not None and in_flight and not self.closed:
            ttl = self._ttl_in(message, in_flight[0].echo)
            if ttl != UNUSUAL:
                self.has_answered = True
                self.progress = lane.heard = monotonic()
                counts.received += 1
                in_flight.popleft().answered(lane.name, ttl, self._header[1])
                return
        try:
            for message in self._reader.feed(payload):
                counts.received += 1
                if self.closed:
                    return
                ttl, header = self._ttl_in(message, in_flight[0].echo) if in_flight else UNUSUAL, self._header[1]
                if ttl == UNUSUAL:
                    answer, header = self._parsed(message)
                    if not in_flight or in_flight[0].id != answer.ID:
                        self.fault("is to no keepalive that waits")
                        return
                    ttl = answer.TTL
                self.has_answered = True  # what is no answer has to count as none, or it would be asked for without end
                self.progress = lane.heard = monotonic()
                in_flight.popleft().answered(lane.name, ttl, header)
        except (RpcError, DecodeError):
            self.fault("is no LeaseKeepAliveResponse")

    def _ttl_in(self, message: bytes, echo: bytes) -> int:
        """The TTL in an answer that is as most are: the header of the last one, the expected id, a TTL; else UNUSUAL.

        An answer about a lease that the shard does not know has no TTL, which is 0.
        """
        known = self._header[0]
        at = len(known) + len(echo)
        left = len(message) - at
        if not echo or not known or not message.startswith(known) or not message.startswith(echo, len(known)):
            return UNUSUAL
        if not left:
            return 0
        if left == 2 and message[at] == _TTL_TAG and message[at + 1] < 0x80:
            return message[at + 1]
        if left == 3 and message[at] == _TTL_TAG and message[at + 1] > 0x7F and message[at + 2] < 0x80:
            return message[at + 1] & 0x7F | message[at + 2] << 7
        return UNUSUAL

    def _parsed(self, message: bytes) -> tuple[rpc_pb2.LeaseKeepAliveResponse, rpc_pb2.ResponseHeader]:
        """An answer, and its header.

        The header comes first. It is the same as in the last answer unless a key was written meanwhile.

        Raises:
            DecodeError: `message` is no answer.
        """
        known, header = self._header
        size = len(known)
        if size and message.startswith(known) and message[size : size + 1] != b"\x0a":
            return _parse(message[size:]), header
        answer = _parse(message)
        if not answer.HasField("header"):
            raise DecodeError("no header")
        header = answer.header
        if len(message) > 2 and message[0] == _HEADER_TAG and message[1] < 0x80:
            self._header = message[: 2 + message[1]], header
        return answer, header

    def fault(self, what: str) -> None:
        """Ends the stream after an answer that no etcd would give; `what` is a clause about the answer."""
        if not self.closed:
            self.close()
            self.lane.ended(self, self.lane.shard.blamed(what).status)

    def ended(self, status: Status) -> None:
        """The stream has ended or broken: tells the lane."""
        if status.code == Code.OK:
            status = errors.SERVER_STOPPED  # a member never ends a stream with OK before its client does
        if not self.closed:
            self.closed = True
            self.lane.ended(self, status)

    def close(self) -> None:
        """Ends the stream from here."""
        if not self.closed:
            self.closed = True
            if self._call is not None:
                self._call.cancel()
            else:
                self.lane.shard.forget_opener(self)


class Lane:
    """The keepalives of all clients of one auth token to one shard.

    Args:
        shard: the shard.
        forward: the head of the stream to it.

    Attributes:
        name: the name of the shard.
        heard: the time when the shard last answered, or got a keepalive while it had none.
    """

    __slots__ = ("_main", "_slow", "forward", "heard", "name", "shard")

    def __init__(self, shard: Shard, forward: Forward) -> None:
        self.shard = shard
        self.name = shard.name
        self.forward = forward
        self.heard = 0.0
        self._main: _KeepaliveStream | None = None
        self._slow: _KeepaliveStream | None = None

    def send(self, keepalives: Iterable[LaneKeepalive], body: bytes) -> None:
        """Sends keepalives; `body` is their bodies one after the other."""
        main = self._main
        if main is not None and main.in_flight:
            main.send(keepalives, body)
        elif main is None:
            main = self._main = _KeepaliveStream(self)
            self._begin(main, keepalives, body)
        else:
            self._mark_busy()
            main.send(keepalives, body)

    def _begin(self, stream: _KeepaliveStream, keepalives: Iterable[LaneKeepalive], body: bytes) -> None:
        self._mark_busy()
        stream.send(keepalives, body)
        self.shard.open_stream(stream)

    def _mark_busy(self) -> None:
        main, slow = self._main, self._slow
        if (main is None or not main.in_flight) and (slow is None or not slow.in_flight):
            self.heard = monotonic()

    def ended(self, stream: _KeepaliveStream, status: Status) -> None:
        """A stream is over: sends its keepalives again if that may help, else fails them."""
        left = stream.in_flight
        self._detach(stream)
        again = stream.has_answered and errors.is_unreachable(status)
        if status.code == Code.PERMISSION_DENIED and left:
            # The refusal is about the keys of one lease: that of the first keepalive without an answer.
            left.popleft().failed(self.name, status)
            again = True
        if again:
            self.send_again(left)
        else:
            self._fail(left, status)

    def moved(self, stream: _KeepaliveStream) -> None:
        """A stream was given up for a stream on another connection."""
        self._detach(stream)
        self.send_again(stream.in_flight)

    def send_again(self, keepalives: Iterable[LaneKeepalive]) -> None:
        """Sends keepalives that may have been sent before, as far as their clients still wait."""
        wanted = [keepalive for keepalive in keepalives if keepalive.wanted]
        if wanted:
            self.send(wanted, b"".join([keepalive.body for keepalive in wanted]))

    def _detach(self, stream: _KeepaliveStream) -> None:
        if stream is self._main:
            self._main = None
        elif stream is self._slow:
            self._slow = None

    def _fail(self, keepalives: Iterable[LaneKeepalive], status: Status) -> None:
        for keepalive in keepalives:
            keepalive.failed(self.name, status)

    def tick(self, now: float) -> None:
        """Checks whether the shard answers, and whether a keepalive holds up the others."""
        for stream in (self._main, self._slow):
            if stream is not None:
                stream.tick(now)
        main, slow = self._main, self._slow
        busy = main is not None and bool(main.in_flight)
        late = slow is not None and bool(slow.in_flight)
        if not busy and not late:
            return
        if now - self.heard > SILENT_SECONDS:
            left = self.close()
            self._fail(left, errors.REQUEST_TIMED_OUT)
        elif not busy:
            self.send([_PROBE], _PROBE.body)
        elif main is not None and main.is_stalled(now) and main.in_flight[0] is not _PROBE:
            self._overtake(main)

    def on_bug(self) -> None:
        """Begins new streams: an exception came out of the lane."""
        self._fail(self.close(), INTERNAL_ERROR)

    def _overtake(self, main: _KeepaliveStream) -> None:
        """Moves the first keepalive to the slow stream, and the others to a new stream."""
        heard = self.heard
        main.close()
        self._main = None
        stalled = main.in_flight.popleft()
        if stalled.wanted:
            if self._slow is None:
                self._slow = _KeepaliveStream(self)
                self._begin(self._slow, [stalled], stalled.body)
            else:
                self._slow.send([stalled], stalled.body)
        self.send_again(main.in_flight)
        self.heard = heard

    def close(self) -> list[LaneKeepalive]:
        """Ends the streams; returns the keepalives that waited on them."""
        left: list[LaneKeepalive] = []
        for stream in (self._main, self._slow):
            if stream is not None:
                stream.close()
                left += stream.in_flight
        self._main = self._slow = None
        return left
