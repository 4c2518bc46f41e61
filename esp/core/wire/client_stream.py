"""A call as the client sees it: its stream, and the meaning of the server's frames for the call."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from esp.core.wire.context import WireContext
from esp.core.wire.frame_reader import FrameReader
from esp.core.wire.frames import DATA, END_STREAM, HEADERS, MAX_FRAME_SIZE, ConnectionFault, ErrorCode, StreamFault
from esp.core.wire.header_block import BlockBounds
from esp.core.wire.native import mypyc_attr
from esp.core.wire.response import ResponseDecoder, ResponseHead
from esp.core.wire.stream import Stream
from esp.core.wire.traffic import Messages

if TYPE_CHECKING:
    from esp.core.wire.client import ClientConnection

MAX_HEADER_LIST: Final = 65536
MAX_HEADER_FIELDS: Final = 200
MAX_CONTINUATIONS: Final = 8
STREAM_WINDOW: Final = 262144
"""Bytes a server may send on one call before it has to wait."""
NOT_QUEUED: Final = -1


@mypyc_attr(allow_interpreted_subclasses=True)
class ClientStream(Stream["ClientConnection"]):
    """One call as the client sees it. One event ends the call: `on_headers` or `on_data` with `end`, or `on_reset`.

    Attributes:
        headers_seen: the response's head has come.
        queued_at: the number of the item of `out` that is the whole call, counted as in `Connection.written`; else
            NOT_QUEUED.
        unprocessed: the server said with GOAWAY that it has not acted on the call.
    """

    __slots__ = ("headers_seen", "queued_at", "unprocessed")

    def __init__(self, connection: ClientConnection) -> None:
        # Spelled out instead of super().__init__(): this runs once per request. The id is given when it is sent.
        self.connection = connection
        self.id = 0
        self.credit = 0
        self.recv_window = STREAM_WINDOW
        self.recv_owed = 0
        self.local_open = True
        self.remote_open = True
        self.pending = None
        self.headers_seen = False
        self.unprocessed = False
        self.queued_at = NOT_QUEUED

    def surely_unprocessed(self, code: int) -> bool:
        """Whether the server has surely not acted on this call, which has one request message and broke with `code`.

        The server refused the stream, or said so with GOAWAY (RFC 9113, section 8.7), or did not get the whole message.
        """
        if self.headers_seen:
            return False
        return self.unprocessed or code == ErrorCode.REFUSED_STREAM or self.local_open

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The response's head, its trailers, or both in one."""
        raise NotImplementedError

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer that ended well: head, one DATA frame, trailers. The stream has ended already."""
        self.on_headers(head, False)
        self.on_data(payload, False)
        self.on_headers(trailers, True)

    def on_retired(self) -> None:
        """Another connection takes new calls from now on. This call goes on as long as the server lets it."""

    def tell_asked(self, path: bytes, code: int, sent: float) -> None:
        """Tells the observer that this call, a question of esp's own, has ended; it was sent at `sent`."""
        passed, observer = self.connection.passed, self.connection.context.observer
        if passed is not None and observer is not None:
            observer.asked(passed.name, path, code, monotonic() - sent)

    def count_messages(self, path: bytes) -> Messages:
        """Where the messages of this streaming call are counted, with others of its RPC to the server."""
        passed = self.connection.passed
        return Messages() if passed is None else passed.messages_of(path)

    def cancel(self) -> None:
        """Ends the call from here; no event follows."""
        self.reset(ErrorCode.CANCEL)


@mypyc_attr(allow_interpreted_subclasses=True)
class ResponseReader(FrameReader[ClientStream]):
    """A connection whose streams are calls to a server.

    Attributes:
        max_header_list: the most bytes of a response's headers, after decoding.
    """

    __slots__ = ("_decoder", "_next_id", "max_header_list")

    def __init__(self, context: WireContext, peer: str, recv_limit: int, first_stream_id: int) -> None:
        # An error's text may hold the longest path that a client can send, each byte of the path as three.
        most = self.max_header_list = max(MAX_HEADER_LIST, 4 * context.limits.max_header_list_bytes)
        bounds = BlockBounds(most, max(MAX_CONTINUATIONS, most // MAX_FRAME_SIZE + 1))
        super().__init__(context, peer, recv_limit, bounds)
        self._decoder = ResponseDecoder(most, MAX_HEADER_FIELDS)
        self._next_id = first_stream_id

    def highest_stream_id(self) -> int:
        """The last stream that was opened."""
        return self._next_id

    def glitch(self, cost: float, what: str) -> None:
        """Charges a tenth of the cost: a clumsy etcd must not cost all clients the connection."""
        super().glitch(cost / 10, what)

    def _on_response(self, stream: ClientStream, head: ResponseHead, end: int) -> None:
        if stream.headers_seen:
            if head.http_status or not end:
                self._fault(stream, "a second response head, or trailers without END_STREAM")
                return
        elif head.http_status < 200:
            if end or not head.is_informational:
                self._fault(stream, "no response head")
            else:
                self.glitch(1, "informational responses")
            return
        stream.headers_seen = True
        if end:
            stream.remote_open = False
            self._ended(stream)
            stream.on_headers(head, True)
        else:
            stream.on_headers(head, False)

    def _fault(self, stream: ClientStream, reason: str) -> None:
        self.fault_stream(stream.id, StreamFault(ErrorCode.PROTOCOL_ERROR, reason))

    def _ended(self, stream: ClientStream) -> None:
        """Stops to send the rest of a request whose answer is complete."""
        if stream.local_open:
            self.reset(stream, ErrorCode.CANCEL)
            stream.local_open = False
        else:
            self.forget(stream)

    def on_headers(self, stream_id: int, block: bytes, *, end: bool) -> None:
        """A header block that the frame loop did not know."""
        stream = self.streams.get(stream_id)
        try:
            if stream is None:
                self._decoder.fields(block)
                self._on_frame_without_stream(stream_id, HEADERS)
            else:
                self._on_response(stream, self._decoder.decode(block), end)
        except StreamFault as fault:
            self.fault_stream(stream_id, fault)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None and not stream.headers_seen:
            self.received(len(payload))
            self._fault(stream, "DATA before the response's head")
            return
        if stream is not None and flags & END_STREAM and stream.remote_open:
            super()._on_data(flags, stream_id, payload)
            stream.remote_open = False
            if self.streams.get(stream_id) is stream:
                self._ended(stream)
        else:
            super()._on_data(flags, stream_id, payload)

    def _on_frame_without_stream(self, stream_id: int, kind: int) -> None:
        """A frame for a stream that never was, or that has ended.

        Late frames of cancelled calls are free: many clients share this connection.
        """
        if stream_id >= self._next_id or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")
        if kind in (DATA, HEADERS) and not self.was_reset(stream_id):
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "DATA or HEADERS on a closed stream")

    def reset(self, stream: ClientStream, code: int) -> None:
        """Ends a stream from here. A call that is cancelled before it has left never reaches the server.

        There is an exception: a call whose header block changes the server's table leaves anyway, and has no
        `queued_at`.
        """
        place = stream.queued_at - self.written
        if place >= 0 and not stream.headers_seen:
            self.out[place] = b""
            self.send_window -= stream.credit
            stream.queued_at = NOT_QUEUED
            self.forget(stream)
        else:
            super().reset(stream, code)
