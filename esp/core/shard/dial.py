"""Connecting to a server by its addresses."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Final

from esp.core.background import first_of
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_tls import TlsClientProtocol
from esp.core.wire.transport import ClientProtocol

ATTEMPT_SECONDS: Final = 0.25
"""Seconds that an address may take before the next one is tried beside it (RFC 8305, "Connection Attempt Delay")."""


async def connect(
    connection: ClientConnection,
    addresses: Sequence[str],
    port: int,
    seconds: float = math.inf,
    tls: tuple[ssl.SSLContext, str] | None = None,
) -> ClientProtocol:
    """Connects `connection` to the first of the addresses that accepts, and sends its preface.

    The addresses are tried in their order. A silent address does not hold up the next one for long.

    Args:
        connection: the client end to connect.
        addresses: the addresses of the host, at least one.
        port: the port at every address.
        seconds: the time after which the caller gives up; the last address is tried when half of it is over.
        tls: the context of a TLS connection, and the name that the server's certificate must have; None for a plain
            connection.

    Raises:
        ssl.SSLError: the TLS handshake has failed.
        ConnectionResetError: the server has hung up in the handshake.
        OSError: no address accepts; the text has the error number of each.
    """
    attempts = [partial(_accepted, address, port) for address in addresses]
    try:
        pause = min(ATTEMPT_SECONDS, seconds / 2 / len(addresses))
        sock = await first_of(attempts, pause, socket.socket.close)
    except ExceptionGroup as failed:
        failures = failed.exceptions
        raise failures[0] if len(failures) == 1 else OSError("; ".join(map(str, failures))) from None
    protocol = ClientProtocol(connection) if tls is None else TlsClientProtocol(connection, *tls)
    try:
        await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
        if isinstance(protocol, TlsClientProtocol):
            await protocol.opened
    except BaseException:
        connection.on_flush = connection.on_end = None  # uvloop has closed the transport, and raises at a further write
        if protocol.transport is not None:
            protocol.transport.abort()
        raise
    return protocol


async def _accepted(address: str, port: int) -> socket.socket:
    """A socket that is connected to the address.

    Raises:
        OSError: the address does not accept.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # asyncio sets TCP_NODELAY only on a socket that names its protocol.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock
