"""The half of a merged Range (`concat`) that sends: the pieces of the parts, in order, as fast as the client reads."""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import Final

from esp.core.log.first_key import BEGINNING
from esp.core.services.gate import Entry
from esp.core.services.handlers import UNFLUSHED_BYTES
from esp.core.services.kv.concat_part import Part
from esp.core.services.kv.range_bytes import COUNT_TAG
from esp.core.varint import MOST_BYTES, varint
from esp.core.wire.ended import Passed, Several
from esp.core.wire.frames import pack_u32
from esp.core.wire.server_stream import ServerCall, Sink
from esp.core.wire.status import OK, Code, Status

log = logging.getLogger("esp.service")

MOST_ANSWER_BYTES: Final = 2**31 - 1
"""The most bytes of an answer. gRPC allows twice as much, but protobuf does not; etcd sends no more either."""


class Sending(Sink):
    """Sends the pieces of the parts.

    Attributes:
        down: the client's stream.
        collects: the answers are sent after all have come whole.
    """

    __slots__ = (
        "_all",
        "_asked",
        "_count",
        "_end",
        "_entry",
        "_is_put_off",
        "_parts",
        "_started",
        "_unsent",
        "collects",
        "down",
    )

    def __init__(self, down: ServerCall, entry: Entry | None, asked: bytes) -> None:
        self.down = down
        self._entry = entry
        self._asked = asked
        self._parts: list[Part] = []  # the parts that were not sent on whole, in order
        self._all: Several | None = None  # the shards of all parts, once the answer has begun
        self._unsent: deque[tuple[Part | None, int]] = deque()  # by piece that waits: part, and bytes
        self._count = 0  # of the parts that were sent on whole
        self._end = b""
        self._started = self.collects = self._is_put_off = False

    def sent_to(self) -> tuple[Passed | Several | None, float, bytes]:
        """The shards that were asked, and what the client asked."""
        if self._entry is None:
            return self._all or self._times(), self.down.opened, self._asked[:BEGINNING]
        shards, sent, asked = self._entry.sent_to()
        return self._all or (self._times() if self._parts else shards), sent, asked

    def _times(self) -> Several:
        """The shards, and how long the call has waited for each."""
        now = monotonic()
        waits = [one.waited(now) for one in self._parts]
        # One round follows the other at once, so esp has waited from the first question to the last answer.
        upstream = max([came for _, came in waits]) - min([sent for sent, _ in waits]) if waits else 0.0
        return Several(tuple([one.name for one in self._parts]), tuple([came - sent for sent, came in waits]), upstream)

    def start(self) -> bool:
        """Begins to send, if that is possible now."""
        raise NotImplementedError

    def fail(self, status: Status) -> None:
        """Ends the call after a failure."""
        raise NotImplementedError

    def _begin_to_send(self, size: int, front: bytes, last: bytes) -> bool:
        """Sends the beginning of the answer; False if the answer is too large.

        Args:
            size: the bytes behind `front`.
            front: what comes before the parts.
            last: what comes behind them; the count follows if the answers are sent as they come.
        """
        self._all = self._times()
        size += len(front)
        if size > MOST_ANSWER_BYTES:
            text = f"grpc: trying to send message larger than max ({size} vs. {MOST_ANSWER_BYTES})"
            self.fail(Status(Code.RESOURCE_EXHAUSTED, text))
            return False
        self._started = True
        self._end = last
        self.down.start()
        self._send(None, b"\0" + pack_u32(size) + front)
        return True

    def advance(self) -> None:
        """Sends on all bytes that can be sent on: called when bytes have come, or the client has read."""
        if self.down.sink is not self:
            return  # the call has failed, or the client is gone
        if not self._started and not self.start():
            return
        sent = 0
        while self._parts and not self._unsent:
            current = self._parts[0]
            if not current.has_ended:
                self._enter(current)
            while current.pieces and not self._unsent:
                if sent >= UNFLUSHED_BYTES:
                    self._put_off()
                    return
                piece = current.next_piece()
                sent += len(piece)
                self._send(current, piece)
            if current.pieces or not current.has_ended or self.down.sink is not self:
                return
            if not self.collects:
                count = current.count()
                if count is None:
                    self.fail(current.blamed("is no RangeResponse"))
                    return
                self._count += count
            self._parts.pop(0).forget()
            if self._entry is not None:
                self._entry.leave(current.name)
        if not self._parts and not self._unsent and self.down.sink is self:
            self._finish()

    def _put_off(self) -> None:
        if not self._is_put_off:
            self._is_put_off = True
            self.down.connection.context.put_off(self)  # only a flush shows that the transport is full

    def go_on(self) -> None:
        """The next turn has come."""
        self._is_put_off = False
        self.advance()

    def on_bug(self) -> None:
        """An exception came out of `go_on`."""
        log.exception("a bug in esp; a Range fails")
        self.down.on_bug()

    def pass_on(self, one: Part, piece: bytes) -> bool:
        """Sends new bytes of a part at once; False if others have to leave first."""
        if not self._started or self._unsent or self.down.sink is not self or self._parts[0] is not one:
            return False
        self._enter(one)
        self._send(one, piece)
        return True

    def _enter(self, one: Part) -> None:
        if self._entry is not None and not one.is_whole and self._entry.enter(one.name, asks=False):
            self._entry.weigh(one.name, one.length)

    def _send(self, owner: Part | None, piece: bytes) -> None:
        """Sends bytes. When they have left, their shard, if any, may send as many more."""
        self._unsent.append((owner, len(piece)))
        if self.down.send_data(piece, False):
            self._unsent.pop()
            if owner is not None:
                owner.consumed(len(piece))
        elif owner is not None and self._entry is not None:
            self._entry.give_way(owner.name)  # the part now waits for a client that may not read at all

    def _finish(self) -> None:
        if self._entry is not None:
            self._entry.close()
        self.down.sink = None
        last = self._end
        if not self.collects:
            last += bytes((COUNT_TAG,)) + varint(self._count, MOST_BYTES)
        self.down.send_data(last, False)
        self._tell(OK)
        self.down.finish(OK)

    def drained(self, size: int) -> None:
        """The client has read: the shards of these bytes may send as many more."""
        while size:
            owner, waiting = self._unsent.popleft()
            left = min(size, waiting)
            if owner is not None:
                owner.consumed(left)
            if waiting > left:
                self._unsent.appendleft((owner, waiting - left))
            size -= left
        self.advance()

    def _tell(self, status: Status) -> None:
        """Tells what the client asked, too; `finish` alone would not."""
        self.down.tell(status.code, *self.sent_to())
