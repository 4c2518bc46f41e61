"""The handler of Txn: a transaction in one shard, or reads without compares over several."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import chain
from typing import Final

from esp.core import errors
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services import metadata
from esp.core.services.gate import Gate
from esp.core.services.handlers import parse
from esp.core.services.kv import across, txn
from esp.core.services.kv.merge import refuse_range
from esp.core.services.kv.reading import segments_of
from esp.core.services.kv.routed import Routed, check
from esp.core.services.kv.translate import translate_filters, translate_txn
from esp.core.services.kv.txn_look import Look, look
from esp.core.services.lease import LeaseRetry
from esp.core.services.pace import Pace
from esp.core.services.revision import position_of
from esp.core.wire.message import PREFIX_SIZE, prefix
from esp.core.wire.server_stream import OVERLOADED, ServerStream
from esp.core.wire.status import RpcError, Status

LARGE: Final = 16_384
"""A transaction of more bytes counts as memory while esp looks through it."""


class Txn(Routed):
    """Serves a transaction if all keys of both branches are in one shard; over several only reads without compares."""

    def __init__(
        self, routing: Routing, gate: Gate, lease_retry: LeaseRetry, *, snapshots: bool, snapshot_tries: int
    ) -> None:
        super().__init__(routing, gate)
        self.lease_retry = lease_retry
        self.snapshots = snapshots
        self.snapshot_tries = snapshot_tries
        self.is_stale = self._is_stale if routing.layout.former else None

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        """Routes a transaction by all keys that it touches; in steps, because they may be many."""
        stream.connection.do(self._routed(stream, message))

    def _routed(self, stream: ServerStream, message: bytes) -> Iterator[None]:
        size = len(message) if len(message) > LARGE else 0
        if size and not stream.hold(size):
            stream.finish(OVERLOADED)
            return
        try:
            go_on = yield from self._in_steps(stream, message)
            stream.release(size)  # the next holder of the message counts it anew
            if not stream.is_over:
                go_on()
        except RpcError as error:
            stream.finish(error.status)

    def _in_steps(self, stream: ServerStream, message: bytes) -> Generator[None, None, Callable[[], None]]:
        """Looks through the transaction, and returns the next step as a function.

        Raises:
            RpcError: the transaction is refused.
        """
        found = yield from look(message, PREFIX_SIZE, self.routing.map, self.is_stale)
        if found.is_odd:
            # The shard must read the same in it as esp: so the shard gets the parsed message, serialised anew.
            message = prefix(self._parsed(stream, message, found).SerializeToString())
            found = yield from look(message, PREFIX_SIZE, self.routing.map, self.is_stale)
            if found.is_lost:
                raise txn.TOO_ODD.error()
        if found.is_stale:
            yield from self._validate(stream, message, found)
            raise errors.COMPACTED.error()
        if found.first is None:
            body, everywhere = message[PREFIX_SIZE:], tuple(self.shards)
            if len(everywhere) == 1:
                return partial(self.send, stream, message, self.shards[everywhere[0]])
            return lambda: self.serve_across(
                stream, everywhere, message, lambda call: across.txn_of_nothing(call, self.routing, body)
            )
        self.routing.apiservers.saw(found.first.start)
        if not found.knows_sorts:
            yield from self._validate(stream, message, found)
            raise errors.INVALID_SORT_OPTION.error()
        if found.other is not None:
            if found.only_reads:
                return (yield from self._read(stream, message, found))
            yield from self._validate(stream, message, found, txn.MAX_OPS)
            raise self._spans(found.first, found.other)
        assert found.owner is not None, "it spans no shards"
        try:
            message = yield from translate_txn(self.routing.tokens, message, found, found.owner)
        except RpcError:
            yield from self._validate(stream, message, found)
            raise
        return partial(self.send, stream, message, self.shards[found.owner])

    def _is_stale(self, keys: KeyRange, owner: str, revision: int) -> bool:
        return self.routing.layout.former.is_stale(keys, owner, revision, self.shards[owner].seen)

    def _parsed(
        self, stream: ServerStream, message: bytes, found: Look, bytes_each: int = txn.PARSED_BYTES
    ) -> rpc_pb2.TxnRequest:
        """The parsed message. Its memory, `bytes_each` for each part, is held until the call ends.

        Raises:
            RpcError: there is no memory for that; or the message is malformed, or too large to be parsed in one step.
        """
        if found.parts > txn.MAX_PARSED:
            raise txn.TOO_ODD.error()
        if found.parts > txn.MAX_OPS and not stream.hold(found.parts * bytes_each):
            raise OVERLOADED.error()
        request: rpc_pb2.TxnRequest = parse(rpc_pb2.TxnRequest, message)
        return request

    def _validate(
        self, stream: ServerStream, message: bytes, found: Look, most: int = txn.MAX_PARSED
    ) -> Generator[None, None, None]:
        """Raises etcd's own error for a transaction that will be refused anyway, unless the check takes long."""
        if found.parts <= txn.MAX_PARSED:
            check((yield from txn.validate(self._parsed(stream, message, found), most)))

    def _read(self, stream: ServerStream, message: bytes, found: Look) -> Generator[None, None, Callable[[], None]]:
        """The step that reads, over shards, the first branch: etcd runs that branch if nothing is compared.

        Raises:
            RpcError: there is no exact answer.
        """
        if found.parts > txn.MAX_PARSED:
            raise errors.TOO_MANY_OPS.error()
        request = self._parsed(stream, message, found, txn.READ_BYTES)
        check((yield from txn.validate(request)))
        pace = Pace()
        touched: list[KeyRange] = []
        for operation in chain(request.success, request.failure):
            if pace.is_over():
                yield
            touched.append(KeyRange.of_request(operation.request_range.key, operation.request_range.range_end))
        check(self.routing.undivided.refuse("a transaction", *touched))
        for operation in request.success:
            if pace.is_over():
                yield
            asked = operation.request_range
            if asked.revision < 0:
                raise errors.COMPACTED.error()  # a revision to etcd, in a transaction but not in a Range
            keys = KeyRange.of_request(asked.key, asked.range_end)
            at_token = position_of(self.routing.tokens, asked.revision) is not None
            sole = self.routing.map.sole_owner(keys)
            if sole is None:
                check(refuse_range(asked, *self.span(keys), at_token=at_token))
            else:
                translate_filters(self.routing.tokens, asked, sole)
        owned: dict[str, KeyRange] = {}
        for keys in touched:
            if pace.is_over():
                yield
            for segment in segments_of(self.routing, keys):
                owned.setdefault(segment.shard, segment.range)
        wanted = stream.head.field(metadata.READ)
        wants_snapshot = wanted in (b"snapshot", b"default") or (self.snapshots and not wanted)
        tries = self.snapshot_tries if wants_snapshot else 0
        return lambda: self.serve_across(
            stream, sorted(owned), message, lambda call: across.txn_across(call, self.routing, request, owned, tries)
        )

    def recover(self, stream: ServerStream, message: bytes, status: Status) -> bool:
        """Sends the transaction once more if its shard lacks the lease of a put, but the lease is alive."""
        if status != errors.LEASE_NOT_FOUND or len(self.shards) == 1:
            return False  # a single shard knows its leases best: LeaseRevoke and others pass esp by
        if not message:
            return self.lease_retry.take_unkept(stream, status)
        request = parse(rpc_pb2.TxnRequest, message)
        return self.lease_retry.take(stream, message, txn.puts(request), status, self.routing.owner)

    def _spans(self, one: KeyRange, other: KeyRange) -> RpcError:
        """The refusal of a transaction with two ranges in different shards, or with a range over several shards."""
        for keys in (one, other):
            if self.routing.map.sole_owner(keys) is None:
                names, boundary = self.span(keys)
                break
        else:
            low, high = sorted((one.start, other.start))
            names = [self.owner(low), self.owner(high)]
            boundary = self.span(KeyRange(low, high + b"\0"))[1]
        cure = "keep what a transaction touches, in both branches, inside one shard"
        return errors.spans("a transaction", names, boundary, cure).error()
