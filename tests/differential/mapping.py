"""One etcd's revisions beside those of shards that hold the same keys: which write is which, and which moment.

Every write to the one etcd (`alone`) is a revision there, and is known here with the keys it changed. From that follows
what each shard must count: one more when a key of its own changed. So nothing is guessed from esp's answers; each of
their revisions has exactly one right value.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from esp.core.keys import KeyRange

Vector = tuple[int, ...]


class Layout:
    """Which shard owns which keys: part i is the keys from `starts[i]` on and belongs to shard `owners[i]`."""

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
        """The shards that own keys of the range; of an empty range, the one that owns its start."""
        if keys.is_empty():
            return {self.owner(keys.start)}
        ends = [*self.starts[1:], None]
        parts = zip(self.starts, ends, self.owners, strict=True)
        return {owner for start, end, owner in parts if keys.intersect(KeyRange(start, end)) is not None}

    def sole(self, keys: KeyRange) -> int | None:
        """The shard that owns the whole range, in one piece; None when it is cut."""
        last = keys.end
        if keys.is_empty():
            return self.owner(keys.start)
        first = self.part(keys.start)
        behind = self.starts[first + 1] if first + 1 < len(self.starts) else None
        # Neighbours of one owner do not occur here, so a cut is a change of owner.
        if behind is None or (last is not None and last <= behind):
            return self.owners[first]
        return None


class Moment(NamedTuple):
    """A revision of the one etcd.

    Attributes:
        vector: each shard's revision when it was done.
        written: the revision of a shard for each part of the layout that it changed.
    """

    vector: Vector
    written: dict[int, int]


class Mapping:
    """The moments from a first one on, before which all is compacted (or nothing ever was)."""

    def __init__(self, layout: Layout, first: int, vector: Vector, *, compacted: bool) -> None:
        self.layout = layout
        self.first = first
        self.compacted = first if compacted else 0
        self._moments = [Moment(vector, {})]
        self._columns = [[revision] for revision in vector]

    @property
    def now(self) -> int:
        """The one etcd's revision."""
        return self.first + len(self._moments) - 1

    def vector(self, revision: int | None = None) -> Vector:
        """Each shard's revision, when the one etcd has this one; now."""
        return self._moments[(self.now if revision is None else revision) - self.first].vector

    def wrote(self, keys: Iterable[bytes], *, in_parts: bool) -> None:
        """The next revision changed these keys: all at once in each shard, or one part after the other."""
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
        """The shard's revision of the write to `key` that is this revision of the one etcd; 0 is 0."""
        return self._moments[revision - self.first].written[self.layout.part(key)] if revision else 0

    def width(self, revision: int) -> int:
        """How many revisions of shards this one is."""
        return len(set(self._moments[revision - self.first].written.items()))

    # What a number that a shard is given means to the one etcd.

    def first_at(self, shard: int, number: int) -> int:
        """The first moment at which the shard had got to `number`: the write that made it so."""
        return self._find(shard, number, bisect_left(self._columns[shard], number))

    def last_at(self, shard: int, number: int) -> int:
        """The last moment at which the shard had not got behind `number`."""
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
        """False for what is inside a delete in parts: the one etcd was never there."""
        column = self._columns[shard]
        return not column[0] <= number <= column[-1] or column[bisect_left(column, number)] == number

    def last_like(self, revision: int, shards: Collection[int]) -> int:
        """The last moment at which these shards were as at this one."""
        return min(self.last_at(shard, self.vector(revision)[shard]) for shard in shards)
