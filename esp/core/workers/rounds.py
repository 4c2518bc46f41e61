"""Work that many ask for, and that is done for all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

from esp.core.background import Background

REST: Final = 9
"""For each second of work so many seconds of rest: the work takes a tenth of the time, whoever asks how often."""
MOST_REST: Final = 1.0


class Rounds:
    """Does work in rounds, one at a time.

    Whoever asks waits for a round that begins later: so the work shows all that was there before. All who ask while a
    round lasts, and while it rests afterwards, share the next one.

    Args:
        background: owner of the tasks.
        work: the work of one round.

    Attributes:
        count: the rounds that have begun.
    """

    def __init__(self, background: Background, work: Callable[[], Awaitable[None]]) -> None:
        self.count = 0
        self._background = background
        self._work = work
        self._next: asyncio.Event | None = None
        self._lock = asyncio.Lock()
        self._rests_until = 0.0

    async def next(self) -> None:
        """Returns when a round is over that has begun since."""
        done = self._next
        if done is None:
            done = self._next = asyncio.Event()
            self._background.start(self._round(done))
        await done.wait()

    async def _round(self, done: asyncio.Event) -> None:
        try:
            async with self._lock:
                await asyncio.sleep(max(0.0, self._rests_until - monotonic()))
                self._next = None
                self.count += 1
                began = monotonic()
                try:
                    await self._work()
                finally:
                    now = monotonic()
                    self._rests_until = now + min(MOST_REST, REST * (now - began))
        finally:
            if self._next is done:
                self._next = None
            done.set()
