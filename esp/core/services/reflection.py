"""gRPC server reflection: describes the services of esp's port, for tools such as grpcurl. etcd has no reflection."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

from esp.core.pb import health_pb2, reflection_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.server_stream import Handler, ServerCall, Sink
from esp.core.wire.status import OK, Code, RpcError, Status

MAX_REQUEST_BYTES: Final = 4096
"""The most bytes of a request, which has little more than a name."""
PATHS: Final = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo".encode() for version in ("v1", "v1alpha")
)
"""The paths of the RPC in both versions; their messages are the same."""

Request = reflection_pb2.ServerReflectionRequest
Response = reflection_pb2.ServerReflectionResponse

_SERVED: Final[tuple[FileDescriptor, ...]] = tuple(
    module.DESCRIPTOR for module in (rpc_pb2, v3lock_pb2, v3election_pb2, health_pb2, reflection_pb2)
)


def _with_imports(files: Iterable[FileDescriptor]) -> Iterator[FileDescriptor]:
    """The files and all files that they import, directly or not; a file may come more than once."""
    for file in files:
        yield file
        yield from _with_imports(file.dependencies)


_FILES: Final[dict[str, FileDescriptor]] = {file.name: file for file in _with_imports(_SERVED)}
_SERVICES: Final = sorted(service.full_name for file in _SERVED for service in file.services_by_name.values())


def handlers() -> Mapping[bytes, Handler]:
    """The handler of the RPC, by path."""
    handler = _Reflection()
    return dict.fromkeys(PATHS, handler)


class _Reflection(Handler):
    """The handler of the RPC."""

    streaming = True
    forwards = False

    def on_open(self, stream: ServerCall) -> None:
        """A client opens its stream."""
        ReflectionCall(stream)


class ReflectionCall(Sink):
    """One client's call: each request has one answer.

    esp does not read from a client that does not read its answers: at most one answer waits, and as many requests as a
    stream's window holds.
    """

    __slots__ = ("_has_ended", "_messages", "_payloads", "_reader", "_sent", "_size", "_stream", "_works")

    def __init__(self, stream: ServerCall) -> None:
        self._stream = stream
        self._reader = MessageReader(MAX_REQUEST_BYTES, stream.head.encoding)
        self._payloads: deque[bytes] = deque()
        self._messages: Iterator[bytes] | None = None  # of the present payload
        self._size = 0  # of that payload
        self._has_ended = False  # the client has sent its last request
        self._works = False
        self._sent: set[str] = set()  # the files that this client has got
        stream.sink = self
        stream.start()

    def request_data(self, payload: bytes, end: bool) -> None:
        """Takes some requests, or the half-close."""
        self._has_ended = end
        if not self._stream.hold(len(payload)):
            self._stream.cut()
            return
        self._payloads.append(payload)
        if not self._works and self._stream.pending is None:
            self._stream.connection.do(self._work())

    def half_message(self) -> int | None:
        """The number of the request that has come only in part; None if there is none."""
        return self._reader.count if self._reader.held else None

    def drained(self, size: int) -> None:
        """Bytes that waited for the client have left."""
        if not self._works and self._stream.pending is None:
            self._stream.connection.do_later(self._work())

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone."""
        self._stream.sink = None

    def _work(self) -> Iterator[None]:
        """Answers requests, one in a step, until there are no more or the client does not read."""
        self._works = True
        stream = self._stream
        try:
            while stream.sink is self and stream.pending is None:
                message = self._next()
                if message is None:
                    break
                stream.send_data(prefix(self._answer(message)), False)
                yield
            else:
                return
            if self._has_ended:
                if self._reader.held:
                    raise Status(Code.INTERNAL, "the request ended within a message").error()
                self._end(OK)
        except RpcError as error:
            self._end(error.status)
        finally:
            self._works = False

    def _next(self) -> bytes | None:
        """The next request; None if none has come yet."""
        while True:
            if self._messages is not None:
                message = next(self._messages, None)
                if message is not None:
                    return message
                self._messages = None
                self._stream.release(self._size)
                self._stream.consumed(self._size)
            if not self._payloads:
                return None
            payload = self._payloads.popleft()
            self._size = len(payload)
            self._messages = self._reader.messages(payload)

    def _end(self, status: Status) -> None:
        if self._stream.sink is self:
            self._stream.sink = None
            self._stream.finish(status)

    def _answer(self, message: bytes) -> bytes:
        """The answer to one request.

        Raises:
            RpcError: the message is no request.
        """
        try:
            request = Request.FromString(message)
        except DecodeError as error:
            raise Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}").error() from None
        answer = Response(valid_host=request.host, original_request=request)
        try:
            self._fill(answer, request)
        except KeyError:
            answer.error_response.error_code = Code.NOT_FOUND
            answer.error_response.error_message = "proto: not found"
        return answer.SerializeToString()

    def _fill(self, answer: Response, request: Request) -> None:
        """Fills the answer to a request.

        Raises:
            KeyError: esp does not know the requested symbol or file.
            RpcError: the request asks for nothing.
        """
        asked = request.WhichOneof("message_request")
        if asked == "list_services":
            for name in _SERVICES:
                answer.list_services_response.service.add(name=name)
        elif asked == "file_by_filename":
            self._take(answer, _FILES[request.file_by_filename])
        elif asked == "file_containing_symbol":
            self._take(answer, _file_of(request.file_containing_symbol))
        elif asked == "all_extension_numbers_of_type":  # proto3 has no extensions
            descriptor_pool.Default().FindMessageTypeByName(request.all_extension_numbers_of_type)
            answer.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
        elif asked == "file_containing_extension":
            raise KeyError(request.file_containing_extension.containing_type)
        else:
            raise Status(Code.INVALID_ARGUMENT, "invalid MessageRequest: none is given").error()

    def _take(self, answer: Response, file: FileDescriptor) -> None:
        """Adds the file, then the files that it imports and the client does not have."""
        answer.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
        self._sent.add(file.name)
        for imported in _with_imports(file.dependencies):
            if imported.name not in self._sent:
                self._sent.add(imported.name)
                answer.file_descriptor_response.file_descriptor_proto.append(imported.serialized_pb)


def _file_of(symbol: str) -> FileDescriptor:
    """The file with a type, a service, a method or a field.

    Raises:
        KeyError: no file of this port has the symbol.
    """
    service, _, method = symbol.rpartition(".")
    for file in _SERVED:  # a pool does not find methods
        for each in file.services_by_name.values():
            if each.full_name == service and method in each.methods_by_name:
                return file
    return _FILES[descriptor_pool.Default().FindFileContainingSymbol(symbol).name]
