"""One request of the gateway: its JSON becomes a gRPC call to this very process, and the call's answer becomes JSON."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import Final

from esp.core.gateway.answers import CANCELED, JSON_LINE, error_line, error_page, http_status, too_large
from esp.core.gateway.paths import WATCH
from esp.core.gateway.plan import Plan
from esp.core.gateway.printing import SMALL, Garbled, Printer, for_html, text_of
from esp.core.gateway.reading import NotTheMessage, read, read_small
from esp.core.gateway.values import NotJson, Values
from esp.core.wire.budget import Account
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.frames import ErrorCode, unpack_u32
from esp.core.wire.http1 import Exchange, Http1Connection, Page
from esp.core.wire.local_calls import LocalCalls
from esp.core.wire.message import PREFIX_SIZE, format_timeout, prefix
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import INTERNAL_ERROR, OVERLOADED
from esp.core.wire.status import DEADLINE_EXCEEDED, Code, Status

log = logging.getLogger("esp.gateway")

TOKENS_AT_ONCE: Final = 200
"""Tokens of a body that are looked at in one step."""
SENT_AT_ONCE: Final = 16384
"""Bytes of printed text that leave together."""
LARGEST_CHUNK: Final = 4_194_304
"""Bytes of a stream's message that leave together: some clients take a chunk for a message, as it is in etcd."""
SMALL_DATA: Final = 2048
"""Bytes of an answer that are printed as soon as they come; more wait for the client's turn."""
DEADLINE_SLACK: Final = 0.005
"""Seconds before its deadline in which an error is taken for the deadline's."""
COUNTED: Final = 4096
"""Bytes that a call may hold uncounted, like the rest of what a call takes."""

_GRPC: Final = b"Grpc-Metadata-Content-Type: application/grpc\r\n"
_CLOSED: Final = Status(Code.UNAVAILABLE, "esp: the call broke off, and may have been served")
_BROKEN: Final = {int(ErrorCode.INTERNAL_ERROR): INTERNAL_ERROR, int(ErrorCode.ENHANCE_YOUR_CALM): OVERLOADED}
_NO_ANSWER: Final = Status(Code.INTERNAL, "the call ended without an answer")


class GatewayCall(Exchange):
    """The server of one request."""

    def __init__(self, plan: Plan, reply: Http1Connection) -> None:
        self._rpc = plan.rpc
        self._reply = reply
        self._lines = plan.lines
        self._most_bytes = plan.most_bytes
        self._request = plan.request
        self._answer = plan.answer
        self._streams = plan.rpc.method.server_streaming
        self._calls: LocalCalls | None = None
        self._account: Account | None = None
        self._held = 0
        # The request.
        self._metadata, self._seconds = plan.metadata, plan.seconds
        self._deadline = inf
        self._values: Values | None = Values() if plan.rpc.method.client_streaming else None
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_whole = False
        self._parts = 0
        self._reading: Iterator[None] | None = None
        # The call.
        self._stream: _Stream | None = None
        self._is_begun = False
        self._fault: Status | None = plan.fault  # of the request
        # The answer.
        self._data: deque[bytes] = deque()
        self._printer: Printer | None = None
        self._printing: Iterator[None] | None = None
        self._text: list[str] = []
        self._text_size = 0
        self._began = False
        self._answers = 0
        self._status: Status | None = None
        self._is_over = False

    # The request.

    def body(self, data: bytes) -> None:
        """A piece of the JSON."""
        if self._is_over:
            return
        self._size += len(data)
        if self._values is None:
            self._pieces.append(data)
            self._check_size(self._size)
        elif self._fault is None:
            self._values.feed(data)
            self._check_size(self._values.held)
            self._read_values()

    def _check_size(self, size: int) -> None:
        if size > self._most_bytes:
            self._reply.local_calls().context.reached("max_json_bytes")
            self._refuse(too_large(self._most_bytes), 413)
        else:
            self._hold()

    def body_ended(self) -> None:
        """Begins the call, or ends the stream of its requests."""
        self._is_whole = True
        if self._is_over:
            return
        if self._fault is not None:
            if not self._is_begun:
                self._conclude(self._fault)
        elif self._values is not None:
            self._read_values()
        else:
            self._read_whole()

    def _read_whole(self) -> None:
        body = b"".join(self._pieces)
        self._pieces.clear()
        message = read_small(self._request, body) if body else b""
        if message is not None:
            self._open(message, end=True)
        else:
            self._reading = self._read_thoroughly(body)
            self.behind = True

    def _read_thoroughly(self, body: bytes) -> Iterator[None]:
        values = Values()
        values.feed(body)
        value = None
        more = True
        while value is None and more:
            value, more = values.next(TOKENS_AT_ONCE)
            yield
        if value is None:
            value = values.end()
        del values
        message = b"" if value is None else (yield from read(self._request, value))
        self._open(message, end=True)

    def _read_values(self) -> None:
        """Sends the values that have come, in steps."""
        if not self._is_begun:
            self._open(None, end=False)
        if self._reading is None and not self._is_over:
            self._reading = self._read_stream()
            self.behind = True

    def _read_stream(self) -> Iterator[None]:
        values = self._values
        assert values is not None
        while not self._is_over:
            value, more = values.next(TOKENS_AT_ONCE)
            if value is None and self._is_whole and not more:
                value = values.end()
                if value is None:
                    self._send(b"", end=True)
                    return
            if value is not None:
                self._parts += 1
                message = read_small(self._request, value)
                if message is None:
                    message = yield from read(self._request, value)
                self._send(prefix(message), end=False)
                self._hold()
            elif not more:
                return
            yield

    def owed(self) -> int | None:
        """The body of a call with one request, or the rest of a value."""
        if self._is_whole or self.is_full or self._reading is not None:
            return None
        if self._values is None:
            return 0
        return self._parts if self._values.held else None

    # The call.

    def _open(self, message: bytes | None, *, end: bool) -> None:
        self._is_begun = True
        calls = self._calls = self._reply.local_calls()
        stream = self._stream = _Stream(calls, self)
        data = None if message is None else prefix(message)
        timeout = b""
        if self._seconds is not None:
            timeout = format_timeout(self._seconds)
            self._deadline = monotonic() + self._seconds
        self._hold()
        calls.call(stream, (self._rpc.path, self._metadata), timeout, data, end=end)

    def _send(self, data: bytes, *, end: bool) -> None:
        stream = self._stream
        if stream is None or not stream.local_open:
            return
        if not stream.send_data(data, end):
            self.is_full = bool(data)

    def request_left(self) -> None:
        """Requests that waited have left."""
        stream = self._stream
        if stream is not None and stream.pending is None and self.is_full:
            self.is_full = False
            self._reply.go_on()

    def answered(self, data: bytes) -> None:
        """A piece of the call's answer has come."""
        self._data.append(data)
        self._hold()
        if not self.behind and len(data) <= SMALL_DATA and not self._reply.is_full:
            self._print_steps(inf)
        if self._data or self._printing is not None:
            self._want_turn()

    def ended(self, status: Status) -> None:
        """The call has ended."""
        self._stream = None
        if status.code != Code.OK and monotonic() >= self._deadline - DEADLINE_SLACK:
            status = DEADLINE_EXCEEDED  # whatever the end of a call at its deadline looks like to a server
        self._status = status = self._fault or status
        if not self._data and self._printing is None:
            self._conclude(status)

    # Work in the client's turns.

    def _want_turn(self) -> None:
        self.behind = True
        self._reply.go_on()

    def work(self, stop: float) -> None:
        """Reads and prints."""
        self.behind = False
        if self._reading is not None and not self._take_steps(stop):
            self.behind = True
            return
        if self._is_over or self._reply.is_full or not (self._data or self._printing is not None):
            return
        self._print_steps(stop)
        if (self._data or self._printing is not None) and not self._reply.is_full and not self._is_over:
            self.behind = True

    def _take_steps(self, stop: float) -> bool:
        """Goes on to read; True if all that has come is read."""
        reading, clock = self._reading, self._reply.clock
        assert reading is not None
        try:
            for _ in reading:
                if self.is_full:
                    return True
                if clock() >= stop:
                    return False
        except (NotJson, NotTheMessage) as error:
            self._reading = None
            self._not_json(str(error))
            return True
        self._reading = None
        return True

    def _not_json(self, text: str) -> None:
        if self._values is None:
            self._conclude(Status(Code.INVALID_ARGUMENT, text))
            return
        # etcd only notes this text in its log, and takes the requests for complete. A watch would then go on for ever.
        self._fault = Status(Code.INVALID_ARGUMENT, f"Failed to decode request: {text}")
        if self._rpc.path == WATCH:
            self._conclude(self._fault)
        else:
            self._send(b"", end=True)  # the answers to earlier requests come first

    # The answer.

    def _print_steps(self, stop: float) -> None:
        """Prints what has come, until the time `stop`."""
        clock = self._reply.clock
        try:
            while self._data or self._printing is not None:
                if self._printing is None:
                    if self._printer is None:
                        self._printer = Printer(self._answer, self._write, self._begin_answer, self._end_answer)
                    self._printer.feed(self._data[0])
                    self._printing = self._printer.steps()
                for _ in self._printing:
                    if self._text_size >= (LARGEST_CHUNK if self._streams else SENT_AT_ONCE):
                        self._flush()
                    if self._reply.is_full or clock() >= stop:
                        self._hold()
                        return
                self._printing = None
                data = self._data.popleft()
                if self._stream is not None:
                    self._stream.consumed(len(data))
                self._hold()
                if self._is_over:
                    return
            if not self._streams:
                self._flush()
        except Garbled as error:
            log.warning("%s: an answer that cannot be read: %s", self._rpc.path.decode(), error)
            self._printing = None
            self._data.clear()
            self._break(Status(Code.INTERNAL, f"esp: the answer cannot be read: {error}"))
            return
        if self._status is not None and not self._is_over:
            self._conclude(self._status)

    def _begin_answer(self, is_whole: bool) -> None:
        self._answers += 1
        if self._streams:
            self._start(200, _GRPC)
            self._write('{"result":')
        elif self._answers > 1:
            raise Garbled("more than one answer")
        elif not is_whole:
            self._start(200, _GRPC)

    def _end_answer(self) -> None:
        if self._streams:
            self._write("}\n")
            self._flush()

    def _write(self, text: str) -> None:
        self._text.append(text)
        self._text_size += len(text)

    def _start(self, status: int, lines: bytes = b"") -> None:
        if not self._began:
            self._began = True
            self._reply.begin(status, lines=self._lines + lines)

    def _flush(self) -> None:
        """Sends what is printed; the only answer, if it is small, waits for the end of the call."""
        if self._began and self._text:
            text = "".join(self._text)
            self._text.clear()
            self._text_size = 0
            self._reply.send((for_html(text) if self._streams else text).encode())

    def takes_whole(self, data: bytes) -> bool:
        """Whether `data` is the only answer, and small."""
        size = len(data) - PREFIX_SIZE
        return not self._streams and 0 <= size <= SMALL and unpack_u32(data, 1)[0] == size and not self._data

    def whole_answer(self, data: bytes) -> None:
        """The call has ended well with one small message: `data`, with its prefix."""
        self._stream = None
        try:
            if data[0] or self._data or self._answers:
                raise Garbled("a compressed message")
            text = text_of(self._answer, data[PREFIX_SIZE:])
        except Garbled as error:
            self._conclude(Status(Code.INTERNAL, f"esp: the answer cannot be read: {error}"))
            return
        self._finish()
        self._reply.answer(Page(200, text.encode(), "", lines=self._lines + _GRPC))

    def _conclude(self, status: Status, code: int = 0) -> None:
        """Ends the answer."""
        if self._is_over:
            return
        self._cancel()
        if status.code == Code.OK and not self._streams and not self._answers:
            status = _NO_ANSWER
        if status.code == Code.OK:
            text = "".join(self._text).encode()
            if self._streams and not self._began:
                self._began = True
                self._reply.begin(200, lines=self._lines.removesuffix(JSON_LINE))
            self._finish()
            if self._began:
                self._reply.send(text)
                self._reply.finish()
            else:
                self._reply.answer(Page(200, text, "", lines=self._lines + _GRPC))
            return
        if self._printer is not None and self._printer.is_within:
            self._break(status)
            return
        self._finish()
        if not self._streams:
            if self._began:
                self._reply.abort()
            else:
                self._reply.answer(self._error_page(status, code))
        elif self._began:
            self._reply.send(error_line(status).encode())
            self._reply.finish()
        elif self._is_begun:
            self._start(code or http_status(status))
            self._reply.send(error_line(status).encode())
            self._reply.finish()
        else:
            self._reply.answer(self._error_page(status, code))

    def _error_page(self, status: Status, code: int = 0) -> Page:
        return error_page(status, self._lines, code)

    def _break(self, status: Status) -> None:
        """Ends the answer inside of a message: nothing but the end of the connection tells that it is not whole."""
        if self._began:
            self._cancel()
            self._finish()
            self._reply.abort()
        else:
            self._conclude(status)

    def _refuse(self, status: Status, code: int) -> None:
        """Answers before the body has ended, and ends the connection."""
        self._reply.close_soon()
        self._fault = self._fault or status
        self._conclude(status, code)

    # The end.

    def resumed(self) -> None:
        """The client takes the answer again."""
        if self._data or self._printing is not None:
            self._want_turn()

    def sends_no_more(self) -> None:
        """The client has closed its side: a call that may last for hours ends, as in etcd."""
        if self._rpc.lasts:
            self._conclude(CANCELED)

    def gone(self) -> None:
        """The client is gone."""
        self._cancel()
        self._finish()

    def cut(self) -> None:
        """There is no memory for what the call holds."""
        self._account = None
        self._held = 0
        if self._began:
            self._break(OVERLOADED)
        else:
            self._conclude(OVERLOADED)

    def _cancel(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    def _finish(self) -> None:
        self._is_over = True
        self.behind = False
        self._reading = self._printing = None
        self._pieces.clear()
        self._data.clear()
        if self._account is not None:
            self._account.close()
            self._account = None

    def _hold(self) -> None:
        """Counts what the call keeps."""
        held = 0 if self._is_whole and self._stream is not None else self._size if self._values is None else 0
        if self._values is not None:
            held += self._values.held
        if self._printer is not None:
            held += self._printer.held
        held += sum(map(len, self._data)) + self._text_size
        if held <= COUNTED and self._account is None:
            return
        if self._account is None:
            self._calls = self._calls or self._reply.local_calls()
            self._account = self._calls.account(self)
        self._account.give(self._account.held)
        if held and not self._account.take(held):
            self.cut()


class _Stream(ClientStream):
    """The call, as the client's end has it."""

    __slots__ = ("_calls", "_gateway")

    def __init__(self, calls: LocalCalls, gateway: GatewayCall) -> None:
        super().__init__(calls.client)
        self._calls = calls
        self._gateway = gateway

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The head or the trailers of the answer."""
        if end:
            self._gateway.ended(head.outcome())
        elif head.http_status != 200 or not head.is_grpc:
            self.cancel()
            self._gateway.ended(head.outcome())

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer."""
        if self._gateway.takes_whole(payload):
            self._gateway.whole_answer(payload)
        else:
            super().on_answer(head, payload, trailers)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        self._gateway.answered(payload)
        if end:
            self._gateway.ended(_NO_ANSWER)

    def on_reset(self, code: int, reason: str) -> None:
        """The call has broken."""
        self._gateway.ended(_BROKEN.get(code, _CLOSED))

    def on_drained(self, size: int) -> None:
        """Requests that waited have left."""
        self._gateway.request_left()
