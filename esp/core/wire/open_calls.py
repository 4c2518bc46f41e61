"""The number of calls that a client may have open on one connection: as many as there is memory for."""

from __future__ import annotations

from typing import Final

from esp.core.wire.context import WireContext
from esp.core.wire.status import Code, Status

CALL_BYTES: Final = 4096
"""Bytes for which an open call of any kind counts. Data that waits in the call is counted separately."""
FREE_CALLS: Final = 100
"""Calls on each connection that are not counted: a newcomer always gets some calls."""
CALLS_AT_ONCE: Final = 256
"""Further calls are counted in advance, so many at a time."""
CONNECTION_SHARE: Final = 4
"""The part of all open calls that one connection may have: a quarter."""


class OpenCalls:
    """The calls of one connection that are accounted for.

    Attributes:
        room: the number of calls that may be open; for more the caller asks `grow`.
    """

    __slots__ = ("_context", "_most", "room")

    def __init__(self, context: WireContext) -> None:
        limits = context.limits
        self._context = context
        self._most = min(limits.max_concurrent_streams, limits.max_call_bytes // (CONNECTION_SHARE * CALL_BYTES))
        self.room = min(FREE_CALLS, limits.max_concurrent_streams)

    def grow(self) -> bool:
        """Accounts for more calls; False if there is no memory for them, or the connection has too many."""
        more = min(CALLS_AT_ONCE, self._most - self.room)
        if more <= 0 or not self._context.calls.take(more * CALL_BYTES):
            return False
        self.room += more
        return True

    def shrink(self, still_open: int) -> None:
        """Gives back room that `still_open` calls do not need."""
        if self.room > still_open + 2 * CALLS_AT_ONCE:
            self._leave(still_open + CALLS_AT_ONCE)

    def close(self) -> None:
        """Gives everything back."""
        self._leave(0)

    def _leave(self, least: int) -> None:
        spare = self.room - max(least, min(FREE_CALLS, self.room))
        if spare > 0:
            self.room -= spare
            self._context.calls.give(spare * CALL_BYTES)


def too_many(calls: int) -> Status:
    """The refusal of a call for which there is no memory because `calls` are open."""
    text = f"esp: no memory for another call on this connection, {calls} are open; end some, or raise max_call_bytes"
    return Status(Code.RESOURCE_EXHAUSTED, text)
