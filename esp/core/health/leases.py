"""Leases that are not on all shards. esp grants each lease on every shard: a lease that a shard lacks is dead there.

Only the shards' lists are compared. A lease that is granted or ended meanwhile is on some lists only, so what differs
is looked for in further lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final

from esp.core.background import all_of
from esp.core.health.facts import Finding, Kind
from esp.core.lease_sync import call
from esp.core.own_keys import is_own_lease
from esp.core.pb import rpc_pb2
from esp.core.shard import LEASE_LEASES, Shard
from esp.core.wire.status import RpcError

LOOKS: Final = 3
"""So often a lease must be on some lists only."""
LOOK_SECONDS: Final = 0.2
"""The pause before another look."""

Lists = Mapping[str, frozenset[int]]
"""The ids of the leases on each shard, by the shard's name."""


async def differing(shards: Mapping[str, Shard]) -> Lists | str:
    """For each shard the leases that the shard lacks and another has; or why a shard does not tell its leases."""
    try:
        lacking = lacking_in(await _lists(shards))
        for _ in range(LOOKS - 1):
            if not any(lacking.values()):
                break
            await asyncio.sleep(LOOK_SECONDS)
            again = lacking_in(await _lists(shards))
            lacking = {name: lacking[name] & again[name] for name in lacking}
    except RpcError as error:
        return error.status.message
    return lacking


def lacking_in(lists: Lists) -> dict[str, frozenset[int]]:
    """For each shard the leases that only others list."""
    everywhere = frozenset[int]().union(*lists.values())
    return {name: everywhere - ids for name, ids in lists.items()}


async def _lists(shards: Mapping[str, Shard]) -> Lists:
    async def leases(shard: Shard) -> frozenset[int]:
        answer = await call(shard, LEASE_LEASES, rpc_pb2.LeaseLeasesRequest())
        return frozenset(lease.ID for lease in answer.leases if not is_own_lease(lease.ID))

    return dict(zip(shards, await all_of(map(leases, shards.values())), strict=True))


def judge_leases(lacking: Lists | str | None) -> tuple[list[Finding], list[Finding]]:
    """The problems and the notes about leases; None if they were not compared."""
    if lacking is None:
        return [], []
    if isinstance(lacking, str):
        return [], [Finding(Kind.LEASES, (), None, f"leases are not compared: {lacking}")]
    return list(_differences(lacking)), []


def _differences(lacking: Lists) -> Iterator[Finding]:
    for name, ids in lacking.items():
        if ids:
            many = len(ids) > 1
            text = (
                f"lacks {len(ids)} {'leases' if many else 'lease'} that other shards have, such as {_hex(min(ids))}: "
                f"{'they are' if many else 'it is'} dead there; esp lease-sync shows and mends that"
            )
            yield Finding(Kind.LEASES, (name,), None, text)


def _hex(lease_id: int) -> str:
    return f"{lease_id & (1 << 64) - 1:016x}"
