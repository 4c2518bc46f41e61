"""One client's Watch call: its requests in order, its watch ids, and what waits for it to read."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.watch.messages import NO_ID, Response, canceled
from esp.core.services.watch.pool import Pool
from esp.core.services.watch.upstream import Upstream
from esp.core.services.watch.watcher import Watcher
from esp.core.wire.frames import MAX_FRAME_SIZE
from esp.core.wire.message import MessageReader
from esp.core.wire.server_stream import ServerStream, Sink
from esp.core.wire.status import Code, RpcError, Status

if TYPE_CHECKING:
    from esp.core.services.watch.service import Watch

READ_AHEAD_BYTES: Final = 65_536
"""What may wait for a client while its own upstreams are still read."""
MAX_SLOTS: Final = 1000
"""Requests that wait for their reply before no more of them are taken."""


class Slot(Protocol):
    """A request that is answered when those before it were."""

    @property
    def is_settled(self) -> bool:
        """Whether it can be answered; asked when it is first in line."""

    def answer(self) -> None:
        """Answers it."""


class Cancel:
    """A request to cancel a watcher. It begins when it is first in line: a create before it may be of that watcher."""

    __slots__ = ("_begun", "_head", "_watch_id", "_watcher", "is_settled", "stream")

    def __init__(self, stream: WatchStream, watch_id: int) -> None:
        self.stream = stream
        self.is_settled = False
        self._begun = False
        self._watch_id = watch_id
        self._watcher: Watcher | None = None
        self._head = b""

    def begin(self) -> None:
        """Tells the shard; nothing is said about an id that is not there."""
        if self._begun:
            return
        self._begun = True
        watcher = self._watcher = self.stream.watchers.get(self._watch_id)
        if watcher is None:
            self.is_settled = True
        elif watcher.is_dead or watcher.spans_shards:
            self._on_reply(None)
        else:
            source = watcher.taps[0].source
            assert source is not None
            source.cancel(watcher.taps[0], self._on_reply)

    def _on_reply(self, response: Response | None) -> None:
        watcher = self._watcher
        if watcher is None or self.is_settled or self.stream.is_over:
            return
        if not watcher.is_dead:
            watcher.leave()
        self._head = response.head if response is not None else watcher.head
        self.is_settled = True
        self.stream.advance()

    def answer(self) -> None:
        """Says that it is canceled, as etcd says it."""
        if self._watcher is not None:
            del self.stream.watchers[self._watch_id]
            self.stream.send(canceled(self._head).encode(self._watch_id))


class Progress:
    """A request to tell how far the watchers are. It is answered when and if the shards say so."""

    __slots__ = ("stream",)
    is_settled = True

    def __init__(self, stream: WatchStream) -> None:
        self.stream = stream

    def answer(self) -> None:
        """Passes the question on."""
        watchers = self.stream.watchers.values()
        upstreams = {_upstream(watcher) for watcher in watchers if not watcher.is_dead}
        for upstream in upstreams:
            if upstream is not None:
                self.stream.asks_progress_of(upstream)


class WatchStream(Sink):
    """One client's Watch call.

    Attributes:
        down: the call.
        watchers: by watch id, those the client knows.
        is_over: the call has ended, or is about to.
        queue, waiting: what is to be sent, and how many bytes that is together with what is held by watchers.
    """

    __slots__ = (
        "_advancing",
        "_asked",
        "_awaits_flush",
        "_context",
        "_forward",
        "_kept",
        "_next_id",
        "_owed",
        "_own",
        "_progress",
        "_requests",
        "_service",
        "_slots",
        "down",
        "is_over",
        "queue",
        "routing",
        "waiting",
        "watchers",
    )

    def __init__(self, service: Watch, down: ServerStream, forward: bytes) -> None:
        """`forward` is the head of the calls to shards that serve this one."""
        self.down = down
        self.routing = service.routing
        self.watchers: dict[int, Watcher] = {}
        self.is_over = False
        self.queue: deque[bytes] = deque()
        self.waiting = 0
        self._service = service
        self._forward = forward
        self._context = down.connection.context
        self._requests = MessageReader(self._context.limits.max_message_bytes, down.head.encoding)
        self._slots: deque[Slot] = deque()
        self._next_id = 0
        self._own: dict[Pool, Upstream] = {}
        self._kept = 0
        self._owed = 0
        self._advancing = False
        self._awaits_flush = False
        self._asked: set[Upstream] = set()
        self._progress: dict[Upstream, Response] = {}
        down.sink = self

    # Where watchers get their events from.

    def pool(self, shard: int) -> Pool:
        """The sources of a shard that this client's metadata gives access to."""
        return self._service.pool(shard, self._forward)

    def upstream(self, pool: Pool) -> Upstream:
        """This stream's own upstream to the shard of `pool`."""
        upstream = self._own.get(pool)
        if upstream is None:
            upstream = self._own[pool] = Upstream(pool.shard, pool.forward, self)
        return upstream

    # From the client.

    def request_data(self, payload: bytes, end: bool) -> None:
        """A piece of the requests. That the client has no more of them does not end the watches."""
        try:
            for body in self._requests.feed(payload):
                self._on_request(body)
        except RpcError as error:
            if error.status.code == Code.RESOURCE_EXHAUSTED:
                self._context.reached("max_message_bytes")
            self.stop(error.status)
            return
        except DecodeError as error:
            self.stop(Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}"))
            return
        self._owed += len(payload)
        self._give_back()

    def _give_back(self) -> None:
        if len(self._slots) < MAX_SLOTS and not self.is_over:
            owed, self._owed = self._owed, 0
            self.down.consumed(owed)

    def _on_request(self, body: bytes) -> None:
        if self.is_over:
            return
        request = rpc_pb2.WatchRequest.FromString(body)
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            watcher = Watcher(self, request.create_request)
            self._slots.append(watcher)
            watcher.begin(request.create_request)
        elif kind == "cancel_request":
            self._slots.append(Cancel(self, request.cancel_request.watch_id))
        elif kind == "progress_request":
            self._slots.append(Progress(self))
        self.advance()

    def advance(self) -> None:
        """Answers the requests whose turn it is."""
        if self._advancing:
            return  # the loop below gets to it
        self._advancing = True
        slots = self._slots
        while slots and not self.is_over:
            slot = slots[0]
            if isinstance(slot, Cancel):
                slot.begin()
            if not slot.is_settled:
                break
            slots.popleft()
            slot.answer()
        self._advancing = False
        if self._owed:
            self._give_back()

    def admit(self, watcher: Watcher, id_wanted: int) -> bool:
        """Gives the watcher its id: the one it wants, or for 0 the next that is free. False when it is taken."""
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

    # To the client.

    @property
    def is_full(self) -> bool:
        """Whether it has as much to send as it should."""
        return self.waiting > READ_AHEAD_BYTES

    def send_alone(self, message: bytes) -> None:
        """As `send`, for a message that is likely to be the only one of this turn: it goes at once if nothing waits."""
        down = self.down
        if (
            len(message) > MAX_FRAME_SIZE  # it would have to wait in part
            or self.waiting
            or self._awaits_flush
            or down.pending is not None
            or not down.responded
            or not self._is_affordable(len(message))
        ):
            self.send(message)
        else:
            down.send_data(message, False)

    def send(self, message: bytes) -> None:
        """Sends a message, with its prefix, as soon as the client reads."""
        if self.is_over:
            return
        if self.waiting > self._context.limits.max_watch_buffer_bytes and not self._has_room():
            return
        if not self._awaits_flush:
            self._awaits_flush = True
            self._context.unflushed.append(self)
        self.queue.append(message)
        self.waiting += len(message)

    def hold(self, size: int) -> None:
        """A watcher keeps so many bytes more, or fewer, until it is announced."""
        self.waiting += size
        if size > 0 and self.waiting > self._context.limits.max_watch_buffer_bytes:
            self._has_room()

    def _has_room(self) -> bool:
        """Whether more may wait; a stream whose client is too slow ends, and resumes with another."""
        if self.is_over:
            return False
        self.flush()
        if self.waiting > self._context.limits.max_watch_buffer_bytes:
            self._context.reached("max_watch_buffer_bytes")
            self.stop()
        return not self.is_over

    def flush(self) -> None:
        """Sends what the client's windows take: called when a connection was read, and when the client has read.

        Only what the wire cannot send at once stays with it; the rest stays here, where it can still be dropped.
        """
        self._awaits_flush = False
        if self.is_over:
            return
        down, queue = self.down, self.queue
        if self._kept:
            down.connection.release(self._kept)
            self._kept = 0
        if queue and not down.responded:
            down.start()
        while queue and down.pending is None and self._is_affordable(len(queue[0])):
            data = self._next_piece()
            self.waiting -= len(data)
            down.send_data(data, False)
        if self.waiting and self._is_affordable(self.waiting):
            self._kept = self.waiting
            down.connection.hold(self.waiting)
        if self._own and not self.is_full:
            for upstream in self._own.values():
                upstream.resume_reading()

    def on_bug(self) -> None:
        """An exception came out of `flush`: the client's connection ends, and nobody else's."""
        self.down.connection.on_bug()

    def _next_piece(self) -> bytes:
        """Messages for one DATA frame; a message that is longer stays in one piece."""
        queue = self.queue
        first = queue.popleft()
        size = len(first)
        if not queue or size + len(queue[0]) > MAX_FRAME_SIZE:
            return first
        pieces = [first]
        while queue and size + len(queue[0]) <= MAX_FRAME_SIZE:
            size += len(queue[0])
            pieces.append(queue.popleft())
        return b"".join(pieces)

    def _is_affordable(self, size: int) -> bool:
        """Whether there is memory for that much, should it have to wait; if not, the stream ends."""
        if self.is_over:
            return False
        connection = self.down.connection
        buffers = self._context.buffers
        if connection.held + size <= connection.hold_limit and buffers.used + size <= buffers.limit:
            return True
        connection.hold(size)  # says no, and tells
        self._end(errors.SERVER_STOPPED)
        return False

    def drained(self, size: int) -> None:
        """Bytes that waited have left."""
        if self.down.pending is None:
            self.flush()

    def on_upstream_progress(self, upstream: Upstream, response: Response) -> None:
        """The shard has said how far the watchers are that `upstream` feeds.

        Clients take what is told under no id for all their watchers, so that is told only when it is true for all: they
        are in one shard, and all its upstreams have answered. Otherwise each watcher is told its own shard's revision.
        """
        live = [watcher for watcher in self.watchers.values() if not watcher.is_dead]
        if len({watcher.taps[0].pool for watcher in live}) == 1 and not any(w.spans_shards for w in live):
            self._progress[upstream] = response
            told = [self._progress.get(feeding) for watcher in live if (feeding := _upstream(watcher))]
            heard = [each for each in told if each is not None]
            if len(heard) < len(live):
                return
            self._progress.clear()
            response = min(heard, key=lambda each: each.revision)
            if all(_may_hear(watcher, response) for watcher in live):
                self.send(response.encode(NO_ID))
                return
        for watcher in live:
            if _upstream(watcher) is upstream and _may_hear(watcher, response):
                self.send(response.encode(watcher.id))

    def asks_progress_of(self, upstream: Upstream) -> None:
        """Asks, and remembers whom."""
        self._asked.add(upstream)
        upstream.ask_progress(self)

    # The end.

    def stop(self, status: Status = errors.SERVER_STOPPED) -> None:
        """Ends the call; by default with the status after which clients go on with another one."""
        if not self.is_over:
            if self.waiting <= self._context.limits.max_watch_buffer_bytes:
                self.flush()
            self._end(status)

    def _end(self, status: Status) -> None:
        if not self.is_over:
            self._leave()
            self.down.finish(status)

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone, or the proxy wants to end."""
        if not self.is_over:
            if not self.down.is_over:
                self.flush()
            self._leave()

    def _leave(self) -> None:
        self.is_over = True
        self.down.sink = None
        for upstream in self._asked:
            upstream.forget_reader(self)
        for upstream in self._own.values():
            upstream.close()
        for watcher in (*self.watchers.values(), *self._slots):
            if isinstance(watcher, Watcher):
                watcher.leave()
        self.watchers.clear()
        self._slots.clear()
        self.queue.clear()
        self.waiting = 0
        self.down.connection.release(self._kept)
        self._kept = 0


def _upstream(watcher: Watcher) -> Upstream | None:
    """Where a watcher in one shard is fed from."""
    source = watcher.taps[0].source
    return None if watcher.spans_shards or source is None else source.upstream


def _may_hear(watcher: Watcher, progress: Response) -> bool:
    """Whether this is not behind what the watcher has seen: clients resume from what they hear last."""
    return watcher.taps[0].position <= progress.revision + 1
