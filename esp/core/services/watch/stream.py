"""One client's Watch call: its requests in order, and its watch ids."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.background import Background
from esp.core.own_keys import clipped
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.metadata import load_bearing
from esp.core.services.watch.create import Create, create_in
from esp.core.services.watch.moved import Moved
from esp.core.services.watch.outbox import Outbox
from esp.core.services.watch.pool import Pool
from esp.core.services.watch.positions import Positions
from esp.core.services.watch.progress import ProgressAnswers
from esp.core.services.watch.slots import Cancel, Progress, Slot
from esp.core.services.watch.span_progress import SpanProgress
from esp.core.services.watch.upstream import Upstream
from esp.core.services.watch.watcher import Watcher
from esp.core.shard import Shard
from esp.core.wire.hpack import Fields
from esp.core.wire.message import MessageReader
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import ServerCall, Sink
from esp.core.wire.shares import Shares, address_of
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wire.traces import shares
from esp.core.wire.turns import SLICE

log = logging.getLogger("esp.watch")

MAX_SLOTS: Final = 1000
"""The most requests that wait for their reply; then esp takes no more."""
SLOT_BYTES: Final = 128
"""About the memory that a waiting request takes."""
WATCHER_BYTES: Final = 2048
"""About the memory that a watcher takes besides its keys."""


_parse: Final = rpc_pb2.WatchRequest.FromString


class Service(Protocol):
    """The Watch service, as its streams see it."""

    @property
    def routing(self) -> Routing:
        """The shards."""

    @property
    def hides_own_keys(self) -> bool:
        """Whether clients watch no keys of esp's own."""

    @property
    def background(self) -> Background:
        """Owner of the tasks and timers of clients' streams."""

    @property
    def positions(self) -> Positions:
        """Positions of watchers over several shards, for clients that resume."""

    @property
    def watchers(self) -> Shares:
        """Memory for the watchers of all clients."""

    @property
    def streams(self) -> set[WatchStream]:
        """The calls that are open."""

    @property
    def moved(self) -> Moved:
        """Watchers that have ended because their keys have another owner."""

    def pool(self, shard: str, forward: Forward) -> Pool:
        """The sources of a shard for calls with the head `forward`."""


class WatchStream(Sink):
    """One client's Watch call.

    Attributes:
        down: the call.
        outbox: the way back to the client, and the end of the call.
        watchers: the watchers that the client knows, by watch id.
        forward: the head of the calls to shards for this call.
        positions: positions of watchers over several shards, for clients that resume.
        moved: watchers that have ended because their keys have another owner.
    """

    __slots__ = (
        "_address",
        "_advancing",
        "_context",
        "_leaving",
        "_next_id",
        "_owed",
        "_own",
        "_partial",
        "_progress",
        "_requests",
        "_service",
        "_slots",
        "_span_progress",
        "_watcher_bytes",
        "down",
        "forward",
        "moved",
        "outbox",
        "positions",
        "watchers",
    )

    def __init__(self, service: Service, down: ServerCall, forward: Forward) -> None:
        """`forward` is the head of the calls to shards that serve this one."""
        self.down = down
        self._address = address_of(down.peer)
        self.watchers: dict[int, Watcher] = {}
        self.outbox = Outbox(down, self)
        self._service = service
        self.forward = forward
        self.positions = service.positions
        self.moved = service.moved
        self._context = down.connection.context
        self._requests = MessageReader(self._context.limits.max_message_bytes, down.head.encoding)
        self._slots: deque[Slot] = deque()
        self._leaving: list[Watcher] = []
        self._next_id = 0
        self._own: dict[Shard, Upstream] = {}
        self._owed = 0
        self._partial = 0
        self._advancing = False
        self._watcher_bytes = 0
        self._progress: ProgressAnswers | None = None
        self._span_progress: SpanProgress | None = None
        down.sink = self

    # Both refer to this stream. They are made when they are needed, and dropped at the end: a cycle of references would
    # stay in memory for long.

    @property
    def progress(self) -> ProgressAnswers:
        """The shards' answers to the client's progress requests."""
        if self._progress is None:
            self._progress = ProgressAnswers(self, self.span_progress)
        return self._progress

    @property
    def span_progress(self) -> SpanProgress:
        """The progress of the client's watchers over several shards."""
        if self._span_progress is None:
            self._span_progress = SpanProgress(self)
        return self._span_progress

    # Where watchers get their events from.

    def pool(self, shard: str) -> Pool:
        """The sources of a shard that this client's metadata gives access to."""
        if self.down.trace:
            shares(self.down.trace, shard, monotonic())
        return self._service.pool(shard, self.forward)

    def upstream(self, pool: Pool) -> Upstream:
        """This stream's own upstream to the shard of `pool`."""
        upstream = self._own.get(pool.shard)
        if upstream is None:
            upstream = self._own[pool.shard] = Upstream(pool.shard, pool.forward, self.outbox)
            self.outbox.wants_room = True
        return upstream

    def use(self, others: Mapping[Shard, Shard]) -> None:
        """Goes on by other clients of the same shards."""
        for before in [shard for shard in self._own if shard in others]:
            upstream = self._own[others[before]] = self._own.pop(before)
            upstream.use(others[before])

    @property
    def routing(self) -> Routing:
        """The shards of the layout in force."""
        return self._service.routing

    def all_watchers(self) -> Iterator[Watcher]:
        """All watchers of the client: announced ones, and those of creates that wait."""
        yield from self.watchers.values()
        for slot in self._slots:
            if isinstance(slot, Watcher):
                yield slot

    @property
    def metadata(self) -> Fields:
        """The client's metadata that goes along with esp's own questions to shards."""
        return load_bearing(self.down.head)

    @property
    def background(self) -> Background:
        """Owner of the tasks and timers of this stream."""
        return self._service.background

    # From the client.

    def request_data(self, payload: bytes, end: bool) -> None:
        """A piece of the requests. The end of the requests does not end the watches."""
        message = self._requests.sole(payload) if payload else None
        if message is None:
            self.down.connection.do(self._take_requests(payload))
        elif self._take_request(message):
            self._owed += len(payload)
            self._give_back()

    def half_message(self) -> int | None:
        """The number of the request that has come only in part; None if there is none."""
        return self._requests.count if self._requests.held else None

    def _take_requests(self, payload: bytes) -> Iterator[None]:
        """Takes the requests one by one: thousands of small ones fit one frame."""
        try:
            for body in self._requests.steps(payload):
                if body is not None and not self._take_request(body):
                    return
                yield
        except RpcError as error:
            if error.status.code == Code.RESOURCE_EXHAUSTED:
                self._context.reached("max_message_bytes")
            self.outbox.stop(error.status)
            return
        partial, self._partial = self._partial, self._requests.held
        if partial != self._partial:
            self.outbox.hold(self._partial - partial)
        self._owed += len(payload)
        self._give_back()

    def _give_back(self) -> None:
        if len(self._slots) < MAX_SLOTS and not self.outbox.is_over:
            owed, self._owed = self._owed, 0
            self.down.consumed(owed)

    def _take_request(self, body: bytes) -> bool:
        """Takes one request; False if that is none, and the call ends."""
        self._context.counters.messages_received[self.down.head.path] += 1
        if self.outbox.is_over:
            return True
        create = create_in(body)
        if create is not None:
            self._begin(create, len(body))
        else:
            try:
                request = _parse(body)
            except DecodeError as error:
                self.outbox.stop(Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}"))
                return False
            kind = request.WhichOneof("request_union")
            if kind == "create_request":
                self._begin(Create.of(request.create_request), len(body))
            elif kind == "cancel_request":
                self._line_up(Cancel(self, request.cancel_request.watch_id))
            elif kind == "progress_request":
                self._line_up(Progress(self.progress))
        if len(self._slots) == 1:  # else the first one waits, and so do all behind it
            self.advance()
        return True

    def _begin(self, create: Create, size: int) -> None:
        """Begins a watcher, for a request of `size` bytes."""
        watcher = Watcher(self, create)
        self._line_up(watcher)
        if self.outbox.is_over:
            return
        if self._service.hides_own_keys and not _clip(create):
            watcher.refuse(errors.OWN_KEYS.message)
        elif self._take_memory(watcher, WATCHER_BYTES + size):
            watcher.begin(create)
        else:
            watcher.refuse(errors.TOO_MANY_REQUESTS.message)

    def _line_up(self, slot: Slot) -> None:
        self._slots.append(slot)
        self.outbox.hold(SLOT_BYTES)

    def advance(self) -> None:
        """Answers the requests whose turn it is."""
        if self._advancing:
            return  # the loop at work gets to the slot
        self._advancing = True
        slots = self._slots
        try:
            while slots and not self.outbox.is_over:
                slot = slots[0]
                if isinstance(slot, Cancel):
                    slot.begin()
                if not slot.is_settled:
                    break
                slots.popleft()
                self.outbox.hold(-SLOT_BYTES)
                slot.answer()
        finally:
            self._advancing = False
        if self._owed:
            self._give_back()

    def _take_memory(self, watcher: Watcher, size: int) -> bool:
        """Accounts for one more watcher; False without memory for it. One client's stream gets at most a quarter."""
        shares = self._service.watchers
        if self._watcher_bytes + size > shares.limit // 4 or not shares.take(self._address, size):
            self._context.reached("max_watcher_bytes")
            return False
        watcher.size = size
        self._watcher_bytes += size
        return True

    def forget(self, watcher: Watcher) -> None:
        """The watcher is gone; its id and its memory are free."""
        if self._span_progress is not None:
            self._span_progress.forget(watcher)
        if self.watchers.get(watcher.id) is watcher:
            del self.watchers[watcher.id]
        self._service.watchers.give(self._address, watcher.size)
        self._watcher_bytes -= watcher.size
        watcher.size = 0
        watcher.forget_parts()

    def admit(self, watcher: Watcher, id_wanted: int) -> bool:
        """Gives the watcher its id: `id_wanted`, or for 0 the next free id. False when `id_wanted` is taken."""
        if id_wanted:
            if id_wanted in self.watchers:
                return False
            watcher.id = id_wanted
        else:
            while self._next_id in self.watchers:
                self._next_id += 1
            watcher.id = self._next_id
            self._next_id += 1
        self.watchers[watcher.id] = watcher
        return True

    # From watchers.

    def on_span_events(self, watcher: Watcher) -> None:
        """The client was sent events of a watcher over several shards."""
        if self._span_progress is not None:
            self._span_progress.on_events(watcher)

    def on_span_progress(self, watcher: Watcher) -> None:
        """A shard has told the progress of its part of a watcher over several shards, unasked."""
        self.span_progress.on_own_progress(watcher)

    # From the outbox and the wire.

    def on_room(self) -> None:
        """Little waits for the client: its own upstreams are read on."""
        for upstream in list(self._own.values()):
            upstream.resume_reading()

    def cut(self, stream: ServerCall) -> None:
        """Others need the memory that waits for this client."""
        self.outbox.cut()

    def drained(self, size: int) -> None:
        """Bytes that waited have left."""
        self.outbox.drained()

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone, or the proxy wants to end."""
        self.outbox.cancelled()

    # The end.

    def on_over(self) -> None:
        """The call is ending: its watchers end, and so do its upstreams and its questions to shards."""
        self._service.streams.discard(self)
        if self._progress is not None:
            self._progress.forget()
        if self._span_progress is not None:
            self._span_progress.forget_all()
        for upstream in self._own.values():
            upstream.close()
        self._leaving = list(self.all_watchers())
        self._slots.clear()
        self.go_on()

    def go_on(self) -> None:
        """Ends some more watchers of a call that is over; those that do not fit a slice follow in the next turns."""
        leaving, clock = self._leaving, self._context.turns.clock
        stop = clock() + SLICE
        while leaving:
            watcher = leaving.pop()
            watcher.leave(may_return=True)
            self.forget(watcher)
            if leaving and clock() >= stop:
                self._context.put_off(self)
                return
        self._progress = self._span_progress = None

    def on_bug(self) -> None:
        """An exception came out of `go_on`: goes on with the other watchers."""
        log.exception("%s: a bug in esp; a watcher may live on at a shard", self.down.peer)
        self._context.put_off(self)


def _clip(create: Create) -> bool:
    """Leaves out the keys of esp's own; False if only these would be watched. An empty key is the very first one."""
    try:
        create.key = clipped(create.key or b"\0", create.range_end)
    except RpcError:
        return False
    return True
