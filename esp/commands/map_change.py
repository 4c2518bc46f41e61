"""`esp map init` and `esp map apply`: the map on the shards is changed, after a look at all that could go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from esp.commands import map_view as view
from esp.commands.map import CALL_SECONDS, carried_out, loaded, run, told_by
from esp.commands.map_deciding import Confirm, confirming, decided, grant_all, lacking_roles, now, reaching, who
from esp.commands.noted import file_at, hear_clients
from esp.commands.output import USAGE, CommandError, Format
from esp.core.config import Config
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.shared_map import (
    Held,
    MapFormatError,
    Next,
    SharedMap,
    Told,
    first,
    foreign_keys,
    with_shards,
)
from esp.core.wire.status import Status
from esp.core.wording import counted, shard_called

__all__ = ["apply", "confirming", "init"]


def init(config: Path | None, output: Format, confirm: Confirm) -> None:
    """Put the first map on the shards.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: the shards cannot have this map, the operator does not want it, or a step failed.
    """
    run(_init(loaded(config), output, confirm))


def apply(file: Path, output: Format, confirm: Confirm) -> None:
    """Add shards, or leave out shards that own nothing.

    Raises:
        ConfigError: the file is wrong.
        CommandError: the map cannot become so, the operator does not want it, or a step failed.
    """
    hear_clients()
    run(_apply(file_at(file), output, confirm))


async def _init(used: Config, output: Format, confirm: Confirm) -> None:
    if not used.shard_map.epoch:
        raise CommandError(f"{used.path} has no ranges; the first map is made from those of its shards", USAGE)
    try:
        shared = _first(used)
    except MapFormatError as error:
        raise CommandError(f"the map of {used.path} {error}", USAGE) from None
    async with reaching(used) as (shards, held):
        change, told = _begun(held, shared), told_by(held)
        lacking = await lacking_roles(shards)
        if change is None and told is not None:
            _must_be_same(told, shared)
            await grant_all(shards, lacking)
            view.write_done(told.map, [], lacking, output)
            return
        is_new = change is None
        if change is None:
            await _must_be_free(shards, held)
            change = Next(None, shared)
            view.write_plan(change, output)
            if not confirm(f"Put this map on {counted(len(shards), 'shard')}?"):
                raise CommandError("nothing was done")
        await grant_all(shards, lacking)
        if is_new:
            await decided(shards, change)
        view.write_done(change.after, await carried_out(change, shards), lacking, output)


def _begun(held: Mapping[str, Held], wanted: SharedMap) -> Next | None:
    """A first map that somebody has decided on and not carried out; None if there is none.

    Raises:
        CommandError: it is another one than the config says, or another change is half done.
    """
    changes = [found.next for found in held.values() if found.next is not None]
    if not changes:
        return None
    change = changes[0]
    if change.before is not None:
        raise CommandError(f"a later change of the map is half done; {change.cure}")
    if change.after.map.fingerprint != wanted.map.fingerprint or len(changes) > 1:
        raise CommandError(
            f"another first map is half done (fingerprint {change.after.map.fingerprint}, by "
            f"{change.after.changes[0].by}); this config says {wanted.map.fingerprint}"
        )
    return change


def _must_be_same(told: Told, wanted: SharedMap) -> None:
    there = told.map
    if there.map.fingerprint != wanted.map.fingerprint:
        raise CommandError(
            f"the shards hold a map already (epoch {there.epoch}, fingerprint {there.map.fingerprint}), and it is not "
            f"that of the config ({wanted.map.fingerprint}); esp map show shows it"
        )
    if faults := view.faults_of(told):
        raise CommandError(faults)


async def _must_be_free(shards: Mapping[str, Shard], held: Mapping[str, Held]) -> None:
    """Refuses shards that hold keys which would become esp's own.

    Raises:
        CommandError: one does.
    """
    for name, found in held.items():
        if not found.is_empty:
            raise CommandError(f"{shard_called(name)} holds a guard of another map, and cannot get a second one")
    for name, count in (await foreign_keys(shards.values(), CALL_SECONDS)).items():
        if isinstance(count, Status):
            raise CommandError(f"{shard_called(name)} does not tell its keys: {count.message}")
        if count:
            raise CommandError(
                f"{shard_called(name)} has {counted(count, 'key')} beginning with a zero byte; such keys become esp's "
                "own, so rename or delete them first"
            )


async def _apply(used: Config, output: Format, confirm: Confirm) -> None:
    async with reaching(used) as (shards, held):
        told = told_by(held)
        if told is None:
            raise CommandError("the shards hold no map; esp map init puts the first one there")
        if told.change is not None:
            raise CommandError(f"a change of the map is half done; {told.change.cure}")
        if told.unfenced:
            raise CommandError(view.faults_of(told))
        before = told.map
        if used.shard_map.epoch:
            _must_own_the_same(before.map, used.shard_map)
        names = list(shards)
        added = [name for name in names if name not in before.guards]
        dropped = [name for name in before.names if name not in shards]
        if not added and not dropped:
            view.write_done(before, [], {}, output)
            return
        what = "; ".join(
            f"{verb} {', '.join(some)}" for verb, some in (("added", added), ("left out", dropped)) if some
        )
        try:
            after = with_shards(before, names, at=now(), by=who(), what=what)
        except MapFormatError as error:
            raise CommandError(f"the map {error}") from None
        new = {name: shards[name] for name in added}
        await _must_be_free(new, {name: held[name] for name in added})
        lacking = await lacking_roles(new)
        change = Next(before, after)
        view.write_plan(change, output)
        if not confirm("Change the map so?"):
            raise CommandError("nothing was done")
        await grant_all(new, lacking)
        await decided(shards, change)
        view.write_done(after, await carried_out(change, shards), lacking, output)


def _must_own_the_same(there: ShardMap, wanted: ShardMap) -> None:
    """Refuses a file with other ranges.

    Raises:
        CommandError: some key has another owner.
    """
    for start in sorted({*there.starts, *wanted.starts}):
        if there.owner(start) != wanted.owner(start):
            raise CommandError(
                f'the key "{view.key_text(start)}" belongs to {shard_called(there.owner(start))}, and in the file to '
                f"{wanted.owner(start)}; ranges do not move by this command, so write them as they are, or leave them "
                "out with map: shards",
            )


def _first(used: Config) -> SharedMap:
    what = f"the first map, of {counted(len(used.shards), 'shard')}"
    return first(used.shard_map, at=now(), by=who(), what=what)
