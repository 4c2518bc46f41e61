"""The rows of shards' answers as bytes: cut out of the DATA as it comes, and put together for a client.

A row is kept unchanged, with its tag and its length, so rows one after the other are the repeated field of the merged
answer. An answer of any size is held once, and is never copied, parsed or serialised as a whole in one step. Held
memory is counted (`RowReader.held`), and given back row by row as the rows leave (`pieces`).

All other fields, such as those of a later etcd, are passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from esp.core.pb import rpc_pb2
from esp.core.varint import varint
from esp.core.wire.frames import unpack_u32
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.status import Code, RpcError, Status


def field(tag: int, message: bytes) -> bytes:
    """A message as a field of another message."""
    return bytes((tag,)) + varint(len(message)) + message


ROW_BYTES: Final = 64
"""About the memory that a row takes besides its bytes."""
PIECE_BYTES: Final = 16_384
"""Bytes of a message that are put together at once."""
MORE: Final = 3
COUNT: Final = 4
DELETED: Final = 2
"""The numbers of fields in a RangeResponse and a DeleteRangeResponse."""
HEADER_TAG: Final = 0x0A
_VARINT, _LENGTH = 0, 2
_MOST_BITS = 70
"""The bits of the longest varint: ten bytes of seven."""
_NOT_ETCDS: Final = Status(Code.INTERNAL, "esp: a shard's answer is not encoded as etcd does")


class Form(NamedTuple):
    """The form of a message: where its rows are."""

    name: str
    row: int
    """The tag of a row, in the message or in a message inside it."""
    inside: tuple[int, ...] = ()
    """The tags of the messages around the one with the rows, from the outermost."""
    numbers: tuple[int, ...] = ()
    """The fields beside the rows that are numbers."""


RANGE_FORM: Final = Form("RangeResponse", 0x12, (), (MORE, COUNT))
TXN_FORM: Final = Form("TxnResponse", 0x12, (0x1A, 0x0A), (MORE, COUNT))
DELETE_FORM: Final = Form("DeleteRangeResponse", 0x1A, (), (DELETED,))


def nested_head(form: Form, size: int) -> bytes:
    """The bytes in front of a message of `size` bytes: tags and lengths of the message and of those around it."""
    head = b""
    for tag in reversed(form.inside):
        head = bytes((tag,)) + varint(size + len(head)) + head
    return head


class Rows:
    """The rows of one Range or DeleteRange.

    Attributes:
        kvs: the rows, each with tag and length.
        bytes: the size of all rows together.
        numbers: the values of fields such as `count`, by the number of the field.
        other: fields that esp does not know.
    """

    __slots__ = ("bytes", "kvs", "numbers", "other")

    def __init__(self) -> None:
        self.kvs: list[bytes] = []
        self.bytes = 0
        self.numbers: dict[int, int] = {}
        self.other = b""

    @classmethod
    def of(cls, kvs: list[bytes], count: int, *, more: bool) -> Rows:
        """The rows of a Range."""
        rows = cls()
        rows.kvs = kvs
        rows.numbers = {MORE: more, COUNT: count}
        return rows

    @property
    def count(self) -> int:
        """The number of keys in the range."""
        return self.numbers.get(COUNT, 0)

    @property
    def more(self) -> bool:
        """Whether a Range has rows beyond its limit."""
        return bool(self.numbers.get(MORE, 0))

    @property
    def deleted(self) -> int:
        """The number of keys that a DeleteRange has deleted."""
        return self.numbers.get(DELETED, 0)

    def tail(self) -> bytes:
        """The fields behind the rows."""
        written = [varint(field << 3) + varint(number) for field, number in sorted(self.numbers.items()) if number]
        return b"".join(written) + self.other

    def size(self, header: bytes) -> int:
        """The bytes of the message with this header; the header has tag and length."""
        return len(header) + self.bytes + len(self.tail())

    def pieces(self, header: bytes, release: Callable[[int], None]) -> Iterator[bytes]:
        """The message in pieces of PIECE_BYTES, or up to a row more. Can be called once.

        The rows of a piece are dropped, and their memory released, when the next piece is taken.
        """
        waiting, size, held = [header], len(header), 0
        rows = self.kvs
        for index, row in enumerate(rows):
            rows[index] = b""
            waiting.append(row)
            size += len(row)
            held += len(row) + ROW_BYTES
            if size >= PIECE_BYTES:
                yield b"".join(waiting)
                release(held)
                waiting, size, held = [], 0, 0
        waiting.append(self.tail())
        yield b"".join(waiting)
        release(held)


class Answer:
    """A whole answer of a shard.

    Attributes:
        header: the header of the answer.
        responses: one for each Range of the request; one for a DeleteRange.
        held: bytes of memory that the answer takes; also its `len()`.
    """

    __slots__ = ("header", "held", "responses")

    def __init__(self, header: rpc_pb2.ResponseHeader, responses: list[Rows], held: int) -> None:
        self.header = header
        self.responses = responses
        self.held = held

    def __len__(self) -> int:
        return self.held


class RowReader:
    """Reads one answer as it comes, as `MessageReader` reads messages.

    Attributes:
        held: bytes of memory that the part that has come takes.
        wanted: the bytes that the answer still lacks; 0 before its beginning and after its end.
    """

    __slots__ = (
        "_at",
        "_end",
        "_ends",
        "_form",
        "_garbled",
        "_header",
        "_missing",
        "_pieces",
        "_prefix",
        "_responses",
        "_told",
        "held",
        "wanted",
    )

    def __init__(
        self,
        form: Form,
        garbled: Callable[[], RpcError] = _NOT_ETCDS.error,
        told: Callable[[int], object] | None = None,
    ) -> None:
        """`garbled` makes the error of an answer without etcd's encoding; `told` is called first, with the size."""
        self._form = form
        self._garbled = garbled
        self._told = told
        self._prefix = b""
        self._header = b""
        self._responses: list[Rows] = [] if form.inside else [Rows()]
        self._at = 0  # the place in the message of the next byte to come
        self._end = -1
        self._ends: list[int] = []  # the ends of the messages around that place
        self._pieces: list[bytes] = []  # of an incomplete field
        self._missing = 0
        self.held = 0
        self.wanted = 0

    def feed(self, payload: bytes) -> list[Answer]:
        """Takes DATA; returns the answer once it is whole.

        Raises:
            RpcError: the answer is not encoded as etcd encodes it.
        """
        self.held += len(payload)
        if self._end < 0:
            payload = self._prefix + payload
            if len(payload) < PREFIX_SIZE:
                self._prefix = payload
                self.wanted = PREFIX_SIZE - len(payload)
                return []
            if payload[0]:
                raise self._garbled()
            self._end = unpack_u32(payload, 1)[0]
            if self._told is not None:
                self._told(self._end)
            payload = payload[PREFIX_SIZE:]
        self._take(payload)
        self.wanted = self._end - self._at - sum(map(len, self._pieces)) if self._pieces else self._end - self._at
        if self.wanted < 0 or (not self.wanted and self._pieces):
            raise self._garbled()
        if self.wanted:
            return []
        try:
            header = rpc_pb2.ResponseHeader.FromString(self._header)
        except DecodeError:
            raise self._garbled() from None
        held, self.held = self.held, 0
        return [Answer(header, self._responses, held)]

    def _take(self, payload: bytes) -> None:
        missing = self._missing
        if missing > len(payload):
            self._pieces.append(payload)
            self._missing -= len(payload)
            return
        if self._pieces:
            whole = b"".join((*self._pieces, payload[:missing] if missing else payload))
            self._pieces.clear()
            self._missing = 0
            self._walk(whole)
            payload = payload[missing:] if missing else b""
        if payload:
            self._walk(payload)

    def _walk(self, data: bytes) -> None:
        """Goes over the fields in `data`, and keeps the bytes of an incomplete last field."""
        ends, inside = self._ends, self._form.inside
        row, depth = self._form.row, len(inside)
        size = len(data)
        position = 0
        while position < size:
            here = self._at + position
            while ends and ends[-1] <= here:
                if ends.pop() < here:
                    raise self._garbled()
            start = position
            tag = data[position]
            position += 1
            number = shift = 0
            while position < size:
                byte = data[position]
                position += 1
                number |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
                if shift == _MOST_BITS:  # a number without an end would be read anew with each piece of the answer
                    raise self._garbled()
            else:
                self._keep(data, start, 0)
                return
            kind = tag & 7
            if not 7 < tag < 0x80 or kind not in (_VARINT, _LENGTH):
                raise self._garbled()
            level = len(ends)
            if kind == _LENGTH:
                end = position + number
                if self._at + end > (ends[-1] if ends else self._end):
                    raise self._garbled()
                if level < depth and tag == inside[level]:
                    ends.append(self._at + end)
                    if level + 1 == depth:
                        self._responses.append(Rows())
                    continue
                if end > size:
                    self._keep(data, start, end - size)
                    return
                if level == depth and tag == row:
                    rows = self._responses[-1]
                    rows.kvs.append(data[start:end])
                    rows.bytes += end - start
                    self.held += ROW_BYTES
                elif tag == HEADER_TAG:
                    if not level:
                        self._header = data[position:end]
                elif level == depth:
                    self._responses[-1].other += data[start:end]
                position = end
            elif level == depth:
                if tag >> 3 in self._form.numbers:
                    self._responses[-1].numbers[tag >> 3] = number
                else:
                    self._responses[-1].other += data[start:position]
        self._at += size

    def _keep(self, data: bytes, start: int, missing: int) -> None:
        self._at += start
        self._pieces = [data[start:]]
        self._missing = missing
