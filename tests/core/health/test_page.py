"""The pages of a member that is hostile or breaks off: what does not come stays unknown, and nothing is raised."""

from __future__ import annotations

import asyncio
import json

import pytest

from esp.core.config import Endpoint
from esp.core.health.facts import Clock
from esp.core.health.page import MOST_BYTES, Pages, pages_of
from esp.core.health.proxies import version_of
from esp.core.tls_paths import Files

DATE = b"Date: Fri, 15 Jan 2027 08:00:00 GMT\r\n"
AT_EIGHT = 1_800_000_000.5


def answered(*pages: bytes, seconds: float = 30.0) -> Pages:
    """The facts from a server that gives these answers, one for each request, and then closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for page in pages:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(page)
        writer.close()

    async def ask() -> Pages:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
            return await pages_of(endpoint, None, seconds, lambda: AT_EIGHT, metrics=True)

    return asyncio.run(ask())


def page(body: bytes, date: bytes = DATE) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + date + b"Content-Length: %d\r\n\r\n" % len(body) + body


def quota(value: bytes) -> bytes:
    return page(b"etcd_server_quota_backend_bytes " + value + b"\n")


def test_the_clock_and_the_quota() -> None:
    assert answered(page(b"{}"), quota(b"8e+09")) == Pages(Clock(-0.5, 0.5), 8_000_000_000)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\0" * 100,
        b"HTTP/1.1 200 OK\r\n",
        page(b"{}", b""),
        page(b"{}", b"Date: Fri, 15 Jan 99999 08:00:00 GMT\r\n"),
        page(b"{}", b"Date: \xff\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(MOST_BYTES + 1),
    ],
)
def test_a_page_that_is_none(first: bytes) -> None:
    assert answered(first).clock is None


@pytest.mark.parametrize("value", [b"", b"x", b"inf", b"nan", b"1e999"])
def test_a_quota_that_is_no_number(value: bytes) -> None:
    assert answered(page(b"{}"), quota(value)) == Pages(Clock(-0.5, 0.5), None)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"esp": "0.1.0", "map": "0a", "epoch": "3", "more": 1}', {"esp": "0.1.0", "map": "0a", "epoch": "3"}),
        (b'{"etcdserver": "3.7.1"}', {}),
        (b"[1]", {}),
        (b"[" * 200_000, {}),
        (b"\xff", {}),
        (json.dumps({"map": "x" * 1000}).encode(), {"map": "x" * 64}),
    ],
)
def test_the_version_of_a_proxy(body: bytes, told: dict[str, str]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(page(body))
        writer.close()

    async def ask() -> dict[str, str]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await version_of(Endpoint("127.0.0.1", server.sockets[0].getsockname()[1]), Files())

    assert asyncio.run(ask()) == told
