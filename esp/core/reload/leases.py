"""Leases for a shard that is new to the map: granted there before the shard gets its first key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from esp.core.background import all_of
from esp.core.lease_sync import CALL_SECONDS, Copied, CopyTtl, call, copy, each
from esp.core.own_keys import is_own_lease
from esp.core.pb import rpc_pb2
from esp.core.shard import LEASE_LEASES, Shard
from esp.core.wire.status import RpcError
from esp.core.wording import counted, shard_called

CONCURRENCY: Final = 32
"""Leases that are granted at the same time."""
FEW: Final = 32
"""The leases that may have been missing in the last look: the time that granting them took was short."""
LOOKS: Final = 5
"""The most looks. Leases that clients go on granting faster are brought by the last one, when the map is in force."""
_ID_BITS: Final = 2**64 - 1

Brought = tuple[int, str]
"""A lease that was granted, and the name of the shard."""
Progress = Callable[[str], Awaitable[None]]


class MissingLeasesError(Exception):
    """A new shard cannot be given its leases; the text is a clause for people."""


async def bring_leases(
    new: Sequence[Shard], others: Sequence[Shard], told: Progress, *, lenient: bool = False
) -> list[Brought]:
    """Grants all leases of `others` on the shards `new`, with the TTL that they were granted with.

    The result is the leases that were granted. Later looks grant leases that clients have granted meanwhile. A lease
    that nobody renews lives on in a new shard for its TTL, without keys.

    Args:
        new: the new shards.
        others: the shards that have all leases among them.
        told: called with each step, for people.
        lenient: whether shards that do not answer are left out.

    Raises:
        MissingLeasesError: a shard does not tell its leases, or refuses one.
    """
    granted: list[Brought] = []
    for _ in range(LOOKS):
        missing = await _missing(new, others, lenient=lenient)
        if missing:
            await told(
                f"granting {counted(len(missing), 'lease')} on {', '.join(sorted({s.name for _, s in missing}))}"
            )

        async def grant(item: tuple[int, Shard]) -> None:
            lease, target = item
            try:
                if await copy(lease, others, target, CopyTtl.GRANTED) is Copied.GRANTED:
                    granted.append((lease, target.name))
            except RpcError as error:
                if not lenient:
                    text = f"{shard_called(target.name)} cannot be given lease {lease & _ID_BITS:x}: "
                    text += error.status.message
                    raise MissingLeasesError(text) from None

        await each(missing, grant, CONCURRENCY)
        if len(missing) <= FEW:
            break
    return granted


async def _missing(new: Sequence[Shard], others: Sequence[Shard], *, lenient: bool) -> list[tuple[int, Shard]]:
    lists = await all_of([_leases(shard, lenient=lenient) for shard in (*new, *others)])
    of_new, of_others = lists[: len(new)], lists[len(new) :]
    every = sorted(set().union(*of_others))
    return [(lease, shard) for shard, there in zip(new, of_new, strict=True) for lease in every if lease not in there]


async def _leases(shard: Shard, *, lenient: bool) -> set[int]:
    try:
        answer = await call(shard, LEASE_LEASES, rpc_pb2.LeaseLeasesRequest(), seconds=CALL_SECONDS)
    except RpcError as error:
        if lenient:
            return set()
        raise MissingLeasesError(
            f"{shard_called(shard.name)} does not tell its leases: {error.status.message}"
        ) from None
    return {lease.ID for lease in answer.leases if not is_own_lease(lease.ID)}
