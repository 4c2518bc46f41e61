"""The clients of a config's shards for a command: connected as the proxy connects them, while a block runs.

If the config has the map of the shards, the clients compare its guards with each read and write of keys, as a proxy's
do: a shard refuses a command that does not know of the newest map, and nothing is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Final

from esp.core.background import Background
from esp.core.config import Config, ShardConfig
from esp.core.shard import GUARD_KEY, Guard, GuardedShard, Shard
from esp.core.tls_files import TlsFiles
from esp.core.wire.context import WireContext
from esp.core.wire.status import Code, Status
from esp.core.wire.transport import TICK_SECONDS
from esp.core.wording import all_cured, shard_quoted

CONNECT_SECONDS: Final = 3.0
"""For which a shard is waited for, unless the config's `connect_timeout` is longer."""
_POLL_SECONDS: Final = 0.01


class UnreachableError(Exception):
    """A shard cannot be reached, or refuses; the text is a clause for people."""


@asynccontextmanager
async def connected(config: Config) -> AsyncIterator[dict[str, Shard]]:
    """The shards by name, connected, for as long as the block runs.

    Raises:
        UnreachableError: a shard cannot be connected to within CONNECT_SECONDS, or the config's `connect_timeout`.
    """
    context, files = WireContext(config.limits), TlsFiles()
    until = monotonic() + max(CONNECT_SECONDS, config.limits.connect_timeout)
    async with Background() as background:
        shards = [client_of(config, shard, context, background, files) for shard in config.shards]
        for shard in shards:
            background.start(shard.run())
        background.keep("the shards' deadlines", partial(_tick, shards))
        for shard in shards:
            while not shard.is_ready:
                if monotonic() > until:
                    reasons = all_cured({str(endpoint): reason for endpoint, reason in shard.troubles.items()})
                    raise UnreachableError(f"{shard_quoted(shard.name)} cannot be reached: {reasons or 'no answer'}")
                await asyncio.sleep(_POLL_SECONDS)
        yield {shard.name: shard for shard in shards}


def client_of(
    config: Config, shard: ShardConfig, context: WireContext, background: Background, files: TlsFiles
) -> Shard:
    """The client of a shard of the config, for a command that reads or writes keys."""
    if config.guards is None:
        return Shard.of(shard, context, background, files)
    guard = Guard(GUARD_KEY, config.guards[shard.name].encode())
    return GuardedShard.of(shard, context, background, files, guard=guard, compares_own=True)


@asynccontextmanager
async def answering(config: Config) -> AsyncIterator[tuple[dict[str, Shard], dict[str, Status]]]:
    """The shards that are connected, and why the others are not, by name; for as long as the block runs.

    Their clients compare nothing.
    """
    context, files = WireContext(config.limits), TlsFiles()
    until = monotonic() + max(CONNECT_SECONDS, config.limits.connect_timeout)
    async with Background() as background:
        shards = {shard.name: Shard.of(shard, context, background, files) for shard in config.shards}
        for shard in shards.values():
            background.start(shard.run())
        background.keep("the shards' deadlines", partial(_tick, list(shards.values())))
        while monotonic() < until and not all(map(_is_settled, shards.values())):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_POLL_SECONDS)
        troubles = {
            name: Status(Code.UNAVAILABLE, "; ".join(dict.fromkeys(shard.troubles.values())) or "no answer")
            for name, shard in shards.items()
            if not shard.is_ready
        }
        yield {name: shard for name, shard in shards.items() if name not in troubles}, troubles


def _is_settled(shard: Shard) -> bool:
    """Whether a shard is connected, or all of its endpoints have failed."""
    return shard.is_ready or len(shard.troubles) == len(shard.endpoints)


async def _tick(shards: Sequence[Shard]) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        for shard in shards:
            shard.tick(monotonic())
