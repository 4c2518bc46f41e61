"""Positions of watchers over several shards, for clients that come again with a plain revision.

After its stream broke, etcd's own client goes on behind the mod revision of the last event that it saw. That is a
revision of one shard, and says nothing about the other shards. But this proxy delivered the event, and so knows the
watcher's position at that moment. esp goes on from that position only if all messages that it ever delivered leave no
doubt:

- the same range was watched here, with the same options and from the same host;
- a watcher of the range has ended since, and its client did not come again;
- among the last messages for the range there is just one position behind an event of that revision;
- no event of that revision was in an earlier message, or in the midst of a message.

In every other case the client gets "compacted", and lists again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext

WINDOW: Final = 64
"""Messages of a range that esp remembers. With more messages, esp could resume clients that are further behind; but two
shards whose revisions grow at the same pace would more often have an equal revision among them."""
_AMBIGUOUS: Final = 0

Watched = Hashable
"""A range together with the options and the client of its watchers. Small: it outlives the watcher."""


class _Forgotten:
    """Forgotten revisions that clients may have seen last: for each shard the lowest and the highest."""

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds: dict[str, tuple[int, int]] = {}

    def add(self, shard: str, lowest: int, highest: int) -> None:
        """Adds the revisions of a shard from `lowest` to `highest`."""
        low, high = self._bounds.get(shard, (lowest, highest))
        self._bounds[shard] = min(low, lowest), max(high, highest)

    def update(self, other: _Forgotten) -> None:
        """Adds the revisions in `other`."""
        for shard, bounds in other._bounds.items():
            self.add(shard, *bounds)

    def __contains__(self, revision: int) -> bool:
        return any(low <= revision <= high for low, high in self._bounds.values())


class _Range:
    """The last messages for one range.

    Attributes:
        told: by the last revision in a message, the token of the position behind the message, and the shards that had
            such a message.
        forgotten: other revisions that clients may have seen last.
        watching: watchers that there are now.
        ended: watchers that have ended and have not come again.
    """

    __slots__ = ("ended", "forgotten", "told", "watching")

    def __init__(self) -> None:
        self.told: OrderedDict[int, tuple[int, frozenset[str]]] = OrderedDict()
        self.forgotten = _Forgotten()
        self.watching = 0
        self.ended = 0


class Positions:
    """The positions behind the last messages of every range that is, or lately was, watched over several shards.

    Attributes:
        knows_all: no other process serves the same clients: what this one has delivered is all that they have seen.
        resumed, compacted: how often a client came with a plain revision whose position esp knew, and did not know.
    """

    def __init__(self, tokens: Tokens, context: WireContext) -> None:
        self.knows_all = True
        self.resumed = self.compacted = 0
        self._tokens = tokens
        self._context = context
        self._ranges: OrderedDict[Watched, _Range] = OrderedDict()
        self._forgotten = _Forgotten()  # of forgotten ranges
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def begin(self, watched: Watched) -> None:
        """A watcher of a range begins."""
        if watched not in self._ranges:
            self._ranges[watched] = _Range()
        self._ranges[watched].watching += 1

    def reached(self, watched: Watched, shard: str, first: int, revision: int, token: int) -> None:
        """A message of `shard` is delivered with events from `first` to `revision`; `token` is the position behind it.

        A client that saw a part of the message may come again from there, which is no position of this watcher.
        """
        here = self._ranges[watched]
        if first < revision:
            here.forgotten.add(shard, first, revision - 1)
        before = here.told.get(revision)
        if before is None:
            here.told[revision] = token, frozenset((shard,))
            self._count += 1
            if len(here.told) > WINDOW:
                self._forget_first(here)
            if self._count > self._context.limits.max_resume_positions:
                self._context.reached("max_resume_positions")
                self._make_room()
            return
        last, shards = before
        if last != token and (last == _AMBIGUOUS or self._tokens.vector(last) != self._tokens.vector(token)):
            token = _AMBIGUOUS  # otherwise both name the same position, and the newer one lasts longer
        here.told[revision] = token, shards | {shard}

    def end(self, watched: Watched, *, may_return: bool) -> None:
        """A watcher has ended; `may_return` says whether its client may come again for it."""
        here = self._ranges[watched]
        here.watching -= 1
        here.ended += may_return
        self._ranges.move_to_end(watched)
        if not here.told and not here.watching:
            self._forget(watched)

    def resume(self, watched: Watched, start_revision: int) -> Vector | None:
        """The position from which a client that asks for `start_revision` goes on; None if esp does not know it."""
        here = self._ranges.get(watched)
        vector = None
        if here is not None and here.ended and self.knows_all:
            vector = self._behind(here, start_revision - 1)
        if vector is None or here is None:
            self.compacted += 1
            return None
        here.ended -= 1
        self.resumed += 1
        return vector

    def _behind(self, here: _Range, revision: int) -> Vector | None:
        token, _ = here.told.get(revision, (_AMBIGUOUS, None))
        if token == _AMBIGUOUS or revision in here.forgotten or revision in self._forgotten:
            return None
        return self._tokens.vector(token)

    def _forget_first(self, here: _Range) -> None:
        revision, (_, shards) = here.told.popitem(last=False)
        for shard in shards:
            here.forgotten.add(shard, revision, revision)
        self._count -= 1

    def _forget(self, watched: Watched) -> None:
        self._forgotten.update(self._ranges.pop(watched).forgotten)

    def _make_room(self) -> None:
        """Forgets the first message of the range whose watcher ended first, or else began first."""
        ranges = self._ranges
        watched = next(iter(ranges))
        while not ranges[watched].told:
            ranges.move_to_end(watched)  # looked at again after all others
            watched = next(iter(ranges))
        here = ranges[watched]
        self._forget_first(here)
        if not here.told and not here.watching:
            self._forget(watched)
