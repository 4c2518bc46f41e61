"""The moves of ranges that are done, as the map remembers them.

After a move revisions of a range are of another shard. `cut` and `opened` tell those of before from those of after. No
transaction can write its own revision, so a map begins without the two numbers of its last move: they are the revisions
at which the guards of the two shards were written (`noted`), and whoever changes these guards writes them down first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from esp.core.keys import KeyRange

MAX_MOVES: Final = 64
"""The moves that a map remembers. Older ones are joined, so that the map stays small and forgets no `opened`."""
_FIELDS: Final = ("cut", "end", "epoch", "opened", "source", "start", "target")


@dataclass(frozen=True, slots=True)
class Moved:
    """A range that has got another owner.

    Attributes:
        epoch: the epoch of the map since which the target owns the range.
        range: the keys.
        source: the shard that owned them before; "" if its history cannot be asked any more.
        target: the shard that has owned them since.
        cut: the revision of the source that ended its history of these keys; None if it is not noted.
        opened: the revision of the target at which it became the owner. All that it held of the range by then was
            written once more for the move: revisions up to this one are of before. None if it is not noted.
    """

    epoch: int
    range: KeyRange
    source: str
    target: str
    cut: int | None = None
    opened: int | None = None


def noted(moves: Iterable[Moved], guards: Mapping[str, str], revisions: Mapping[str, int]) -> tuple[Moved, ...]:
    """The moves with all numbers that are known.

    Args:
        moves: the moves of a map.
        guards: the guards by that map.
        revisions: the revision at which its guard was written, of each shard that holds the guard of `guards`.
    """

    def written(name: str, epoch: int) -> int | None:
        # The guard of a later epoch was written later, and tells nothing of this move.
        return revisions.get(name) if guards.get(name, "").startswith(f"{epoch}-") else None

    return tuple(
        replace(
            one,
            cut=written(one.source, one.epoch) if one.cut is None else one.cut,
            opened=written(one.target, one.epoch) if one.opened is None else one.opened,
        )
        for one in moves
    )


def without_history(moves: Iterable[Moved], shard: str) -> tuple[Moved, ...]:
    """The moves after a shard has lost its history, because it was restored or left out.

    What it gave to others it cannot tell any more, and what it got counts from its next guard on.
    """
    return tuple(
        replace(
            one,
            source="" if one.source == shard else one.source,
            cut=None if one.source == shard else one.cut,
            opened=None if one.target == shard else one.opened,
        )
        for one in moves
    )


def kept(moves: Sequence[Moved]) -> tuple[Moved, ...]:
    """The moves that a map remembers of these: the last ones, and older ones joined to few.

    Those whose keys have all moved again are forgotten first. Then the two oldest to one shard become one: of a range
    around both, without history, with the higher number.
    """
    left = list(moves)
    while len(left) > MAX_MOVES:
        gone = next((place for place, one in enumerate(left) if _is_covered(one.range, left[place + 1 :])), None)
        if gone is not None:
            del left[gone]
            continue
        for place, one in enumerate(left):
            after = next((at for at in range(place + 1, len(left)) if left[at].target == one.target), None)
            if after is not None:
                left[after] = _joined(one, left[after])
                del left[place]
                break
        else:
            break  # more shards than moves: each has one
    return tuple(left)


def _is_covered(range_: KeyRange, later: Iterable[Moved]) -> bool:
    parts = [range_]
    for one in later:
        if not one.source:
            continue  # it may be joined: not all of these keys have moved
        parts = [left for part in parts for left in part.without(one.range)]
    return not parts


def _joined(one: Moved, other: Moved) -> Moved:
    ends = (one.range.end, other.range.end)
    end = None if None in ends else max(end for end in ends if end is not None)
    opened = None if one.opened is None or other.opened is None else max(one.opened, other.opened)
    return Moved(other.epoch, KeyRange(min(one.range.start, other.range.start), end), "", other.target, None, opened)


def as_json(moved: Moved) -> dict[str, Any]:
    """The JSON form."""
    return {
        "epoch": moved.epoch,
        "start": moved.range.start.hex(),
        "end": None if moved.range.end is None else moved.range.end.hex(),
        "source": moved.source,
        "target": moved.target,
        "cut": moved.cut,
        "opened": moved.opened,
    }


def of_json(value: dict[str, Any]) -> Moved:
    """The move of a JSON form from the network; that its names are names is for the caller to see.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: there is none.
    """
    if tuple(sorted(value)) != _FIELDS:
        raise ValueError("a move has other fields")
    moved = Moved(value["epoch"], range_of(value), value["source"], value["target"], value["cut"], value["opened"])
    if type(moved.epoch) is not int or moved.epoch < 2:
        raise ValueError("the epoch of a move is none")
    for number in (moved.cut, moved.opened):
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError("the revision of a move is none")
    if not isinstance(moved.source, str) or not isinstance(moved.target, str) or moved.source == moved.target:
        raise ValueError("a move is from no shard to another")
    if moved.cut is not None and not moved.source:
        raise ValueError("a move without a source has a revision of it")
    return moved


def range_of(value: Mapping[str, Any]) -> KeyRange:
    """The range of a JSON form.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: there is none, or one of esp's own keys.
    """
    end = value["end"]
    found = KeyRange(bytes.fromhex(value["start"]), None if end is None else bytes.fromhex(end))
    if found.is_empty() or found.start.startswith(b"\0") or (found.end or b"\x01").startswith(b"\0"):
        raise ValueError("a range of keys is none")
    return found
