"""gRPC over HTTP/2: message prefixes, time-outs and status texts (grpc/doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Generator, Iterator
from urllib.parse import unquote_to_bytes

from esp.core.wire.frames import DATA, END_STREAM, pack_u32, unpack_u32
from esp.core.wire.status import Code, Status

MAX_GZIP_MEMBERS = 16
"""The most gzip members in a message; clients send one. Each further member costs a copy of the rest of the message."""
ENCODINGS = frozenset((b"identity", b"gzip"))
"""The values of `grpc-encoding` that esp understands."""
INFLATED_AT_ONCE = 65536
"""Bytes read from a compressed message, or inflated, in one step: some 0.2 ms."""
PREFIX_SIZE = 5
"""One flag byte (0 plain, 1 compressed) and the length of the message, 32 bits."""

FRONT = "BHHIBI"
"""The head of a frame of DATA and the prefix of the message in it. Of the head: 0 if the length is below 64 KiB, the
length, WHOLE_DATA (it ends the stream) or PIECE or another number, the stream id. Of the prefix: flag byte, length."""
WHOLE_DATA = DATA << 8 | END_STREAM
PIECE = DATA << 8
_FRONT = struct.Struct(f">{FRONT}")
FRONT_SIZE = _FRONT.size
unpack_front = _FRONT.unpack_from


def prefix(message: bytes) -> bytes:
    """`message` with its gRPC prefix, not compressed."""
    return b"\0" + pack_u32(len(message)) + message


class MessageReader:
    """Cuts a stream of DATA payloads into gRPC messages; a message may be split anywhere, a payload may hold several.

    Attributes:
        encoding: the compression of messages that are compressed.
        prefixed: whether the results have a prefix, that of an uncompressed message.
        wanted: how many bytes the message being read still lacks; 0 between messages.
        count: messages read one by one so far.
    """

    __slots__ = ("_buffer", "_inflated", "_max_bytes", "count", "encoding", "prefixed", "wanted")

    def __init__(self, max_bytes: int, encoding: bytes = b"identity", *, prefixed: bool = False) -> None:
        self._buffer = bytearray()
        self._inflated = 0
        self._max_bytes = max_bytes
        self.encoding = encoding
        self.prefixed = prefixed
        self.wanted = 0
        self.count = 0

    @property
    def held(self) -> int:
        """Bytes kept of a message that is incomplete, or not inflated to its end."""
        return len(self._buffer) + self._inflated

    def begun(self, size: int) -> bytes:
        """The first bytes, `size` at most, of the incomplete message; b"" if the message is compressed."""
        buffer = self._buffer
        return b"" if self.prefixed or buffer[:1] != b"\0" else bytes(buffer[PREFIX_SIZE : PREFIX_SIZE + size])

    def sole(self, payload: bytes) -> bytes | None:
        """The message, if `payload` is just one, as peers mostly send it; None, without any effect, for all else."""
        size = len(payload) - PREFIX_SIZE
        if (
            0 <= size <= self._max_bytes
            and not payload[0]
            and unpack_u32(payload, 1)[0] == size
            and not self._buffer
            and not self.prefixed
        ):
            return payload[PREFIX_SIZE:]
        return None

    def feed(self, payload: bytes) -> list[bytes]:
        """The messages that `payload` completes, decompressed.

        Raises:
            RpcError: an oversize message (known from its prefix, before it is read) or one that cannot be decompressed.
        """
        message = self.sole(payload)
        return list(self.messages(payload)) if message is None else [message]

    def messages(self, payload: bytes) -> Iterator[bytes]:
        """As `feed`, one message after the other. The caller takes all messages before it gives the next payload."""
        for message in self.steps(payload):  # a generator expression would be a list, if mypyc compiles it
            if message is not None:
                yield message

    def steps(self, payload: bytes) -> Iterator[bytes | None]:
        """As `messages`, with a None after each step in which only a part of a message was inflated."""
        buffer = self._buffer
        buffer += payload
        while len(buffer) >= PREFIX_SIZE:
            length = unpack_u32(buffer, 1)[0]
            check_prefix(buffer[0], length, self._max_bytes, self.encoding)
            end = PREFIX_SIZE + length
            if len(buffer) < end:
                self.wanted = end - len(buffer)
                return
            compressed = buffer[0]
            with memoryview(buffer) as view:
                message = bytes(view[0 if self.prefixed and not compressed else PREFIX_SIZE : end])
            del buffer[:end]
            self.count += 1
            if compressed:
                inflating = inflate(message, self.encoding, self._max_bytes)
                try:
                    while True:
                        self._inflated = next(inflating)
                        yield None
                except StopIteration as end_of_it:
                    pieces: list[bytes] = end_of_it.value
                if self.prefixed:
                    pieces.insert(0, b"\0" + pack_u32(sum(map(len, pieces))))
                message = b"".join(pieces)
                pieces.clear()
                if self._inflated:
                    yield None  # the message was large, and so will be the work with it
                    self._inflated = 0
            yield message
        self.wanted = PREFIX_SIZE - len(buffer) if buffer else 0


def check_prefix(flag: int, length: int, max_bytes: int, encoding: bytes) -> None:
    """Refuses a message by its prefix alone.

    Raises:
        RpcError: with the code and text grpc-go gives.
    """
    if length > max_bytes:
        raise Status(
            Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({length} vs. {max_bytes})"
        ).error()
    if flag > 1:
        raise Status(Code.INTERNAL, f"grpc: received unexpected payload format {flag}").error()
    if flag and encoding == b"identity":
        raise Status(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding").error()
    if flag and encoding not in ENCODINGS:
        raise unknown_encoding(encoding).error()


def unknown_encoding(encoding: bytes) -> Status:
    """The refusal of a call with an encoding that esp does not understand, even if no message is compressed."""
    name = quote(encoding)
    return Status(Code.UNIMPLEMENTED, f"grpc: Decompressor is not installed for grpc-encoding {name}")


def inflate(message: bytes, encoding: bytes, max_bytes: int) -> Generator[int, None, list[bytes]]:
    """A compressed message as plain bytes, in pieces.

    A step makes `INFLATED_AT_ONCE` bytes at most, and yields the number of bytes so far. `max_bytes` bounds the result,
    because a small input can unfold to very much.

    Raises:
        RpcError: the bytes are not of that encoding, or unfold to more than `max_bytes`, or consist of more than
            `MAX_GZIP_MEMBERS`.
    """
    assert encoding == b"gzip", "check_prefix refuses the rest"
    pieces: list[bytes] = []
    size = position = 0
    for _ in range(MAX_GZIP_MEMBERS):
        inflater = zlib.decompressobj(wbits=31)
        while True:
            packed = inflater.unconsumed_tail
            if not packed:
                packed = message[position : position + INFLATED_AT_ONCE]
                position += len(packed)
            try:
                plain = inflater.decompress(packed, min(INFLATED_AT_ONCE, max_bytes + 1 - size))
            except zlib.error as error:
                text = f"grpc: failed to decompress the received message: {error}"
                raise Status(Code.INTERNAL, text).error() from None
            pieces.append(plain)
            size += len(plain)
            if size > max_bytes:
                text = f"grpc: received message after decompression larger than max {max_bytes}"
                raise Status(Code.RESOURCE_EXHAUSTED, text).error()
            if inflater.eof:
                break
            if not packed and not plain:
                raise Status(Code.INTERNAL, "grpc: failed to decompress the received message: unexpected EOF").error()
            yield size
        position -= len(inflater.unused_data)
        if position == len(message):  # further bytes are another member (RFC 1952, section 2.2)
            return pieces
        yield size
    text = f"grpc: failed to decompress the received message: more than {MAX_GZIP_MEMBERS} gzip members"
    raise Status(Code.INTERNAL, text).error()


_TIMEOUT_UNITS = {0x48: 3600.0, 0x4D: 60.0, 0x53: 1.0, 0x6D: 1e-3, 0x75: 1e-6, 0x6E: 1e-9}
"""Seconds of H, M, S, m, u and n."""


def parse_timeout(value: bytes) -> float | None:
    """Seconds of a `grpc-timeout` value; None for a malformed one."""
    digits = value[:-1]
    if not digits.isdigit() or len(digits) > 8:
        return None
    unit = _TIMEOUT_UNITS.get(value[-1])
    return None if unit is None else int(digits) * unit


def format_timeout(seconds: float) -> bytes:
    """A `grpc-timeout` value of at most eight digits, never more than `seconds`."""
    micros = max(0, int(seconds * 1e6))
    if micros < 100_000_000:
        return b"%du" % micros
    if micros < 100_000_000_000:
        return b"%dm" % (micros // 1000)
    return b"%dS" % min(micros // 1_000_000, 99_999_999)


_UNESCAPED = frozenset(range(0x20, 0x7F)) - {0x25}
_BLANKS = (b" ", b"\t")


def encode_status_text(text: str, max_bytes: int) -> bytes:
    """A `grpc-message` value: UTF-8, percent-encoded outside printable ASCII, cut to `max_bytes`."""
    encoded = text[:max_bytes].encode("utf-8", "replace")
    value = b"".join(byte.to_bytes(1, "big") if byte in _UNESCAPED else b"%%%02X" % byte for byte in encoded)
    return cut_status_text(without_outer_blanks(value), max_bytes)


def without_outer_blanks(value: bytes) -> bytes:
    """A `grpc-message` value with a blank at either end percent-encoded: no field may have one there.

    The text does not change. grpc-go sends such values, and strict peers refuse them (RFC 9113, section 8.2.1).
    """
    if value[:1] in _BLANKS:
        value = b"%%%02X" % value[0] + value[1:]
    if value[-1:] in _BLANKS:
        value = value[:-1] + b"%%%02X" % value[-1]
    return value


def cut_status_text(value: bytes, max_bytes: int) -> bytes:
    """A `grpc-message` value of at most `max_bytes`, not cut inside an escaped byte nor behind a blank."""
    if len(value) <= max_bytes:
        return value
    escape = value.rfind(b"%", max_bytes - 2, max_bytes)
    return value[: max_bytes if escape < 0 else escape].rstrip(b" \t")


def quote(value: bytes) -> str:
    """`value` in double quotes, as Go's `%q` writes it: etcd uses `%q` for its texts."""
    text = value.decode("utf-8", "surrogateescape")
    return '"' + "".join(map(_quoted, text)) + '"'


_SHORT_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def _quoted(character: str) -> str:
    code = ord(character)
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    if character in '"\\':
        return "\\" + character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def decode_status_text(value: bytes) -> str:
    """The text of a `grpc-message` value."""
    return unquote_to_bytes(value).decode("utf-8", "replace")
