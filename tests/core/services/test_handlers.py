"""Calls served by coroutines, joined to the wire in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from itertools import pairwise

import pytest

from esp.core.background import Background
from esp.core.services.handlers import CoroutineCall
from esp.core.wire.context import WireContext
from esp.core.wire.frames import MAX_WINDOW, SETTINGS_INITIAL_WINDOW_SIZE
from esp.core.wire.held_steps import AT_ONCE
from esp.core.wire.limits import Limits
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.status import OK
from esp.core.wire.turns import Turns
from tests.core.wire.conversation import STREAM, call, headers, meet, rst, window


@pytest.mark.parametrize("size", [1000, 16_000, 16_384, 100_000])
def test_a_coroutine_that_writes_without_pause_does_not_fill_the_memory(size: int) -> None:
    async def test() -> None:
        client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW})
        high = server.context.limits.max_output_bytes
        in_transport = most = sent = 0

        def write(said: bytes) -> None:
            nonlocal in_transport, most
            in_transport += len(said)
            most = max(most, in_transport)
            if in_transport > high and server.connection.writable:
                server.connection.pause()

        server.connection.on_flush = write
        client.sends(window(0, MAX_WINDOW - 65_535), headers(1, call(STREAM), end=True))
        stream = server.stream.streams[1]
        served = CoroutineCall(stream)

        async def work() -> None:
            stream.start()
            for _ in range(30_000_000 // size):
                await served.write(bytes(size))
            stream.finish(OK)

        task = served.start(Background().start, work())
        while not task.done():
            await asyncio.sleep(0)
            sent += in_transport
            in_transport = 0
            if not server.connection.writable:
                server.connection.resume()
            server.flush()
        assert sent + in_transport > 30_000_000 - size
        assert most < high + 2 * 262_144 + 2 * size
        server.holds_nothing()

    asyncio.run(test())


def test_a_coroutine_is_cancelled_when_its_client_goes_away() -> None:
    async def test() -> None:
        client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 0})
        client.sends(headers(1, call(STREAM)))
        stream = server.stream.streams[1]
        served = CoroutineCall(stream)

        async def work() -> None:
            stream.start()
            while True:
                await served.write(bytes(1000))

        task = served.start(Background().start, work())
        await asyncio.sleep(0)
        client.sends(rst(1))
        await asyncio.wait([task])
        assert task.cancelled()
        assert served.task is None
        server.holds_nothing()

    asyncio.run(test())


class Watched(CoroutineCall):
    """A call that says when it is gone."""


class Awaited:
    """Calls that wait for one event, and then take a quarter of the time that coroutines have in a turn.

    The clock goes by with this work alone. `done` has the calls that have worked, in order.
    """

    def __init__(self, *calls_of: int) -> None:
        """`calls_of`: the number of calls of each connection."""
        self.now = 0.0
        self.event = asyncio.Event()
        self.done: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.background = Background()
        self.context = WireContext(Limits(), turns=Turns(lambda: self.now))
        self.servers = []
        self.calls: list[weakref.ref[Watched]] = []
        for name, count in zip("abc", calls_of, strict=False):
            client, server = meet(context=self.context)
            ids = range(1, 2 * count, 2)
            client.sends(*(headers(number, call(STREAM), end=True) for number in ids))
            self.servers.append((client, server))
            for number in ids:
                self.begin(server.stream.streams[number], f"{name}{number}")
        self.context.turns.soon = asyncio.get_running_loop().call_soon
        self.context.turns.steps.release()

    def begin(self, stream: ServerStream, name: str) -> None:
        served = Watched(stream)
        self.calls.append(weakref.ref(served))
        self.tasks.append(served.start(self.background.start, self.work(stream, name)))

    async def none_held(self) -> None:
        """Returns when no step waits for its turn any more."""
        for _ in range(1000):
            if not len(self.context.turns.steps):
                return
            await asyncio.sleep(0)
        raise AssertionError

    async def work(self, stream: ServerStream, name: str) -> None:
        await self.event.wait()
        self.now += AT_ONCE / 4
        self.done.append(name)
        stream.finish(OK)


def in_a_loop(test: Coroutine[None, None, None]) -> None:
    asyncio.run(test)


def test_coroutines_that_are_woken_together_go_on_in_turns() -> None:
    async def test() -> None:
        awaited = Awaited(40, 1)
        await asyncio.sleep(0)
        awaited.event.set()
        seen = [0]
        while len(awaited.done) < 41:
            await asyncio.sleep(0)
            seen.append(len(awaited.done))
        assert max(after - before for before, after in pairwise(seen)) <= 8
        assert "b1" in awaited.done[:10], "a client with one call does not wait for all of another"
        await asyncio.wait(awaited.tasks)

    in_a_loop(test())


def test_a_coroutine_whose_step_is_held_can_be_cancelled() -> None:
    async def test() -> None:
        awaited = Awaited(40)
        await asyncio.sleep(0)
        awaited.event.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        client, server = awaited.servers[0]
        client.sends(*(rst(number) for number in range(1, 80, 2)))
        await asyncio.wait(awaited.tasks)
        assert sum(task.cancelled() for task in awaited.tasks) == 40 - len(awaited.done) > 0
        await awaited.none_held()
        server.holds_nothing()

    in_a_loop(test())


@pytest.mark.parametrize("begun", [True, False])
def test_cancelled_calls_leave_nothing_to_the_garbage_collector(begun: bool) -> None:
    async def test() -> None:
        awaited = Awaited(40)
        if begun:
            await asyncio.sleep(0)
            awaited.event.set()
            await asyncio.sleep(0)
        client, _ = awaited.servers[0]
        client.sends(*(rst(number) for number in range(1, 80, 2)))
        await asyncio.wait(awaited.tasks)
        awaited.tasks.clear()
        await awaited.none_held()
        assert [served for served in awaited.calls if served() is not None] == []

    gc.collect()
    gc.disable()
    try:
        in_a_loop(test())
    finally:
        gc.enable()
