"""Header blocks to requests, with a memo for clients of which no two blocks are equal.

Go's gRPC sends the rest of the deadline in `grpc-timeout`, and a client that is traced sends a `traceparent` of its own
with each call. So the block is cut at the values of these two fields: only the values are decoded, and what is around
them is looked up. The cut is sound, because decoding runs from left to right without state: if the beginning of a block
was once proven to end where such a value begins, then it does so in every block that begins so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple

from hpack import HPACKDecodingError, HPACKError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from esp.core.wire import huffman
from esp.core.wire.field_decoder import FieldDecoder
from esp.core.wire.frames import HEADER_SIZE, HEADERS
from esp.core.wire.hpack import MEMO_BLOCK_BYTES, MEMO_BYTES, Fields, HeaderDecoder
from esp.core.wire.message import FRONT
from esp.core.wire.request import NO_LENGTH, TIMEOUT_NAME, TRACE, TRACE_NAME, RequestHead, timeout_of, trace_of

Request = tuple[RequestHead, bytes, bytes]
"""A head, its `grpc-timeout`, and its `traceparent`; b"" for a value that the request does not have."""


def _marks(name: bytes) -> tuple[bytes, bytes]:
    """The beginnings of a literal field of that name, with the name Huffman-coded or plain."""
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(name)
    return b"\0" + bytes((0x80 | len(coded),)) + coded, b"\0" + bytes((len(name),)) + name


_TIMEOUT_MARKS: Final = _marks(TIMEOUT_NAME)
_TRACE_MARKS: Final = _marks(TRACE_NAME)


class _Cut(NamedTuple):
    """A block cut at a value.

    Attributes:
        front: all before the value.
        value: the value, decoded.
        rest: all behind the value.
        is_trace: the value is that of a `traceparent`, else of a `grpc-timeout`.
    """

    front: bytes
    value: bytes
    rest: bytes
    is_trace: bool


_Rest = bytes | tuple[bytes, bytes]
"""What is behind the first value: if there is a value of the other field in it, what is around that."""


class UsualRequest(NamedTuple):
    """The form of requests whose header block is as long as that of an earlier one.

    Attributes:
        front: unpacks the whole head, then the beginning of the DATA that may stand behind it, as `unpack_front` does.
        size: the bytes of the head alone.
        word: length and type of the head, as `unpack_header` gives them.
        block: a header block of that length; b"" for none.
        head: the head of a request with this block, which has no other values.
    """

    front: Callable[[bytes, int], tuple[Any, ...]]
    size: int
    word: int
    block: bytes
    head: RequestHead


@lru_cache(maxsize=256)
def _front(length: int) -> tuple[Callable[[bytes, int], tuple[Any, ...]], int, int]:
    front = Struct(f">IBI{length}s{FRONT}")
    return front.unpack_from, HEADER_SIZE + length, length << 8 | HEADERS


_NO_REQUEST: Final = UsualRequest(*_front(0), b"", RequestHead(b"", b"", [], NO_LENGTH))._replace(word=-1)
"""No head has this first word."""


class RequestDecoder(HeaderDecoder[Request]):
    """Header blocks to requests. The memo of the base has whole blocks; another one has blocks without their values.

    Attributes:
        usual: the form of the next requests, probably.
    """

    __slots__ = ("_fronts", "_is_trace", "_last_front", "_rests", "usual")

    def __init__(
        self, build: Callable[[Fields], RequestHead], max_list_bytes: int, max_fields: int, most_bytes: int = 0
    ) -> None:
        super().__init__(
            lambda fields: (build(fields), timeout_of(fields), trace_of(fields)), max_list_bytes, max_fields, most_bytes
        )
        self._fronts: dict[bytes, dict[_Rest, RequestHead]] = {}
        self._rests = 0
        self._last_front = b""
        self._is_trace = False  # the value behind the last front
        self.usual = _NO_REQUEST

    def expect(self, block: bytes, request: Request) -> None:
        """Expects further requests like this one."""
        if block in self.memo and not request[1] and not request[2]:
            self.usual = UsualRequest(*_front(len(block)), block, request[0])
        else:
            self.usual = UsualRequest(*_front(len(block)), b"", request[0])

    def recall(self, block: bytes) -> Request | None:
        """The request of a block that differs from an earlier block only in the values; None for any other block."""
        front = self._last_front
        if not front:
            return None  # an entry also means that the peer has given up its table for good
        if not block.startswith(front):
            cut = _cut(block)
            if cut is None or cut.front not in self._fronts:
                return None
            front = self._last_front = cut.front
            self._is_trace = cut.is_trace
        is_trace = self._is_trace
        found = _value_at(block, len(front), is_trace)
        if found is None:
            return None
        value, rest = found
        rests = self._fronts[front]
        head = rests.get(rest)
        other = b""
        if head is None:
            cut = _cut_other(rest, is_trace)
            head = None if cut is None else rests.get((cut.front, cut.rest))
            if head is None or cut is None:
                return None
            other = cut.value
        return (head, other, value) if is_trace else (head, value, other)

    def decode(self, block: bytes) -> Request:
        """The request of `block`.

        Raises:
            ConnectionFault: the block is not HPACK or too large.
            StreamFault: the request is malformed.
        """
        cut = _cut(block) if self.stateless else None
        if cut is None:
            return super().decode(block)
        known = self.recall(block)
        if known is not None:
            return known
        request = self._build(self.fields(block))
        other = _cut_other(cut.rest, cut.is_trace)
        values = (b"" if other is None else other.value, cut.value)
        if request[1:] == (values if cut.is_trace else values[::-1]):
            if other is None:
                if _is_field_start(cut.front):
                    self._remember_rest(cut, cut.rest, request[0])
            elif _is_field_start(cut.front) and _is_field_start(other.front):
                self._remember_rest(cut, (other.front, other.rest), request[0])
        return request

    def _remember_rest(self, cut: _Cut, rest: _Rest, head: RequestHead) -> None:
        size = len(cut.front) + len(cut.rest)
        if size > MEMO_BLOCK_BYTES:
            return
        self._make_room(size, self._rests)
        self._fronts.setdefault(cut.front, {})[rest] = head
        self._last_front, self._is_trace = cut.front, cut.is_trace
        self._rests += 1

    def forget(self) -> None:
        """Empties both memos."""
        super().forget()
        self.usual = _NO_REQUEST
        self._fronts.clear()
        self._rests = 0
        self._last_front = b""


def _cut(block: bytes) -> _Cut | None:
    """`block`, cut at the first value of one of the two fields; None if the place is not clear."""
    found = [(start, mark) for mark in (*_TIMEOUT_MARKS, *_TRACE_MARKS) if (start := block.find(mark)) >= 0]
    if not found:
        return None
    start, mark = min(found)
    return _cut_behind(block, start + len(mark), mark in _TRACE_MARKS)


def _cut_other(rest: bytes, is_trace: bool) -> _Cut | None:
    """What is behind the value of one field, cut at a value of the other; None if there is none, or it is not clear."""
    for mark in _TIMEOUT_MARKS if is_trace else _TRACE_MARKS:
        start = rest.find(mark)
        if start >= 0:
            return _cut_behind(rest, start + len(mark), not is_trace)
    return None


def _cut_behind(block: bytes, start: int, is_trace: bool) -> _Cut | None:
    found = _value_at(block, start, is_trace)
    return None if found is None else _Cut(block[:start], *found, is_trace)


def _value_at(block: bytes, start: int, is_trace: bool) -> tuple[bytes, bytes] | None:
    """The decoded value that begins at `start`, and all behind it; None if it is not one of the usual kind."""
    length = block[start] if start < len(block) else 0x7F
    end = start + 1 + (length & 0x7F)
    if length & 0x7F in (0, 0x7F) or end > len(block):
        return None  # an empty value, or one with a length of several bytes, is neither
    value: bytes | None = block[start + 1 : end]
    if is_trace:
        value = _trace_value(block[start + 1 : end], length)
    elif length & 0x80:
        value = _timeout_symbols(block[start + 1 : end])
    return None if value is None else (value, block[end:])


def _trace_value(value: bytes, length: int) -> bytes | None:
    """The value of a `traceparent`; None if it is not as the standard has it."""
    try:
        text = huffman.decode(value) if length & 0x80 else value
    except HPACKDecodingError:
        return None
    return text if TRACE.fullmatch(text) else None


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
    """Whether `front` is whole fields and then the start of a value, not a value that holds the same bytes."""
    probe = FieldDecoder(MEMO_BYTES)
    probe.table.maxsize = 0
    for mark in (*_TIMEOUT_MARKS, *_TRACE_MARKS):
        if front.endswith(mark):
            try:
                probe.decode(front[: -len(mark)])
            except HPACKError:
                return False
            return True
    return False
