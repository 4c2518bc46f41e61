"""The interface of code that serves calls: a `Handler` for each path, a `Sink` for each call that is being served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from esp.core.wire.ended import Passed, Several
from esp.core.wire.frames import ErrorCode
from esp.core.wire.status import Code, Status

if TYPE_CHECKING:
    from esp.core.wire.server_stream import ServerStream

OVERLOADED: Final = Status(
    Code.RESOURCE_EXHAUSTED,
    "esp: no memory for what waits in this call: read faster, ask for less at once (limit) or raise max_buffered_bytes",
)


class Sink:
    """The server of one call: told of the client's side of the call."""

    __slots__ = ()

    def cut(self, stream: ServerStream) -> None:
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
        """The server or servers upstream that work on the call, if any, as `ServerStream.tell` takes them."""
        return None, 0.0, b""

    def half_message(self) -> int | None:
        """The number of the streaming request's message that has come only in part; None if there is none."""
        return None


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

    def on_open(self, stream: ServerStream) -> None:
        """A streaming call begins: put a `Sink` into `stream.sink`."""
        raise NotImplementedError

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        """The one request message of a call has come, with its prefix, not compressed."""
        raise NotImplementedError

    def recover(self, stream: ServerStream, message: bytes, status: Status) -> bool:
        """The server upstream refused `message` with `status`, and nothing was answered yet.

        `message` is empty if it was too large to be kept.
        False passes the status on; with True this handler has taken the call over.
        """
        return False

    def on_large_answer(self, stream: ServerStream, size: int) -> None:
        """The answer to a call that was passed on begins to come, and has so many bytes, more than a frame."""


class Refuse(Handler):
    """Answers every call with one status, without waiting for the call's messages.

    `http_status` differs from 200 for a request that is no gRPC call, though its path is one of gRPC's.
    """

    streaming = True

    def __init__(self, status: Status, http_status: int = 200) -> None:
        self.status = status
        self._http_status = http_status

    def on_open(self, stream: ServerStream) -> None:
        """Ends the call at once."""
        stream.finish(self.status, http_status=self._http_status)
