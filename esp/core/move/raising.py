"""The target's revision counter, raised so that no copy gets a number that the source has given or will give.

A revision takes a transaction, so raising by a million takes minutes. A new cluster can be made with a high counter
instead: `etcdutl snapshot restore --bump-revision`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from esp.core.background import all_of
from esp.core.move.chain import still
from esp.core.move.troubles import CALL_SECONDS, TakenOverError, failures
from esp.core.pb import rpc_pb2
from esp.core.shard import GUARD_KEY, TXN, Shard, ask_for_esp
from esp.core.wording import shard_called

RAISE_KEY: Final = b"\0esp/steps"
"""The key that is written for it; nobody reads it."""
AT_ONCE: Final = 64
EACH: Final = 32
"""Writes of each writer between two looks at how far it is."""


async def raise_counter(target: Shard, guard: str, copies: bytes, by: int, progress: Callable[[int], object]) -> None:
    """Raises the counter by some revisions, or a few more; `progress` is called with how many are done.

    Only while the target holds these `copies`: those of the mover that raises.

    Raises:
        TakenOverError: the target has another guard, or another mover copies there.
        MoveError: the target refuses, or does not answer.
    """
    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=RAISE_KEY))
    request = rpc_pb2.TxnRequest(compare=still(guard, copies), success=[put])
    done = 0

    async def writes() -> None:
        nonlocal done
        while done < by:
            for _ in range(min(EACH, by)):
                answer = await ask_for_esp(target, TXN, request, seconds=CALL_SECONDS)
                if not answer.succeeded:
                    raise TakenOverError(
                        f"{shard_called(target.name)} has another guard by now, or another mover; look again"
                    )
            done += EACH
            progress(min(done, by))

    with failures(target):
        await all_of([writes() for _ in range(max(1, min(AT_ONCE, by // EACH)))])
        delete = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=RAISE_KEY))
        await ask_for_esp(
            target,
            TXN,
            rpc_pb2.TxnRequest(compare=list(request.compare), success=[delete]),
            seconds=CALL_SECONDS,
        )


async def write_rate(source: Shard, seconds: float) -> float:
    """The revisions of a shard in a second, by a look of so many seconds.

    Raises:
        MoveError: it does not answer.
    """
    with failures(source):
        before = await _revision(source)
        await asyncio.sleep(seconds)
        return (await _revision(source) - before) / seconds


async def _revision(shard: Shard) -> int:
    look = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=GUARD_KEY, count_only=True))
    answer = await ask_for_esp(shard, TXN, rpc_pb2.TxnRequest(success=[look]), seconds=CALL_SECONDS)
    return answer.header.revision
