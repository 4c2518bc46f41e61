"""Two ends of a channel in one loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from esp.core.background import Background
from esp.core.workers import Channel, ChannelError
from esp.core.workers.channel import Command
from tests.harness import PATIENCE


@asynccontextmanager
async def ends(commands: Mapping[str, Command]) -> AsyncIterator[tuple[Channel, Channel]]:
    """The asking end, and the end that has these commands."""
    here, there = socket.socketpair()
    async with Background() as background:
        asking, answering = Channel(background, {}), Channel(background, commands)
        await asking.open(here)
        await answering.open(there)
        yield asking, answering


async def double(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"number": fields["number"] * 2}


async def slow(_: Mapping[str, Any]) -> Mapping[str, Any]:
    await asyncio.sleep(PATIENCE)
    return {}


async def broken(_: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ChannelError("not today")


def test_each_question_gets_its_own_answer() -> None:
    async def run() -> None:
        async with ends({"double": double, "slow": slow}) as (asking, _):
            waiting = asyncio.ensure_future(asking.ask("slow", PATIENCE))
            answers = await asyncio.gather(*(asking.ask("double", PATIENCE, number=n) for n in range(20)))
            assert [answer["number"] for answer in answers] == [2 * n for n in range(20)]
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(run())


def test_an_error_a_silence_and_an_end_are_told_apart() -> None:
    async def run() -> None:
        async with ends({"broken": broken, "slow": slow}) as (asking, answering):
            with pytest.raises(ChannelError, match="not today"):
                await asking.ask("broken", PATIENCE)
            with pytest.raises(ChannelError, match=r"not answered within 0\.01 s"):
                await asking.ask("slow", 0.01)
            waiting = asyncio.ensure_future(asking.ask("slow", PATIENCE))
            await asyncio.sleep(0)
            answering.close()
            with pytest.raises(ChannelError, match="has ended"):
                await waiting
            await asyncio.wait_for(asking.gone.wait(), PATIENCE)
            with pytest.raises(ChannelError, match="has ended"):
                await asking.ask("slow", PATIENCE)

    asyncio.run(run())


def test_an_end_that_does_not_read_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esp.core.workers.channel.MAX_UNREAD_BYTES", 1 << 20)

    async def run() -> None:
        here, there = socket.socketpair()
        with there:
            async with Background() as background:
                asking = Channel(background, {})
                await asking.open(here)
                for _ in range(100):
                    asking.tell("much", text="x" * 100_000)
                assert asking.gone.is_set()

    asyncio.run(run())
