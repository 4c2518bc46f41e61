"""Bytes and messages that have passed."""

from __future__ import annotations

from collections import Counter
from typing import Final

from esp.core.wire.frames import unpack_u32

_PREFIX_SIZE: Final = 5


class Traffic:
    """The bytes of one connection, or of many.

    Attributes:
        received, sent: bytes, with all that HTTP adds.
    """

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0


class Messages:
    """The messages of streaming calls of one RPC to one server.

    Attributes:
        received, sent: their numbers.
    """

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0


class MessageCount:
    """Counts the messages in the DATA of one direction of a stream that is passed on, by their prefixes.

    Args:
        counts: gets the messages.
        path: where `counts` has them.
    """

    __slots__ = ("_counts", "_left", "_path", "_start")

    def __init__(self, counts: Counter[bytes], path: bytes) -> None:
        self._counts = counts
        self._path = path
        self._left = 0  # bytes of the present message that have not come
        self._start = b""  # of a prefix that has come in part

    def add(self, data: bytes) -> int:
        """The next DATA; returns the messages that begin in it."""
        left = self._left
        size = len(data)
        if left >= size:
            self._left = left - size
            return 0
        data = self._start + data
        at, size = left, len(data)
        messages = 0
        while size - at >= _PREFIX_SIZE:
            messages += 1
            at += _PREFIX_SIZE + unpack_u32(data, at + 1)[0]
        if messages:
            self._counts[self._path] += messages
        self._left = max(0, at - size)
        self._start = data[at:]
        return messages
