"""The stream of one Watch call to a shard: bytes in, messages out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from esp.core.shard import Shard
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.connection import Connection
from esp.core.wire.gathered import Gathered
from esp.core.wire.message import MessageReader
from esp.core.wire.native import mypyc_attr
from esp.core.wire.response import ResponseHead
from esp.core.wire.splice import NO_TRAILERS
from esp.core.wire.status import Code, RpcError, Status

log = logging.getLogger("esp.watch")

PATH: Final = b"/etcdserverpb.Watch/Watch"
MAX_RESPONSE_BYTES: Final = 2**31 - 1
LONGEST_HEAD: Final = 160
"""The watch id of a message, behind the header, is within so many bytes."""


class Caller(Protocol):
    """The upstream that makes a call: gets the messages of the call, and says whether more may come."""

    @property
    def shard(self) -> Shard:
        """The shard that is called."""

    @property
    def crowd(self) -> Connection | None:
        """The client's connection in whose turns the call is read; None for a call that is read as its bytes come."""

    def take_steps(self) -> Iterator[Iterator[None]]:
        """The steps that messages have caused and that are not done yet; for a call that is read in turns."""

    @property
    def may_hold_back(self) -> bool:
        """Whether `is_held_back` may ever be true."""

    @property
    def is_held_back(self) -> bool:
        """Whether the call has to stop reading until `WatchCall.read_on`."""

    def is_current(self, call: WatchCall) -> bool:
        """Whether `call` is the open call; messages of an earlier call are ignored."""

    def on_message(self, body: bytes) -> None:
        """Takes a WatchResponse.

        Raises:
            DecodeError: `body` is no WatchResponse.
        """

    def keep_or_cut(self, size: int) -> bool:
        """Accounts for `size` bytes more; without memory for them the caller leaves the call, and this is False."""

    def give(self, size: int) -> None:
        """Returns bytes that were accounted for."""

    def on_end(self, call: WatchCall, status: Status) -> None:
        """The call has ended or broken."""

    def on_retired(self, call: WatchCall) -> None:
        """The connection that the call is on takes no more calls."""

    def look_at_guard(self, call: Any) -> None:
        """Looks at the guard of a shard that holds one, and then calls `CheckedWatchCall.looked`."""


@mypyc_attr(allow_interpreted_subclasses=True)
class WatchCall(ClientStream):
    """The stream of one Watch call to a shard."""

    __slots__ = (
        "_caller",
        "_counts",
        "_ends",
        "_is_free",
        "_is_reading",
        "_kept",
        "_messages",
        "_owed",
        "_requests",
        "_unread",
        "_unread_bytes",
    )

    def __init__(self, connection: ClientConnection, caller: Caller) -> None:
        super().__init__(connection)
        self._caller = caller
        self._messages = MessageReader(MAX_RESPONSE_BYTES)
        self._kept = 0
        self._owed = 0
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._is_reading = False
        self._ends = False
        self._is_free = caller.crowd is None and not caller.may_hold_back
        self._requests = Gathered()
        self._counts = self.count_messages(PATH)

    def request(self, message: bytes) -> None:
        """Sends a request, together with the others of this turn."""
        self._counts.sent += 1
        self._requests.send(self, message)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The head or the trailers."""
        if end or not head.opens:
            unsaid = head.lacks_status
            self._end(self._caller.shard.blamed("ends without a grpc-status").status if unsaid else head.outcome())

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the shard's messages."""
        if self._is_free and not (end or self._unread or self._kept or self._is_reading):
            # One whole message, as nearly every piece is.
            message = self._messages.sole(payload)
            if message is not None:
                self._take_sole(message, len(payload))
                return
        self._unread.append(payload)
        self._unread_bytes += len(payload)
        self._ends = end
        self.read_on()

    def _take_sole(self, message: bytes, size: int) -> None:
        """Takes the message of a piece of `size` bytes, in a call that nobody holds back."""
        caller = self._caller
        self._counts.received += 1
        self._is_reading = True
        try:
            caller.on_message(message)
        except (RpcError, DecodeError):
            self._end(caller.shard.blamed("is no WatchResponse").status)
            return
        finally:
            self._is_reading = False
        if self._unread:
            self.read_on()
        elif caller.is_current(self):
            self.consumed(size)

    def read_on(self) -> None:
        """Reads the bytes that have come, and lets the shard send on, as far as there is room."""
        caller = self._caller
        if caller.crowd is not None and not self._account_for(self._messages.held + self._unread_bytes):
            return
        if self._is_reading:
            return  # the reader at work gets to these bytes
        if caller.crowd is not None:
            self._is_reading = True
            caller.crowd.do_later(self._in_turns())
            return
        self._is_reading = True
        try:
            while self._unread and not caller.is_held_back:
                for message in self._next_messages():
                    if not caller.is_current(self):
                        return
                    caller.on_message(message)
            self._have_read()
        except (RpcError, DecodeError):
            self._end(caller.shard.blamed("is no WatchResponse").status)
        finally:
            self._is_reading = False

    def _in_turns(self) -> Iterator[None]:
        """Reads in steps. Before each message, does all steps that earlier messages have caused, in other calls too."""
        caller = self._caller
        try:
            while self._unread:
                for message in self._next_messages():
                    if not caller.is_current(self):
                        return
                    caller.on_message(message)
                    yield
                    for steps in caller.take_steps():
                        yield from steps
            self._have_read()
        except (RpcError, DecodeError):
            self._end(caller.shard.blamed("is no WatchResponse").status)
        finally:
            self._is_reading = False

    def _next_messages(self) -> list[bytes]:
        payload = self._unread.popleft()
        self._unread_bytes -= len(payload)
        self._owed += len(payload)
        messages = self._messages.feed(payload)
        self._counts.received += len(messages)
        if messages and self._kept:
            self._account_for(self._messages.held + self._unread_bytes)  # the taker counts what it keeps
        return messages

    def _have_read(self) -> None:
        """Lets the shard send on, as far as there is room; or handles the end of the call."""
        caller = self._caller
        if self._ends and not self._unread:
            self._end(NO_TRAILERS)
        if not caller.is_current(self) or not self._account_for(self._messages.held + self._unread_bytes):
            return
        if self._owed and not caller.is_held_back:
            owed, self._owed = self._owed, 0
            self.consumed(owed)

    @property
    def half_message(self) -> tuple[int, bytes]:
        """The bytes that have come of an incomplete message: their number, and the first of them."""
        return self._messages.held, self._messages.begun(LONGEST_HEAD)

    def _account_for(self, size: int) -> bool:
        """Accounts for `size` bytes that are unread, or of an incomplete message; False if the call has ended."""
        if size < self._kept:
            self._caller.give(self._kept - size)
            self._kept = size
        elif size > self._kept and self._caller.keep_or_cut(size - self._kept):
            self._kept = size
        return self._caller.is_current(self)

    def leave(self) -> None:
        """Ends the call from here."""
        self._release()
        self.cancel()

    def _release(self) -> None:
        self._caller.give(self._kept)
        self._kept = 0

    def _end(self, status: Status) -> None:
        self.leave()
        self._caller.on_end(self, status)

    def on_reset(self, code: int, reason: str) -> None:
        """The call broke."""
        self._release()
        self._caller.on_end(self, Status(Code.UNAVAILABLE, reason or f"RST_STREAM {code}"))

    def on_retired(self) -> None:
        """The connection takes no more calls."""
        self._caller.on_retired(self)

    def on_buffers_full(self) -> None:
        """Ends the call: there is no memory for a request that has to wait."""
        self._end(Status(Code.UNAVAILABLE, "no memory for a request"))
