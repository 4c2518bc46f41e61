"""The answers of one call that wait for the client to read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from esp.core.services.namespace.rewrite import STEP_BYTES
from esp.core.wire.hpack import Fields
from esp.core.wire.pump import Pending
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import Status

SENT_AT_ONCE: Final = 262_144
"""Bytes of answers that are sent in one turn of the loop."""


class Backlog:
    """Answers that wait for the client to read.

    Attributes:
        raw: DATA of answers that is not rewritten yet.
        owed: bytes of DATA that the handler's sink has not been told about.
        queue: DATA for the client.
        queued: the bytes of `queue`.
        ending: the end of the call, which comes behind: a status with its trailers, or a header block.
    """

    __slots__ = ("ending", "owed", "queue", "queued", "raw")

    def __init__(self) -> None:
        self.raw: deque[memoryview] = deque()
        self.owed = 0
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.ending: tuple[Status, Fields | None, int] | bytes | None = None

    @property
    def held(self) -> int:
        """Bytes of memory that the answers take."""
        return self.queued + sum(map(len, self.raw))

    def pending(self, outer: ServerCall) -> Pending:
        """The same as the wire tells of a stream with DATA that waits."""
        waiting = Pending()
        waiting.size = self.queued
        waiting.sent = int(outer.has_sent)
        waiting.end = self.ending is not None
        return waiting

    def add_raw(self, payload: bytes) -> None:
        """Takes DATA of the handler, which comes behind all that waits."""
        self.raw.append(memoryview(payload))
        self.owed += len(payload)

    def step_of_raw(self) -> bytes:
        """The next DATA to rewrite, STEP_BYTES at most; there must be some."""
        data = self.raw.popleft()
        if len(data) > STEP_BYTES:
            self.raw.appendleft(data[STEP_BYTES:])
        return bytes(data[:STEP_BYTES])

    def add(self, pieces: Sequence[bytes], size: int) -> None:
        """Takes DATA for the client, of so many bytes together."""
        self.queue.extend(pieces)
        self.queued += size

    def send(self, outer: ServerCall) -> None:
        """Sends as much of the queue as the client takes, SENT_AT_ONCE at most."""
        queue, sent = self.queue, 0
        while queue and sent < SENT_AT_ONCE and outer.pending is None and not outer.is_over:
            piece = queue.popleft()
            self.queued -= len(piece)
            sent += len(piece)
            outer.send_data(piece, False)
