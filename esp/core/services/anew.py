"""Calls that are held until another map is in force, and begin once more by that map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from esp.core.services import metadata
from esp.core.wire.hpack import decode
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler, ServerCall, Sink

MOST_HEADS: Final = 1024
"""The most heads that are kept with what became of them."""

Find = Callable[[RequestHead], Handler]
"""Names the handler of a request, by the map in force."""


class Anew:
    """Begins calls whose heads were read by an earlier map."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._heads: dict[RequestHead, RequestHead] = {}  # by their heads of before

    def forget(self) -> None:
        """Another map is in force."""
        self._heads.clear()

    def begin_in_turn(self, held: Held) -> None:
        """Holds a call no longer, and begins it in its client's turn."""
        held.release()
        held.stream.connection.do_later(self._steps(held.stream, held.message))

    def _steps(self, stream: ServerCall, message: bytes) -> Iterator[None]:
        if not stream.is_over:
            self.begin(stream, message)
        return
        yield

    def begin(self, stream: ServerCall, message: bytes) -> None:
        """Begins a call by the map in force now."""
        before = stream.head
        head = self._heads.get(before)
        if head is None:
            if len(self._heads) >= MOST_HEADS:
                self._heads.clear()
            head = self._heads[before] = self._read(before)
        stream.head = head
        handler = head.handler.within if stream.is_within else head.handler
        if handler.streaming:
            handler.on_open(stream)
            if stream.sink is not None:
                stream.sink.request_data(message, True)
        else:
            handler.on_message(stream, message)

    def _read(self, before: RequestHead) -> RequestHead:
        """The head of a request as it would be if it came now."""
        own = [field for field in before.fields if field[0] in (metadata.READ, metadata.SHARD)]
        fields = [(b"content-type", b"application/grpc"), *decode(before.forward[1]), *own]
        head = RequestHead(before.method, before.path, fields, before.content_length)
        head.handler = self._find(head)
        head.unary = not head.handler.streaming
        head.weigh()
        return head


class Held(Sink):
    """A call that is held, of which the message counts as memory: whoever holds it has asked `ServerCall.hold`.

    Args:
        every: all that are held, which this call joins, and leaves with `release` or with its client.
    """

    __slots__ = ("_all", "message", "stream")

    def __init__(self, every: dict[Any, None], stream: ServerCall, message: bytes) -> None:
        self._all = every
        self.stream = stream
        self.message = message
        stream.sink = self
        every[self] = None

    def release(self) -> None:
        """Holds the call no longer."""
        self._all.pop(self, None)
        self.stream.sink = None
        self.stream.release(len(self.message))

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone, or the call's deadline is over."""
        self.release()
