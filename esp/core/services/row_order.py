"""Sorting rows a few at a time, so that nobody waits for a large answer to be sorted."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from esp.core.pb import kv_pb2, rpc_pb2

RUN_ROWS: Final = 256
RUN_BYTES: Final = 262_144
"""Rows that are worked on in one go."""
HEAD_BYTES: Final = 64
"""What is kept of each value to compare it by; the rest is looked up where these are equal."""


def parse_row(row: bytes) -> kv_pb2.KeyValue:
    """A row with its tag and its length: a RangeResponse with this one row."""
    return rpc_pb2.RangeResponse.FromString(row).kvs[0]


class _Rest:
    """What follows the head of a value."""

    __slots__ = ("_row",)

    def __init__(self, row: bytes) -> None:
        self._row = row

    def _value(self) -> bytes:
        return parse_row(self._row).value[HEAD_BYTES:] if self._row else b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest) and self._value() == other._value()

    def __lt__(self, other: _Rest) -> bool:
        return self._value() < other._value()

    __hash__ = None  # type: ignore[assignment]


_NOTHING: Final = _Rest(b"")


def by_version(row: bytes) -> int:
    """What a row is sorted by."""
    return parse_row(row).version


def by_value(row: bytes) -> tuple[bytes, _Rest]:
    """What a row is sorted by."""
    value = parse_row(row).value
    return value[:HEAD_BYTES], _Rest(row) if len(value) > HEAD_BYTES else _NOTHING


async def in_turns(rows: Iterable[bytes]) -> Any:
    """The rows in portions that may be worked on in one go, with a turn of the loop for everybody else between two."""
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


async def sort(rows: Iterable[bytes], key: Any, *, descend: bool, limit: int) -> list[bytes]:
    """The first `limit` rows in the order of `key`."""
    first = itemgetter(0)
    runs: list[list[tuple[Any, bytes]]] = [
        sorted(((key(row), row) for row in portion), key=first, reverse=descend) async for portion in in_turns(rows)
    ]
    merged = heapq.merge(*runs, key=first, reverse=descend)
    ordered: list[bytes] = []
    while len(ordered) < limit and (portion := list(islice(merged, min(RUN_ROWS, limit - len(ordered))))):
        ordered += [row for _, row in portion]
        await asyncio.sleep(0)
    return ordered
