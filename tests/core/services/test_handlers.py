"""Calls served by coroutines, joined to the wire in memory."""

from __future__ import annotations

import asyncio

import pytest

from esp.core.background import Background
from esp.core.services.handlers import CoroutineCall
from esp.core.wire.frames import MAX_WINDOW, SETTINGS_INITIAL_WINDOW_SIZE
from esp.core.wire.status import OK
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
