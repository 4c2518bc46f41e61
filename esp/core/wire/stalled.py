"""Streams whose DATA stands still: the peer opens a window and then takes nothing, or next to nothing."""

from __future__ import annotations

from typing import Final, TypeVar

from esp.core.wire.pump import Pending, Pump, Waiting

LEAST_PROGRESS: Final = 6000
"""Bytes that must leave within `blocked_write_timeout`; less is standing still with a trick."""

S = TypeVar("S", bound=Waiting)


class StalledStreams:
    """Since when the waiting DATA of each stream has made no progress. Times are on the `monotonic` clock.

    A stream that waits for its own window has progressed when its own DATA has left. A stream that waits for its turn
    has progressed when any DATA of the connection has left: its turn comes as long as the connection's window moves.
    """

    __slots__ = ("_before", "_known")

    def __init__(self) -> None:
        # By stream: the DATA that waits for its own window, the bytes that had left then, the time.
        self._known: dict[int, tuple[Pending | None, int, float]] = {}
        self._before: dict[int, tuple[Pending | None, int, float]] = {}  # what the last round of looks has found

    def begin(self) -> None:
        """Begins a round: every open stream is looked at once more. A stream that is left out is forgotten."""
        self._before, self._known = self._known, {}

    def since(self, stream: S, pump: Pump[S], now: float) -> float:
        """Looks at a stream that has DATA waiting: the time since which the stream has stood still."""
        pending = None if stream.id in pump.blocked else stream.pending
        moved = pump.sent if pending is None else pending.sent
        before = self._before.get(stream.id)
        if before is None or before[0] is not pending or moved - before[1] >= LEAST_PROGRESS:
            before = pending, moved, now
        self._known[stream.id] = before
        return before[2]
