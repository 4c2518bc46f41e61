"""Joins reads that come at the same time into one transaction.

For a Range of one key, most of etcd's cost is the call around the read. So esp joins the reads of one key that came in
the same turn of the loop, for the same shard and with the same metadata, into one transaction (`read_txn`). Each client
gets its own answer, cut out of the transaction's answer. A read that came alone goes unchanged.

No read waits for others: a transaction leaves when its reads would have left. And no read fails because of another:
after any unexpected answer, most reads are sent again, each by itself (`_send_alone`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from esp.core import errors
from esp.core.services.gate import Gate
from esp.core.services.handlers import PassCounted
from esp.core.services.kv import read_txn
from esp.core.services.kv.peek import bare_key, range_key
from esp.core.services.maintenance import version_key
from esp.core.shard import Shard
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import STREAM_WINDOW, ClientStream
from esp.core.wire.ended import Passed
from esp.core.wire.frames import unpack_u32
from esp.core.wire.message import PREFIX_SIZE, format_timeout
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import ServerCall, Sink
from esp.core.wire.status import DEADLINE_EXCEEDED, Code, Status

log = logging.getLogger("esp.service")

TXN_PATH: Final = b"/etcdserverpb.KV/Txn"
FIRST_VERSION: Final = (3, 5, 7)
"""The first etcd that gets such transactions. Before, a transaction that only reads could crash etcd if its caller left
(etcd issues 14110 and 14891), and raised an alarm in an etcd without space (etcd pull request 14884)."""
ANSWER_BYTES: Final = 65536
"""Bytes that the answers in a transaction should have together, judged by the last transactions."""
MOST_ANSWER_BYTES: Final = STREAM_WINDOW // 2
"""The most bytes of a transaction's answer. The window is given back only afterwards, so padding must fit as well."""
READS_ALONE: Final = 100
"""After an unfit transaction so many reads go one by one; then esp joins reads again."""

Read = tuple[ServerCall, bytes]
"""A client's call, and its request with prefix."""


class ReadBatches:
    """The reads that wait for one shard.

    While there are any, the batches stand in `context.gatherers`, and leave with all other output.

    Attributes:
        shard: the shard that is read from.
    """

    def __init__(self, shard: Shard, gate: Gate) -> None:
        self.shard = shard
        self.gate = gate
        self._context = shard.context
        observer = shard.context.observer
        self.passed = None if observer is None else observer.joined_to(shard.name)
        self._limit = self._most = shard.context.limits.max_batched_reads
        self._alone = 0  # the number of reads that still go alone
        self._refused = b""  # the metadata of the last refusal
        self._refused_alone = 0  # the number of reads with this metadata that still go alone
        self._gathered: list[Read] = []
        self._leaving: list[Read] = []
        self._version = ""
        self._is_fit = False

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

    def flush(self) -> None:
        """Sends the reads that have gathered."""
        self._leaving = gathered = self._gathered
        self._gathered = []
        if len(gathered) == 1:
            stream, message = gathered[0]
            if stream.local_open:  # the client has not taken it back
                self.shard.splice(stream, message)
        elif not self._does_transactions():
            if self._version:  # if not, the member will tell its version in a moment
                self._alone = READS_ALONE
            self._send_alone(gathered)
        else:
            groups: dict[bytes, list[Read]] = {}
            for read in gathered:
                if not read[0].is_over:
                    groups.setdefault(read[0].head.forward[1], []).append(read)
            most = self._most
            for metadata, group in groups.items():
                if len(group) > self._context.limits.max_batched_reads:
                    self._context.reached("max_batched_reads")
                if self._refused_alone > 0 and metadata == self._refused:
                    self._refused_alone -= len(group)
                    self._send_alone(group)
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
                _end(stream)

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
            self._limit = self._most = self._context.limits.max_batched_reads
            self._is_fit = version_key(version) >= FIRST_VERSION
        return self._is_fit and self._limit > 1

    def _send(self, metadata: bytes, reads: Sequence[Read]) -> None:
        connection = self.shard.free_connection()
        if len(reads) == 1 or connection is None:
            self._send_alone(reads)
            return
        self.shard.joined_transactions += 1
        self.shard.joined_reads += len(reads)
        body = read_txn.join([message for _, message in reads])
        call = BatchedCall(connection, self, metadata, reads)
        connection.call(call, (TXN_PATH, metadata), _longest_timeout(reads), body, end=True)

    def _send_alone(self, reads: Sequence[Read]) -> None:
        for stream, message in reads:
            if not stream.is_over:
                self.shard.splice(stream, message)


def _longest_timeout(reads: Sequence[Read]) -> bytes:
    """The `grpc-timeout` of the latest deadline. The server's end of the wire ends calls with an earlier deadline."""
    last = 0.0
    for stream, _ in reads:
        if not stream.deadline:
            return b""
        last = max(last, stream.deadline)
    return format_timeout(max(0.0, last - monotonic()))


class _BatchedRead(Sink):
    """One client's read in a transaction."""

    __slots__ = ("_call", "message", "stream")

    def __init__(self, call: BatchedCall, stream: ServerCall, message: bytes) -> None:
        self._call = call
        self.stream: ServerCall | None = stream
        self.message = message
        stream.sink = self

    def release(self) -> ServerCall | None:
        """The client's call if it still waits; the caller ends it."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.sink = None
        return stream

    def sent_to(self) -> tuple[Passed | None, float, bytes]:
        """The shard, and the read."""
        return self._call.connection.passed, 0.0, self.message

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone."""
        self.release()
        self._call.on_read_gone()


class BatchedCall(ClientStream):
    """A transaction of several clients' reads."""

    __slots__ = ("_batches", "_expected", "_head", "_metadata", "_payloads", "_reads", "_sent", "_size", "_waiting")

    def __init__(
        self, connection: ClientConnection, batches: ReadBatches, metadata: bytes, reads: Sequence[Read]
    ) -> None:
        super().__init__(connection)
        self._batches = batches
        self._metadata = metadata
        self._reads = [_BatchedRead(self, stream, message) for stream, message in reads]
        self._waiting = len(reads)
        self._sent = monotonic()
        self._head: ResponseHead | None = None
        self._payloads: list[bytes] = []
        self._size = 0
        self._expected = 0

    # From the shard.

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """The whole answer."""
        self.tell_asked(TXN_PATH, Code.OK, self._sent)
        answers = read_txn.split(payload, len(self._reads))
        if answers is None:
            self._batches.pause("etcd's answer has an unusual form")
            self._send_alone()
            return
        self._batches.learn(len(payload), len(answers))
        joined, heard = self._batches.passed, self.connection.heard
        for read, answer in zip(self._reads, answers, strict=True):
            stream = read.release()
            if stream is not None:
                try:
                    if stream.send_answer(head, answer, trailers):
                        took = heard - stream.opened
                        if joined is not None and took < joined.slow and not stream.trace:
                            joined.took[stream.head.path](took)
                        else:
                            stream.tell(Code.OK, joined, stream.opened, read.message)
                    else:
                        _send_in_pieces(stream, head.forward, answer, trailers.forward)
                except Exception:
                    log.exception("%s: a bug in esp; a read fails", stream.peer)
                    _end(stream)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The answer's head or its trailers."""
        if end:
            status = head.outcome()
            payload = b"".join(self._payloads)
            self._forget_payloads()
            if status.code or self._head is None:
                self._fail(status)
            else:
                self.on_answer(self._head, payload, head)
        elif head.opens:
            self._head = head
        else:
            self.cancel()
            self._fail(head.outcome())

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer. If the answer is too large, or a second message comes, gives the transaction up."""
        size = len(payload)
        if not self._payloads and size >= PREFIX_SIZE:
            announced = unpack_u32(payload, 1)[0]
            if announced > MOST_ANSWER_BYTES:
                self._learn(announced)
            else:
                self._expected = PREFIX_SIZE + announced
        if end or self._size + size > self._expected or not self.connection.hold(size):
            self._give_up()
            return
        self._payloads.append(payload)
        self._size += size

    def on_reset(self, code: int, reason: str) -> None:
        """The stream is gone: reads once more, which does no harm."""
        self.tell_asked(TXN_PATH, Code.UNAVAILABLE, self._sent)
        self._forget_payloads()
        self._send_alone(was_sent=not self.surely_unprocessed(code))

    def on_buffers_full(self) -> None:
        """Gives the transaction up: there is no memory for the request, which has to wait for the shard."""
        self._give_up()

    def _fail(self, status: Status) -> None:
        self.tell_asked(TXN_PATH, status.code, self._sent)
        shard = self._batches.shard
        shard.consider_moving(self.connection, status)
        if status.code == Code.UNAVAILABLE:  # about the shard, so the same for each read
            self._for_each(lambda stream, _: stream.finish(status))
            return
        if status == errors.TOO_MANY_OPS:
            self._batches.too_many(len(self._reads))
        else:
            self._batches.refused(self._metadata)
        self._send_alone()

    def _learn(self, announced: int) -> None:
        """The answer will have so many bytes, which is too many."""
        size = announced // len(self._reads)
        self._batches.learn(announced, len(self._reads))
        for read in self._reads:
            if read.stream is not None:
                self._batches.gate.note_large(read.stream, size)

    def _give_up(self) -> None:
        self._forget_payloads()
        self.cancel()
        self._send_alone()

    def _forget_payloads(self) -> None:
        self.connection.release(self._size)
        self._size = 0
        self._payloads.clear()

    def _send_alone(self, *, was_sent: bool = False) -> None:
        """Sends each read by itself; with `was_sent` no read may be repeated after that (`shard/fate`)."""

        def send(stream: ServerCall, message: bytes) -> None:
            stream.retried = was_sent
            if stream.remaining() == 0:
                stream.finish(DEADLINE_EXCEEDED)
            elif stream.connection.weight:
                self._batches.gate.pass_on(stream, self._batches.shard, message, reads=True, at_once=True, one_key=True)
            else:
                self._batches.shard.send_again(stream, message)

        self._for_each(send)

    def _for_each(self, act: Callable[[ServerCall, bytes], None]) -> None:
        """Calls `act` for each read that still waits. A bug in that fails only this read."""
        for read in self._reads:
            stream = read.release()
            if stream is not None:
                try:
                    act(stream, read.message)
                except Exception:
                    log.exception("%s: a bug in esp; a read fails", stream.peer)
                    _end(stream)

    # From the clients.

    def on_read_gone(self) -> None:
        """A client is gone. Without any client, cancels the transaction."""
        self._waiting -= 1
        if not self._waiting:
            self._forget_payloads()
            self.cancel()


def _end(stream: ServerCall) -> None:
    """Ends a call that an exception came out of. Raises nothing, so the caller can end the other calls."""
    try:
        stream.expire(Status(Code.INTERNAL, "esp: internal error"))
    except Exception:
        log.exception("%s: a bug in esp; a call was not told of its end", stream.peer)


def _send_in_pieces(stream: ServerCall, head: bytes, answer: bytes, trailers: bytes) -> None:
    """Sends an answer for which the client's window has no room: the rest waits in the stream."""
    if stream.is_over:
        return
    stream.responded = True
    stream.send_headers(head, False)
    stream.send_data(answer, False)
    if not stream.is_over:  # there was memory for the bytes that have to wait
        stream.tell(Code.OK)
        stream.send_headers(trailers, True)


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
