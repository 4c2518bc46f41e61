"""The Watch service over several shards."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
from esp.core.services.watch.stream import WatchStream
from esp.core.shard import Shard
from esp.core.shard_map import Segment
from esp.core.wire.context import WireContext
from esp.core.wire.request import RequestHead
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import Handler, ServerCall

PATH: Final = b"/etcdserverpb.Watch/Watch"
METADATA: Final = (b"token", b"authorization", b"hasleader")
"""The metadata that have a meaning in a watch. Shards get no other metadata, so that more clients can share."""


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
            stream.use(kept)
            self._leave_moved(stream, before, kept)
        self._end_divided()

    def _leave_moved(self, stream: WatchStream, before: Layout, kept: Mapping[Shard, Shard]) -> None:
        """Ends the watchers of a client whose keys are divided differently now."""
        after = self.routing.layout
        for watcher in list(stream.all_watchers()):
            keys = watcher.keys
            if keys is None or watcher.is_dead or before.divides_alike(keys, after):
                continue
            segments = before.segments(keys)
            if all(shard in (after.shards.get(shard.name), *kept) for shard in _shards_of(before, segments)):
                if segments == after.segments(keys):
                    continue
                passage = self._passage(keys, segments)
                if (passage is not None and watcher.cross(passage)) or watcher.end_for_move():
                    continue
            elif not watcher.spans_shards and watcher.taps:
                self.moved.add(watcher.name)
            stream.outbox.stop()

    def _passage(self, keys: KeyRange, segments: Sequence[Segment]) -> Passage | None:
        """The move by which all these keys have come from one shard to another with the layout in force."""
        layout = self.routing.layout
        for came in layout.former.came:
            is_it = came.epoch == layout.epoch and came.range.intersect(keys) == keys
            if is_it and [segment.shard for segment in segments] == [came.source]:
                return self._passages.setdefault((came.range, came.shard, came.epoch), Passage(came))
        return None

    def _end_divided(self) -> None:
        """Ends the streams with a watcher that esp would refuse now. Their clients come again, and are refused."""
        for stream in tuple(self.streams):
            if any(watcher.is_divided for watcher in stream.watchers.values()):
                stream.outbox.stop()

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


def _with_other_guards(before: Layout, after: Layout) -> list[Shard]:
    """The shards that have another guard now and nothing else, because a move of the next map has begun or ended there.

    Of more than one change at once it is not known what has become of a shard meanwhile.
    """
    if after.epoch != before.epoch + 1:
        return []
    moved = [one for one in after.former.came if one.epoch == after.epoch]
    names = {name for one in moved for name in (one.source, one.shard)}
    return [shard for name, shard in before.shards.items() if name in names and after.shards.get(name) is not shard]


def _shards_of(layout: Layout, segments: Iterable[Segment]) -> set[Shard]:
    return {layout.shards[segment.shard] for segment in segments}


def _forward(head: RequestHead) -> Forward:
    """The head of the calls to shards."""
    return call_head(PATH, [field for field in head.fields if field[0] in METADATA])
