"""Tokens that several processes know: each process writes its own into memory, from which all others read.

A client may list through one worker and watch through another. Nobody asks the worker that minted the token: the reader
looks into that worker's memory, whether the worker is busy, dead or gone. After a takeover the next generation of
workers gets the memory as well.

Each process has a `Ring` and alone writes there, so there are no locks. A checksum tells whether an entry was
overwritten while it was read. Besides, all processes share their last ticks (`Ticks`). With these a token is higher
than every token that any of them had minted before. Progress over several shards needs that: it is true for all lower
tokens.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from typing import Final
from zlib import crc32

import msgspec

from esp.core.tokens import MOST_SHARDS, Vector

VERSION: Final = 0x65737001
"""The form of a ring; another version of esp with another form does not read it."""
NAMES_BYTES: Final = 1 << 20
"""Room for the names of shards: of all layouts in the life of a ring."""
MOST_SLOTS: Final = 255
"""The most processes that share their ticks."""
_HEADER_CELLS: Final = 16
_INDEX_CELLS: Final = 3
_MARGIN: Final = 16
"""The oldest entries, which may be overwritten while they are looked at, are left out."""
_FORM, _PLACES, _LOG_BYTES, _INSTANCES, _NAMES_END, _HAS_LOST, _HEADS, _ENDS = 0, 1, 2, 3, 4, 5, 6, 8
_LENGTH: Final = struct.Struct("=I")
_HEAD: Final = struct.Struct("=QQ")


class Memory:
    """Memory that processes share: those that are forked, and those that get the descriptor.

    Attributes:
        descriptor: leads to the memory; None where the system has no such descriptors.
    """

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        """Maps `size` bytes: of the descriptor, which is this object's from now on, or new ones."""
        if descriptor is None and hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("esp-tokens")
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        self.bytes = mmap.mmap(-1 if descriptor is None else descriptor, size)
        self.cells = memoryview(self.bytes).cast("Q")

    @classmethod
    def of(cls, descriptor: int) -> Memory:
        """The whole memory behind a descriptor.

        Raises:
            OSError, ValueError: there is none.
        """
        return cls(os.fstat(descriptor).st_size, descriptor)


class Ring:
    """The newest tokens of one process: of answers, and apart from these of watch messages, each in their order.

    The memory has a header; the highest revision of each shard; the names of shards; then twice an index of ticks, and
    a log with the vectors. When an index or a log is full it begins anew at its start.

    Args:
        memory: of a size that `size_of` gave.
        places: the most tokens of either kind; None for a ring that exists.

    Attributes:
        unshared: tokens that are not in the ring, because there was no room for the names of their shards.

    Raises:
        ValueError: the memory is none of a ring.
    """

    def __init__(self, memory: Memory, places: int | None = None, log_bytes: int = 0) -> None:
        self.memory = memory
        self.unshared = 0
        cells = self._cells = memory.cells
        if places is not None:
            cells[_PLACES], cells[_LOG_BYTES], cells[_FORM] = places, log_bytes, VERSION
        elif len(cells) < _HEADER_CELLS or cells[_FORM] != VERSION:
            raise ValueError("this is no memory for tokens, or one of another version of esp")
        self._places, self._log_bytes = cells[_PLACES], cells[_LOG_BYTES]
        at = _HEADER_CELLS
        self._highest = cells[at : at + MOST_SHARDS]
        at += MOST_SHARDS
        self._names_at = at * 8
        at += NAMES_BYTES // 8
        self._indexes = []
        self._logs = []
        for _ in range(2):
            self._indexes.append(cells[at : at + _INDEX_CELLS * self._places])
            at += _INDEX_CELLS * self._places
            self._logs.append(at * 8)
            at += self._log_bytes // 8
        self._layouts: list[tuple[str, ...]] = []
        self._names_read = 0
        self._numbers: dict[str, int] = {}  # the cell of each shard in `_highest`
        self._last: tuple[tuple[str, ...], int | None, struct.Struct] = ((), None, _HEAD)

    @classmethod
    def create(cls, most_bytes: int, most_tokens: int, shards: int) -> Ring:
        """A new ring with at most so many bytes for entries, and tokens of either kind, of so many shards."""
        entry = _HEAD.size + 8 * shards
        places = max(4 * _MARGIN, min(most_tokens, most_bytes // 2 // (_INDEX_CELLS * 8 + entry)))
        log_bytes = places * entry
        size = (_HEADER_CELLS + MOST_SHARDS) * 8 + NAMES_BYTES + 2 * (places * _INDEX_CELLS * 8 + log_bytes)
        return cls(Memory(size), places, log_bytes)

    # The process of the ring.

    def add_instance(self, instance: int) -> None:
        """From now on the process mints with this number."""
        self._cells[_INSTANCES] |= 1 << instance

    def add(self, tick: int, number: int, vector: Vector, *, of_message: bool) -> bool:
        """Adds a token with a higher tick than all before. True if an entry gave way to it."""
        layout = self._layout(vector.shards)
        cells, log_bytes, form = self._cells, self._log_bytes, self._last[2]
        length = form.size
        if layout is None or length > log_bytes:
            self.unshared += 1
            return False
        entry = form.pack(number, layout, *vector.revisions)
        begin = cells[_ENDS + of_message]
        place = begin % log_bytes
        if place + length > log_bytes:
            begin += log_bytes - place
            place = 0
        at = self._logs[of_message] + place
        self.memory.bytes[at : at + length] = entry
        cells[_ENDS + of_message] = begin + length
        head = cells[_HEADS + of_message]
        slot = head % self._places * _INDEX_CELLS
        index = self._indexes[of_message]
        index[slot], index[slot + 1], index[slot + 2] = tick, begin, length << 32 | crc32(entry)
        cells[_HEADS + of_message] = head + 1
        return head >= self._places

    def raise_highest(self, shard: str, revision: int) -> None:
        """A token has this revision of a shard, whose names came with `add` or `name`."""
        number = self._numbers.get(shard, MOST_SHARDS)
        if number < MOST_SHARDS:
            self._highest[number] = max(revision, self._highest[number])  # of a process before, perhaps
        else:
            self._cells[_HAS_LOST] = 1

    def numbers(self) -> list[int]:
        """The numbers with which the process has minted."""
        return [number for number in range(64) if self._cells[_INSTANCES] >> number & 1]

    def name(self, shards: tuple[str, ...]) -> None:
        """Gives each of these shards a place for its highest revision."""
        self._layout(shards)

    def include(self, other: Ring) -> None:
        """Takes over the highest revisions of another ring, whose tokens will be forgotten before those here."""
        other._read_names()
        for shard in other._numbers:
            self.name((shard,))
            highest = other.highest(shard)
            if highest is None:
                self._cells[_HAS_LOST] = 1
            else:
                self.raise_highest(shard, highest)

    def _layout(self, shards: tuple[str, ...]) -> int | None:
        last, number, _ = self._last
        if last is shards:
            return number
        self._read_names()
        try:
            number = self._layouts.index(shards)
        except ValueError:
            number = self._write_names(shards)
        self._last = shards, number, struct.Struct(f"={len(shards) + 2}Q")
        return number

    def _write_names(self, shards: tuple[str, ...]) -> int | None:
        line = msgspec.json.encode(shards)
        end = self._cells[_NAMES_END]
        size = _LENGTH.size + len(line)
        if end + size > NAMES_BYTES:
            return None
        at = self._names_at + end
        self.memory.bytes[at : at + size] = _LENGTH.pack(len(line)) + line
        self._cells[_NAMES_END] = end + size
        self._read_names()
        return len(self._layouts) - 1

    # All processes.

    @property
    def last_tick(self) -> int:
        """The tick of the newest token; 0 if there is none."""
        return max(self._last_of(0), self._last_of(1))

    def _last_of(self, kind: int) -> int:
        head = self._cells[_HEADS + kind]
        return self._indexes[kind][(head - 1) % self._places * _INDEX_CELLS] if head else 0

    def find(self, tick: int, number: int, instance: int) -> Vector | None:
        """The vector of a token; None if it is not in the ring."""
        if not self._cells[_INSTANCES] >> instance & 1:
            return None
        for kind in (0, 1):
            vector = self._find(kind, tick, number)
            if vector is not None:
                return vector
        return None

    def _find(self, kind: int, tick: int, number: int) -> Vector | None:
        index, places = self._indexes[kind], self._places
        high = self._cells[_HEADS + kind]
        low = max(0, high - places + _MARGIN)
        while low < high:
            middle = (low + high) // 2
            if index[middle % places * _INDEX_CELLS] < tick:
                low = middle + 1
            else:
                high = middle
        slot = low % places * _INDEX_CELLS
        begin, checked = index[slot + 1], index[slot + 2]
        if index[slot] != tick:
            return None
        place, length = begin % self._log_bytes, checked >> 32
        if place + length > self._log_bytes or length < _HEAD.size:
            return None
        at = self._logs[kind] + place
        entry = self.memory.bytes[at : at + length]
        if crc32(entry) != checked & 0xFFFFFFFF:
            return None  # overwritten meanwhile
        there, layout, *revisions = struct.unpack(f"={length // 8}Q", entry)
        if there != number:
            return None
        if layout >= len(self._layouts):
            self._read_names()
        return Vector(self._layouts[layout], tuple(revisions))

    def highest(self, shard: str) -> int | None:
        """The highest revision of a shard in any token of the ring, also in those overwritten; None if unknown."""
        if self._cells[_HAS_LOST]:
            return None
        if self._names_read != self._cells[_NAMES_END]:
            self._read_names()
        number = self._numbers.get(shard, MOST_SHARDS)
        return self._highest[number] if number < MOST_SHARDS else 0

    def may_have(self, revision: int) -> bool:
        """Whether any shard may have had this revision at any token of the ring."""
        return bool(self._cells[_HAS_LOST]) or revision <= max(self._highest)

    def _read_names(self) -> None:
        end = self._cells[_NAMES_END]
        while self._names_read < end:
            at = self._names_at + self._names_read
            (size,) = _LENGTH.unpack_from(self.memory.bytes, at)
            at += _LENGTH.size
            shards = msgspec.json.decode(self.memory.bytes[at : at + size], type=tuple[str, ...])
            self._layouts.append(shards)
            for shard in shards:
                self._numbers.setdefault(shard, len(self._numbers))
            self._names_read += _LENGTH.size + size


class Ticks:
    """The last tick of each of several processes; slot 0 is the first process's."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory or Memory(8 * (MOST_SLOTS + 1))
        self._cells = self.memory.cells

    def take(self, slots: int, beside: tuple[int, int] = (0, 0)) -> int:
        """Makes place for so many processes; the first of their slots.

        Args:
            slots: the number of processes.
            beside: the first and the number of the slots of processes that still mint.

        Raises:
            ValueError: there is no place.
        """
        first, count = beside
        first = 0 if first >= slots else first + count
        if first + slots > MOST_SLOTS:
            raise ValueError(f"more than {MOST_SLOTS} processes would share these tokens")
        self._cells[0] = max(self._cells[0], first + slots)
        return first

    def last(self) -> int:
        """The highest tick of all."""
        return max(self._cells[: self._cells[0] + 1][1:], default=0)

    def tell(self, slot: int, tick: int) -> None:
        """The process of this slot mints a token with this tick."""
        self._cells[slot + 1] = tick


class Part:
    """One process's part in the shared tokens: its own ring, its slot for ticks, and the rings of all."""

    def __init__(self, ring: Ring, ticks: Ticks, slot: int, rings: Sequence[Ring]) -> None:
        self.ring = ring
        self.rings = list(rings)
        self._ticks = ticks
        self._slot = slot

    def last_tick(self) -> int:
        """The highest tick of any process."""
        return self._ticks.last()

    def tell(self, tick: int) -> None:
        """This process mints a token with this tick. Told before the token is used, so that later ones are higher."""
        self._ticks.tell(self._slot, tick)

    def find(self, tick: int, number: int, instance: int) -> Vector | None:
        """The vector of a token of any process; None if none knows it."""
        for ring in self.rings:
            vector = ring.find(tick, number, instance)
            if vector is not None:
                return vector
        return None

    def numbers(self) -> set[int]:
        """The numbers with which any process has minted."""
        return {number for ring in self.rings for number in ring.numbers()}

    def highest(self, shard: str) -> int | None:
        """The highest revision of a shard in any token of any process; None if it is not known."""
        highest = 0
        for ring in self.rings:
            there = ring.highest(shard)
            if there is None:
                return None
            highest = max(highest, there)
        return highest
