"""Where watchers over several shards were, for clients that come again with a plain revision.

etcd's own client goes on, after its stream broke, behind the mod revision of the last event it saw. That is one shard's
number and says nothing about the others. But this proxy delivered that event: so it knows where the watcher was when it
did. It says so only where that is beyond doubt. The same range was watched here, with the same options and as the same
user; a watcher of it has ended since and did not come again; and of the last messages for the range there is just one
position behind an event of that revision. In every other case the client is told "compacted", and lists again.
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
"""A range with all that tells watchers of it apart: options, and whose they are."""


class _Range:
    """The last messages for one range.

    Attributes:
        tokens: by the last revision in a message, the position behind it.
        watching: watchers there are now.
        ended: watchers that have ended and have not come again.
    """

    __slots__ = ("ended", "tokens", "watching")

    def __init__(self) -> None:
        self.tokens: OrderedDict[int, int] = OrderedDict()
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
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def begin(self, watched: Watched) -> None:
        """A watcher of a range begins."""
        if watched not in self._ranges:
            self._ranges[watched] = _Range()
        self._ranges[watched].watching += 1

    def reached(self, watched: Watched, revision: int, token: int) -> None:
        """A message is delivered whose last event is of `revision`, and `token` is the position behind it."""
        tokens = self._ranges[watched].tokens
        before = tokens.get(revision)
        if before is None:
            tokens[revision] = token
            self._count += 1
            if len(tokens) > WINDOW:
                self._forget_first(tokens)
            if self._count > self._context.limits.max_resume_positions:
                self._context.reached("max_resume_positions")
                self._make_room()
        elif before != token and (before == _AMBIGUOUS or self._tokens.vector(before) != self._tokens.vector(token)):
            tokens[revision] = _AMBIGUOUS
        else:
            tokens[revision] = token  # the same position, under a token that lasts longer

    def end(self, watched: Watched, *, may_return: bool) -> None:
        """A watcher has ended; `may_return` says whether its client may come again for it."""
        here = self._ranges[watched]
        here.watching -= 1
        here.ended += may_return
        self._ranges.move_to_end(watched)
        if not here.tokens and not here.watching:
            del self._ranges[watched]

    def resume(self, watched: Watched, start_revision: int) -> Vector | None:
        """The position behind which a client goes on that asks for `start_revision` on; None when that is not known."""
        here = self._ranges.get(watched)
        token = here.tokens.get(start_revision - 1, _AMBIGUOUS) if here is not None and here.ended else _AMBIGUOUS
        vector = self._tokens.vector(token) if token != _AMBIGUOUS else None
        if vector is None or here is None:
            self.compacted += 1
            return None
        here.ended -= 1
        self.resumed += 1
        return vector

    def _forget_first(self, tokens: OrderedDict[int, int]) -> None:
        tokens.popitem(last=False)
        self._count -= 1

    def _make_room(self) -> None:
        """Takes the range that ended first, or else began first, and forgets its first message."""
        ranges = self._ranges
        watched = next(iter(ranges))
        while not ranges[watched].tokens:
            ranges.move_to_end(watched)  # it is looked at again when all others were
            watched = next(iter(ranges))
        here = ranges[watched]
        self._forget_first(here.tokens)
        if not here.tokens and not here.watching:
            del ranges[watched]
