"""The page /metrics, over HTTP/1.1 and HTTP/2: made and sent in the client's turns, as fast as the client reads.

Another page made of metrics is served in the same way, in a form of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from esp.core.metrics.scrape import Metrics, Step
from esp.core.metrics.text import OPEN, PLAIN, is_open, text
from esp.core.wire.exchange import AfterBody, Exchange, FindPage, MakeExchange, Page, Reply, Serve
from esp.core.wire.hpack import encode
from esp.core.wire.plain import HttpRequest
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler, Refuse, ServerCall, Sink
from esp.core.wire.status import Code, Status

PATH: Final = "/metrics"
PIECE: Final = 16_384
"""Bytes that leave together."""
ONLY_PAGES: Final = Status(Code.UNIMPLEMENTED, "esp: this address has only pages; clients' calls go to those in listen")

Count = Callable[[int], None]
"""Counts an answer with this HTTP status."""


class Form(NamedTuple):
    """The form of a page: its content type, further header fields, and the text from the metrics, in pieces."""

    kind: str
    text: Callable[[Iterator[Step]], Iterator[str]]
    fields: tuple[tuple[str, str], ...] = ()


AS_TEXT: Final = Form(PLAIN, text)
AS_OPEN_METRICS: Final = Form(OPEN, partial(text, open_metrics=True))


class Scrape(AfterBody):
    """A request over HTTP/1.1.

    Attributes:
        behind: there is text to make, and the client takes it.
    """

    behind = False

    def __init__(
        self, metrics: Metrics, form: Form, request: HttpRequest, reply: Reply, lines: bytes, count: Count
    ) -> None:
        """`lines` are header lines of the answer."""
        super().__init__(reply, self._answer)
        self._metrics = metrics
        self._form = form
        self._method = request.method
        self._lines = lines
        self._count = count
        self._text: Iterator[str] | None = None

    def _answer(self, answer: Callable[[Page], None]) -> None:
        kind, _, fields = self._form
        if self._method not in ("GET", "HEAD"):
            self._count(405)
            answer(Page(405, b"Method Not Allowed\n", headers=(("Allow", "GET"),), lines=self._lines))
        elif self._method == "HEAD":
            self._count(200)
            answer(Page(200, b"", kind, fields, self._lines))
        else:
            self._metrics.ask(self._begin)

    def _begin(self, steps: Iterator[Step]) -> None:
        if not self._is_over:
            self._count(200)
            kind, make, fields = self._form
            self._text = make(steps)
            self._reply.begin(200, (("Content-Type", kind), *fields), self._lines)
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
    """A request over HTTP/2."""

    def __init__(self, metrics: Metrics, form: Form, stream: ServerCall, count: Count) -> None:
        self._stream = stream
        self._form = form
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
        fields = [(b":status", b"%d" % status), (b"content-type", self._form.kind.encode())]
        fields += [(name.lower().encode(), value.encode()) for name, value in self._form.fields]
        if status == 405:
            fields.append((b"allow", b"GET"))
        if end:
            self._stream.sink = None
        self._stream.send_headers(encode(fields), end)
        self._stream.connection.context.flush_soon()

    def _begin(self, steps: Iterator[Step]) -> None:
        if self._stream.is_over:
            return
        self._text = self._form.text(steps)
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
        wants_open = is_open(request.field(b"accept").decode("ascii", "replace"))
        return Scrape(self._metrics, AS_OPEN_METRICS if wants_open else AS_TEXT, request, reply, lines, self._count)

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Answers a request over HTTP/2 for any page."""
        if path_of(stream.head.path.decode("ascii", "replace")) == PATH:
            ScrapeCall(self._metrics, AS_TEXT, stream, self._count)  # as Prometheus asks over TLS
        else:
            self._pages().on_message(stream, message)


class OnlyPages(Serve):
    """The server of addresses that have only pages (`metrics_listen`)."""

    def __init__(self, exchanges: Mapping[str, MakeExchange], find_page: FindPage, handler: Handler) -> None:
        """`exchanges` serve their paths over HTTP/1.1, `find_page` serves all others; `handler` serves HTTP/2."""
        super().__init__()
        self._exchanges = exchanges
        self._find_page = find_page
        self._handler = handler

    def exchange(self, request: HttpRequest, reply: Reply) -> Exchange:
        """The server of a request."""
        make = self._exchanges.get(path_of(request.target))
        if make is not None:
            return make(request, reply, b"")
        return AfterBody(reply, lambda answer: self._find_page(request.method, request.target, answer))

    def find(self, head: RequestHead) -> Handler:
        """The handler of a request over HTTP/2."""
        return Refuse(ONLY_PAGES) if head.is_grpc else self._handler


def path_of(target: str) -> str:
    """The path of a request."""
    return target.partition("?")[0]
