"""The clients of shards in a running proxy: those of the layout in force, of the next one, and of shards that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import ceil
from time import monotonic
from typing import Final

from esp.core.background import Background
from esp.core.config import Config, ShardConfig
from esp.core.layout import Layout
from esp.core.shard import GUARD_KEY, Guard, GuardedShard, Outdated, Shard, nobody
from esp.core.tls_files import TlsFiles
from esp.core.undivided import Undivided
from esp.core.wire.context import WireContext
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.transport import TICK_SECONDS
from esp.core.wording import shard_called

TICKED_AT_ONCE: Final = 32
"""Shards that are ticked in one step of the loop."""
GIVE_UP_SECONDS: Final = 5.0
"""The longest that the end of the process waits for `gave_up`."""


class Running:
    """The clients of shards, and their tasks.

    A client begins with the layout that has its shard, or before, while that layout is prepared. Its certificates are
    kept from the moment in which the layout is made until the client has ended.

    Args:
        tls_files: the certificates of esp at the shards.
        outdated: takes over clients' calls that a shard has refused because they came by an outdated map.
    """

    def __init__(
        self,
        context: WireContext,
        background: Background,
        tls_files: TlsFiles,
        outdated: Outdated = nobody,
    ) -> None:
        self._outdated = outdated
        self._context = context
        self._background = background
        self._tls_files = tls_files
        self._tasks: dict[Shard, asyncio.Task[None]] = {}
        self._next: set[Shard] = set()  # of layouts that are neither in force nor forgotten

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards whose clients run."""
        return tuple(self._tasks)

    def layout_of(self, config: Config, before: Layout | None = None) -> Layout:
        """The layout that follows `before`: the shard map of `config`, and its shards.

        A shard with the name, user, TLS and guard of a shard of `before`, or of another layout that is prepared, and at
        least one of its endpoints, keeps that shard's client. The layout has to be given to `install` or to `forget`.
        A map of the shards keeps its epoch.

        Raises:
            TlsFileError: a certificate of a shard cannot be used.
        """
        kept = {} if before is None else before.shards
        shards, new = [], []
        for shard in config.shards:
            guard = None if config.guards is None else Guard(GUARD_KEY, config.guards[shard.name].encode())
            known = [kept[shard.name]] if shard.name in kept else []
            known += [client for client in self._next if client.name == shard.name]
            client = next((each for each in known if each.may_become(shard) and each.guard == guard), None)
            if client is None:
                client = self._client(shard, guard)
            if client is not kept.get(shard.name):
                new.append(client)
            shards.append(client)
        self._next.update(new)
        shard_map = config.shard_map
        if config.guards is None:
            shard_map = replace(shard_map, epoch=1 if before is None else before.epoch + 1)
        undivided = Undivided(shard_map, config.across_shards.refused, self._context.reached)
        return Layout.of(shard_map, shards, undivided)

    def _client(self, shard: ShardConfig, guard: Guard | None) -> Shard:
        context, background, files = self._context, self._background, self._tls_files
        if guard is None:
            return Shard.of(shard, context, background, files)
        return GuardedShard.of(shard, context, background, files, guard=guard, outdated=self._outdated)

    async def prepare(self, layout: Layout, seconds: float) -> list[str]:
        """Begins the clients of a layout's new shards; those that are unreachable after `seconds`, by name.

        A layout may be installed without this. Then calls to its new shards wait, as for any shard that is not
        connected.
        """
        # Also those that began with a layout that was prepared before this one, and are not connected yet.
        new = [shard for shard in layout.shards.values() if shard not in self._tasks or shard in self._next]
        for shard in new:
            self._begin(shard)
        return await unreachable(new, seconds)

    def install(self, layout: Layout) -> None:
        """The layout is in force: the clients of all its shards run."""
        for shard in layout.shards.values():
            self._begin(shard)
        self._next.difference_update(layout.shards.values())

    async def forget(self, layout: Layout, in_force: Layout) -> None:
        """Ends the clients of a layout's shards that are not `in_force`."""
        new = [shard for name, shard in layout.shards.items() if in_force.shards.get(name) is not shard]
        self._next.difference_update(new)
        await self.let_go(new)

    async def leave(self, shards: Sequence[Shard], calls: Sequence[ServerStream], seconds: float) -> None:
        """Ends the clients of shards that have left, once the calls that may need them have ended, or after `seconds`.

        Not at once, because a reload looks there once more.
        """
        until = monotonic() + seconds
        await asyncio.sleep(TICK_SECONDS)
        while monotonic() < until and not (  # noqa: ASYNC110 - a tick is as good
            all(call.is_over for call in calls) and all(shard.waits.are_done for shard in shards)
        ):
            await asyncio.sleep(TICK_SECONDS)
        await self.let_go(shards)

    async def gave_up(self) -> None:
        """Waits until the shards have heard of all calls that were given up (`Waits`), for a while at most.

        If the connections ended before, a shard would give up all the rest in one moment.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_SECONDS):
                for shard in self.shards:
                    await shard.waits.done()

    async def let_go(self, shards: Iterable[Shard]) -> None:
        """Ends the clients of shards, and forgets the certificates that no shard uses any more."""
        await self._background.end([self._tasks.pop(shard) for shard in shards if shard in self._tasks])
        used = {*self._tasks, *self._next}
        self._tls_files.keep_clients(each.secured.credentials for each in used if each.secured is not None)

    def _begin(self, shard: Shard) -> None:
        if shard not in self._tasks:
            self._tasks[shard] = self._background.start(shard.run())

    async def tick(self) -> None:
        """Ticks each shard about twice a second. A thousand shards take turns: together they would hold up the loop."""
        while True:
            shards = self.shards
            pause = TICK_SECONDS / max(1, ceil(len(shards) / TICKED_AT_ONCE))
            for first in range(0, max(1, len(shards)), TICKED_AT_ONCE):
                await asyncio.sleep(pause)
                now = monotonic()
                for shard in shards[first : first + TICKED_AT_ONCE]:
                    self._background.guard(f"the deadlines of {shard_called(shard.name)}", partial(shard.tick, now))
                self._context.flush()


async def unreachable(shards: Iterable[Shard], seconds: float) -> list[str]:
    """Waits until every shard is reachable, `seconds` at most; the names of those that are not."""
    deadline = monotonic() + seconds
    while True:
        missing = [shard for shard in shards if not shard.is_ready]
        if all(shard.unsafe for shard in missing) or monotonic() > deadline:
            return [shard.name for shard in missing]
        await asyncio.sleep(0.01)
