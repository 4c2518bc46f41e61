"""Keys that a shard holds and does not own, deleted piece by piece; and the last comparison before that."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

from esp.core.background import all_of
from esp.core.export import Pages, of_shard
from esp.core.keys import KeyRange
from esp.core.move.chain import still
from esp.core.move.troubles import CALL_SECONDS, TakenOverError, failures
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, TXN, Shard, ask_for_esp
from esp.core.shared_map import clients_keys
from esp.core.wording import shard_called

PIECE: Final = 200
"""Keys of one transaction: the shard answers nobody else while it deletes them."""


class Content(NamedTuple):
    """What a shard held of a range at a revision."""

    keys: int
    digest: str


async def purge(
    shard: Shard,
    guard: str,
    range_: KeyRange,
    *,
    copies: bytes | None,
    rate: float,
    progress: Callable[[int], object],
) -> int:
    """Deletes all clients' keys of a range, `rate` in a second at most; says how many.

    Only while the shard has this guard, by whose map it must not own the range, and holds `copies` under `COPIES_KEY`:
    those of the mover that clears the range before it copies; or none, for whoever deletes what a move has left.

    Raises:
        TakenOverError: it has another guard; or somebody copies keys there, who is not this mover.
        MoveError: it refuses, or does not answer.
    """
    begun, done, start = monotonic(), 0, clients_keys(range_).start
    while True:
        key, range_end = KeyRange(start, range_.end).to_request()
        with failures(shard):
            page = await ask_for_esp(
                shard,
                RANGE,
                rpc_pb2.RangeRequest(key=key, range_end=range_end, limit=PIECE, keys_only=True),
                seconds=CALL_SECONDS,
            )
            if not page.kvs:
                return done
            first, end = page.kvs[0].key, page.kvs[-1].key + b"\0"
            delete = rpc_pb2.DeleteRangeRequest(key=first, range_end=end)
            answer = await ask_for_esp(
                shard,
                TXN,
                rpc_pb2.TxnRequest(
                    compare=still(guard, copies),
                    success=[rpc_pb2.RequestOp(request_delete_range=delete)],
                ),
                seconds=CALL_SECONDS,
            )
        if not answer.succeeded:
            raise TakenOverError(
                f"{shard_called(shard.name)} has another guard by now, or somebody else copies keys there; its keys "
                "are left as they are"
            )
        start = end
        done += len(page.kvs)
        progress(done)
        await asyncio.sleep(max(0.0, begun + done / rate - monotonic()))


async def compared(
    source: Shard, cut: int, target: Shard, opened: int, range_: KeyRange, progress: Callable[[int], object]
) -> tuple[Content, Content]:
    """What the source held when it was cut, and the target when it was opened.

    Raises:
        CompactedError: one of them has forgotten that.
        MoveError: one of them refuses, or does not answer.
    """
    one, other = await all_of(
        [_content(source, range_, cut, progress), _content(target, range_, opened, lambda _: None)]
    )
    return one, other


async def _content(shard: Shard, range_: KeyRange, revision: int, progress: Callable[[int], object]) -> Content:
    digest, keys = hashlib.sha256(), 0
    pages = Pages(of_shard(shard), clients_keys(range_), revision)
    while True:
        with failures(shard):
            page = await pages.next()
        if page is None:
            return Content(keys, digest.hexdigest())
        for pair in page:
            keys += 1
            digest.update(b"%d:%d:%d:" % (len(pair.key), len(pair.value), pair.lease))
            digest.update(pair.key)
            digest.update(pair.value)
        progress(keys)
