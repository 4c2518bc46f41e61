"""Undivided ranges: requests that span shards inside such a range are refused, even where esp could serve them.

esp also refuses to read certain keys: clients take the key's revision as that of a range, but the range is in another
shard.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from esp.core import errors
from esp.core.keys import KeyRange, format_key
from esp.core.shard_map import ShardMap
from esp.core.wire.status import Status

log = logging.getLogger("esp")

CONFIGURED: Final = "this proxy is configured to refuse that; keep to one shard at a time"


class Undivided:
    """Refuses a request whose keys in one of these ranges belong to several shards.

    Attributes:
        ranges: the ranges that the map divides, each with the cure for the refusal's text.
        parted: the keys that must not be read, and the refusal for each key.
        owner: the shard that owns a key to be read; raises RpcError for a key of `parted`.
        on_added: called when a range was added; ends the watches in it.
    """

    def __init__(
        self, shard_map: ShardMap, ranges: Iterable[KeyRange] = (), reached: Callable[[str], None] | None = None
    ) -> None:
        """`reached` counts refusals, under the name `across_shards`."""
        self.ranges: dict[KeyRange, str] = {}
        self.parted: dict[bytes, Status] = {}
        self._map = shard_map
        # A cell is the keys from an entry of `_cells` up to the next. For each cell: its owner, and a bit for each of
        # `ranges` around it.
        self._cells: list[bytes] = []
        self._owners = shard_map.owners
        self._within: list[int] = []
        self._cut()
        self._reached = reached
        self._told: set[KeyRange | bytes] = set()
        self.owner = shard_map.owner  # replaced when the first key is parted: until then a read costs no look-up
        self.on_added: Callable[[], None] | None = None
        for key_range in ranges:
            self.add(key_range, CONFIGURED)

    def add(self, key_range: KeyRange, cure: str) -> None:
        """Refuses requests over shards in this range from now on. A range that was added before keeps its cure."""
        if self._map.sole_owner(key_range) is None and key_range not in self.ranges:
            self.ranges[key_range] = cure
            self._cut()
            if self.on_added is not None:
                self.on_added()

    def part(self, key: bytes, shard_names: Sequence[str], boundary: bytes, cure: str) -> None:
        """Refuses to read this key from now on: the objects that clients list by this key are in another shard."""
        if key not in self.parted:
            self.parted[key] = errors.spans(f'a list by the key "{format_key(key)}"', shard_names, boundary, cure)
            self.owner = self._owner_of_readable

    def _owner_of_readable(self, key: bytes) -> str:
        status = self.parted.get(key)
        if status is not None:
            self._count(key, status)
            raise status.error()
        return self._map.owner(key)

    def refuse(self, what: str, *asked: KeyRange) -> Status | None:
        """The refusal of a request for these keys, such as `a Range`; None when it may be served.

        The work grows with the number of keys asked for, not with the number of ranges: a client may ask for thousands
        at once.
        """
        if not self.ranges:
            return None
        cells = self._cells
        count = len(cells)
        reach: dict[int, int] = {}  # by the cell of a start in `asked`: the cell behind the furthest end
        reached = reach.get
        for one in asked:
            start, end = one.start, one.end
            after = bisect_right(cells, start)
            first = after - 1
            if end is None:
                after = count
            elif end <= start:
                continue
            elif after < count and end > cells[after]:
                after = bisect_left(cells, end)
            if after > reached(first, 0):
                reach[first] = after
        place = self._divided(reach)
        return None if place is None else self._refusal(what, place, asked)

    def _divided(self, reach: dict[int, int]) -> int | None:
        """The place of the first range whose cells, as far as in `reach`, belong to several shards; None if none."""
        of_shard = dict.fromkeys(self._map.owners, 0)
        done = 0
        for first in sorted(reach):
            last = reach[first]
            for cell in range(max(first, done), last):
                of_shard[self._owners[cell]] |= self._within[cell]
            done = max(done, last)
        once = several = 0
        for ranges in of_shard.values():
            several |= once & ranges
            once |= ranges
        return (several & -several).bit_length() - 1 if several else None

    def _cut(self) -> None:
        """Cuts the keys into cells. A cell lies in one shard, and for each range either inside or outside."""
        edges = {b""}
        for kept in self.ranges:
            edges.update(segment.range.start for segment in self._map.split(kept))
            if kept.end is not None:
                edges.add(kept.end)
        self._cells = sorted(edges)
        self._owners = [self._map.owner(cell) for cell in self._cells]
        self._within = [0] * len(self._cells)
        for place, kept in enumerate(self.ranges):
            after = len(self._cells) if kept.end is None else bisect_left(self._cells, kept.end)
            for cell in range(bisect_left(self._cells, kept.start), after):
                self._within[cell] |= 1 << place

    def _refusal(self, what: str, place: int, asked: Sequence[KeyRange]) -> Status:
        kept, cure = list(self.ranges.items())[place]
        touched = [part for one in asked if (part := one.intersect(kept)) is not None]
        starts = [part.start for part in touched]
        ends = [part.end for part in touched]
        hull = KeyRange(min(starts), None if None in ends else max(end for end in ends if end is not None))
        names = [segment.shard for segment in self._map.split(hull)]
        status = errors.spans(what, names, self._map.first_boundary(hull) or b"", cure)
        self._count(kept, status)
        return status

    def _count(self, kept: KeyRange | bytes, status: Status) -> None:
        if self._reached is not None:
            self._reached("across_shards")
        if kept not in self._told:
            self._told.add(kept)
            log.warning("refused, and so are others like it from now on without a word here: %s", status.message)
