"""The keys of a range of the source at one revision, as the writes that bring them about with both of their orders.

A key that was written again after its creation comes twice: without its value where it was created, and with it where
it was last written. So the orders of create and mod revisions on the target are those of the source. The keys are held
in memory, some 200 bytes for each, their values are not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from itertools import groupby
from typing import Final

from esp.core.export import Pages, of_shard
from esp.core.giving_up import MoveError
from esp.core.keys import KeyRange
from esp.core.move.revisions import Revision, Write
from esp.core.move.troubles import CALL_SECONDS, failures
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import TXN, Method, Shard, ask_for_esp
from esp.core.shared_map import clients_keys
from esp.core.wording import counted

MAX_KEYS: Final = 10_000_000
"""The most keys of a range that moves: some 2 GB of memory."""
MOST_BYTES: Final = 1 << 20
"""Bytes of values that one question is to have, by those of the one before."""
_INDEX_BITS: Final = 24
READS: Final = Method(TXN.path, TXN.answer, idempotent=True)


class Snapshot:
    """The keys of a range at a revision."""

    def __init__(self, shard: Shard, range_: KeyRange, base: int) -> None:
        self._shard = shard
        self._range = clients_keys(range_)
        self._base = base
        self._keys: list[bytes] = []
        self._events: list[int] = []  # revision, place in `_keys`, whether it is the last write of the key
        self._at_once = 16

    def __len__(self) -> int:
        """The number of keys."""
        return len(self._keys)

    async def read(self, progress: Callable[[int], object]) -> None:
        """Reads the keys; `progress` is called with how many there are so far.

        Raises:
            MoveError: they are too many, or the source does not tell them.
        """
        pages = Pages(of_shard(self._shard), self._range, self._base, keys_only=True)
        while True:
            with failures(self._shard):
                page = await pages.next()
            if page is None:
                break
            for pair in page:
                place = len(self._keys) << 1
                self._keys.append(pair.key)
                self._events.append(pair.mod_revision << _INDEX_BITS + 1 | place | 1)
                if pair.create_revision != pair.mod_revision:
                    self._events.append(pair.create_revision << _INDEX_BITS + 1 | place)
            if len(self._keys) > MAX_KEYS:
                raise MoveError(f"the range has more than {counted(MAX_KEYS, 'key')}; move it in parts")
            progress(len(self._keys))
        self._events.sort()

    async def revisions(self, after: int) -> AsyncIterator[list[Revision]]:
        """The revisions behind `after`, in order; the last one is that of the snapshot itself.

        Raises:
            MoveError: the source does not tell the values.
        """
        batch: list[tuple[int, list[int]]] = []
        wanted = 0
        for number, events in groupby(self._events, lambda event: event >> _INDEX_BITS + 1):
            if number <= after:
                continue
            places = list(events)
            batch.append((number, places))
            wanted += sum(place & 1 for place in places)
            if wanted >= self._at_once or len(batch) >= 4 * self._at_once:
                yield await self._with_values(batch)
                batch, wanted = [], 0
        found = await self._with_values(batch)
        if not found or found[-1].number < self._base:
            found.append(Revision(self._base, ()))
        yield found

    async def _with_values(self, batch: Sequence[tuple[int, list[int]]]) -> list[Revision]:
        keys = [self._key(place) for _, places in batch for place in places if place & 1]
        values, until = await self._values(keys)
        found = []
        for number, places in batch:
            writes = []
            for place in places:
                key = self._key(place)
                pair = values.get(key) if place & 1 else None
                writes.append(Write(key, b"") if pair is None else Write(key, pair.value, pair.lease))
            found.append(Revision(number, tuple(writes), until))
        return found

    def _key(self, event: int) -> bytes:
        return self._keys[(event & (1 << _INDEX_BITS + 1) - 1) >> 1]

    async def _values(self, keys: Sequence[bytes]) -> tuple[dict[bytes, kv_pb2.KeyValue], int]:
        """The keys as they are now, and the revision up to which the source is to be followed for that."""
        values: dict[bytes, kv_pb2.KeyValue] = {}
        until = first = 0
        while first < len(keys):
            some = keys[first : first + self._at_once]
            reads = [rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key)) for key in some]
            with failures(self._shard):
                answer = await ask_for_esp(
                    self._shard, READS, rpc_pb2.TxnRequest(success=reads), seconds=4 * CALL_SECONDS
                )
            size = 0
            for response in answer.responses:
                for pair in response.response_range.kvs:
                    values[pair.key] = pair
                    size += len(pair.key) + len(pair.value)
                    if pair.mod_revision > self._base:
                        until = answer.header.revision
            if any(key not in values for key in some):  # it was deleted, which the source will tell
                until = answer.header.revision
            first += len(some)
            self._at_once = max(1, min(100, 2 * self._at_once, MOST_BYTES * len(some) // max(1, size)))
        return values, until
