"""A shard that holds a guard: by a map, which may be outdated, and with which every call for keys is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from esp.core import errors
from esp.core.auth_tokens import OWN
from esp.core.background import Background
from esp.core.config import Endpoint, ShardConfig, User
from esp.core.shard.compared import Guard
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
from esp.core.shard.secured import Secured
from esp.core.shard.shard import KEPT_UNCOUNTED, Shard, may_keep
from esp.core.tls_files import TlsFiles
from esp.core.wire.call import MessageCall, TogetherCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.splice import CountedCall, LateCall, SplicedCall
from esp.core.wire.status import Status

Outdated = Callable[[Shard, ServerCall, bytes], None]
"""Takes over a client's call that a shard has refused by its guard; the message is b"" if it was not kept."""


class GuardedShard(Shard):
    """The client of a shard by one value of its guard.

    A map that names another value has another client, even of the same cluster. So a call that was routed by an old map
    and waited here is compared with the guard of that map, and refused.

    Args:
        guard: the guard.
        outdated: takes over the clients' calls that the shard has refused.
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
    ) -> None:
        self.guard: Guard = guard
        self._outdated = outdated
        super().__init__(name, endpoints, context, background, user, secured)

    @classmethod
    def of(  # type: ignore[override]
        cls,
        shard: ShardConfig,
        context: WireContext,
        background: Background,
        files: TlsFiles,
        *,
        guard: Guard,
        outdated: Outdated,
    ) -> Self:
        """As `Shard.of`."""
        secured = Secured.of(shard.name, shard.tls, files)
        return cls(
            shard.name, shard.endpoints, context, background, shard.user, secured, guard=guard, outdated=outdated
        )

    def _new_connection(self, context: WireContext, authority: str) -> ClientConnection:
        return GuardedConnection(context, authority, self.guard, self.name)

    def splice(self, down: ServerCall, message: bytes) -> None:
        """As `Shard.splice`."""
        connection = self._unary.connection
        if connection is not None and (len(connection.streams) < connection.room or connection.has_room):
            kind = ComparedSplice if down.head.path in KINDS else SplicedCall
            call = kind(connection, down, message, self)
            if down.trace:
                connection.call(call, down.forward, down.timeout, message, end=True)
            else:
                connection.call_whole(call, down.head.forward, down.timeout, message)
            if len(message) > KEPT_UNCOUNTED and not may_keep(down, message):
                call.message = b""
        else:
            self._unary.park(ParkedCall(self, self._unary, down, message))

    def late_call(self, down: ServerCall) -> type[LateCall]:
        """The class of a client's call that was not sent at once."""
        return ComparedLate if down.head.path in KINDS else LateCall

    def counted_call(self, down: ServerCall) -> type[CountedCall]:
        """The class of a client's call with a place."""
        return ComparedCounted if down.head.path in KINDS else CountedCall

    def message_call(self, forward: Forward) -> type[MessageCall[Any]]:
        """The class of a call of a coroutine."""
        return ComparedMessage if forward[0] in KINDS and forward[1] is not OWN else MessageCall

    def together_call(self, forward: Forward) -> type[TogetherCall[Any]]:
        """The class of one of several calls of a coroutine."""
        return ComparedTogether if forward[0] in KINDS and forward[1] is not OWN else TogetherCall

    def on_status(self, call: SplicedCall, status: Status) -> bool:
        """Takes the error of a call. A call that was refused by the guard goes to whoever sends it by another map."""
        if status == errors.MAP_CHANGED and not call.down.responded:
            self.on_outdated(call.down, call.message or b"")
            return True
        return super().on_status(call, status)

    def on_outdated(self, down: ServerCall, message: bytes) -> None:
        """Gives a client's call to whoever sends it by another map."""
        self._outdated(self, down, message)
