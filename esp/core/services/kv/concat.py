"""A Range over several shards, answered with the bytes of their answers, one after the other.

Concatenated protobuf messages of a type are one message of that type: repeated fields add up, and of a single field the
last one counts. So the merged answer is the shards' answers in key order, and a few bytes with the header and the count
behind them. The header of a large answer stands in front as well, for readers who print an answer while it comes.
Nothing is parsed, and no part waits for the whole. A client that reads slowly holds back the shards, and fills no
memory here. This serves Ranges that need no cutting and no sorting: without limit, in key order.

The code relies on one fact about etcd's encoding, and checks it: fields come in the order of their numbers, so the
header is first and the count is last. The gRPC prefix of the merged message needs the sum of the parts' lengths, and
each length comes in front of its part. So nothing is sent before every shard has begun to answer. If a shard fails
before that, the call fails cleanly. If a shard fails later, the stream ends with REFUSED_STREAM, which clients report
as Unavailable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.gate import Entry
from esp.core.services.kv.concat_part import COUNT_TAG, HEADER_TAG, TAIL_BYTES, Part
from esp.core.services.kv.rows import field
from esp.core.services.revision import merged_header, read_at, token
from esp.core.services.varint import MOST_BYTES, varint
from esp.core.shard import outcome
from esp.core.shard_map import Segment
from esp.core.tokens import Position
from esp.core.wire.ended import Passed, Several
from esp.core.wire.frames import ErrorCode, pack_u32
from esp.core.wire.message import prefix
from esp.core.wire.open_calls import CALL_BYTES
from esp.core.wire.server_stream import ServerCall, Sink
from esp.core.wire.status import OK, Code, Status

_Range = rpc_pb2.RangeRequest

KEY_TAG: Final = 0x0A
RANGE_END_TAG: Final = 0x12
MOST_SEGMENTS: Final = 64
"""The most parts; a range in more parts is merged by parsing."""
SHORT_ANSWER: Final = 4096
"""The most bytes of an answer without its header in front: such an answer is short enough to be read as a whole."""
MOST_ANSWER_BYTES: Final = 2**31 - 1
"""The most bytes of an answer. gRPC allows twice as much, but protobuf does not; etcd sends no more either."""


def can_concat(request: rpc_pb2.RangeRequest) -> bool:
    """Whether the merged answer has all rows of the parts, in the order of their keys."""
    return request.limit <= 0 and request.sort_target == _Range.KEY


class Concat(Sink):
    """One client's Range: begins the parts, sends them on in order, and ends the answer."""

    __slots__ = (
        "_again",
        "_count",
        "_entry",
        "_header",
        "_parts",
        "_revision",
        "_started",
        "_to_begin",
        "_unsent",
        "down",
        "routing",
        "small",
    )

    def __init__(self, down: ServerCall, routing: Routing, entry: Entry, again: Callable[[], None]) -> None:
        """`again` answers the call in another way if a shard's connection breaks before anything was sent.

        `entry` has the places at the shards.
        """
        self.down = down
        self._entry = entry
        self._again = again
        self.routing = routing
        self._parts: list[Part] = []  # the parts that were not sent on whole, in order
        self._unsent: deque[tuple[Part | None, int]] = deque()  # by piece that waits: part, and bytes
        self._count = 0
        self._header = b""
        self._revision = 0
        self._started = False
        self._to_begin = 0  # parts whose answer has not begun to come
        self.small = 0  # a part's answer of at most so many bytes is covered by the memory that every call counts for

    def sent_to(self) -> tuple[Passed | Several | None, float, bytes]:
        """The shards that were asked, and what the client asked."""
        return self._entry.sent_to()

    def begin(self, request: rpc_pb2.RangeRequest, segments: Sequence[Segment], position: Position | None) -> bool:
        """Asks every shard for its part. False, without any effect, if a shard cannot be asked at once.

        Without a `position` to read at, a shard can be asked only once: two parts would be of two moments.

        Raises:
            RpcError: the position has no revision for one of the shards.
        """
        connections = [self.routing.shards[segment.shard].free_connection() for segment in segments]
        if None in connections or len(segments) > MOST_SEGMENTS:
            return False
        if position is None and len({segment.shard for segment in segments}) < len(segments):
            return False
        messages = self._messages(request, segments, position)
        in_order = list(zip(segments, messages, connections, strict=True))
        if request.sort_order == _Range.DESCEND:
            in_order.reverse()
        self.down.sink = self
        self._to_begin = len(segments)
        self.small = CALL_BYTES // len(segments)
        forward, timeout = self.down.forward, self.down.remaining_timeout()
        for segment, message, connection in in_order:
            assert connection is not None
            if self.down.sink is not self:
                break  # a part could not be sent, and the call has failed
            one = Part(connection, self, self.routing.shards[segment.shard])
            self._parts.append(one)
            connection.call(one, forward, timeout, message, end=True)
        return True

    def _messages(
        self, request: rpc_pb2.RangeRequest, segments: Sequence[Segment], position: Position | None
    ) -> list[bytes]:
        """The requests for the parts, with their prefixes: `request` with other keys, at the shard's revision.

        Raises:
            RpcError: the position has no revision for one of the shards.
        """
        rest = _Range()
        rest.CopyFrom(request)
        rest.ClearField("key")
        rest.ClearField("range_end")
        messages = []
        fields = rest.SerializeToString()
        for segment in segments:
            if position is not None:
                self._revision = request.revision
                rest.revision = read_at(position, segment.shard)
                rest.serializable = False
                fields = rest.SerializeToString()
            key, range_end = segment.range.to_request()
            end = field(RANGE_END_TAG, range_end) if range_end else b""
            messages.append(prefix(field(KEY_TAG, key) + end + fields))
        return messages

    def begun(self, one: Part) -> None:
        """A part has begun to come. Its bytes wait until the parts before it have been sent on."""
        self._to_begin -= 1
        self._entry.answered(one.name, one.length)

    def advance(self) -> None:
        """Sends on all bytes that can be sent on: called when bytes have come, or the client has read."""
        if self.down.sink is not self:
            return  # the call has failed, or the client is gone
        if not self._started:
            if self._to_begin:
                return
            if all(one.has_ended and one.is_small for one in self._parts):
                self._answer()
                return
            self._start()
        while self._parts and not self._unsent:
            current = self._parts[0]
            if not current.has_ended:
                self._enter(current)
            while current.pieces and not self._unsent:
                self._send(current, current.take())
            if current.pieces or not current.has_ended or self.down.sink is not self:
                return
            count = current.count()
            if count is None:
                self.fail(current.blamed("is no RangeResponse"))
                return
            self._count += count
            self._parts.pop(0).forget()
            self._entry.leave(current.name)
        if not self._parts and not self._unsent and self.down.sink is self:
            self._finish()

    def passes(self, one: Part) -> bool:
        """Whether new bytes of a part can be sent on at once, because nothing waits before them."""
        return self.down.sink is self and self._started and not self._unsent and self._parts[0] is one

    def pass_on(self, one: Part, piece: bytes) -> None:
        """Sends on new bytes of a part that `passes`."""
        self._enter(one)
        self._send(one, piece)

    def _enter(self, one: Part) -> None:
        if not one.is_whole and self._entry.enter(one.name):
            self._entry.weigh(one.name, one.length)

    def _merged_header(self) -> bytes:
        revision = self._revision or token(self.routing, {one.name: one.header.revision for one in self._parts})
        header = merged_header([one.header for one in self._parts], self.routing.identity, revision)
        return field(HEADER_TAG, header.SerializeToString())

    def _answer(self) -> None:
        """Answers in one step from small parts that have all come whole, as nearly all do."""
        pieces: list[bytes] = []
        for one in self._parts:
            count = one.count()
            if count is None:
                self.fail(one.blamed("is no RangeResponse"))
                return
            self._count += count
            pieces += one.pieces
        header = self._merged_header()
        message = b"".join(pieces) + self._tail(header)
        for one in self._parts:
            one.forget()
        self._entry.close()
        self.down.sink = None
        self._tell(OK)
        self.down.respond(_front(header, len(message)) + message)

    def _tail(self, header: bytes) -> bytes:
        return header + bytes((COUNT_TAG,)) + varint(self._count, MOST_BYTES)

    def _start(self) -> None:
        encoded = self._merged_header()
        length = sum(one.length for one in self._parts) + len(encoded) + TAIL_BYTES
        front = _front(encoded, length)
        length += len(front)
        if length > MOST_ANSWER_BYTES:
            text = f"grpc: trying to send message larger than max ({length} vs. {MOST_ANSWER_BYTES})"
            self.fail(Status(Code.RESOURCE_EXHAUSTED, text))
            return
        self._started = True
        self._header = encoded
        self.down.start()
        self._send(None, b"\0" + pack_u32(length) + front)

    def _send(self, owner: Part | None, piece: bytes) -> None:
        """Sends bytes. When they have left, their shard, if any, may send as many more."""
        self._unsent.append((owner, len(piece)))
        if self.down.send_data(piece, False):
            self._unsent.pop()
            if owner is not None:
                owner.consumed(len(piece))
        elif owner is not None:
            self._entry.give_way(owner.name)  # the part now waits for a client that may not read at all

    def _finish(self) -> None:
        self._entry.close()
        self.down.sink = None
        self.down.send_data(self._tail(self._header), False)
        self._tell(OK)
        self.down.finish(OK)

    def _tell(self, status: Status) -> None:
        """Tells what the client asked, too; `finish` alone would not."""
        if not self.down.is_over:
            self.down.tell(status.code, *self.sent_to())

    def fail(self, status: Status) -> None:
        """Ends the call after a first failure, because the answer cannot be whole: cancels the other parts."""
        if self.down.sink is not self:
            return
        if not self._started:
            self._tell(status)
        self._stop()
        if self._started:
            self.down.reset(ErrorCode.REFUSED_STREAM)
        else:
            self.down.finish(status)

    def broken(self, *, unprocessed: bool) -> None:
        """A shard's connection broke: reads all shards again, or fails the call."""
        if self.down.sink is not self:
            return
        repeatable = not self._started and not self.down.retried
        status = outcome(unprocessed=unprocessed, reads=True, repeatable=repeatable)
        if status is not None:
            self.fail(status)
            return
        self.cancelled(ErrorCode.CANCEL, "")
        self.down.retried = True
        self._again()

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

    def cancelled(self, code: int, reason: str) -> None:
        """The client no longer waits."""
        self._stop()

    def _stop(self) -> None:
        """Ends all parts and drops their bytes."""
        self._entry.close()
        self.down.sink = None
        parts, self._parts = self._parts, []
        for one in parts:
            one.stop()


def _front(header: bytes, length: int) -> bytes:
    """The bytes in front of the parts: the header, if the answer has too many bytes (`length`) without them."""
    return header if length > SHORT_ANSWER else b""
