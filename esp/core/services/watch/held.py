"""Events of a watcher that its client does not know of yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from esp.core.services.watch.messages import Response
from esp.core.services.watch.outbox import Outbox
from esp.core.services.watch.tap import Tap
from esp.core.services.watch.upstream import Upstream


class HeldEvents(NamedTuple):
    """A message of one shard, or the fragments of one.

    Attributes:
        upstream: the client's own upstream that the events came from and hold back; None for a shared upstream.
    """

    tap: Tap
    responses: Sequence[Response]
    size: int
    upstream: Upstream | None


class Held:
    """The events of one watcher, in their order. They wait until the watcher is announced, and count as waiting."""

    __slots__ = ("_events", "_outbox")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._events: list[HeldEvents] = []

    def add(self, tap: Tap, responses: Sequence[Response]) -> None:
        """Keeps a message, or its fragments."""
        size = sum(response.size for response in responses)
        upstream = tap.source.upstream if tap.source is not None and tap.is_own else None
        self._events.append(HeldEvents(tap, responses, size, upstream))
        if upstream is not None:
            upstream.held += size
        self._outbox.hold(size, is_own=upstream is not None)

    def release(self) -> list[HeldEvents]:
        """The events, which count as waiting no longer."""
        events, self._events = self._events, []
        for each in events:
            if each.upstream is not None:
                each.upstream.held -= each.size
            self._outbox.hold(-each.size, is_own=each.upstream is not None)
        return events
