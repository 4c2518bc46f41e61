"""The shards' clients, for questions to whole shards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from esp.core.background import Background
from esp.core.config import Config, ShardConfig
from esp.core.connected_shards import client_of
from esp.core.shard import Shard
from esp.core.tls_files import TlsFiles
from esp.core.wire.context import WireContext

POLL_SECONDS: Final = 0.01


@asynccontextmanager
async def connecting(
    config: Config, context: WireContext, files: TlsFiles, *, compares: bool = False
) -> AsyncIterator[dict[str, Shard]]:
    """The shards by name, which are connected as soon as that goes, for as long as the block runs.

    With `compares` each read and write of keys is refused, and nothing done, if the map of the shards has changed.
    """
    client = client_of if compares else _plain
    async with Background() as background:
        shards = {shard.name: client(config, shard, context, background, files) for shard in config.shards}
        for shard in shards.values():
            background.start(shard.run())
        yield shards


def _plain(_: Config, shard: ShardConfig, context: WireContext, background: Background, files: TlsFiles) -> Shard:
    return Shard.of(shard, context, background, files)


async def settled(shard: Shard) -> None:
    """Waits until a shard is connected, or all of its endpoints have failed."""
    while True:
        if shard.is_ready or len(shard.troubles) == len(shard.endpoints):
            return
        await asyncio.sleep(POLL_SECONDS)


async def trouble_of(shard: Shard, seconds: float) -> str:
    """Why a shard cannot be asked; "" if it can, after `seconds` at most."""
    try:
        await asyncio.wait_for(settled(shard), seconds)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    return "" if shard.is_ready else "; ".join(dict.fromkeys(shard.troubles.values()))
