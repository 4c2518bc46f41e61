"""A call as the server sees it: its stream, and the interface of whoever serves it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Final

from esp.core.wire.budget import Account
from esp.core.wire.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME_SIZE,
    ErrorCode,
    StreamFault,
    pack_three,
)
from esp.core.wire.hpack import Fields, encode
from esp.core.wire.message import PREFIX_SIZE, MessageReader, format_timeout, prefix
from esp.core.wire.request import NO_LENGTH, RequestHead
from esp.core.wire.response import RESPONSE_BLOCK, trailers_block
from esp.core.wire.status import OK, Code, RpcError, Status
from esp.core.wire.stream import Stream

if TYPE_CHECKING:
    from esp.core.wire.server import ServerConnection

_SECOND_MESSAGE: Final = Status(Code.INTERNAL, "more than one message in a unary request")


INTERNAL_ERROR: Final = Status(Code.INTERNAL, "esp: internal error")
"""How a call ends that a bug in esp has met."""
LIVED: Final = 0.05
"""Seconds after which a call was meant: who takes it back then does not do so to make work for nothing."""
LEAST_TIMEOUT: Final = 0.001


OVERLOADED: Final = Status(
    Code.RESOURCE_EXHAUSTED,
    "esp: no memory for what waits in this call: read faster, ask for less at once (limit) or raise max_buffered_bytes",
)

REQUEST_TIMEOUT_BLOCK: Final = encode([(b":status", b"408")])
"""What is said to a request for a page that does not end."""


class Sink:
    """Whoever serves a call: told what happens on the client's side of it."""

    __slots__ = ()

    def cut(self, stream: ServerStream) -> None:
        """There is no memory for what `stream` holds, or wants to: the call ends."""
        self.cancelled(ErrorCode.CANCEL, "no memory")
        stream.abandon(OVERLOADED, ErrorCode.ENHANCE_YOUR_CALM)

    def request_data(self, payload: bytes, end: bool) -> None:
        """DATA of a streaming request, as it came; say `stream.consumed` when done with it."""

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone, or the call was ended by the server's end of the wire."""

    def drained(self, size: int) -> None:
        """`size` bytes of the response that had to wait have been sent."""

    def half_message(self) -> int | None:
        """Which message of a streaming request, by its number, has come in part only; None when none has."""
        return None


class Handler:
    """What a server does with the calls to one path.

    Attributes:
        streaming: request messages are passed on as they come, instead of as one whole message.
        is_page: not gRPC: the body is ignored and the answer made when it has ended.
        idempotent: sending the call twice does no harm, so one whose fate is unknown may be sent again.
        forwards: `RequestHead.forward` is what it sends on; otherwise it makes heads of its own.
    """

    streaming: bool = False
    is_page: bool = False
    idempotent: bool = False
    forwards: bool = True

    def on_open(self, stream: ServerStream) -> None:
        """A streaming call begins: put a `Sink` into `stream.sink`."""
        raise NotImplementedError

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        """A call's one request message, with its prefix, not compressed."""
        raise NotImplementedError

    def recover(self, stream: ServerStream, message: bytes, status: Status) -> bool:
        """The server upstream refused `message` with `status`, and nothing was answered yet.

        False passes that on; with True this handler has taken the call over.
        """
        return False


class Refuse(Handler):
    """Answers every call with one status, without waiting for its messages.

    `http_status` is another one than 200 for what is no gRPC call, though it comes to where those are served.
    """

    streaming = True

    def __init__(self, status: Status, http_status: int = 200) -> None:
        self.status = status
        self._http_status = http_status

    def on_open(self, stream: ServerStream) -> None:
        """Ends the call at once."""
        stream.finish(self.status, http_status=self._http_status)


class ServerStream(Stream):
    """One call as the server sees it.

    Attributes:
        head: the request's head.
        timeout: its `grpc-timeout` as it came, b"" without one.
        deadline: the `monotonic` time at which it ends, 0.0 without one.
        sink: who serves it, once that is known.
        responded: whether the response has begun.
        opened: the `monotonic` time at which it came.
        fresh: nothing of the request's one message has come yet.
        retried: it was sent upstream a second time.
        taken: the request's one message is served, though the request may go on.
        account: the memory that it holds; None before it holds any.
    """

    connection: ServerConnection

    __slots__ = (
        "_body_size",
        "_held",
        "_message",
        "_reader",
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
    )

    def __init__(self, connection: ServerConnection, stream_id: int, head: RequestHead, timeout: bytes) -> None:
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
        self.opened = connection.now
        self.deadline = 0.0
        self.sink: Sink | None = None
        self.responded = False
        self.retried = False
        self.taken = False
        self.fresh = head.unary
        self._body_size = 0
        self._reader: MessageReader | None = None
        self._message: bytes | None = None
        self._held = 0
        self.account: Account | None = None
        self.has_sent = False

    # For whoever serves the call.

    @property
    def peer(self) -> str:
        """Who calls."""
        return self.connection.peer

    @property
    def awaits_message(self) -> bool:
        """Whether the one message of a unary call has not come yet."""
        return self.remote_open and self.head.unary and not self.taken

    def half_request(self) -> int | None:
        """Which of the request's messages the client owes the rest of; None when it owes nothing."""
        if not self.remote_open:
            return None
        if self.head.handler.is_page:
            return None if self.responded else 0
        if self.head.unary:
            return 0 if self.awaits_message else None
        return None if self.sink is None else self.sink.half_message()

    def has_lived(self, now: float) -> bool:
        """Whether it was open for a while, or for about the time-out that it came with."""
        lived = now - self.opened
        if not self.deadline:
            return lived >= LIVED
        # Nine tenths, because the client's clock began earlier; and no time-out is so short that it makes resets free.
        return lived >= min(LIVED, max(LEAST_TIMEOUT, (self.deadline - self.opened) * 0.9))

    def remaining(self) -> float | None:
        """Seconds until the deadline, not below 0; None without one."""
        return max(0.0, self.deadline - monotonic()) if self.deadline else None

    def remaining_timeout(self) -> bytes:
        """The time left as a `grpc-timeout` value; b"" without a deadline."""
        remaining = self.remaining()
        return b"" if remaining is None else format_timeout(remaining)

    def respond(self, message: bytes) -> None:
        """The whole answer of a unary call: one message (without prefix) and status OK. Nothing when that is over."""
        if self.is_over:
            return
        self.start()
        self.send_data(prefix(message), False)
        self.finish(OK)

    @property
    def is_over(self) -> bool:
        """Whether the answer is complete, or nobody waits for it any more."""
        ended = not self.local_open or (self.pending is not None and self.pending.end)
        return ended or self.connection.streams.get(self.id) is not self

    def expire(self, status: Status) -> None:
        """Ends the call for lack of time: whoever serves it stops, and an answer that waits for a window is dropped."""
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
        """An exception of esp's own came out of serving this call: it ends, and its connection if even that fails."""
        try:
            self.expire(INTERNAL_ERROR)
        except Exception:
            self.connection.on_bug()

    # Memory.

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes kept for this call, wherever that is; False when there is no room."""
        if self.may_hold(size) and self.account is not None:
            return self.account.take(size)
        self.connection.on_full(0 if self.account is None else self.account.held)
        return False

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
        """Others need the memory that this call holds, and none holds more."""
        try:
            self.connection.on_full(0 if self.account is None else self.account.held)
            self.on_buffers_full()
        except Exception:
            self.connection.on_bug()

    def on_buffers_full(self) -> None:
        """There is no memory for what waits for the client: the call ends."""
        if self.sink is not None:
            self.sink.cut(self)
        else:
            self.abandon(OVERLOADED, ErrorCode.ENHANCE_YOUR_CALM)

    def abandon(self, status: Status, code: ErrorCode) -> None:
        """Ends the call and drops what waits: with `status`, or, where a part of a message has left, by a reset.

        The call's sink has been told.
        """
        self.sink = None
        self._reader = self._message = None
        self._release()
        self.drop()
        if self.has_sent:
            self.reset(code)
        else:
            self.finish(status)

    def start(self) -> None:
        """Sends the response's head, unless it was sent."""
        if not self.responded:
            self.responded = True
            self.send_headers(RESPONSE_BLOCK, False)

    def send_answer(self, head: bytes, payload: bytes, trailers: bytes) -> bool:
        """Sends a whole answer, the blocks of its head and trailers encoded; False when it cannot go at once."""
        connection = self.connection
        size = len(payload)
        if (
            self.remote_open
            or self.responded
            or size > connection.send_window
            or size > connection.peer_initial_window + self.credit
            or size > MAX_FRAME_SIZE
            or not connection.writable
            or len(head) + len(trailers) > MAX_FRAME_SIZE
        ):
            return False
        stream_id = self.id
        connection.send_window -= size
        connection.sent_since_ping = True
        out = connection.out
        if not out:
            connection.context.unflushed.append(connection)
        pack = pack_three(len(head), size, len(trailers))
        out.append(
            pack(
                len(head) << 8 | HEADERS,
                END_HEADERS,
                stream_id,
                head,
                size << 8 | DATA,
                0,
                stream_id,
                payload,
                len(trailers) << 8 | HEADERS,
                END_HEADERS | END_STREAM,
                stream_id,
                trailers,
            )
        )
        self.responded = True
        self.local_open = False
        connection.streams.pop(stream_id, None)
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
            self.send_headers(block, True)

    # Events.

    def on_local_end(self) -> None:
        """The answer is complete. A client that still sends is told that nobody listens."""
        if self.remote_open:
            self.connection.reset(self, ErrorCode.NO_ERROR)
        else:
            self.connection.forget(self)

    def on_data(self, payload: bytes, end: bool) -> None:
        """DATA that is not the plain case of one whole message in one frame."""
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

    def _collect(self, payload: bytes, end: bool) -> None:
        self.consumed(len(payload))
        self.connection.do(self._collected(payload, end))

    def _collected(self, payload: bytes, end: bool) -> Iterator[None]:
        """Takes a piece of the request's one message, step by step; serves the message once it has ended."""
        try:
            messages = yield from self._read(payload)
            if self.is_over:
                return  # it was given up in between
            message = self._ended(messages, end)
        except RpcError as error:
            self.expire(error.status)
            return
        if message is not None:
            self._take(message)

    def _take(self, message: bytes) -> None:
        self._release()
        self._message = self._reader = None
        self.taken = True
        self.head.handler.on_message(self, message)

    def take_unended(self) -> None:
        """Serves a message that is whole though the request has not ended, as etcd does."""
        reader = self._reader
        if self._message is not None and reader is not None and not reader.wanted and not self.is_over:
            self._take(self._message)

    def _read(self, payload: bytes) -> Generator[None, None, list[bytes]]:
        """The messages that a piece of the request completes; what is inflated of one counts as buffered."""
        if self.taken:
            if payload:
                raise _SECOND_MESSAGE.error()
            return []
        context = self.connection.context
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(context.limits.max_message_bytes, self.head.encoding, prefixed=True)
        messages = []
        try:
            for message in reader.steps(payload):
                if message is not None:
                    messages.append(message)
                    if len(messages) + (self._message is not None) > 1:
                        raise _SECOND_MESSAGE.error()
                else:
                    self._hold_all(reader.held)
                    yield
                    if self.is_over:
                        break
        except RpcError as error:
            if error.status.code == Code.RESOURCE_EXHAUSTED and error.status is not OVERLOADED:
                context.reached("max_message_bytes")
            raise
        return messages

    def _ended(self, messages: list[bytes], end: bool) -> bytes | None:
        """The request's one message, once it has ended. Until then what there is of it counts as buffered."""
        reader = self._reader
        if self.taken or reader is None:
            return None
        if messages:
            self._message = messages[0]
        if end:
            if self._message is None or reader.wanted:
                raise Status(Code.INTERNAL, "the request ended without a whole message").error()
            return self._message
        self._hold_all(reader.held + max(0, len(self._message or b"") - PREFIX_SIZE))
        if self._message is not None and self.head.content_length in (NO_LENGTH, self._body_size):
            self.connection.unended.append(self)
        return None

    def _hold_all(self, held: int) -> None:
        """Accounts for all that is kept of the request's message."""
        if not self.hold(held - self._held):
            raise OVERLOADED.error()
        self._held = held

    def _release(self) -> None:
        self.release(self._held)
        self._held = 0

    def on_reset(self, code: int, reason: str) -> None:
        """The client, or the connection, is gone."""
        self.local_open = self.remote_open = False
        if self.account is not None:
            self.account.close()
        if self.sink is not None:
            self.sink.cancelled(code, reason)

    def on_drained(self, size: int) -> None:
        """Bytes that waited were sent: whoever produced them may go on."""
        if self.sink is not None:
            self.sink.drained(size)
