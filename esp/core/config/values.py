"""The values of a config that has passed every check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from esp.core.config.across import AcrossShards, Compaction
from esp.core.config.control import Control
from esp.core.config.listen import Listen
from esp.core.config.log import LogConfig
from esp.core.config.shards import ShardConfig
from esp.core.former import Former
from esp.core.keys import KeyRange
from esp.core.kubernetes import COMPACT_KEY, assumed_roots
from esp.core.namespace import Namespace
from esp.core.shard_map import ShardMap
from esp.core.wire.limits import Limits

if TYPE_CHECKING:
    from esp.core.config.hot import HotConfig
    from esp.core.config.listen_tls import ListenTls
    from esp.core.config.traces import TracesConfig


@dataclass(frozen=True, slots=True)
class Config:
    """A config that has passed every check. `shards` and `shard_map.names` are in the order of the file.

    If the shards hold the map and the file has no ranges, `shard_map` has epoch 0 and means nothing, until the map of
    the shards is in its place (`shared_map.served`). Then `guards` are those of the shards, by name, `anchor` is the
    shard that decides on changes, `former` has the ranges that have moved, and `spare` are shards of the file that the
    map does not name.
    All keys are those of the shards, with the prefix of the namespace.
    """

    path: Path | None
    listen: tuple[Listen, ...]
    advertise: tuple[str, ...]
    cors: tuple[str, ...]
    host_whitelist: tuple[str, ...]
    shards: tuple[ShardConfig, ...]
    shard_map: ShardMap
    across_shards: AcrossShards
    compaction: Compaction
    deletes_across_shards: Literal["serve", "refuse"]
    defragment: Literal["refuse", "sequential"]
    kubernetes: tuple[bytes, ...]  # the prefixes of kube-apiservers' keys that the file names
    leases: Literal["tolerant", "strict"]
    range_reads: Literal["default", "snapshot"]
    txn_reads: Literal["snapshot", "each"]
    drain_seconds: float
    limits: Limits
    map: Literal["file", "shards"] = "file"
    guards: Mapping[str, str] | None = None
    anchor: str = ""
    former: Former = field(default_factory=Former)
    spare: tuple[ShardConfig, ...] = ()
    whole: tuple[KeyRange, ...] = ()  # no boundary divides these
    namespace: Namespace | None = None
    tls: ListenTls | None = None
    control: Control = "auto"
    watch_config: bool = False
    log: LogConfig = field(default_factory=LogConfig)
    traces: TracesConfig | None = None
    workers: int = 1
    metrics_for_clients: bool = True
    metrics_listen: tuple[Listen, ...] = ()
    ui: bool = True
    hot_prefixes: HotConfig | None = None

    @property
    def all_listen(self) -> tuple[Listen, ...]:
        """The addresses for clients, and those for pages only."""
        return self.listen + self.metrics_listen

    @property
    def map_sign(self) -> str:
        """A text that is the same for two configs whose proxies may serve one after the other without a reload."""
        return self.shard_map.fingerprint if self.map == "file" else "in the shards"

    @property
    def apiserver_roots(self) -> tuple[bytes, ...]:
        """The directories in which the keys of a kube-apiserver are expected."""
        return assumed_roots(self.kubernetes, self.namespace.prefix if self.namespace else b"")

    @property
    def compact_key(self) -> bytes:
        """The key by which kube-apiservers agree which of them compacts."""
        return self.namespace.key(COMPACT_KEY) if self.namespace else COMPACT_KEY

    def shard(self, name: str) -> ShardConfig:
        """The shard of this name; the map must have the name."""
        return next(shard for shard in self.shards if shard.name == name)
