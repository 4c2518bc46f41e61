"""`esp map init` and `esp map apply`: the map on the shards is changed, after a look at all that could go wrong."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import typer

from esp.commands import map_view as view
from esp.commands.map import CALL_SECONDS, carried_out, loaded, run, told_by
from esp.commands.noted import file_at, hear_clients
from esp.commands.output import USAGE, CommandError, Format
from esp.core.config import Config
from esp.core.connected_shards import connected
from esp.core.pb import rpc_pb2
from esp.core.shard import STATUS, Shard, ask_for_esp, is_unsafe
from esp.core.shard_map import ShardMap
from esp.core.shared_map import (
    ChangeError,
    Held,
    MapFormatError,
    Next,
    SharedMap,
    Told,
    decide,
    first,
    foreign_keys,
    grant,
    is_auth_on,
    read,
    roles_without,
    with_shards,
)
from esp.core.wire.status import RpcError, Status
from esp.core.wording import both_called, counted, shard_called

Confirm = Callable[[str], bool]
"""Whether the operator wants what the question says."""


def confirming(yes: bool) -> Confirm:
    """Asks the operator, unless --yes is given."""

    def confirm(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise CommandError("nothing is done without a yes; to do it without a question, add --yes", USAGE)
        return typer.confirm(question, err=True)

    return confirm


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


class _Reached(NamedTuple):
    """The shards of a config, all of which answer, and what they hold."""

    shards: Mapping[str, Shard]
    held: Mapping[str, Held]


@asynccontextmanager
async def _reaching(used: Config) -> AsyncIterator[_Reached]:
    """All shards and what they hold, for as long as the block runs.

    Raises:
        CommandError: a shard does not answer, or holds what cannot be read; or two are the same cluster.
    """
    async with connected(used) as shards:
        held: dict[str, Held] = {}
        for name, found in (await read(shards.values(), CALL_SECONDS)).items():
            if isinstance(found, Status):
                raise CommandError(f"{shard_called(name)} does not tell what it holds: {found.message}")
            if found.faults:
                raise CommandError(f"{shard_called(name)}: {found.faults[0]}")
            for other, before in held.items():
                if before.cluster_id == found.cluster_id:
                    raise CommandError(f"{both_called(other, name)} are one etcd cluster; name each cluster once")
            held[name] = found
        yield _Reached(shards, held)


async def _init(used: Config, output: Format, confirm: Confirm) -> None:
    if not used.shard_map.epoch:
        raise CommandError(f"{used.path} has no ranges; the first map is made from those of its shards", USAGE)
    try:
        shared = _first(used)
    except MapFormatError as error:
        raise CommandError(f"the map of {used.path} {error}", USAGE) from None
    async with _reaching(used) as (shards, held):
        change, told = _begun(held, shared), told_by(held)
        lacking = await _lacking(shards)
        if change is None and told is not None:
            _must_be_same(told, shared)
            await _grant(shards, lacking)
            view.write_done(told.map, [], lacking, output)
            return
        is_new = change is None
        if change is None:
            await _must_be_free(shards, held)
            change = Next(None, shared)
            view.write_plan(change, output)
            if not confirm(f"Put this map on {counted(len(shards), 'shard')}?"):
                raise CommandError("nothing was done")
        await _grant(shards, lacking)
        if is_new:
            await _decide(shards, change)
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


async def _lacking(shards: Mapping[str, Shard]) -> dict[str, list[str]]:
    """The roles that may not read the guard, of each shard that has some.

    Raises:
        CommandError: a shard does not tell its roles, or is too old for auth.
    """
    found = {}
    for name, shard in shards.items():
        try:
            if roles := await roles_without(shard, CALL_SECONDS):
                found[name] = roles
            if await is_auth_on(shard, CALL_SECONDS):
                status = await ask_for_esp(shard, STATUS, rpc_pb2.StatusRequest(), seconds=CALL_SECONDS)
                if is_unsafe(status.version):
                    raise CommandError(
                        f"{shard_called(name)} has auth on and runs etcd {status.version}, which does not check users "
                        "in transactions as it should; upgrade to 3.4.44, 3.5.30, 3.6.11 or later"
                    )
        except RpcError as error:
            raise CommandError(
                f"{shard_called(name)} does not tell its roles: {error.status.message}; give esp a user with the role "
                "root (auth in the config)"
            ) from None
    return found


async def _grant(shards: Mapping[str, Shard], lacking: Mapping[str, list[str]]) -> None:
    for name, roles in lacking.items():
        for role in roles:
            try:
                await grant(shards[name], role, CALL_SECONDS)
            except RpcError as error:
                text = f"{shard_called(name)} does not grant the role {role} to read the guard: {error.status.message}"
                raise CommandError(f"{text}; run it again") from None


async def _apply(used: Config, output: Format, confirm: Confirm) -> None:
    async with _reaching(used) as (shards, held):
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
            after = with_shards(before, names, at=_now(), by=_who(), what=what)
        except MapFormatError as error:
            raise CommandError(f"the map {error}") from None
        new = {name: shards[name] for name in added}
        await _must_be_free(new, {name: held[name] for name in added})
        lacking = await _lacking(new)
        change = Next(before, after)
        view.write_plan(change, output)
        if not confirm("Change the map so?"):
            raise CommandError("nothing was done")
        await _grant(new, lacking)
        await _decide(shards, change)
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


async def _decide(shards: Mapping[str, Shard], change: Next) -> None:
    try:
        await decide(shards[change.after.anchor], change)
    except ChangeError as error:
        raise CommandError(str(error)) from None


def _first(used: Config) -> SharedMap:
    what = f"the first map, of {counted(len(used.shards), 'shard')}"
    return first(used.shard_map, at=_now(), by=_who(), what=what)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _who() -> str:
    """The user and the machine, as far as known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = str(os.getuid())
    return "".join(character for character in f"{user}@{socket.gethostname()}" if character.isprintable())
