"""A member that failed is looked at again while another is in use: its state is true, the shard's facts stay."""

from __future__ import annotations

import asyncio

import pytest

from esp.core.shard import Connectivity
from esp.core.shard.leader import NO_LEADER
from esp.core.wire.limits import Limits
from tests.core.front import Front
from tests.core.scripted_etcd import VERSION, ScriptedEtcd

QUICK = Limits(connect_timeout=20, health_interval=0.02, health_timeout=20)
FAILURE, IDLE, READY = Connectivity.TRANSIENT_FAILURE, Connectivity.IDLE, Connectivity.READY


def test_a_member_that_is_back_is_no_longer_told_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="esp.shard")

    async def run() -> None:
        async with ScriptedEtcd() as first, ScriptedEtcd() as second:
            first.tells = False
            async with Front(first.endpoint, second.endpoint, limits=QUICK, waits=False) as front:
                connection = await first.accepts()
                connection.hangs_up()
                await front.until(lambda: front.shard.is_ready)
                states = front.shard.states
                assert front.shard.endpoint == second.endpoint
                # Up again, but another release, cut off from its cluster.
                first.version, first.leader, first.revision, first.tells = "3.4.1", 0, 1000, True
                await front.until(lambda: states[first.endpoint].trouble == NO_LEADER)
                assert states[first.endpoint].connectivity is FAILURE
                first.leader = 7
                await front.until(lambda: states[first.endpoint].connectivity is IDLE)
                assert states[first.endpoint].trouble == ""
                assert (front.shard.endpoint, states[second.endpoint].connectivity) == (second.endpoint, READY)
                assert (front.shard.version, front.shard.seen) == (VERSION, second.revision)
                looks = len(first.connections)
                await asyncio.sleep(20 * QUICK.health_interval)
                assert len(first.connections) == looks
                for one in first.connections:
                    await one.ends()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert any("can be used again" in record.message for record in caplog.records)


def test_a_look_ends_with_the_connection_in_use() -> None:
    async def run() -> None:
        async with ScriptedEtcd() as first, ScriptedEtcd() as second:
            first.tells = False  # so a look hangs
            async with Front(first.endpoint, second.endpoint, limits=QUICK, waits=False) as front:
                (await first.accepts()).hangs_up()
                await front.until(lambda: front.shard.is_ready)
                in_use = await second.accepts()
                await first.accepts()
                first.tells = True
                in_use.hangs_up()
                await front.until(lambda: front.shard.endpoint == first.endpoint)
                assert front.shard.states[first.endpoint].connectivity is READY

    asyncio.run(asyncio.wait_for(run(), 60))
