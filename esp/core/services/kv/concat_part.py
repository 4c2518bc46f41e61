"""One shard's part of a Range that is answered with the bytes of the shards' answers (`concat`)."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from esp.core.pb import rpc_pb2
from esp.core.services.varint import MOST_BYTES
from esp.core.shard import Shard
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.frames import unpack_u32
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import Code, Status

HEADER_TAG: Final = 0x0A
COUNT_TAG: Final = 0x20
TAIL_BYTES: Final = 1 + MOST_BYTES
"""Bytes of the count, the same for any count: the length of the answer is known before the count."""
RESERVED: Final = 131_072
"""Bytes of a part that are accounted for in one go."""


class Concatenation(Protocol):
    """The merged answer, as its parts see it.

    Attributes:
        down: the client's stream.
        small: a part's answer of at most so many bytes is covered by the memory that every call counts for.
    """

    down: ServerCall
    small: int

    def begun(self, one: Part) -> None:
        """The shard has begun to answer: header and length of its part are known."""

    def passes(self, one: Part) -> bool:
        """Whether bytes of this part may leave now."""

    def pass_on(self, one: Part, piece: bytes) -> None:
        """Sends bytes that need not be kept."""

    def advance(self) -> None:
        """A part has more to send, or has ended."""

    def fail(self, status: Status) -> None:
        """The answer cannot be whole."""

    def broken(self, *, unprocessed: bool) -> None:
        """The shard's connection broke."""


class Part(ClientStream):
    """One shard's answer. Reads prefix and header, and keeps the bytes behind the prefix until their turn.

    Keeps no more than the window of a stream.

    Attributes:
        is_small: the answer is covered by the memory that every call counts for; known once `is_begun`.
    """

    __slots__ = (
        "_concat",
        "_down",
        "_got",
        "_header_bytes",
        "_kept",
        "_reserved",
        "_sent",
        "_shard",
        "_start",
        "_tail",
        "has_ended",
        "header",
        "is_begun",
        "is_small",
        "length",
        "name",
        "pieces",
    )

    def __init__(self, connection: ClientConnection, concat: Concatenation, shard: Shard) -> None:
        super().__init__(connection)
        self.name = shard.name
        self._concat: Concatenation | None = concat
        self._down = concat.down
        self._shard = shard
        self._start = b""
        self._tail = b""
        self._got = 0
        self._header_bytes = 0
        self._kept = 0
        self._reserved = 0
        self._sent = monotonic()
        self.is_small = False
        self.length = 0
        self.header = rpc_pb2.ResponseHeader()
        self.is_begun = False
        self.has_ended = False
        self.pieces: deque[bytes] = deque()

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
            concat.advance()

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
        self._got += len(payload)
        tail = payload[-TAIL_BYTES:]
        self._tail = tail if len(tail) == TAIL_BYTES else (self._tail + tail)[-TAIL_BYTES:]
        if not self.pieces and concat.passes(self):
            concat.pass_on(self, payload)
        elif self.is_small or self._keep(len(payload)):
            self.pieces.append(payload)
            concat.advance()
        else:
            concat.down.cut()

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole small answer, in fewer steps than `on_headers` and `on_data` would take."""
        concat = self._concat
        if concat is None:
            return
        self._tell(Code.OK)
        self._start = payload
        body = self._begin(concat)
        if self._concat is None:
            return  # the answer was no RangeResponse
        self._got = len(body)
        if not self.is_begun or self._got != self.length:
            concat.fail(self.blamed("is not exactly one message"))
        elif self.is_small or self._keep(self._got):
            self._tail = body[-TAIL_BYTES:]
            self.has_ended = True
            self.pieces.append(body)
            concat.advance()
        else:
            concat.down.cut()

    @property
    def is_whole(self) -> bool:
        """Whether all bytes of the answer have come."""
        return self._got >= self.length

    def blamed(self, fault: str) -> Status:
        """The status for the client if the shard's answer is malformed; `fault` names the fault."""
        return self._shard.blamed(fault).status

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes of the answer that are kept, as memory of the client's call."""
        return self._down.hold(size)

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        self._down.release(size)

    def take(self) -> bytes:
        """The next piece, and its memory given back."""
        piece = self.pieces.popleft()
        if self._reserved:
            self._kept -= len(piece)
            if not self.pieces or self._reserved - self._kept >= 2 * RESERVED:
                self.release(self._reserved - self._kept)
                self._reserved = self._kept
        return piece

    def _keep(self, size: int) -> bool:
        """Accounts for `size` bytes of the answer, and for some of the bytes to follow; False if there is no room.

        To account for each piece alone took a tenth of the time of a large answer.
        """
        kept = self._kept + size
        if kept > self._reserved:
            missing = kept - self._reserved
            more = max(missing, min(RESERVED, missing + self.length - self._got))
            if not self._down.may_hold(more):
                more = missing
            if not self.hold(more):
                return False
            self._reserved += more
        self._kept = kept
        return True

    def forget(self) -> None:
        """Cuts the link to the merged answer, because the part has been sent on."""
        self._concat = None

    def stop(self) -> None:
        """Ends the call and drops its bytes, without telling `Concat`."""
        self._concat = None
        while self.pieces:
            self.take()
        self.cancel()

    def _begin(self, concat: Concatenation) -> bytes:
        """Reads prefix and header. The bytes behind the prefix, once the header is whole; else b""."""
        start = self._start
        if len(start) < PREFIX_SIZE + 2:
            return b""
        header_end = PREFIX_SIZE + 2 + start[PREFIX_SIZE + 1]
        if start[0] or start[PREFIX_SIZE] != HEADER_TAG or start[PREFIX_SIZE + 1] > 0x7F:
            concat.fail(self.blamed("is no RangeResponse"))
            return b""
        if len(start) < header_end:
            return b""
        try:
            self.header = rpc_pb2.ResponseHeader.FromString(start[PREFIX_SIZE + 2 : header_end])
        except DecodeError:
            concat.fail(self.blamed("is no RangeResponse"))
            return b""
        self.length = unpack_u32(start, 1)[0]
        self._header_bytes = header_end - PREFIX_SIZE
        self.is_small = self.length <= concat.small
        self.is_begun = True
        concat.begun(self)
        self.consumed(PREFIX_SIZE)
        return start[PREFIX_SIZE:]

    def _tell(self, code: int) -> None:
        self.tell_asked(self._down.head.path, code, self._sent)

    def on_reset(self, code: int, reason: str) -> None:
        """The shard is gone."""
        self._tell(Code.UNAVAILABLE)
        if self._concat is not None:
            self._concat.broken(unprocessed=self.surely_unprocessed(code))

    def count(self) -> int | None:
        """The count at the end of the answer; 0 if the answer has only a header; None if it has neither."""
        if self.length == self._header_bytes:
            return 0
        tail = self._tail
        last = start = len(tail) - 1
        while start > 0 and tail[start - 1] > 0x7F:
            start -= 1
        if tail[-1] > 0x7F or start == 0 or tail[start - 1] != COUNT_TAG:
            return None
        if start == last:
            return tail[last]
        return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(tail[start:]))
