"""The budget of a connection for legal but pointless frames."""

from __future__ import annotations

from typing import Final

from esp.core.wire.frames import ConnectionFault, ErrorCode

ALLOWED: Final = 5
"""Events that are free on a connection that has opened no stream yet."""


class GlitchBudget:
    """Points that pointless frames cost, and that come back with time.

    Args:
        points: the points that a connection may have spent at once.
        refill: the points that come back per second.
    """

    __slots__ = ("_points", "_refill", "_spent", "_time")

    def __init__(self, points: float, refill: float) -> None:
        self._points = points
        self._refill = refill
        self._spent = 0.0
        self._time = 0.0

    def charge(self, cost: float, what: str, now: float) -> None:
        """Takes `cost` points for `what`; `now` is in seconds.

        Raises:
            ConnectionFault: ENHANCE_YOUR_CALM, the budget is spent.
        """
        back = (now - self._time) * self._refill
        self._spent = max(0.0, self._spent - back) + cost
        self._time = now
        if self._spent > self._points:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}", "glitch_budget")


class Allowance:
    """Events of one kind that honest peers cause too, up to two for each stream; further ones cost points."""

    __slots__ = ("_used",)

    def __init__(self) -> None:
        self._used = 0

    def is_used_up(self, highest_stream_id: int) -> bool:
        """Counts an event; True if there were more than two for each stream.

        Stream ids rise by two, so the highest id is already twice the number of streams.
        """
        self._used += 1
        return self._used > highest_stream_id + ALLOWED
