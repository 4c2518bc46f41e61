"""The one message of a unary call that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from esp.core.wire.frames import unpack_u32
from esp.core.wire.message import PREFIX_SIZE, MessageReader, check_prefix
from esp.core.wire.status import Code, Status

SECOND_MESSAGE: Final = Status(Code.INTERNAL, "more than one message in a unary request")
NO_MESSAGE: Final = Status(Code.INTERNAL, "the request ended without a whole message")
LARGE_PIECE: Final = 4096
"""Pieces of fewer bytes are put together at once: each piece takes memory of its own."""
COUNTED_AHEAD: Final = 65_536
"""Bytes that are counted before they come, of a message of which as many have come."""


class RequestMessage:
    """The pieces of a message that have come.

    Pieces of a message that is not compressed are kept as they came, and joined once; all else is a `MessageReader`'s.

    Args:
        most_bytes: the bound on the message.
        encoding: how the message is compressed, as `grpc-encoding` says.

    Attributes:
        counted: bytes that the caller has accounted for.
        message: the message, with its prefix and not compressed; None until all of it has come.
    """

    __slots__ = ("_encoding", "_left", "_most_bytes", "_pieces", "_reader", "_size", "counted", "message")

    def __init__(self, most_bytes: int, encoding: bytes) -> None:
        self._most_bytes = most_bytes
        self._encoding = encoding
        self._reader = MessageReader(most_bytes, encoding, prefixed=True)
        self._pieces: list[bytes | bytearray] = []
        self._size = 0  # of the message whose pieces are kept
        self._left = 0  # of that, bytes that have not come
        self.counted = 0
        self.message: bytes | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the message has come, and nothing of another one."""
        return self.message is not None and not self._reader.wanted

    @property
    def held(self) -> int:
        """Bytes that the pieces and the message take."""
        pieces = self._size - self._left
        return pieces + self._reader.held + max(0, len(self.message or b"") - PREFIX_SIZE)

    @property
    def to_count(self) -> int:
        """Bytes to account for: those that are held, and of a large message some more, so as not to do it often."""
        held = self.held
        return held if held < COUNTED_AHEAD or not self._left else min(held + COUNTED_AHEAD, self._size)

    def add(self, payload: bytes) -> bool:
        """Takes a piece, in few steps; False, without any effect, for the first piece, the last, and unusual ones."""
        left = self._left - len(payload)
        if left <= 0:
            return False
        self._left = left
        if len(payload) >= LARGE_PIECE:
            self._pieces.append(payload)
        else:
            last = self._pieces[-1]
            if isinstance(last, bytearray):
                last += payload
            else:
                self._pieces.append(bytearray(payload))
        return True

    def _begin(self, payload: bytes) -> bool:
        """Takes the first piece of a message that is not compressed; False for any other, or for a whole message."""
        if len(payload) < PREFIX_SIZE or payload[0] or self.message is not None or self._reader.held:
            return False
        length = unpack_u32(payload, 1)[0]
        check_prefix(0, length, self._most_bytes, self._encoding)
        left: int = PREFIX_SIZE + length - len(payload)
        if left <= 0:
            return False
        self._size = PREFIX_SIZE + length
        self._left = left
        self._pieces.append(payload)
        return True

    def steps(self, payload: bytes) -> Iterator[int]:
        """Takes a piece in steps; each step yields the bytes that the pieces take so far.

        Raises:
            RpcError: more than one message, a message above the bound, or one that cannot be inflated.
        """
        if self._left:
            if self.add(payload):
                return
            self._pieces.append(payload[: self._left])
            payload = payload[self._left :]
            self._size = self._left = 0
            self.message = b"".join(self._pieces)
            self._pieces.clear()
        elif self._begin(payload):
            return
        for message in self._reader.steps(payload):
            if message is None:
                yield self._reader.held
            elif self.message is not None:
                raise SECOND_MESSAGE.error()
            else:
                self.message = message

    def ended(self) -> bytes:
        """The request has ended: the message.

        Raises:
            RpcError: the message is not whole.
        """
        if self.message is None or not self.is_whole:
            raise NO_MESSAGE.error()
        return self.message
