"""One HTTP/1.1 request and its answer, for the code that serves it: what the connection tells, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from esp.core.wire.local_calls import LocalCalls
from esp.core.wire.plain import HttpRequest, PlainHeads

MAX_BODY_BYTES: Final = 65536
"""The most bytes of a body that nobody reads."""


@dataclass(slots=True)  # frozen, each would take three times as long to make
class Page:
    """An HTTP answer, whole.

    Attributes:
        lines: further header lines, as bytes that end each line with CRLF.
    """

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = field(default=())
    lines: bytes = b""

    @property
    def fields(self) -> Sequence[tuple[str, str]]:
        """The header fields of the answer, with the length of its body."""
        content_type = (("Content-Type", self.content_type),) if self.content_type else ()
        return (*content_type, ("Content-Length", str(len(self.body))), *self.headers)


AnswerPage = Callable[[Page], None]
FindPage = Callable[[str, str, AnswerPage], None]
"""`(method, target, answer)`: calls `answer` with the page, at once or later, and once only."""


class Reply(Protocol):
    """The connection, as the server of a request sees it: an `Http1Connection`.

    Attributes:
        clock: gives the time in seconds.
        is_full: the client does not take the answers' bytes.
        local_calls: gives the client's calls to this process.
    """

    clock: Callable[[], float]
    is_full: bool
    local_calls: Callable[[], LocalCalls]

    def answer(self, page: Page) -> None:
        """Answers the request, whole."""

    def begin(self, status: int, headers: Sequence[tuple[str, str]] = (), lines: bytes = b"") -> None:
        """Begins an answer whose size is not known yet."""

    def send(self, data: bytes) -> None:
        """Sends a piece of the answer."""

    def finish(self) -> None:
        """Ends the answer."""

    def abort(self) -> None:
        """Ends the connection in the middle of an answer, so that the client sees that it is not whole."""

    def refuse(self, status: int, text: str) -> None:
        """Answers with a fault of the request, if that is still possible, and ends the connection."""

    def close_soon(self) -> None:
        """The connection ends with the present answer."""

    def go_on(self) -> None:
        """There is work in the client's turns, or more of the body is wanted."""


class Exchange:
    """The server of one request: told of the request's body, and of the client.

    Attributes:
        behind: there is work to do in the client's turns.
        is_full: no more of the body is wanted now.
    """

    behind: bool = False
    is_full: bool = False

    def body(self, data: bytes) -> None:
        """A piece of the body has come."""
        raise NotImplementedError

    def body_ended(self) -> None:
        """The body has ended."""
        raise NotImplementedError

    def takes_whole(self, data: bytes) -> bool:
        """The body has come whole; False, and nothing is done, if it is wanted by `body` and `body_ended` instead."""
        return False

    def work(self, stop: float) -> None:
        """Works until the time `stop`; does at least one step."""

    def resumed(self) -> None:
        """The client has taken the answer's bytes that waited."""

    def sends_no_more(self) -> None:
        """The client has closed its side of the connection, and may be gone."""

    def gone(self) -> None:
        """The client is gone."""

    def owed(self) -> int | None:
        """The number of the part of the body that has come only in part; None if the client owes nothing."""
        return None


MakeExchange = Callable[[HttpRequest, Reply, bytes], Exchange]
"""Makes the server of a request from the request, its reply, and header lines for the answer."""


class Serve:
    """Serves requests.

    Attributes:
        heads: of requests that were served.
    """

    def __init__(self) -> None:
        self.heads = PlainHeads()

    def exchange(self, request: HttpRequest, reply: Reply) -> Exchange:
        """The server of a request; answers through `reply`."""
        raise NotImplementedError


class AfterBody(Exchange):
    """Ignores the request's body, and then answers with a page.

    Args:
        ask: gives the page to the function that it is called with, at once or later.
    """

    def __init__(self, reply: Reply, ask: Callable[[AnswerPage], None]) -> None:
        self._reply = reply
        self._ask = ask
        self._size = 0
        self._is_whole = False
        self._is_over = False

    def body(self, data: bytes) -> None:
        """Counts."""
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            self._is_over = True
            self._reply.refuse(413, "request body too large")

    def body_ended(self) -> None:
        """Asks for the page."""
        self._is_whole = True
        self._ask(self._give)

    def gone(self) -> None:
        """Nobody waits for the page any more."""
        self._is_over = True

    def owed(self) -> int | None:
        """The body, until it has come."""
        return None if self._is_whole else 0

    def _give(self, page: Page) -> None:
        if not self._is_over:
            self._is_over = True
            self._reply.answer(page)


class AtOnce(Exchange):
    """Answers with a page without a look at the body, and ends the connection."""

    behind = True

    def __init__(self, reply: Reply, page: Page) -> None:
        self._reply = reply
        self._page = page

    def body(self, data: bytes) -> None:
        """Does nothing."""

    def body_ended(self) -> None:
        """Does nothing."""

    def work(self, stop: float) -> None:
        """Answers."""
        self._reply.close_soon()
        self._reply.answer(self._page)


class ServePages(Serve):
    """Serves pages only."""

    def __init__(self, find: FindPage) -> None:
        super().__init__()
        self._find = find

    def exchange(self, request: HttpRequest, reply: Reply) -> Exchange:
        """Gives the page."""
        return AfterBody(reply, lambda answer: self._find(request.method, request.target, answer))
