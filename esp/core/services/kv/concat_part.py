"""One shard's part of a Range that is answered with the bytes of the shards' answers (`concat`)."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from esp.core.services.kv.kept_answer import TAIL_BYTES, KeptAnswer
from esp.core.services.kv.range_bytes import HEADER_TAG
from esp.core.shard import Compared, Shard
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.frames import MAX_FRAME_SIZE, unpack_u32
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import Code, Status

_SHORTEST: Final = PREFIX_SIZE + 2


class Concatenation(Protocol):
    """The merged answer, as its parts see it.

    Attributes:
        down: the client's stream.
        small: a part's answer of at most so many bytes is covered by the memory that every call counts for.
        collects: answers are kept until all have come whole; else only as many bytes as a shard may send at once.
    """

    down: ServerCall
    small: int
    collects: bool

    def begun(self, one: Part) -> None:
        """The shard has begun to answer: header and length of its part are known."""

    def came(self, one: Part) -> None:
        """The answer has come whole; all at once if `begun` was not called."""

    def pass_on(self, one: Part, piece: bytes) -> bool:
        """Sends new bytes of a part at once; False if others have to leave first."""

    def advance(self) -> None:
        """More bytes of a part have come."""

    def fail(self, status: Status) -> None:
        """The part failed, and so the call does."""

    def broken(self, *, unprocessed: bool) -> None:
        """The shard's connection broke."""

    def give_up(self) -> None:
        """A shard cannot be asked in this way."""


class Part(KeptAnswer):
    """One shard's answer. Reads prefix and header, and keeps the bytes behind the prefix until their turn.

    Attributes:
        name: the name of the shard.
        message: the request, with its prefix.
        leave: takes the part out of the transaction in which it was sent; None if it is in none.
        is_small: the answer is covered by the memory that every call counts for; known once `is_begun`.
    """

    __slots__ = (
        "_came",
        "_concat",
        "_sent",
        "_shard",
        "_start",
        "has_ended",
        "is_begun",
        "is_sent",
        "is_small",
        "leave",
        "message",
        "name",
    )

    def __init__(self, concat: Concatenation, shard: Shard, message: bytes, limit: int = 0) -> None:
        # What ClientStream needs follows in `send`.
        self.name = shard.name
        self.message = message
        self.limit = limit
        self.whole = b""
        self.header = b""
        self.length = 0
        self.is_begun = self.has_ended = self.is_sent = False
        self.is_small = True
        self._reserved = 0
        self.leave: Callable[[], None] | None = None
        self._concat: Concatenation | None = concat
        self.down = concat.down
        self._shard = shard

    def send(self, forward: Forward, timeout: bytes) -> bool:
        """Asks the shard. False, without any effect, if the shard cannot be asked now."""
        connection = self._shard.free_connection()
        if connection is None:
            return False
        ClientStream.__init__(self, connection)
        self.is_sent = True
        self._prepare()
        self._start = b""
        self._sent = monotonic()
        if forward[1].__class__ is bytes:
            connection.call_whole(self, forward, timeout, self.message)
        else:
            connection.call(self, forward, timeout, self.message, end=True)
        return True

    def send_in_turn(self) -> None:
        """Asks the shard in the turn in which the call has come, or has the call answered in another way."""
        concat, down = self._concat, self.down
        if concat is not None and not self.send(down.head.forward, down.timeout):
            concat.give_up()

    def send_late(self) -> None:
        """As `send_in_turn`, later."""
        concat, down = self._concat, self.down
        if concat is not None and not self.send(down.forward, down.remaining_timeout()):
            concat.give_up()

    def on_broken(self, *, unprocessed: bool) -> None:
        """The connection broke on which the part was sent."""
        if self._concat is not None:
            self._concat.broken(unprocessed=unprocessed)

    def give_up(self) -> None:
        """Has the call answered in another way."""
        if self._concat is not None:
            self._concat.give_up()

    def fail(self, status: Status) -> None:
        """Fails the call."""
        if self._concat is not None:
            self._concat.fail(status)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The answer's head or trailers."""
        concat = self._concat
        if concat is None or (head.opens and not end):
            return
        status = head.outcome()
        self._tell(status.code)
        if head.lacks_status:
            concat.fail(self.blamed("ends without a grpc-status"))
        elif status.code:
            self._shard.consider_moving(self.connection, status)
            concat.fail(status)
        elif not end or not self.is_begun or self._got != self.length:
            concat.fail(self.blamed("is not exactly one message"))
        else:
            self.has_ended = True
            concat.came(self)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        concat = self._concat
        if concat is None:
            return
        if end:
            concat.fail(self.blamed("ends without trailers"))
            return
        if not self.is_begun:
            self._start += payload
            payload = self._begin(concat)
            if not self.is_begun:
                return
        got = self._got = self._got + len(payload)
        if got + TAIL_BYTES > self.length:
            self._tail = (self._tail + payload)[-TAIL_BYTES:]
        if not self.pieces and concat.pass_on(self, payload):
            return
        if self.is_small or self._keep(len(payload)):
            self.pieces.append(payload)
            if concat.collects:
                self.consumed(len(payload))
            else:
                concat.advance()
        else:
            concat.down.cut()

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole small answer, in fewer steps than `on_headers` and `on_data` would take."""
        concat, connection = self._concat, self.connection
        if concat is None:
            return
        passed = connection.passed
        self._came = connection.heard
        if passed is not None:
            passed.asked[concat.down.head.path](self._came - self._sent)
        self.take(payload)

    def take_joined(self, answer: bytes, came: float) -> None:
        """As `take`, for an answer that came at `came` with those to other parts."""
        self._came = came
        self.take(answer)

    def take(self, answer: bytes) -> None:
        """Takes a whole answer, with its prefix."""
        concat = self._concat
        if concat is None:
            return
        length = self.length = len(answer) - PREFIX_SIZE
        if length < 2 or answer[0] or answer[PREFIX_SIZE] != HEADER_TAG or answer[_SHORTEST - 1] > 0x7F:
            concat.fail(self.blamed("is no RangeResponse"))
            return
        end = _SHORTEST + answer[_SHORTEST - 1]
        if length < end - PREFIX_SIZE or unpack_u32(answer, 1)[0] != length:
            concat.fail(self.blamed("is not exactly one message"))
            return
        self.header = answer[PREFIX_SIZE:end]
        if length <= concat.small:
            self.whole = answer
            self.has_ended = True
            concat.came(self)
        else:
            self._take_large(concat, answer)

    def _take_large(self, concat: Concatenation, answer: bytes) -> None:
        if not self.is_sent:
            self._prepare()
        self._begins(concat)
        if self._concat is None:
            return
        self._got = self.length
        if not self._keep(self.length):
            concat.down.cut()
            return
        self._tail = answer[-TAIL_BYTES:]
        self.has_ended = True
        for at in range(PREFIX_SIZE, len(answer), MAX_FRAME_SIZE):
            self.pieces.append(answer[at : at + MAX_FRAME_SIZE])
        concat.came(self)

    def waited(self, now: float) -> tuple[float, float]:
        """When the shard was asked, and when its answer came or began to come; `now` if that is still to happen."""
        sent = self._sent if self.is_sent else self.down.opened
        return sent, self._came if self.is_begun or self.has_ended else now

    @property
    def is_whole(self) -> bool:
        """Whether all bytes of the answer have come."""
        return self.has_ended or self._got >= self.length

    def blamed(self, fault: str) -> Status:
        """The status for the client if the shard's answer is malformed; `fault` names the fault."""
        return self._shard.blamed(fault).status

    def consumed(self, size: int) -> None:
        """Lets the shard send `size` more bytes."""
        if self.is_sent:
            super().consumed(size)

    def forget(self) -> None:
        """Cuts the link to the merged answer, because the part has been sent on."""
        self._concat = None

    def stop(self) -> None:
        """Ends the call and drops its bytes, without telling `Concat`."""
        self._concat = None
        self.drop_pieces()
        if self.is_sent:
            self.cancel()
        elif self.leave is not None:
            leave, self.leave = self.leave, None
            leave()

    def _begin(self, concat: Concatenation) -> bytes:
        """Reads prefix and header. The bytes behind the prefix, once the header is whole; else b""."""
        start = self._start
        if len(start) < _SHORTEST:
            return b""
        end = _SHORTEST + start[_SHORTEST - 1]
        if start[0] or start[PREFIX_SIZE] != HEADER_TAG or start[_SHORTEST - 1] > 0x7F:
            concat.fail(self.blamed("is no RangeResponse"))
            return b""
        if len(start) < end:
            return b""
        self.length = unpack_u32(start, 1)[0]
        self.header = start[PREFIX_SIZE:end]
        self._begins(concat)
        self.consumed(PREFIX_SIZE)
        return start[PREFIX_SIZE:]

    def _begins(self, concat: Concatenation) -> None:
        self._came = self.connection.heard if self.is_sent else self._came
        self.is_small = self.length <= concat.small
        self.is_begun = True
        concat.begun(self)

    def _tell(self, code: int) -> None:
        self.tell_asked(self.down.head.path, code, self._sent)

    def on_reset(self, code: int, reason: str) -> None:
        """The shard is gone."""
        self._tell(Code.UNAVAILABLE)
        self.on_broken(unprocessed=self.surely_unprocessed(code))


class ComparedPart(Compared, Part):
    """A part of a shard that holds a guard."""

    __slots__ = ("beginning", "kind", "opening")


def part_of(concat: Concatenation, shard: Shard, message: bytes, limit: int = 0) -> Part:
    """A part of a shard, of which nothing was asked yet."""
    return (Part if shard.guard is None else ComparedPart)(concat, shard, message, limit)
