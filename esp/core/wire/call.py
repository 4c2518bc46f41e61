"""Calls made from coroutines: one answer as a value, or a stream of messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence, Sized
from functools import partial
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.message import MessageReader
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import OVERLOADED
from esp.core.wire.status import Code, RpcError, Status

MAX_ANSWER_BYTES = 2**31 - 1

Message = TypeVar("Message", bound=Sized)
Message_co = TypeVar("Message_co", bound=Sized, covariant=True)


class Reader(Protocol[Message_co]):
    """Makes messages of DATA, as `MessageReader` does. `len()` of a message is the memory that the message takes."""

    @property
    def held(self) -> int:
        """Bytes of memory that the part of the next message takes."""

    @property
    def wanted(self) -> int:
        """The bytes that the next message still lacks; 0 between messages."""

    def feed(self, payload: bytes) -> Sequence[Message_co]:
        """The messages that `payload` completes; raises RpcError."""


class Keeper(Protocol):
    """The holder of the memory that a call takes, such as a `ServerCall`."""

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes; False when there is no room."""

    def release(self, size: int) -> None:
        """Returns what `hold` gave."""


class BrokenCall(Exception):
    """The call's stream broke before its answer was whole.

    Attributes:
        unprocessed: the server has surely not acted on the call (`ClientStream.surely_unprocessed`).
        code: the HTTP/2 error code.
    """

    def __init__(self, code: int, reason: str, *, unprocessed: bool) -> None:
        super().__init__(reason or f"RST_STREAM {code}")
        self.code = code
        self.unprocessed = unprocessed


def _garbled(fault: str) -> RpcError:
    return Status(Code.INTERNAL, f"the answer {fault}").error()


def messages() -> MessageReader:
    """Reads messages of any size as bytes."""
    return MessageReader(MAX_ANSWER_BYTES)


class _Nothing:
    """Reads nothing."""

    held = 0
    wanted = 0

    def feed(self, payload: bytes) -> Sequence[Any]:
        return ()


_NOTHING: Final = _Nothing()


class MessageCall(ClientStream, Generic[Message]):
    """A call whose answer messages are read one after the other with `read`.

    The server's window grows as messages are read, so a reader that waits makes the server wait. If there is a keeper,
    it holds the memory of what has come: a message until the next one is read. The result of `read_only` stays held
    until the caller releases it.

    `path` is the call's, if the observer is to learn of its end.

    `garbled` makes the error for an answer that no server should give, from a clause that says why.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_garbled",
        "_held",
        "_keeper",
        "_messages",
        "_path",
        "_read",
        "_reader",
        "_sent",
        "_unread",
        "_waiter",
    )

    def __init__(
        self,
        connection: ClientConnection,
        reader: Reader[Message],
        keeper: Keeper | None = None,
        garbled: Callable[[str], RpcError] = _garbled,
        path: bytes = b"",
    ) -> None:
        super().__init__(connection)
        self._path = path
        self._sent = monotonic() if path else 0.0
        self._garbled = garbled
        self._reader = reader
        self._keeper = keeper
        self._messages: deque[Message] = deque()
        self._read = 0
        self._held = 0
        self._unread = 0
        self._ended = False
        # A function that makes the error: a kept error that was raised refers to its reader's frame, and so to itself.
        self._error: Callable[[], Exception] | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> Message | None:
        """The next message; None when the call has ended well.

        Raises:
            RpcError: the call ended with another status.
            BrokenCall: the call broke before its end.
        """
        self._read = 0
        self._account()
        message = await self._next()
        self._read = 0 if message is None else len(message)
        return message

    async def _next(self) -> Message | None:
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

    async def read_only(self) -> Message:
        """The one message of a unary answer.

        Raises:
            RpcError: another status, or not exactly one message.
            BrokenCall: the call broke.
        """
        message = await self._next()
        self._read = 0 if message is None else len(message)
        if message is None or await self._next() is not None:
            raise self._garbled("is not exactly one message")
        self._held = 0
        return message

    def _account(self) -> bool:
        """Accounts for exactly the bytes that there are now; False if there is no room."""
        keeper = self._keeper
        if keeper is None:
            return True
        held = self._reader.held + self._read + sum(map(len, self._messages))
        if held < self._held:
            keeper.release(self._held - held)
        elif held > self._held and not keeper.hold(held - self._held):
            return False
        self._held = held
        return True

    def cancel(self) -> None:
        """Ends the call from here, and drops its messages: errors refer to frames, and so keep calls for a while."""
        self._messages.clear()
        self._reader = _NOTHING
        held, self._held = self._held, 0
        if held and self._keeper is not None:
            self._keeper.release(held)
        self._tell(Code.CANCELLED)
        super().cancel()

    def _tell(self, code: int) -> None:
        path, self._path = self._path, b""
        if path:
            self.tell_asked(path, code, self._sent)

    def _give_back(self) -> None:
        size, self._unread = self._unread, 0
        if size:
            self.consumed(size)
            self.connection.context.flush_soon()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The answer's head or trailers."""
        if end:
            status = head.outcome()
            self._tell(status.code)
            self._ended = True
            if head.lacks_status:
                self._error = partial(self._garbled, "ends without a grpc-status")
            elif status.code:
                self._error = status.error
            elif self._reader.wanted:
                self._error = partial(self._garbled, "ends within a message")
        elif head.http_status != 200 or not head.is_grpc:
            self._error = partial(self._garbled, "is no gRPC") if head.lacks_status else head.outcome().error
            self.cancel()
        else:
            for name, value in head.fields:
                if name == b"grpc-encoding" and isinstance(self._reader, MessageReader):
                    self._reader.encoding = value
            return
        self._wake()

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        self._unread += len(payload)
        try:
            self._messages += self._read_from(payload)
            if not self._messages:
                self.consumed(self._unread)  # a message larger than the window: the rest must come
                self._unread = 0
            if not self._account():
                raise OVERLOADED.error()
        except RpcError as error:
            self._error = error.status.error
            self.cancel()
        if end and self._error is None:
            self._error = partial(self._garbled, "ends without trailers")
        self._wake()

    def _read_from(self, payload: bytes) -> Sequence[Message]:
        try:
            return self._reader.feed(payload)
        except RpcError as error:
            if isinstance(self._reader, MessageReader):
                raise self._garbled(f"cannot be read: {error.status.message}") from None
            raise  # its text blames the server already

    def on_reset(self, code: int, reason: str) -> None:
        """The stream is gone."""
        self._tell(Code.UNAVAILABLE)
        self._error = partial(BrokenCall, code, reason, unprocessed=self.surely_unprocessed(code))
        self._wake()

    def on_buffers_full(self) -> None:
        """Ends the call: there is no memory for the request, which has to wait for the server."""
        self._error = OVERLOADED.error
        self.cancel()
        self._wake()


class Together(Generic[Message]):
    """Unary calls that are sent in one turn and awaited together: one future for all of them.

    Attributes:
        calls: the calls, in the order in which they were added.
    """

    __slots__ = ("_waiter", "_waits_for_all", "calls")

    def __init__(self) -> None:
        self.calls: list[TogetherCall[Message]] = []
        self._waits_for_all = False
        self._waiter: asyncio.Future[None] | None = None

    def add(
        self,
        connection: ClientConnection,
        reader: Reader[Message],
        keeper: Keeper | None,
        ended: Callable[[], object] | None = None,
        garbled: Callable[[str], RpcError] = _garbled,
        path: bytes = b"",
        kind: type[TogetherCall[Message]] | None = None,
    ) -> TogetherCall[Message]:
        """A new call of `kind`, for the caller to send; `ended` is called when the call ends by itself."""
        call = (kind or TogetherCall)(connection, reader, keeper, self, ended, garbled, path)
        self.calls.append(call)
        return call

    async def answers(self) -> list[Message]:
        """The message of each call's answer; the messages stay held.

        Raises:
            RpcError: a call has ended with another status, or without exactly one message. The other answers are then
                not waited for.
            BrokenCall: a call broke.
        """
        await self._over()
        failed = self.failed
        if failed is not None:
            raise failed.error()
        return [call.take() for call in self.calls]

    async def all_over(self) -> None:
        """Waits until each call has its answer or has failed (`TogetherCall.has_failed`)."""
        self._waits_for_all = True
        await self._over()

    async def _over(self) -> None:
        if not self._is_over():
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None  # a cancelled one refers to this frame, and so to itself

    @property
    def failed(self) -> TogetherCall[Message] | None:
        """The first of the calls that has no answer any more."""
        return next((call for call in self.calls if call.has_failed), None)

    def _is_over(self) -> bool:
        if self._waits_for_all:
            return all(call.has_ended or call.has_failed for call in self.calls)
        return all(call.has_ended for call in self.calls) or self.failed is not None

    def on_end(self) -> None:
        """A call has ended."""
        if self._waiter is not None and not self._waiter.done() and self._is_over():
            self._waiter.set_result(None)

    def cancel(self) -> None:
        """Ends the calls that have not ended, and drops the answers that were not taken."""
        for call in self.calls:
            call.cancel()


class TogetherCall(MessageCall[Message]):
    """One of several calls, read by `Together.answers`."""

    __slots__ = ("_together", "_told")

    def __init__(
        self,
        connection: ClientConnection,
        reader: Reader[Message],
        keeper: Keeper | None,
        together: Together[Message],
        told: Callable[[], object] | None,
        garbled: Callable[[str], RpcError],
        path: bytes,
    ) -> None:
        super().__init__(connection, reader, keeper, garbled, path)
        self._together: Together[Message] | None = together  # until the end, or they would refer to each other
        self._told = told

    @property
    def has_failed(self) -> bool:
        """Whether there is an `error`."""
        return self._error is not None or (self._ended and len(self._messages) != 1)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self._ended

    def error(self) -> Exception:
        """Why there is no answer."""
        return self._error() if self._error is not None else self._garbled("is not exactly one message")

    def take(self) -> Message:
        """The answer, where there is one."""
        self._held = 0
        return self._messages.popleft()

    def _wake(self) -> None:
        if self._ended or self._error is not None:
            told, self._told = self._told, None
            if told is not None:
                told()
            together, self._together = self._together, None
            if together is not None:
                together.on_end()

    def cancel(self) -> None:
        """Ends the call from here, and drops its messages."""
        if self._error is None:  # else the answer ended it, and those who wait are still to be woken
            self._together = None
        super().cancel()
