"""A gate before each shard: bounds how many calls that may cost the shard much are at work there at once.

Three kinds of call go through the gate: calls that span shards, which cost esp and the shards much more than their
clients pay to send them; reads of one shard whose answers may be large; and large requests. Without the gate, one
connection could have very many of these at work at once, and all other calls would wait behind them, here and in etcd.

A call takes places at a shard. For a read, their number follows from the size of the last answers to its connection
(`Admission.weight`); for a request, from its own size. If a client has had only small answers, its reads of one shard
need no places: that is the fast path, which does not come here. Calls that are known to be large have places of their
own, so that other calls do not wait for them: a quarter of all places. So have calls that are neither large nor small,
and snapshots. So have the first reads of new connections, of which nothing is known: first reads of one key as many as
all other calls have, and all other first reads a quarter. One connection has at most a quarter of all places. After
large and medium calls the shard rests from them (`rests`), and, after first reads of more than one key that prove to be
such, from these. While only such calls use a shard, there are no rests, and they have all places there, and so has each
connection.

A call begins when there is a place at each of its shards. Until then it waits, and costs little. A call also does not
begin before all bytes that came with it have been read. So a call that its client takes back at once asks no shard and
makes no task (CVE-2023-44487). Calls of one connection wait in line; calls of different connections begin in turn. A
part gives its places back when its shard has answered. So a call that waits for a stopped shard holds places only
there, and calls to other shards go on. Further questions of a call that has begun are counted, but do not wait. A call
loses its places to others when it waits for something that is no work: for its client to read, or, after a second, for
a stopped shard. A large answer that waits for its client still counts for that client's connection, as a quarter of the
places it had, and as all of them where only large calls use the shard: the shard keeps the whole answer in memory, and
esp a window of it, so one connection has few of these. An answer counts so, too, if it comes after its call has lost
its places, and if it waits behind those of other shards, or is to be merged with them.

The number of waiting calls is bounded by the memory for calls (`max_call_bytes`); their requests are bounded by
`max_buffered_bytes`.

A Range over several shards that names nothing but its keys costs little more than a read of each of them (`concat`). So
it needs no places either if its client has had only small answers, and has few calls open.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from time import monotonic
from typing import Final

from esp.core.background import Background
from esp.core.log.first_key import BEGINNING
from esp.core.services.alone import Alone
from esp.core.services.entry import KINDS, NEW, NEW_RANGE, PLACE_BYTES, PLACES, RESTED, WAITING_PART, Entry, Kind
from esp.core.services.rests import Rests
from esp.core.shard import Shard
from esp.core.wire.connection import Connection
from esp.core.wire.context import WireContext
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import RpcError
from esp.core.wire.turns import SLICE

__all__ = ["LARGE_REQUEST", "STUCK_SECONDS", "Entry", "Gate", "Line"]

log = logging.getLogger("esp.service")

STUCK_SECONDS: Final = 1.0
"""Seconds that a part may hold places."""
LARGE_REQUEST: Final = 65_536
"""A request to one shard takes places if it has more bytes."""
COSTLY_PLACES: Final = 2
"""The least places of a costly call. A snapshot asks again for as long as keys change while it asks: the fewer are at
work at a time, the sooner each has its answers, and the seldomer it asks again."""

Pool = tuple[str, Kind]
"""The places of a shard for one kind of call."""
Share = tuple[str, Connection]
"""The places of a shard that one connection has."""
Places = tuple[str, Kind | Connection]
"""Either of these."""
_Key = tuple[Connection, tuple[str, ...], bool, bool, bool, bool]


class Line:
    """The waiting calls of one connection to the same shards, in the order in which they came.

    Attributes:
        calls: the waiting calls.
        queue: the queue in which the line stands; None while its first call is looked at.
        lacks: the places for which that queue waits.
    """

    __slots__ = ("calls", "key", "lacks", "queue")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.calls: dict[Entry, None] = {}
        self.queue: deque[Line] | None = None
        self.lacks: Places | None = None


class Gate:
    """The places of all shards.

    Attributes:
        spawn: begins the task of a call that may be let in.
        busy: the places taken, by shard and kind of call.
        at_work: the calls that hold places, each with the time since when; the longest first.
        stopped: the shards where calls have held places for too long; until the shard answers.
        alone: the shards where only costly calls are at work. These, and each connection, then have all places there.
        rests: the pools of costly calls of which none begins for a while.
    """

    def __init__(
        self,
        context: WireContext,
        background: Background,
        calls_sent: Callable[[], Mapping[str, int]] = dict,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`calls_sent` tells how many calls and keepalives were sent to each shard on its present connection.

        `clock` is for the rests.
        """
        self._context = context
        self._background = background
        self.spawn = background.start
        self.install_limits()
        self.busy: defaultdict[Pool, int] = defaultdict(int)
        self._held: defaultdict[Share, int] = defaultdict(int)
        self._kept: dict[Share, int] = {}  # of these, by answers that wait for their client
        self._unknown: dict[Pool, int] = {}
        self.alone = Alone(calls_sent)
        self.rests: Rests[Pool] = Rests(background, self._rested, clock)
        self.at_work: dict[Entry, float] = {}
        self.stopped: set[str] = set()
        # Each line with calls stands in exactly one queue: that of the places which its first call lacks.
        self._lines: dict[_Key, Line] = {}
        self._queues: dict[Places, deque[Line]] = {}
        self._left: deque[Line] = deque()  # of clients that have gone; their calls learn of it in slices
        self._freed: set[Pool] = set()
        self._freed_shares: set[Share] = set()

    def install_limits(self) -> None:
        """Takes the number of places from the limits in force; calls that hold places keep them."""
        self._limit = self._context.limits.max_parts_per_shard * PLACES
        self._quarter = max(PLACES, self._limit // 4)  # the bound for one connection, and for all large calls
        self._rest = 1 / self._context.limits.costly_share - 1  # seconds of rest for each second with all places taken

    def drop_shard(self, shard: str) -> None:
        """The shard has left the layout, and no call is sent to it any more."""
        self.stopped.discard(shard)
        for kind in KINDS:
            self._unknown.pop((shard, kind), None)
            self.rests.forget((shard, kind))
            if not self.busy[shard, kind]:
                del self.busy[shard, kind]

    def parts_of(self, shard: str) -> float:
        """The parts that are at work at a shard."""
        return sum(self.busy.get((shard, kind), 0) for kind in KINDS) / PLACES

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a place."""
        return sum(len(line.calls) for line in self._lines.values())

    # The places of a call.

    def places_for(self, size: int) -> int:
        """The places for an answer, or a request, of `size` bytes."""
        return min(1 + size // PLACE_BYTES, PLACES) if size > PLACE_BYTES else 1

    def unknown(self, pool: Pool) -> int:
        """The places for a read of such a kind whose client has had no answer yet."""
        return self._unknown.get(pool, PLACES)

    def note_large(self, stream: ServerCall, size: int) -> None:
        """Notes an answer of `size` bytes to a read. After a large one, the client's next reads take as many places."""
        if size > PLACE_BYTES:
            connection = stream.connection
            connection.weight = max(self.places_for(size), connection.weight >> 1)
            self._unknown.clear()

    def note_small(self, entry: Entry, size: int) -> None:
        """Notes the largest answer to a read, `size` bytes. After a small one the next reads take fewer places."""
        connection = entry.stream.connection
        if size > PLACE_BYTES:
            return
        if connection.weight < 0:
            connection.weight = 0
            kind = NEW if entry.one_key else NEW_RANGE
            for pool in [(shard, kind) for shard in entry.shards]:
                # If many new clients wait at once, more of them begin at a time, as long as their answers are small.
                # Small answers to reads of one key say nothing about those of others.
                if pool in self._queues:
                    self._unknown[pool] = max(1, self.unknown(pool) >> 1)
        else:
            connection.weight >>= 1

    # Letting in.

    def pass_on(
        self,
        stream: ServerCall,
        shard: Shard,
        message: bytes,
        *,
        reads: bool,
        at_once: bool = False,
        one_key: bool = False,
        small: Callable[[ServerCall, bytes], None] | None = None,
    ) -> None:
        """Sends a call to its one shard, as soon as there is a place for it.

        Args:
            stream: the client's call.
            shard: the shard.
            message: the request, with its prefix.
            reads: whether the answer may be large.
            at_once: the call came a while ago, so all bytes that came with it have been read.
            one_key: the call reads one key.
            small: sends a call that needs no place when its turn comes; by default such calls go like all others.
        """
        size = len(message)

        def begin(entry: Entry) -> None:
            if small is not None and not stream.connection.weight:
                entry.close()
                small(stream, message)
            else:
                shard.splice_counted(stream, message, entry)

        weight = self.places_for(size) if size > LARGE_REQUEST else 0
        entry = Entry(
            self,
            stream,
            (shard.name,),
            size,
            begin,
            reads=reads,
            weight=weight,
            one_key=one_key,
            asked=message[:BEGINNING],
            passed=shard.passed,
        )
        if not entry.hold():
            return
        if at_once:
            self._admit(entry)
        else:
            stream.connection.when_read.append(partial(self._admit, entry))

    def let_in(
        self,
        stream: ServerCall,
        shards: Iterable[str],
        size: int,
        begin: Callable[[Entry], None],
        reads: bool = True,
        weight: int = 1,
        *,
        passes_stopped: bool = False,
        costly: bool = False,
        asked: bytes = b"",
        at_once: bool = False,
    ) -> None:
        """Calls `begin` when it is the call's turn and all bytes that came with the call are read.

        A call that its client takes back before never begins.

        Args:
            stream: the client's call.
            shards: the shards that the call asks first. When the call asks others later, it tells the entry.
            size: memory that the request takes while the call waits.
            begin: begins the work with an `Entry`, which the work must close in the end. May raise RpcError.
            reads: whether the size of the client's last answers decides how many places the call takes.
            weight: the least places that the call takes.
            passes_stopped: the call needs no place at a stopped shard, because it can do without that shard's answer.
            costly: the call costs its shards much even if its answers are small, so it takes COSTLY_PLACES at least.
            asked: the beginning of the request, for the log.
            at_once: as for `pass_on`.
        """
        names = tuple(dict.fromkeys(shards))
        if costly:
            weight = max(weight, COSTLY_PLACES)
        entry = Entry(
            self,
            stream,
            names,
            size,
            begin,
            reads=reads,
            weight=weight,
            passes_stopped=passes_stopped,
            costly=costly,
            asked=asked,
        )
        if not entry.hold():
            return
        if at_once:
            self._admit(entry)
        else:
            stream.connection.when_read.append(partial(self._admit, entry))

    def _admit(self, entry: Entry) -> None:
        """Begins a new call, or puts it in line."""
        if not entry.is_wanted:
            return
        key = entry.stream.connection, entry.shards, entry.passes_stopped, entry.reads, entry.one_key, entry.costly
        line = self._lines.get(key)
        if line is None:  # no call comes before it
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

    def _stand(self, line: Line, lacks: Places) -> None:
        queue = self._queues.get(lacks)
        if queue is None:
            queue = self._queues[lacks] = deque()
        queue.append(line)
        line.queue, line.lacks = queue, lacks

    def forget(self, line: Line) -> None:
        """Drops a line without calls."""
        if line.queue is not None:
            line.queue.remove(line)
            self._tidy(line.lacks)
            del self._lines[line.key]

    def _tidy(self, lacks: Places | None) -> None:
        if lacks is not None and not self._queues.get(lacks, True):
            del self._queues[lacks]

    def _lacks(self, entry: Entry) -> Places | None:
        """The first places that the call lacks; None if it lacks none."""
        connection, kind = entry.stream.connection, entry.kind
        for shard in self.wanted(entry):
            if entry.weight(shard):
                if not self._has_room(shard, connection):
                    return shard, connection
                if not self._has_room(shard, kind):
                    return shard, kind
        return None

    def _has_room(self, shard: str, part: Kind | Connection) -> bool:
        is_alone = shard in self.alone
        quarter = self._limit if is_alone else self._quarter
        if not isinstance(part, int):
            share = shard, part
            held = self._held.get(share, 0)
            if is_alone:  # with four times the places as few answers wait
                held += (WAITING_PART - 1) * self._kept.get(share, 0)
            return held < quarter
        if part in RESTED:
            return self.busy[shard, part] < quarter and (is_alone or (shard, part) not in self.rests)
        return self.busy[shard, part] < self._limit

    def wanted(self, entry: Entry) -> tuple[str, ...]:
        """The shards at which a call wants places now."""
        if not entry.passes_stopped or not self.stopped:
            return entry.shards
        return tuple(shard for shard in entry.shards if shard not in self.stopped)

    def take(self, connection: Connection, shard: str, places: int, kind: Kind) -> None:
        """Counts places that a call takes."""
        self.busy[shard, kind] += places
        self._held[shard, connection] += places

    def free(self, connection: Connection, shard: str, places: int, kind: Kind, kept: int = 0) -> None:
        """Gives places back; `kept` of them still count for the connection. Waiting calls begin at the next flush."""
        pool = shard, kind
        self.busy[pool] -= places
        if kept:
            self._kept[shard, connection] = self._kept.get((shard, connection), 0) + kept
        self.release(connection, shard, places - kept)
        if self._queues:
            self._freed.add(pool)

    def let_go(self, connection: Connection, shard: str, kept: int) -> None:
        """Gives back what an answer that has waited for its client still counted for."""
        share = shard, connection
        left = self._kept[share] - kept
        if left:
            self._kept[share] = left
        else:
            del self._kept[share]
        self.release(connection, shard, kept)

    def worked(self, shard: str, kind: Kind, places: int, seconds: float) -> None:
        """A costly call has had places for so many seconds: the shard rests from such calls if it has others.

        The rest leaves them `costly_share` of the shard's time.
        """
        if shard not in self.alone:
            self.rests.worked((shard, kind), seconds, places / self._quarter * self._rest)

    def _rested(self, pool: Pool) -> None:
        """Calls that have waited for the end of a rest begin."""
        if self._queues:
            if not self._freed and not self._freed_shares:
                self._context.gatherers.append(self)
            self._freed.add(pool)
            self._context.flush_soon()

    def release(self, connection: Connection, shard: str, places: int) -> None:
        """Lets places no longer count for the connection. Calls of it that wait for them begin at the next flush."""
        share = shard, connection
        held = self._held
        left = held[share] - places
        if left:
            held[share] = left
        else:
            del held[share]
        if self._queues:
            if not self._freed and not self._freed_shares:
                self._context.gatherers.append(self)
            self._freed_shares.add(share)

    def flush(self) -> None:
        """Begins calls that have places now: those that waited for other clients first, then those behind their own.

        Calls that do not fit a slice begin in the loop's next turns: many may wait for one answer.
        """
        pools, shares = self._freed, self._freed_shares
        stop = self._context.turns.clock() + SLICE
        try:
            while pools or shares:
                where = next(iter(pools)) if pools else next(iter(shares))
                if self._is_left(where, stop):
                    self._context.put_off(self)
                    return
                pools.discard(where)
                shares.discard(where)
        except BaseException:
            pools.clear()  # or no place that becomes free would have anybody begin
            shares.clear()
            raise

    def go_on(self) -> None:
        """Goes on where the last turn has stopped."""
        self.flush()

    def on_bug(self) -> None:
        """An exception came out of `flush`, not of a single call. Waiting calls begin when further places are free."""
        log.exception("a bug in esp; calls that wait for places wait on")

    def _is_left(self, where: Places, stop: float) -> bool:
        """Begins calls that wait for these places while there is room; True when the slice ended before that."""
        clock = self._context.turns.clock
        queue = self._queues.get(where, ())
        while queue and self._has_room(*where):
            line = queue.popleft()
            line.queue = line.lacks = None
            entry = next(iter(line.calls))
            if entry.stream.connection.ended:
                line.queue = self._left
                line.queue.append(line)
            else:
                lacks = self._lacks(entry)
                if lacks is None:
                    self._begin(entry)
                if line.calls:
                    self._stand(line, where if lacks is None else lacks)
                else:
                    del self._lines[line.key]
            if queue and clock() >= stop:
                return True
        self._tidy(where)
        return False

    def tick(self, now: float) -> None:
        """Takes places from calls that have held them for long, and looks which shards have only large calls."""
        self.alone.look()
        while self.at_work:
            entry, since = next(iter(self.at_work.items()))
            if now - since < STUCK_SECONDS:
                return
            for shard in tuple(entry.held):
                if not entry.give_way(shard):
                    self.stopped.add(shard)


def _let_begin(entry: Entry) -> None:
    try:
        entry.begin()
    except RpcError as error:
        entry.close()
        entry.stream.finish(error.status)
    except BaseException:
        entry.close()
        raise
