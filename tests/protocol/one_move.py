"""A model of a move: keys are copied while the source is written, the source is cut, the target is opened, or neither.

The names are those of docs/decisions/2026-11-30-one-map.md. `one_map.py` has the protocol by which maps are decided on;
here it is taken for granted that the anchor decides. Each method of `World` is one step that is atomic in reality as
well: a transaction on one shard, or a look at one. Movers, clients and proxies may stop between any two steps, and go
on later.

A `Mistake` leaves out one rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from itertools import count
from typing import Final, NamedTuple

SOURCE: Final = "s"
TARGET: Final = "t"
KEYS: Final = ("k", "l", "m")
GUARD: Final = "guard"
MARGIN: Final = 6
"""Revisions by which the target's counter is raised above the source's."""


class Mistake(Enum):
    """A rule that a move may lack."""

    READS_WITHOUT_COMPARISON = auto()
    FENCE_AFTER_COPY = auto()
    COUNTER_NOT_RAISED = auto()
    PURGE_BEFORE_ALL_SWITCHED = auto()
    PURGE_BEFORE_OPENING = auto()
    ABORT_WITHOUT_MARK = auto()
    ABORT_WITH_OLD_GUARDS = auto()
    COPIES_WITHOUT_MOVER = auto()
    COPY_IN_ONE_ORDER = auto()
    RESUMED_FROM_ITS_OWN_SNAPSHOT = auto()


class Phase(StrEnum):
    """As esp has it."""

    COPY = "copy"
    CUT = "cut"
    ABORT = "abort"
    OPEN = "open"


class Map(NamedTuple):
    """Who owns the range, and both shards' guards."""

    epoch: int
    owner: str
    guards: tuple[tuple[str, str], ...]

    def guard(self, shard: str) -> str:
        """The guard of a shard while this map is in force."""
        return dict(self.guards)[shard]


class Next(NamedTuple):
    """What the anchor holds while a move is under way."""

    before: Map
    after: Map
    phase: Phase
    mover: int
    back: Map | None = None

    @property
    def source(self) -> str:
        """The owner before."""
        return self.before.owner

    @property
    def target(self) -> str:
        """The owner after."""
        return self.after.owner


class Copies(NamedTuple):
    """What the target holds while keys are copied there: by whom, above which revision, up to which of the source."""

    mover: int
    first: int
    base: int
    at: int


class Pair(NamedTuple):
    """A key's value and its revisions."""

    value: int
    create: int
    mod: int


class Event(NamedTuple):
    """A revision of a shard; `key` is `GUARD` for the guard, and "" for all else that is esp's."""

    revision: int
    key: str
    value: int | None


@dataclass
class Shard:
    """One etcd."""

    guard: str
    map: Map
    revision: int = 1
    guard_revision: int = 1
    data: dict[str, Pair] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)
    copies: Copies | None = None

    def write(self, key: str, value: int | None) -> None:
        """One revision: a Put, or a Delete."""
        self.revision += 1
        self.history.append(Event(self.revision, key, value))
        if key in KEYS and value is None:
            self.data.pop(key, None)
        elif key in KEYS and value is not None:
            there = self.data.get(key)
            self.data[key] = Pair(value, self.revision if there is None else there.create, self.revision)


class Call(NamedTuple):
    """A call that a proxy has sent; the network may hold it back for long."""

    shard: str
    guard: str
    key: str
    value: int | None
    kind: str  # read, put, delete, cas
    seen: Pair | None = None


class Seen(NamedTuple):
    """What a client has read once."""

    key: str
    pair: Pair


@dataclass
class Watcher:
    """A proxy's watch of the range at its owner by the proxy's map; it is not compared."""

    shard: str
    at: int
    events: list[tuple[str, int | None]] = field(default_factory=list)
    is_done: bool = False


@dataclass
class Mover:
    """Who moves: what it believes. `todo` are copies of the snapshot, `taken` is an event of the source that was read,
    and `cut` the revision at which the source was cut."""

    change: Next
    copies: Copies | None = None
    todo: list[Event] = field(default_factory=list)
    taken: Event | None = None
    cut: int | None = None
    is_gone: bool = False


class WrongError(AssertionError):
    """A client got a wrong answer, or could get one."""


class World:
    """Two shards, an anchor, proxies, movers."""

    def __init__(self, mistake: Mistake | None = None) -> None:
        self.mistake = mistake
        self._guards = count(1)
        self._values = count(1)
        self._movers = count(1)
        guards = (SOURCE, self.guard()), (TARGET, self.guard())
        first = Map(1, SOURCE, guards)
        self.shards = {name: Shard(first.guard(name), first) for name in (SOURCE, TARGET)}
        self.next: Next | None = None
        self.map = first  # on the anchor
        self.maps = [first]
        self.proxies = dict.fromkeys(("p", "q"), first)
        self.sent: list[Call] = []
        self.seen: list[Seen] = []
        self.movers: list[Mover] = []
        self.log: list[tuple[str, int | None]] = []  # what was acknowledged, in order
        self.watchers = {name: Watcher(SOURCE, 0) for name in self.proxies}

    def guard(self) -> str:
        """A guard that was never there."""
        return f"g{next(self._guards)}"

    # Clients, through proxies.

    def learn(self, proxy: str) -> None:
        """A proxy reads the maps, and takes the newest."""
        newest = max((self.map, *(shard.map for shard in self.shards.values())), key=lambda one: one.epoch)
        self.proxies[proxy] = newest
        if newest.owner != self.watchers[proxy].shard:
            self.watchers[proxy].is_done = True

    def send(self, proxy: str, key: str, kind: str, seen: Pair | None = None) -> Call:
        """A proxy sends a call to the owner by its map."""
        known = self.proxies[proxy]
        value = next(self._values) if kind in ("put", "cas") else None
        call = Call(known.owner, known.guard(known.owner), key, value, kind, seen)
        self.sent.append(call)
        return call

    def arrive(self, call: Call) -> None:
        """A shard executes a call, or refuses."""
        self.sent.remove(call)
        shard = self.shards[call.shard]
        compares = call.kind != "read" or self.mistake is not Mistake.READS_WITHOUT_COMPARISON
        if compares and shard.guard != call.guard:
            return
        there, truth = shard.data.get(call.key), self.truth
        if call.kind == "read":
            if (there and there.value) != truth.get(call.key):
                raise WrongError(f"{call} reads {there}, acknowledged was {truth.get(call.key)}")
            if there is not None and len(self.seen) < 6:
                self.seen.append(Seen(call.key, there))
            return
        if call.kind == "cas":
            assert call.seen is not None
            if there is None or there.mod != call.seen.mod:
                return
            if truth.get(call.key) != call.seen.value:
                raise WrongError(f"{call} succeeds, although {call.key} has changed")
        if call.kind == "delete" and there is None:
            return
        shard.write(call.key, call.value)
        self.log.append((call.key, call.value))

    @property
    def truth(self) -> dict[str, int]:
        """The acknowledged values."""
        values = dict(self.log)
        return {key: value for key, value in values.items() if value is not None}

    def watch(self, proxy: str) -> None:
        """A watch brings the next event of its shard to the client, up to the next guard there; then it is over."""
        watcher = self.watchers[proxy]
        sees_guards = self.mistake is not Mistake.PURGE_BEFORE_ALL_SWITCHED  # else it goes by its proxy
        for event in self.shards[watcher.shard].history:
            if event.revision > watcher.at and not watcher.is_done:
                watcher.at = event.revision
                watcher.is_done = event.key == GUARD and sees_guards
                if event.key in KEYS:
                    watcher.events.append((event.key, event.value))
                    break
        if watcher.events != self.log[: len(watcher.events)]:
            raise WrongError(f"a watch shows {watcher.events}, and written was {self.log}")

    # Movers.

    def announce(self) -> Mover | None:
        """A move is decided, on the anchor."""
        if self.next is not None or any(shard.data for name, shard in self.shards.items() if name != self.map.owner):
            return None
        before = self.map
        target = TARGET if before.owner == SOURCE else SOURCE
        after = Map(before.epoch + 1, target, ((SOURCE, self.guard()), (TARGET, self.guard())))
        self.next = Next(before, after, Phase.COPY, next(self._movers))
        self.maps.append(after)
        return self._mover(self.next)

    def resume(self) -> Mover | None:
        """Somebody else takes a move over: first on the anchor."""
        if self.next is None or self.next.phase in (Phase.ABORT, Phase.OPEN):
            return None
        self.next = self.next._replace(mover=next(self._movers))
        return self._mover(self.next)

    def _mover(self, change: Next) -> Mover:
        mover = Mover(change)
        self.movers.append(mover)
        return mover

    def step(self, mover: Mover) -> None:
        """A mover's next step, by what it believes."""
        if not self._stepped(mover):
            mover.is_gone = True
            self.movers.remove(mover)

    def _stepped(self, mover: Mover) -> bool:
        change = mover.change
        if mover.copies is None:
            return self._begin(mover)
        if mover.todo:
            return self._copy(mover, mover.todo.pop(0))
        if mover.taken is not None:
            event, mover.taken = mover.taken, None
            return self._copy(mover, event)
        if mover.cut is not None and mover.copies.at >= mover.cut:
            return self.open(mover)
        mover.taken = next((one for one in self._source(change).history if one.revision > mover.copies.at), None)
        if mover.taken is not None:
            return True
        return self._cut(mover) if change.phase is Phase.CUT else self._go_over(mover, Phase.CUT)

    def _begin(self, mover: Mover) -> bool:
        """Raises the counter, and takes over what is copied already; or begins with a snapshot."""
        change = mover.change
        source, target = self._source(change), self._target(change)
        if target.guard != change.before.guard(change.target):
            return False
        if target.copies is not None and self.mistake is not Mistake.RESUMED_FROM_ITS_OWN_SNAPSHOT:
            mover.copies = target.copies._replace(mover=change.mover)
        else:
            if source.guard != change.before.guard(change.source):
                return False
            if self.mistake is not Mistake.COUNTER_NOT_RAISED:
                target.revision = max(target.revision, source.revision + MARGIN)
            mover.copies = Copies(change.mover, target.revision, source.revision, 0)
        at = mover.copies.at
        if at < mover.copies.base:
            mover.todo = [one for one in self._snapshot(source, mover.copies.base) if one.revision > at]
        target.write("", None)
        target.copies = mover.copies
        return True

    def _snapshot(self, source: Shard, base: int) -> list[Event]:
        """The copies that bring both orders of a revision about: what was created, and what was written later."""
        data: dict[str, Pair] = {}
        for event in source.history:
            if event.revision <= base and event.key in KEYS:
                if event.value is None:
                    data.pop(event.key, None)
                else:
                    there = data.get(event.key)
                    create = event.revision if there is None else there.create
                    data[event.key] = Pair(event.value, create, event.revision)
        events = {pair.create: Event(pair.create, key, pair.value) for key, pair in data.items()}
        if self.mistake is not Mistake.COPY_IN_ONE_ORDER:
            events |= {pair.mod: Event(pair.mod, key, pair.value) for key, pair in data.items()}
        last = Event(base, "", None)
        return [*(events[revision] for revision in sorted(events) if revision < base), events.get(base, last)]

    def _copy(self, mover: Mover, event: Event) -> bool:
        target, change, copies = self._target(mover.change), mover.change, mover.copies
        assert copies is not None
        is_mine = target.copies == copies or self.mistake is Mistake.COPIES_WITHOUT_MOVER
        if target.guard != change.before.guard(change.target) or not is_mine:
            return False
        target.write(event.key if event.key in KEYS else "", event.value)
        mover.copies = target.copies = copies._replace(at=event.revision)
        return True

    def _go_over(self, mover: Mover, phase: Phase) -> bool:
        if self.next != mover.change:
            return False
        self.next = mover.change = mover.change._replace(phase=phase)
        return True

    def _cut(self, mover: Mover) -> bool:
        change = mover.change
        source = self._source(change)
        if source.guard == change.before.guard(change.source):
            self._hold(source, change.after, change.source)
        if source.guard != change.after.guard(change.source):
            return False
        mover.cut = source.guard_revision
        return True

    def open(self, mover: Mover) -> bool:
        """Begins the target's ownership."""
        change, copies, cut = mover.change, mover.copies, mover.cut
        assert copies is not None
        assert cut is not None
        source, target = self._source(change), self._target(change)
        if target.guard != change.before.guard(change.target) or target.copies != copies:
            return target.guard == change.after.guard(change.target) and self._finish(change)
        if self.mistake is not Mistake.COUNTER_NOT_RAISED and copies.first < cut:
            return False  # some copy may have a number that the source gave: given up
        for by in ("create", "mod"):
            orders = [sorted(one.data, key=lambda key: getattr(one.data[key], by)) for one in (source, target)]
            if orders[0] != orders[1] and self.mistake is not Mistake.FENCE_AFTER_COPY:
                raise WrongError(f"the order by {by} was {orders[0]}, and is {orders[1]}")
        self._hold(target, change.after, change.target)
        target.copies = None
        return self._finish(change)

    def _finish(self, change: Next) -> bool:
        if self.next is not None and self.next.after == change.after:
            self.next, self.map = None, change.after
        return False  # this mover has nothing more to do

    def _hold(self, shard: Shard, new: Map, name: str) -> None:
        shard.write(GUARD, None)
        shard.guard, shard.guard_revision, shard.map = new.guard(name), shard.revision, new

    def _source(self, change: Next) -> Shard:
        return self.shards[change.source]

    def _target(self, change: Next) -> Shard:
        return self.shards[change.target]

    def fenced_early(self, mover: Mover) -> bool:
        """With `FENCE_AFTER_COPY`: cuts and opens although more may have been written since the last look."""
        if mover.copies is None or mover.todo or mover.change.phase is not Phase.CUT:
            return False
        return self._cut(mover) and not self.open(mover)

    # Aborting.

    def abort(self) -> None:
        """Somebody decides, on the anchor, that a move is given up."""
        change = self.next
        if change is None or change.phase in (Phase.ABORT, Phase.OPEN):
            return
        before = change.before
        if self.mistake is Mistake.ABORT_WITH_OLD_GUARDS:
            back = Map(before.epoch + 2, before.owner, before.guards)
        else:
            back = Map(before.epoch + 2, before.owner, ((SOURCE, self.guard()), (TARGET, self.guard())))
        self.maps.append(back)
        self.next = change._replace(phase=Phase.ABORT, back=back)

    def give_back(self) -> None:
        """The next step of a move that is given up, by anybody."""
        change = self.next
        if change is None or change.back is None:
            return
        source, target, back = self._source(change), self._target(change), change.back
        if target.map != back and self.mistake is not Mistake.ABORT_WITHOUT_MARK:
            if target.guard == change.after.guard(change.target):
                self._finish(change)
            else:
                self._hold(target, back, change.target)
                target.copies = None
        elif source.map != back:
            self._hold(source, back, change.source)
        else:
            self.next, self.map = None, back

    def purge(self) -> None:
        """Deletes what a shard has and does not own, once the move is finished."""
        if self.mistake is Mistake.PURGE_BEFORE_OPENING:
            owner = max((shard.map for shard in self.shards.values()), key=lambda one: one.epoch).owner
        elif self.next is None:
            owner = self.map.owner
        else:
            return
        for name, shard in self.shards.items():
            if name != owner:
                for key in list(shard.data):
                    shard.write(key, None)

    # Promises.

    def check(self) -> None:
        """One shard at most accepts calls, and has what was acknowledged.

        Raises:
            WrongError: two do, or the one has other values.
        """
        accepting = {one.owner for one in self.maps if self.shards[one.owner].guard == one.guard(one.owner)}
        if len(accepting) > 1:
            raise WrongError(f"{sorted(accepting)} accept calls")
        for name in accepting:
            values = {key: pair.value for key, pair in self.shards[name].data.items()}
            if values != self.truth:
                raise WrongError(f"{name} has {values}, acknowledged was {self.truth}")

    def settle(self) -> None:
        """Whatever was left is given up or carried out, and somebody owns the range then.

        Raises:
            WrongError: nobody does.
        """
        self.abort()
        for _ in range(4):
            self.give_back()
        owner = self.shards[self.map.owner]
        if self.next is not None or owner.guard != self.map.guard(self.map.owner):
            raise WrongError("nobody owns the range")
        self.check()
