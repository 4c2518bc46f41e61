"""What a member tells as pages, and nowhere else: the time of its clock, its quota, and the end of its certificate.

The pages are `/version`, whose `Date` is a whole second, and `/metrics`, which etcd 3.4 and 3.5 need for their quota. A
member that has no pages at its client port (--listen-client-http-urls) tells nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

import h11

from esp.core.certificate import certificates_in
from esp.core.config import Endpoint, ShardTls
from esp.core.health.facts import Clock
from esp.core.shard import Lookups
from esp.core.tls_files import any_server

MOST_BYTES: Final = 4_194_304
"""The most bytes of a page; the metrics of an etcd take 200 kB."""
_READ_BYTES: Final = 65_536
_QUOTA: Final = b"etcd_server_quota_backend_bytes "


@dataclass(slots=True)
class Pages:
    """The facts in a member's pages; None stands for an unknown value.

    Attributes:
        clock: the difference of the clocks.
        quota: the bytes to which the member's file may grow.
        certificate_ends: when the certificate that the member showed ends, in seconds since 1970.
    """

    clock: Clock | None = None
    quota: int | None = None
    certificate_ends: float | None = None


async def pages_of(
    endpoint: Endpoint, tls: ShardTls | None, seconds: float, now: Callable[[], float], *, metrics: bool
) -> Pages:
    """The facts in a member's pages, as far as they come within `seconds`; with `metrics`, the quota as well.

    Raises nothing: a fact that does not come stays unknown.
    """
    found = Pages()
    with suppress(OSError, TimeoutError, h11.ProtocolError, ValueError, OverflowError):
        async with asyncio.timeout(seconds):
            await _ask(found, endpoint, tls, seconds, now, metrics=metrics)
    return found


async def _ask(
    found: Pages, endpoint: Endpoint, tls: ShardTls | None, seconds: float, now: Callable[[], float], *, metrics: bool
) -> None:
    async with _talking(endpoint, tls, seconds) as talk:
        found.certificate_ends = talk.certificate_ends
        before = now()
        head, _ = await talk.get("/version")
        found.clock = clock_of(head, before, now())
        if metrics:
            _, page = await talk.get("/metrics")
            found.quota = quota_in(page)


async def page_at(endpoint: Endpoint, tls: ShardTls | None, path: str, seconds: float) -> tuple[int, bytes]:
    """The status and the body of one page; finding the address may take `seconds`.

    Raises:
        OSError: no connection, or it breaks, or the page is larger than MOST_BYTES.
        h11.ProtocolError: the answer is no HTTP.
    """
    async with _talking(endpoint, tls, seconds) as talk:
        head, body = await talk.get(path)
        return head.status_code, body


@asynccontextmanager
async def _talking(endpoint: Endpoint, tls: ShardTls | None, seconds: float) -> AsyncIterator[_Talk]:
    address = (await Lookups().addresses(endpoint.host, seconds))[0]
    context = any_server(tls.files if tls else None) if endpoint.tls else None
    name = (tls.server_name if tls else "") or endpoint.host
    reader, writer = await asyncio.open_connection(
        address, endpoint.port, ssl=context, server_hostname=name if context else None
    )
    try:
        yield _Talk(str(endpoint).partition("://")[2], reader, writer)
    finally:
        writer.transport.abort()


class _Talk:
    """Requests one after the other on one connection."""

    def __init__(self, authority: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._authority = authority
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self.certificate_ends = _end_of(writer.get_extra_info("ssl_object"))

    async def get(self, path: str) -> tuple[h11.Response, bytes]:
        """The head and the body of a page.

        Raises:
            OSError: the connection breaks, or the page is larger than MOST_BYTES.
            h11.ProtocolError: the answer is no HTTP.
        """
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        request = h11.Request(method="GET", target=path, headers=[("Host", self._authority)])
        self._writer.write((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        head, body = None, bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MOST_BYTES:
                    raise OSError("the page is too large")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return head, bytes(body)
            else:
                raise OSError("the connection has ended")


def clock_of(head: h11.Response, before: float, after: float) -> Clock | None:
    """The difference of the clocks, from a page that was asked for and came at these times of this machine."""
    told = dict(head.headers).get(b"date")
    if told is None:
        return None
    second = parsedate_to_datetime(told.decode("latin-1")).timestamp()
    return Clock(second - after, second + 1 - before)


def quota_in(page: bytes) -> int | None:
    """The quota in a page of metrics; None if there is none."""
    for line in page.splitlines():
        if line.startswith(_QUOTA):
            return int(float(line[len(_QUOTA) :]))
    return None


def _end_of(connection: ssl.SSLObject | None) -> float | None:
    der = connection.getpeercert(binary_form=True) if connection is not None else None
    if der is None:
        return None
    try:
        return certificates_in(ssl.DER_cert_to_PEM_cert(der).encode())[0].not_after
    except ValueError:
        return None
