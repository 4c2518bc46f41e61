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
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext

WINDOW: Final = 64
"""Messages of a range that esp remembers. With more messages, esp could resume clients that are further behind; but two
shards whose revisions grow at the same pace would more often have an equal revision among them."""
_AMBIGUOUS: Final = 0

Watched = Hashable
"""A range together with the options and the client of its watchers. Small: it outlives the watcher."""


class Finding(NamedTuple):
    """What one process knows of a client that comes again.

    Attributes:
        has_ended: a watcher of the range has ended, and its client has not come again.
        vector: the position behind the client's last event; None if there was no such event here.
        is_doubtful: the client may have seen this event at another position.
    """

    has_ended: bool
    vector: Vector | None
    is_doubtful: bool


class Others(Protocol):
    """The other processes that serve the same clients."""

    async def find(self, watched: Watched, start_revision: int) -> list[Finding]:
        """The findings of all the others."""

    def give_back(self, watched: Watched, number: int) -> None:
        """The finding with this number in the list was not the one of this client."""


class _Forgotten:
    """Forgotten revisions that clients may have seen last: for each shard the lowest and the highest."""

    __slots__ = ("bounds",)

    def __init__(self) -> None:
        self.bounds: dict[str, tuple[int, int]] = {}

    def add(self, shard: str, lowest: int, highest: int) -> None:
        """Adds the revisions of a shard from `lowest` to `highest`."""
        low, high = self.bounds.get(shard, (lowest, highest))
        self.bounds[shard] = min(low, lowest), max(high, highest)

    def update(self, other: _Forgotten) -> None:
        """Adds the revisions in `other`."""
        for shard, bounds in other.bounds.items():
            self.add(shard, *bounds)

    def __contains__(self, revision: int) -> bool:
        return any(low <= revision <= high for low, high in self.bounds.values())


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
        others: the other processes that serve, or have just served, the same clients; None if there are none.
        watching: watchers that there are now.
        resumed, compacted: how often a client came with a plain revision whose position esp knew, and did not know.
    """

    def __init__(self, tokens: Tokens, context: WireContext) -> None:
        self.others: Others | None = None
        self.watching = 0
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
        self.watching += 1

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
        self.watching -= 1
        here.ended += may_return
        self._ranges.move_to_end(watched)
        if not here.told and not here.watching:
            self._forget(watched)

    def resume(self, watched: Watched, start_revision: int) -> Vector | None:
        """The position from which a client that asks for `start_revision` goes on; None if esp does not know it."""
        return self._settle(watched, [self.find(watched, start_revision)])

    async def resume_anywhere(self, watched: Watched, start_revision: int) -> Vector | None:
        """As `resume`, if the client may have watched at one of `others`."""
        assert self.others is not None
        theirs = await self.others.find(watched, start_revision)
        return self._settle(watched, [self.find(watched, start_revision), *theirs])

    def _settle(self, watched: Watched, findings: list[Finding]) -> Vector | None:
        """The position that all findings together leave no doubt about; of one watcher the client has come again."""
        vectors = {found.vector for found in findings if found.vector is not None}
        ended = [number for number, found in enumerate(findings) if found.has_ended]
        vector = None
        if len(vectors) == 1 and ended and not any(found.is_doubtful for found in findings):
            vector = vectors.pop()
            self.resumed += 1
            ended.remove(next((number for number in ended if findings[number].vector is not None), ended[0]))
        else:
            self.compacted += 1
        for number in ended:
            if number:
                assert self.others is not None
                self.others.give_back(watched, number - 1)
            else:
                self.give_back(watched)
        return vector

    def find(self, watched: Watched, start_revision: int) -> Finding:
        """What this process knows of the position behind `start_revision` - 1.

        One watcher that has ended counts as the client's own; `give_back` undoes this.
        """
        here, revision = self._ranges.get(watched), start_revision - 1
        is_doubtful = revision in self._forgotten
        if here is None:
            return Finding(False, None, is_doubtful)
        has_ended = here.ended > 0
        here.ended -= has_ended
        vector = None
        if revision in here.told:
            token, _ = here.told[revision]
            vector = None if token == _AMBIGUOUS else self._tokens.vector(token)
            is_doubtful |= vector is None
        return Finding(has_ended, vector, is_doubtful or revision in here.forgotten)

    def give_back(self, watched: Watched) -> None:
        """The client of a watcher that has ended has not come again after all."""
        if watched in self._ranges:
            self._ranges[watched].ended += 1

    def doubt(self, shard: str, highest: int) -> None:
        """Clients may have seen any revision of a shard up to `highest` last, at a process that has gone."""
        self._forgotten.add(shard, 1, highest)

    # For the next process that serves these clients.

    def dump(self) -> list[dict[str, Any]]:
        """What `adopt` of another process takes: ranges with watchers that have ended, whose clients may come again."""
        forgotten = _Forgotten()
        forgotten.update(self._forgotten)
        dumped: list[dict[str, Any]] = []
        for watched, here in self._ranges.items():
            if here.ended and isinstance(watched, bytes):
                told = [[revision, token, sorted(shards)] for revision, (token, shards) in here.told.items()]
                of_range = {shard: list(bounds) for shard, bounds in here.forgotten.bounds.items()}
                dumped.append({"watched": watched.hex(), "ended": here.ended, "told": told, "forgotten": of_range})
            else:
                forgotten.update(here.forgotten)
        return [{"forgotten": {shard: list(bounds) for shard, bounds in forgotten.bounds.items()}}, *dumped]

    def adopt(self, dumped: Sequence[Mapping[str, Any]]) -> None:
        """Goes on with the positions that another process has dumped, whose tokens this one knows."""
        for one in dumped:
            forgotten = _Forgotten()
            for shard, (low, high) in one["forgotten"].items():
                forgotten.add(shard, low, high)
            if "watched" not in one:
                self._forgotten.update(forgotten)
                continue
            watched = bytes.fromhex(one["watched"])
            self.begin(watched)
            self._ranges[watched].forgotten.update(forgotten)
            for revision, token, shards in one["told"]:
                for shard in shards:
                    self.reached(watched, shard, revision, revision, token)
            self.end(watched, may_return=False)
            if watched in self._ranges:
                self._ranges[watched].ended += one["ended"]

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
