"""Calls whose client has sent a message in part and owes the rest, while the part takes memory that others want."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Asked(Protocol):
    """A call whose request may be incomplete."""

    id: int

    def half_request(self) -> int | None:
        """The number of the message that has come in part; None when the client owes nothing."""


class OwedMessages:
    """Since when each call's client has owed the rest of the same message. Times are on the `monotonic` clock."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, float]] = {}

    def look(self, calls: Iterable[Asked], now: float, *, excused: bool) -> None:
        """Compares each call with the last look; with `excused` the time begins anew for all."""
        known, waiting = self._known, {}
        for call in calls:
            half = call.half_request()
            if half is not None:
                before = known.get(call.id)
                waiting[call.id] = before if before and before[0] == half and not excused else (half, now)
        self._known = waiting

    def longer_than(self, seconds: float, now: float) -> list[int]:
        """The ids of the calls whose clients have owed for more than `seconds`."""
        return [call_id for call_id, (_, since) in self._known.items() if now - since > seconds]
