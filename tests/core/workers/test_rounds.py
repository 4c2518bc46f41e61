"""Work that many ask for at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from esp.core.background import Background
from esp.core.workers import Rounds, rounds
from tests.harness import PATIENCE


def run(test: Callable[[Background], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE), Background() as background:
            await test(background)

    asyncio.run(bounded())


def test_all_who_ask_while_a_round_lasts_share_the_next_one() -> None:
    async def test(background: Background) -> None:
        goes, begun = asyncio.Event(), 0

        async def work() -> None:
            nonlocal begun
            begun += 1
            await goes.wait()

        made = Rounds(background, work)
        first = asyncio.ensure_future(made.next())
        while not begun:  # noqa: ASYNC110
            await asyncio.sleep(0)
        others = [asyncio.ensure_future(made.next()) for _ in range(1000)]
        await asyncio.sleep(0.01)
        assert (made.count, len(background.tasks)) == (1, 2)
        goes.set()
        await first
        await asyncio.gather(*others)
        assert made.count == begun == 2, "one round for a thousand, and none of them saw the one that had begun before"

    run(test)


def test_after_a_round_it_rests_nine_times_as_long_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 100.0, "takes": 0.0}
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        clock["now"] += seconds

    async def work() -> None:
        clock["now"] += clock["takes"]

    async def test(background: Background) -> None:
        made = Rounds(background, work)
        for takes in (0.05, 4.0, 0.0, 0.0):
            clock["takes"] = takes
            await made.next()
        assert slept == [0.0, 0.45, 1.0, 0.0]

    monkeypatch.setattr(rounds, "monotonic", lambda: clock["now"])
    monkeypatch.setattr("esp.core.workers.rounds.asyncio.sleep", sleep)
    run(test)


def test_a_round_that_fails_holds_up_nobody() -> None:
    async def test(background: Background) -> None:
        async def work() -> None:
            raise AssertionError

        made = Rounds(background, work)
        await made.next()
        await made.next()
        assert made.count == 2
        assert background.failures

    run(test)
