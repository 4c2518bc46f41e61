"""Where watchers over several shards were, for clients that come again with a plain revision.

etcd's own client goes on, after its stream broke, behind the mod revision of the last event it saw. That is one shard's
number and says nothing about the others. But this proxy delivered that event: so it knows where the watcher was when it
did. It says so only where all it ever delivered leaves no doubt. The same range was watched here, with the same
options, as the same user and from the same host; a watcher of it has ended since and did not come again; of the last
messages for the range there is just one position behind an event of that revision; and that event can have been no
other, of a message before those or in the midst of one. In every other case the client is told "compacted", and lists
again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext

WINDOW: Final = 64
"""Messages of a range that count. More would find clients that are further behind, but two shards that count at about
the same pace would have used the same number among them more often."""
_AMBIGUOUS: Final = 0

Watched = Hashable
"""A range with all that tells watchers of it apart: options, and whose they are. Small: it outlives the watcher."""


class _Forgotten:
    """Revisions that clients may have seen last and that are not remembered: the lowest and highest of each shard."""

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds: dict[int, tuple[int, int]] = {}

    def add(self, shard: int, lowest: int, highest: int) -> None:
        """Revisions of a shard."""
        low, high = self._bounds.get(shard, (lowest, highest))
        self._bounds[shard] = min(low, lowest), max(high, highest)

    def update(self, other: _Forgotten) -> None:
        """All of `other`'s."""
        for shard, bounds in other._bounds.items():
            self.add(shard, *bounds)

    def __contains__(self, revision: int) -> bool:
        return any(low <= revision <= high for low, high in self._bounds.values())


class _Range:
    """The last messages for one range.

    Attributes:
        told: by the last revision in a message, the token of the position behind it, and the shards that it was of.
        forgotten: what else was told.
        watching: watchers there are now.
        ended: watchers that have ended and have not come again.
    """

    __slots__ = ("ended", "forgotten", "told", "watching")

    def __init__(self) -> None:
        self.told: OrderedDict[int, tuple[int, frozenset[int]]] = OrderedDict()
        self.forgotten = _Forgotten()
        self.watching = 0
        self.ended = 0


class Positions:
    """The positions behind the last messages of every range that is, or lately was, watched over several shards.

    Attributes:
        resumed, compacted: how often a plain revision was given back and its position was known, and was not.
    """

    def __init__(self, tokens: Tokens, context: WireContext) -> None:
        self.resumed = self.compacted = 0
        self._tokens = tokens
        self._context = context
        self._ranges: OrderedDict[Watched, _Range] = OrderedDict()
        self._forgotten = _Forgotten()  # of ranges that are forgotten themselves
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def begin(self, watched: Watched) -> None:
        """A watcher of a range begins."""
        if watched not in self._ranges:
            self._ranges[watched] = _Range()
        self._ranges[watched].watching += 1

    def reached(self, watched: Watched, shard: int, first: int, revision: int, token: int) -> None:
        """A message of `shard` is delivered with events from `first` to `revision`; `token` is the position behind it.

        A client that stopped in its midst may come again from there, which is no position of this watcher.
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
            token = _AMBIGUOUS  # or else it is the same position, under a token that lasts longer
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
        """The position behind which a client goes on that asks for `start_revision` on; None when that is not known."""
        here = self._ranges.get(watched)
        vector = self._behind(here, start_revision - 1) if here is not None and here.ended else None
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
        """Takes the range that ended first, or else began first, and forgets its first message."""
        ranges = self._ranges
        watched = next(iter(ranges))
        while not ranges[watched].told:
            ranges.move_to_end(watched)  # it is looked at again when all others were
            watched = next(iter(ranges))
        here = ranges[watched]
        self._forget_first(here)
        if not here.told and not here.watching:
            self._forget(watched)
