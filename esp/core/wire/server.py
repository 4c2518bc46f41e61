"""The server's end of an HTTP/2 connection: requests in, responses out (RFC 9113; gRPC over HTTP/2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic
from typing import Final

from esp.core.wire.admission import Admission
from esp.core.wire.context import WireContext
from esp.core.wire.frame_reader import SMALL_DATA
from esp.core.wire.frames import (
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADER_SIZE,
    HEADERS,
    MAX_FRAME_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW,
    PREFACE,
    SETTINGS_HEADER_TABLE_SIZE,
    SETTINGS_INITIAL_WINDOW_SIZE,
    SETTINGS_MAX_CONCURRENT_STREAMS,
    SETTINGS_MAX_HEADER_LIST_SIZE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    unpack_header,
    unpack_u32,
    window_update,
)
from esp.core.wire.handler import Handler
from esp.core.wire.hpack import Fields, TooLarge
from esp.core.wire.message import FRONT_SIZE, PIECE, PREFIX_SIZE, WHOLE_DATA, parse_timeout, unpack_front
from esp.core.wire.open_calls import too_many
from esp.core.wire.owed_messages import OwedMessages
from esp.core.wire.request import LARGE_HEAD, NO_LENGTH, RequestHead, check_fields
from esp.core.wire.request_decoder import Request, RequestDecoder
from esp.core.wire.request_heads import RequestHeads, too_large
from esp.core.wire.request_message import LARGE_PIECE
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.status import DEADLINE_EXCEEDED, Code, Status

log = logging.getLogger("esp.wire")

INCOMPLETE: Final = Status(Code.INTERNAL, "esp: the request's message did not come in time")
"""Not CANCELLED: etcd's Go client takes CANCELLED for the end of its own connection, and repeats the call."""
CHEAP_BYTES: Final = 1024
"""Bytes of usual requests that esp works on between two looks at the clock: some 100 microseconds at most. After any
other frame esp looks at the clock."""
DEADLINE_SLACK: Final = 0.05
"""Seconds that esp waits after a call's deadline: the client and the server upstream end the call first."""


class ServerConnection(Admission[ServerStream]):
    """The server's end of one connection."""

    __slots__ = (
        "_decoder",
        "_half_since",
        "_owed",
        "_preface",
        "_shrunk",
        "_tracer",
    )

    def __init__(self, context: WireContext, peer: str, find: Callable[[RequestHead], Handler]) -> None:
        """`find` names the handler of a request; esp calls `find` once per distinct head."""
        limits = context.limits
        super().__init__(context, peer)
        self._decoder = RequestDecoder(
            RequestHeads(find).make,
            limits.max_header_list_bytes,
            limits.max_header_fields,
            limits.max_header_block_bytes,
        )
        self.traffic = context.counters.clients
        self._preface = PREFACE
        self._shrunk = False
        self._tracer = context.tracer
        self._owed = OwedMessages()
        self._half_since = 0.0
        values = {SETTINGS_MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes}
        if limits.max_concurrent_streams < MAX_STREAM_ID:
            values[SETTINGS_MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
        if self.recv_initial != DEFAULT_WINDOW:
            values[SETTINGS_INITIAL_WINDOW_SIZE] = self.recv_initial
        self.send_settings(values)
        if self.recv_limit > DEFAULT_WINDOW:
            self.send(window_update(0, self.recv_limit - DEFAULT_WINDOW))

    def lost(self, reason: str) -> None:
        """The connection is gone. Empties the decoder, which is in a cycle of objects and would stay in memory."""
        super().lost(reason)
        self.when_read.clear()
        self._decoder.close()

    def forget_heads(self) -> None:
        """Asks `find` again for the handler of every further request."""
        self._decoder.forget()

    def receive(self, data: bytes) -> None:
        """Takes bytes from the client."""
        if self.ended:
            return
        self.now = monotonic()
        position = 0
        if self._tail or self._unfinished is not None:
            data, position = self._take_up(data)
            if self._unfinished is not None and (not self._finish() or self.ended):
                self._put_off(data, position)
                return
        size = len(data)
        half = self.recv_limit >> 1
        try:
            if self._preface:
                position = self._read_preface(data)
            look = position + CHEAP_BYTES  # where the clock is looked at
            streams = self.streams
            decoder = self._decoder
            known, recall = decoder.memo, decoder.recall
            wall, sure = self.wall, -inf  # until when the turn is surely not over, on the quicker clock
            while position < size:
                # Usual requests: HEADERS as long as earlier ones, and one whole message in one frame of DATA.
                front, head_size, head_word, head_block, usual = decoder.usual
                last = size - FRONT_SIZE if self._block is None else -1
                last_head = last - head_size if self._shrunk and self._tracer is None else -1
                room = self._calls.room
                next_id = self._last_stream + 2 if self._last_stream < self._usual_end else 0
                while position <= last:
                    if position >= look:
                        if self._unfinished is not None:
                            break
                        if wall() >= sure:
                            left = self.stop - self.clock()
                            if left <= 0:
                                break
                            sure = wall() + left
                        look = position + CHEAP_BYTES
                    if data[position + 3] == DATA:
                        above, length, kind, stream_id, packed, of_message = unpack_front(data, position)
                        start = position + HEADER_SIZE
                        end = start + length
                        stream = streams.get(stream_id)
                        if (
                            kind != WHOLE_DATA
                            or above
                            or packed
                            or of_message + PREFIX_SIZE != length
                            or length > MAX_FRAME_SIZE
                            or end > size
                            or stream is None
                            or not stream.fresh
                        ):
                            if (
                                kind != PIECE
                                or not LARGE_PIECE <= length <= MAX_FRAME_SIZE
                                or above
                                or end > size
                                or stream is None
                                or not stream.take_piece(data[start:end])
                            ):
                                break
                            position = end
                            self.recv_window -= length
                            continue
                        head = stream.head
                        if head.content_length >= 0 and head.content_length != length:
                            break
                    else:
                        if position > last_head:
                            break
                        word, flags, stream_id, block, above, length, kind, data_id, packed, of_message = front(
                            data, position
                        )
                        if word != head_word or flags != END_HEADERS or stream_id != next_id or len(streams) >= room:
                            break
                        if block == head_block:
                            head = usual
                            stream = ServerStream(self, stream_id, head, b"", b"")
                        else:
                            request = known.get(block) or recall(block)
                            if request is None or not request[0].plain:
                                break
                            head, timeout, trace = request
                            seconds = parse_timeout(timeout) if timeout else None
                            if timeout and not seconds:
                                break
                            stream = ServerStream(self, stream_id, head, timeout, trace)
                            if seconds:
                                stream.deadline = self.now + seconds
                        self._last_stream = stream_id
                        streams[stream_id] = stream
                        next_id += 2
                        position += head_size
                        if data_id != stream_id:
                            continue  # the message does not stand there
                        start = position + HEADER_SIZE
                        end = start + length
                        if (
                            kind != WHOLE_DATA
                            or above
                            or packed
                            or of_message + PREFIX_SIZE != length
                            or length > MAX_FRAME_SIZE
                            or end > size
                            or (head.content_length >= 0 and head.content_length != length)
                        ):
                            continue  # nor does a whole message
                    position = end
                    self.recv_window -= length
                    stream.fresh = stream.remote_open = False
                    handler = head.handler
                    handler.on_message(stream, data[start:end])
                    if not handler.quick:
                        look = 0
                if self.recv_window < half:
                    self.received(0)
                # Any other frame.
                if size - position < HEADER_SIZE:
                    break
                if position >= look:
                    if self._unfinished is not None:
                        self._put_off(data, position)
                        return
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
                end = start + length
                if length > MAX_FRAME_SIZE:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame above 16384 bytes")
                if end > size:
                    break
                position = end
                kind = word & 0xFF
                if kind == DATA and not flags and self._block is None:
                    # A message of a call with many, as nearly all DATA of streaming calls are.
                    stream = streams.get(stream_id)
                    sink = None if stream is None or stream.head.unary else stream.sink
                    if (
                        stream is not None
                        and sink is not None
                        and SMALL_DATA <= length <= stream.recv_window
                        and stream.remote_open
                        and stream.head.content_length == NO_LENGTH
                    ):
                        look = 0
                        self.recv_window -= length
                        if self.recv_window < half:
                            self.received(0)
                        stream.recv_window -= length
                        sink.request_data(data[start:end], False)
                        if self.ended:
                            return
                        continue
                elif kind == HEADERS and flags == END_HEADERS and self._block is None:
                    block = data[start:end]
                    request = known.get(block) or recall(block)
                    if request is not None and self._may_open(stream_id):
                        if request[0].plain:
                            decoder.expect(block, request)
                        position = self._begin(stream_id, request, data, end)
                        if not request[0].handler.quick:
                            look = 0
                        continue
                look = 0
                self.on_frame(kind, flags, stream_id & MAX_WINDOW, data[start:end])
                if self.ended:
                    return
        except ConnectionFault as fault:
            self.fail(fault)
            return
        if position < size:
            if position:
                self._half_since = 0.0  # another frame than the last time
            self._tail = data[position:]
        else:
            self._tail = b""

    def take(self, data: bytes, stop: float) -> bool:
        """As `receive`, but stops at the time `stop`. When all is read, serves calls that waited for that.

        True if work is left.
        """
        self.stop = stop
        self.receive(data)
        if self._next or self._unfinished is not None:
            return not self.ended
        if (self.unended or self.when_read) and not self.ended:
            self.paused()
            return self._is_unfinished()
        return False

    def _is_unfinished(self) -> bool:
        # Asked in a method of its own: where None was seen before, mypyc takes the attribute for None for good.
        return self._unfinished is not None

    def paused(self) -> None:
        """Serves messages that are whole although their requests have not ended: all bytes have been read."""
        if self.unended:
            self.do(self._serve_unended())
        if self.when_read:
            self.do(self._begin_read())

    def _serve_unended(self) -> Iterator[None]:
        while self.unended:
            self.unended.pop().take_unended()
            yield

    def _begin_read(self) -> Iterator[None]:
        while self.when_read:
            self.when_read.popleft()()
            yield

    def _read_preface(self, data: bytes) -> int:
        wanted = self._preface
        got = data[: len(wanted)]
        if not wanted.startswith(got):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not the HTTP/2 preface")
        self._preface = wanted[len(got) :]
        return len(got)

    def forget(self, stream: ServerStream) -> None:
        """The stream is closed on both sides: gives back the memory that it holds."""
        if stream.account is not None:
            stream.account.close()
        super().forget(stream)

    def _begin(self, stream_id: int, request: Request, data: bytes, position: int) -> int:
        """A request without END_STREAM on its head; its DATA may stand at `position` of `data`, whole or in part.

        Returns the position behind the bytes that it took.
        """
        head, timeout, trace = request
        if self._tracer is not None:
            trace = self._tracer.begun(trace)
        seconds = parse_timeout(timeout) if timeout else 0.0
        if not head.unary or not self._shrunk or (timeout and not seconds):
            self._open(stream_id, request, end=False)
            return position
        self._last_stream = stream_id
        stream = self.streams[stream_id] = ServerStream(self, stream_id, head, timeout, trace)
        if seconds:
            stream.deadline = self.now + seconds
        start = position + HEADER_SIZE
        if start + PREFIX_SIZE <= len(data):
            word, flags, data_stream_id = unpack_header(data, position)
            length = word >> 8
            end: int = start + length
            if (
                data_stream_id == stream_id
                and flags == END_STREAM
                and word & 0xFF == DATA
                and end <= len(data)
                and length <= MAX_FRAME_SIZE
                and not data[start]
                and unpack_u32(data, start + 1)[0] == length - PREFIX_SIZE
                and head.content_length in (NO_LENGTH, length)
            ):
                # The whole request came at once, as nearly every one of a gRPC client does.
                window = self.recv_window - length
                if window < self.recv_limit >> 1:
                    self.received(length)
                else:
                    self.recv_window = window
                stream.fresh = stream.remote_open = False
                head.handler.on_message(stream, data[start:end])
                if head.size > LARGE_HEAD and stream_id in self.streams:
                    stream.hold_head()  # the call waits for an answer, or to be sent
                return end
        if head.size > LARGE_HEAD:
            stream.hold_head()
        return position

    def _open(self, stream_id: int, request: Request, *, end: bool) -> None:
        head, timeout, trace = request
        if self._tracer is not None:
            trace = self._tracer.begun(trace)
        self._last_stream = stream_id
        stream = self.streams[stream_id] = ServerStream(self, stream_id, head, timeout, trace)
        stream.remote_open = not end
        if not stream.hold_head():
            return
        if timeout:
            seconds = parse_timeout(timeout)
            if not seconds:
                if seconds is None:
                    stream.finish(Status(Code.INTERNAL, "malformed grpc-timeout"))
                else:
                    stream.finish(DEADLINE_EXCEEDED)
                return
            stream.deadline = self.now + seconds
        if head.is_grpc and not self._shrunk:
            self._shrink_table()
        if head.handler.streaming:
            head.handler.on_open(stream)
        if end:
            stream.on_data(b"", True)

    def on_headers(self, stream_id: int, block: bytes, *, end: bool) -> None:
        """A header block: a new request, or the trailers of a request, which are not sent on."""
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a request on a stream id of the server")
        stream = self.streams.get(stream_id)
        try:
            if stream is not None:
                self._on_trailers(stream, self._decoder.fields(block), end=end)
            elif stream_id <= self._last_stream:
                self._decoder.fields(block)
                self._on_closed_stream(stream_id)
            else:
                may_open = self._may_open(stream_id)
                self._last_stream = stream_id
                try:
                    request = self._decoder.decode(block)
                except TooLarge as too_large:  # a name of its own: mypyc gives a name one type
                    request = self._too_large(too_large), b"", b""
                if end and request[0].content_length > 0:
                    raise StreamFault(ErrorCode.PROTOCOL_ERROR, "no DATA, but a content-length")
                if may_open:
                    self._open(stream_id, request, end=end)
                else:
                    self._refuse(stream_id, request[0], end=end)
        except StreamFault as fault:
            self.fault_stream(stream_id, fault)

    def _too_large(self, fault: TooLarge) -> RequestHead:
        """The head of a request whose metadata is above a limit."""
        assert fault.limit is not None
        self.context.reached(fault.limit)
        self.glitch(1, "requests above the header limits")
        return too_large(fault)

    def _on_trailers(self, stream: ServerStream, fields: Fields, *, end: bool) -> None:
        if not stream.remote_open:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if not end:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        check_fields(fields, trailers=True)
        stream.on_data(b"", True)

    def _refuse(self, stream_id: int, head: RequestHead, *, end: bool) -> None:
        if self._accepting and len(self.streams) < self.limits.max_concurrent_streams:
            self.context.reached("max_call_bytes")
            if head.is_grpc:
                stream = self.streams[stream_id] = ServerStream(self, stream_id, head, b"", b"")
                stream.remote_open = not end
                stream.finish(too_many(len(self.streams) - 1))
                return
        elif self._accepting:
            self.context.reached("max_concurrent_streams")
            self.glitch(0.5, "streams above the limit")
        self.send_reset(stream_id, ErrorCode.REFUSED_STREAM)

    def on_stream_reset(self, stream: ServerStream) -> None:
        """Charges for calls that the client resets early: they make work for nothing (CVE-2023-44487)."""
        if not stream.responded and not stream.has_lived(self.now):
            self.glitch(1, "streams reset before their response")

    def _shrink_table(self) -> None:
        """Asks the client for a table of 0 bytes: a gRPC client's header blocks then repeat, and the memo has them."""
        self._shrunk = True
        self.send_settings({SETTINGS_HEADER_TABLE_SIZE: 0})

    def on_settings_acknowledged(self) -> None:
        """The client has taken over a table of 0 bytes: from now on the meaning of a header block is in its bytes."""
        if self._shrunk and self._acks.is_none_due:
            self._decoder.settings_acknowledged()

    def _end_streaming(self, status: Status) -> None:
        for stream in list(self.streams.values()):
            handler = stream.head.handler
            if (handler.streaming or handler.waits) and not handler.is_page:
                if stream.sink is not None:
                    stream.sink.cancelled(ErrorCode.CANCEL, "draining")
                stream.finish(status)

    # Deadlines.

    def on_tick(self, now: float) -> None:
        """Deadlines of the connection and of its calls."""
        super().on_tick(now)
        if self.ended:
            return
        self._expire_half_frame(now)
        if self.ended:
            return
        if not self.streams and now - self._idle_since > self.limits.idle_timeout:
            self._time_out("idle_timeout", "idle")

    def begin_round(self) -> None:
        """The streams will be looked at once more."""
        super().begin_round()
        self._owed.begin()

    def look_at(self, stream: ServerStream, now: float) -> None:
        """Ends a call that is late, or whose message has been incomplete for too long: others need the first part."""
        super().look_at(stream, now)
        if stream.id not in self.streams:
            return
        if stream.deadline and stream.deadline < now - DEADLINE_SLACK:
            stream.expire(DEADLINE_EXCEEDED)
        elif now - self._owed.since(stream, now, excused=self.unread) > self.limits.request_timeout:
            self.context.reached("request_timeout")
            stream.expire(INCOMPLETE)

    def _expire_half_frame(self, now: float) -> None:
        """Ends a connection whose last frame is incomplete for too long: a frame of a header block, or any other."""
        if not self._tail or self.unread or self.behind:
            self._half_since = 0.0
        elif not self._half_since:
            self._half_since = now
        else:
            is_block = len(self._tail) > 3 and self._tail[3] in (HEADERS, CONTINUATION)
            limit = "header_timeout" if is_block else "request_timeout"
            if now - self._half_since > getattr(self.limits, limit):
                self._time_out(limit, "a frame did not end in time")
