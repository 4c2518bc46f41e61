"""Calls to several servers that are awaited together."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from esp.core import errors
from esp.core.wire.call import BrokenCall, Together, messages
from esp.core.wire.message import prefix
from esp.core.wire.status import Code, RpcError
from tests.core.wire.conversation import HEAD, data, headers, message, rst, trailers
from tests.core.wire.upstream import dial, forward


class Keeper:
    def __init__(self) -> None:
        self.held = 0

    def hold(self, size: int) -> bool:
        self.held += size
        return True

    def release(self, size: int) -> None:
        self.held -= size


class Pair:
    """Two servers that were asked, and who waits for both."""

    def __init__(self) -> None:
        self.one = dial()
        self.other = dial(context=self.one.context)
        self.keeper = Keeper()
        self.together: Together[bytes] = Together()
        for caller in (self.one, self.other):
            call = self.together.add(caller.connection, messages(), self.keeper)
            caller.connection.call(call, forward(), b"", prefix(b"?"), end=True)
        self.waiting = asyncio.create_task(self.together.answers())

    async def wait(self) -> list[bytes]:
        try:
            async with asyncio.timeout(5):
                return await self.waiting
        finally:
            self.together.cancel()


def in_a_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))

    return run


def answer(*contents: bytes) -> list[bytes]:
    said = [data(1, message(content)) for content in contents]
    return [headers(1, HEAD), *said, headers(1, trailers(), end=True)]


@in_a_loop
async def test_answers_come_in_the_order_of_the_calls_and_stay_held() -> None:
    pair = Pair()
    await asyncio.sleep(0)
    pair.other.hears(*answer(b"two"))
    await asyncio.sleep(0)
    assert not pair.waiting.done()
    pair.one.hears(*answer(b"one"))
    assert await pair.wait() == [b"one", b"two"]
    assert pair.keeper.held == 6


@in_a_loop
async def test_answers_that_came_before_anybody_waited_are_found() -> None:
    pair = Pair()
    pair.one.hears(*answer(b"one"))
    pair.other.hears(*answer(b"two"))
    assert await pair.wait() == [b"one", b"two"]


@pytest.mark.parametrize("waits", [True, False])
@in_a_loop
async def test_a_failure_does_not_wait_for_the_others(waits: bool) -> None:
    pair = Pair()
    if waits:
        await asyncio.sleep(0)
    pair.other.hears(headers(1, HEAD + trailers(errors.NO_LEADER), end=True))
    with pytest.raises(RpcError) as failure:
        await pair.wait()
    assert failure.value.status == errors.NO_LEADER
    assert pair.together.failed is pair.together.calls[1]
    assert not pair.one.connection.streams, "nobody waits for its answer any more"


@in_a_loop
async def test_what_the_others_have_answered_is_not_held_after_a_failure() -> None:
    pair = Pair()
    await asyncio.sleep(0)
    pair.one.hears(*answer(b"one"))
    pair.other.hears(rst(1))
    with pytest.raises(BrokenCall):
        await pair.wait()
    assert pair.keeper.held == 0


@pytest.mark.parametrize("contents", [(), (b"one", b"two")])
@in_a_loop
async def test_one_without_exactly_one_message_has_failed(contents: tuple[bytes, ...]) -> None:
    pair = Pair()
    await asyncio.sleep(0)
    pair.one.hears(*answer(*contents))
    with pytest.raises(RpcError) as failure:
        await pair.wait()
    assert failure.value.status.code == Code.INTERNAL
    assert pair.keeper.held == 0


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([headers(1, HEAD), data(1, b"\7\0\0\0\0")], id="a flag that is none"),
        pytest.param([headers(1, [(b":status", b"200"), (b"content-type", b"text/html")])], id="a page"),
    ],
)
def test_an_answer_that_cannot_be_read_is_told_while_another_is_awaited(said: list[bytes]) -> None:
    async def test() -> None:
        pair = Pair()
        await asyncio.sleep(0)
        pair.one.hears(*said)
        with pytest.raises(RpcError):
            await pair.wait()
        assert pair.keeper.held == 0

    asyncio.run(test())


@pytest.mark.parametrize("how", ["answered", "cancelled", "broken"])
def test_calls_that_have_ended_leave_nothing_to_the_garbage_collector(how: str) -> None:
    class Watched(Together[bytes]):
        """One that says when it is gone."""

    async def test() -> None:
        pair = Pair()
        pair.together.cancel()
        pair.waiting.cancel()
        together = Watched()
        for caller in (pair.one, pair.other):
            call = together.add(caller.connection, messages(), None)
            caller.connection.call(call, forward(), b"", prefix(b"?"), end=True)
        waiting = asyncio.create_task(together.answers())
        await asyncio.sleep(0)
        for caller in (pair.one, pair.other):
            stream = max(caller.connection.streams)
            said = [headers(stream, HEAD), data(stream, message(b"!")), headers(stream, trailers(), end=True)]
            if how != "cancelled":
                caller.hears(*(said if how == "answered" else [rst(stream)]))
        if how == "cancelled":
            waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled() or bool(waiting.exception()) is (how == "broken")
        together.cancel()
        gone = weakref.ref(together)
        del together, call, waiting, caller
        await asyncio.sleep(0)
        assert gone() is None

    gc.collect()
    gc.disable()
    try:
        asyncio.run(test())
    finally:
        gc.enable()
