"""Sorts rows a few at a time, so that no other client waits while a large answer is sorted."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from esp.core.pb import kv_pb2, rpc_pb2

RUN_ROWS: Final = 128
RUN_BYTES: Final = 131_072
"""Bytes of rows that are worked on in one step."""
COUNTED_ROWS: Final = 8192
"""Rows whose bytes are counted in one step."""
MERGED_RUNS: Final = 16
"""Runs that are merged at once. To find the first of their rows, some rows are compared in one step."""
FIRST_COMPARED: Final = 4096
COMPARED: Final = 65_536
"""Bytes of long values that are compared at once."""
HEAD_BYTES: Final = 64
"""Leading bytes of each value that are kept to compare; only if they are equal, the rest is looked up."""


def parse_row(row: bytes) -> kv_pb2.KeyValue:
    """A row with its tag and its length: a RangeResponse with this one row."""
    return rpc_pb2.RangeResponse.FromString(row).kvs[0]


class _Rest:
    """The rest of a value behind its head. To compare it, a part at a time is taken from the row."""

    __slots__ = ("_end", "_row", "_start")

    def __init__(self, row: bytes, value: bytes) -> None:
        self._row = row
        start = row.rfind(value) if value else 0  # only a few bytes follow the value
        self._start = start + HEAD_BYTES
        self._end = start + len(value)

    def _compared(self, other: _Rest) -> int:
        """Below 0 if this rest comes first, above 0 if the other does."""
        mine, others = self._start, other._start
        size = FIRST_COMPARED
        while mine < self._end and others < other._end:
            here = self._row[mine : min(mine + size, self._end)]
            there = other._row[others : min(others + size, other._end)]
            if here != there:
                return -1 if here < there else 1
            mine += size
            others += size
            size = COMPARED
        return (self._end - self._start) - (other._end - other._start)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Rest) or self._end - self._start != other._end - other._start:
            return False
        return not self._compared(other)

    def __lt__(self, other: _Rest) -> bool:
        return self._compared(other) < 0

    __hash__ = None  # type: ignore[assignment]


_NOTHING: Final = _Rest(b"", bytes(HEAD_BYTES))


def by_version(row: bytes) -> int:
    """The sort key of a row: its version."""
    return parse_row(row).version


def by_value(row: bytes) -> tuple[bytes, _Rest]:
    """The sort key of a row: its value."""
    value = parse_row(row).value
    return value[:HEAD_BYTES], _Rest(row, value) if len(value) > HEAD_BYTES else _NOTHING


async def in_turns(rows: Iterable[bytes]) -> Any:
    """The rows in portions, each small enough for one step, with a turn of the loop for others after each."""
    portion: list[bytes] = []
    size = 0
    for row in rows:
        portion.append(row)
        size += len(row)
        if len(portion) == RUN_ROWS or size > RUN_BYTES:
            yield portion
            portion, size = [], 0
            await asyncio.sleep(0)
    if portion:
        yield portion


async def bytes_of(rows: Sequence[bytes]) -> int:
    """The bytes of all rows together."""
    size = 0
    for at in range(0, len(rows), COUNTED_ROWS):
        size += sum(map(len, rows[at : at + COUNTED_ROWS]))
        await asyncio.sleep(0)
    return size


_Run = list[tuple[Any, bytes]]
_first: Final = itemgetter(0)
_GONE: Final = (None, b"")


async def sort(rows: Iterable[bytes], key: Any, *, descend: bool, limit: int) -> list[bytes]:
    """The first `limit` rows in the order of `key`."""
    runs: list[_Run] = [
        sorted(((key(row), row) for row in portion), key=_first, reverse=descend) async for portion in in_turns(rows)
    ]
    while len(runs) > 1:
        runs = [
            await _merged(runs[at : at + MERGED_RUNS], descend=descend, limit=limit)
            for at in range(0, len(runs), MERGED_RUNS)
        ]
    ordered: list[bytes] = []
    for run in runs:
        del run[limit:]
        for at in range(0, len(run), COUNTED_ROWS):
            portion = slice(at, at + COUNTED_ROWS)
            ordered += [row for _, row in run[portion]]
            run[portion] = [_GONE] * len(run[portion])  # frees the rows step by step, not all at once in the end
            await asyncio.sleep(0)
    return ordered


async def _merged(runs: list[_Run], *, descend: bool, limit: int) -> _Run:
    """The first `limit` rows of several runs, as one run."""
    if len(runs) == 1:
        return runs[0]
    ordered: _Run = []
    done = size = 0
    for one in heapq.merge(*runs, key=_first, reverse=descend):
        ordered.append(one)
        size += len(one[1])
        if len(ordered) == limit:
            break
        if len(ordered) - done >= RUN_ROWS or size > RUN_BYTES:
            done, size = len(ordered), 0
            await asyncio.sleep(0)
    return ordered
