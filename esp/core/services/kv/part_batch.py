"""Joins parts of Ranges over several shards that go to the same shard at the same time, as `read_batch` joins reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from esp.core import errors
from esp.core.services.kv import read_txn
from esp.core.services.kv.batched_call import BatchedCall
from esp.core.services.kv.concat_part import Part
from esp.core.services.kv.read_batch import Batches
from esp.core.services.kv.read_txn import LONGEST_READ
from esp.core.shard import Compared
from esp.core.wire.client import ClientConnection
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import Status
from esp.core.wire.traces import shares

log = logging.getLogger("esp.service")


class PartBatches(Batches[Part]):
    """The parts that wait for one shard: of Ranges with nothing but their keys, of clients whose answers were small."""

    most_at_first = 4

    def add(self, one: Part) -> None:
        """Takes a part whose call has come in this turn."""
        if self._alone or len(one.message) > LONGEST_READ:
            self._alone = max(0, self._alone - 1)
            one.send_in_turn()
            return
        if not self._gathered:
            self._context.gatherers.append(self)
        self._gathered.append((one.down, one))

    def send_alone(self, stream: ServerCall, what: Part) -> None:
        """Sends a part by itself."""
        what.send_in_turn()

    def join(
        self, connection: ClientConnection, metadata: bytes, reads: Sequence[tuple[ServerCall, Part]]
    ) -> tuple[BatchedCall, bytes]:
        """The transaction of these parts."""
        parts = [one for _, one in reads]
        kind = BatchedParts if self.shard.guard is None else ComparedParts
        return kind(connection, self, metadata, parts), read_txn.join([one.message for one in parts])


class BatchedParts(BatchedCall):
    """A transaction of parts of several clients' Ranges."""

    __slots__ = ("_parts",)

    def __init__(
        self, connection: ClientConnection, batches: PartBatches, metadata: bytes, parts: Sequence[Part]
    ) -> None:
        super().__init__(connection, batches, metadata, len(parts))
        self._parts = parts
        for one in parts:
            one.leave = self.on_read_gone
            if one.down.trace:
                shares(one.down.trace, one.name, one.down.opened)

    def deliver(self, head: ResponseHead, answers: Sequence[bytes], trailers: ResponseHead) -> None:
        """Gives each part its answer."""
        following = iter(answers)
        came = self.connection.heard
        self._for_each(lambda one: one.take_joined(next(following), came))

    def again(self, *, was_sent: bool = False) -> None:
        """Sends each part by itself, or has its whole Range read anew."""

        def send(one: Part) -> None:
            if was_sent:
                one.on_broken(unprocessed=False)
            elif one.down.connection.weight:
                one.give_up()  # its Range now needs places
            else:
                one.send_late()

        self._for_each(send)

    def end_all(self, status: Status) -> None:
        """Ends all Ranges."""
        self._for_each(lambda one: one.fail(status))

    def outdated(self) -> None:
        """Gives each Range to whoever sends it by another map."""
        self._for_each(lambda one: one.fail(errors.MAP_CHANGED))

    def _for_each(self, act: Callable[[Part], None]) -> None:
        """Calls `act` for each part. A bug in that fails only the call of this part."""
        for one in self._parts:
            one.leave = None
            try:
                act(one)
            except Exception:
                log.exception("%s: a bug in esp; a Range fails", one.down.peer)
                one.down.on_bug()

    def note_large(self, size: int) -> None:
        """The clients' next reads wait for places."""
        for one in self._parts:
            self._batches.gate.note_large(one.down, size)


class ComparedParts(Compared, BatchedParts):
    """A transaction of parts at a shard that holds a guard."""

    __slots__ = ("beginning", "kind", "opening")

    only_reads = True
