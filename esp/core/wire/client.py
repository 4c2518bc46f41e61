"""The client's end of an HTTP/2 connection: calls out, responses in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import inf
from time import monotonic
from typing import Final

from esp.core.wire.client_stream import STREAM_WINDOW, ClientStream, ResponseReader
from esp.core.wire.context import WireContext
from esp.core.wire.ended import Passed
from esp.core.wire.frames import (
    BLOCK_FRONTS,
    DATA,
    DATA_FRONTS,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADER_SIZE,
    HEADERS,
    LAST_BLOCK,
    LAST_DATA_FRONTS,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    PREFACE,
    SETTINGS_ENABLE_PUSH,
    SETTINGS_INITIAL_WINDOW_SIZE,
    SETTINGS_MAX_HEADER_LIST_SIZE,
    SHORT_BLOCK,
    SHORT_DATA,
    ConnectionFault,
    ErrorCode,
    frame,
    pack_u32,
    ping,
    unpack_header,
    window_update,
)
from esp.core.wire.native import mypyc_attr
from esp.core.wire.request_encoder import Forward, RequestEncoder, timeout_field
from esp.core.wire.response import ResponseHead
from esp.core.wire.traces import Asked, TracedBlock

log = logging.getLogger("esp.wire")

CONNECTION_WINDOW: Final = 4194304
LOW_WINDOW: Final = CONNECTION_WINDOW >> 1
"""Bytes of the window below which some are given back (`received`)."""
LAST_STREAM_ID: Final = 1_600_000_000
"""The stream id at which a connection takes no more calls and another one is opened; ids end at 2^31-1."""
STREAMS_BEFORE_SETTINGS: Final = 100
KEEPALIVE_PING: Final = b"esp-live"
CHEAP_BYTES: Final = 1024
"""Bytes of whole answers that esp works on between two looks at the clock: some 100 microseconds at most. After any
other frame esp looks at the clock."""


@mypyc_attr(allow_interpreted_subclasses=True)
class ClientConnection(ResponseReader):
    """The client's end of one connection.

    Attributes:
        authority: `:authority` of its requests.
        common_name: the one in the certificate that this end has shown; "" for none.
        draining: the connection takes no more calls: GOAWAY came, or the stream ids are near their end.
        heard: the `monotonic` time of the last bytes that came.
        why_over: why the connection takes no more calls, for people; "" while it takes some.
        unacknowledged: tells how many sent bytes the server's machine has not acknowledged; set by the transport.
        on_change: called when the connection became ready, stops taking calls, or has room again.
        own_part: makes the metadata for this server from those in a `DividedBlock`.
        passed: the calls of clients that were passed on to this server; None if nobody wants to know how they end.
        room: the most calls that may be open; 0 while the server takes none, or does not read the bytes it is sent.
        slow, took: of `passed`, which spares each call a step.
    """

    __slots__ = (
        "_asked",
        "_blocks",
        "_encoder",
        "_ping_sent",
        "_was_full",
        "authority",
        "common_name",
        "draining",
        "heard",
        "on_change",
        "own_part",
        "passed",
        "room",
        "slow",
        "took",
        "unacknowledged",
        "why_over",
    )

    def __init__(self, context: WireContext, authority: str, *, first_stream_id: int = 1) -> None:
        super().__init__(context, authority, CONNECTION_WINDOW, first_stream_id)
        self.authority = authority
        self.common_name = ""
        self.on_change: Callable[[], None] | None = None
        self.own_part: Callable[[bytes], bytes] = bytes
        self.passed: Passed | None = None
        self.slow = 0.0
        self.took: Mapping[bytes, Callable[[float], None]] = {}
        self.draining = False
        self.why_over = ""
        self.unacknowledged: Callable[[], int] = int
        self._asked = Asked()
        self._encoder = RequestEncoder(authority.encode())
        self._blocks = self._encoder.blocks
        self.heard = monotonic()
        self._ping_sent = 0.0
        self._was_full = False
        self.peer_max_streams = self.room = STREAMS_BEFORE_SETTINGS
        values = {
            SETTINGS_ENABLE_PUSH: 0,
            SETTINGS_INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SETTINGS_MAX_HEADER_LIST_SIZE: self.max_header_list,
        }
        self.send(PREFACE)
        self.send_settings(values)
        self.send(window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW))

    def observe(self, passed: Passed) -> None:
        """Lets the ends of clients' calls be known."""
        self.passed = passed
        self.slow = passed.slow
        self.took = passed.took
        self.traffic = passed.traffic

    # Calls.

    @property
    def has_room(self) -> bool:
        """Whether a call can be sent now: the server takes calls and reads its bytes."""
        if len(self.streams) < self.room:
            return True
        if not self.room:
            return False
        self._was_full = self.tell_gone = True
        return False

    def call(self, stream: ClientStream, forward: Forward, timeout: bytes, data: bytes | None, *, end: bool) -> None:
        """Sends a call's head, and `data` with it. The caller has checked `has_room`.

        Args:
            stream: gets the frames that come back.
            forward: the head, as `RequestHead.forward`.
            timeout: the `grpc-timeout` to send, b"" for none.
            data: body to send at once, None for none yet.
            end: whether that is the whole body.
        """
        stream_id = self._next_id
        stream.id = stream_id
        self._next_id = stream_id + 2
        self.streams[stream_id] = stream
        path, metadata = forward
        if metadata.__class__ is not bytes:
            if isinstance(metadata, TracedBlock) and self.context.tracer is not None:
                self._asked.add(stream_id, metadata.trace, path, monotonic())
                self.tell_gone = True
            metadata = self.own_part(metadata)
        front = self._encoder.known.get(path)
        may_be_dropped = True
        if front is None:
            front, changes_table = self._encoder.front(path)
            may_be_dropped = not changes_table
        block = front + metadata
        if stream_id >= LAST_STREAM_ID:
            self._drain("stream ids are used up")
        if timeout:
            block += timeout_field(timeout)
        if data is not None and len(block) <= MAX_FRAME_SIZE:
            # The two frames of a unary call in one piece.
            size = len(data)
            if size <= self.at_once and size <= self.send_window:
                out = self.out
                if not out:
                    self.context.unflushed.append(self)
                self.send_window -= size
                stream.credit -= size
                if may_be_dropped:
                    stream.queued_at = self.written + len(out)
                if size <= SHORT_DATA and len(block) <= SHORT_BLOCK:
                    place = pack_u32(stream_id)
                    front = LAST_DATA_FRONTS[size] if end else DATA_FRONTS[size]
                    out.append(b"".join((BLOCK_FRONTS[len(block)], place, block, front, place, data)))
                else:
                    front = frame(HEADERS, END_HEADERS, stream_id, block)
                    out.append(front + frame(DATA, END_STREAM if end else 0, stream_id, data))
                stream.local_open = not end
                return
        stream.send_headers(block, end and data is None)
        if data is not None:
            stream.send_data(data, end)

    def call_whole(self, stream: ClientStream, forward: Forward, timeout: bytes, data: bytes) -> None:
        """As `call`, in fewer steps for a call like many before; `data` is the whole body. Not for traced calls."""
        known = self._blocks.get(forward)
        size = len(data)
        window = self.send_window - size
        if known is None or window < 0 or size > SHORT_DATA or size > self.at_once:
            ClientConnection.call(self, stream, forward, timeout, data, end=True)
            if known is None:
                self._encoder.remember(forward)
            return
        front, block = known
        if timeout:
            block += timeout_field(timeout)
            front = BLOCK_FRONTS[len(block)]
        stream_id = self._next_id
        stream.id = stream_id
        self._next_id = stream_id + 2
        self.streams[stream_id] = stream
        if stream_id >= LAST_STREAM_ID:
            self._drain("stream ids are used up")
        out = self.out
        if not out:
            self.context.unflushed.append(self)
        self.send_window = window
        stream.credit = -size
        stream.local_open = False
        stream.queued_at = self.written + len(out)
        place = pack_u32(stream_id)
        out.append(b"".join((front, place, block, LAST_DATA_FRONTS[size], place, data)))

    # Bytes.

    def receive(self, data: bytes) -> None:
        """Takes bytes from the server."""
        if self.ended:
            return
        self.heard = monotonic()
        position = 0
        if self._tail:
            data, position = self._take_up(data)
        size = len(data)
        streams = self.streams
        decoder = self._decoder
        known = decoder.memo
        look = position + CHEAP_BYTES  # where the clock is looked at
        wall, sure = self.wall, -inf  # until when the turn is surely not over, on the quicker clock
        try:
            while position < size:
                # Whole answers with the head and the trailers of an earlier one, as nearly all are.
                head_front, head_block, head, end_front, end_block, trailers, wholes, usual_front, usual_whole = (
                    decoder.usual
                )
                whole, whole_size, length = usual_whole
                last = size - whole_size if self._block is None else -1
                while position <= last:
                    if position >= look:
                        if wall() >= sure:
                            left = self.stop - self.clock()
                            if left <= 0:
                                break
                            sure = wall() + left
                        look = position + CHEAP_BYTES
                    begin, stream_id, block, front, data_id, payload, end, end_id, trailer_block = whole(data, position)
                    if front != usual_front:
                        if front not in wholes or block != head_block:
                            break
                        usual_front = front  # a message of another length
                        whole, whole_size, length = wholes[front]
                        last = size - whole_size
                        continue
                    stream = streams.get(stream_id)
                    if (
                        begin != head_front
                        or block != head_block
                        or data_id != stream_id
                        or end != end_front
                        or end_id != stream_id
                        or trailer_block != end_block
                        or stream is None
                        or stream.headers_seen
                        or stream.local_open
                    ):
                        break
                    position += whole_size
                    self.recv_window -= length
                    # `_take_answer`, spelled out: this runs once per request.
                    stream.remote_open = False
                    stream.headers_seen = True
                    del streams[stream_id]
                    try:
                        if self.tell_gone:
                            self.on_stream_gone()
                        stream.on_answer(head, payload, trailers)
                    except Exception:
                        self._on_stream_bug(stream)
                if self.recv_window < LOW_WINDOW:
                    self.received(0)
                # Any other frame.
                if size - position < HEADER_SIZE:
                    break
                if position >= look:
                    if wall() >= sure:
                        left = self.stop - self.clock()
                        if left <= 0:
                            self._put_off(data, position)
                            return
                        sure = wall() + left
                    look = position + CHEAP_BYTES
                word, flags, stream_id = unpack_header(data, position)
                start = position + HEADER_SIZE
                length = word >> 8
                end_at = start + length
                if length > MAX_FRAME_SIZE:
                    is_http1 = data.startswith(b"HTTP/1.", position)
                    what = "an answer in HTTP/1.1" if is_http1 else "a frame above 16384 bytes"
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, what)
                if end_at > size:
                    break
                position = end_at
                kind = word & 0xFF
                stream = None
                try:
                    if self._block is None:
                        if kind == DATA and flags == 0:
                            stream = streams.get(stream_id)
                            if stream is not None and stream.headers_seen and length <= stream.recv_window:
                                look = 0
                                self.recv_window -= length
                                if self.recv_window < LOW_WINDOW:
                                    self.received(0)
                                stream.recv_window -= length
                                stream.on_data(data[start:end_at], False)
                                continue
                        elif kind == HEADERS and flags & ~END_STREAM == END_HEADERS:
                            stream = streams.get(stream_id)
                            found = known.get(data[start:end_at])
                            if stream is not None and found is not None:
                                if found.opens and not flags & END_STREAM and not stream.headers_seen:
                                    position = self._find_answer(stream, found, data, start, end_at)
                                    if position:
                                        continue
                                    position = end_at
                                look = 0
                                self._on_response(stream, found, flags & END_STREAM)
                                continue
                    look = 0
                    self.on_frame(kind, flags, stream_id & MAX_WINDOW, data[start:end_at])
                    if self.ended:
                        return
                except ConnectionFault:
                    raise
                except Exception:
                    self._on_stream_bug(stream or streams.get(stream_id & MAX_WINDOW))
        except ConnectionFault as fault:
            self.fail(fault)
            return
        self._tail = data[position:] if position < size else b""

    def _on_stream_bug(self, stream: ClientStream | None) -> None:
        """Ends a call that an exception came out of. The other calls on this connection go on."""
        log.exception("%s: a bug in esp; a call fails", self.peer)
        if stream is not None:
            stream.cancel()
            try:
                stream.on_reset(ErrorCode.INTERNAL_ERROR, "internal error")
            except Exception:
                log.exception("%s: a bug in esp; a call was not told of its end", self.peer)

    def _find_answer(self, stream: ClientStream, head: ResponseHead, data: bytes, start: int, position: int) -> int:
        """Takes a unary answer that came whole: its DATA and trailers stand at `position`, its head at `start`.

        Returns the position behind the trailers; `receive` then knows answers with the same head and trailers. Returns
        0, and does nothing, if other frames stand there.
        """
        size = len(data)
        body = position + HEADER_SIZE
        if body > size:
            return 0
        word, flags, stream_id = unpack_header(data, position)
        length = word >> 8
        trailers_at = body + length
        block = trailers_at + HEADER_SIZE
        if flags or word & 0xFF != DATA or stream_id != stream.id or block > size or length > MAX_FRAME_SIZE:
            return 0
        word, flags, stream_id = unpack_header(data, trailers_at)
        end: int = block + (word >> 8)
        if flags != LAST_BLOCK or word & 0xFF != HEADERS or stream_id != stream.id or end > size or stream.local_open:
            return 0
        trailers = self._decoder.memo.get(data[block:end])
        if trailers is None or not trailers.succeeds:
            return 0
        self._decoder.expect(data[start:position], head, length, data[block:end], trailers)
        self.recv_window -= length
        self._take_answer(stream, head, data[body:trailers_at], trailers)
        return end

    def _take_answer(self, stream: ClientStream, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """Takes a whole answer, whose DATA `recv_window` has counted."""
        stream.remote_open = False
        stream.headers_seen = True
        del self.streams[stream.id]
        try:
            if self.tell_gone:
                self.on_stream_gone()
            stream.on_answer(head, payload, trailers)
        except Exception:
            self._on_stream_bug(stream)

    def resume(self) -> None:
        """The transport has room again, and perhaps there is room for calls."""
        was_full = self.backlog > self.limits.max_output_hard_bytes
        super().resume()
        self._set_room()
        if was_full:
            self.context.reached("max_output_hard_bytes")
            self._changed()

    def on_stream_gone(self) -> None:
        """Tells that there is room for a call that waits; ends a drained connection without calls."""
        if self._asked:
            self._end_asked()
        if self.draining and not self.streams:
            self.lost("drained")
        elif self._was_full:
            self._was_full = False
            self.tell_gone = self.draining or bool(self._asked)
            self._changed()
        elif not self._asked:
            self.tell_gone = self.draining

    def _end_asked(self) -> None:
        """Tells the tracer of calls that have ended."""
        if self.context.tracer is not None:
            server = self.authority if self.passed is None else self.passed.name
            self._asked.end(self.streams, self.context.tracer, server, monotonic())

    def on_table_size(self, size: int) -> None:
        """The server grants a header table of another size."""
        self._encoder.limit(size)

    def on_settings(self) -> None:
        """The limit on streams may have changed."""
        self._set_room()
        self._changed()

    def on_backlog(self) -> None:
        """More bytes wait for the transport."""
        self._set_room()

    def _set_room(self) -> None:
        closed = self.draining or self.ended or self.backlog > self.limits.max_output_hard_bytes
        self.room = 0 if closed else self.peer_max_streams

    def on_settings_acknowledged(self) -> None:
        """The server has taken over esp's settings; no call waits for that."""

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    # Ending.

    def on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """The server takes no more streams; streams above `last_stream_id` were not processed."""
        if code:
            log.warning("%s: server says GOAWAY %d %r", self.peer, code, debug[:128])
        refused = [stream for stream in self.streams.values() if stream.id > last_stream_id]
        for stream in refused:
            del self.streams[stream.id]
            stream.unprocessed = True
            stream.drop()
        # First there must be no more room here: a call that is told may be sent again at once.
        self._drain("the server is going away")
        for stream in refused:
            stream.on_reset(ErrorCode.REFUSED_STREAM, "the server is going away")

    def _drain(self, reason: str) -> None:
        if not self.draining:
            self.draining = self.tell_gone = True
            self.why_over = self.why_over or reason
            self._set_room()
            log.debug("%s: takes no more calls: %s", self.peer, reason)
            self._changed()
        if not self.streams:
            self.lost(reason)

    def silence(self, now: float) -> float:
        """Seconds since the last bytes came."""
        return now - self.heard

    def close(self, why: str = "closed") -> None:
        """Takes no more calls, and ends the connection when the open calls have ended."""
        self._drain(why)

    def lost(self, reason: str) -> None:
        """The connection is gone; its calls are told."""
        if not self.ended:
            self.room = 0
            self.why_over = self.why_over or reason
            super().lost(reason)
            if self._asked:
                self._end_asked()
            self._changed()

    def on_tick(self, now: float) -> None:
        """Keepalive: a PING when calls wait and no bytes come, as often as etcd allows; the end without an answer."""
        super().on_tick(now)
        if self.ended:
            return
        if self._ping_sent:
            if self.heard >= self._ping_sent:
                self._ping_sent = 0.0
            elif now - self._ping_sent > self.limits.keepalive_timeout:
                self._time_out("keepalive_timeout", "no answer to a keepalive PING")
        elif self.streams and now - self.heard > self.limits.keepalive_time:
            self._ping_sent = now
            self.send(ping(KEEPALIVE_PING))
