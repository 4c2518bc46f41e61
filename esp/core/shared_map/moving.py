"""A move of a range that is under way: what the anchor holds of it, and the maps to which it leads.

The phase says what others may do (docs/decisions/2026-11-30-one-map.md). What has happened the guards of the two shards
tell: whoever holds the guard of the map after has been cut, or opened; whoever holds that of `back` was given back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from esp.core.keys import KeyRange, format_range
from esp.core.shard_map import ShardMap
from esp.core.shared_map.moved import Moved, kept, range_of
from esp.core.shared_map.value import (
    MapFormatError,
    Nonce,
    SharedMap,
    as_json,
    changed,
    checked,
    decode,
    dumped,
    fresh_nonce,
)
from esp.core.wording import shard_called

COPIES_KEY: Final = b"\0esp/copies"
"""On the target, while keys are copied there: who copies, and how far that is. Each copy compares it."""
MAX_PAUSE: Final = 60_000
"""The longest pause of a move, in milliseconds."""
_FIELDS: Final = ["back", "end", "id", "mover", "pause", "phase", "source", "start", "target"]
_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_ID: Final = re.compile(r"[0-9a-f]{12}")


class Phase(StrEnum):
    """What others may do with a move. The names are part of the stored form."""

    COPY = "copy"
    """Keys are copied. The source owns the range; nobody cuts. An operator may resume or abort it."""
    CUT = "cut"
    """The mover may cut the source at any moment, or has. After its pause anybody may go over to `ABORT`."""
    ABORT = "abort"
    """The range stays with the source. Anybody goes on: the target gets the guard of `back` first, then the source."""
    OPEN = "open"
    """The target owns the range. Anybody goes on: the others are told."""


@dataclass(frozen=True, slots=True)
class Move:
    """A move that is under way.

    Attributes:
        id: 12 hexadecimal digits, for people and programs.
        range: the keys; one shard owns all of them.
        source: that shard.
        target: the shard that shall own them.
        phase: what others may do.
        mover: 32 hexadecimal digits that nobody else has: who copies. Whoever resumes the move has others.
        pause: milliseconds from the cut on after which the move is to be given up.
        back: the map to which an abort leads, of the epoch behind the map after; None in all other phases.
    """

    id: str
    range: KeyRange
    source: str
    target: str
    phase: Phase
    mover: str
    pause: int
    back: SharedMap | None = None

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "id": self.id,
            "start": self.range.start.hex(),
            "end": None if self.range.end is None else self.range.end.hex(),
            "source": self.source,
            "target": self.target,
            "phase": str(self.phase),
            "mover": self.mover,
            "pause": self.pause,
            "back": None if self.back is None else as_json(self.back),
        }


def move_of(value: dict[str, Any]) -> Move:
    """The move of a JSON form from the network; whether it fits to its maps `fits` tells.

    Raises:
        MapFormatError: there is none.
    """
    try:
        if sorted(value) != _FIELDS:
            raise ValueError("it has other fields")
        back = None if value["back"] is None else decode(dumped(value["back"]))
        phase = Phase(value["phase"])
        move = Move(
            value["id"],
            range_of(value),
            value["source"],
            value["target"],
            phase,
            value["mover"],
            value["pause"],
            back,
        )
        if _ID.fullmatch(move.id) is None or _NONCE.fullmatch(move.mover) is None:
            raise ValueError("its id is none")
        if type(move.pause) is not int or not 0 < move.pause <= MAX_PAUSE:
            raise ValueError("its pause is none")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MapFormatError(f"has a move that cannot be read: {str(error) or type(error).__name__}"[:200]) from None
    return move


def moved_to(
    before: SharedMap,
    range_: KeyRange,
    target: str,
    *,
    at: str,
    by: str,
    moves: Sequence[Moved],
    nonce: Nonce = fresh_nonce,
) -> SharedMap:
    """The map after a move: the target owns the range, and the two shards have other guards.

    `moves` are those of the map before, with the numbers that are known (`reading.moves_of`).

    Raises:
        MapFormatError: the range cannot move there; or the map would be too large.
    """
    owners = {segment.shard for segment in before.map.split(range_)}
    if target not in before.guards:
        raise MapFormatError(f"has no {shard_called(target)}")
    if range_.start.startswith(b"\0") or (range_.end or b"\x01").startswith(b"\0"):
        raise MapFormatError("cannot have a boundary that begins with a zero byte: such keys are esp's own")
    if len(owners) != 1:
        names = ", ".join(sorted(owners))
        raise MapFormatError(
            f"gives {format_range(range_)} to several shards ({names}), or to none; move what each of them has"
        )
    [source] = owners
    if source == target:
        raise MapFormatError(f"gives {format_range(range_)} to {shard_called(target)} already")
    after = _with_owner(before.map, range_, target)
    moves = kept((*moves, Moved(after.epoch, range_, source, target)))
    what = f"{format_range(range_)} moves from {source} to {target}"
    changes = changed(before, after, at, by, what)
    guards = _renewed(before, source, target, after.epoch, nonce)
    return checked(SharedMap(after, before.anchor, guards, changes, moves))


def given_back(
    before: SharedMap, move: Move, *, at: str, by: str, moves: Sequence[Moved], nonce: Nonce = fresh_nonce
) -> SharedMap:
    """The map after a move from `before` was given up: the owners as before, and other guards than the move has used.

    `moves` are those of the map before, with the numbers that are known.

    Raises:
        MapFormatError: the map would be too large.
    """
    epoch = before.epoch + 2
    map_ = ShardMap(before.map.names, epoch, before.map.starts, before.map.owners)
    guards = _renewed(before, move.source, move.target, epoch, nonce)
    what = f"{format_range(move.range)} stays with {move.source}, and does not move to {move.target}"
    return checked(SharedMap(map_, before.anchor, guards, changed(before, map_, at, by, what), tuple(moves)))


def _with_owner(map_: ShardMap, range_: KeyRange, target: str) -> ShardMap:
    pieces = [(name, part) for name in map_.names for one in map_.ranges_of(name) for part in one.without(range_)]
    return ShardMap.build([*pieces, (target, range_)], map_.names, map_.epoch + 1)


def _renewed(before: SharedMap, source: str, target: str, epoch: int, nonce: Callable[[], str]) -> dict[str, str]:
    return {**before.guards, source: f"{epoch}-{nonce()}", target: f"{epoch}-{nonce()}"}


def fits(move: Move, before: SharedMap, after: SharedMap) -> bool:
    """Whether these are the maps of this move."""
    source, target, range_, back = move.source, move.target, move.range, move.back
    if source == target or target not in before.guards or before.map.sole_owner(range_) != source:
        return False
    if not after.moves or after.moves[-1] != Moved(after.epoch, range_, source, target):
        return False
    return (
        after.map == _with_owner(before.map, range_, target)
        and _guards_fit(before, after, source, target)
        and (move.phase is Phase.ABORT) == (back is not None)
        and (
            back is None
            or (
                back.map == replace(before.map, epoch=before.epoch + 2)
                and back.anchor == before.anchor
                and _guards_fit(before, back, source, target)
            )
        )
    )


def _guards_fit(before: SharedMap, after: SharedMap, source: str, target: str) -> bool:
    return before.names == after.names and all(
        guard.startswith(f"{after.epoch}-") if name in (source, target) else guard == before.guards[name]
        for name, guard in after.guards.items()
    )
