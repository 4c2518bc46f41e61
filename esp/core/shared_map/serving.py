"""A config with the map that the shards hold, as a proxy serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from esp.core.config import Config, ShardConfig
from esp.core.shard_map import ShardMap
from esp.core.shared_map.value import SharedMap


def served(config: Config, shared: SharedMap) -> Config:
    """The config with this map in place of any before.

    A shard of the map that the config does not name has no endpoints. Shards that only the config names are spare.
    """
    return _with(config, shared.map, shared.guards)


def served_as(config: Config, before: Config) -> Config:
    """A config that was read anew, with the map of the one in force, if the shards hold that."""
    if before.guards is None or config.map == "file":
        return config
    return _with(config, before.shard_map, before.guards)


def _with(config: Config, shard_map: ShardMap, guards: Mapping[str, str]) -> Config:
    known = {shard.name: shard for shard in (*config.shards, *config.spare) if shard.endpoints}
    shards = tuple(
        replace(known.get(name) or ShardConfig(name, (), ()), ranges=tuple(shard_map.ranges_of(name)))
        for name in shard_map.names
    )
    spare = tuple(replace(shard, ranges=()) for name, shard in known.items() if name not in guards)
    return replace(config, shards=shards, shard_map=shard_map, guards=dict(guards), spare=spare)
