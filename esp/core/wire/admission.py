"""Decides which calls of a client a connection takes: by stream id, place and memory; during the drain none."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, TypeVar

from esp.core.wire.budget import Account
from esp.core.wire.context import WireContext
from esp.core.wire.frame_reader import FrameReader
from esp.core.wire.frames import DATA, MAX_STREAM_ID, ConnectionFault, ErrorCode, goaway, ping
from esp.core.wire.header_block import BlockBounds
from esp.core.wire.open_calls import OpenCalls
from esp.core.wire.ping_policy import PingPolicy
from esp.core.wire.shares import address_of
from esp.core.wire.status import OK, Status
from esp.core.wire.stream import Stream

log = logging.getLogger("esp.wire")

LAST_USUAL_ID: Final = MAX_STREAM_ID - (1 << 20)
"""After this id each request is looked at by itself, lest an id is too high. One read has not as many requests."""
DRAIN_PING: Final = bytes.fromhex("0106010800030309")
DRAIN_PING_SECONDS: Final = 5.0
"""How long a draining connection waits for the answer to `DRAIN_PING` before it takes no more calls."""

S = TypeVar("S", bound=Stream[Any])


class Admission(FrameReader[S]):
    """A connection whose streams are calls of a client.

    Attributes:
        now: the `monotonic` time at which the bytes that are being worked on came.
        recv_initial: the window with which each stream of the client begins.
        unended: calls whose one message has come whole, while the end of the request has not.
        weight: places at a shard that the client's next read takes there (services/gate.py), by its last answers; -1
            before any answer, and 0 where answers are small, so that a read of one shard needs none.
        when_read: called, in order, when all bytes that have come are read: a reset among them may take a call back.
            For calls that cost much more than the client pays to send them; a callback raises nothing.
    """

    __slots__ = (
        "_accepting",
        "_account",
        "_calls",
        "_drain_started",
        "_drain_status",
        "_idle_since",
        "_idle_stream",
        "_ids_end",
        "_last_accepted",
        "_last_stream",
        "_pings",
        "_said_goaway",
        "_usual_end",
        "now",
        "recv_initial",
        "unended",
        "weight",
        "when_read",
    )

    def __init__(self, context: WireContext, peer: str) -> None:
        limits = context.limits
        bounds = BlockBounds(limits.max_header_block_bytes, limits.max_continuations)
        super().__init__(context, peer, limits.connection_window_bytes, bounds)
        self.now = self._idle_since = monotonic()
        self.recv_initial = limits.stream_window_bytes
        self.unended: list[S] = []
        self.weight = -1
        self.when_read: deque[Callable[[], None]] = deque()
        self._account: Account | None = None
        self._calls = OpenCalls(context)
        self._last_stream = self._idle_stream = 0
        self._accepting = True
        self._ids_end = MAX_STREAM_ID + 1  # of those that are taken
        self._usual_end = LAST_USUAL_ID
        self._last_accepted = 0
        self._drain_started = 0.0
        self._drain_status = OK
        self._said_goaway = False
        self._pings = PingPolicy()

    def own_account(self) -> Account:
        """The account of the memory that the connection's calls hold, a part of their address's account."""
        account = self._account
        if account is None:
            account = self._account = self.context.buffers.of(address_of(self.peer)).of(self.peer)
        return account

    # Stream ids.

    def _may_open(self, stream_id: int) -> bool:
        """Whether a stream of this id is new, and there is room for the stream."""
        return (
            self._last_stream < stream_id < self._ids_end
            and stream_id & 1 == 1
            and (len(self.streams) < self._calls.room or self._calls.grow())
        )

    def last_stream_id(self) -> int:
        """The last stream taken; GOAWAY may not name a later one than the GOAWAY before it."""
        return self._last_stream if self._accepting else self._last_accepted

    def highest_stream_id(self) -> int:
        """The last stream that the client has opened, or tried to."""
        return self._last_stream

    def on_unknown_stream(self, stream_id: int, kind: int) -> None:
        """A frame for a stream that never was, or that has ended (RFC 9113, section 5.1)."""
        if stream_id > self._last_stream or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")
        if kind == DATA:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "DATA on a closed stream")
        self._charge_late()

    def _on_closed_stream(self, stream_id: int) -> None:
        """HEADERS for a stream that has ended."""
        if self.was_reset(stream_id):
            self.glitch(1, "frames on closed streams")
        elif stream_id == self._last_stream:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        else:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream id below an earlier one")

    def on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """The client will open no more streams; the open ones go on."""
        level = logging.INFO if code and not self._said_goaway else logging.DEBUG
        self._said_goaway = True
        log.log(level, "%s: client says GOAWAY %d %r", self.peer, code, debug[:128])

    def on_ping(self) -> None:
        """Raises ConnectionFault for a PING too many."""
        self._pings.came(monotonic(), after_output=self.sent_since_ping, has_calls=bool(self.streams))
        self.sent_since_ping = False

    # Idle connections give way.

    @property
    def idle_since(self) -> float | None:
        """The `monotonic` time since which there is no call, exact to half a second; None if there is a call."""
        return None if self.streams or self.ended else self._idle_since

    def let_go(self) -> None:
        """Ends a connection without calls because others need its place. The client connects anew for its next call."""
        self.end(ErrorCode.NO_ERROR, "idle, and connections are scarce")

    # The drain: GOAWAY, then a wait until the client must have seen it, then the open calls finish.

    def drain(self, streaming: Status) -> None:
        """Begins the drain: takes calls until the client knows of it, ends calls of any length with `streaming`."""
        if self.ended or self._drain_started:
            return
        self._drain_started = monotonic()
        self.send(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR, b"draining"))
        self.send(ping(DRAIN_PING))
        self._drain_status = streaming
        self._end_streaming(streaming)

    def _end_streaming(self, status: Status) -> None:
        """Ends the streaming calls, and the calls that may wait for hours."""
        raise NotImplementedError

    def on_ping_acknowledged(self, payload: bytes) -> None:
        """Notes that the client has seen the GOAWAY before the PING."""
        if payload == DRAIN_PING and self._drain_started and self._accepting:
            self._stop_accepting()

    def _stop_accepting(self) -> None:
        self._accepting = False
        self._ids_end = self._usual_end = 0
        self._last_accepted = self._last_stream
        self.tell_gone = True
        self.send(goaway(self._last_stream, ErrorCode.NO_ERROR, b"draining"))
        self._end_streaming(self._drain_status)
        self._end_when_drained()

    def on_stream_gone(self) -> None:
        """A drained connection ends with its last stream."""
        self._end_when_drained()

    def _end_when_drained(self) -> None:
        if not self.streams and not self.ended:
            self.lost("drained")

    def lost(self, reason: str) -> None:
        """The connection is gone, and gives back its calls' places."""
        super().lost(reason)
        self._calls.close()

    # Deadlines.

    def on_tick(self, now: float) -> None:
        """Deadlines of the connection and of the drain."""
        super().on_tick(now)
        if self.ended:
            return
        waits = self._drain_started and self._accepting and not self.unread
        if waits and now - self._drain_started > DRAIN_PING_SECONDS:
            self._stop_accepting()
        self._calls.shrink(len(self.streams))
        if self.streams or self._last_stream != self._idle_stream:  # calls may come and end between two ticks
            self._idle_since = now
            self._idle_stream = self._last_stream
