"""The stream of one Watch call to a shard that holds a guard.

etcd compares nothing in a watch. A shard from which keys have moved goes on to tell what happens there: copies are
deleted at the end, and may come back with another move; and its revision goes on. So nothing of a message is read
before the guard was looked at once more, after the message came: if it still has its value, no keys had left the shard
by then. If not, nothing of this call is read: it ends as one that breaks, and the next one is looked at again. A target
of a move may have its guard only some time after the next map is in force here; and what a call says that was made
before the target had it may be copies, also if the guard is there by the time of another look.

While a look is under way, further messages wait for the next one: however many come, one look goes on at a time.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from esp.core.services.watch.call import Caller, WatchCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.status import Code, Status

_OTHER_GUARD: Final = Status(Code.UNAVAILABLE, "esp: the shard has another guard than the map in force")


class CheckedWatchCall(WatchCall):
    """The stream of such a call."""

    __slots__ = ("_checking", "_looked_at", "_unchecked")

    def __init__(self, connection: ClientConnection, caller: Caller) -> None:
        super().__init__(connection, caller)
        self._checking = caller
        self._unchecked: deque[tuple[bytes, bool]] = deque()  # not more than the call's window
        self._looked_at = 0  # of these, so many had come when the present look began

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the shard's messages."""
        self._unchecked.append((payload, end))
        if not self._looked_at:
            self._look()

    def _look(self) -> None:
        self._looked_at = len(self._unchecked)
        self._checking.look_at_guard(self)

    def looked(self, *, is_same: bool, fault: Status | None = None) -> None:
        """The guard was looked at; a `fault` is why it could not be."""
        if not self._checking.is_current(self):
            return
        if fault is not None:
            self._end(fault)
            return
        if not is_same:
            self._end(_OTHER_GUARD)
            return
        count, self._looked_at = self._looked_at, 0
        for _ in range(count):
            super().on_data(*self._unchecked.popleft())
            if not self._checking.is_current(self):
                return
        if self._unchecked:
            self._look()
