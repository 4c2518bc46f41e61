"""KV calls that span shards: each shard is asked for its part, clipped to the keys it owns; the answers are merged.

An answer is whole, or it is an error: if a part fails, the call fails. A read at a token reads each shard at the
revision that the token stands for there. The answer has the same token, so that all pages of a list show one position.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.background import all_of
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.handlers import CoroutineCall
from esp.core.services.kv.merge import delete_part, merge_deletes, merge_ranges, part
from esp.core.services.kv.reading import TXN, Parts, ask_part, ask_rows, check_ops, read_all, segments_of, show_all
from esp.core.services.kv.rows import DELETE_FORM, HEADER_TAG, TXN_FORM, Answer, Rows, field, nested_head
from esp.core.services.kv.snapshot import counting, snapshot
from esp.core.services.kv.stream_merge import StreamMerge
from esp.core.services.metadata import has_token
from esp.core.services.revision import merged_header, position_of, read_at, token
from esp.core.services.row_order import parse_row
from esp.core.shard import Shard, check_guard
from esp.core.shard_map import Segment
from esp.core.wire.call import BrokenCall
from esp.core.wire.frames import MAX_FRAME_SIZE
from esp.core.wire.message import prefix
from esp.core.wire.status import OK, Code, RpcError, Status
from esp.core.wording import counted, shard_called, was

_Range = rpc_pb2.RangeRequest


async def range_across(
    call: CoroutineCall, routing: Routing, request: _Range, segments: Sequence[Segment], *, snapshot_tries: int = 0
) -> None:
    """Answers a Range. All shards are read at its token, at the moment of a snapshot, or each at its own moment.

    Args:
        call: the client's call.
        routing: the shards.
        request: valid and not refused.
        segments: the part of the range that each shard owns.
        snapshot_tries: the most attempts at a snapshot; 0 for no snapshot.

    Raises:
        RpcError: a shard's, as it came; or there was no snapshot.
    """
    read = _Reading(routing)
    read.add(request, segments)
    answers: Mapping[str, Parts] | None = None
    if snapshot_tries and request.revision <= 0:
        request.revision, answers = await snapshot(call, routing, read.parts, snapshot_tries)
        if answers is None:
            read = _Reading(routing)
            read.add(request, segments)
    if answers is None:
        answers = await read_all(call, routing, read.parts)
    revision = request.revision if request.revision > 0 else token(routing, _reached(answers))
    header = merged_header([parts.header for parts in answers.values()], routing.identity, revision)
    await _respond(call, header, await read.answer(request, segments, answers))


async def _respond(call: CoroutineCall, header: rpc_pb2.ResponseHeader, rows: Rows) -> None:
    written = field(HEADER_TAG, header.SerializeToString())
    await call.respond(rows.size(written), rows.pieces(written, call.stream.release))


async def txn_across(
    call: CoroutineCall,
    routing: Routing,
    request: rpc_pb2.TxnRequest,
    owned: Mapping[str, KeyRange],
    snapshot_tries: int,
) -> None:
    """Answers a transaction that compares nothing and only reads: all shards at one moment, or each at its own.

    Args:
        call: the client's call.
        routing: the shards.
        request: valid and not refused.
        owned: for each shard that owns any key of the transaction, some of these keys.
        snapshot_tries: the most attempts at a snapshot; 0 for no snapshot.

    The reads of the branch that does not run go to their shards as well, which check the permissions for them.

    Raises:
        RpcError: a shard's, as it came; or there was no snapshot.
    """
    count = max(len(request.success), len(request.failure))
    await check_ops(call, routing, owned, count)  # first, because all other work grows with the number of operations
    unread = _Reading(routing)
    for operation in request.failure:
        one = operation.request_range
        keys = KeyRange.of_request(one.key, one.range_end)
        unread.add(_Range(key=one.key, range_end=one.range_end), segments_of(routing, keys))
    asked = [operation.request_range for operation in request.success]
    split = [segments_of(routing, KeyRange.of_request(one.key, one.range_end)) for one in asked]
    headers = await show_all(call, routing, unread.parts) if unread.parts else {}
    latest = [(one, segments) for one, segments in zip(asked, split, strict=True) if one.revision <= 0]
    revision = 0
    answers: Mapping[str, Parts] | None = None
    if latest and snapshot_tries:
        read = _Reading(routing)
        for one, segments in latest:
            read.add(one, segments)
        revision, answers = await snapshot(call, routing, read.parts, snapshot_tries)
        for one, _ in latest:
            one.revision = revision
    if answers is None or len(latest) < len(asked):
        read = _Reading(routing)
        for one, segments in zip(asked, split, strict=True):
            read.add(one, segments)
        answers = await read_all(call, routing, read.parts)
    await check_ops(call, routing, owned, count)  # again: a refusal may have shown a lower limit
    # If nothing is read, the answer is about the shards that checked permissions.
    headers = {shard: parts.header for shard, parts in answers.items()} or headers
    revision = revision or token(routing, {shard: header.revision for shard, header in headers.items()})
    header = merged_header(list(headers.values()), routing.identity, revision)
    results = [await read.answer(one, segments, answers) for one, segments in zip(asked, split, strict=True)]
    front = rpc_pb2.TxnResponse(header=header, succeeded=True).SerializeToString()
    inner = field(HEADER_TAG, rpc_pb2.ResponseHeader(revision=revision).SerializeToString())  # as etcd does
    sizes = [rows.size(inner) for rows in results]
    heads = [nested_head(TXN_FORM, size) for size in sizes]
    size = len(front) + sum(map(len, heads)) + sum(sizes)
    # A small answer leaves whole; its memory is given back at the end of the call.
    release = call.stream.release if size > MAX_FRAME_SIZE else _keep
    pieces = (rows.pieces(head + inner, release) for head, rows in zip(heads, results, strict=True))
    await call.respond(size, chain((front,), chain.from_iterable(pieces)))


def _keep(size: int) -> None:
    """Does nothing, where memory would be given back."""


async def txn_of_nothing(call: CoroutineCall, routing: Routing, request: bytes) -> None:
    """Answers a transaction without any key, unparsed. No shard owns such a transaction, so all shards run it.

    The first shard runs it alone at first: what etcd refuses, as it does a huge number of operations, costs one shard.

    Raises:
        RpcError: a shard's, as it came.
    """

    def ask(shard: str) -> Coroutine[Any, Any, rpc_pb2.TxnResponse]:
        return call.timed(ask_part(call, routing, shard, TXN, request, rpc_pb2.TxnResponse, idempotent=True))

    first, *others = routing.shards
    answers = [await ask(first), *await all_of([ask(shard) for shard in others])]
    reached = [answer.header.revision for answer in answers]
    revision = token(routing, dict(zip(routing.shards, reached, strict=True)))
    response = answers[0]  # the answers differ only in the header
    response.header.CopyFrom(merged_header([answer.header for answer in answers], routing.identity, revision))
    call.stream.respond(response.SerializeToString())


class _Reading:
    """The parts of one or several Ranges, by shard, and the way back from the shards' answers.

    Attributes:
        parts: the Ranges for each shard, in the order of `add`.
    """

    def __init__(self, routing: Routing) -> None:
        self.parts: dict[str, list[_Range]] = {}
        self._routing = routing
        self._taken: dict[str, Iterator[Rows]] = {}

    def add(self, request: _Range, segments: Sequence[Segment]) -> None:
        """Adds the parts of one Range.

        Raises:
            RpcError: the Range's token has no revision for one of its shards.
        """
        position = position_of(self._routing.tokens, request.revision)
        for segment in segments:
            asked = _Range()
            # If one shard owns the whole range, it sorts, filters and cuts the rows itself, also by its revisions.
            asked.CopyFrom(request if len(segments) == 1 else part(request, segment.range))
            if position is not None:
                asked.revision = read_at(position, segment.shard)
                asked.serializable = False  # a member that lags behind may not have the revision yet
            elif asked.revision < 0:
                asked.revision = 0  # the same in a Range; in a transaction a negative one is an error
            self.parts.setdefault(segment.shard, []).append(asked)

    async def answer(self, request: _Range, segments: Sequence[Segment], answers: Mapping[str, Parts]) -> Rows:
        """The answer to the next Range, in the order in which the Ranges were added."""
        if not self._taken:
            self._taken = {shard: iter(parts.responses) for shard, parts in answers.items()}
        responses = [next(self._taken[segment.shard]) for segment in segments]
        if len(responses) == 1:
            return responses[0]
        try:
            return await merge_ranges(request, responses)
        except DecodeError:
            raise self._blamed(segments, responses) from None

    def _blamed(self, segments: Sequence[Segment], responses: Sequence[Rows]) -> RpcError:
        """The error that names the shard with a malformed row."""
        for segment, rows in zip(segments, responses, strict=True):
            for row in rows.kvs:
                try:
                    parse_row(row)
                except DecodeError:
                    return self._routing.shards[segment.shard].blamed("has a row that is no KeyValue")
        raise AssertionError("one of the rows cannot be parsed")


def _reached(answers: Mapping[str, Parts]) -> dict[str, int]:
    return {shard: parts.header.revision for shard, parts in answers.items()}


async def range_stream_across(
    call: CoroutineCall, routing: Routing, request: _Range, segments: Sequence[Segment], *, snapshot_tries: int = 0
) -> None:
    """Answers a RangeStream, shard after shard. Each chunk is passed on when it has come and the client takes it.

    Raises:
        RpcError: a shard's, as it came, even after chunks were sent; or there was no snapshot.
    """
    stream = call.stream
    if snapshot_tries and request.revision <= 0:
        ranges: dict[str, list[KeyRange]] = {}
        for segment in segments:
            ranges.setdefault(segment.shard, []).append(segment.range)
        request.revision, _ = await snapshot(call, routing, counting(ranges), snapshot_tries)
    position = position_of(routing.tokens, request.revision)
    revisions = {} if position is None else {one.shard: read_at(position, one.shard) for one in segments}
    merged = StreamMerge(request, segments, revisions, routing.identity, lambda reached: token(routing, reached))
    for segment in segments:
        asked = merged.next_part()
        assert asked is not None, "one part for each segment"
        shard = routing.shards[segment.shard]
        call.enter(segment.shard)
        is_checked = shard.guard is None
        chunks = await shard.open(stream.forward, asked.SerializeToString(), stream.remaining(), stream)
        try:
            while (message := await chunks.read()) is not None:
                if not is_checked:
                    is_checked = True
                    await check_guard(shard, call.metadata, stream.remaining())
                call.replied(segment.shard)  # the rest comes at the pace of the client
                if merged.has_last_chunk:
                    raise shard.blamed("goes on after its last chunk")
                for chunk in merged.feed(shard.parsed(rpc_pb2.RangeStreamResponse, message)):
                    stream.start()
                    await call.write(prefix(chunk.SerializeToString()))
        except BrokenCall:
            raise errors.REQUEST_TIMED_OUT.error() from None
        finally:
            chunks.cancel()
        if not merged.has_last_chunk:
            raise shard.blamed("ends without its last chunk")
    if merged.next_part() is not None:
        raise AssertionError("more parts than segments")
    stream.finish(OK)


async def delete_across(
    call: CoroutineCall, routing: Routing, request: rpc_pb2.DeleteRangeRequest, segments: Sequence[Segment]
) -> None:
    """Answers a DeleteRange, one shard after the other. Not atomic: a later shard may fail.

    Raises:
        RpcError: the first shard's, as it came; Unavailable if shards before the failed one have deleted.
    """
    for shard in _distinct(routing, segments):
        if not shard.is_ready:
            raise (shard.barred or errors.NO_CONNECTION).error()
    asked_of = [(segment, delete_part(request, segment.range)) for segment in segments]
    if has_token(call.stream.head):
        await _check_permitted(call, routing, asked_of)
    answers: list[Answer] = []
    for segment, asked in asked_of:
        try:
            answers.append(
                await ask_rows(
                    call, routing, segment.shard, call.stream.head.path, asked, DELETE_FORM, idempotent=False
                )
            )
        except RpcError as error:
            deleted = sum(rows.deleted for answer in answers for rows in answer.responses)
            if not deleted:
                raise
            were = f"{counted(deleted, 'key')} {was(deleted)}"
            text = f"esp: {were} deleted before {shard_called(segment.shard)} failed: {error.status.message}"
            raise Status(Code.UNAVAILABLE, text).error() from None
    headers = [answer.header for answer in answers]
    # If a shard owns several parts, the revision of its last answer counts: that is behind all deletions.
    reached = {segment.shard: header.revision for segment, header in zip(segments, headers, strict=True)}
    header = merged_header(headers, routing.identity, token(routing, reached))
    await _respond(call, header, merge_deletes([rows for answer in answers for rows in answer.responses]))


async def _check_permitted(
    call: CoroutineCall, routing: Routing, asked_of: Sequence[tuple[Segment, rpc_pb2.DeleteRangeRequest]]
) -> None:
    """Asks every shard whether the client may delete its part, before any shard deletes.

    Raises:
        RpcError: a shard's, as it came: the permission is missing, or the client's token is stale.
    """
    # etcd only checks permissions for the branch that does not run.
    operations: dict[str, list[rpc_pb2.RequestOp]] = {}
    for segment, asked in asked_of:
        operations.setdefault(segment.shard, []).append(rpc_pb2.RequestOp(request_delete_range=asked))
    questions = [
        (shard, rpc_pb2.TxnRequest(failure=parts[first : first + routing.shards[shard].max_txn_ops]))
        for shard, parts in operations.items()
        for first in range(0, len(parts), routing.shards[shard].max_txn_ops)
    ]
    asks = (
        ask_part(call, routing, shard, TXN, asked, rpc_pb2.TxnResponse, idempotent=True) for shard, asked in questions
    )
    await all_of([call.timed(each) for each in asks])


def _distinct(routing: Routing, segments: Sequence[Segment]) -> list[Shard]:
    return [routing.shards[name] for name in dict.fromkeys(segment.shard for segment in segments)]
