"""A moment at which several shards can be read together: double collect, without a clock that they share.

First every shard is asked for its revision and for how many keys it has in the ranges concerned. When all have
answered, each is asked again: has a key of the ranges been written since (it would have a later mod revision), or
deleted (the count would be lower, or a key put instead)? What that does not show is a key that came and went in
between; so where a shard has made revisions meanwhile, the keys are counted at each of them, too. If nothing has
changed, then from the first answer to the second the ranges were, on every shard, as they are at its first revision:
all of that was true at one moment, and reading each shard at its revision reads it. A shard on which something changed
is asked anew, and then all are checked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.handlers import CoroutineCall
from esp.core.services.reading import read_all, segments_of
from esp.core.services.revision import token
from esp.core.wire.status import Code, Status

MOST_COUNTS: Final = 128
"""How often the keys of a shard's ranges are counted at the revisions made meanwhile; more, and it is asked anew."""

_Wanted = Mapping[int, Iterable[KeyRange]]


async def snapshot(call: CoroutineCall, routing: Routing, ranges: Iterable[KeyRange], tries: int) -> int:
    """A token for a moment at which these ranges, which together span shards, can be read.

    Raises:
        RpcError: a shard's, as it came; Unavailable when keys changed in each of `tries` tries.
    """
    wanted: dict[int, dict[KeyRange, None]] = {}
    for key_range in ranges:
        for segment in segments_of(routing, key_range):
            wanted.setdefault(segment.shard, {})[segment.range] = None
    revisions: dict[int, int] = {}
    counts: dict[int, list[int]] = {}
    stale = set(wanted)
    for _ in range(tries):
        counted = await read_all(call, routing, {shard: [_count(part) for part in wanted[shard]] for shard in stale})
        for shard, parts in counted.items():
            revisions[shard] = parts.header.revision
            counts[shard] = [response.count for response in parts.responses]
        if len(wanted) == 1:
            break
        stale = await _changed(call, routing, wanted, revisions, counts)
        if not stale:
            break
    else:
        call.stream.connection.context.reached("max_snapshot_tries")
        names = ", ".join(sorted(routing.shards[shard].name for shard in stale))
        raise Status(
            Code.UNAVAILABLE,
            f"esp: no snapshot in {tries} tries, since keys of the range kept changing on {names}; "
            "try again, read fewer keys, or read without a snapshot",
        ).error()
    return token(routing, revisions)


async def _changed(
    call: CoroutineCall,
    routing: Routing,
    wanted: _Wanted,
    revisions: Mapping[int, int],
    counts: Mapping[int, list[int]],
) -> set[int]:
    """The shards whose ranges have changed since these revisions, at which they had so many keys; or may have."""
    later = {shard: [_changed_since(part, revisions[shard]) for part in parts] for shard, parts in wanted.items()}
    checked = await read_all(call, routing, later)
    stale = {
        shard
        for shard, parts in checked.items()
        if any(response.kvs for response in parts.responses)
        or [response.count for response in parts.responses] != counts[shard]
    }
    if stale:
        return stale
    between: dict[int, list[rpc_pb2.RangeRequest]] = {}
    for shard, parts in checked.items():
        made = range(revisions[shard] + 1, parts.header.revision)
        if len(made) * len(counts[shard]) > MOST_COUNTS:
            stale.add(shard)
        elif made:
            between[shard] = [_count(part, revision) for revision in made for part in wanted[shard]]
    if stale or not between:
        return stale
    for shard, parts in (await read_all(call, routing, between)).items():
        counted = [response.count for response in parts.responses]
        if counted != counts[shard] * (len(counted) // len(counts[shard])):
            stale.add(shard)
    return stale


def _count(part: KeyRange, revision: int = 0) -> rpc_pb2.RangeRequest:
    key, range_end = part.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, count_only=True, revision=revision)


def _changed_since(part: KeyRange, revision: int) -> rpc_pb2.RangeRequest:
    key, range_end = part.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, min_mod_revision=revision + 1, keys_only=True, limit=1)
