"""A config with the map that the shards hold, as a proxy serves it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from esp.core.config import Config, ShardConfig
from esp.core.connected_shards import answering
from esp.core.former import UNKNOWN, Came, Former
from esp.core.shard import is_unsafe, too_old
from esp.core.shard_map import ShardMap
from esp.core.shared_map.access import is_auth_on
from esp.core.shared_map.reading import DisagreeError, Held, Told, moves_of, newest, read
from esp.core.shared_map.value import SharedMap
from esp.core.wire.status import RpcError, Status
from esp.core.wording import shard_called

ANSWER_SECONDS: Final = 2.0
"""Seconds that a shard has to tell its map."""


def served(config: Config, shared: SharedMap, found: Mapping[str, Held | Status] = MappingProxyType({})) -> Config:
    """The config with this map in place of any before; `found` is what the shards hold, as far as it is known.

    A shard of the map that the config does not name has no endpoints. Shards that only the config names are spare.
    """
    return _with(config, shared.map, shared.guards, shared.anchor, former_of(shared, found))


def former_of(shared: SharedMap, found: Mapping[str, Held | Status]) -> Former:
    """The ranges that have moved by this map; those of which their shards do not tell when they came are unknown."""
    came = []
    for one in reversed(moves_of(shared, found)):
        held = found.get(one.target)
        opened = one.opened
        if opened is None and isinstance(held, Held) and held.guard == shared.guards.get(one.target):
            opened = held.guard_revision  # of a later guard, and so higher
        came.append(
            Came(one.range, one.target, UNKNOWN if opened is None else opened, one.cut or 0, one.epoch, one.source)
        )
    return Former().after(came)


def served_as(config: Config, before: Config) -> Config:
    """A config that was read anew, with the map of the one in force, if the shards hold that."""
    if before.guards is None or config.map == "file":
        return config
    return _with(config, before.shard_map, before.guards, before.anchor, before.former)


def _with(config: Config, shard_map: ShardMap, guards: Mapping[str, str], anchor: str, former: Former) -> Config:
    known = {shard.name: shard for shard in (*config.shards, *config.spare) if shard.endpoints}
    shards = tuple(
        replace(known.get(name) or ShardConfig(name, (), ()), ranges=tuple(shard_map.ranges_of(name)))
        for name in shard_map.names
    )
    spare = tuple(replace(shard, ranges=()) for name, shard in known.items() if name not in guards)
    return replace(
        config, shards=shards, shard_map=shard_map, guards=dict(guards), anchor=anchor, former=former, spare=spare
    )


class NoMapError(Exception):
    """The map in the shards cannot be served by; the text is a clause with its cure."""


async def first_map(config: Config) -> Config:
    """The config with the map that its shards hold, for the start.

    Raises:
        NoMapError: the shards tell no map, or different ones.
    """
    async with answering(config) as (shards, troubles):
        found: dict[str, Held | Status] = {**troubles, **await read(shards.values(), ANSWER_SECONDS)}
        for name, shard in shards.items():
            if is_unsafe(shard.version) and isinstance(found[name], Held):
                with suppress(RpcError):
                    if await is_auth_on(shard, ANSWER_SECONDS):
                        raise NoMapError(f"{shard_called(name)} cannot be used: {too_old(shard.version)}")
    told = _told(found)
    if told is not None and told.change is not None and told.change.removes:
        raise NoMapError("the map is being taken from the shards; esp map finish goes on with that")
    if told is not None:
        return served(config, told.map, found)
    silent = [f"{name}: {held.message}" for name, held in found.items() if isinstance(held, Status)]
    if silent:
        raise NoMapError(f"no shard tells a map of the shards ({'; '.join(silent)})")
    faults = [f"{name}: {held.faults[0]}" for name, held in found.items() if isinstance(held, Held) and held.faults]
    if faults:
        raise NoMapError(f"the map in the shards cannot be read ({'; '.join(faults)})")
    raise NoMapError("the shards hold no map; esp map init puts the first one there")


def _told(found: Mapping[str, Held | Status]) -> Told | None:
    try:
        return newest(found)
    except DisagreeError as error:
        raise NoMapError(str(error)) from None
