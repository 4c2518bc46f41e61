"""A bug in work beside the handling of bytes ends that piece of work, and no other client's work.

tests/core/wire/test_blast_radius.py shows the same for the wire.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Awaitable, Callable, Hashable
from functools import wraps
from typing import Any

import grpc
import grpc.aio
import pytest

from esp.core import errors, lease_sync
from esp.core.config import parse
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.proxy import Proxy
from esp.core.services import handlers
from esp.core.services.kv.txn_refused import RefusedTxns
from esp.core.services.lease import keepalive, keepalive_lane
from esp.core.services.lease.repair import LeaseRepair
from esp.core.services.lease.service import Leases
from esp.core.services.lease.table import LeaseTable
from esp.core.services.rests import Rests
from esp.core.services.watch.compaction import OldestRevisions
from esp.core.services.watch.positions import Finding
from esp.core.services.watch.span_progress import SpanProgress
from esp.core.services.watch.upstream import Upstream
from esp.core.services.watch.watcher import Watcher
from esp.core.shard import Shard
from esp.core.shard.dialler import Dialler
from esp.core.shard.link import Link, ParkedCall
from esp.core.shard.links import Links
from esp.core.tokens import Tokens, UnknownTokenError, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.limits import Limits
from esp.core.wire.listener import Listener
from esp.core.wire.server_stream import ServerCall
from tests.harness import freeze
from tests.stubs import rpc_pb2_grpc


class Bug(Exception):
    pass


class Planted:
    """A function that fails the first few times it is called once it is armed."""

    def __init__(self, original: Callable[..., Any], times: int) -> None:
        self.original = original
        self.left = times
        self.armed = False
        self.hit = asyncio.Event()

    def fail(self) -> None:
        if self.armed and self.left:
            self.left -= 1
            self.hit.set()
            raise Bug

    def function(self) -> Callable[..., Any]:
        """What is to be in the place of the original; that of a coroutine fails when it runs, not when it is made."""
        original = self.original

        @wraps(original)
        def called(*args: Any, **options: Any) -> Any:
            self.fail()
            return original(*args, **options)

        @wraps(original)
        async def awaited(*args: Any, **options: Any) -> Any:
            self.fail()
            return await original(*args, **options)

        return awaited if inspect.iscoroutinefunction(original) else called


class Client:
    """A client of its own connection: what it began before goes on afterwards, on the same streams."""

    def __init__(self, proxy: Proxy) -> None:
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{proxy.bound[0][1]}", [("grpc.use_local_subchannel_pool", 1)]
        )
        self.kv: Any = rpc_pb2_grpc.KVStub(self.channel)
        self.lease: Any = rpc_pb2_grpc.LeaseStub(self.channel)
        self._watch: Any = rpc_pb2_grpc.WatchStub(self.channel)

    async def begins(self) -> None:
        self.watches = [await self.watch(b"b"), await self.watch(b"y"), await self.watch(b"\0", b"\0")]
        self.id = (await self.lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600), timeout=20)).ID
        self.keepalives = self.lease.LeaseKeepAlive()
        await self.renews()

    async def watch(self, key: bytes, range_end: bytes = b"") -> Any:
        watch = self._watch.Watch()
        create = rpc_pb2.WatchCreateRequest(key=key, range_end=range_end)
        await watch.write(rpc_pb2.WatchRequest(create_request=create))
        async with asyncio.timeout(20):
            assert (await watch.read()).created
        return watch

    async def renews(self) -> None:
        async with asyncio.timeout(20):
            await self.keepalives.write(rpc_pb2.LeaseKeepAliveRequest(ID=self.id))
            answer = await self.keepalives.read()
            assert answer.TTL == 600, answer

    async def put(self, key: bytes, value: bytes = b"") -> None:
        await self.kv.Put(rpc_pb2.PutRequest(key=key, value=value), timeout=20)

    async def goes_on(self, value: bytes) -> None:
        """Puts reach both shards, all watches tell of them, and the lease is renewed."""
        for key in (b"b", b"y"):
            await self.put(key, value)
        for watch, wanted in zip(self.watches, (1, 1, 2), strict=True):
            async with asyncio.timeout(20):
                seen = 0
                while seen < wanted:
                    seen += sum(event.kv.value == value for event in (await watch.read()).events)
        await self.renews()

    async def comes_again(self) -> None:
        """The watches that shard s0 fed have ended with an error that says so; they begin again."""
        for index, keys in ((0, (b"b",)), (2, (b"\0", b"\0"))):
            with pytest.raises(grpc.aio.AioRpcError, match="server stopped"):
                async with asyncio.timeout(20):
                    await self.watches[index].read()
            self.watches[index] = await self.watch(*keys)

    async def leaves(self) -> None:
        for stream in (*self.watches, self.keepalives):
            stream.cancel()
        await self.channel.close()


class Nobody:
    """The other processes: none has seen the client."""

    async def find(self, watched: Hashable, start_revision: int) -> list[Finding]:
        return []

    def give_back(self, watched: Hashable, number: int) -> None:
        raise AssertionError("there was no finding")


class Stranger:
    """Another proxy, which may know every token, and tells none."""

    def may_know(self, token: int) -> bool:
        return True

    def take(self, stream: ServerCall, message: bytes, error: UnknownTokenError) -> None:
        raise AssertionError("only a watch has such a token")

    async def learn(self, token: int) -> None:
        raise AssertionError("the bug comes before")


class Scene:
    """A proxy over two etcds, and somebody who meets the bug."""

    def __init__(self, proxy: Proxy, etcds: list[LocalEtcd], victim: Client) -> None:
        self.proxy = proxy
        self.etcds = etcds
        self.victim = victim

    async def nothing(self) -> None:
        """It is met anyhow."""

    async def revokes_an_unknown_lease(self) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await self.victim.lease.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=4711), timeout=20)

    async def asks_for_progress(self) -> None:
        await self.victim.watches[2].write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    async def watches_what_is_compacted(self) -> None:
        revision = (await self.victim.kv.Put(rpc_pb2.PutRequest(key=b"b"), timeout=20)).header.revision
        async with grpc.aio.insecure_channel(self.etcds[0].address) as channel:
            await rpc_pb2_grpc.KVStub(channel).Compact(rpc_pb2.CompactionRequest(revision=revision))
        create = rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=1)
        await self.victim.watches[2].write(rpc_pb2.WatchRequest(create_request=create))

    async def has_a_repair(self) -> None:
        self.proxy.leases.repair.revoke(4711, ["s0"], [])

    async def loses_a_connection(self) -> None:
        connection = next(iter(self.proxy.routing.shards.values()))._unary.connection
        assert connection is not None
        connection.end(ErrorCode.NO_ERROR, "the test")
        self.proxy.context.flush()

    async def loses_a_connection_for_streams(self) -> None:
        connection = next(iter(self.proxy.routing.shards.values()))._streams.connection
        assert connection is not None
        connection.end(ErrorCode.NO_ERROR, "the test")
        self.proxy.context.flush()

    async def waits_for_a_connection(self) -> None:
        """A call waits, for less long or longer than calls may, while the shard's etcd stands still."""
        process = self.etcds[0].process
        assert process is not None
        freeze(process)
        try:
            await self.loses_a_connection()
            waits = asyncio.ensure_future(self.victim.put(b"a"))
            await asyncio.sleep(0.1)
            process.send_signal(signal.SIGCONT)
            with pytest.raises(grpc.aio.AioRpcError):
                await waits
        finally:
            process.send_signal(signal.SIGCONT)

    async def waits_in_vain(self) -> None:
        process = self.etcds[0].process
        assert process is not None
        freeze(process)
        try:
            await self.loses_a_connection()
            with pytest.raises(grpc.aio.AioRpcError):
                await self.victim.put(b"a")
        finally:
            process.send_signal(signal.SIGCONT)

    async def reopens_a_watch(self) -> None:
        """The watch on a shard breaks for the second time, so it begins again after a pause."""
        [upstream] = [pool.upstream for pool in self.proxy._served.watch.pools if pool.shard.name == "s0"]
        upstream._failures = 1
        call = upstream._call
        assert call is not None
        call.leave()
        upstream.on_end(call, errors.SERVER_STOPPED)

    async def resumes_where_another_process_may_know_it(self) -> None:
        self.proxy.positions.others = Nobody()
        revision = (await self.victim.kv.Put(rpc_pb2.PutRequest(key=b"b"), timeout=20)).header.revision
        create = rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=revision)
        await self.victim.watches[2].write(rpc_pb2.WatchRequest(create_request=create))

    async def resumes_by_a_token_of_another_proxy(self) -> None:
        self.proxy.routing.tokens.elsewhere = Stranger()
        token = Tokens(WireContext(Limits()), instance=2).mint(Vector(("s0", "s1"), (1, 1)))
        create = rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=token)
        await self.victim.watches[2].write(rpc_pb2.WatchRequest(create_request=create))

    async def sends_too_many_operations(self) -> None:
        put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"b"))
        with pytest.raises(grpc.aio.AioRpcError, match="too many operations"):
            await self.victim.kv.Txn(rpc_pb2.TxnRequest(success=[put] * 200), timeout=20)

    async def has_the_shard_rest(self) -> None:
        self.proxy.gate.rests.worked(("s0", "costly"), 0.02, 1.0)

    async def renews(self) -> None:
        await self.victim.keepalives.write(rpc_pb2.LeaseKeepAliveRequest(ID=self.victim.id))


PLACES: list[tuple[object, str, Callable[[Scene], Awaitable[None]], str]] = [
    (Listener, "tick", Scene.nothing, "the clients' deadlines"),
    (Shard, "tick", Scene.nothing, "the deadlines of shard s0"),
    (Link, "tick", Scene.nothing, "the deadlines of shard s0"),
    (Leases, "tick", Scene.nothing, "the leases' deadlines"),
    (keepalive.LeaseKeepAlive, "tick", Scene.nothing, "the leases' deadlines"),
    (keepalive_lane.Lane, "tick", Scene.nothing, "keepalives to a shard"),
    (LeaseRepair, "tick", Scene.nothing, "leases"),
    (LeaseTable, "sweep", Scene.nothing, "leases"),
    (Tokens, "expire", Scene.nothing, "tokens"),
    (handlers.CoroutineCall, "_finish", Scene.revokes_an_unknown_lease, "CoroutineCall._run"),
    (SpanProgress, "_run", Scene.asks_for_progress, ""),
    (SpanProgress, "_ask", Scene.asks_for_progress, "SpanProgress._run"),
    (OldestRevisions, "_find", Scene.watches_what_is_compacted, ""),
    (OldestRevisions, "_has_history", Scene.watches_what_is_compacted, "OldestRevisions._find"),
    (LeaseRepair, "_do", Scene.has_a_repair, "lease repair on shard s0"),
    (lease_sync, "revoke", Scene.has_a_repair, "lease repair on shard s0"),
    (Shard, "_serve", Scene.loses_a_connection, "shard s0"),
    (Links, "dial", Scene.loses_a_connection, "shard s0"),
    (Links, "_retire", Scene.loses_a_connection, "shard s0: its connection"),
    (Links, "_retire", Scene.loses_a_connection_for_streams, "shard s0: its connection"),
    (Links, "dial", Scene.loses_a_connection_for_streams, "shard s0: its streams"),
    (Dialler, "_examine", Scene.loses_a_connection, "shard s0"),
    (Dialler, "_examine", Scene.loses_a_connection_for_streams, "shard s0: its streams"),
    (Shard, "parsed", Scene.loses_a_connection, "shard s0"),
    (ParkedCall, "go", Scene.waits_for_a_connection, "a call that waited"),
    (ParkedCall, "refuse", Scene.waits_in_vain, "a call that waited in vain"),
    (keepalive.LeaseKeepAlive, "answer", Scene.renews, "a keepalive"),
    (Upstream, "_reopen", Scene.reopens_a_watch, "Upstream._reopen"),
    (Watcher, "_ask_others", Scene.resumes_where_another_process_may_know_it, "Watcher._ask_others"),
    (Watcher, "_learn", Scene.resumes_by_a_token_of_another_proxy, "Watcher._learn"),
    (RefusedTxns, "_ask_for_limit", Scene.sends_too_many_operations, "RefusedTxns._ask_for_limit"),
    (Rests, "_look", Scene.has_the_shard_rest, "Rests._look"),
]


ON_CLIENTS_WAYS = [
    (Tokens, "expire"),
    (Shard, "parsed"),
    (ParkedCall, "go"),
    (keepalive.LeaseKeepAlive, "answer"),
]
"""What clients' own calls run through as well: a bug there fails those that meet it, so only one is to."""


@pytest.mark.parametrize(
    ("owner", "name", "provoke", "piece"), PLACES, ids=lambda value: getattr(value, "__name__", str(value)) or "-"
)
def test_a_bug_ends_one_piece_of_work(
    owner: object,
    name: str,
    provoke: Callable[[Scene], Awaitable[None]],
    piece: str,
    shards: list[LocalEtcd],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        planted = Planted(getattr(owner, name), 1 if (owner, name) in ON_CLIENTS_WAYS else 3)
        monkeypatch.setattr(owner, name, planted.function())
        config = parse(
            "listen: [http://127.0.0.1:0]\n"
            "limits: {max_waiting_seconds: 1}\n"
            "shards:\n"
            f'- {{name: s0, endpoints: [{shards[0].endpoint}], ranges: [{{start: "", end: m}}]}}\n'
            f'- {{name: s1, endpoints: [{shards[1].endpoint}], ranges: [{{start: m, end: ""}}]}}\n',
            None,
        )
        async with Proxy(config) as proxy:
            assert await proxy.connected(20) == []
            bystander, victim = Client(proxy), Client(proxy)
            await bystander.begins()
            await victim.begins()
            await bystander.goes_on(b"before")
            planted.armed = True
            await provoke(Scene(proxy, shards, victim))
            async with asyncio.timeout(20):
                await planted.hit.wait()
                while piece and not proxy.background.failures[piece]:  # noqa: ASYNC110 - nobody signals it
                    await asyncio.sleep(0.01)
            assert await proxy.connected(20) == []
            if owner is Upstream:
                await bystander.comes_again()
            await bystander.goes_on(b"after")
            await victim.leaves()
            another = Client(proxy)
            await another.begins()
            await another.goes_on(b"new")
            await bystander.goes_on(b"at last")
            async with asyncio.timeout(20):
                while proxy.leases.repair.waiting:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for client in (bystander, another):
                await client.leaves()
        assert not proxy.background.tasks
        assert not proxy.background.timers

    asyncio.run(test())
