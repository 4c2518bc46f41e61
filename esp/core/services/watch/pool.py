"""Which sources are shared between the watchers of one shard that ask with the same metadata.

Joining is exact or does not happen. A source may feed a tap from revision R on if it has passed on nothing from R on
so far (`source.next <= R`); what it still brings below R the tap does not get. For a watcher from now on, R is behind
the revision that the shard names when it is asked at that moment; the same question tells whether it permits the watch,
which etcd decides at each create anew. A watcher from a given revision has a source of its own first. Once that has
caught up and a second one watches the same, both move to a shared source; each as soon as it has got as far.
"""

from __future__ import annotations

from collections.abc import Callable

from esp.core.services.watch.messages import DUPLICATE_ID, Response, Spec, created, raised
from esp.core.services.watch.source import Source, Tap
from esp.core.services.watch.upstream import Upstream
from esp.core.shard import Shard


class Pool:
    """The sources of one shard for one set of metadata.

    Attributes:
        shard: whose.
        forward: the head of its Watch calls.
    """

    __slots__ = ("_on_idle", "_own", "_shared", "_upstream", "forward", "shard")

    def __init__(self, shard: Shard, forward: bytes, on_idle: Callable[[Pool], None]) -> None:
        """`on_idle` is called when there is nothing in it any more."""
        self.shard = shard
        self.forward = forward
        self._on_idle = on_idle
        self._upstream = Upstream(shard, forward, None)
        self._shared: dict[Spec, Source] = {}
        self._own: dict[Spec, dict[Source, None]] = {}

    def start(self, tap: Tap, spec: Spec, start_revision: int) -> None:
        """Feeds `tap` the events of `spec` from `start_revision` on, 0 for now."""
        if start_revision:
            source = Source(tap.stream.upstream(self), self, spec, start_revision)
            source.add(tap)
            source.upstream.create(source)
            return
        shared = self._shared.get(spec)
        if shared is None:
            self._share(spec, 0).add(tap)
        else:
            tap.source = shared
            shared.joining[tap] = None
            self._ask(shared, tap)

    def _share(self, spec: Spec, start_revision: int) -> Source:
        source = self._shared[spec] = Source(self._upstream, self, spec, start_revision)
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
            tap.detach()
            self.start(tap, source.spec, 0)
        elif response.message.cancel_reason == DUPLICATE_ID:
            # The source may have brought what is newer than the header already: then "now" is behind that.
            head = raised(response.head, source.next - 1)
            source.join(tap, max(response.revision + 1, source.next))
            tap.on_created(created(head))
        else:
            tap.on_refused(response)

    def on_settled(self, source: Source) -> None:
        """A source was created, or has passed something on: it may be time to move taps between sources."""
        if source.is_over:
            return
        spec = source.spec
        shared = self._shared.get(spec)
        if shared is source:
            for own in list(self._own.get(spec, ())):
                self._move(own, source)
        elif shared is not None:
            self._own.setdefault(spec, {})[source] = None
            self._move(source, shared)
        elif source.has_caught_up:
            own_sources = self._own.setdefault(spec, {})
            own_sources[source] = None
            if len(own_sources) > 1:
                self._share(spec, max(own.next for own in own_sources))

    def _move(self, own: Source, shared: Source) -> None:
        if shared.is_live and own.is_live and shared.next <= own.next:
            for tap in own.everybody():
                revision = tap.position
                shared.join(tap, revision)
                own.remove(tap)

    def forget(self, source: Source) -> None:
        """A source has ended."""
        spec = source.spec
        if self._shared.get(spec) is source:
            del self._shared[spec]
        own_sources = self._own.get(spec)
        if own_sources is not None:
            own_sources.pop(source, None)
            if not own_sources:
                del self._own[spec]
                if spec in self._shared:
                    self._shared[spec].end_if_unwanted()  # it was begun for them, and none came so far
        if not self._shared and not self._own:
            self._on_idle(self)
