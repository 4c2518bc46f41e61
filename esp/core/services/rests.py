"""Rests of the shards: after costly calls a shard gets no more of them for a while.

A shard that gets the next costly call as soon as the last one is answered is always busy with one, and all other calls
find its cores taken. With rests as long as they have kept it busy, costly calls have at most half of the shard's time,
whoever sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from time import monotonic
from typing import Final, Generic, TypeVar

from esp.core.background import Background

LONGEST_CALL: Final = 0.02
"""The most seconds of a call that count. A rest cannot make others wait less for a call that takes longer, and a call
that was long on its way has not kept the shard busy."""
SHORTEST_REST: Final = 0.001
"""Seconds that costly calls may keep a shard busy before the shard rests."""

Pool = TypeVar("Pool", bound=Hashable)


class Rests(Generic[Pool]):
    """The rests of pools of places.

    Args:
        background: owner of the timers.
        over: called with a pool whose rest is over.

    Attributes:
        clock: seconds.
    """

    def __init__(
        self, background: Background, over: Callable[[Pool], None], clock: Callable[[], float] = monotonic
    ) -> None:
        self._background = background
        self._over = over
        self.clock = clock
        self._owed: dict[Pool, tuple[float, float]] = {}  # seconds of rest, as they were at a time
        self._resting: set[Pool] = set()

    def __contains__(self, pool: Pool) -> bool:
        """Whether the pool rests."""
        return pool in self._resting

    def worked(self, pool: Pool, seconds: float, part: float) -> None:
        """A call has had places for so many seconds; `part` of these, at most, the pool owes as rest from now on."""
        owed = self._owes(pool) + min(seconds, LONGEST_CALL) * part
        self._owed[pool] = owed, self.clock()
        if owed >= SHORTEST_REST and pool not in self._resting:
            self._resting.add(pool)
            self._look_later(pool, owed)

    def forget(self, pool: Pool) -> None:
        """Drops what is known of a pool that does not rest."""
        if pool not in self._resting:
            self._owed.pop(pool, None)

    def _owes(self, pool: Pool) -> float:
        owed, at = self._owed.get(pool, (0.0, 0.0))
        return max(0.0, owed - (self.clock() - at))

    def _look_later(self, pool: Pool, owed: float) -> None:
        # A rest that is never over would keep all costly calls from the shard.
        self._background.later(owed, partial(self._look, pool), partial(self._end, pool))

    def _look(self, pool: Pool) -> None:
        """The rest is over, unless calls that were still at work have made it longer."""
        owed = self._owes(pool)
        if owed >= SHORTEST_REST:
            self._look_later(pool, owed)
        else:
            self._end(pool)

    def _end(self, pool: Pool) -> None:
        self._resting.discard(pool)
        self._owed.pop(pool, None)
        self._over(pool)
