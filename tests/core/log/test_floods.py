"""A flooded log stays readable: repeated lines are counted."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

from esp.core.log.floods import (
    AT_ONCE,
    AT_ONCE_TOGETHER,
    INTERVAL,
    MAX_ADDRESSES,
    MAX_ALL_ADDRESSES,
    MAX_KINDS,
    MAX_PLACES,
    Floods,
)


class Log:
    """A logger of its own behind a Floods, whose clock stands still until it is moved."""

    def __init__(self, *, has_loop: bool = True) -> None:
        self.time = 100.0
        self.has_loop = has_loop
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.written: list[str] = []
        self.handler = Floods(self._write, self._later, lambda: self.time)
        self.logger = logging.Logger("flooded")
        self.logger.addHandler(self.handler)

    def _write(self, line: str, *, soon: bool = False) -> None:
        assert not soon
        self.written.append(line)

    def _later(self, seconds: float, callback: Callable[[], None]) -> bool:
        if self.has_loop:
            self.timers.append((self.time + seconds, callback))
        return self.has_loop

    def lines(self) -> list[str]:
        """What was written since the last time."""
        told = self.written.copy()
        self.written.clear()
        return told

    def later(self, seconds: float = INTERVAL) -> list[str]:
        """What is written once `seconds` have gone."""
        self.lines()
        self.time += seconds
        while due := [timer for timer in self.timers if timer[0] <= self.time]:
            self.timers.remove(due[0])
            due[0][1]()
        return self.lines()

    def closes(self, peer: str, reason: str = "too_many_pings") -> None:
        self.logger.warning("%s: closing: %s", peer, reason)


def a_word(number: int) -> str:
    """Another one for each number, without a digit."""
    return "".join(chr(97 + number // 26**place % 26) for place in range(4))


def test_the_first_line_is_written_at_once_and_the_others_are_counted() -> None:
    log = Log()
    for port in range(2000, 2038):
        log.closes(f"10.0.0.1:{port}")
    assert log.lines() == ["10.0.0.1:2000: closing: too_many_pings"]
    told = "37 more like this in the last 10 s from 1 address, the last: 10.0.0.1:2037: closing: too_many_pings"
    assert log.later() == [told]
    log.closes("10.0.0.1:2000")
    assert log.lines() == ["10.0.0.1:2000: closing: too_many_pings"], "a new interval begins with a line"
    assert log.later() == [], "there was no more of it"


def test_each_address_has_a_line_until_there_are_too_many() -> None:
    log = Log()
    for host in range(MAX_ADDRESSES + 10):
        log.closes(f"10.0.{host // 250}.{host % 250}:2000")
        log.closes(f"10.0.{host // 250}.{host % 250}:2001")
    assert len(log.lines()) == AT_ONCE
    (told,) = log.later()
    assert told.startswith("2,010 more like this in the last 10 s from 1000+ addresses, the last: 10.0.4.9:2001:")


def test_kinds_are_told_apart_but_for_numbers_and_peers() -> None:
    log = Log()
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


def test_kinds_that_a_peer_invents_are_one_together_and_hide_no_other_line() -> None:
    log = Log()
    for number in range(10_000):
        log.closes("10.0.0.1:2000", a_word(number))
    log.logger.warning("shard %s: lost %s", "a", "127.0.0.1:2379")
    lines = log.lines()
    assert len(lines) == AT_ONCE_TOGETHER + 1
    assert lines[-1] == "shard a: lost 127.0.0.1:2379"
    (told,) = log.later()
    many = 10_000 - MAX_KINDS
    assert told.startswith(f"{many:,} more like this in the last 10 s from 1 address, the last: 10.")
    assert log.handler.summed == many


def test_addresses_are_bounded_over_all_kinds_too() -> None:
    log = Log()
    for reason in range(MAX_ALL_ADDRESSES // MAX_ADDRESSES + 5):
        for host in range(MAX_ADDRESSES):
            log.closes(f"10.0.{host // 250}.{host % 250}:2000", a_word(reason))
    kinds = [kind for lines in log.handler._places.values() for kind in lines.kinds.values()]
    assert sum(len(kind.addresses) for kind in kinds) == MAX_ALL_ADDRESSES
    log.later()
    assert log.handler._addresses == 0, "and are free again"


def test_places_in_the_code_are_bounded_too() -> None:
    log = Log()
    for number in range(MAX_PLACES + 1000):
        log.logger.warning(f"made up {a_word(number)}")  # as no module of esp should
    assert len(log.lines()) == MAX_PLACES + AT_ONCE
    assert len(log.handler._places) == MAX_PLACES + 1
    (told,) = log.later()
    assert told.startswith(f"{1000 - AT_ONCE} other lines in the last 10 s, the last: made up ")
    assert not log.handler._places


def test_a_record_may_name_its_kind() -> None:
    log = Log()
    for number in range(AT_ONCE + 3):
        log.logger.info("slow: %s", a_word(number), extra={"kind": "slow Range"})
    assert len(log.lines()) == AT_ONCE
    assert log.later() == [f"3 more like this in the last 10 s, the last: slow: {a_word(AT_ONCE + 2)}"]


def test_a_line_that_cannot_be_made_is_told_without_its_values() -> None:
    log = Log()
    log.logger.warning("shard %d: lost", "secret")
    log.logger.warning("shard %d", 1)
    log.handler.setFormatter(Failing())
    log.logger.warning("shard %s", "secret")
    first, second, third = log.lines()
    assert first == "a bug in esp: TypeError for the line 'shard %d: lost'"
    assert second == "shard 1"
    assert third == "a bug in esp: ZeroDivisionError for the line 'shard %s'"


def test_what_no_peer_says_has_some_lines_and_is_counted_then() -> None:
    log = Log()
    for _ in range(AT_ONCE + 5):
        log.logger.warning("shard %s: lost %s", "a", "127.0.0.1:2379")
    assert len(log.lines()) == AT_ONCE, "as many as a shard that comes and goes takes to be understood"
    assert log.later() == ["5 more like this in the last 10 s, the last: shard a: lost 127.0.0.1:2379"]


def test_levels_and_tracebacks_stay() -> None:
    log = Log()
    log.handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    for _ in range(3):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.logger.exception("%s: a bug in esp", "10.0.0.1:2000")
    lines = log.lines()
    assert len(lines) == 1
    assert lines[0].startswith("ERROR 10.0.0.1:2000: a bug in esp\n")
    assert lines[0].endswith("\nZeroDivisionError")
    assert log.later()[0].startswith("ERROR 2 more like this")


def test_a_timer_tells_each_place_after_its_own_interval_and_is_gone_then() -> None:
    log = Log()
    for _ in range(3):
        log.closes("10.0.0.1:2000")
    log.later(INTERVAL / 2)
    for _ in range(2):
        log.logger.info("%s: idle", "10.0.0.1:2000")
    assert [line.split(",")[0] for line in log.later(INTERVAL / 2)] == [
        "2 more like this in the last 10 s from 1 address"
    ]
    assert [line.split(",")[0] for line in log.later(INTERVAL / 2)] == [
        "1 more like this in the last 10 s from 1 address"
    ]
    assert not log.timers


def test_a_summary_has_its_numbers_as_fields() -> None:
    log = Log()
    records: list[logging.LogRecord] = []
    log.handler.setFormatter(Keeping(records))
    for _ in range(AT_ONCE + 2):
        log.logger.warning("shard %s: lost %s", "a", "127.0.0.1:2379")
    log.later()
    assert records[-1].__dict__["fields"] == {"shard": "a", "summed": 2, "summed_seconds": 10.0}


class Failing(logging.Formatter):
    """A formatter that fails for lines with arguments."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) if not record.args else str(1 / 0)


def test_of_a_counted_line_no_frame_is_kept() -> None:
    log = Log()
    for _ in range(AT_ONCE + 5):
        frames = fails(log)
    assert frames() is None
    assert "5 more like this" in log.later()[0]


def fails(log: Log) -> weakref.ref[set[int]]:
    """Logs an error; a reference to something that only the error's frame holds."""
    inside = {1}
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        log.logger.exception("a bug")
    return weakref.ref(inside)


class Keeping(logging.Formatter):
    """A formatter that keeps the records."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self.records = records

    def format(self, record: logging.LogRecord) -> str:
        self.records.append(record)
        return super().format(record)


def test_what_is_not_told_yet_is_told_at_the_end() -> None:
    log = Log()
    log.closes("10.0.0.1:2000")
    log.closes("10.0.0.1:2000")
    log.lines()
    log.handler.close()
    assert log.lines()[0].startswith("1 more like this in the last 1 s from 1 address")


def test_without_a_loop_all_is_told() -> None:
    log = Log(has_loop=False)
    for _ in range(300):
        log.closes("10.0.0.1:2000")
    assert len(log.lines()) == 300
