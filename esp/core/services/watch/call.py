"""The stream of one Watch call to a shard: bytes in, messages out."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.message import MessageReader
from esp.core.wire.response import ResponseHead
from esp.core.wire.splice import NO_TRAILERS
from esp.core.wire.status import Code, RpcError, Status

if TYPE_CHECKING:
    from esp.core.services.watch.upstream import Upstream

log = logging.getLogger("esp.watch")

MAX_RESPONSE_BYTES: Final = 2**31 - 1


class WatchCall(ClientStream):
    """The stream of an upstream's call."""

    __slots__ = ("_ends", "_is_reading", "_kept", "_messages", "_owed", "_unread", "_unread_bytes", "_upstream")

    def __init__(self, connection: ClientConnection, upstream: Upstream) -> None:
        super().__init__(connection)
        self._upstream = upstream
        self._messages = MessageReader(MAX_RESPONSE_BYTES)
        self._kept = 0
        self._owed = 0
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._is_reading = False
        self._ends = False

    def request(self, message: bytes) -> None:
        """Sends a request."""
        self.send_data(message, False)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The head or the trailers."""
        if end or not head.opens:
            self._end(head.outcome())

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of what the shard says."""
        self._unread.append(payload)
        self._unread_bytes += len(payload)
        self._ends = end
        self.read_on()

    def read_on(self) -> None:
        """Reads what has come, and lets the shard send on, as far as there is room for it."""
        if self._is_reading:
            return  # the loop below gets to it
        upstream = self._upstream
        self._is_reading = True
        try:
            while self._unread and not upstream.is_held_back:
                payload = self._unread.popleft()
                self._unread_bytes -= len(payload)
                self._owed += len(payload)
                for message in self._messages.feed(payload):
                    if not upstream.is_current(self):
                        return
                    upstream.on_message(message)
            if self._ends and not self._unread:
                self._end(NO_TRAILERS)
            if not upstream.is_current(self) or not self._keeps(self._messages.held + self._unread_bytes):
                return
            if self._owed and not upstream.is_held_back:
                owed, self._owed = self._owed, 0
                self.consumed(owed)
        except (RpcError, DecodeError) as error:
            log.error("shard %s: what it says in a watch cannot be read: %s", upstream.shard.name, error)
            self._end(Status(Code.INTERNAL, str(error)))
        finally:
            self._is_reading = False

    def _keeps(self, size: int) -> bool:
        """Accounts for so many bytes of a message that is not whole yet; False when the call has ended for that."""
        if size < self._kept:
            self._upstream.give(self._kept - size)
            self._kept = size
        elif size > self._kept and self._upstream.keep(size - self._kept):
            self._kept = size
        return self._upstream.is_current(self)

    def leave(self) -> None:
        """Ends the call from here."""
        self._release()
        self.cancel()

    def _release(self) -> None:
        self._upstream.give(self._kept)
        self._kept = 0

    def _end(self, status: Status) -> None:
        self.leave()
        self._upstream.on_end(self, status)

    def on_reset(self, code: int, reason: str) -> None:
        """The call broke."""
        self._release()
        self._upstream.on_end(self, Status(Code.UNAVAILABLE, reason or f"RST_STREAM {code}"))

    def on_retired(self) -> None:
        """The connection takes no more calls."""
        self._upstream.on_retired(self)

    def on_buffers_full(self) -> None:
        """There is no memory for a request that has to wait."""
        self._end(Status(Code.UNAVAILABLE, "no memory for a request"))
