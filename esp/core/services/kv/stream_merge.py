"""A RangeStream that spans shards: shard after shard, in key order.

etcd sends rows in chunks, and header, `more` and `count` with the last chunk (`rangeStream` in
server/etcdserver/v3_server.go of 3.7). Clients rely on that form: kube-apiserver takes the revision from the chunk that
reaches its limit. So esp cuts the shards' rows anew, as one etcd would cut them. The first chunk has FIRST_ROWS rows.
Each further chunk has twice or half as many rows as the one before, so that it comes near CHUNK_BYTES. The last rows
wait for the totals of all shards. When the limit is reached, esp still asks the remaining shards for their count. (etcd
has RangeStream from 3.7 on; an older shard answers Unimplemented, and then the whole call does.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from esp.core import errors
from esp.core.identity import Identity
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.kv.merge import part, refuse_range
from esp.core.services.revision import merged_header
from esp.core.shard_map import Segment
from esp.core.wire.status import Status

FIRST_ROWS: Final = 10
CHUNK_BYTES: Final = 1_572_864
"""etcd's default of --max-request-bytes."""


def refuse_range_stream(
    request: rpc_pb2.RangeRequest, shard_names: Sequence[str], boundary: bytes, *, at_token: bool = False
) -> Status | None:
    """The refusal of a valid RangeStream over several shards that has no exact answer; None if it has one.

    etcd accepts a sort target without an order, and then sorts each chunk by itself, which loses and repeats rows even
    on one etcd. Over several shards there is no answer to reproduce, so esp refuses this sort like any other.
    """
    if request.sort_target != rpc_pb2.RangeRequest.KEY and not request.count_only:
        return errors.STREAM_SORT
    return refuse_range(request, shard_names, boundary, at_token=at_token)


class StreamMerge:
    """The chunks of one RangeStream call, made of the shards' chunks.

    Ask for each `next_part` when the stream before has ended well, until None comes. Give every chunk to `feed` in the
    order of arrival, and send the chunks that `feed` returns. If a stream fails, the call fails, even after chunks were
    sent. The waiting rows are fewer than those of a chunk to the client and of a chunk of a shard together.
    """

    def __init__(
        self,
        request: rpc_pb2.RangeRequest,
        segments: Sequence[Segment],
        revisions: Mapping[str, int],
        identity: Identity,
        token: Callable[[Mapping[str, int]], int],
    ) -> None:
        """`revisions` has each shard's revision to read at, and is empty for "now"; `token` makes a token."""
        self._request = request
        self._segments = segments
        self._at_token = bool(revisions)
        self._revisions = dict(revisions)
        self._identity = identity
        self._token = token
        self._asked = 0
        self._headers: list[rpc_pb2.ResponseHeader] = []
        self._rows = 0
        self._count = 0
        self._more = False
        self._waiting: list[kv_pb2.KeyValue] = []
        self._chunk_rows = FIRST_ROWS

    @property
    def has_last_chunk(self) -> bool:
        """Whether the last chunk of the present part has come."""
        return len(self._headers) == self._asked

    def next_part(self) -> rpc_pb2.RangeRequest | None:
        """The request to the owner of the next segment; None if all have answered.

        Raises:
            ValueError: the last chunk of the stream before has not come. If that stream has ended, its shard is faulty
                and the call must fail.
        """
        if len(self._headers) < self._asked:
            raise ValueError("a shard's RangeStream ended without its header")
        if self._asked == len(self._segments):
            return None
        segment = self._segments[self._asked]
        asked = part(self._request, segment.range)
        if segment.shard in self._revisions:  # from a token, or from an earlier part of the same shard
            asked.revision = self._revisions[segment.shard]
            asked.serializable = False
        self._asked += 1
        if self._request.limit > 0 and not asked.count_only:
            asked.limit = self._request.limit - self._rows
            asked.count_only = not asked.limit
        return asked

    def feed(self, chunk: rpc_pb2.RangeStreamResponse) -> list[rpc_pb2.RangeStreamResponse]:
        """The chunks to send to the client after this chunk of a shard.

        Raises:
            ValueError: the shard sends more after its last chunk.
        """
        if len(self._headers) == self._asked:
            raise ValueError("a shard's RangeStream went on after its header")
        response = chunk.range_response
        self._rows += len(response.kvs)
        self._waiting.extend(response.kvs)
        send = []
        while len(self._waiting) > self._chunk_rows:
            send.append(self._cut())
        if response.HasField("header"):
            self._revisions.setdefault(self._segments[len(self._headers)].shard, response.header.revision)
            self._headers.append(response.header)
            self._count += response.count
            self._more = self._more or response.more or self._is_past_limit(response)
            if len(self._headers) == len(self._segments):
                send.append(self._last())
        return send

    def _cut(self) -> rpc_pb2.RangeStreamResponse:
        """The next chunk; more rows follow."""
        rows = self._chunk_rows
        response = rpc_pb2.RangeResponse(kvs=self._waiting[:rows])
        del self._waiting[:rows]
        size = response.ByteSize()
        if size < CHUNK_BYTES // 2:
            self._chunk_rows = rows * 2
        elif size > CHUNK_BYTES * 2:
            self._chunk_rows = max(1, rows // 2)
        return rpc_pb2.RangeStreamResponse(range_response=response)

    def _last(self) -> rpc_pb2.RangeStreamResponse:
        revision = self._request.revision if self._at_token else self._token(self._revisions)
        response = rpc_pb2.RangeResponse(
            header=merged_header(self._headers, self._identity, revision),
            kvs=self._waiting,
            more=self._more,
            count=self._count,
        )
        return rpc_pb2.RangeStreamResponse(range_response=response)

    def _is_past_limit(self, response: rpc_pb2.RangeResponse) -> bool:
        """Whether this shard has keys, but was only counted, because the limit was reached before."""
        return response.count > 0 and 0 < self._request.limit <= self._rows - len(response.kvs)
