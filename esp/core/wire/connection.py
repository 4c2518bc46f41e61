"""What both ends of an HTTP/2 connection have in common: frames in, frames out, windows, settings (RFC 9113).

A connection is sans-I/O: `receive` takes bytes, `out` collects frames, the transport around it moves them. Nothing here
waits or schedules. `ServerConnection` and `ClientConnection` each have a frame loop with the few frames that make up
almost all traffic inlined; every other frame comes through `on_frame` here.

Flow control. Sending: a stream may send while the connection's window (`send_window`) and its own allow. A stream's own
is `peer_initial_window + credit`, so that a SETTINGS change is one assignment however many streams are open. What does
not fit waits in the stream's `pending` and is sent in turns by `pump`. Receiving: the connection's window is given back
on receipt, so that one slow reader never stops its neighbours; a stream's is given back when its bytes have left
(`Stream.consumed`), which is what makes back-pressure reach from one end to the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

from esp.core.wire.context import WireContext
from esp.core.wire.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_SIZE,
    HEADERS,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    SETTINGS_HEADER_TABLE_SIZE,
    SETTINGS_INITIAL_WINDOW_SIZE,
    SETTINGS_MAX_CONCURRENT_STREAMS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame,
    goaway,
    header_block,
    parse_settings,
    ping,
    rst_stream,
    settings,
    unpack_header,
    unpack_u32,
    unpad,
    window_update,
)
from esp.core.wire.stream import Stream

log = logging.getLogger("esp.wire")

MAX_SETTINGS: Final = 32
PUMP_BYTES: Final = 262144
"""Bytes that one `pump` moves at most, so that a wide window does not turn into a large write."""
BANDWIDTH_PING: Final = bytes.fromhex("02041010090e0707")
"""What grpc-go sends to measure bandwidth, up to once per message it gets. Nobody waits for the answer, so it goes with
the next frames, at the latest with the next `tick`, and costs no write of its own."""
RECENTLY_RESET: Final = 1000
SMALL_INCREMENT: Final = 64
SMALL_DATA: Final = 5
"""DATA shorter than a gRPC prefix: no client cuts its messages so small."""


class Connection:
    """One end of an HTTP/2 connection.

    Attributes:
        out: frames to write, in order. Non-empty only while the connection stands in `context.unflushed`.
        streams: the open streams by id.
        ended: the connection takes no more bytes; the transport writes what is left in `out` and closes.
        peer: who is at the other end, for the log.
        on_flush: called with the bytes to write; set by the transport.
        on_end: called once, when the connection has ended and its last bytes went to `on_flush`; set by the transport.
    """

    __slots__ = (
        "_block",
        "_block_end",
        "_block_frames",
        "_block_since",
        "_block_stream",
        "_glitch_level",
        "_glitch_time",
        "_held_ack",
        "_opened",
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
        "blocked",
        "blocked_since",
        "context",
        "ended",
        "got_settings",
        "limits",
        "max_block_bytes",
        "max_continuations",
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
        "streams",
        "tell_gone",
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
        self.streams: dict[int, Stream] = {}
        self.ended = False
        self.got_settings = False
        self.send_window = DEFAULT_WINDOW
        self._send_top = DEFAULT_WINDOW
        self._small_updates = 0
        self._held_ack = b""
        self._table_granted = 4096  # by the protocol, until SETTINGS say otherwise
        self._table_update_due = False
        self.peer_initial_window = DEFAULT_WINDOW
        self.peer_max_streams = MAX_WINDOW
        self.recv_limit = recv_limit
        self.recv_window = recv_limit
        self.tell_gone = False
        self.writable = True
        self.blocked: dict[int, Stream] = {}
        self.blocked_since = 0.0
        self.sent_since_ping = True
        self._tail = b""
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_end = False
        self._block_frames = 0
        self._block_since = 0.0
        self._glitch_level = 0.0
        self._glitch_time = 0.0
        self._pumped = 0
        self._pumping = False
        self._stalled: dict[int, tuple[tuple[str, int], float]] = {}
        self._reset_ids: dict[int, None] = {}
        self._opened = monotonic()
        self._settings_due = 0
        self._settings_since = 0.0

    # What the two ends do differently.

    def receive(self, data: bytes) -> None:
        """Takes bytes from the peer."""
        raise NotImplementedError

    def on_headers(self, stream_id: int, block: bytes, *, end: bool) -> None:
        """A whole header block has come."""
        raise NotImplementedError

    def on_unknown_stream(self, stream_id: int, kind: int) -> None:
        """A frame came for a stream that is not open and was not reset from here lately."""
        raise NotImplementedError

    def on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """The peer opens or accepts no more streams."""
        raise NotImplementedError

    def on_settings_acknowledged(self) -> None:
        """The peer has taken over our settings."""
        raise NotImplementedError

    def on_ping(self) -> None:
        """The peer sent a PING; raises ConnectionFault where that is one too many."""

    def on_ping_acknowledged(self, payload: bytes) -> None:
        """The peer answered our PING."""

    def last_stream_id(self) -> int:
        """The last stream of the peer that was or may have been processed, for GOAWAY."""
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
        """Hands the queued frames to the transport as one block of bytes, and lets what waited move up."""
        if self.on_flush is None and not self.ended:
            return  # not connected yet: `out` is kept for the transport to come
        out = self.out
        if out:
            if self._held_ack:
                out.append(self._held_ack)
                self._held_ack = b""
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            if self._table_update_due:
                data = self._with_table_update(data)
            if self.on_flush is not None:
                self.on_flush(data)
        if self.blocked:
            self.pump()
        if self.ended and self.on_end is not None:
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
        if self in self.context.unflushed:
            self.context.unflushed.remove(self)
        return data

    def pause(self) -> None:
        """The transport is full: DATA waits from here on."""
        self.context.reached("max_output_bytes")
        self.writable = False
        self.blocked_since = monotonic()

    def resume(self) -> None:
        """The transport has room again."""
        self.writable = True
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
        budget = PUMP_BYTES
        try:
            while blocked and self.writable and self.send_window > 0 and budget > 0:
                stream_id = next(iter(blocked))
                stream = blocked.pop(stream_id)
                sent = stream.send_pending(min(MAX_FRAME_SIZE, self.send_window))
                budget -= sent
                self._pumped += sent
                if sent and stream.pending is not None:
                    blocked[stream_id] = stream
        finally:
            self._pumping = False

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
        return stream_id in self._reset_ids

    def _remember_reset(self, stream_id: int) -> None:
        if len(self._reset_ids) >= RECENTLY_RESET:
            del self._reset_ids[next(iter(self._reset_ids))]
        self._reset_ids[stream_id] = None

    def _on_frame_without_stream(self, stream_id: int, kind: int) -> None:
        if stream_id in self._reset_ids:
            self.glitch(0.05, "frames on closed streams")
        else:
            self.on_unknown_stream(stream_id, kind)

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

    def lost(self, reason: str) -> None:
        """The connection is gone: open streams are told, whatever waits is dropped."""
        if self.ended:
            return
        self.ended = True
        if not self.out:
            self.context.unflushed.append(self)
        self.blocked.clear()
        self._tail = b""
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.drop()
            stream.on_reset(ErrorCode.CANCEL, reason)

    def tick(self, now: float) -> None:
        """Called about twice a second: whatever has a deadline is looked at."""
        limits = self.limits
        if self.ended:
            return
        if self._held_ack:
            ack, self._held_ack = self._held_ack, b""
            self.send(ack)
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
        stalled: dict[int, tuple[tuple[str, int], float]] = {}
        for stream in self.streams.values():
            if stream.pending is not None:
                # A stream that could send waits for its turn, which comes while the connection's window moves at all.
                in_turn = stream.id in self.blocked
                waits_for = ("connection", self._pumped) if in_turn else ("stream", stream.pending.size)
                before, since = self._stalled.get(stream.id, (None, now))
                stalled[stream.id] = (waits_for, since if before == waits_for else now)
        self._stalled = stalled
        if self.writable:
            for stream_id, (_, since) in stalled.items():
                if now - since > self.limits.blocked_write_timeout and stream_id in self.streams:
                    self.context.reached("blocked_write_timeout")
                    stream = self.streams[stream_id]
                    self.reset(stream, ErrorCode.CANCEL)
                    stream.on_reset(ErrorCode.CANCEL, "the peer gives no window for what waits")

    def _time_out(self, limit: str, reason: str, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        self.context.reached(limit)
        log.info("%s: closing: %s", self.peer, reason)
        self.end(code, reason)

    # Frames.

    @property
    def assembling(self) -> bool:
        """Whether a header block has begun and not ended, so that nothing but its CONTINUATION may come."""
        return self._block is not None

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any frame that a frame loop did not handle itself.

        Raises:
            ConnectionFault: the peer broke the protocol.
        """
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame inside a header block")
        if not self.got_settings and (kind != SETTINGS or flags & ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if kind == DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == HEADERS:
            self._on_headers_frame(flags, stream_id, payload)
        elif kind == WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == PING:
            self._on_ping(flags, stream_id, payload)
        elif kind == RST_STREAM:
            self._on_rst_stream(stream_id, payload)
        elif kind == SETTINGS:
            self._on_settings(flags, stream_id, payload)
        elif kind == CONTINUATION:
            self._on_continuation(flags, stream_id, payload)
        elif kind == GOAWAY:
            self._on_goaway_frame(stream_id, payload)
        elif kind == PRIORITY:
            self._on_priority(stream_id, payload)
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")
        else:
            self.glitch(1, "frames of unknown type")

    def received(self, size: int) -> None:
        """Accounts for `size` bytes of DATA on the connection and gives them back in time.

        Raises:
            ConnectionFault: FLOW_CONTROL_ERROR, more than was granted.
        """
        window = self.recv_window - size
        if window < 0:
            raise ConnectionFault(
                ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection window", "connection_window_bytes"
            )
        if window < self.recv_limit >> 1:
            self.send(window_update(0, self.recv_limit - window))
            window = self.recv_limit
        self.recv_window = window

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        if flags & PADDED:
            payload = unpad(payload)
        self.received(size)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._on_frame_without_stream(stream_id, DATA)
            return
        if not stream.remote_open:
            self.fault_stream(stream_id, StreamFault(ErrorCode.STREAM_CLOSED, "DATA after END_STREAM"))
            return
        end = bool(flags & END_STREAM)
        if len(payload) < SMALL_DATA and not end:
            self.glitch(1, "small DATA frames")
        if stream.received(size):
            stream.consumed(size - len(payload))
            stream.on_data(payload, end)
        else:
            fault = StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window", "stream_window_bytes")
            self.fault_stream(stream_id, fault)

    def _on_headers_frame(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & PADDED:
            payload = unpad(payload)
        if flags & PRIORITY_FLAG:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS shorter than its priority")
            if unpack_u32(payload)[0] & MAX_WINDOW == stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
            payload = payload[5:]
        if len(payload) > self.max_block_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large", "max_header_block_bytes")
        end = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self.on_headers(stream_id, payload, end=end)
        else:
            self._block = bytearray(payload)
            self._block_stream = stream_id
            self._block_end = end
            self._block_frames = 0
            self._block_since = monotonic()

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block_frames += 1
        if self._block_frames > self.max_continuations:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many CONTINUATION frames", "max_continuations")
        if len(block) + len(payload) > self.max_block_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large", "max_header_block_bytes")
        block += payload
        if flags & END_HEADERS:
            self._block = None
            self.on_headers(stream_id, bytes(block), end=self._block_end)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = unpack_u32(payload)[0] & MAX_WINDOW
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.send_window += increment
            if self.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window above 2^31-1")
            if self.blocked:
                self.pump()
                self._charge_small(increment)
            elif self.send_window > self._send_top:
                # Nothing was sent that this gives back. (One that does is free, however small: grpc's C core
                # gives back each message at once.)
                self._send_top = self.send_window
                self._charge_small(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._on_frame_without_stream(stream_id, WINDOW_UPDATE)
            return
        stream.credit += increment
        if increment == 0:
            self.fault_stream(stream_id, StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0"))
        elif self.peer_initial_window + stream.credit > MAX_WINDOW:
            self.fault_stream(stream_id, StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window above 2^31-1"))
        elif stream.pending is not None:
            self.unblock(stream)
            self._charge_small(increment)
        elif stream.credit > 0:
            self._charge_small(increment)

    def _charge_small(self, increment: int) -> None:
        """Charges for small WINDOW_UPDATEs beyond two per stream: grpc's C core sends some for each call it makes."""
        if increment < SMALL_INCREMENT:
            self._small_updates += 1
            if self._small_updates > self.last_stream_id() + 5:
                self.glitch(0.5, "small WINDOW_UPDATEs")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if flags & ACK:
            self.glitch(0.1, "PING ACKs")
            self.on_ping_acknowledged(payload)
            return
        self.on_ping()
        if payload == BANDWIDTH_PING:
            self._held_ack += ping(payload, ack=True)
        else:
            self.send(ping(payload, ack=True))

    def _on_rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._on_frame_without_stream(stream_id, RST_STREAM)
            return
        stream.drop()
        self.forget(stream)
        stream.on_reset(unpack_u32(payload)[0], "")
        self.on_stream_reset(stream)

    def on_stream_reset(self, stream: Stream) -> None:
        """The peer has reset a stream; raises ConnectionFault where that is one too many."""

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if self._settings_due:
                self._settings_due -= 1
                self._settings_since = monotonic() if self._settings_due else 0.0
                self.on_settings_acknowledged()
            else:
                self.glitch(1, "SETTINGS ACKs")
            return
        values = parse_settings(payload)
        if len(values) > MAX_SETTINGS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many settings in one frame")
        if self.got_settings:
            self.glitch(2, "SETTINGS frames")
        else:
            self.peer_max_streams = MAX_WINDOW  # no limit, unless these settings have one
        self.got_settings = True
        before = self.peer_initial_window
        for name, value in values:
            if name == SETTINGS_INITIAL_WINDOW_SIZE:
                self.peer_initial_window = value
            elif name == SETTINGS_MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
            elif name == SETTINGS_HEADER_TABLE_SIZE and value < self._table_granted:
                self._table_update_due = True
        raised = self.peer_initial_window > before
        if raised and any(self.peer_initial_window + stream.credit > MAX_WINDOW for stream in self.streams.values()):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS raise a stream window above 2^31-1")
        self.send(SETTINGS_ACK)
        self.on_settings()
        if raised:
            for stream in [s for s in self.streams.values() if s.pending is not None]:
                self.unblock(stream)

    def on_settings(self) -> None:
        """The peer's settings have changed."""

    def _on_goaway_frame(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY shorter than 8 bytes")
        self.glitch(20, "GOAWAY frames")
        self.on_goaway(unpack_u32(payload)[0] & MAX_WINDOW, unpack_u32(payload, 4)[0], payload[8:])

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            self.fault_stream(stream_id, StreamFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes"))
        elif unpack_u32(payload)[0] & MAX_WINDOW == stream_id:
            self.fault_stream(stream_id, StreamFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself"))
        else:
            self.glitch(0.1, "PRIORITY frames")
