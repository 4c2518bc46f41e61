"""What all changes of the map on the shards have in common: all shards answer, somebody agrees, the anchor decides."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import typer

from esp.commands.map import CALL_SECONDS
from esp.commands.output import USAGE, CommandError
from esp.core.config import Config
from esp.core.connected_shards import connected
from esp.core.pb import rpc_pb2
from esp.core.shard import STATUS, Shard, ask_for_esp, is_unsafe
from esp.core.shared_map import ChangeError, Held, Next, decide, grant, is_auth_on, read, roles_without
from esp.core.wire.status import RpcError, Status
from esp.core.wording import both_called, shard_called

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


class Reached(NamedTuple):
    """The shards of a config, all of which answer, and what they hold."""

    shards: Mapping[str, Shard]
    held: Mapping[str, Held]


def must_differ(held: Mapping[str, Held | Status]) -> None:
    """Refuses two names of one etcd cluster.

    Raises:
        CommandError: there are.
    """
    seen: dict[int, str] = {}
    for name, found in held.items():
        if isinstance(found, Held) and (other := seen.setdefault(found.cluster_id, name)) != name:
            raise CommandError(f"{both_called(other, name)} are one etcd cluster; name each cluster once")


@asynccontextmanager
async def reaching(used: Config) -> AsyncIterator[Reached]:
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
            held[name] = found
        must_differ(held)
        yield Reached(shards, held)


async def lacking_roles(shards: Mapping[str, Shard]) -> dict[str, list[str]]:
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


async def grant_all(shards: Mapping[str, Shard], lacking: Mapping[str, list[str]]) -> None:
    """Gives roles the right to read the guard.

    Raises:
        CommandError: a shard refuses.
    """
    for name, roles in lacking.items():
        for role in roles:
            try:
                await grant(shards[name], role, CALL_SECONDS)
            except RpcError as error:
                text = f"{shard_called(name)} does not grant the role {role} to read the guard: {error.status.message}"
                raise CommandError(f"{text}; run it again") from None


async def decided(shards: Mapping[str, Shard], change: Next, held: Held | None = None) -> None:
    """Decides on a change; `held` as for `decide`.

    Raises:
        CommandError: the anchor does not.
    """
    try:
        await decide(shards[change.after.anchor], change, held)
    except ChangeError as error:
        raise CommandError(str(error)) from None


def now() -> str:
    """The time, as changes have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def who() -> str:
    """The user and the machine, as far as known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = str(os.getuid())
    return "".join(character for character in f"{user}@{socket.gethostname()}" if character.isprintable())
