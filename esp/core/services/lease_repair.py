"""Leases put right on shards that missed something: granted where they lack, revoked where they live on.

A grant that a shard missed while it was away, and a revocation that could not reach it, wait here for the shard. Each
shard has a worker of its own, so one that is away holds up no other. The granting is `lease_sync.copy`, the same that
`esp lease-sync` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from itertools import islice
from time import monotonic
from typing import Final

from esp.core import errors, lease_sync
from esp.core.background import Background, all_of
from esp.core.lease_sync import Copied, CopyTtl
from esp.core.routing import Routing
from esp.core.services.lease_table import ID_BITS, Lacking, LeaseTable, is_empty
from esp.core.shard import Shard
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import Fields
from esp.core.wire.status import RpcError

log = logging.getLogger("esp.lease")

CONCURRENCY: Final = 16
BATCH: Final = 1000
CALL_SECONDS: Final = 2.0
PAUSE_SECONDS: Final = 1.0
"""After a shard that is connected did not answer."""
POLL_SECONDS: Final = 0.2
"""Between looks at a shard where another proxy may be about to grant a lease."""
SEEN_SECONDS: Final = 1.0
"""For how long a lease that was just granted on a shard, or found there, surely lives on it: half of etcd's minimum."""


class _Job:
    """What to do with one lease on one shard: grant it, or else revoke it."""

    __slots__ = ("grants", "metadata")

    def __init__(self, metadata: Fields, *, grants: bool) -> None:
        self.grants = grants
        self.metadata = metadata


class LeaseRepair:
    """The repairs that wait, and who does them."""

    def __init__(self, routing: Routing, table: LeaseTable, context: WireContext, background: Background) -> None:
        self.table = table
        self._background = background
        self._shards = routing.shards
        self._context = context
        self._jobs: list[dict[int, _Job]] = [{} for _ in routing.shards]
        self._wanted = [asyncio.Event() for _ in routing.shards]
        self._was_ready: list[bool | None] = [None] * len(routing.shards)  # None before the first look
        self._ongoing: dict[tuple[int, int], asyncio.Future[bool | None]] = {}

    @property
    def waiting(self) -> int:
        """How many repairs wait, or are being done."""
        return sum(map(len, self._jobs))

    def grant(self, lease_id: int, shard: int, metadata: Fields) -> None:
        """Grants a lease on a shard that never had it, as it lives on the others.

        Nothing when something waits to be done about it there already: a revocation goes first.
        """
        if lease_id not in self._jobs[shard]:
            self._add(lease_id, shard, _Job(metadata, grants=True))

    def revoke(self, lease_id: int, shards: Iterable[int], metadata: Fields) -> None:
        """Revokes a lease on these shards."""
        for shard in shards:
            self._add(lease_id, shard, _Job(metadata, grants=False))

    def drop(self, lease_id: int, shards: Iterable[int]) -> None:
        """Nothing is to be done about a lease on these shards: another one of its id has begun there."""
        for shard in shards:
            self._jobs[shard].pop(lease_id, None)

    def _add(self, lease_id: int, shard: int, job: _Job) -> None:
        if self.waiting >= self._context.limits.max_lease_repairs and lease_id not in self._jobs[shard]:
            self._context.reached("max_lease_repairs")
            return
        self._jobs[shard][lease_id] = job
        self._wanted[shard].set()

    def tick(self) -> None:
        """Sees which shards are back, and has done there what waits for them."""
        for index, shard in enumerate(self._shards):
            ready = shard.is_ready
            if ready and not self._was_ready[index] and self.table.tolerant:
                for lease_id in self.table.missed_on(index):
                    known = self.table.get(lease_id)
                    self.grant(lease_id, index, known.metadata if known else [])
            if not ready:
                self.table.away(index)
            elif self._was_ready[index] is False:
                self.table.returned(index, monotonic())
            self._was_ready[index] = ready
            if ready and self._jobs[index]:
                self._wanted[index].set()

    async def run(self) -> None:
        """Does the repairs, until cancelled."""
        workers = [
            self._background.again(f"lease repair on shard {shard.name}", partial(self._work, index))
            for index, shard in enumerate(self._shards)
        ]
        await all_of(workers)

    async def _work(self, index: int) -> None:
        jobs, wanted, shard = self._jobs[index], self._wanted[index], self._shards[index]
        while True:
            await wanted.wait()
            if not jobs or not shard.is_ready:
                wanted.clear()
                continue
            try:
                await lease_sync.each(list(islice(jobs, BATCH)), partial(self._do, index), CONCURRENCY)
            except RpcError as error:
                log.info("shard %s: leases cannot be repaired now: %s", shard.name, error.status.message)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _do(self, index: int, lease_id: int) -> None:
        """Does one job.

        Raises:
            RpcError: it has to wait.
        """
        jobs = self._jobs[index]
        job = jobs.get(lease_id)
        if job is None:
            return
        try:
            if not job.grants:
                await lease_sync.revoke(self._shards[index], lease_id, metadata=job.metadata, seconds=CALL_SECONDS)
                self.table.counters["revoked_later"] += 1
            elif self.table.get(lease_id) is not None:
                await self._copy(lease_id, index, job.metadata, CALL_SECONDS)
        except RpcError as error:
            if errors.is_unreachable(error.status):
                raise
            self.table.counters["repairs_failed"] += 1
            name = self._shards[index].name
            log.warning("shard %s: lease %x cannot be repaired: %s", name, lease_id & ID_BITS, error.status.message)
        except Exception as error:  # a bug: another try would meet it again, and hold up the other repairs
            self.table.counters["repairs_failed"] += 1
            self._background.failed(f"lease repair on shard {self._shards[index].name}", error)
        if jobs.get(lease_id) is job:
            del jobs[lease_id]

    async def ensure(self, lease_id: int, shard: int, metadata: Fields, seconds: float) -> bool:
        """Whether a lease that a shard did not have a moment ago is on it now, as it lives on another.

        It is granted there if the shard never had it, which another proxy may do as well. False when it lives nowhere,
        or may have been on that shard: then it has ended there, and is dead.

        Raises:
            RpcError: a shard does not answer, or refuses.
        """
        key = (shard, lease_id)
        while (ongoing := self._ongoing.get(key)) is not None:
            done = await asyncio.shield(ongoing)
            if done is not None:
                return done
        return await self._ensure(key, metadata, seconds)

    async def _ensure(self, key: tuple[int, int], metadata: Fields, seconds: float) -> bool:
        shard, lease_id = key
        self._ongoing[key] = done = asyncio.get_running_loop().create_future()
        there: bool | None = None
        try:
            there = await self._is_there(lease_id, shard, metadata, seconds)
            return there
        finally:
            del self._ongoing[key]
            done.set_result(there)

    async def _is_there(self, lease_id: int, index: int, metadata: Fields, seconds: float) -> bool:
        """As `ensure`.

        Raises:
            RpcError: a shard does not answer, or refuses.
        """
        table = self.table
        until = monotonic() + seconds
        while True:
            here = await lease_sync.time_to_live(self._shards[index], lease_id, metadata=metadata, seconds=seconds)
            if here.TTL >= 0:  # since a moment ago
                table.seen(lease_id, index, monotonic() + SEEN_SECONDS)
                return True
            judgement = table.judge_one(lease_id, index, empty=is_empty(here.header))
            if judgement is Lacking.MISSED:
                return await self._copy(lease_id, index, metadata, seconds)
            if judgement is Lacking.ENDED or monotonic() > until:
                return False
            await asyncio.sleep(POLL_SECONDS)

    async def _copy(self, lease_id: int, index: int, metadata: Fields, seconds: float) -> bool:
        """Whether the lease lives on the shard now.

        Raises:
            RpcError: as `lease_sync.copy`.
        """
        others = [shard for shard in self._shards if shard is not self._shards[index]]
        copied = await lease_sync.copy(
            lease_id, _ready_first(others), self._shards[index], CopyTtl.GRANTED, metadata=metadata, seconds=seconds
        )
        if copied is Copied.GONE:
            self.table.forget(lease_id)  # another one of its id may begin elsewhere, which this shard does not miss
            return False
        self.table.seen(lease_id, index, monotonic() + SEEN_SECONDS)
        if copied is Copied.GRANTED:
            self.table.counters["repaired"] += 1
        return True


def _ready_first(shards: list[Shard]) -> list[Shard]:
    return sorted(shards, key=lambda shard: not shard.is_ready)
