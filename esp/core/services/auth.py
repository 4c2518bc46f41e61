"""The Auth service over several shards, which all have the same users and roles.

Each shard checks permissions for its part of a request. This module joins the shards' tokens, and keeps the shards
alike: a change goes to all shards, and a client gets an answer only if all shards agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message

from esp.core import auth_tokens, errors
from esp.core.keys import format_key
from esp.core.pb import auth_pb2, rpc_pb2
from esp.core.routing import Routing
from esp.core.services.gate import Gate
from esp.core.services.handlers import AskAll, CoroutineCall
from esp.core.services.revision import merged_header
from esp.core.shard import (
    AUTH_STATUS,
    AUTHENTICATE,
    ROLE_GET,
    ROLE_GRANT_PERMISSION,
    ROLE_LIST,
    USER_GET,
    USER_LIST,
    Method,
    answers_of,
    ask_all,
    ask_in_turn,
    failures_of,
    is_unsafe,
    too_old,
)
from esp.core.wire.context import WireContext
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import Code, Status
from esp.core.wording import shard_called, shards_called

SECONDS: Final = 7.0
"""Seconds that a shard may take: as long as an etcd takes for its cluster."""
OTHER_METADATA_BYTES: Final = 2048
"""Bytes that a request's metadata may take besides the token."""
ROOT: Final = "root"
"""The user, and the role, without which etcd's auth cannot be enabled."""

_Outcomes = Mapping[str, Any]


class Change(NamedTuple):
    """An RPC that changes users, roles or the like on all shards.

    Attributes:
        name: the name of the RPC.
        request: the type of its request.
        answer: the type of its answer, which has nothing but a header.
    """

    name: str
    request: type[Message]
    answer: type[Message]

    @property
    def method(self) -> Method[Any]:
        """The RPC as a call to a shard."""
        return Method(f"/etcdserverpb.Auth/{self.name}".encode(), self.answer, idempotent=False)


class Told(NamedTuple):
    """An RPC that reads users, roles or the like, which all shards have in common.

    Attributes:
        method: the RPC.
        request: the type of its request.
        told: takes from an answer the part that must be the same on all shards.
        what: makes of a request a clause that names the difference.
    """

    method: Method[Any]
    request: type[Message]
    told: Callable[[Any], Hashable]
    what: Callable[[Any], str]


CHANGES: Final = (
    Change("AuthDisable", rpc_pb2.AuthDisableRequest, rpc_pb2.AuthDisableResponse),
    Change("UserAdd", rpc_pb2.AuthUserAddRequest, rpc_pb2.AuthUserAddResponse),
    Change("UserDelete", rpc_pb2.AuthUserDeleteRequest, rpc_pb2.AuthUserDeleteResponse),
    Change("UserChangePassword", rpc_pb2.AuthUserChangePasswordRequest, rpc_pb2.AuthUserChangePasswordResponse),
    Change("UserGrantRole", rpc_pb2.AuthUserGrantRoleRequest, rpc_pb2.AuthUserGrantRoleResponse),
    Change("UserRevokeRole", rpc_pb2.AuthUserRevokeRoleRequest, rpc_pb2.AuthUserRevokeRoleResponse),
    Change("RoleAdd", rpc_pb2.AuthRoleAddRequest, rpc_pb2.AuthRoleAddResponse),
    Change("RoleDelete", rpc_pb2.AuthRoleDeleteRequest, rpc_pb2.AuthRoleDeleteResponse),
    Change("RoleGrantPermission", rpc_pb2.AuthRoleGrantPermissionRequest, rpc_pb2.AuthRoleGrantPermissionResponse),
    Change("RoleRevokePermission", rpc_pb2.AuthRoleRevokePermissionRequest, rpc_pb2.AuthRoleRevokePermissionResponse),
)
ENABLE: Final = Change("AuthEnable", rpc_pb2.AuthEnableRequest, rpc_pb2.AuthEnableResponse)
TOLD: Final = (
    Told(
        AUTH_STATUS,
        rpc_pb2.AuthStatusRequest,
        lambda answer: bool(answer.enabled),
        lambda _: "authentication is not switched alike",
    ),
    Told(
        USER_LIST,
        rpc_pb2.AuthUserListRequest,
        lambda answer: frozenset(answer.users),
        lambda _: "there are not the same users",
    ),
    Told(
        ROLE_LIST,
        rpc_pb2.AuthRoleListRequest,
        lambda answer: frozenset(answer.roles),
        lambda _: "there are not the same roles",
    ),
    Told(
        USER_GET,
        rpc_pb2.AuthUserGetRequest,
        lambda answer: frozenset(answer.roles),
        lambda request: f'the user "{_shown(request.name)}" is not the same',
    ),
    Told(
        ROLE_GET,
        rpc_pb2.AuthRoleGetRequest,
        lambda answer: permissions_of(answer),
        lambda request: f'the role "{_shown(request.role)}" is not the same',
    ),
)


def permissions_of(role: rpc_pb2.AuthRoleGetResponse) -> frozenset[tuple[bytes, bytes, int]]:
    """The permissions of a role: ranges in etcd's encoding, and the kind of access."""
    return frozenset((perm.key, perm.range_end, perm.permType) for perm in role.perm)


def _shown(name: str) -> str:
    return format_key(name.encode())[:64]


def handlers(
    routing: Routing, gate: Gate, context: WireContext, guard: auth_pb2.Permission | None = None
) -> Mapping[bytes, Handler]:
    """The handler of each RPC of the service, by path; calls begin at `gate`.

    `guard` is a permission that each role gets, and that clients do not see; None for none.
    """
    auth = _Auth(routing, gate, context, guard)

    def served(method: Method[Any], request: type[Message], work: _Work) -> tuple[bytes, Handler]:
        return method.path, AskAll(gate, routing.shards, request, work)

    return dict(
        (
            served(AUTHENTICATE, rpc_pb2.AuthenticateRequest, auth.authenticate),
            served(ENABLE.method, ENABLE.request, auth.enable),
            *(served(each.method, each.request, partial(auth.change, each)) for each in CHANGES),
            *(served(each.method, each.request, partial(auth.tell, each)) for each in TOLD),
        )
    )


_Work = Callable[[CoroutineCall, Any], Coroutine[Any, Any, Message]]


class _Auth:
    """The RPCs, over the shards of one layout."""

    def __init__(self, routing: Routing, gate: Gate, context: WireContext, guard: auth_pb2.Permission | None) -> None:
        self._guard = guard
        self._shards = routing.shards
        self._identity = routing.identity
        self._spawn = gate.spawn
        self._list_bytes = context.limits.max_header_list_bytes
        self._turn = asyncio.Lock()  # of the one change that is made

    async def authenticate(
        self, call: CoroutineCall, request: rpc_pb2.AuthenticateRequest
    ) -> rpc_pb2.AuthenticateResponse:
        """Authenticates on all shards, and answers with a composite of their tokens.

        Raises:
            RpcError: a shard's, as it came; or auth is on at some shards only, or the token would be too long.
        """
        outcomes = await self._ask_all(call, AUTHENTICATE, request)
        failures = failures_of(outcomes)
        off = [name for name, failure in failures.items() if failure == errors.AUTH_NOT_ENABLED]
        on = [name for name, told in outcomes.items() if name not in off and not _is_away(told)]
        if off and on:
            raise errors.differ("authentication is not switched alike", (on, off)).error()
        if failures:
            raise _worst(failures.values()).error()
        answers = answers_of(outcomes)
        try:
            token = auth_tokens.join({name: answer.token for name, answer in answers.items()})
        except auth_tokens.NoToken as error:
            raise self._shards[error.shard].blamed("has a token of another form than etcd's") from None
        most = max(self._list_bytes // 2, self._list_bytes - OTHER_METADATA_BYTES)
        if len(token) > most or len(answers) > auth_tokens.MAX_PARTS:
            text = (
                f"esp: the tokens of all shards take {len(token)} bytes together, and a request has room for {most}; "
                "raise max_header_list_bytes in the config, or let the shards give shorter tokens (etcd's --auth-token)"
            )
            raise Status(Code.FAILED_PRECONDITION, text).error()
        return rpc_pb2.AuthenticateResponse(header=self._header(answers.values()), token=token)

    async def tell(self, asked: Told, call: CoroutineCall, request: Message) -> Message:
        """The answer on which all shards agree.

        Raises:
            RpcError: a shard's, as it came; or the shards do not agree.
        """
        outcomes = await self._ask_all(call, asked.method, request)
        said: dict[Hashable, list[str]] = {}
        for name, outcome in outcomes.items():
            said.setdefault(outcome if isinstance(outcome, Status) else asked.told(outcome), []).append(name)
        failures = [failure for failure in failures_of(outcomes).values() if failure not in _ABSENT]
        if failures:
            raise _worst(failures).error()
        if len(said) > 1:
            raise errors.differ(asked.what(request), said.values()).error()
        answers = answers_of(outcomes)
        if not answers:
            raise next(iter(failures_of(outcomes).values())).error()
        answer: Message = next(iter(answers.values()))
        answer.header.CopyFrom(self._header(answers.values()))  # type: ignore[attr-defined]
        if isinstance(answer, rpc_pb2.AuthStatusResponse):
            answer.authRevision = min(each.authRevision for each in answers.values())
        guard = self._guard
        if isinstance(answer, rpc_pb2.AuthRoleGetResponse) and guard is not None and guard in answer.perm:
            answer.perm.remove(guard)
        return answer

    async def enable(self, call: CoroutineCall, request: rpc_pb2.AuthEnableRequest) -> Message:
        """Enables auth on all shards, if each has the user root with the role root.

        A shard with auth enabled refuses a caller without a user; the other shards serve such a caller. That shard
        needs no change, so a call that broke off halfway can be finished.

        Raises:
            RpcError: a shard's, as it came; or a shard has no root.
        """
        for name, shard in self._shards.items():
            if shard.guard is not None and is_unsafe(shard.version):
                text = f"esp: auth would have to stay off on {shard_called(name)}: if {too_old(shard.version)}"
                raise Status(Code.FAILED_PRECONDITION, text).error()
        async with self._turn_until_begun() as turn:
            outcomes = await self._ask_all(call, USER_GET, rpc_pb2.AuthUserGetRequest(name=ROOT))
            enabled = [name for name, told in outcomes.items() if told == errors.USER_EMPTY]
            for name, told in outcomes.items():
                if isinstance(told, Status):
                    if name not in enabled or len(enabled) == len(outcomes):
                        raise (errors.ROOT_USER_NOT_EXIST if told == errors.USER_NOT_FOUND else told).error()
                elif ROOT not in told.roles:
                    raise errors.ROOT_ROLE_NOT_EXIST.error()
            names = [name for name in self._shards if name not in enabled]
            return await self._change_on(names, ENABLE, call, request, turn)

    async def change(self, change: Change, call: CoroutineCall, request: Message) -> Message:
        """Makes a change on all shards.

        If a shard is unreachable or refuses the caller, no shard is changed.

        Raises:
            RpcError: the first shard's, as it came; others may have made the change.
        """
        async with self._turn_until_begun() as turn:
            failures = failures_of(await self._ask_all(call, ROLE_LIST, rpc_pb2.AuthRoleListRequest()))
            if failures:
                raise _worst(failures.values()).error()
            if isinstance(request, rpc_pb2.AuthRoleGrantPermissionRequest) and not request.HasField("perm"):
                raise errors.PERMISSION_NOT_GIVEN.error()  # an etcd 3.4 crashes
            return await self._change_on(list(self._shards), change, call, request, turn)

    @asynccontextmanager
    async def _turn_until_begun(self) -> AsyncIterator[ExitStack]:
        """The turn of one change: what is looked at before the change is true when the change begins.

        A change that has begun takes the turn over (`ExitStack.pop_all`), since it may outlive its client.
        """
        await self._turn.acquire()
        with ExitStack() as turn:
            turn.callback(self._turn.release)
            yield turn

    async def _change_on(
        self, names: Sequence[str], change: Change, call: CoroutineCall, request: Message, turn: ExitStack
    ) -> Message:
        """Makes a change to the last of these shards, even if the client goes away once it has begun."""
        outcomes: dict[str, Any] = {}
        making = self._make(names, change, request, call, outcomes)
        made = self._spawn(making, on_end=turn.pop_all().close)
        await asyncio.shield(made)
        failures = failures_of(outcomes)
        answers = answers_of(outcomes)
        if failures:
            name, failure = next(iter(failures.items()))
            if answers and failure in errors.STALE_TOKEN:
                text = (
                    f"esp: {change.name} is done on {shards_called(answers)}, but {shard_called(name)} has refused: "
                    f"{failure.message}; mend it there"
                )
                failure = Status(Code.FAILED_PRECONDITION, text)
            raise failure.error()
        return change.answer(header=self._header(answers.values()))

    async def _make(
        self, names: Sequence[str], change: Change, request: Message, call: CoroutineCall, outcomes: dict[str, Any]
    ) -> None:
        shards, metadata = [self._shards[name] for name in names], call.metadata
        outcomes |= await ask_in_turn(shards, change.method, request, metadata=metadata, seconds=SECONDS, caller=call)
        if isinstance(request, rpc_pb2.AuthRoleAddRequest) and self._guard is not None and not failures_of(outcomes):
            grant = rpc_pb2.AuthRoleGrantPermissionRequest(name=request.name, perm=self._guard)
            method = ROLE_GRANT_PERMISSION
            granted = await ask_in_turn(shards, method, grant, metadata=metadata, seconds=SECONDS, caller=call)
            outcomes |= failures_of(granted)

    async def _ask_all(self, call: CoroutineCall, method: Method[Any], request: Message) -> dict[str, Any]:
        return await ask_all(
            self._shards.values(),
            method,
            request,
            metadata=call.metadata,
            seconds=call.seconds(SECONDS),
            caller=call,
        )

    def _header(self, answers: Iterable[Any]) -> rpc_pb2.ResponseHeader:
        return merged_header([answer.header for answer in answers], self._identity)


_ABSENT: Final = frozenset((errors.USER_NOT_FOUND, errors.ROLE_NOT_FOUND))
"""Errors that count as answers: the shard has no such user or role."""


def _is_away(outcome: Message | Status) -> bool:
    return isinstance(outcome, Status) and errors.is_unreachable(outcome)


def _worst(failures: Iterable[Status]) -> Status:
    """The first failure that is not just an unreachable shard; if all are, the first."""
    failures = list(failures)
    return next((failure for failure in failures if not errors.is_unreachable(failure)), failures[0])
