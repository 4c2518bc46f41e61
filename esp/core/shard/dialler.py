"""Connects to an endpoint as far as that calls can be sent: the name, TCP, etcd's SETTINGS, the first Status call."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from esp.core.config import Endpoint
from esp.core.shard.dial import connect
from esp.core.shard.endpoint_state import EndpointState
from esp.core.shard.lookup import Lookups
from esp.core.shard.member import ask_status
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.status import RpcError


class Dialler:
    """Connects to the endpoints of one shard.

    Args:
        context: of the connections.
        own_part: makes the metadata of esp's own calls, as `ClientConnection.own_part`.
        take_status: takes the first answer of each member to Status; raises OSError if the member is not to be used.
    """

    def __init__(
        self, context: WireContext, own_part: Callable[[bytes], bytes], take_status: Callable[[bytes], None]
    ) -> None:
        self._context = context
        self._own_part = own_part
        self._take_status = take_status
        self._lookups = Lookups()

    async def dial(self, endpoint: Endpoint, state: EndpointState) -> ClientConnection:
        """A connection to a server that has answered a Status call, and is no esp; `state` is told of the round trip.

        Raises:
            OSError: no connection, no SETTINGS or no answer in time; or the member is not to be used (`take_status`).
        """
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        connection = ClientConnection(self._context, f"{host}:{endpoint.port}")
        connection.own_part = self._own_part
        try:
            await self._greeted(connection, endpoint)
            if not connection.ended:
                await self._examine(connection, state)
            if connection.ended:
                raise OSError("closed at once")
        except BaseException:
            connection.end(ErrorCode.NO_ERROR, "not wanted any more")
            self._context.flush()
            raise
        return connection

    async def _greeted(self, connection: ClientConnection, endpoint: Endpoint) -> None:
        """Connects, and waits for etcd's SETTINGS: a frozen member accepts, but sends nothing.

        Raises:
            OSError: no connection, or no SETTINGS in time.
        """
        greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.on_change = lambda: None if greeted.done() else greeted.set_result(None)
        seconds = self._context.limits.connect_timeout
        accepted = False
        try:
            addresses = await self._lookups.addresses(endpoint.host, seconds)
            async with asyncio.timeout(seconds):
                await connect(connection, addresses, endpoint.port, seconds)
                accepted = True
                await greeted
        except TimeoutError:
            fault = "it accepts connections, but says nothing" if accepted else "no answer"
            raise OSError(f"{fault} within {seconds:g} s") from None

    async def _examine(self, connection: ClientConnection, state: EndpointState) -> None:
        """Asks the member for its version and revision, before the connection is used.

        Raises:
            OSError: the revision is too high to be served; or the member is an esp, or does not answer.
        """
        asked = monotonic()
        with suppress(RpcError):  # an error is an answer, too; the member is asked again later
            answer = await ask_status(connection, self._context.limits.keepalive_timeout)
            state.answered(monotonic() - asked)
            self._take_status(answer)


def reason_of(error: OSError) -> str:
    """The reason why connecting failed, for people: the system's words without its numbers and tuples."""
    codes = {int(code) for code in re.findall(r"\[Errno (\d+)\]", str(error))}  # one for each address of the host
    if error.errno is not None and error.errno > 0:
        codes = {error.errno}
    return ", ".join(os.strerror(code).lower() for code in sorted(codes)) or (error.strerror or str(error)).lower()
