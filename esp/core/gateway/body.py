"""The JSON of a request as messages: of its only value, or of each value of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from esp.core.gateway.plan import Plan
from esp.core.gateway.reading import read, read_small
from esp.core.gateway.values import Values

TOKENS_AT_ONCE: Final = 200
"""Tokens of a body that are looked at in one step."""


class Body:
    """The body of a request, as far as it has come.

    Attributes:
        is_stream: each value is a request of its own; else the body is one request, and all behind it is ignored.
        is_whole: the body has ended.
        parts: the values of a stream that were read.
        steps: goes on to read; None if nothing is being read.
    """

    __slots__ = ("_pieces", "_shape", "_size", "_values", "is_stream", "is_whole", "parts", "steps")

    def __init__(self, plan: Plan) -> None:
        self._shape = plan.request
        self.is_stream = plan.rpc.takes_stream
        self._values: Values | None = Values() if self.is_stream else None
        self._pieces: list[bytes] = []
        self._size = 0
        self.is_whole = False
        self.parts = 0
        self.steps: Iterator[bytes | None] | None = None

    @property
    def held(self) -> int:
        """The bytes that have come and are in no message yet."""
        return self._size if self._values is None else self._values.held

    def add(self, data: bytes) -> None:
        """Takes the next piece."""
        if self._values is None:
            self._pieces.append(data)
            self._size += len(data)
        else:
            self._values.feed(data)

    def drop(self) -> None:
        """Forgets what has come."""
        self._pieces.clear()
        self._size = 0
        self.steps = None

    def read_at_once(self) -> bytes | None:
        """The message of a whole body with one request; None, and `steps`, if that takes longer."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        message = read_small(self._shape, body) if body else b""
        if message is None:
            self.steps = self._read_only(body)
        else:
            self._size = 0
        return message

    def read_stream(self) -> None:
        """Begins to read the values that have come."""
        if self.steps is None:
            self.steps = self._read_values()

    # The steps: each gives a message, or None. They raise NotJson or NotTheMessage.

    def _read_only(self, body: bytes) -> Iterator[bytes | None]:
        values = Values()
        values.feed(body)
        value = None
        more = True
        while value is None and more:
            value, more = values.next(TOKENS_AT_ONCE)
            yield None
        if value is None:
            value = values.end()
        del values
        message = b"" if value is None else (yield from read(self._shape, value))
        self._size = 0
        yield message

    def _read_values(self) -> Iterator[bytes | None]:
        values = self._values
        assert values is not None
        while True:
            value, more = values.next(TOKENS_AT_ONCE)
            if value is None and not more:
                value = values.end() if self.is_whole else None
                if value is None:
                    return
            message = None
            if value is not None:
                self.parts += 1
                message = read_small(self._shape, value)
                if message is None:
                    message = yield from read(self._shape, value)
            yield message
