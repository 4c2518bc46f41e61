"""Python's cyclic garbage collector, in steps so short that nobody waits for them.

The collector stops everything while it runs. With larger generations than these a single run took 40 ms while clients
had tens of thousands of objects at work: more than any step of esp's own. So here it looks at a few thousand new
objects at a time. It looks at old objects, which may be very many, only when `Garbage` says so.

Python counts new objects less those that have gone, also less old ones that have gone. While calls come and end at the
same pace, that count stays low, and twenty thousand new objects waited for one run of 10 ms. So `Garbage` counts them.

Garbage in cycles is rare in esp: neither calls nor HTTP/2 connections leave any, save failed calls over several shards.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import thread_time
from typing import Final

YOUNG: Final = 1000
"""New objects, less those that have gone, after which the collector looks at them; takes some 0.1 ms."""
MIDDLE: Final = 3
"""After so many such looks the collector looks at all of these objects once more, then they are old."""
NEVER: Final = 1_000_000_000
GROWN_OLD: Final = 50
"""After so many of these second looks the old objects are worth a look."""
MANY: Final = 2000
"""New objects that are worth a look of the collector; takes some 0.5 ms. To count so many takes 0.01 ms."""
AT_MOST: Final = 50_000
"""The most objects for a full collection at any time: it takes some 5 ms, which keeps nobody waiting for long."""
SECONDS: Final = 30.0
"""The least seconds between two full collections."""
SECONDS_IF_MORE: Final = 900.0
"""The least seconds between two full collections of more than AT_MOST objects, which take 0.1 s for a million."""


def in_short_steps() -> None:
    """Sets the collector up for a long run. It never again looks at the objects that exist now, so call this once."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)


class Garbage:
    """Decides when old objects are looked at. Times are in seconds, as `monotonic` has them."""

    def __init__(self, now: float, leave_out: Callable[[float], None]) -> None:
        """`leave_out` is told the running time of each of the collector's runs, between `start` and `stop`."""
        self._looked = self._collected = now
        self._leave_out = leave_out
        self._began = 0.0

    def start(self) -> None:
        """Begins to time the collector, which runs in the middle of anybody's work: nobody is to pay for it."""
        gc.callbacks.append(self._on_run)

    def stop(self) -> None:
        """Undoes `start`."""
        gc.callbacks.remove(self._on_run)

    def _on_run(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = thread_time()
        else:
            self._leave_out(thread_time() - self._began)

    def look(self) -> bool:
        """Looks at the new objects if they have become many. To be called between two turns. True if it has looked."""
        if len(gc.get_objects(0)) + len(gc.get_objects(1)) < MANY:
            return False
        gc.collect(1)
        return True

    def tick(self, now: float) -> bool:
        """Looks at the old objects if enough have grown old. True if they were looked at."""
        return gc.get_count()[2] >= GROWN_OLD and self.collect(now)

    def collect(self, now: float) -> bool:
        """Looks at the old objects, unless this was done lately or would take too long. True if they were looked at."""
        if now - self._looked < SECONDS:
            return False
        self._looked = now
        if now - self._collected < SECONDS_IF_MORE and len(gc.get_objects()) > AT_MOST:
            return False
        self._collected = now
        gc.collect()
        return True
