"""Compares the users, roles and permissions of all shards: they must be the same, because esp serves Auth over all.

Passwords are not compared: etcd tells them to no client.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from esp.core import errors
from esp.core.background import all_of
from esp.core.health.facts import Finding, Kind
from esp.core.keys import KeyRange, format_key, format_range
from esp.core.pb import auth_pb2, rpc_pb2
from esp.core.shard import AUTH_STATUS, ROLE_GET, ROLE_LIST, USER_GET, USER_LIST, Shard, ask_for_esp
from esp.core.wire.status import Code, RpcError

AT_ONCE: Final = 16
"""The most calls to a shard at the same time."""
MAX_FINDINGS: Final = 20
"""The most differences that are reported one by one."""

T = TypeVar("T", bound=Hashable)

Permission = tuple[bytes, bytes, int]
"""A range in etcd's encoding, and the kind of access."""


@dataclass(slots=True)
class Accounts:
    """The auth of one shard, as far as the shard tells.

    Attributes:
        enabled: whether auth is on; None if unknown.
        users: the roles of each user.
        roles: the permissions of each role.
        refusal: why the rest is unknown; "" if everything is known.
        login_trouble: why esp could not authenticate; "" if it could, or did not have to.
    """

    enabled: bool | None = None
    users: dict[str, frozenset[str]] = field(default_factory=dict)
    roles: dict[str, frozenset[Permission]] = field(default_factory=dict)
    refusal: str = ""
    login_trouble: str = ""


async def find(found: Accounts, shard: Shard, seconds: float) -> None:
    """Fills in the answers of a shard; each call may take `seconds`. If it is cancelled, `refusal` stays as it was."""
    try:
        await _fill(found, shard, seconds)
        found.refusal = ""
    except RpcError as error:
        found.refusal = error.status.message
        if found.enabled is None and (error.status in errors.STALE_TOKEN or error.status == errors.PERMISSION_DENIED):
            found.enabled = True  # a shard without auth never refuses for lack of a user
    finally:
        found.login_trouble = shard.login_trouble


async def _fill(found: Accounts, shard: Shard, seconds: float) -> None:
    try:
        status = await ask_for_esp(shard, AUTH_STATUS, rpc_pb2.AuthStatusRequest(), seconds=seconds)
        found.enabled = status.enabled
    except RpcError as error:
        if error.status.code != Code.UNIMPLEMENTED:  # as by etcd 3.4
            raise
    users = list((await ask_for_esp(shard, USER_LIST, rpc_pb2.AuthUserListRequest(), seconds=seconds)).users)
    if found.enabled is None:
        found.enabled = shard.is_logged_in  # which the shard has asked for
    roles = list((await ask_for_esp(shard, ROLE_LIST, rpc_pb2.AuthRoleListRequest(), seconds=seconds)).roles)

    async def add_user(name: str) -> None:
        user = await ask_for_esp(shard, USER_GET, rpc_pb2.AuthUserGetRequest(name=name), seconds=seconds)
        found.users[name] = frozenset(user.roles)

    async def add_role(name: str) -> None:
        role = await ask_for_esp(shard, ROLE_GET, rpc_pb2.AuthRoleGetRequest(role=name), seconds=seconds)
        found.roles[name] = frozenset((perm.key, perm.range_end, perm.permType) for perm in role.perm)

    for names, add in ((users, add_user), (roles, add_role)):
        for first in range(0, len(names), AT_ONCE):
            await all_of([add(name) for name in names[first : first + AT_ONCE]])


def compare(accounts: Mapping[str, Accounts]) -> tuple[list[Finding], list[Finding]]:
    """The problems and the notes about the accounts of all shards, by the shards' names."""
    problems = [*_switches(accounts), *_logins(accounts)]
    known = {name: each for name, each in accounts.items() if not each.refusal}
    if len(known) > 1:
        differences = [*_users(known), *_roles(known)]
        problems += differences[:MAX_FINDINGS]
        if len(differences) > MAX_FINDINGS:
            left = len(differences) - MAX_FINDINGS
            text = f"{left} more {'user or role differs' if left == 1 else 'users or roles differ'}"
            problems.append(Finding(Kind.ACCOUNTS, tuple(known), None, text))
    return problems, list(_untold(accounts))


def _switches(accounts: Mapping[str, Accounts]) -> Iterator[Finding]:
    on = [name for name, each in accounts.items() if each.enabled]
    off = [name for name, each in accounts.items() if each.enabled is False]
    if on and off:
        text = (
            f"auth is on at {', '.join(on)} and off at {', '.join(off)}: clients cannot authenticate; "
            "run etcdctl auth enable or disable at the endpoints of those that are wrong"
        )
        yield Finding(Kind.AUTH, (*on, *off), None, text)


def _logins(accounts: Mapping[str, Accounts]) -> Iterator[Finding]:
    for name, each in accounts.items():
        if each.login_trouble:
            yield Finding(Kind.AUTH, (name,), None, f"esp cannot authenticate: {each.login_trouble}")


def _untold(accounts: Mapping[str, Accounts]) -> Iterator[Finding]:
    for name, each in accounts.items():
        if each.enabled is not None and each.refusal and not each.login_trouble:
            cure = "; give esp a user with the role root (auth in the config)" if each.enabled else ""
            yield Finding(Kind.AUTH, (name,), None, f"does not tell its users and roles: {each.refusal}{cure}")


def where_on(accounts: Mapping[str, Accounts]) -> Iterator[Finding]:
    """The note about shards that have auth on, and tell their users and roles."""
    on = tuple(name for name, each in accounts.items() if each.enabled and not each.refusal)
    if on:
        yield Finding(Kind.AUTH_ON, on, None, "auth is on: clients need a user, and a role for the keys that they use")


def _users(accounts: Mapping[str, Accounts]) -> Iterator[Finding]:
    for user in _names(each.users for each in accounts.values()):
        groups = _groups({name: each.users.get(user) for name, each in accounts.items()})
        if len(groups) > 1:
            told = "; ".join(
                f"{', '.join(names)}: "
                + ("no such user" if roles is None else f"roles {', '.join(sorted(roles)) or 'none'}")
                for roles, names in groups.items()
            )
            yield Finding(Kind.ACCOUNTS, tuple(accounts), None, f'the user "{_shown(user)}" is not the same ({told})')


def _roles(accounts: Mapping[str, Accounts]) -> Iterator[Finding]:
    for role in _names(each.roles for each in accounts.values()):
        groups = _groups({name: each.roles.get(role) for name, each in accounts.items()})
        if len(groups) > 1:
            everywhere = frozenset.intersection(*(perms or frozenset() for perms in groups))
            told = "; ".join(
                f"{', '.join(names)}: " + ("no such role" if perms is None else _permissions(perms - everywhere))
                for perms, names in groups.items()
            )
            yield Finding(Kind.ACCOUNTS, tuple(accounts), None, f'the role "{_shown(role)}" is not the same ({told})')


def _permissions(perms: frozenset[Permission]) -> str:
    """Permissions that not all shards have, a few of them."""
    shown = [
        f"{auth_pb2.Permission.Type.Name(kind).lower() if kind in auth_pb2.Permission.Type.values() else kind} "
        + (format_range(KeyRange.of_request(key, range_end)) if range_end else f'"{format_key(key)}"')
        for key, range_end, kind in sorted(perms)[:3]
    ]
    more = f" and {len(perms) - 3} more" if len(perms) > 3 else ""
    return ", ".join(shown) + more if shown else "nothing more"


def _names(maps: Iterable[Mapping[str, object]]) -> list[str]:
    return sorted({name for each in maps for name in each})


def _groups(told: Mapping[str, T]) -> dict[T, list[str]]:
    groups: dict[T, list[str]] = defaultdict(list)
    for name, value in told.items():
        groups[value].append(name)
    return groups


def _shown(name: str) -> str:
    return format_key(name.encode())[:64]
