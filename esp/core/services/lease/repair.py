"""Repairs leases on shards that missed a call: grants missing leases, and revokes leases that live on.

If a shard missed a grant because it was unreachable, or a revocation could not reach it, the repair waits here for the
shard. Each shard has a worker of its own, so an unreachable shard holds up no other. A lease is granted with
`lease_sync.copy`, which `esp lease-sync` uses as well.
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
from esp.core.background import Background
from esp.core.layout import Layout
from esp.core.lease_sync import Copied, CopyTtl
from esp.core.services.lease.table import ID_BITS, Lacking, LeaseTable, is_empty
from esp.core.shard import Shard
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import Fields
from esp.core.wire.status import RpcError

log = logging.getLogger("esp.lease")

CONCURRENCY: Final = 16
BATCH: Final = 1000
CALL_SECONDS: Final = 2.0
PAUSE_SECONDS: Final = 1.0
"""Seconds to the next try after a connected shard did not answer."""
POLL_SECONDS: Final = 0.2
"""Seconds between two looks at a shard where another proxy may be about to grant a lease."""
SEEN_SECONDS: Final = 1.0
"""Seconds that a lease surely lives on a shard after it was granted or found there: half of etcd's least TTL."""


class _Job:
    """The repair of one lease on one shard: grants the lease, or revokes it."""

    __slots__ = ("grants", "metadata")

    def __init__(self, metadata: Fields, *, grants: bool) -> None:
        self.grants = grants
        self.metadata = metadata


class _Yard:
    """The repairs that wait for one shard.

    Attributes:
        shard: the shard.
        jobs: the repairs, by lease.
        wanted: set when the worker may have something to do.
        was_ready: whether the shard had a connection at the last look; None before the first.
        dialled: the shard's `dialled` at the last look; before the first that of a shard that was never lost.
        worker: does the jobs; None until the repairs have begun.
    """

    __slots__ = ("dialled", "jobs", "shard", "wanted", "was_ready", "worker")

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.jobs: dict[int, _Job] = {}
        self.wanted = asyncio.Event()
        self.was_ready: bool | None = None
        self.dialled = max(1, shard.dialled)
        self.worker: asyncio.Task[None] | None = None


class LeaseRepair:
    """The repairs that wait, and their workers, one for each shard.

    Attributes:
        table: the leases that this proxy knows of.
        waiting: the number of repairs that wait or are at work.
    """

    def __init__(self, layout: Layout, table: LeaseTable, context: WireContext, background: Background) -> None:
        self.table = table
        table.look = self._look
        self._background = background
        self._layout = layout
        self._context = context
        self._yards: dict[str, _Yard] = {name: _Yard(shard) for name, shard in layout.shards.items()}
        self._has_begun = False
        self._ongoing: dict[tuple[str, int], asyncio.Future[bool | None]] = {}

    def install(self, layout: Layout) -> None:
        """Another layout is in force: new shards get a worker, and the repairs of shards that left are dropped.

        A new shard counts as one that was unreachable: another proxy may be about to grant leases there.
        """
        self._layout = layout
        for name, yard in list(self._yards.items()):
            if layout.shards.get(name) is not yard.shard:
                del self._yards[name]
                self.table.drop_shard(name)
                if yard.worker is not None:
                    yard.worker.cancel()
        for name, shard in layout.shards.items():
            if name not in self._yards:
                yard = self._yards[name] = _Yard(shard)
                yard.was_ready = False
                self.table.away(name)
                if self._has_begun:
                    self._begin(yard)

    @property
    def waiting(self) -> int:
        """The number of repairs that wait or are at work."""
        return sum(len(yard.jobs) for yard in self._yards.values())

    def grant(self, lease_id: int, shard: str, metadata: Fields) -> None:
        """Queues a grant on `shard`, which never had the lease.

        Does nothing while another repair of the lease waits there: a revocation goes first.
        """
        yard = self._yards.get(shard)
        if yard is not None and lease_id not in yard.jobs:
            self._add(lease_id, shard, _Job(metadata, grants=True))

    def revoke(self, lease_id: int, shards: Iterable[str], metadata: Fields) -> None:
        """Revokes a lease on these shards."""
        for shard in shards:
            self._add(lease_id, shard, _Job(metadata, grants=False))

    def drop(self, lease_id: int, shards: Iterable[str]) -> None:
        """Drops the repairs of a lease on these shards: another lease with its id has begun there."""
        for shard in shards:
            if shard in self._yards:
                self._yards[shard].jobs.pop(lease_id, None)

    def _add(self, lease_id: int, shard: str, job: _Job) -> None:
        yard = self._yards.get(shard)
        if yard is None:
            return  # the shard has left the layout
        if self.waiting >= self._context.limits.max_lease_repairs and lease_id not in yard.jobs:
            self._context.reached("max_lease_repairs")
            return
        yard.jobs[lease_id] = job
        yard.wanted.set()

    def tick(self) -> None:
        """Notices shards that are reachable again, and wakes their workers."""
        self._look()
        for yard in self._yards.values():
            if yard.jobs and yard.shard.is_ready:
                yard.wanted.set()

    def _look(self) -> None:
        """Notices which shards are away, or have been since the last look, however shortly."""
        for name, yard in self._yards.items():
            shard = yard.shard
            ready = shard.is_ready
            was_away = yard.was_ready is False or shard.dialled != yard.dialled
            if ready and (was_away or yard.was_ready is None) and self.table.tolerant:
                for lease_id in self.table.missed_on(name):
                    known = self.table.get(lease_id)
                    self.grant(lease_id, name, known.metadata if known else [])
            if not ready:
                self.table.away(name)
            elif was_away:
                self.table.returned(name, monotonic())
            yard.was_ready = ready
            yard.dialled = shard.dialled

    def start(self) -> None:
        """Starts the workers; the supervisor owns them."""
        self._has_begun = True
        for yard in self._yards.values():
            self._begin(yard)

    def _begin(self, yard: _Yard) -> None:
        name = f"lease repair on shard {yard.shard.name}"
        yard.worker = self._background.keep(name, partial(self._work, yard))

    async def _work(self, yard: _Yard) -> None:
        jobs, wanted, shard = yard.jobs, yard.wanted, yard.shard
        while True:
            await wanted.wait()
            if not jobs or not shard.is_ready:
                wanted.clear()
                continue
            try:
                await lease_sync.each(list(islice(jobs, BATCH)), partial(self._do, yard), CONCURRENCY)
            except RpcError as error:
                log.info("shard %s: leases cannot be repaired now: %s", shard.name, error.status.message)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _do(self, yard: _Yard, lease_id: int) -> None:
        """Does the repair of one lease.

        Raises:
            RpcError: the shard cannot be reached, or does not know esp's own token; the repair stays queued.
        """
        jobs, shard = yard.jobs, yard.shard
        job = jobs.get(lease_id)
        if job is None:
            return
        try:
            if not job.grants:
                await lease_sync.revoke(shard, lease_id, metadata=job.metadata, seconds=CALL_SECONDS)
                self.table.counters["revoked_later"] += 1
            elif self.table.get(lease_id) is not None:
                await self._copy(lease_id, shard, job.metadata, CALL_SECONDS)
        except RpcError as error:
            is_esps_own = job.grants and self._asking(job.metadata) is None
            if errors.is_unreachable(error.status) or (is_esps_own and shard.wants_login(error.status)):
                raise
            self.table.counters["repairs_failed"] += 1
            name = shard.name
            log.warning("shard %s: lease %x cannot be repaired: %s", name, lease_id & ID_BITS, error.status.message)
        except Exception as error:  # a bug: another try would fail again, and hold up the other repairs
            self.table.counters["repairs_failed"] += 1
            self._background.failed(f"lease repair on shard {shard.name}", error)
        if jobs.get(lease_id) is job:
            del jobs[lease_id]

    async def ensure(self, lease_id: int, shard: Shard, metadata: Fields, seconds: float) -> bool:
        """Grants a lease on a shard that lacks it, if the lease is alive; whether it is on the shard now.

        The lease is granted if the shard never had it; another proxy may do the same. False if the lease lives on no
        shard, or may have been on this one: then it has ended there, and is dead.

        Raises:
            RpcError: a shard does not answer, or refuses; or `seconds` have passed while another proxy may still be
                about to grant the lease there.
        """
        key = (shard.name, lease_id)
        while (ongoing := self._ongoing.get(key)) is not None:
            done = await asyncio.shield(ongoing)
            if done is not None:
                return done
        return await self._ensure(key, shard, metadata, seconds)

    async def _ensure(self, key: tuple[str, int], shard: Shard, metadata: Fields, seconds: float) -> bool:
        self._ongoing[key] = done = asyncio.get_running_loop().create_future()
        there: bool | None = None
        try:
            there = await self._is_there(key[1], shard, metadata, seconds)
            return there
        finally:
            del self._ongoing[key]
            done.set_result(there)

    async def _is_there(self, lease_id: int, shard: Shard, metadata: Fields, seconds: float) -> bool:
        """As `ensure`.

        Raises:
            RpcError: a shard does not answer, or refuses.
        """
        table = self.table
        until = monotonic() + seconds
        while True:
            asked = monotonic()
            here = await lease_sync.time_to_live(shard, lease_id, metadata=self._asking(metadata), seconds=seconds)
            if here.TTL >= 0:  # it has come meanwhile
                table.seen(lease_id, shard.name, monotonic() + SEEN_SECONDS)
                return True
            judgement = table.judge_one(lease_id, shard.name, empty=is_empty(here.header), asked=asked)
            if judgement is Lacking.MISSED:
                return await self._copy(lease_id, shard, metadata, seconds)
            if judgement is Lacking.ENDED:
                return False
            if monotonic() > until:
                text = f"shard {shard.name} has been away and lacks the lease, which may still be granted there"
                raise errors.lease_unsettled(text).error()
            await asyncio.sleep(POLL_SECONDS)

    def _asking(self, metadata: Fields) -> Fields | None:
        """The metadata with which esp asks for a lease and grants it: of esp's own user, or else of the client.

        Any user may do this, and the client's token may have ended by then. But esp revokes a lease only as the client,
        who may lack the permission to delete the lease's keys.
        """
        return None if all(shard.user for shard in self._layout.shards.values()) else metadata

    async def _copy(self, lease_id: int, shard: Shard, metadata: Fields, seconds: float) -> bool:
        """Whether the lease lives on the shard now.

        Raises:
            RpcError: as `lease_sync.copy`.
        """
        others = [other for other in self._layout.shards.values() if other is not shard]
        copied = await lease_sync.copy(
            lease_id, _ready_first(others), shard, CopyTtl.GRANTED, metadata=self._asking(metadata), seconds=seconds
        )
        if copied is Copied.GONE:
            self.table.forget(lease_id)  # a later lease with this id may begin elsewhere, not missed here
            return False
        self.table.seen(lease_id, shard.name, monotonic() + SEEN_SECONDS)
        if copied is Copied.GRANTED:
            self.table.counters["repaired"] += 1
        return True


def _ready_first(shards: list[Shard]) -> list[Shard]:
    return sorted(shards, key=lambda shard: not shard.is_ready)
