"""One watcher of a client, fed by one shard or by several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.revision import merged_header
from esp.core.services.watch.messages import (
    DUPLICATE_ID,
    NO_ID,
    Response,
    Spec,
    canceled,
    created,
    header_field,
    refused,
)
from esp.core.services.watch.source import Tap
from esp.core.shard_map import Segment

if TYPE_CHECKING:
    from esp.core.services.watch.stream import WatchStream

FROM_THE_BEGINNING: Final = 1
"""The one start revision that means the same on every shard."""
FILTERS: Final = frozenset(rpc_pb2.WatchCreateRequest.FilterType.values())
"""Those that etcd knows; it does not look at others."""


class Watcher:
    """One watcher of a client; as a slot of its stream, the create that it was made by.

    It is announced to the client when every shard concerned watches and the creates before it were answered; what comes
    until then is held.

    Attributes:
        stream: the client's stream.
        id: the watch id; NO_ID until it is announced.
        taps: its part in each shard.
        size: the memory that is accounted for it.
        is_dead: its history is compacted; only its id is left, as in etcd.
    """

    __slots__ = (
        "_held",
        "_held_bytes",
        "_id_wanted",
        "_is_untranslatable",
        "_refusal",
        "_wants_progress",
        "id",
        "is_announced",
        "is_dead",
        "size",
        "stream",
        "taps",
    )

    def __init__(self, stream: WatchStream, request: rpc_pb2.WatchCreateRequest) -> None:
        self.stream = stream
        self.size = 0
        self.id = 0
        self.is_announced = self.is_dead = False
        self.taps: list[Tap] = []
        self._id_wanted = request.watch_id
        self._wants_progress = request.progress_notify
        self._is_untranslatable = False
        self._refusal: Response | None = None
        self._held: list[Response] = []
        self._held_bytes = 0

    def begin(self, request: rpc_pb2.WatchCreateRequest) -> None:
        """Asks the shards that own what it watches, each for its part."""
        shard_map = self.stream.routing.map
        key = request.key or b"\0"  # as etcd reads an empty one
        key_range = KeyRange.of_request(key, request.range_end)
        start = request.start_revision
        sole = shard_map.sole_owner(key_range)
        if sole is not None:
            # An empty range goes there too: etcd looks at permissions before it refuses it.
            tap = Tap(self, self.stream.pool(sole))
            self.taps.append(tap)
            tap.pool.start(tap, _spec(request, key, request.range_end), start)
            return
        if start > FROM_THE_BEGINNING:
            # A number of one shard says nothing about the others.
            self._is_untranslatable = True
            start = 0
        by_shard: dict[int, list[Segment]] = {}
        for segment in shard_map.split(key_range):
            by_shard.setdefault(segment.shard, []).append(segment)
        parts = [
            (shard, KeyRange(segments[0].range.start, segments[-1].range.end), len(segments) > 1)
            for shard, segments in by_shard.items()
        ]
        for shard, _, has_gaps in parts:
            tap = Tap(self, self.stream.pool(shard))
            self.taps.append(tap)
            if has_gaps:
                # One watcher of the shard over all its ranges: a revision of the shard stays one message.
                tap.owned = lambda key, shard=shard: shard_map.owner(key) == shard
        for tap, (_, part, _) in zip(self.taps, parts, strict=True):
            tap.pool.start(tap, _spec(request, *part.to_request()), start)

    def refuse(self, reason: str) -> None:
        """Asks no shard: esp itself does not take it."""
        identity = self.stream.routing.identity
        header = rpc_pb2.ResponseHeader(cluster_id=identity.cluster_id, member_id=identity.member_id)
        self._refusal = refused(header_field(header), reason)

    @property
    def spans_shards(self) -> bool:
        """Whether several shards feed it."""
        return len(self.taps) > 1

    # The slot.

    @property
    def is_settled(self) -> bool:
        """Whether its create can be answered."""
        return self._refusal is not None or all(tap.is_created for tap in self.taps)

    def answer(self) -> None:
        """Answers the create."""
        stream = self.stream
        stream.hold(-self._held_bytes)
        if self._refusal is not None:
            # Up to etcd 3.5.21 or so some refusals bear the id that was asked for.
            has_none = self._refusal.message.watch_id == NO_ID
            stream.send(self._refusal.encode(NO_ID if has_none else self._id_wanted))
            stream.forget(self)
            return
        reply = self._created()
        if not stream.admit(self, self._id_wanted):
            self.leave()
            stream.forget(self)
            refusal = refused(reply.head, DUPLICATE_ID)
            stream.send(refusal.encode(NO_ID))
            return
        self.is_announced = True
        stream.send(reply.encode(self.id))
        held, self._held = self._held, []
        for response in held:
            self._pass_on(response)
        if self._is_untranslatable:
            header = rpc_pb2.ResponseHeader()
            header.CopyFrom(reply.message.header)
            header.revision = 0  # as etcd has it there
            self._end(canceled(header_field(header), max(reply.revision, 1)))
        elif not self.spans_shards and not self.is_dead:
            self.taps[0].is_plain = self.taps[0].owned is None

    def _created(self) -> Response:
        replies = [tap.created for tap in self.taps if tap.created is not None]
        for tap in self.taps:
            tap.created = None
        if not self.spans_shards:
            return replies[0]
        headers = [reply.message.header for reply in replies]
        header = merged_header(headers, self.stream.routing.identity)
        # Clients come back from here. From 1 they would be told all history again; from any other they list.
        header.revision = max(header.revision, FROM_THE_BEGINNING + 1)
        return created(header_field(header))

    # From the taps.

    def on_part_created(self) -> None:
        """A shard watches."""
        if self.is_settled:
            self.stream.advance()

    def on_part_refused(self, response: Response) -> None:
        """A shard does not, and so nobody does."""
        if self.is_announced:
            # It had been granted before; the client finds out by coming again.
            self.stream.stop()
        elif self._refusal is None:
            self._refusal = response
            self.leave()
            self.stream.advance()

    def on_events(self, response: Response) -> None:
        """Events of one shard, in the order in which it sent them."""
        if self.is_announced:
            self._pass_on(response)
        else:
            self._hold(response)

    def _hold(self, response: Response) -> None:
        self._held.append(response)
        self._held_bytes += response.size
        self.stream.hold(response.size)

    def on_progress(self, response: Response) -> None:
        """All events up to a revision have come: of one shard, and so not told to a watcher of several."""
        if self._wants_progress and self.is_announced and not self.spans_shards:
            self.stream.send(response.encode(self.id))

    def on_part_canceled(self, response: Response) -> None:
        """A shard has ended its part, for which the history is compacted: so the whole is over."""
        if self.is_announced:
            self._end(response)
        else:
            self._hold(response)

    def _pass_on(self, response: Response) -> None:
        if self.is_dead:
            return
        if response.message.canceled:
            self._end(response)
            return
        if self.spans_shards:
            response = response.under(self.stream.routing.identity)
        self.stream.send(response.encode(self.id))

    def _end(self, response: Response) -> None:
        self.leave()
        self.is_dead = True
        if self.spans_shards and response.message.HasField("header"):
            response = response.under(self.stream.routing.identity)
        self.stream.send(response.encode(self.id))

    # The end.

    @property
    def head(self) -> bytes:
        """A header for a reply about which no shard is asked: the newest that was heard."""
        heads = [head for tap in self.taps if (head := tap.head)]
        if not self.spans_shards or not heads:
            return heads[0] if heads else b""
        headers = [rpc_pb2.WatchResponse.FromString(head).header for head in heads]
        return header_field(merged_header(headers, self.stream.routing.identity))

    def leave(self) -> None:
        """Wants nothing any more."""
        for tap in self.taps:
            tap.detach()


def _spec(request: rpc_pb2.WatchCreateRequest, key: bytes, range_end: bytes) -> Spec:
    filters = tuple(sorted({each for each in request.filters if each in FILTERS}))
    return Spec(key, range_end, filters, request.prev_kv, request.fragment)
