"""Which sources are shared between the watchers of one shard that ask with the same metadata.

Joining is exact or does not happen. A source may feed a tap from revision R on if it has passed on nothing from R on
so far (`source.next <= R`); what it still brings below R the tap does not get. For a watcher from now on, R is behind
the revision that the shard names when it is asked at that moment; the same question tells whether it permits the watch,
which etcd decides at each create anew. A watcher from a given revision has a source of its own first. Once that has
caught up and a second one watches the same, both move to a shared source; each as soon as it has got as far.

What may end a whole call is not shared: etcd takes a request that is too large as the end of the call it came in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from esp.core.services.watch.messages import DUPLICATE_ID, Response, Spec, created, raised
from esp.core.services.watch.source import Source
from esp.core.services.watch.tap import Tap
from esp.core.services.watch.upstream import Upstream
from esp.core.shard import Shard
from esp.core.wire.request_encoder import Forward

LARGEST_SHARED: Final = 65_536
"""Bytes of keys in a create that is sent in a call which other clients share. No etcd's limit is as low."""


class Shelf:
    """The sources for one spec.

    Attributes:
        shared: the one that taps join, if there is one.
        own: sources of single taps that may move there.
    """

    __slots__ = ("own", "shared")

    def __init__(self) -> None:
        self.shared: Source | None = None
        self.own: dict[Source, None] = {}


class Pool:
    """The sources of one shard for one set of metadata.

    Attributes:
        shard: whose.
        forward: the head of its Watch calls.
    """

    __slots__ = ("_on_change", "_shelves", "_upstream", "forward", "shard")

    def __init__(self, shard: Shard, forward: Forward, on_change: Callable[[Pool], None]) -> None:
        """`on_change` is called when there is something in it, and when there is nothing any more."""
        self.shard = shard
        self.forward = forward
        self._on_change = on_change
        self._upstream = Upstream(shard, forward, None)
        self._shelves: dict[Spec, Shelf] = {}

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing in it."""
        return not self._shelves

    def start(self, tap: Tap, spec: Spec, start_revision: int) -> None:
        """Feeds `tap` the events of `spec` from `start_revision` on, 0 for now."""
        if len(spec.key) + len(spec.range_end) > LARGEST_SHARED:
            source = Source(tap.stream.upstream(self), self, spec, Shelf(), start_revision)
            source.add(tap)
            source.upstream.create(source)
            return
        shelf = self._shelves.get(spec)
        if shelf is None:
            shelf = self._shelves[spec] = Shelf()
            self._on_change(self)
        if start_revision:
            source = Source(tap.stream.upstream(self), self, spec, shelf, start_revision)
            shelf.own[source] = None
            source.add(tap)
            source.upstream.create(source)
        elif shelf.shared is None:
            self._share(spec, shelf, 0).add(tap)
        else:
            tap.source = shelf.shared
            shelf.shared.joining[tap] = None
            self._ask(shelf.shared, tap)

    def _share(self, spec: Spec, shelf: Shelf, start_revision: int) -> Source:
        source = shelf.shared = Source(self._upstream, self, spec, shelf, start_revision)
        self._upstream.create(source)
        return source

    def _ask(self, source: Source, tap: Tap) -> None:
        source.ask(lambda response: self._on_join_answer(source, tap, response))

    def _on_join_answer(self, source: Source, tap: Tap, response: Response | None) -> None:
        if tap not in source.joining:
            return
        if response is None and not source.is_over:
            self._ask(source, tap)
        elif response is None:
            tap.restart(0)
        elif response.message.cancel_reason == DUPLICATE_ID:
            # The source may have brought what is newer than the header already: then "now" is behind that.
            head = raised(response.head, source.next - 1)
            source.join(tap, max(response.revision + 1, source.next))
            tap.on_created(created(head))
        else:
            tap.on_refused(response)

    def on_created(self, source: Source) -> None:
        """The shard watches a source: taps may move."""
        if source.shelf.shared is source:
            for own in list(source.shelf.own):
                _move(own, source)
        else:
            self.on_advanced(source)

    def on_advanced(self, own: Source) -> None:
        """A tap's own source has passed something on: it may have got as far as the shared one."""
        shelf = own.shelf
        if own.is_over:
            return
        if shelf.shared is not None:
            _move(own, shelf.shared)
        elif len(shelf.own) > 1 and own.has_caught_up:
            others = [other.next for other in shelf.own if other.has_caught_up]
            if len(others) > 1:
                self._share(own.spec, shelf, max(others))

    def forget(self, source: Source) -> None:
        """A source has ended."""
        shelf = source.shelf
        if shelf.shared is source:
            shelf.shared = None
        elif source in shelf.own:
            del shelf.own[source]
            if shelf.shared is not None and not shelf.own:
                shelf.shared.end_if_unwanted()  # it may have been begun for them, and none came so far
        if shelf.shared is None and not shelf.own and self._shelves.get(source.spec) is shelf:
            del self._shelves[source.spec]
            if not self._shelves:
                self._on_change(self)


def _move(own: Source, shared: Source) -> None:
    """Lets the tap of `own` join `shared`, if that has passed on nothing that it has not."""
    if shared.is_live and own.is_live and shared.next <= own.next:
        for tap in own.everybody():
            shared.join(tap, tap.position)
            own.remove(tap)
