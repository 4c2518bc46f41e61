"""The news that a shard's keys of the map have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from esp.core.auth_tokens import OWN
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard
from esp.core.shared_map.value import NEWS_KEYS
from esp.core.wire.call import BrokenCall
from esp.core.wire.status import RpcError

PAUSE_SECONDS: Final = 1.0
"""Seconds until a watch that has ended begins anew."""
_WATCH: Final = b"/etcdserverpb.Watch/Watch"


async def watch(shard: Shard, changed: Callable[[], object], keys: KeyRange = NEWS_KEYS) -> None:
    """Calls `changed` when keys of esp's own have changed on a shard, or may have because a watch begins. Never ends.

    Without `keys`, those of the map.
    """
    key, range_end = keys.to_request()
    create = rpc_pb2.WatchCreateRequest(key=key, range_end=range_end)
    request = rpc_pb2.WatchRequest(create_request=create).SerializeToString()
    while True:
        with suppress(RpcError, BrokenCall):
            call = await shard.open((_WATCH, OWN), request)
            try:
                while (message := await call.read()) is not None:
                    changed()
                    if shard.parsed(rpc_pb2.WatchResponse, message).canceled:
                        break  # esp has to log in: whoever reads the map does so
            finally:
                call.cancel()
        await asyncio.sleep(PAUSE_SECONDS)
