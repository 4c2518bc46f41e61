"""The read after which a shard is asked once more whether it has a lease."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from esp.core import errors
from esp.core.background import Background
from esp.core.pb import rpc_pb2
from esp.core.services.lease.doubt import Doubts
from esp.core.wire.hpack import Fields
from esp.core.wire.server_stream import INTERNAL_ERROR
from esp.core.wire.status import RpcError, Status
from tests.core.services.lease.lease_world import FakeShard, run


class FakeLane:
    """A lane that notes what is sent on it."""

    def __init__(self, shard: FakeShard) -> None:
        self.shard = shard
        self.name = shard.name
        self.sent: list[int] = []

    def send(self, keepalives: list[Keepalive], body: bytes) -> None:
        self.sent += [keepalive.id for keepalive in keepalives]


class Keepalive:
    def __init__(self, id_: int, lane: FakeLane | None) -> None:
        self.id = id_
        self.now = lane
        self.body = b""
        self.wanted = True
        self.metadata: Fields = []
        self.outcome: object = None

    def lane(self, shard: str) -> FakeLane | None:
        return self.now

    def failed(self, shard: str, status: Status) -> None:
        self.outcome = status

    def spared(self, shard: str) -> None:
        self.outcome = "spared"


class Scene:
    """A shard whose reads end when the test lets them."""

    def __init__(self) -> None:
        self.shard = FakeShard("s1")
        self.lane: Any = FakeLane(self.shard)
        self.background = Background()
        self.doubts = Doubts(self.background)
        self.reads: list[asyncio.Future[None]] = []
        self.shard._Range = self._read

    async def _read(self, message: bytes) -> rpc_pb2.RangeResponse:
        assert not rpc_pb2.RangeRequest.FromString(message).serializable
        self.reads.append(asyncio.get_running_loop().create_future())
        await self.reads[-1]
        return rpc_pb2.RangeResponse(header={"revision": 5})

    def add(self, id_: int) -> Any:
        keepalive: Any = Keepalive(id_, self.lane)
        self.doubts.add(keepalive, self.lane)
        return keepalive

    async def turns(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


def scene(work: Callable[[Scene], Awaitable[None]]) -> None:
    async def played() -> None:
        one = Scene()
        await work(one)
        assert not one.doubts
        assert not one.doubts._waiting
        await one.background.close()

    run(played)


def test_keepalives_share_a_read_that_begins_after_them() -> None:
    async def work(one: Scene) -> None:
        one.add(1)
        one.add(2)
        await one.turns()
        one.add(3)
        await one.turns()
        assert len(one.reads) == 1
        assert one.lane.sent == []
        one.reads[0].set_result(None)
        await one.turns()
        assert one.lane.sent == [1, 2]
        assert len(one.reads) == 2
        one.reads[1].set_result(None)
        await one.turns()
        assert one.lane.sent == [1, 2, 3]

    scene(work)


@pytest.mark.parametrize("refusal", [errors.PERMISSION_DENIED, errors.INVALID_AUTH_TOKEN])
def test_who_may_not_read_has_waited_for_the_member_all_the_same(refusal: Status) -> None:
    async def work(one: Scene) -> None:
        one.add(1)
        await one.turns()
        one.reads[0].set_exception(RpcError(refusal))
        await one.turns()
        assert one.lane.sent == [1]

    scene(work)


@pytest.mark.parametrize("is_bug", [False, True])
def test_without_an_answer_all_that_wait_fail(is_bug: bool) -> None:
    async def work(one: Scene) -> None:
        waiting = [one.add(1)]
        await one.turns()
        waiting.append(one.add(2))
        one.reads[0].set_exception(ValueError("a bug") if is_bug else RpcError(errors.REQUEST_TIMED_OUT))
        await one.turns()
        expected = INTERNAL_ERROR if is_bug else errors.REQUEST_TIMED_OUT
        assert [keepalive.outcome for keepalive in waiting] == [expected] * 2
        assert one.lane.sent == []

    scene(work)


def test_a_shard_that_has_left_meanwhile_or_has_another_lane_and_a_client_that_has_gone() -> None:
    async def work(one: Scene) -> None:
        left, moved, gone = one.add(1), one.add(2), one.add(3)
        await one.turns()
        left.now = None
        moved.now = FakeLane(one.shard)
        gone.wanted = False
        one.reads[0].set_result(None)
        await one.turns()
        assert left.outcome == "spared"
        assert moved.now.sent == [2]
        assert one.lane.sent == []

    scene(work)
