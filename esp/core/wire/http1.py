"""HTTP/1.1 on the same port, through the h11 library: requests in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.client import responses
from math import inf
from time import monotonic
from typing import Final

import h11

from esp.core.wire.exchange import Exchange, Page, Serve
from esp.core.wire.http1_faults import has_body, in_words, refused
from esp.core.wire.limits import Limits
from esp.core.wire.local_calls import LocalCalls
from esp.core.wire.plain import LAST_CHUNK, HttpRequest, answer_head, chunk, front, head_in

_DEFAULT_LIMITS: Final = Limits()


class Http1Connection:
    """One HTTP/1.1 connection, sans-I/O: bytes in, bytes out.

    Attributes:
        clock: gives the time in seconds.
        stop: the time on `clock` at which `receive` has to stop, even if there is more to do.
        behind: `receive` has stopped for that reason; `receive(b"")` goes on.
        waits: a request is being served whose body has ended; until its answer is whole, no other is worked on.
        on_late: called with bytes of an answer that are made outside of `receive`; `behind` and `ended` are set before.
        on_behind: called when there is work for `receive` that did not begin in it.
        is_full: the client does not take the answers' bytes.
        local_calls: gives the client's calls to this process.
        ended: the caller has to close.
        requests: the number of requests so far.
    """

    __slots__ = (
        "_answered",
        "_body_ended",
        "_closes",
        "_connection",
        "_exchange",
        "_in_receive",
        "_is_begun",
        "_is_clean",
        "_is_head",
        "_is_plain",
        "_learning",
        "_limits",
        "_out",
        "_request",
        "_serve",
        "behind",
        "clock",
        "ended",
        "is_full",
        "local_calls",
        "on_behind",
        "on_late",
        "requests",
        "sends_no_more",
        "stop",
    )

    def __init__(self, serve: Serve, clock: Callable[[], float] = monotonic, limits: Limits = _DEFAULT_LIMITS) -> None:
        self._serve = serve
        self._limits = limits
        self._connection = self._new_connection()
        self.clock = clock
        self.stop = inf
        self.behind = False
        self._request: h11.Request | None = None
        self._exchange: Exchange | None = None
        self._body_ended = False
        self._answered = False
        self._closes = False
        self._is_head = False
        self._is_clean = True  # h11 has no bytes, and is between two requests
        self._is_plain = False  # the request, of which h11 knows nothing
        self._is_begun = False  # the answer to such a request
        self._learning: tuple[bytes, int] | None = None  # a head for h11, and the bytes that came behind it
        self._in_receive = False
        self._out = bytearray()
        self.is_full = False
        self.on_late: Callable[[bytes], None] = _drop
        self.on_behind: Callable[[], None] = _nothing
        self.local_calls: Callable[[], LocalCalls] = _no_calls
        self.sends_no_more = False
        self.ended = False
        self.requests = 0

    def _new_connection(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.max_header_list_bytes)

    # The client's side.

    @property
    def waits(self) -> bool:
        """Whether a request is being served whose body has ended."""
        return self._exchange is not None and self._body_ended

    @property
    def is_idle(self) -> bool:
        """Whether the last request was answered, and no byte of the next has come."""
        return self._answered and self._exchange is None and self._request is None and self._is_clean

    @property
    def unread_bytes(self) -> int:
        """The bytes that have come and wait for their turn."""
        if self._is_clean or not (self.behind or self._exchange is not None):
            return 0
        return len(self._connection.trailing_data[0])

    @property
    def wants_bytes(self) -> bool:
        """Whether further bytes of the client are of use now: those of the body, or any between two requests."""
        exchange = self._exchange
        return exchange is None or not (self._body_ended or exchange.is_full)

    def owed(self) -> tuple[int, int] | None:
        """The debt of the client: the number of the request, and of the part of it; None if it owes nothing."""
        exchange = self._exchange
        if exchange is None:
            return self.requests, -1
        part = exchange.owed()
        return None if part is None else (self.requests, part)

    @property
    def is_served(self) -> bool:
        """Whether a request is being served."""
        return self._exchange is not None

    def receive(self, data: bytes) -> bytes:
        """Takes bytes from the client, and returns the bytes of the answers. `ended` then says whether to close."""
        self.behind = False
        self._in_receive = True
        try:
            if data and self._take_plain(data):
                exchange = self._exchange
                if exchange is None or not exchange.behind:
                    return self._taken() if self._out else b""
            elif data:  # h11 takes b"" for the end
                self._is_clean = False
                self._connection.receive_data(data)
            self._run()
        except h11.RemoteProtocolError as error:
            self._fault(error)
        finally:
            self._in_receive = False
        return self._taken()

    def end_of_client(self) -> None:
        """The client sends no more."""
        self.sends_no_more = True
        if self._exchange is None:
            return
        if self._body_ended:
            self._exchange.sends_no_more()
        else:
            self.go_on()  # perhaps the rest of the body has come and waits for its turn

    def resumed(self) -> None:
        """The client takes bytes again."""
        self.is_full = False
        if self._exchange is not None:
            self._exchange.resumed()

    def lost(self) -> None:
        """The client is gone."""
        self.ended = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.gone()

    def close_soon(self) -> None:
        """The connection ends with the present answer."""
        self._closes = True

    def go_on(self) -> None:
        """There is work for `receive`, or the exchange wants more of the body."""
        if not self._in_receive and not self.ended and not self.behind:
            self.behind = True
            self.on_behind()

    def _fault(self, error: h11.RemoteProtocolError) -> None:
        """The client breaks the protocol: its request is not served."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.gone()
        self.refuse(error.error_status_hint or 400, in_words(error))

    def _take_plain(self, data: bytes) -> bool:
        """Serves a request whose head is known, if its body is all the rest of `data`; else returns False."""
        if not self._is_clean or self._exchange is not None or self.ended:
            return False
        head = head_in(data)
        heads = self._serve.heads
        known = heads.find(head) if head else None
        if known is None or known[1] != len(data):
            self._learning = (head, len(data) - len(head)) if head and known is None else None
            return False
        self.requests += 1
        self._serve_plain(known[0], data[len(head) :])
        return True

    def _serve_plain(self, request: HttpRequest, body: bytes) -> None:
        """Serves a request that has come whole, and of which h11 knows nothing."""
        self._is_plain = True
        self._is_begun = False
        self._body_ended = True
        exchange = self._exchange = self._serve.exchange(request, self)
        if not exchange.takes_whole(body):
            if body:
                exchange.body(body)
            if self._exchange is exchange:
                exchange.body_ended()
        if self.sends_no_more and self._exchange is exchange:
            exchange.sends_no_more()

    def _run(self) -> None:
        connection = self._connection
        while not self.ended:
            exchange = self._exchange
            if exchange is not None:
                if exchange.behind:
                    exchange.work(self.stop)
                    if exchange.behind and self._exchange is exchange:
                        self.behind = True
                        return
                    if self.clock() >= self.stop:
                        self.behind = not self.ended
                        return
                    continue
                if self._body_ended or exchange.is_full:
                    return
            if self._is_clean:
                return
            event = connection.next_event()
            if isinstance(event, h11.Request):
                self._begin(event)
                exchange = self._exchange
                if self._is_clean and (exchange is None or not exchange.behind):
                    return
            elif isinstance(event, h11.Data):
                if exchange is not None:
                    exchange.body(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._body_ended = True
                if exchange is not None:
                    exchange.body_ended()
                    if self.sends_no_more and self._exchange is exchange:
                        exchange.sends_no_more()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                self.ended = True
            else:
                if exchange is not None and self.sends_no_more:
                    self.lost()
                return
            if self.clock() >= self.stop and not self.ended:
                self.behind = True
                return

    def _begin(self, event: h11.Request) -> None:
        self._request = event
        self._body_ended = False
        self.requests += 1
        self._is_head = event.method == b"HEAD"
        refusal = refused(event, self._limits.max_header_fields)
        if refusal is not None:
            self.refuse(*refusal)
            return
        method, target = event.method.decode("ascii", "replace"), event.target.decode("ascii", "replace")
        request = HttpRequest(method, target, list(event.headers))
        body = self._learn(request, event.http_version)
        if body is not None:
            self._request = None
            self._is_clean = True
            self._connection = self._new_connection()
            self._serve_plain(request, body)
            return
        self._exchange = self._serve.exchange(request, self)
        if self._connection.they_are_waiting_for_100_continue and has_body(event) and not self._exchange.behind:
            continues = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self._out += self._connection.send(continues)

    def _learn(self, request: HttpRequest, version: bytes) -> bytes | None:
        """Remembers the head, if it is plain; returns the body, if that is whole and all that has come."""
        learning, self._learning = self._learning, None
        if not learning or version != b"1.1":
            return None
        head, size = learning
        body = self._connection.trailing_data[0]
        # h11 takes a line feed for the end of a line as well, so its head may be a shorter one.
        is_whole = len(body) == size and self._serve.heads.learn(head, request) == len(head) + size
        return bytes(body) if is_whole else None

    # The server's side: the exchange calls these.

    def answer(self, page: Page) -> None:
        """Answers the request, whole."""
        if self._is_plain and not (page.headers or page.content_type or self._closes):
            head = front(page.status, page.lines)
            self._finish(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(page.body), page.body))
            return
        if self._is_plain:
            self._finish(answer_head(page.status, page.lines, (*page.fields, *self._closing())) + page.body)
            return
        self._head(page.status, page.fields, page.lines)
        if page.body and not self._is_head:
            self._out += self._connection.send(h11.Data(data=page.body))
        self._finish()

    def begin(self, status: int, headers: Sequence[tuple[str, str]] = (), lines: bytes = b"") -> None:
        """Begins an answer whose size is not known yet."""
        if self._is_plain:
            self._is_begun = True
            chunked = "Transfer-Encoding", "chunked"
            self._emit(answer_head(status, lines, (*headers, *self._closing(), chunked)))
        else:
            self._head(status, headers, lines)
            self._emit()

    def send(self, data: bytes) -> None:
        """Sends a piece of the answer."""
        if data and not self.ended:
            self._emit(chunk(data) if self._is_plain else self._connection.send(h11.Data(data=data)))

    def finish(self) -> None:
        """Ends the answer, and gets ready for the next request."""
        if not self.ended:
            self._finish()

    def abort(self) -> None:
        """Ends the connection in the middle of an answer, so that the client sees that it is not whole."""
        self._exchange = None
        self.ended = True
        self._emit()

    def refuse(self, status: int, text: str) -> None:
        """Answers with a fault of the request, if it still can, and ends the connection."""
        self._exchange = None
        if not self._is_begun and self._connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.answer(Page(status, f"{text}\n".encode(), headers=(("Connection", "close"),)))
        self.ended = True

    def _closing(self) -> Sequence[tuple[str, str]]:
        return (("Connection", "close"),) if self._closes else ()

    def _head(self, status: int, headers: Sequence[tuple[str, str]], lines: bytes) -> None:
        headers = (*headers, *self._closing())
        reason = responses.get(status, "")
        head = self._connection.send(h11.Response(status_code=status, headers=list(headers), reason=reason))
        if lines:
            at = head.index(b"\r\n") + 2
            self._out += head[:at]
            self._out += lines
            self._out += head[at:]
        else:
            self._out += head

    def _finish(self, data: bytes = b"") -> None:
        """Ends the answer with `data`, if h11 does not know of it."""
        connection = self._connection
        is_plain, self._is_plain = self._is_plain, False
        if not is_plain:
            self._out += connection.send(h11.EndOfMessage())
        elif self._is_begun:
            data = LAST_CHUNK
        self._answered = True
        self._is_head = self._is_begun = False
        self._exchange = None
        if is_plain:
            self.ended = self._closes
            if not self._in_receive:
                self.behind = not self._is_clean and not self.ended
        elif self._closes or connection.our_state is h11.MUST_CLOSE or connection.their_state is not h11.DONE:
            self.ended = True
        else:
            connection.start_next_cycle()
            self._request = None
            self._is_clean = not connection.trailing_data[0]
            if not self._in_receive:
                self.behind = not self._is_clean
        self._emit(data)

    def _emit(self, data: bytes = b"") -> None:
        """Hands on what was made outside of `receive`, and `data` behind it."""
        if self._in_receive:
            self._out += data
        else:
            self.on_late(self._taken() + data if self._out else data)

    def _taken(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data


def _drop(answer: bytes) -> None:
    """Drops an answer whose client has gone."""


def _nothing() -> None:
    """There is nobody to tell."""


def _no_calls() -> LocalCalls:
    raise NotImplementedError
