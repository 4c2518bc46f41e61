"""One of a shard's connections, and the calls that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Protocol

from esp.core import errors
from esp.core.background import Background
from esp.core.wire.budget import Account, BufferBudget
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.ended import Passed
from esp.core.wire.frames import ErrorCode
from esp.core.wire.server_stream import ServerCall, Sink
from esp.core.wire.shares import address_of
from esp.core.wire.status import DEADLINE_EXCEEDED, Status


class Sender(Protocol):
    """The shard, as a waiting call sees it.

    Attributes:
        passed: the calls that are passed on to the shard; None if nobody wants to know how they end.
    """

    passed: Passed | None

    def send(self, connection: ClientConnection, down: ServerCall, message: bytes | None, timeout: bytes) -> None:
        """Sends a client's call on `connection`, which has room for it."""

    def refuse(self, down: ServerCall, status: Status) -> None:
        """Ends a client's call with an error of esp's own."""


class ParkedCall(Sink):
    """A client's call that waits.

    Attributes:
        down: the client's stream.
        message: the request of a unary call; None for a streaming call.
        peer: the client's address.
        place: the account that counts the call while it waits.
        until: the `monotonic` time at which the call is refused.
    """

    __slots__ = ("_chunks", "_ended", "_link", "_sender", "_size", "down", "message", "peer", "place", "until")

    def __init__(self, sender: Sender, link: Link, down: ServerCall, message: bytes | None) -> None:
        self._sender = sender
        self._link = link
        self.down = down
        self.message = message
        self.peer = down.peer
        self.place: Account | None = None
        self._size = 0
        self.until = link.patience()
        self._chunks: list[bytes] = []
        self._ended = False
        down.sink = self

    def request_data(self, payload: bytes, end: bool) -> None:
        """Keeps a piece of the request. The client's window bounds the pieces, because it is not given back."""
        if self.hold(len(payload)):
            self._chunks.append(payload)
            self._ended = end
        else:
            self.down.cut()

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes of the request that wait with the call."""
        if not self.down.hold(size):
            return False
        self._size += size
        return True

    def release(self) -> None:
        """The call and its bytes wait no longer: returns the memory."""
        self.down.release(self._size)
        self._size = 0

    def sent_to(self) -> tuple[Passed | None, float, bytes]:
        """The shard for which the call waits."""
        return self._sender.passed, 0.0, self.message or b""

    def cancelled(self, code: int, reason: str) -> None:
        """The client no longer waits."""
        self.down.sink = None
        self._link.unpark(self)

    def cut(self, stream: ServerCall | None = None) -> None:
        """Refuses the call: others need its place, or the memory for its request."""
        self._link.unpark(self)
        self.refuse(errors.TOO_MANY_REQUESTS)

    def go(self, connection: ClientConnection) -> None:
        """Sends the call on `connection`."""
        down = self.down
        down.sink = None
        if down.remaining() == 0:
            down.finish(DEADLINE_EXCEEDED)
            return
        self._sender.send(connection, down, self.message, down.remaining_timeout())
        sink: Sink | None = down.sink
        for number, chunk in enumerate(self._chunks, 1):
            if down.sink is not None and down.sink is sink:  # a piece ends the call if it finds no memory
                sink.request_data(chunk, self._ended and number == len(self._chunks))

    def refuse(self, status: Status) -> None:
        """Ends the call with `status`: there is no connection in time."""
        self.down.sink = None
        self._sender.refuse(self.down, status)

    def on_bug(self) -> None:
        """Ends the call: an exception came out of it."""
        self.down.on_bug()


class _Waiter:
    """A coroutine that waits."""

    __slots__ = ("_link", "future", "peer", "place", "until")

    def __init__(self, link: Link, peer: str, until: float) -> None:
        self._link = link
        self.peer = peer
        self.place: Account | None = None
        self.until = until
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def release(self) -> None:
        """Does nothing: a coroutine keeps no bytes here."""

    def cut(self) -> None:
        """Refuses the coroutine: others need its place."""
        self._link.unpark(self)
        self.refuse(errors.TOO_MANY_REQUESTS)

    def go(self, connection: ClientConnection) -> None:
        """Wakes the coroutine, which then checks whether the connection still has room."""
        if not self.future.done():
            self.future.set_result(None)

    def refuse(self, status: Status) -> None:
        """Raises `status` in the coroutine: there is no connection in time."""
        if not self.future.done():
            self.future.set_exception(status.error())
            if self.peer:
                self._link.on_refused()

    def on_bug(self) -> None:
        """Cancels the wait: an exception came out of it."""
        self.future.cancel()


class StreamOpener(Protocol):
    """An object that wants a long-lived stream of its own, and waits for the connection without a limit."""

    def go(self, connection: ClientConnection) -> None:
        """Sends the call on `connection`, which has room for it."""

    def on_bug(self) -> None:
        """Ends the work for which the stream was wanted: an exception came out of `go`."""


class Link:
    """One connection and its queues; all may be empty. A bug in a waiting call ends that call only.

    Attributes:
        connection: the connection in use; None while there is none.
        waiting: the calls that wait for a limited time, in order.
        standing: the openers that wait without a limit; no more than clients have streams open.
        barred: the status with which calls are refused at once; None if waiting may help.
    """

    __slots__ = (
        "_background",
        "_closed",
        "_context",
        "_places",
        "barred",
        "connection",
        "on_refused",
        "standing",
        "waiting",
    )

    def __init__(
        self, context: WireContext, background: Background, on_refused: Callable[[], None] = lambda: None
    ) -> None:
        """`on_refused` is called for each coroutine that waited for a client in vain."""
        self.on_refused = on_refused
        self.connection: ClientConnection | None = None
        self.waiting: dict[ParkedCall | _Waiter, None] = {}
        self.standing: dict[StreamOpener, None] = {}
        self.barred: Status | None = None
        self._context = context
        self._background = background
        self._closed = False
        self._places = BufferBudget(context.limits.max_waiting_requests)

    def free(self) -> ClientConnection | None:
        """The connection, if a call can be sent on it now."""
        connection = self.connection
        return connection if connection is not None and connection.has_room else None

    @property
    def is_short(self) -> bool:
        """Whether calls wait although the connection has taken as many as it can."""
        connection = self.connection
        waits = self.waiting or self.standing
        return bool(waits and connection is not None and connection.streams and not connection.has_room)

    def patience(self) -> float:
        """The `monotonic` time until which a call that begins to wait now may wait."""
        return monotonic() + self._context.limits.max_waiting_seconds

    def park(self, call: ParkedCall | _Waiter) -> None:
        """Lets a call wait, or refuses it. If too many wait, a call of the client that has most of them is refused."""
        if self._closed or self.barred is not None:
            call.refuse(self.barred or errors.NO_CONNECTION)
            return
        self._places.limit = self._context.limits.max_waiting_requests
        place = self._places.of(address_of(call.peer)).of(call.peer).open(call)
        if place.take(1):
            call.place = place
            self.waiting[call] = None
            if isinstance(call, ParkedCall) and not call.hold(len(call.message or b"")):
                call.cut()
            if self._places.used <= self._places.limit:
                return
            self._places.settle()
        else:
            call.refuse(errors.TOO_MANY_REQUESTS)
        self._context.reached("max_waiting_requests")

    def unpark(self, call: ParkedCall | _Waiter) -> bool:
        """Removes a waiting call; False if the call was not waiting."""
        if call not in self.waiting:
            return False
        del self.waiting[call]
        if call.place is not None:
            call.place.close()
        call.release()
        return True

    async def wait(self, peer: str = "") -> ClientConnection:
        """The connection, once a call can be sent on it; `peer` is the client for whom the caller waits.

        Raises:
            RpcError: there is no connection in time, or too many calls wait.
        """
        until = self.patience()
        while (connection := self.free()) is None:
            waiter = _Waiter(self, peer, until)
            self.park(waiter)
            try:
                await waiter.future
            finally:
                self.unpark(waiter)
                del waiter  # its error refers to this frame
        return connection

    def go(self) -> None:
        """Sends waiting calls, as far as the connection takes them."""
        while self.waiting and (connection := self.free()) is not None:
            call = next(iter(self.waiting))
            self.unpark(call)
            self._background.guard("a call that waited", partial(call.go, connection), call.on_bug)
        while self.standing and (connection := self.free()) is not None:
            opener = next(iter(self.standing))
            del self.standing[opener]
            self._background.guard("a stream that waited", partial(opener.go, connection), opener.on_bug)

    def stand(self, opener: StreamOpener) -> None:
        """Lets `opener` wait without a limit. Does nothing once the link is closed."""
        if not self._closed:
            self.standing[opener] = None

    def tick(self, now: float) -> None:
        """Refuses calls that have waited long enough, and looks at the connection's deadlines."""
        late = [call for call in self.waiting if call.until < now]
        if late:
            self._context.counters.limits["max_waiting_seconds"] += len(late)
            self._refuse(late, errors.NO_CONNECTION)
        if self.connection is not None:
            self.connection.tick(now)

    def bar(self, why: Status | None) -> None:
        """Refuses all calls with `why`, now and later, until `why` is None. Openers go on waiting."""
        self.barred = why
        if why is not None:
            self._refuse(list(self.waiting), why)

    def close(self) -> None:
        """Ends the connection, and refuses all calls, now and later."""
        self._closed = True
        self._refuse(list(self.waiting), errors.NO_CONNECTION)
        self.standing.clear()
        if self.connection is not None:
            self.connection.end(ErrorCode.NO_ERROR, "closing")

    def _refuse(self, calls: list[ParkedCall | _Waiter], status: Status) -> None:
        for call in calls:
            if self.unpark(call):
                refuse = partial(call.refuse, status)
                self._background.guard("a call that waited in vain", refuse, call.on_bug)
