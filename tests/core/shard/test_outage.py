"""What the log says of a shard that is lost, dead and back; without a clock, a loop or a socket."""

from __future__ import annotations

import logging

import pytest

from esp.core.shard.outage import AT_ONCE, TOLD_SECONDS, Outages, span

A, B = "http://10.0.0.1:2379", "http://10.0.0.2:2379"
REFUSED = f"{A}: connection refused"


class Told:
    """A shard that has been connected to A since time 0, and the lines about it, without those before."""

    def __init__(self, *, connected: bool = True) -> None:
        self.lines: list[str] = []
        self.levels: list[int] = []
        self.why = REFUSED
        self.failed = 0
        self.outages = Outages(self._tell, lambda: self.why, lambda: self.failed)
        self.outages.begin(0)
        if connected:
            self.outages.connected(A, 0)
            self.takes()

    def _tell(self, level: int, text: str) -> None:
        self.levels.append(level)
        self.lines.append(text)

    def takes(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines

    def ticks(self, since: float, until: float) -> list[str]:
        """The lines of that time."""
        now = since
        while now < until:
            now += 0.5
            self.outages.tick(now)
        return self.takes()


def test_the_first_connection_is_one_line() -> None:
    told = Told(connected=False)
    told.outages.connected(A, 0.2)
    assert told.takes() == [f"connected to {A}"]
    assert told.levels == [logging.INFO]
    assert (told.outages.count, told.outages.losses) == (0, 0)


def test_a_fail_over_is_one_line_and_no_outage() -> None:
    told = Told()
    told.outages.lost("frozen", 100)
    told.outages.connected(B, 100.035)
    assert told.takes() == [f"left {A}: frozen; connected to {B} after 35 ms"]
    assert (told.outages.count, told.outages.losses) == (0, 1)
    told.outages.lost("connection lost", 200)
    told.outages.connected(B, 200.001)
    assert told.takes() == [f"left {B}: connection lost; connected again after 1 ms"]


def test_a_dead_shard_is_told_at_once_then_each_minute_then_when_it_is_back() -> None:
    told = Told()
    told.failed = 1000
    told.outages.lost("connection lost", 100)
    told.outages.all_failed(100.01)
    assert told.takes() == [f"no endpoint can be used since {A} was left (connection lost): {REFUSED}"]
    assert told.levels[-1] == logging.WARNING
    assert told.outages.since == 100
    told.failed += 1
    assert told.ticks(100.01, 160) == []
    told.why = f"{A}: no answer within 1 s"
    assert told.ticks(160, 161) == [f"no endpoint can be used for 1 min: {told.why}; 1 call failed in the last minute"]
    told.failed += 12_345
    told.outages.all_failed(190)
    assert told.ticks(161, 220) == []
    assert told.ticks(220, 221) == [
        f"no endpoint can be used for 2 min: {told.why}; 12,345 calls failed in the last minute"
    ]
    told.failed += 4
    told.outages.connected(A, 233)
    assert told.takes() == [f"back after 2 min 13 s: connected to {A}; 12,350 calls failed"]
    assert told.levels[-1] == logging.INFO
    assert told.outages.since is None
    assert told.ticks(233, 1000) == []
    assert (told.outages.count, told.outages.losses) == (1, 1)


def test_a_shard_that_is_dead_from_the_start() -> None:
    told = Told(connected=False)
    told.outages.all_failed(0.01)
    assert told.takes() == [f"no endpoint can be used: {REFUSED}"]
    told.outages.connected(A, 5)
    assert told.takes() == [f"back after 5 s: connected to {A}"]


def test_a_loss_is_told_soon_even_if_the_other_endpoints_are_slow_to_fail() -> None:
    told = Told()
    told.outages.lost("cut off", 100)
    assert told.ticks(100, 100.5) == []
    assert told.ticks(100.5, 101) == [f"no endpoint can be used since {A} was left (cut off): {REFUSED}"]
    told.outages.all_failed(103)
    assert told.takes() == []
    assert told.outages.count == 1


def test_a_silent_server_was_away_since_its_last_word() -> None:
    told = Told()
    told.outages.lost("frozen", 100, since=96)
    assert told.ticks(100, 100.5) == [], "another endpoint may take over"
    told.outages.all_failed(100.6)
    told.takes()
    told.outages.connected(A, 105)
    assert told.takes() == [f"back after 9 s: connected to {A}"]
    told.outages.lost("frozen", 200, since=196)
    told.outages.connected(B, 200.1)
    assert told.takes() == [f"left {A}: frozen; connected to {B} after 4.1 s"]


def test_a_slow_start_without_a_reason_is_no_outage() -> None:
    told = Told(connected=False)
    told.why = ""
    assert told.ticks(0, 30) == []
    assert told.outages.count == 0


@pytest.fixture
def flapping() -> tuple[Told, list[str]]:
    """A shard that dies each second for an hour, and the lines of that."""
    told = Told()
    lines = []
    for second in range(100, 3700):
        told.outages.lost("connection lost", second)
        told.outages.all_failed(second + 0.1)
        told.failed += 1
        told.outages.connected(A, second + 0.5)
        told.outages.tick(second + 0.5)
        lines += told.takes()
    return told, lines


def test_a_shard_that_comes_and_goes_fills_no_log(flapping: tuple[Told, list[str]]) -> None:
    told, lines = flapping
    assert len(lines) <= (AT_ONCE + 1) * 61
    assert told.outages.count == told.outages.losses == 3600
    sums = [line for line in lines if line.startswith("lost ")]
    assert 58 <= len(sums) <= 60
    losses = sum(int(line.split()[1]) for line in sums)
    assert 3600 - TOLD_SECONDS - 5 <= losses <= 3600, "none is left out"
    assert sums[-1].endswith(f"; now connected to {A}")


def test_a_shard_that_stays_dead_after_it_came_and_went_is_told_within_a_minute(
    flapping: tuple[Told, list[str]],
) -> None:
    told, _ = flapping
    told.outages.lost("connection lost", 3700)
    told.outages.all_failed(3700)
    told.takes()
    lines = told.ticks(3700, 3700 + TOLD_SECONDS)
    assert len(lines) == 1
    assert "no endpoint can be used for " in lines[0]
    assert REFUSED in lines[0]


def test_other_losses_count_as_lines() -> None:
    told = Told()
    for _ in range(100):
        told.outages.note("left the connection for streams: frozen", 10)
    assert len(told.takes()) <= AT_ONCE


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0 ms"),
        (0.35, "350 ms"),
        (1, "1 s"),
        (4.26, "4.3 s"),
        (59.9, "59.9 s"),
        (60, "1 min"),
        (133.2, "2 min 13 s"),
        (3599.7, "1 h"),
        (7980, "2 h 13 min"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert span(seconds) == text
