"""A transaction of several reads, from the moment it leaves: the answer cut up, or each read sent by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from esp.core import errors
from esp.core.services.kv import read_txn
from esp.core.shard import Compared
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import STREAM_WINDOW, ClientStream
from esp.core.wire.ended import Passed
from esp.core.wire.frames import unpack_u32
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import ServerCall, Sink
from esp.core.wire.status import DEADLINE_EXCEEDED, Code, Status
from esp.core.wire.traces import shares

if TYPE_CHECKING:
    from esp.core.services.kv.read_batch import Batches

log = logging.getLogger("esp.service")

TXN_PATH: Final = b"/etcdserverpb.KV/Txn"
MOST_ANSWER_BYTES: Final = STREAM_WINDOW // 2
"""The most bytes of a transaction's answer. The window is given back only afterwards, so padding must fit as well."""


class BatchedCall(ClientStream):
    """A transaction of several reads."""

    __slots__ = ("_batches", "_count", "_expected", "_head", "_metadata", "_payloads", "_sent", "_size", "_waiting")

    def __init__(self, connection: ClientConnection, batches: Batches[Any], metadata: bytes, count: int) -> None:
        """`count` is the number of reads."""
        super().__init__(connection)
        self._batches = batches
        self._metadata = metadata
        self._count = self._waiting = count
        self._sent = monotonic()
        self._head: ResponseHead | None = None
        self._payloads: list[bytes] = []
        self._size = 0
        self._expected = 0

    # For the reads.

    def deliver(self, head: ResponseHead, answers: Sequence[bytes], trailers: ResponseHead) -> None:
        """Gives each read its answer."""
        raise NotImplementedError

    def again(self, *, was_sent: bool = False) -> None:
        """Sends each read by itself; with `was_sent` no read may be repeated after that (`shard/fate`)."""
        raise NotImplementedError

    def end_all(self, status: Status) -> None:
        """Ends all calls with a status that is about the shard."""
        raise NotImplementedError

    def outdated(self) -> None:
        """Gives each read to whoever sends it by another map: the shard has refused all, since this one is outdated."""
        raise NotImplementedError

    def note_large(self, size: int) -> None:
        """The answers are large, `size` bytes each."""
        raise NotImplementedError

    # From the shard.

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """The whole answer."""
        self.tell_asked(TXN_PATH, Code.OK, self._sent)
        answers = read_txn.split(payload, self._count)
        if answers is None:
            self._batches.pause("etcd's answer has an unusual form")
            self.again()
            return
        self._batches.learn(len(payload), len(answers))
        self.deliver(head, answers, trailers)

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
        self.again(was_sent=not self.surely_unprocessed(code))

    def on_buffers_full(self) -> None:
        """Gives the transaction up: there is no memory for the request, which has to wait for the shard."""
        self._give_up()

    def _fail(self, status: Status) -> None:
        self.tell_asked(TXN_PATH, status.code, self._sent)
        shard = self._batches.shard
        shard.consider_moving(self.connection, status)
        if status == errors.MAP_CHANGED:
            self.outdated()
            return
        if status.code == Code.UNAVAILABLE:  # about the shard, so the same for each read
            self.end_all(status)
            return
        if status == errors.TOO_MANY_OPS:
            self._batches.too_many(self._count)
        else:
            self._batches.refused(self._metadata)
        self.again()

    def _learn(self, announced: int) -> None:
        """The answer will have so many bytes, which is too many."""
        size = announced // self._count
        self._batches.learn(announced, self._count)
        self.note_large(size)

    def _give_up(self) -> None:
        self._forget_payloads()
        self.cancel()
        self.again()

    def _forget_payloads(self) -> None:
        self.connection.release(self._size)
        self._size = 0
        self._payloads.clear()

    # From the clients.

    def on_read_gone(self) -> None:
        """A client is gone. Without any client, cancels the transaction."""
        self._waiting -= 1
        if not self._waiting:
            self._forget_payloads()
            self.cancel()


class _BatchedRead(Sink):
    """One client's read in a transaction."""

    __slots__ = ("_call", "message", "stream")

    def __init__(self, call: BatchedReads, stream: ServerCall, message: bytes) -> None:
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


class BatchedReads(BatchedCall):
    """A transaction of several clients' reads of one key."""

    __slots__ = ("_reads",)

    def __init__(
        self,
        connection: ClientConnection,
        batches: Batches[bytes],
        metadata: bytes,
        reads: Sequence[tuple[ServerCall, bytes]],
    ) -> None:
        super().__init__(connection, batches, metadata, len(reads))
        self._reads = [_BatchedRead(self, stream, message) for stream, message in reads]
        for stream, _ in reads:
            if stream.trace:
                shares(stream.trace, batches.shard.name, stream.opened)

    def deliver(self, head: ResponseHead, answers: Sequence[bytes], trailers: ResponseHead) -> None:
        """Gives each client its answer."""
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
                    end_after_bug(stream)

    def again(self, *, was_sent: bool = False) -> None:
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
                    end_after_bug(stream)

    def end_all(self, status: Status) -> None:
        """Ends all calls."""
        self._for_each(lambda stream, _: stream.finish(status))

    def outdated(self) -> None:
        """Gives each read to whoever sends it by another map."""
        self._for_each(self._batches.shard.on_outdated)

    def note_large(self, size: int) -> None:
        """The clients' next reads wait for places."""
        for read in self._reads:
            if read.stream is not None:
                self._batches.gate.note_large(read.stream, size)


class ComparedReads(Compared, BatchedReads):
    """A transaction of reads at a shard that holds a guard: all of them are refused, or none."""

    __slots__ = ("beginning", "kind", "opening")

    only_reads = True


def end_after_bug(stream: ServerCall) -> None:
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
