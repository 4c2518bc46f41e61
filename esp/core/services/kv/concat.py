"""A Range over several shards, answered with the bytes of their answers.

In key order nothing is parsed but the headers; another order is made by `concat_order`. If all answers are small, or
the Range has a limit or another order, they are put together once all have come: one header, the rows as they came,
`more` and the count, as one etcd would write them. With a limit, the rows behind it are cut off. If the limit is high,
the first shard is asked before the others, which then send no more rows than the limit leaves. If the last such Range
got all its rows from its first shard, as pages do, the others are asked for their count meanwhile; those answers are of
no use if the first shard has fewer rows than the limit, and the others are asked anew.

Large answers without limit are sent on as they come. Concatenated protobuf messages of a type are one message of that
type: repeated fields add up, and of a single field the last one counts. So this merged answer is the shards' answers in
key order, and a few bytes with the header and the count behind them. The header of a large answer stands in front as
well, for readers who print an answer while it comes. No part waits for the whole. A client that reads slowly holds back
the shards, and fills no memory here.

The code relies on one fact about etcd's encoding, and checks it: fields come in the order of their numbers, so the
header is first and the count is last. The gRPC prefix of the merged message needs the sum of the parts' lengths, and
each length comes in front of its part. So nothing is sent before every shard has begun to answer. If a shard fails
before that, the call fails cleanly. If a shard fails later, the stream ends with REFUSED_STREAM, which clients report
as Unavailable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Final

from esp.core import errors
from esp.core.log.first_key import BEGINNING
from esp.core.pb import rpc_pb2
from esp.core.services.gate import Entry
from esp.core.services.kv.concat_order import put_in_order
from esp.core.services.kv.concat_part import Part, part_of
from esp.core.services.kv.concat_sending import Sending
from esp.core.services.kv.kept_answer import TAIL_BYTES
from esp.core.services.kv.merge import count_of, part, requests, with_limit
from esp.core.services.kv.part_batch import PartBatches
from esp.core.services.kv.range_bytes import end, end_of_rows, first_rows
from esp.core.services.kv.spans import Spans
from esp.core.services.revision import read_at
from esp.core.shard import outcome
from esp.core.shard_map import Segment
from esp.core.tokens import Position
from esp.core.wire.frames import ErrorCode, pack_u32
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.open_calls import CALL_BYTES
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import OK, RpcError, Status

log = logging.getLogger("esp.service")

_Range = rpc_pb2.RangeRequest

MOST_SEGMENTS: Final = 64
"""The most parts; a range in more parts is merged by parsing."""
MANY_ROWS: Final = 100
"""A Range with at least this limit is read in two rounds: first the part whose rows come first, because it may hold all
rows of the answer. A further round to the shards costs about as much as reading 100 rows in vain."""
SHORT_ANSWER: Final = 4096
"""The most bytes of an answer that is sent on as it comes without its header in front."""


class Concat(Sending):
    """One client's Range: asks the shards, waits for their answers, and makes one of them."""

    __slots__ = ("_again", "_later", "_limit", "_open", "_revision", "_sorted", "_to_begin", "small", "spans")

    def __init__(
        self, down: ServerCall, spans: Spans, entry: Entry | None, again: Callable[[], None], asked: bytes = b""
    ) -> None:
        """`again` answers the call in another way if a shard's connection breaks before anything was sent.

        `entry` has the places at the shards; None if the call needs none as long as its answers are small. `asked` is
        the request, for the log.
        """
        super().__init__(down, entry, asked)
        self.spans = spans
        self._again = again
        self._later: tuple[_Range, Sequence[Segment], Position | None] | None = None  # what the second round asks for
        self._sorted: _Range | None = None  # for another order than that of the keys
        self._revision = self._limit = 0
        self._to_begin = 0  # parts whose answer has not begun to come
        self._open = 0  # parts whose answer has not come whole
        self.small = 0  # a part's answer of at most so many bytes is covered by the memory that every call counts for

    # Asking.

    def begin(self, request: rpc_pb2.RangeRequest, segments: Sequence[Segment], position: Position | None) -> bool:
        """Asks every shard for its part. False, without any effect, if a shard cannot be asked at once.

        Without a `position` to read at, a shard can be asked only once: two parts would be of two moments.

        Raises:
            RpcError: the position has no revision for one of the shards.
        """
        if len(segments) > MOST_SEGMENTS or not self._are_free(segments):
            return False
        if position is None and len({segment.shard for segment in segments}) < len(segments):
            return False
        # The one owner of a whole range sorts, filters and cuts the rows itself.
        limit = 0 if request.count_only or len(segments) == 1 else max(0, request.limit)
        if position is not None:
            self._revision = request.revision
        now = in_order = segments
        if request.sort_target != _Range.KEY and not request.count_only and len(segments) > 1:
            self._sorted = request
            limit = part(request, segments[0].range).limit
        elif request.sort_order == _Range.DESCEND:
            now = in_order = segments[::-1]
        self._limit = limit
        self.collects = limit > 0 or self._sorted is not None
        self.small = CALL_BYTES // len(segments)
        if limit >= MANY_ROWS and self._sorted is None:
            now = in_order[:1]
            self._later = request, in_order[1:], position
            if position is not None:
                for segment in in_order[1:]:
                    read_at(position, segment.shard)  # raises here, not when the second round begins
        self.down.sink = self
        self._ask(request, now, position, limit)
        if self._later is not None and self.spans.first_has_all and self.down.sink is self:
            self._ask(count_of(request), in_order[1:], position, 0)
        return True

    def _are_free(self, segments: Sequence[Segment]) -> bool:
        shards = self.spans.routing.shards
        return all(shards[segment.shard].free_connection() is not None for segment in segments)

    def _ask(self, request: _Range, segments: Sequence[Segment], position: Position | None, limit: int) -> None:
        shards = self.spans.routing.shards
        self._to_begin += len(segments)
        self._open += len(segments)
        forward, timeout = self.down.forward, self.down.remaining_timeout()
        for segment, message in zip(segments, requests(request, segments, position), strict=True):
            if self.down.sink is not self:
                return  # a part could not be sent, and the call has failed
            one = part_of(self, shards[segment.shard], message, limit)
            self._parts.append(one)
            if not one.send(forward, timeout):
                self.give_up()

    def begin_bare(self, batches: Sequence[PartBatches], messages: Sequence[bytes]) -> None:
        """As `begin`, with the requests to these shards, which differ, in key order.

        Parts without places are joined with others of this turn.
        """
        self.down.sink = self
        count = self._to_begin = self._open = len(messages)
        self.small = CALL_BYTES // count
        self._parts = [part_of(self, one.shard, message) for one, message in zip(batches, messages, strict=True)]
        for each, one in zip(batches, self._parts, strict=True):
            if self._entry is None:
                each.add(one)
            else:
                one.send_late()
            if self.down.sink is not self:
                return  # a part could not be sent

    def _on_first(self) -> None:
        """All of the first part has come, of a Range that is read in two rounds."""
        assert self._later is not None
        request, segments, position = self._later
        self._later = None
        first, *counts = self._parts
        count = _count_of(first)
        if count is None:
            self.fail(first.blamed("is no RangeResponse"))
            return
        left = max(0, self._limit - count)
        self.spans.first_has_all = not left
        if counts and not left:
            return  # they have been asked for all that is needed
        for one in counts:
            if not one.has_ended:
                self._open -= 1
            if not one.is_begun and not one.whole:
                self._to_begin -= 1
            one.stop()
        del self._parts[1:]
        if self._entry is not None:
            for segment in segments:
                self._entry.enter(segment.shard)
        self._ask(with_limit(request, left) if left else count_of(request), segments, position, left)

    # From the shards.

    def begun(self, one: Part) -> None:
        """A part has begun to come. Its bytes wait until the parts before it have been sent on."""
        self._to_begin -= 1
        if self._entry is None and not one.is_small:
            # The client's answers were small up to now: from here on this one counts, as any other that is large.
            self._entry = Entry(self.spans.gate, self.down, tuple([each.name for each in self._parts]), 0, _nothing)
            self._entry.asked = self._asked[:BEGINNING]
            self.down.sink = self
        if self._entry is not None:
            if self.collects:
                self._entry.weigh(one.name, one.length)
            else:
                self._entry.answered(one.name, one.length)

    def came(self, one: Part) -> None:
        """All of a part has come."""
        self._open -= 1
        if not one.is_begun:
            self._to_begin -= 1
            if self._entry is not None:
                self._entry.answered(one.name, one.length)
        elif self.collects and self._entry is not None:
            self._entry.give_way(one.name)
        if self._later is not None and one is self._parts[0]:
            self._on_first()
            if self.down.sink is not self:
                return
        if self._open or self._started:
            self.advance()
        elif self._sorted is None and all(each.is_small for each in self._parts):
            self._answer()
        elif self.collects:
            steps = self._collect() if self._sorted is None else self._sort(self._sorted)
            if next(steps, self) is None:  # more rows than fit a step have to be passed over
                self.down.connection.do_later(steps)
        else:
            self.advance()

    # The answer.

    def start(self) -> bool:
        """Begins to send answers as they come, once all have begun to."""
        if self._to_begin or self.collects:
            return False
        header = self._merged_header()
        if header is None:
            return False
        size = sum([one.length for one in self._parts]) + len(header) + TAIL_BYTES
        for one in self._parts:
            one.unfold()
        return self._begin_to_send(size, header if size > SHORT_ANSWER else b"", header)

    def _merged_header(self) -> bytes | None:
        """The header; None if the call has failed for want of one."""
        try:
            return self.spans.header(self._parts, self._revision)
        except RpcError as error:
            self.fail(error.status)
            return None

    def _answer(self) -> None:
        """Answers in one step from small parts that have all come whole, as nearly all do."""
        pieces: list[bytes] = [b"", b""]  # the prefix and the header come there
        count, left = 0, self._limit
        for one in self._parts:
            whole = one.whole or one.joined()
            found = end_of_rows(whole, PREFIX_SIZE + len(one.header), one.limit)
            if found is None:
                self.fail(one.blamed("is no RangeResponse"))
                return
            behind, number = found
            count += number
            rows = whole[PREFIX_SIZE + len(one.header) : behind]
            if self._limit:
                number = min(number, one.limit)  # without a limit it has only counted
                if number > left:
                    rows = first_rows(rows, left)
                    number = left
                left -= number
            pieces.append(rows)
        header = self._merged_header()
        if header is None:
            return
        pieces[1] = header
        pieces.append(end(count, more=0 < self._limit < count))
        pieces[0] = b"\0" + pack_u32(sum(map(len, pieces)))
        self._close()
        down = self.down
        down.sink = None
        message = b"".join(pieces)
        if down.respond_at_once(message):
            served, took = self.spans.served, monotonic() - down.opened
            if served is not None and took < served.slow and not down.trace:
                served.took[down.head.path](took)
            else:
                self._tell(OK)
        else:
            self._tell(OK)
            down.respond(message[PREFIX_SIZE:])
        self._parts.clear()

    def _close(self) -> None:
        """Gives back the places, and lets the parts go."""
        for one in self._parts:
            one.forget()
        if self._entry is not None:
            self._entry.close()

    def _collect(self) -> Iterator[None]:
        """Makes the answer out of what was kept, in steps, and begins to send it."""
        count, left, size = 0, self._limit, 0
        for one in self._parts:
            number = one.trim()
            if number is None:
                self.fail(one.blamed("is no RangeResponse"))
                return
            count += number
            rows = min(number, one.limit)  # without a limit it has only counted
            if rows > left:
                is_cut = yield from one.cut(left)
                if self.down.sink is not self:
                    return
                if not is_cut:
                    self.fail(one.blamed("is no RangeResponse"))
                    return
                rows = left
            left -= rows
            size += one.size
        header = self._merged_header()
        if header is None:
            return
        last = end(count, more=count > self._limit)
        if self._begin_to_send(size + len(last), header, last):
            self.advance()

    def _sort(self, request: rpc_pb2.RangeRequest) -> Iterator[None]:
        """As `_collect`, for another order than that of the keys."""
        try:
            made = yield from put_in_order(request, self._parts, lambda: self.down.sink is self)
        except RpcError as error:
            self.fail(error.status)
            return
        header = None if made is None else self._merged_header()
        if made is not None and header is not None:
            size, last = made
            if self._begin_to_send(size + len(last), header, last):
                self.advance()

    # The end.

    def fail(self, status: Status) -> None:
        """Ends the call after a first failure, because the answer cannot be whole: cancels the other parts."""
        if self.down.sink is not self:
            return
        outdated = self.spans.routing.outdated
        if status == errors.MAP_CHANGED and outdated is not None and not self._started:
            self._stop()
            outdated(self.down, self._asked)
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
        self.down.retried = True
        self.give_up()

    def give_up(self) -> None:
        """Has the call answered in another way; nothing was sent."""
        if self.down.sink is self:
            self._stop()
            self._again()

    def cancelled(self, code: int, reason: str) -> None:
        """The client no longer waits."""
        self._stop()

    def _stop(self) -> None:
        """Ends all parts and drops their bytes."""
        if self._entry is not None:
            self._entry.close()
        self.down.sink = None
        parts, self._parts = self._parts, []
        for one in parts:
            one.stop()


def _nothing(entry: Entry) -> None:
    """Begins nothing: the call has begun."""


def _count_of(one: Part) -> int | None:
    """The count of a part that has come whole."""
    if one.whole:
        found = end_of_rows(one.whole, PREFIX_SIZE + len(one.header), one.limit)
        return None if found is None else found[1]
    return one.count()
