"""The state of an HTTP/2 connection, what it sends, and how it ends (RFC 9113); `frame_reader` is what it takes.

A connection is sans-I/O: `receive` takes bytes, `out` collects frames, the transport around it moves them. Nothing here
waits or schedules.

Flow control. Sending: a stream may send while the connection's window (`send_window`) and its own allow. A stream's own
is `peer_initial_window + credit`, so that a SETTINGS change is one assignment however many streams are open. What does
not fit waits in the stream's `pending` and is sent in turns by `pump`. Receiving: the connection's window is given back
on receipt, so that one slow reader never stops its neighbours; a stream's is given back when its bytes have left
(`Stream.consumed`), which is what makes back-pressure reach from one end to the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic
from typing import Final

from esp.core.wire.context import WireContext
from esp.core.wire.frames import (
    CONTINUATION,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADER_SIZE,
    HEADERS,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame,
    goaway,
    header_block,
    rst_stream,
    settings,
    unpack_header,
)
from esp.core.wire.stream import Pending, Stream

log = logging.getLogger("esp.wire")

PUMP_BYTES: Final = 262144
"""Bytes of what waits that a connection sends at most in one turn, so that wide windows do not keep others waiting."""
TOLD_AT_ONCE: Final = 50
"""Streams that are told in one turn that their connection has ended: some 20 microseconds for one of a watch."""
HELD_ACK_BYTES: Final = 65536
PING_FRAME_SIZE: Final = 17
RECENTLY_RESET: Final = 1000
LEAST_PROGRESS: Final = 6000
"""Bytes of what waits that must leave within `blocked_write_timeout`; less is standing still with a trick."""


class Connection:
    """One end of an HTTP/2 connection.

    Attributes:
        backlog: bytes written since the transport was full; it takes them, since only DATA waits.
        out: frames to write, in order. Non-empty only while the connection stands in `context.unflushed`.
        streams: the open streams by id.
        flushes: how often `out` was emptied.
        ended: the connection takes no more bytes; the transport writes what is left in `out` and closes.
        peer: who is at the other end, for the log.
        on_flush: called with the bytes to write; set by the transport.
        on_end: called once, when the connection has ended and all its bytes went to `on_flush`; set by the transport.
        on_charge: called with the seconds of work that a call made outside of `receive`; set by the transport.
        stop: when `receive` has to stop, on the clock of `context.turns`, though it was given more.
        unread: bytes of the peer wait for their turn here, so whatever it owes may be among them and is not late.
    """

    __slots__ = (
        "_block",
        "_block_end",
        "_block_frames",
        "_block_since",
        "_block_stream",
        "_end_reason",
        "_forgotten",
        "_glitch_level",
        "_glitch_time",
        "_held_ack",
        "_held_ack_size",
        "_is_put_off",
        "_late",
        "_next",
        "_opened",
        "_pump_budget",
        "_pumped",
        "_pumping",
        "_reset_ids",
        "_send_top",
        "_settings_due",
        "_settings_since",
        "_small_updates",
        "_stalled",
        "_table_granted",
        "_table_update_due",
        "_tail",
        "_told_full",
        "_unfinished",
        "_untold",
        "backlog",
        "blocked",
        "blocked_since",
        "clock",
        "context",
        "ended",
        "flushes",
        "got_settings",
        "limits",
        "max_block_bytes",
        "max_continuations",
        "on_charge",
        "on_end",
        "on_flush",
        "out",
        "peer",
        "peer_initial_window",
        "peer_max_streams",
        "recv_limit",
        "recv_window",
        "send_window",
        "sent_since_ping",
        "stop",
        "streams",
        "tell_gone",
        "unread",
        "writable",
    )

    def __init__(self, context: WireContext, peer: str, recv_limit: int) -> None:
        self.context = context
        self.limits = context.limits
        self.max_block_bytes = context.limits.max_header_block_bytes
        self.max_continuations = context.limits.max_continuations
        self.peer = peer
        self.out: list[bytes] = []
        self.on_flush: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_charge: Callable[[float], None] | None = None
        self.clock = context.turns.clock
        self.stop = inf
        self.unread = False
        self.streams: dict[int, Stream] = {}
        self.ended = False
        self.flushes = 0
        self.got_settings = False
        self.send_window = DEFAULT_WINDOW
        self._send_top = DEFAULT_WINDOW
        self._small_updates = 0
        self._held_ack = b""
        self._held_ack_size = 0
        self._table_granted = 4096  # by the protocol, until SETTINGS say otherwise
        self._table_update_due = False
        self.peer_initial_window = DEFAULT_WINDOW
        self.peer_max_streams = MAX_WINDOW
        self.recv_limit = recv_limit
        self.recv_window = recv_limit
        self.tell_gone = False
        self._told_full = False
        self.writable = True
        self.backlog = 0
        self.blocked: dict[int, Stream] = {}
        self.blocked_since = 0.0
        self.sent_since_ping = True
        self._tail = b""
        self._next = 0
        self._unfinished: list[Iterator[None]] | None = None
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_end = False
        self._block_frames = 0
        self._block_since = 0.0
        self._glitch_level = 0.0
        self._glitch_time = 0.0
        self._pump_budget = PUMP_BYTES
        self._pumped = 0
        self._pumping = False
        self._is_put_off = False
        self._untold: list[Stream] = []
        self._end_reason = ""
        self._stalled: dict[int, tuple[Pending | None, int, float]] = {}
        self._reset_ids: dict[int, None] = {}
        self._forgotten = 0
        self._late = 0
        self._opened = monotonic()
        self._settings_due = 0
        self._settings_since = 0.0

    # Input, and the turns in which it is worked on.

    def receive(self, data: bytes) -> None:
        """Takes bytes from the peer, and works on them and on what is left of earlier ones until `stop`."""
        raise NotImplementedError

    def paused(self) -> None:
        """All that has come was taken, and more is not there yet."""

    @property
    def behind(self) -> bool:
        """Whether more of what has come could be worked on: `receive(b"")` does."""
        return not self.ended and (self._next > 0 or self._unfinished is not None)

    def take(self, data: bytes, stop: float) -> bool:
        """As `receive`, until `stop`; and what is whole is served though more may come. Whether something is left."""
        self.stop = stop
        self.receive(data)
        if not self._next and self._unfinished is None and not self.ended:
            self.paused()
        return (self._next > 0 or self._unfinished is not None) and not self.ended

    def do(self, steps: Iterator[None]) -> None:
        """Takes `steps` for as long as this turn lasts; the rest in later turns, before any other frame is read."""
        if self._unfinished is not None:
            self._unfinished.append(steps)
        elif not self._take_steps(steps):
            self._unfinished = [*(self._unfinished or ()), steps]  # what is left of steps that those have begun

    def _take_steps(self, steps: Iterator[None]) -> bool:
        """Takes steps until the turn is over; whether those were all."""
        return all(self.clock() < self.stop for _ in steps)

    def charge(self, seconds: float) -> None:
        """Counts work done for this peer outside of `receive`; it waits for that before it is read again."""
        if self.on_charge is not None:
            self.on_charge(seconds)

    def _take_up(self, data: bytes) -> tuple[bytes, int]:
        """What was left with `data` behind it, and the place in it to go on from."""
        tail, position = self._tail, self._next
        self._next = 0
        return (tail[position:] + data, 0) if data else (tail, position)

    def _put_off(self, data: bytes, position: int) -> None:
        """Keeps what stands in `data` from `position` for the next turn."""
        self._tail = data
        self._next = position

    @property
    def unread_bytes(self) -> int:
        """How much of what has come waits for the next turn."""
        return len(self._tail) - self._next

    def _finish(self) -> bool:
        """Goes on with what was not finished; whether that is done."""
        unfinished = self._unfinished
        while unfinished and not self.ended:
            if not self._take_steps(unfinished[0]):
                return False
            del unfinished[0]
        self._unfinished = None
        return True

    def last_stream_id(self) -> int:
        """The last stream of the peer that was or may have been processed, for GOAWAY."""
        return 0

    def highest_stream_id(self) -> int:
        """The last stream that was opened on this connection: there were half as many."""
        return 0

    # Output.

    def send(self, frame: bytes) -> None:
        """Queues a frame."""
        if not self.out:
            self.context.unflushed.append(self)
        self.out.append(frame)

    def send_settings(self, values: dict[int, int]) -> None:
        """Sends SETTINGS; `on_settings_acknowledged` tells when the peer has taken them over."""
        self.send(settings(values))
        self._settings_due += 1
        self._settings_since = self._settings_since or monotonic()

    def flush(self) -> None:
        """Hands the queued frames to the transport as one block of bytes."""
        if self.on_flush is None and not self.ended:
            return  # not connected yet: `out` is kept for the transport to come
        out = self.out
        if out:
            if self._held_ack:
                self._hold_ack_or_not(out)
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self.flushes += 1
            if self._table_update_due:
                data = self._with_table_update(data)
            if not self.writable:
                self.backlog += len(data)
            if self.on_flush is not None:
                self.on_flush(data)
        if self.ended and not out and self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()

    def _with_table_update(self, data: bytes) -> bytes:
        """`data`, whole frames, with a table size update to 0 at the start of its first header block.

        esp keeps no table, but a peer that takes back what it granted at first waits for that (RFC 7541, section 4.2).
        """
        position = 0
        while position < len(data):
            word, flags, stream_id = unpack_header(data, position)
            start = position + HEADER_SIZE
            end = start + (word >> 8)
            if word & 0xFF == HEADERS:
                self._table_update_due = False
                self._table_granted = 0
                block = header_block(stream_id, b"\x20" + data[start:end], end_stream=bool(flags & END_STREAM))
                if not flags & END_HEADERS:
                    block = frame(HEADERS, flags, stream_id, b"\x20" + data[start : end - 1])
                    block += frame(CONTINUATION, 0, stream_id, data[end - 1 : end])
                return data[:position] + block + data[end:]
            position = end
        return data

    def take_output(self) -> bytes:
        """The queued frames, for a caller that moves the bytes itself."""
        data = b"".join(self.out)
        self.out.clear()
        self.flushes += 1
        self._pump_budget = PUMP_BYTES
        if self in self.context.unflushed:
            self.context.unflushed.remove(self)
        return data

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes kept for nobody in particular; False, and nothing accounted, without room."""
        if self.context.buffers.shared.take(size):
            return True
        self.on_full(0)
        return False

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        self.context.buffers.shared.give(size)

    def on_full(self, held: int) -> None:
        """A call on this connection, for which so many bytes are held, fails for want of memory."""
        self.context.reached("max_buffered_bytes")
        if not self._told_full:
            self._told_full = True
            log.warning(
                "%s: a call fails: %d bytes wait for it, %d for all peers, and there is memory for %d "
                "(max_buffered_bytes)",
                self.peer,
                held,
                self.context.buffers.used,
                self.context.buffers.limit,
            )

    def hold_ack(self, ack: bytes) -> None:
        """Takes the answer to a PING that measures bandwidth (grpc-go, internal/transport/bdp_estimator.go).

        It leaves when enough else has left for there to be something to measure, at the latest with the next tick: the
        peer sends another such PING, in a packet of its own, with the first DATA behind each answer.
        """
        self._held_ack += ack

    def _hold_ack_or_not(self, out: list[bytes]) -> None:
        self._held_ack_size += sum(map(len, out))
        if self._held_ack_size > HELD_ACK_BYTES or len(self._held_ack) > PING_FRAME_SIZE:
            out.append(self._release_ack())

    def _release_ack(self) -> bytes:
        ack, self._held_ack, self._held_ack_size = self._held_ack, b"", 0
        return ack

    def pause(self) -> None:
        """The transport is full: DATA waits from here on."""
        self.context.reached("max_output_bytes")
        self.writable = False
        self.blocked_since = monotonic()

    def resume(self) -> None:
        """The transport has room again."""
        self.writable = True
        self.backlog = 0
        self.pump()

    def unblock(self, stream: Stream) -> None:
        """A stream that has something pending may send now, as far as the connection allows."""
        self.blocked[stream.id] = stream
        self.pump()

    def pump(self) -> None:
        """Sends what waits, a frame per stream in turn, as far as the connection's window and the transport go."""
        if self._pumping:
            return  # somebody was told of bytes that left and queued more; the loop below gets to it
        self._pumping = True
        blocked = self.blocked
        try:
            while blocked and self.writable and self.send_window > 0 and self._pump_budget > 0:
                stream_id = next(iter(blocked))
                stream = blocked.pop(stream_id)
                sent = stream.send_pending(min(MAX_FRAME_SIZE, self.send_window))
                self._pump_budget -= sent
                self._pumped += sent
                if sent and stream.pending is not None:
                    blocked[stream_id] = stream
        finally:
            self._pumping = False
        if blocked and self._pump_budget <= 0 and not self._is_put_off:
            self._is_put_off = True
            self.context.put_off(self)

    def go_on(self) -> None:
        """A new turn: what waits may move up, and more streams are told of the end."""
        self._is_put_off = False
        self._pump_budget = PUMP_BYTES
        if self._untold:
            self._tell_some()
        else:
            self.pump()

    # Streams.

    def forget(self, stream: Stream) -> None:
        """The stream is closed on both sides."""
        if self.streams.pop(stream.id, None) is not None and self.tell_gone:
            self.on_stream_gone()

    def on_stream_gone(self) -> None:
        """A stream has left `streams`, and `tell_gone` is set."""

    def reset(self, stream: Stream, code: int) -> None:
        """Ends a stream from here with RST_STREAM; late frames of the peer for it are ignored."""
        self.send(rst_stream(stream.id, code))
        self._remember_reset(stream.id)
        stream.drop()
        self.forget(stream)

    def was_reset(self, stream_id: int) -> bool:
        """Whether a stream was reset from here lately, so that frames of the peer may still be on their way."""
        return stream_id in self._reset_ids or stream_id <= self._forgotten

    def _remember_reset(self, stream_id: int) -> None:
        # Ids up to that of a forgotten one count as reset too: a burst of calls that end must not end the connection.
        if len(self._reset_ids) >= RECENTLY_RESET:
            oldest = next(iter(self._reset_ids))
            del self._reset_ids[oldest]
            self._forgotten = max(self._forgotten, oldest)
        self._reset_ids[stream_id] = None

    def fault_stream(self, stream_id: int, fault: StreamFault) -> None:
        """The peer broke a rule on one stream: RST_STREAM, and the stream's owner is told."""
        self.context.counters.stream_faults += 1
        if fault.limit:
            self.context.reached(fault.limit)
        log.debug("%s: stream %d: %s", self.peer, stream_id, fault)
        self.glitch(1, "stream errors")
        stream = self.streams.get(stream_id)
        if stream is None:
            self.send(rst_stream(stream_id, fault.code))
            self._remember_reset(stream_id)
            return
        self.reset(stream, fault.code)
        stream.on_reset(fault.code, fault.reason)

    # Ending.

    def glitch(self, cost: float, what: str) -> None:
        """Charges for something legal but pointless.

        Raises:
            ConnectionFault: ENHANCE_YOUR_CALM, the budget is spent.
        """
        now = monotonic()
        refill = (now - self._glitch_time) * self.limits.glitch_refill_per_second
        self._glitch_level = max(0.0, self._glitch_level - refill) + cost
        self._glitch_time = now
        if self._glitch_level > self.limits.glitch_budget:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}", "glitch_budget")

    def fail(self, fault: ConnectionFault) -> None:
        """Ends the connection for a fault of the peer."""
        if not self.ended:
            self.context.counters.connection_faults += 1
            if fault.limit:
                self.context.reached(fault.limit)
            log.warning("%s: closing: %s", self.peer, fault)
            self.end(fault.code, fault.reason)

    def end(self, code: ErrorCode, reason: str) -> None:
        """Ends the connection: GOAWAY, then nothing more is read; open streams are told."""
        if not self.ended:
            self.send(goaway(self.last_stream_id(), code, reason.encode()))
            self.lost(reason)

    def on_bug(self) -> None:
        """An exception of esp's own came out of this connection: it ends, and no other does."""
        log.exception("%s: a bug in esp; closing the connection", self.peer)
        self.end(ErrorCode.INTERNAL_ERROR, "internal error")

    def lost(self, reason: str) -> None:
        """The connection is gone: open streams are told, whatever waits is dropped."""
        if self.ended:
            return
        self.ended = True
        if not self.out:
            self.context.unflushed.append(self)
        self.blocked.clear()
        self._tail = b""
        self._next = 0
        self._unfinished = None
        self._untold = list(self.streams.values())
        self._untold.reverse()
        self._end_reason = reason
        self.streams.clear()
        self._tell_some()

    def _tell_some(self) -> None:
        """Tells streams that the connection has ended; thousands take several turns."""
        for _ in range(min(len(self._untold), TOLD_AT_ONCE)):
            stream = self._untold.pop()
            stream.drop()
            try:
                stream.on_reset(ErrorCode.CANCEL, self._end_reason)
            except Exception:
                log.exception("%s: a bug in esp; stream %d was not told of the end", self.peer, stream.id)
        if self._untold and not self._is_put_off:
            self._is_put_off = True
            self.context.put_off(self)

    def tick(self, now: float) -> None:
        """Called about twice a second: whatever has a deadline is looked at. A bug there ends this connection only."""
        try:
            self.on_tick(now)
        except Exception:
            self.on_bug()

    def on_tick(self, now: float) -> None:
        """Looks at whatever has a deadline."""
        limits = self.limits
        if self.ended:
            return
        if self._held_ack:
            self.send(self._release_ack())
        if self.unread:
            self._opened = self._block_since = now
            self._settings_since = self._settings_since and now
        if not self.got_settings and now - self._opened > limits.preface_timeout:
            self._time_out("preface_timeout", "no HTTP/2 preface in time")
        elif self._settings_since and now - self._settings_since > limits.settings_timeout:
            self._time_out("settings_timeout", "SETTINGS not acknowledged in time", ErrorCode.SETTINGS_TIMEOUT)
        elif self._block is not None and now - self._block_since > limits.header_timeout:
            self._time_out("header_timeout", "header block not complete in time")
        elif not self.writable and now - self.blocked_since > limits.blocked_write_timeout:
            self._time_out("blocked_write_timeout", "does not read what it asked for")
        else:
            self._reset_stalled(now)

    def _reset_stalled(self, now: float) -> None:
        """Ends the streams whose DATA has waited too long for a window: what they hold is wanted by others."""
        stalled: dict[int, tuple[Pending | None, int, float]] = {}
        for stream in self.streams.values():
            if stream.pending is not None:
                # A stream that could send waits for its turn, which comes while the connection's window moves at all.
                in_turn = stream.id in self.blocked
                pending = None if in_turn else stream.pending
                moved = self._pumped if pending is None else pending.sent
                before = self._stalled.get(stream.id)
                if before is not None and before[0] is pending and moved - before[1] < LEAST_PROGRESS:
                    stalled[stream.id] = before
                else:
                    stalled[stream.id] = (pending, moved, now)
        self._stalled = stalled
        if self.writable:
            for stream_id, (_, _, since) in stalled.items():
                if now - since > self.limits.blocked_write_timeout and stream_id in self.streams:
                    self.context.reached("blocked_write_timeout")
                    stream = self.streams[stream_id]
                    # Not CANCEL: etcd's Go client would repeat the call, though it may have been a write.
                    self.reset(stream, ErrorCode.INTERNAL_ERROR)
                    stream.on_reset(ErrorCode.INTERNAL_ERROR, "the peer gives no window for what waits")

    def _time_out(self, limit: str, reason: str, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        self.context.reached(limit)
        log.info("%s: closing: %s", self.peer, reason)
        self.end(code, reason)
