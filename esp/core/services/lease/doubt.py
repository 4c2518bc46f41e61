"""Keepalives to which one shard answers "no such lease" while others have the lease: that shard is asked once more.

An etcd that was the leader when its process or machine stood still goes on in the belief that it leads. In its first
milliseconds it answers keepalives from what it knew before, also those that have waited in its socket: it knows no
lease that its successor has granted. One etcd cluster does no more than tell the client so. esp would end the lease on
all shards, so it makes sure first. A linearizable read makes the member find out who leads; the answer to a keepalive
after that read is true.

Who waits for one shard shares the read.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Final, Protocol

from esp.core import lease_sync
from esp.core.background import Background
from esp.core.services.lease.keepalive_lane import Lane, LaneKeepalive
from esp.core.wire.hpack import Fields
from esp.core.wire.server_stream import INTERNAL_ERROR
from esp.core.wire.status import RpcError, Status

SECONDS: Final = 1.0
"""Seconds for the read: a member without a leader answers no read."""


class Doubtful(LaneKeepalive, Protocol):
    """A keepalive whose answer by a shard is doubted."""

    @property
    def metadata(self) -> Fields:
        """The client's metadata for the shards."""

    def lane(self, shard: str) -> Lane | None:
        """The lane to a shard now; None if the shard has left the layout."""


class Doubts:
    """The keepalives that wait until their shard may be asked again.

    Attributes:
        background: owner of the reads.
    """

    def __init__(self, background: Background) -> None:
        self.background = background
        self._waiting: dict[Lane, deque[Doubtful]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, keepalive: Doubtful, lane: Lane) -> None:
        """Asks the shard of `lane` once more about a lease, and gives the keepalive its answer, or its failure."""
        waiting = self._waiting.get(lane)
        if waiting is not None:
            waiting.append(keepalive)
            return
        self._waiting[lane] = deque((keepalive,))
        self.background.start(self._settle(lane), on_bug=partial(self._fail, lane, INTERNAL_ERROR))

    async def _settle(self, lane: Lane) -> None:
        waiting = self._waiting[lane]
        while waiting:
            asked = len(waiting)  # who comes after this needs a read that begins later
            failure = await self._read(lane, waiting[0].metadata)
            if failure is not None:
                self._fail(lane, failure)
                return
            for _ in range(asked):
                keepalive = waiting.popleft()
                now = keepalive.lane(lane.name)
                if now is None:
                    keepalive.spared(lane.name)
                elif keepalive.wanted:
                    now.send([keepalive], keepalive.body)
        del self._waiting[lane]

    @staticmethod
    async def _read(lane: Lane, metadata: Fields) -> Status | None:
        """The failure of the read; None if the member knows by now all that its cluster has decided before."""
        try:
            await lease_sync.catch_up(lane.shard, metadata=metadata, seconds=SECONDS)
        except RpcError as error:
            return error.status
        return None

    def _fail(self, lane: Lane, status: Status) -> None:
        for keepalive in self._waiting.pop(lane, ()):
            keepalive.failed(lane.name, status)
