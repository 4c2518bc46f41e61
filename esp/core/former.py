"""Revisions that mean nothing for a range any more, because the range has moved to another shard.

Each shard counts its own revisions. A client that comes back with a revision of the former owner would get another
state, or would miss events, without being told. So esp answers a revision as compacted if the new owner had passed it
before the range came, and what a watch that ended for the move comes back with; the client then lists again. What
remains are other clients, if the new owner counts lower than the former one. The operator is told of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from esp.core.keys import KeyRange

MAX_MOVES: Final = 1000
"""The most ranges that are remembered one by one; of more, one range for each shard around all of its own."""
FAR: Final = 1_000_000
"""No shard writes so many revisions between two looks of esp at it: a revision further ahead is not the shard's own."""


UNKNOWN: Final = 1 << 51
"""The revision at which a range came, as long as the new owner has not told it. No shard gets so far."""


@dataclass(frozen=True, slots=True)
class Came:
    """A range that has come to a shard.

    Attributes:
        range: the range.
        shard: the name of the new owner.
        revision: a revision that the new owner had reached when the range came; UNKNOWN if it has not told.
        cut: the last revision of the range on its former owner; 0 if that is not known. Then `revision` stands for it.
        epoch: the epoch of the map of the shards with which it came; 0 if the map was that of a file.
        source: the name of the former owner; "" if that is not known.
    """

    range: KeyRange
    shard: str
    revision: int
    cut: int = 0
    epoch: int = 0
    source: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the new owner has told when the range came."""
        return self.revision < UNKNOWN


class Former:
    """The ranges that have moved since the first process's start, newest first. Never changed, only replaced.

    Tokens and watches outlive a process: a worker that begins anew, and the process that takes over, need all moves.

    Attributes:
        came: the ranges.
    """

    __slots__ = ("came",)

    def __init__(self, came: tuple[Came, ...] = ()) -> None:
        self.came = came

    def __bool__(self) -> bool:
        return bool(self.came)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Former) and other.came == self.came

    def __hash__(self) -> int:
        return hash(self.came)

    def after(self, came: Iterable[Came]) -> Former:
        """The ranges when these have moved as well. Of a range that moves again, only the last move counts."""
        new = list(came)
        old = [one for one in self.came if not any(_lies_in(one.range, other.range) for other in new)]
        every = [*new, *old]
        return Former(tuple(every if len(every) <= MAX_MOVES else _around(every)))

    @classmethod
    def of_dumps(cls, dumps: Iterable[Sequence[Sequence[Any]]]) -> Former:
        """What processes with the same moves have dumped; of each range the highest revision counts."""
        highest: dict[tuple[KeyRange, str], Came] = {}
        for start, end, shard, revision, *more in (one for dump in dumps for one in dump):
            key_range = KeyRange(bytes.fromhex(start), None if end is None else bytes.fromhex(end))
            came = Came(key_range, shard, revision, *more)
            known = highest.get((key_range, shard), came)
            highest[key_range, shard] = max(came, known, key=lambda one: one.revision)
        return cls().after(highest.values())

    def dump(self, most: int = MAX_MOVES) -> list[list[Any]]:
        """The ranges for another process; of more than `most`, one range for each shard around all of its own."""
        came = self.came if len(self.came) <= most else _around(self.came)
        return [
            [
                one.range.start.hex(),
                None if one.range.end is None else one.range.end.hex(),
                one.shard,
                one.revision,
                *([one.cut, one.epoch, one.source] if one.epoch else []),
            ]
            for one in came
        ]

    def renewed(self, told: Former) -> Former:
        """The ranges of another one that is told anew, with what is known here of those that came with the same map."""
        known = {(one.range, one.shard, one.epoch): one for one in self.came}

        def with_known(one: Came) -> Came:
            before = known.get((one.range, one.shard, one.epoch), one)
            return replace(one, revision=min(one.revision, before.revision), cut=one.cut or before.cut)

        return Former(tuple(map(with_known, told.came)))

    def floor(self, key_range: KeyRange, shard: str) -> int:
        """The lowest revision of a shard that means something for all keys of a range; 0 if all do."""
        return max(
            (one.revision for one in self.came if one.shard == shard and one.range.intersect(key_range) is not None),
            default=0,
        )

    def last_before(self, key_range: KeyRange, shard: str) -> int:
        """The highest revision that a client can have of keys of the range from before they came to a shard; 0 if none.

        Numbers up to this one mean nothing where the shard compares them with its own.
        """
        return max(
            (
                one.cut or one.revision
                for one in self.came
                if one.shard == shard and one.range.intersect(key_range) is not None
            ),
            default=0,
        )

    def is_stale(self, key_range: KeyRange, shard: str, revision: int, seen: int) -> bool:
        """Whether a plain revision for a range of one shard is surely not the shard's own since the range came.

        Args:
            key_range: the range.
            shard: the shard that owns the range now.
            revision: the revision, of a client.
            seen: a revision that the shard has reached; 0 if esp does not know any now. Then no revision is too far
                ahead: the shard itself has to say.
        """
        floor = self.floor(key_range, shard)
        return floor > 0 and (revision < floor or (seen > 0 and revision > max(seen, floor) + FAR))


def _lies_in(inner: KeyRange, outer: KeyRange) -> bool:
    return inner.intersect(outer) == inner


def _around(came: Iterable[Came]) -> list[Came]:
    by_shard: dict[str, Came] = {}
    for one in came:
        known = by_shard.get(one.shard)
        if known is not None:
            start = min(one.range.start, known.range.start)
            ends = (one.range.end, known.range.end)
            end = None if None in ends else max(end for end in ends if end is not None)
            cut = max(one.cut, known.cut) if one.cut and known.cut else 0
            one = replace(one, range=KeyRange(start, end), revision=max(one.revision, known.revision), cut=cut)
        by_shard[one.shard] = one
    return list(by_shard.values())
