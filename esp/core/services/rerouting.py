"""Calls that a shard has refused because they came by an outdated map: they wait for the next one, and begin anew.

Nothing was done for them. A call waits for WAIT_SECONDS at most, and is then refused; its client may send it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import Final

from esp.core import errors
from esp.core.layout import Layout
from esp.core.services.anew import Anew, Find, Held
from esp.core.shard import Shard
from esp.core.wire.server_stream import OVERLOADED, ServerCall
from esp.core.wire.status import Code, Status

WAIT_SECONDS: Final = 5.0
"""The longest that a call waits for another map, from its first refusal on, however often it is sent meanwhile."""
CALL_SECONDS: Final = 30.0
"""A call that is older is not begun again: the maps change faster than it finds its shards."""


class Rerouting:
    """The calls that wait.

    Args:
        layout: tells the layout in force.
        find: finds handlers, by the layout in force.
        look: has the map read from the shards, of the one with this name first; `looked` or `installed` follows.
        counters: counts calls: `rerouted` begun anew, `refused` given up.
    """

    def __init__(
        self, layout: Callable[[], Layout], find: Find, look: Callable[[str | None], object], counters: Counter[str]
    ) -> None:
        self._layout = layout
        self._look = look
        self._counters = counters
        self._anew = Anew(find)
        self._waiting: dict[_Waiting, None] = {}
        self._since: dict[ServerCall, float] = {}  # the first refusal of each open call since the last other map

    @property
    def waiting(self) -> int:
        """The number of calls that wait."""
        return len(self._waiting)

    def outdated(self, shard: Shard | None, stream: ServerCall, message: bytes) -> None:
        """Takes over a call that a shard has refused, or one of several (None); `message` is b"" if it was not kept."""
        if stream.is_over:
            return
        now = monotonic()
        since = self._since.setdefault(stream, now)
        is_lost = not message or stream.responded or stream.translated  # into revisions of the shard that has refused
        if is_lost or now - stream.opened > CALL_SECONDS or now - since > WAIT_SECONDS:
            self._refuse(stream, errors.MAP_CHANGED)
            return
        if not stream.hold(len(message)):
            self._refuse(stream, OVERLOADED)
            return
        waiting = _Waiting(self._waiting, shard, stream, message, since)
        if shard is not None and self._layout().shards.get(shard.name) is not shard:
            self._begin(waiting)
        else:
            self._look(None if shard is None else shard.name)

    def installed(self) -> None:
        """Another layout is in force: all calls begin anew."""
        self._anew.forget()
        self._since.clear()
        for waiting in list(self._waiting):
            self._begin(waiting)

    def looked(self, at_odds: Mapping[str, str], opening: Collection[str] = ()) -> None:
        """The shards tell no newer map.

        Args:
            at_odds: the shards that have another guard than it says, and why, by name.
            opening: the shards that are about to get the guard of the map in force; their calls wait on.
        """
        for waiting in list(self._waiting):
            name = "" if waiting.shard is None else waiting.shard.name
            if name in at_odds:
                waiting.release()
                self._refuse(waiting.stream, Status(Code.UNAVAILABLE, f"esp: {at_odds[name]}; nothing was done"))
            elif name not in opening:  # the comparison may hold by now
                self._begin(waiting)

    def tick(self, now: float) -> None:
        """Gives up the calls that have waited for too long."""
        late = [waiting for waiting in self._waiting if now - waiting.since > WAIT_SECONDS]
        for waiting in late:
            waiting.release()
            self._refuse(waiting.stream, errors.MAP_CHANGED)
        for stream in [stream for stream in self._since if stream.is_over]:
            del self._since[stream]

    def _refuse(self, stream: ServerCall, status: Status) -> None:
        self._counters["refused"] += 1
        stream.finish(status)

    def _begin(self, waiting: _Waiting) -> None:
        self._counters["rerouted"] += 1
        self._anew.begin_in_turn(waiting)


class _Waiting(Held):
    """A call that waits."""

    __slots__ = ("shard", "since")

    def __init__(
        self, every: dict[_Waiting, None], shard: Shard | None, stream: ServerCall, message: bytes, since: float
    ) -> None:
        super().__init__(every, stream, message)
        self.shard = shard
        self.since = since
