"""Keys that clients would lose sight of: those on the former owner of a range that moves to another shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from esp.core.background import all_of
from esp.core.keys import format_range
from esp.core.lease_sync import each
from esp.core.moves import Move
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, Shard, ask_for_esp
from esp.core.shared_map import HELD_KEYS
from esp.core.wire.status import RpcError
from esp.core.wording import counted, shard_called

ANSWER_SECONDS: Final = 10.0
"""Seconds that a shard has to count."""
CONCURRENCY: Final = 8
"""Ranges that are counted at the same time."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a range that moves.

    Attributes:
        left: the number of keys on the former owner, which no client sees from now on; None if it does not tell.
        found: the number of keys on the new owner, which clients see from now on; None if it does not tell.
        trouble: why the former owner does not tell; else "".
        passed, reached: the revisions of the former owner and of the new one; 0 if it does not tell.
    """

    move: Move
    left: int | None
    found: int | None
    trouble: str = ""
    passed: int = 0
    reached: int = 0

    @property
    def counts_lower(self) -> bool:
        """Whether the new owner may come to a revision that a client has from the former one."""
        return 0 < self.reached < self.passed

    def fault(self) -> str:
        """Why the range should not move, as a clause with its cure; "" if no key would get out of sight.

        If the new owner has as many keys, then they are taken for copies.
        """
        source, target, where = self.move.source, self.move.target, format_range(self.move.range)
        if self.left is None:
            return (
                f"{shard_called(source)} does not tell whether it holds keys of {where}, which move to {target}: "
                f"{self.trouble}"
            )
        if self.left in (0, self.found):
            return ""
        there = "" if self.found is None else f", which holds {counted(self.found, 'key')} there"
        return (
            f"{shard_called(source)} holds {counted(self.left, 'key')} of {where}, which no client would see any more: "
            f"the range moves to {target}{there}; copy them there before"
        )

    def news(self) -> str:
        """What else an operator should know of the keys, as a clause; "" if there is nothing."""
        source, target, where = self.move.source, self.move.target, format_range(self.move.range)
        if not self.found:
            return ""
        if self.left == 0:
            return f"clients see {counted(self.found, 'key')} of {where} that {target} has"
        if self.left == self.found:
            return f"{source} still has {counted(self.left, 'key')} of {where}, which nobody sees: as many as {target}"
        return ""


def one_cluster(shard: Shard, other: Shard) -> bool:
    """Whether two shards are one cluster, such as a shard with another name: they have an address in common.

    Cluster ids do not show that: clusters that were started with the same flags have the same id.
    """
    return bool(_addresses(shard) & _addresses(other))


async def keys_of(
    moves: Iterable[Move], before: Mapping[str, Shard], after: Mapping[str, Shard], seconds: float = ANSWER_SECONDS
) -> list[Keys]:
    """The keys of each range that moves from one cluster to another.

    Args:
        moves: the ranges.
        before: the shards in force, by name.
        after: the shards of the next layout, by name.
        seconds: how long a shard may count.
    """
    found: dict[Move, Keys] = {}
    moves = list(moves)

    async def look(move: Move) -> None:
        source, target = before[move.source], after[move.target]
        left, there = await all_of([_counted(source, move, seconds), _counted(target, move, seconds)])
        found[move] = Keys(move, left.count, there.count, left.trouble, left.revision, there.revision)

    await each(moves, look, CONCURRENCY)
    return [found[move] for move in moves]


def _addresses(shard: Shard) -> set[tuple[str, int]]:
    return {(endpoint.host, endpoint.port) for endpoint in shard.endpoints}


@dataclass(frozen=True, slots=True)
class _Answer:
    count: int | None
    revision: int = 0
    trouble: str = ""


async def _counted(shard: Shard, move: Move, seconds: float) -> _Answer:
    number = revision = 0
    for part in move.range.without(HELD_KEYS) or [move.range]:
        key, end = part.to_request()
        asked = rpc_pb2.RangeRequest(key=key, range_end=end, count_only=True)
        try:
            answer = await ask_for_esp(shard, RANGE, asked, seconds=seconds)
        except RpcError as error:
            return _Answer(None, trouble=error.status.message)
        number += answer.count
        revision = answer.header.revision
    return _Answer(number, revision)
