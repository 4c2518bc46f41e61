"""Leases brought to a shard that lacks them.

A lease lives on every shard, under one id. A shard that was unreachable during the grant, or that is new, lacks the
lease. `esp lease-sync` finds such leases (`lease_survey`) and grants them there; a running proxy does the same for the
leases it knows of. Both use `copy`. Nothing here renews a lease: only its owner may.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from enum import StrEnum
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from esp.core import errors
from esp.core.background import all_of
from esp.core.pb import rpc_pb2
from esp.core.shard import LEASE_GRANT, LEASE_REVOKE, LEASE_TIME_TO_LIVE, RANGE, Answer, Method, Shard, ask, ask_for_esp
from esp.core.wire.hpack import Fields, encode
from esp.core.wire.status import RpcError

CALL_SECONDS: Final = 10.0
"""Seconds that one call of the command to one shard may take; longer than the 7 s after which etcd itself gives up."""

_SAID_AFTER_A_READ: Final = errors.STALE_TOKEN | {errors.PERMISSION_DENIED}
_ONE_KEY: Final = rpc_pb2.RangeRequest(key=b"health", count_only=True)

Item = TypeVar("Item")


class Copied(StrEnum):
    """The outcome of `copy`."""

    GRANTED = "granted"
    PRESENT = "present"
    GONE = "gone"


class CopyTtl(StrEnum):
    """The TTL that a copied lease gets: the seconds that are left, or the granted TTL.

    The seconds left are right if no client is known to renew the lease. A client that renews goes by the granted TTL; a
    shorter TTL on the copy could end before the client's next renewal.
    """

    REMAINING = "remaining"
    GRANTED = "granted"


async def call(
    shard: Shard,
    method: Method[Answer],
    request: Message,
    *,
    metadata: Fields | None = None,
    seconds: float = CALL_SECONDS,
) -> Answer:
    """A shard's answer to one RPC of the Lease service. With a client's `metadata` in its name, else as esp's own user.

    A call of esp's own user is sent once more with a new token if the shard does not know the present one.

    Raises:
        RpcError: the shard's status as it came; Unavailable if the shard does not answer in time.
    """
    try:
        if metadata is None:
            return await ask_for_esp(shard, method, request, seconds=seconds)
        return await ask(shard, method, request, metadata=encode(metadata), seconds=seconds)
    except RpcError as error:
        raise errors.undecided(error.status).error() from None


async def catch_up(shard: Shard, *, metadata: Fields, seconds: float) -> None:
    """Returns when the member in use knows all that its cluster had decided at the beginning, and who leads.

    A member that was frozen while it led does not know at first. Makes a linearizable read, of one key. Only after that
    the member looks whether it knows the caller, who may read the key or not.

    Raises:
        RpcError: as `call`.
    """
    try:
        await call(shard, RANGE, _ONE_KEY, metadata=metadata, seconds=seconds)
    except RpcError as error:
        if error.status not in _SAID_AFTER_A_READ:
            raise


async def time_to_live(
    shard: Shard,
    lease_id: int,
    *,
    keys: bool = False,
    metadata: Fields | None = None,
    seconds: float = CALL_SECONDS,
) -> rpc_pb2.LeaseTimeToLiveResponse:
    """A shard's knowledge of a lease; TTL -1 stands for no such lease.

    Raises:
        RpcError: as `call`.
    """
    request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
    return await call(shard, LEASE_TIME_TO_LIVE, request, metadata=metadata, seconds=seconds)


async def revoke(shard: Shard, lease_id: int, *, metadata: Fields | None = None, seconds: float = CALL_SECONDS) -> bool:
    """Revokes a lease on one shard; False if the shard has no lease of that id.

    Raises:
        RpcError: as `call`.
    """
    request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)
    try:
        await call(shard, LEASE_REVOKE, request, metadata=metadata, seconds=seconds)
    except RpcError as error:
        if error.status != errors.LEASE_NOT_FOUND:
            raise
        return False
    return True


async def copy(
    lease_id: int,
    sources: Iterable[Shard],
    target: Shard,
    ttl: CopyTtl,
    *,
    metadata: Fields | None = None,
    seconds: float = CALL_SECONDS,
) -> Copied:
    """Grants a lease on `target`, as the lease is on the first of `sources` that has it.

    GONE if no source has the lease any more. `copy` looks again after the grant, and takes the grant back if the lease
    has gone meanwhile. So a client that revokes its lease at this moment does not leave a copy behind.

    Args:
        lease_id: the lease.
        sources: the shards to look at, in this order.
        target: the shard that may lack it.
        ttl: the TTL that the copy gets.
        metadata: of the client for whom the lease is copied, if there is one.
        seconds: the longest time for each call.

    Raises:
        RpcError: the target's, or a source's when no source has the lease; as `call`.
    """
    source, found = await _find(lease_id, sources, metadata, seconds)
    if source is None:
        return Copied.GONE
    request = rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=found.TTL if ttl is CopyTtl.REMAINING else found.grantedTTL)
    try:
        await call(target, LEASE_GRANT, request, metadata=metadata, seconds=seconds)
    except RpcError as error:
        if error.status != errors.LEASE_EXISTS:
            raise
        return Copied.PRESENT
    again = await time_to_live(source, lease_id, metadata=metadata, seconds=seconds)
    if again.TTL < 0:
        await revoke(target, lease_id, metadata=metadata, seconds=seconds)
        return Copied.GONE
    return Copied.GRANTED


async def _find(
    lease_id: int, sources: Iterable[Shard], metadata: Fields | None, seconds: float
) -> tuple[Shard | None, rpc_pb2.LeaseTimeToLiveResponse]:
    """The first shard on which the lease lives, and its answer.

    Raises:
        RpcError: the error of a shard that did not answer, if no other shard has the lease.
    """
    failure: RpcError | None = None
    answer = rpc_pb2.LeaseTimeToLiveResponse(ID=lease_id, TTL=-1)
    for shard in sources:
        try:
            answer = await time_to_live(shard, lease_id, metadata=metadata, seconds=seconds)
        except RpcError as error:
            failure = failure or error
            continue
        if answer.TTL >= 0:
            return shard, answer
    if failure is not None:
        raise failure
    return None, answer


async def each(items: Iterable[Item], work: Callable[[Item], Coroutine[Any, Any, None]], concurrency: int) -> None:
    """Does `work` for every item, `concurrency` at once. After an error begun work is finished, and no more is begun.

    Raises:
        RpcError: the first that `work` raised.
    """
    rest: Iterator[Item] = iter(items)
    failure: RpcError | None = None

    # The error is kept out of the task group: a group that fails forgets that it was cancelled at the same time.
    async def worker() -> None:
        nonlocal failure
        for item in rest:
            try:
                await work(item)
            except RpcError as error:
                failure = failure or error
            if failure is not None:
                return

    await all_of([worker() for _ in range(concurrency)])
    if failure is not None:
        raise failure
