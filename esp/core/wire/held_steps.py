"""Steps of coroutines that wait for their turn.

An answer of a shard may wake dozens of coroutines, and each of them then works for some tenths of a millisecond. All of
that in one turn of the loop would keep everybody else waiting. So coroutines have AT_ONCE seconds in a turn; further
steps are held, and some go on in each of the next turns. Connections take turns: a client with one call does not wait
for all steps of a client with hundreds (start-time fair queueing, as in `turns`, by steps instead of seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from typing import Final

AT_ONCE: Final = 0.001
"""Seconds for the steps of coroutines in one turn of the loop."""
MOST: Final = 50
"""The most steps that go on in one turn. Those of cancelled calls take no time, but have objects to free."""
SWAY: Final = 0.1
"""How much the last step counts in the guess of what the next one takes."""
AGING: Final = 1 / 64
"""How far a step that goes on brings all others forward: no more than 64 of new clients come before a second one."""
MOST_KNOWN: Final = 100
"""The most connections that are known beside those with a step that waits."""


class HeldSteps:
    """The steps that wait, and the time for steps in this turn.

    Attributes:
        spent: seconds that steps took in this turn.
    """

    __slots__ = ("_guess", "_last", "_order", "_start", "_waiting", "spent")

    def __init__(self) -> None:
        self.spent = 0.0
        self._guess = AT_ONCE / 10
        self._order = 0
        self._start = 0.0
        self._last: dict[Hashable, float] = {}  # by connection: the place of its last step
        self._waiting: list[tuple[float, int, Callable[[], object]]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def must_wait(self, place: float | None) -> bool:
        """Whether a step that is about to begin has to be held; `place` is that of a step whose turn has come."""
        return self.spent >= AT_ONCE or (place is None and bool(self._waiting))

    def took(self, seconds: float) -> None:
        """Counts a step."""
        self.spent += seconds
        self._guess += (seconds - self._guess) * SWAY

    def hold(self, connection: Hashable, go_on: Callable[[], object], place: float | None = None) -> float:
        """Has `go_on` called, which raises nothing, when the turn of a step of this connection's call has come.

        Returns the step's place. A step whose turn was over before it began is held again, with the place it had.
        """
        if place is None:
            place = max(self._start, self._last.get(connection, -1.0) + 1)
            self._last[connection] = place
            if len(self._last) > 2 * len(self._waiting) + MOST_KNOWN:
                self._last = {known: last for known, last in self._last.items() if last >= self._start}
        self._order += 1
        heappush(self._waiting, (place, self._order, go_on))
        return place

    def release(self) -> None:
        """Begins a turn: as many steps go on as are likely to fit. What was above the time is taken off this turn's."""
        self.spent = min(max(self.spent - AT_ONCE, 0.0), AT_ONCE / 2)
        waiting = self._waiting
        for _ in range(min(len(waiting), max(1, int(AT_ONCE / max(self._guess, AT_ONCE / MOST))))):
            place, _, go_on = heappop(waiting)
            self._start = max(self._start, place) + AGING
            go_on()
        if not waiting:
            self._last.clear()
            self._start = 0.0
