"""An HTTP/1.1 client of the gateway, in memory, and handlers of calls that the test answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any

from google.protobuf.message import Message

from esp.core.gateway import Site
from esp.core.wire.context import WireContext
from esp.core.wire.exchange import AnswerPage, Page
from esp.core.wire.http1 import Http1Connection
from esp.core.wire.limits import Limits
from esp.core.wire.local_calls import LocalCalls
from esp.core.wire.message import prefix
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler, Refuse, ServerStream, Sink
from esp.core.wire.status import Code, Status

PEER = "192.0.2.1:5555"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Unary(Handler):
    """Keeps calls with one request; the test answers them, or `answers` does."""

    def __init__(self, answers: Callable[[ServerStream, bytes], None] | None = None, *, waits: bool = False) -> None:
        self.answers = answers
        self.waits = waits
        self.asked: list[bytes] = []
        self.streams: list[ServerStream] = []
        self.cancelled: list[str] = []

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        self.asked.append(message[5:])
        self.streams.append(stream)
        stream.sink = _Noted(self)
        if self.answers is not None:
            stream.sink = None
            self.answers(stream, message[5:])


class _Noted(Sink):
    def __init__(self, handler: Unary) -> None:
        self.handler = handler

    def cancelled(self, code: int, reason: str) -> None:
        self.handler.cancelled.append(reason)


class Streaming(Handler):
    """Keeps streaming calls, and what they say; the test answers."""

    streaming = True

    def __init__(self) -> None:
        self.streams: list[ServerStream] = []
        self.said = b""
        self.is_whole = False
        self.cancelled = 0
        self.reads = True

    def on_open(self, stream: ServerStream) -> None:
        self.streams.append(stream)
        stream.sink = _Heard(self, stream)

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.streams[-1].start()
            self.streams[-1].send_data(prefix(message.SerializeToString()), False)


class _Heard(Sink):
    def __init__(self, handler: Streaming, stream: ServerStream) -> None:
        self.handler = handler
        self.stream = stream

    def request_data(self, payload: bytes, end: bool) -> None:
        self.handler.said += payload
        self.handler.is_whole |= end
        if self.handler.reads:
            self.stream.consumed(len(payload))

    def cancelled(self, code: int, reason: str) -> None:
        self.handler.cancelled += 1


def gives(message: Message) -> Unary:
    """A handler that answers each call with this message."""
    return Unary(lambda stream, _: stream.respond(message.SerializeToString()))


def refuses(code: Code, text: str) -> Unary:
    return Unary(lambda stream, _: stream.finish(Status(code, text)))


class Browser:
    """One client, and a gateway with these handlers.

    Attributes:
        heads: of the calls that have reached the handlers.
        said: all that the client got, and has not taken yet.
    """

    def __init__(self, limits: Limits | None = None, **site: Any) -> None:
        self.context = WireContext(limits or Limits())
        self.handlers: dict[bytes, Handler] = {}
        self.heads: list[RequestHead] = []
        self.said = bytearray()
        self.charged = 0.0
        site = {"most_bytes": self.context.limits.max_json_bytes} | site
        self.http = Http1Connection(Site(self._page, **site), monotonic, self.context.limits)
        self.calls: LocalCalls | None = None
        self.http.local_calls = self._local_calls
        self.http.on_late = self.said.extend

    def _local_calls(self) -> LocalCalls:
        if self.calls is None or not self.calls.is_usable:
            self.calls = LocalCalls(self.context, PEER, self._find, self._charge, lambda: None)
        return self.calls

    def _charge(self, seconds: float) -> None:
        self.charged += seconds

    def _find(self, head: RequestHead) -> Handler:
        self.heads.append(head)
        return self.handlers.get(head.path) or Refuse(Status(Code.UNIMPLEMENTED, "unknown"))

    def _page(self, method: str, target: str, answer: AnswerPage) -> None:
        answer(Page(200 if target.startswith("/health") else 404, f"{method} {target}\n".encode()))

    def says(self, data: bytes) -> None:
        """Sends bytes, and lets esp work until it has no more to do."""
        self.said += self.http.receive(data)
        self.works()

    def works(self) -> None:
        while True:
            self.context.flush()
            if self.calls is not None:
                self.calls.run(inf)
            self.context.flush()
            if not self.http.behind or self.http.is_full:
                return
            self.said += self.http.receive(b"")

    def posts(self, path: str, body: Any = None, *lines: str, method: str = "POST", host: str = "esp") -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = "".join(f"{line}\r\n" for line in (f"Host: {host}", *lines, f"Content-Length: {len(data)}"))
        self.says(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)

    def asks(self, *args: Any, **options: Any) -> Answer:
        """Posts, and takes the answer."""
        self.posts(*args, **options)
        return self.hears()

    def hears(self) -> Answer:
        """Takes the answer that has come; its body may not be whole yet."""
        head, blank, rest = bytes(self.said).partition(b"\r\n\r\n")
        assert blank, bytes(self.said)
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        del self.said[: len(head) + 4]
        if "Content-Length" in headers:
            size = int(headers["Content-Length"])
            body = rest[:size]
            del self.said[:size]
        else:
            body, _ = self.hears_more()
        return Answer(int(first.split()[1]), headers, body)

    def hears_more(self) -> tuple[bytes, bool]:
        """Takes the chunks that have come, and whether the last one was among them."""
        body = b""
        while self.said:
            size_line, _, rest = bytes(self.said).partition(b"\r\n")
            size = int(size_line, 16)
            body += rest[:size]
            del self.said[: len(size_line) + 2 + size + 2]
            if not size:
                return body, True
        return body, False
