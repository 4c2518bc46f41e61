"""/metrics with several workers: that of any worker is that of all.

A worker whose page is asked for asks the supervisor, which asks all workers. Both do so in rounds (`Rounds`): pages
that are asked for at the same time, of one worker or of several, share a round. So a flood of requests for the page
costs the other workers and the supervisor a tenth of their time at most. The page itself is made in its client's turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from esp.core.background import Background, all_of
from esp.core.metrics import process
from esp.core.metrics.families import Family, counter, gauge, of_json, to_json
from esp.core.metrics.sums import Sums
from esp.core.proxy import Proxy
from esp.core.workers import Channel, ChannelError, Rounds, Supervisor

log = logging.getLogger("esp")

COMMAND: Final = "metrics"
WORKER_SECONDS: Final = 2.0
"""Seconds after which the metrics are without a worker that does not answer."""
ALL_SECONDS: Final = 6.0
"""Seconds after which they are without all other workers: two rounds, and the rest in between."""


class MetricsHere:
    """A worker's side.

    Args:
        number: the worker's number.

    Attributes:
        channel: the channel to the supervisor.
        rounds: the questions to the supervisor.
    """

    def __init__(self, background: Background, number: int) -> None:
        self.rounds = Rounds(background, self._ask)
        self.channel: Channel | None = None
        self._background = background
        self._number = number
        self._proxy: Proxy | None = None
        self._theirs: list[list[Family]] = []

    def use(self, proxy: Proxy) -> None:
        """The pages of this proxy are those of all workers from now on."""
        self._proxy = proxy
        proxy.metrics.others = self._answer_later

    def _answer_later(self, answer: Callable[[list[list[Family]]], None]) -> None:
        self._background.start(self._answer(answer))

    async def _answer(self, answer: Callable[[list[list[Family]]], None]) -> None:
        await self.rounds.next()
        answer(self._theirs)

    async def _ask(self) -> None:
        try:
            assert self.channel is not None
            told = await self.channel.ask(COMMAND, ALL_SECONDS, worker=self._number)
            self._theirs = [of_json(families.encode()) for families in told["families"]]
        except (ChannelError, ValueError) as error:
            log.warning("/metrics has this worker only: %s", error)
            self._theirs = []

    async def tell(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        """The families of this worker."""
        families: list[Family] = []
        for step in self._proxy.metrics.collect() if self._proxy is not None else ():
            if step is None:
                await asyncio.sleep(0)
            else:
                families.append(step)
        return {"families": to_json(families).decode()}


class MetricsOfAll:
    """The supervisor's side.

    Attributes:
        rounds: the questions to all workers.
    """

    def __init__(self, supervisor: Supervisor, background: Background) -> None:
        self.rounds = Rounds(background, self._ask)
        self._supervisor = supervisor
        self._sums = Sums()
        self._processes: dict[int, int] = {}

    async def answer(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """The families of all workers but the one that asks, also of those that have ended, and of the supervisor."""
        await self.rounds.next()
        supervisor = self._supervisor
        own = [
            *process.families(),
            gauge("esp_workers", "Processes that serve.", len(supervisor.channels())),
            Family(
                "esp_limit_reached_total",
                "counter",
                "How often a limit was reached.",
                ("limit",),
                [(("worker_timeout",), supervisor.stuck)],
            ),
            counter("esp_worker_restarts_total", "Workers that have ended and begun anew.", supervisor.restarts),
        ]
        others = self._sums.beside(self._processes.get(told["worker"], 0))
        return {"families": [to_json(others).decode(), to_json(own).decode()]}

    async def _ask(self) -> None:
        channels = self._supervisor.channels()
        processes = {state["worker"]: state["process"] for state in self._supervisor.states()}
        answers = await all_of(_told(channel) for channel in channels.values())
        self._processes = {number: processes[number] for number in channels}
        self._sums.take(dict(zip(self._processes.values(), answers, strict=True)))


async def _told(channel: Channel) -> list[Family] | None:
    """The families of a worker; None of a worker that does not answer."""
    try:
        return of_json((await channel.ask(COMMAND, WORKER_SECONDS))["families"].encode())
    except (ChannelError, ValueError):
        return None
