"""The paths of the status page: `/ui`, and `/ui/state`, which the page asks time and again.

The page is one file without any other request. Its answer has a Content-Security-Policy that lets nothing else run than
the script in the file, and lets no other site frame it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from hashlib import sha256
from importlib.resources import files
from typing import Final

from esp.core.log.recent import Recent
from esp.core.metrics.page import Form, Scrape, ScrapeCall, path_of
from esp.core.metrics.scrape import Metrics
from esp.core.moves import LastMoves
from esp.core.routing import Routing
from esp.core.services.pages import send_page
from esp.core.ui.state import state
from esp.core.wire.exchange import AfterBody, AnswerPage, Exchange, MakeExchange, Page, Reply
from esp.core.wire.plain import HttpRequest
from esp.core.wire.server_stream import Handler, ServerCall

PATH: Final = "/ui"
STATE: Final = "/ui/state"
_HEADERS: Final = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
_WRONG_METHOD: Final = Page(405, b"Method Not Allowed\n", headers=(("Allow", "GET"), *_HEADERS))


class StatusPage(Handler):
    """The status page, among other pages.

    Args:
        metrics: of all processes.
        routing: tells the layout in force.
        moves: the ranges that have moved.
        counts: gets the answers, by page and HTTP status.
        others: tells the server of all other pages over HTTP/2.

    Attributes:
        exchanges: by path, what serves requests over HTTP/1.1.
        recent: keeps the lines of the log that the page shows.
    """

    is_page = True

    def __init__(
        self,
        metrics: Metrics,
        routing: Callable[[], Routing],
        moves: LastMoves,
        counts: Counter[tuple[str, int]],
        others: Callable[[], Handler],
    ) -> None:
        self.recent = Recent()
        self.exchanges: Mapping[str, MakeExchange] = {
            PATH: self._page_exchange,
            f"{PATH}/": self._page_exchange,
            STATE: self._state_exchange,
        }
        self._metrics = metrics
        self._counts = counts
        self._others = others
        self._form = Form(
            "application/json", lambda steps: state(steps, routing(), tuple(self.recent.lines), moves), _HEADERS
        )

    def _count(self, status: int) -> None:
        self._counts[PATH, status] += 1

    def _answer(self, method: str, path: str, answer: AnswerPage) -> None:
        page = _WRONG_METHOD if method not in ("GET", "HEAD") else _moved() if path.endswith("/") else whole()
        self._count(page.status)
        answer(page)

    # Both leave out the header lines that let pages of other sites read the answer.

    def _page_exchange(self, request: HttpRequest, reply: Reply, lines: bytes) -> Exchange:
        return AfterBody(reply, partial(self._answer, request.method, path_of(request.target)))

    def _state_exchange(self, request: HttpRequest, reply: Reply, lines: bytes) -> Exchange:
        return Scrape(self._metrics, self._form, request, reply, b"", self._count)

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Answers a request over HTTP/2 for any page."""
        path = path_of(stream.head.path.decode("ascii", "replace"))
        if path == STATE:
            ScrapeCall(self._metrics, self._form, stream, self._count)
        elif path in self.exchanges:
            method = stream.head.method.decode("ascii", "replace")
            self._answer(method, path, partial(send_page, stream))
        else:
            self._others().on_message(stream, message)


def _moved() -> Page:
    """The page's address has no slash at the end: its script asks for `ui/state` beside it."""
    return Page(301, b"", headers=(("Location", f"..{PATH}"), *_HEADERS))


@cache
def whole() -> Page:
    """The page."""
    text = files("esp.core.ui").joinpath("page.html").read_text("utf-8")
    script, style = (_hash(text, name) for name in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = (("Content-Security-Policy", policy), ("Referrer-Policy", "no-referrer"), *_HEADERS)
    return Page(200, text.encode(), "text/html; charset=utf-8", headers)


def _hash(text: str, element: str) -> str:
    found = re.search(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
    assert found is not None, f"page.html has one {element}"
    return f"'sha256-{b64encode(sha256(found[1].encode()).digest()).decode()}'"
