"""The connections of a shard that holds a guard: what reads or writes keys goes as a transaction that compares it.

This is the one place where the comparison is made (docs/decisions/2026-11-30-one-map.md). All calls of a shard leave by
its connections, so none leaves without; a call whose answer could not be cut out fails here, before it is sent. If the
shard refuses the comparison, the call is told MAP_CHANGED as if the shard had answered so: nothing was done.

A proxy's own calls (`OWN`) compare nothing: they read the map itself. Commands that read or write keys by a map compare
in theirs.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from esp.core import errors
from esp.core.auth_tokens import OWN
from esp.core.shard.compared import BEGINNING, GarbledError, Guard, Kind
from esp.core.wire.call import MessageCall, TogetherCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.context import WireContext
from esp.core.wire.frames import unpack_u32
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ResponseHead, refusal
from esp.core.wire.splice import CountedCall, LateCall, SplicedCall

Message = TypeVar("Message", bound=Sized)

TXN: Final = b"/etcdserverpb.KV/Txn"
KINDS: Final = {
    b"/etcdserverpb.KV/Range": Kind.RANGE,
    b"/etcdserverpb.KV/Put": Kind.PUT,
    b"/etcdserverpb.KV/DeleteRange": Kind.DELETE_RANGE,
    TXN: Kind.TXN,
}
"""The RPCs that compare the guard, by path."""
_REFUSED: Final = refusal(errors.MAP_CHANGED)


class GuardedConnection(ClientConnection):
    """A connection to a shard that holds a guard.

    Args:
        guard: the guard, by the map by which calls come here.
        shard: the name of the shard.
        free: the metadata of calls that compare nothing; None if each call compares.
    """

    __slots__ = ("free", "guard", "shard")

    def __init__(
        self, context: WireContext, authority: str, guard: Guard, shard: str, free: bytes | None = OWN
    ) -> None:
        super().__init__(context, authority)
        self.guard = guard
        self.shard = shard
        self.free = free

    def call(self, stream: ClientStream, forward: Forward, timeout: bytes, data: bytes | None, *, end: bool) -> None:
        """As `ClientConnection.call`."""
        kind = KINDS.get(forward[0])
        if kind is not None and forward[1] is not self.free:
            assert data is not None, "it has one message"
            data = self._compared(stream, kind, data)
            forward = TXN, forward[1]
        super().call(stream, forward, timeout, data, end=end)

    def call_whole(self, stream: ClientStream, forward: Forward, timeout: bytes, data: bytes) -> None:
        """As `ClientConnection.call_whole`."""
        kind = KINDS.get(forward[0])
        if kind is not None and forward[1] is not self.free:
            # `_compared`, spelled out: this runs once per request.
            assert isinstance(stream, Compared), "its answer could not be cut out"
            if stream.only_reads:
                kind = Kind.READS
            stream.kind = kind
            stream.opening = None
            stream.beginning = b""
            data = self.guard.compared(kind, data)
            forward = TXN, forward[1]
        super().call_whole(stream, forward, timeout, data)

    def _compared(self, stream: ClientStream, kind: int, data: bytes) -> bytes:
        assert isinstance(stream, Compared), "its answer could not be cut out"
        if stream.only_reads:
            kind = Kind.READS
        stream.kind = kind
        stream.opening = None
        stream.beginning = b""
        return self.guard.compared(kind, data)


class Compared(ClientStream):
    """A call that compares the guard, in front of the class of any call. Its request and its answer are the client's.

    Attributes:
        only_reads: it is a transaction of esp's own.
        kind: what the request is.
        opening: the answer's head, which waits for the beginning of the answer.
        beginning: the bytes that have come of an answer of which it is not known yet what it is; None once it is.
    """

    if not TYPE_CHECKING:
        __slots__ = ()  # slots of two bases do not fit together, so each class below has its own

    connection: GuardedConnection
    only_reads: ClassVar[bool] = False
    kind: int
    opening: ResponseHead | None
    beginning: bytes | None

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer."""
        try:
            answer = self.connection.guard.whole(payload, self.kind)
        except GarbledError:
            self._end_with(self._no_answer())
            return
        if answer is None:
            self._end_with(_REFUSED)
        else:
            self.beginning = None
            super().on_answer(head, answer, trailers)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The answer's head, or its trailers."""
        if self.beginning is None:
            super().on_headers(head, end)
        elif not end and head.opens:
            self.opening = head
        elif self.beginning:
            self._end_with(self._no_answer())
        else:
            self.beginning = None
            opening, self.opening = self.opening, None
            if opening is not None:
                super().on_headers(opening, False)
            super().on_headers(head, end)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        if self.beginning is None:
            super().on_data(payload, end)
            return
        beginning = self.beginning + payload
        if len(beginning) < BEGINNING and not end and not _is_whole(beginning):
            self.beginning = beginning
            return
        try:
            cut = self.connection.guard.cut(beginning, self.kind)
        except GarbledError:
            self._cut_short(self._no_answer(), end)
            return
        if cut is None:
            self._cut_short(_REFUSED, end)
            return
        self.beginning = None
        opening, self.opening = self.opening, None
        assert opening is not None, "DATA comes behind the head"
        super().on_headers(opening, False)
        rest = cut.head + beginning[cut.rest :]
        self.consumed(len(beginning) - len(rest))
        super().on_data(rest, end)

    def _cut_short(self, instead: ResponseHead, has_ended: bool) -> None:
        if not has_ended:
            ClientStream.cancel(self)
        self._end_with(instead)

    def _end_with(self, instead: ResponseHead) -> None:
        """The stream is over, and ends for the call with these trailers."""
        self.beginning = self.opening = None
        super().on_headers(instead, True)

    def _no_answer(self) -> ResponseHead:
        return refusal(errors.garbled(self.connection.shard, "is not to what it was asked"))


def _is_whole(answer: bytes) -> bool:
    return len(answer) >= PREFIX_SIZE and len(answer) >= PREFIX_SIZE + unpack_u32(answer, 1)[0]


class ComparedSplice(Compared, SplicedCall):
    """A call passed on."""

    __slots__ = ("beginning", "kind", "opening")


class ComparedLate(Compared, LateCall):
    """A call passed on that is sent some time after it came."""

    __slots__ = ("beginning", "kind", "opening")


class ComparedCounted(Compared, CountedCall):
    """A call passed on that has a place at its shard."""

    __slots__ = ("beginning", "kind", "opening")


class ComparedMessage(Compared, MessageCall[Message]):
    """A call of a coroutine."""

    __slots__ = ("beginning", "kind", "opening")


class ComparedTogether(Compared, TogetherCall[Message]):
    """One of several calls of a coroutine."""

    __slots__ = ("beginning", "kind", "opening")
