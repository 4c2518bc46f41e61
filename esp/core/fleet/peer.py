"""Another proxy, asked by one RPC of esp's own at a URL under which it is reached."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from esp.core.fleet import sealed
from esp.core.shard import Lookups, connect
from esp.core.tls_files import any_server
from esp.core.tls_paths import Files
from esp.core.wire.call import BrokenCall, MessageCall, messages
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.message import prefix
from esp.core.wire.status import RpcError

PATH: Final = b"/esp.Proxies/Ask"
CONNECT_SECONDS: Final = 1.0


class PeerError(Exception):
    """The other proxy does not answer, or not as one that knows the secret."""


class Peer:
    """Another proxy. One connection, which is made when it is needed.

    The certificate of the other proxy is not looked at: the seals show who it is, and nothing secret is sent.

    Args:
        urls: under which it is reached; they are tried in their order.
        context: of the connection.
        files: this end's certificate, for a proxy that asks for one.
    """

    def __init__(self, urls: Sequence[str], context: WireContext, files: Files | None) -> None:
        self.urls = tuple(urls)
        self._context = context
        self._files = files
        self._connection: ClientConnection | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, secret: bytes, body: bytes, seconds: float) -> bytes:
        """The body of the answer to a question.

        Raises:
            PeerError: there is none within `seconds`.
        """
        message = sealed.question(secret, body)
        try:
            async with asyncio.timeout(seconds):
                connection = await self._connected()
                call = MessageCall(connection, messages())
                try:
                    connection.call(call, (PATH, b""), b"", prefix(message), end=True)
                    self._context.flush_soon()
                    return sealed.answered(secret, message, await call.read_only())
                finally:
                    call.cancel()
                    self._context.flush_soon()
        except (RpcError, BrokenCall, OSError, TimeoutError, sealed.UnsealedError, ValueError) as error:
            raise PeerError(f"{', '.join(self.urls)}: {error or type(error).__name__}") from None

    def close(self) -> None:
        """Ends the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._end(connection, "done")

    async def _connected(self) -> ClientConnection:
        async with self._connecting:
            now = self._connection
            if now is not None and not now.ended and not now.draining:
                return now
            fault: Exception = OSError("it has no URL")
            for url in self.urls:
                try:
                    self._connection = await self._connect(url)
                except (OSError, TimeoutError) as error:
                    fault = error
                else:
                    return self._connection
            raise fault

    async def _connect(self, url: str) -> ClientConnection:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
        connection = ClientConnection(self._context, parts.netloc)
        greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.on_change = lambda: None if greeted.done() else greeted.set_result(None)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                addresses = await Lookups().addresses(host, CONNECT_SECONDS)
                tls = (self._tls(), host) if parts.scheme == "https" else None
                await connect(connection, addresses, port, CONNECT_SECONDS, tls)
                await greeted
        except BaseException:  # also where who asks has no time left
            self._end(connection, "it does not answer")
            raise
        if connection.ended:
            raise OSError("it hangs up")
        return connection

    def _end(self, connection: ClientConnection, why: str) -> None:
        if not connection.ended:
            connection.end(ErrorCode.NO_ERROR, why)
            self._context.flush_soon()

    def _tls(self) -> ssl.SSLContext:
        context = any_server(self._files)
        with suppress(NotImplementedError):
            context.set_alpn_protocols(["h2"])
        return context
