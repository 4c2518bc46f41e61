"""Changes of users and roles, over two shards that a test speaks for: in order, to the end, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.wire.status import Code, Status
from tests.core.services.test_all_shards import AUTH, HEADER, Asked, run, until, world
from tests.core.wire.conversation import HEAD, headers, trailers

USER_ADD = AUTH + "UserAdd"
ROLE_LIST = AUTH + "RoleList"
TABLE = {
    USER_ADD: (rpc_pb2.AuthUserAddRequest(name="x"), rpc_pb2.AuthUserAddResponse(header=HEADER)),
    ROLE_LIST: (rpc_pb2.AuthRoleListRequest(), rpc_pb2.AuthRoleListResponse(header=HEADER)),
}


@asynccontextmanager
async def shards() -> AsyncIterator[tuple[Asked, Asked, grpc.aio.Channel]]:
    async with world(parts=8) as (_, (one, other), channel):
        one.table = other.table = TABLE
        yield one, other, channel


def adds(channel: grpc.aio.Channel, seconds: float = 20) -> asyncio.Task[bytes]:
    async def add() -> bytes:
        request = TABLE[USER_ADD][0].SerializeToString()
        answer: bytes = await channel.unary_unary(USER_ADD)(request, timeout=seconds)
        return answer

    return asyncio.create_task(add())


async def permit(*asked: Asked) -> None:
    """Answers the question whether the caller may change anything."""
    for shard in asked:
        await until(lambda shard=shard: shard.open and shard.open[-1][1].path == ROLE_LIST.encode())
        shard.answer(-1)


def paths(shard: Asked) -> list[str]:
    """What the shard is asked and has not answered."""
    return [call.path.decode() for _, call in shard.open]


def refuse(shard: Asked, status: Status) -> None:
    connection, call = shard.open.pop(0)
    connection.says(headers(call.stream, HEAD + trailers(status), end=True))


def test_a_change_goes_from_shard_to_shard_also_when_its_client_has_gone() -> None:
    async def work() -> None:
        async with shards() as (one, other, channel):
            call = adds(channel, seconds=0.4)
            await permit(one, other)
            await until(lambda: paths(one) == [USER_ADD])
            assert paths(other) == []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            one.answer()
            await until(lambda: paths(other) == [USER_ADD])
            other.answer()

    run(work)


def test_a_change_waits_for_the_one_before_and_is_not_begun_when_its_client_goes() -> None:
    async def work() -> None:
        async with shards() as (one, other, channel):
            first = adds(channel)
            await permit(one, other)
            await until(lambda: paths(one) == [USER_ADD])
            gone = adds(channel, seconds=0.3)
            await asyncio.wait([gone])
            second = adds(channel)
            await asyncio.sleep(0.05)
            assert (paths(one), paths(other)) == ([USER_ADD], []), "it is looked at in its own turn"
            one.answer()
            await until(lambda: paths(other) == [USER_ADD])
            assert paths(one) == []
            other.answer()
            await first
            await permit(one, other)
            for shard in (one, other):
                await until(lambda shard=shard: paths(shard) == [USER_ADD])
                shard.answer()
            await second
            await asyncio.sleep(0.05)
            assert (paths(one), paths(other)) == ([], [])
            assert isinstance(gone.exception(), grpc.aio.AioRpcError)

    run(work)


@pytest.mark.parametrize("status", sorted(errors.STALE_TOKEN, key=str), ids=str)
def test_a_stale_token_is_told_as_such_only_where_nothing_was_changed(status: Status) -> None:
    async def work() -> None:
        async with shards() as (one, other, channel):
            call = adds(channel)
            await until(lambda: one.open and other.open)
            refuse(one, status)
            other.answer()
            assert await refusal(call) == (status.code, status.message)
            call = adds(channel)
            await permit(one, other)
            await until(lambda: one.open)
            one.answer()
            await until(lambda: other.open)
            refuse(other, status)
            text = f"esp: UserAdd is done on shard a, but shard b has refused: {status.message}; mend it there"
            assert await refusal(call) == (Code.FAILED_PRECONDITION, text)

    run(work)


async def refusal(call: asyncio.Task[bytes]) -> tuple[int, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().value[0], caught.value.details()
