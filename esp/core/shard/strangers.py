"""Finds out who answers at an endpoint that is no etcd's client port, or does not speak as the config says.

esp asks as any HTTP client would: it gets `/members` and `/version`, without TLS and with TLS. etcd's peer port has the
page `/members`; etcd and esp name themselves in `/version`. The questions have connections of their own, come after an
attempt to connect has failed, and change nothing at the other end.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from esp.core.config import Endpoint
from esp.core.shard.member import NotAnEtcd, UnfitError
from esp.core.shard.secured import Secured
from esp.core.tls_files import any_server
from esp.core.wire.frames import PREFACE, SETTINGS, settings

MOST_SECONDS: Final = 1.0
"""Seconds for all questions to one endpoint."""
ALERT_SECONDS: Final = 0.2
"""Seconds that a server has to refuse esp's certificate after the handshake: with TLS 1.3 that comes later."""
MORE_SECONDS: Final = 0.2
"""Seconds that a server has between two pieces of its answers; not all servers close the connection behind them."""
MOST_BYTES: Final = 65_536
_SERVER: Final = re.compile(rb"(?im)^server:[ \t]*([!-~][ -~]{0,39})")
_CLIENT_URL: Final = re.compile(rb'"clientURLs":\["([!-~]{1,100}?)"')
_NAME_A_CLIENT_URL: Final = "name an etcd's client URL"


@dataclass(slots=True)
class _Heard:
    """The words of a server.

    Attributes:
        pages: its answers, one behind the other.
        speaks_tls: whether it has finished or refused a TLS handshake.
        fault: why it refused.
    """

    pages: bytes = b""
    speaks_tls: bool = False
    fault: ssl.SSLError | None = None

    @property
    def is_http(self) -> bool:
        return self.pages.startswith(b"HTTP/")

    @property
    def is_http2(self) -> bool:
        return self.pages[3:4] == bytes((SETTINGS,))

    @property
    def is_etcd(self) -> bool:
        return b'"etcdserver"' in self.pages

    def name(self) -> str:
        found = _SERVER.search(self.pages)
        return f" ({found[1].decode().strip()})" if found else ""


async def recognise(endpoint: Endpoint, address: str, secured: Secured | None) -> UnfitError | None:
    """Who answers at `endpoint`, as a clause with the cure; None if that cannot be told.

    Args:
        endpoint: the endpoint.
        address: an address of its host.
        secured: the TLS of the shard; None if the shard is plain.
    """
    plain, sealed = _Heard(), _Heard()
    with suppress(TimeoutError):
        async with asyncio.timeout(MOST_SECONDS):
            await _ask(plain, endpoint, address, None)
            if not plain.is_http or b"HTTPS server" in plain.pages:  # as Go's servers of TLS answer plain clients
                await _ask(sealed, endpoint, address, any_server(secured.credentials.files if secured else None))
            if endpoint.tls and not plain.is_http and not sealed.speaks_tls:
                await _ask(plain, endpoint, address, None, http2=True)
    if sealed.speaks_tls:
        return _judge_sealed(endpoint, sealed, secured)
    if plain.is_http2 and endpoint.tls:
        return UnfitError(f"it speaks HTTP/2 without TLS; write http://{_authority(endpoint)}")
    return _judge_plain(endpoint, plain) if plain.is_http else None


def _judge_plain(endpoint: Endpoint, heard: _Heard) -> UnfitError | None:
    if who := _known(heard):
        return who
    if heard.is_etcd:
        return UnfitError(f"it is an etcd without TLS; write http://{_authority(endpoint)}") if endpoint.tls else None
    tls = "speaks no TLS and " if endpoint.tls else ""
    return UnfitError(f"it {tls}is an HTTP server{heard.name()}, and no etcd; {_NAME_A_CLIENT_URL}")


def _judge_sealed(endpoint: Endpoint, heard: _Heard, secured: Secured | None) -> UnfitError | None:
    if who := _known(heard):
        return who
    if secured is None or not endpoint.tls:
        return UnfitError(f"it speaks TLS; write https://{_authority(endpoint)}")
    if heard.fault is not None:
        return secured.fault(heard.fault, endpoint.host)
    if heard.is_http and not heard.is_etcd:
        return UnfitError(f"it is an HTTPS server{heard.name()}, and no etcd; {_NAME_A_CLIENT_URL}")
    return None


def _known(heard: _Heard) -> UnfitError | None:
    if b'"peerURLs"' in heard.pages:
        found = _CLIENT_URL.search(heard.pages)
        such = f", such as {found[1].decode()}" if found else ""
        return UnfitError(f"it is etcd's peer port, which is for members only; name the client URL{such}")
    is_esp = (heard.is_etcd and b'"esp"' in heard.pages) or b"no shard has told its version" in heard.pages
    return NotAnEtcd() if is_esp else None


def _authority(endpoint: Endpoint) -> str:
    return str(endpoint).partition("://")[2]


async def _ask(
    heard: _Heard, endpoint: Endpoint, address: str, context: ssl.SSLContext | None, *, http2: bool = False
) -> None:
    """Gets the pages, as far as they come, by TLS if there is a `context`. With `http2`, says hello in HTTP/2 instead.

    An etcd with --listen-client-http-urls has no pages at its port for gRPC.
    """
    name = endpoint.host if context else None
    try:
        reader, writer = await asyncio.open_connection(address, endpoint.port, ssl=context, server_hostname=name)
        heard.speaks_tls = context is not None
        try:
            if http2:
                writer.write(PREFACE + settings({}))
                heard.pages = await reader.read(MOST_BYTES)
            else:
                await _talk(heard, endpoint, reader, writer)
        finally:
            writer.transport.abort()
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            heard.speaks_tls = True
            heard.fault = error
    except OSError:
        pass


async def _talk(heard: _Heard, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if heard.speaks_tls:
        with suppress(TimeoutError):
            async with asyncio.timeout(ALERT_SECONDS):
                heard.pages += await reader.read(MOST_BYTES)
    lines = f"HTTP/1.1\r\nHost: {_authority(endpoint)}\r\n"
    writer.write(f"GET /members {lines}\r\nGET /version {lines}Connection: close\r\n\r\n".encode())
    with suppress(TimeoutError):
        while len(heard.pages) < MOST_BYTES:
            async with asyncio.timeout(MORE_SECONDS if heard.pages else None):
                data = await reader.read(MOST_BYTES)
            if not data:
                break
            heard.pages += data
