"""A call passed on: one stream of a client joined to one stream of a server upstream.

Frames pass untouched in both directions. A side's window is given back only when its bytes have left on the other side
(`consumed`), so neither side can make this process hold more than a window per stream.
"""

from __future__ import annotations

from time import monotonic
from typing import Final, Protocol

from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import NOT_QUEUED, STREAM_WINDOW, ClientStream
from esp.core.wire.ended import UNKNOWN, Passed
from esp.core.wire.frames import MAX_FRAME_SIZE, ErrorCode, unpack_u32
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.native import mypyc_attr
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import OVERLOADED, ServerCall, Sink
from esp.core.wire.status import Code, Status
from esp.core.wire.traffic import MessageCount

NO_TRAILERS = Status(Code.INTERNAL, "server closed the stream without sending trailers")
REPLAY_BYTES: Final = 65536
SMALL_ANSWER: Final = MAX_FRAME_SIZE
"""The handler hears of answers with more bytes only; a whole answer of at most so many comes by `on_answer`."""


class Place(Protocol):
    """The place of a call at its shard, while the shard works on the call."""

    def comes(self, size: int) -> None:
        """The answer has begun to come, and has `size` bytes."""

    def wait_for_client(self) -> None:
        """Gives the place back: the client does not take the answer as fast as it comes."""

    def close(self) -> None:
        """Gives the place back: the shard has finished its work on the call."""


class SpliceOwner(Protocol):
    """The sender of a call upstream; learns of the call's failure there."""

    def on_broken(self, call: SplicedCall, code: int, reason: str) -> None:
        """The call's stream broke before its answer was whole. The owner ends `call.down`, or sends the call again."""

    def on_status(self, call: SplicedCall, status: Status) -> bool:
        """The call ended with an error. False passes the error on; with True the owner has taken over `call.down`."""

    def give_up(self, call: SplicedCall) -> None:
        """The client of a call that may wait for hours has gone. The owner cancels the call, now or soon."""


@mypyc_attr(allow_interpreted_subclasses=True)
class SplicedCall(ClientStream, Sink):
    """The upstream half of a spliced call, and the sink of the client's half.

    Attributes:
        down: the client's stream.
        message: the request of a unary call, kept to be sent again; b"" if it was too large to be kept, and has left;
            None for a streaming call.
        owner: told when the call breaks.
    """

    __slots__ = ("down", "message", "owner")

    def __init__(
        self, connection: ClientConnection, down: ServerCall, message: bytes | None, owner: SpliceOwner
    ) -> None:
        # The first lines are ClientStream's: this runs once per request.
        self.connection = connection
        self.id = 0
        self.credit = 0
        self.recv_window = STREAM_WINDOW
        self.recv_owed = 0
        self.local_open = True
        self.remote_open = True
        self.pending = None
        self.headers_seen = False
        self.unprocessed = False
        self.queued_at = NOT_QUEUED
        self.down = down
        self.message = message
        self.owner = owner
        down.sink = self

    # From upstream.

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The answer's head or trailers: passes them on unchanged if they are gRPC's."""
        down = self.down
        status = head.status
        if end:
            down.sink = None
            if status is None:
                outcome = head.outcome()
                self.tell(outcome.code)
                down.finish(outcome)
                return
            if status.code and self.owner.on_status(self, status):
                return
            down.responded = True
            self.tell(status.code)
            down.send_headers(head.forward, True)
        elif head.http_status == 200 and head.is_grpc:
            down.responded = True
            down.send_headers(head.forward, False)
        else:
            down.sink = None
            self.cancel()
            outcome = head.outcome()
            self.tell(outcome.code)
            down.finish(outcome)

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer: passes it on in one piece if the client's window has room."""
        down = self.down
        down.sink = None
        if down.send_answer(head, payload, trailers):
            connection = self.connection
            took = connection.heard - down.opened
            if took < connection.slow and not down.trace:
                connection.took[down.head.path](took)
            else:
                self.tell(Code.OK)
        else:
            self._answer_in_pieces(head, payload, trailers)

    def _answer_in_pieces(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        down = self.down
        if down.is_over:
            self.tell(Code.CANCELLED)  # its client is lost, and the call was to be told soon
        else:
            down.sink = self
            self.on_headers(head, False)
            self.on_data(payload, False)
            if down.sink is self:  # there was memory for what has to wait
                self.on_headers(trailers, True)

    @property
    def sent(self) -> float:
        """The `monotonic` time at which the call was sent upstream."""
        return self.down.opened

    def sent_to(self) -> tuple[Passed | None, float, bytes]:
        """The server upstream, and what it got."""
        return self.connection.passed, self.sent, self.message or b""

    def tell(self, code: int) -> None:
        """Tells the observer that the server upstream has ended the call."""
        self.down.tell(code, *self.sent_to())

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        down = self.down
        if not down.has_sent and down.pending is None and self.message is not None:
            self.on_size(announced(payload))
        if down.send_data(payload, False):
            self.consumed(len(payload))
        if end:
            down.sink = None
            self.tell(NO_TRAILERS.code)
            down.finish(NO_TRAILERS)

    def on_size(self, size: int) -> None:
        """The answer of a unary-request call has begun to come; its message has `size` bytes."""
        if size > SMALL_ANSWER:
            self.down.head.handler.on_large_answer(self.down, size)

    def on_reset(self, code: int, reason: str) -> None:
        """The upstream stream is gone."""
        self.down.sink = None
        self.owner.on_broken(self, code, reason)

    def on_drained(self, size: int) -> None:
        """Request bytes that waited have left."""
        if self.message is None:
            self.down.consumed(size)
        elif not self.local_open and len(self.message) > REPLAY_BYTES:
            self.message = b""

    def on_buffers_full(self) -> None:
        """Ends the call: there is no memory for the request, which has to wait for upstream."""
        self.down.sink = None
        self.cancel()
        self.down.finish(OVERLOADED)

    def hold(self, size: int) -> bool:
        """Accounts for request bytes that wait for upstream: they count for the client that sent them."""
        return self.down.hold(size)

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        self.down.release(size)

    # From the client.

    def cut(self, stream: ServerCall) -> None:
        """Ends a streaming call with Unavailable, so that its client opens another; any other call as `Sink` does."""
        if self.message is None:
            self.cancelled(ErrorCode.CANCEL, "no memory")
            stream.abandon(Status(Code.UNAVAILABLE, OVERLOADED.message), ErrorCode.REFUSED_STREAM)
        else:
            super().cut(stream)

    def request_data(self, payload: bytes, end: bool) -> None:
        """A piece of a streaming request."""
        if self.local_open and self.send_data(payload, end):
            self.down.consumed(len(payload))

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone: the server upstream need not go on."""
        self.down.sink = None
        self.reset(ErrorCode.CANCEL)

    def drained(self, size: int) -> None:
        """Response bytes that waited have left."""
        self.consumed(size)


@mypyc_attr(allow_interpreted_subclasses=True)
class LateCall(SplicedCall):
    """A spliced call that is sent some time after it came."""

    __slots__ = ("_sent",)

    def __init__(
        self, connection: ClientConnection, down: ServerCall, message: bytes | None, owner: SpliceOwner
    ) -> None:
        super().__init__(connection, down, message, owner)
        self._sent = monotonic()

    @property
    def sent(self) -> float:
        """The `monotonic` time at which the call was sent upstream."""
        return self._sent

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer."""
        self.down.sink = None
        if self.down.send_answer(head, payload, trailers):
            self.tell(Code.OK)
        else:
            self._answer_in_pieces(head, payload, trailers)


@mypyc_attr(allow_interpreted_subclasses=True)
class WaitingCall(LateCall):
    """A spliced call that may wait for hours."""

    __slots__ = ()

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone."""
        self.down.sink = None
        self.owner.give_up(self)


class StreamCall(LateCall):
    """A spliced streaming call, whose messages are counted."""

    __slots__ = ("_answers", "_messages", "_requests")

    def __init__(self, connection: ClientConnection, down: ServerCall, owner: SpliceOwner) -> None:
        super().__init__(connection, down, None, owner)
        counters, passed = connection.context.counters, connection.passed
        path = UNKNOWN if passed is None else passed.took.name(down.head.path)
        self._requests = MessageCount(counters.messages_received, path)
        self._answers = MessageCount(counters.messages_sent, path)
        self._messages = self.count_messages(path)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answers."""
        self._messages.received += self._answers.add(payload)
        super().on_data(payload, end)

    def request_data(self, payload: bytes, end: bool) -> None:
        """A piece of the requests."""
        self._messages.sent += self._requests.add(payload)
        super().request_data(payload, end)


class WaitingStream(StreamCall):
    """A spliced streaming call that is cancelled like a `WaitingCall`."""

    __slots__ = ()

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone."""
        self.down.sink = None
        self.owner.give_up(self)


@mypyc_attr(allow_interpreted_subclasses=True)
class CountedCall(LateCall):
    """A spliced call with a place at its shard, until the answer is whole."""

    __slots__ = ("_place",)

    def __init__(
        self, connection: ClientConnection, down: ServerCall, message: bytes, owner: SpliceOwner, place: Place
    ) -> None:
        super().__init__(connection, down, message, owner)
        self._place = place

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The answer's head or trailers."""
        if end:
            if not self.down.responded:
                self._place.comes(0)
            self._place.close()
        super().on_headers(head, end)

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer."""
        self._place.comes(len(payload))
        self._place.close()
        super().on_answer(head, payload, trailers)

    def on_size(self, size: int) -> None:
        """The answer has begun to come."""
        self._place.comes(size)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        super().on_data(payload, end)
        if end:
            self._place.close()
        elif self.down.pending is not None:
            self._place.wait_for_client()

    def on_reset(self, code: int, reason: str) -> None:
        """The upstream stream is gone."""
        self._place.close()
        super().on_reset(code, reason)

    def on_buffers_full(self) -> None:
        """There is no memory for the request."""
        self._place.close()
        super().on_buffers_full()

    def cancel(self) -> None:
        """Ends the call from here."""
        self._place.close()
        super().cancel()

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone."""
        self._place.close()
        super().cancelled(code, reason)


def announced(payload: bytes) -> int:
    """The size of the message that begins in `payload`, as far as `payload` shows it."""
    return unpack_u32(payload, 1)[0] if len(payload) >= PREFIX_SIZE else 0
