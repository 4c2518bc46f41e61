"""Repairs leases on shards that missed a call: grants missing leases, and revokes leases that live on.

If a shard missed a grant because it was unreachable, or a revocation could not reach it, the repair waits here for the
shard. Each shard has a worker of its own, so an unreachable shard holds up no other. A lease is granted with
`lease_sync.copy`, which `esp lease-sync` uses as well.

By the time that a shard is back, it may know no token any more: etcd's simple tokens die with the member, or with a
change of users. esp gets itself a new one. It cannot get one for a client, so it does in its own name all that needs no
permission of the client, if the config names a user:

- It grants a lease that the shard has missed. Any user may grant.
- It takes back its own grant, and revokes a lease that has ended elsewhere, as etcd itself revokes what has expired.
- It finishes a client's revocation only as that client, who may lack the permission to delete the lease's keys; without
  keys there is nothing to permit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from itertools import islice
from time import monotonic
from typing import Final

from esp.core import errors, lease_sync
from esp.core.background import Background
from esp.core.layout import Layout
from esp.core.lease_sync import Copied, CopyTtl
from esp.core.services.lease.table import ID_BITS, MISSED, Lacking, LeaseTable, is_empty
from esp.core.shard import Shard
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import Fields
from esp.core.wire.status import RpcError
from esp.core.wording import shard_called

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
    """The repair of one lease on one shard: grants the lease, or revokes it.

    Attributes:
        metadata: of the client for whom esp does this.
        grants: whether the lease is to be granted.
        ends: a revocation needs no permission of the client.
        drawn: esp has drawn the id and told nobody, so no other lease has it.
    """

    __slots__ = ("drawn", "ends", "grants", "metadata")

    def __init__(self, metadata: Fields, *, grants: bool, ends: bool = False, drawn: bool = False) -> None:
        self.drawn = drawn
        self.ends = ends
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

        A new shard counts as one that was unreachable: another proxy may be about to grant leases there. So does a
        shard that has got another client; its repairs wait on.
        """
        self._layout = layout
        kept: dict[str, dict[int, _Job]] = {}
        for name, yard in list(self._yards.items()):
            if layout.shards.get(name) is not yard.shard:
                del self._yards[name]
                kept[name] = yard.jobs
                self.table.drop_shard(name)
                if yard.worker is not None:
                    yard.worker.cancel()
        for name, shard in layout.shards.items():
            if name not in self._yards:
                yard = self._yards[name] = _Yard(shard)
                yard.was_ready = False
                yard.jobs.update(kept.get(name, {}))
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
        """Finishes a client's revocation of a lease on these shards."""
        for shard in shards:
            self._add(lease_id, shard, _Job(metadata, grants=False))

    def end(self, lease_id: int, shards: Iterable[str], metadata: Fields, *, drawn: bool = False) -> None:
        """Ends a lease that nobody holds: no client has heard of it, as of a `drawn` id, or it has ended elsewhere."""
        for shard in shards:
            self._add(lease_id, shard, _Job(metadata, grants=False, ends=True, drawn=drawn))

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
        name = f"lease repair on {shard_called(yard.shard.name)}"
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
                await self._revoke(lease_id, shard, job)
            elif (known := self.table.get(lease_id)) is not None:
                await self._copy(lease_id, shard, known.metadata, CALL_SECONDS)
        except RpcError as error:
            if errors.is_unreachable(error.status):
                raise
            if self._may_log_in(shard, job) and shard.wants_login(error.status):
                if jobs.get(lease_id) is job:  # behind the repairs that need no token of esp's own
                    jobs[lease_id] = jobs.pop(lease_id)
                raise
            self._gave_up(lease_id, shard, error.status.message)
        except Exception as error:  # a bug: another try would fail again, and hold up the other repairs
            self.table.counters["repairs_failed"] += 1
            self._background.failed(f"lease repair on {shard_called(shard.name)}", error)
        if jobs.get(lease_id) is job:
            del jobs[lease_id]

    def _gave_up(self, lease_id: int, shard: Shard, reason: str) -> None:
        self.table.counters["repairs_failed"] += 1
        log.warning("shard %s: lease %x cannot be repaired: %s", shard.name, lease_id & ID_BITS, reason)

    async def _revoke(self, lease_id: int, shard: Shard, job: _Job) -> None:
        """Revokes a lease on a shard, in whichever name it may be done.

        Raises:
            RpcError: as `lease_sync.revoke`.
        """
        if not job.drawn and await self._is_granted_anew(lease_id, shard, job):
            self.table.counters["revocations_dropped"] += 1
            return
        first, second = (None, job.metadata) if job.ends and shard.user is not None else (job.metadata, None)
        try:
            await lease_sync.revoke(shard, lease_id, metadata=first, seconds=CALL_SECONDS)
        except RpcError as error:
            if error.status not in errors.STALE_TOKEN or shard.user is None:
                raise
            if second is None and await self._has_keys(lease_id, shard):
                text = f"{error.status.message}; its keys there are the client's to delete, and go with its TTL"
                self._gave_up(lease_id, shard, text)
                return
            job.ends = True
            try:
                await lease_sync.revoke(shard, lease_id, metadata=second, seconds=CALL_SECONDS)
            except RpcError as another:
                raise (another if errors.is_unreachable(another.status) else error) from None
        self.table.counters["revoked_later"] += 1

    async def _is_granted_anew(self, lease_id: int, shard: Shard, job: _Job) -> bool:
        """Whether the id has been granted again meanwhile, through another process perhaps: then it is left alone.

        So it is if it lives on a shard where no revocation waits, unless this shard is known to have missed that grant.
        """
        known = self.table.get(lease_id)
        if known is not None and known.on(shard.name) == MISSED:
            return False
        for name, yard in self._yards.items():
            if yard.shard is shard or lease_id in yard.jobs or not yard.shard.is_ready:
                continue
            with suppress(RpcError):
                metadata = self._asking(job.metadata)
                there = await lease_sync.time_to_live(yard.shard, lease_id, metadata=metadata, seconds=CALL_SECONDS)
                if there.TTL > 0:
                    log.info("shard %s: lease %x is not revoked: it lives on %s", shard.name, lease_id & ID_BITS, name)
                    return True
        return False

    @staticmethod
    async def _has_keys(lease_id: int, shard: Shard) -> bool:
        """Whether keys hang on the lease there.

        Raises:
            RpcError: as `lease_sync.call`.
        """
        return bool((await lease_sync.time_to_live(shard, lease_id, keys=True, seconds=CALL_SECONDS)).keys)

    def _may_log_in(self, shard: Shard, job: _Job) -> bool:
        """Whether the repair that a shard has refused for want of a token can go on with a new token of esp's own."""
        return self._asking(job.metadata) is None if job.grants else shard.user is not None

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
                text = f"{shard_called(shard.name)} has been away and lacks the lease, which may still be granted there"
                raise errors.lease_unsettled(text).error()
            await asyncio.sleep(POLL_SECONDS)

    def _asking(self, metadata: Fields) -> Fields | None:
        """The metadata with which esp asks for a lease and grants it: of esp's own user, or else of the client.

        Any user may do this, and the client's token may have ended by then. But esp revokes a lease only as the client,
        who may lack the permission to delete the lease's keys.
        """
        return None if self.asks_as_itself else metadata

    @property
    def asks_as_itself(self) -> bool:
        """Whether esp has a user of its own at every shard, in whose name it asks for leases and grants them."""
        return all(shard.user for shard in self._layout.shards.values())

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
