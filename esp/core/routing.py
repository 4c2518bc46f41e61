"""The material of handlers: a layout, and the parts that outlive the layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esp.core.apiservers import ApiServers
from esp.core.identity import Identity
from esp.core.layout import Layout
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.tokens import Tokens
from esp.core.undivided import Undivided
from esp.core.wire.server_stream import ServerCall


class Routing:
    """A layout with the tokens and the knowledge of kube-apiservers. A new layout has a new `Routing`.

    Attributes:
        layout: the shard map and its shards.
        tokens: the tokens of this process, of all layouts.
        apiservers: finds out whether kube-apiservers use this proxy.
        outdated: takes over a client's call, with its message, that one of its shards has refused because it came by an
            outdated map; None if no shard does that.
        map, shards, identity, undivided: the layout's own.
    """

    __slots__ = ("apiservers", "identity", "layout", "map", "outdated", "shards", "tokens", "undivided")

    def __init__(
        self,
        layout: Layout,
        tokens: Tokens,
        apiservers: ApiServers | None = None,
        outdated: Callable[[ServerCall, bytes], None] | None = None,
    ) -> None:
        """Without `apiservers` no prefix of a kube-apiserver is expected, and nothing is protected."""
        self.layout = layout
        self.outdated = outdated
        self.tokens = tokens
        self.apiservers = apiservers or ApiServers(layout, (), protects=False)
        self.map: ShardMap = layout.map
        self.shards: Mapping[str, Shard] = layout.shards
        self.identity: Identity = layout.identity
        self.undivided: Undivided = layout.undivided

    def owner(self, key: bytes) -> Shard:
        """The shard that owns `key`."""
        return self.layout.owner(key)

    def sole_owner(self, key: bytes, range_end: bytes) -> Shard | None:
        """The one shard that owns a whole range, bounds as etcd writes them; None for a range that spans shards."""
        return self.layout.sole_owner(key, range_end)
