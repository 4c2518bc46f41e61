"""The sizes of values, of which only some are read: pure arithmetic on the keys of a page.

Values below one prefix are mostly alike, and those of different prefixes are not. So one key of each prefix that begins
in a page is read (of at most NEW), and one of every EVERY keys, at a place that changes. A key that was not read has
the mean size of those that were read below its prefix in the page; else in the pages before; else of all that were
chosen by their places, and not by their prefixes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

EVERY: Final = 50
NEW: Final = 16


class Sizes:
    """The sizes of the values of one range, page after page.

    Attributes:
        read: the number of values that were read.
    """

    def __init__(self, stratum: Callable[[bytes], bytes]) -> None:
        """`stratum` says to which prefix a key belongs."""
        self.read = 0
        self._stratum = stratum
        self._random = Random(0)  # noqa: S311 - the same keys give the same sample
        self._at: bytes | None = None
        self._of_last = _Mean()  # of the prefix that the last page ended with
        self._regular: set[int] = set()
        self._of_all = _Mean()  # of those that were chosen by their places

    def chosen(self, keys: Sequence[bytes]) -> list[int]:
        """The places of the keys of a page whose values are to be read."""
        places = (first + self._random.randrange(EVERY) for first in range(0, len(keys), EVERY))
        self._regular = {place for place in places if place < len(keys)}
        found = set(self._regular)
        new, last = 0, self._at
        for place, key in enumerate(keys):
            stratum = self._stratum(key)
            if stratum != last:
                last = stratum
                new += 1
                if new > NEW:
                    break
                found.add(place)
        return sorted(found)

    def all_of(self, keys: Sequence[bytes], read: Mapping[int, int]) -> list[int]:
        """The size of each value of a page, as far as known; `read` are those of the `chosen` that were there."""
        self.read += len(read)
        strata = [self._stratum(key) for key in keys]
        means: dict[bytes, _Mean] = defaultdict(_Mean)
        for place, size in read.items():
            means[strata[place]].add(size)
            if place in self._regular:
                self._of_all.add(size)
        before = self._of_last
        sizes = []
        for place, stratum in enumerate(strata):
            if place in read:
                sizes.append(read[place])
            elif stratum in means:
                sizes.append(means[stratum].value)
            else:
                sizes.append((before if stratum == self._at and before.number else self._of_all).value)
        if strata:
            last = strata[-1]
            if last != self._at:
                self._at, self._of_last = last, _Mean()
            if last in means:
                self._of_last.join(means[last])
        return sizes


class _Mean:
    """A mean of sizes."""

    __slots__ = ("_total", "number")

    def __init__(self) -> None:
        self.number = self._total = 0

    def add(self, size: int) -> None:
        self.number += 1
        self._total += size

    def join(self, other: _Mean) -> None:
        self.number += other.number
        self._total += other._total

    @property
    def value(self) -> int:
        return self._total // self.number if self.number else 0
