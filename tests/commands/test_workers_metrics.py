"""A flood of requests for /metrics of several workers: what it makes the others do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from esp.commands.workers_metrics import MetricsHere, MetricsOfAll
from esp.core import config as configs
from esp.core.background import Background
from esp.core.metrics.families import Family, counter, of_json, to_json
from esp.core.proxy import Proxy
from esp.core.workers import Channel, ChannelError, Supervisor
from tests.harness import PATIENCE

CONFIG = "shards: [{name: a, endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]"


class World:
    """A supervisor with three workers; the last is stuck."""

    def __init__(self, background: Background) -> None:
        self.restarts, self.stuck = 4, 0
        self.asked: list[int] = []
        self.of_all = MetricsOfAll(cast("Supervisor", self), background)

    def channels(self) -> dict[int, Channel]:
        return {number: cast("Channel", _Worker(self, number)) for number in range(3)}

    def states(self) -> list[dict[str, int]]:
        return [{"worker": number, "process": 100 + number} for number in range(3)]


class _Worker:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number

    async def ask(self, _: str, __: float, **fields: Any) -> Mapping[str, Any]:
        self.world.asked.append(self.number)
        await asyncio.sleep(0)
        if self.number == 2:
            raise ChannelError("it is stuck")
        return {"families": to_json([counter("puts_total", "", 10**self.number)]).decode()}


class _ToSupervisor:
    def __init__(self, world: World) -> None:
        self.world = world

    async def ask(self, _: str, __: float, **fields: Any) -> Mapping[str, Any]:
        return await self.world.of_all.answer(fields)


def value(families: list[Family], name: str) -> Any:
    return next(family.rows[0][1] for family in families if family.name == name)


def test_pages_that_are_asked_for_at_once_share_what_the_other_workers_tell() -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), Background() as background:
            world = World(background)
            answers: list[list[list[Family]]] = []
            workers = [MetricsHere(background, number) for number in range(2)]
            proxies = [Proxy(configs.parse(CONFIG, None)) for _ in workers]
            for worker, proxy in zip(workers, proxies, strict=True):
                worker.channel = cast("Channel", _ToSupervisor(world))
                worker.use(proxy)
            for _ in range(500):
                for proxy in proxies:
                    assert proxy.metrics.others is not None
                    proxy.metrics.others(answers.append)  # type: ignore[arg-type]
            while len(answers) < 1000:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert [worker.rounds.count for worker in workers] == [1, 1]
            assert world.of_all.rounds.count == 1
            assert sorted(world.asked) == [0, 1, 2]
            of_first, of_second = ([found for found in answers if value(found[0], "puts_total") == n] for n in (10, 1))
            assert len(of_first) == len(of_second) == 500, "each has those of the others"
            assert value(answers[0][1], "esp_worker_restarts_total") == 4

    asyncio.run(run())


def test_a_worker_tells_its_own_families_in_steps() -> None:
    async def run() -> None:
        async with Background() as background:
            worker = MetricsHere(background, 0)
            assert of_json((await worker.tell({}))["families"].encode()) == []
            worker.use(Proxy(configs.parse(CONFIG, None)))
            names = {family.name for family in of_json((await worker.tell({}))["families"].encode())}
            assert {"esp_map_info", "esp_reload_calls_total"} <= names

    asyncio.run(run())
