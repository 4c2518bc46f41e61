"""How many calls are at work at a shard at a time, counted at scripted shards, which answer when they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from esp.core import config
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.proxy import Proxy
from esp.core.services import gate as gates
from esp.core.services.alone import Alone
from esp.core.services.entry import LARGE_ANSWER, PLACE_BYTES, PLACES, WAITING_PART
from esp.core.services.gate import LARGE_REQUEST
from esp.core.services.lease import KEEPALIVE_PATH
from esp.core.wire import frames
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.server import ServerConnection
from tests.core.scripted_etcd import HeardCall, ScriptedConnection, ScriptedEtcd
from tests.core.wire.conversation import HEAD, Frame, data, headers, message, trailers

KV = "/etcdserverpb.KV/"
HEADER = rpc_pb2.ResponseHeader(cluster_id=1, member_id=1, revision=7, raft_term=1)
LARGE = LARGE_ANSWER + 1000
GRPC_FIELDS = ((b":authority", b"esp"), (b"content-type", b"application/grpc"), (b"te", b"trailers"))
PARTS = Limits().max_parts_per_shard


class Shard:
    """One etcd; `open` are the calls that it works on."""

    def __init__(self, etcd: ScriptedEtcd) -> None:
        self.etcd = etcd
        etcd.on_frame = self._on
        self.open: list[tuple[ScriptedConnection, HeardCall]] = []
        self.heard = 0
        self.most: list[int] = []  # how many there were as each came

    def _on(self, connection: ScriptedConnection, frame: Frame) -> None:
        call = connection.call(frame.stream)
        if frame.kind == frames.RST_STREAM:
            self.open = [each for each in self.open if each[1] is not call]
        elif call is None or not call.path.startswith(KV.encode()) or not call.whole or not frame.flags & 1:
            return
        elif b"compact_rev_key" not in call.body:  # which esp itself asks for
            self.heard += 1
            self.open.append((connection, call))
            self.most.append(len(self.open))

    @property
    def reads(self) -> int:
        """How many reads are at work, with those that are joined in transactions."""
        paths = [(call.path.endswith(b"Txn"), bytes(call.body[5:])) for _, call in self.open]
        return sum(len(rpc_pb2.TxnRequest.FromString(body).success) if is_txn else 1 for is_txn, body in paths)

    def answers(self, size: int = 10, at: int = 0) -> None:
        """One of its calls, with a value of so many bytes; a transaction with as many answers as it reads keys."""
        connection, call = self.open.pop(at)
        content: bytes
        if call.path == KV.encode() + b"Range":
            content = self._found(size).SerializeToString()
        elif call.path == KV.encode() + b"Txn":
            asked = rpc_pb2.TxnRequest.FromString(bytes(call.body[5:]))
            answer = rpc_pb2.TxnResponse(header=HEADER, succeeded=True)
            for _ in asked.success:
                found = self._found(size)
                found.header.CopyFrom(rpc_pb2.ResponseHeader(revision=HEADER.revision))
                answer.responses.add(response_range=found)
            content = answer.SerializeToString()
        else:
            content = rpc_pb2.PutResponse(header=HEADER).SerializeToString()
        said = message(content)
        pieces = [data(call.stream, said[at : at + 16384]) for at in range(0, len(said), 16384)]
        connection.says(headers(call.stream, HEAD), *pieces, headers(call.stream, trailers(), end=True))

    def begins_to_answer(self, at: int = 0) -> Callable[[], None]:
        """One of its reads, of 600 kB, as far as esp grants a window; what is returned says the rest."""
        connection, call = self.open.pop(at)
        said = message(self._found(600_000).SerializeToString())
        pieces = [data(call.stream, said[at : at + 16384]) for at in range(0, len(said), 16384)]
        connection.says(headers(call.stream, HEAD), *pieces[:15])
        return lambda: connection.says(*pieces[15:], headers(call.stream, trailers(), end=True))

    @staticmethod
    def _found(size: int) -> rpc_pb2.RangeResponse:
        pair = kv_pb2.KeyValue(key=b"a", value=bytes(size), create_revision=1, mod_revision=1, version=1)
        return rpc_pb2.RangeResponse(header=HEADER, kvs=[pair], count=1)


class World:
    """esp, its two shards, and clients with a connection each."""

    def __init__(self, proxy: Proxy, one: Shard, other: Shard) -> None:
        self.proxy = proxy
        self.one = one
        self.other = other
        self._channels: list[grpc.aio.Channel] = []

    def client(self) -> Client:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{self.proxy.bound[0][1]}", options))
        return Client(self._channels[-1], self.proxy)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def answered(self, calls: list[asyncio.Task[bytes]], size: int = 10) -> None:
        """Waits for these; the shards answer one call after the other."""
        while not all(call.done() for call in calls):
            for shard in (self.one, self.other):
                if shard.open:
                    shard.answers(size)
            await asyncio.sleep(0.0005)

    @property
    def is_free(self) -> bool:
        gate = self.proxy.gate
        return not any(gate.busy.values()) and not gate.waiting and not gate.at_work


class Client:
    def __init__(self, channel: grpc.aio.Channel, proxy: Proxy) -> None:
        self._channel = channel
        self._proxy = proxy

    async def asks(self, path: str, request: bytes) -> bytes:
        answer: bytes = await self._channel.unary_unary(path)(request, timeout=30)
        return answer

    async def keeps_alive(self, count: int) -> None:
        """Asks to keep a lease alive so often, and waits until esp has read that; no shard here answers."""
        call = self._channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")()
        for _ in range(count):
            await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=7).SerializeToString())
        counted = self._proxy.context.counters.messages_received
        await until(lambda: counted[KEEPALIVE_PATH] == count)

    def _asks(self, method: str, request: bytes) -> asyncio.Task[bytes]:
        return asyncio.create_task(self.asks(KV + method, request))

    def asks_with(self, metadata: tuple[tuple[str, str], ...], method: str, request: Message) -> asyncio.Task[bytes]:
        async def ask() -> bytes:
            call = self._channel.unary_unary(KV + method)
            answer: bytes = await call(request.SerializeToString(), timeout=30, metadata=metadata)
            return answer

        return asyncio.create_task(ask())

    def gets(self, key: bytes = b"a") -> asyncio.Task[bytes]:
        return self._asks("Range", rpc_pb2.RangeRequest(key=key).SerializeToString())

    def spans(self) -> asyncio.Task[bytes]:
        return self._asks("Range", rpc_pb2.RangeRequest(key=b"a", range_end=b"z", limit=5).SerializeToString())

    def puts(self, size: int, key: bytes = b"a") -> asyncio.Task[bytes]:
        return self._asks("Put", rpc_pb2.PutRequest(key=key, value=bytes(size)).SerializeToString())


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with ScriptedEtcd() as one, ScriptedEtcd() as other:
        shards = Shard(one), Shard(other)
        text = (
            f"shards:\n- {{name: a, endpoints: ['127.0.0.1:{one.endpoint.port}'], ranges: [{{start: '', end: m}}]}}\n"
            f"- {{name: b, endpoints: ['127.0.0.1:{other.endpoint.port}'], ranges: [{{start: m, end: ''}}]}}\n"
        )
        loaded = replace(config.parse(text, Path("esp.yaml")), listen=config.listen_of(["http://127.0.0.1:0"]))
        async with Proxy(loaded) as proxy:
            assert not await proxy.connected(10)
            proxy.gate.alone.look = lambda: None  # however long these tests take: large calls are never alone
            made = World(proxy, *shards)
            for shard in shards:
                shard.open.clear()
                shard.heard = 0
                shard.most.clear()
            try:
                yield made
            finally:
                await made.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - there is nothing that tells
            await asyncio.sleep(0.001)


def run(work: Callable[[World], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(40), world() as made:
            await work(made)

    asyncio.run(bounded())


def test_after_a_first_small_answer_all_reads_of_a_client_are_at_work_at_once() -> None:
    async def work(world: World) -> None:
        client = world.client()
        calls = [client.gets() for _ in range(64)]
        await until(lambda: world.proxy.gate.waiting == 63 and world.one.open)
        assert len(world.one.open) == 1, "how large its answers are is not known"
        world.one.answers()
        await until(lambda: world.one.reads == 63)
        assert not world.proxy.gate.waiting
        heard = world.one.heard
        assert heard < 10, "they go together"
        calls += [client.gets() for _ in range(10)]
        await until(lambda: world.one.heard > heard)  # these pass by the gate
        await world.answered(calls)
        assert world.is_free

    run(work)


def test_large_reads_of_ten_clients_are_at_work_one_at_a_time_and_hold_up_nobody() -> None:
    async def work(world: World) -> None:
        honest = world.client()
        await world.answered([honest.gets()])
        clients = [world.client() for _ in range(10)]
        calls = [client.gets() for client in clients for _ in range(6)]
        await until(lambda: world.proxy.gate.waiting == 60 - PARTS and len(world.one.open) == PARTS)
        for _ in range(60 - PARTS):
            world.one.answers(LARGE)
            await until(lambda: world.one.open)
        assert set(world.one.most[PARTS + len(clients) :]) == {1}, "known to be large"
        for _ in range(10):
            mine = honest.gets()
            await until(lambda: len(world.one.open) == 2)
            world.one.answers(at=1)
            await mine
        new = world.client().gets()
        await until(lambda: len(world.one.open) == 2)
        world.one.answers(at=1)
        await world.answered([*calls, new], LARGE)
        assert world.is_free
        assert world.proxy.context.counters.limits["max_parts_per_shard"] >= 55

    run(work)


def test_who_keeps_leases_alive_uses_every_shard() -> None:
    """A keepalive waits in etcd for the writes before it: four large ones at a time kept it for 40 ms."""

    async def work(world: World) -> None:
        alone = Alone(world.proxy.gate.alone._calls_sent)
        for _ in range(2):
            alone.look()
        assert "a" in alone
        await world.client().keeps_alive(5)
        alone.look()
        assert "a" not in alone
        assert "b" not in alone
        alone.look()
        assert "a" in alone

    run(work)


@pytest.mark.parametrize(
    "request_", [rpc_pb2.RangeRequest(key=b"b"), rpc_pb2.RangeRequest(key=b"b", serializable=True)]
)
def test_a_first_read_of_one_key_does_not_wait_behind_first_reads_of_ranges(request_: Message) -> None:
    async def work(world: World) -> None:
        inside = rpc_pb2.RangeRequest(key=b"a", range_end=b"b")
        calls = [world.client().asks_with((), "Range", inside) for _ in range(3 * PARTS)]
        calls += [world.client().spans() for _ in range(3 * PARTS)]
        await until(lambda: world.proxy.gate.waiting == 5 * PARTS and len(world.one.open) == PARTS)
        mine = world.client().asks_with((), "Range", request_)
        await until(lambda: len(world.one.open) == PARTS + 1)
        world.one.answers(at=PARTS)
        await mine
        assert world.proxy.gate.waiting == 5 * PARTS
        await world.answered(calls, LARGE)
        assert world.is_free

    run(work)


@pytest.mark.parametrize("end", [b"b", b"z"])
def test_a_client_that_does_not_read_has_few_large_answers_made(end: bytes) -> None:
    """`end`: of a range in one shard, or over two."""
    head = encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", KV.encode() + b"Range"), *GRPC_FIELDS])
    asked = message(rpc_pb2.RangeRequest(key=b"a", range_end=end).SerializeToString())

    async def work(world: World) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.bound[0][1])
        writer.write(frames.PREFACE + frames.settings({4: 1000}) + frames.window_update(0, 1 << 24))
        for number in range(10):
            writer.write(frames.frame(frames.HEADERS, 4, 2 * number + 1, head) + data(2 * number + 1, asked, end=True))
        rests = []
        for heard in range(1, WAITING_PART + 1):
            await until(lambda heard=heard: world.one.heard == heard)  # type: ignore[misc]
            rests.append(world.one.begins_to_answer())
            if end == b"z":
                await until(lambda: world.other.open)
                world.other.answers()
        honest = world.client()
        await world.answered([honest.gets(), honest.gets()])
        assert world.proxy.gate.waiting == 10 - WAITING_PART
        heard = world.one.heard
        writer.write(frames.window_update(1, 1 << 20))  # the client takes the first answer
        await reader.readexactly(200_000)
        rests[0]()
        await until(lambda: world.one.heard == heard + 1)
        assert world.proxy.gate.waiting == 10 - WAITING_PART - 1
        writer.close()
        await until(lambda: world.is_free and not world.proxy.gate._held)

    run(work)


_OVER_BOTH = rpc_pb2.RangeRequest(key=b"a", range_end=b"z")
_ASKED = {
    "bare": ("Range", _OVER_BOTH),
    "limit": ("Range", rpc_pb2.RangeRequest(key=b"a", range_end=b"z", limit=50)),
    "coroutine": ("Txn", rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=_OVER_BOTH)])),
}


@pytest.mark.parametrize(
    ("size", "kept"),
    # The first counts as large until its answer comes, and perhaps afterwards.
    [(LARGE, [WAITING_PART]), (PLACE_BYTES, range(1 + PLACES - PLACES // WAITING_PART, PLACES + 1))],
)
@pytest.mark.parametrize("how", _ASKED)
def test_a_client_that_does_not_read_has_few_answers_of_several_shards_kept(
    how: str, size: int, kept: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come whole, so that no shard waits for the client, and all of them take memory here."""
    monkeypatch.setattr(gates, "STUCK_SECONDS", inf)  # however slow the machine is: no shard counts as stopped
    method, request = _ASKED[how]
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", (KV + method).encode()))
    head = encode([*fields, *GRPC_FIELDS, (b"esp-read", b"each")])
    asked = message(request.SerializeToString())

    async def work(world: World) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", world.proxy.bound[0][1])
        writer.write(frames.PREFACE + frames.settings({4: 1000}) + frames.window_update(0, 1 << 24))
        for number in range(2 * PLACES):
            writer.write(frames.frame(frames.HEADERS, 4, 2 * number + 1, head) + data(2 * number + 1, asked, end=True))
        gate = world.proxy.gate
        while gate.at_work or max(gate._held.values(), default=0) < PLACES:  # a quarter of all
            for shard in (world.one, world.other):
                if shard.open:
                    shard.answers(size)
            await asyncio.sleep(0.001)
        honest = world.client()
        await world.answered([honest.gets(), honest.gets(), honest.gets(b"x"), honest.gets(b"x")])
        assert 2 * PLACES - gate.waiting in kept
        writer.close()
        await until(lambda: world.is_free and not gate._held)
        assert world.proxy.context.buffers.used == 0

    run(work)


def test_large_requests_of_a_client_are_at_work_one_at_a_time_and_its_small_ones_pass() -> None:
    async def work(world: World) -> None:
        client = world.client()
        large = [client.puts(1_000_000) for _ in range(5)]
        await until(lambda: world.proxy.gate.waiting == 4 and len(world.one.open) == 1)
        held = world.proxy.context.buffers.used
        assert held >= 4_000_000, "what waits is counted"
        small = [client.puts(LARGE_REQUEST // 2) for _ in range(8)]
        elsewhere = client.puts(1_000_000, key=b"x")
        await until(lambda: len(world.one.open) == 9 and len(world.other.open) == 1)
        await world.answered([*large, *small, elsewhere])
        assert world.is_free
        assert not world.proxy.context.buffers.used

    run(work)


@pytest.mark.parametrize("ends", ["cancelled", "reset", "failed"])
def test_however_a_call_ends_its_place_is_free(ends: str) -> None:
    async def work(world: World) -> None:
        client = world.client()
        first, second = client.gets(), client.gets()
        await until(lambda: world.one.open)
        connection, call = world.one.open[0]
        if ends == "cancelled":
            first.cancel()
        elif ends == "reset":
            world.one.open.pop()
            connection.says(frames.frame(frames.RST_STREAM, 0, call.stream, b"\0\0\0\x0b"))
        else:
            world.one.open.pop()
            connection.says(headers(call.stream, [*HEAD, (b"grpc-status", b"9")], end=True))
        await world.answered([first, second])
        await until(lambda: world.is_free)

    run(work)


def test_reads_that_wait_for_a_stopped_shard_hold_up_no_other_shard() -> None:
    async def work(world: World) -> None:
        client = world.client()
        stuck = [client.gets() for _ in range(1100)]
        await until(lambda: world.one.open)
        for _ in range(3):
            there = [client.gets(b"x"), client.puts(10, key=b"y"), client.puts(1_000_000, key=b"z")]
            for _ in there:
                await until(lambda: world.other.open)
                world.other.answers()
            await asyncio.gather(*there)
        for call in stuck:
            call.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        await until(lambda: world.is_free)

    run(work)


def test_calls_over_shards_whose_answers_are_large_are_at_work_one_at_a_time() -> None:
    async def work(world: World) -> None:
        client = world.client()
        calls = [client.spans() for _ in range(20)]
        await until(lambda: world.proxy.gate.waiting == 19)
        await world.answered(calls, LARGE)
        assert max(world.one.most + world.other.most) == 1
        assert world.is_free

    run(work)


_ALL = rpc_pb2.RangeRequest(key=b"a", range_end=b"z")
_PAGE = rpc_pb2.RangeRequest(key=b"a", range_end=b"z", limit=5)
_SORTED = rpc_pb2.RangeRequest(key=b"a", range_end=b"z", sort_target="VALUE", sort_order="DESCEND")
_TXN = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=_ALL)])


@pytest.mark.parametrize(
    ("method", "request_", "how"),
    [
        ("Range", rpc_pb2.RangeRequest(key=b"a"), "each"),
        *(("Range", request, how) for request in (_ALL, _PAGE, _SORTED) for how in ("default", "snapshot")),
        *(("Txn", _TXN, how) for how in ("default", "snapshot")),
        ("Txn", rpc_pb2.TxnRequest(), "each"),
        ("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"z"), "each"),
    ],
)
def test_after_one_answer_a_client_is_not_new(method: str, request_: Message, how: str) -> None:
    async def work(world: World) -> None:
        client = world.client()
        metadata = (("esp-read", how),) if how != "each" else ()
        await world.answered([client.asks_with(metadata, method, request_)])
        [protocol] = world.proxy._listener._protocols
        assert isinstance(protocol.connection, ServerConnection)
        assert protocol.connection.weight == 0
        assert world.is_free

    run(work)
