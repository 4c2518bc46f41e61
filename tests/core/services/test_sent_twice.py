"""A call that breaks again and again goes to its shard twice, and no more, whatever way the shard is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import grpc
import pytest
from google.protobuf.message import Message

from esp.core.pb import rpc_pb2
from esp.core.shard import is_probe
from esp.core.wire import frames
from tests.core.scripted_etcd import ScriptedConnection
from tests.core.services.test_at_work import Shard, World, run
from tests.core.wire.conversation import Frame, rst

RANGE = rpc_pb2.RangeRequest(key=b"a", range_end=b"z", sort_target=rpc_pb2.RangeRequest.VALUE, sort_order=1)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        pytest.param("/etcdserverpb.KV/Range", RANGE, id="reads of several shards"),
        pytest.param("/etcdserverpb.KV/Range", rpc_pb2.RangeRequest(key=b"a", range_end=b"z"), id="concatenated"),
        pytest.param("/etcdserverpb.KV/Range", rpc_pb2.RangeRequest(key=b"a"), id="passed on"),
        pytest.param("/etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmRequest(), id="asked of all shards"),
    ],
)
def test_a_call_that_breaks_again_and_again_is_sent_twice(path: str, request_: Message) -> None:
    async def work(world: World) -> None:
        heard: Counter[Shard] = Counter()

        def resets(shard: Shard, connection: ScriptedConnection, frame: Frame) -> None:
            call = connection.call(frame.stream)
            if call is None or is_probe(call.body):
                return
            if call.whole and frame.flags & 1 and call.path == path.encode():
                heard[shard] += 1
                connection.says(rst(frame.stream, frames.ErrorCode.INTERNAL_ERROR))

        for shard in (world.one, world.other):
            shard.etcd.on_frame = partial(resets, shard)
        client = world.client()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asyncio.wait_for(client.asks(path, request_.SerializeToString()), 20)
        assert error.value.details() == "etcdserver: request timed out"
        assert max(heard.values()) == 2, "to no shard more often, though the second shard may be given up sooner"

    run(work)
