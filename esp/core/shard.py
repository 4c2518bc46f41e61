"""One shard: the endpoints of one etcd cluster, the connection in use, and fail-over between them.

A shard keeps one connection for unary calls and, once it is needed, one for long-lived streams, both to the same endpoint;
watches then never take the turn of a Put. When the connection breaks, the next endpoint is tried at once; when all have
failed, again after a growing pause. Calls that come meanwhile wait a moment (`max_waiting_seconds`) and are then refused
with the text that makes etcd's clients try again: they were surely not sent.

A call that broke is sent again, once, if etcd surely did not act on it or if it only reads. Anything else is answered with
"request timed out": whether it was applied is not known, and the caller must decide.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from google.protobuf.message import DecodeError

from esp.core.config import Endpoint
from esp.core.pb import rpc_pb2
from esp.core.wire.call import BrokenCall, MessageCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.hpack import Fields, encode
from esp.core.wire.message import format_timeout, prefix
from esp.core.wire.server_stream import ServerStream, Sink
from esp.core.wire.splice import SplicedCall
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wire.transport import connect

log = logging.getLogger("esp.shard")

NO_CONNECTION: Final = Status(Code.UNAVAILABLE, "there is no connection available")
REQUEST_TIMED_OUT: Final = Status(Code.UNAVAILABLE, "etcdserver: request timed out")
SERVER_STOPPED: Final = Status(Code.UNAVAILABLE, "etcdserver: server stopped")
TOO_MANY_REQUESTS: Final = Status(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
NO_LEADER_TEXTS: Final = frozenset(("etcdserver: no leader", "etcdserver: server stopped"))
"""Answers of a member that cannot serve while another perhaps can."""

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
SHARD_TRAILER: Final = b"esp-shard"
"""Names the shard in the trailers of errors that esp makes itself; the text stays etcd's, clients match on it."""


class _Parked(Sink):
    """A client's call that waits for a connection."""

    __slots__ = ("again", "chunks", "down", "ended", "message", "shard", "until")

    def __init__(self, shard: Shard, down: ServerStream, message: bytes | None, until: float) -> None:
        self.shard = shard
        self.down = down
        self.message = message
        self.until = until
        self.again = False
        self.chunks: list[bytes] = []
        self.ended = False
        down.sink = self

    def request_data(self, payload: bytes, end: bool) -> None:
        """Kept, and not given back: the client's window bounds it."""
        self.chunks.append(payload)
        self.ended = end

    def cancelled(self, code: int, reason: str) -> None:  # noqa: ARG002
        """The client no longer waits."""
        self.down.sink = None
        self.shard.unpark(self)

    def go(self, connection: ClientConnection) -> None:
        """A connection is there."""
        self.down.sink = None
        if self.message is not None:
            self.shard.send(connection, self.down, self.message)
            return
        self.shard.send_stream(connection, self.down)
        sink = self.down.sink
        if sink is not None:
            for index, chunk in enumerate(self.chunks):
                sink.request_data(chunk, self.ended and index == len(self.chunks) - 1)

    def refuse(self, status: Status) -> None:
        """There is none in time."""
        self.down.sink = None
        self.shard.refuse(self.down, status)


class _Waiter:
    """A coroutine that waits for a connection."""

    __slots__ = ("future", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.future: asyncio.Future[ClientConnection] = asyncio.get_running_loop().create_future()

    def go(self, connection: ClientConnection) -> None:
        """A connection is there."""
        if not self.future.done():
            self.future.set_result(connection)

    def refuse(self, status: Status) -> None:
        """There is none in time."""
        if not self.future.done():
            self.future.set_exception(status.error())


class _Lane:
    """One of a shard's connections, and the calls that wait for it."""

    __slots__ = ("connection", "shard", "waiting")

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.connection: ClientConnection | None = None
        self.waiting: dict[_Parked | _Waiter, None] = {}

    def park(self, call: _Parked | _Waiter) -> None:
        if len(self.waiting) >= self.shard.context.limits.max_waiting_requests:
            call.refuse(TOO_MANY_REQUESTS)
        else:
            self.waiting[call] = None

    def go(self) -> None:
        """Sends what waits, as far as the connection takes it."""
        while self.waiting and self.connection is not None and self.connection.has_room:
            call = next(iter(self.waiting))
            del self.waiting[call]
            call.go(self.connection)

    def tick(self, now: float) -> None:
        for call in [c for c in self.waiting if c.until < now]:
            del self.waiting[call]
            call.refuse(NO_CONNECTION)
        if self.connection is not None:
            self.connection.tick(now)


class Shard:
    """The client of one etcd cluster.

    Attributes:
        name: as in the config.
        endpoint: the one in use, None while there is none.
        version: etcd's, as the member in use last told it; "" before that.
    """

    def __init__(self, name: str, endpoints: Sequence[Endpoint], context: WireContext) -> None:
        self.name = name
        self.endpoints = tuple(endpoints)
        self.context = context
        self.endpoint: Endpoint | None = None
        self.version = ""
        self._unary = _Lane(self)
        self._streams = _Lane(self)
        self._retired: list[ClientConnection] = []
        self._lost = asyncio.Event()
        self._wanted_streams = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether a call could be sent now."""
        return self._unary.connection is not None and self._unary.connection.has_room

    # Calls of clients, passed on.

    def splice(self, down: ServerStream, message: bytes) -> None:
        """Passes a unary-request call on: `message` (with its prefix) goes out, whatever comes back goes to `down`."""
        connection = self._unary.connection
        if connection is not None and connection.has_room:
            self.send(connection, down, message)
        else:
            self._unary.park(_Parked(self, down, message, self._patience()))

    def send(self, connection: ClientConnection, down: ServerStream, message: bytes) -> None:
        """Sends a unary-request call on `connection`."""
        call = SplicedCall(connection, down, message, self)
        connection.call(call, down.head.forward, down.timeout, message, end=True)

    def splice_stream(self, down: ServerStream) -> None:
        """Passes a streaming call on, in both directions."""
        connection = self._streams.connection
        if connection is not None and connection.has_room:
            self.send_stream(connection, down)
        else:
            self._wanted_streams.set()
            self._streams.park(_Parked(self, down, None, self._patience()))

    def send_stream(self, connection: ClientConnection, down: ServerStream) -> None:
        """Opens a streaming call on `connection`."""
        call = SplicedCall(connection, down, None, self)
        connection.call(call, down.head.forward, down.remaining_timeout(), None, end=False)

    def unpark(self, call: _Parked) -> None:
        """A call no longer waits."""
        self._unary.waiting.pop(call, None)
        self._streams.waiting.pop(call, None)

    def refuse(self, down: ServerStream, status: Status) -> None:
        """Ends a client's call with an error of esp's own about this shard."""
        down.finish(status, [(SHARD_TRAILER, self.name.encode())])

    def _patience(self) -> float:
        return monotonic() + self.context.limits.max_waiting_seconds

    def on_broken(self, call: SplicedCall, code: int, reason: str) -> None:
        """A call broke before its answer was whole: again, where that cannot do harm, or an error that tells the truth."""
        down = call.down
        unprocessed = call.unprocessed or code == ErrorCode.REFUSED_STREAM
        if call.message is None:
            self.refuse(down, SERVER_STOPPED)
        elif not down.responded and not down.retried and (unprocessed or down.head.handler.idempotent):
            down.retried = True
            self.splice(down, call.message)
        elif unprocessed:
            self.refuse(down, NO_CONNECTION)
        else:
            log.info("shard %s: a call broke: %s", self.name, reason or f"RST_STREAM {code}")
            self.refuse(down, REQUEST_TIMED_OUT)

    def on_status(self, call: SplicedCall, status: Status) -> None:
        """An error was passed on; one that says the member cannot serve makes the shard try the next."""
        if status.code == Code.UNAVAILABLE and status.message in NO_LEADER_TEXTS and len(self.endpoints) > 1:
            if call.connection is self._unary.connection:
                log.warning("shard %s: %s says %r; trying the next endpoint", self.name, self.endpoint, status.message)
                call.connection.close()

    # Calls of esp's own.

    async def unary(
        self,
        path: bytes,
        message: bytes,
        *,
        idempotent: bool,
        metadata: Fields | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """The answer to one call, both without gRPC prefix.

        Raises:
            RpcError: the call's status, as etcd gave it, or Unavailable as clients should see it.
        """
        forward = encode([(b":path", path), *_GRPC_FIELDS, *(metadata or [])])
        return await self.forward_unary(forward, message, idempotent=idempotent, timeout=timeout)

    async def forward_unary(
        self, forward: bytes, message: bytes, *, idempotent: bool, timeout: float | None = None
    ) -> bytes:
        """As `unary`, with a head that is encoded already."""
        body = prefix(message)
        retried = False
        while True:
            connection = await self._connection()
            call = MessageCall(connection)
            connection.call(call, forward, format_timeout(timeout) if timeout else b"", body, end=True)
            self.context.flush()
            try:
                async with asyncio.timeout(timeout):
                    return await call.read_only()
            except BrokenCall as broken:
                if retried or not (broken.unprocessed or idempotent):
                    raise (NO_CONNECTION if broken.unprocessed else REQUEST_TIMED_OUT).error() from None
                retried = True
            except TimeoutError:
                raise Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded").error() from None
            finally:
                call.cancel()
                self.context.flush()

    async def open(self, forward: bytes, message: bytes, timeout: float | None = None) -> MessageCall:
        """Begins a call with one request message and a stream of answers. The caller cancels what it does not read out.

        Raises:
            RpcError: there is no connection.
        """
        connection = await self._connection()
        call = MessageCall(connection)
        connection.call(call, forward, format_timeout(timeout) if timeout else b"", prefix(message), end=True)
        self.context.flush()
        return call

    async def _connection(self) -> ClientConnection:
        connection = self._unary.connection
        if connection is not None and connection.has_room:
            return connection
        waiter = _Waiter(self._patience())
        self._unary.park(waiter)
        try:
            return await waiter.future
        finally:
            self._unary.waiting.pop(waiter, None)

    # The connections.

    async def run(self) -> None:
        """Keeps the shard connected, until cancelled."""
        pause = 0.0
        turn = 0
        failures = 0
        while True:
            endpoint = self.endpoints[turn % len(self.endpoints)]
            try:
                await self._serve(endpoint)
                failures = 0
                pause = 0.0
            except OSError as error:
                failures += 1
                level = logging.WARNING if failures == len(self.endpoints) else logging.DEBUG
                log.log(level, "shard %s: cannot connect to %s: %s", self.name, endpoint, error)
            turn += 1
            if failures and failures % len(self.endpoints) == 0:
                pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311

    async def _serve(self, endpoint: Endpoint) -> None:
        """Connects to `endpoint` and returns when that connection takes no more calls.

        Raises:
            OSError: it cannot be connected to.
        """
        self._lost.clear()
        await self._dial(self._unary, endpoint)
        if self.endpoint != endpoint:
            log.info("shard %s: connected to %s", self.name, endpoint)
        self.endpoint = endpoint
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._dial_streams(endpoint)),
                    tasks.create_task(self._learn_version()),
                ]
                await self._lost.wait()
                for task in background:
                    task.cancel()
        finally:
            self.endpoint = None
            for lane in (self._unary, self._streams):
                if lane.connection is not None:
                    self._retire(lane)
            self.context.flush()
        log.warning("shard %s: lost %s", self.name, endpoint)

    async def _learn_version(self) -> None:
        try:
            answer = await self.unary(
                b"/etcdserverpb.Maintenance/Status", b"", idempotent=True, timeout=self.context.limits.connect_timeout
            )
            self.version = rpc_pb2.StatusResponse.FromString(answer).version
        except (RpcError, DecodeError) as error:
            log.info("shard %s: does not tell its version: %s", self.name, error)

    async def _dial_streams(self, endpoint: Endpoint) -> None:
        """The connection for streams is made when the first stream wants it, and made again when it breaks."""
        while True:
            await self._wanted_streams.wait()
            self._wanted_streams.clear()
            if self._streams.connection is None or not self._streams.connection.has_room:
                try:
                    await self._dial(self._streams, endpoint)
                except OSError as error:
                    log.warning("shard %s: cannot connect to %s for streams: %s", self.name, endpoint, error)

    async def _dial(self, lane: _Lane, endpoint: Endpoint) -> None:
        """Connects, and waits until etcd has said its SETTINGS: a frozen member accepts, but says nothing.

        Raises:
            OSError: no connection, or no SETTINGS in time.
        """
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        connection = ClientConnection(self.context, f"{host}:{endpoint.port}")
        greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.on_change = lambda: None if greeted.done() else greeted.set_result(None)
        seconds = self.context.limits.connect_timeout
        await connect(connection, endpoint.host, endpoint.port, seconds)
        try:
            async with asyncio.timeout(seconds):
                await greeted
        except TimeoutError:
            connection.end(ErrorCode.NO_ERROR, "no SETTINGS")
            raise OSError(f"no answer within {seconds:g} s") from None
        if connection.ended or connection.draining:
            raise OSError("closed at once")
        connection.on_change = self._on_change(lane, connection)
        lane.connection = connection
        lane.go()
        self.context.flush()

    def _on_change(self, lane: _Lane, connection: ClientConnection) -> Callable[[], None]:
        def changed() -> None:
            if lane.connection is not connection:
                return
            if connection.draining or connection.ended:
                self._retire(lane)
                if lane is self._unary:
                    self._lost.set()
            else:
                lane.go()

        return changed

    def _retire(self, lane: _Lane) -> None:
        """The lane's connection takes no more calls; it is kept until those it has are finished."""
        connection, lane.connection = lane.connection, None
        assert connection is not None
        if not connection.ended:
            self._retired.append(connection)
            connection.close()

    def tick(self, now: float) -> None:
        """Looks at every deadline: calls that wait, keepalive."""
        self._unary.tick(now)
        self._streams.tick(now)
        self._retired = [connection for connection in self._retired if not connection.ended]
        for connection in self._retired:
            connection.tick(now)
        self.context.flush()


_GRPC_FIELDS: Final = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
