"""The head of a request: validated, classified, and ready to be sent on (RFC 9113, section 8; gRPC over HTTP/2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from hpack import HPACKError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from esp.core.wire.field_decoder import FieldDecoder
from esp.core.wire.frames import ErrorCode, StreamFault
from esp.core.wire.hpack import MEMO_BLOCK_BYTES, MEMO_BYTES, Fields, HeaderDecoder, encode
from esp.core.wire.message import quote
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, Status

_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]$")
_TIMEOUT_NAME: Final = b"grpc-timeout"
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_HOP_BY_HOP: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_NOT_SENT_ON: Final = frozenset((b"te", b"content-type", b"content-length", b"host", b"grpc-accept-encoding"))
"""Fields that esp sets itself for the next hop. It leaves out accept-encoding, so that answers come uncompressed."""

NO_LENGTH: Final = -1
_HEAD_BYTES: Final = 400
_FIELD_BYTES: Final = 140
"""Bytes of memory for a list's item, a tuple, and the heads of two byte strings."""


class RequestHead:
    """The content of the header block of a request.

    Attributes:
        method: the HTTP method.
        path: `/package.Service/Method` of a gRPC call, if it is well-formed; any path otherwise.
        fields: the regular fields, in order, without `grpc-timeout`: equal heads may have different deadlines. After
            `keep` only the fields that it names.
        is_grpc: whether it is a POST of `application/grpc`.
        encoding: the `grpc-encoding` of its messages.
        content_length: bytes of body promised, or NO_LENGTH.
        forward: the head for the next hop: the path, and the metadata that `encode_metadata` made.
        handler: the handler that the server's router found.
        unary: whether the handler takes one whole message.
        size: about the bytes of memory that the head took at the last `weigh`.
    """

    __slots__ = (
        "content_length",
        "encoding",
        "fields",
        "forward",
        "handler",
        "is_grpc",
        "method",
        "path",
        "size",
        "unary",
    )

    def __init__(self, method: bytes, path: bytes, fields: Fields, content_length: int) -> None:
        self.method = method
        self.path = path
        self.fields = fields
        self.content_length = content_length
        self.is_grpc = method == b"POST" and is_grpc_type(self.field(b"content-type"))
        self.encoding = self.field(b"grpc-encoding") or b"identity"
        self.forward: Forward = (path, b"")
        self.handler: Any = None
        self.unary = False
        self.size = _HEAD_BYTES

    def field(self, name: bytes) -> bytes:
        """The first value of field `name`, or b""."""
        for candidate, value in self.fields:
            if candidate == name:
                return value
        return b""

    def weigh(self) -> None:
        """Sets `size`, once the fields to keep and the head for the next hop are known."""
        kept = sum([len(name) + len(value) + _FIELD_BYTES for name, value in self.fields])
        self.size = _HEAD_BYTES + len(self.path) + len(self.forward[1]) + kept

    def keep(self, names: frozenset[bytes]) -> None:
        """Forgets all fields but these: a call that stays open would keep all of them in memory."""
        self.fields = [field for field in self.fields if field[0] in names]

    def encode_metadata(self, *, dropping: frozenset[bytes] = frozenset()) -> bytes:
        """The client's metadata in its order, without fields of the hop, encoded for the next hop."""
        return encode([f for f in self.fields if f[0] not in _NOT_SENT_ON and f[0] not in dropping])


def is_grpc_type(content_type: bytes) -> bool:
    """Whether `content_type` is that of a gRPC call."""
    return content_type == b"application/grpc" or content_type.startswith((b"application/grpc+", b"application/grpc;"))


def check_characters(fields: Fields) -> None:
    """Refuses names and values that a later hop could read in another way (RFC 9113, section 8.2.1).

    Raises:
        StreamFault: PROTOCOL_ERROR.
    """
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise _malformed("a field name that is no lower-case token")
        if value and _BAD_VALUE.search(value):
            raise _malformed("a field value with control characters or outer white space")


def check_fields(fields: Fields, *, trailers: bool = False) -> None:
    """Refuses fields that would have another meaning for the next hop (RFC 9113, sections 8.2 and 8.3).

    Raises:
        StreamFault: PROTOCOL_ERROR.
    """
    check_characters(fields)
    regular = trailers
    for name, value in fields:
        if name[0] == 0x3A:
            if regular:
                raise _malformed("a pseudo-field after a regular one or in trailers")
        else:
            regular = True
            if name in _HOP_BY_HOP:
                raise _malformed("a connection-specific field")
            if name == b"te" and value != b"trailers":
                raise _malformed("te other than trailers")


def _malformed(what: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, what)


def parse_request(fields: Fields) -> RequestHead:
    """The head that `fields` make.

    Raises:
        StreamFault: PROTOCOL_ERROR, the request is malformed.
    """
    check_fields(fields)
    pseudo: dict[bytes, bytes] = {}
    regular: Fields = []
    for name, value in fields:
        if name[0] != 0x3A:
            if name != _TIMEOUT_NAME:
                regular.append((name, value))
        elif name not in _PSEUDO or name in pseudo:
            raise _malformed("an unknown or repeated pseudo-field")
        else:
            pseudo[name] = value
    method = pseudo.get(b":method", b"")
    path = pseudo.get(b":path", b"")
    if not method or b":scheme" not in pseudo:
        raise _malformed("a request without :method or :scheme")
    hosts = [value for name, value in regular if name == b"host"]
    if len(hosts) > 1 or (hosts and pseudo.get(b":authority", hosts[0]) != hosts[0]):
        raise _malformed("authorities that disagree")
    head = RequestHead(method, path, regular, _content_length(regular))
    if path[:1] != b"/" and not head.is_grpc and not (path == b"*" and method == b"OPTIONS"):
        raise _malformed("no :path, or one that does not begin with a slash")
    return head


def malformed_method(path: bytes) -> Status:
    """The refusal of a gRPC call whose path is not `/service/method` (grpc-go, server.go, handleStream)."""
    return Status(Code.UNIMPLEMENTED, f"malformed method name: {quote(path)}")


def _content_length(fields: Fields) -> int:
    values = [value for name, value in fields if name == b"content-length"]
    if not values:
        return NO_LENGTH
    if len(values) > 1 or not values[0].isdigit() or len(values[0]) > 18:
        raise _malformed("a content-length that is no number")
    return int(values[0])


_HUFFMAN_NAME: Final = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(_TIMEOUT_NAME)
_TIMEOUT_MARKS: Final = (
    b"\0" + bytes((0x80 | len(_HUFFMAN_NAME),)) + _HUFFMAN_NAME,
    b"\0" + bytes((len(_TIMEOUT_NAME),)) + _TIMEOUT_NAME,
)
"""The beginnings of a literal `grpc-timeout` field, with the name Huffman-coded or plain."""


def timeout_field(value: bytes) -> bytes:
    """A `grpc-timeout` field for the next hop."""
    return _TIMEOUT_MARKS[1] + bytes((len(value),)) + value


Request = tuple[RequestHead, bytes]
"""A head and its `grpc-timeout` value, b"" without one."""


class RequestDecoder(HeaderDecoder[Request]):
    """Header blocks to requests, with a second memo for clients whose `grpc-timeout` differs in every call.

    A block with a deadline is cut at the time-out's value. The parts in front of the value and behind it are looked up;
    only the value is decoded. The cut is sound, because decoding runs from left to right without state: if a front was
    once proven to end where a `grpc-timeout` value begins, then it does so in every block that starts with this front.
    """

    __slots__ = ("_fronts", "_last_front", "_tails")

    def __init__(
        self, build: Callable[[Fields], RequestHead], max_list_bytes: int, max_fields: int, most_bytes: int = 0
    ) -> None:
        super().__init__(lambda fields: (build(fields), _timeout(fields)), max_list_bytes, max_fields, most_bytes)
        self._fronts: dict[bytes, dict[bytes, RequestHead]] = {}
        self._tails = 0
        self._last_front = b""

    def recall(self, block: bytes) -> Request | None:
        """The request of a block that differs from an earlier block only in the time-out; None for any other block."""
        front = self._last_front
        if not front:
            return None  # an entry also means that the peer has given up its table for good
        if not block.startswith(front):
            cut = _cut_at_timeout(block)
            if cut is None or cut[0] not in self._fronts:
                return None
            front = self._last_front = cut[0]
        cut = _value_at(block, len(front))
        if cut is None:
            return None
        head = self._fronts[front].get(cut[2])
        return None if head is None else (head, cut[1])

    def decode(self, block: bytes) -> Request:
        """The request of `block`.

        Raises:
            ConnectionFault: the block is not HPACK or too large.
            StreamFault: the request is malformed.
        """
        cut = _cut_at_timeout(block) if self.stateless else None
        if cut is None:
            return super().decode(block)
        known = self.recall(block)
        if known is not None:
            return known
        request = self._build(self.fields(block))
        front, value, tail = cut
        if request[1] == value and _is_field_start(front):
            self._remember_front(front, tail, request[0])
        return request

    def _remember_front(self, front: bytes, tail: bytes, head: RequestHead) -> None:
        if len(front) + len(tail) > MEMO_BLOCK_BYTES:
            return
        self._make_room(front + tail, self._tails)
        self._fronts.setdefault(front, {})[tail] = head
        self._last_front = front
        self._tails += 1

    def forget(self) -> None:
        """Empties both memos."""
        super().forget()
        self._fronts.clear()
        self._tails = 0
        self._last_front = b""


def _timeout(fields: Fields) -> bytes:
    values = [value for name, value in fields if name == _TIMEOUT_NAME]
    if len(values) > 1 or b"" in values:
        raise _malformed("an empty grpc-timeout, or more than one")
    return values[0] if values else b""


def _cut_at_timeout(block: bytes) -> tuple[bytes, bytes, bytes] | None:
    """`block` up to the first time-out's value, the decoded value, and the rest; None if the place is not clear."""
    for mark in _TIMEOUT_MARKS:
        start = block.find(mark)
        if start >= 0:
            return _value_at(block, start + len(mark))
    return None


def _value_at(block: bytes, start: int) -> tuple[bytes, bytes, bytes] | None:
    """As `_cut_at_timeout`, for a value that begins at `start`."""
    length = block[start] if start < len(block) else 0x7F
    end = start + 1 + (length & 0x7F)
    if length & 0x7F in (0, 0x7F) or end > len(block):
        return None  # an empty value, or one with a length of several bytes, is no time-out
    value: bytes | None = block[start + 1 : end]
    if length & 0x80:
        value = _timeout_symbols(block[start + 1 : end])
    return None if value is None else (block[:start], value, block[end:])


_WINDOW_BITS: Final = 12


def _symbol_windows() -> list[tuple[bytes, int]]:
    """For every 12 bits of Huffman code: the one or two symbols of a time-out with which they begin, and their bits."""
    codes = [(bytes((symbol,)), REQUEST_CODES[symbol], REQUEST_CODES_LENGTH[symbol]) for symbol in b"0123456789HMSmun"]
    windows = [(b"", 0)] * (1 << _WINDOW_BITS)

    def fill(symbols: bytes, code: int, length: int) -> None:
        free = _WINDOW_BITS - length
        for rest in range(1 << free):
            windows[code << free | rest] = (symbols, length)

    for symbol, code, length in codes:
        fill(symbol, code, length)
    for first, code, length in codes:
        for second, next_code, next_length in codes:
            if length + next_length <= _WINDOW_BITS:
                fill(first + second, code << next_length | next_code, length + next_length)
    return windows


_WINDOWS: Final = _symbol_windows()


def _timeout_symbols(coded: bytes) -> bytes | None:
    """A Huffman-coded time-out as text; None when it holds anything but digits and units.

    Takes two symbols in a step, because this runs once per call of a client with deadlines.
    """
    left = len(coded) * 8
    bits = int.from_bytes(coded, "big") << _WINDOW_BITS | (1 << _WINDOW_BITS) - 1
    text = b""
    while True:
        symbols, used = _WINDOWS[bits >> left & 0xFFF]
        if used > left:
            symbols, used = symbols[:1], REQUEST_CODES_LENGTH[symbols[0]]  # the second one reached into the padding
        if not used or used > left:
            break
        text += symbols
        left -= used
    padding = bits >> _WINDOW_BITS & (1 << left) - 1
    return text if left < 8 and padding == (1 << left) - 1 else None


def _is_field_start(front: bytes) -> bool:
    """Whether `front` is whole fields and then the start of a time-out, not a value that holds the same bytes."""
    probe = FieldDecoder(MEMO_BYTES)
    probe.table.maxsize = 0
    for mark in _TIMEOUT_MARKS:
        if front.endswith(mark):
            try:
                probe.decode(front[: -len(mark)])
            except HPACKError:
                return False
            return True
    return False
