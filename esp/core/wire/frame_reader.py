"""The effect of each frame of the peer (RFC 9113, section 6), the same for both ends of a connection.

`ServerConnection` and `ClientConnection` each have a frame loop with the few frames that make up almost all traffic
inlined; every other frame comes through `on_frame` here.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final, TypeVar

from esp.core.wire.context import WireContext
from esp.core.wire.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
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
    parse_settings,
    ping,
    settings,
    unpack_u32,
    unpad,
)
from esp.core.wire.glitches import Allowance
from esp.core.wire.header_block import BlockBounds, HeaderBlock
from esp.core.wire.multiplexed import Multiplexed
from esp.core.wire.native import mypyc_attr
from esp.core.wire.settings_acks import SettingsAcks
from esp.core.wire.stream import Stream

MAX_SETTINGS: Final = 32
BANDWIDTH_PING: Final = bytes.fromhex("02041010090e0707")
"""The PING with which grpc-go measures bandwidth, up to once per message it gets. Nobody waits for the answer, so the
answer leaves with the next frames, at the latest with the next `tick`, and costs no write of its own."""
DEFAULT_TABLE: Final = 4096
"""Bytes of the header table that either peer grants until its SETTINGS say otherwise (RFC 9113, section 6.5.2)."""
SMALL_INCREMENT: Final = 64
"""A WINDOW_UPDATE of fewer bytes is small."""
SMALL_DATA: Final = 5
"""DATA shorter than a gRPC prefix: no client cuts its messages so small."""


S = TypeVar("S", bound=Stream[Any])


@mypyc_attr(allow_interpreted_subclasses=True)
class FrameReader(Multiplexed[S]):
    """A connection that takes frames; its two ends say what the frames mean for their streams.

    Attributes:
        got_settings: the peer's first SETTINGS have come.
    """

    __slots__ = (
        "_acks",
        "_block",
        "_block_bounds",
        "_free_late",
        "_free_small",
        "_opened",
        "_send_top",
        "_table_granted",
        "got_settings",
    )

    def __init__(self, context: WireContext, peer: str, recv_limit: int, block_bounds: BlockBounds) -> None:
        super().__init__(context, peer, recv_limit)
        self.got_settings = False
        self._block: HeaderBlock | None = None
        self._block_bounds = block_bounds
        self._acks = SettingsAcks()
        self._free_late = Allowance()
        self._free_small = Allowance()
        self._opened = monotonic()
        self._send_top = self.send_window
        self._table_granted = DEFAULT_TABLE

    def send_settings(self, values: dict[int, int]) -> None:
        """Sends SETTINGS; `on_settings_acknowledged` tells when the peer has taken them over."""
        self.send(settings(values))
        self._acks.sent(monotonic())

    def highest_stream_id(self) -> int:
        """The id of the last stream that was opened on this connection; ids rise by two."""
        return 0

    # Differences between the two ends.

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
        """The peer sent a PING; raises ConnectionFault if there were too many."""

    def on_ping_acknowledged(self, payload: bytes) -> None:
        """The peer answered our PING."""

    # Frames.

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any frame that a frame loop did not handle itself.

        Raises:
            ConnectionFault: the peer broke the protocol.
        """
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block.stream_id):
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

    def _on_frame_without_stream(self, stream_id: int, kind: int) -> None:
        if self.was_reset(stream_id):
            self._charge_late()
        else:
            self.on_unknown_stream(stream_id, kind)

    def _charge_late(self) -> None:
        """Charges for frames on closed streams beyond two per stream: two may cross when both sides end a call."""
        if self._free_late.is_used_up(self.highest_stream_id()):
            self.glitch(0.05, "frames on closed streams")

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
        self._block_bounds.check_size(len(payload))
        end = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self.on_headers(stream_id, payload, end=end)
        else:
            self._block = HeaderBlock(self._block_bounds, stream_id, payload, monotonic(), end=end)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block.add(payload)
        if flags & END_HEADERS:
            self._block = None
            self.on_headers(stream_id, bytes(block), end=block.end)

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
            if self.pump.blocked:
                self.send_waiting()
                self._charge_small(increment)
            elif self.send_window > self._send_top:
                # No bytes were sent that the peer could give back. (If there were, a frame of any size is free: grpc's
                # C core gives back each message at once.)
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
        if increment < SMALL_INCREMENT and self._free_small.is_used_up(self.highest_stream_id()):
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
            self.hold_ack(ping(payload, ack=True))
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

    def on_stream_reset(self, stream: S) -> None:
        """The peer has reset a stream; raises ConnectionFault if there were too many resets."""

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if self._acks.came(monotonic()):
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
            elif name == SETTINGS_HEADER_TABLE_SIZE:
                self.on_table_size(value)
        self.set_at_once()
        raised = self.peer_initial_window > before
        if raised and any(self.peer_initial_window + stream.credit > MAX_WINDOW for stream in self.streams.values()):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS raise a stream window above 2^31-1")
        self.send(SETTINGS_ACK)
        self.on_settings()
        if raised:
            for stream in [s for s in self.streams.values() if s.pending is not None]:
                self.unblock(stream)

    def on_table_size(self, size: int) -> None:
        """The peer grants a header table of `size` bytes. esp uses none, but has to confirm a smaller one."""
        if size < self._table_granted:
            self._table_granted = 0
            self._table_update_due = True

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

    # Deadlines.

    def _expire(self, now: float) -> None:
        """Ends the connection of a peer that is late with its preface, its acknowledgement or a header block."""
        limits = self.limits
        block = self._block
        if self.unread:
            self._opened = now
            self._acks.excuse(now)
            if block is not None:
                block.since = now
        if not self.got_settings and now - self._opened > limits.preface_timeout:
            self._time_out("preface_timeout", "no HTTP/2 preface in time")
        elif self._acks.are_late(limits.settings_timeout, now):
            self._time_out("settings_timeout", "SETTINGS not acknowledged in time", ErrorCode.SETTINGS_TIMEOUT)
        elif block is not None and now - block.since > limits.header_timeout:
            self._time_out("header_timeout", "header block not complete in time")
        else:
            super()._expire(now)
