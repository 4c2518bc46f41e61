"""The end of a watcher over several shards, for which one of them has compacted the history.

etcd's contract: the client is told a `compact_revision`, and the next watch from there begins at once. A watcher over
several shards has a position in each, and others may have compacted theirs as well, even where nothing tells: a watcher
that is quiet and has caught up is not canceled. So before the client is told, each shard is asked to read at the
position there. One that refuses, since it has compacted it, is asked to watch from there: that is canceled, with the
revision from which it has its history. What the client is told then begins on each shard there, or where the watcher
was: nothing that a shard still has is left out. A shard that cannot be reached is waited for.

Until then the watcher is fed by the shards that have what it needs.
"""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Callable
from typing import Final

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.metadata import call_head
from esp.core.services.reading import RANGE
from esp.core.services.watch.span import Span
from esp.core.services.watch.tap import Client, Tap
from esp.core.wire.status import Code, RpcError

READ_SECONDS: Final = 5.0
"""How long a shard may take to answer."""
PAUSE: Final = 1.0
"""Seconds before a shard is asked again that could not answer, or whose watch was not canceled: a member that lags
behind still has what is wanted."""
PASSING: Final = frozenset((Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNKNOWN, Code.RESOURCE_EXHAUSTED))
"""Refusals after which it is worth to ask again."""


class Compaction:
    """What is found out for one watcher until its client is told."""

    __slots__ = ("_client", "_found", "_on_found", "_span", "_tasks")

    def __init__(self, client: Client, span: Span, on_found: Callable[[], None]) -> None:
        """`on_found` is called once, when the position in each shard is one from which it has its history."""
        self._client = client
        self._span = span
        self._on_found = on_found
        self._found: set[Tap] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Asks the shards of which nothing is known yet."""
        start, unknown = self._client.background.start, [tap for tap in self._span.taps if tap not in self._found]
        self._tasks = [start(self._find(tap), on_bug=self._client.outbox.fail) for tap in unknown]

    def on_lost(self, tap: Tap, compact_revision: int) -> None:
        """A shard has canceled the watcher's part: this is the first revision that it has."""
        tap.passed = max(tap.passed, compact_revision - 1)
        self._settle(tap)

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        for task in self._tasks:
            task.cancel()

    def _settle(self, tap: Tap) -> None:
        before = len(self._found)
        self._found.add(tap)
        if before < len(self._found) == len(self._span.taps):
            self._on_found()

    async def _find(self, tap: Tap) -> None:
        while tap not in self._found:
            if await self._has_history(tap):
                self._settle(tap)
            else:
                await sleep(PAUSE)
        self._client.outbox.context.flush()

    async def _has_history(self, tap: Tap) -> bool:
        """Whether the shard has, or does not let anybody know whether it has, what the watcher needs next."""
        wanted = self._span.passed(tap) + 1
        request = rpc_pb2.RangeRequest(key=tap.first_key, revision=wanted, count_only=True).SerializeToString()
        shard = self._client.routing.shards[tap.shard]
        try:
            await shard.forward_unary(
                call_head(RANGE, self._client.metadata), request, idempotent=True, timeout=READ_SECONDS
            )
        except RpcError as error:
            if error.status == errors.COMPACTED:
                if tap not in self._found:
                    tap.restart(wanted)
                    self._client.outbox.context.flush()
                return False
            return error.status == errors.FUTURE_REV or error.status.code not in PASSING
        return True
