"""A move that nobody goes on with between the cut and the opening: any proxy gives it up, or carries out the rest.

Each proxy goes by how long it has itself seen the same; no two clocks are compared. A mover that is only slow can do
nothing afterwards, and several proxies may do the same at once: each step is compared by the shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esp.core.shared_map import Held, Next
from esp.core.wire.status import Status

GRACE_SECONDS: Final = 2.0
"""Seconds beyond `Move.pause` that a mover has."""


class Hanging:
    """What a proxy has seen of the move that is under way."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = 0.0

    def is_due(self, change: Next | None, found: Mapping[str, Held | Status], now: float) -> bool:
        """Whether somebody has to go on with the change; then it is due again after the same time.

        Args:
            change: what the anchor has decided.
            found: what the shards hold.
            now: the time by any clock that goes on.
        """
        move = None if change is None else change.move
        if change is None or move is None or not _keeps_clients_waiting(change, found):
            self._seen = None
            return False
        seen = move.id, move.phase, move.mover
        if seen != self._seen:
            self._seen, self._since = seen, now
        if now - self._since < move.pause / 1000 + GRACE_SECONDS:
            return False
        self._since = now
        return True


def _keeps_clients_waiting(change: Next, found: Mapping[str, Held | Status]) -> bool:
    if not change.is_open:
        return True
    assert change.move is not None, "it is open for a mover"
    source = found.get(change.move.source)
    return isinstance(source, Held) and source.guard == change.after.guards[change.move.source]
