"""Sorts rows a few at a time, so that no other client waits while a large answer is sorted."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence, Sized
from itertools import chain
from operator import itemgetter
from typing import Any, Final, TypeVar

from esp.core.pb import kv_pb2, rpc_pb2

RUN_ROWS: Final = 512
RUN_BYTES: Final = 131_072
"""Rows, and bytes of rows, that are worked on in one step: some 0.3 ms."""
FEW_ROWS: Final = 2048
FEW_BYTES: Final = 4 * RUN_BYTES
"""At most so many rows of so many bytes are merged in one step: some 0.3 ms."""
COUNTED_ROWS: Final = 8192
"""Rows whose bytes are counted in one step."""
MERGED_RUNS: Final = 16
"""Runs that are merged at once. To find the first of their rows, some rows are compared in one step."""
FIRST_COMPARED: Final = 4096
COMPARED: Final = 65_536
"""Bytes of long values that are compared at once."""
HEAD_BYTES: Final = 64
"""Leading bytes of each value that are kept to compare; only if they are equal, the rest is looked up."""

Row = TypeVar("Row", bound=Sized)
Result = TypeVar("Result")


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


Keys = Callable[[Sequence[bytes]], list[Any]]
"""Makes the sort keys of some rows; where one needs more than itself to compare, tuples of a key and a rest."""


def by_version(rows: Sequence[bytes]) -> list[int]:
    """The versions of rows."""
    return [row.version for row in rpc_pb2.RangeResponse.FromString(b"".join(rows)).kvs]


def by_value(rows: Sequence[bytes]) -> list[Any]:
    """The values of rows; where any is long, tuples of a value's head and rest."""
    values = [row.value for row in rpc_pb2.RangeResponse.FromString(b"".join(rows)).kvs]
    if max(map(len, values), default=0) <= HEAD_BYTES:
        return values
    return [
        (value[:HEAD_BYTES], _Rest(row, value) if len(value) > HEAD_BYTES else _NOTHING)
        for row, value in zip(rows, values, strict=True)
    ]


async def in_turns(rows: Sequence[Row]) -> AsyncIterator[Sequence[Row]]:
    """The rows in portions, each small enough for one step, with a turn of the loop for others after each."""
    at, count = 0, len(rows)
    while at < count:
        portion = rows[at : at + RUN_ROWS]
        while len(portion) > 1 and sum(map(len, portion)) > RUN_BYTES:
            portion = portion[: len(portion) // 2]
        yield portion
        at += len(portion)
        if at < count:
            await asyncio.sleep(0)


def steps_of(work: Coroutine[Any, Any, Result]) -> Generator[None, None, Result]:
    """The steps of a coroutine that waits for nothing but others' turns, for one who takes them himself."""
    try:
        while True:
            work.send(None)
            yield
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        work.close()


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


async def sort(rows: Sequence[bytes], keys: Keys, *, descend: bool, limit: int) -> list[bytes]:
    """The first `limit` rows in the order of `keys`."""
    runs: list[_Run] = [
        sorted(zip(keys(portion), portion, strict=True), key=_first, reverse=descend)
        async for portion in in_turns(rows)
    ]
    if any(run[0][0].__class__ is tuple for run in runs):
        await _compare_rests(runs)
    if len(runs) > 1 and len(rows) <= FEW_ROWS and sum(map(len, rows)) <= FEW_BYTES:
        runs = [sorted(chain.from_iterable(runs), key=_first, reverse=descend)]
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


async def _compare_rests(runs: list[_Run]) -> None:
    """Makes the keys of all runs tuples: some values are long."""
    for run in runs:
        if run[0][0].__class__ is not tuple:
            run[:] = [((key, _NOTHING), row) for key, row in run]
            await asyncio.sleep(0)


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
