"""The Watch service over several shards."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final

from esp.core.background import Background
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.routing import Routing
from esp.core.services.metadata import call_head
from esp.core.services.watch.crossing import Passage
from esp.core.services.watch.moved import Moved
from esp.core.services.watch.pool import Pool
from esp.core.services.watch.positions import Positions
from esp.core.services.watch.starts import name_of
from esp.core.services.watch.stream import WatchStream
from esp.core.services.watch.watcher import Watcher
from esp.core.shard import Shard
from esp.core.shard_map import Segment
from esp.core.wire.context import WireContext
from esp.core.wire.request import RequestHead
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import Handler, ServerCall

PATH: Final = b"/etcdserverpb.Watch/Watch"
METADATA: Final = (b"token", b"authorization", b"hasleader")
"""The metadata that have a meaning in a watch. Shards get no other metadata, so that more clients can share."""


_STEP: Final = "a watch at a new map"


class Watch(Handler):
    """Serves each call with a `WatchStream`; outlives layouts, as the calls do.

    Attributes:
        routing: the shards of the layout in force.
        background: owner of the tasks and timers of clients' streams.
        positions: positions of watchers over several shards, for clients that resume.
        moved: watchers that have ended because their keys have another owner.
        watchers: memory for the watchers of all clients.
        streams: the calls that are open.
        hides_own_keys: whether clients watch no keys of esp's own.
        is_ending: the proxy drains: a call that comes now ends at once. Its client resumes elsewhere, perhaps at a
            process that knows the positions here as they are now.
    """

    streaming = True
    forwards = False
    lasts = True

    def __init__(
        self, routing: Routing, background: Background, context: WireContext, *, hides_own_keys: bool = False
    ) -> None:
        self.routing = routing
        self.hides_own_keys = hides_own_keys
        self.background = background
        self._context = context
        self.positions = Positions(routing.tokens, context)
        self.watchers = context.places("max_watcher_bytes")
        self.moved = Moved(context)
        self.streams: set[WatchStream] = set()
        self.is_ending = False
        self._pools: dict[tuple[Shard, Forward], Pool] = {}
        self._passages: dict[tuple[KeyRange, str, int], Passage] = {}  # of the last move
        routing.undivided.on_added = self._end_divided

    def on_open(self, stream: ServerCall) -> None:
        """A client opens its stream; no shard is told before the client's first create."""
        opened = WatchStream(self, stream, _forward(stream.head))
        self.streams.add(opened)
        if self.is_ending:
            opened.outbox.stop()

    def handlers(self) -> Mapping[bytes, Handler]:
        """The handler of each RPC of the service, by path."""
        return {PATH: self}

    def install(self, routing: Routing) -> None:
        """Another layout is in force.

        A stream ends if the new layout divides the keys of one of its watchers differently. The client resumes, and is
        served by the new layout. Other streams go on untouched.

        By a map of the shards, a watcher whose keys have come to other shards ends alone: it is told "compacted". All
        others go on, also at shards that have another guard now.
        """
        before, self.routing = self.routing.layout, routing
        before.undivided.on_added = None
        routing.undivided.on_added = self._end_divided
        for passage in self._passages.values():
            passage.learn(routing.layout.former)
        self._passages = {
            key: one for key, one in self._passages.items() if key[2] == routing.layout.epoch or not one.is_open
        }
        kept = {shard: routing.layout.shards[shard.name] for shard in _with_other_guards(before, routing.layout)}
        for pool in [pool for (shard, _), pool in self._pools.items() if shard in kept]:
            del self._pools[pool.shard, pool.forward]
            pool.use(kept[pool.shard])
            if not pool.is_idle:
                self._pools[pool.shard, pool.forward] = pool
        for stream in tuple(self.streams):
            # A bug ends one client's stream: the layout is in force for all the others.
            self.background.guard(_STEP, partial(self._tell, stream, before, kept), stream.outbox.fail)
        self._end_divided()

    def _tell(self, stream: WatchStream, before: Layout, kept: Mapping[Shard, Shard]) -> None:
        """Has the watchers of a client whose keys are divided differently now go over, or end.

        If one of them cannot be told, or the client reads too slowly, the stream ends. Then its client comes again with
        all of them, and each is told then: none may go on by a number of the former owner.
        """
        if stream.outbox.is_over:
            return  # by what the others were told: its client comes by this layout
        after = self.routing.layout
        staying = {*after.shards.values(), *kept}
        moved = []
        can_be_told = True
        for watcher in stream.all_watchers():
            keys = watcher.keys
            if keys is None or watcher.is_dead or before.divides_alike(keys, after):
                continue
            segments = before.segments(keys)
            stay = staying.issuperset(before.shards[segment.shard] for segment in segments)
            if stay and segments == after.segments(keys):
                continue
            moved.append((watcher, segments))
            # Without guards nothing fences a watch: events of after the move may be missing, or have come.
            can_be_told = can_be_told and after.is_guarded and stay and watcher.is_announced
        specs = [watcher.sole_spec for watcher, _ in moved]  # now: a stream that ends lets go of them
        are_told = False
        try:
            stream.use(kept)
            are_told = can_be_told and all(self._goes_over(watcher, segments) for watcher, segments in moved)
        finally:
            if not are_told:
                for spec in specs:
                    if spec is not None:
                        self.moved.add(name_of(stream, spec))
        if not are_told:
            stream.outbox.stop()

    def _goes_over(self, watcher: Watcher, segments: Sequence[Segment]) -> bool:
        """Has a watcher go over to the shard to which its keys have come, or end; False if that ends its stream."""
        assert watcher.keys is not None
        passage = self._passage(watcher.keys, segments)
        if passage is None or not watcher.cross(passage):
            watcher.end_for_move()
        return not watcher.stream.outbox.is_over

    def _passage(self, keys: KeyRange, segments: Sequence[Segment]) -> Passage | None:
        """The move by which all these keys have come from one shard to another with the layout in force."""
        layout = self.routing.layout
        for came in layout.former.came:
            is_it = came.epoch == layout.epoch and came.range.intersect(keys) == keys
            if is_it and [segment.shard for segment in segments] == [came.source]:
                key = came.range, came.shard, came.epoch
                if key not in self._passages:
                    self._passages[key] = Passage(came, self._context)
                return self._passages[key]
        return None

    def _end_divided(self) -> None:
        """Ends the streams with a watcher that esp would refuse now. Their clients come again, and are refused."""
        for stream in tuple(self.streams):
            self.background.guard(_STEP, partial(_end_divided, stream), stream.outbox.fail)

    def pool(self, shard: str, forward: Forward) -> Pool:
        """The sources of a shard for calls with the head `forward`."""
        key = (self.routing.shards[shard], forward)
        pool = self._pools.get(key)
        if pool is None:
            pool = Pool(key[0], forward, self._on_change)
        return pool

    @property
    def pools(self) -> Collection[Pool]:
        """The pools that have sources."""
        return self._pools.values()

    def _on_change(self, pool: Pool) -> None:
        key = pool.shard, pool.forward
        if not pool.is_idle:
            self._pools.setdefault(key, pool)
        elif self._pools.get(key) is pool:
            del self._pools[key]


def _end_divided(stream: WatchStream) -> None:
    if any(watcher.is_divided for watcher in stream.watchers.values()):
        stream.outbox.stop()


def _with_other_guards(before: Layout, after: Layout) -> list[Shard]:
    """The shards that have another guard now and nothing else, because a move of the next map has begun or ended there.

    Of more than one change at once it is not known what has become of a shard meanwhile.
    """
    if after.epoch != before.epoch + 1:
        return []
    moved = [one for one in after.former.came if one.epoch == after.epoch]
    names = {name for one in moved for name in (one.source, one.shard)}
    return [shard for name, shard in before.shards.items() if name in names and after.shards.get(name) is not shard]


def _forward(head: RequestHead) -> Forward:
    """The head of the calls to shards."""
    return call_head(PATH, [field for field in head.fields if field[0] in METADATA])
