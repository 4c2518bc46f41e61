"""How much lies before a key: a line of points in key order, of bounded number."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from esp.core.keys import KeyRange
from esp.core.plan.weights import NOTHING, Weights

STEPS: Final = 1024
"""Points are at most this part of all keys, bytes or writes apart, but where a single key is more."""
_MOST: Final = 8 * STEPS
LONGEST: Final = 1024
"""Bytes of a key that are kept."""


class Steps:
    """Points of a line that is still drawn.

    A point is taken when a measure has grown by a step since the last one. When there are `_MOST`, steps become as long
    as `STEPS` of all that has come so far, and points that are closer are dropped: at most 3 * STEPS + 1 stay. All that
    came so far is at most all there will be, so no step is ever longer than that part of the whole.
    """

    def __init__(self) -> None:
        self.points: list[tuple[bytes, Weights]] = []
        self._keys = self._bytes = self._writes = 1
        self._last = NOTHING

    def passed(self, key: bytes, before: Weights) -> None:
        """`before` lies before the key; keys come in order."""
        last = self._last
        if (
            before[0] - last[0] < self._keys
            and before[1] - last[1] < self._bytes
            and before[2] - last[2] < self._writes
        ):
            return
        self.points.append((key[:LONGEST], before))
        self._last = before
        if len(self.points) >= _MOST:
            self._keys, self._bytes, self._writes = (max(1, one // STEPS) for one in before)
            points, self.points, self._last = self.points, [], NOTHING
            for point in points:
                self.passed(*point)


class Curve:
    """How much lies before each key.

    It is exact at the keys that it was made of. Elsewhere it says what the next of them says, which is at most a step
    too much.
    """

    def __init__(self, points: Iterable[tuple[bytes, Weights]], total: Weights) -> None:
        """`points` in any order; several of one key must say the same."""
        found = sorted(set(points))
        self._keys = [key for key, _ in found]
        self._weights = [weights for _, weights in found]
        self.total = total

    def before(self, key: bytes | None) -> Weights:
        """What lies before the key; with None all."""
        if key is None:
            return self.total
        place = bisect_left(self._keys, key)
        return self._weights[place] if place < len(self._keys) else self.total

    def within(self, key_range: KeyRange) -> Weights:
        """What lies in a range."""
        return self.before(key_range.end).less(self.before(key_range.start))
