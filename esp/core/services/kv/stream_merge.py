"""A RangeStream that spans shards: shard after shard, in key order.

etcd sends rows in chunks, and header, `more` and `count` with the last of them (`rangeStream` in
server/etcdserver/v3_server.go of 3.7). Clients rely on that form: kube-apiserver takes the revision from the chunk that
reaches its limit. So what the shards send is cut anew, as one etcd would cut it: FIRST_ROWS rows, and then twice as
many or half as many as before, so that a chunk comes near CHUNK_BYTES; and the last rows wait for the totals of all
shards. When the limit is reached the remaining shards are still asked, for their count. (etcd offers RangeStream from
3.7 on; an older shard answers Unimplemented, and so does the whole call.)
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
    """Why a valid RangeStream cannot be answered exactly, now that it spans shards; None when it can.

    etcd lets a sort target without an order pass and then sorts each chunk by itself, which loses and repeats rows
    even on one etcd. Across shards there is no answer to equal, so it is refused like any other sort.
    """
    if request.sort_target != rpc_pb2.RangeRequest.KEY and not request.count_only:
        return errors.STREAM_SORT
    return refuse_range(request, shard_names, boundary, at_token=at_token)


class StreamMerge:
    """The chunks of one RangeStream call, made of those of the shards.

    Ask for each `next_part` when the stream before has ended well, until None comes. Hand every chunk to `feed` in the
    order of arrival, and send the chunks that `feed` returns. A stream that fails fails the call, even after chunks
    were sent. The rows that wait are fewer than one chunk's, and those of one chunk of a shard.
    """

    def __init__(
        self,
        request: rpc_pb2.RangeRequest,
        segments: Sequence[Segment],
        revisions: Mapping[str, int],
        identity: Identity,
        token: Callable[[Mapping[str, int]], int],
    ) -> None:
        """`revisions` is where each shard is to be read, empty for now; `token` makes one for where they were read."""
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
        """Whether the last chunk of the part asked for has come."""
        return len(self._headers) == self._asked

    def next_part(self) -> rpc_pb2.RangeRequest | None:
        """The request for the owner of the next segment; None when all have answered.

        Raises:
            ValueError: the stream before has not brought its last chunk. If that stream has ended, its shard is broken
                and the call has to fail.
        """
        if len(self._headers) < self._asked:
            raise ValueError("a shard's RangeStream ended without its header")
        if self._asked == len(self._segments):
            return None
        segment = self._segments[self._asked]
        asked = part(self._request, segment.range)
        if segment.shard in self._revisions:  # of a token, or at which an earlier part of the shard was read
            asked.revision = self._revisions[segment.shard]
            asked.serializable = False
        self._asked += 1
        if self._request.limit > 0 and not asked.count_only:
            asked.limit = self._request.limit - self._rows
            asked.count_only = not asked.limit
        return asked

    def feed(self, chunk: rpc_pb2.RangeStreamResponse) -> list[rpc_pb2.RangeStreamResponse]:
        """The chunks to send to the client now that this one of a shard has come.

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
        """The next chunk, behind which there are more rows."""
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
        """Whether this shard was only counted, because the limit was reached before, and does have keys."""
        return response.count > 0 and 0 < self._request.limit <= self._rows - len(response.kvs)
