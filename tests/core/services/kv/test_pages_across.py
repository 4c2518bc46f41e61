"""The requests to shards for a page of a Range; the test plays the shards."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from esp.core.pb import kv_pb2, rpc_pb2
from tests.core.scripted_etcd import HeardCall
from tests.core.services.test_all_shards import Asked, run, world

PATH = "/etcdserverpb.KV/Range"
Range = rpc_pb2.RangeRequest


class Listed(Asked):
    """A shard of 150 keys."""

    def __init__(self, etcd: object) -> None:
        super().__init__(etcd)  # type: ignore[arg-type]
        self.heard: list[Range] = []

    def answer_to(self, call: HeardCall) -> bytes:
        if call.path != PATH.encode():
            return super().answer_to(call)
        asked = Range.FromString(bytes(call.body[5:]))
        self.heard.append(asked)
        rows = 0 if asked.count_only else min(150, asked.limit or 150)
        kvs = [kv_pb2.KeyValue(key=b"%s%03d" % (asked.key, number)) for number in range(rows)]
        header = rpc_pb2.ResponseHeader(revision=9, cluster_id=7, member_id=8)
        return rpc_pb2.RangeResponse(
            header=header, kvs=kvs, count=150, more=not asked.count_only and rows < 150
        ).SerializeToString()


@pytest.mark.parametrize(
    ("request_", "first", "other"),
    [
        (Range(limit=99), [(99, False)], [(99, False)]),
        (Range(limit=100), [(100, False)], [(0, True)]),
        (Range(limit=150), [(150, False)], [(0, True)]),
        (Range(limit=160), [(160, False)], [(10, False)]),
        (Range(limit=100, sort_order=Range.DESCEND), [(0, True)], [(100, False)]),
        (Range(limit=100, sort_target=Range.VERSION, sort_order=Range.ASCEND), [(100, False)], [(100, False)]),
    ],
    ids=str,
)
def test_no_more_rows_are_asked_for_than_the_limit_leaves(
    request_: Range, first: list[tuple[int, bool]], other: list[tuple[int, bool]]
) -> None:
    request_.key, request_.range_end = b"a", b"z"

    async def work() -> None:
        async with world(parts=4, shard=Listed) as (_, asked, channel):
            shards = cast("list[Listed]", asked)
            for shard in shards:
                shard.answers_at_once = True
            answer = await channel.unary_unary(PATH)(request_.SerializeToString(), timeout=20)
            got = rpc_pb2.RangeResponse.FromString(answer)
            assert (len(got.kvs), got.count, got.more) == (request_.limit, 300, True)
            heard = [
                [(one.limit, one.count_only) for one in shard.heard] for shard in shards if isinstance(shard, Listed)
            ]
            assert heard == [first, other]
            await asyncio.sleep(0)

    run(work)
