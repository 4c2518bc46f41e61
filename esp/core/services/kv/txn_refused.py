"""Transactions that a shard refuses because they have more operations than it allows (etcd's --max-txn-ops).

etcd counts before it looks at anything else, but has parsed the whole transaction by then: 0.05 s of CPU time for
200,000 operations, and esp looks through all of them first. So esp remembers how many a shard has refused, and itself
refuses as many from then on. The shard's next connection may be to a member that allows more, and begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esp.core.shard import Shard
from esp.core.wire.server_stream import ServerCall

MOST_KNOWN: Final = 256
"""The most transactions whose number of operations esp remembers until they are answered."""


class RefusedTxns:
    """The numbers of operations that shards have refused.

    Args:
        shards: the shards by name.
    """

    __slots__ = ("_sent", "_shards")

    def __init__(self, shards: Mapping[str, Shard]) -> None:
        self._shards = shards
        self._sent: dict[tuple[str, int], tuple[Shard, int, int]] = {}  # by client and stream; the last few

    def __len__(self) -> int:
        return len(self._sent)

    def by(self, shard: str | None, count: int) -> bool:
        """Whether a shard refuses so many entries in one list; without a shard, whether all do."""
        asked = self._shards.values() if shard is None else (self._shards[shard],)
        return all(count >= one.refused_ops for one in asked)

    def sent(self, call: ServerCall, shard: Shard, count: int) -> None:
        """A transaction with so many entries in its longest list goes to a shard, which may refuse it for that."""
        sent = self._sent
        if len(sent) >= MOST_KNOWN:
            del sent[next(iter(sent))]
        sent[call.peer, call.id] = shard, count, shard.dialled

    def learn(self, call: ServerCall) -> None:
        """The shard has refused a transaction for the number of its operations."""
        sent = self._sent.pop((call.peer, call.id), None)
        if sent is not None:
            shard, count, dialled = sent
            if shard.dialled == dialled:  # else another member has answered than the one in use
                shard.refused_ops = min(shard.refused_ops, count)
