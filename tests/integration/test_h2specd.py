"""h2specd (github.com/summerwind/h2spec) judges esp's client: a server with a port for each thing that may go wrong."""

from __future__ import annotations

import asyncio
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp.core import local
from esp.core.local import free_port
from esp.core.shard.dial import connect
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from tests.core.wire.upstream import Call, forward
from tests.harness import is_listening, peer, wait_until

CASES = 57
_CASE = re.compile(
    r'<div><span style="color: (\w+);">[^<]*</span><a href="http://127\.0\.0\.1:(\d+)/"[^>]*>([^<]*)</a>'
)


class H2specd:
    """Without a program to run it serves its cases until it is killed, and shows the results on a page."""

    def __init__(self, binary: Path) -> None:
        self.page = free_port()
        first = self._ports_in_a_row()
        command = [binary, "--port", str(self.page), "--from-port", str(first)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: is_listening(f"127.0.0.1:{self.page}"))

    def _ports_in_a_row(self) -> int:
        """The first of them: one for each case and one more, of which none is anybody's, nor that of the page."""
        while True:
            row = range(first := free_port(), first + CASES + 1)
            if set(row) <= set(local._PORTS) - {self.page} and all(map(local._is_free, row)):
                return first

    def report(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.page}/report", timeout=10) as page:
            return str(page.read().decode())

    def ports(self) -> dict[int, str]:
        """What each port tests."""
        return {int(port): title for _, port, title in _CASE.findall(self.report())}

    def failed(self) -> str | None:
        """Each failed case with what was expected; None before all have run."""
        report = self.report()
        if not report.startswith(f"<div>{CASES} tests,"):
            return None
        parts = re.split(r"(?=<div><span)", report)
        return "\n".join(re.sub(r"<[^>]*>|&nbsp;", " ", part) for part in parts if "✖" in part)


@pytest.fixture
def h2specd() -> Iterator[H2specd]:
    server = H2specd(peer("h2specd"))
    yield server
    server.process.kill()
    server.process.wait()


async def call(port: int) -> None:
    """Makes a call that takes whatever comes, and lets the server do its worst until the connection has ended."""
    connection = ClientConnection(WireContext(Limits()), f"127.0.0.1:{port}")
    ended = asyncio.Event()
    connection.on_change = lambda: ended.set() if connection.ended else None
    await connect(connection, ["127.0.0.1"], port)
    connection.call(Call(connection), forward(), b"", prefix(b"hello"), end=True)
    connection.context.flush()
    async with asyncio.timeout(20):
        await ended.wait()


async def call_all(ports: list[int]) -> None:
    for port in ports:
        await call(port)
    await asyncio.sleep(0)


def test_the_client_passes_every_case(h2specd: H2specd) -> None:
    ports = h2specd.ports()
    assert len(ports) == CASES
    asyncio.run(call_all(list(ports)))
    wait_until(lambda: h2specd.failed() is not None)
    assert h2specd.failed() == ""
