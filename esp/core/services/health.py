"""The health service of gRPC, `grpc.health.v1`, over several shards: SERVING while esp has a connection to any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from google.protobuf.message import Message

from esp.core import errors
from esp.core.pb import health_pb2
from esp.core.services.handlers import Local, parse
from esp.core.wire.message import prefix
from esp.core.wire.server_stream import Handler, ServerCall, Sink
from esp.core.wire.status import RpcError

_SERVICE: Final = b"/grpc.health.v1.Health/"


Response = health_pb2.HealthCheckResponse


class HealthService:
    """Serves the calls of all clients; outlives layouts, as the calls of Watch do.

    A server has one health, under the name "". Other names are unknown, as in etcd.

    Args:
        is_serving: tells whether esp has a connection to any shard.

    Attributes:
        watching: the open calls of Watch.
    """

    def __init__(self, is_serving: Callable[[], bool]) -> None:
        self._is_serving = is_serving
        self._stopped = False
        self._told = self.status("")
        self.watching: dict[HealthWatch, None] = {}
        self.watch = _Watch(self)

    def handlers(self) -> Mapping[bytes, Handler]:
        """The handler of each RPC of the service, by path."""
        return {
            _SERVICE + b"Check": Local(health_pb2.HealthCheckRequest, self._check),
            _SERVICE + b"List": Local(health_pb2.HealthListRequest, self._list),
            _SERVICE + b"Watch": self.watch,
        }

    def status(self, service: str) -> Response.ServingStatus:
        """The present status of a service, for Watch."""
        if service:
            return Response.SERVICE_UNKNOWN
        return Response.SERVING if not self._stopped and self._is_serving() else Response.NOT_SERVING

    def _check(self, request: health_pb2.HealthCheckRequest) -> Message:
        status = self.status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            raise errors.UNKNOWN_SERVICE.error()
        return Response(status=status)

    def _list(self, request: health_pb2.HealthListRequest) -> Message:
        return health_pb2.HealthListResponse(statuses={"": Response(status=self.status(""))})

    def open(self, stream: ServerCall, service: str) -> None:
        """Begins a Watch: the client gets the status now, and after each change."""
        if self._stopped:
            stream.finish(errors.SERVER_STOPPED)
            return
        self.tick()  # so that the next change is one from what this client is told now
        stream.start()
        HealthWatch(self, stream, service).tell()

    def tick(self) -> None:
        """Tells the watching clients of a change."""
        status = self.status("")
        if status != self._told:
            self._told = status
            for watch in tuple(self.watching):
                watch.tell()

    def stop(self) -> None:
        """The proxy stops: ends the calls of Watch. From now on the status is NOT_SERVING."""
        self._stopped = True
        for watch in tuple(self.watching):
            watch.stop()


class HealthWatch(Sink):
    """One call of Watch. A client that does not read has at most one status waiting, and then gets the last one."""

    __slots__ = ("_health", "_service", "_stream", "_told", "_waits")

    def __init__(self, health: HealthService, stream: ServerCall, service: str) -> None:
        self._health = health
        self._stream = stream
        self._service = service
        self._told = -1
        self._waits = False
        stream.sink = self
        health.watching[self] = None

    def tell(self) -> None:
        """Sends the present status, unless the client has it or has not read the one before."""
        status = self._health.status(self._service)
        if status != self._told and not self._waits:
            self._told = status
            self._waits = not self._stream.send_data(prefix(Response(status=status).SerializeToString()), False)

    def stop(self) -> None:
        """Ends the call."""
        self._forget()
        self._stream.finish(errors.SERVER_STOPPED)

    def drained(self, size: int) -> None:
        """Waiting bytes have left."""
        self._waits = self._stream.pending is not None
        self.tell()

    def cancelled(self, code: int, reason: str) -> None:
        """The client does not watch any more."""
        self._forget()

    def _forget(self) -> None:
        self._stream.sink = None
        self._health.watching.pop(self, None)


class _Watch(Handler):
    """The handler of Watch."""

    forwards = False
    lasts = True

    def __init__(self, health: HealthService) -> None:
        self._health = health

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Begins the watch that the request names."""
        try:
            request = parse(health_pb2.HealthCheckRequest, message)
        except RpcError as error:
            stream.finish(error.status)
            return
        self._health.open(stream, request.service)
