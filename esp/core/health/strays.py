"""Stray keys: keys that a shard holds and another shard owns. No client sees them, and a moved boundary revives them.

Each shard is asked for the number of keys between its own ranges, with count-only reads. With a namespace only its keys
count: the others are not esp's. Keys under which shards hold the map (`esp map`) do not count, nor do those of a range
that is being moved (`esp move`): its target has copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from esp.core.background import all_of
from esp.core.config import Config
from esp.core.health.facts import Finding, Kind, ShardKeys, Stray
from esp.core.keys import KeyRange, format_key, format_range
from esp.core.own_keys import FIRST
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, Shard, ask_for_esp
from esp.core.shard_map import Segment, ShardMap
from esp.core.shared_map import HELD_KEYS
from esp.core.wire.status import RpcError
from esp.core.wording import shard_called

CALL_SECONDS: Final = 30.0
"""Seconds that one count may take: etcd walks over all keys that it counts."""
AT_ONCE: Final = 8
"""The most counts of one shard at the same time."""
SAMPLES: Final = 3
"""The most stray keys of one range that are shown."""
MAX_KEY: Final = 100
"""The most bytes of a key that a finding shows."""


def scope_of(config: Config) -> KeyRange:
    """The keys of clients: all, or those of the namespace; not esp's own, where the shards hold the map."""
    if config.namespace is not None:
        return config.namespace.keys
    return KeyRange(b"" if config.guards is None else FIRST, None)


def gaps_of(shard_map: ShardMap, shard: str, scope: KeyRange) -> list[list[Segment]]:
    """The parts of `scope` that a shard does not own, in key order; each with the segments of its owners."""
    gaps: list[list[Segment]] = []
    is_open = False
    for segment in shard_map.split(scope):
        if segment.shard == shard:
            is_open = False
        elif is_open:
            gaps[-1].append(segment)
        else:
            gaps.append([segment])
            is_open = True
    return gaps


async def count_keys(config: Config, shard: Shard, moving: KeyRange | None = None) -> ShardKeys:
    """Counts the keys that a shard holds: its own, and strays. Raises nothing: a failure is in the answer.

    `moving` is a range that is being moved.
    """
    scope = scope_of(config)
    owned = [segment.range for segment in config.shard_map.split(scope) if segment.shard == shard.name]
    gaps = gaps_of(config.shard_map, shard.name, scope)
    try:
        number = sum(await _counts(shard, owned))
        whole = await _counts(shard, [KeyRange(gap[0].range.start, gap[-1].range.end) for gap in gaps])
        suspects = [
            part
            for gap, found in zip(gaps, whole, strict=True)
            if found
            for segment in gap
            for part in _parts(config, segment, moving)
        ]
        counts = await _counts(shard, [segment.range for segment in suspects])
        strays = tuple(
            [
                Stray(
                    segment.range, segment.shard, count, await _samples(shard, segment.range), _is_left(config, segment)
                )
                for segment, count in zip(suspects, counts, strict=True)
                if count
            ]
        )
    except RpcError as error:
        return ShardKeys(refusal=error.status.message)
    return ShardKeys(number, strays)


def _parts(config: Config, segment: Segment, moving: KeyRange | None) -> list[Segment]:
    """The parts of a segment that are not being moved: those that have come to its shard, and the others."""
    rest = [segment.range] if moving is None else segment.range.without(moving)
    parts: list[KeyRange] = []
    for one in config.former.came:
        if one.shard == segment.shard:
            parts += [part for left in rest if (part := left.intersect(one.range)) is not None]
            rest = [part for left in rest for part in left.without(one.range)]
    return [Segment(segment.shard, part) for part in sorted([*parts, *rest], key=lambda part: part.start)]


def _is_left(config: Config, segment: Segment) -> bool:
    """Whether keys may be left there by a move: the segment has come to its shard from another, or may have stayed.

    The map does not remember the ranges of moves that were given up. So where the shards hold it, all strays may be
    copies of one, except by the first map: keys may have been deleted at their owner since.
    """
    if config.guards is not None and config.shard_map.epoch > 1:
        return True
    return any(
        one.shard == segment.shard and one.range.intersect(segment.range) is not None for one in config.former.came
    )


async def _counts(shard: Shard, ranges: Iterable[KeyRange]) -> list[int]:
    ranges = list(ranges)
    counts: list[int] = []
    for first in range(0, len(ranges), AT_ONCE):
        counts += await all_of([_count(shard, part) for part in ranges[first : first + AT_ONCE]])
    return counts


async def _count(shard: Shard, part: KeyRange) -> int:
    number = 0
    for one in part.without(HELD_KEYS):
        key, range_end = one.to_request()
        request = rpc_pb2.RangeRequest(key=key, range_end=range_end, count_only=True)
        number += (await ask_for_esp(shard, RANGE, request, seconds=CALL_SECONDS)).count
    return number


async def _samples(shard: Shard, part: KeyRange) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for one in part.without(HELD_KEYS):
        key, range_end = one.to_request()
        request = rpc_pb2.RangeRequest(key=key, range_end=range_end, keys_only=True, limit=SAMPLES)
        answer = await ask_for_esp(shard, RANGE, request, seconds=CALL_SECONDS)
        found += [kv.key for kv in answer.kvs[:SAMPLES]]
    return tuple(found[:SAMPLES])


def judge_keys(keys: Mapping[str, ShardKeys]) -> Iterator[Finding]:
    """The problems in the shards' counts, by the shards' names."""
    for name, told in keys.items():
        if told.refusal:
            yield Finding(Kind.KEYS_UNKNOWN, (name,), None, f"does not tell its keys: {told.refusal}")
        for stray in told.strays or ():
            yield Finding(Kind.STRAY_KEYS, (name,), None, _stray(stray))


def _stray(stray: Stray) -> str:
    shown = ", ".join(f'"{_short(key)}"' for key in stray.samples)
    more = ", ..." if len(stray.samples) < stray.count else ""
    keys = "1 stray key" if stray.count == 1 else f"{stray.count} stray keys"
    cure = "esp check --fix-strays moves or deletes them"
    if stray.is_left:
        cure = "a move may have left them; esp check --fix-strays delete deletes them"
    return (
        f"holds {keys} in {format_range(stray.range)}, which {shard_called(stray.owner)} owns: {shown}{more}; "
        f"no client sees them there; {cure}"
    )


def _short(key: bytes) -> str:
    return format_key(key) if len(key) <= MAX_KEY else format_key(key[:MAX_KEY]) + "..."
