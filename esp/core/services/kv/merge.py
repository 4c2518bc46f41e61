"""A Range or a DeleteRange that spans shards: the request to each shard, and one answer made of the shards' answers.

The answer to a Range is that of one etcd that holds all the keys: rows, order, limit, `more` and `count`. Two things
remain the shards' own. Each part is read at its own moment, so the answer as a whole is no snapshot. And where etcd 3.5
and 3.7 differ, each row is as its shard makes it: with keys_only, 3.7 leaves out the lease as well, unless it reads the
values to sort by them.

How etcd orders a Range (`server/etcdserver/txn/range.go`):
- no order, or KEY ascending: in key order, read up to the limit;
- a target but no order: etcd first takes, in key order, one row more than the limit; then it sorts these rows by the
  target, ascending, and cuts them at the limit;
- anything else: all rows are sorted, then cut.
For rows of the same version or value neither etcd nor esp promises an order.

esp refuses to sort and to filter by create or mod revision: that would compare revisions of different shards, which are
different clocks. esp also refuses a plain revision to read at, because it is a revision of one shard. esp serves a read
at a vector token.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from esp.core import errors
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.kv.rows import COUNT, DELETED, MORE, Rows, field
from esp.core.services.kv.validate import has_default_order, has_revision_filter
from esp.core.services.revision import read_at
from esp.core.services.row_order import by_value, by_version, bytes_of, in_turns, sort
from esp.core.shard_map import Segment
from esp.core.tokens import Position
from esp.core.wire.message import prefix
from esp.core.wire.status import Status

_Range = rpc_pb2.RangeRequest
KEY_TAG: Final = 0x0A
RANGE_END_TAG: Final = 0x12
_MAX_INT64 = (1 << 63) - 1


def refuse_range(
    request: rpc_pb2.RangeRequest, shard_names: Sequence[str], boundary: bytes, *, at_token: bool = False
) -> Status | None:
    """The refusal of a valid Range over several shards that has no exact answer; None if it has one.

    `shard_names` and `boundary` are for the text: see `errors.spans`. `at_token` says that the revision is a token.
    """
    if request.revision > 0 and not at_token:
        cure = "read at the revision of an answer over the same shards, without a revision, or inside one shard"
        return errors.spans("a Range at a revision", shard_names, boundary, cure)
    if request.count_only:  # etcd counts before it filters and sorts
        return None
    if has_revision_filter(request):
        cure = "read without the filter, or inside one shard"
        return errors.spans("a Range filtered by revision", shard_names, boundary, cure)
    if request.sort_target in (_Range.CREATE, _Range.MOD):
        cure = "sort by key, version or value, or read inside one shard"
        return errors.spans("a Range sorted by revision", shard_names, boundary, cure)
    return None


def delete_refused(shard_names: Sequence[str], boundary: bytes) -> Status:
    """The refusal of a DeleteRange over several shards by a proxy with `deletes_across_shards: refuse`."""
    cure = "this proxy is configured to refuse that; delete inside one shard at a time"
    return errors.spans("a DeleteRange", shard_names, boundary, cure)


def part(request: rpc_pb2.RangeRequest, segment_range: KeyRange) -> rpc_pb2.RangeRequest:
    """The request to the owner of `segment_range`, for a Range that `refuse_range` lets pass."""
    asked = _Range()
    asked.CopyFrom(request)
    asked.key, asked.range_end = segment_range.to_request()
    if _sorted_after_choosing(request):
        # etcd chooses these rows by key. So ask the shard for them by key, and sort later.
        asked.sort_target = _Range.KEY
        if request.limit > 0:
            asked.limit = min(request.limit + 1, _MAX_INT64)
    if request.sort_target == _Range.VALUE:
        asked.keys_only = False
    return asked


def requests(request: rpc_pb2.RangeRequest, segments: Sequence[Segment], position: Position | None) -> list[bytes]:
    """The request for each part, as `part` makes it, at the shard's revision of `position`; with its prefix.

    Raises:
        RpcError: the position has no revision for one of the shards.
    """
    rest = _Range()
    rest.CopyFrom(request if len(segments) == 1 else part(request, segments[0].range))
    rest.ClearField("key")
    rest.ClearField("range_end")
    messages = []
    fields = rest.SerializeToString()
    for segment in segments:
        if position is not None:
            rest.revision = read_at(position, segment.shard)
            rest.serializable = False
            fields = rest.SerializeToString()
        key, range_end = segment.range.to_request()
        last = field(RANGE_END_TAG, range_end) if range_end else b""
        messages.append(prefix(field(KEY_TAG, key) + last + fields))
    return messages


def with_limit(request: rpc_pb2.RangeRequest, limit: int) -> rpc_pb2.RangeRequest:
    """The same request for no more than `limit` rows."""
    asked = _Range()
    asked.CopyFrom(request)
    asked.limit = limit
    return asked


def count_of(request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeRequest:
    """The same request for the number of the keys."""
    asked = with_limit(request, 0)
    asked.count_only = True
    return asked


def sort_few(request: rpc_pb2.RangeRequest, rows: bytes) -> bytes:
    """The rows of the answer to `request`, out of those of all parts, in one step; not in key order.

    Raises:
        DecodeError: one is none.
    """
    answer = rpc_pb2.RangeResponse.FromString(rows)
    kvs = answer.kvs
    if _sorted_after_choosing(request) and request.limit > 0:
        del kvs[request.limit + 1 :]
    by_version = request.sort_target == _Range.VERSION
    kvs.sort(key=attrgetter("version" if by_version else "value"), reverse=request.sort_order == _Range.DESCEND)
    if request.limit > 0:
        del kvs[request.limit :]
    if request.keys_only and not by_version:  # the shards sent values for the sort
        for row in kvs:
            row.ClearField("value")
    return answer.SerializeToString()


async def merge_ranges(request: rpc_pb2.RangeRequest, responses: Sequence[Rows]) -> Rows:
    """The answer to `request`, made of the answers to each `part`, in the order of their keys.

    Long work goes a few rows at a time, with others' turns in between.
    """
    merged = Rows()
    limit = request.limit if request.limit > 0 else _MAX_INT64
    rows = sum(len(response.kvs) for response in responses)
    if request.sort_target == _Range.KEY:
        for response in reversed(responses) if request.sort_order == _Range.DESCEND else responses:
            room = limit - len(merged.kvs)
            if len(response.kvs) <= room:
                merged.kvs += response.kvs
                merged.bytes += response.bytes
            elif room:
                chosen = response.kvs[:room]
                merged.kvs += chosen
                merged.bytes += await bytes_of(chosen)
    else:
        merged.kvs = await _sorted_rows(request, responses, limit)
        merged.bytes = await bytes_of(merged.kvs)
    if request.keys_only and request.sort_target == _Range.VALUE:  # the shards sent values for the sort
        merged.kvs = [row async for portion in in_turns(merged.kvs) for row in map(_without_value, portion)]
        merged.bytes = await bytes_of(merged.kvs)
    merged.numbers[COUNT] = sum(response.count for response in responses)
    merged.numbers[MORE] = rows > limit or any(response.more for response in responses)
    merged.other = b"".join(response.other for response in responses)
    return merged


def _without_value(row: bytes) -> bytes:
    response = rpc_pb2.RangeResponse.FromString(row)
    response.kvs[0].ClearField("value")
    return response.SerializeToString()


def _sorted_after_choosing(request: rpc_pb2.RangeRequest) -> bool:
    return has_default_order(request) and request.sort_target != _Range.KEY


async def _sorted_rows(request: rpc_pb2.RangeRequest, responses: Sequence[Rows], limit: int) -> list[bytes]:
    """The rows of the answer, by version or value."""
    rows: list[bytes] = []
    for response in responses:
        rows += response.kvs
    if _sorted_after_choosing(request) and request.limit > 0:
        del rows[request.limit + 1 :]
    key = by_version if request.sort_target == _Range.VERSION else by_value
    return await sort(rows, key, descend=request.sort_order == _Range.DESCEND, limit=limit)


def delete_part(request: rpc_pb2.DeleteRangeRequest, segment_range: KeyRange) -> rpc_pb2.DeleteRangeRequest:
    """The DeleteRange for the owner of `segment_range`."""
    asked = rpc_pb2.DeleteRangeRequest()
    asked.CopyFrom(request)
    asked.key, asked.range_end = segment_range.to_request()
    return asked


def merge_deletes(responses: Sequence[Rows]) -> Rows:
    """The answer to a DeleteRange, made of the answers to each `delete_part`, in the order of their keys.

    Only for a delete that succeeded on all shards: otherwise the number of deleted keys would be too small.
    """
    merged = Rows()
    merged.numbers[DELETED] = sum(response.deleted for response in responses)
    for response in responses:
        merged.kvs += response.kvs
        merged.bytes += response.bytes
    merged.other = b"".join(response.other for response in responses)
    return merged
