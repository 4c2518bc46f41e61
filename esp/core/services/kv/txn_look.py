"""Finds the owners of a transaction's keys, and the places of its tokens, in its bytes, in steps.

Only a few keys are copied and kept, and nothing is parsed. So a transaction of any size takes no memory besides its
own, and no step takes long. A `message` is a gRPC message with its prefix; the protobuf bytes start at `offset`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Final

from esp.core.keys import KeyRange
from esp.core.services.kv import peek
from esp.core.services.kv.before_move import BeforeMove
from esp.core.services.pace import Pace
from esp.core.shard_map import ShardMap
from esp.core.tokens import is_token
from esp.core.wire.status import Status

MOST_DEPTH: Final = 98
"""The most messages inside each other; protobuf reads 100."""
MOST_FIELDS: Final = 64
"""The most fields of a compare or an operation, which are read in one step; etcd 3.7 has far fewer."""
_COMPARE, _SUCCESS, _FAILURE = 0x0A, 0x12, 0x1A
_RANGE, _PUT, _DELETE, _TXN = 0x0A, 0x12, 0x1A, 0x22
_LENGTH: Final = 2


class _Is(IntEnum):
    """The meaning of a field for esp."""

    KEY = 0
    RANGE_END = 1
    BYTES = 2  # the last kind that has a length
    NUMBER = 3
    ORDER = 4
    TARGET = 5
    REVISION = 6
    READ_AT = 7


_RANGE_FIELDS: Final = {
    1: _Is.KEY,
    2: _Is.RANGE_END,
    3: _Is.NUMBER,
    4: _Is.READ_AT,
    5: _Is.ORDER,
    6: _Is.TARGET,
    **dict.fromkeys((7, 8, 9), _Is.NUMBER),
    **dict.fromkeys((10, 11, 12, 13), _Is.REVISION),
}
_PUT_FIELDS: Final = {1: _Is.KEY, 2: _Is.BYTES, **dict.fromkeys((3, 4, 5, 6), _Is.NUMBER)}
_DELETE_FIELDS: Final = {1: _Is.KEY, 2: _Is.RANGE_END, 3: _Is.NUMBER}
_COMPARE_FIELDS: Final = {
    1: _Is.NUMBER,
    2: _Is.NUMBER,
    3: _Is.KEY,
    4: _Is.NUMBER,
    5: _Is.REVISION,
    6: _Is.REVISION,
    7: _Is.BYTES,
    8: _Is.NUMBER,
    64: _Is.RANGE_END,
}
_ONE_OF: Final = range(4, 9)  # a compare has at most one of these fields
_USUAL: Final = {_RANGE: peek.RANGE_FIELDS, _PUT: peek.PUT_FIELDS, _DELETE: peek.DELETE_FIELDS}
_RESULT, _TARGET = 1, 2  # fields of a compare
_COMPARED_NUMBER: Final = {0: 4, 1: 5, 2: 6}
"""The field of a compare's number, by its target: version, create_revision, mod_revision."""
_FILTERS: Final = (10, 11, 12, 13)
_WITHOUT_REVISIONS: Final = {
    **_USUAL,
    _RANGE: {tag: most for tag, most in peek.RANGE_FIELDS.items() if tag >> 3 not in (4, *_FILTERS)},
}
"""As `_USUAL`, but a Range at a revision, or with a filter by revisions, is unusual."""
_UNUSUAL: Final = {_RANGE: _RANGE_FIELDS, _PUT: _PUT_FIELDS, _DELETE: _DELETE_FIELDS}
_ORDERS, _TARGETS = 3, 5

Refuses = Callable[[str | None, int], bool]
"""Whether a shard refuses so many entries in one list, whatever they are; without a shard, whether all of them do."""


class Look:
    """The findings about a transaction, in the order of its bytes.

    Attributes:
        parts: the number of compares and operations, with nested ones; with `is_lost` an upper bound.
        first: the first keys of a compare or an operation, in either branch or in a nested transaction. An empty range
            counts only if there are no other keys. None if there are no keys at all.
        owner: the shard that owns all keys; None if they span shards, or if there are none.
        other: the first keys that the owner of `first` does not own alone; None if there are none.
        only_reads: each operation of both branches is a Range, and nothing is compared: etcd treats that as a read.
        knows_sorts: etcd knows all sort options; an unknown one may crash a shard, see validate.py.
        is_odd: the form is not the one that every protobuf library writes, so etcd might read something else in it.
        is_lost: the look could not go through to the end, so no other finding counts.
        is_stale: a Range is at a plain revision from before its keys moved to their shard.
        refusal: why a number may not be compared that may be from before its keys moved; None if all may.
        longest: the most entries in one list: compares, operations of either branch. Nested ones do not count.
        is_nested: a transaction stands in it, for which etcd allows only as many entries as the outer one leaves.
        is_refused: the owner of the first keys refuses that many, so nothing further was looked at.
    """

    __slots__ = (
        "first",
        "is_lost",
        "is_nested",
        "is_odd",
        "is_refused",
        "is_stale",
        "knows_sorts",
        "longest",
        "only_reads",
        "other",
        "owner",
        "parts",
        "refusal",
        "tokens",
    )

    def __init__(self) -> None:
        self.parts = 0
        self.first: KeyRange | None = None
        self.owner: str | None = None
        self.other: KeyRange | None = None
        self.only_reads = True
        self.knows_sorts = True
        self.is_odd = False
        self.is_lost = False
        self.is_stale = False
        self.refusal: Status | None = None
        self.longest = 0
        self.is_nested = False
        self.is_refused = False
        self.tokens = array("Q")  # for each token twice its place, plus 1 for a revision to read at


class _Lost(Exception):
    """The next bytes cannot be understood."""


def look(
    message: bytes,
    offset: int,
    shard_map: ShardMap,
    before: BeforeMove | None = None,
    refuses: Refuses | None = None,
) -> Generator[None, None, Look]:
    """Looks through a transaction, `LOOKED_AT_ONCE` parts with each step.

    The keys of both branches count. Only a shard that owns all of them can decide which branch runs, and etcd checks
    the permissions for both. `before` is asked about each number that is compared, or read at, within one shard.
    `refuses` is asked in each step about the owner of the first keys.
    """
    parts = _Parts(message, shard_map, before or None)
    found = parts.found
    try:
        yield from _walk(message, offset, parts, refuses)
    except (_Lost, IndexError):
        found.is_odd = found.is_lost = True
        found.parts = len(message) // 2  # an upper bound
    if found.first is None and parts.empty is not None:
        found.first = parts.empty
        found.owner = shard_map.owner(parts.empty.start)
    elif found.other is not None:
        found.owner = None
    return found


def _walk(message: bytes, position: int, parts: _Parts, refuses: Refuses | None) -> Generator[None, None, None]:
    """Goes through the transaction and those nested in it. In `ends` transactions and operations alternate."""
    found, pace = parts.found, Pace()
    ends = [len(message)]
    entries = {_COMPARE: 0, _SUCCESS: 0, _FAILURE: 0}  # of the outermost transaction
    while ends:
        end = ends[-1]
        if position == end:
            ends.pop()
            continue
        if pace.is_over():
            found.longest = max(entries.values())
            if refuses is not None and refuses(found.owner, found.longest):
                found.is_refused = True
                return
            yield
        tag, size = message[position], message[position + 1]
        if tag & 7 != _LENGTH or tag > 0x7F:
            found.parts += 1
            position = parts.skip(position, end)
            continue
        if size < 0x80:
            start = position + 2
            after = start + size
        else:
            size, start = parts.number(position + 1, end)
            after = start + size
        if after > end:
            raise _Lost
        position = after
        if len(ends) & 1:
            found.parts += 1
            if len(ends) == 1 and tag in entries:
                entries[tag] += 1
            if tag == _COMPARE:
                found.only_reads = False
                compared = None if parts.before else peek.compared_key(message, start, after)
                if compared is None:
                    parts.read(start, after, _COMPARE_FIELDS)
                else:
                    parts.touch(message[compared])
            elif tag in (_SUCCESS, _FAILURE):
                if not size:
                    found.only_reads = False
                ends.append(after)
                position = start
            else:
                found.is_odd = True
        else:
            if after != end:
                found.is_odd = True  # the operation has another field as well
            if tag != _RANGE:
                found.only_reads = False
            if tag == _TXN:
                found.is_nested = True
                if len(ends) >= MOST_DEPTH:
                    raise _Lost
                ends.append(after)
                position = start
            elif tag in _USUAL:
                usual = peek.look(message, start, after, parts.usual[tag])
                if usual is None:
                    parts.read(start, after, _UNUSUAL[tag])
                elif usual[1] is None or tag == _PUT:
                    parts.touch(message[usual[0]])
                elif range_end := message[usual[1]]:
                    parts.touch(message[usual[0]], range_end)
                else:
                    parts.read(start, after, _UNUSUAL[tag])
            else:
                found.is_odd = True
    found.longest = max(entries.values())
    found.is_refused = refuses is not None and refuses(found.owner, found.longest)


class _Parts:
    """Reads single compares and operations.

    Attributes:
        found: the findings so far.
        empty: the first empty range.
        usual: the fields of operations in their usual form.
        before: the ranges that have moved; None if there are none.
    """

    __slots__ = ("_last", "_map", "_message", "before", "empty", "found", "usual")

    def __init__(self, message: bytes, shard_map: ShardMap, before: BeforeMove | None) -> None:
        self.found = Look()
        self.usual = _WITHOUT_REVISIONS if before else _USUAL
        self.before = before
        self.empty: KeyRange | None = None
        self._message = message
        self._map = shard_map
        self._last: bytes | None = None  # the last key, which nearly all transactions name several times

    def touch(self, key: bytes, range_end: bytes = b"") -> None:
        """Notes keys of the transaction."""
        found = self.found
        if range_end:
            keys = KeyRange.of_request(key, range_end)
            if keys.is_empty():
                self.empty = self.empty or keys
                return
            owner = self._map.sole_owner(keys)
        elif key == self._last:
            return
        else:
            self._last = key
            owner = self._map.owner(key)
        if found.first is None:
            found.first = KeyRange.of_request(key, range_end)
            found.owner = owner
            if owner is None:
                found.other = found.first
        elif owner != found.owner and found.other is None:
            found.other = KeyRange.of_request(key, range_end)

    def read(self, position: int, end: int, fields: dict[int, _Is]) -> None:
        """Reads a compare or an operation of an unusual form."""
        found, message = self.found, self._message
        key = range_end = b""
        seen = read_at = 0
        numbers: dict[int, int] = {}  # by the field
        for _ in range(MOST_FIELDS):
            if position == end:
                break
            start = position
            tag, position = self.number(position, end)
            field = tag >> 3
            what = fields.get(field)
            if what is None or tag & 7 != (_LENGTH if what <= _Is.BYTES else 0):
                position = self.skip(start, end)
                continue
            bit = 1 << (4 if fields is _COMPARE_FIELDS and field in _ONE_OF else field)
            if seen & bit:
                found.is_odd = True
            seen |= bit
            place = position
            number, position = self.number(position, end)
            numbers[field] = number
            if what <= _Is.BYTES:
                place, position = position, position + number
                if position > end:
                    raise _Lost
                if what == _Is.KEY:
                    key = message[place:position]
                elif what == _Is.RANGE_END:
                    range_end = message[place:position]
                    if not range_end:
                        found.is_odd = True  # etcd reads an empty range_end as an open end
            elif what >= _Is.REVISION:
                if is_token(number):
                    found.tokens.append(place << 1 | (what == _Is.READ_AT))
                elif what == _Is.READ_AT:
                    read_at = number
            elif what != _Is.NUMBER and number >= (_ORDERS if what == _Is.ORDER else _TARGETS):
                found.knows_sorts = False
        if position != end:
            raise _Lost
        if self.before is not None and fields in (_RANGE_FIELDS, _COMPARE_FIELDS):
            self._look_back(self.before, KeyRange.of_request(key, range_end), numbers, read_at, fields)
        self.touch(key, range_end)

    def _look_back(
        self, before: BeforeMove, keys: KeyRange, numbers: dict[int, int], read_at: int, fields: dict[int, _Is]
    ) -> None:
        """Looks whether numbers in a compare or a Range are of before the keys moved to their shard."""
        found = self.found
        owner = self._map.sole_owner(keys)
        if owner is None or found.refusal is not None:
            return
        if fields is _COMPARE_FIELDS:
            result, target = numbers.get(_RESULT, 0), numbers.get(_TARGET, 0)
            number = _signed(numbers.get(_COMPARED_NUMBER.get(target, 0), 0))
            found.refusal = before.refuse_compare(keys, owner, target, result, number)
            return
        if read_at:
            found.is_stale |= before.is_stale(keys, owner, read_at)
        for field in _FILTERS:
            if found.refusal is None and field in numbers:
                found.refusal = before.refuse_order(keys, owner, _signed(numbers[field]))

    def number(self, position: int, end: int) -> tuple[int, int]:
        """The number at `position`, and the position behind it."""
        number = shift = 0
        while position < end and shift < 70:
            byte = self._message[position]
            position += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if not byte and shift:
                    self.found.is_odd = True  # not the shortest form
                return number, position
            shift += 7
        raise _Lost

    def skip(self, position: int, end: int) -> int:
        """The end of the field at `position`, which etcd does not know."""
        self.found.is_odd = True
        depth, start = 0, position
        for _ in range(MOST_FIELDS):
            tag, position = self.number(position, end)
            if tag < 0x80 and position - start > 1 and not depth:
                raise _Lost  # a known field whose tag is too long: protobuf would read it
            match tag & 7:
                case 0:
                    _, position = self.number(position, end)
                case 1:
                    position += 8
                case 2:
                    size, position = self.number(position, end)
                    position += size
                case 3:
                    depth += 1
                case 4:
                    depth -= 1
                case 5:
                    position += 4
            if position > end or depth < 0:
                break
            if not depth:
                return position
        raise _Lost


def _signed(number: int) -> int:
    """The int64 that is written as this varint."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number
