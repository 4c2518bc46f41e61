"""Watchers that have ended because their keys have another owner."""

from __future__ import annotations

from esp.core.services.watch.moved import Moved
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits


def test_each_of_them_is_told_once() -> None:
    moved = Moved(WireContext(Limits()))
    for name in (b"a", b"b", b"a"):
        moved.add(name)
    assert [moved.takes(name) for name in (b"a", b"a", b"a", b"b", b"c")] == [True, True, False, True, False]
    assert len(moved) == 0


def test_of_too_many_the_oldest_is_forgotten() -> None:
    context = WireContext(Limits(max_resume_positions=2))
    moved = Moved(context)
    for name in (b"a", b"b", b"a", b"c"):
        moved.add(name)
    assert context.counters.limits == {"max_resume_positions": 1}
    assert [moved.takes(name) for name in (b"a", b"b", b"c")] == [True, False, True]
