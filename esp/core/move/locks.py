"""Locks and elections in use: keys with a lease whose last part is the id of that lease, as recipes write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from esp.core.export import Pages, of_shard
from esp.core.keys import KeyRange
from esp.core.move.troubles import CALL_SECONDS, failures
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import RANGE, Shard, ask_for_esp
from esp.core.shared_map import clients_keys


class Locks(NamedTuple):
    """Prefixes of locks and elections.

    Attributes:
        cut: of those with keys on both sides of a boundary of the range.
        inside: of those in the range, at most ten.
        keys: the number of keys in the range.
    """

    cut: list[bytes]
    inside: list[bytes]
    keys: int


async def locks_of(source: Shard, range_: KeyRange, progress: Callable[[int], object]) -> Locks:
    """The locks and elections that a move of the range would touch.

    Raises:
        MoveError: the source does not tell its keys.
    """
    cut = []
    for boundary in (range_.start, range_.end):
        if boundary:
            below = prefix_of(await _next_to(source, KeyRange(b"\x01", boundary), last=True))
            above = prefix_of(await _next_to(source, KeyRange(boundary, None), last=False))
            if below is not None and below == above:
                cut.append(below)
    inside: dict[bytes, None] = {}
    keys = 0
    with failures(source):
        answer = await ask_for_esp(
            source, RANGE, rpc_pb2.RangeRequest(key=b"\x01", count_only=True), seconds=CALL_SECONDS
        )
        pages = Pages(of_shard(source), clients_keys(range_), answer.header.revision, keys_only=True)
        while (page := await pages.next()) is not None:
            keys += len(page)
            for pair in page:
                if pair.lease and (prefix := prefix_of(pair)) is not None and len(inside) < 10:
                    inside[prefix] = None
            progress(keys)
    return Locks(cut, list(inside), keys)


def prefix_of(pair: kv_pb2.KeyValue | None) -> bytes | None:
    """The prefix of the lock or election that a key is part of; None if it is of none."""
    if pair is None or not pair.lease:
        return None
    prefix, slash, last = pair.key.rpartition(b"/")
    return prefix + slash if slash and last == b"%x" % (pair.lease & 2**64 - 1) else None


async def _next_to(source: Shard, range_: KeyRange, *, last: bool) -> kv_pb2.KeyValue | None:
    key, range_end = range_.to_request()
    request = rpc_pb2.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True)
    if last:
        request.sort_order = rpc_pb2.RangeRequest.DESCEND
        request.sort_target = rpc_pb2.RangeRequest.KEY
    with failures(source):
        answer = await ask_for_esp(source, RANGE, request, seconds=4 * CALL_SECONDS)
    return answer.kvs[0] if answer.kvs else None
