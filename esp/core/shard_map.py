"""The shard map: the owner of each key, and the parts of a range that belong to different shards.

A map is one sorted list of boundaries with an owner beside each. Every key is covered exactly once, so the owner is
found by one bisection, which cannot fail. A map never changes: a new layout is a new map with a higher epoch.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from esp.core.keys import OPEN_END, KeyRange, format_range

Fault = Literal["none", "shard", "empty", "boundary", "gap", "same", "overlap"]


class Segment(NamedTuple):
    """A part of a range, and the name of the shard that owns the part."""

    shard: str
    range: KeyRange


class ShardMapError(ValueError):
    """The ranges do not give every key exactly one owner.

    `ranges` holds the positions, in the given list, of the ranges to blame. For an overlap the later range comes first.
    For a gap they are its neighbours in key order; a gap at either end of the key space has one neighbour. `missing` is
    the gap.
    """

    def __init__(self, fault: Fault, ranges: tuple[int, ...] = (), missing: KeyRange | None = None) -> None:
        super().__init__(fault, ranges, missing)
        self.fault = fault
        self.ranges = ranges
        self.missing = missing

    def explain(self, label: Callable[[int], str]) -> str:
        """The fault and the cure in one sentence. `label` makes a name for the range at a position."""
        names = [label(position) for position in self.ranges]
        match self.fault:
            case "none":
                return "no shard has a range; give one shard all keys: {start: '', end: ''}"
            case "shard":
                return f"{names[0]} belongs to a shard that is not there"
            case "empty":
                return f"{names[0]} holds no key: its end must be above its start"
            case "boundary":
                return (
                    f"{names[0]} has the single zero byte as a boundary, which etcd reads as an open end; "
                    "use the empty key, or a longer one"
                )
            case "same":
                return f"{names[0]} is the same as {names[1]}; keep one of them"
            case "overlap":
                return f"{names[0]} overlaps {names[1]}; let them meet at one boundary"
            case "gap":
                missing = format_range(self.missing) if self.missing else "some keys"
                where = "between" if len(names) > 1 else "next to"
                return f"no shard owns {missing}, {where} {' and '.join(names)}; extend a range over it"

    def __str__(self) -> str:
        return self.explain(lambda position: f"range {position}")


@dataclass(frozen=True, slots=True)
class ShardMap:
    """The owner of every key: shards are known by their names. Immutable: nothing may change the two lists.

    `owners[i]` is the name of the shard that owns the keys from `starts[i]` to `starts[i + 1]`. The first start is the
    empty key, the last range has no end, and neighbours never have the same owner. `names` are all shards, in the order
    of the config. `fingerprint` has 12 hexadecimal digits, the same ones for the same shards and owners of all keys,
    whatever the order of the file and the epoch, and others for any other map.
    """

    names: tuple[str, ...]
    epoch: int
    starts: list[bytes]
    owners: list[str]
    _fingerprint: list[str] = field(init=False, compare=False, repr=False, default_factory=list)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits; computed when first asked for, because that loads what `esp route` does without."""
        if not self._fingerprint:
            self._fingerprint.append(_fingerprint(self.names, self.starts, self.owners))
        return self._fingerprint[0]

    @classmethod
    def build(cls, ranges: Sequence[tuple[str, KeyRange]], names: Sequence[str], epoch: int = 1) -> ShardMap:
        """The map in which each range belongs to the shard that it is listed with; the order does not matter.

        Raises:
            ShardMapError: a key would have no owner or two, a range is empty, or a boundary is the single
                zero byte, which no request could name.
        """
        _check_each(ranges, frozenset(names))
        order = sorted(range(len(ranges)), key=lambda position: ranges[position][1].start)
        starts: list[bytes] = []
        owners: list[str] = []
        reached: bytes | None = b""
        for rank, position in enumerate(order):
            shard, here = ranges[position]
            previous = order[rank - 1 : rank] if rank else []
            if reached is None or here.start < reached:
                raise _overlap(ranges, position, previous[0])
            if here.start > reached:
                raise ShardMapError("gap", (*previous, position), KeyRange(reached, here.start))
            if not owners or owners[-1] != shard:
                starts.append(here.start)
                owners.append(shard)
            reached = here.end
        if reached is not None:
            raise ShardMapError("gap", (order[-1],), KeyRange(reached, None))
        return cls(tuple(names), epoch, starts, owners)

    def owner(self, key: bytes) -> str:
        """The shard that owns `key`."""
        return self.owners[bisect_right(self.starts, key) - 1]

    def split(self, key_range: KeyRange) -> list[Segment]:
        """The range cut at the boundaries inside it, in key order; a shard may come more than once.

        The segments together are exactly the range. An empty range has none.
        """
        if key_range.is_empty():
            return []
        starts, end = self.starts, key_range.end
        first = bisect_right(starts, key_range.start) - 1
        last = len(starts) if end is None else bisect_left(starts, end)
        if last - first == 1:
            return [Segment(self.owners[first], key_range)]
        cuts = [key_range.start, *starts[first + 1 : last], end]
        return [
            Segment(self.owners[first + place], KeyRange(low, high))
            for place, (low, high) in enumerate(pairwise(cuts))
            if low is not None
        ]

    def span(self, key: bytes, range_end: bytes) -> tuple[int, int]:
        """The places in `owners` of the owners of a request's range: the first, and the one behind the last.

        An empty range belongs to the owner of its key.
        """
        starts = self.starts
        following = bisect_right(starts, key)
        last = len(starts) if range_end == OPEN_END else bisect_left(starts, range_end, following)
        return following - 1, last

    def sole_owner(self, key_range: KeyRange) -> str | None:
        """The shard that owns the whole range; None when the range spans shards.

        An empty range belongs to the owner of its start: some shard has to answer it.
        """
        starts, end = self.starts, key_range.end
        following = bisect_right(starts, key_range.start)
        if following == len(starts) or (end is not None and end <= starts[following]):
            return self.owners[following - 1]
        return None

    def first_boundary(self, key_range: KeyRange) -> bytes | None:
        """The lowest boundary between shards inside the range; None when one shard owns all of it."""
        if self.sole_owner(key_range) is not None:
            return None
        return self.starts[bisect_right(self.starts, key_range.start)]

    def ranges_of(self, shard: str) -> list[KeyRange]:
        """The ranges that the shard owns, in key order, as few as can be."""
        ends = [*self.starts[1:], None]
        return [
            KeyRange(start, end)
            for start, end, owner in zip(self.starts, ends, self.owners, strict=True)
            if owner == shard
        ]


def _fingerprint(names: Sequence[str], starts: Sequence[bytes], owners: Sequence[str]) -> str:
    """48 bits of a hash over the shards' names and the boundaries with their owners, as 12 hexadecimal digits."""
    parts = [*(name.encode() for name in sorted(names)), b""]
    for start, owner in zip(starts, owners, strict=True):
        parts += start, owner.encode()
    import hashlib

    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part) + part)  # with its length, so that no two lists look the same
    return digest.hexdigest()[:12]


def carve(ranges: Sequence[tuple[str, KeyRange]]) -> list[tuple[int, KeyRange]]:
    """Cuts nested ranges so that each key belongs to the narrowest range around it.

    The result is pairs (position in `ranges`, part), in key order. Parts do not overlap; gaps stay gaps. A range that
    narrower ranges cover entirely has no part.

    Raises:
        ShardMapError: two ranges are the same or overlap without one lying inside the other, or a range is
            empty or has the single zero byte as a boundary.
    """
    _check_each(ranges, None)
    # Sorted by start, and for the same start the wider range first: a range comes after all ranges around it.
    order = sorted(range(len(ranges)), key=lambda position: _height(ranges[position][1].end), reverse=True)
    order.sort(key=lambda position: ranges[position][1].start)
    parts: list[tuple[int, KeyRange]] = []
    around: list[int] = []  # the ranges that `reached` lies in, innermost last
    reached: bytes | None = b""

    def advance(limit: bytes | None) -> None:
        """Assigns the keys up to `limit`, and leaves the ranges that end there or before."""
        nonlocal reached
        while around:
            end = ranges[around[-1]][1].end
            stop = min(end, limit, key=_height)
            if reached is not None and _height(reached) < _height(stop):
                parts.append((around[-1], KeyRange(reached, stop)))
            reached = stop
            if _height(end) > _height(limit):
                return
            around.pop()

    for position in order:
        here = ranges[position][1]
        advance(here.start)
        if around:
            outer = ranges[around[-1]][1]
            if here == outer or _height(here.end) > _height(outer.end):
                raise _overlap(ranges, position, around[-1])
        around.append(position)
        reached = here.start
    advance(None)
    return parts


def _check_each(ranges: Sequence[tuple[str, KeyRange]], names: Set[str] | None) -> None:
    if not ranges:
        raise ShardMapError("none")
    for position, (shard, here) in enumerate(ranges):
        if names is not None and shard not in names:
            raise ShardMapError("shard", (position,))
        if OPEN_END in (here.start, here.end):
            raise ShardMapError("boundary", (position,))
        if here.is_empty():
            raise ShardMapError("empty", (position,))


def _overlap(ranges: Sequence[tuple[str, KeyRange]], one: int, other: int) -> ShardMapError:
    later, earlier = max(one, other), min(one, other)
    same = ranges[one][1] == ranges[other][1]
    return ShardMapError("same" if same else "overlap", (later, earlier))


def _height(end: bytes | None) -> tuple[bool, bytes]:
    """A sort key for ends of ranges: no upper bound comes after every key."""
    return end is None, end or b""
