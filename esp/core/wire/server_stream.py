"""A call as the server sees it. The names of `handler`, the interface of code that serves calls, are exported too."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Final

from esp.core.wire.admission import Admission
from esp.core.wire.budget import Account
from esp.core.wire.ended import EndedCall, Passed, Several
from esp.core.wire.frames import (
    DATA_FRONTS,
    END_HEADERS,
    HEADERS,
    LAST_BLOCK,
    MAX_FRAME_SIZE,
    SHORT_DATA,
    ErrorCode,
    StreamFault,
    frame,
    pack_header,
    pack_u32,
)
from esp.core.wire.handler import OVERLOADED, Handler, Refuse, ServerCall, Sink
from esp.core.wire.hpack import Fields
from esp.core.wire.request import LARGE_HEAD, NO_LENGTH, RequestHead
from esp.core.wire.request_message import SECOND_MESSAGE, RequestMessage
from esp.core.wire.response import REQUEST_TIMEOUT_BLOCK, ResponseHead, trailers_block
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wire.stream import Stream

__all__ = ["INTERNAL_ERROR", "OVERLOADED", "Handler", "Refuse", "ServerCall", "ServerStream", "Sink"]

INTERNAL_ERROR: Final = Status(Code.INTERNAL, "esp: internal error")
"""The status of a call that a bug in esp has ended."""
LIVED: Final = 0.05
"""Seconds after which a client may reset a call for free: an attacker who wants to make work resets sooner."""
LEAST_TIMEOUT: Final = 0.001
"""When a client resets its call, a time-out of fewer seconds counts as this."""
_RESETS: Final[dict[int, Code]] = {
    ErrorCode.NO_ERROR: Code.CANCELLED,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
}
"""The status of a call that ends with RST_STREAM, by its code (gRPC over HTTP/2, Errors); INTERNAL for other codes."""


class ServerStream(Stream["Admission[ServerStream]"], ServerCall):
    """One call as the server sees it.

    Attributes:
        head: the request's head.
        timeout: the request's `grpc-timeout` as it came, b"" without one.
        trace: the request's `traceparent`, b"" without one.
        deadline: the `monotonic` time at which the call ends, 0.0 without one.
        sink: the object that serves the call; None before the call is served and after its end.
        responded: whether the response has begun.
        opened: the `monotonic` time at which the call came.
        fresh: no byte of the request's one message has come yet.
        retried: the request was sent upstream a second time.
        translated: the request was sent upstream with other revisions than the client's.
        told: the observer has been told of the call's end.
        taken: the request's one message is served, though the request may go on.
        account: the memory that the call holds; None before the call holds any.
    """

    # Told here, because otherwise mypyc takes them for the properties of `ServerCall`.
    head: RequestHead
    timeout: bytes
    trace: bytes
    opened: float
    deadline: float
    sink: Sink | None
    responded: bool
    retried: bool
    translated: bool

    __slots__ = (
        "_body_size",
        "_request",
        "account",
        "deadline",
        "fresh",
        "head",
        "opened",
        "responded",
        "retried",
        "sink",
        "taken",
        "timeout",
        "told",
        "trace",
        "translated",
    )

    def __init__(
        self, connection: Admission[ServerStream], stream_id: int, head: RequestHead, timeout: bytes, trace: bytes
    ) -> None:
        # Spelled out instead of super().__init__(): this runs once per request.
        self.connection = connection
        self.id = stream_id
        self.credit = 0
        self.recv_window = connection.recv_initial
        self.recv_owed = 0
        self.local_open = True
        self.remote_open = True
        self.pending = None
        self.head = head
        self.timeout = timeout
        self.trace = trace
        self.opened = connection.now
        self.deadline = 0.0
        self.sink = None
        self.responded = False
        self.retried = False
        self.translated = False
        self.taken = False
        self.told = False
        self.fresh = head.unary
        self._body_size = 0
        self._request: RequestMessage | None = None
        self.account: Account | None = None
        self.has_sent = False

    # For the code that serves the call.

    @property
    def awaits_message(self) -> bool:
        """Whether the one message of a unary call has not come yet."""
        return self.remote_open and self.head.unary and not self.taken

    def half_request(self) -> int | None:
        """The number of the message that the client has sent in part; None when the client owes nothing."""
        if not self.remote_open:
            return None
        if self.head.handler.is_page:
            return None if self.responded else 0
        if self.head.unary:
            return 0 if self.awaits_message else None
        return None if self.sink is None else self.sink.half_message()

    def has_lived(self, now: float) -> bool:
        """Whether the call was open for a while, or for about its own time-out."""
        lived = now - self.opened
        if not self.deadline:
            return lived >= LIVED
        # Nine tenths, because the client's clock began earlier. LEAST_TIMEOUT, because a tiny time-out must not make
        # resets free.
        return lived >= min(LIVED, max(LEAST_TIMEOUT, (self.deadline - self.opened) * 0.9))

    @property
    def is_over(self) -> bool:
        """Whether the answer is complete, or the client is gone."""
        ended = not self.local_open or (self.pending is not None and self.pending.end)
        return ended or self.connection.streams.get(self.id) is not self

    def expire(self, status: Status) -> None:
        """Ends the call for lack of time: tells the sink, and drops an answer that waits for a window."""
        if not self.is_over:
            self.tell(status.code)  # now, while the sink is known
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.cancelled(ErrorCode.CANCEL, status.message)
        self._release()
        if self.pending is not None:
            self.reset(ErrorCode.CANCEL)
        elif self.head.handler.is_page and not self.responded:
            self.responded = True
            self.send_headers(REQUEST_TIMEOUT_BLOCK, True)
        else:
            self.finish(status)

    def on_bug(self) -> None:
        """Ends the call after a bug in esp; ends the connection if even that fails."""
        try:
            self.expire(INTERNAL_ERROR)
        except Exception:
            self.connection.on_bug()

    # Memory.

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes that are kept for this call anywhere; False if there is no room."""
        if self.may_hold(size) and self.account is not None:
            return self.account.take(size)
        self._tell_full()
        return False

    def hold_head(self) -> bool:
        """Counts the head of a call that stays open, if the head is large. Without memory the call ends; then False."""
        size = self.head.size
        if size > LARGE_HEAD and not self.hold(size):
            self.expire(OVERLOADED)
            return False
        return True

    def may_hold(self, size: int) -> bool:
        """Whether `hold` would say yes."""
        if self.account is None:
            if self.connection.streams.get(self.id) is not self:
                return False  # it is over
            self.account = self.connection.own_account().open(self)
        return self.account.may_take(size)

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        if self.account is not None:
            self.account.give(size)

    def cut(self) -> None:
        """Ends the call: others need memory, and this call holds most."""
        try:
            self._tell_full()
            self.on_buffers_full()
        except Exception:
            self.connection.on_bug()

    def _tell_full(self) -> None:
        """Counts and logs that the call fails for lack of memory. A call that is over fails for another reason."""
        account = self.account
        over = self.connection.streams.get(self.id) is not self if account is None else account.is_closed
        if not over:
            self.connection.on_full(0 if account is None else account.held)

    def on_buffers_full(self) -> None:
        """Ends the call: there is no memory for bytes that wait for the client."""
        if self.sink is not None:
            self.sink.cut(self)
        else:
            self.abandon(OVERLOADED, ErrorCode.ENHANCE_YOUR_CALM)

    def abandon(self, status: Status, code: ErrorCode) -> None:
        """Drops waiting bytes, and ends the call with `status`, or with a reset if a part of a message has left.

        The call's sink has been told.
        """
        self.sink = None
        self._release()
        self._request = None
        self.drop()
        if self.has_sent:
            self.tell(status.code)
            self.reset(code)
        else:
            self.finish(status)

    def send_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> bool:
        """Sends a whole answer; False when it cannot go at once."""
        connection = self.connection
        size = len(payload)
        window = connection.send_window - size
        if self.remote_open or self.responded or window < 0 or size > connection.at_once:
            return False
        place = pack_u32(self.id)
        front, end = head.front, trailers.front
        if size <= SHORT_DATA and front and end:
            frames = b"".join(
                (front, place, head.forward, DATA_FRONTS[size], place, payload, end, place, trailers.forward)
            )
        elif len(head.forward) <= MAX_FRAME_SIZE and len(trailers.forward) <= MAX_FRAME_SIZE:
            opening = frame(HEADERS, END_HEADERS, self.id, head.forward)
            ending = frame(HEADERS, LAST_BLOCK, self.id, trailers.forward)
            frames = b"".join((opening, pack_header(size << 8, 0, self.id), payload, ending))
        else:
            return False
        out = connection.out
        if not out:
            connection.context.unflushed.append(connection)
        out.append(frames)
        connection.send_window = window
        connection.sent_since_ping = True
        self.responded = True
        self.local_open = False
        connection.streams.pop(self.id, None)
        if self.account is not None:
            self.account.close()
        if connection.tell_gone:
            connection.on_stream_gone()
        return True

    def finish(self, status: Status, extra: Fields | None = None, *, http_status: int = 200) -> None:
        """Ends the call, unless it is over. This is the one place where a status becomes trailers."""
        if not self.is_over:
            block = trailers_block(status, extra, http_status=0 if self.responded else http_status)
            self.responded = True
            self.tell(status.code)
            self.send_headers(block, True)

    def tell(self, code: int, server: Passed | Several | None = None, sent: float = 0.0, message: bytes = b"") -> None:
        """Tells the observer, once, that the call has ended; the arguments are as in `EndedCall`, or the sink's.

        Whoever ends a call with frames of its own calls this; `finish` and `reset` do.
        """
        observer = self.connection.context.observer
        if observer is not None and not self.told and self.head.is_grpc:
            self.told = True
            if server is None and self.sink is not None:
                server, sent, message = self.sink.sent_to()
            name = "" if server is None else server.name
            path, peer, trace, now = self.head.path, self.peer, self.trace, monotonic()
            ended = EndedCall(path, peer, code, self.opened, now, name, sent, message, trace)
            if isinstance(server, Several):
                ended.several, ended.waited, ended.upstream = server.names, server.waited, server.upstream
            observer.ended(ended)

    def _tell_reset(self, code: int) -> None:
        if not self.told:
            status = _RESETS.get(code, Code.INTERNAL)
            if status == Code.CANCELLED and self.deadline and monotonic() >= self.deadline:
                status = Code.DEADLINE_EXCEEDED
            self.tell(status)

    def reset(self, code: int) -> None:
        """Ends the stream from here, if still open."""
        if self.connection.streams.get(self.id) is self:
            self._tell_reset(code)
            self.connection.reset(self, code)

    # Events.

    def on_local_end(self) -> None:
        """The answer is complete. If the client still sends its request, tells it to stop."""
        if self.remote_open:
            self.connection.reset(self, ErrorCode.NO_ERROR)
        else:
            self.connection.forget(self)

    def on_data(self, payload: bytes, end: bool) -> None:
        """Takes DATA, except for the usual case of one whole message in one frame."""
        self.fresh = False
        self._body_size += len(payload)
        expected = self.head.content_length
        if expected != NO_LENGTH and (self._body_size > expected or (end and self._body_size != expected)):
            fault = StreamFault(ErrorCode.PROTOCOL_ERROR, "DATA does not match content-length")
            self.connection.fault_stream(self.id, fault)
            return
        if end:
            self.remote_open = False
        if self.head.unary and not self.is_over:
            self._collect(payload, end)
        elif self.sink is not None:
            self.sink.request_data(payload, end)
        else:
            self.consumed(len(payload))
            if end and self.head.handler.is_page and not self.is_over:
                self.head.handler.on_message(self, b"")

    def take_piece(self, payload: bytes) -> bool:
        """As `on_data`, in fewer steps, for a further piece of a large message that does not end the message.

        Returns False, without any effect, for any other DATA. The connection has counted the bytes for its own window.
        """
        request, size = self._request, len(payload)
        body, expected = self._body_size + size, self.head.content_length
        if (
            request is None
            or size > self.recv_window
            or (expected != NO_LENGTH and body > expected)
            or not self.local_open
            or not request.add(payload)
        ):
            return False
        self._body_size = body
        self.recv_window -= size
        self.consumed(size)
        if request.held > request.counted and not self._is_counted(request, self._to_count(request)):
            self.expire(OVERLOADED)
        return True

    def _collect(self, payload: bytes, end: bool) -> None:
        self.consumed(len(payload))
        self.connection.do(self._collected(payload, end))

    def _collected(self, payload: bytes, end: bool) -> Iterator[None]:
        """Takes a piece of the request's one message, step by step; serves the message once the request has ended."""
        try:
            if self.taken:
                if payload:
                    raise SECOND_MESSAGE.error()
                return
            request = self._request
            if request is None:
                most_bytes = self.connection.limits.max_message_bytes
                request = self._request = RequestMessage(most_bytes, self.head.encoding)
            for held in request.steps(payload):
                self._count(request, held)
                yield
                if self.is_over:
                    return  # the call was given up in between
            message = None if self.is_over else self._ended(request, end)
        except RpcError as error:
            if error.status.code == Code.RESOURCE_EXHAUSTED and error.status is not OVERLOADED:
                self.connection.context.reached("max_message_bytes")
            self.expire(error.status)
            return
        if message is not None:
            self._take(message)

    def _take(self, message: bytes) -> None:
        self._release()
        self._request = None
        self.taken = True
        self.head.handler.on_message(self, message)

    def take_unended(self) -> None:
        """Serves a message that is whole although the request has not ended, as etcd does."""
        request = self._request
        if request is not None and request.message is not None and request.is_whole and not self.is_over:
            self._take(request.message)

    def _ended(self, request: RequestMessage, end: bool) -> bytes | None:
        """The request's one message, once the request has ended. Until then its pieces count as buffered."""
        if end:
            return request.ended()
        self._count(request, self._to_count(request))
        if request.message is not None and self.head.content_length in (NO_LENGTH, self._body_size):
            self.connection.unended.append(self)
        return None

    def _to_count(self, request: RequestMessage) -> int:
        """The bytes to account for; no call fails for bytes that have not come yet."""
        ahead = request.to_count
        return ahead if self.may_hold(ahead - request.counted) else max(request.held, request.counted)

    def _count(self, request: RequestMessage, held: int) -> None:
        """Accounts for the kept bytes of the request's message."""
        if not self._is_counted(request, held):
            raise OVERLOADED.error()

    def _is_counted(self, request: RequestMessage, held: int) -> bool:
        """Accounts for the kept bytes of the request's message; False if there is no memory for them."""
        if not self.hold(held - request.counted):
            return False
        request.counted = held
        return True

    def _release(self) -> None:
        if self._request is not None:
            self.release(self._request.counted)
            self._request.counted = 0

    def on_reset(self, code: int, reason: str) -> None:
        """The client, or the connection, is gone."""
        self.local_open = self.remote_open = False
        self._tell_reset(code)
        if self.account is not None:
            self.account.close()
        if self.sink is not None:
            self.sink.cancelled(code, reason)

    def on_drained(self, size: int) -> None:
        """Bytes that waited have left: their producer may go on."""
        if self.sink is not None:
            self.sink.drained(size)
