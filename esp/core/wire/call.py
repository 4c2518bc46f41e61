"""Calls made from coroutines: one answer as a value, or a stream of messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.message import MessageReader
from esp.core.wire.response import ResponseHead
from esp.core.wire.splice import NO_TRAILERS, OVERLOADED
from esp.core.wire.status import Code, RpcError, Status

MAX_ANSWER_BYTES = 2**31 - 1


class BrokenCall(Exception):
    """The call's stream broke before its answer was whole.

    Attributes:
        unprocessed: the server has surely not acted on it, as `ClientStream.surely_unprocessed` has it.
        code: the HTTP/2 error code.
    """

    def __init__(self, code: int, reason: str, *, unprocessed: bool) -> None:
        super().__init__(reason or f"RST_STREAM {code}")
        self.code = code
        self.unprocessed = unprocessed


class MessageCall(ClientStream):
    """A call whose answer messages are read one after the other with `read`.

    Bytes are given back to the server as messages are read, so a reader that waits makes the server wait.
    """

    __slots__ = ("_ended", "_error", "_messages", "_reader", "_unread", "_waiter")

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__(connection)
        self._reader = MessageReader(MAX_ANSWER_BYTES)
        self._messages: deque[bytes] = deque()
        self._unread = 0
        self._ended = False
        # What makes the error: one that was raised and is kept would hold on to its reader's frame, and so to itself.
        self._error: Callable[[], Exception] | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes | None:
        """The next message; None when the call has ended well.

        Raises:
            RpcError: it ended with another status.
            BrokenCall: it did not end but broke.
        """
        while not self._messages:
            if self._error is not None:
                raise self._error()
            if self._ended:
                return None
            self._give_back()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._messages.popleft()

    async def read_only(self) -> bytes:
        """The one message of a unary answer.

        Raises:
            RpcError: another status, or not exactly one message.
            BrokenCall: the call broke.
        """
        message = await self.read()
        if message is None or await self.read() is not None:
            raise Status(Code.INTERNAL, "a unary answer without exactly one message").error()
        return message

    def _give_back(self) -> None:
        size, self._unread = self._unread, 0
        if size:
            self.consumed(size)
            self.connection.context.flush()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The answer's head or trailers."""
        if end:
            status = head.outcome()
            self._ended = True
            if status.code:
                self._error = status.error
            elif self._reader.wanted:
                self._error = Status(Code.INTERNAL, "the answer ended within a message").error
        elif head.http_status != 200 or not head.is_grpc:
            self._error = head.outcome().error
            self.cancel()
        else:
            for name, value in head.fields:
                if name == b"grpc-encoding":
                    self._reader = MessageReader(MAX_ANSWER_BYTES, value)
            return
        self._wake()

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        self._unread += len(payload)
        try:
            self._messages += self._reader.feed(payload)
            if not self._messages:
                self.consumed(self._unread)  # a message larger than the window: the rest must come
                self._unread = 0
        except RpcError as error:
            self._error = error.status.error
            self.cancel()
        if end and self._error is None:
            self._error = NO_TRAILERS.error
        self._wake()

    def on_reset(self, code: int, reason: str) -> None:
        """The stream is gone."""
        self._error = partial(BrokenCall, code, reason, unprocessed=self.surely_unprocessed(code))
        self._wake()

    def on_buffers_full(self) -> None:
        """There is no memory for the request, which has to wait for the server."""
        self._error = OVERLOADED.error
        self.cancel()
        self._wake()
