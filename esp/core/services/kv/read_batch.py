"""Joins reads that come at the same time into one transaction.

For a Range of one key, most of etcd's cost is the call around the read. So esp joins the reads of one key that came in
the same turn of the loop, for the same shard and with the same metadata, into one transaction (`read_txn`). Each client
gets its own answer, cut out of the transaction's answer. A read that came alone goes unchanged.

No read waits for others: a transaction leaves when its reads would have left. And no read fails because of another:
after any unexpected answer, most reads are sent again, each by itself (`_send_alone`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Final, Generic, TypeVar

from esp.core.services.gate import Gate
from esp.core.services.handlers import PassCounted
from esp.core.services.kv import read_txn
from esp.core.services.kv.batched_call import TXN_PATH, BatchedCall, BatchedReads, ComparedReads, end_after_bug
from esp.core.services.kv.peek import bare_key, range_key
from esp.core.services.maintenance import version_key
from esp.core.shard import Shard
from esp.core.wire.client import ClientConnection
from esp.core.wire.message import PREFIX_SIZE, format_timeout
from esp.core.wire.server_stream import ServerCall

log = logging.getLogger("esp.service")

FIRST_VERSION: Final = (3, 5, 7)
"""The first etcd that gets such transactions. Before, a transaction that only reads could crash etcd if its caller left
(etcd issues 14110 and 14891), and raised an alarm in an etcd without space (etcd pull request 14884)."""
ANSWER_BYTES: Final = 65536
"""Bytes that the answers in a transaction should have together, judged by the last transactions."""
READS_ALONE: Final = 100
"""After an unfit transaction so many reads go one by one; then esp joins reads again."""

What = TypeVar("What")
"""What stands for a read besides the client's call."""


class Batches(Generic[What]):
    """The reads that wait for one shard.

    While there are any, the batches stand in `context.gatherers`, and leave with all other output.

    Attributes:
        shard: the shard that is read from.
        gate: the places at the shards.
        passed: takes the seconds of quick calls; None if nobody wants to know them.
    """

    most_at_first = 1 << 30
    """The most reads in the first transaction, before it is known how large the answers are."""

    def __init__(self, shard: Shard, gate: Gate) -> None:
        self.shard = shard
        self.gate = gate
        self._context = shard.context
        observer = shard.context.observer
        self.passed = None if observer is None else observer.joined_to(shard.name)
        self._limit = shard.context.limits.max_batched_reads
        self._most = min(self._limit, self.most_at_first)
        self._alone = 0  # the number of reads that still go alone
        self._refused = b""  # the metadata of the last refusal
        self._refused_alone = 0  # the number of reads with this metadata that still go alone
        self._gathered: list[tuple[ServerCall, What]] = []
        self._leaving: list[tuple[ServerCall, What]] = []
        self._version = ""
        self._is_fit = False

    def send_alone(self, stream: ServerCall, what: What) -> None:
        """Sends a read by itself, in the turn in which it came."""
        raise NotImplementedError

    def join(
        self, connection: ClientConnection, metadata: bytes, reads: Sequence[tuple[ServerCall, What]]
    ) -> tuple[BatchedCall, bytes]:
        """The transaction of these reads, which has not been sent, and its request."""
        raise NotImplementedError

    def flush(self) -> None:
        """Sends the reads that have gathered."""
        self._leaving = gathered = self._gathered
        self._gathered = []
        if len(gathered) == 1:
            stream, what = gathered[0]
            if stream.local_open:  # the client has not taken it back
                self.send_alone(stream, what)
        elif not self._does_transactions():
            if self._version:  # if not, the member will tell its version in a moment
                self._alone = READS_ALONE
            self._send_each(gathered)
        else:
            groups: dict[bytes, list[tuple[ServerCall, What]]] = {}
            for read in gathered:
                if not read[0].is_over:
                    groups.setdefault(read[0].head.forward[1], []).append(read)
            most = self._most
            for metadata, group in groups.items():
                if len(group) > self._context.limits.max_batched_reads:
                    self._context.reached("max_batched_reads")
                if self._refused_alone > 0 and metadata == self._refused:
                    self._refused_alone -= len(group)
                    self._send_each(group)
                    continue
                for start in range(0, len(group), most):
                    self._send(metadata, group[start : start + most])
        self._leaving = []

    def on_bug(self) -> None:
        """Fails the calls of a `flush` that an exception came out of."""
        log.exception("shard %s: a bug in esp; reads fail", self.shard.name)
        leaving, self._leaving = self._leaving, []
        for stream, _ in leaving:
            if not stream.is_over:
                end_after_bug(stream)

    def learn(self, size: int, reads: int) -> None:
        """Fits the number of reads in the next transactions to the last answer: `size` bytes for `reads` reads."""
        most = ANSWER_BYTES * reads // size
        if most < 2:
            self.pause("their answers are large")
        self._most = max(2, min(self._limit, most, 2 * self._most))

    def pause(self, reason: str) -> None:
        """Lets the next reads go one by one."""
        log.debug("shard %s: reads go one by one: %s", self.shard.name, reason)
        self._alone = READS_ALONE

    def refused(self, metadata: bytes) -> None:
        """Lets the next reads with this metadata go one by one: the user may lack the permission for a key."""
        self._refused = metadata
        self._refused_alone = READS_ALONE

    def too_many(self, reads: int) -> None:
        """Joins at most half as many from now on: the shard's --max-txn-ops is below `reads`."""
        self._limit = self._most = min(self._limit, reads // 2)  # larger transactions may be under way
        self.shard.max_txn_ops = min(self.shard.max_txn_ops, self._limit)
        log.info("shard %s: at most %d reads go together: its --max-txn-ops is low", self.shard.name, self._limit)

    def _does_transactions(self) -> bool:
        version = self.shard.version_in_use
        if version is not self._version:
            self._version = version
            self._limit = self._context.limits.max_batched_reads
            self._most = min(self._limit, self.most_at_first)
            self._is_fit = version_key(version) >= FIRST_VERSION
        return self._is_fit and self._limit > 1

    def _send(self, metadata: bytes, reads: Sequence[tuple[ServerCall, What]]) -> None:
        connection = self.shard.free_connection()
        if len(reads) == 1 or connection is None:
            self._send_each(reads)
            return
        self.shard.joined_transactions += 1
        self.shard.joined_reads += len(reads)
        call, body = self.join(connection, metadata, reads)
        connection.call(call, (TXN_PATH, metadata), _longest_timeout(reads), body, end=True)

    def _send_each(self, reads: Sequence[tuple[ServerCall, What]]) -> None:
        for stream, what in reads:
            if not stream.is_over:
                self.send_alone(stream, what)


class ReadBatches(Batches[bytes]):
    """The reads of one key, each with its request, that wait for one shard."""

    def add(self, stream: ServerCall, message: bytes) -> None:
        """Takes a read that `peek.bare_key` knows. A client that may read much waits for a place first."""
        if stream.connection.weight:
            self.gate.pass_on(stream, self.shard, message, reads=True, one_key=True, small=self.add)
            return
        if self._alone:
            self._alone -= 1
            self.shard.splice(stream, message)
            return
        if not self._gathered:
            self._context.gatherers.append(self)
        self._gathered.append((stream, message))

    def send_alone(self, stream: ServerCall, what: bytes) -> None:
        """Sends a read by itself."""
        self.shard.splice(stream, what)

    def join(
        self, connection: ClientConnection, metadata: bytes, reads: Sequence[tuple[ServerCall, bytes]]
    ) -> tuple[BatchedCall, bytes]:
        """The transaction of these reads."""
        body = read_txn.join([message for _, message in reads])
        kind = BatchedReads if self.shard.guard is None else ComparedReads
        return kind(connection, self, metadata, reads), body


def _longest_timeout(reads: Iterable[tuple[ServerCall, object]]) -> bytes:
    """The `grpc-timeout` of the latest deadline. The server's end of the wire ends calls with an earlier deadline."""
    last = 0.0
    for stream, _ in reads:
        if not stream.deadline:
            return b""
        last = max(last, stream.deadline)
    return format_timeout(max(0.0, last - monotonic()))


class PassReads(PassCounted):
    """Passes Ranges on to one shard: joins Ranges of one key, and sends any other unchanged.

    Attributes:
        batches: the reads of one key that wait.
    """

    def __init__(self, shard: Shard, gate: Gate) -> None:
        super().__init__(shard, gate, idempotent=True)
        self.batches = ReadBatches(shard, gate)

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Sends the Range on."""
        if bare_key(message, PREFIX_SIZE) is not None:
            self.batches.add(stream, message)
        else:
            super().on_message(stream, message)

    def reads_one_key(self, message: bytes) -> bool:
        """Whether the message is in the usual form, and without a range_end."""
        return range_key(message, PREFIX_SIZE) is not None
