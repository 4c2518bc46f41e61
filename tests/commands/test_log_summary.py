"""A flooded log stays readable: repeated lines are counted."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable

import pytest

from esp.commands import log_summary
from esp.commands.log_summary import AT_ONCE, INTERVAL, MAX_ADDRESSES, MAX_KINDS, SummingHandler


class Log:
    """A logger of its own behind a SummingHandler, whose clock stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 100.0
        self.handler = SummingHandler(lambda: self.time)
        self.stream = io.StringIO()
        self.handler.setStream(self.stream)
        self.logger = logging.Logger("flooded")
        self.logger.addHandler(self.handler)

    def lines(self) -> list[str]:
        """What was written since the last time."""
        told = self.stream.getvalue().splitlines()
        self.stream.seek(0)
        self.stream.truncate()
        return told

    def later(self, seconds: float = INTERVAL) -> list[str]:
        """What is written once `seconds` have gone."""
        self.lines()
        self.time += seconds
        self.handler.tell(INTERVAL)
        return self.lines()

    def closes(self, peer: str, reason: str = "too_many_pings") -> None:
        self.logger.warning("%s: closing: %s", peer, reason)


Try = Callable[[Log], None]


def in_loop(what: Try) -> None:
    """Runs it with a loop, as `serve` has one."""

    async def run() -> None:
        what(Log())

    asyncio.run(run())


def test_the_first_line_is_written_at_once_and_the_others_are_counted() -> None:
    def flood(log: Log) -> None:
        for port in range(2000, 2038):
            log.closes(f"10.0.0.1:{port}")
        assert log.lines() == ["10.0.0.1:2000: closing: too_many_pings"]
        told = "37 more like this in the last 10 s from 1 address, the last: 10.0.0.1:2037: closing: too_many_pings"
        assert log.later() == [told]
        log.closes("10.0.0.1:2000")
        assert log.lines() == ["10.0.0.1:2000: closing: too_many_pings"], "a new interval begins with a line"
        assert log.later() == [], "there was no more of it"

    in_loop(flood)


def test_each_address_has_a_line_until_there_are_too_many() -> None:
    def flood(log: Log) -> None:
        for host in range(MAX_ADDRESSES + 10):
            log.closes(f"10.0.{host // 250}.{host % 250}:2000")
            log.closes(f"10.0.{host // 250}.{host % 250}:2001")
        assert len(log.lines()) == AT_ONCE
        (told,) = log.later()
        assert told.startswith("2,010 more like this in the last 10 s from 1000+ addresses, the last: 10.0.4.9:2001:")

    in_loop(flood)


def test_kinds_are_told_apart_but_for_numbers_and_peers() -> None:
    def flood(log: Log) -> None:
        for number in range(5):
            log.closes("10.0.0.1:2000", f"{number} bytes wait")
            log.closes("[::1]:2000", f"{number} bytes wait")
            log.closes("10.0.0.1:2000", "idle")
        expected = ["10.0.0.1:2000: closing: 0 bytes wait", "[::1]:2000: closing: 0 bytes wait"]
        assert log.lines() == [*expected, "10.0.0.1:2000: closing: idle"]
        assert [line.split(",")[0] for line in log.later()] == [
            "8 more like this in the last 10 s from 2 addresses",
            "4 more like this in the last 10 s from 1 address",
        ]

    in_loop(flood)


def test_kinds_that_a_peer_invents_are_one_together() -> None:
    def flood(log: Log) -> None:
        for number in range(10_000):
            word = "".join(chr(97 + number // 26**place % 26) for place in range(4))
            log.closes("10.0.0.1:2000", word)
        assert len(log.lines()) == MAX_KINDS + 1
        (told,) = log.later()
        assert told.startswith(f"{10_000 - MAX_KINDS - 1:,} other lines in the last 10 s from 1 address, the last: 10.")

    in_loop(flood)


def test_what_no_peer_says_has_some_lines_and_is_counted_then() -> None:
    def flap(log: Log) -> None:
        for _ in range(AT_ONCE + 5):
            log.logger.warning("shard %s: lost %s", "a", "127.0.0.1:2379")
        assert len(log.lines()) == AT_ONCE, "as many as a shard that comes and goes takes to be understood"
        assert log.later() == ["5 more like this in the last 10 s, the last: shard a: lost 127.0.0.1:2379"]

    in_loop(flap)


def test_levels_and_tracebacks_stay() -> None:
    def fail(log: Log) -> None:
        log.handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        for _ in range(3):
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                log.logger.exception("%s: a bug in esp", "10.0.0.1:2000")
        lines = log.lines()
        assert lines.count("ZeroDivisionError") == 1
        assert lines[0] == "ERROR 10.0.0.1:2000: a bug in esp"
        assert log.later()[0].startswith("ERROR 2 more like this")

    in_loop(fail)


def test_a_timer_tells_and_is_gone_when_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_summary, "INTERVAL", 0.02)
    handler = SummingHandler()
    stream = io.StringIO()
    handler.setStream(stream)
    logger = logging.Logger("flooded")
    logger.addHandler(handler)

    async def flood() -> None:
        for _ in range(3):
            logger.warning("%s: closing", "10.0.0.1:2000")
        for _ in range(1000):
            await asyncio.sleep(0.005)
            if handler._timer is None:
                break

    asyncio.run(flood())
    assert handler._timer is None
    assert len(stream.getvalue().splitlines()) == 2


def test_what_is_not_told_yet_is_told_at_the_end_and_without_a_loop_all_is() -> None:
    log = Log()
    for _ in range(3):
        log.closes("10.0.0.1:2000")
    assert len(log.lines()) == 3

    def flood(log: Log) -> None:
        log.closes("10.0.0.1:2000")
        log.closes("10.0.0.1:2000")
        log.lines()
        log.handler.close()
        assert log.lines()[0].startswith("1 more like this in the last 1 s from 1 address")

    in_loop(flood)
