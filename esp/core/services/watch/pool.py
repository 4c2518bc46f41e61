"""Decides which sources the watchers of one shard share, if they ask with the same metadata.

A tap joins a source only if that is exact. A source may feed a tap from revision R on if the source has passed on
nothing from R on so far (`source.next <= R`); the tap does not get events below R. For a watcher from now on, esp asks
the shard at that moment, and R is behind the revision in the answer. The answer also shows whether the shard permits
the watch, which etcd decides anew at each create. A watcher from a given revision first has a source of its own. When
two such sources of one spec have caught up, their taps move to a shared source, each as soon as it has got as far.

A create that is too large is not sent in a shared call, because etcd would end the whole call.

Of one connection only `max_shared_watchers` watchers of a spec share with other connections. Further ones, its crowd,
share among themselves, in a call that is read in that connection's turns: to pass one event on to thousands of watchers
takes long, and no other client must wait for that. Messages for which the connection has no time stay with the shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from esp.core.services.watch.feed import NONE, added
from esp.core.services.watch.messages import DUPLICATE_ID, Response, Spec, created, raised
from esp.core.services.watch.outbox import ClientsConnection
from esp.core.services.watch.source import Source, SourceTap
from esp.core.services.watch.upstream import Upstream
from esp.core.shard import Shard
from esp.core.wire.request_encoder import Forward

LARGEST_SHARED = 65_536
"""The most bytes of keys in a create in a shared call. Every etcd's limit is higher."""
PART_WEIGHT: Final = 32
"""A watcher over several shards counts as so many watchers in one shard, by the cost of an event."""


class Newcomer(SourceTap, Protocol):
    """A tap that is to be fed."""

    def own_upstream(self) -> Upstream:
        """The call to the shard of the tap's own client."""


class Pool:
    """The sources of one shard for one set of metadata.

    Attributes:
        shard: the shard.
        forward: the head of the Watch calls.
        upstream: the call that the shared sources are part of.
        shelves: the sources by spec.
        crowd: the connection whose crowd has this pool to itself; None for a pool of all.
        crowds: the pools of crowds.
    """

    __slots__ = ("_on_change", "crowd", "crowds", "forward", "shard", "shelves", "upstream")

    def __init__(
        self,
        shard: Shard,
        forward: Forward,
        on_change: Callable[[Pool], None],
        crowd: ClientsConnection | None = None,
    ) -> None:
        """`on_change` is called when the first source comes, and when the last has gone."""
        self.shard = shard
        self.forward = forward
        self._on_change = on_change
        self.crowd = crowd
        self.upstream = Upstream(shard, forward, None, crowd)
        self.shelves: dict[Spec, Shelf] = {}
        self.crowds: dict[ClientsConnection, Pool] = {}

    @property
    def is_idle(self) -> bool:
        """Whether there are no sources."""
        return not self.shelves and not self.crowds

    def of(self, crowd: ClientsConnection) -> Pool:
        """The pool of a connection's crowd."""
        pool = self.crowds.get(crowd)
        return pool if pool is not None else Pool(self.shard, self.forward, partial(self._on_crowd, crowd), crowd)

    def use(self, shard: Shard) -> None:
        """Goes on by another client of the same shard."""
        self.shard = shard
        self.upstream.use(shard)
        for pool in list(self.crowds.values()):
            pool.use(shard)

    def _on_crowd(self, crowd: ClientsConnection, pool: Pool) -> None:
        if not pool.is_idle:
            self.crowds[crowd] = pool
        elif self.crowds.pop(crowd, None) is not None:
            self._on_change(self)

    def start(self, tap: Newcomer, spec: Spec, start_revision: int) -> None:
        """Feeds `tap` the events of `spec` from `start_revision` on, 0 for now."""
        if len(spec.key) + len(spec.range_end) > LARGEST_SHARED:
            Shelf(self, spec).start_own(tap, start_revision)
            return
        shelf = self.shelves.get(spec)
        if shelf is None:
            if not self.shelves:
                self.shelves[spec] = shelf = Shelf(self, spec)
                self._on_change(self)
            else:
                self.shelves[spec] = shelf = Shelf(self, spec)
        elif self.crowd is None and shelf.has_many_of(tap.outbox.connection):
            tap.outbox.context.reached("max_shared_watchers")
            self.of(tap.outbox.connection).start(tap, spec, start_revision)
            return
        shelf.start(tap, start_revision)

    def drop(self, shelf: Shelf) -> None:
        """Takes away an empty shelf."""
        if self.shelves.get(shelf.spec) is shelf:
            del self.shelves[shelf.spec]
            if not self.shelves:
                self._on_change(self)


class Shelf:
    """The sources for one spec.

    Attributes:
        spec: the range and options that are watched.
        shared: the source that taps join, if there is one.
        own: sources of single taps, which may move to the shared one.
    """

    __slots__ = ("_pool", "_weights", "own", "shared", "spec")

    def __init__(self, pool: Pool, spec: Spec) -> None:
        self.spec = spec
        self.shared: Source | None = None
        self.own: dict[Source, None] = NONE
        self._pool = pool
        # The weight of each connection's taps, once a connection may have many. Not needed for a crowd's shelf.
        self._weights: Counter[ClientsConnection] | None = None

    def has_many_of(self, connection: ClientsConnection) -> bool:
        """Whether the connection has as many taps here as may share with other connections."""
        most = connection.limits.max_shared_watchers
        if self._weights is None:
            sources = [*self.own, self.shared] if self.shared is not None else [*self.own]
            if sum(source.count for source in sources) * PART_WEIGHT < most:
                return False  # nearly always
            self._weights = Counter()
            for source in sources:
                for tap in (*source.everybody(), *source.joining):
                    self._weights[tap.outbox.connection] += _weight(tap)
        return self._weights[connection] >= most

    def start(self, tap: Newcomer, start_revision: int) -> None:
        """Feeds `tap` the events from `start_revision` on, 0 for now."""
        if self._weights is not None:
            self._weights[tap.outbox.connection] += _weight(tap)
        if start_revision:
            self.start_own(tap, start_revision)
        elif self.shared is None:
            source = tap.source = self._share(0)
            source.taps[tap] = None
        else:
            tap.source = self.shared
            self.shared.joining = added(self.shared.joining, tap)
            self._ask(self.shared, tap)

    def start_own(self, tap: Newcomer, start_revision: int) -> None:
        """Feeds `tap` from a source of its own, in its client's own call to the shard."""
        source = Source(tap.own_upstream(), self.spec, self, start_revision)
        self.own = added(self.own, source)
        source.add(tap)
        source.upstream.create(source)

    def _share(self, start_revision: int) -> Source:
        upstream = self._pool.upstream
        source = self.shared = Source(upstream, self.spec, self, start_revision)
        upstream.create(source)
        return source

    def _ask(self, source: Source, tap: Newcomer) -> None:
        source.ask(lambda response: self._on_join_answer(source, tap, response))

    def _on_join_answer(self, source: Source, tap: Newcomer, response: Response | None) -> None:
        if tap not in source.joining:
            return
        if response is None and not source.is_over:
            self._ask(source, tap)
        elif response is None:
            tap.restart(0)
        elif response.message.cancel_reason == DUPLICATE_ID:
            # The source may have brought events that are newer than the header already: then "now" is behind these.
            head = raised(response.head, source.next - 1)
            source.join(tap, max(response.revision + 1, source.next))
            tap.on_created(created(head))
        else:
            tap.on_refused(response)

    def on_created(self, source: Source) -> None:
        """The shard watches: taps may move."""
        if self.shared is source:
            if self.own:
                for own in list(self.own):
                    _move_if_level(own, source)
        else:
            self.on_advanced(source)

    def on_advanced(self, source: Source) -> None:
        """A tap's own source has passed on events, and may have got as far as the shared source."""
        if source.is_over:
            return
        if self.shared is not None:
            _move_if_level(source, self.shared)
        elif len(self.own) > 1 and source.has_caught_up:
            others = [other.next for other in self.own if other.has_caught_up]
            if len(others) > 1:
                self._share(max(others))

    def on_left(self, tap: SourceTap) -> None:
        """A tap has left, and is in no other source."""
        weights, connection = self._weights, tap.outbox.connection
        if weights is not None:
            weights[connection] -= _weight(tap)
            if not weights[connection]:
                del weights[connection]

    def forget(self, source: Source) -> None:
        """A source has ended."""
        if self.shared is source:
            self.shared = None
        elif source in self.own:
            del self.own[source]
            if self.shared is not None and not self.own:
                self.shared.end_if_unwanted()  # begun perhaps for taps of `own`, none of which got as far
        if self.shared is None and not self.own:
            self._pool.drop(self)


def _weight(tap: SourceTap) -> int:
    return PART_WEIGHT if tap.is_part else 1


def _move_if_level(own: Source, shared: Source) -> None:
    """Lets the tap of `own` join `shared`, if `shared` has passed on nothing that the tap has not."""
    if shared.is_live and own.is_live and shared.next <= own.next:
        for tap in own.everybody():
            shared.join(tap, tap.position)
            own.remove(tap)
