"""The leases of all shards side by side, and the copying of one to a shard that lacks it.

A lease lives on every shard, under one id. A shard that was away when it was granted, or that is new, lacks it. `esp
lease-sync` finds these and grants them there; a running proxy does it for the leases it knows of, with the same
`copy`. Nothing here renews a lease: only its owner may.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from esp.core import errors
from esp.core.config import Config
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import Fields
from esp.core.wire.status import RpcError
from esp.core.wire.transport import TICK_SECONDS

PATH: Final = b"/etcdserverpb.Lease/"
CALL_SECONDS: Final = 10.0
"""How long one call of the command to one shard may take; longer than the 7 s after which etcd itself gives up."""
CONNECT_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.01

Answer = TypeVar("Answer", bound=Message)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class LeaseOnShard:
    """One lease on one shard: seconds left and seconds granted, both as etcd rounds them; how many keys it has."""

    ttl: int
    granted_ttl: int
    keys: int


@dataclass(frozen=True, slots=True)
class LeaseView:
    """One lease on all shards, in the order of the config; None where it does not live. It lives on one at least."""

    id: int
    on: tuple[LeaseOnShard | None, ...]

    @property
    def missing(self) -> list[int]:
        """The shards that lack it."""
        return [index for index, here in enumerate(self.on) if here is None]

    @property
    def only_on(self) -> int | None:
        """The one shard that has it, where there are others and they all lack it."""
        holders = [index for index, here in enumerate(self.on) if here is not None]
        return holders[0] if len(holders) == 1 and len(self.on) > 1 else None

    def ttl_spread(self) -> int:
        """Seconds between the shard on which it ends first and the one on which it ends last."""
        left = [here.ttl for here in self.on if here is not None]
        return max(left) - min(left)


class Copied(StrEnum):
    """How `copy` ended."""

    GRANTED = "granted"
    PRESENT = "present"
    GONE = "gone"


class CopyTtl(StrEnum):
    """The TTL that a copied lease gets: what is left of it, or what it was granted with.

    What is left is right where nobody is known to renew it. Where a client is, it will go by the TTL it was granted,
    and a shorter one here could end before its next renewal.
    """

    REMAINING = "remaining"
    GRANTED = "granted"


async def call(
    shard: Shard,
    method: str,
    request: Message,
    answer: type[Answer],
    *,
    metadata: Fields | None = None,
    seconds: float = CALL_SECONDS,
    idempotent: bool = False,
) -> Answer:
    """A shard's answer to one RPC of the Lease service.

    Raises:
        RpcError: the shard's, as it came; Unavailable when it does not answer in time.
    """
    try:
        body = await shard.unary(
            PATH + method.encode(),
            request.SerializeToString(),
            idempotent=idempotent,
            metadata=metadata,
            timeout=seconds,
        )
    except RpcError as error:
        raise errors.undecided(error.status).error() from None
    return answer.FromString(body)


async def time_to_live(
    shard: Shard,
    lease_id: int,
    *,
    keys: bool = False,
    metadata: Fields | None = None,
    seconds: float = CALL_SECONDS,
) -> rpc_pb2.LeaseTimeToLiveResponse:
    """What a shard knows of a lease; its TTL is -1 when that is nothing.

    Raises:
        RpcError: as `call`.
    """
    request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
    return await call(
        shard,
        "LeaseTimeToLive",
        request,
        rpc_pb2.LeaseTimeToLiveResponse,
        metadata=metadata,
        seconds=seconds,
        idempotent=True,
    )


async def revoke(shard: Shard, lease_id: int, *, metadata: Fields | None = None, seconds: float = CALL_SECONDS) -> bool:
    """Revokes a lease on one shard; False when it has none of that id.

    Raises:
        RpcError: as `call`.
    """
    request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)
    try:
        await call(shard, "LeaseRevoke", request, rpc_pb2.LeaseRevokeResponse, metadata=metadata, seconds=seconds)
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
    """Grants a lease on `target` as it lives on the first of `sources` that has it.

    GONE when none has it any more. That is looked at again after the grant, which is taken back then: a client that
    revokes its lease meanwhile does not leave it behind here.

    Args:
        lease_id: the lease.
        sources: the shards to look at, in this order.
        target: the shard that may lack it.
        ttl: which TTL it gets.
        metadata: of the client for whom it is done, if any.
        seconds: for each call.

    Raises:
        RpcError: the target's, or a source's when no source has the lease; as `call`.
    """
    source, found = await _find(lease_id, sources, metadata, seconds)
    if source is None:
        return Copied.GONE
    request = rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=found.TTL if ttl is CopyTtl.REMAINING else found.grantedTTL)
    try:
        await call(target, "LeaseGrant", request, rpc_pb2.LeaseGrantResponse, metadata=metadata, seconds=seconds)
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
        RpcError: a shard's that did not answer, when no other has the lease.
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


# For the command.


@asynccontextmanager
async def connected(config: Config) -> AsyncIterator[list[Shard]]:
    """The shards of a config, by the shard client that the proxy uses, for as long as the block runs.

    They are connected to within CONNECT_SECONDS; one that is not says so in `trouble`.
    """
    context = WireContext(config.limits)
    shards = [Shard(shard.name, shard.endpoints, context) for shard in config.shards]
    until = monotonic() + CONNECT_SECONDS
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(shard.run()) for shard in shards]
        running.append(group.create_task(_tick(shards)))
        try:
            for shard in shards:
                while not shard.is_ready and monotonic() < until:  # noqa: ASYNC110 - a shard has no such event
                    await asyncio.sleep(_POLL_SECONDS)
            yield shards
        finally:
            for task in running:
                task.cancel()


async def _tick(shards: Sequence[Shard]) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        for shard in shards:
            shard.tick(monotonic())


Progress = Callable[[int, int], None]
"""Told how many of how many leases are done."""


async def survey(shards: Sequence[Shard], concurrency: int, progress: Progress) -> list[LeaseView]:
    """Every lease that lives on any of the shards, by id.

    Args:
        shards: all shards.
        concurrency: how many leases are looked at at once.
        progress: told as it goes.

    Raises:
        RpcError: a shard's; without all shards nothing can be said.
    """
    lists = await asyncio.gather(*(_leases(shard) for shard in shards))
    listed: dict[int, list[int]] = {}
    for index, ids in enumerate(lists):
        for lease_id in ids:
            listed.setdefault(lease_id, []).append(index)
    views: list[LeaseView] = []
    done = 0

    async def look(lease_id: int) -> None:
        nonlocal done
        holders = listed[lease_id]
        answers = await asyncio.gather(*(time_to_live(shards[index], lease_id, keys=True) for index in holders))
        on: list[LeaseOnShard | None] = [None] * len(shards)
        for index, answer in zip(holders, answers, strict=True):
            if answer.TTL >= 0:
                on[index] = LeaseOnShard(answer.TTL, answer.grantedTTL, len(answer.keys))
        if any(on):  # else it has ended meanwhile
            views.append(LeaseView(lease_id, tuple(on)))
        done += 1
        progress(done, len(listed))

    progress(0, len(listed))
    await each(listed, look, concurrency)
    return sorted(views, key=lambda view: view.id)


async def _leases(shard: Shard) -> list[int]:
    request = rpc_pb2.LeaseLeasesRequest()
    answer = await call(shard, "LeaseLeases", request, rpc_pb2.LeaseLeasesResponse, idempotent=True)
    return [lease.ID for lease in answer.leases]


async def each(items: Iterable[Item], work: Callable[[Item], Coroutine[Any, Any, None]], concurrency: int) -> None:
    """Does `work` for every item, `concurrency` at once; after an error what was begun is finished, and no more begun.

    Raises:
        RpcError: the first that `work` raised.
    """
    rest: Iterator[Item] = iter(items)
    failure: RpcError | None = None

    # The error is kept out of the group: a TaskGroup that fails forgets that it was cancelled at the same time.
    async def worker() -> None:
        nonlocal failure
        for item in rest:
            try:
                await work(item)
            except RpcError as error:
                failure = failure or error
            if failure is not None:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    if failure is not None:
        raise failure
