"""The streams of a connection: their output, how they are reset, and how they learn of the connection's end.

Flow control, sending: a stream may send as much as the connection's window (`send_window`) and its own window allow. A
stream's own window is `peer_initial_window + credit`; so a SETTINGS change is one assignment for any number of open
streams. DATA that does not fit waits in the stream's `pending`, and the `pump` sends such DATA in turns. Receiving: the
connection's window is given back on receipt, so a slow reader never stops its neighbours. A stream's window is given
back when its bytes have left on the other side (`Stream.consumed`), so a slow reader stops the sender.
"""

from __future__ import annotations

import logging
from typing import Any, Final, Generic, TypeVar

from esp.core.wire.connection import Connection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import (
    DEFAULT_WINDOW,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    rst_stream,
    window_update,
)
from esp.core.wire.native import mypyc_attr
from esp.core.wire.pump import Pump
from esp.core.wire.recent_resets import RecentResets
from esp.core.wire.stalled import StalledStreams
from esp.core.wire.stream import Stream

log = logging.getLogger("esp.wire")

TOLD_AT_ONCE: Final = 10
"""Streams that learn in one go that their connection has ended; a stream takes 20 to 100 microseconds."""
LOOKED_AT_AT_ONCE: Final = 200
"""Streams whose deadlines are looked at in one turn; a stream takes a microsecond."""

S = TypeVar("S", bound=Stream[Any])


@mypyc_attr(allow_interpreted_subclasses=True)
class Multiplexed(Connection, Generic[S]):
    """A connection with streams of type S.

    Attributes:
        streams: the open streams by id.
        tell_gone: whether `on_stream_gone` is called.
        pump: sends the streams' waiting DATA.
        at_once: the most bytes of DATA that a new stream may send in one frame, if the connection's window allows that;
            -1 while the transport is full, and when it is gone.
        send_window: bytes of DATA that the peer accepts on the connection.
        peer_initial_window: the window that each stream begins with at the peer.
        peer_max_streams: the streams that the peer lets esp open at a time.
        recv_limit: the connection's window for DATA of the peer, in bytes.
        recv_window: the bytes of that window that the peer may still send.
        sent_since_ping: whether HEADERS or DATA have left since the peer's last PING.
    """

    __slots__ = (
        "_end_reason",
        "_is_put_off",
        "_resets",
        "_seen_at",
        "_stalled",
        "_unseen",
        "_untold",
        "at_once",
        "peer_initial_window",
        "peer_max_streams",
        "pump",
        "recv_limit",
        "recv_window",
        "send_window",
        "sent_since_ping",
        "streams",
        "tell_gone",
    )

    def __init__(self, context: WireContext, peer: str, recv_limit: int) -> None:
        super().__init__(context, peer)
        self.recv_limit = recv_limit
        self.recv_window = recv_limit
        self.streams: dict[int, S] = {}
        self.tell_gone = False
        self.pump: Pump[S] = Pump()
        self.send_window = DEFAULT_WINDOW
        self.peer_initial_window = DEFAULT_WINDOW
        self.at_once = MAX_FRAME_SIZE
        self.peer_max_streams = MAX_WINDOW
        self.sent_since_ping = True
        self._is_put_off = False
        self._resets = RecentResets()
        self._stalled = StalledStreams()
        self._unseen: list[S] = []  # streams whose deadlines the tick at `_seen_at` has yet to look at
        self._seen_at = 0.0
        self._untold: list[S] = []
        self._end_reason = ""

    # DATA that comes.

    def received(self, size: int) -> None:
        """Accounts for `size` bytes of DATA on the connection and gives them back in time.

        Raises:
            ConnectionFault: FLOW_CONTROL_ERROR, more than was granted.
        """
        window = self.recv_window - size
        if window < 0:
            self.recv_window = 0
            raise ConnectionFault(
                ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection window", "connection_window_bytes"
            )
        if window < self.recv_limit >> 1:
            self.send(window_update(0, self.recv_limit - window))
            window = self.recv_limit
        self.recv_window = window

    # DATA that waits.

    def take_output(self) -> bytes:
        """The queued frames, for a caller that moves the bytes itself."""
        data = b"".join(self.out)
        self.written += len(self.out)
        self.out.clear()
        self.pump.new_turn()
        if self in self.context.unflushed:
            self.context.unflushed.remove(self)
        return data

    def pause(self) -> None:
        """The transport is full."""
        super().pause()
        self.set_at_once()

    def resume(self) -> None:
        """The transport has room again."""
        super().resume()
        self.set_at_once()
        self.send_waiting()

    def set_at_once(self) -> None:
        """Sets `at_once` after a change of what it is made of."""
        self.at_once = min(self.peer_initial_window, MAX_FRAME_SIZE) if self.writable else -1

    def unblock(self, stream: S) -> None:
        """Lets a stream with waiting DATA send, as far as the connection allows."""
        self.pump.blocked[stream.id] = stream
        self.send_waiting()

    def send_waiting(self) -> None:
        """Sends waiting DATA, as far as the connection's window, the transport and this turn go."""
        if self.pump.run(self):
            self._put_off_rest()

    def _put_off_rest(self) -> None:
        if not self._is_put_off:
            self._is_put_off = True
            self.context.put_off(self)

    def go_on(self) -> None:
        """Begins a new turn: more waiting DATA may leave, or more streams are looked at, or learn of the end."""
        self._is_put_off = False
        self.pump.new_turn()
        if self._untold:
            self._tell_some()
            return
        if self._unseen:
            self._look_at_some()
        self.send_waiting()

    # Streams that end.

    def forget(self, stream: S) -> None:
        """The stream is closed on both sides."""
        if self.streams.pop(stream.id, None) is not None and self.tell_gone:
            self.on_stream_gone()

    def on_stream_gone(self) -> None:
        """A stream has left `streams`, and `tell_gone` is set."""

    def reset(self, stream: S, code: int) -> None:
        """Ends a stream from here with RST_STREAM; late frames of the peer for it are ignored."""
        self.send_reset(stream.id, code)
        stream.drop()
        self.forget(stream)

    def send_reset(self, stream_id: int, code: int) -> None:
        """Sends RST_STREAM, whether the stream was open or not."""
        self.send(rst_stream(stream_id, code))
        self._resets.add(stream_id)

    def was_reset(self, stream_id: int) -> bool:
        """Whether esp has reset the stream lately: then frames of the peer may still be on their way."""
        return stream_id in self._resets

    def fault_stream(self, stream_id: int, fault: StreamFault) -> None:
        """Resets a stream on which the peer broke a rule, and tells the stream's owner."""
        self.context.counters.stream_faults += 1
        if fault.limit:
            self.context.reached(fault.limit)
        log.debug("%s: stream %d: %s", self.peer, stream_id, fault)
        self.glitch(1, "stream errors")
        stream = self.streams.get(stream_id)
        if stream is None:
            self.send_reset(stream_id, fault.code)
            return
        self.reset(stream, fault.code)
        stream.on_reset(fault.code, fault.reason)

    def lost(self, reason: str) -> None:
        """The connection is gone: tells open streams, and drops all waiting output."""
        if self.ended:
            return
        super().lost(reason)
        self.at_once = -1  # so that no whole answer passes for sent to streams that are yet to be told
        self.pump.blocked.clear()
        self._untold = list(self.streams.values())
        self._untold.reverse()
        self._unseen.clear()
        self._end_reason = reason
        self.streams.clear()
        if len(self._untold) > TOLD_AT_ONCE:
            self._put_off_rest()  # thousands of connections may end at once
        else:
            self._tell_some()

    def _tell_some(self) -> None:
        """Tells streams that the connection has ended; thousands take several turns."""
        for _ in range(min(len(self._untold), TOLD_AT_ONCE)):
            stream = self._untold.pop()
            stream.drop()
            try:
                stream.on_reset(ErrorCode.CANCEL, self._end_reason)
            except Exception:
                log.exception("%s: a bug in esp; stream %d was not told of the end", self.peer, stream.id)
        if self._untold:
            self._put_off_rest()

    # Deadlines.

    def _expire(self, now: float) -> None:
        """Looks at the deadlines of the connection, and begins to look at those of its streams."""
        super()._expire(now)
        if self.ended or self._unseen:
            return
        self._unseen = list(self.streams.values())
        self._unseen.reverse()
        self._seen_at = now
        self.begin_round()
        self._look_at_some()

    def _look_at_some(self) -> None:
        """Looks at the deadlines of some streams; thousands take several turns."""
        unseen, streams = self._unseen, self.streams
        for _ in range(min(len(unseen), LOOKED_AT_AT_ONCE)):
            stream = unseen.pop()
            if streams.get(stream.id) is stream:
                self.look_at(stream, self._seen_at)
        if self.ended:
            unseen.clear()
        elif unseen:
            self._put_off_rest()

    def begin_round(self) -> None:
        """`look_at` will be called once for each stream that is open now and then."""
        self._stalled.begin()

    def look_at(self, stream: S, now: float) -> None:
        """Ends a stream whose DATA has waited too long for a window: others need the memory of that DATA."""
        if stream.pending is None:
            return
        late = now - self._stalled.since(stream, self.pump, now) > self.limits.blocked_write_timeout
        if late and self.writable:
            self.context.reached("blocked_write_timeout")
            # Not CANCEL: etcd's Go client would repeat the call, though it may have been a write.
            self.reset(stream, ErrorCode.INTERNAL_ERROR)
            stream.on_reset(ErrorCode.INTERNAL_ERROR, "the peer gives no window for what waits")
