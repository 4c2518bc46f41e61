"""Transactions that a shard refuses because they have more operations than it allows (etcd's --max-txn-ops).

etcd counts before it looks at anything else, but has parsed the whole transaction by then: 0.05 s of CPU time for
200,000 operations, and esp looks through all of them first. So after a refusal esp asks how many the shard allows, and
itself refuses more from then on, without a look at what is behind. The shard's next connection may be to a member that
allows more, and begins anew.

esp asks with operations that are empty. etcd refuses them, too, but only if they are not too many. So nothing is read
or written, and no user is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from esp.core import errors
from esp.core.services.kv import txn
from esp.core.services.kv.reading import TXN
from esp.core.shard import NONE_REFUSED, Shard
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import RpcError

_EMPTY_OPERATION: Final = b"\x12\x00"
_SECONDS: Final = 5.0
"""Seconds for an answer of the shard."""
MOST_KNOWN: Final = 256
"""The most transactions whose number of operations esp remembers until they are answered."""


class RefusedTxns:
    """The numbers of operations that shards refuse.

    Args:
        shards: the shards by name.
        spawn: begins work that ends by itself.
    """

    __slots__ = ("_sent", "_shards", "_spawn")

    def __init__(
        self, shards: Mapping[str, Shard], spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> None:
        self._shards = shards
        self._spawn = spawn
        self._sent: dict[tuple[int, int, float], tuple[Shard, int, int]] = {}  # by call (`_name`); the last few

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
        sent[_name(call)] = shard, count, shard.dialled

    def learn(self, call: ServerCall) -> None:
        """The shard has refused a transaction for the number of its operations."""
        sent = self._sent.pop(_name(call), None)
        if sent is not None:
            shard, count, dialled = sent
            if shard.dialled == dialled and count < shard.refused_ops:  # else another member than the one in use
                is_first = shard.refused_ops == NONE_REFUSED
                shard.refused_ops = count
                if is_first:
                    self._spawn(self._ask_for_limit(shard, dialled))

    async def _ask_for_limit(self, shard: Shard, dialled: int) -> None:
        """Finds the least number that the shard refuses: exactly if it is the default, else within a factor of two."""
        count = txn.MAX_OPS + 1
        while shard.dialled == dialled and count < shard.refused_ops:
            try:
                await shard.forward_unary((TXN, b""), _EMPTY_OPERATION * count, idempotent=True, timeout=_SECONDS)
            except RpcError as error:
                if error.status == errors.TOO_MANY_OPS and shard.dialled == dialled:
                    shard.refused_ops = min(shard.refused_ops, count)
                elif error.status != errors.KEY_NOT_FOUND:
                    return
            count *= 2


def _name(call: ServerCall) -> tuple[int, int, float]:
    """The connection, the stream, and when it began: a connection that is gone leaves its number to a later one."""
    return id(call.connection), call.id, call.opened
