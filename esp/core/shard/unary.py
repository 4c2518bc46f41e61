"""esp's own calls of unary RPCs, to one shard or to several at once.

An answer is a parsed message. An answer that cannot be read is an error whose text blames the shard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from esp.core import errors
from esp.core.auth_tokens import OWN
from esp.core.background import all_of
from esp.core.pb import rpc_pb2
from esp.core.shard.at_once import AtOnce, are_ready
from esp.core.shard.fate import failure, outcome
from esp.core.shard.shard import Shard
from esp.core.wire.call import BrokenCall, Reader, TogetherCall, messages
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import DEADLINE_EXCEEDED, RpcError, Status

Answer = TypeVar("Answer", bound=Message)


class Caller(Protocol):
    """The client's call for which shards are asked, such as a `CoroutineCall`."""

    def timed(self, work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        """`work`, with its time charged to the client's connection."""

    def asks(self, shard: str) -> None:
        """A shard is asked."""

    def replied(self, shard: str) -> None:
        """A shard has answered."""

    def asked(self, shard: str) -> None:
        """A shard has failed, or nobody waits for it any more."""


class Method(Generic[Answer]):
    """A unary RPC of etcd.

    Attributes:
        path: the path of its calls.
        answer: the type of its answers.
        idempotent: whether a call is sent again when its connection breaks and nobody knows whether etcd has acted.
    """

    __slots__ = ("answer", "idempotent", "path")

    def __init__(self, path: bytes, answer: type[Answer], *, idempotent: bool) -> None:
        self.path = path
        self.answer = answer
        self.idempotent = idempotent

    def __repr__(self) -> str:
        return f"Method({self.path!r})"


RANGE: Final = Method(b"/etcdserverpb.KV/Range", rpc_pb2.RangeResponse, idempotent=True)
COMPACT: Final = Method(b"/etcdserverpb.KV/Compact", rpc_pb2.CompactionResponse, idempotent=False)
STATUS: Final = Method(b"/etcdserverpb.Maintenance/Status", rpc_pb2.StatusResponse, idempotent=True)
ALARMS: Final = Method(b"/etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmResponse, idempotent=True)
"""With the action GET only."""
TXN: Final = Method(b"/etcdserverpb.KV/Txn", rpc_pb2.TxnResponse, idempotent=False)
PUT: Final = Method(b"/etcdserverpb.KV/Put", rpc_pb2.PutResponse, idempotent=False)
MEMBER_LIST: Final = Method(b"/etcdserverpb.Cluster/MemberList", rpc_pb2.MemberListResponse, idempotent=True)
DELETE_RANGE: Final = Method(b"/etcdserverpb.KV/DeleteRange", rpc_pb2.DeleteRangeResponse, idempotent=False)
LEASE_GRANT: Final = Method(b"/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantResponse, idempotent=False)
LEASE_REVOKE: Final = Method(b"/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeResponse, idempotent=False)
LEASE_TIME_TO_LIVE: Final = Method(
    b"/etcdserverpb.Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveResponse, idempotent=True
)
LEASE_LEASES: Final = Method(b"/etcdserverpb.Lease/LeaseLeases", rpc_pb2.LeaseLeasesResponse, idempotent=True)
AUTHENTICATE: Final = Method(b"/etcdserverpb.Auth/Authenticate", rpc_pb2.AuthenticateResponse, idempotent=True)
"""A second call gives a second token, which does no harm."""
AUTH_STATUS: Final = Method(b"/etcdserverpb.Auth/AuthStatus", rpc_pb2.AuthStatusResponse, idempotent=True)
USER_GET: Final = Method(b"/etcdserverpb.Auth/UserGet", rpc_pb2.AuthUserGetResponse, idempotent=True)
USER_LIST: Final = Method(b"/etcdserverpb.Auth/UserList", rpc_pb2.AuthUserListResponse, idempotent=True)
ROLE_GET: Final = Method(b"/etcdserverpb.Auth/RoleGet", rpc_pb2.AuthRoleGetResponse, idempotent=True)
ROLE_GRANT_PERMISSION: Final = Method(
    b"/etcdserverpb.Auth/RoleGrantPermission", rpc_pb2.AuthRoleGrantPermissionResponse, idempotent=False
)
ROLE_LIST: Final = Method(b"/etcdserverpb.Auth/RoleList", rpc_pb2.AuthRoleListResponse, idempotent=True)


async def ask(
    shard: Shard,
    method: Method[Answer],
    request: Message,
    *,
    metadata: bytes = b"",
    seconds: float | None = None,
    down: ServerCall | None = None,
    reader: Callable[[], Reader[bytes]] | None = None,
) -> Answer:
    """One shard's answer.

    Args:
        shard: the shard to ask.
        method: the RPC.
        request: the message of the call.
        metadata: the metadata of the call, encoded as in `RequestHead.forward`.
        seconds: the longest time to wait; etcd is told the deadline. None to wait for ever.
        down: the client's call for which the shard is asked; the bytes of the answer count as its memory. None to count
            nothing.
        reader: makes the reader of the answer, which may refuse a large one with an RpcError; None for any answer.

    Raises:
        RpcError: the shard's status as it came; Unavailable if the shard cannot be reached; DeadlineExceeded after
            `seconds`; Internal for an answer that cannot be read.
    """
    call = shard.forward_unary if reader is None else partial(shard.read_unary, reader=reader)
    body = await call(
        (method.path, metadata),
        request.SerializeToString(),
        idempotent=method.idempotent,
        timeout=seconds,
        down=down,
    )
    return shard.parsed(method.answer, body)


async def ask_for_esp(
    shard: Shard,
    method: Method[Answer],
    request: Message,
    *,
    seconds: float | None = None,
    reader: Callable[[], Reader[bytes]] | None = None,
) -> Answer:
    """One shard's answer to a call of esp's own, made as esp's user at the shard if the config names one.

    Raises:
        RpcError: as `ask`.
    """
    asked = monotonic()
    try:
        return await ask(shard, method, request, metadata=OWN, seconds=seconds, reader=reader)
    except RpcError as error:
        if not shard.wants_login(error.status) or not await shard.log_in(asked, seconds):
            raise
    left = None if seconds is None else max(0.001, asked + seconds - monotonic())
    return await ask(shard, method, request, metadata=OWN, seconds=left, reader=reader)


async def ask_all_for_esp(
    shards: Iterable[Shard], method: Method[Answer], request: Message | Callable[[Shard], Message], *, seconds: float
) -> dict[str, Answer | Status]:
    """As `ask_all`, for calls of esp's own, made as esp's user at each shard for which the config names one."""
    shards = tuple(shards)
    asked = monotonic()
    outcomes = await ask_all(shards, method, request, metadata=OWN, seconds=seconds)
    for shard in shards:
        outcome = outcomes[shard.name]
        if isinstance(outcome, Status) and shard.wants_login(outcome) and await shard.log_in(asked, seconds):
            outcomes |= await ask_all((shard,), method, request, metadata=OWN, seconds=seconds)
    return outcomes


async def ask_all(
    shards: Iterable[Shard],
    method: Method[Answer],
    request: Message | Callable[[Shard], Message],
    *,
    metadata: bytes = b"",
    seconds: float | None = None,
    down: ServerCall | None = None,
    caller: Caller | None = None,
) -> dict[str, Answer | Status]:
    """The answer of each shard, or the status with which the shard refused or failed, by the shard's name.

    All shards are asked at once. A failure of one shard does not end the calls to the others. A shard that takes longer
    than `seconds` has the status "request timed out". If the caller is cancelled, all calls are.

    Args:
        shards: the shards to ask; the outcomes are in their order.
        method: the RPC.
        request: the message of each call, or a function that makes a shard's message.
        metadata: as for `ask`.
        seconds: as for `ask`.
        down: as for `ask`.
        caller: the client's call that causes this work; None for esp's own work.
    """
    return await _Question(tuple(shards), method, request, metadata, seconds, down, caller).ask()


async def ask_in_turn(
    shards: Iterable[Shard],
    method: Method[Answer],
    request: Message,
    *,
    metadata: bytes = b"",
    seconds: float,
    caller: Caller | None = None,
) -> dict[str, Answer | Status]:
    """As `ask_all`, but one shard after the other: each is asked when the one before has answered or failed.

    So if several proxies do the same at once, the first shard decides between them. `seconds` is for each shard.
    """
    outcomes: dict[str, Answer | Status] = {}
    for shard in shards:
        outcomes |= await ask_all((shard,), method, request, metadata=metadata, seconds=seconds, caller=caller)
    return outcomes


class _Question(Generic[Answer]):
    """The work of `ask_all`.

    Nearly always one call to each shard can be sent now and brings the answer. Then there is one future for all calls,
    and no task. A shard without a connection, or one that has to be asked again, gets a task.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        method: Method[Answer],
        request: Message | Callable[[Shard], Message],
        metadata: bytes,
        seconds: float | None,
        down: ServerCall | None,
        caller: Caller | None,
    ) -> None:
        self._shards = shards
        self._method = method
        self._request = request
        self._forward = method.path, metadata
        self._deadline = None if seconds is None else monotonic() + seconds
        self._down = down
        self._caller = caller
        self._outcomes: dict[str, Answer | Status] = {}

    async def ask(self) -> dict[str, Answer | Status]:
        seconds = self._left()
        if self._shards and (seconds is None or seconds > 0):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ask(seconds)
        late = errors.undecided(DEADLINE_EXCEEDED)
        return {shard.name: self._outcomes.get(shard.name, late) for shard in self._shards}

    def _left(self) -> float | None:
        return None if self._deadline is None else self._deadline - monotonic()

    def _body(self, shard: Shard) -> bytes:
        message: Any = self._request(shard) if callable(self._request) else self._request
        body: bytes = message.SerializeToString()
        return body

    async def _ask(self, seconds: float | None) -> None:
        again: Sequence[Shard] = self._shards
        repeatable = True
        if are_ready(again):
            again = await self._ask_at_once(seconds)
            repeatable = False  # the calls to these have been sent once, and broke
        if again:
            timed = (lambda work: work) if self._caller is None else self._caller.timed
            await all_of([timed(self._ask_one(shard, repeatable)) for shard in again])

    async def _ask_at_once(self, seconds: float | None) -> list[Shard]:
        """Asks all shards at once; returns those that have to be asked again."""
        at_once: AtOnce[bytes] = AtOnce(self._down, seconds)
        with at_once:
            for shard in self._shards:
                if self._caller is not None:
                    self._caller.asks(shard.name)
                at_once.send(shard, self._forward, self._body(shard), messages(), partial(self._replied, shard))
            try:
                await at_once.all_over()
            finally:  # answers that have come count, even if the wait for another is given up
                again = [shard for shard, call in at_once.calls if not self._take(shard, call)]
        return again

    def _take(self, shard: Shard, call: TogetherCall[bytes]) -> bool:
        """Takes the outcome of a call; False if the shard has to be asked again."""
        if not call.has_failed:
            if call.has_ended:
                self._settle(shard, call.take())
            return True
        error = call.error()
        if isinstance(error, RpcError):
            shard.consider_moving(call.connection, error.status)
            self._outcomes[shard.name] = errors.undecided(error.status)
            return True
        assert isinstance(error, BrokenCall), "a call fails with its status, or breaks"
        self._outcomes[shard.name] = failure(error.unprocessed)  # stays the outcome if no time is left for another try
        reads = self._method.idempotent
        return outcome(unprocessed=error.unprocessed, reads=reads, repeatable=True) is not None

    async def _ask_one(self, shard: Shard, repeatable: bool) -> None:
        if self._caller is not None:
            self._caller.asks(shard.name)
        try:
            message = await shard.forward_unary(
                self._forward,
                self._body(shard),
                idempotent=self._method.idempotent,
                repeatable=repeatable,
                timeout=self._left(),
                down=self._down,
            )
        except RpcError as error:
            self._outcomes[shard.name] = errors.undecided(error.status)
            if self._caller is not None:
                self._caller.asked(shard.name)
        else:
            self._settle(shard, message)
            self._replied(shard)

    def _settle(self, shard: Shard, message: bytes) -> None:
        try:
            self._outcomes[shard.name] = shard.parsed(self._method.answer, message)
        except RpcError as error:
            self._outcomes[shard.name] = errors.undecided(error.status)

    def _replied(self, shard: Shard) -> None:
        if self._caller is not None:
            self._caller.replied(shard.name)


def answers_of(outcomes: dict[str, Answer | Status]) -> dict[str, Answer]:
    """The outcomes that are answers, by the shard's name."""
    return {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, Status)}


def failures_of(outcomes: dict[str, Answer | Status]) -> dict[str, Status]:
    """The outcomes that are failures, by the shard's name."""
    return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Status)}
