"""One client's Watch call: its requests in order, its watch ids, and what waits for it to read."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.background import Background
from esp.core.pb import rpc_pb2
from esp.core.services.metadata import load_bearing
from esp.core.services.watch.pool import Pool
from esp.core.services.watch.progress import ProgressAnswers
from esp.core.services.watch.slots import Cancel, Progress, Slot
from esp.core.services.watch.span_progress import SpanProgress
from esp.core.services.watch.upstream import READ_AHEAD_BYTES, Upstream
from esp.core.services.watch.watcher import Watcher
from esp.core.shard import Shard
from esp.core.wire.budget import Account
from esp.core.wire.frames import MAX_FRAME_SIZE, ErrorCode
from esp.core.wire.hpack import Fields
from esp.core.wire.message import MessageReader
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import ServerStream, Sink
from esp.core.wire.shares import address_of
from esp.core.wire.status import Code, RpcError, Status

if TYPE_CHECKING:
    from esp.core.services.watch.service import Watch

log = logging.getLogger("esp.watch")

MAX_SLOTS: Final = 1000
"""Requests that wait for their reply before no more of them are taken."""
SLOT_BYTES: Final = 128
"""Memory that a request takes, about, while it waits in line."""
WATCHER_BYTES: Final = 2048
"""Memory that a watcher takes, about, besides its keys."""


class WatchStream(Sink):
    """One client's Watch call.

    Attributes:
        down: the call.
        watchers: by watch id, those the client knows.
        is_over: the call has ended, or is about to.
        forward: the head of the calls to shards that serve this one.
        positions: where watchers over several shards were.
        queue, queued: what is to be sent, and how many bytes that is.
        waiting: the same together with what is held by watchers and stands in line.
    """

    __slots__ = (
        "_address",
        "_advancing",
        "_awaits_flush",
        "_borne",
        "_context",
        "_held_own",
        "_kept",
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
        "is_over",
        "positions",
        "queue",
        "queued",
        "routing",
        "waiting",
        "watchers",
    )

    def __init__(self, service: Watch, down: ServerStream, forward: Forward) -> None:
        """`forward` is the head of the calls to shards that serve this one."""
        self.down = down
        self._address = address_of(down.peer)
        self.routing = service.routing
        self.watchers: dict[int, Watcher] = {}
        self.is_over = False
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.waiting = 0
        self._borne = 0  # of `waiting`, what does not count: it came as fast as was asked for
        self._held_own = 0  # the same of what watchers hold
        self._service = service
        self.forward = forward
        self.positions = service.positions
        self._context = down.connection.context
        self._requests = MessageReader(self._context.limits.max_message_bytes, down.head.encoding)
        self._slots: deque[Slot] = deque()
        self._next_id = 0
        self._own: dict[Shard, Upstream] = {}
        self._kept = 0
        self._owed = 0
        self._partial = 0
        self._advancing = False
        self._awaits_flush = False
        self._watcher_bytes = 0
        self._progress: ProgressAnswers | None = None
        self._span_progress: SpanProgress | None = None
        down.sink = self

    # Both of these refer to this stream. They are made when they are needed, and let go of at the end: what refers to
    # itself stays in memory for long.

    @property
    def progress(self) -> ProgressAnswers:
        """What the shards say when the client asks how far they are."""
        if self._progress is None:
            self._progress = ProgressAnswers(self)
        return self._progress

    @property
    def span_progress(self) -> SpanProgress:
        """The same for watchers that several shards feed."""
        if self._span_progress is None:
            self._span_progress = SpanProgress(self)
        return self._span_progress

    # Where watchers get their events from.

    def pool(self, shard: int) -> Pool:
        """The sources of a shard that this client's metadata gives access to."""
        return self._service.pool(shard, self.forward)

    def upstream(self, pool: Pool) -> Upstream:
        """This stream's own upstream to the shard of `pool`."""
        upstream = self._own.get(pool.shard)
        if upstream is None:
            upstream = self._own[pool.shard] = Upstream(pool.shard, pool.forward, self)
        return upstream

    @property
    def account(self) -> Account:
        """The memory of the connection that it is on."""
        return self.down.connection.own_account()

    @property
    def metadata(self) -> Fields:
        """What of the client's goes along with what esp asks for it."""
        return load_bearing(self.down.head)

    @property
    def background(self) -> Background:
        """Owns the tasks and timers of this stream."""
        return self._service.background

    # From the client.

    def request_data(self, payload: bytes, end: bool) -> None:
        """A piece of the requests. That the client has no more of them does not end the watches."""
        self.down.connection.do(self._take_requests(payload))

    def half_message(self) -> int | None:
        """Which request has come in part only."""
        return self._requests.count if self._requests.held else None

    def _take_requests(self, payload: bytes) -> Iterator[None]:
        """Takes the requests one by one: thousands of small ones fit one frame."""
        try:
            for body in self._requests.messages(payload):
                self._on_request(body)
                yield
        except RpcError as error:
            if error.status.code == Code.RESOURCE_EXHAUSTED:
                self._context.reached("max_message_bytes")
            self.stop(error.status)
            return
        except DecodeError as error:
            self.stop(Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}"))
            return
        partial, self._partial = self._partial, self._requests.held
        if partial != self._partial:
            self.hold(self._partial - partial)
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
            self._line_up(watcher)
            if self.is_over:
                return
            if self._takes(watcher, WATCHER_BYTES + len(body)):
                watcher.begin(request.create_request)
            else:
                watcher.refuse(errors.TOO_MANY_REQUESTS.message)
        elif kind == "cancel_request":
            self._line_up(Cancel(self, request.cancel_request.watch_id))
        elif kind == "progress_request":
            self._line_up(Progress(self))
        self.advance()

    def _line_up(self, slot: Slot) -> None:
        self._slots.append(slot)
        self.hold(SLOT_BYTES)

    def advance(self) -> None:
        """Answers the requests whose turn it is."""
        if self._advancing:
            return  # the loop below gets to it
        self._advancing = True
        slots = self._slots
        try:
            while slots and not self.is_over:
                slot = slots[0]
                if isinstance(slot, Cancel):
                    slot.begin()
                if not slot.is_settled:
                    break
                slots.popleft()
                self.hold(-SLOT_BYTES)
                slot.answer()
        finally:
            self._advancing = False
        if self._owed:
            self._give_back()

    def _takes(self, watcher: Watcher, size: int) -> bool:
        """Whether there is memory for one more watcher. One client's stream gets a quarter of all that there is."""
        shares = self._service.watchers
        if self._watcher_bytes + size > shares.limit // 4 or not shares.take(self._address, size):
            self._context.reached("max_watcher_bytes")
            return False
        watcher.size = size
        self._watcher_bytes += size
        return True

    def forget(self, watcher: Watcher) -> None:
        """The watcher is gone, and its id with it."""
        if self._span_progress is not None:
            self._span_progress.forget(watcher)
        if self.watchers.get(watcher.id) is watcher:
            del self.watchers[watcher.id]
        self._service.watchers.give(self._address, watcher.size)
        self._watcher_bytes -= watcher.size
        watcher.size = 0

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
        return self.queued > READ_AHEAD_BYTES

    def send_alone(self, message: bytes, *, is_own: bool) -> None:
        """As `send_together`, for what is likely to be all of this turn: it goes at once if nothing waits."""
        down = self.down
        if (
            len(message) > MAX_FRAME_SIZE  # it would have to wait in part
            or self.waiting
            or self._awaits_flush
            or down.pending is not None
            or not down.responded
            or not self._is_affordable(len(message))
        ):
            self.send_together((message,), is_own=is_own)
        else:
            down.send_data(message, False)

    def send_together(self, messages: Sequence[bytes], *, is_own: bool) -> None:
        """Sends messages with nothing in between: all, or none where the stream ends.

        Args:
            messages: The messages, each with its prefix.
            is_own: They came in this client's own call to a shard, which is not read on before they have left: however
                large, it is not the client's slowness that makes them wait.
        """
        limit = self._context.limits.max_watch_buffer_bytes
        if self.is_over or (not is_own and self.waiting > limit and not self._has_room()):
            return
        if not self._awaits_flush:
            self._wants_flush()
        self.queue.extend(messages)
        size = sum(map(len, messages))
        self.queued += size
        self.waiting += size
        if is_own:
            self._borne = self.queued  # with what stands before it, which is little

    def send(self, message: bytes) -> None:
        """Sends a message, with its prefix, as soon as the client reads."""
        if self.is_over:
            return
        if self.waiting > self._context.limits.max_watch_buffer_bytes and not self._has_room():
            return
        if not self._awaits_flush:
            self._wants_flush()
        self.queue.append(message)
        self.queued += len(message)
        self.waiting += len(message)

    def _wants_flush(self) -> None:
        if not self._awaits_flush:
            self._awaits_flush = True
            self._context.unflushed.append(self)

    def hold(self, size: int, *, is_own: bool = False) -> None:
        """So many bytes more wait here, or fewer, that are not on their way to the client yet; `is_own` as above."""
        self.waiting += size
        if is_own:
            self._held_own += size
        elif size > 0:
            if self.waiting > self._context.limits.max_watch_buffer_bytes:
                self._has_room()
            self._wants_flush()

    def _has_room(self) -> bool:
        """Whether more may wait; a stream whose client is too slow ends, and resumes with another."""
        if self.is_over:
            return False
        self.flush()
        waiting = self.waiting - self._borne - self._held_own
        if not self.is_over and waiting > self._context.limits.max_watch_buffer_bytes:
            self._context.reached("max_watch_buffer_bytes")
            log.info("%s: reads a watch too slowly: %d bytes wait, and its stream ends", self.down.peer, waiting)
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
            down.release(self._kept)
            self._kept = 0
        if queue and not down.responded:
            down.start()
        while queue and down.pending is None and self._is_affordable(len(queue[0])):
            data = self._next_piece()
            self.queued -= len(data)
            self.waiting -= len(data)
            self._borne = max(0, self._borne - len(data))
            down.send_data(data, False)
        if self.waiting and self._is_affordable(self.waiting):
            self._kept = self.waiting
            down.hold(self.waiting)
        if self._own and not self.is_full:
            for upstream in list(self._own.values()):
                upstream.resume_reading()

    def on_bug(self) -> None:
        """An exception came out of `flush`, or out of what a shard said: this call ends, and nobody else's."""
        log.exception("%s: a bug in esp; a watch stream ends", self.down.peer)
        self.fail()

    def fail(self) -> None:
        """Ends this call after a bug that was told already."""
        try:
            self._end(errors.SERVER_STOPPED)
        except Exception:
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
        if self.down.may_hold(size):
            return True
        self.down.hold(size)  # says no, and tells
        self._end(errors.SERVER_STOPPED)
        return False

    def cut(self, stream: ServerStream) -> None:
        """Others need the memory that waits for this client: it resumes with another stream."""
        if not self.is_over:
            self._leave()
            if stream.pending is not None and stream.pending.sent:
                stream.reset(ErrorCode.REFUSED_STREAM)  # in the middle of a message; clients report Unavailable
            else:
                stream.drop()
                stream.finish(errors.SERVER_STOPPED)

    def drained(self, size: int) -> None:
        """Bytes that waited have left."""
        if self.down.pending is None:
            self.flush()

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
        self._service.streams.discard(self)
        self.down.sink = None
        if self._progress is not None:
            self._progress.forget()
        if self._span_progress is not None:
            self._span_progress.forget_all()
        for upstream in self._own.values():
            upstream.close()
        for watcher in (*self.watchers.values(), *self._slots):
            if isinstance(watcher, Watcher):
                watcher.leave(may_return=True)
                self.forget(watcher)
        self.watchers.clear()
        self._slots.clear()
        self.queue.clear()
        self.queued = self.waiting = self._borne = self._held_own = 0
        self.down.release(self._kept)
        self._kept = 0
        self._progress = self._span_progress = None
