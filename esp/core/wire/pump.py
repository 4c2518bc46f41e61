"""DATA that waits for a window, and the pump that sends this DATA, one frame per stream in turn."""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, Protocol, TypeVar

from esp.core.wire.frames import MAX_FRAME_SIZE

PUMP_BYTES: Final = 262144
"""Bytes of waiting DATA that a connection sends in one turn at most: wide windows must not keep others waiting."""


class Pending:
    """DATA of one stream that waits for a window, in order; the end of the stream may follow, plain or as trailers.

    Attributes:
        size: bytes that wait.
        sent: bytes that have left since something began to wait.
        end: the stream ends behind the DATA.
        trailers: the header block that ends the stream; None for a plain end.
    """

    __slots__ = ("chunks", "end", "sent", "size", "trailers")

    def __init__(self) -> None:
        self.chunks: deque[bytes | memoryview] = deque()
        self.size = 0
        self.sent = 0
        self.end = False
        self.trailers: bytes | None = None


class Waiting(Protocol):
    """A stream that may have DATA waiting.

    Attributes:
        pending: the DATA; None when nothing waits.
    """

    id: int
    pending: Pending | None

    def send_pending(self, limit: int) -> int:
        """Send one frame of `limit` bytes at most; the bytes sent, 0 when the stream's own window is used up."""


class Outlet(Protocol):
    """The connection that takes the DATA.

    Attributes:
        send_window: bytes that the peer still accepts; each frame sent makes this less.
        writable: the transport has room.
    """

    send_window: int
    writable: bool


S = TypeVar("S", bound=Waiting)


class Pump(Generic[S]):
    """Sends the waiting DATA of one connection's streams.

    Attributes:
        blocked: streams that wait for the connection or for their turn, by id, the next one first. A stream that waits
            for its own window is not among them.
        budget: bytes that may still leave in this turn.
        sent: bytes that have left so far.
    """

    __slots__ = ("_is_running", "blocked", "budget", "sent")

    def __init__(self) -> None:
        self.blocked: dict[int, S] = {}
        self.budget = PUMP_BYTES
        self.sent = 0
        self._is_running = False

    def run(self, outlet: Outlet) -> bool:
        """Sends until the connection, its transport or the budget is full; True when only the budget was in the way."""
        if self._is_running:
            return False  # a producer was told of bytes that left, and queued more; the loop below gets to those
        self._is_running = True
        blocked = self.blocked
        try:
            while blocked and outlet.writable and outlet.send_window > 0 and self.budget > 0:
                stream_id = next(iter(blocked))
                stream = blocked.pop(stream_id)
                sent = stream.send_pending(min(MAX_FRAME_SIZE, outlet.send_window))
                self.budget -= sent
                self.sent += sent
                if sent and stream.pending is not None:
                    blocked[stream_id] = stream
        finally:
            self._is_running = False
        return bool(blocked) and self.budget <= 0

    def new_turn(self) -> None:
        """Grants a new budget."""
        self.budget = PUMP_BYTES
