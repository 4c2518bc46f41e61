"""The page /metrics, over HTTP/1.1 and HTTP/2: made and sent in the client's turns, as fast as the client reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from esp.core.metrics.scrape import Metrics, Step
from esp.core.metrics.text import OPEN, PLAIN, is_open, text
from esp.core.wire.exchange import AfterBody, Exchange, FindPage, Page, Reply, Serve
from esp.core.wire.hpack import encode
from esp.core.wire.plain import HttpRequest
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler, Refuse, ServerStream, Sink
from esp.core.wire.status import Code, Status

PATH: Final = "/metrics"
PIECE: Final = 16_384
"""Bytes that leave together."""
ONLY_PAGES: Final = Status(Code.UNIMPLEMENTED, "esp: this address has only pages; clients' calls go to those in listen")

Count = Callable[[int], None]
"""Counts an answer with this HTTP status."""


class Scrape(AfterBody):
    """A request over HTTP/1.1.

    Attributes:
        behind: there is text to make, and the client takes it.
    """

    behind = False

    def __init__(self, metrics: Metrics, request: HttpRequest, reply: Reply, lines: bytes, count: Count) -> None:
        """`lines` are header lines of the answer."""
        super().__init__(reply, self._answer)
        self._metrics = metrics
        self._method = request.method
        self._is_open = is_open(request.field(b"accept").decode("ascii", "replace"))
        self._lines = lines
        self._count = count
        self._text: Iterator[str] | None = None

    def _answer(self, answer: Callable[[Page], None]) -> None:
        kind = OPEN if self._is_open else PLAIN
        if self._method not in ("GET", "HEAD"):
            self._count(405)
            answer(Page(405, b"Method Not Allowed\n", headers=(("Allow", "GET"),), lines=self._lines))
        elif self._method == "HEAD":
            self._count(200)
            answer(Page(200, b"", kind, lines=self._lines))
        else:
            self._metrics.ask(partial(self._begin, kind))

    def _begin(self, kind: str, steps: Iterator[Step]) -> None:
        if not self._is_over:
            self._count(200)
            self._text = text(steps, open_metrics=self._is_open)
            self._reply.begin(200, (("Content-Type", kind),), self._lines)
            self.resumed()

    def resumed(self) -> None:
        """The client takes more."""
        if self._text is not None and not self._is_over:
            self.behind = True
            self._reply.go_on()

    def work(self, stop: float) -> None:
        """Makes and sends text."""
        reply, made, size = self._reply, self._text, 0
        pieces: list[str] = []
        if made is None:
            return
        for piece in made:
            pieces.append(piece)
            size += len(piece)
            if size >= PIECE:
                reply.send("".join(pieces).encode())
                pieces.clear()
                size = 0
            if reply.is_full or reply.clock() >= stop:
                self.behind = not reply.is_full
                reply.send("".join(pieces).encode())
                return
        self.behind = False
        self._is_over = True
        reply.send("".join(pieces).encode())
        reply.finish()

    def gone(self) -> None:
        """The client is gone."""
        super().gone()
        self._text = None


class ScrapeCall(Sink):
    """A request over HTTP/2. Prometheus speaks it over TLS; the answer is plain text."""

    def __init__(self, metrics: Metrics, stream: ServerStream, count: Count) -> None:
        self._stream = stream
        self._count = count
        self._text: Iterator[str] | None = None
        self._is_at_work = False
        stream.sink = self
        if stream.head.method in (b"GET", b"HEAD"):
            metrics.ask(self._begin)
        else:
            self._head(405, end=True)

    def _head(self, status: int, *, end: bool) -> None:
        self._count(status)
        self._stream.responded = True
        fields = [(b":status", b"%d" % status), (b"content-type", PLAIN.encode())]
        if status == 405:
            fields.append((b"allow", b"GET"))
        if end:
            self._stream.sink = None
        self._stream.send_headers(encode(fields), end)
        self._stream.connection.context.flush_soon()

    def _begin(self, steps: Iterator[Step]) -> None:
        if self._stream.is_over:
            return
        self._text = text(steps)
        is_head = self._stream.head.method == b"HEAD"
        self._head(200, end=is_head)
        if not is_head:
            self._go_on()

    def _go_on(self) -> None:
        if not self._is_at_work and self._text is not None:
            self._is_at_work = True
            self._stream.connection.do_later(self._steps(self._text))

    def _steps(self, made: Iterator[str]) -> Iterator[None]:
        """Makes and sends text until the client takes no more."""
        stream = self._stream
        waiting = bytearray()
        for piece in made:
            waiting += piece.encode()
            while len(waiting) >= PIECE and not stream.is_over:
                stream.send_data(bytes(waiting[:PIECE]), False)
                del waiting[:PIECE]
            if stream.is_over or stream.pending is not None:
                break
            yield
        else:
            self._text = None
        self._is_at_work = False
        if not stream.is_over:
            if self._text is None:
                stream.sink = None
            if waiting or self._text is None:
                stream.send_data(bytes(waiting), self._text is None)
        stream.connection.context.flush_soon()

    def drained(self, size: int) -> None:
        """The client has read."""
        if self._stream.pending is None:
            self._go_on()

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone."""
        self._text = None
        self._stream.sink = None


class MetricsPage(Handler):
    """The page, among other pages.

    Args:
        metrics: of all processes.
        counts: gets the answers, by page and HTTP status.
        pages: tells the server of the other pages, which a reload may replace.
    """

    is_page = True

    def __init__(self, metrics: Metrics, counts: Counter[tuple[str, int]], pages: Callable[[], Handler]) -> None:
        self._metrics = metrics
        self._counts = counts
        self._pages = pages

    def _count(self, status: int) -> None:
        self._counts[PATH, status] += 1

    def exchange(self, request: HttpRequest, reply: Reply, lines: bytes) -> Exchange:
        """The server of a request over HTTP/1.1; `lines` are header lines of the answer."""
        return Scrape(self._metrics, request, reply, lines, self._count)

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        """Answers a request over HTTP/2 for any page."""
        if path_of(stream.head.path.decode("ascii", "replace")) == PATH:
            ScrapeCall(self._metrics, stream, self._count)
        else:
            self._pages().on_message(stream, message)


class OnlyPages(Serve):
    """The server of addresses that have only pages (`metrics_listen`)."""

    def __init__(self, metrics_page: MetricsPage, find_page: FindPage) -> None:
        super().__init__()
        self._metrics_page = metrics_page
        self._find_page = find_page

    def exchange(self, request: HttpRequest, reply: Reply) -> Exchange:
        """The server of a request."""
        if path_of(request.target) == PATH:
            return self._metrics_page.exchange(request, reply, b"")
        return AfterBody(reply, lambda answer: self._find_page(request.method, request.target, answer))

    def find(self, head: RequestHead) -> Handler:
        """The handler of a request over HTTP/2."""
        return Refuse(ONLY_PAGES) if head.is_grpc else self._metrics_page


def path_of(target: str) -> str:
    """The path of a request."""
    return target.partition("?")[0]
