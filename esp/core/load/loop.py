"""What all closed loops have: requests that are open, latencies, errors, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final

from esp.core.load.figures import Figures

PAUSE_SECONDS: Final = 0.05
"""Seconds after which a request that failed is followed by the next one."""


class ClosedLoop:
    """Requests of one connection: a new one is sent when one has been answered, until the loop is told to stop.

    Attributes:
        figures: takes latencies and errors; None while nothing is measured.
        later: calls a step after so many seconds.
        open: requests without an answer.
        stopped: whether no request is sent any more.
    """

    __slots__ = ("_over", "figures", "later", "open", "stopped")

    later: Callable[[float, Callable[[], object]], object]

    def __init__(self) -> None:
        self.figures: Figures | None = None
        self.open = 0
        self.stopped = False
        self._over: asyncio.Event = asyncio.Event()

    def begin(self) -> None:
        """Sends the first requests."""
        raise NotImplementedError

    def next(self, slot: int) -> None:
        """Sends the next request of a slot."""
        raise NotImplementedError

    def answered(self, slot: int, began: float) -> None:
        """A request has been answered, that was sent at `began`."""
        figures = self.figures
        if figures is not None:
            figures.latencies.append(perf_counter() - began)
        self.open -= 1
        if not self.stopped:
            self.next(slot)
        elif self.open <= 0:
            self._over.set()

    def failed(self, slot: int, text: str, *, goes_on: bool = True) -> None:
        """A request has failed; the next one follows after a pause, unless nothing more can be sent."""
        if self.figures is not None:
            self.figures.errors[text] += 1
        self.open -= 1
        if self.stopped and self.open <= 0:
            self._over.set()
        elif goes_on and not self.stopped:
            self.later(PAUSE_SECONDS, partial(self._again, slot))

    def _again(self, slot: int) -> None:
        if not self.stopped:
            self.next(slot)
            self.flush()

    def flush(self) -> None:
        """Has queued requests sent, outside of a turn of the connection."""
        raise NotImplementedError

    async def stop(self, seconds: float) -> int:
        """Sends no more, and waits for open requests; how many are still open after `seconds`."""
        self.stopped = True
        if self.open > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._over.wait()
            except TimeoutError:
                return self.open
        return 0
