"""Ends a watcher over several shards if a shard has compacted history that the watcher needs.

etcd's contract: the client gets a `compact_revision`, and a watch from there begins at once. A watcher over several
shards has a position in each shard. Other shards may have compacted their position as well, without a message: etcd
does not cancel a quiet watcher that has caught up. So before esp tells the client, it asks each shard to read at the
position there. A shard that has compacted the position refuses. Then esp asks it to watch from there; the shard cancels
that watch, and names the first revision that it still has. The client's next watch begins on each shard at that
revision, or at the watcher's position. So no event that a shard still has is left out. esp waits for a shard that
cannot be reached.

Until then the other shards feed the watcher.
"""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Callable
from typing import Final

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.watch.span import Span
from esp.core.services.watch.tap import Client, Tap
from esp.core.shard import RANGE, ask
from esp.core.wire.hpack import encode
from esp.core.wire.status import Code, RpcError

READ_SECONDS: Final = 5.0
"""Seconds that a shard may take to answer."""
PAUSE: Final = 1.0
"""Seconds to the next question to a shard that could not answer or did not cancel the watch: a member that lags behind
still has the history."""
PASSING: Final = frozenset((Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNKNOWN, Code.RESOURCE_EXHAUSTED))
"""Refusals after which the shard is asked again."""


class OldestRevisions:
    """The search, for one watcher, for the position from which each shard still has its history."""

    __slots__ = ("_client", "_found", "_on_found", "_span", "_tasks")

    def __init__(self, client: Client, span: Span, on_found: Callable[[], None]) -> None:
        """`on_found` is called once, when each shard has all history from the watcher's position there on."""
        self._client = client
        self._span = span
        self._on_found = on_found
        self._found: set[Tap] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Asks the shards whose history is not known yet."""
        start, unknown = self._client.background.start, [tap for tap in self._span.taps if tap not in self._found]
        self._tasks = [start(self._find(tap), on_bug=self._client.outbox.fail) for tap in unknown]

    def on_lost(self, tap: Tap, compact_revision: int) -> None:
        """A shard has canceled the watcher's part; the shard has its history from `compact_revision` on."""
        tap.passed = max(tap.passed, compact_revision - 1)
        self._settle(tap)

    def cancel(self) -> None:
        """Ends the search."""
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
        """Whether the shard has the history that the watcher needs next. True, too, if the shard refuses to answer."""
        wanted = self._span.passed(tap) + 1
        request = rpc_pb2.RangeRequest(key=tap.first_key, revision=wanted, count_only=True)
        shard = self._client.routing.shards[tap.shard]
        try:
            await ask(shard, RANGE, request, metadata=encode(self._client.metadata), seconds=READ_SECONDS)
        except RpcError as error:
            if error.status == errors.COMPACTED:
                if tap not in self._found:
                    tap.restart(wanted)
                    self._client.outbox.context.flush()
                return False
            return error.status == errors.FUTURE_REV or error.status.code not in PASSING
        return True
