"""How many long lists of leases are made at once, over two shards that a test speaks for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from esp.core.pb import rpc_pb2
from esp.core.services import gate
from esp.core.services.alone import Alone
from esp.core.services.lease import service
from tests.core.scripted_etcd import HeardCall
from tests.core.services.test_all_shards import HEADER, LEASE, Asked, asks, run, until, world

MANY = 60
LEASES = 8_000
LONG = rpc_pb2.LeaseLeasesResponse(
    header=HEADER, leases=[rpc_pb2.LeaseStatus(ID=number << 40 | 7) for number in range(LEASES)]
).SerializeToString()


class Full(Asked):
    """A shard with many leases."""

    def answer_to(self, call: HeardCall) -> bytes:
        if call.path.decode() != LEASE + "LeaseLeases":
            return super().answer_to(call)
        return LONG


@pytest.mark.parametrize(("is_alone", "asked"), [(False, 1), (True, 4)])
def test_no_more_lists_are_merged_than_there_are_places_for(
    monkeypatch: pytest.MonkeyPatch, is_alone: bool, asked: int
) -> None:
    """One list at a time, or as many as there are places where nobody else uses the shards."""
    at_work = most = 0
    leases = service._FanOut.leases

    async def counted(*call: Any) -> rpc_pb2.LeaseLeasesResponse:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        try:
            return await leases(*call)
        finally:
            at_work -= 1

    monkeypatch.setattr(service._FanOut, "leases", counted)
    monkeypatch.setattr(Alone, "__contains__", lambda *_: is_alone)
    monkeypatch.setattr(gate, "STUCK_SECONDS", 600.0)  # on a slow machine as well nobody loses places meanwhile

    async def work() -> None:
        async with world(parts=4, shard=Full) as (proxy, shards, channel):
            for shard in shards:
                shard.answers_at_once = True
            calls = [asks(channel, LEASE + "LeaseLeases", seconds=60) for _ in range(MANY)]
            for answer in await asyncio.gather(*calls):
                assert len(rpc_pb2.LeaseLeasesResponse.FromString(answer).leases) == LEASES
            assert most <= 3 * asked, "so many are asked, as many have been answered, and as many are merged"
            await until(lambda: not proxy.gate.at_work)

    run(work)
