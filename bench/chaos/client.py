"""A client of etcd: calls through one of several endpoints, as stock clients do, with outcomes that a judge can use."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from esp.core.pb import rpc_pb2

Answer = TypeVar("Answer", bound=Message)

SECONDS: Final = 2.0
"""The deadline of a call."""
LOGIN_SECONDS: Final = 5.0
PAUSE: Final = 0.1
"""Seconds after a call that failed."""
_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", -1),
]
_MAYBE: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
"""Codes after which nobody knows whether the call was applied."""
_NOT_SENT: Final = ("there is no connection available", "failed to connect to all addresses")
"""Texts of such codes that say that nothing was sent: esp's, and grpcio's where no esp listens."""
_REFUSED: Final = {
    "etcdserver: mvcc: database space exceeded",
    "etcdserver: too many requests",
    "etcdserver: permission denied",
    "etcdserver: requested lease not found",
    "etcdserver: mvcc: required revision has been compacted",
    "etcdserver: no leader",
    "raft proposal dropped",  # a leader that hands over its office takes no writes meanwhile
}
"""Texts that say that the call was not applied, and that faults may cause."""

_STALE: Final = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")
"""Such texts after which a client logs in again."""


class RefusedError(Exception):
    """The call was surely not applied. The text is the server's."""


class UnknownError(Exception):
    """Nobody knows whether the call was applied."""


class WrongError(Exception):
    """An answer that no fault explains."""


@dataclass
class Endpoints:
    """The proxies, and what calls through them came to.

    Attributes:
        addresses: host:port of each; a proxy that is started again listens where it did.
        credentials: of the connections; None for plain ones.
        account: name and password of clients that name no other; None if auth is off.
        outcomes: calls by their outcome.
    """

    addresses: Sequence[str]
    account: tuple[str, str] | None = None
    credentials: grpc.ChannelCredentials | None = None
    outcomes: Counter[str] = field(default_factory=Counter)

    def channel(self, place: int) -> grpc.aio.Channel:
        """A new connection to the proxy of this number, modulo their number."""
        address = self.addresses[place % len(self.addresses)]
        if self.credentials is None:
            return grpc.aio.insecure_channel(address, _OPTIONS)
        return grpc.aio.secure_channel(address, self.credentials, _OPTIONS)


class Client:
    """Calls one proxy, and goes to the next when that one cannot be reached. Logs in again where its token is unknown.

    Args:
        endpoints: the proxies.
        place: the number of the proxy to begin with.
        account: name and password; None to ask without a token.
    """

    def __init__(self, endpoints: Endpoints, place: int, account: tuple[str, str] | None = None) -> None:
        self.endpoints = endpoints
        self.place = place
        self._account = account or endpoints.account
        self._token = ""
        self._channel = endpoints.channel(place)

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    @property
    def _metadata(self) -> list[tuple[str, str]]:
        return [("token", self._token)] if self._token else []

    async def _log_in(self) -> None:
        if self._account is None or self._token:
            return
        name, password = self._account
        request = rpc_pb2.AuthenticateRequest(name=name, password=password)
        answer = await self._call("Auth", "Authenticate", request, rpc_pb2.AuthenticateResponse, LOGIN_SECONDS)
        self._token = answer.token

    async def call(
        self, service: str, method: str, request: Message, answer: type[Answer], seconds: float = SECONDS
    ) -> Answer:
        """The answer to a unary call.

        Raises:
            RefusedError: the call was not applied.
            UnknownError: perhaps it was.
            WrongError: no fault explains the answer.
        """
        await self._log_in()
        return await self._call(service, method, request, answer, seconds)

    async def _call(self, service: str, method: str, request: Message, answer: type[Answer], seconds: float) -> Answer:
        ask = self._channel.unary_unary(
            f"/etcdserverpb.{service}/{method}", type(request).SerializeToString, answer.FromString
        )
        try:
            told: Answer = await ask(request, timeout=seconds, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise await self._failed(error, method) from None
        self.endpoints.outcomes["done"] += 1
        return told

    async def _failed(self, error: grpc.aio.AioRpcError, method: str) -> Exception:
        text = error.details() or ""
        if error.code() in _MAYBE:
            await self.move()
            if text.startswith(_NOT_SENT):
                self.endpoints.outcomes["not sent"] += 1
                return RefusedError(text)
            self.endpoints.outcomes["outcome unknown"] += 1
            return UnknownError(text)
        is_stale = self.is_stale(text)
        if text in _REFUSED or is_stale or text.startswith("esp: shard"):
            self.endpoints.outcomes["refused"] += 1
            await asyncio.sleep(PAUSE)
            return RefusedError(text)
        return WrongError(f"{method}: {error.code().name}: {text}")

    def is_stale(self, reason: str) -> bool:
        """Whether the reason of a refusal is that the token is unknown; the client then gets another."""
        is_stale = reason.endswith(_STALE)
        if is_stale:
            self._token = ""
        return is_stale

    async def move(self, *, away: bool = True) -> None:
        """Connects to the next proxy, or to the same one again, after a pause."""
        self.place += away
        before, self._channel = self._channel, self.endpoints.channel(self.place)
        await before.close()
        await asyncio.sleep(PAUSE)

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> rpc_pb2.PutResponse:
        """Puts; raises as `call` does, and so do all others."""
        request = rpc_pb2.PutRequest(key=key, value=value, lease=lease)
        return await self.call("KV", "Put", request, rpc_pb2.PutResponse)

    async def range(self, key: bytes, end: bytes = b"", seconds: float = SECONDS) -> rpc_pb2.RangeResponse:
        """Reads a key, or a range."""
        request = rpc_pb2.RangeRequest(key=key, range_end=end)
        return await self.call("KV", "Range", request, rpc_pb2.RangeResponse, seconds)

    async def delete(self, key: bytes) -> rpc_pb2.DeleteRangeResponse:
        """Deletes a key."""
        request = rpc_pb2.DeleteRangeRequest(key=key)
        return await self.call("KV", "DeleteRange", request, rpc_pb2.DeleteRangeResponse)

    async def put_if(self, key: bytes, value: bytes, mod_revision: int) -> rpc_pb2.TxnResponse:
        """Puts if that is the key's mod revision (0 for no key), else reads the key."""
        compare = rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.MOD, mod_revision=mod_revision)
        put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))
        get = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))
        request = rpc_pb2.TxnRequest(compare=[compare], success=[put], failure=[get])
        return await self.call("KV", "Txn", request, rpc_pb2.TxnResponse)

    def stream(self, service: str, method: str, request: type[Message], answer: type[Message]) -> Any:
        """A new call with any number of messages both ways, for types of messages."""
        begin = self._channel.stream_stream(
            f"/etcdserverpb.{service}/{method}", request.SerializeToString, answer.FromString
        )
        return begin(metadata=self._metadata)

    async def watch(self, key: bytes, end: bytes, revision: int) -> AsyncIterator[rpc_pb2.WatchResponse]:
        """The messages of a new watch, until the stream ends. Then goes to the next proxy if no message came.

        Raises:
            UnknownError: the stream has ended.
            RefusedError: the client cannot log in.
            WrongError: no fault explains the end.
        """
        await self._log_in()
        watch = self.stream("Watch", "Watch", rpc_pb2.WatchRequest, rpc_pb2.WatchResponse)
        create = rpc_pb2.WatchCreateRequest(key=key, range_end=end, start_revision=revision, progress_notify=True)
        is_silent = True
        try:
            await watch.write(rpc_pb2.WatchRequest(create_request=create))
            async for message in watch:
                is_silent = False
                yield message
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() not in {*_MAYBE, grpc.StatusCode.UNKNOWN}:
                raise WrongError(f"Watch: {error.code().name}: {error.details()}") from None
            await self.move(away=is_silent)
            raise UnknownError(str(error)) from None
        finally:
            watch.cancel()
        await self.move(away=is_silent)
        raise UnknownError("the stream has ended")
