"""How long a call waits for its shards, on a clock that the test moves."""

from __future__ import annotations

import pytest

from esp.core.services import shard_times
from esp.core.services.shard_times import ShardTimes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shard_times, "monotonic", clock)
    return clock


def test_shards_that_are_asked_at_once_are_waited_for_as_long_as_the_slowest(clock: Clock) -> None:
    times = ShardTimes()
    times.begin("a")
    times.begin("b")
    clock.now += 1
    times.end("a")
    clock.now += 2
    told = times.told(())
    assert (told.names, told.waited, told.upstream) == (("a", "b"), (1.0, 3.0), 3.0), "b has not answered"
    times.end("b")
    clock.now += 4  # esp's own work
    told = times.told(())
    assert (told.waited, told.upstream) == ((1.0, 3.0), 3.0)


def test_questions_to_one_shard_add_up_and_the_time_between_them_is_esps(clock: Clock) -> None:
    times = ShardTimes()
    for _ in range(2):
        times.begin("a")
        times.begin("a")
        clock.now += 1
        times.end("a")
        times.end("a")
        clock.now += 5
    times.end("never asked")
    told = times.told(("c",))
    assert (told.names, told.waited, told.upstream) == (("a",), (2.0,), 2.0)


def test_a_call_that_has_asked_nobody_tells_whom_it_waits_for(clock: Clock) -> None:
    told = ShardTimes().told(("a", "b"))
    assert (told.names, told.waited, told.upstream) == (("a", "b"), (), 0.0)
