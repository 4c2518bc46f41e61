"""HTTP/2 frames as bytes: the 9-byte header, the types, flags and error codes (RFC 9113, sections 4, 6 and 7)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
LAST_BLOCK: Final = END_HEADERS | END_STREAM
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

SETTINGS_HEADER_TABLE_SIZE: Final = 0x1
SETTINGS_ENABLE_PUSH: Final = 0x2
SETTINGS_MAX_CONCURRENT_STREAMS: Final = 0x3
SETTINGS_INITIAL_WINDOW_SIZE: Final = 0x4
SETTINGS_MAX_FRAME_SIZE: Final = 0x5
SETTINGS_MAX_HEADER_LIST_SIZE: Final = 0x6

MAX_FRAME_SIZE: Final = 16384
"""The largest payload sent or accepted; esp never raises it (RFC 9113, section 4.2)."""
DEFAULT_WINDOW: Final = 65535
MAX_WINDOW: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1


class ErrorCode(IntEnum):
    """Why a stream or a connection ended (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionFault(Exception):
    """The peer broke the protocol: the connection ends with GOAWAY `code`; `reason` goes to the peer and the log.

    `limit` is the name, in `Limits`, of the limit that the peer has reached, if any.
    """

    def __init__(self, code: ErrorCode, reason: str, limit: str = "") -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason
        self.limit = limit


class StreamFault(Exception):
    """The peer broke the rules of one stream: RST_STREAM `code`, the connection lives on. `limit` as above."""

    def __init__(self, code: ErrorCode, reason: str, limit: str = "") -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason
        self.limit = limit


# A frame header is length (24 bits), type (8), flags (8), reserved bit and stream id (32). Length and type are read as
# one 32-bit word, `length << 8 | type`: one struct call, no byte joins.
_HEADER = struct.Struct(">IBI")
HEADER_SIZE: Final = _HEADER.size
pack_header = _HEADER.pack
unpack_header = _HEADER.unpack_from

_U32 = struct.Struct(">I")
pack_u32 = _U32.pack
unpack_u32 = _U32.unpack_from
_SETTING = struct.Struct(">HI")


def _fronts(kind: int, flags: int, most: int) -> list[bytes]:
    front = struct.Struct(">IB").pack
    return [front(length << 8 | kind, flags) for length in range(most + 1)]


SHORT_BLOCK: Final = 512
SHORT_DATA: Final = 2048
# The five bytes of a frame in front of its stream id, by the length of the frame: so a call's frames are one join of
# bytes, which takes half as long as a struct's call. Longer frames are rare.
BLOCK_FRONTS: Final = _fronts(HEADERS, END_HEADERS, SHORT_BLOCK)
LAST_BLOCK_FRONTS: Final = _fronts(HEADERS, LAST_BLOCK, SHORT_BLOCK)
DATA_FRONTS: Final = _fronts(DATA, 0, SHORT_DATA)
LAST_DATA_FRONTS: Final = _fronts(DATA, END_STREAM, SHORT_DATA)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return pack_header(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame with `values`, identifier to value."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """A PING frame with 8 bytes of opaque data."""
    return frame(PING, ACK if ack else 0, 0, payload)


def rst_stream(stream_id: int, code: int) -> bytes:
    """An RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, pack_u32(code))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, pack_u32(increment))


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, pack_u32(last_stream_id) + pack_u32(code) + debug)


def header_block(stream_id: int, block: bytes, *, end_stream: bool) -> bytes:
    """HEADERS, and CONTINUATION frames if the block is longer than one frame."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= MAX_FRAME_SIZE:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    pieces = [block[i : i + MAX_FRAME_SIZE] for i in range(0, len(block), MAX_FRAME_SIZE)]
    frames = [frame(HEADERS, flags, stream_id, pieces[0])]
    frames += [frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1]))
    return b"".join(frames)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The settings of a SETTINGS payload in order, each value checked (RFC 9113, section 6.5.2).

    Raises:
        ConnectionFault: a bad length or a value out of range.
    """
    if len(payload) % 6:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS length is not a multiple of 6")
    values = list(_SETTING.iter_unpack(payload))
    for name, value in values:
        if name == SETTINGS_ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is neither 0 nor 1")
        if name == SETTINGS_INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1")
        if name == SETTINGS_MAX_FRAME_SIZE and not MAX_FRAME_SIZE <= value <= 2**24 - 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
    return values


def unpad(payload: bytes) -> bytes:
    """The content of a PADDED payload (RFC 9113, section 6.1).

    Raises:
        ConnectionFault: the padding is as long as the payload, or longer.
    """
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]
