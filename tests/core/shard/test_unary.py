"""Calls to several shards: answers and failures side by side, deadlines, and cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard
from esp.core.shard.unary import ALARMS, RANGE, STATUS, Method, answers_of, ask, ask_all, failures_of
from esp.core.wire.status import DEADLINE_EXCEEDED, Code, RpcError


class FakeShard:
    """A shard that answers with `body`, or with an error; `asked` has what it was asked, `cancelled` counts ends."""

    parsed = Shard.parsed
    blamed = Shard.blamed

    def __init__(self, name: str, body: bytes | RpcError | None) -> None:
        self.name = name
        self.body = body
        self.endpoint = None
        self.garbled = 0
        self.asked: list[tuple[Any, ...]] = []
        self.cancelled = 0

    def free_connection(self) -> None:
        """None: each call has a task."""

    async def forward_unary(
        self,
        head: Any,
        message: bytes,
        *,
        idempotent: bool,
        timeout: Any,  # noqa: ASYNC109
        down: Any,
        repeatable: bool = True,
    ) -> bytes:
        self.asked.append((head, message, idempotent, timeout, down))
        try:
            await asyncio.sleep(0 if self.body is not None else 3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.body, bytes):
            return self.body
        assert self.body is not None
        raise self.body


def status(revision: int) -> bytes:
    return rpc_pb2.StatusResponse(header=rpc_pb2.ResponseHeader(revision=revision)).SerializeToString()


def shards(**bodies: bytes | RpcError | None) -> list[Any]:
    return [FakeShard(name, body) for name, body in bodies.items()]


def test_outcomes_are_by_name_and_one_that_fails_cuts_no_other_short() -> None:
    asked = shards(c=errors.NO_CONNECTION.error(), a=status(5), b=b"\xff")
    outcomes = asyncio.run(ask_all(asked, STATUS, rpc_pb2.StatusRequest()))
    assert list(outcomes) == ["c", "a", "b"], "in the order in which they were given"
    assert {name: answer.header.revision for name, answer in answers_of(outcomes).items()} == {"a": 5}
    failures = failures_of(outcomes)
    assert failures["c"] == errors.NO_CONNECTION
    assert failures["b"].code == Code.INTERNAL
    assert failures["b"].message == "esp: the answer of shard b is no StatusResponse"


def test_the_deadline_that_esp_sets_is_never_told_as_the_clients() -> None:
    asked = shards(a=DEADLINE_EXCEEDED.error(), b=status(5))
    outcomes = asyncio.run(ask_all(asked, STATUS, rpc_pb2.StatusRequest(), seconds=1.5))
    assert outcomes["a"] == errors.REQUEST_TIMED_OUT
    assert all(0 < shard.asked[0][3] <= 1.5 for shard in asked)


def test_each_shard_may_be_asked_something_of_its_own_with_the_clients_metadata() -> None:
    asked = shards(a=status(1), b=status(2))
    client: Any = object()

    async def work() -> None:
        await ask_all(
            asked, RANGE, lambda shard: rpc_pb2.RangeRequest(key=shard.name.encode()), metadata=b"m", down=client
        )

    asyncio.run(work())
    for shard in asked:
        ((head, message, idempotent, timeout, down),) = shard.asked
        assert head == (b"/etcdserverpb.KV/Range", b"m")
        assert rpc_pb2.RangeRequest.FromString(message).key == shard.name.encode()
        assert (idempotent, timeout, down) == (True, None, client)


def test_who_asks_no_more_ends_the_calls_to_all_shards() -> None:
    asked = shards(a=None, b=None)

    async def work() -> None:
        task = asyncio.create_task(ask_all(asked, ALARMS, rpc_pb2.AlarmRequest()))
        while not all(shard.asked for shard in asked):  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(work())
    assert [shard.cancelled for shard in asked] == [1, 1]


def test_one_shard_raises_what_it_says() -> None:
    (shard,) = shards(a=b"")
    with pytest.raises(RpcError) as caught:
        asyncio.run(ask(shard, STATUS, rpc_pb2.StatusRequest()))
    assert caught.value.status.message == "esp: the answer of shard a has no header"
    write = Method(b"/x/Y", rpc_pb2.StatusResponse, idempotent=False)
    (shard,) = shards(a=status(1))
    assert asyncio.run(ask(shard, write, rpc_pb2.StatusRequest())).header.revision == 1
    assert shard.asked[0][2] is False
