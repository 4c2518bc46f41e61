"""One watcher of a client, fed by one shard or by several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.watch.compaction import OldestRevisions
from esp.core.services.watch.create import Create
from esp.core.services.watch.crossing import Crossing, Passage
from esp.core.services.watch.held import Held
from esp.core.services.watch.messages import (
    DUPLICATE_ID,
    NO_ID,
    Response,
    Spec,
    canceled,
    compacted,
    created,
    encoded,
    header_field,
    refused,
)
from esp.core.services.watch.pool import Pool
from esp.core.services.watch.span import Span
from esp.core.services.watch.starts import (
    FROM_THE_BEGINNING,
    Resuming,
    choose_starts,
    is_of_former_owner,
    watched,
)
from esp.core.services.watch.tap import Tap
from esp.core.shard_map import Segment
from esp.core.tokens import Vector, is_token
from esp.core.wire.request_encoder import Forward


class WatcherStream(Resuming, Protocol):
    """The stream of a client, for the client's watchers and the answers to its requests."""

    @property
    def watchers(self) -> Mapping[int, Watcher]:
        """The watchers that the client knows, by watch id."""

    @property
    def forward(self) -> Forward:
        """The head of the calls to shards for the client."""

    def pool(self, shard: str) -> Pool:
        """The sources of a shard that the client's metadata gives access to."""

    def advance(self) -> None:
        """Answers the requests whose turn it is."""

    def admit(self, watcher: Watcher, id_wanted: int) -> bool:
        """Gives the watcher its id: `id_wanted`, or for 0 the next free id. False when `id_wanted` is taken."""

    def forget(self, watcher: Watcher) -> None:
        """The watcher is gone; its id and its memory are free."""

    def on_span_events(self, watcher: Watcher) -> None:
        """The client was sent events of a watcher over several shards."""

    def on_span_progress(self, watcher: Watcher) -> None:
        """A shard has told the progress of its part of a watcher over several shards, unasked."""


class Watcher:
    """One watcher of a client; as a slot of its stream, the create request.

    esp announces the watcher to the client when all its shards watch, and the requests before the create have been
    answered. Events that come before that are held.

    Attributes:
        stream: the client's stream.
        id: the watch id; 0 until the watcher is announced.
        taps: the watcher's part in each shard.
        span: the watcher's position, if several shards feed it.
        size: bytes of memory that are accounted for the watcher.
        is_announced: the client has got `created`.
        is_dead: the history is compacted; only the id is left, as in etcd.
    """

    __slots__ = (
        "_crossing",
        "_held",
        "_id_wanted",
        "_is_asking",
        "_is_untranslatable",
        "_keys",
        "_missing",
        "_oldest",
        "_refusal",
        "_unasked",
        "_wants_progress",
        "id",
        "is_announced",
        "is_dead",
        "size",
        "span",
        "stream",
        "taps",
    )

    def __init__(self, stream: WatcherStream, request: Create) -> None:
        self.stream = stream
        self.size = 0
        self.id = 0
        self.is_announced = self.is_dead = False
        self.taps: Sequence[Tap] = ()
        self._oldest: OldestRevisions | None = None
        self._id_wanted = request.watch_id
        self._wants_progress = request.progress_notify
        self._is_untranslatable = False
        self._is_asking = False  # other processes, where the client was
        self._missing = 0  # taps whose shards have not replied to the create yet
        self._refusal: Response | None = None
        self._keys: KeyRange | None = None  # of a watcher over several shards
        self._unasked: Response | None = None
        self.span: Span | None = None
        self._held: Held | None = None
        self._crossing: Crossing | None = None

    def begin(self, request: Create) -> None:
        """Asks the shards that own the watched keys, each for its part; before that another proxy for its token."""
        stream = self.stream
        if request.start_revision and stream.routing.tokens.must_ask(request.start_revision):
            self._is_asking = True
            stream.background.start(self._learn(request), on_bug=stream.outbox.fail)
        else:
            self._begin(request)

    async def _learn(self, request: Create) -> None:
        """Begins when another proxy has told what the client's token means, or nobody knows."""
        stream = self.stream
        await stream.routing.tokens.learn(request.start_revision)
        self._is_asking = False
        if not stream.outbox.is_over:
            self._begin(request)
            stream.advance()
            stream.outbox.context.flush()

    def _begin(self, request: Create) -> None:
        stream = self.stream
        routing = stream.routing
        key = request.key or b"\0"  # as etcd reads an empty one
        range_end = request.range_end
        routing.apiservers.saw_watcher(request.key, range_end, is_cache=request.prev_kv and request.progress_notify)
        shard_map = routing.map
        key_range = KeyRange.of_request(key, range_end) if range_end else None
        sole = shard_map.owner(key) if key_range is None else shard_map.sole_owner(key_range)
        if sole is not None:
            # An empty range goes there too: etcd checks permissions before it refuses the range.
            pool = stream.pool(sole)
            tap = Tap(self, pool, sole, Spec.of(request, key, range_end), is_part=False)
            self.taps = (tap,)
            self._missing = 1
            start = request.start_revision
            if start:
                start = self._choose_start(request, tap)
            pool.start(tap, tap.spec, start)
            return
        assert key_range is not None, "one key has one owner"
        refusal = routing.undivided.refuse("a Watch", key_range)
        if refusal is not None:
            if request.start_revision > FROM_THE_BEGINNING:
                self._have_listed_again(request.start_revision)
            else:
                self.refuse(refusal.message)
            return
        self._keys = key_range
        start = request.start_revision
        if stream.positions.others is None or start <= FROM_THE_BEGINNING or is_token(start):
            self._begin_parts(request, key_range, None)
        else:
            self._is_asking = True
            stream.background.start(self._ask_others(request, key_range), on_bug=stream.outbox.fail)

    async def _ask_others(self, request: Create, key_range: KeyRange) -> None:
        """Begins when it is known where the client was, here or at another process."""
        stream = self.stream
        known = await stream.positions.resume_anywhere(watched(stream, request), request.start_revision)
        self._is_asking = False
        if stream.outbox.is_over:
            if known is not None:
                stream.positions.give_back(watched(stream, request))  # the client will come again
            return
        self._begin_parts(request, key_range, known)
        stream.advance()
        stream.outbox.context.flush()

    def _begin_parts(self, request: Create, key_range: KeyRange, known: Vector | None) -> None:
        stream = self.stream
        shard_map = stream.routing.map
        by_shard: dict[str, list[Segment]] = {}
        for segment in shard_map.split(key_range):
            by_shard.setdefault(segment.shard, []).append(segment)
        taps = []
        for shard, segments in by_shard.items():
            hull = KeyRange(segments[0].range.start, segments[-1].range.end)
            tap = Tap(self, stream.pool(shard), shard, Spec.of(request, *hull.to_request()), is_part=True)
            taps.append(tap)
            if len(segments) > 1:
                # One watcher of the shard over all its ranges: a revision of the shard stays one message.
                tap.owned = lambda key, shard=shard: shard_map.owner(key) == shard
        self.taps = taps
        self._missing = len(taps)
        starts = self._choose_starts(request, list(by_shard), key_range, known)
        self.span = Span(stream, stream.positions, watched(stream, request), self.taps)
        for tap, start in zip(self.taps, starts, strict=True):
            if start:
                tap.passed = max(1, start - 1)  # revision 1 has no events; 0 would mean no revision for the shard
            tap.start(start)

    def _choose_start(self, request: Create, tap: Tap) -> int:
        keys = self.keys
        assert keys is not None
        (start,) = self._choose_starts(request, [tap.shard], keys)
        if start > FROM_THE_BEGINNING and is_of_former_owner(self.stream, request.start_revision, keys, tap, start):
            self._is_untranslatable = True
            return 0
        return start

    def _choose_starts(
        self, request: Create, shards: list[str], keys: KeyRange, known: Vector | None = None
    ) -> list[int]:
        starts = choose_starts(self.stream, request, shards, keys, known)
        if starts is None:
            self._is_untranslatable = True
            return [0] * len(shards)
        return starts

    @property
    def sole_spec(self) -> Spec | None:
        """What the one shard of the watcher watches, by which a client that comes again is recognised; else None."""
        return self.taps[0].spec if len(self.taps) == 1 else None

    def refuse(self, reason: str) -> None:
        """Refuses the create without asking a shard."""
        identity = self.stream.routing.identity
        header = rpc_pb2.ResponseHeader(cluster_id=identity.cluster_id, member_id=identity.member_id)
        self._refusal = refused(header_field(header), reason)

    @property
    def keys(self) -> KeyRange | None:
        """The watched range; None before the watcher has begun, and for a refused create."""
        if self._keys is None and self.taps:
            spec = self.taps[0].spec
            return KeyRange.of_request(spec.key, spec.range_end)
        return self._keys

    @property
    def spans_shards(self) -> bool:
        """Whether several shards feed the watcher."""
        return len(self.taps) > 1

    def _have_listed_again(self, start: int) -> None:
        """Answers "compacted", without asking a shard, so that the client lists again.

        A client that has listed would try a refused watch again and again; kube-apiserver does, without a pause. Its
        list is then refused with a text. A client that does not list watches from revision 1, as the answer says, and
        is refused.
        """
        identity = self.stream.routing.identity
        header = rpc_pb2.ResponseHeader(cluster_id=identity.cluster_id, member_id=identity.member_id, revision=start)
        self._unasked = created(header_field(header))

    @property
    def is_divided(self) -> bool:
        """Whether esp would now refuse a create for the watcher's keys, because several shards own them."""
        keys = self.keys
        return keys is not None and self.stream.routing.undivided.refuse("a Watch", keys) is not None

    # The slot.

    @property
    def is_settled(self) -> bool:
        """Whether the create can be answered."""
        return not (self._missing or self._is_asking) or self._refusal is not None

    def answer(self) -> None:
        """Answers the create."""
        stream = self.stream
        held = () if self._held is None else self._held.release()
        if self._refusal is not None:
            # Up to about etcd 3.5.21 some refusals have the id that was asked for.
            has_none = self._refusal.message.watch_id == NO_ID
            stream.outbox.send(self._refusal.encode(NO_ID if has_none else self._id_wanted))
            stream.forget(self)
            return
        reply = self._created()
        if not stream.admit(self, self._id_wanted):
            self.leave()
            stream.forget(self)
            refusal = refused(reply.head, DUPLICATE_ID)
            stream.outbox.send(refusal.encode(NO_ID))
            return
        self.is_announced = True
        stream.outbox.send(encoded(reply.head, self.id, reply.tail))
        for each in () if self._is_untranslatable else held:  # the events before these are missing, so none is sent
            self._pass_on(each.tap, each.responses, is_own=each.upstream is not None)
        if self.span is not None:
            self.span.is_told = True
        if self._unasked is not None:
            self._end(compacted(reply, FROM_THE_BEGINNING))
        elif self._is_untranslatable:
            self._end(self.span.compacted() if self.span is not None else compacted(reply, max(reply.revision, 1)))
        elif self.span is None and not self.is_dead:
            self.taps[0].plain_id = self.id

    def _created(self) -> Response:
        if self._unasked is not None:
            return self._unasked
        replies = []
        for tap in self.taps:
            if tap.created is not None:
                replies.append(tap.created)
                tap.created = None
        return replies[0] if self.span is None else self.span.created(replies)

    # From the taps.

    def on_part_created(self) -> None:
        """The shard of a part watches."""
        self._missing -= 1
        if not self._missing:
            self.stream.advance()

    def on_part_refused(self, response: Response) -> None:
        """A shard has refused to watch its part: refuses the whole watcher."""
        if self.is_announced:
            # The shard had granted the watch before. The client finds out when it comes again.
            self.stream.outbox.stop()
        elif self._refusal is None:
            self._refusal = response
            self.leave()
            self.stream.advance()

    def on_events(self, tap: Tap, responses: Sequence[Response]) -> None:
        """Events of one shard, in the order in which it sent them: a message, or the fragments of one."""
        if self.is_announced:
            self._pass_on(tap, responses, is_own=tap.is_own)
        else:
            self._hold(tap, responses)

    def _hold(self, tap: Tap, responses: Sequence[Response]) -> None:
        if self._held is None:
            self._held = Held(self.stream.outbox)
        self._held.add(tap, responses)

    def on_progress(self, tap: Tap, response: Response) -> None:
        """All events of one shard up to a revision have come."""
        if not self.is_announced:
            return
        if self.span is not None:
            tap.passed = max(tap.passed, response.revision)
            if self._wants_progress:
                self.stream.on_span_progress(self)
        elif self._wants_progress:
            self.stream.outbox.send(response.encode(self.id))

    def on_part_canceled(self, tap: Tap, response: Response) -> None:
        """A shard has ended its part, because the history is compacted: ends the whole watcher."""
        if self.is_announced:
            self._on_canceled(tap, response)
        else:
            self._hold(tap, (response,))

    def _pass_on(self, tap: Tap, responses: Sequence[Response], *, is_own: bool) -> None:
        if self.is_dead:
            return
        if responses[0].message.canceled:
            self._on_canceled(tap, responses[0])
            return
        if self.span is not None:
            responses = self.span.events(tap, responses)
        self.stream.outbox.send_together([response.encode(self.id) for response in responses], is_own=is_own)
        if self.span is not None:
            self.stream.on_span_events(self)

    def _on_canceled(self, tap: Tap, response: Response) -> None:
        if self.span is None:
            self._end(response)
            return
        is_first = self._oldest is None
        if self._oldest is None:
            self._oldest = OldestRevisions(self.stream, self.span, self._on_compacted)
        self._oldest.on_lost(tap, response.message.compact_revision)
        if is_first:
            self._oldest.begin()

    def _on_compacted(self) -> None:
        if not self.is_dead and self.span is not None:
            self._end(self.span.compacted())

    def _end(self, response: Response) -> None:
        self.leave()
        self.is_dead = True
        self.stream.outbox.send(response.encode(self.id))

    # A move of all its keys to another shard.

    @property
    def is_crossing(self) -> bool:
        """Whether the watcher goes over to another shard."""
        return self._crossing is not None

    def cross(self, passage: Passage) -> bool:
        """Goes over to the shard to which all keys have come; False if it cannot."""
        if not self.is_announced or self.span is not None or self._crossing is not None or not passage.cut:
            return False
        self._crossing = Crossing(self, self.taps[0], passage)
        return True

    def on_crossing(self, responses: Sequence[Response]) -> None:
        """The PUTs of the keys at their new owner."""
        self._pass_on(self.taps[0], responses, is_own=False)

    def on_crossed(self, revision: int) -> None:
        """Goes on at the new owner, from a revision on."""
        tap, stream = self.taps[0], self.stream
        self._crossing = None
        shard = stream.routing.map.owner(tap.first_key)
        tap.crossed(stream.pool(shard), shard)
        tap.plain_id = self.id
        tap.start(revision)

    def on_not_crossed(self) -> None:
        """It cannot go over."""
        self._crossing = None
        if not self.is_dead:
            self.end_for_move()

    def end_for_move(self) -> bool:
        """Ends the watcher as compacted, because its keys have come to other shards; False if no client knows it."""
        if not self.is_announced:
            return False
        if self.span is not None:
            self._end(self.span.compacted())
        else:
            self._end(canceled(_without_revision(self.make_header()), max(1, self.taps[0].position)))
        return True

    # The end.

    def make_header(self) -> bytes:
        """A header for a reply without asking a shard: the newest header that came, or a token of the position."""
        if self._unasked is not None:
            return self._unasked.head
        return self.taps[0].head if self.span is None else self.span.make_header()

    def leave(self, *, may_return: bool = False) -> None:
        """Ends the watcher in the shards. With `may_return` the client was not told, and may come again for it."""
        if self._oldest is not None:
            self._oldest.cancel()
        if self._crossing is not None:
            self._crossing.cancel()
            self._crossing = None
        for tap in self.taps:
            tap.detach()
        if self.span is not None:
            self.span.end(may_return=may_return)

    def forget_parts(self) -> None:
        """Lets go of its parts after the end: they refer to it, and such a cycle would stay in memory for long."""
        self.taps = ()
        self.span = self._oldest = self._held = self._crossing = None


def _without_revision(head: bytes) -> bytes:
    """The field of a header without its revision, as etcd has it where history is compacted."""
    header = rpc_pb2.WatchResponse.FromString(head).header
    header.revision = 0
    return header_field(header)
