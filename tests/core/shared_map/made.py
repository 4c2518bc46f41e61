"""Maps for tests, with guards that count up."""

from __future__ import annotations

from itertools import count

from esp.core.keys import KeyRange
from esp.core.shard_map import ShardMap
from esp.core.shared_map import SharedMap, first, with_shards

AT = "2026-11-30T16:00:00Z"
MAP = ShardMap.build([("a", KeyRange(b"", b"i")), ("b", KeyRange(b"i", b"s")), ("c", KeyRange(b"s", None))], "abc")
numbers = count(1)


def nonce() -> str:
    return f"{next(numbers):032x}"


def made(shard_map: ShardMap = MAP) -> SharedMap:
    return first(shard_map, at=AT, by="root@here", what="init", nonce=nonce)


def after(before: SharedMap, *names: str) -> SharedMap:
    return with_shards(before, names, at=AT, by="root@here", what="apply", nonce=nonce)
