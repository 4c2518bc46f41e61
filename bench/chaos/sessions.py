"""Clients with leases: a key lives as long as its lease is renewed, and ends when that ends.

A renewal that was answered with a TTL promises the key for so long, counted from the moment at which the client asked.
A key that is gone before is a fault, unless the logs of a shard have it that an etcd that led no more has ended the
lease (`wal`). So is one that is still there long after the last promise.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Final

import grpc

from bench.chaos.client import Client, Endpoints, RefusedError, UnknownError
from bench.chaos.wal import Evidence
from esp.core.pb import rpc_pb2

TTL: Final = 6
RENEW_SECONDS: Final = 1.0
LIVES_SECONDS: Final = (8.0, 20.0)
"""How long a session is kept up: from, to."""
LATE_SECONDS: Final = 40.0
"""How long after the last promise a key may live: etcd gives leases their full time anew with each new leader."""


class Sessions:
    """One session after the other; each has a key in some shard.

    Attributes:
        counts: sessions by their end.
        faults: what no fault of the surroundings explains.
    """

    def __init__(
        self,
        name: str,
        endpoints: Endpoints,
        place: int,
        seed: int,
        prefixes: tuple[bytes, ...],
        who_ended: Callable[[int], Evidence],
    ) -> None:
        """`who_ended` looks in the shards' logs who has ended a lease."""
        self.name = name
        self._who_ended = who_ended
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._client = Client(endpoints, place)
        self._chance = random.Random(seed)
        self._prefixes = prefixes
        self._number = 0

    async def run(self, over: asyncio.Event) -> None:
        """Keeps sessions until the load is over.

        Raises:
            WrongError: no fault explains an answer.
        """
        try:
            while not over.is_set():
                try:
                    await self._session(over)
                except (RefusedError, UnknownError):
                    self.counts["could not begin"] += 1
        finally:
            await self._client.close()

    async def _session(self, over: asyncio.Event) -> None:
        self._number += 1
        key = self._chance.choice(self._prefixes) + f"session/{self.name}/{self._number}".encode()
        asked = monotonic()
        granted = await self._client.call(
            "Lease", "LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=TTL), rpc_pb2.LeaseGrantResponse
        )
        lease, promised = granted.ID, asked + granted.TTL
        await self._client.put(key, b"alive", lease)
        self.counts["begun"] += 1
        end = monotonic() + self._chance.uniform(*LIVES_SECONDS)
        while monotonic() < end and not over.is_set():
            await asyncio.sleep(RENEW_SECONDS)
            asked = monotonic()
            try:
                left = await self._renew(lease)
            except (RefusedError, UnknownError):
                continue
            if not left:
                if monotonic() < promised:
                    await self._gone(key, lease, f"its lease was gone {promised - monotonic():.1f} s before its time")
                self.counts["lost for lack of renewals"] += 1
                return
            promised = max(promised, asked + left)
            if not await self._is_there(key, lease, promised):
                return
        if self._chance.random() < 0.5:
            await self._revoked(key, lease)
        else:
            await self._expired(key, lease, promised)

    async def _renew(self, lease: int) -> int:
        """The TTL after a renewal; 0 for a lease that is gone."""
        call = self._client.stream(
            "Lease", "LeaseKeepAlive", rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse
        )
        try:
            async with asyncio.timeout(2):
                await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
                answer = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            await self._client.move()
            raise UnknownError(str(error)) from None
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            await self._client.move()
            raise UnknownError("the stream has ended")
        return int(answer.TTL)

    async def _is_there(self, key: bytes, lease: int, promised: float) -> bool:
        """Looks whether the key is there; a key that is not there before its time is a fault."""
        try:
            answer = await self._client.range(key)
        except (RefusedError, UnknownError):
            return True  # nobody knows
        if not answer.kvs and monotonic() < promised:
            await self._gone(key, lease, f"gone {promised - monotonic():.1f} s before its time")
            return False
        return True

    async def _gone(self, key: bytes, lease: int, how: str) -> None:
        """Notes that a lease has ended before its time."""
        named = _named(key, lease)
        found = await asyncio.to_thread(self._who_ended, lease)
        if found.is_of_former_leader:
            self.counts["ended by an etcd that led no more"] += 1
        else:
            self.faults.append(f"{named}: {how}; {found.text}")

    async def _revoked(self, key: bytes, lease: int) -> None:
        request = rpc_pb2.LeaseRevokeRequest(ID=lease)
        try:
            await self._client.call("Lease", "LeaseRevoke", request, rpc_pb2.LeaseRevokeResponse)
            answer = await self._client.range(key)
        except (RefusedError, UnknownError):
            return
        self.counts["revoked"] += 1
        if answer.kvs:
            self.faults.append(f"{_named(key, lease)}: still there after its lease was revoked")

    async def _expired(self, key: bytes, lease: int, promised: float) -> None:
        while True:
            await asyncio.sleep(0.5)
            asked = monotonic()
            try:
                answer = await self._client.range(key)
            except (RefusedError, UnknownError):
                if asked > promised + LATE_SECONDS:
                    return  # nobody can tell
                continue
            if not answer.kvs:
                if monotonic() < promised:
                    await self._gone(key, lease, f"gone {promised - monotonic():.1f} s before its time")
                self.counts["expired"] += 1
                return
            if asked > promised + LATE_SECONDS:
                self.faults.append(f"{_named(key, lease)}: still there {asked - promised:.0f} s after its time")
                return


def _named(key: bytes, lease: int) -> str:
    """The key, its lease and the time, by which the logs of proxies and members tell more."""
    return f"{time.strftime('%H:%M:%S', time.gmtime())} {key!r} with lease {lease:x}"
