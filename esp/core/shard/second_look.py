"""Endpoints that could not be used, looked at again while another is in use: so metrics tell when they are back.

Only these are looked at. An endpoint that has not failed costs nothing until esp needs it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from esp.core.config import Endpoint
from esp.core.shard.cluster import Cluster
from esp.core.shard.dialler import Dialler, reason_of
from esp.core.shard.endpoint_state import Connectivity, EndpointState
from esp.core.shard.leader import NO_LEADER
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode

log = logging.getLogger("esp.shard")

INTERVALS: Final = 5
"""From one look to the next so many times `health_interval`."""


class SecondLook:
    """Looks at the endpoints of one shard. A look is a connection with one Status call.

    Args:
        name: the shard's.
        dialler: makes a Dialler that gives the first answer to Status to this function.
        context: of the connections.
    """

    def __init__(
        self,
        name: str,
        dialler: Callable[[Callable[[bytes], str]], Dialler],
        context: WireContext,
    ) -> None:
        self._name = name
        self._dialler = dialler(self._fit)
        self._context = context

    async def at(self, states: Callable[[], Mapping[Endpoint, EndpointState]]) -> None:
        """Looks at endpoints whose state is a failure, again and again, until there is none."""
        while self._failed(states()):
            await asyncio.sleep(INTERVALS * self._context.limits.health_interval)
            for endpoint, state in self._failed(states()).items():
                await self._look(endpoint, state)

    @staticmethod
    def _failed(states: Mapping[Endpoint, EndpointState]) -> dict[Endpoint, EndpointState]:
        failure = Connectivity.TRANSIENT_FAILURE
        return {endpoint: state for endpoint, state in states.items() if state.connectivity is failure}

    async def _look(self, endpoint: Endpoint, state: EndpointState) -> None:
        try:
            connection = await self._dialler.dial(endpoint, state)
        except OSError as error:
            why = reason_of(error)
            log.debug("shard %s: cannot connect to %s: %s", self._name, endpoint, why)
            state.failed(why)
            return
        connection.end(ErrorCode.NO_ERROR, "it was only looked at")
        self._context.flush()
        state.usable()
        log.info("shard %s: %s can be used again", self._name, endpoint)

    def _fit(self, answer: bytes) -> str:
        """The version of a member by its answer to Status.

        Raises:
            OSError: the member could not be used.
        """
        member = Cluster(self._name)  # what the shard knows is of the member in use
        version = member.take_status(answer)
        if not member.has_leader:
            raise OSError(NO_LEADER)
        return version
