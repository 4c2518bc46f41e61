"""The interface of code that serves calls: a `Handler` for each path, a `Sink` for each call that is being served.

Not compiled: compiled code reads an attribute in its place, past a property of that name in a subclass. Of objects of
these classes all code asks for each name.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from esp.core.wire.ended import Passed, Several
from esp.core.wire.frames import ErrorCode
from esp.core.wire.message import format_timeout, prefix
from esp.core.wire.request_encoder import traced
from esp.core.wire.response import ENDING, OPENING, ResponseHead
from esp.core.wire.status import OK, Code, Status

if TYPE_CHECKING:
    from esp.core.wire.admission import Admission
    from esp.core.wire.hpack import Fields
    from esp.core.wire.pump import Pending
    from esp.core.wire.request import RequestHead
    from esp.core.wire.request_encoder import Forward
    from esp.core.wire.server_stream import ServerStream

OVERLOADED: Final = Status(
    Code.RESOURCE_EXHAUSTED,
    "esp: no memory for what waits in this call: read faster, ask for less at once (limit) or raise max_buffered_bytes",
)


class Sink:
    """The server of one call: told of the client's side of the call."""

    __slots__ = ()

    def cut(self, stream: ServerCall) -> None:
        """Ends the call: there is no memory for the bytes that `stream` holds or wants to hold."""
        self.cancelled(ErrorCode.CANCEL, "no memory")
        stream.abandon(OVERLOADED, ErrorCode.ENHANCE_YOUR_CALM)

    def request_data(self, payload: bytes, end: bool) -> None:
        """DATA of a streaming request has come. Call `stream.consumed` when done with the bytes."""

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone, or the wire has ended the call."""

    def drained(self, size: int) -> None:
        """`size` bytes of the response that had to wait have left."""

    def sent_to(self) -> tuple[Passed | Several | None, float, bytes]:
        """The server or servers upstream that work on the call, if any, as `ServerCall.tell` takes them."""
        return None, 0.0, b""

    def half_message(self) -> int | None:
        """The number of the streaming request's message that has come only in part; None if there is none."""
        return None


class ServerCall:
    """A call, as those who serve the call see it: a `ServerStream`, or an object between one and a handler.

    Both differ in the properties.

    Attributes:
        id: the id of the stream.
        timeout: the request's `grpc-timeout` as it came, b"" without one.
        trace: the request's `traceparent`, b"" without one.
        opened: the `monotonic` time at which the call came.
        deadline: the `monotonic` time at which the call ends, 0.0 without one.
    """

    __slots__ = ()

    id: int
    timeout: bytes
    trace: bytes
    opened: float
    deadline: float

    @property
    def connection(self) -> Admission[ServerStream]:
        """The client's connection."""
        raise NotImplementedError

    @property
    def head(self) -> RequestHead:
        """The request's head."""
        raise NotImplementedError

    @head.setter
    def head(self, head: RequestHead) -> None:
        raise NotImplementedError

    @property
    def sink(self) -> Sink | None:
        """The object that serves the call; None before the call is served and after its end."""
        raise NotImplementedError

    @sink.setter
    def sink(self, sink: Sink | None) -> None:
        raise NotImplementedError

    @property
    def is_within(self) -> bool:
        """Whether this is not the client's stream itself, but an object between the two (`Handler.within`)."""
        return False

    @property
    def responded(self) -> bool:
        """Whether the response has begun."""
        raise NotImplementedError

    @responded.setter
    def responded(self, responded: bool) -> None:
        raise NotImplementedError

    @property
    def retried(self) -> bool:
        """The request was sent upstream a second time."""
        raise NotImplementedError

    @retried.setter
    def retried(self, retried: bool) -> None:
        raise NotImplementedError

    @property
    def translated(self) -> bool:
        """The request was sent upstream with other revisions than the client's, which only that server understands."""
        raise NotImplementedError

    @translated.setter
    def translated(self, translated: bool) -> None:
        raise NotImplementedError

    @property
    def local_open(self) -> bool:
        """Whether the handler may still send."""
        raise NotImplementedError

    @property
    def remote_open(self) -> bool:
        """Whether the client may still send."""
        raise NotImplementedError

    @property
    def has_sent(self) -> bool:
        """Whether any DATA of the answer has been sent."""
        raise NotImplementedError

    @property
    def pending(self) -> Pending | None:
        """The DATA that waits for the client; None if there is none."""
        raise NotImplementedError

    @property
    def is_over(self) -> bool:
        """Whether the answer is complete, or the client is gone."""
        raise NotImplementedError

    @property
    def awaits_message(self) -> bool:
        """Whether the one message of a unary call has not come yet."""
        raise NotImplementedError

    @property
    def peer(self) -> str:
        """The client's address."""
        return self.connection.peer

    @property
    def forward(self) -> Forward:
        """The head for the next hop, with the call's own `traceparent`."""
        return traced(self.head.forward, self.trace) if self.trace else self.head.forward

    def remaining(self) -> float | None:
        """Seconds until the deadline, not below 0; None without one."""
        return max(0.0, self.deadline - monotonic()) if self.deadline else None

    def remaining_timeout(self) -> bytes:
        """The time left as a `grpc-timeout` value; b"" without a deadline."""
        remaining = self.remaining()
        return b"" if remaining is None else format_timeout(remaining)

    def consumed(self, size: int) -> None:
        """Gives back the window of `size` bytes of requests."""
        raise NotImplementedError

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes that are kept for this call anywhere; False if there is no room."""
        raise NotImplementedError

    def may_hold(self, size: int) -> bool:
        """Whether `hold` would say yes."""
        raise NotImplementedError

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        raise NotImplementedError

    def send_headers(self, block: bytes, end: bool) -> None:
        """Sends the response's head, or its trailers."""
        raise NotImplementedError

    def send_data(self, payload: bytes, end: bool) -> bool:
        """Takes DATA of the answer; False if `Sink.drained` will tell when it has left."""
        raise NotImplementedError

    def send_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> bool:
        """Sends a whole answer; False when it cannot go at once."""
        raise NotImplementedError

    def start(self) -> None:
        """Sends the response's head, unless it was sent."""
        if not self.responded:
            self.responded = True
            self.send_headers(OPENING.forward, False)

    def respond(self, message: bytes) -> None:
        """Sends the whole answer of a unary call, unless it is over: one message (without prefix) and status OK."""
        if self.is_over:
            return
        self.start()
        self.send_data(prefix(message), False)
        self.finish(OK)

    def respond_at_once(self, message: bytes) -> bool:
        """As `respond`, for a message with prefix; tells no observer. False when the answer cannot go at once."""
        return self.send_answer(OPENING, message, ENDING)

    def finish(self, status: Status, extra: Fields | None = None, *, http_status: int = 200) -> None:
        """Ends the call, unless it is over."""
        raise NotImplementedError

    def expire(self, status: Status) -> None:
        """Ends the call for lack of time: tells the sink, and drops an answer that waits for a window."""
        raise NotImplementedError

    def tell(self, code: int, server: Passed | Several | None = None, sent: float = 0.0, message: bytes = b"") -> None:
        """Tells the observer, once, that the call has ended; the arguments are as in `EndedCall`, or the sink's."""
        raise NotImplementedError

    def on_bug(self) -> None:
        """Ends the call after a bug in esp; ends the connection if even that fails."""
        raise NotImplementedError

    def on_buffers_full(self) -> None:
        """Ends the call: there is no memory for bytes that wait for the client."""
        raise NotImplementedError

    def cut(self) -> None:
        """Ends the call: others need memory, and this call holds most."""
        raise NotImplementedError

    def abandon(self, status: Status, code: ErrorCode) -> None:
        """Drops waiting bytes, and ends the call with `status`, or with a reset if a part of a message has left.

        The call's sink has been told.
        """
        raise NotImplementedError

    def drop(self) -> None:
        """Drops waiting DATA."""
        raise NotImplementedError

    def reset(self, code: int) -> None:
        """Ends the stream from here, if still open."""
        raise NotImplementedError


class Handler:
    """The server of all calls to one path.

    Attributes:
        streaming: request messages are passed on as they come, not as one whole message.
        is_page: not gRPC: the body is ignored, and the answer is made when the body has ended.
        idempotent: sending the call twice does no harm, so a call with an unknown fate may be sent again.
        forwards: the handler sends `RequestHead.forward` on; otherwise it makes heads of its own.
        waits: a call with one message may stay open for hours, so a drain ends the call as it ends streaming calls.
        quick: `on_message` takes a few microseconds, and begins nothing that is done in steps (`Connection.do`). After
            other messages the clock of the turns is looked at.
        lasts: the handler serves calls of later layouts too, so its calls are not those of a layout.
    """

    streaming: bool = False
    is_page: bool = False
    idempotent: bool = False
    forwards: bool = True
    quick: bool = False
    waits: bool = False
    lasts: bool = False

    @property
    def within(self) -> Handler:
        """The handler that gets an object between the two in place of the client's stream; by default this one."""
        return self

    def on_open(self, stream: ServerCall) -> None:
        """A streaming call begins: put a `Sink` into `stream.sink`."""
        raise NotImplementedError

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """The one request message of a call has come, with its prefix, not compressed."""
        raise NotImplementedError

    def recover(self, stream: ServerCall, message: bytes, status: Status) -> bool:
        """The server upstream refused `message` with `status`, and nothing was answered yet.

        `message` is empty if it was too large to be kept.
        False passes the status on; with True this handler has taken the call over.
        """
        return False

    def on_large_answer(self, stream: ServerCall, size: int) -> None:
        """The answer to a call that was passed on begins to come, and has so many bytes, more than a frame."""


class Refuse(Handler):
    """Answers every call with one status, without waiting for the call's messages.

    `http_status` differs from 200 for a request that is no gRPC call, though its path is one of gRPC's.
    """

    streaming = True

    def __init__(self, status: Status, http_status: int = 200) -> None:
        self.status = status
        self._http_status = http_status

    def on_open(self, stream: ServerCall) -> None:
        """Ends the call at once."""
        stream.finish(self.status, http_status=self._http_status)
