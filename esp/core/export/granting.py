"""The leases of an export, made anew on all shards that an import writes to, and kept alive while it runs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from heapq import heappop, heappush
from time import monotonic
from typing import Final

from esp.core import errors
from esp.core.background import all_of
from esp.core.export.lines import ExportError, Grant, hex_of
from esp.core.export.patience import CALL_SECONDS, PATIENCE_SECONDS, PAUSE_SECONDS, may_pass, read, told
from esp.core.export.renewing import AT_ONCE, LOOK_SECONDS, Renewing
from esp.core.lease_sync import each, revoke
from esp.core.pb import rpc_pb2
from esp.core.shard import LEASE_GRANT, LEASE_TIME_TO_LIVE, Shard, ask_for_esp
from esp.core.wire.status import RpcError
from esp.core.wording import counted, shard_called

OTHER_IDS: Final = 8
"""The ids that are tried for a lease whose own is taken."""


class Granting:
    """The leases of one import.

    A lease keeps its id if that is free on all shards, else it gets another one: the first free of a few that follow
    from the first line of the export and the id. So an import that is resumed finds the leases that it has granted. An
    import into keys that are there takes a lease of the same id and TTL for the same lease: it makes the keys what they
    are in the export, and done again it leaves no leases behind.

    Attributes:
        renamed: the new ids of leases whose ids were taken, by the old ids.
        granted: the number of leases that were granted.
        ended: leases of the export that had ended, or have ended since.
    """

    def __init__(
        self, shards: Sequence[Shard], salt: bytes, *, resumes: bool, shares: bool = False, grants: bool = True
    ) -> None:
        """The leases of no export yet.

        Args:
            shards: where they are granted.
            salt: the first line of the export.
            resumes: the leases may have been granted before.
            shares: leases of the same id and TTL may be used that are there.
            grants: whether leases are granted at all; else keys get none, but those of ended leases are left out.
        """
        self._grants = grants
        self.renamed: dict[int, int] = {}
        self.granted = 0
        self.ended: set[int] = set()
        self._shards = shards
        self._salt = salt
        self._resumes = resumes
        self._shares = shares or resumes
        self._ids: dict[int, int] = {}
        self._ttls: dict[int, int] = {}
        self._due: list[tuple[float, int]] = []
        self._renewing = [Renewing(shard) for shard in shards]

    @property
    def lost(self) -> dict[str, set[int]]:
        """By shard, the leases that have ended there although this import has granted them, by their ids there."""
        return {one.shard.name: one.lost for one in self._renewing if one.lost}

    def id_of(self, lease: int) -> int | None:
        """The id that a lease of the export has on the shards, 0 for no lease; None if the lease has ended.

        Raises:
            ExportError: the export has no line of the lease before the first key that has it.
        """
        if lease in self.ended:
            return None
        try:
            return self._ids[lease]
        except KeyError:
            raise ExportError(f"the export has no line of lease {hex_of(lease)}; it is damaged") from None

    async def grant(self, grants: Iterable[Grant]) -> None:
        """Grants leases.

        Raises:
            ExportError: a shard refuses, or does not answer.
        """
        try:
            await each(grants, self._grant, AT_ONCE)
        except RpcError as error:
            raise ExportError(f"a lease cannot be granted: {error.status.message}") from None

    async def _grant(self, grant: Grant) -> None:
        lease, ttl = grant
        if ttl is None:
            self.ended.add(lease)
            return
        if ttl < 1:
            raise ExportError(f"lease {hex_of(lease)} has a TTL of {ttl} s; the export is damaged")
        if not self._grants:
            self._ids[lease] = 0
            return
        others = self._others(lease)
        in_order = [lease, *others]
        if self._resumes:
            # Another id is there only if all before it were taken.
            alive = [other async for other in self._living(others)]
            in_order = [*reversed(alive), *(one for one in in_order if one not in alive)]
        for wanted in in_order:
            if await self._granted(wanted, ttl):
                self.granted += 1
                self._ids[lease] = wanted
                if wanted != lease:
                    self.renamed[lease] = wanted
                self._ttls[wanted] = ttl
                heappush(self._due, (monotonic() + ttl / 3, wanted))
                return
        raise ExportError(
            f"the ids of lease {hex_of(lease)}, its own and {counted(len(others), 'other')} from {hex_of(others[0])} on"
            ", are taken; revoke one that has no keys (etcdctl lease timetolive ID --keys)"
        )

    def _others(self, lease: int) -> list[int]:
        """The ids for a lease whose own is taken, the first one first."""
        data = self._salt + lease.to_bytes(8, signed=True)
        others = []
        for _ in range(OTHER_IDS):
            data = hashlib.sha256(data).digest()
            others.append(int.from_bytes(data[:8]) >> 1 or 1)
        return others

    async def _living(self, leases: Iterable[int]) -> AsyncIterator[int]:
        """Those of these leases that live on a shard, up to the first that lives on none."""
        for lease in leases:
            answers = [await self._time_to_live(shard, lease) for shard in self._shards]
            if all(answer.TTL < 0 for answer in answers):
                return
            yield lease

    async def _time_to_live(self, shard: Shard, lease: int) -> rpc_pb2.LeaseTimeToLiveResponse:
        return await read(shard, LEASE_TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=lease))

    async def _granted(self, lease: int, ttl: int) -> bool:
        """Grants a lease on all shards; False, and no shard has it from here, if the id is taken on one of them."""
        done: list[Shard] = []
        for shard in self._shards:
            granted = await self._granted_on(shard, lease, ttl)
            if granted is None:
                for before in done:
                    await revoke(before, lease)
                return False
            if granted:  # one that was there may be somebody else's, and is never taken back
                done.append(shard)
        return True

    async def _granted_on(self, shard: Shard, lease: int, ttl: int) -> bool | None:
        """True if the lease was granted now, False if it was there and may be an earlier grant, None if it is taken."""
        until = monotonic() + PATIENCE_SECONDS
        may_be_own = self._shares
        while True:
            try:
                request = rpc_pb2.LeaseGrantRequest(ID=lease, TTL=ttl)
                await ask_for_esp(shard, LEASE_GRANT, request, seconds=CALL_SECONDS)
                return True
            except RpcError as error:
                if error.status == errors.LEASE_EXISTS:
                    is_own = may_be_own and (await self._time_to_live(shard, lease)).grantedTTL == ttl
                    return False if is_own else None
                if not may_pass(error.status) or monotonic() > until:
                    raise ExportError(told(shard, error.status)) from None
            may_be_own = True  # nobody knows whether the shard has granted it
            await asyncio.sleep(PAUSE_SECONDS)

    async def forget_ended(self, leases: Iterable[int], shard: Shard) -> None:
        """Finds out which of these leases, by their ids in the export, have ended on a shard.

        Raises:
            ExportError: the shard does not answer.
        """
        for lease in leases:
            try:
                answer = await self._time_to_live(shard, self._ids[lease])
            except RpcError as error:
                raise ExportError(told(shard, error.status)) from None
            if answer.TTL < 0:
                self.ended.add(lease)
                for one in self._renewing:
                    if one.shard is shard:
                        one.lost.add(self._ids[lease])

    async def keep_alive(self) -> None:
        """Renews the leases on each shard, each when a third of its TTL has passed, for ever."""
        await all_of([self._look(), *(one.run() for one in self._renewing)])

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = monotonic()
            while self._due and self._due[0][0] <= now:
                lease = heappop(self._due)[1]
                ttl = self._ttls[lease]
                for one in self._renewing:
                    one.want(lease, ttl)
                heappush(self._due, (now + ttl / 3, lease))

    async def renew_all(self) -> None:
        """Renews all leases, so that they begin with their whole TTL.

        Raises:
            ExportError: a shard does not answer.
        """
        await all_of([one.renew(self._ttls.items()) for one in self._renewing])


class SameLeases(Granting):
    """The leases of an import into shards that have them under the same ids: keys of an esp move to another shard.

    None is granted or renewed. A lease that lives on another shard, but not on the one that gets its key, is an error.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        """`shards` are those that may have the leases."""
        super().__init__(shards, b"", resumes=False)

    async def grant(self, grants: Iterable[Grant]) -> None:
        """Takes the leases for those of the shards."""
        for lease, ttl in grants:
            if ttl is None:
                self.ended.add(lease)
            else:
                self._ids[lease] = lease

    async def forget_ended(self, leases: Iterable[int], shard: Shard) -> None:
        """Finds out which of these leases, which a shard may lack, have ended on all.

        Raises:
            ExportError: the shard lacks one that lives on another; or a shard does not answer.
        """
        for lease in leases:
            try:
                living = [one for one in self._shards if (await self._time_to_live(one, lease)).TTL >= 0]
            except RpcError as error:
                raise ExportError(f"a shard does not tell a lease: {error.status.message}") from None
            if not living:
                self.ended.add(lease)
            elif shard not in living:
                raise ExportError(
                    f"{shard_called(shard.name)} lacks lease {hex_of(lease)}, which lives on "
                    f"{shard_called(living[0].name)}; esp lease-sync --apply grants it"
                )
