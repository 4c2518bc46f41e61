r"""Requests of KV without the keys and leases of esp's own, where the shards hold the map.

Nearly all requests have no zero byte at all, or a usual form in which the key is found at once, and go on as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from google.protobuf.message import Message

from esp.core import errors
from esp.core.own_keys import FIRST, clipped, is_own_lease, may_name_lease
from esp.core.pb import rpc_pb2
from esp.core.services.handlers import Around, parse
from esp.core.services.kv.peek import put_key, range_key, txn_key
from esp.core.services.kv.txn_look import Look, look
from esp.core.services.pace import Pace
from esp.core.shard_map import ShardMap
from esp.core.wire.message import PREFIX_SIZE, prefix
from esp.core.wire.server_stream import OVERLOADED, Handler, ServerCall
from esp.core.wire.status import RpcError

_KV: Final = b"/etcdserverpb.KV/"
_PART_BYTES: Final = 512
"""About the memory that a compare or an operation takes when it is parsed."""
_OWN, _OTHER = "own", "other"
_TWO: Final = ShardMap((_OWN, _OTHER), 0, [b"", FIRST], [_OWN, _OTHER])
"""Tells keys of esp's own from others, as if these were shards."""


def without_own_keys(path: bytes, handler: Handler) -> Handler:
    """The handler of an RPC of KV, around the one that may send on what it gets; other RPCs have that one itself."""
    match path.removeprefix(_KV):
        case b"Put":
            return _Clipping(handler, rpc_pb2.PutRequest, put_key, _check_put)
        case b"Range" | b"RangeStream":
            return _Clipping(handler, rpc_pb2.RangeRequest, _range_key, _clip_range)
        case b"DeleteRange":
            return _Clipping(handler, rpc_pb2.DeleteRangeRequest, _range_key, _clip_range)
        case b"Txn":
            return _ClippingTxn(handler)
    return handler


class _Clipping(Around):
    """Clips requests of one type.

    Args:
        inner: serves the calls.
        request: the type.
        peek: the key of a request that has a usual form and names no range; None for any other.
        clip: clips a request, and tells whether it has changed; raises RpcError.
    """

    def __init__(
        self,
        inner: Handler,
        request: type[Message],
        peek: Callable[[bytes], bytes | None],
        clip: Callable[[Any], bool],
    ) -> None:
        super().__init__(inner)
        self._request = request
        self._peek = peek
        self._clip = clip

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Gives the request on, clipped where it has to be."""
        has_own_key = message.find(b"\0", PREFIX_SIZE) >= 0 and not (self._peek(message) or b"\0")[0]
        if has_own_key or may_name_lease(message):
            self.look(stream, message)
        else:
            self.inner.on_message(stream, message)

    def look(self, stream: ServerCall, message: bytes) -> None:
        """Looks into a request that may be for keys of esp's own."""
        try:
            request = parse(self._request, message)
            changed = self._clip(request)
        except RpcError as error:
            stream.finish(error.status)
            return
        self.inner.on_message(stream, prefix(request.SerializeToString()) if changed else message)


class _ClippingTxn(_Clipping):
    """Clips transactions, in steps."""

    def __init__(self, inner: Handler) -> None:
        super().__init__(inner, rpc_pb2.TxnRequest, txn_key, _clip_range)
        self.quick = False

    def look(self, stream: ServerCall, message: bytes) -> None:
        """Looks into a transaction that may be for keys of esp's own, or with its leases."""
        stream.connection.do(self._steps(stream, message))

    def _steps(self, stream: ServerCall, message: bytes) -> Iterator[None]:
        found = yield from look(message, PREFIX_SIZE, _TWO)
        held = 0
        if _may_be_own(found) or may_name_lease(message):
            held = len(message) + found.parts * _PART_BYTES
            if not stream.hold(held):
                stream.finish(OVERLOADED)
                return
            try:
                message = yield from _clipped_txn(message)
            except RpcError as error:
                if not stream.is_over:
                    stream.finish(error.status)
                return
            finally:
                stream.release(held)
        if not stream.is_over:
            self.inner.on_message(stream, message)


def _may_be_own(found: Look) -> bool:
    return found.is_odd or found.is_lost or (found.first is not None and found.owner != _OTHER)


def _clipped_txn(message: bytes) -> Generator[None, None, bytes]:
    """The transaction, clipped in steps.

    Raises:
        RpcError: it names keys of esp's own only, or its leases, or is no transaction.
    """
    request = parse(rpc_pb2.TxnRequest, message)
    pace, waiting, changed = Pace(), [request], False
    while waiting:
        one = waiting.pop()
        for compare in one.compare:
            changed |= _clip_range(compare)
            if pace.is_over():
                yield
        for operation in (*one.success, *one.failure):
            match operation.WhichOneof("request"):
                case "request_put":
                    _check_put(operation.request_put)
                case "request_range":
                    changed |= _clip_range(operation.request_range)
                case "request_delete_range":
                    changed |= _clip_range(operation.request_delete_range)
                case "request_txn":
                    waiting.append(operation.request_txn)
            if pace.is_over():
                yield
    return prefix(request.SerializeToString()) if changed else message


def _range_key(message: bytes) -> bytes | None:
    return range_key(message, PREFIX_SIZE)


def _check_put(request: Any) -> bool:
    clipped(request.key, b"")
    if is_own_lease(request.lease):
        raise errors.LEASE_NOT_FOUND.error()
    return False


def _clip_range(request: Any) -> bool:
    key = clipped(request.key, request.range_end)
    if key == request.key:
        return False
    request.key = key
    return True
