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
from esp.core.wire.server_stream import ServerCall, ServerStream
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

    A client that reads more slowly than the shards send costs memory. Messages from the client's own calls to shards
    need no bound here: esp does not read on in those calls before they have left. For all other messages the bound is
    `max_watch_buffer_bytes`. Above it the call ends, and the client resumes with another.

    Attributes:
        down: the client's call.
        context: shared by all connections of the process.
        is_over: the call has ended, or is about to: nothing is sent any more.
        queued: bytes of the messages that wait here.
        waiting: `queued`, and the bytes that wait elsewhere for this client (`hold`).
        wants_room: the owner has upstreams that are held back, so `on_room` will be called.
    """

    __slots__ = (
        "_awaits_flush",
        "_held_own",
        "_kept",
        "_most",
        "_owner",
        "_queue",
        "_queued_own",
        "_sent",
        "context",
        "down",
        "is_over",
        "queued",
        "waiting",
        "wants_room",
    )

    def __init__(self, down: ServerCall, owner: Owner) -> None:
        self.down = down
        self.is_over = self.wants_room = False
        self.queued = 0
        self.waiting = 0
        # The part of `waiting` that no bound counts, because esp reads it only as fast as the client: here, and
        # elsewhere.
        self._queued_own = 0
        self._held_own = 0
        self._kept = 0  # bytes that the call's account was last charged for
        self._queue: deque[bytes] = deque()
        self._awaits_flush = False
        self.context = down.connection.context
        self._most = (
            self.context.limits.max_watch_buffer_bytes
        )  # as of the last flush: it is looked at for each message
        self._sent = self.context.counters.messages_sent
        self._owner: Owner | None = owner  # None after the end: a cycle of references would stay in memory for long

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
        """Whether enough waits: then the client's own upstreams are not read on before `Owner.on_room`."""
        return self.queued > READ_AHEAD_BYTES

    # Messages.

    def send_alone(self, message: bytes, *, is_own: bool) -> None:
        """As `send_together`, for a message likely to be the only one of this turn: sent at once if nothing waits."""
        down = self.down
        if (
            len(message) > MAX_FRAME_SIZE  # a larger message would have to wait in part
            or self.waiting
            or self._awaits_flush
            or down.pending is not None
            or not down.responded
            or not (down.may_hold(len(message)) or self._afford_or_end(len(message)))
        ):
            self.send_together((message,), is_own=is_own)
        else:
            self._sent[down.head.path] += 1
            down.send_data(message, False)

    def send_together(self, messages: Sequence[bytes], *, is_own: bool) -> None:
        """Sends messages with nothing between them: all, or none if the call ends.

        Args:
            messages: the messages, each with its prefix.
            is_own: the messages came in this client's own call to a shard. That call is not read on before they have
                left, so they do not count against a slow client.
        """
        if self.is_over or (not is_own and self.waiting > self._most and not self._make_room_or_end()):
            return
        if not self._awaits_flush:
            self._want_flush()
        self._queue.extend(messages)
        size = sum(map(len, messages))
        self.queued += size
        self.waiting += size
        if is_own:
            self._queued_own = self.queued  # also the messages before it, which are few

    def send(self, message: bytes) -> None:
        """Sends a message, with its prefix, as soon as the client reads."""
        if self.is_over or (self.waiting > self._most and not self._make_room_or_end()):
            return
        if not self._awaits_flush:
            self._want_flush()
        self._queue.append(message)
        size = len(message)
        self.queued += size
        self.waiting += size

    def hold(self, size: int, *, is_own: bool = False) -> None:
        """Counts `size` bytes more (or fewer, below 0) that wait elsewhere for this client.

        `is_own` as in `send_together`.
        """
        if self.is_over:
            return
        self.waiting += size
        if is_own:
            self._held_own += size
        elif size > 0:
            if self.waiting > self._most:
                self._make_room_or_end()
            if not self._awaits_flush:
                self._want_flush()

    # Leaving.

    def _want_flush(self) -> None:
        self._awaits_flush = True
        self.context.unflushed.append(self)

    def flush(self) -> None:
        """Sends as much as the client's windows take: called when a connection was read, and when the client has read.

        The wire keeps only the bytes of the last piece that it cannot send at once. All else stays here, where it can
        be dropped.
        """
        self._awaits_flush = False
        if self.is_over:
            return
        self._most = self.context.limits.max_watch_buffer_bytes
        down, queue = self.down, self._queue
        messages = len(queue)
        if self._kept:
            down.release(self._kept)
            self._kept = 0
        if queue and not down.responded:
            down.start()
        while queue and down.pending is None:
            size = len(queue[0])
            if not down.may_hold(size) and not self._afford_or_end(size):
                break
            data = self._next_piece()
            size = len(data)
            self.queued -= size
            self.waiting -= size
            if self._queued_own:
                self._queued_own = max(0, self._queued_own - size)
            down.send_data(data, False)
        if messages and not self.is_over:
            self._sent[down.head.path] += messages - len(queue)
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
        """Sends as much as the client takes. If too much is left, the client is too slow: its call ends, then False.

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
        """Whether there is memory for `size` bytes that may have to wait. If not, the call ends."""
        if self.is_over:
            return False
        if self.down.may_hold(size):
            return True
        self.down.hold(size)  # refuses, and logs that
        self.end(errors.SERVER_STOPPED)
        return False

    # The end.

    def stop(self, status: Status = errors.SERVER_STOPPED) -> None:
        """Ends the call after the waiting messages; by default with the status at which clients open another call."""
        if not self.is_over:
            if self.waiting <= self.context.limits.max_watch_buffer_bytes:
                self.flush()
            self.end(status)

    def end(self, status: Status) -> None:
        """Ends the call with `status`, and drops the waiting messages."""
        if not self.is_over:
            self._close()
            self.down.finish(status)

    def on_bug(self) -> None:
        """Ends this client's call, and no other: an exception came out of work for this client."""
        log.exception("%s: a bug in esp; a watch stream ends", self.down.peer)
        self.fail()

    def fail(self) -> None:
        """Ends the call after a bug that was logged already."""
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
