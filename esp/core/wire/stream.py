"""One stream of an HTTP/2 connection: its two windows, and the DATA that waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from esp.core.wire.frames import (
    END_STREAM,
    HEADERS,
    MAX_FRAME_SIZE,
    ErrorCode,
    header_block,
    pack_header,
    window_update,
)
from esp.core.wire.native import mypyc_attr
from esp.core.wire.pump import Pending

if TYPE_CHECKING:
    from esp.core.wire.multiplexed import Multiplexed


COPIED: Final = 1024
"""Bytes of DATA that are put behind their frame's head at once; more are copied once only, with all output."""
C = TypeVar("C", bound="Multiplexed[Any]")


@mypyc_attr(allow_interpreted_subclasses=True)
class Stream(Generic[C]):
    """The state that both ends keep for a stream of a connection of type C; subclasses define what its events do.

    Attributes:
        credit: bytes that the peer granted beyond its initial window, minus the bytes sent.
        recv_window: bytes that the peer may still send.
        recv_owed: consumed bytes whose window the peer has yet to get back.
        has_sent: whether any DATA has left; only the server's end sets this to False at first.
        local_open, remote_open: whether esp, and the peer, may still send.
        pending: DATA that waits for a window; None when nothing does.
    """

    has_sent: bool

    __slots__ = (
        "connection",
        "credit",
        "has_sent",
        "id",
        "local_open",
        "pending",
        "recv_owed",
        "recv_window",
        "remote_open",
    )

    def __init__(self, connection: C, stream_id: int, recv_window: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.credit = 0
        self.recv_window = recv_window
        self.recv_owed = 0
        self.local_open = True
        self.remote_open = True
        self.pending: Pending | None = None

    # Events, for subclasses.

    def on_data(self, payload: bytes, end: bool) -> None:
        """DATA came. The taker calls `consumed` when done with the bytes."""
        raise NotImplementedError

    def on_reset(self, code: int, reason: str) -> None:
        """The stream is gone, and has left `connection.streams`: RST_STREAM came, or the connection ended."""
        raise NotImplementedError

    def on_drained(self, size: int) -> None:
        """`size` bytes that waited have been sent."""

    # Receiving.

    def received(self, size: int) -> bool:
        """Accounts for `size` bytes; False when the peer was not granted that much."""
        self.recv_window -= size
        return self.recv_window >= 0

    def consumed(self, size: int) -> None:
        """Gives `size` bytes of window back to the peer, in portions of at least a quarter of the window."""
        owed = self.recv_owed + size
        if owed > 8192 and owed << 1 > self.recv_window and self.remote_open:
            self.recv_window += owed
            self.connection.send(window_update(self.id, owed))
            owed = 0
        self.recv_owed = owed

    # Sending.

    def send_headers(self, block: bytes, end: bool) -> None:
        """Sends a header block; trailers queue behind DATA that waits."""
        connection = self.connection
        if self.pending is not None:
            assert end, "only trailers come after DATA"
            self.pending.trailers = block
            self.pending.end = True
            return
        connection.sent_since_ping = True
        out = connection.out
        if not out:
            connection.context.unflushed.append(connection)
        if len(block) <= MAX_FRAME_SIZE:
            out.append(pack_header(len(block) << 8 | HEADERS, 5 if end else 4, self.id) + block)
        else:
            out.append(header_block(self.id, block, end_stream=end))
        if end:
            self.local_open = False
            self.on_local_end()

    def send_data(self, payload: bytes, end: bool) -> bool:
        """Sends DATA at once (True), or queues it until the windows allow (False; `on_drained` tells)."""
        connection = self.connection
        size = len(payload)
        if (
            self.pending is None
            and size <= connection.send_window
            and size <= connection.peer_initial_window + self.credit
            and size <= MAX_FRAME_SIZE
            and connection.writable
        ):
            connection.send_window -= size
            self.credit -= size
            self.has_sent = True
            connection.sent_since_ping = True
            out = connection.out
            if not out:
                connection.context.unflushed.append(connection)
            if size > COPIED:
                out += pack_header(size << 8, 1 if end else 0, self.id), payload
            else:
                out.append(pack_header(size << 8, 1 if end else 0, self.id) + payload)
            if end:
                self.local_open = False
                self.on_local_end()
            return True
        self._queue(payload, end)
        return False

    def _queue(self, payload: bytes, end: bool) -> None:
        pending = self.pending
        if pending is None:
            pending = self.pending = Pending()
            if not payload and self.connection.writable:
                # An END_STREAM without data costs no window, and so waits for none.
                pending.chunks.append(payload)
                pending.end = end
                self.send_pending(0)
                return
        if not self.hold(len(payload)):
            self.drop()
            self.on_buffers_full()
            return
        pending.chunks.append(memoryview(payload) if len(payload) > MAX_FRAME_SIZE else payload)
        pending.size += len(payload)
        pending.end = end
        self.connection.unblock(self)

    # Memory.

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes kept for this call; False, and nothing accounted, when there is no room."""
        return self.connection.hold(size)

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        self.connection.release(size)

    def on_buffers_full(self) -> None:
        """DATA of this stream does not fit into the memory budget and is not kept: the stream ends."""
        self.connection.reset(self, ErrorCode.ENHANCE_YOUR_CALM)
        self.on_reset(ErrorCode.ENHANCE_YOUR_CALM, "too much data waits for slow readers")

    def send_pending(self, limit: int) -> int:
        """Sends one frame of waiting DATA, as far as `limit` and the stream's window go; the bytes sent.

        An END_STREAM without data costs no window and counts as one byte.
        """
        pending = self.pending
        if pending is None:
            return 0
        connection = self.connection
        window = max(0, min(limit, connection.peer_initial_window + self.credit))
        size = 0
        if pending.chunks:
            chunk = pending.chunks[0]
            size = len(chunk)
            if size and not window:
                return 0
            if size > window:
                pending.chunks[0] = chunk[window:]
                chunk = chunk[:window]
                size = window
            else:
                pending.chunks.popleft()
            pending.size -= size
            pending.sent += size
            self.release(size)
            connection.send_window -= size
            self.credit -= size
            self.has_sent = True
            last = not pending.chunks and pending.end and pending.trailers is None
            connection.send(pack_header(size << 8, END_STREAM if last else 0, self.id))
            connection.out.append(chunk)
            connection.sent_since_ping = True
        if not pending.chunks:
            self.pending = None
            if pending.trailers is not None:
                self.send_headers(pending.trailers, True)
            elif pending.end:
                self.local_open = False
                self.on_local_end()
        if size:
            self.on_drained(size)
        return size or 1

    def on_local_end(self) -> None:
        """Our side has ended; the stream is over when the peer's has."""
        if not self.remote_open:
            self.connection.forget(self)

    def drop(self) -> None:
        """Drops waiting DATA."""
        if self.pending is not None:
            self.release(self.pending.size)
            self.connection.pump.blocked.pop(self.id, None)
            self.pending = None

    def reset(self, code: int) -> None:
        """Ends the stream from here, if still open."""
        if self.connection.streams.get(self.id) is self:
            self.connection.reset(self, code)
