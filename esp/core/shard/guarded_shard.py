"""A shard that holds a guard: by a map, which may be outdated, and with which every call for keys is compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

from esp.core import errors
from esp.core.auth_tokens import OWN
from esp.core.background import Background
from esp.core.config import Endpoint, ShardConfig, User
from esp.core.pb import rpc_pb2
from esp.core.shard.checked import BEHIND, Checked, CheckedCounted, CheckedLate, CheckedSplice, CheckedWaiting
from esp.core.shard.compared import GUARD_KEY, Guard
from esp.core.shard.guarded import (
    KINDS,
    ComparedCounted,
    ComparedLate,
    ComparedMessage,
    ComparedSplice,
    ComparedTogether,
    GuardedConnection,
)
from esp.core.shard.link import ParkedCall
from esp.core.shard.member import UnfitError
from esp.core.shard.secured import Secured
from esp.core.shard.shard import KEPT_UNCOUNTED, Shard, may_keep
from esp.core.tls_files import TlsFiles
from esp.core.wire.call import MessageCall, TogetherCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.splice import CountedCall, LateCall, Place, SplicedCall, WaitingCall
from esp.core.wire.status import RpcError, Status

_SAFE: Final = {(3, 4): 44, (3, 5): 30, (3, 6): 11}
"""The first patches that check a Put in a transaction as they check a Put (GHSA-x35m-3gp4-4fh5)."""
RANGE: Final = b"/etcdserverpb.KV/Range"
_GUARD: Final = rpc_pb2.RangeRequest(key=GUARD_KEY, count_only=True).SerializeToString()
Outdated = Callable[[Shard, ServerCall, bytes], None]
"""Takes over a client's call that a shard has refused by its guard; the message is b"" if it was not kept."""


def nobody(shard: Shard, stream: ServerCall, message: bytes) -> None:
    """No client's call is refused so."""
    raise NotImplementedError


class GuardedShard(Shard):
    """The client of a shard by one value of its guard.

    A map that names another value has another client, even of the same cluster. So a call that was routed by an old map
    and waited here is compared with the guard of that map, and refused.

    Args:
        guard: the guard.
        outdated: takes over the clients' calls that the shard has refused.
        compares_own: whether esp's own calls for keys are compared, too.
    """

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        context: WireContext,
        background: Background,
        user: User | None = None,
        secured: Secured | None = None,
        *,
        guard: Guard,
        outdated: Outdated,
        compares_own: bool = False,
    ) -> None:
        self.guard: Guard = guard
        self._free = None if compares_own else OWN
        self._outdated = outdated
        self._has_auth = False
        super().__init__(name, endpoints, context, background, user, secured)

    def take_status(self, answer: bytes) -> str:
        """As `Cluster.take_status`.

        Raises:
            UnfitError: as there; or auth is on, and this etcd would give rights that a Put does not give.
        """
        version = super().take_status(answer)
        if self._has_auth and is_unsafe(version):
            raise UnfitError(too_old(version))
        return version

    def learn_auth(self, *, is_on: bool) -> None:
        """Whether auth is on at the shard."""
        self._has_auth = is_on
        if is_on and self.version_in_use and is_unsafe(self.version_in_use):
            self._links.leave(self._unary, too_old(self.version_in_use))

    @classmethod
    def of(  # type: ignore[override]
        cls,
        shard: ShardConfig,
        context: WireContext,
        background: Background,
        files: TlsFiles,
        *,
        guard: Guard,
        outdated: Outdated = nobody,
        compares_own: bool = False,
    ) -> Self:
        """As `Shard.of`."""
        secured = Secured.of(shard.name, shard.tls, files)
        return cls(
            shard.name,
            shard.endpoints,
            context,
            background,
            shard.user,
            secured,
            guard=guard,
            outdated=outdated,
            compares_own=compares_own,
        )

    def _new_connection(self, context: WireContext, authority: str) -> ClientConnection:
        return GuardedConnection(context, authority, self.guard, self.name, self._free)

    def splice(self, down: ServerCall, message: bytes) -> None:
        """As `Shard.splice`."""
        connection = self._unary.connection
        if connection is not None and (len(connection.streams) < connection.room or connection.has_room):
            path = down.head.path
            if path in KINDS:
                call: SplicedCall = ComparedSplice(connection, down, message, self)
            elif path in BEHIND:
                call = checked = CheckedSplice(connection, down, message, self)
                checked.events = []
            else:
                call = SplicedCall(connection, down, message, self)
            if down.trace:
                connection.call(call, down.forward, down.timeout, message, end=True)
            else:
                connection.call_whole(call, down.head.forward, down.timeout, message)
            if len(message) > KEPT_UNCOUNTED and not may_keep(down, message):
                call.message = b""
        else:
            self._unary.park(ParkedCall(self, self._unary, down, message))

    def late_call(self, connection: ClientConnection, down: ServerCall, message: bytes) -> LateCall:
        """A client's call that was not sent at once."""
        path = down.head.path
        if path in BEHIND:
            call = CheckedLate(connection, down, message, self)
            call.events = []
            return call
        return (ComparedLate if path in KINDS else LateCall)(connection, down, message, self)

    def counted_call(self, connection: ClientConnection, down: ServerCall, message: bytes, place: Place) -> CountedCall:
        """A client's call with a place."""
        path = down.head.path
        if path in BEHIND:
            call = CheckedCounted(connection, down, message, self, place)
            call.events = []
            return call
        return (ComparedCounted if path in KINDS else CountedCall)(connection, down, message, self, place)

    def waiting_call(self, connection: ClientConnection, down: ServerCall, message: bytes) -> WaitingCall:
        """A client's call that may wait for hours."""
        call = CheckedWaiting(connection, down, message, self)
        call.events, call.answer = [], b""
        return call

    def check_behind(self, call: Checked) -> None:
        """Looks at the guard behind the beginning of a call's answer."""
        self.background.start(self._check(call), on_bug=call.down.on_bug)

    async def _check(self, call: Checked) -> None:
        down = call.down
        try:
            await self.check(down.forward[1], down.remaining())
        except RpcError as error:
            if error.status == errors.MAP_CHANGED:
                call.settle(is_owner=False)
            else:
                call.fail(errors.undecided(error.status))
        else:
            call.settle(is_owner=True)

    async def check(self, metadata: bytes, seconds: float | None) -> None:
        """Looks at the guard.

        Raises:
            RpcError: MAP_CHANGED if the shard has another one; or the shard's error.
        """
        await self.forward_unary((RANGE, metadata), _GUARD, idempotent=True, timeout=seconds)

    def message_call(self, forward: Forward) -> type[MessageCall[Any]]:
        """The class of a call of a coroutine."""
        return ComparedMessage if forward[0] in KINDS and forward[1] is not self._free else MessageCall

    def together_call(self, forward: Forward) -> type[TogetherCall[Any]]:
        """The class of one of several calls of a coroutine."""
        return ComparedTogether if forward[0] in KINDS and forward[1] is not self._free else TogetherCall

    def on_status(self, call: SplicedCall, status: Status) -> bool:
        """Takes the error of a call. A call that was refused by the guard goes to whoever sends it by another map."""
        if status == errors.MAP_CHANGED and not call.down.responded:
            self.on_outdated(call.down, call.message or b"")
            return True
        return super().on_status(call, status)

    def on_outdated(self, down: ServerCall, message: bytes) -> None:
        """Gives a client's call to whoever sends it by another map."""
        self._outdated(self, down, message)


async def check_guard(shard: Shard, metadata: bytes, seconds: float | None) -> None:
    """Looks at the guard of a shard, if it holds one.

    Raises:
        RpcError: as `GuardedShard.check`.
    """
    if isinstance(shard, GuardedShard):
        await shard.check(metadata, seconds)


def is_unsafe(version: str) -> bool:
    """Whether an etcd of this version would give rights to users in a compared Put that it does not give in a Put."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", version)
    if found is None:
        return True
    major, minor, patch = map(int, found.groups())
    return patch < _SAFE[major, minor] if (major, minor) in _SAFE else (major, minor) < (3, 4)


def too_old(version: str) -> str:
    """Why an etcd of this version cannot be used with auth, for people."""
    return (
        f"auth is on, and etcd {version} checks a Put in a transaction less than a Put; where the shards hold the map, "
        "it needs etcd 3.4.44, 3.5.30, 3.6.11 or later"
    )
