"""A gate before each shard for calls that span shards: so many of their parts are at work there at once, and no more.

Such a call costs esp and the shards a multiple of what its client pays to send it. Without a bound one connection
that sends many has all of them going on at once, and everybody else's calls stand behind them, here and in etcd.

A call begins when there is a place at each shard that it is about; until then it waits, and costs little. Nor does it
begin before all is read that has come with it: a call that its client takes back in the same breath asks no shard and
makes no task (CVE-2023-44487). Those of one connection wait in line, those of different connections begin in turn. A
part gives its place back when its shard has answered, so a call that waits for a stopped shard holds a place there and
nowhere else, and those that are not about that shard go on. A part with a large answer takes several places. What a
call that has begun asks further is counted, but does not wait. A place that was held for a second is given to others:
whoever has it waits for something that is no work, such as a shard that has stopped.

How many wait is bounded by the memory for calls (`max_call_bytes`), and their requests by `max_buffered_bytes`.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from time import monotonic
from typing import Final

from esp.core.background import Background
from esp.core.wire.connection import Connection
from esp.core.wire.context import WireContext
from esp.core.wire.server_stream import ServerStream, Sink
from esp.core.wire.status import RpcError

log = logging.getLogger("esp.service")

SMALL_REQUEST: Final = 1024
"""Bytes of a request up to which what an open call is counted as has room for it."""
STUCK_SECONDS: Final = 1.0
"""How long a part may hold a place."""
PLACES: Final = 4
"""Places that a part takes whose answer may be of any size. Where the last answer to its client's connection was small,
a part takes one: a gate that lets few through at a time would break up what otherwise leaves in one write."""
SMALL_ANSWER: Final = 4096
MOST_SMALL: Final = 10_000
"""Connections of which is remembered that the last answer was small."""
PLACE_BYTES: Final = 16_384
"""An answer takes one more place for each so many bytes, but no more than half of all."""


class Entry(Sink):
    """One call that spans shards, and the places that it has. Until it begins it is the call's sink."""

    __slots__ = ("_begin", "_gate", "_places", "_size", "line", "passes_stopped", "shards", "stream")

    def __init__(
        self, gate: Gate, stream: ServerStream, shards: tuple[str, ...], size: int, begin: Callable[[Entry], None]
    ) -> None:
        self.stream = stream
        self.shards = shards
        self.passes_stopped = False
        self.line: _Line | None = None
        self._gate = gate
        self._begin: Callable[[Entry], None] | None = begin
        self._size = size if size > SMALL_REQUEST else 0  # of its request, while it waits
        self._places: dict[str, int] = {}  # by shard
        stream.sink = self

    @property
    def is_wanted(self) -> bool:
        """Whether it has not begun, and its client has not taken it back."""
        return self._begin is not None

    def hold(self) -> bool:
        """Counts what its request takes until it begins; False when there is no memory for that, and it has ended."""
        if not self._size or self.stream.hold(self._size):
            return True
        self._size = 0
        self.stream.cut()
        return False

    def wait(self, line: _Line) -> None:
        """Stands in line."""
        self.line = line
        line.calls[self] = None

    def begin(self) -> None:
        """Has its turn: places everywhere, and its work begins.

        Raises:
            RpcError: the call is refused.
        """
        self._leave()
        gate = self._gate
        places = 1 if self.stream.peer in gate.small else PLACES
        wanted = gate.wanted(self) if self.passes_stopped else self.shards
        for shard in wanted:  # as `enter`, which is spelled out: this is so for all calls
            gate.busy[shard] += places
        self._places = dict.fromkeys(wanted, places)
        if wanted:
            gate.at_work[self] = monotonic()
        begin, self._begin = self._begin, None
        assert begin is not None, "a call begins once"
        begin(self)

    def enter(self, shard: str) -> bool:
        """Takes places for the call's part at `shard`; False if the part has them already."""
        if shard in self._places:
            return False
        if not self._places:
            self._gate.at_work[self] = monotonic()
        self._places[shard] = PLACES
        self._gate.busy[shard] += PLACES
        return True

    def weigh(self, shard: str, size: int) -> None:
        """The answer to a part that is at work will have so many bytes."""
        self._gate.note(self.stream.peer, size)
        taken = self._places.get(shard)
        if taken is not None and size > PLACE_BYTES:
            places = max(taken, self._gate.places_for(size))
            self._places[shard] = places
            self._gate.busy[shard] += places - taken

    def answered(self, shard: str, size: int) -> None:
        """Its part for this shard is not at work any more: the answer, of so many bytes, has begun to come."""
        self._gate.note(self.stream.peer, size)
        self.replied(shard)

    def replied(self, shard: str) -> None:
        """As `answered`, where the answers of a call say nothing about those of others."""
        self._gate.stopped.discard(shard)
        self.leave(shard)

    def leave(self, shard: str) -> None:
        """Its part for this shard is not at work any more."""
        places = self._places.pop(shard, 0)
        if places:
            if not self._places:
                del self._gate.at_work[self]
            self._gate.free(shard, places)

    @property
    def held(self) -> Collection[str]:
        """The shards where its parts are at work."""
        return self._places

    def close(self) -> None:
        """Gives back every place that the call still holds."""
        for shard in tuple(self._places):
            self.leave(shard)

    def cancelled(self, code: int, reason: str) -> None:
        """The client no longer waits for a call that has not begun."""
        self._leave()
        self._begin = None

    def _leave(self) -> None:
        """Does not wait any more."""
        self.stream.sink = None
        line, self.line = self.line, None
        if line is not None:
            del line.calls[self]
            if not line.calls:
                self._gate.forget(line)
        if self._size:
            self.stream.release(self._size)


class _Line:
    """Calls of one connection that are about the same shards, in the order in which they came.

    Attributes:
        calls: those that wait.
        queue: in which it stands; None while its first call is looked at.
    """

    __slots__ = ("calls", "key", "queue")

    def __init__(self, key: tuple[Connection, tuple[str, ...], bool]) -> None:
        self.key = key
        self.calls: dict[Entry, None] = {}
        self.queue: deque[_Line] | None = None


class Gate:
    """The places of all shards.

    Attributes:
        spawn: begins the task of a call that may be let in.
        busy: how many are taken, by shard.
        small: the clients whose last answer was small.
        at_work: the calls that hold any, and since when, the longest first.
        stopped: the shards where some were held for too long, until they answer.
    """

    def __init__(self, context: WireContext, background: Background) -> None:
        self._context = context
        self._background = background
        self.spawn = background.start
        self._limit = context.limits.max_parts_per_shard * PLACES
        self.small: dict[str, None] = {}
        self.busy: defaultdict[str, int] = defaultdict(int)
        self.at_work: dict[Entry, float] = {}
        self.stopped: set[str] = set()
        # Each line that has calls stands in exactly one queue: that of a shard that had no place for its first call.
        self._lines: dict[tuple[Connection, tuple[str, ...], bool], _Line] = {}
        self._queues: defaultdict[str, deque[_Line]] = defaultdict(deque)
        self._freed: set[str] = set()

    def drop_shard(self, shard: str) -> None:
        """The shard has left the layout, and no call is about it any more."""
        self.stopped.discard(shard)
        if not self.busy[shard] and not self._queues[shard]:
            del self.busy[shard], self._queues[shard]

    @property
    def waiting(self) -> int:
        """How many calls wait for a place."""
        return sum(len(line.calls) for line in self._lines.values())

    def places_for(self, size: int) -> int:
        """How many an answer of so many bytes takes."""
        return min(1 + size // PLACE_BYTES, self._limit // 2)

    def note(self, peer: str, size: int) -> None:
        """Remembers whether the client's last answer was small: the places that its next parts take go by that."""
        if size > SMALL_ANSWER:
            self.small.pop(peer, None)
        elif peer not in self.small:
            self.small[peer] = None
            if len(self.small) > MOST_SMALL:
                del self.small[next(iter(self.small))]

    def let_in(
        self,
        stream: ServerStream,
        shards: Iterable[str],
        size: int,
        begin: Callable[[Entry], None],
        *,
        passes_stopped: bool = False,
    ) -> None:
        """Calls `begin` when all is read that came with the call and it is its turn; not if the client takes it back.

        Args:
            stream: the client's call.
            shards: those that are asked first; what is asked of others later is told to the entry.
            size: memory that the request takes while the call waits.
            begin: begins the work with an `Entry`, which must be closed in the end. It may raise RpcError.
            passes_stopped: no place is wanted at a shard that has stopped, since the call can do without its answer.
        """
        entry = Entry(self, stream, tuple(dict.fromkeys(shards)), size, begin)
        entry.passes_stopped = passes_stopped
        if entry.hold():
            stream.connection.when_read.append(partial(self._admit, entry))

    def _admit(self, entry: Entry) -> None:
        """Begins a new call, or has it stand in line."""
        if not entry.is_wanted:
            return
        key = entry.stream.connection, entry.shards, entry.passes_stopped
        line = self._lines.get(key)
        if line is None:  # nobody comes before it
            full = self._full(entry)
            if full is None:
                self._begin(entry)
                return
            line = self._lines[key] = _Line(key)
            self._stand(line, full)
        self._context.reached("max_parts_per_shard")
        entry.wait(line)

    def _begin(self, entry: Entry) -> None:
        self._background.guard("a call that spans shards", partial(_begin, entry), entry.stream.on_bug)

    def _stand(self, line: _Line, shard: str) -> None:
        line.queue = self._queues[shard]
        line.queue.append(line)

    def forget(self, line: _Line) -> None:
        """Nobody is left in it."""
        if line.queue is not None:
            line.queue.remove(line)
            del self._lines[line.key]

    def _full(self, entry: Entry) -> str | None:
        """The first of its shards that has no place for it; None when all have."""
        limit, busy = self._limit, self.busy
        for shard in self.wanted(entry) if entry.passes_stopped else entry.shards:
            if busy[shard] >= limit:
                return shard
        return None

    def wanted(self, entry: Entry) -> tuple[str, ...]:
        """The shards at which a call that passes stopped ones wants places now."""
        return tuple(shard for shard in entry.shards if shard not in self.stopped)

    def free(self, shard: str, places: int) -> None:
        """Places at `shard` are given back: whoever waits for one begins when all else leaves."""
        self.busy[shard] -= places
        if self._queues[shard] and self.busy[shard] < self._limit:
            if not self._freed:
                self._context.gatherers.append(self)
            self._freed.add(shard)

    def flush(self) -> None:
        """Begins what has a place now."""
        freed = self._freed
        while freed:
            self._go(freed.pop())

    def on_bug(self) -> None:
        """An exception came out of `flush`, and of no call: what waits has its turn when a place becomes free."""
        log.exception("a bug in esp; calls that span shards wait")

    def _go(self, shard: str) -> None:
        queue = self._queues[shard]
        while queue and self.busy[shard] < self._limit:
            line = queue.popleft()
            line.queue = None
            entry = next(iter(line.calls))
            full = self._full(entry)
            if full is None:
                self._begin(entry)
            if line.calls:
                self._stand(line, shard if full is None else full)
            else:
                del self._lines[line.key]

    def tick(self, now: float) -> None:
        """Takes places from calls that have held them for long."""
        while self.at_work:
            entry, since = next(iter(self.at_work.items()))
            if now - since < STUCK_SECONDS:
                return
            self.stopped.update(entry.held)
            entry.close()


def _begin(entry: Entry) -> None:
    try:
        entry.begin()
    except RpcError as error:
        entry.close()
        entry.stream.finish(error.status)
    except BaseException:
        entry.close()
        raise
