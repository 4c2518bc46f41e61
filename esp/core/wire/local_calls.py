"""Calls to this very process: a client's end and a server's end of HTTP/2, joined in memory.

For clients that speak another protocol. Their calls pass through the same code as the calls of clients that speak
HTTP/2: handlers, limits, windows, deadlines, the drain. Time and memory are counted for the client's own address.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from esp.core.wire.budget import Account
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.handler import Handler
from esp.core.wire.request import RequestHead
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server import ServerConnection

AUTHORITY: Final = "localhost"


class _ClientEnd(ClientConnection):
    """The client's end: its peer is this process, so it sends no keepalives."""

    __slots__ = ()

    def on_tick(self, now: float) -> None:
        """There is nothing to look at: the server's end has the deadlines."""


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
        self.server = server = ServerConnection(context, peer, find)
        self.client = client = _ClientEnd(context, AUTHORITY)
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
        """Begins a call, as `ClientConnection.call`."""
        self.client.call(stream, forward, timeout, data, end=end)

    def run(self, stop: float) -> bool:
        """Works on what the client's end has sent, until the time `stop`; True if work is left."""
        self._stop = stop
        try:
            self.client.flush()
            if self.server.behind:
                self._take(b"")
        finally:
            self._stop = -inf
        return self.server.behind

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
