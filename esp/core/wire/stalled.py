"""Streams whose DATA stands still: the peer opens a window and then takes nothing, or next to nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from esp.core.wire.pump import Pending, Pump, Waiting

LEAST_PROGRESS: Final = 6000
"""Bytes that must leave within `blocked_write_timeout`; less is standing still with a trick."""

S = TypeVar("S", bound=Waiting)


class StalledStreams:
    """Since when the waiting DATA of each stream has made no progress.

    A stream that waits for its own window has progressed when its own DATA has left. A stream that waits for its turn
    has progressed when any DATA of the connection has left: its turn comes as long as the connection's window moves.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # By stream: the DATA that waits for its own window, the bytes that had left then, the time.
        self._known: dict[int, tuple[Pending | None, int, float]] = {}

    def look(self, streams: Iterable[S], pump: Pump[S], now: float) -> None:
        """Compares each stream with the last look."""
        known: dict[int, tuple[Pending | None, int, float]] = {}
        for stream in streams:
            if stream.pending is not None:
                pending = None if stream.id in pump.blocked else stream.pending
                moved = pump.sent if pending is None else pending.sent
                before = self._known.get(stream.id)
                if before is not None and before[0] is pending and moved - before[1] < LEAST_PROGRESS:
                    known[stream.id] = before
                else:
                    known[stream.id] = (pending, moved, now)
        self._known = known

    def longer_than(self, seconds: float, now: float) -> list[int]:
        """The ids of the streams that have stood still for more than `seconds`."""
        return [stream_id for stream_id, (_, _, since) in self._known.items() if now - since > seconds]
