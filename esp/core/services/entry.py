"""A call that waits before the gate (`gate`), and then has places at shards."""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import monotonic
from typing import TYPE_CHECKING, Final, NewType

from esp.core.wire.ended import Passed, Several
from esp.core.wire.server_stream import ServerCall, Sink

if TYPE_CHECKING:
    from esp.core.services.gate import Gate, Line

Kind = NewType("Kind", int)
"""A kind of call, with places of its own at each shard."""
NEW: Final = Kind(0)
"""A read of one key whose client has had no answer yet."""
NEW_RANGE: Final = Kind(1)
"""Any other read whose client has had no answer yet. Its answer may be much larger, so reads of one key do not wait for
it."""
LARGE: Final = Kind(2)
"""A call that is known to be large: its parts take PLACES."""
ORDINARY: Final = Kind(3)
"""Any other call."""
MEDIUM: Final = Kind(4)
"""A read that is neither known to be small nor large; and a snapshot, which asks its shards several times."""
KINDS: Final = (NEW, NEW_RANGE, LARGE, ORDINARY, MEDIUM)
COSTLY: Final = (LARGE, MEDIUM)
"""The kinds that cost a shard much, so it rests from them (`rests`)."""
RESTED: Final = (*COSTLY, NEW_RANGE)
"""The kinds of which a shard works on few at a time. None of them begins while the shard rests from that kind: from
NEW_RANGE it rests only after those whose answers have proved large or medium."""

PLACES: Final = 16
"""The most places that a part takes. A part takes so many, too, if its client has had no answer yet."""
PLACE_BYTES: Final = 16_384
"""Bytes of an answer, or of a request, for one place."""
LARGE_ANSWER: Final = (PLACES - 1) * PLACE_BYTES
"""An answer or a request of at least so many bytes takes all places that a part may take."""
WAITING_PART: Final = 4
"""An answer of more than PLACE_BYTES that waits for its client counts as this part of its places: a quarter, and one
place at least."""
SMALL_REQUEST: Final = 1024
"""A request of at most so many bytes is covered by the memory that every open call counts for."""


class Entry(Sink):
    """A call, and the places that it has. The entry is the sink of the call's stream until the call begins.

    Attributes:
        stream: the client's stream.
        shards: the shards at which the call wants places.
        reads: whether the size of the call's answer predicts those of the client's next reads.
        one_key: whether the call reads one key.
        costly: the call costs its shards much even if its answers are small.
        passes_stopped: whether the call needs no place at a shard that has stopped.
        line: the line in which the call waits; None if it does not wait.
        asked: the beginning of the request, for the log.
        passed: the calls that are passed on to the one shard that the call is for, if there is one.
    """

    __slots__ = (
        "_all",
        "_began",
        "_begin",
        "_coming",
        "_counted",
        "_gate",
        "_is_closed",
        "_kept",
        "_largest",
        "_places",
        "_size",
        "_weight",
        "asked",
        "costly",
        "line",
        "one_key",
        "passed",
        "passes_stopped",
        "reads",
        "shards",
        "stream",
    )

    def __init__(
        self,
        gate: Gate,
        stream: ServerCall,
        shards: tuple[str, ...],
        size: int,
        begin: Callable[[Entry], None],
        *,
        reads: bool = True,
        weight: int = 1,
        passes_stopped: bool = False,
        one_key: bool = False,
        costly: bool = False,
        asked: bytes = b"",
        passed: Passed | None = None,
    ) -> None:
        self.stream = stream
        self.shards = shards
        self.reads = reads
        self.passes_stopped = passes_stopped
        self.one_key = one_key
        self.costly = costly
        self.asked = asked
        self._all: dict[str, None] | None = None  # all shards that the call has asked, if more than `shards`
        self._began = 0.0
        self.passed = passed
        self.line: Line | None = None
        self._gate = gate
        self._begin: Callable[[Entry], None] | None = begin
        self._size = size if size > SMALL_REQUEST else 0  # of its request, counted while the call waits
        self._weight = weight  # places for its request
        self._is_closed = False
        self._largest = -1  # bytes of the largest answer to one of its parts; -1 before the first
        self._places: dict[str, tuple[int, Kind, float]] = {}  # by shard: how many, of which kind, since when
        self._coming: set[str] | None = None  # the shards whose large answers have begun to come
        self._counted: set[str] | None = None  # the shards that count as asked, and have not answered
        self._kept: dict[str, int] | None = None  # what answers that wait for the client still count for, by shard
        stream.sink = self

    def sent_to(self) -> tuple[Passed | Several | None, float, bytes]:
        """The shard or shards that the call waits for or has asked, and what the client asked."""
        return self.passed or Several(tuple(self._all or self.shards)), self._began, self.asked

    @property
    def is_wanted(self) -> bool:
        """Whether the call has yet to begin, and its client has not taken it back."""
        return self._begin is not None

    def weight(self, shard: str) -> int:
        """The places that the call's part takes at `shard`."""
        if not self.reads:
            return self._weight
        weight = self.stream.connection.weight
        if weight < 0:
            weight = self._gate.unknown((shard, self.kind))
        return max(weight, self._weight)

    @property
    def kind(self) -> Kind:
        """The kind of the call, as far as it is known now."""
        if self._weight >= PLACES:
            return LARGE
        if not self.reads:
            return ORDINARY
        weight = self.stream.connection.weight
        if weight < 0:
            return NEW if self.one_key else NEW_RANGE
        if weight >= PLACES:
            return LARGE
        return MEDIUM if weight > 1 or self.costly else ORDINARY

    def hold(self) -> bool:
        """Counts the request as memory until the call begins. Without memory the call ends; then False."""
        if not self._size or self.stream.hold(self._size):
            return True
        self._size = 0
        self.stream.cut()
        return False

    def wait(self, line: Line) -> None:
        """Puts the call in line."""
        self.line = line
        line.calls[self] = None

    def begin(self) -> None:
        """Takes places at all wanted shards, and begins the call's work.

        Raises:
            RpcError: the call is refused.
        """
        self._leave_line()
        self._began = monotonic()
        kind = self.kind
        for shard in self._gate.wanted(self):
            self._asks(shard, kind)
        begin, self._begin = self._begin, None
        assert begin is not None, "a call begins once"
        begin(self)

    def enter(self, shard: str, *, asks: bool = True) -> bool:
        """Takes places for the call's part at `shard`; False if the part has them already.

        `asks`: the shard is asked once more than when the call began. If not, it was counted then, or the places are
        for work with its answer.
        """
        if shard in self._places:
            return False
        if self._all is None:
            self._all = dict.fromkeys(self.shards)
        self._all[shard] = None
        self._asks(shard, self.kind, asks=asks)
        return True

    def _asks(self, shard: str, kind: Kind, *, asks: bool = True) -> None:
        if self._kept:
            self._release(shard)
        if asks and kind != ORDINARY:  # a client's first read counts as large until its answer comes
            self._gate.alone.asked[shard] += 1
            if self._counted is None:
                self._counted = set()
            self._counted.add(shard)
        self._take(shard, kind, self.weight(shard))

    def _take(self, shard: str, kind: Kind, weight: int) -> None:
        gate, places = self._gate, self._places
        if not places:
            gate.at_work[self] = monotonic()
        places[shard] = weight, kind, gate.rests.clock()
        gate.take(self.stream.connection, shard, weight, kind)

    def weigh(self, shard: str, size: int) -> None:
        """Notes that the answer to a part begins to come, and that it will have `size` bytes."""
        gate = self._gate
        if gate.stopped:
            gate.stopped.discard(shard)  # as `heard`
        is_largest = self.reads and size > self._largest
        if is_largest:
            self._largest = size
        taken = self._places.get(shard)
        if self._has_answered(shard) and taken is not None and taken[1] in (NEW, NEW_RANGE) and size <= PLACE_BYTES:
            gate.alone.asked[shard] -= 1
        if size <= PLACE_BYTES:
            return  # as nearly all: that needs no more places than the call has
        if self._coming is None:
            self._coming = set()
        self._coming.add(shard)
        if is_largest:
            gate.note_large(self.stream, size)
        if taken is None:
            # It has lost its places while it waited for the shard. From now on it counts again.
            if not self._is_closed and not (self._kept and shard in self._kept):
                self._take(shard, LARGE if size >= LARGE_ANSWER else self.kind, gate.places_for(size))
        else:
            before, kind, since = taken
            places = max(before, gate.places_for(size))
            found = LARGE if size >= LARGE_ANSWER or kind == LARGE else MEDIUM
            if (places, found) != (before, kind):
                self._places[shard] = places, found, since
                if kind == NEW_RANGE:
                    gate.worked(shard, kind, gate.places_for(size), gate.rests.clock() - since)
                gate.take(self.stream.connection, shard, places, found)
                gate.free(self.stream.connection, shard, before, kind)

    def comes(self, size: int) -> None:
        """As `weigh`, for a call to one shard."""
        for shard in self.shards:
            self.weigh(shard, size)

    def answered(self, shard: str, size: int) -> None:
        """Frees the places at a shard whose answer, of `size` bytes, has begun to come.

        Until `leave` a large one counts for its connection: it may wait for its client, or behind other parts.
        """
        self.weigh(shard, size)
        self.give_way(shard)

    def heard(self, shard: str) -> None:
        """Notes that the shard has answered, and so has not stopped."""
        self._gate.stopped.discard(shard)
        self._has_answered(shard)

    def _has_answered(self, shard: str) -> bool:
        """Whether the shard counts as asked until now, where it has answered or is not waited for any more."""
        if self._counted is None or shard not in self._counted:
            return False
        self._counted.discard(shard)
        return True

    def give_way(self, shard: str) -> bool:
        """Frees the places at a shard, where the call's part is not at work, but has not ended.

        Returns whether a large answer has begun to come. Such an answer waits for the client, and still counts for its
        connection, as less than before, until the part enters again or leaves.
        """
        taken = self._places.pop(shard, None)
        is_coming = self._coming is not None and shard in self._coming
        if taken is not None:
            kept = max(1, taken[0] // WAITING_PART) if is_coming else 0
            if kept:
                self._kept = self._kept or {}
                self._kept[shard] = kept
            self._free(shard, *taken, kept)
        return is_coming

    def wait_for_client(self) -> None:
        """Frees all places: answers that have begun to come wait for the client."""
        for shard in tuple(self._places):
            self.give_way(shard)

    def _release(self, shard: str) -> None:
        """Ends what an answer that has waited for its client counts for."""
        kept = self._kept.pop(shard, 0) if self._kept else 0
        if kept:
            self._gate.let_go(self.stream.connection, shard, kept)

    def leave(self, shard: str) -> None:
        """Frees the places at a shard where the call's part is not at work any more."""
        if self._kept:
            self._release(shard)
        taken = self._places.pop(shard, None)
        if taken is not None:
            self._free(shard, *taken)

    def _free(self, shard: str, places: int, kind: Kind, since: float, kept: int = 0) -> None:
        gate = self._gate
        if not self._places:
            del gate.at_work[self]
        if self._has_answered(shard):
            gate.alone.asked[shard] -= 1  # it may never have been asked: the call was taken back as it began
        if kind in COSTLY:
            gate.worked(shard, kind, places, gate.rests.clock() - since)
        gate.free(self.stream.connection, shard, places, kind, kept)

    @property
    def held(self) -> Collection[str]:
        """The shards where the call's parts are at work."""
        return self._places

    def close(self) -> None:
        """Gives back every place that the call still holds. The call takes none any more."""
        self._is_closed = True
        largest, self._largest = self._largest, -1
        if largest >= 0:
            self._gate.note_small(self, largest)
        for shard in (*self._places, *(self._kept or ())):
            self.leave(shard)

    def cancelled(self, code: int, reason: str) -> None:
        """The client no longer waits for a call that has not begun."""
        self._leave_line()
        self._begin = None

    def _leave_line(self) -> None:
        """Takes the call out of its line, and gives back the memory of its request."""
        self.stream.sink = None
        line, self.line = self.line, None
        if line is not None:
            del line.calls[self]
            if not line.calls:
                self._gate.forget(line)
        if self._size:
            self.stream.release(self._size)
