"""Finds the handler of each call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from esp.core import errors
from esp.core.auth_tokens import TokenCheck
from esp.core.pb import health_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.routing import Routing
from esp.core.services import metadata, own_keys
from esp.core.services.gate import Gate
from esp.core.services.handlers import PassCounted, PassStream, PassWaiting
from esp.core.services.kv import PassReads
from esp.core.services.namespace import InNamespace
from esp.core.shard import STATUS_PATH, Shard, is_probe
from esp.core.wire.message import ENCODINGS, quote, unknown_encoding
from esp.core.wire.request import RequestHead, is_grpc_type, malformed_method
from esp.core.wire.server_stream import Handler, Refuse, ServerCall
from esp.core.wire.status import Code, Status

METHODS: Final[dict[bytes, MethodDescriptor]] = {
    f"/{service.full_name}/{method.name}".encode(): method
    for module in (rpc_pb2, v3lock_pb2, v3election_pb2, health_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every RPC of etcd's client port, by path."""

READS: Final = frozenset(
    name.encode()
    for name in (
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.KV/RangeStream",
        "/etcdserverpb.Lease/LeaseTimeToLive",
        "/etcdserverpb.Lease/LeaseLeases",
        "/etcdserverpb.Cluster/MemberList",
        "/etcdserverpb.Maintenance/Status",
        "/etcdserverpb.Maintenance/Hash",
        "/etcdserverpb.Maintenance/HashKV",
        "/etcdserverpb.Auth/AuthStatus",
        "/etcdserverpb.Auth/UserGet",
        "/etcdserverpb.Auth/UserList",
        "/etcdserverpb.Auth/RoleGet",
        "/etcdserverpb.Auth/RoleList",
        "/v3electionpb.Election/Leader",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
    )
)
"""RPCs that change nothing, so a call with an unknown fate may be sent again."""

WAITING: Final = frozenset((b"/v3lockpb.Lock/Lock", b"/v3electionpb.Election/Campaign"))
"""RPCs with one answer that may come after hours."""

_PACKAGES: Final = frozenset(method.containing_service.file.package for method in METHODS.values())
"""A service that esp does not know, but whose package is etcd's, may be of a newer etcd."""


class Router:
    """Finds the handler of a request by its path, and by the shard it names.

    Args:
        routing: the shards.
        gate: the places at the shards.
        served: handlers of the RPCs that esp serves over several shards.
        page: the handler of requests that are not gRPC.
        namespace: the namespace of clients' keys; None for none.
        own: the RPCs that esp serves with one shard, too; it passes on all others then.
        hides_own_keys: whether clients see no keys of esp's own.
    """

    def __init__(
        self,
        routing: Routing,
        gate: Gate,
        served: Mapping[bytes, Handler],
        page: Handler,
        namespace: InNamespace | None = None,
        own: Collection[bytes] = (),
        *,
        hides_own_keys: bool = False,
    ) -> None:
        self._hides_own_keys = hides_own_keys
        self._own = frozenset(own)
        self._page = page
        self._namespace = namespace
        self._to_shard = {shard.name.encode(): _PassAll(shard, gate) for shard in routing.shards.values()}
        self._only = next(iter(self._to_shard.values())) if len(routing.shards) == 1 else None
        self._served = dict(served)
        self._tokens = TokenCheck(routing.shards)
        if status := self._served.get(STATUS_PATH):
            self._served[STATUS_PATH] = NoShard(status)

    def find(self, head: RequestHead) -> Handler:
        """The handler of `head`. Also makes `head.forward`, and drops the fields that nobody needs later."""
        handler = self._handler(head)
        head.keep(_READ_LATER)
        return handler

    def _handler(self, head: RequestHead) -> Handler:
        if not head.is_grpc:
            return _other_form(head) or self._page
        if b"/" not in head.path[1:]:
            return Refuse(malformed_method(head.path))
        if wrong := metadata.refuse(head):
            return Refuse(wrong)
        named = head.field(metadata.SHARD)
        if named and named not in self._to_shard:
            return Refuse(_no_such_shard(named, list(self._to_shard)))
        target = self._to_shard[named] if named else self._only
        if target is None:
            head.fields = self._tokens.checked(head.fields)
        elif head.path in self._own and not named:
            target = None
        handler = self._served.get(head.path) if target is None else target.handler(head.path)
        if handler is None:
            return Refuse(_unserved(head.path))
        if head.encoding not in ENCODINGS and head.path in METHODS:
            return Refuse(unknown_encoding(head.encoding))
        if self._hides_own_keys:
            handler = own_keys.around(head.path, METHODS.get(head.path), handler)
        if self._namespace is not None:
            handler = self._namespace.around(head.path, METHODS.get(head.path), handler, is_own=target is None)
        if not handler.forwards:
            return handler
        # esp decompresses the message of a unary call, so the encoding is not sent on.
        dropping = _OURS if handler.streaming else _OURS | {b"grpc-encoding"}
        head.forward = head.path, head.encode_metadata(dropping=dropping)
        return handler


_RANGE: Final = b"/etcdserverpb.KV/Range"
_JSON: Final = (b"/v3/", b"/v3beta/")
"""Paths of the JSON gateway, which speaks HTTP/1.1 only."""
_OURS: Final = frozenset((metadata.SHARD, metadata.READ))
_READ_LATER: Final = metadata.LOAD_BEARING | {metadata.READ, metadata.SHARD}


class NoShard(Handler):
    """Serves Status for clients, and tells another esp that this is an esp, not an etcd.

    Attributes:
        handler: the handler of clients' calls.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.idempotent = handler.idempotent

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Gives a client's call to `handler`; answers the probe of an esp itself."""
        if is_probe(message):
            stream.finish(errors.IS_ESP)
        else:
            self.handler.on_message(stream, message)


class _PassAll:
    """Handlers that pass every RPC on to one shard."""

    def __init__(self, shard: Shard, gate: Gate) -> None:
        self._range = PassReads(shard, gate)
        self._read = PassCounted(shard, gate, idempotent=True)
        self._write = PassCounted(shard, gate, idempotent=False)
        self._waiting = PassWaiting(shard, idempotent=False)
        self._stream = PassStream(shard)
        self._status = NoShard(self._read)

    def handler(self, path: bytes) -> Handler:
        method = METHODS.get(path)
        if method is None or method.client_streaming or method.server_streaming:
            return self._stream
        if path == _RANGE:
            return self._range
        if path == STATUS_PATH:
            return self._status
        if path in WAITING:
            return self._waiting
        return self._read if path in READS else self._write


def _other_form(head: RequestHead) -> Refuse | None:
    """The refusal of a request that is nearly a gRPC call (grpc-go, http2_server.go, operateHeaders)."""
    content_type = head.field(b"content-type")
    if is_grpc_type(content_type):
        method = head.method.decode("ascii", "replace")
        text = f'Received a HEADERS frame with :method "{method}" which should be POST'
        return Refuse(Status(Code.INTERNAL, text), http_status=405)
    if head.path in METHODS or head.path.startswith(_JSON):
        text = f"invalid gRPC request content-type {quote(content_type)}"
        return Refuse(Status(Code.INVALID_ARGUMENT, text), http_status=415)
    return None


def _no_such_shard(named: bytes, names: list[bytes]) -> Status:
    known = ", ".join(name.decode() for name in names)
    return Status(
        Code.INVALID_ARGUMENT, f"esp: no shard is called {named.decode('utf-8', 'replace')!r}; there are {known}"
    )


def _unserved(path: bytes) -> Status:
    text = path.decode("utf-8", "replace")
    service, _, method = text[1:].rpartition("/")
    package, _, name = service.rpartition(".")
    if package in _PACKAGES and "/" not in name:
        return Status(Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")
    return Status(Code.UNIMPLEMENTED, f"unknown service {service}")
