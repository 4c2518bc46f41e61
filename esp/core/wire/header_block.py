"""A header block that comes in several frames: HEADERS, then CONTINUATION (RFC 9113, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

from esp.core.wire.frames import ConnectionFault, ErrorCode


@dataclass(frozen=True, slots=True)
class BlockBounds:
    """The bounds of a header block.

    Attributes:
        size: bytes, before decoding.
        continuations: CONTINUATION frames.
    """

    size: int
    continuations: int

    def check_size(self, size: int) -> None:
        """Refuses a block of `size` bytes that is too large.

        Raises:
            ConnectionFault: ENHANCE_YOUR_CALM.
        """
        if size > self.size:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large", "max_header_block_bytes")


class HeaderBlock:
    """The part of a header block that has come. Nothing but the block's CONTINUATION frames may come before its end.

    Attributes:
        stream_id: the stream of the block.
        end: the stream ends with the block.
        since: when the block began, on the `monotonic` clock.
    """

    __slots__ = ("_bounds", "_bytes", "_frames", "end", "since", "stream_id")

    def __init__(self, bounds: BlockBounds, stream_id: int, first: bytes, now: float, *, end: bool) -> None:
        self.stream_id = stream_id
        self.end = end
        self.since = now
        self._bounds = bounds
        self._bytes = bytearray(first)
        self._frames = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def __bytes__(self) -> bytes:
        return bytes(self._bytes)

    def add(self, piece: bytes) -> None:
        """Takes the payload of a CONTINUATION frame.

        Raises:
            ConnectionFault: ENHANCE_YOUR_CALM, too many frames or bytes.
        """
        self._frames += 1
        if self._frames > self._bounds.continuations:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many CONTINUATION frames", "max_continuations")
        self._bounds.check_size(len(self._bytes) + len(piece))
        self._bytes += piece
