"""Ranges that move between live shards: what clients see, who come with revisions of before, or in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from esp.core.pb import rpc_pb2
from esp.core.proxy import Proxy
from esp.core.shared_map import served
from tests.harness import Etcds
from tests.integration.mapped import Mapped, proxy_of
from tests.integration.test_fenced import Client, serve
from tests.stubs import rpc_pb2_grpc

Put, Range, Txn, Op = rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.TxnRequest, rpc_pb2.RequestOp
Compare, Create = rpc_pb2.Compare, rpc_pb2.WatchCreateRequest
X = b"x/", b"x0"
COMPACTED = grpc.StatusCode.OUT_OF_RANGE


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(3), ["m", "t"], tmp_path / "esp.yaml")


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def knows(proxy: Proxy, mapped: Mapped) -> Callable[[], bool]:
    """Whether a proxy has the map in force, and knows when the keys came."""
    layout = lambda: proxy.routing.layout  # noqa: E731
    return lambda: layout().epoch == mapped.now.epoch and all(one.is_known for one in layout().former.came)


async def first_of(client: Client, start: int, key: bytes = X[0], end: bytes = X[1]) -> Any:
    """What a watch from a revision tells behind `created`."""
    call = rpc_pb2_grpc.WatchStub(client.channel).Watch()
    await call.write(
        rpc_pb2.WatchRequest(create_request=Create(key=key, range_end=end, start_revision=start, progress_notify=True))
    )
    async with asyncio.timeout(30):
        assert (await call.read()).created
        answer = await call.read()
    call.cancel()
    return answer


async def refused(proxy: Proxy, mapped: Mapped, revision: int, token: int) -> None:
    """Revisions of before the move are compacted for a proxy with the map in force; those of after are not."""
    client = Client(proxy)
    get = client.get
    assert await code_of(get(*X, revision=revision)) is COMPACTED
    assert await code_of(get(b"x/1", revision=revision)) is COMPACTED
    read = Op(request_range=Range(key=b"x/1", revision=revision))
    assert await code_of(client.kv.Txn(Txn(success=[read]), timeout=30)) is COMPACTED
    assert await code_of(get(b"\1", b"\0", revision=token)) is COMPACTED
    assert (await first_of(client, revision)).compact_revision > 0
    assert (await first_of(client, revision + 1)).compact_revision > 0
    found = await get(*X)
    assert [pair.value for pair in found.kvs] == [b"two"]
    assert [pair.value for pair in (await get(*X, revision=found.header.revision)).kvs] == [b"two"]
    await client.put(b"x/2", b"new")
    events = (await first_of(client, found.header.revision + 1)).events
    assert [event.kv.value for event in events] == [b"new"]
    assert (await get(b"n", revision=mapped.revision("s1"))).count == 0  # the former owner's other keys
    await client.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"x/2"), timeout=30)
    await client.channel.close()


def test_revisions_of_before_are_never_asked_of_the_new_owner(mapped: Mapped) -> None:
    async def main() -> None:
        mapped.move(*X, "s1")
        async with proxy_of(mapped.config) as proxy:
            await until(knows(proxy, mapped))
            client = Client(proxy)
            await client.put(b"x/1", b"one")
            revision = (await client.put(b"x/1", b"two")).header.revision
            token = (await client.get(b"\1", b"\0")).header.revision
            assert await client.values(*X, revision=revision) == [b"two"]
            mapped.move(*X, "s0")
            await until(knows(proxy, mapped))
            await refused(proxy, mapped, revision, token)
            later = served(mapped.config, mapped.now, {name: mapped.held(name) for name in mapped.etcds})
            async with proxy_of(later) as fresh:
                await refused(fresh, mapped, revision, token)
            async with proxy_of(served(mapped.config, mapped.now)) as fresh:  # no shard has told it a revision
                await until(knows(fresh, mapped))
                await refused(fresh, mapped, revision, token)
            await client.channel.close()

    asyncio.run(main())


def test_calls_wait_between_the_cut_and_the_opening(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"n", b"one")
        change = mapped.begin(b"n", b"o", "s2")
        mapped.raise_target(change)
        mapped.cut(change)
        waiting = [asyncio.create_task(call) for call in (client.get(b"n"), client.put(b"n", b"two"))]
        await until(lambda: proxy.rerouting is not None and proxy.rerouting.waiting == len(waiting))
        await client.put(b"p", b"goes on")
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in waiting)
        mapped.copy(change)
        mapped.open(change)
        mapped.finish(change)
        await asyncio.gather(*waiting)
        assert await client.values(b"n") == [b"two"]
        assert mapped.read("s2", b"n") == [(b"n", b"two")]
        assert proxy.rerouted["refused"] == 0

    serve(mapped, work)


def test_a_move_that_is_given_up_leaves_all_as_it_was(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        revision = (await client.put(b"n", b"one")).header.revision
        change = mapped.begin(b"n", b"o", "s2")
        mapped.cut(change)
        waiting = asyncio.create_task(client.put(b"n", b"two"))
        await until(lambda: proxy.rerouting is not None and proxy.rerouting.waiting == 1)
        mapped.give_back(change)
        await waiting
        assert mapped.read("s1", b"n") == [(b"n", b"two")]
        assert await client.values(b"n", revision=revision) == [b"one"]
        assert proxy.rerouted["refused"] == 0

    serve(mapped, work)


def test_connections_by_the_next_guard_are_there_before_the_cut(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        def known() -> int:
            return len(proxy.running.shards)

        await client.put(b"n", b"one")
        change = mapped.begin(b"n", b"o", "s2")
        await until(lambda: known() == 5 and all(shard.is_ready for shard in proxy.running.shards))
        ready = set(proxy.running.shards)
        mapped.raise_target(change)
        mapped.cut(change)
        mapped.copy(change)
        mapped.open(change)
        mapped.finish(change)
        await until(knows(proxy, mapped))
        assert set(proxy.routing.shards.values()) <= ready
        await client.put(b"n", b"two")
        change = mapped.begin(b"n", b"o", "s1")
        await until(lambda: len(set(proxy.running.shards) - ready) == 2)
        mapped.give_back(change)
        await until(knows(proxy, mapped))
        await until(lambda: known() == 3)

    serve(mapped, work)


def test_a_call_with_a_translated_token_is_not_sent_to_another_shard(mapped: Mapped) -> None:
    """The token stands for another revision there."""

    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x/1", b"one")
        token = (await client.get(b"\1", b"\0")).header.revision
        mapped.move(*X, "s0")
        calls = [
            client.get(*X, min_mod_revision=token),
            client.kv.Txn(
                Txn(compare=[Compare(key=b"x/1", target=Compare.MOD, result=Compare.LESS, mod_revision=token)]),
                timeout=30,
            ),
        ]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError), outcome
            assert outcome.code() is grpc.StatusCode.UNAVAILABLE
            assert "the map of the shards has changed; nothing was done" in (outcome.details() or "")

    serve(mapped, work, follows=False)


def test_numbers_of_before_are_compared_for_equality_and_else_refused(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        for number in range(3):
            await client.put(b"x/%d" % number, b"one")
        await client.put(b"y", b"one")
        last = (await client.put(b"x/1", b"two")).header.revision
        before = {pair.key: pair for pair in (await client.get(*X)).kvs}
        token = (await client.get(b"\1", b"\0")).header.revision
        mapped.move(*X, "s0")
        await until(knows(proxy, mapped))
        after = {pair.key: pair for pair in (await client.get(*X)).kvs}
        for name in ("create_revision", "mod_revision"):
            order = [sorted(pairs, key=lambda key: getattr(pairs[key], name)) for pairs in (before, after)]
            assert order[0] == order[1]
            assert min(getattr(pair, name) for pair in after.values()) > last

        async def compared(**one: Any) -> bool | str:
            try:
                answer = await client.kv.Txn(Txn(compare=[Compare(key=b"x/1", **one)]), timeout=30)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
            return bool(answer.succeeded)

        for field, target in (("mod_revision", Compare.MOD), ("create_revision", Compare.CREATE)):
            for pair, is_same in ((before[b"x/1"], False), (after[b"x/1"], True)):
                number = {field: getattr(pair, field)}
                assert await compared(target=target, result=Compare.EQUAL, **number) is is_same
                assert await compared(target=target, result=Compare.NOT_EQUAL, **number) is not is_same
            assert await compared(target=target, result=Compare.GREATER) is True
            for result in (Compare.GREATER, Compare.LESS):
                told = await compared(target=target, result=result, **{field: last})
                assert str(told).startswith(
                    'FAILED_PRECONDITION: esp: the key "x/1" has come from another shard, and revisions up to '
                )
                told = await compared(target=target, result=result, **{field: token})
                assert str(told).startswith('FAILED_PRECONDITION: esp: the key "x/1" has come from another shard'), told
        assert await compared(target=Compare.VERSION, result=Compare.GREATER) is True
        told = await compared(target=Compare.VERSION, result=Compare.EQUAL, version=2)
        assert "versions count anew" in str(told)
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            assert await code_of(client.get(*X, **{name: last})) is grpc.StatusCode.FAILED_PRECONDITION
            assert await code_of(client.get(b"x/1", **{name: token})) is grpc.StatusCode.FAILED_PRECONDITION
            read = Op(request_range=Range(key=X[0], range_end=X[1], **{name: last}))
            assert await code_of(client.kv.Txn(Txn(success=[read]), timeout=30)) is grpc.StatusCode.FAILED_PRECONDITION
            assert await code_of(client.get(b"y", **{name: last})) is grpc.StatusCode.OK, "it stays where it was"
        newest = max(after.values(), key=lambda pair: pair.create_revision)
        found = await client.get(
            *X, max_create_revision=newest.create_revision - 1, sort_order=2, sort_target=2, limit=1
        )
        assert [pair.key for pair in found.kvs] == [b"x/1"]

    serve(mapped, work)
