"""The way back to one client: messages that wait for it to read, and the end of its Watch call."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from esp.core import errors
from esp.core.wire.admission import Admission
from esp.core.wire.budget import Account
from esp.core.wire.frames import MAX_FRAME_SIZE, ErrorCode
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.status import Status

log = logging.getLogger("esp.watch")

READ_AHEAD_BYTES: Final = 65_536
"""Bytes that may wait for a client, or for a watcher to be announced, while the client's own upstreams are read on."""

ClientsConnection = Admission[ServerStream]


class Owner(Protocol):
    """The stream whose messages wait in an outbox."""

    def on_room(self) -> None:
        """Little waits for the client: its own upstreams may be read on."""

    def on_over(self) -> None:
        """The call is ending: the owner gives back all that the call holds elsewhere. Called once."""


class Outbox:
    """The messages that wait for one client, the bounds on them, and the end of the client's call.

    A client that does not read as fast as shards speak costs memory. What came in the client's own calls to shards
    waits without a bound of its own: those calls are not read on before it has left. For all else the bound is
    `max_watch_buffer_bytes`, beyond which the call ends; the client resumes with another.

    Attributes:
        down: the client's call.
        context: shared by all connections of the process.
        is_over: the call has ended, or is about to: nothing is sent any more.
        queued: bytes of the messages that wait here.
        waiting: the same together with bytes that wait elsewhere for this client, as `hold` was told.
        wants_room: the owner has upstreams that are held back here, and is told `on_room`.
    """

    __slots__ = (
        "_awaits_flush",
        "_held_own",
        "_kept",
        "_owner",
        "_queue",
        "_queued_own",
        "context",
        "down",
        "is_over",
        "queued",
        "waiting",
        "wants_room",
    )

    def __init__(self, down: ServerStream, owner: Owner) -> None:
        self.down = down
        self.is_over = self.wants_room = False
        self.queued = 0
        self.waiting = 0
        # Of `waiting`, bytes that no bound counts, since they came as fast as they were asked for: here, and elsewhere.
        self._queued_own = 0
        self._held_own = 0
        self._kept = 0  # bytes that the call's account was last charged for
        self._queue: deque[bytes] = deque()
        self._awaits_flush = False
        self.context = down.connection.context
        self._owner: Owner | None = owner  # until the end: a circle of references would stay in memory for long

    @property
    def connection(self) -> ClientsConnection:
        """The connection that the client's call is on."""
        return self.down.connection

    @property
    def account(self) -> Account:
        """The memory of the client's connection."""
        return self.down.connection.own_account()

    @property
    def is_full(self) -> bool:
        """Whether as much waits as should: the client's own upstreams are not read on before `Owner.on_room`."""
        return self.queued > READ_AHEAD_BYTES

    # Messages.

    def send_alone(self, message: bytes, *, is_own: bool) -> None:
        """As `send_together`, for a message likely to be the only one of this turn: sent at once if nothing waits."""
        down = self.down
        if (
            len(message) > MAX_FRAME_SIZE  # a part of it would have to wait
            or self.waiting
            or self._awaits_flush
            or down.pending is not None
            or not down.responded
            or not self._afford_or_end(len(message))
        ):
            self.send_together((message,), is_own=is_own)
        else:
            down.send_data(message, False)

    def send_together(self, messages: Sequence[bytes], *, is_own: bool) -> None:
        """Sends messages with nothing in between: all, or none where the call ends.

        Args:
            messages: The messages, each with its prefix.
            is_own: The messages came in this client's own call to a shard, which is not read on before they have left:
                however many wait, the client's slowness is not the reason.
        """
        limit = self.context.limits.max_watch_buffer_bytes
        if self.is_over or (not is_own and self.waiting > limit and not self._make_room_or_end()):
            return
        if not self._awaits_flush:
            self._want_flush()
        self._queue.extend(messages)
        size = sum(map(len, messages))
        self.queued += size
        self.waiting += size
        if is_own:
            self._queued_own = self.queued  # with what stands before it, which is little

    def send(self, message: bytes) -> None:
        """Sends a message, with its prefix, as soon as the client reads."""
        if self.is_over:
            return
        if self.waiting > self.context.limits.max_watch_buffer_bytes and not self._make_room_or_end():
            return
        if not self._awaits_flush:
            self._want_flush()
        self._queue.append(message)
        self.queued += len(message)
        self.waiting += len(message)

    def hold(self, size: int, *, is_own: bool = False) -> None:
        """Counts `size` bytes more, or fewer, that wait elsewhere and are not on their way to the client yet.

        `is_own` as in `send_together`.
        """
        if self.is_over:
            return
        self.waiting += size
        if is_own:
            self._held_own += size
        elif size > 0:
            if self.waiting > self.context.limits.max_watch_buffer_bytes:
                self._make_room_or_end()
            self._want_flush()

    # Leaving.

    def _want_flush(self) -> None:
        if not self._awaits_flush:
            self._awaits_flush = True
            self.context.unflushed.append(self)

    def flush(self) -> None:
        """Sends what the client's windows take: called when a connection was read, and when the client has read.

        Only what the wire cannot send at once stays with the wire; the rest stays here, where it can still be dropped.
        """
        self._awaits_flush = False
        if self.is_over:
            return
        down, queue = self.down, self._queue
        if self._kept:
            down.release(self._kept)
            self._kept = 0
        if queue and not down.responded:
            down.start()
        while queue and down.pending is None and self._afford_or_end(len(queue[0])):
            data = self._next_piece()
            self.queued -= len(data)
            self.waiting -= len(data)
            self._queued_own = max(0, self._queued_own - len(data))
            down.send_data(data, False)
        if self.waiting and self._afford_or_end(self.waiting):
            self._kept = self.waiting
            down.hold(self.waiting)
        if self.wants_room and self.queued <= READ_AHEAD_BYTES and self._owner is not None:
            self._owner.on_room()

    def _next_piece(self) -> bytes:
        """Messages for one DATA frame; a message that is longer stays in one piece."""
        queue = self._queue
        first = queue.popleft()
        size = len(first)
        if not queue or size + len(queue[0]) > MAX_FRAME_SIZE:
            return first
        pieces = [first]
        while queue and size + len(queue[0]) <= MAX_FRAME_SIZE:
            size += len(queue[0])
            pieces.append(queue.popleft())
        return b"".join(pieces)

    def drained(self) -> None:
        """Bytes that the wire had to keep have left."""
        if self.down.pending is None:
            self.flush()

    # Bounds.

    def _make_room_or_end(self) -> bool:
        """Sends what the client takes; if more than may wait is left, the client is too slow and its call ends (False).

        The client resumes with another call.
        """
        if self.is_over:
            return False
        self.flush()
        waiting = self.waiting - self._queued_own - self._held_own
        if not self.is_over and waiting > self.context.limits.max_watch_buffer_bytes:
            self.context.reached("max_watch_buffer_bytes")
            log.info("%s: reads a watch too slowly: %d bytes wait, and its stream ends", self.down.peer, waiting)
            self.stop()
        return not self.is_over

    def _afford_or_end(self, size: int) -> bool:
        """Finds out whether there is memory for `size` bytes that may have to wait; if not, the call ends (False)."""
        if self.is_over:
            return False
        if self.down.may_hold(size):
            return True
        self.down.hold(size)  # says no, and tells
        self.end(errors.SERVER_STOPPED)
        return False

    # The end.

    def stop(self, status: Status = errors.SERVER_STOPPED) -> None:
        """Ends the call behind what waits; by default with the status after which clients go on with another call."""
        if not self.is_over:
            if self.waiting <= self.context.limits.max_watch_buffer_bytes:
                self.flush()
            self.end(status)

    def end(self, status: Status) -> None:
        """Ends the call with `status`; what waits is dropped."""
        if not self.is_over:
            self._close()
            self.down.finish(status)

    def on_bug(self) -> None:
        """An exception came out of what was done for this client: its call ends, and nobody else's."""
        log.exception("%s: a bug in esp; a watch stream ends", self.down.peer)
        self.fail()

    def fail(self) -> None:
        """Ends the call after a bug that was told already."""
        try:
            self.end(errors.SERVER_STOPPED)
        except Exception:
            self.down.connection.on_bug()

    def cancelled(self) -> None:
        """The client is gone, or the proxy wants to end."""
        if not self.is_over:
            if not self.down.is_over:
                self.flush()
            self._close()

    def cut(self) -> None:
        """Ends the call since others need the memory that it holds; the client resumes with another call."""
        if self.is_over:
            return
        down = self.down
        self._close()
        if down.pending is not None and down.pending.sent:
            down.reset(ErrorCode.REFUSED_STREAM)  # in the middle of a message; clients report Unavailable
        else:
            down.drop()
            down.finish(errors.SERVER_STOPPED)

    def _close(self) -> None:
        self.is_over = True
        self.down.sink = None
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.on_over()
        self._queue.clear()
        self.queued = self.waiting = self._queued_own = self._held_own = 0
        self.down.release(self._kept)
        self._kept = 0
