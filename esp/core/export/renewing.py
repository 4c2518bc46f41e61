"""The leases of an import, kept alive on one shard; each shard by itself, so that a silent one holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Final

from google.protobuf.message import DecodeError

from esp.core.auth_tokens import OWN
from esp.core.export.lines import ExportError
from esp.core.export.patience import PATIENCE_SECONDS, PAUSE_SECONDS, told
from esp.core.lease_sync import each
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard
from esp.core.wire.call import BrokenCall
from esp.core.wire.status import DEADLINE_EXCEEDED, RpcError, Status

AT_ONCE: Final = 64
"""Renewals at a time, on each shard."""
LOOK_SECONDS: Final = 0.2
"""Seconds between two looks for leases that are due."""
MOST_SECONDS: Final = 2.0
"""Seconds that a renewal may take, or a third of the TTL; then the lease is renewed again. Others may be due."""
_KEEP_ALIVE: Final = b"/etcdserverpb.Lease/LeaseKeepAlive"


class Renewing:
    """The renewals on one shard.

    Attributes:
        shard: the shard.
        lost: the leases that ended there although they were to be renewed.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.lost: set[int] = set()
        self._wanted: dict[int, int] = {}
        self._trouble: Status = DEADLINE_EXCEEDED

    def want(self, lease: int, ttl: int) -> None:
        """Has a lease renewed soon, unless it is lost; `ttl` is its TTL in seconds."""
        if lease not in self.lost:
            self._wanted[lease] = ttl

    async def run(self) -> None:
        """Renews leases for ever, each that is wanted until the shard has answered."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._renew_wanted()

    async def renew(self, leases: Iterable[tuple[int, int]]) -> None:
        """Renews leases, which come with their TTLs, while `run` does not.

        Raises:
            ExportError: the shard does not answer.
        """
        for lease, ttl in leases:
            self.want(lease, ttl)
        until = monotonic() + PATIENCE_SECONDS
        while True:
            await self._renew_wanted()
            if not self._wanted:
                return
            if monotonic() > until:
                raise ExportError(told(self.shard, self._trouble))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _renew_wanted(self) -> None:
        wanted, self._wanted = self._wanted, {}
        await each(wanted.items(), self._renew, AT_ONCE)

    async def _renew(self, lease_and_ttl: tuple[int, int]) -> None:
        lease, ttl = lease_and_ttl
        asked = monotonic()
        try:
            async with asyncio.timeout(min(MOST_SECONDS, ttl / 3)):
                lives = await self._ask(lease)
        except (TimeoutError, BrokenCall, DecodeError):
            self._wanted.setdefault(lease, ttl)
        except RpcError as error:
            self._trouble = error.status
            self._wanted.setdefault(lease, ttl)
            if self.shard.wants_login(error.status):  # it has forgotten esp's token, and is asked for nothing else
                await self.shard.log_in(asked, MOST_SECONDS)
        else:
            if not lives:
                self.lost.add(lease)

    async def _ask(self, lease: int) -> bool:
        """Renews a lease; False if the shard does not have it.

        Raises:
            RpcError, BrokenCall, DecodeError: the shard does not answer as it should.
        """
        message = rpc_pb2.LeaseKeepAliveRequest(ID=lease).SerializeToString()
        call = await self.shard.open((_KEEP_ALIVE, OWN), message, MOST_SECONDS)
        try:
            answer = await call.read()
        finally:
            call.cancel()
        return answer is None or rpc_pb2.LeaseKeepAliveResponse.FromString(answer).TTL > 0
