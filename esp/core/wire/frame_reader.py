"""What each frame of the peer does (RFC 9113, section 6), alike for both ends of a connection.

`ServerConnection` and `ClientConnection` each have a frame loop with the few frames that make up almost all traffic
inlined; every other frame comes through `on_frame` here.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from esp.core.wire.connection import Connection
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
    unpack_u32,
    unpad,
    window_update,
)
from esp.core.wire.stream import Stream

MAX_SETTINGS: Final = 32
BANDWIDTH_PING: Final = bytes.fromhex("02041010090e0707")
"""What grpc-go sends to measure bandwidth, up to once per message it gets. Nobody waits for the answer, so it goes with
the next frames, at the latest with the next `tick`, and costs no write of its own."""
SMALL_INCREMENT: Final = 64
SMALL_DATA: Final = 5
"""DATA shorter than a gRPC prefix: no client cuts its messages so small."""


class FrameReader(Connection):
    """A connection that takes frames; its two ends say what those mean for them."""

    __slots__ = ()

    # What the two ends do differently.

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

    def _on_frame_without_stream(self, stream_id: int, kind: int) -> None:
        if self.was_reset(stream_id):
            self._charge_late()
        else:
            self.on_unknown_stream(stream_id, kind)

    def _charge_late(self) -> None:
        """Charges for frames on closed streams beyond two per stream: what ends on both sides at once crosses."""
        self._late += 1
        if self._late > self.highest_stream_id() + 5:
            self.glitch(0.05, "frames on closed streams")

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
            if self._small_updates > self.highest_stream_id() + 5:
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
            elif name == SETTINGS_HEADER_TABLE_SIZE:
                self.on_table_size(value)
        raised = self.peer_initial_window > before
        if raised and any(self.peer_initial_window + stream.credit > MAX_WINDOW for stream in self.streams.values()):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS raise a stream window above 2^31-1")
        self.send(SETTINGS_ACK)
        self.on_settings()
        if raised:
            for stream in [s for s in self.streams.values() if s.pending is not None]:
                self.unblock(stream)

    def on_table_size(self, size: int) -> None:
        """The peer grants a header table of `size` bytes. esp uses none, but less than it was must be confirmed."""
        if size < self._table_granted:
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
