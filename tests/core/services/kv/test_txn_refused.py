"""Transactions with more operations than a shard allows: once it has refused one, esp refuses further ones itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.kv.txn_refused import MOST_KNOWN, RefusedTxns
from esp.core.shard.cluster import NONE_REFUSED
from esp.core.wire.status import Code
from tests.core.services.test_at_work import KV, Client, Shard, World, run, until
from tests.core.wire.conversation import refusal


def asks(client: Client, count: int, key: bytes = b"a") -> asyncio.Task[bytes]:
    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key))
    request = rpc_pb2.TxnRequest(success=[put] * count).SerializeToString()
    return asyncio.create_task(client.asks(KV + "Txn", request))


def refuses(shard: Shard) -> None:
    connection, call = shard.open.pop(0)
    connection.says(refusal(call.stream, Code.INVALID_ARGUMENT, errors.TOO_MANY_OPS.message))


async def is_refused(call: asyncio.Task[bytes]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == errors.TOO_MANY_OPS.message


async def reaches(shard: Shard, call: asyncio.Task[bytes]) -> asyncio.Task[bytes]:
    """Waits until the call is at work at the shard."""
    await until(lambda: len(shard.open) == 1)
    return call


def test_what_a_shard_has_refused_for_its_number_does_not_come_to_it_again() -> None:
    async def work(world: World) -> None:
        client, one = world.client(), world.one
        for count in (400, 300):
            call = await reaches(one, asks(client, count))
            refuses(one)
            await is_refused(call)
        heard = one.heard
        for count in (300, 400, 20_000):
            await is_refused(asks(client, count))
        assert one.heard == heard, "the shard sees none of these"
        call = await reaches(one, asks(client, 200))
        one.answers()
        await call
        other = await reaches(world.other, asks(client, 400, b"z"))
        world.other.answers()
        await other
        world.proxy.routing.shards["a"].forget_member()
        call = await reaches(one, asks(client, 400))
        one.answers()
        await call

    run(work)


def test_what_another_member_has_refused_says_nothing() -> None:
    async def work(world: World) -> None:
        shard = world.proxy.routing.shards["a"]
        call = await reaches(world.one, asks(world.client(), 400))
        shard.dialled += 1
        refuses(world.one)
        await is_refused(call)
        call = await reaches(world.one, asks(world.client(), 400))
        world.one.answers()
        await call

    run(work)


def test_no_more_than_some_are_remembered_until_they_are_answered() -> None:
    shard: Any = SimpleNamespace(refused_ops=NONE_REFUSED, dialled=1)
    refused = RefusedTxns({"a": shard})
    calls: list[Any] = [SimpleNamespace(peer="p", id=number) for number in range(MOST_KNOWN + 2)]
    for number, call in enumerate(calls):
        refused.sent(call, shard, 1000 - number)
    assert len(refused) == MOST_KNOWN
    refused.learn(calls[1])
    assert shard.refused_ops == NONE_REFUSED, "forgotten"
    refused.learn(calls[2])
    assert shard.refused_ops == 998
    assert (refused.by("a", 998), refused.by("a", 997), refused.by(None, 998)) == (True, False, True)
    assert len(refused) == MOST_KNOWN - 1
