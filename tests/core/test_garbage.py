"""The garbage collector works in short steps, and old garbage goes in the end."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from esp.core import garbage
from esp.core.garbage import GROWN_OLD, SECONDS, SECONDS_IF_MORE, Garbage


class Cycle:
    """An object that only the collector frees."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def grow_old(objects: int) -> list[list[int]]:
    """So many new objects, which live on."""
    return [[number] for number in range(objects)]


def test_new_objects_are_looked_at_a_few_at_a_time_and_old_ones_never() -> None:
    seen: list[tuple[int, int]] = []

    def collected(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            young, middle = len(gc.get_objects(0)), len(gc.get_objects(1))
            seen.append((info["generation"], young if info["generation"] == 0 else young + middle))

    garbage.in_short_steps()
    gc.callbacks.append(collected)
    try:
        kept = grow_old(100_000)
    finally:
        gc.callbacks.remove(collected)
    assert {generation for generation, _ in seen} == {0, 1}
    assert max(objects for _, objects in seen) < 10_000
    assert len(kept) == 100_000


def test_new_objects_are_looked_at_when_old_ones_go_as_fast_as_they_come() -> None:
    garbage.in_short_steps()
    looks = Garbage(0.0, lambda seconds: None)
    kept = grow_old(10 * garbage.MANY)
    gc.collect(1)
    before = gc.get_stats()[1]["collections"]
    for number in range(len(kept)):
        kept[number] = [number]  # Python counts nothing: an old one goes for each new one
    assert gc.get_stats()[1]["collections"] == before
    assert len(gc.get_objects(0)) > 5 * garbage.MANY
    assert looks.look()
    assert not looks.look(), "they are old now"
    grown = grow_old(garbage.MANY // 2)
    assert not looks.look(), "too few"
    grown += grow_old(garbage.MANY)
    assert looks.look()
    assert kept
    assert grown


def test_old_garbage_goes_when_enough_has_grown_old() -> None:
    garbage.in_short_steps()
    looks = Garbage(0.0, lambda seconds: None)
    old = Cycle()
    gc.collect(1)  # now it is old
    gone = weakref.ref(old)
    del old
    assert not looks.tick(1000.0)
    kept = grow_old((garbage.MIDDLE + 2) * (garbage.YOUNG + 1) * (GROWN_OLD + 2))
    assert gone() is not None
    assert looks.tick(1000.0)
    assert gone() is None
    assert not looks.tick(1000.0), "nothing has grown old since"
    assert kept


def test_it_is_not_done_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "AT_MOST", 10_000_000)
    looks = Garbage(0.0, lambda seconds: None)
    assert looks.collect(1000.0)
    assert not looks.collect(1000.0 + SECONDS - 1)
    assert looks.collect(1000.0 + SECONDS)
    monkeypatch.setattr(garbage, "AT_MOST", 0)
    assert not looks.collect(1000.0 + 2 * SECONDS), "it would take long"
    assert looks.collect(1000.0 + SECONDS + SECONDS_IF_MORE)


def test_the_time_of_the_collector_is_told_while_it_is_wanted() -> None:
    told: list[float] = []
    watched = Garbage(0.0, told.append)
    gc.collect()
    watched.start()
    gc.collect()
    watched.stop()
    gc.collect()
    assert len(told) == 1
    assert told[0] > 0
