"""Closed loops of unary calls: each slot of a connection has one call open at any time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from esp.core.load.loop import ClosedLoop
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ResponseHead


class _Call(ClientStream):
    """One call. It ends with its whole answer, or with a status."""

    __slots__ = ("_began", "_data", "_ended", "_slot")

    def __init__(self, connection: ClientConnection, slot: int, ended: UnaryLoop, began: float) -> None:
        super().__init__(connection)
        self._slot = slot
        self._ended = ended
        self._began = began
        self._data = b""

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer that ended well, as nearly all are."""
        self._ended.done(self._slot, self._began, payload)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The head, or the end."""
        if not end:
            if head.http_status != 200 or not head.is_grpc:
                self.cancel()
                self._ended.failed(self._slot, head.outcome().message)
            return
        status = head.outcome()
        if status.code:
            self._ended.failed(self._slot, status.message)
        else:
            self._ended.done(self._slot, self._began, self._data)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        self.consumed(len(payload))
        self._data += payload

    def on_reset(self, code: int, reason: str) -> None:
        """The stream is gone."""
        lost = self.connection.ended or not self.connection.room
        self._ended.failed(self._slot, reason or f"the stream was reset ({code})", goes_on=not lost)


class UnaryLoop(ClosedLoop):
    """Calls of one method on one connection. The requests come in turns; each slot begins elsewhere among them."""

    __slots__ = ("_check", "_connection", "_forward", "_next", "_requests", "_slots")

    def __init__(
        self,
        connection: ClientConnection,
        slots: int,
        forward: Forward,
        requests: Sequence[bytes],
        check: Callable[[bytes], str],
        first: int,
    ) -> None:
        """A loop that is not begun yet.

        Args:
            connection: the connection.
            slots: calls that are open at any time.
            forward: the method, and the metadata.
            requests: messages with their gRPC prefix.
            check: looks at an answer with its prefix; "" if it is right, else what is wrong with it.
            first: the request with which the loop begins.
        """
        super().__init__()
        self._connection = connection
        self._slots = slots
        self._forward = forward
        self._requests = requests
        self._check = check
        self._next = first

    def begin(self) -> None:
        """Sends the first call of each slot."""
        for slot in range(self._slots):
            self.next(slot)
        self.flush()

    def flush(self) -> None:
        """Sends what is queued."""
        self._connection.context.flush_soon()

    def next(self, slot: int) -> None:
        """Sends the next call of a slot."""
        connection = self._connection
        if not connection.has_room:
            self.open += 1
            self.failed(slot, connection.why_over or "the server takes no more calls", goes_on=not connection.ended)
            return
        place = self._next
        self._next = place + 1 if place + 1 < len(self._requests) else 0
        self.open += 1
        call = _Call(connection, slot, self, perf_counter())
        connection.call_whole(call, self._forward, b"", self._requests[place])

    def done(self, slot: int, began: float, answer: bytes) -> None:
        """A call has ended well."""
        wrong = self._check(answer)
        if wrong:
            self.failed(slot, wrong)
        else:
            self.answered(slot, began)
