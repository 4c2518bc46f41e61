"""The shard map, the clients of the shards it names, and the tokens for positions in them: what services route by."""

from __future__ import annotations

from collections.abc import Sequence

from esp.core.identity import Identity
from esp.core.keys import KeyRange
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.tokens import Tokens


class Routing:
    """A shard map and its shards; `shards[i]` is the one the map calls `i`, and so in the vectors of `tokens`."""

    __slots__ = ("identity", "map", "shards", "tokens")

    def __init__(self, shard_map: ShardMap, shards: Sequence[Shard], tokens: Tokens) -> None:
        self.map = shard_map
        self.tokens = tokens
        self.shards = tuple(shards)
        self.identity = Identity.of(shard_map.names)

    def owner(self, key: bytes) -> Shard:
        """The shard that owns `key`."""
        return self.shards[self.map.owner(key)]

    def sole_owner(self, key: bytes, range_end: bytes) -> Shard | None:
        """The one shard that owns everything in a range, as etcd writes it; None when it spans shards."""
        index = self.map.sole_owner(KeyRange.of_request(key, range_end))
        return None if index is None else self.shards[index]
