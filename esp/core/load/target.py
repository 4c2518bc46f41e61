"""One target of a load, such as an esp or an etcd: its connections, and single calls to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from esp.core.config import Config, read_password
from esp.core.pb import rpc_pb2
from esp.core.shard import AUTHENTICATE, Lookups, Method, Secured, connect, reason_of
from esp.core.tls_files import TlsFiles, words
from esp.core.wire.call import BrokenCall, MessageCall, messages
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.message import prefix
from esp.core.wire.status import RpcError, Status
from esp.core.wording import cured

CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 10.0

Answer = TypeVar("Answer", bound=Message)


class TargetError(Exception):
    """A target cannot be reached, or refuses what is asked; the text is for people.

    Attributes:
        status: its refusal; None if there is none.
    """

    def __init__(self, text: str, status: Status | None = None) -> None:
        super().__init__(text)
        self.status = status


class Target:
    """A target, by the first endpoint of a config of one shard.

    Attributes:
        name: its URL.
        context: of its connections.
        metadata: of all calls: the token of the user, if there is one.
        connections: open connections.
        was_reached: whether there ever was a connection.
    """

    def __init__(self, config: Config) -> None:
        [self._shard] = config.shards
        self._endpoint = self._shard.endpoints[0]
        self._files = TlsFiles()
        self.name = str(self._endpoint)
        self.context = WireContext(config.limits)
        self.metadata = b""
        self.connections: list[ClientConnection] = []
        self.was_reached = False

    async def connect(self, count: int) -> Sequence[ClientConnection]:
        """So many connections; those that have ended since are replaced.

        Raises:
            TargetError: the target cannot be reached, or refuses the user.
        """
        self.connections = [one for one in self.connections if not one.ended and not one.draining]
        while len(self.connections) < count:
            self.connections.append(await self._connected())
            self.was_reached = True
            if not self.metadata and self._shard.user is not None:
                await self._log_in()
        return self.connections[:count]

    async def _connected(self) -> ClientConnection:
        endpoint = self._endpoint
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        connection = ClientConnection(self.context, f"{host}:{endpoint.port}")
        secured = Secured.of(self.name, self._shard.tls, self._files)
        tls = None if secured is None else (secured.credentials.context, secured.name_at(endpoint.host))
        greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.on_change = lambda: None if greeted.done() else greeted.set_result(None)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                addresses = await Lookups().addresses(endpoint.host, CONNECT_SECONDS)
                await connect(connection, addresses, endpoint.port, CONNECT_SECONDS, tls)
                await greeted
        except TimeoutError:
            raise TargetError(
                f"{self.name}: no answer within {CONNECT_SECONDS:g} s; it stands still, or a firewall is between"
            ) from None
        except ssl.SSLError as error:
            raise TargetError(f"{self.name}: TLS fails: {words(error)}") from None
        except OSError as error:
            raise TargetError(f"{self.name}: {cured(reason_of(error))}") from None
        if connection.ended:
            raise TargetError(f"{self.name}: it hangs up; is this the client port of an esp or an etcd?")
        return connection

    async def _log_in(self) -> None:
        user = self._shard.user
        assert user is not None, "the caller has looked"
        try:
            password = read_password(user.password_file)
        except (OSError, ValueError) as error:
            raise TargetError(f"{self.name}: the password: {error}") from None
        answer = await self.ask(AUTHENTICATE, rpc_pb2.AuthenticateRequest(name=user.name, password=password))
        self.metadata = encode([(b"token", answer.token.encode())])

    async def ask(self, method: Method[Answer], request: Message) -> Answer:
        """The answer to one call, on the first connection.

        Raises:
            TargetError: the target refuses, or does not answer.
        """
        connection = self.connections[0]
        call = MessageCall(connection, messages())
        try:
            async with asyncio.timeout(CALL_SECONDS):
                body = prefix(request.SerializeToString())
                connection.call(call, (method.path, self.metadata), b"", body, end=True)
                self.context.flush_soon()
                return method.answer.FromString(await call.read_only())
        except TimeoutError:
            raise TargetError(f"{self.name}: no answer within {CALL_SECONDS:g} s") from None
        except (RpcError, BrokenCall, DecodeError) as error:
            status = error.status if isinstance(error, RpcError) else None
            raise TargetError(f"{self.name}: {status.message if status else error}", status) from None
        finally:
            call.cancel()
            self.context.flush_soon()

    def open(self, path: bytes, request: Message) -> MessageCall[bytes]:
        """Begins a call with one request and a stream of answers, on the first connection."""
        connection = self.connections[0]
        call = MessageCall(connection, messages())
        connection.call(call, (path, self.metadata), b"", prefix(request.SerializeToString()), end=True)
        self.context.flush_soon()
        return call

    def close(self) -> None:
        """Ends all connections."""
        for connection in self.connections:
            connection.end(ErrorCode.NO_ERROR, "done")
        self.context.flush()
        self.connections.clear()
