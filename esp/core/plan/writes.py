"""The keys that were written, as a sample of bounded size: each write is in it with the same chance."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Final

MOST_WRITES: Final = 65_536
"""A share that is told from a sample of so many is off by 0.4 % of all writes at most, 19 times of 20."""
LONGEST_KEY: Final = 512
"""Longer keys count by their first bytes."""


class Writes:
    """A sample of writes.

    Attributes:
        seen: the number of all writes.
    """

    def __init__(self, most: int = MOST_WRITES) -> None:
        self.seen = 0
        self._most = most
        self._kept: list[bytes] = []
        self._random = Random(most)  # noqa: S311 - the same writes give the same sample

    def add(self, key: bytes) -> None:
        """A write of a key."""
        key = key[:LONGEST_KEY]
        self.seen += 1
        if len(self._kept) < self._most:
            self._kept.append(key)
            return
        place = self._random.randrange(self.seen)
        if place < self._most:
            self._kept[place] = key

    @property
    def kept(self) -> int:
        """The number of writes in the sample."""
        return len(self._kept)

    def by_key(self) -> list[tuple[bytes, int]]:
        """The keys of the sample in their order, each with the number of its writes."""
        return sorted(Counter(self._kept).items())
