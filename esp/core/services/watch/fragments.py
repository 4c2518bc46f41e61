"""Keeps the fragments of a shard's response, until all have come or there is no memory for more."""

from __future__ import annotations

from typing import Final

from esp.core.services.watch.messages import Response, as_one
from esp.core.services.watch.upstream import Upstream

MOST_JOINED: Final = 12 << 20
"""The most bytes of a response in fragments that esp passes on as one; etcd's own tests expect that of 10 MiB."""


class Fragments:
    """The fragments of one response that have come, in the memory of the upstream that brought them.

    esp passes fragments on together: a client joins consecutive fragments, even those of different watchers. A response
    that gets too large is cut between two revisions, as if etcd had sent several responses. So after a break a client
    goes on there, and does not come back for the same response for ever.

    Attributes:
        passed_events: the number of events of the response that were cut off and passed on already.
    """

    __slots__ = ("_bytes", "_is_joined", "_parts", "_upstream", "passed_events")

    def __init__(self, upstream: Upstream, *, is_joined: bool) -> None:
        """`is_joined` says that clients get the fragments as one message, which needs memory while it leaves."""
        self.passed_events = 0
        self._is_joined = is_joined
        self._upstream = upstream
        self._parts: list[Response] = []
        self._bytes = 0

    def has_room(self, fragment: Response) -> bool:
        """Whether another fragment can be kept without a cut. True for the first fragment."""
        if not self._parts:
            return True
        size = self._bytes + fragment.size
        room = 2 * fragment.size + (size if self._is_joined else 0)  # also for the next, and for the whole to leave
        return size <= MOST_JOINED and self._upstream.has_room(room)

    @property
    def is_hopeless(self) -> bool:
        """Whether one revision is so large that there will hardly ever be memory for it."""
        return self._bytes > self._upstream.shard.context.buffers.limit // 3

    @property
    def last(self) -> Response | None:
        """The last of the fragments that are kept."""
        return self._parts[-1] if self._parts else None

    def keep(self, fragment: Response) -> bool:
        """Keeps another fragment; False without memory for it."""
        if not self._upstream.keep(fragment.size):
            return False
        self._parts.append(fragment)
        self._bytes += fragment.size
        return True

    def take(self) -> tuple[Response, ...]:
        """The fragments, and their memory given back."""
        parts = as_one(self._parts)
        self._upstream.give(self._bytes)
        self._parts, self._bytes = [], 0
        return parts

    def take_before(self, revision: int) -> tuple[Response, ...]:
        """The events before `revision`, as a response of their own. Only `revision` may go on in the next fragment.

        The events of `revision` stay. If there is no memory for them, nothing stays and nothing is returned
        (`Upstream.cut`).
        """
        parts = self.take()
        before = [part for fragment in parts if (part := fragment.before(revision))]
        self._parts = [part for fragment in parts if (part := fragment.since(revision))]
        self._bytes = sum(part.size for part in self._parts)
        if self._bytes and not self._upstream.keep_or_cut(self._bytes):
            self._parts, self._bytes = [], 0
            return ()
        self.passed_events += sum(len(part.message.events) for part in before)
        return as_one(before)

    def take_whole(self) -> tuple[Response, ...]:
        """The events of all revisions but the last, as a response of their own. Keeps nothing."""
        parts = self.take()
        return as_one([part for fragment in parts if (part := fragment.before(parts[-1].last))])
