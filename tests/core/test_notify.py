"""Messages to the service manager, read from a datagram socket as systemd has one."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest

from esp.core.notify import LONGEST_STATUS, MOST_OWED, ServiceManager


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """An address as NOTIFY_SOCKET has it, and the socket there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        if request.param == "path":
            sock.bind(str(tmp_path / "notify"))
            yield sock.getsockname(), sock
        else:
            sock.bind(f"\0esp-{os.getpid()}-{tmp_path.name}")
            yield "@" + sock.getsockname()[1:].decode(), sock


def read(sock: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(sock.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_the_states_are_told_as_systemd_reads_them(heard: tuple[str, socket.socket]) -> None:
    address, sock = heard
    manager = ServiceManager(address)
    manager.ready("serves 3 shards")
    before = int(monotonic() * 1e6)
    manager.reloading()
    manager.ready("serves 4 shards")
    manager.main_process(4711)
    manager.stopping(40)
    manager.close()
    manager.status("nobody hears this")
    first, reloading, *others = read(sock)
    assert first == "READY=1\nSTATUS=serves 3 shards"
    word, _, moment = reloading.partition("\nMONOTONIC_USEC=")
    assert word == "RELOADING=1"
    assert before <= int(moment) <= monotonic() * 1e6
    assert others == [
        "READY=1\nSTATUS=serves 4 shards",
        "MAINPID=4711",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=draining",
    ]


def test_a_status_is_one_short_line_and_is_told_when_it_changes(heard: tuple[str, socket.socket]) -> None:
    address, sock = heard
    manager = ServiceManager(address)
    for text in ("a\nREADY=1", "a\nREADY=1", "b", "x" * 1000):
        manager.status(text)
    manager.close()
    assert read(sock) == ["STATUS=a READY=1", "STATUS=b", f"STATUS={'x' * (LONGEST_STATUS - 3)}..."]


def test_the_watchdog_hears_of_ticks_a_few_times_in_its_time(heard: tuple[str, socket.socket]) -> None:
    address, sock = heard
    manager = ServiceManager(address, 8)
    start = monotonic()
    for half_seconds in range(1, 17):
        manager.tick(start + 1 + half_seconds / 2)
    manager.close()
    assert read(sock) == ["WATCHDOG=1"] * 4


def test_without_a_watchdog_ticks_tell_nothing(heard: tuple[str, socket.socket]) -> None:
    address, sock = heard
    manager = ServiceManager(address)
    manager.tick(monotonic() + 100)
    manager.close()
    assert read(sock) == []


def test_what_a_busy_manager_does_not_take_is_told_later_in_order(heard: tuple[str, socket.socket]) -> None:
    address, sock = heard
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        other.connect(sock.getsockname())
        with suppress(BlockingIOError):
            while True:
                other.send(b"noise")
    manager = ServiceManager(address, 1)
    manager.ready("")
    for number in range(MOST_OWED):
        manager.status(str(number))
    manager.tick(monotonic() + 10)
    assert set(read(sock)) == {"noise"}
    manager.status("now")
    got = []
    for seconds in (20, 30, 40):  # the kernel keeps some ten messages
        manager.tick(monotonic() + seconds)
        got += read(sock)
    manager.close()
    # The oldest are gone: as many are kept as the bound says.
    told = [*(f"STATUS={number}" for number in range(1, MOST_OWED)), "STATUS=now"]
    assert [line for line in got if line != "WATCHDOG=1"] == told
    assert "WATCHDOG=1" in got


def test_a_manager_that_is_gone_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager(str(tmp_path / "nobody"), 1)
    manager.ready("")
    manager.status("a")
    manager.tick(monotonic() + 10)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{tmp_path}/nobody" in record.message


def test_the_environment_names_the_manager_and_is_not_passed_on() -> None:
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    manager = ServiceManager.of(environ)
    manager.close()
    assert (manager.address, manager.watchdog_seconds) == ("/run/notify", 20)
    assert environ == {"A": "b"}


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}],
)
def test_a_watchdog_that_is_off_or_for_another_process_is_none(watchdog: dict[str, str]) -> None:
    assert ServiceManager.of(watchdog).watchdog_seconds is None


def test_an_address_of_another_kind_is_told(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager("vsock:2:1234", 1)
    manager.ready("")
    manager.tick(monotonic() + 10)
    assert "vsock:2:1234" in caplog.text


def test_without_a_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager.of({})
    manager.ready("")
    manager.tick(monotonic())
    assert caplog.text == ""
