"""Calls to all shards outside KV, over two shards that a test speaks for: how many are at work at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from esp.core import config
from esp.core.config import Config
from esp.core.pb import rpc_pb2
from esp.core.proxy import Proxy
from esp.core.services.entry import PLACES
from esp.core.services.handlers import SMALL_CALL
from esp.core.shard import is_probe
from esp.core.wire import frames
from esp.core.wire.limits import Limits
from tests.core.scripted_etcd import VERSION, HeardCall, ScriptedConnection, ScriptedEtcd
from tests.core.wire.conversation import HEAD, Frame, data, headers, message, trailers

HEADER = rpc_pb2.ResponseHeader(cluster_id=7, member_id=8, revision=9, raft_term=2)
LEASE = "/etcdserverpb.Lease/"
AUTH = "/etcdserverpb.Auth/"
ALL_SHARDS: dict[str, tuple[Message, Message]] = {
    LEASE + "LeaseGrant": (rpc_pb2.LeaseGrantRequest(ID=5, TTL=60), rpc_pb2.LeaseGrantResponse(header=HEADER, TTL=60)),
    LEASE + "LeaseRevoke": (rpc_pb2.LeaseRevokeRequest(ID=5), rpc_pb2.LeaseRevokeResponse(header=HEADER)),
    LEASE + "LeaseTimeToLive": (
        rpc_pb2.LeaseTimeToLiveRequest(ID=5),
        rpc_pb2.LeaseTimeToLiveResponse(header=HEADER, ID=5, TTL=9, grantedTTL=60),
    ),
    LEASE + "LeaseLeases": (rpc_pb2.LeaseLeasesRequest(), rpc_pb2.LeaseLeasesResponse(header=HEADER)),
    "/etcdserverpb.Maintenance/Alarm": (rpc_pb2.AlarmRequest(), rpc_pb2.AlarmResponse(header=HEADER)),
    "/etcdserverpb.Maintenance/Status": (
        rpc_pb2.StatusRequest(),
        rpc_pb2.StatusResponse(header=HEADER, version=VERSION, leader=8),
    ),
    AUTH + "Authenticate": (
        rpc_pb2.AuthenticateRequest(name="a"),
        rpc_pb2.AuthenticateResponse(header=HEADER, token="t"),
    ),
    AUTH + "AuthStatus": (rpc_pb2.AuthStatusRequest(), rpc_pb2.AuthStatusResponse(header=HEADER)),
    AUTH + "UserGet": (rpc_pb2.AuthUserGetRequest(name="a"), rpc_pb2.AuthUserGetResponse(header=HEADER)),
    AUTH + "UserList": (rpc_pb2.AuthUserListRequest(), rpc_pb2.AuthUserListResponse(header=HEADER)),
    AUTH + "RoleGet": (rpc_pb2.AuthRoleGetRequest(role="a"), rpc_pb2.AuthRoleGetResponse(header=HEADER)),
    AUTH + "RoleList": (rpc_pb2.AuthRoleListRequest(), rpc_pb2.AuthRoleListResponse(header=HEADER)),
}


class Asked:
    """A shard; it answers when it is told to.

    Attributes:
        open: calls that wait for their answers.
        most: how many there have been at once.
    """

    def __init__(self, etcd: ScriptedEtcd) -> None:
        self.etcd = etcd
        self.table = ALL_SHARDS
        self.open: list[tuple[ScriptedConnection, HeardCall]] = []
        self.most = 0
        self.answers_at_once = True
        etcd.tells = False
        etcd.on_frame = self._on_frame  # type: ignore[assignment]

    def _on_frame(self, connection: ScriptedConnection, frame: Frame) -> None:
        call = connection.call(frame.stream)
        if frame.kind == frames.RST_STREAM:
            self.open = [each for each in self.open if each[1] is not call]
        if call is None or not call.whole or frame.kind not in (frames.DATA, frames.HEADERS):
            return
        if b"compact_rev_key" in call.body:
            return  # esp itself asks for that
        self.open.append((connection, call))
        if is_probe(call.body) or b"\0esp/" in call.body:  # esp asks for that now and then, and for a map at the start
            self.answer(len(self.open) - 1)
            return
        self.most = max(self.most, len(self.open))
        if self.answers_at_once:
            self.answer(len(self.open) - 1)

    def answer(self, index: int = 0) -> None:
        connection, call = self.open.pop(index)
        stream, answer = call.stream, message(self.answer_to(call))
        pieces = [data(stream, answer[at : at + 16_384]) for at in range(0, len(answer), 16_384)]
        connection.says(headers(stream, HEAD) + b"".join(pieces) + headers(stream, trailers(), end=True))

    def answer_to(self, call: HeardCall) -> bytes:
        _, answer = self.table[call.path.decode()]
        return answer.SerializeToString()


AT_ONCE = PLACES // SMALL_CALL
"""Calls of one connection at work at a time."""


@asynccontextmanager
async def world(parts: int, shard: type[Asked] = Asked) -> AsyncIterator[tuple[Proxy, list[Asked], grpc.aio.Channel]]:
    async with ScriptedEtcd() as one, ScriptedEtcd() as other:
        shards = [shard(one), shard(other)]
        ports = [etcd.endpoint.port for etcd in (one, other)]
        async with Proxy(settings(ports, parts)) as proxy:
            assert not await proxy.connected(10)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.bound[0][1]}") as channel:
                for each in shards:
                    each.answers_at_once, each.most = False, 0
                yield proxy, shards, channel


def settings(ports: list[int], parts: int) -> Config:
    text = (
        f"shards:\n- {{name: a, endpoints: ['127.0.0.1:{ports[0]}'], ranges: [{{start: '', end: m}}]}}\n"
        f"- {{name: b, endpoints: ['127.0.0.1:{ports[1]}'], ranges: [{{start: m, end: ''}}]}}\n"
    )
    loaded = config.parse(text, Path("esp.yaml"))
    return replace(loaded, listen=config.listen_of(["http://127.0.0.1:0"]), limits=Limits(max_parts_per_shard=parts))


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - there is nothing that tells
            await asyncio.sleep(0.001)


def asks(channel: grpc.aio.Channel, path: str, seconds: float = 20) -> asyncio.Task[bytes]:
    async def ask() -> bytes:
        answer: bytes = await channel.unary_unary(path)(ALL_SHARDS[path][0].SerializeToString(), timeout=seconds)
        return answer

    return asyncio.create_task(ask())


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(40):
            await work()

    asyncio.run(bounded())


@pytest.mark.parametrize("path", [path for path in ALL_SHARDS if path != LEASE + "LeaseLeases"])
def test_so_many_calls_are_at_work_on_a_shard_and_the_others_wait_for_their_turn(path: str) -> None:
    async def work() -> None:
        async with world(parts=1) as (proxy, shards, channel):
            calls = [asks(channel, path) for _ in range(20)]
            await until(lambda: proxy.gate.waiting == 20 - AT_ONCE)
            await until(lambda: all(len(shard.open) == AT_ONCE for shard in shards))
            for _ in range(20):
                await until(lambda: all(shard.open for shard in shards))
                for shard in shards:
                    shard.answer()
            await asyncio.gather(*calls)
            assert [shard.most for shard in shards] == [AT_ONCE, AT_ONCE]
            assert (any(proxy.gate.busy.values()), proxy.gate.waiting, proxy.gate.at_work) == (False, 0, {})

    run(work)


def test_one_list_of_leases_is_at_work_at_one_shard_at_a_time_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a list counts as large, and costs all shards much: they do not make it at the same time."""

    async def work() -> None:
        async with world(parts=4) as (proxy, shards, channel):
            monkeypatch.setattr(proxy.gate.alone, "look", lambda: None)  # as while the shards have other calls
            calls = [asks(channel, LEASE + "LeaseLeases") for _ in range(20)]
            await until(lambda: proxy.gate.waiting == 19)
            for _ in range(20):
                for shard in shards:
                    await until(lambda shard=shard: shard.open)  # type: ignore[misc]
                    assert sum(len(each.open) for each in shards) == 1
                    shard.answer()
            await asyncio.gather(*calls)
            assert [shard.most for shard in shards] == [1, 1]
            assert (any(proxy.gate.busy.values()), proxy.gate.waiting, proxy.gate.at_work) == (False, 0, {})

    run(work)


def test_what_waits_when_its_client_goes_is_asked_of_no_shard() -> None:
    path = LEASE + "LeaseGrant"

    async def work() -> None:
        async with world(parts=1) as (proxy, shards, channel):
            first = [asks(channel, path) for _ in range(AT_ONCE)]
            await until(lambda: all(len(shard.open) == AT_ONCE for shard in shards))
            late = [asks(channel, path, seconds=0.2) for _ in range(5)]
            gone = await asyncio.gather(*late, return_exceptions=True)
            assert [getattr(each, "code", str)() for each in gone] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 5
            await until(lambda: proxy.gate.waiting == 0)
            for shard in shards:
                for _ in range(AT_ONCE):
                    shard.answer()
            await asyncio.gather(*first)
            assert [(shard.most, shard.open) for shard in shards] == [(AT_ONCE, []), (AT_ONCE, [])]
            assert not proxy.leases.repair.waiting

    run(work)


def test_a_shard_that_stops_holds_up_leases_for_a_second_and_no_longer() -> None:
    path = LEASE + "LeaseGrant"

    async def work() -> None:
        async with world(parts=1) as (proxy, (one, stopped), channel):
            one.answers_at_once = True
            calls = [asks(channel, path) for _ in range(20)]
            await until(lambda: proxy.gate.stopped)
            # None of those that have waited takes a place there, or they would have to wait once more.
            await until(lambda: len(stopped.open) == 20)
            await asyncio.gather(*calls)
            assert one.most <= AT_ONCE
            assert (any(proxy.gate.busy.values()), proxy.gate.waiting, proxy.gate.at_work) == (False, 0, {})
            stopped.answers_at_once = True
            with suppress(IndexError):
                while True:
                    stopped.answer()
            await asks(channel, path)
            assert not proxy.gate.stopped

    run(work)
