"""The mapping between the revisions of a single etcd and those of shards with the same keys.

Every write to the single etcd (`alone`) is a revision there, and the mapping knows the keys that it changed. The
revisions of each shard follow from that: one more for each change of a key of its own. So the mapping guesses nothing
from esp's answers; each revision in them has exactly one right value.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from esp.core.keys import KeyRange
from tests.differential.numbers import Revisions

Vector = tuple[int, ...]


class Layout:
    """The owners of keys: part i is the keys from `starts[i]` on, and belongs to shard `owners[i]`."""

    def __init__(self, boundaries: Sequence[bytes], owners: Sequence[int]) -> None:
        assert len(owners) == len(boundaries) + 1
        self.starts = [b"", *boundaries]
        self.owners = list(owners)
        self.shards = max(owners) + 1

    def part(self, key: bytes) -> int:
        return bisect_right(self.starts, key) - 1

    def owner(self, key: bytes) -> int:
        return self.owners[self.part(key)]

    def shards_of(self, keys: KeyRange) -> set[int]:
        """The shards that own keys of the range; for an empty range, the owner of its start."""
        if keys.is_empty():
            return {self.owner(keys.start)}
        ends = [*self.starts[1:], None]
        parts = zip(self.starts, ends, self.owners, strict=True)
        return {owner for start, end, owner in parts if keys.intersect(KeyRange(start, end)) is not None}

    def sole(self, keys: KeyRange) -> int | None:
        """The shard that owns the whole range, in one piece; None if a boundary divides the range."""
        last = keys.end
        if keys.is_empty():
            return self.owner(keys.start)
        first = self.part(keys.start)
        behind = self.starts[first + 1] if first + 1 < len(self.starts) else None
        # Here neighbouring parts never have the same owner, so a boundary is always a change of owner.
        if behind is None or (last is not None and last <= behind):
            return self.owners[first]
        return None


class Moment(NamedTuple):
    """A revision of the single etcd.

    Attributes:
        vector: the revision of each shard after the write.
        written: for each part of the layout that the write changed, the revision of the part's shard.
    """

    vector: Vector
    written: dict[int, int]


class Mapping:
    """The moments from a first one on. Earlier history is compacted, or there is none."""

    def __init__(self, layout: Layout, first: int, vector: Vector, *, compacted: bool) -> None:
        self.layout = layout
        self.first = first
        self.compacted = first if compacted else 0
        self._moments = [Moment(vector, {})]
        self._columns = [[revision] for revision in vector]

    @property
    def now(self) -> int:
        """The present revision of the single etcd."""
        return self.first + len(self._moments) - 1

    def vector(self, revision: int | None = None) -> Vector:
        """The revision of each shard at this revision of the single etcd; by default now."""
        return self._moments[(self.now if revision is None else revision) - self.first].vector

    def wrote(self, keys: Iterable[bytes], *, in_parts: bool) -> None:
        """Notes that the next revision changes these keys: all at once in each shard, or one part after the other."""
        vector = list(self.vector())
        written: dict[int, int] = {}
        done: set[int] = set()
        for part in sorted({self.layout.part(key) for key in keys}):
            shard = self.layout.owners[part]
            if in_parts or shard not in done:
                vector[shard] += 1
                done.add(shard)
            written[part] = vector[shard]
        assert written
        self._moments.append(Moment(tuple(vector), written))
        for column, revision in zip(self._columns, vector, strict=True):
            column.append(revision)

    def write(self, revision: int, key: bytes) -> int:
        """The shard's revision of the write to `key` that is this revision of the single etcd; 0 for 0."""
        return self._moments[revision - self.first].written[self.layout.part(key)] if revision else 0

    def width(self, revision: int) -> int:
        """The number of revisions, on all shards, that this revision of the single etcd stands for."""
        return len(set(self._moments[revision - self.first].written.items()))

    # The meaning for the single etcd of a number that goes to a shard.

    def first_at(self, shard: int, number: int) -> int:
        """The first moment at which the shard had reached `number`: the write with that revision."""
        return self._find(shard, number, bisect_left(self._columns[shard], number))

    def last_at(self, shard: int, number: int) -> int:
        """The last moment at which the shard was not past `number`."""
        return self._find(shard, number, bisect_right(self._columns[shard], number) - 1)

    def _find(self, shard: int, number: int, place: int) -> int:
        column = self._columns[shard]
        if number <= 0:
            return number
        if number < column[0]:
            return max(self.first - 1, 1)
        if number > column[-1]:
            return min(self.now + number - column[-1], 2**63 - 1)
        return self.first + place

    def is_moment(self, shard: int, number: int) -> bool:
        """Whether the single etcd was ever in this state; False inside a delete that goes in parts."""
        column = self._columns[shard]
        return not column[0] <= number <= column[-1] or column[bisect_left(column, number)] == number

    def last_like(self, revisions: Revisions) -> int | None:
        """The last moment at which these shards, by number, had these revisions; None if there was none.

        If the history of one of them is compacted, a moment whose history is compacted as well.
        """
        moment = min(self.last_at(shard, revision) for shard, revision in revisions.items())
        if moment < self.compacted:
            return moment
        vector = self.vector(moment)
        return moment if all(vector[shard] == revision for shard, revision in revisions.items()) else None
