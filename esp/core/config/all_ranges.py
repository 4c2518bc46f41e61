"""The ranges of all shards of a file, and the map that they make: each key belongs to one shard.

In esp's own format a range may lie inside another range; then the narrower range wins. The original Go proxy's format
has no such rule, so an overlap there is a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from esp.core.config.fields import MOST_FAULTS
from esp.core.config.ranges import RangeFields
from esp.core.config.yaml_lines import LineError, Place
from esp.core.keys import KeyRange, format_key, format_range
from esp.core.shard_map import ShardMap, ShardMapError, carve
from esp.core.wording import shard_quoted, shards_called


class WrittenRange(NamedTuple):
    """A range as the file has it, before narrower ranges were cut out, and its line."""

    range: KeyRange
    line: int


class _Source(NamedTuple):
    """A range as the file has it."""

    shard: str
    range: KeyRange
    place: Place


class AllRanges:
    """The ranges of all shards.

    Attributes:
        unread: the shards of which not all ranges are known, because of faults there.
        is_original: whether the file has the original's format, in which no range lies inside another.
    """

    def __init__(self, fields: RangeFields) -> None:
        self._fields: Final = fields
        self._sources: list[_Source] = []
        self.unread: set[str] = set()
        self.is_original = False

    def add(self, shard: str, key_range: KeyRange, place: Place) -> None:
        """Takes the range of a shard at a place of the file."""
        self._sources.append(_Source(shard, key_range, place))

    def written(self, shard: str) -> tuple[WrittenRange, ...]:
        """The ranges of a shard as the file has them."""
        return tuple(
            WrittenRange(source.range, self._fields.lines.of(source.place))
            for source in self._sources
            if source.shard == shard
        )

    def shard_map(self, shards: Mapping[str, Place], *, needs_ranges: bool) -> ShardMap | None:
        """The map; None if there are faults, all of which are noted.

        A key without an owner is a fault only if all ranges are known.

        Args:
            shards: all shards, each with its place in the file.
            needs_ranges: whether each shard needs ranges. If none has any, the map gives all keys to the first shard,
                and means nothing.

        Raises:
            LineError: there are too many faults.
        """
        if not self._sources:
            return None if needs_ranges or self.unread else ShardMap(tuple(shards), 0, [b""], [next(iter(shards))])
        sources, blamed = list(self._sources), set(self.unread)
        for _ in range(MOST_FAULTS):
            if not sources:
                break
            try:
                found, owners = self._built(sources, list(shards))
            except ShardMapError as error:
                if error.fault != "gap" or not self.unread:
                    self._note(error, sources)
                blamed |= {sources[position].shard for position in error.ranges}
                _mend(error, sources)
                continue
            if needs_ranges:
                idle = [name for name in shards if name not in owners | blamed]
                for name in idle:
                    cure = "owns no key, narrower ranges take all of its own; widen it or remove it"
                    self._fields.note_at(shards[name], f"{shard_quoted(name)} {cure}")
                blamed |= set(idle)
            return None if blamed else found
        return None

    def _built(self, sources: list[_Source], names: list[str]) -> tuple[ShardMap, set[str]]:
        """The map, and the shards that own keys in it.

        Raises:
            ShardMapError: there is a fault; it blames positions in `sources`.
        """
        ranges = [(source.shard, source.range) for source in sources]
        if self.is_original:
            return ShardMap.build(ranges, names), {shard for shard, _ in ranges}
        parts = carve(ranges)
        ranges = [(sources[position].shard, part) for position, part in parts]
        try:
            return ShardMap.build(ranges, names), {shard for shard, _ in ranges}
        except ShardMapError as error:
            blamed = tuple(parts[place][0] for place in error.ranges)
            raise ShardMapError(error.fault, blamed, error.missing) from None

    def _note(self, error: ShardMapError, sources: list[_Source]) -> None:
        lines = self._fields.lines
        place = sources[error.ranges[0]].place
        line = lines.of(place)

        def label(position: int) -> str:
            source = sources[position]
            text = f"{format_range(source.range)} of {shard_quoted(source.shard)}"
            there = lines.of(source.place)
            return text if there == line else f"{text} (line {there})"

        self._fields.note(LineError(line, error.explain(label)))

    def check_whole(self, values: list[Any], shard_map: ShardMap | None) -> tuple[KeyRange, ...]:
        """The ranges of `whole`. Notes boundaries inside the ranges of `whole`, and values there that are no ranges.

        Raises:
            LineError: there are too many faults.
        """
        found = []
        for position, value in enumerate(values):
            place: Place = ("whole", position)
            kept = self._fields.tried(None, self._fields.range_or_prefix_at, value, place, '"whole"')
            if kept is not None:
                found.append(kept)
            boundary = None if kept is None or shard_map is None else shard_map.first_boundary(kept)
            if kept is not None and shard_map is not None and boundary is not None:
                owners = dict.fromkeys(part.shard for part in shard_map.split(kept))
                source = self._source_at(boundary)
                self._fields.note_at(
                    place,
                    f'{format_range(kept)} must be whole, but is cut at "{format_key(boundary)}" '
                    f"(line {self._fields.lines.of(source.place)}) between {shards_called(owners, word='the shards')}; "
                    "move that boundary out of it, or give the range itself to one shard",
                )
        return tuple(found)

    def _source_at(self, boundary: bytes) -> _Source:
        """The range of the file that begins at a boundary of the map; else the range that ends there."""
        starting = [source for source in self._sources if source.range.start == boundary]
        return (starting or [source for source in self._sources if source.range.end == boundary])[0]


def _mend(error: ShardMapError, sources: list[_Source]) -> None:
    """Changes the ranges so that this fault is gone, and others can be found."""
    first = sources[error.ranges[0]]
    if error.missing is not None:
        sources.append(_Source(first.shard, error.missing, first.place))
    elif error.fault == "overlap":
        low, high = sorted(error.ranges, key=lambda position: sources[position].range.start)
        sources[low] = sources[low]._replace(range=KeyRange(sources[low].range.start, sources[high].range.start))
    else:
        del sources[error.ranges[0]]
