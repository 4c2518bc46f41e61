"""Host names for which the name server answers late, or never: no other work waits for them."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import threading
from threading import Event
from typing import Any

import pytest

from esp.core.shard.lookup import Lookups
from tests.harness import unknown


class SilentServer:
    """A name server that answers once `answers` is set; `asked` are the names in the order they came."""

    def __init__(self) -> None:
        self.answers = Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: None, **_: Any) -> list[Any]:
        self.asked.append(host)
        if host != "known":
            assert self.answers.wait(60)
        return [(socket.AF_INET, 1, 6, "", ("192.0.2.1", 0)), (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0))]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    server = SilentServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.answers.set()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_address_is_not_asked_for(address: str, server: SilentServer) -> None:
    assert asyncio.run(Lookups().addresses(address, 10)) == [address]
    assert server.asked == []


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(OSError, match=unknown("no-such-host.invalid")):
        asyncio.run(Lookups().addresses("no-such-host.invalid", 60))


def test_a_name_that_cannot_exist() -> None:
    with pytest.raises(OSError, match=re.escape('the host name "a..b" is not known; correct it or use an address')):
        asyncio.run(Lookups().addresses("a..b", 60))


def test_a_silent_name_server_is_told_and_asked_once_for_each_name(server: SilentServer) -> None:
    async def run() -> None:
        lookups = Lookups()
        for _ in range(100):
            for name in ("one", "two"):
                with pytest.raises(OSError, match=f'no name server has told the address of "{name}" within 0 s'):
                    await lookups.addresses(name, 0)
        assert sorted(server.asked) == ["one", "two"]
        names = ["lookup of one", "lookup of two"]
        assert sorted(thread.name for thread in threading.enumerate() if thread.name in names) == names
        # Another name does not wait behind them.
        assert await lookups.addresses("known", 60) == ["192.0.2.1", "2001:db8::1"]
        # What came late is there for who asks next, and is asked for anew by the one after.
        server.answers.set()
        assert await lookups.addresses("one", 60) == ["192.0.2.1", "2001:db8::1"]
        assert server.asked.count("one") == 1
        assert await lookups.addresses("one", 60) == ["192.0.2.1", "2001:db8::1"]
        assert server.asked.count("one") == 2

    asyncio.run(run())


def test_the_process_ends_while_a_name_server_is_silent() -> None:
    program = """
import asyncio, socket, threading
from esp.core.shard.lookup import Lookups
socket.getaddrinfo = lambda *_, **__: threading.Event().wait()
try:
    asyncio.run(Lookups().addresses("name", 0.1))
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith('no name server has told the address of "name" within 0.1 s; look at ')
    assert (done.returncode, done.stderr) == (0, "")
