"""HTTP/1.1 on the same port: small pages for probes and people, through the h11 library."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from time import monotonic

import h11

MAX_BODY_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Page:
    """An HTTP answer, whole."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = field(default=())


AnswerPage = Callable[[Page], None]
FindPage = Callable[[str, str, AnswerPage], None]
"""`(method, target, answer)`: calls `answer` with the page, at once or later, and once only."""


class Http1Connection:
    """One HTTP/1.1 connection, sans-I/O: bytes in, bytes out.

    Attributes:
        stop: the time on `clock` at which `receive` has to stop, even if there is more to do.
        behind: `receive` has stopped for that reason; `receive(b"")` goes on.
        waits: a requested page is not ready yet; until then no other request is worked on.
        on_late: called with the bytes of the answer when such a page is ready; `behind` and `ended` are set before.
        ended: the caller has to close.
    """

    __slots__ = (
        "_answered",
        "_body",
        "_clock",
        "_connection",
        "_find",
        "_page",
        "_request",
        "behind",
        "ended",
        "on_late",
        "stop",
        "waits",
    )

    def __init__(self, find: FindPage, clock: Callable[[], float] = monotonic) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16384)
        self._find = find
        self._clock = clock
        self.stop = inf
        self.behind = False
        self._request: h11.Request | None = None
        self._body = 0
        self._answered = False
        self._page: Page | None = None  # found while `receive` runs
        self.waits = False
        self.on_late: Callable[[bytes], None] = _drop
        self.ended = False

    @property
    def is_idle(self) -> bool:
        """Whether the last request was answered, and no byte of the next has come."""
        return self._answered and self._request is None and not self._connection.trailing_data[0]

    @property
    def unread_bytes(self) -> int:
        """The bytes that have come and wait for their turn."""
        return len(self._connection.trailing_data[0]) if self.behind or self.waits else 0

    def receive(self, data: bytes) -> bytes:
        """Takes bytes from the client, and returns the bytes of the answers. `ended` then says whether to close."""
        out = bytearray()
        self.behind = False
        try:
            if data:  # h11 takes b"" for the end
                self._connection.receive_data(data)
            if not self.waits:
                self._run(out)
        except h11.RemoteProtocolError as error:
            self._refuse(out, error.error_status_hint or 400, _plain(error))
        return bytes(out)

    def _run(self, out: bytearray) -> None:
        connection = self._connection
        while not self.ended:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                self._request = event
                self._body = 0
                names = {name for name, _ in event.headers}
                if event.http_version not in (b"1.0", b"1.1"):
                    self._refuse(out, 505, "this server speaks HTTP/1.1 and HTTP/2")
                elif {b"content-length", b"transfer-encoding"} <= names:
                    # A program that believes one of them reads another request than a program that believes the other.
                    self._refuse(out, 400, "both Content-Length and Transfer-Encoding")
                elif connection.they_are_waiting_for_100_continue:
                    out += connection.send(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                self._body += len(event.data)
                if self._body > MAX_BODY_BYTES:
                    self._refuse(out, 413, "request body too large")
            elif isinstance(event, h11.EndOfMessage):
                assert self._request is not None
                page = self._ask(self._request)
                if page is None:
                    self.waits = True
                    return
                self._give(out, page)
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                self.ended = True
            else:
                return
            if self._clock() >= self.stop and not self.ended:
                self.behind = True
                return

    def _ask(self, request: h11.Request) -> Page | None:
        """The page for a request; None if the page comes later."""
        self._page = None
        method, target = request.method.decode("ascii", "replace"), request.target.decode("ascii", "replace")
        self._find(method, target, partial(self._found, request))
        page, self._page = self._page, None
        return page

    def _found(self, request: h11.Request, page: Page) -> None:
        if not self.waits:
            self._page = page
        elif request is self._request and not self.ended:
            out = bytearray()
            self.waits = False
            self._give(out, page)
            self.behind = bool(self._connection.trailing_data[0]) and not self.ended
            self.on_late(bytes(out))

    def _give(self, out: bytearray, page: Page) -> None:
        """Answers the request, and gets ready for the next."""
        self._answer(out, page)
        connection = self._connection
        if connection.our_state is h11.MUST_CLOSE or connection.their_state is h11.MUST_CLOSE:
            self.ended = True
        else:
            connection.start_next_cycle()
            self._request = None

    def _refuse(self, out: bytearray, status: int, text: str) -> None:
        if self._connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._answer(out, Page(status, f"{text}\n".encode(), headers=(("Connection", "close"),)))
        self.ended = True

    def _answer(self, out: bytearray, page: Page) -> None:
        headers = [("Content-Type", page.content_type), ("Content-Length", str(len(page.body))), *page.headers]
        out += self._connection.send(h11.Response(status_code=page.status, headers=headers))
        is_head = self._request is not None and self._request.method == b"HEAD"
        if page.body and not is_head:
            out += self._connection.send(h11.Data(data=page.body))
        out += self._connection.send(h11.EndOfMessage())
        self._answered = True


def _drop(answer: bytes) -> None:
    """Drops an answer whose client has gone."""


def _plain(error: h11.RemoteProtocolError) -> str:
    """The fault of a request, without the request's bytes, which h11 appends as Python writes them."""
    return re.split(r""":? (?:bytearray\(|b['"])""", str(error), maxsplit=1)[0]
