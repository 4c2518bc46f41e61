"""The server's end of an HTTP/2 connection: requests in, responses out (RFC 9113; gRPC over HTTP/2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

from esp.core.wire.budget import Account
from esp.core.wire.context import WireContext
from esp.core.wire.frame_reader import FrameReader
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
    goaway,
    ping,
    unpack_header,
    unpack_u32,
    window_update,
)
from esp.core.wire.header_block import BlockBounds
from esp.core.wire.hpack import Fields, TooLarge
from esp.core.wire.message import PREFIX_SIZE, parse_timeout
from esp.core.wire.open_calls import OpenCalls, too_many
from esp.core.wire.request import (
    NO_LENGTH,
    Request,
    RequestDecoder,
    RequestHead,
    check_fields,
    malformed_method,
    parse_request,
)
from esp.core.wire.server_stream import OVERLOADED, Handler, Refuse, ServerStream
from esp.core.wire.shares import address_of
from esp.core.wire.status import DEADLINE_EXCEEDED, OK, Code, Status

log = logging.getLogger("esp.wire")

DRAIN_PING: Final = bytes.fromhex("0106010800030309")
DRAIN_PING_SECONDS: Final = 5.0
PING_SECONDS: Final = 5.0
PING_SECONDS_IDLE: Final = 7200.0
PING_STRIKES: Final = 2
INCOMPLETE: Final = Status(Code.INTERNAL, "esp: the request's message did not come in time")
"""Not CANCELLED: etcd's Go client takes that for its own connection's end and repeats the call."""
LARGE_HEAD: Final = 1024
"""Bytes of a call's head above which they count as memory that the call holds: others have less than that."""
DEADLINE_SLACK: Final = 0.05
"""Seconds past its deadline after which a call is ended here; the client and the server upstream end it first."""
_ESSENTIAL: Final = frozenset((b":method", b":scheme", b":path", b":authority", b"content-type"))


class ServerConnection(FrameReader[ServerStream]):
    """The server's end of one connection.

    Attributes:
        now: the `monotonic` time at which the bytes came that are being taken.
        recv_initial: the window each stream of the client begins with.
        unended: calls whose one message has come, but not the end of the request.
    """

    __slots__ = (
        "_accepting",
        "_account",
        "_calls",
        "_decoder",
        "_drain_started",
        "_drain_status",
        "_find",
        "_half_since",
        "_idle_since",
        "_incomplete",
        "_last_accepted",
        "_last_ping",
        "_last_stream",
        "_preface",
        "_said_goaway",
        "_shrunk",
        "_strikes",
        "now",
        "recv_initial",
        "unended",
    )

    def __init__(self, context: WireContext, peer: str, find: Callable[[RequestHead], Handler]) -> None:
        """`find` names the handler of a request; it is asked once per distinct head."""
        limits = context.limits
        bounds = BlockBounds(limits.max_header_block_bytes, limits.max_continuations)
        super().__init__(context, peer, limits.connection_window_bytes, bounds)
        self.recv_initial = limits.stream_window_bytes
        self._account: Account | None = None
        self._find = find
        self._decoder = RequestDecoder(
            self._head, limits.max_header_list_bytes, limits.max_header_fields, limits.max_header_block_bytes
        )
        self._preface = PREFACE
        self._shrunk = False
        self._last_stream = 0
        self._accepting = True
        self._last_accepted = 0
        self._drain_started = 0.0
        self._drain_status = OK
        self._last_ping = 0.0
        self._strikes = 0
        self._said_goaway = False
        self.now = self._idle_since = monotonic()
        self._half_since = 0.0
        self._incomplete: dict[int, tuple[int, float]] = {}
        self.unended: list[ServerStream] = []
        self._calls = OpenCalls(context)
        values = {SETTINGS_MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes}
        if limits.max_concurrent_streams < MAX_STREAM_ID:
            values[SETTINGS_MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
        if self.recv_initial != DEFAULT_WINDOW:
            values[SETTINGS_INITIAL_WINDOW_SIZE] = self.recv_initial
        self.send_settings(values)
        if self.recv_limit > DEFAULT_WINDOW:
            self.send(window_update(0, self.recv_limit - DEFAULT_WINDOW))

    @property
    def idle_since(self) -> float | None:
        """Since when there is no call, on the `monotonic` clock and half a second exact; None when there is one."""
        return None if self.streams or self.ended else self._idle_since

    def let_go(self) -> None:
        """Ends a connection without calls because others need its place: the client connects anew when it has one."""
        self.end(ErrorCode.NO_ERROR, "idle, and connections are scarce")

    def lost(self, reason: str) -> None:
        """The connection is gone. A cycle of objects would stay in memory for long, and with it what lies around it."""
        super().lost(reason)
        self._calls.close()
        self._decoder.close()

    def _head(self, fields: Fields) -> RequestHead:
        head = parse_request(fields)
        if head.is_grpc and head.path[:1] != b"/":
            handler: Handler = Refuse(malformed_method(head.path))  # here, so that nobody ever routes such a path
        else:
            handler = self._find(head)
        head.handler = handler
        head.unary = not handler.streaming and not handler.is_page
        head.weigh()
        return head

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
        began = position
        clock = self.clock
        size = len(data)
        try:
            if self._preface:
                position = self._read_preface(data)
            streams = self.streams
            known = self._decoder.memo
            recall = self._decoder.recall
            while size - position >= HEADER_SIZE:
                if position > began and (clock() >= self.stop or self._unfinished is not None):
                    self._put_off(data, position)
                    return
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
                if self._block is None:
                    if kind == DATA and flags == END_STREAM:
                        # One whole message in one frame, the shape of nearly every request.
                        stream = streams.get(stream_id)
                        if (
                            stream is not None
                            and stream.fresh
                            and length >= PREFIX_SIZE
                            and not data[start]
                            and unpack_u32(data, start + 1)[0] == length - PREFIX_SIZE
                            and stream.head.content_length in (NO_LENGTH, length)
                        ):
                            self.received(length)
                            stream.fresh = stream.remote_open = False
                            stream.head.handler.on_message(stream, data[start:end])
                            continue
                    elif kind == HEADERS and flags == END_HEADERS:
                        block = data[start:end]
                        request = known.get(block) or recall(block)
                        if request is not None and self._may_open(stream_id):
                            position = self._begin(stream_id, request, data, end)
                            continue
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

    def paused(self) -> None:
        """Serves what is whole, though the client has not said that it is: nothing more of it has come."""
        if self.unended:
            self.do(self._serve_unended())

    def _serve_unended(self) -> Iterator[None]:
        while self.unended:
            self.unended.pop().take_unended()
            yield

    def _read_preface(self, data: bytes) -> int:
        wanted = self._preface
        got = data[: len(wanted)]
        if not wanted.startswith(got):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not the HTTP/2 preface")
        self._preface = wanted[len(got) :]
        return len(got)

    def own_account(self) -> Account:
        """The memory that its calls hold; it counts for the address that it comes from."""
        account = self._account
        if account is None:
            account = self._account = self.context.buffers.of(address_of(self.peer)).of(self.peer)
        return account

    def forget(self, stream: ServerStream) -> None:
        """The stream is closed on both sides, and holds nothing any more."""
        if stream.account is not None:
            stream.account.close()
        super().forget(stream)

    def _may_open(self, stream_id: int) -> bool:
        """Whether a stream of this id is new, and there is room for it."""
        return (
            self._last_stream < stream_id <= MAX_STREAM_ID
            and stream_id & 1 == 1
            and self._accepting
            and (len(self.streams) < self._calls.room or self._calls.grow())
        )

    def _begin(self, stream_id: int, request: Request, data: bytes, position: int) -> int:
        """A request without END_STREAM on its head; its DATA may stand at `position` of `data`, whole or in part.

        Returns the position behind what was taken.
        """
        head, timeout = request
        seconds = parse_timeout(timeout) if timeout else 0.0
        if not head.unary or not self._shrunk or (timeout and not seconds):
            self._open(stream_id, request, end=False)
            return position
        self._last_stream = stream_id
        stream = self.streams[stream_id] = ServerStream(self, stream_id, head, timeout)
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
                self.received(length)
                stream.fresh = stream.remote_open = False
                head.handler.on_message(stream, data[start:end])
                if head.size > LARGE_HEAD and stream_id in self.streams:
                    _holds_head(stream)  # it waits for an answer, or to be sent
                return end
        _holds_head(stream)
        return position

    def _open(self, stream_id: int, request: Request, *, end: bool) -> None:
        head, timeout = request
        self._last_stream = stream_id
        stream = self.streams[stream_id] = ServerStream(self, stream_id, head, timeout)
        stream.remote_open = not end
        if not _holds_head(stream):
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
        """A header block: a new request, or the trailers of one, which carry nothing that is sent on."""
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
                except TooLarge as fault:
                    request = self._too_large(fault), b""
                if end and request[0].content_length > 0:
                    raise StreamFault(ErrorCode.PROTOCOL_ERROR, "no DATA, but a content-length")
                if may_open:
                    self._open(stream_id, request, end=end)
                else:
                    self._refuse(stream_id, request[0], end=end)
        except StreamFault as fault:
            self.fault_stream(stream_id, fault)

    def _too_large(self, fault: TooLarge) -> RequestHead:
        """The head of a request whose metadata is above a limit: it is refused, and its connection goes on."""
        assert fault.limit is not None
        self.context.reached(fault.limit)
        self.glitch(1, "requests above the header limits")
        head = parse_request([field for field in fault.fields if field[0] in _ESSENTIAL])
        status = Status(Code.RESOURCE_EXHAUSTED, f"esp: {fault.text}; send less, or raise that in the config")
        head.handler = Refuse(status, http_status=200 if head.is_grpc else 431)
        return head

    def _on_trailers(self, stream: ServerStream, fields: Fields, *, end: bool) -> None:
        if not stream.remote_open:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if not end:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        check_fields(fields, trailers=True)
        stream.on_data(b"", True)

    def _on_closed_stream(self, stream_id: int) -> None:
        if self.was_reset(stream_id):
            self.glitch(1, "frames on closed streams")
        elif stream_id == self._last_stream:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        else:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream id below an earlier one")

    def _refuse(self, stream_id: int, head: RequestHead, *, end: bool) -> None:
        if self._accepting and len(self.streams) < self.limits.max_concurrent_streams:
            self.context.reached("max_call_bytes")
            if head.is_grpc:
                stream = self.streams[stream_id] = ServerStream(self, stream_id, head, b"")
                stream.remote_open = not end
                stream.finish(too_many(len(self.streams) - 1))
                return
        elif self._accepting:
            self.context.reached("max_concurrent_streams")
            self.glitch(0.5, "streams above the limit")
        self.send_reset(stream_id, ErrorCode.REFUSED_STREAM)

    def on_unknown_stream(self, stream_id: int, kind: int) -> None:
        """A frame for a stream that never was, or that has ended (RFC 9113, section 5.1)."""
        if stream_id > self._last_stream or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")
        if kind == DATA:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "DATA on a closed stream")
        self._charge_late()

    def on_stream_reset(self, stream: ServerStream) -> None:
        """A client that takes back what it asked for makes work for nothing (CVE-2023-44487)."""
        if not stream.responded and not stream.has_lived(self.now):
            self.glitch(1, "streams reset before their response")

    def on_ping(self) -> None:
        """Etcd's keepalive policy (grpc-go, internal/transport/http2_server.go, handlePing)."""
        now = monotonic()
        if self.sent_since_ping:
            self.sent_since_ping = False
            self._strikes = 0
        elif self._last_ping and now - self._last_ping < (PING_SECONDS if self.streams else PING_SECONDS_IDLE):
            self._strikes += 1
            if self._strikes > PING_STRIKES:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._last_ping = now

    def _shrink_table(self) -> None:
        """A gRPC client repeats itself: without a table of its own its header blocks are found in the memo."""
        self._shrunk = True
        self.send_settings({SETTINGS_HEADER_TABLE_SIZE: 0})

    def on_settings_acknowledged(self) -> None:
        """Once the client has taken over a table of 0 bytes, its header blocks stand for themselves."""
        if self._shrunk and self._acks.is_none_due:
            self._decoder.settings_acknowledged()

    def on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """The client will open no more streams; those that are open go on."""
        level = logging.INFO if code and not self._said_goaway else logging.DEBUG
        self._said_goaway = True
        log.log(level, "%s: client says GOAWAY %d %r", self.peer, code, debug[:128])

    def last_stream_id(self) -> int:
        """The last stream taken; GOAWAY may not name a later one than the GOAWAY before it."""
        return self._last_stream if self._accepting else self._last_accepted

    def highest_stream_id(self) -> int:
        """The last stream that the client has opened, or tried to."""
        return self._last_stream

    # Draining: tell the client, wait until it must have heard, finish what is open.

    def drain(self, streaming: Status) -> None:
        """Takes streams until the client has heard of it, ends streaming calls with `streaming`, serves the rest."""
        if self.ended or self._drain_started:
            return
        self._drain_started = monotonic()
        self.send(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR, b"draining"))
        self.send(ping(DRAIN_PING))
        self._drain_status = streaming
        self._end_streaming()

    def _end_streaming(self) -> None:
        for stream in list(self.streams.values()):
            if stream.head.handler.streaming and not stream.head.handler.is_page:
                if stream.sink is not None:
                    stream.sink.cancelled(ErrorCode.CANCEL, "draining")
                stream.finish(self._drain_status)

    def on_ping_acknowledged(self, payload: bytes) -> None:
        """The client has seen the GOAWAY that came before."""
        if payload == DRAIN_PING and self._drain_started and self._accepting:
            self._stop_accepting()

    def _stop_accepting(self) -> None:
        self._accepting = False
        self._last_accepted = self._last_stream
        self.tell_gone = True
        self.send(goaway(self._last_stream, ErrorCode.NO_ERROR, b"draining"))
        self._end_streaming()
        self._end_when_drained()

    def on_stream_gone(self) -> None:
        """A drained connection ends with its last stream."""
        self._end_when_drained()

    def _end_when_drained(self) -> None:
        if not self.streams and not self.ended:
            self.lost("drained")

    def on_tick(self, now: float) -> None:
        """Deadlines of the connection and of its calls."""
        super().on_tick(now)
        if self.ended:
            return
        waits = self._drain_started and self._accepting and not self.unread
        if waits and now - self._drain_started > DRAIN_PING_SECONDS:
            self._stop_accepting()
        self._calls.shrink(len(self.streams))
        self._expire_half_frame(now)
        if self.ended:
            return
        if self.streams:
            self._idle_since = now
            late = now - DEADLINE_SLACK
            for stream in [s for s in self.streams.values() if s.deadline and s.deadline < late]:
                stream.expire(DEADLINE_EXCEEDED)
            self._expire_incomplete(now)
        elif now - self._idle_since > self.limits.idle_timeout:
            self._time_out("idle_timeout", "idle")

    def _expire_incomplete(self, now: float) -> None:
        """Ends calls of whose message the rest does not come: what came of it takes memory that others want."""
        known, waiting = self._incomplete, {}
        for stream in self.streams.values():
            half = stream.half_request()
            if half is not None:
                before = known.get(stream.id)
                waiting[stream.id] = before if before and before[0] == half and not self.unread else (half, now)
        self._incomplete = waiting
        for stream_id, (_, since) in waiting.items():
            late = self.streams.get(stream_id)
            if late is not None and now - since > self.limits.request_timeout:
                self.context.reached("request_timeout")
                late.expire(INCOMPLETE)

    def _expire_half_frame(self, now: float) -> None:
        """Ends a connection on which a frame has begun and does not end: one of a header block as such a block."""
        if not self._tail or self.unread or self.behind:
            self._half_since = 0.0
        elif not self._half_since:
            self._half_since = now
        else:
            is_block = len(self._tail) > 3 and self._tail[3] in (HEADERS, CONTINUATION)
            limit = "header_timeout" if is_block else "request_timeout"
            if now - self._half_since > getattr(self.limits, limit):
                self._time_out(limit, "a frame did not end in time")


def _holds_head(stream: ServerStream) -> bool:
    """Counts a large head of a call that stays open; without memory for it the call ends, and this is False."""
    size = stream.head.size
    if size > LARGE_HEAD and not stream.hold(size):
        stream.expire(OVERLOADED)
        return False
    return True
