"""Calls whose client has sent a message in part and owes the rest, while the part takes memory that others want."""

from __future__ import annotations

from typing import Protocol


class Asked(Protocol):
    """A call whose request may be incomplete."""

    id: int

    def half_request(self) -> int | None:
        """The number of the message that has come in part; None when the client owes nothing."""


class OwedMessages:
    """Since when each call's client has owed the rest of the same message. Times are on the `monotonic` clock."""

    __slots__ = ("_before", "_known")

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, float]] = {}
        self._before: dict[int, tuple[int, float]] = {}  # what the last round of looks has found

    def begin(self) -> None:
        """Begins a round: every open call is looked at once more. A call that is left out is forgotten."""
        self._before, self._known = self._known, {}

    def since(self, call: Asked, now: float, *, excused: bool) -> float:
        """Looks at a call: the time since which its client has owed; `now` for one that owes nothing, or is excused."""
        half = call.half_request()
        if half is None:
            return now
        before = self._before.get(call.id)
        if before is None or before[0] != half or excused:
            before = half, now
        self._known[call.id] = before
        return before[1]
