"""Rows of kept answers (`concat`), put in another order than that of their keys."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import chain
from typing import Final

from google.protobuf.message import DecodeError

from esp.core.pb import rpc_pb2
from esp.core.services.kv.concat_part import Part
from esp.core.services.kv.merge import merge_ranges, sort_few
from esp.core.services.kv.range_bytes import end
from esp.core.services.kv.rows import Rows
from esp.core.services.row_order import steps_of

FEW_ROWS: Final = 1024
FEW_BYTES: Final = 131_072
"""At most so many rows of so many bytes are sorted in one step: half a millisecond."""


def put_in_order(
    request: rpc_pb2.RangeRequest, parts: Sequence[Part], is_wanted: Callable[[], bool]
) -> Generator[None, None, tuple[int, bytes] | None]:
    """Leaves the rows of the answer in the first part, in steps.

    The result is their bytes, and the end of the answer; None if the call has ended meanwhile.

    Raises:
        RpcError: an answer is not what it should be.
    """
    count = 0
    answers: list[Rows] = []
    for one in parts:
        number = one.trim()
        if number is None:
            raise one.blamed("is no RangeResponse").error()
        count += number
        answers.append(Rows.of([], number, more=0 < one.limit < number))
    try:
        if count <= FEW_ROWS and sum([one.length for one in parts]) <= FEW_BYTES:
            rows = [sort_few(request, b"".join(chain.from_iterable([one.pieces for one in parts])))]
        else:
            for one, answer in zip(parts, answers, strict=True):
                are_rows = yield from one.rows(answer.kvs)
                if not is_wanted():
                    return None
                if not are_rows:
                    raise one.blamed("is no RangeResponse").error()
                if not one.hold_rows(len(answer.kvs)):
                    return None
            merged = yield from steps_of(merge_ranges(request, answers))
            rows = merged.kvs
    except DecodeError:
        _blame(parts, answers)
        raise
    if not is_wanted():
        return None
    first, *others = parts
    size = yield from first.adopt(rows, others)
    return (size, end(count, more=0 < request.limit < count)) if is_wanted() else None


def _blame(parts: Sequence[Part], answers: Sequence[Rows]) -> None:
    """Raises the RpcError that names the shard with a malformed row."""
    for one, answer in zip(parts, answers, strict=True):
        try:
            for row in answer.kvs or (b"".join(one.pieces),):
                rpc_pb2.RangeResponse.FromString(row)
        except DecodeError:
            raise one.blamed("has a row that is no KeyValue").error() from None
