"""Workers whose loop stands still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from esp.core.workers import Balance, Supervisor, Watchdog, watchdog


class World:
    """Three workers, of which the first two serve."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10**12
        monkeypatch.setattr(watchdog, "monotonic_ns", lambda: self.now)
        self.balance = Balance(3)
        self.killed: list[tuple[int, float]] = []
        self.dog = Watchdog(self.balance, cast("Supervisor", self), lambda: 20.0)

    def channels(self) -> dict[int, object]:
        return {0: None, 1: None}

    def kill_stuck(self, number: int, seconds: float) -> None:
        self.killed.append((number, seconds))

    def passes(self, seconds: float, *alive: int) -> None:
        """So much time in looks of half a second, in which only some workers tick."""
        for _ in range(int(seconds * 2)):
            self.now += 500_000_000
            for number in alive:
                self.balance.ticks[number] = self.now // 1_000_000
            self.dog.look()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    made.passes(0.5, 0, 1, 2)
    yield made
    made.balance.close()


def test_a_worker_that_does_not_tick_for_the_limit_is_killed_and_no_other(world: World) -> None:
    world.passes(20.0, 0)
    assert world.killed == [], "the last worker does not serve, or not any more"
    world.passes(0.5, 0)
    assert world.killed == [(1, 20.0)]


def test_one_that_drains_is_left_alone(world: World) -> None:
    world.balance.ticks[1] = 0
    world.passes(60.0, 0)
    assert world.killed == []


def test_after_the_machine_stood_still_the_workers_get_time(world: World) -> None:
    world.now += 3600 * 10**9
    world.dog.look()
    assert world.killed == []
    world.passes(1.0, 0, 1)
    assert world.killed == []
