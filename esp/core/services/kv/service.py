"""The KV service over several shards: sends each call to the shard that owns its keys.

A call for keys of one shard goes there unchanged, and so does the answer come back. The fast path finds the key in the
message's bytes (`peek`); a message of unusual form is parsed. A call that spans shards is served by `across`, or
refused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final

from esp.core import errors
from esp.core.keys import KeyRange
from esp.core.log.first_key import BEGINNING
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services import metadata
from esp.core.services.gate import LARGE_REQUEST, Entry, Gate
from esp.core.services.handlers import CoroutineCall, let_in_to_all, parse
from esp.core.services.kv import across, validate
from esp.core.services.kv.before_move import BeforeMove, has_revisions
from esp.core.services.kv.compaction import Compactions
from esp.core.services.kv.concat import MOST_SEGMENTS, Concat
from esp.core.services.kv.merge import delete_refused, refuse_range
from esp.core.services.kv.part_batch import PartBatches
from esp.core.services.kv.peek import asked_range, bare_key, bare_range, put_key, range_key
from esp.core.services.kv.range_bytes import part_messages
from esp.core.services.kv.read_batch import ReadBatches
from esp.core.services.kv.reading import segments_of
from esp.core.services.kv.routed import Routed, check
from esp.core.services.kv.spans import Spans
from esp.core.services.kv.stream_merge import refuse_range_stream
from esp.core.services.kv.translate import translate_filters
from esp.core.services.kv.txn_handler import Txn
from esp.core.services.lease import LeaseRetry
from esp.core.services.revision import position_of
from esp.core.shard_map import Segment
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.server_stream import Handler, ServerCall
from esp.core.wire.status import RpcError, Status

PATH: Final = b"/etcdserverpb.KV/"
FREE_CALLS: Final = 32
"""Open calls of a connection up to which a Range over shards with nothing but its keys needs no place."""


def handlers(
    routing: Routing,
    gate: Gate,
    lease_retry: LeaseRetry,
    compactions: Compactions,
    *,
    deletes_across_shards: bool,
    snapshots: bool,
    txn_snapshots: bool,
    snapshot_tries: int,
) -> Mapping[bytes, Handler]:
    """The handler of each RPC of the service, by path.

    Args:
        routing: the shards.
        gate: lets calls that span shards begin.
        lease_retry: takes over writes that a shard refused because it lacks their lease.
        compactions: serves Compact.
        deletes_across_shards: whether a DeleteRange that spans shards is served, shard by shard.
        snapshots: whether a Range that spans shards reads a snapshot, unless its metadata says otherwise.
        txn_snapshots: the same for a transaction that only reads.
        snapshot_tries: the most attempts at a snapshot while keys change.
    """
    return {
        PATH + b"Put": Put(routing, gate, lease_retry),
        PATH + b"Range": Range(routing, gate, snapshots=snapshots, snapshot_tries=snapshot_tries),
        PATH + b"RangeStream": RangeStream(routing, gate, snapshots=snapshots, snapshot_tries=snapshot_tries),
        PATH + b"DeleteRange": DeleteRange(routing, gate, served=deletes_across_shards),
        PATH + b"Txn": Txn(routing, gate, lease_retry, snapshots=txn_snapshots, snapshot_tries=snapshot_tries),
        PATH + b"Compact": Compact(routing, gate, compactions),
    }


AT_REVISIONS: Final = (PATH + b"Range", PATH + b"RangeStream", PATH + b"Txn")
"""The RPCs that may read at a revision of the client."""


class Put(Routed):
    """The handler of Put, which has one key and so one owner."""

    reads = False
    quick = True

    def __init__(self, routing: Routing, gate: Gate, lease_retry: LeaseRetry) -> None:
        super().__init__(routing, gate)
        self.lease_retry = lease_retry

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Sends the Put to the owner of its key."""
        key = put_key(message)
        if key is not None:
            shard = self.owners[bisect_right(self.starts, key) - 1]  # `ShardMap.owner`, spelled out
            if len(message) > LARGE_REQUEST:
                self.send(stream, message, shard)
            else:
                shard.splice(stream, message)
        else:
            super().on_message(stream, message)

    def route(self, stream: ServerCall, message: bytes) -> None:
        """Routes a Put of unusual form."""
        request = parse(rpc_pb2.PutRequest, message)
        check(validate.validate_put(request))
        self.pass_on(stream, request, self.routing.owner(request.key))

    def recover(self, stream: ServerCall, message: bytes, status: Status) -> bool:
        """Sends the Put once more if its shard lacks the lease, but the lease is alive."""
        if status != errors.LEASE_NOT_FOUND:
            return False
        if not message:
            return self.lease_retry.take_unkept(stream, status)
        request = parse(rpc_pb2.PutRequest, message)
        return self.lease_retry.take(
            stream, message, [request], status, self.routing.owner, self.outdated(stream, message)
        )


class _Ranges(Routed):
    """Reads a range of one shard, or merges those of several; as Range does, unless a subclass says otherwise."""

    idempotent = True
    what = "a Range"
    in_order = False
    """Whether shards are asked one after the other."""

    def __init__(self, routing: Routing, gate: Gate, *, snapshots: bool, snapshot_tries: int) -> None:
        super().__init__(routing, gate)
        self.snapshots = snapshots
        self.snapshot_tries = snapshot_tries
        self.undivided = routing.undivided
        self.former = routing.layout.former
        self.before = BeforeMove(self.former, self.shards, routing.tokens)
        self.has_former = bool(self.before)
        context = next(iter(self.shards.values())).context
        self.spans = Spans(routing, gate, context.observer)

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Sends it to the shard that owns the key or the whole range."""
        asked = asked_range(message, PREFIX_SIZE)
        if asked is not None and not (self.has_former and has_revisions(message)):
            key, range_end = asked
            if range_end is None:
                try:
                    owner = self.undivided.owner(key)
                except RpcError as error:
                    stream.finish(error.status)
                else:
                    self.send(stream, message, self.shards[owner])
                return
            shard = self.routing.sole_owner(key, range_end)
            if shard is not None:
                self.send(stream, message, shard)
                return
        super().on_message(stream, message)

    def reads_one_key(self, message: bytes) -> bool:
        """Whether the message is in the usual form, and without a range_end."""
        return range_key(message, PREFIX_SIZE) is not None

    def route(self, stream: ServerCall, message: bytes, *, late: bool = False) -> None:
        """Routes a Range of unusual form, one at a token, or one that spans shards; `late` is as for `Gate.let_in`."""
        request = parse(rpc_pb2.RangeRequest, message)
        check(self.validate(request))
        key_range = KeyRange.of_request(request.key, request.range_end)
        position = position_of(self.routing.tokens, request.revision)
        sole = self.routing.map.sole_owner(key_range)
        if sole is not None:
            if not request.range_end:
                self.undivided.owner(request.key)
            check(self.before.refuse_filters(request, sole))
            has_tokens = translate_filters(self.routing.tokens, request, sole)
            if position is None:
                stream.translated |= has_tokens
                shard = self.shards[sole]
                revision = request.revision
                if revision > 0 and self.before.is_stale(key_range, sole, revision):
                    raise errors.COMPACTED.error()
                self.pass_on(stream, request, shard)
                return
        else:
            check(self.undivided.refuse(self.what, key_range))
        segments = segments_of(self.routing, key_range)
        if self.has_former and position is not None:
            for segment in segments:
                if position.revision(segment.shard) < self.former.floor(segment.range, segment.shard):
                    raise errors.COMPACTED.error()
        if sole is None:
            names, boundary = [segment.shard for segment in segments], segments[1].range.start
            check(self.refuse(request, names, boundary, at_token=position is not None))
        wants_snapshot = position is None and self.wants_snapshot(stream)

        def begin(entry: Entry) -> None:
            def in_a_coroutine() -> None:
                call = CoroutineCall(stream, entry, self.outdated(stream, message))
                tries = self.snapshot_tries if wants_snapshot else 0
                work = self.across(call, request, segments, tries)
                call.start(self.spawn, work, entry.close)

            joins = self.joins() and not wants_snapshot
            concat = partial(Concat, stream, self.spans, entry, in_a_coroutine, message)
            if not joins or not concat().begin(request, segments, position):
                in_a_coroutine()

        asked = segments[:1] if self.in_order and not wants_snapshot else segments
        names = [segment.shard for segment in asked]
        size, costly = len(message), wants_snapshot
        self.gate.let_in(stream, names, size, begin, costly=costly, asked=message[:BEGINNING], at_once=late)

    def wants_snapshot(self, stream: ServerCall) -> bool:
        """Whether the call reads all shards at one moment."""
        wanted = stream.head.field(metadata.READ)
        return wanted == b"snapshot" or (self.snapshots and not wanted)  # "default": each at its own

    def joins(self) -> bool:
        """Whether the answer is one message, made of the shards' bytes."""
        return True

    def validate(self, request: rpc_pb2.RangeRequest) -> Status | None:
        """The fault that etcd would find, wherever the keys are."""
        return validate.validate_range(request)

    def refuse(
        self, request: rpc_pb2.RangeRequest, names: list[str], boundary: bytes, *, at_token: bool
    ) -> Status | None:
        """Why it cannot be answered exactly over several shards."""
        return refuse_range(request, names, boundary, at_token=at_token)

    def across(
        self, call: CoroutineCall, request: rpc_pb2.RangeRequest, segments: Sequence[Segment], tries: int
    ) -> Coroutine[Any, Any, None]:
        """Answers the call over several shards; with `tries`, the most attempts at a snapshot, from a snapshot."""
        return across.range_across(call, self.routing, request, segments, snapshot_tries=tries)


class Range(_Ranges):
    """The handler of Range. Joins reads of one key that come at the same time into one transaction."""

    quick = True

    def __init__(self, routing: Routing, gate: Gate, *, snapshots: bool, snapshot_tries: int) -> None:
        super().__init__(routing, gate, snapshots=snapshots, snapshot_tries=snapshot_tries)
        self.batches = {name: ReadBatches(shard, gate) for name, shard in self.shards.items()}
        parts = {name: PartBatches(shard, gate) for name, shard in self.shards.items()}
        self.part_batches = [parts[name] for name in routing.map.owners]  # as `owners`

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Sends it to the shard that owns the key or the whole range, or to several."""
        key = bare_key(message, PREFIX_SIZE)
        if key is None:
            if not self._spans(stream, message):
                super().on_message(stream, message)
            return
        try:
            owner = self.undivided.owner(key)
        except RpcError as error:
            stream.finish(error.status)
        else:
            self.batches[owner].add(stream, message)

    def _spans(self, stream: ServerCall, message: bytes) -> bool:
        """Serves a Range over shards with nothing but its keys; False if it is something else.

        While its client's answers are small and its calls few it needs no place: it costs little more than a read of
        each shard.
        """
        if self.undivided.ranges or self.wants_snapshot(stream):
            return False
        asked = bare_range(message)
        if asked is None:
            return False
        key, range_end = asked
        first, last = self.routing.map.span(key, range_end)
        batches = self.part_batches[first:last]
        count = last - first
        if not 1 < count <= MOST_SEGMENTS or len(set(batches)) < count:
            return False
        again = partial(self._again, stream, message)
        messages = part_messages(message, self.starts[first + 1 : last])
        connection = stream.connection
        if not connection.weight and not stream.trace and len(connection.streams) <= FREE_CALLS:
            Concat(stream, self.spans, None, again, message).begin_bare(batches, messages)
            return True

        def begin(entry: Entry) -> None:
            Concat(stream, self.spans, entry, again, message).begin_bare(batches, messages)

        names = [one.shard.name for one in batches]
        self.gate.let_in(stream, names, len(message), begin, asked=message[:BEGINNING])
        return True

    def _again(self, stream: ServerCall, message: bytes) -> None:
        """Serves a Range again that has found no connection, or has lost one."""
        try:
            self.route(stream, message, late=True)
        except RpcError as error:
            stream.finish(error.status)


class RangeStream(_Ranges):
    """The handler of RangeStream: as Range, with the answer in pieces (etcd 3.7)."""

    in_order = True
    reads = False

    def validate(self, request: rpc_pb2.RangeRequest) -> Status | None:
        """The fault that etcd would find, wherever the keys are."""
        return validate.validate_range_stream(request)

    def refuse(
        self, request: rpc_pb2.RangeRequest, names: list[str], boundary: bytes, *, at_token: bool
    ) -> Status | None:
        """Why it cannot be answered exactly over several shards."""
        return refuse_range_stream(request, names, boundary, at_token=at_token)

    def joins(self) -> bool:
        """False: the answer is a stream of messages."""
        return False

    def across(
        self, call: CoroutineCall, request: rpc_pb2.RangeRequest, segments: Sequence[Segment], tries: int
    ) -> Coroutine[Any, Any, None]:
        """Answers the call, in pieces."""
        return across.range_stream_across(call, self.routing, request, segments, snapshot_tries=tries)


class DeleteRange(Routed):
    """The handler of DeleteRange: deletes in one shard, or in several shards one after the other."""

    reads = False

    def __init__(self, routing: Routing, gate: Gate, *, served: bool) -> None:
        super().__init__(routing, gate)
        self.served = served

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Sends the delete of one key to its owner."""
        key = range_key(message, PREFIX_SIZE)
        if key is not None:
            self.send(stream, message, self.shards[self.owner(key)])
        else:
            super().on_message(stream, message)

    def route(self, stream: ServerCall, message: bytes) -> None:
        """Routes a delete of a range."""
        request = parse(rpc_pb2.DeleteRangeRequest, message)
        check(validate.validate_delete(request))
        shard = self.routing.sole_owner(request.key, request.range_end)
        if shard is not None:
            self.pass_on(stream, request, shard)
            return
        key_range = KeyRange.of_request(request.key, request.range_end)
        check(self.routing.undivided.refuse("a DeleteRange", key_range))
        if not self.served:
            raise delete_refused(*self.span(key_range)).error()
        segments = self.routing.map.split(key_range)
        self.serve_across(
            stream,
            (segments[0].shard,),
            message,
            lambda call: across.delete_across(call, self.routing, request, segments),
        )


class Compact(Routed):
    """The handler of Compact: at a token on every shard; at a plain revision if its meaning on each shard is known."""

    def __init__(self, routing: Routing, gate: Gate, compactions: Compactions) -> None:
        super().__init__(routing, gate)
        self.compactions = compactions

    def route(self, stream: ServerCall, message: bytes) -> None:
        """Compacts, or refuses."""
        request = parse(rpc_pb2.CompactionRequest, message)
        position = position_of(self.routing.tokens, request.revision)
        if position is None:
            self._begin(stream, message, lambda call: self.compactions.at_plain(call, request))
            return
        if position.offset > 0:
            raise errors.FUTURE_REV.error()
        missing = [name for name in self.shards if not position.revision(name)]
        if missing:
            raise errors.leaves_out("a compaction", missing).error()
        self._begin(stream, message, lambda call: self.compactions.at_token(call, request, position))

    def _begin(
        self, stream: ServerCall, message: bytes, work: Callable[[CoroutineCall], Coroutine[Any, Any, None]]
    ) -> None:
        def begin(entry: Entry) -> None:
            call = CoroutineCall(stream, entry)
            call.start(self.spawn, work(call), entry.close)

        let_in_to_all(self.gate, stream, self.shards, len(message), begin)
