"""gRPC over HTTP/2: message prefixes, time-outs and status texts (grpc/doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import re
import zlib
from urllib.parse import unquote_to_bytes

from esp.core.wire.frames import pack_u32, unpack_u32
from esp.core.wire.status import Code, Status

PREFIX_SIZE = 5
"""One flag byte (0 plain, 1 compressed) and the length of the message, 32 bits."""


def prefix(message: bytes) -> bytes:
    """`message` with its gRPC prefix, not compressed."""
    return b"\0" + pack_u32(len(message)) + message


class MessageReader:
    """Cuts a stream of DATA payloads into gRPC messages; a message may be split anywhere, a payload may hold several.

    Attributes:
        wanted: how many bytes the message being read still lacks; 0 between messages.
    """

    __slots__ = ("_buffer", "_encoding", "_max_bytes", "wanted")

    def __init__(self, max_bytes: int, encoding: bytes = b"identity") -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes
        self._encoding = encoding
        self.wanted = 0

    def feed(self, payload: bytes) -> list[bytes]:
        """The messages that `payload` completes, without prefix, decompressed.

        Raises:
            RpcError: an oversize message (known from its prefix, before it is read) or one that cannot be decompressed.
        """
        buffer = self._buffer
        buffer += payload
        messages = []
        position = 0
        while len(buffer) - position >= PREFIX_SIZE:
            length = unpack_u32(buffer, position + 1)[0]
            check_prefix(buffer[position], length, self._max_bytes, self._encoding)
            end = position + PREFIX_SIZE + length
            if len(buffer) < end:
                break
            message = bytes(buffer[position + PREFIX_SIZE : end])
            if buffer[position]:
                message = decompress(message, self._encoding, self._max_bytes)
            messages.append(message)
            position = end
        del buffer[:position]
        if len(buffer) >= PREFIX_SIZE:
            self.wanted = PREFIX_SIZE + unpack_u32(buffer, 1)[0] - len(buffer)
        else:
            self.wanted = PREFIX_SIZE - len(buffer) if buffer else 0
        return messages


def check_prefix(flag: int, length: int, max_bytes: int, encoding: bytes) -> None:
    """Refuses a message by its prefix alone.

    Raises:
        RpcError: with the code and text grpc-go gives.
    """
    if flag > 1:
        raise Status(Code.INTERNAL, f"grpc: received unexpected payload format {flag}").error()
    if flag and encoding == b"identity":
        raise Status(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding").error()
    if flag and encoding != b"gzip":
        name = encoding.decode("latin-1")
        raise Status(Code.UNIMPLEMENTED, f'grpc: Decompressor is not installed for grpc-encoding "{name}"').error()
    if length > max_bytes:
        raise Status(
            Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({length} vs. {max_bytes})"
        ).error()


def decompress(message: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """A compressed message as plain bytes; `max_bytes` bounds what a small input may unfold to.

    Raises:
        RpcError: the bytes are not of that encoding, or unfold to more than `max_bytes`.
    """
    assert encoding == b"gzip", "check_prefix refuses the rest"
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(message, max_bytes + 1)
    except zlib.error as error:
        raise Status(Code.INTERNAL, f"grpc: failed to decompress the received message: {error}").error() from None
    if len(plain) > max_bytes:
        raise Status(
            Code.RESOURCE_EXHAUSTED, f"grpc: received message after decompression larger than max {max_bytes}"
        ).error()
    if not inflater.eof:
        raise Status(Code.INTERNAL, "grpc: failed to decompress the received message: unexpected EOF").error()
    return plain


_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def parse_timeout(value: bytes) -> float | None:
    """Seconds of a `grpc-timeout` value; None when it is malformed."""
    match = _TIMEOUT.fullmatch(value)
    return None if match is None else int(match[1]) * _TIMEOUT_UNITS[match[2]]


def format_timeout(seconds: float) -> bytes:
    """A `grpc-timeout` value of at most eight digits, never more than `seconds`."""
    micros = max(0, int(seconds * 1e6))
    if micros < 100_000_000:
        return b"%du" % micros
    if micros < 100_000_000_000:
        return b"%dm" % (micros // 1000)
    return b"%dS" % min(micros // 1_000_000, 99_999_999)


_UNESCAPED = frozenset(range(0x20, 0x7F)) - {0x25}


def encode_status_text(text: str) -> bytes:
    """A `grpc-message` value: UTF-8, percent-encoded outside printable ASCII."""
    return b"".join(
        byte.to_bytes(1, "big") if byte in _UNESCAPED else b"%%%02X" % byte for byte in text.encode("utf-8", "replace")
    )


def decode_status_text(value: bytes) -> str:
    """The text of a `grpc-message` value."""
    return unquote_to_bytes(value).decode("utf-8", "replace")
