"""One Watch call to a shard, opened again whenever it breaks.

    idle --create--> opening --go--> open --break--> opening, or waiting for a pause to end --> opening
    any of them --close--> closed

Whatever was watched is watched again when the call is open again, from the revision that is next for each source; so a
break, a restart or another endpoint is not seen from here on down. Only what a client has to know ends its stream: that
a client which asked for it (`hasleader`) has no leader, and refusals that would be the same at the next attempt.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.services.watch.messages import NO_ID, PROGRESS_REQUEST, Response, cancel_request
from esp.core.services.watch.peek import one_event
from esp.core.services.watch.source import Source
from esp.core.shard import FIRST_PAUSE, LONGEST_PAUSE, Shard
from esp.core.wire.client import ClientConnection, ClientStream
from esp.core.wire.message import MessageReader
from esp.core.wire.response import ResponseHead
from esp.core.wire.splice import NO_TRAILERS
from esp.core.wire.status import Code, RpcError, Status

log = logging.getLogger("esp.watch")

MAX_RESPONSE_BYTES: Final = 2**31 - 1
TRANSIENT: Final = frozenset((Code.OK, Code.UNAVAILABLE, Code.CANCELLED, Code.INTERNAL, Code.UNKNOWN))
"""How a Watch call ends that is worth another one: the member stops, the connection is gone, a message was cut."""
LEFT: Final = Status(Code.UNAVAILABLE, "esp has left it")
MOST_PROGRESS_OWED: Final = 3


def call_later(seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    """Calls `callback` after so many seconds, unless cancelled."""
    return asyncio.get_running_loop().call_later(seconds, callback)


class Reader(Protocol):
    """The one client stream that an upstream works for."""

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as it should: nothing more is read until it says `resume_reading`."""

    def on_upstream_progress(self, upstream: Upstream, response: Response) -> None:
        """The shard's answer to a progress request."""


class _Question:
    """A create that is not meant to be granted: `Source.ask`."""

    __slots__ = ("source",)

    def __init__(self, source: Source) -> None:
        self.source = source

    def on_created(self, response: Response) -> None:
        if response.message.canceled:
            self.source.on_answer(response)
        else:
            # Never seen. The shard would watch the same twice under one id: begin anew.
            self.source.upstream.begin_anew()


class Upstream:
    """One Watch call to a shard.

    Attributes:
        shard: whose.
        reader: the client stream it works for, and that holds it back; None when it is shared.
        sources: what is watched, by the watch id upstream.
        head: the last header that came, b"" before the first.
    """

    def __init__(self, shard: Shard, forward: bytes, reader: Reader | None) -> None:
        """`forward` is the head of the call from `:path` on."""
        self.shard = shard
        self.reader = reader
        self.sources: dict[int, Source] = {}
        self.head = b""
        self._forward = forward
        self._call: _WatchCall | None = None
        self._is_opening = False
        self._pause: asyncio.TimerHandle | None = None
        self._failures = 0
        self._next_id = 0
        self._replies: deque[Source | _Question] = deque()
        self._waiting_for_progress: dict[Reader, int] = {}

    def take_id(self) -> int:
        """A watch id for the next source. Never 0, which would leave the choice to etcd."""
        self._next_id += 1
        return self._next_id

    # For sources and clients.

    def create(self, source: Source) -> None:
        """Watches `source` from here on."""
        self.sources[source.id] = source
        if self._call is not None:
            self._send_create(self._call, source)
        else:
            self._open()

    def ask(self, source: Source) -> None:
        """Creates a live source once more, to see how that is refused."""
        if self._call is not None:
            self._replies.append(_Question(source))
            self._call.request(source.spec.create_request(source.id, 0))

    def cancel(self, source: Source) -> None:
        """Watches `source` no more. One that waits for the shard's reply is still told what comes until then."""
        if self.sources.get(source.id) is not source:
            return
        if not source.awaits_cancel:
            del self.sources[source.id]
        if self._call is not None:
            self._call.request(cancel_request(source.id))
        elif source.awaits_cancel:
            self.drop(source)
            source.on_cancel_lost()
        self._close_if_idle()

    def drop(self, source: Source) -> None:
        """The shard does not watch `source` any more."""
        if self.sources.get(source.id) is source:
            del self.sources[source.id]
            self._close_if_idle()

    def ask_progress(self, reader: Reader) -> None:
        """Asks for the revision up to which all events have come; `reader` is told if etcd answers.

        etcd answers for all watchers of the call together, and not at all while one of them lags behind. So an answer
        may be that to an earlier request: each reader is told as many as it may take until its own has come.
        """
        waiting = self._waiting_for_progress
        owed = 1 + max(waiting.values(), default=0)
        waiting[reader] = min(owed, MOST_PROGRESS_OWED)
        if self._call is not None:
            self._call.request(PROGRESS_REQUEST)

    def forget_reader(self, reader: Reader) -> None:
        """`reader` wants no progress any more."""
        self._waiting_for_progress.pop(reader, None)

    def resume_reading(self) -> None:
        """The reader has room again."""
        if self._call is not None:
            self._call.give_back()

    def close(self) -> None:
        """Ends it, and every watcher in it."""
        self.sources.clear()
        self._replies.clear()
        self._waiting_for_progress.clear()
        self.shard.forget_opener(self)
        self._is_opening = False
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._call is not None:
            call, self._call = self._call, None
            call.cancel()

    def _close_if_idle(self) -> None:
        if not self.sources:
            self.close()

    # Opening.

    def _open(self) -> None:
        if not self._is_opening and self._pause is None:
            self._is_opening = True
            self.shard.open_stream(self)

    def _reopen(self) -> None:
        self._pause = None
        self._open()
        self.shard.context.flush()

    def go(self, connection: ClientConnection) -> None:
        """The shard has a connection."""
        self._is_opening = False
        call = self._call = _WatchCall(connection, self)
        connection.call(call, self._forward, b"", None, end=False)
        for source in list(self.sources.values()):
            self._send_create(call, source)
        if self._waiting_for_progress:
            call.request(PROGRESS_REQUEST)

    def _send_create(self, call: _WatchCall, source: Source) -> None:
        self._replies.append(source)
        call.request(source.spec.create_request(source.id, source.next))

    # From the shard.

    def is_current(self, call: _WatchCall) -> bool:
        """Whether `call` is the one that counts."""
        return call is self._call

    def on_message(self, body: bytes) -> None:
        """A WatchResponse.

        Raises:
            DecodeError: it is none.
        """
        self._failures = 0
        seen = one_event(body)
        if seen is not None:
            watch_id, head, tail, revision = seen
            source = self.sources.get(watch_id)
            if source is not None:
                self.head = body[:head]
                if source.pass_on(self.head, body[tail:], revision):
                    return
        response = Response.parse(body)
        if response.revision:
            self.head = response.head
        message = response.message
        if message.created:
            if self._replies:
                waiting = self._replies.popleft()
                if not isinstance(waiting, Source) or self.sources.get(waiting.id) is waiting:
                    waiting.on_created(response)
        elif message.watch_id == NO_ID:
            self._on_progress(response)
        else:
            source = self.sources.get(message.watch_id)
            if source is not None:
                source.on_response(response)

    def _on_progress(self, response: Response) -> None:
        waiting = self._waiting_for_progress
        for reader, owed in list(waiting.items()):
            if owed == 1:
                waiting.pop(reader, None)
            else:
                waiting[reader] = owed - 1
            reader.on_upstream_progress(self, response)

    def on_end(self, call: _WatchCall, status: Status) -> None:
        """The call has ended or broken."""
        if call is not self._call:
            return
        self._call = None
        self.shard.consider_moving(call.connection, status)
        self._replies.clear()
        for source in list(self.sources.values()):
            if source.is_over:
                self.sources.pop(source.id, None)
                source.on_cancel_lost()
            else:
                source.on_break()
        log.debug("shard %s: a watch stream of %d ended: %s", self.shard.name, len(self.sources), status.message)
        if status == errors.NO_LEADER or status.code not in TRANSIENT:
            self._fail(status)
        if not self.sources:
            self.close()
        elif self._failures == 0 or call.connection.ended:
            self._failures = 1  # (the shard takes its time with connections itself)
            self._open()
        else:
            self._wait()

    def _wait(self) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
        self._failures += 1
        self._pause = call_later(pause, self._reopen)

    def begin_anew(self) -> None:
        """Leaves the call that is open for another one."""
        if self._call is not None:
            call = self._call
            call.cancel()
            self.on_end(call, LEFT)

    def on_retired(self, call: _WatchCall) -> None:
        """The shard has left the member that the call is on."""
        if call is self._call:
            self.begin_anew()

    def _fail(self, status: Status) -> None:
        """Ends the stream of every client that is fed from here."""
        sources = self.sources.values()
        for stream in {tap.stream for source in sources for tap in (*source.everybody(), *source.joining)}:
            stream.stop(status)


class _WatchCall(ClientStream):
    """The stream of an upstream's call."""

    __slots__ = ("_messages", "_owed", "_upstream")

    def __init__(self, connection: ClientConnection, upstream: Upstream) -> None:
        super().__init__(connection)
        self._upstream = upstream
        self._messages = MessageReader(MAX_RESPONSE_BYTES)
        self._owed = 0

    def request(self, message: bytes) -> None:
        """Sends a request."""
        self.send_data(message, False)

    def give_back(self) -> None:
        """Lets the shard send on."""
        if self._owed:
            owed, self._owed = self._owed, 0
            self.consumed(owed)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The head or the trailers."""
        if end or not head.opens:
            self._end(head.outcome())

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of what the shard says."""
        upstream = self._upstream
        try:
            for message in self._messages.feed(payload):
                if not upstream.is_current(self):
                    return
                upstream.on_message(message)
        except (RpcError, DecodeError) as error:
            log.error("shard %s: what it says in a watch cannot be read: %s", upstream.shard.name, error)
            self._end(Status(Code.INTERNAL, str(error)))
            return
        if end:
            self._end(NO_TRAILERS)
        if not upstream.is_current(self):
            return
        self._owed += len(payload)
        if upstream.reader is None or not upstream.reader.is_full:
            self.give_back()

    def _end(self, status: Status) -> None:
        self.cancel()
        self._upstream.on_end(self, status)

    def on_reset(self, code: int, reason: str) -> None:
        """The call broke."""
        self._upstream.on_end(self, Status(Code.UNAVAILABLE, reason or f"RST_STREAM {code}"))

    def on_retired(self) -> None:
        """The connection takes no more calls."""
        self._upstream.on_retired(self)

    def on_buffers_full(self) -> None:
        """There is no memory for a request that has to wait."""
        self._end(Status(Code.UNAVAILABLE, "no memory for a request"))
