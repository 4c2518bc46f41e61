"""The part of a range that a page is asked for.

An etcd counts all keys of the range that it is asked for, whatever the limit: a page of a range with a million keys
takes a quarter of a second, and all of them minutes. So a page is asked for in a part of the range only, that a few
pages fill: the keys that share their first bytes with the first key. The number of bytes follows the counts.
"""

from __future__ import annotations

from typing import Final

from esp.core.keys import KeyRange, prefix_end

MUCH: Final = 16
"""A part that holds more pages than this becomes narrower."""


class Stride:
    """The parts of one range, from its start to its end.

    Attributes:
        done: whether nothing is left.
    """

    def __init__(self, key_range: KeyRange) -> None:
        self._end = key_range.end
        self._start = key_range.start
        self._depth = 0  # the bytes that the keys of a part share; 0 for the whole range
        self._to = self._end
        self.done = key_range.is_empty()

    def part(self) -> KeyRange:
        """The next part."""
        self._to = self._end
        if self._depth and len(self._start) >= self._depth:
            end = prefix_end(self._start[: self._depth])
            if end is not None and (self._end is None or end < self._end):
                self._to = end
        return KeyRange(self._start, self._to)

    def read(self, first: bytes, last: bytes, got: int, count: int) -> None:
        """A page of the part: its first and last key, the number of its keys, and of those that the part holds."""
        if count > got:
            self._start = last + b"\0"
            if count > MUCH * got:
                self._depth = max(self._depth, _common(first, last) + 1)
            return
        if self._to == self._end:
            self.done = True
            return
        assert self._to is not None, "only the end of all is None"
        self._start = self._to
        self._depth = min(self._depth, len(self._start))

    def was_short(self) -> None:
        """The page did not pay: the next part is wider."""
        self._depth = max(0, self._depth - 1)


def _common(one: bytes, other: bytes) -> int:
    """The number of bytes that both begin with."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
