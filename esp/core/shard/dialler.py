"""Connects to an endpoint as far as that calls can be sent: the name, TCP, etcd's SETTINGS, the first Status call."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from esp.core.config import Endpoint
from esp.core.shard.common_name import check_common_name
from esp.core.shard.dial import connect
from esp.core.shard.endpoint_state import EndpointState
from esp.core.shard.lookup import Lookups
from esp.core.shard.member import UnfitError, ask_status
from esp.core.shard.peer_port import has_no_lock, may_be_peer_port
from esp.core.shard.secured import Secured
from esp.core.shard.strangers import recognise
from esp.core.tls_files import words
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_tls import TlsClientProtocol
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.status import RpcError

log = logging.getLogger("esp.shard")


class Dialler:
    """Connects to the endpoints of one shard.

    Args:
        context: of the connections.
        own_part: makes the metadata of esp's own calls, as `ClientConnection.own_part`.
        take_status: takes the first answer of each member to Status, and returns its version; raises OSError if the
            member is not to be used.
        secured: the TLS of the shard; None if the shard is plain.
        connection: makes a connection, with the `:authority` of its requests.
    """

    def __init__(
        self,
        context: WireContext,
        own_part: Callable[[bytes], bytes],
        take_status: Callable[[bytes], str],
        secured: Secured | None,
        connection: Callable[[WireContext, str], ClientConnection] = ClientConnection,
    ) -> None:
        self._context = context
        self._connection = connection
        self._secured = secured
        self._own_part = own_part
        self._take_status = take_status
        self._lookups = Lookups()
        self._no_peer_ports: set[Endpoint] = set()

    async def dial(self, endpoint: Endpoint, state: EndpointState) -> ClientConnection:
        """A connection to a server that has answered a Status call, and is no esp; `state` is told of the round trip.

        Raises:
            OSError: no connection, no SETTINGS or no answer in time; or the member is not to be used (`take_status`).
        """
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        connection = self._connection(self._context, f"{host}:{endpoint.port}")
        connection.own_part = self._own_part
        try:
            await self._greeted(connection, endpoint)
            if not connection.ended:
                await self._examine(connection, endpoint, state)
                seconds = self._context.limits.keepalive_timeout
                await check_common_name(self._secured, connection, connection, seconds)
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
        seconds = self._context.limits.connect_timeout
        addresses = await self._lookups.addresses(endpoint.host, seconds)
        try:
            await self._connect(connection, addresses, endpoint, seconds)
        except ssl.SSLError as error:
            assert self._secured is not None, "only TLS fails so"
            if (fault := self._secured.fault(error, endpoint.host)) is not None:
                raise fault from None
            await self._recognise(endpoint)
            raise OSError(f"the TLS handshake fails: {words(error)}") from None
        except ConnectionResetError:
            if self._secured is None:
                raise
            await self._recognise(endpoint)
            raise OSError("it hangs up in the TLS handshake") from None
        if connection.ended:  # before anything that an etcd would say
            await self._recognise(endpoint)

    async def _connect(
        self, connection: ClientConnection, addresses: list[str], endpoint: Endpoint, seconds: float
    ) -> None:
        """Connects, and waits until the server has said something or the connection has ended.

        Raises:
            ssl.SSLError: the TLS handshake has failed.
            OSError: no connection, or no SETTINGS in time.
        """
        greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.on_change = lambda: None if greeted.done() else greeted.set_result(None)
        secured = self._secured
        tls = None
        if secured is not None:
            credentials = secured.credentials
            tls = credentials.context, secured.name_at(endpoint.host)
            connection.common_name = credentials.common_name  # of the same files, also when new ones have come
        accepted = False
        try:
            async with asyncio.timeout(seconds):
                protocol = await connect(connection, addresses, endpoint.port, seconds, tls)
                accepted = True
                await greeted
        except TimeoutError:
            self._context.reached("connect_timeout")
            fault = "it accepts connections, but says nothing" if accepted else "no answer"
            raise OSError(f"{fault} within {seconds:g} s") from None
        if isinstance(protocol, TlsClientProtocol) and protocol.fault is not None:
            raise protocol.fault

    async def _examine(self, connection: ClientConnection, endpoint: Endpoint, state: EndpointState) -> None:
        """Asks the member for its version and revision, before the connection is used.

        Raises:
            OSError: the revision is too high to be served; or the member is an esp, or does not answer; or the endpoint
                is a peer port.
        """
        asked = monotonic()
        seconds = self._context.limits.keepalive_timeout
        with suppress(RpcError):  # an error is an answer, too; the member is asked again later
            answer = await ask_status(connection, seconds)
            state.answered(monotonic() - asked)
            version = self._take_status(answer)
            log.debug("%s: etcd %s, which answered in %.1f ms", endpoint, version, 1000 * (monotonic() - asked))
            if may_be_peer_port(version) and endpoint not in self._no_peer_ports:
                if await has_no_lock(connection, seconds):
                    await self._recognise(endpoint)
                self._no_peer_ports.add(endpoint)

    async def _recognise(self, endpoint: Endpoint) -> None:
        """Raises an error that says who answers at `endpoint`, if that can be told.

        Raises:
            UnfitError: the endpoint is no etcd's client port, or does not speak as the config says.
        """
        addresses = await self._lookups.addresses(endpoint.host, self._context.limits.connect_timeout)
        if (who := await recognise(endpoint, addresses[0], self._secured)) is not None:
            raise who from None


def reason_of(error: OSError) -> str:
    """The reason why connecting failed, for people: the system's words without its numbers and tuples."""
    if isinstance(error, UnfitError):
        return str(error)
    codes = {int(code) for code in re.findall(r"\[Errno (\d+)\]", str(error))}  # one for each address of the host
    if error.errno is not None and error.errno > 0:
        codes = {error.errno}
    told = ", ".join(os.strerror(code).lower() for code in sorted(codes)) or error.strerror or str(error)
    return told[:1].lower() + told[1:]  # not the names of files in it
