"""The log never keeps esp waiting: a reader that stands still loses lines, and is told how many."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from esp.core.log.output import MAX_WAITING, Output


class Timers:
    """The loop's timers, that run when a test says so."""

    def __init__(self, *, has_loop: bool = True) -> None:
        self.has_loop = has_loop
        self.due: list[Callable[[], None]] = []

    def later(self, seconds: float, callback: Callable[[], None]) -> bool:
        if self.has_loop:
            self.due.append(callback)
        return self.has_loop

    def run(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


def output(descriptor: int, timers: Timers) -> Output:
    return Output(descriptor, timers.later, lambda number: f"{number} lines are missing here")


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """The end to read and the end to write; both block, as those that a shell or systemd gives."""
    if request.param == "pipe":
        read, write = os.pipe()
    else:
        one, other = socket.socketpair()
        read, write = one.detach(), other.detach()
    yield read, write
    for end in (read, write):
        with suppress(OSError):
            os.close(end)


def read_all(descriptor: int, output: Output, timers: Timers) -> list[str]:
    """What comes until nothing waits."""
    os.set_blocking(descriptor, False)
    data = b""
    while True:
        try:
            data += os.read(descriptor, 1 << 20)
        except BlockingIOError:
            if not output.waiting:
                return data.decode().splitlines()
            timers.run()


def test_lines_are_written_at_once(ends: tuple[int, int]) -> None:
    timers = Timers()
    log = output(ends[1], timers)
    log.write("one")
    log.write("zwei: ü")
    assert os.read(ends[0], 1000) == "one\nzwei: ü\n".encode()
    assert not timers.due


def test_a_reader_that_stands_still_keeps_nobody_waiting_and_is_told_what_it_missed(ends: tuple[int, int]) -> None:
    timers = Timers()
    log = output(ends[1], timers)
    many = 3 * MAX_WAITING // 1000
    for number in range(many):
        log.write(f"{number} " + "x" * 990)
        timers.run()
    assert MAX_WAITING - 1000 < log.waiting <= MAX_WAITING
    assert log.lost > 1000
    lines = read_all(ends[0], log, timers)
    kept = many - log.lost
    assert [line.split()[0] for line in lines[:-1]] == [str(number) for number in range(kept)], "the first, whole"
    assert lines[-1] == f"{log.lost} lines are missing here"
    log.write("further")
    assert read_all(ends[0], log, timers) == ["further"]


def test_a_line_longer_than_any_buffer_stays_whole(ends: tuple[int, int]) -> None:
    timers = Timers()
    log = output(ends[1], timers)
    log.write("x" * 900_000)
    log.write("further")
    assert timers.due
    assert read_all(ends[0], log, timers) == ["x" * 900_000, "further"]


def test_a_reader_that_has_gone_is_no_error(ends: tuple[int, int]) -> None:
    timers = Timers()
    log = output(ends[1], timers)
    os.close(ends[0])
    for _ in range(3):
        log.write("for nobody")
    log.close()
    assert (log.lost, log.waiting) == (3, 0)
    assert not timers.due


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_when_there_is_room_again(tmp_path: Path) -> None:
    full, free = os.open("/dev/full", os.O_WRONLY), os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    timers = Timers()
    log = output(full, timers)
    log.write("one")
    log.write("two")
    assert log.lost == 2
    os.dup2(free, full)
    log.write("three")
    os.close(full)
    os.close(free)
    assert (tmp_path / "log").read_text() == "three\n2 lines are missing here\n"


def test_without_a_loop_and_at_the_end_it_waits_for_a_while() -> None:
    read, write = os.pipe()
    log = output(write, Timers(has_loop=False))
    log.write("x" * 60_000)
    data = bytearray()

    def read_on() -> None:
        while part := os.read(read, 65536):
            data.extend(part)

    reader = Thread(target=read_on)
    reader.start()
    log.write("y" * 120_000)
    log.write("the last")
    log.close()
    os.close(write)
    reader.join()
    os.close(read)
    assert data == b"x" * 60_000 + b"\n" + b"y" * 120_000 + b"\nthe last\n"


def test_a_descriptor_that_does_not_block_is_written_later_too(ends: tuple[int, int]) -> None:
    """Another program on the same terminal may have made it so."""
    timers = Timers()
    os.set_blocking(ends[1], False)
    log = output(ends[1], timers)
    for _ in range(600):
        log.write("x" * 999)
    assert log.waiting
    assert len(read_all(ends[0], log, timers)) == 600


def test_lines_that_may_wait_for_the_end_of_the_turn_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    timers = Timers()
    log = output(write, timers)
    writes: list[int] = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: writes.append(len(data)) or real(descriptor, data))
    for _ in range(100):
        log.write("x" * 99, soon=True)
    assert not writes
    assert len(timers.due) == 1
    timers.run()
    assert writes == [4000, 4000, 2000], "no more at once than a pipe surely takes"
    assert not timers.due
    log.write("early", soon=True)
    log.write("a warning")
    assert sum(writes) == 10_000 + len("early\na warning\n"), "in order, and at once"
    timers.run()
    log.write("last", soon=True)
    log.close()
    assert os.read(read, 65536).endswith(b"x\nearly\na warning\nlast\n")
    os.close(read)
    os.close(write)


def test_without_a_loop_nothing_waits_for_the_end_of_a_turn() -> None:
    read, write = os.pipe()
    log = output(write, Timers(has_loop=False))
    log.write("one", soon=True)
    assert os.read(read, 100) == b"one\n"
    os.close(read)
    os.close(write)
