"""The watch of a move's source, with a shard that is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from esp.core.keys import KeyRange
from esp.core.move.feed import Feed
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard


class Call:
    """A watch that begins, and ends when it is told."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.answers.put_nowait(rpc_pb2.WatchResponse(created=True).SerializeToString())

    async def read(self) -> bytes | None:
        return await self.answers.get()

    def cancel(self) -> None:
        pass


class Source:
    """A shard that knows one watch, and is not reached any more when that has ended."""

    name = "s0"

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def open(self, method: object, request: bytes) -> Call:
        if self.calls:
            await asyncio.Event().wait()
        self.calls.append(Call())
        return self.calls[-1]

    def parsed(self, kind: Callable[[], Any], message: bytes) -> Any:
        parsed = kind()
        parsed.ParseFromString(message)
        return parsed


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_watch_that_has_broken_is_not_live_until_it_has_begun_anew() -> None:
    """Else little seems to be left to copy, and the source is cut although much may be."""

    async def run() -> None:
        source = Source()
        feed = Feed(cast("Shard", source), KeyRange(b"b", b"c"), 1)
        task = asyncio.create_task(feed.run())
        await until(lambda: feed.is_live)
        source.calls[0].answers.put_nowait(None)
        await until(lambda: not feed.is_live)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
