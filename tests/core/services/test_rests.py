"""Rests of a shard: how long costly calls have to stay away, by a clock of the test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from esp.core.background import Background
from esp.core.services.rests import LONGEST_CALL, SHORTEST_REST, Rests

POOL = "a"


class World(Background):
    """The clock, and the timers that are due."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.over: list[str] = []
        self.rests: Rests[str] = Rests(self, self.over.append, lambda: self.now)

    def later(self, seconds: float, callback: Callable[[], object], on_bug: Callable[[], object] | None = None) -> Any:
        self.due.append((self.now + seconds, partial(self.guard, "the look", callback, on_bug)))

    def rest(self) -> float:
        """Seconds until the rest is over."""
        began = self.now
        while self.due:
            self.now, callback = self.due.pop(0)
            callback()
        return round(self.now - began, 6)


def test_a_rest_is_as_long_as_the_pool_was_full() -> None:
    world = World()
    world.rests.worked(POOL, 0.01, 0.25)
    assert POOL in world.rests
    assert (world.rest(), world.over, POOL in world.rests) == (0.0025, [POOL], False)
    world.rests.worked(POOL, 0.01, 1.0)
    assert (world.rest(), world.over) == (0.01, [POOL, POOL])


def test_calls_that_end_during_a_rest_make_it_longer() -> None:
    world = World()
    world.rests.worked(POOL, 0.01, 1.0)
    world.now += 0.004
    world.rests.worked(POOL, 0.01, 0.5)
    assert (world.rest(), world.over) == (0.011, [POOL])


def test_a_long_call_makes_no_longer_a_rest_than_a_shorter_one() -> None:
    world = World()
    world.rests.worked(POOL, 3.0, 1.0)
    assert world.rest() == LONGEST_CALL


def test_short_calls_add_up_before_there_is_a_rest() -> None:
    world = World()
    for _ in range(3):
        world.rests.worked(POOL, SHORTEST_REST / 4, 1.0)
        assert POOL not in world.rests
    world.rests.worked(POOL, SHORTEST_REST / 3, 1.0)
    assert POOL in world.rests
    assert world.rest() >= SHORTEST_REST


def test_time_without_calls_is_a_rest_too() -> None:
    world = World()
    for _ in range(20):
        world.rests.worked(POOL, SHORTEST_REST * 0.9, 1.0)
        world.now += SHORTEST_REST
    assert (POOL in world.rests, world.due) == (False, [])


def test_a_pool_that_is_gone_is_forgotten() -> None:
    world = World()
    world.rests.worked(POOL, SHORTEST_REST / 2, 1.0)
    world.rests.forget(POOL)
    world.rests.worked(POOL, SHORTEST_REST * 0.6, 1.0)
    assert POOL not in world.rests


def test_a_bug_at_the_end_of_a_rest_ends_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.rests.worked(POOL, 0.01, 1.0)

    def fails(_: object, pool: str) -> float:
        raise AssertionError(pool)

    with monkeypatch.context() as patch:
        patch.setattr(Rests, "_owes", fails)
        world.rest()
    assert (world.failures.total(), world.over, POOL in world.rests) == (1, [POOL], False)
    world.rests.worked(POOL, 0.01, 1.0)
    assert (world.rest(), world.over) == (0.01, [POOL, POOL])
