"""How many snapshots are at work at once, over two shards that a test speaks for."""

from __future__ import annotations

import asyncio
from itertools import count

import grpc
import grpc.aio

from esp.core.pb import rpc_pb2
from tests.core.scripted_etcd import HeardCall
from tests.core.services.test_all_shards import Asked, run, until, world

PATH = "/etcdserverpb.KV/Range"
ALL = rpc_pb2.RangeRequest(key=b"a", range_end=b"z", limit=5)
MANY = 30


class Changing(Asked):
    """A shard in which there is another key whenever it is asked."""

    numbers = count(10)

    def answer_to(self, call: HeardCall) -> bytes:
        number = next(self.numbers)
        rows = rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=number), count=number)
        if call.path == PATH.encode():
            return rows.SerializeToString()
        asked = rpc_pb2.TxnRequest.FromString(bytes(call.body[5:]))
        operation = rpc_pb2.ResponseOp(response_range=rows)
        return rpc_pb2.TxnResponse(
            header=rows.header, succeeded=True, responses=[operation] * len(asked.success)
        ).SerializeToString()


def test_a_snapshot_has_its_places_from_the_second_round_to_the_last() -> None:
    async def work() -> None:
        async with world(parts=1, shard=Changing) as (proxy, shards, channel):

            async def ask() -> object:
                call = channel.unary_unary(PATH)(
                    ALL.SerializeToString(), timeout=30, metadata=[("esp-read", "snapshot")]
                )
                return await call.code()

            calls = [asyncio.create_task(ask()) for _ in range(MANY)]
            await until(lambda: proxy.gate.waiting == MANY - 1)
            while not all(call.done() for call in calls):
                if all(shard.open for shard in shards):
                    for shard in shards:
                        while shard.open:
                            shard.answer()
                await asyncio.sleep(0.001)
            assert {call.result() for call in calls} == {grpc.StatusCode.UNAVAILABLE}, "keys change in every round"
            assert max(shard.most for shard in shards) <= proxy.gate._limit + 1, "small parts take one place each"
            assert (set(proxy.gate.busy.values()), proxy.gate.waiting, proxy.gate.at_work) == ({0}, 0, {})

    run(work)
