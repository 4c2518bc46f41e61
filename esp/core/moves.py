"""Ranges of keys that get another owner: between two maps, and the last ones of a proxy, for its status page."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import time
from typing import Any, Final, NamedTuple

from esp.core.keys import KeyRange, format_range
from esp.core.shard_map import ShardMap

MOST: Final = 32
"""Moves that a proxy remembers; of earlier ones only the number."""


@dataclass(frozen=True, slots=True)
class Move:
    """A range whose keys belong to another shard from now on."""

    range: KeyRange
    source: str
    target: str

    def __str__(self) -> str:
        return f"keys {format_range(self.range)} move from {self.source} to {self.target}"

    def as_json(self) -> dict[str, Any]:
        """The move for programs; an `end` that is null is no upper bound."""
        keys = {"start": _key(self.range.start), "end": _key(self.range.end)}
        return {**keys, "from": self.source, "to": self.target}


def moves(before: ShardMap, after: ShardMap) -> list[Move]:
    """The ranges whose owner differs between two maps, in key order, as few as can be."""
    starts = sorted({*before.starts, *after.starts})
    found: list[Move] = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        source, target = before.owner(start), after.owner(start)
        if source == target:
            continue
        last = found[-1] if found else None
        if last is not None and last.range.end == start and (last.source, last.target) == (source, target):
            found[-1] = Move(KeyRange(last.range.start, end), source, target)
        else:
            found.append(Move(KeyRange(start, end), source, target))
    return found


class Moved(NamedTuple):
    """A move that is in force: since when (seconds since 1970), what, and by what it came, in a few words."""

    at: float
    move: Move
    how: str


class LastMoves:
    """The last moves of a running proxy.

    Attributes:
        last: the newest first; those of one map in key order.
        count: all moves since the process began.
        unfinished: tells of a change of the map on the shards that is decided and not carried out; "" if none is known.
    """

    def __init__(self) -> None:
        self.last: deque[Moved] = deque(maxlen=MOST)
        self.count = 0
        self.unfinished = ""

    def take(self, before: ShardMap, after: ShardMap, how: str) -> None:
        """Remembers what the map `after` moves, which has come into force."""
        found = moves(before, after)
        at = time()
        self.count += len(found)
        self.last.extendleft(Moved(at, move, how) for move in reversed(found[:MOST]))

    def as_json(self) -> dict[str, Any]:
        """The form for the status page."""
        return {"last": list(self._rows()), "more": self.count - len(self.last), "unfinished": self.unfinished}

    def _rows(self) -> Iterator[dict[str, Any]]:
        for at, move, how in self.last:
            yield {"at": at, "keys": format_range(move.range), "from": move.source, "to": move.target, "how": how}


def _key(key: bytes | None) -> dict[str, str] | None:
    """A key as in all JSON of esp: `text`, unless the key is not UTF-8, and `base64`."""
    if key is None:
        return None
    encoded = {"base64": base64.b64encode(key).decode()}
    try:
        return {"text": key.decode(), **encoded}
    except UnicodeDecodeError:
        return encoded
