"""The answer to a PING that measures bandwidth, which waits for other output."""

from __future__ import annotations

from typing import Final

HELD_ACK_BYTES: Final = 65536
PING_FRAME_SIZE: Final = 17


class HeldAck:
    """An answer that waits until enough other output has left to be measured.

    grpc-go (internal/transport/bdp_estimator.go) sends another such PING, in a packet of its own, with the first DATA
    behind each answer. A second PING shows that the peer does not wait for the answer to the first; then both answers
    leave.

    Attributes:
        frames: the answer, or the answers.
    """

    __slots__ = ("_passed", "frames")

    def __init__(self, ack: bytes) -> None:
        self.frames = ack
        self._passed = 0

    def add(self, ack: bytes) -> None:
        """Takes the answer to one more PING."""
        self.frames += ack

    def is_due(self, size: int) -> bool:
        """Counts `size` bytes of other output; whether the answer leaves with them."""
        self._passed += size
        return self._passed > HELD_ACK_BYTES or len(self.frames) > PING_FRAME_SIZE
