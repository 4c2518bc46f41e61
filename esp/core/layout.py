"""A layout: the shard map that is in force, and the clients of its shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from esp.core.former import Came, Former
from esp.core.identity import Identity
from esp.core.keys import KeyRange
from esp.core.shard import Shard
from esp.core.shard_map import Segment, ShardMap
from esp.core.tokens import Vector
from esp.core.undivided import Undivided


@dataclass(frozen=True, slots=True)
class Layout:
    """A shard map and its shards: never changed, only replaced by the layout of another epoch.

    A shard is known by its name, in the map and everywhere else. Tables that outlive a layout are keyed by these names.

    Attributes:
        map: the owner of every key.
        shards: the shards by name, in the order of the map's names.
        identity: the ids under which esp answers for these shards together.
        undivided: the ranges of this map in which requests over several shards are refused.
        former: the ranges that have moved since the start.
    """

    map: ShardMap
    shards: Mapping[str, Shard]
    identity: Identity
    undivided: Undivided
    former: Former = field(default_factory=Former)

    @classmethod
    def of(cls, shard_map: ShardMap, shards: Iterable[Shard], undivided: Undivided | None = None) -> Layout:
        """The layout of a map and of the shards that the map names; by default no range is undivided."""
        by_name = {shard.name: shard for shard in shards}
        return cls(
            shard_map,
            MappingProxyType({name: by_name[name] for name in shard_map.names}),
            Identity.of(shard_map.names),
            undivided or Undivided(shard_map),
        )

    def behind(self, before: Layout, came: Iterable[Came] | Former) -> Layout:
        """This layout as it is when it follows another, from which these ranges come; or by a map that tells all."""
        return replace(self, former=came if isinstance(came, Former) else before.former.after(came))

    @property
    def is_guarded(self) -> bool:
        """Whether the shards hold the map, and compare it with each call."""
        return any(shard.guard is not None for shard in self.shards.values())

    @property
    def epoch(self) -> int:
        """The number of the map; a later map has a higher number."""
        return self.map.epoch

    def owner(self, key: bytes) -> Shard:
        """The shard that owns `key`."""
        return self.shards[self.map.owner(key)]

    def sole_owner(self, key: bytes, range_end: bytes) -> Shard | None:
        """The one shard that owns a whole range, bounds as etcd writes them; None for a range that spans shards."""
        name = self.map.sole_owner(KeyRange.of_request(key, range_end))
        return None if name is None else self.shards[name]

    def segments(self, key_range: KeyRange) -> list[Segment]:
        """The parts of a range and their shards; an empty range is one part, of the shard that owns its start."""
        return self.map.split(key_range) or [Segment(self.map.owner(key_range.start), key_range)]

    def divides_alike(self, key_range: KeyRange, other: Layout) -> bool:
        """Whether the same shards own the same parts of a range in both layouts."""
        here = self.segments(key_range)
        return here == other.segments(key_range) and all(
            self.shards[segment.shard] is other.shards[segment.shard] for segment in here
        )

    def vector(self, revisions: Mapping[str, int]) -> Vector:
        """The vector of these revisions, by the shards' names, over all shards.

        If one of the shards is not in this layout, the vector has only the shards of `revisions`.
        """
        if revisions.keys() <= self.shards.keys():
            names = self.map.names
            return Vector(names, tuple([revisions.get(name, 0) for name in names]))
        return Vector(tuple(revisions), tuple(revisions.values()))
