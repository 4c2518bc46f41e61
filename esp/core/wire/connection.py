"""A connection as its transport sees it: bytes that come, in turns; output; the end.

A connection is sans-I/O: `receive` takes bytes, `out` collects frames, the transport around the connection moves them.
Nothing here waits or schedules. `multiplexed` has the streams on the connection, `frame_reader` the peer's frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic

from esp.core.wire.context import WireContext
from esp.core.wire.frames import ConnectionFault, ErrorCode, goaway
from esp.core.wire.glitches import GlitchBudget
from esp.core.wire.held_ack import HeldAck
from esp.core.wire.native import mypyc_attr
from esp.core.wire.table_update import with_table_update
from esp.core.wire.traffic import Traffic

log = logging.getLogger("esp.wire")


@mypyc_attr(allow_interpreted_subclasses=True)
class Connection:
    """One end of an HTTP/2 connection.

    Attributes:
        backlog: bytes written since the transport became full. The transport still takes them, because only DATA waits.
        blocked_since: when the transport became full, on the `monotonic` clock.
        out: frames to write, in order. Non-empty only while the connection stands in `context.unflushed`.
        written: how many items have left `out` so far.
        ended: the connection takes no more bytes; the transport writes the rest of `out` and closes.
        peer: the other end's address, for the log.
        on_flush: called with the bytes to write; set by the transport.
        on_end: called once, when the connection has ended and all its bytes went to `on_flush`; set by the transport.
        on_charge: called with the seconds of work that a call made outside of `receive`; set by the transport.
        on_behind: called when there are steps to take that did not begin in `receive`; set by the transport.
        traffic: counts the bytes of this connection, perhaps together with those of others.
        stop: when `receive` has to stop before the end of its bytes, on the clock of `context.turns`.
        unread: bytes of the peer wait for their turn in esp. A frame that the peer owes may be among them, and is not
            late.
        writable: the transport has room.
    """

    __slots__ = (
        "_glitches",
        "_held_ack",
        "_next",
        "_table_update_due",
        "_tail",
        "_told_full",
        "_unfinished",
        "backlog",
        "blocked_since",
        "clock",
        "context",
        "ended",
        "limits",
        "on_behind",
        "on_charge",
        "on_end",
        "on_flush",
        "out",
        "peer",
        "stop",
        "traffic",
        "unread",
        "wall",
        "writable",
        "written",
    )

    def __init__(self, context: WireContext, peer: str) -> None:
        self.context = context
        self.limits = context.limits
        self.peer = peer
        self.out: list[bytes | memoryview] = []
        self.on_flush: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_charge: Callable[[float], None] | None = None
        self.on_behind: Callable[[], None] | None = None
        self.clock = context.turns.clock
        self.wall = context.turns.wall
        self.stop = inf
        self.traffic = Traffic()
        self.unread = False
        self.ended = False
        self.written = 0
        self.writable = True
        self.backlog = 0
        self.blocked_since = 0.0
        self._held_ack: HeldAck | None = None
        self._table_update_due = False
        self._told_full = False
        self._tail = b""
        self._next = 0
        self._unfinished: list[Iterator[None]] | None = None
        self._glitches = GlitchBudget(context.limits.glitch_budget, context.limits.glitch_refill_per_second)

    # Input, and the turns in which it is worked on.

    def receive(self, data: bytes) -> None:
        """Takes bytes from the peer, and works on them and on the rest of earlier ones until `stop`."""
        raise NotImplementedError

    @property
    def behind(self) -> bool:
        """Whether `receive(b"")` could work on more of the bytes that have come."""
        return not self.ended and (self._next > 0 or self._unfinished is not None)

    def take(self, data: bytes, stop: float) -> bool:
        """As `receive`, until `stop`; True if work is left."""
        self.stop = stop
        self.receive(data)
        return (self._next > 0 or self._unfinished is not None) and not self.ended

    def do(self, steps: Iterator[None]) -> None:
        """Takes `steps` for as long as this turn lasts; the rest in later turns, before any other frame is read."""
        if self._unfinished is not None:
            self._unfinished.append(steps)
        elif not self._take_steps(steps):
            self._unfinished = [*(self._unfinished or ()), steps]  # behind the steps that `steps` have begun

    def do_later(self, steps: Iterator[None]) -> None:
        """Takes `steps`, which did not begin in `receive`, in the next turns; at once without a transport."""
        if self.ended:
            return
        if self._unfinished is not None:
            self._unfinished.append(steps)
        elif self.on_behind is not None:
            self._unfinished = [steps]
            self.on_behind()
        else:
            for _ in steps:
                pass

    def _take_steps(self, steps: Iterator[None]) -> bool:
        """Takes steps until the turn is over; True if no step is left."""
        return all(self.clock() < self.stop for _ in steps)

    def charge(self, seconds: float) -> None:
        """Charges work that was done for this peer outside of `receive`: its next bytes wait for as long."""
        if self.on_charge is not None:
            self.on_charge(seconds)

    def _take_up(self, data: bytes) -> tuple[bytes, int]:
        """The bytes that were put off, with `data` behind them, and the place in them to go on from."""
        tail, position = self._tail, self._next
        self._next = 0
        return (tail[position:] + data, 0) if data else (tail, position)

    def _put_off(self, data: bytes, position: int) -> None:
        """Keeps the bytes of `data` from `position` on for the next turn."""
        self._tail = data
        self._next = position

    @property
    def unread_bytes(self) -> int:
        """The bytes that have come and wait for the next turn."""
        return len(self._tail) - self._next

    def _finish(self) -> bool:
        """Goes on with unfinished steps; True if all are done."""
        unfinished = self._unfinished
        while unfinished and not self.ended:
            if not self._take_steps(unfinished[0]):
                return False
            del unfinished[0]
        self._unfinished = None
        return True

    # Output.

    def send(self, frame: bytes) -> None:
        """Queues a frame."""
        if not self.out:
            self.context.unflushed.append(self)
        self.out.append(frame)

    def flush(self) -> None:
        """Hands the queued frames to the transport as one block of bytes."""
        on_flush = self.on_flush
        if on_flush is None and not self.ended:
            return  # not connected yet: `out` is kept for the transport to come
        out = self.out
        if out:
            if self._held_ack is not None and self._held_ack.is_due(sum(map(len, out))):
                out.append(self._held_ack.frames)
                self._held_ack = None
            data = b"".join(out)  # a single frame as it is
            self.written += len(out)
            out.clear()
            if self._table_update_due:
                data = self._with_table_update(data)
            if not self.writable:
                self.backlog += len(data)
                self.on_backlog()
            if on_flush is not None:
                self.traffic.sent += len(data)
                on_flush(data)
        if self.ended and not out and self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()

    def on_backlog(self) -> None:
        """`backlog` has grown."""

    def _with_table_update(self, data: bytes) -> bytes:
        updated = with_table_update(data)
        if updated is None:
            return data
        self._table_update_due = False
        return updated

    def hold_ack(self, ack: bytes) -> None:
        """Takes the answer to a PING that measures bandwidth; the answer leaves with other output or the next tick."""
        if self._held_ack is None:
            self._held_ack = HeldAck(ack)
        else:
            self._held_ack.add(ack)

    def pause(self) -> None:
        """The transport is full: DATA waits from here on."""
        self.context.reached("max_output_bytes")
        self.writable = False
        self.blocked_since = monotonic()

    def resume(self) -> None:
        """The transport has room again."""
        self.writable = True
        self.backlog = 0

    # Memory.

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes that belong to no single client; False, without any change, if there is no room."""
        if self.context.buffers.shared.take(size):
            return True
        self.on_full(0)
        return False

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        self.context.buffers.shared.give(size)

    def on_full(self, held: int) -> None:
        """A call on this connection, for which `held` bytes are held, fails for want of memory."""
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

    # Faults and the end.

    def glitch(self, cost: float, what: str) -> None:
        """Charges for a frame that is legal but pointless.

        Raises:
            ConnectionFault: ENHANCE_YOUR_CALM, the budget is spent.
        """
        self._glitches.charge(cost, what, monotonic())

    def fail(self, fault: ConnectionFault) -> None:
        """Ends the connection for a fault of the peer."""
        if not self.ended:
            self.context.counters.connection_faults += 1
            if fault.limit:
                self.context.reached(fault.limit)
            log.warning("%s: closing: %s", self.peer, fault)
            self.end(fault.code, fault.reason)

    def last_stream_id(self) -> int:
        """The last stream of the peer that was or may have been processed, for GOAWAY."""
        return 0

    def end(self, code: ErrorCode, reason: str) -> None:
        """Ends the connection: GOAWAY, then nothing more is read; open streams are told."""
        if not self.ended:
            self.send(goaway(self.last_stream_id(), code, reason.encode()))
            self.lost(reason)

    def on_bug(self) -> None:
        """Ends this connection, and no other: an exception came out of it, which is a bug in esp."""
        log.exception("%s: a bug in esp; closing the connection", self.peer)
        self.end(ErrorCode.INTERNAL_ERROR, "internal error")

    def lost(self, reason: str) -> None:
        """The connection is gone: waiting bytes and steps are dropped."""
        if self.ended:
            return
        self.ended = True
        if not self.out:
            self.context.unflushed.append(self)
        self._tail = b""
        self._next = 0
        self._unfinished = None

    # Deadlines.

    def tick(self, now: float) -> None:
        """Called about twice a second, to look at every deadline. A bug there ends this connection only."""
        try:
            self.on_tick(now)
        except Exception:
            self.on_bug()

    def on_tick(self, now: float) -> None:
        """Looks at every deadline, and lets go of an answer that waits for other output."""
        if self.ended:
            return
        if self._held_ack is not None:
            self.send(self._held_ack.frames)
            self._held_ack = None
        self._expire(now)

    def _expire(self, now: float) -> None:
        """Ends the connection, or a stream, that is late with something."""
        if not self.writable and now - self.blocked_since > self.limits.blocked_write_timeout:
            self._time_out("blocked_write_timeout", "does not read what it asked for")

    def _time_out(self, limit: str, reason: str, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        self.context.reached(limit)
        log.info("%s: closing: %s", self.peer, reason)
        self.end(code, reason)
