"""Where clients that come again may have watched: asked of all workers, and of the process before a takeover."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Final

from esp.core.background import Background, all_of
from esp.core.services.watch import Finding
from esp.core.takeover import POSITIONS_SECONDS, HandOver, Predecessor
from esp.core.tokens import Vector
from esp.core.workers import Channel, ChannelError, Supervisor

FIND_SECONDS: Final = 2 * POSITIONS_SECONDS
"""Seconds that a client waits at most for what other workers know of it."""
ADOPT_TRIES: Final = 4
"""How often the positions of a process before are given to workers, until one has taken them."""
_PAUSE: Final = 0.5

UNKNOWN: Final = {"has_ended": False, "shards": None, "revisions": None, "is_doubtful": True}
"""The finding of a worker that does not answer."""


class Watches:
    """The supervisor's side.

    Args:
        before: the process before a takeover; None without one.
        hand_over: the takeover by another process.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        background: Background,
        before: Predecessor | None,
        hand_over: HandOver,
    ) -> None:
        self._supervisor = supervisor
        self._background = background
        self._before = before
        self._hand_over = hand_over
        self._numbers = count()
        self._owed = 0

    @property
    def are_owed(self) -> bool:
        """Whether a worker has yet to give the positions of its watches to the process that takes over."""
        return self._owed > 0

    def owes(self, workers: int) -> None:
        """So many workers are to give the positions of their watches; of one that has died nobody can."""
        self._owed = workers

    async def on_find(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """Asks all other workers, and the process before, what they know of a client."""
        if self._before is not None:
            is_doubtful = await self._before.is_doubtful(told["start"] - 1)
        workers, findings = await find(self._supervisor, told)
        if self._before is not None:
            workers.append(-1)
            findings.append({**UNKNOWN, "is_doubtful": is_doubtful})
        return {"workers": workers, "findings": findings}

    async def on_give_back(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """A finding was not the one of a client."""
        channel = self._supervisor.channels().get(told["worker"])
        if channel is not None:
            channel.tell("give_back", watched=told["watched"])
        return {}

    async def on_positions(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """A worker gives the positions of its watches, for the process that takes over."""
        self._hand_over.give_positions(told["positions"])
        self._owed -= 1
        if not self._owed:
            self._background.start(self._hand_over.end_positions())
        return {}

    async def adopt(self, dumped: Sequence[Mapping[str, Any]]) -> None:
        """Gives positions of the process before to a worker; the others ask that one.

        A worker that does not answer is asked again, because it may have taken them; if it has died, another is.

        Raises:
            ChannelError: no worker has answered.
        """
        await self._supervisor.ready.wait()
        number, channel, fault = next(self._numbers), None, ChannelError("no worker is ready")
        for _ in range(ADOPT_TRIES):
            if channel is None or channel.gone.is_set():
                channel = next(iter(self._supervisor.channels().values()), None)
            if channel is None:
                await asyncio.sleep(_PAUSE)
                continue
            try:
                await channel.ask("adopt", FIND_SECONDS, number=number, positions=list(dumped))
                return
            except ChannelError as error:
                fault = error
        raise fault


def finding(told: Mapping[str, Any]) -> Finding:
    """A finding as a worker has told it."""
    vector = None if told["shards"] is None else Vector(tuple(told["shards"]), tuple(told["revisions"]))
    return Finding(told["has_ended"], vector, told["is_doubtful"])


async def find(supervisor: Supervisor, told: Mapping[str, Any]) -> tuple[list[int], list[Mapping[str, Any]]]:
    """What all other workers know of a client that comes again: their numbers, and a finding of each.

    A place between two workers has the number -1, and is doubtful: the client may have watched at the one that ended.
    """
    others = [state for state in supervisor.states() if state["worker"] != told["worker"]]
    absent = sum(not state["is_ready"] for state in others)
    asked = {number: channel for number, channel in supervisor.channels().items() if number != told["worker"]}
    findings = await all_of(_find(channel, told) for channel in asked.values())
    return [*asked, *[-1] * absent], [*findings, *[UNKNOWN] * absent]


async def _find(channel: Channel, told: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return await channel.ask("find", FIND_SECONDS / 2, watched=told["watched"], start=told["start"])
    except ChannelError:
        return UNKNOWN
