"""A gate before each shard for calls that may cost it much: so many are at work there at once, and no more.

Such are calls that span shards, which cost esp and the shards a multiple of what their clients pay to send them; reads
of one shard whose answers may be large; and large requests. Without a bound one connection that sends many has all of
them going on at once, and everybody else's calls stand behind them, here and in etcd.

What a call takes at a shard is counted in places: for a read by the size of the last answers to its connection
(`Admission.weight`), for a request by its own. Who has had small answers only needs no place for a read of one shard:
that is the fast path, which passes by here. Calls that are known to be large have places of their own, so that nobody
else waits for them, and one connection has no more than a quarter of all places.

A call begins when there is a place at each shard that it is about; until then it waits, and costs little. Nor does it
begin before all is read that has come with it: a call that its client takes back in the same breath asks no shard and
makes no task (CVE-2023-44487). Those of one connection wait in line, those of different connections begin in turn. A
part gives its places back when its shard has answered, so a call that waits for a stopped shard holds places there and
nowhere else, and those that are not about that shard go on. What a call that has begun asks further is counted, but
does not wait. Places that were held for a second are given to others: whoever has them waits for something that is no
work, such as a shard that has stopped, or a client that does not read.

How many wait is bounded by the memory for calls (`max_call_bytes`), and their requests by `max_buffered_bytes`.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from esp.core.background import Background
from esp.core.services.entry import PLACE_BYTES, PLACES, Entry
from esp.core.shard import Shard
from esp.core.wire.connection import Connection
from esp.core.wire.context import WireContext
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.status import RpcError

__all__ = ["LARGE_REQUEST", "STUCK_SECONDS", "Entry", "Gate", "Line"]

log = logging.getLogger("esp.service")

STUCK_SECONDS: Final = 1.0
"""How long a part may hold places."""
LARGE_REQUEST: Final = 65_536
"""Bytes of a request to one shard from which on it takes places."""

Pool = tuple[str, bool]
"""Places of a shard: those of calls that are known to be large, or those of others."""
Share = tuple[str, Connection]
"""Places of a shard that one connection has."""
_Key = tuple[Connection, tuple[str, ...], bool, bool]


class Line:
    """Calls of one connection that are about the same shards, in the order in which they came.

    Attributes:
        calls: those that wait.
        queue: in which it stands; None while its first call is looked at.
        lacks: of which queue that is.
    """

    __slots__ = ("calls", "key", "lacks", "queue")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.calls: dict[Entry, None] = {}
        self.queue: deque[Line] | None = None
        self.lacks: Pool | Share | None = None


class Gate:
    """The places of all shards.

    Attributes:
        spawn: begins the task of a call that may be let in.
        busy: how many are taken, by shard, by calls that are known to be large, or by others.
        at_work: the calls that hold any, and since when, the longest first.
        stopped: the shards where some were held for too long, until they answer.
    """

    def __init__(self, context: WireContext, background: Background) -> None:
        self._context = context
        self._background = background
        self.spawn = background.start
        self._limit = context.limits.max_parts_per_shard * PLACES
        self._quarter = max(PLACES, self._limit // 4)  # for one connection, and for all large calls
        self.busy: defaultdict[Pool, int] = defaultdict(int)
        self._held: defaultdict[Share, int] = defaultdict(int)
        self._unknown: dict[str, int] = {}
        self.at_work: dict[Entry, float] = {}
        self.stopped: set[str] = set()
        # Each line that has calls stands in exactly one queue: that for what its first call lacks.
        self._lines: dict[_Key, Line] = {}
        self._queues: dict[Pool | Share, deque[Line]] = {}
        self._freed: set[Pool] = set()
        self._freed_shares: set[Share] = set()

    def drop_shard(self, shard: str) -> None:
        """The shard has left the layout, and no call is about it any more."""
        self.stopped.discard(shard)
        self._unknown.pop(shard, None)
        for pool in ((shard, False), (shard, True)):
            if not self.busy[pool]:
                del self.busy[pool]

    @property
    def waiting(self) -> int:
        """How many calls wait for a place."""
        return sum(len(line.calls) for line in self._lines.values())

    # What a call takes.

    def places_for(self, size: int) -> int:
        """How many an answer, or a request, of so many bytes takes."""
        return min(1 + size // PLACE_BYTES, PLACES) if size > PLACE_BYTES else 1

    def unknown(self, shard: str) -> int:
        """How many places a read takes there whose client has had no answer yet."""
        return self._unknown.get(shard, PLACES)

    def note_large(self, stream: ServerStream, size: int) -> None:
        """A read is answered with so many bytes: if many, the client's next reads take as many places."""
        if size > PLACE_BYTES:
            connection = stream.connection
            connection.weight = max(self.places_for(size), connection.weight >> 1)
            self._unknown.clear()

    def note_small(self, entry: Entry, size: int) -> None:
        """A read has had so large an answer in all: if a small one, the client's next reads take fewer places."""
        connection = entry.stream.connection
        if size > PLACE_BYTES:
            return
        if connection.weight < 0:
            connection.weight = 0
            for shard in entry.shards:
                # Many clients are new at once, and wait: as long as their answers are small, more of them go at a time.
                if (shard, False) in self._queues:
                    self._unknown[shard] = max(1, self.unknown(shard) >> 1)
        else:
            connection.weight >>= 1

    # Letting in.

    def pass_on(
        self, stream: ServerStream, shard: Shard, message: bytes, *, reads: bool, at_once: bool = False
    ) -> None:
        """Sends a call to the shard that it is about, as soon as there is a place for it.

        Args:
            stream: the client's call.
            shard: to which it goes.
            message: the request, with its prefix.
            reads: whether its answer may be large.
            at_once: it came a while ago, so that all is read that came with it.
        """
        size = len(message)
        begin = partial(shard.splice_counted, stream, message)
        weight = self.places_for(size) if size > LARGE_REQUEST else 0
        entry = Entry(self, stream, (shard.name,), size, begin, reads=reads, weight=weight)
        if not entry.hold():
            return
        if at_once:
            self._admit(entry)
        else:
            stream.connection.when_read.append(partial(self._admit, entry))

    def let_in(
        self,
        stream: ServerStream,
        shards: Iterable[str],
        size: int,
        begin: Callable[[Entry], None],
        reads: bool = True,
        weight: int = 1,
        *,
        passes_stopped: bool = False,
    ) -> None:
        """Calls `begin` when all is read that came with the call and it is its turn; not if the client takes it back.

        Args:
            stream: the client's call.
            shards: those that are asked first; what is asked of others later is told to the entry.
            size: memory that the request takes while the call waits.
            begin: begins the work with an `Entry`, which must be closed in the end. It may raise RpcError.
            reads: whether it takes places by the size of the client's last answers.
            weight: the places that it takes at least.
            passes_stopped: no place is wanted at a shard that has stopped, since the call can do without its answer.
        """
        names = tuple(dict.fromkeys(shards))
        entry = Entry(self, stream, names, size, begin, reads=reads, weight=weight, passes_stopped=passes_stopped)
        if entry.hold():
            stream.connection.when_read.append(partial(self._admit, entry))

    def _admit(self, entry: Entry) -> None:
        """Begins a new call, or has it stand in line."""
        if not entry.is_wanted:
            return
        key = entry.stream.connection, entry.shards, entry.passes_stopped, entry.reads
        line = self._lines.get(key)
        if line is None:  # nobody comes before it
            lacks = self._lacks(entry)
            if lacks is None:
                self._begin(entry)
                return
            line = self._lines[key] = Line(key)
            self._stand(line, lacks)
        self._context.reached("max_parts_per_shard")
        entry.wait(line)

    def _begin(self, entry: Entry) -> None:
        self._background.guard("a call that takes places", partial(_let_begin, entry), entry.stream.on_bug)

    def _stand(self, line: Line, lacks: Pool | Share) -> None:
        queue = self._queues.get(lacks)
        if queue is None:
            queue = self._queues[lacks] = deque()
        queue.append(line)
        line.queue, line.lacks = queue, lacks

    def forget(self, line: Line) -> None:
        """Nobody is left in it."""
        if line.queue is not None:
            line.queue.remove(line)
            self._tidy(line.lacks)
            del self._lines[line.key]

    def _tidy(self, lacks: Pool | Share | None) -> None:
        if lacks is not None and not self._queues.get(lacks, True):
            del self._queues[lacks]

    def _lacks(self, entry: Entry) -> Pool | Share | None:
        """The first that has no place for it; None when all have."""
        connection = entry.stream.connection
        for shard in self.wanted(entry):
            for where in ((shard, connection), (shard, entry.is_large)):
                if not self._has_room(*where) and entry.weight(shard):
                    return where
        return None

    def _has_room(self, shard: str, part: bool | Connection) -> bool:
        if isinstance(part, bool):
            return self.busy[shard, part] < (self._quarter if part else self._limit)
        return self._held.get((shard, part), 0) < self._quarter

    def wanted(self, entry: Entry) -> tuple[str, ...]:
        """The shards at which a call wants places now."""
        if not entry.passes_stopped or not self.stopped:
            return entry.shards
        return tuple(shard for shard in entry.shards if shard not in self.stopped)

    def take(self, connection: Connection, shard: str, places: int, large: bool) -> None:
        """A call takes places."""
        self.busy[shard, large] += places
        self._held[shard, connection] += places

    def free(self, connection: Connection, shard: str, places: int, large: bool) -> None:
        """Places are given back: whoever waits for one begins when all else leaves."""
        pool, share = (shard, large), (shard, connection)
        self.busy[pool] -= places
        left = self._held[share] - places
        if left:
            self._held[share] = left
        else:
            del self._held[share]
        if self._queues:
            if not self._freed and not self._freed_shares:
                self._context.gatherers.append(self)
            self._freed.add(pool)
            self._freed_shares.add(share)

    def flush(self) -> None:
        """Begins what has a place now: first those who waited for others, then those who waited for their own."""
        pools, shares = self._freed, self._freed_shares
        while pools or shares:
            self._go(pools.pop() if pools else shares.pop())

    def on_bug(self) -> None:
        """An exception came out of `flush`, and of no call: what waits has its turn when a place becomes free."""
        log.exception("a bug in esp; calls that wait for places wait on")

    def _go(self, where: Pool | Share) -> None:
        queue = self._queues.get(where, ())
        while queue and self._has_room(*where):
            line = queue.popleft()
            line.queue = line.lacks = None
            entry = next(iter(line.calls))
            lacks = self._lacks(entry)
            if lacks is None:
                self._begin(entry)
            if line.calls:
                self._stand(line, where if lacks is None else lacks)
            else:
                del self._lines[line.key]
        self._tidy(where)

    def tick(self, now: float) -> None:
        """Takes places from calls that have held them for long."""
        while self.at_work:
            entry, since = next(iter(self.at_work.items()))
            if now - since < STUCK_SECONDS:
                return
            self.stopped.update(entry.held)
            entry.close()


def _let_begin(entry: Entry) -> None:
    try:
        entry.begin()
    except RpcError as error:
        entry.close()
        entry.stream.finish(error.status)
    except BaseException:
        entry.close()
        raise
