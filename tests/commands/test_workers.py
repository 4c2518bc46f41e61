"""The supervisor's side of `esp serve` with several processes."""

from __future__ import annotations

import asyncio

from esp.commands.workers import find
from esp.core.background import Background
from esp.core.workers import Supervisor


def test_a_place_without_a_worker_leaves_doubt_where_a_client_has_watched() -> None:
    async def run() -> None:
        async with Background() as background:
            supervisor = Supervisor(3, 1.0, background)
            workers, findings = await find(supervisor, {"worker": 0, "watched": "", "start": 5})
            assert workers == [-1, -1], "all but the one that asks"
            assert [finding["is_doubtful"] for finding in findings] == [True, True]

    asyncio.run(run())
