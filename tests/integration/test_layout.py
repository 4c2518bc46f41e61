"""A shard map with one shard more replaces another, and is taken back, while clients are at work."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from esp.core import config
from esp.core.config import Config
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2, v3lock_pb2
from esp.core.proxy import Proxy
from tests.harness import Etcds, connect, freeze, write_config
from tests.stubs import rpc_pb2_grpc, v3lock_pb2_grpc

Put, Range, Txn, Op = rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.TxnRequest, rpc_pb2.RequestOp
ALL = {"key": b"\0", "range_end": b"\0"}


class Client:
    """A client on a connection of its own.

    Attributes:
        done: how many calls have ended well, by name.
        failed: what ended otherwise.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{proxy.bound[0][1]}", [("grpc.use_local_subchannel_pool", 1)]
        )
        self.kv: Any = rpc_pb2_grpc.KVStub(self.channel)
        self.lease: Any = rpc_pb2_grpc.LeaseStub(self.channel)
        self.maintenance: Any = rpc_pb2_grpc.MaintenanceStub(self.channel)
        self._watch: Any = rpc_pb2_grpc.WatchStub(self.channel)
        self.done: dict[str, int] = {}
        self.failed: list[str] = []

    async def get(self, **fields: Any) -> Any:
        return await self.kv.Range(Range(**fields), timeout=20)

    async def put(self, key: bytes, value: bytes = b"", lease: int = 0) -> Any:
        return await self.kv.Put(Put(key=key, value=value, lease=lease), timeout=20)

    async def watch(self, **create: Any) -> Any:
        watch = self._watch.Watch()
        await watch.write(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(**create)))
        async with asyncio.timeout(20):
            assert (await watch.read()).created
        return watch

    async def repeats(self, name: str, call: Callable[[], Awaitable[object]]) -> None:
        """Calls again and again, until cancelled."""
        while True:
            try:
                await call()
                self.done[name] = self.done.get(name, 0) + 1
            except (grpc.aio.AioRpcError, AssertionError) as error:
                self.failed.append(f"{name}: {error!r}")
                return


async def next_value(watch: Any) -> bytes:
    """The value of the next event."""
    async with asyncio.timeout(20):
        while True:
            for event in (await watch.read()).events:
                return bytes(event.kv.value)


async def how_it_ends(watch: Any) -> tuple[grpc.StatusCode, str]:
    """The end of a stream, whatever comes before."""
    async with asyncio.timeout(20):
        try:
            while await watch.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@asynccontextmanager
async def at_work(client: Client, lease_id: int, moving: bytes = b"y") -> AsyncIterator[None]:
    """Meanwhile the client calls without a pause: reads, writes and transactions in one shard and over all.

    `moving` is a key, or the beginning of one, that it writes.
    """
    keepalives = client.lease.LeaseKeepAlive()
    read = Op(request_range=Range(key=b"b"))
    delete = rpc_pb2.DeleteRangeRequest(key=b"c", range_end=b"x")
    across = [Op(request_range=Range(key=key)) for key in (b"b", b"n", b"y")]

    async def keeps_alive() -> None:
        await keepalives.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
        answer = await keepalives.read()
        assert answer.TTL == 600, answer

    work = {
        "put": lambda: client.put(b"b/put"),
        "put in what moves": lambda: client.put(moving + b"/put"),
        "range": lambda: client.get(key=b"n"),
        "range over all": lambda: client.get(**ALL),
        "txn": lambda: client.kv.Txn(Txn(success=[read]), timeout=20),
        "txn over all": lambda: client.kv.Txn(Txn(success=across), timeout=20),
        "delete over several": lambda: client.kv.DeleteRange(delete, timeout=20),
        "status": lambda: client.maintenance.Status(rpc_pb2.StatusRequest(), timeout=20),
        "keepalive": keeps_alive,
    }
    tasks = [asyncio.create_task(client.repeats(name, call)) for name, call in work.items()]

    async def until_all_have_gone_on() -> None:
        before = dict(client.done)
        async with asyncio.timeout(30):
            while not client.failed and any(client.done.get(name, 0) < before.get(name, 0) + 3 for name in work):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    await until_all_have_gone_on()
    yield
    await until_all_have_gone_on()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    keepalives.cancel()
    assert client.failed == []


@contextmanager
def frozen(etcd: LocalEtcd) -> Iterator[Callable[[], None]]:
    """The etcd stands still until the function is called, or the block ends."""
    assert etcd.process
    process = etcd.process
    freeze(process)
    try:
        yield lambda: process.send_signal(signal.SIGCONT)
    finally:
        process.send_signal(signal.SIGCONT)


def value_on(etcd: LocalEtcd, key: bytes) -> bytes | None:
    with connect(etcd) as channel:
        kvs = rpc_pb2_grpc.KVStub(channel).Range(Range(key=key), timeout=20).kvs
        return kvs[0].value if kvs else None


def keys_on(etcd: LocalEtcd, name: bytes) -> list[bytes]:
    """The keys of a lock."""
    with connect(etcd) as channel:
        asked = Range(key=name + b"/", range_end=name + b"0")
        return [row.key for row in rpc_pb2_grpc.KVStub(channel).Range(asked, timeout=20).kvs]


def ttl_on(etcd: LocalEtcd, lease_id: int) -> int:
    with connect(etcd) as channel:
        answer = rpc_pb2_grpc.LeaseStub(channel).LeaseTimeToLive(
            rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id), timeout=20
        )
        return int(answer.TTL)


@pytest.fixture
def etcds(start_etcd: Etcds) -> list[LocalEtcd]:
    return start_etcd.several(3)


@pytest.fixture
def configs(etcds: list[LocalEtcd], tmp_path: Path) -> tuple[Config, Config]:
    """Two shards with a boundary at m; the same with the keys from t on in a third."""
    paths = (
        write_config(tmp_path / "two.yaml", etcds[:2], ["m"]),
        write_config(tmp_path / "three.yaml", etcds, ["m", "t"]),
    )
    listen = config.listen_of(["http://127.0.0.1:0"])
    two, three = (replace(config.load(path), listen=listen) for path in paths)
    return two, three


@asynccontextmanager
async def serving(loaded: Config) -> AsyncIterator[tuple[Proxy, Client]]:
    async with Proxy(loaded) as proxy:
        assert await proxy.connected(20) == []
        client = Client(proxy)
        yield proxy, client
        await client.channel.close()
        assert not proxy.background.failures
    assert not proxy.background.tasks


async def connected(proxy: Proxy) -> None:
    assert await proxy.connected(20) == []


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def test_a_map_with_one_shard_more_is_put_in_place_and_taken_back_under_load(
    etcds: list[LocalEtcd], configs: tuple[Config, Config]
) -> None:
    two, three = configs

    async def run() -> None:
        async with serving(two) as (proxy, client):
            lease_id = (await client.lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600), timeout=20)).ID
            kept = dict(proxy.routing.shards)
            async with at_work(client, lease_id):
                layout = proxy.layout_of(three)
                assert await proxy.running.prepare(layout, 20) == []
                proxy.install(layout)
            assert proxy.routing.layout.epoch == 2
            assert {name: proxy.routing.shards[name] for name in kept} == kept, "the clients of shards that stay"
            await client.put(b"y", b"new")
            assert (value_on(etcds[1], b"y"), value_on(etcds[2], b"y")) == (None, b"new")
            await until(lambda: ttl_on(etcds[2], lease_id) > 0)  # granted there without a call that needs the lease
            await client.put(b"y", b"leased", lease_id)
            async with at_work(client, lease_id):
                proxy.install(proxy.layout_of(two))
            await until(lambda: len(proxy.running.shards) == 2)
            await client.put(b"y", b"back")
            assert (value_on(etcds[1], b"y"), value_on(etcds[2], b"y")) == (b"back", b"leased")
            assert dict(proxy.routing.shards) == kept

    asyncio.run(run())


def test_who_waits_for_a_lock_is_told_if_keys_get_another_owner(
    etcds: list[LocalEtcd], configs: tuple[Config, Config]
) -> None:
    two, three = configs
    stopped = (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")

    async def run() -> None:
        async with serving(two) as (proxy, client):
            locks: Any = v3lock_pb2_grpc.LockStub(client.channel)
            had = await locks.Lock(v3lock_pb2.LockRequest(name=b"y"), timeout=20)
            waiting = locks.Lock(v3lock_pb2.LockRequest(name=b"y"), timeout=20)

            async def both_are_there() -> bool:
                return len((await client.get(key=b"y/", range_end=b"y0")).kvs) == 2

            async with asyncio.timeout(20):
                while not await both_are_there():
                    pass
            proxy.install(proxy.layout_of(two))
            assert await both_are_there()
            assert not waiting.done()
            proxy.install(proxy.layout_of(three))
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await waiting
            assert (told.value.code(), told.value.details()) == stopped
            await until(lambda: keys_on(etcds[1], b"y") == [had.key])

    asyncio.run(run())


def test_calls_in_flight_end_by_the_map_they_began_with(etcds: list[LocalEtcd], configs: tuple[Config, Config]) -> None:
    two, three = configs

    async def run() -> None:
        async with serving(two) as (proxy, client):
            lease_id = (await client.lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600), timeout=20)).ID
            await client.put(b"b")
            for old, new, owner in ((two, three, etcds[1]), (three, two, etcds[2])):
                await client.put(b"y")
                keepalives = client.lease.LeaseKeepAlive()
                with frozen(owner) as thaw:
                    await keepalives.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
                    value = b"in flight to the owner of %d" % len(old.shards)
                    calls = [
                        asyncio.ensure_future(call)
                        for call in (
                            client.put(b"y", value),
                            client.get(**ALL),
                            client.get(key=b"y"),
                            client.get(**ALL, limit=1),
                            client.kv.Txn(Txn(success=[Op(request_put=Put(key=b"y/txn"))]), timeout=20),
                            client.maintenance.Status(rpc_pb2.StatusRequest(), timeout=20),
                        )
                    ]
                    await asyncio.sleep(0.3)
                    assert not any(call.done() for call in calls[:5])
                    proxy.install(proxy.layout_of(new))
                    await client.put(b"b", b"by the new map")
                    await asyncio.sleep(0.1)
                    thaw()
                    await asyncio.gather(*calls)
                    async with asyncio.timeout(20):
                        assert (await keepalives.read()).TTL > 580, "what is left of 600 by what the owner said before"
                keepalives.cancel()
                assert value_on(owner, b"y") == value
            await until(lambda: len(proxy.running.shards) == 2)

    asyncio.run(run())


def test_watches_end_only_where_the_owners_of_their_keys_have_changed(
    etcds: list[LocalEtcd], configs: tuple[Config, Config]
) -> None:
    two, three = configs

    async def those_that_move(client: Client) -> list[Any]:
        return [await client.watch(key=b"y"), await client.watch(**ALL), await client.watch(key=b"s", range_end=b"u")]

    async def run() -> None:
        async with serving(two) as (proxy, client):
            stays = [
                await client.watch(key=b"b"),
                await client.watch(key=b"n"),
                await client.watch(key=b"a", range_end=b"o"),
            ]
            moves = await those_that_move(client)
            for config_, value in ((three, b"1"), (two, b"2")):
                proxy.install(proxy.layout_of(config_))
                await connected(proxy)
                for watch in moves:
                    assert await how_it_ends(watch) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
                await client.put(b"b", value)
                await client.put(b"n", value)
                assert [await next_value(watch) for watch in stays] == [value] * 3
                assert await next_value(stays[2]) == value
                moves = await those_that_move(client)
                await client.put(b"y", value)
                assert [await next_value(watch) for watch in moves[:2]] == [value] * 2
            for watch in (*stays, *moves):
                watch.cancel()

    asyncio.run(run())


def test_tokens_of_another_map_mean_the_same_on_the_shards_that_they_name(
    etcds: list[LocalEtcd], configs: tuple[Config, Config]
) -> None:
    two, three = configs

    async def code(call: Awaitable[object]) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return str(caught.value.details())

    async def run() -> None:
        async with serving(two) as (proxy, client):
            for key in (b"b", b"n", b"y"):
                await client.put(key, b"before")
            token = (await client.get(**ALL)).header.revision
            proxy.install(proxy.layout_of(three))
            await connected(proxy)
            for key in (b"b", b"n", b"y"):
                await client.put(key, b"after")
            then = await client.get(key=b"a", range_end=b"o", revision=token)
            assert {kv.key: kv.value for kv in then.kvs} == {b"b": b"before", b"n": b"before"}
            assert then.header.revision == token
            assert await code(client.get(**ALL, revision=token)) == (
                "etcdserver: mvcc: required revision has been compacted"
            )
            compaction = rpc_pb2.CompactionRequest(revision=token)
            assert "leaves out shard s2" in await code(client.kv.Compact(compaction, timeout=20))
            later = (await client.get(**ALL)).header.revision
            assert later > token
            proxy.install(proxy.layout_of(two))
            await client.put(b"b", b"last")
            again = await client.get(**ALL, revision=later)
            # What the third shard had at that moment belongs to no key of this map: the second tells of y what it has.
            assert {kv.key: kv.value for kv in again.kvs} == {b"b": b"after", b"n": b"after", b"y": b"before"}
            first = await client.get(**ALL, revision=token)
            assert {kv.key: kv.value for kv in first.kvs} == {b"b": b"before", b"n": b"before", b"y": b"before"}

    asyncio.run(run())
