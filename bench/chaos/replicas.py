"""Clients that keep a copy of a range by list and watch, as informers do: no event lost, none twice, none out of order.

etcd counts the writes of each key in `version`, and the copy knows the last one. So each event tells by itself whether
one before it is missing or comes twice. In the end the copy must be what the shards have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NamedTuple

from bench.chaos.client import Client, Endpoints, RefusedError, UnknownError
from esp.core.pb import kv_pb2

EVERYTHING: Final = (b"\0", b"\0")
LIST_SECONDS: Final = 10.0


class Row(NamedTuple):
    """A key as the copy has it."""

    version: int
    mod_revision: int
    create_revision: int
    value: bytes

    @classmethod
    def of(cls, row: kv_pb2.KeyValue) -> Row:
        """A row of an answer or an event."""
        return cls(row.version, row.mod_revision, row.create_revision, row.value)


class Copy:
    """A copy of a range, from a list and the events after it.

    Attributes:
        rows: the copy.
        events: events that came.
        faults: what no break of the surroundings explains.
    """

    def __init__(self, shard_of: Callable[[bytes], int], bounds: tuple[bytes, bytes] = EVERYTHING) -> None:
        self.bounds = bounds
        self.rows: dict[bytes, Row] = {}
        self.events = 0
        self.faults: list[str] = []
        self._shard_of = shard_of
        self._last: dict[int, int] = {}  # the revision of the last event of each shard

    def part(self, rows: Mapping[bytes, Row]) -> dict[bytes, Row]:
        """The rows of the copy's range."""
        start, end = self.bounds
        return {key: row for key, row in rows.items() if start <= key and (end == b"\0" or key < end)}

    def begin(self, rows: Iterable[kv_pb2.KeyValue]) -> None:
        """Begins anew, with these rows."""
        self.rows = {row.key: Row.of(row) for row in rows}
        self._last.clear()

    def take(self, event: kv_pb2.Event) -> None:
        """Applies one event, after a look at whether it can be the next one of its key and of its shard."""
        self.events += 1
        row, key = event.kv, event.kv.key
        known = self.rows.get(key)
        shard = self._shard_of(key)
        if row.mod_revision < self._last.get(shard, 0):
            self._fault(key, f"an event of revision {row.mod_revision} after {self._last[shard]} of its shard")
        self._last[shard] = row.mod_revision
        if known is not None and row.mod_revision <= known.mod_revision:
            self._fault(key, f"twice, or back: revision {row.mod_revision} after {known.mod_revision}")
        if event.type == event.DELETE:
            if self.rows.pop(key, None) is None:
                self._fault(key, f"deleted at {row.mod_revision}, but the copy does not have it")
            return
        was = known.version if known else 0
        if row.version != was + 1:
            self._fault(key, f"version {row.version} at {row.mod_revision} after {was}: an event is lost")
        self.rows[key] = Row.of(row)

    def _fault(self, key: bytes, text: str) -> None:
        self.faults.append(f"{key!r}: {text}")


class Replica:
    """A client that keeps a copy up to date over any number of broken watches.

    Attributes:
        name: for the report.
        begun: how often the copy was listed or a watch was begun, by reason.
    """

    def __init__(self, name: str, endpoints: Endpoints, place: int, copy: Copy) -> None:
        self.name = name
        self.copy = copy
        self.begun: Counter[str] = Counter()
        self._client = Client(endpoints, place)
        self._next = 0

    async def run(self) -> None:
        """Keeps the copy, until it is cancelled.

        Raises:
            WrongError: no break of the surroundings explains an answer.
        """
        try:
            while True:
                try:
                    if not self._next:
                        await self._list()
                    await self._watch()
                except RefusedError:
                    continue
                except UnknownError:
                    self.begun["resumed"] += 1
        finally:
            await self.close()

    async def close(self) -> None:
        """Ends the connection."""
        await self._client.close()

    async def _list(self) -> None:
        answer = await self._client.range(*self.copy.bounds, LIST_SECONDS)
        self.copy.begin(answer.kvs)
        self._next = answer.header.revision + 1
        self.begun["listed"] += 1

    async def _watch(self) -> None:
        async for message in self._client.watch(*self.copy.bounds, self._next):
            if message.canceled:
                if message.compact_revision:
                    self.begun["position unknown"] += 1
                    self._next = 0
                elif self._client.is_stale(message.cancel_reason):
                    self.begun["logged in again"] += 1
                else:
                    self.copy.faults.append(f"canceled: {message.cancel_reason}")
                return
            for event in message.events:
                self.copy.take(event)
            if not message.created:
                self._next = message.header.revision + 1


async def settled(
    replicas: list[Replica], truth: Callable[[], Awaitable[list[kv_pb2.KeyValue]]], seconds: float
) -> list[str]:
    """Waits until each copy is what the shards have, `seconds` at most; the faults.

    Args:
        replicas: the copies, which are still kept.
        truth: asks the shards for all rows; no client writes any more.
        seconds: how long the copies may take.
    """
    rows: dict[bytes, Row] = {
        row.key: Row(row.version, row.mod_revision, row.create_revision, row.value) for row in await truth()
    }
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        behind = [one for one in replicas if one.copy.rows != one.copy.part(rows)]
        if not behind or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.1)
    faults = [f"{one.name}: {fault}" for one in replicas for fault in one.copy.faults]
    for one in behind:
        has, wanted = one.copy.rows, one.copy.part(rows)
        keys = sorted(key for key in wanted.keys() | has.keys() if wanted.get(key) != has.get(key))
        faults.append(f"{one.name}: differs from the shards in {len(keys)} keys, such as {keys[0]!r}")
    return faults
