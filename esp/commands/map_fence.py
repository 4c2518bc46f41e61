"""`esp map fence`: shards that were restored from a backup get new guards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from esp.commands import map_view as view
from esp.commands.map import CALL_SECONDS, carried_out, loaded, newest_of, run, told_by
from esp.commands.map_deciding import Confirm, confirming, decided, grant_all, lacking_roles, must_differ, now, who
from esp.commands.output import USAGE, CommandError, Format
from esp.core.config import Config
from esp.core.connected_shards import answering
from esp.core.shared_map import Held, MapFormatError, Next, Told, moves_of, read, with_new_guards, without_history
from esp.core.wire.status import Status
from esp.core.wording import shard_called

__all__ = ["confirming", "fence"]


def fence(names: Sequence[str], config: Path | None, output: Format, confirm: Confirm) -> None:
    """Give new guards to shards that were restored.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: the shards cannot get them, the operator does not want it, or a step failed.
    """
    run(_fence(tuple(dict.fromkeys(names)), loaded(config), output, confirm))


async def _fence(names: Sequence[str], used: Config, output: Format, confirm: Confirm) -> None:
    if unknown := [name for name in names if all(shard.name != name for shard in used.shards)]:
        raise CommandError(f"the config names no {shard_called(unknown[0])}", USAGE)
    async with answering(used) as (shards, troubles):
        found = await read(shards.values(), CALL_SECONDS)
        held: dict[str, Held | Status] = {
            shard.name: found.get(shard.name) or troubles[shard.name] for shard in used.shards
        }
        must_differ(held)
        others = {name: one for name, one in held.items() if name not in names}
        told = told_by(others) or newest_of(held)  # a backup may be of a time that is forgotten
        if foreign := [name for name in names if name not in told.map.guards]:
            raise CommandError(f"the map does not name {shard_called(foreign[0])}", USAGE)
        anchor = told.map.anchor
        for name in told.map.names if anchor in names else (*names, anchor):
            _must_tell(name, held.get(name), names)
        change = _begun(names, told, held)
        granted: dict[str, list[str]] = {}
        if change is None:
            _must_be_ready(names, told)
            named = {name: shards[name] for name in names}
            granted = await lacking_roles(named)
            change = _change(names, told, held)
            view.write_plan(change, output)
            if not confirm("Do it so?"):
                raise CommandError("nothing was done")
            await grant_all(named, granted)
            there = held[anchor]
            assert isinstance(there, Held), "it has told"
            await decided(shards, change, there if anchor in names else None)
        view.write_done(change.after, await carried_out(change, shards, troubles), granted, output)


def _must_tell(name: str, found: Held | Status | None, names: Sequence[str]) -> None:
    if isinstance(found, Held):
        if found.faults and name not in names:
            raise CommandError(f"{shard_called(name)}: {found.faults[0]}")
        return
    why = "the config does not name it" if found is None else found.message
    raise CommandError(f"{shard_called(name)} has to tell what it holds, and does not: {why}")


def _begun(names: Sequence[str], told: Told, held: Mapping[str, Held | Status]) -> Next | None:
    """The same change, which somebody has decided on and not carried out; None if there is none.

    A restored anchor may hold a change of long ago. Then some other shard holds a later map than that.
    """
    there = held[told.map.anchor]
    change = there.next if isinstance(there, Held) else None
    if change is None or set(change.restored) != set(names) or change.before is None:
        return None
    maps = [found.map for name, found in held.items() if isinstance(found, Held) and name not in names]
    return change if all(one is None or one in (change.before, change.after) for one in maps) else None


def _must_be_ready(names: Sequence[str], told: Told) -> None:
    """Refuses a change beside another, and beside other shards that lack their guards.

    Raises:
        CommandError: there is such a thing.
    """
    anchor = told.map.anchor
    if anchor not in names and told.change is not None:
        raise CommandError(f"a change of the map is half done; {told.change.cure}")
    if others := [name for name in told.unfenced if name not in names]:
        why = "so it was restored too, and has to be named as well"
        if anchor in names:
            why += (
                f"; or a change of the map was half done when {shard_called(anchor)}, which decides on changes, was "
                "lost: then keys of it may be on two shards, and esp map history tells which change it was"
            )
        raise CommandError(f"{shard_called(others[0])} has not the guard of the map, {why}")


def _change(names: Sequence[str], told: Told, held: Mapping[str, Held | Status]) -> Next:
    moves = moves_of(told.map, {name: found for name, found in held.items() if name not in names})
    for name in names:
        moves = without_history(moves, name)
    renewed = told.map.names if told.map.anchor in names else names
    what = f"new guards for {', '.join(renewed)}: {', '.join(names)} restored"
    epoch = 1 + max(one.map.epoch for one in held.values() if isinstance(one, Held) and one.map is not None)
    try:
        return Next(
            told.map,
            with_new_guards(told.map, renewed, at=now(), by=who(), what=what, moves=moves, epoch=epoch),
            restored=tuple(names),
        )
    except MapFormatError as error:
        raise CommandError(f"the map {error}") from None
