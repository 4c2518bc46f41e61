"""What services route by: the shard map, its shards, the tokens for positions in them, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

from esp.core.apiservers import ApiServers
from esp.core.identity import Identity
from esp.core.keys import KeyRange
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.tokens import Tokens
from esp.core.undivided import Undivided


class Routing:
    """A shard map and its shards; `shards[i]` is the one the map calls `i`, and so in the vectors of `tokens`.

    `undivided` is where nothing may span shards, by default nowhere; `apiservers` finds out where kube-apiservers are.
    """

    __slots__ = ("apiservers", "identity", "map", "shards", "tokens", "undivided")

    def __init__(
        self,
        shard_map: ShardMap,
        shards: Sequence[Shard],
        tokens: Tokens,
        undivided: Undivided | None = None,
        apiservers: ApiServers | None = None,
    ) -> None:
        self.map = shard_map
        self.tokens = tokens
        self.shards = tuple(shards)
        self.undivided = undivided or Undivided(shard_map)
        self.apiservers = apiservers or ApiServers(shard_map, self.shards, self.undivided, (), protects=False)
        self.identity = Identity.of(shard_map.names)

    def owner(self, key: bytes) -> Shard:
        """The shard that owns `key`."""
        return self.shards[self.map.owner(key)]

    def sole_owner(self, key: bytes, range_end: bytes) -> Shard | None:
        """The one shard that owns everything in a range, as etcd writes it; None when it spans shards."""
        index = self.map.sole_owner(KeyRange.of_request(key, range_end))
        return None if index is None else self.shards[index]
