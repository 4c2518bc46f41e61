"""Three shards that a test plays, and esp's leases on them: to do what no etcd does on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from inspect import isawaitable
from types import SimpleNamespace
from typing import Any

from google.protobuf.message import Message

from esp.core import errors
from esp.core.auth_tokens import OWN
from esp.core.background import Background
from esp.core.config import User
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.pb import rpc_pb2
from esp.core.services.handlers import CoroutineCall
from esp.core.services.lease.service import Leases, _FanOut
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.server_stream import INTERNAL_ERROR
from esp.core.wire.status import Status
from esp.core.wire.turns import Turns

NAMES = ("s0", "s1", "s2")
PATH = b"/etcdserverpb.Lease/"


class FakeShard:
    """A shard's leases, by id with the TTL granted.

    Attributes:
        away: every call ends with NO_CONNECTION.
        frozen: what is asked is done, but no answer comes.
        keys: those of each lease.
        keepers: whose memory the answers were, call by call.
        is_behind: was frozen while it led, and until the next read knows no lease.
        strangers: of "esp" and "client", those whose token is not known.
        logs_in: esp gets another token.
        askers: who asked, call by call.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.user: User | None = None
        self.leases: dict[int, int] = {}
        self.revision = 5
        self.dialled = 1
        self.away = False
        self.frozen = False
        self.asked: list[str] = []
        self.keys: list[bytes] = []
        self.keepers: list[object] = []
        self.is_behind = False
        self.strangers: set[str] = set()
        self.logs_in = True
        self.askers: list[str] = []

    parsed = Shard.parsed

    @property
    def is_ready(self) -> bool:
        return not self.away

    def wants_login(self, status: Status) -> bool:
        return status in errors.STALE_TOKEN

    async def log_in(self, since: float, seconds: float | None = None) -> bool:
        if self.logs_in:
            self.strangers.discard("esp")
        return self.logs_in

    async def forward_unary(
        self,
        forward: tuple[bytes, bytes],
        message: bytes,
        *,
        idempotent: bool,
        repeatable: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109
        down: object = None,
    ) -> bytes:
        self.keepers.append(down)
        await asyncio.sleep(0)
        if self.away:
            raise errors.NO_CONNECTION.error()
        method = forward[0].decode().rpartition("/")[2]
        self.asked.append(method)
        self.askers.append(asker := "esp" if forward[1] is OWN else "client")
        if asker in self.strangers:
            raise errors.INVALID_AUTH_TOKEN.error()
        answer = getattr(self, f"_{method}")(message)
        if isawaitable(answer):
            answer = await answer
        if self.frozen:
            await asyncio.sleep(timeout or 0)
            raise errors.REQUEST_TIMED_OUT.error()
        assert isinstance(answer, Message)
        return answer.SerializeToString()

    def _header(self) -> rpc_pb2.ResponseHeader:
        return rpc_pb2.ResponseHeader(revision=self.revision)

    def _LeaseGrant(self, message: bytes) -> Message:
        request = rpc_pb2.LeaseGrantRequest.FromString(message)
        if request.ID in self.leases:
            raise errors.LEASE_EXISTS.error()
        self.leases[request.ID] = request.TTL
        return rpc_pb2.LeaseGrantResponse(header=self._header(), ID=request.ID, TTL=request.TTL)

    def free_connection(self) -> None:
        """None: each call has a task."""

    def _LeaseRevoke(self, message: bytes) -> Message:
        if self.leases.pop(rpc_pb2.LeaseRevokeRequest.FromString(message).ID, None) is None:
            raise errors.LEASE_NOT_FOUND.error()
        return rpc_pb2.LeaseRevokeResponse(header=self._header())

    def _LeaseTimeToLive(self, message: bytes) -> Message:
        lease_id = rpc_pb2.LeaseTimeToLiveRequest.FromString(message).ID
        ttl = None if self.is_behind else self.leases.get(lease_id)
        return rpc_pb2.LeaseTimeToLiveResponse(
            header=self._header(), ID=lease_id, TTL=-1 if ttl is None else ttl, grantedTTL=ttl or 0, keys=self.keys
        )

    def _Range(self, message: bytes) -> Message | Awaitable[Message]:
        self.is_behind = False
        return rpc_pb2.RangeResponse(header=self._header())

    def _Put(self, message: bytes) -> Message:
        if rpc_pb2.PutRequest.FromString(message).lease not in self.leases:
            raise errors.LEASE_NOT_FOUND.error()
        return rpc_pb2.PutResponse(header=self._header())


class FakeStream:
    """A client's call, and what it was answered."""

    def __init__(self, path: bytes) -> None:
        self.forward = (path, b"")
        self.head = SimpleNamespace(forward=self.forward, fields=[], path=path)
        context = SimpleNamespace(flush_soon=lambda: None, turns=Turns(lambda: 0.0))
        self.connection = SimpleNamespace(context=context, clock=lambda: 0.0, charge=lambda seconds: None)
        self.peer = "client"
        self.sink: object = None
        self.retried = False
        self.answer: bytes | Status | None = None

    def remaining(self) -> float | None:
        return None

    def respond(self, body: bytes) -> None:
        self.answer = body

    def finish(self, status: Status) -> None:
        self.answer = status

    def on_bug(self) -> None:
        self.answer = INTERNAL_ERROR


class World:
    """Three shards, and esp's leases."""

    def __init__(self, limits: Limits | None = None, *, tolerant: bool = True) -> None:
        self.shards = [FakeShard(name) for name in NAMES]
        shard_map = ShardMap.build(
            [("s0", KeyRange(b"", b"i")), ("s1", KeyRange(b"i", b"r")), ("s2", KeyRange(b"r", None))], NAMES
        )
        self.context = WireContext(limits or Limits())
        layout = Layout.of(shard_map, self.shards)  # type: ignore[arg-type]
        self.background = Background()
        self.layout = layout
        self.leases = Leases(layout, self.background, self.context, tolerant=tolerant)
        self.table, self.repair, self.retry = self.leases.table, self.leases.repair, self.leases.retry
        self.fan_out = _FanOut(layout, self.table, self.repair)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Repairs run, and see at once which shards are back."""

        async def ticks() -> None:
            while True:
                self.repair.tick()
                await asyncio.sleep(0.001)

        self.leases.start()
        ticking = asyncio.create_task(ticks())
        yield
        ticking.cancel()
        await self.background.close()

    async def grant(self, lease_id: int = 0, ttl: int = 60) -> int:
        request = rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl)
        return (await self.fan_out.grant(self._call("LeaseGrant"), request)).ID

    async def revoke(self, lease_id: int) -> None:
        await self.fan_out.revoke(self._call("LeaseRevoke"), rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    def put_refused(self, lease_id: int) -> FakeStream | None:
        """The second shard has refused a Put for its lease; the call, if esp has something to do about that."""
        stream: Any = FakeStream(b"/etcdserverpb.KV/Put")
        put = rpc_pb2.PutRequest(key=b"j", lease=lease_id)
        body = prefix(put.SerializeToString())
        return stream if self.retry.take(stream, body, [None, put], errors.LEASE_NOT_FOUND, self.layout.owner) else None

    def _call(self, method: str) -> Any:
        stream: Any = FakeStream(PATH + method.encode())
        return CoroutineCall(stream)

    def where(self, lease_id: int) -> list[bool]:
        return [lease_id in shard.leases for shard in self.shards]

    def jobs(self) -> list[dict[int, bool]]:
        """By shard: leases that are to be granted (True) or revoked (False)."""
        return [{id_: job.grants for id_, job in yard.jobs.items()} for yard in self.repair._yards.values()]


def run(work: Callable[[], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


async def until(true: Callable[[], object]) -> None:
    while not true():  # noqa: ASYNC110 - there is nothing that tells
        await asyncio.sleep(0.001)
