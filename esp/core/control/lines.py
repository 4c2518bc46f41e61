"""Requests and answers of the control socket: one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

MAX_REQUEST_BYTES: Final = 65_536
"""The longest request, with its line break; a longer one ends the connection."""
MAX_ANSWER_BYTES: Final = 1_048_576
"""The longest line of an answer; more goes into several lines."""
MAX_DESCRIPTORS: Final = 253
"""The most file descriptors beside one line: the kernel's own bound (SCM_MAX_FD)."""


class LineError(ValueError):
    """A line is too long, or no JSON object; the text is a clause for people."""


def encode(value: Mapping[str, Any]) -> bytes:
    """A value as a line.

    Raises:
        LineError: the line would be too long for the other end.
    """
    line = msgspec.json.encode(value) + b"\n"
    if len(line) > MAX_ANSWER_BYTES:
        raise LineError(f"a line of {len(line)} bytes is more than {MAX_ANSWER_BYTES}")
    return line


def size_of(result: Mapping[str, Any]) -> int:
    """The length of the line that answers with a result."""
    return len(msgspec.json.encode({"result": result})) + 1


class Lines:
    """Cuts received bytes into lines, and reads them.

    Args:
        most: the longest line in bytes, with its line break.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes what was received."""
        self._bytes += data

    def next(self) -> dict[str, Any] | None:
        """The next line's object; None until the line is complete.

        Raises:
            LineError: the line is too long, or no JSON object.
        """
        end = self._bytes.find(b"\n", 0, self._most)
        if end < 0:
            if len(self._bytes) >= self._most:
                raise LineError(f"the line is longer than {self._most} bytes")
            return None
        line = bytes(self._bytes[:end])
        del self._bytes[: end + 1]
        try:
            value = msgspec.json.decode(line)
        except (ValueError, RecursionError):
            raise LineError("the line is not JSON") from None
        if not isinstance(value, dict):
            raise LineError("the line is no JSON object")
        return value
