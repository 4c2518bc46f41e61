"""What waits for a shard's connection; the rest of a lane is tested with the shard, in test_shard.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

from esp.core.background import Background
from esp.core.lane import Lane
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.status import RpcError


def test_a_coroutine_that_waited_in_vain_leaves_nothing_to_the_garbage_collector() -> None:
    async def run() -> bool:
        lane = Lane(WireContext(Limits()), Background())
        task = asyncio.create_task(lane.wait())
        await asyncio.sleep(0)
        (waiter,) = lane.waiting
        gone = weakref.ref(waiter.future)  # type: ignore[union-attr]
        del waiter
        lane.close()
        with contextlib.suppress(RpcError):
            await task
            return False
        del task
        return gone() is None

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(run())
    finally:
        gc.enable()
