"""What no boundary may divide: ranges that are listed, watched or locked as one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from esp.core.keys import KeyRange


class Whole:
    """Ranges that stay whole. Those that overlap are one.

    Attributes:
        ranges: they, in key order; no two have a key in common.
    """

    def __init__(self, ranges: Iterable[KeyRange]) -> None:
        self.ranges: list[KeyRange] = []
        for one in sorted(ranges, key=lambda one: one.start):
            last = self.ranges[-1] if self.ranges else None
            if one.is_empty():
                continue
            if last is None or (last.end is not None and last.end <= one.start):
                self.ranges.append(one)
            elif last.end is not None and (one.end is None or one.end > last.end):
                self.ranges[-1] = KeyRange(last.start, one.end)
        self._starts = [one.start for one in self.ranges]

    def divided_by(self, boundary: bytes) -> KeyRange | None:
        """The range that a boundary would divide; None if none."""
        place = bisect_left(self._starts, boundary) - 1
        if place < 0:
            return None
        found = self.ranges[place]
        return found if found.end is None or boundary < found.end else None
