"""`esp map`: the map that the shards hold is shown, and brought to all of them. others change it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from esp.commands import map_view as view
from esp.commands.noted import file_at, hear_clients
from esp.commands.output import CommandError, Format, write_json
from esp.core.config import Config
from esp.core.connected_shards import UnreachableError, answering
from esp.core.shard import Shard
from esp.core.shared_map import (
    ChangeError,
    DisagreeError,
    Held,
    How,
    Next,
    Outcome,
    Told,
    carry_out,
    newest,
    read,
    tell,
)
from esp.core.wire.status import Status
from esp.core.wording import all_cured

CALL_SECONDS: Final = 10.0

T = TypeVar("T")


def show(config: Path | None, output: Format) -> None:
    """Print the map, and how each shard stands to it.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: there is no map, or a shard does not hold it.
    """
    used = loaded(config)
    held = run(_held(used))
    told = newest_of(held)
    if output is Format.JSON:
        write_json(view.json_of(used, told, held))
    else:
        view.write_map(told, held)
    if faults := view.faults_of(told):
        raise CommandError(faults)


def history(config: Path | None, output: Format) -> None:
    """Print the last changes of the map.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: there is no map.
    """
    told = newest_of(run(_held(loaded(config))))
    if output is Format.JSON:
        write_json({"changes": [view.json_change(change) for change in told.map.changes]})
    else:
        view.write_history(told.map)


def finish(config: Path | None, output: Format) -> None:
    """Carry out a change that is half done, and tell the map to shards that have an older one.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: there is no map, a step failed, or a shard is silent.
    """
    run(_finish(loaded(config), output))


async def _held(used: Config) -> dict[str, Held | Status]:
    """What each shard holds; of a silent one, why it does not tell."""
    async with answering(used) as (shards, troubles):
        found = await read(shards.values(), CALL_SECONDS)
    return {shard.name: found.get(shard.name) or troubles[shard.name] for shard in used.shards}


async def _finish(used: Config, output: Format) -> None:
    async with answering(used) as (shards, troubles):
        found: dict[str, Held | Status] = {**troubles, **await read(shards.values(), CALL_SECONDS)}
        changes = [held.next for held in found.values() if isinstance(held, Held) and held.next is not None]
        if len(changes) > 1:
            raise CommandError("two shards have decided on a change: they hold different maps; esp map show tells more")
        outcomes = []
        if changes:
            outcomes = await carried_out(changes[0], shards, troubles)
            if changes[0].removes:
                view.write_done(changes[0].after, outcomes, {}, output, removed=True)
                return
            found = {**troubles, **await read(shards.values(), CALL_SECONDS)}
        told = newest_of({shard.name: found[shard.name] for shard in used.shards})
        for name in told.behind:
            if name in shards and name not in told.unfenced:
                try:
                    outcomes.append(await tell(told.map, shards[name]))
                except ChangeError as error:
                    raise CommandError(str(error)) from None
        view.write_done(told.map, outcomes, {}, output)
        found = {**troubles, **await read(shards.values(), CALL_SECONDS)}
    if faults := view.faults_of(newest_of({shard.name: found[shard.name] for shard in used.shards})):
        raise CommandError(faults)


async def carried_out(
    change: Next, shards: Mapping[str, Shard], troubles: Mapping[str, Status] | None = None
) -> list[Outcome]:
    """Carries out a change, and tells of shards that were not reached.

    Raises:
        CommandError: a step failed.
    """
    outcomes: list[Outcome] = []
    try:
        silent = {name: status.message for name, status in (troubles or {}).items()}
        async for outcome in carry_out(change, shards, silent):
            outcomes.append(outcome)
            if outcome.how is How.WAITS:
                view.write_waiting(outcome)
    except ChangeError as error:
        raise CommandError(str(error)) from None
    return outcomes


def told_by(held: Mapping[str, Held | Status]) -> Told | None:
    """The map in force; None if no shard tells one.

    Raises:
        CommandError: shards tell different ones.
    """
    try:
        return newest(held)
    except DisagreeError as error:
        raise CommandError(str(error)) from None


def newest_of(held: Mapping[str, Held | Status]) -> Told:
    """The map in force.

    Raises:
        CommandError: there is none, or shards tell different ones.
    """
    told = told_by(held)
    if told is not None:
        return told
    silent = {name: found.message for name, found in held.items() if isinstance(found, Status)}
    faults = [
        f"{name}: {'; '.join(found.faults)}" for name, found in held.items() if isinstance(found, Held) and found.faults
    ]
    if any(isinstance(found, Held) and found.next is not None for found in held.values()):
        raise CommandError("the first map is half done; esp map init with the same config, or esp map finish, goes on")
    if silent or faults:
        raise CommandError(f"no shard tells a map ({'; '.join([*faults, *([all_cured(silent)] if silent else [])])})")
    raise CommandError("the shards hold no map; esp map init puts the first one there")


def loaded(config: Path | None) -> Config:
    """The config, in which the shards may hold the map.

    Raises:
        ConfigError: there is no config, or the config is wrong.
    """
    hear_clients()
    return file_at(config)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs the work of a command.

    Raises:
        CommandError: the work failed.
    """
    try:
        return asyncio.run(work)
    except UnreachableError as error:
        raise CommandError(str(error)) from None
