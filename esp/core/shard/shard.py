"""One shard, as its callers see it: passes on clients' calls, and makes esp's own calls.

A call that broke may be sent again: `fate` decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence, Sized
from typing import Any, Final, TypeVar

from esp.core import errors
from esp.core.background import Background
from esp.core.config import Endpoint, User
from esp.core.shard.compared import Guard
from esp.core.shard.connected import Connected
from esp.core.shard.fate import outcome
from esp.core.shard.link import ParkedCall, StreamOpener
from esp.core.shard.secured import Secured
from esp.core.shard.waits import WAITS, Waits
from esp.core.wire.call import BrokenCall, MessageCall, Reader, TogetherCall, messages
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.message import format_timeout, prefix
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.splice import (
    REPLAY_BYTES,
    CountedCall,
    LateCall,
    Place,
    SplicedCall,
    StreamCall,
    WaitingCall,
    WaitingStream,
)
from esp.core.wire.status import DEADLINE_EXCEEDED, RpcError, Status

log = logging.getLogger("esp.shard")

Read = TypeVar("Read", bound=Sized)

KEPT_UNCOUNTED: Final = 2048
"""A request of at most so many bytes is kept to be sent again, without being counted as memory."""
MANY_CALLS: Final = 1000
"""If a client has more open calls, none of its larger requests is kept to be sent again."""
SHARD_TRAILER: Final = b"esp-shard"
"""The trailer that names the shard, in errors that esp makes itself. Their text stays etcd's: clients match on it."""


class Shard(Connected):
    """The client of one etcd cluster.

    Attributes:
        waits: the calls for locks and elections that their clients have given up.
    """

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        context: WireContext,
        background: Background,
        user: User | None = None,
        secured: Secured | None = None,
    ) -> None:
        super().__init__(name, endpoints, context, background, user, secured)
        self.waits = Waits(name, background, self.forward_unary, lambda: self.seen)

    # Calls of clients, passed on.

    def splice(self, down: ServerCall, message: bytes) -> None:
        """Passes on a call with one request: sends `message` (with its prefix); `down` gets whatever comes back."""
        connection = self._unary.connection
        # As nearly always there is room: `has_room`, which is spelled out, since it is so for each request.
        if connection is not None and (len(connection.streams) < connection.room or connection.has_room):
            call = SplicedCall(connection, down, message, self)
            if down.trace:
                connection.call(call, down.forward, down.timeout, message, end=True)
            else:
                connection.call_whole(call, down.head.forward, down.timeout, message)
            if len(message) > KEPT_UNCOUNTED and not may_keep(down, message):
                call.message = b""
        else:
            self._unary.park(ParkedCall(self, self._unary, down, message))

    def splice_counted(self, down: ServerCall, message: bytes, place: Place) -> None:
        """As `splice`, for a call that may have waited, and has a place here until the shard has answered."""
        connection = self._unary.free()
        if down.remaining() == 0:
            place.close()
            down.finish(DEADLINE_EXCEEDED)
        elif connection is not None:
            call = self.counted_call(connection, down, message, place)
            connection.call(call, down.forward, down.remaining_timeout(), message, end=True)
            if len(message) > KEPT_UNCOUNTED and not may_keep(down, message):
                call.message = b""
        else:
            place.close()
            self._unary.park(ParkedCall(self, self._unary, down, message))

    def splice_waiting(self, down: ServerCall, message: bytes) -> None:
        """As `splice`, for a call that may wait for hours: such calls use up no stream that short calls need."""
        connection = self._streams.free()
        if down.remaining() == 0:
            down.finish(DEADLINE_EXCEEDED)
        elif not self._may_wait(down, message):
            pass
        elif connection is not None:
            self.send(connection, down, message, down.remaining_timeout())
        else:
            self._links.wanted_streams.set()
            self._streams.park(ParkedCall(self, self._streams, down, message))

    def splice_stream(self, down: ServerCall) -> None:
        """Passes a streaming call on, in both directions."""
        connection = self._streams.free()
        if down.head.path in WAITS and not self._may_wait(down, b""):
            pass
        elif connection is not None:
            self.send(connection, down, None, down.timeout)
        else:
            self._links.wanted_streams.set()
            self._streams.park(ParkedCall(self, self._streams, down, None))

    def _may_wait(self, down: ServerCall, message: bytes) -> bool:
        """Whether a call may be sent that may wait for hours; refuses it otherwise."""
        if self.waits.waiting >= self.context.limits.max_waiting_requests:
            self.context.reached("max_waiting_requests")
            self.refuse(down, errors.TOO_MANY_REQUESTS)
            return False
        if not self.waits.may_begin(down.head.path, message):
            self.refuse(down, errors.NO_CONNECTION)
            return False
        return True

    def open_stream(self, opener: StreamOpener) -> None:
        """Lets `opener` send a long-lived call, at once or as soon as a connection can take it.

        `on_retired` of the call is called when the shard moves on to another connection.
        """
        connection = self._streams.free()
        if connection is not None:
            opener.go(connection)
        else:
            self._links.wanted_streams.set()
            self._streams.stand(opener)

    def forget_opener(self, opener: StreamOpener) -> None:
        """`opener` wants no stream any more."""
        self._streams.standing.pop(opener, None)

    def send(self, connection: ClientConnection, down: ServerCall, message: bytes | None, timeout: bytes) -> None:
        """Sends a client's call on `connection`, which has room for it; a streaming call has no `message`."""
        call: SplicedCall
        if down.head.path in WAITS:
            timeout = b""  # `waits` says why
            if message is None:
                call = WaitingStream(connection, down, self)
            else:
                call = self.waiting_call(connection, down, message)
        elif message is None:
            call = StreamCall(connection, down, self)
        else:
            call = self.late_call(connection, down, message)
        connection.call(call, down.forward, timeout, message, end=message is not None)
        if message is not None and len(message) > KEPT_UNCOUNTED and not may_keep(down, message):
            call.message = b""

    def refuse(self, down: ServerCall, status: Status) -> None:
        """Ends a client's call with an error of esp's own about this shard."""
        self.failed_calls += 1
        if self.passed is not None:
            down.tell(status.code, self.passed)
        down.finish(status, [(SHARD_TRAILER, self.name.encode())])

    def on_broken(self, call: SplicedCall, code: int, reason: str) -> None:
        """Sends a call again that broke before its answer was whole, or ends it with the error that is true."""
        down = call.down
        if down.is_over:
            return  # the client has taken the call back since the connection broke
        if call.message is None:
            self.refuse(down, errors.SERVER_STOPPED)
            return
        if down.remaining() == 0:
            down.finish(DEADLINE_EXCEEDED)
            return
        status = outcome(
            unprocessed=call.surely_unprocessed(code),
            reads=down.head.handler.idempotent,
            repeatable=bool(call.message) and not down.responded and not down.retried,
        )
        if status is None:
            down.retried = True
            self.repeated += 1
            self.send_again(down, call.message)
            return
        if status is errors.REQUEST_TIMED_OUT:
            log.info("shard %s: a call broke: %s", self.name, reason or f"RST_STREAM {code}")
        self.refuse(down, status)

    def send_again(self, down: ServerCall, message: bytes) -> None:
        """Sends a client's call once more, with the rest of its deadline."""
        if down.head.handler.waits:
            self.splice_waiting(down, message)
            return
        connection = self._unary.free()
        if connection is not None:
            self.send(connection, down, message, down.remaining_timeout())
        else:
            self._unary.park(ParkedCall(self, self._unary, down, message))

    def give_up(self, call: SplicedCall) -> None:
        """Cancels a call whose client has gone, as soon as the shard can take that."""
        self.waits.give_up(call)

    def on_status(self, call: SplicedCall, status: Status) -> bool:
        """Takes the error of a call. Tries the next endpoint if the error says that the member cannot serve.

        True if the call's handler takes the call over, instead of passing the error on.
        """
        self.consider_moving(call.connection, status)
        down = call.down
        return not down.responded and down.head.handler.recover(down, call.message or b"", status)

    guard: Guard | None = None
    """What the shard compares with each call for keys; None if it holds no guard."""

    def on_outdated(self, down: ServerCall, message: bytes) -> None:
        """Gives a client's call, which the shard has refused by its guard, to whoever sends it by another map."""
        raise NotImplementedError

    # The calls, before they are sent.

    def late_call(self, connection: ClientConnection, down: ServerCall, message: bytes) -> LateCall:
        """A client's call that was not sent at once."""
        return LateCall(connection, down, message, self)

    def counted_call(self, connection: ClientConnection, down: ServerCall, message: bytes, place: Place) -> CountedCall:
        """A client's call with a place."""
        return CountedCall(connection, down, message, self, place)

    def waiting_call(self, connection: ClientConnection, down: ServerCall, message: bytes) -> WaitingCall:
        """A client's call that may wait for hours."""
        return WaitingCall(connection, down, message, self)

    def message_call(self, forward: Forward) -> type[MessageCall[Any]]:
        """The class of a call of a coroutine."""
        return MessageCall

    def together_call(self, forward: Forward) -> type[TogetherCall[Any]]:
        """The class of one of several calls of a coroutine."""
        return TogetherCall

    # Calls of esp's own.

    async def forward_unary(
        self,
        forward: Forward,
        message: bytes,
        *,
        idempotent: bool,
        repeatable: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - etcd is told of it
        down: ServerCall | None = None,
    ) -> bytes:
        """The answer to one call, message and answer without gRPC prefix.

        Args:
            forward: the head of the call.
            message: the request.
            idempotent: whether the call is sent again when its connection breaks and its fate is unknown.
            repeatable: False for a call that was sent before, and broke.
            timeout: seconds until the deadline; None for no deadline.
            down: the client's call for which this call is made, if there is one.

        Raises:
            RpcError: the call's status, as etcd gave it, or Unavailable as clients should see it; DeadlineExceeded
                after `timeout` seconds.
        """
        return await self.read_unary(
            forward, message, messages, idempotent=idempotent, repeatable=repeatable, timeout=timeout, down=down
        )

    async def read_unary(
        self,
        forward: Forward,
        message: bytes,
        reader: Callable[[], Reader[Read]],
        *,
        idempotent: bool,
        repeatable: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - etcd is told of it
        down: ServerCall | None = None,
    ) -> Read:
        """As `forward_unary`, but a new `reader` makes the answer, which stays held for `down`."""
        if timeout is not None and timeout <= 0:
            raise DEADLINE_EXCEEDED.error()
        body = prefix(message)
        try:
            async with asyncio.timeout(timeout) as deadline:
                while True:
                    try:
                        return await self._attempt(forward, body, deadline, reader, down)
                    except BrokenCall as broken:
                        status = outcome(unprocessed=broken.unprocessed, reads=idempotent, repeatable=repeatable)
                    if status is not None:
                        self.failed_calls += down is not None
                        raise status.error()
                    repeatable = False
        except TimeoutError:
            raise DEADLINE_EXCEEDED.error() from None

    async def _attempt(
        self,
        forward: Forward,
        body: bytes,
        deadline: asyncio.Timeout,
        reader: Callable[[], Reader[Read]],
        down: ServerCall | None,
    ) -> Read:
        connection = await self._unary.wait(down.peer if down is not None else "")
        when = deadline.when()
        timeout = b"" if when is None else format_timeout(max(0.0, when - asyncio.get_running_loop().time()))
        call: MessageCall[Read] = self.message_call(forward)(connection, reader(), down, self.blamed, forward[0])
        connection.call(call, forward, timeout, body, end=True)
        self.context.flush_soon()
        try:
            return await call.read_only()
        except RpcError as error:
            self.consider_moving(connection, error.status)
            raise
        finally:
            call.cancel()
            self.context.flush_soon()

    async def open(
        self,
        forward: Forward,
        message: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - etcd is told of it
        down: ServerCall | None = None,
    ) -> MessageCall[bytes]:
        """Begins a call with one request message and a stream of answers. The caller reads to the end, or cancels.

        Raises:
            RpcError: there is no connection.
        """
        connection = await self._unary.wait(down.peer if down is not None else "")
        call = MessageCall(connection, messages(), down, self.blamed, forward[0])
        connection.call(call, forward, format_timeout(timeout) if timeout else b"", prefix(message), end=True)
        self.context.flush_soon()
        return call


def may_keep(down: ServerCall, message: bytes) -> bool:
    """Whether a request is kept to be sent again. Counts it as memory up to REPLAY_BYTES; a larger one goes soon."""
    if len(down.connection.streams) > MANY_CALLS:
        return False
    if down.retried:
        return True  # it was counted the first time
    size = len(message)
    return size > REPLAY_BYTES or (down.may_hold(size) and down.hold(size))
