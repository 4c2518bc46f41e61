"""Proxies by a map in the shards: each call for keys compares the shard's guard, and goes by another map if refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from esp.core import errors
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.proxy import Proxy
from esp.core.shard import Shard
from esp.core.shared_map import GUARD_KEY
from esp.core.wire.status import Code, Status
from tests.harness import Etcds, peer
from tests.integration.mapped import Mapped, proxy_of
from tests.stubs import rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc

Put, Range, Txn, Op = rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.TxnRequest, rpc_pb2.RequestOp
Delete, Compare = rpc_pb2.DeleteRangeRequest, rpc_pb2.Compare
ALL = {"key": b"\1", "range_end": b"\0"}


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(2), ["m"], tmp_path / "esp.yaml")


class Client:
    def __init__(self, proxy: Proxy) -> None:
        address = f"127.0.0.1:{proxy.bound[0][1]}"
        self.channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self.kv: Any = rpc_pb2_grpc.KVStub(self.channel)

    async def put(self, key: bytes, value: bytes) -> Any:
        return await self.kv.Put(Put(key=key, value=value), timeout=30)

    async def get(self, key: bytes, range_end: bytes = b"", **more: Any) -> Any:
        return await self.kv.Range(Range(key=key, range_end=range_end, **more), timeout=30)

    async def values(self, key: bytes, range_end: bytes = b"", **more: Any) -> list[bytes]:
        return [pair.value for pair in (await self.get(key, range_end, **more)).kvs]


def serve(mapped: Mapped, work: Callable[[Proxy, Client], Awaitable[None]], *, follows: bool = True) -> None:
    async def main() -> None:
        async with proxy_of(mapped.config, follows=follows) as proxy:
            client = Client(proxy)
            await work(proxy, client)
            await client.channel.close()

    asyncio.run(main())


def compared(key: bytes, value: bytes) -> Compare:
    return Compare(key=key, target=Compare.VALUE, value=value)


async def every_call(client: Client) -> list[bytes]:
    """One call of each kind that compares, for the key `x` and the keys around; the values that were read."""
    many = await asyncio.gather(*(client.values(b"x") for _ in range(20)))
    assert len(set(map(tuple, many))) == 1
    found = list(many[0])
    found += await client.values(b"w", b"z")  # a range of one shard
    found += await client.values(b"x", serializable=True)
    found += await client.values(b"\1", b"\0")  # of both, as bytes
    found += await client.values(b"\1", b"\0", sort_order=2, sort_target=4)
    read = Op(request_range=Range(key=b"x"))
    answer = await client.kv.Txn(Txn(compare=[compared(b"x", b"one")], success=[read], failure=[read]), timeout=30)
    found += [pair.value for pair in answer.responses[0].response_range.kvs]
    both = [Op(request_range=Range(key=key)) for key in (b"a", b"x")]
    answer = await client.kv.Txn(Txn(success=both), timeout=30)  # of both shards, at one moment
    found += [pair.value for one in answer.responses for pair in one.response_range.kvs]
    return found


def test_each_call_is_compared_and_answered_as_before(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x", b"one")
        assert set(await every_call(client)) == {b"one"}
        put = Op(request_put=Put(key=b"x", value=b"two"))
        remove = Op(request_delete_range=Delete(key=b"y"))
        answer = await client.kv.Txn(Txn(compare=[compared(b"x", b"no")], success=[put], failure=[remove]), timeout=30)
        assert not answer.succeeded
        assert answer.responses[0].response_delete_range.deleted == 0
        answer = await client.kv.Txn(Txn(compare=[compared(b"x", b"one")], success=[put]), timeout=30)
        assert answer.succeeded
        large = b"v" * 1_000_000
        await client.put(b"x", large)
        assert await client.values(b"x") == await client.values(b"w", b"z") == [large]
        answer = await client.kv.DeleteRange(Delete(key=b"x", prev_kv=True), timeout=30)
        assert [pair.value for pair in answer.prev_kvs] == [large]
        await client.put(b"b", b"1")
        await client.put(b"y", b"2")
        assert (await client.kv.DeleteRange(Delete(**ALL), timeout=30)).deleted == 2
        assert proxy.rerouted == {}

    serve(mapped, work)


def test_a_proxy_that_does_not_know_of_the_new_owner_changes_and_reads_nothing(mapped: Mapped) -> None:
    """What a proxy does that was frozen: it never hears of the map that has moved its keys."""

    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x", b"one")
        await client.put(b"a", b"one")
        mapped.move(b"w", b"z", "s0")
        mapped.ask("s0", Txn(success=[Op(request_put=Put(key=b"x", value=b"two"))]))
        delete, put = Delete(key=b"w", range_end=b"z"), Op(request_put=Put(key=b"x", value=b"wrong"))
        remove = Op(request_delete_range=Delete(key=b"x"))
        calls: list[Any] = [
            client.put(b"x", b"wrong"),
            client.put(b"x", b"w" * 200_000),
            client.get(b"x"),
            client.get(b"x", serializable=True),
            client.get(b"w", b"z"),
            client.get(b"w", b"z", limit=1),
            client.get(b"\1", b"\0"),
            client.get(b"\1", b"\0", sort_order=2, sort_target=4),
            client.kv.DeleteRange(delete, timeout=30),
            client.kv.Txn(Txn(compare=[compared(b"x", b"one")], success=[put], failure=[put]), timeout=30),
            client.kv.Txn(Txn(compare=[compared(b"x", b"two")], success=[put], failure=[remove]), timeout=30),
            client.kv.Txn(Txn(success=[Op(request_range=Range(key=key)) for key in (b"a", b"x")]), timeout=30),
            *(client.get(b"x") for _ in range(20)),
        ]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError), outcome
            assert outcome.code() == grpc.StatusCode.UNAVAILABLE
            assert "the map of the shards has changed; nothing was done" in (outcome.details() or "")
        assert mapped.read("s1", b"x") == [(b"x", b"one")]
        assert mapped.read("s0", b"x") == [(b"x", b"two")]

    serve(mapped, work, follows=False)


def test_calls_that_are_refused_go_to_the_new_owner(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        for turn, target in enumerate(["s0", "s1", "s0"]):
            value = b"%d" % turn
            await client.put(b"x", b"before")
            await client.put(b"y", b"before")
            mapped.move(b"w", b"z", target)
            other = "s1" if target == "s0" else "s0"
            answers = await asyncio.gather(
                client.put(b"x", value),
                client.kv.Txn(Txn(success=[Op(request_put=Put(key=b"y", value=value))]), timeout=30),
                client.get(b"w", b"z"),
                *(client.get(b"x") for _ in range(5)),
                return_exceptions=True,
            )
            assert not [answer for answer in answers if isinstance(answer, BaseException)]
            assert mapped.read(target, b"x", b"z") == [(b"x", value), (b"y", value)]
            assert mapped.read(other, b"x", b"z") == [(b"x", b"before"), (b"y", b"before")]
            assert await client.values(b"x") == [value]
            assert proxy.routing.layout.epoch == mapped.now.epoch

    serve(mapped, work)


def test_a_call_is_given_up_in_time_while_no_shard_tells_the_map(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where auth is on, and esp has no user: each look ends the wait, but not the time that the call has."""
    refusal = Status(Code.INVALID_ARGUMENT, "etcdserver: user name is empty")

    async def nothing(shards: Iterable[Shard], seconds: float) -> dict[str, Status]:
        return {shard.name: refusal for shard in shards}

    monkeypatch.setattr("esp.core.following.read", nothing)
    monkeypatch.setattr("esp.core.services.rerouting.WAIT_SECONDS", 0.5)
    monkeypatch.setattr("esp.core.services.rerouting.CALL_SECONDS", 1e9)

    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x", b"one")
        mapped.move(b"w", b"z", "s0")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.put(b"x", b"two")
        assert caught.value.details() == errors.MAP_CHANGED.message
        assert mapped.read("s0", b"x") == mapped.read("s1", b"x") == [(b"x", b"one")]
        said = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
        assert "no shard tells it (shard s0: etcdserver: user name is empty; shard s1:" in said[-1]  # both are ready

    serve(mapped, work)


def test_a_shard_that_has_lost_its_guard_refuses_and_says_why(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x", b"one")
        mapped.ask("s1", Txn(success=[Op(request_delete_range=Delete(key=GUARD_KEY))]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.put(b"x", b"two")
        assert "shard s1 does not hold the guard of the map of the shards (epoch 1)" in (caught.value.details() or "")
        await client.put(b"a", b"two")  # the other shard is not concerned
        mapped.hold("s1", mapped.now)
        await client.put(b"x", b"two")

    serve(mapped, work)


def test_what_compares_nothing_is_looked_at_behind_its_answer(start_etcd: Etcds, tmp_path: Path) -> None:
    mapped = Mapped(start_etcd.several(2, binary=peer("etcd")), ["m"], tmp_path / "esp.yaml")

    async def calls(client: Client) -> list[Any]:
        lock: Any = v3lock_pb2_grpc.LockStub(client.channel)
        election: Any = v3election_pb2_grpc.ElectionStub(client.channel)
        leases: Any = rpc_pb2_grpc.LeaseStub(client.channel)
        lease = (await leases.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=60), timeout=30)).ID
        chunks = [one async for one in client.kv.RangeStream(Range(key=b"x", range_end=b"y"), timeout=30)]
        locked = await lock.Lock(v3lock_pb2.LockRequest(name=b"x/lock", lease=lease), timeout=30)
        await lock.Unlock(v3lock_pb2.UnlockRequest(key=locked.key), timeout=30)
        campaign = v3election_pb2.CampaignRequest(name=b"x/leader", lease=lease, value=b"one")
        leader = (await election.Campaign(campaign, timeout=30)).leader
        await election.Proclaim(v3election_pb2.ProclaimRequest(leader=leader, value=b"two"), timeout=30)
        told = await election.Leader(v3election_pb2.LeaderRequest(name=b"x/leader"), timeout=30)
        await election.Resign(v3election_pb2.ResignRequest(leader=leader), timeout=30)
        return [[pair.value for one in chunks for pair in one.range_response.kvs], told.kv.value]

    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x", b"one")
        assert await calls(client) == [[b"one"], b"two"]
        mapped.move(b"w", b"z", "s0")
        mapped.ask("s0", Txn(success=[Op(request_put=Put(key=b"x", value=b"new"))]))
        assert await calls(client) == [[b"new"], b"two"]
        assert proxy.routing.layout.epoch == 2

    serve(mapped, work)

    async def outdated(proxy: Proxy, client: Client) -> None:
        lock: Any = v3lock_pb2_grpc.LockStub(client.channel)
        election: Any = v3election_pb2_grpc.ElectionStub(client.channel)
        stream = client.kv.RangeStream(Range(key=b"x", range_end=b"y"), timeout=30)
        refused: list[Any] = [
            stream.read(),
            lock.Lock(v3lock_pb2.LockRequest(name=b"x/lock"), timeout=30),
            election.Leader(v3election_pb2.LeaderRequest(name=b"x/none"), timeout=30),
        ]
        for outcome in await asyncio.gather(*refused, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError), outcome
            assert "the map of the shards has changed" in (outcome.details() or "")

    serve(mapped, outdated, follows=False)  # by the first map


def test_no_acknowledged_write_is_lost_and_no_read_is_stale_while_keys_move_back_and_forth(mapped: Mapped) -> None:
    """Each worker writes a key of its own and reads it again, through one of three proxies in turn."""

    async def worker(clients: list[Client], number: int, over: asyncio.Event, counts: list[int]) -> None:
        key = b"x/%d" % number
        written = 0
        while not over.is_set():
            client = clients[(number + written) % len(clients)]
            written += 1
            value = b"%d" % written
            if written % 2:
                await client.put(key, value)
            else:
                await client.kv.Txn(Txn(success=[Op(request_put=Put(key=key, value=value))]), timeout=30)
            reader = clients[(number + written) % len(clients)]
            assert await reader.values(key) == [value]
            found = await reader.get(b"x/", b"x0")
            assert [pair.value for pair in found.kvs if pair.key == key] == [value]
            counts[number] = written

    async def main() -> None:
        async with proxy_of(mapped.config) as one, proxy_of(mapped.config) as two, proxy_of(mapped.config) as three:
            clients = [Client(proxy) for proxy in (one, two, three)]
            over = asyncio.Event()
            counts = [0] * 8
            workers = [asyncio.create_task(worker(clients, number, over, counts)) for number in range(len(counts))]
            for target in ("s0", "s1") * 4:
                before = list(counts)
                while any(now < then + 3 for now, then in zip(counts, before, strict=True)):
                    assert not any(task.done() for task in workers)
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(mapped.move, b"x", b"y", target)
            over.set()
            await asyncio.gather(*workers)
            held = dict(mapped.read("s1", b"x", b"y"))
            assert [held[b"x/%d" % number] for number in range(len(counts))] == [b"%d" % count for count in counts]
            async with asyncio.timeout(60):
                while {proxy.routing.layout.epoch for proxy in (one, two, three)} != {9}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert one.rerouted["rerouted"] + two.rerouted["rerouted"] + three.rerouted["rerouted"] > 0
            for client in clients:
                await client.channel.close()

    asyncio.run(main())
