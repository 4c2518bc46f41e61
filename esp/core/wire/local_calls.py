"""Calls to this very process: a client's end and a server's end of HTTP/2, joined in memory.

For clients that speak another protocol. Their calls pass through the same code as the calls of clients that speak
HTTP/2: handlers, limits, windows, deadlines, the drain. Time and memory are counted for the client's own address.

A request or an answer that is whole and usual passes without frames: the other end takes it as its frame loop takes the
frames of such a one. All else passes as frames, and also what would overtake a frame that has not passed yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from time import monotonic
from typing import Final

from esp.core.wire.budget import Account
from esp.core.wire.client import LAST_STREAM_ID, LOW_WINDOW, ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.context import WireContext
from esp.core.wire.frames import MAX_FRAME_SIZE, ConnectionFault, ErrorCode
from esp.core.wire.handler import Handler
from esp.core.wire.native import mypyc_attr
from esp.core.wire.request import LARGE_HEAD, NO_LENGTH, RequestHead
from esp.core.wire.request_decoder import Request
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ResponseHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.traffic import Traffic

AUTHORITY: Final = "localhost"


class _ClientEnd(ClientConnection):
    """The client's end: its peer is this process, so it sends no keepalives."""

    __slots__ = ()

    def on_tick(self, now: float) -> None:
        """There is nothing to look at: the server's end has the deadlines."""

    def open_whole(
        self, call: ClientStream, forward: Forward, size: int, known: Mapping[bytes, Request]
    ) -> Request | None:
        """Opens a call with a request of `size` bytes, as `ClientConnection.call`, but without frames.

        Returns what the server's end makes of the head. Returns None, and does nothing, if that is not `known`, or if
        the request would have to wait, or to overtake frames.
        """
        path, metadata = forward
        front = self._encoder.known.get(path)
        request = None if front is None else known.get(front + metadata)
        stream_id = self._next_id
        if (
            request is None
            or request[1]
            or request[2]
            or not request[0].unary
            or request[0].content_length not in (NO_LENGTH, size)
            or self.out
            or size > MAX_FRAME_SIZE
            or size > self.send_window
            or size > self.peer_initial_window
            or not self.writable
            or stream_id >= LAST_STREAM_ID
        ):
            return None
        self._next_id = stream_id + 2
        self.send_window -= size
        call.id = stream_id
        call.credit -= size
        call.local_open = False
        self.streams[stream_id] = call
        return request

    @property
    def heads(self) -> Mapping[bytes, ResponseHead]:
        """The heads and trailers of earlier answers, by their blocks."""
        return self._decoder.memo

    def take_whole(self, call: ClientStream, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """Takes a whole answer, as `receive` takes its frames."""
        if self.ended:
            return
        size = len(payload)
        window = self.recv_window - size
        if window < LOW_WINDOW:
            self.received(size)
        else:
            self.recv_window = window
        if self.streams.get(call.id) is not call:
            return  # cancelled meanwhile
        call.remote_open = False
        call.headers_seen = True
        del self.streams[call.id]
        if self.tell_gone:
            self.on_stream_gone()
        try:
            call.on_answer(head, payload, trailers)
        except Exception:
            self._on_stream_bug(call)


class _ServerEnd(ServerConnection):
    """The server's end.

    Attributes:
        client: the other end.
        answers: whole answers on their way to the client's end. They have come before the frames in `out`.
    """

    __slots__ = ("answers", "client")

    client: _ClientEnd

    def __init__(self, context: WireContext, peer: str, find: Callable[[RequestHead], Handler]) -> None:
        super().__init__(context, peer, find)
        self.answers: list[tuple[ClientStream, ResponseHead, bytes, ResponseHead]] = []

    def serve_whole(self, call: ClientStream, forward: Forward, data: bytes) -> bool:
        """Serves a call whose request is whole, as `receive` serves its frames; `data` is the message with its prefix.

        Returns False, and does nothing, if the request has to pass as frames.
        """
        if (
            self.ended
            or self.behind
            or self._drain_started
            or not self._shrunk
            or len(self.streams) >= self._calls.room
        ):
            return False
        size = len(data)
        request = self.client.open_whole(call, forward, size, self._decoder.memo)
        if request is None:
            return False
        self.now = monotonic()
        stream_id = self._last_stream = call.id
        head = request[0]
        stream = self.streams[stream_id] = _WholeCall(self, stream_id, head, b"", b"")
        stream.call = call
        stream.server = self
        stream.fresh = stream.remote_open = False
        window = self.recv_window - size
        if window < self.recv_limit >> 1:
            self.received(size)
        else:
            self.recv_window = window
        head.handler.on_message(stream, data)
        if head.size > LARGE_HEAD and stream_id in self.streams:
            stream.hold_head()
        if self.when_read:
            self.paused()
        return True

    def flush(self) -> None:
        """Hands on the answers, then the frames that came behind them."""
        if self.answers:
            answers, self.answers = self.answers, []
            clock, take = self.clock, self.client.take_whole
            began = clock()
            for call, head, payload, trailers in answers:
                take(call, head, payload, trailers)
            self.charge(clock() - began)
        if self.out or self.ended:
            super().flush()


class _WholeCall(ServerStream):
    """A call whose request has passed without frames.

    Attributes:
        call: the call, as the client's end has it.
        server: the connection, by its own type.
    """

    __slots__ = ("call", "server")

    call: ClientStream
    server: _ServerEnd

    def send_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> bool:
        """Sends a whole answer; without frames, if the client's end knows head and trailers and has a window for it."""
        connection = self.server
        known = connection.client.heads
        opening, ending = known.get(head.forward), known.get(trailers.forward)
        size = len(payload)
        if (
            opening is None
            or ending is None
            or not opening.opens
            or not ending.succeeds
            or connection.out
            or self.responded
            or size > connection.send_window
            or size > connection.peer_initial_window + self.credit
            or size > MAX_FRAME_SIZE
            or not connection.writable
        ):
            return super().send_answer(head, payload, trailers)
        connection.send_window -= size
        if not connection.answers:
            connection.context.unflushed.append(connection)
        connection.answers.append((self.call, opening, payload, ending))
        self.responded = True
        self.local_open = False
        # `connection.forget`, spelled out: this runs once per request.
        connection.streams.pop(self.id, None)
        if self.account is not None:
            self.account.close()
        if connection.tell_gone:
            connection.on_stream_gone()
        return True


@mypyc_attr(allow_interpreted_subclasses=True)
class LocalCalls:
    """The calls of one client.

    Args:
        peer: the client's address.
        find: names the handler of a request.
        on_charge: called with the seconds of work that was done outside of the client's turns.
        on_behind: called when there is work for the client's turns.

    Attributes:
        client, server: the two ends.
    """

    __slots__ = ("_account", "_stop", "client", "context", "server")

    def __init__(
        self,
        context: WireContext,
        peer: str,
        find: Callable[[RequestHead], Handler],
        on_charge: Callable[[float], None],
        on_behind: Callable[[], None],
    ) -> None:
        self.context = context
        self._stop = inf
        self.server = server = _ServerEnd(context, peer, find)
        server.traffic = Traffic()  # these bytes reach no network
        self.client = client = server.client = _ClientEnd(context, AUTHORITY)
        self._account = server.own_account()
        server.on_flush = self._to_client
        server.on_end = self._end_client
        server.on_charge = on_charge
        server.on_behind = client.on_behind = on_behind
        client.on_flush = self._to_server
        client.on_end = self._end_server

    @property
    def is_usable(self) -> bool:
        """Whether a call can begin."""
        return self.client.has_room

    def account(self, owner: object) -> Account:
        """An account for memory that a call holds outside of the connection; `owner` has a `cut`."""
        return self._account.open(owner)  # type: ignore[arg-type]

    def call(self, stream: ClientStream, forward: Forward, timeout: bytes, data: bytes | None, *, end: bool) -> None:
        """Begins a call, as `ClientConnection.call`; a call whose request is whole may be served at once."""
        if data is None or timeout or not end or not self._serve_whole(stream, forward, data):
            self.client.call(stream, forward, timeout, data, end=end)

    def _serve_whole(self, stream: ClientStream, forward: Forward, data: bytes) -> bool:
        server = self.server
        server.stop = self._stop
        try:
            is_served = server.serve_whole(stream, forward, data)
        except ConnectionFault as fault:
            server.fail(fault)
            return True
        except Exception:
            server.on_bug()
            return True
        if server.behind and server.on_behind is not None:
            server.on_behind()
        return is_served

    def run(self, stop: float) -> bool:
        """Works on what the client's end has sent, until the time `stop`; True if work is left."""
        client, server = self.client, self.server
        if not client.out and not client.ended and not server.behind:
            return False
        self._stop = stop
        try:
            client.flush()
            if server.behind:
                self._take(b"")
        finally:
            self._stop = -inf
        return server.behind

    def tick(self, now: float) -> None:
        """Looks at the deadlines of the calls."""
        self.server.tick(now)

    def close(self, reason: str) -> None:
        """The client is gone: its calls end."""
        for end in (self.client, self.server):
            end.on_flush = end.on_end = end.on_charge = end.on_behind = None
            end.lost(reason)

    def _to_server(self, data: bytes) -> None:
        self._take(data)

    def _take(self, data: bytes) -> None:
        server = self.server
        try:
            behind = server.take(data, self._stop)
        except Exception:
            server.on_bug()
            return
        if behind and server.on_behind is not None:
            server.on_behind()

    def _to_client(self, data: bytes) -> None:
        """Gives the client's end its answers; what it does with them is work for the client."""
        clock = self.server.clock
        began = clock()
        self.client.receive(data)
        self.server.charge(clock() - began)

    def _end_client(self) -> None:
        self.client.lost("the server's end is closed")

    def _end_server(self) -> None:
        if not self.server.ended:
            self.server.end(ErrorCode.NO_ERROR, "the client's end is closed")
