"""Transactions with more operations than a shard allows: once it has refused one, esp refuses further ones itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.kv.txn_refused import MOST_KNOWN, RefusedTxns
from esp.core.shard.cluster import NONE_REFUSED
from esp.core.wire.status import Code, Status
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


async def is_asked(shard: Shard, count: int, status: Status) -> None:
    """Waits until esp asks with so many empty operations, and answers."""
    await until(lambda: shard.open)
    assert len(shard.open) == 1
    connection, call = shard.open.pop()
    asked = rpc_pb2.TxnRequest.FromString(bytes(call.body[5:]))
    assert list(asked.success) == [rpc_pb2.RequestOp()] * count
    connection.says(refusal(call.stream, status.code, status.message))


def test_after_a_refusal_no_transaction_with_more_than_the_shard_allows_comes_to_it() -> None:
    async def work(world: World) -> None:
        client, one, shard = world.client(), world.one, world.proxy.routing.shards["a"]
        call = await reaches(one, asks(client, 400))
        refuses(one)
        await is_refused(call)
        await is_asked(one, 129, errors.TOO_MANY_OPS)
        await until(lambda: shard.refused_ops == 129)
        heard = one.heard
        for count in (129, 400, 20_000):
            await is_refused(asks(client, count))
        assert one.heard == heard, "the shard sees none of these"
        call = await reaches(one, asks(client, 128))
        one.answers()
        await call
        other = await reaches(world.other, asks(client, 400, b"z"))
        world.other.answers()
        await other
        shard.forget_member()
        call = await reaches(one, asks(client, 400))
        one.answers()
        await call

    run(work)


def test_a_shard_that_allows_more_than_usual_is_asked_a_few_times() -> None:
    async def work(world: World) -> None:
        client, one, shard = world.client(), world.one, world.proxy.routing.shards["a"]
        call = await reaches(one, asks(client, 5000))
        refuses(one)
        await is_refused(call)
        for count in (129, 258, 516, 1032):
            await is_asked(one, count, errors.KEY_NOT_FOUND)
        await is_asked(one, 2064, errors.TOO_MANY_OPS)
        await until(lambda: shard.refused_ops == 2064)
        call = await reaches(one, asks(client, 2063))
        refuses(one)
        await is_refused(call)
        await is_refused(asks(client, 2063))
        assert not one.open, "what it allows is not asked for again"

    run(work)


@pytest.mark.parametrize("status", [errors.SERVER_STOPPED, errors.NO_CONNECTION])
def test_a_shard_that_cannot_tell_is_not_asked_further(status: Status) -> None:
    async def work(world: World) -> None:
        client, one, shard = world.client(), world.one, world.proxy.routing.shards["a"]
        call = await reaches(one, asks(client, 400))
        refuses(one)
        await is_refused(call)
        await is_asked(one, 129, status)
        await is_refused(asks(client, 400))
        assert shard.refused_ops == 400

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


def test_a_refusal_of_a_nested_one_says_nothing_about_the_number_of_operations() -> None:
    """etcd allows a nested transaction what the outer one leaves: 200 operations may be few, and too many together."""

    async def work(world: World) -> None:
        client, one, shard = world.client(), world.one, world.proxy.routing.shards["a"]
        put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"a"))
        nested = rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(success=[put] * 900))
        request = rpc_pb2.TxnRequest(success=[*[put] * 199, nested]).SerializeToString()
        call = await reaches(one, asyncio.create_task(client.asks(KV + "Txn", request)))
        refuses(one)
        await is_refused(call)
        assert shard.refused_ops == NONE_REFUSED
        call = await reaches(one, asks(client, 300))
        one.answers()
        await call

    run(work)


def test_no_more_than_some_are_remembered_until_they_are_answered() -> None:
    shard: Any = SimpleNamespace(refused_ops=NONE_REFUSED, dialled=1)
    begun: list[Coroutine[Any, Any, None]] = []
    refused = RefusedTxns({"a": shard}, begun.append)  # type: ignore[arg-type, return-value]
    connection = SimpleNamespace()
    calls: list[Any] = [
        SimpleNamespace(connection=connection, id=number, opened=1.0) for number in range(MOST_KNOWN + 2)
    ]
    for number, call in enumerate(calls):
        refused.sent(call, shard, 1000 - number)
    assert len(refused) == MOST_KNOWN
    refused.learn(calls[1])
    assert shard.refused_ops == NONE_REFUSED, "forgotten"
    refused.learn(calls[2])
    assert shard.refused_ops == 998
    assert (refused.by("a", 998), refused.by("a", 997), refused.by(None, 998)) == (True, False, True)
    assert len(refused) == MOST_KNOWN - 1
    refused.learn(calls[3])
    assert len(begun) == 1, "asks once"
    begun[0].close()


@pytest.mark.parametrize("which", ["connection", "opened"])
def test_a_process_with_several_connections_is_several_clients(which: str) -> None:
    """Those of one process by a Unix socket have the same name, and count their streams alike."""
    shard: Any = SimpleNamespace(refused_ops=NONE_REFUSED, dialled=1)
    begun: list[Coroutine[Any, Any, None]] = []
    refused = RefusedTxns({"a": shard}, begun.append)  # type: ignore[arg-type, return-value]
    one: Any = SimpleNamespace(peer="unix:/s, user 0:7", connection=SimpleNamespace(), id=1, opened=1.0)
    other: Any = SimpleNamespace(**{**vars(one), which: SimpleNamespace() if which == "connection" else 2.0})
    refused.sent(one, shard, 5000)
    refused.sent(other, shard, 200)
    refused.learn(one)
    assert shard.refused_ops == 5000
    begun[0].close()
