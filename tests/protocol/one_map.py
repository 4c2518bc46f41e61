"""A model of shards that hold the map, of proxies that compare guards, and of operators who move keys.

The names are those of docs/decisions/2026-11-30-one-map.md. Each method of `World` is one step that is atomic in
reality as well: a transaction on one shard, or a proxy's look at shards. Between two steps anything may happen, and any
proxy or mover may stop for as long as it likes: calls under way are in `World.sent`, movers are in `World.movers`.

A `Mistake` leaves out one rule of the protocol.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from typing import Final, NamedTuple

SHARDS: Final = ("a", "b", "c")
ANCHOR: Final = "a"
KEYS: Final = ("k", "l")


class Mistake(Enum):
    """A rule that the protocol may lack."""

    READS_WITHOUT_COMPARISON = auto()
    OPEN_BEFORE_CUT = auto()
    STEPS_WITHOUT_COMPARISON = auto()
    COPY_WITHOUT_COMPARISON = auto()
    GUARD_BY_REVISION = auto()
    GUARD_WITHOUT_NONCE = auto()
    TOLD_WITHOUT_COMPARISON = auto()
    DECIDED_ANYWHERE = auto()
    FENCE_WITHOUT_COMPARISON = auto()
    FENCE_WITHOUT_DECISION = auto()
    ANCHOR_FENCED_ALONE = auto()


@dataclass(frozen=True)
class Map:
    """The map: who owns each key, and the guard of each shard while this map is in force."""

    epoch: int
    owner: Mapping[str, str]
    guards: Mapping[str, str]


class Next(NamedTuple):
    """A change that the anchor has decided: from one map to another. `restored` get new guards, and no key moves."""

    old: Map
    new: Map
    restored: frozenset[str] = frozenset()


@dataclass
class Shard:
    """One etcd: keys of clients, and esp's own."""

    revision: int
    guard: str
    guard_revision: int
    map: Map
    next: Next | None = None
    data: dict[str, int] = field(default_factory=dict)

    def write(self) -> int:
        """The revision of a write."""
        self.revision += 1
        return self.revision


class Call(NamedTuple):
    """A client's call that a proxy has sent to a shard; the network may hold it back for hours."""

    shard: str
    key: str
    value: int | None  # None for a read
    known: Map


class Mover:
    """A change that somebody carries out, step by step. `left` are the steps to do, `looked` the guards seen last."""

    def __init__(self, change: Next, *, open_first: bool = False) -> None:
        self.change = change
        self.looked: dict[str, str] = {}
        old, new, restored = change
        if restored:
            renewed = [name for name in SHARDS if old.guards[name] != new.guards[name]]
            fences = [(step, name) for name in renewed for step in ("look", "fence")]
            told = [("tell", name) for name in SHARDS if name not in renewed]
            self.left = [*fences, *told, ("finish", ANCHOR)]
            return
        [self.key] = [key for key in KEYS if old.owner[key] != new.owner[key]]
        self.source, self.target = old.owner[self.key], new.owner[self.key]
        steps = [("cut", self.source), ("copy", self.target), ("open", self.target)]
        if open_first:
            steps = [steps[1], steps[2], steps[0]]
        others = [("tell", name) for name in SHARDS if name not in (self.source, self.target)]
        self.left = [*steps, *others, ("finish", ANCHOR)]


class WrongError(AssertionError):
    """A client got a wrong answer, or could get one."""


class World:
    """Everything that there is."""

    def __init__(self, mistake: Mistake | None = None) -> None:
        self.mistake = mistake
        self._nonces = count(1)
        self._values = count(1)
        first = Map(1, {"k": "a", "l": "b"}, {name: self.guard(1) for name in SHARDS})
        self.shards = {name: Shard(1, first.guards[name], 1, first) for name in SHARDS}
        self.proxies = dict.fromkeys(("p", "q"), first)
        self.maps = [first]  # all that ever were: any of them may be in a proxy that sleeps
        self._revisions = {(name, first.guards[name]): {1} for name in SHARDS}
        self.sent: list[Call] = []
        self.movers: list[Mover] = []
        self.truth: dict[str, int | None] = dict.fromkeys(KEYS)
        self.backups: list[dict[str, Shard]] = []
        self.hidden: set[str] = set()  # restored, under addresses that no proxy and no mover of before has
        self.fencing: Next | None = None  # the decision that gives these new guards
        self.back_up()

    def guard(self, epoch: int) -> str:
        """A guard that no shard has ever had."""
        return str(epoch) if self.mistake is Mistake.GUARD_WITHOUT_NONCE else f"{epoch}-{next(self._nonces)}"

    # Proxies.

    def learn(self, proxy: str, reached: Iterable[str]) -> None:
        """A proxy reads the map of the shards that it reaches, and takes the newest.

        An older one than its own only if all shards tell nothing newer: then all of them were restored.
        """
        told = {name: self.shards[name].map for name in reached if name not in self.hidden}
        if told:
            newest = max(told.values(), key=_epoch)
            if newest.epoch > self.proxies[proxy].epoch or len(told) == len(SHARDS):
                self.proxies[proxy] = newest

    def send(self, proxy: str, key: str, *, writes: bool) -> Call:
        """A proxy routes a client's call by the map that it knows, and sends it."""
        known = self.proxies[proxy]
        call = Call(known.owner[key], key, next(self._values) if writes else None, known)
        self.sent.append(call)
        return call

    def arrive(self, call: Call) -> bool:
        """A shard executes a call, as one transaction; False if it refuses, and then it has done nothing."""
        self.sent.remove(call)
        if call.shard in self.hidden:
            return False
        shard = self.shards[call.shard]
        compares = call.value is not None or self.mistake is not Mistake.READS_WITHOUT_COMPARISON
        if compares and not self.accepts(call.shard, call.known):
            return False
        if call.value is None:
            if shard.data.get(call.key) != self.truth[call.key]:
                raise WrongError(f"{call} reads {shard.data.get(call.key)}, last acknowledged: {self.truth[call.key]}")
        else:
            shard.write()
            shard.data[call.key] = self.truth[call.key] = call.value
        return True

    def accepts(self, name: str, known: Map) -> bool:
        """Whether the comparison of a proxy that knows this map succeeds on a shard, and the proxy gets there."""
        if name in self.hidden:
            return False
        shard, guard = self.shards[name], known.guards[name]
        if self.mistake is Mistake.GUARD_BY_REVISION:
            return shard.guard_revision in self._revisions.get((name, guard), ())
        return shard.guard == guard

    # Changes of the map.

    def decide(self, key: str, target: str) -> Mover | None:
        """Somebody who has read all maps decides on the anchor that a key moves; None if the anchor refuses.

        Not while a shard is not reached, or has another guard than the map says.
        """
        if self.hidden:
            return None
        old = max((shard.map for shard in self.shards.values()), key=_epoch)
        anchor, source = self.shards[ANCHOR], old.owner[key]
        if source == target:
            return None
        anywhere = self.mistake is Mistake.DECIDED_ANYWHERE
        if not anywhere and (anchor.next is not None or anchor.map != old):
            return None
        epoch = old.epoch + 1
        guards = {**old.guards, source: self.guard(epoch), target: self.guard(epoch)}
        new = Map(epoch, {**old.owner, key: target}, guards)
        self.maps.append(new)
        change = Next(old, new)
        if not anywhere:
            anchor.write()
            anchor.next = change
        mover = Mover(change, open_first=self.mistake is Mistake.OPEN_BEFORE_CUT)
        self.movers.append(mover)
        return mover

    def resume(self) -> Mover | None:
        """Somebody else takes over the change that the anchor has decided, from its beginning."""
        anchor = self.shards[ANCHOR]
        if anchor.next is None:
            return None
        mover = Mover(anchor.next, open_first=self.mistake is Mistake.OPEN_BEFORE_CUT)
        self.movers.append(mover)
        return mover

    def step(self, mover: Mover) -> bool:
        """A mover's next step. False if the mover gives up."""
        step, name = mover.left[0]
        if not self._done(mover, step, name):
            self.movers.remove(mover)
            return False
        mover.left.pop(0)
        if not mover.left:
            self.movers.remove(mover)
        return True

    def _done(self, mover: Mover, step: str, name: str) -> bool:
        old, new, restored = mover.change
        shard = self.shards[name]
        if step == "look":
            if self.mistake is not Mistake.FENCE_WITHOUT_DECISION and self.shards[ANCHOR].next != mover.change:
                return False
            mover.looked[name] = shard.guard if name in restored else old.guards[name]
            return True
        if step == "fence":
            if shard.guard != mover.looked[name] and self.mistake is not Mistake.FENCE_WITHOUT_COMPARISON:
                return shard.guard == new.guards[name]
            self.put_guard(name, new)
            return True
        if name in self.hidden and not restored:
            return False
        if step in ("cut", "open"):
            return self._install(name, old, new)
        if step == "copy":
            return self._copied(mover)
        if step == "tell":
            compares = self.mistake is not Mistake.TOLD_WITHOUT_COMPARISON
            if shard.map.epoch < new.epoch and (not compares or shard.guard == new.guards[name]):
                shard.write()
                shard.map = new
            return True
        if shard.next == mover.change:
            shard.write()
            shard.next = None
            shard.map = new
        return True

    def _install(self, name: str, old: Map, new: Map) -> bool:
        """Changes the guard from that of the old map to that of the new; True if it is the new one afterwards."""
        shard = self.shards[name]
        if shard.guard != old.guards[name] and self.mistake is not Mistake.STEPS_WITHOUT_COMPARISON:
            return shard.guard == new.guards[name]
        self.put_guard(name, new)
        return True

    def put_guard(self, name: str, new: Map) -> None:
        """One transaction that writes the guard and the map."""
        shard = self.shards[name]
        shard.guard, shard.guard_revision, shard.map = new.guards[name], shard.write(), new
        self._revisions.setdefault((name, shard.guard), set()).add(shard.guard_revision)

    def _copied(self, mover: Mover) -> bool:
        old, new, _ = mover.change
        source, target = self.shards[mover.source], self.shards[mover.target]
        if self.mistake is not Mistake.COPY_WITHOUT_COMPARISON:
            if target.guard != old.guards[mover.target]:
                return target.guard == new.guards[mover.target]
            if self.mistake is not Mistake.OPEN_BEFORE_CUT and source.guard != new.guards[mover.source]:
                return False
        target.write()
        target.data.pop(mover.key, None)
        if mover.key in source.data:
            target.data[mover.key] = source.data[mover.key]
        return True

    @property
    def is_changing(self) -> bool:
        """Whether a change is decided and not finished."""
        return self.shards[ANCHOR].next is not None

    # Backups.

    def back_up(self) -> None:
        """A backup of all shards."""
        self.backups.append(copy.deepcopy(self.shards))

    def restore(self, names: Collection[str], backup: int) -> None:
        """Restores shards from a backup, under addresses that nobody has.

        The backup may have been made in the midst of a change. What the shards have forgotten is no more the truth.
        """
        for name in names:
            self.shards[name] = copy.deepcopy(self.backups[backup][name])
            self.hidden.add(name)
        self.fencing = None
        self.movers = [mover for mover in self.movers if not mover.change.restored & set(names)]

    def fence(self) -> Mover | None:
        """Somebody decides that the restored shards get new guards; None if that is refused.

        With the anchor all shards get new ones: a change may have been decided there that the backup does not know of,
        and whoever has read it may sleep. Then all shards have to be asked. The newest map of those counts that were
        not restored: a backup may be of a time that is forgotten.
        """
        anchor, restored = self.shards[ANCHOR], frozenset(self.hidden)
        old = self._newest_beside(restored)
        if ANCHOR not in restored and (anchor.next is not None or anchor.map != old):
            return None
        if any(self.shards[name].guard != old.guards[name] for name in SHARDS if name not in restored):
            return None  # a change was half done
        epoch = max(shard.map.epoch for shard in self.shards.values()) + 1  # also above one of a forgotten history
        all_of_them = ANCHOR in restored and self.mistake is not Mistake.ANCHOR_FENCED_ALONE
        renewed = SHARDS if all_of_them else restored
        new = Map(epoch, old.owner, {**old.guards, **{name: self.guard(epoch) for name in sorted(renewed)}})
        self.maps.append(new)
        anchor.write()
        anchor.next = self.fencing = Next(old, new, restored)
        mover = Mover(anchor.next)
        self.movers.append(mover)
        return mover

    def show(self) -> bool:
        """Gives the restored shards addresses that all have; False if that must not be done yet.

        What they have forgotten is no more the truth.
        """
        newest = max((shard.map for shard in self.shards.values()), key=_epoch)
        if self.fencing is None or self.is_changing or any(self.shards[name].map != newest for name in self.hidden):
            return False
        for key in KEYS:
            if newest.owner[key] in self.hidden:
                self.truth[key] = self.shards[newest.owner[key]].data.get(key)
        self.hidden.clear()
        self.fencing = None
        return True

    @property
    def is_half_done(self) -> bool:
        """Whether some shard has another guard than the newest map says: then the anchor must not be restored."""
        return self._is_half_done_beside(())

    @property
    def is_half_done_beside_the_restored(self) -> bool:
        """The same of the shards that are not restored."""
        return self._is_half_done_beside(self.hidden)

    def _is_half_done_beside(self, names: Collection[str]) -> bool:
        newest = self._newest_beside(names)
        return any(shard.guard != newest.guards[name] for name, shard in self.shards.items() if name not in names)

    def _newest_beside(self, names: Collection[str]) -> Map:
        others = [shard.map for name, shard in self.shards.items() if name not in names]
        return max(others or [shard.map for shard in self.shards.values()], key=_epoch)

    # Promises.

    def check(self) -> None:
        """At most one shard accepts calls for a key, whatever map a proxy has in mind, and holds what was acknowledged.

        Raises:
            WrongError: two do, or the one has another value.
        """
        for key in KEYS:
            accepting = {known.owner[key] for known in self.maps if self.accepts(known.owner[key], known)}
            if len(accepting) > 1:
                raise WrongError(f"{key} is accepted by {sorted(accepting)}")
            for name in accepting:
                if self.shards[name].data.get(key) != self.truth[key]:
                    raise WrongError(f"{name} has lost the last acknowledged value of {key}")

    def settle(self) -> None:
        """Finishes what was decided; then each proxy, once it has looked at all shards, is served for each key.

        Raises:
            WrongError: a proxy is not served.
        """
        if ANCHOR not in self.hidden or self.shards[ANCHOR].next == self.fencing:
            self._finish()
        if self.hidden and not self.show():
            if self.fence() is None:
                if ANCHOR in self.hidden and self.is_half_done_beside_the_restored:
                    return  # a decision is lost and half done: nobody is served wrongly, and people have to help
                raise WrongError(f"{sorted(self.hidden)} get no guards")
            self._finish()
            if not self.show():
                raise WrongError(f"{sorted(self.hidden)} do not come back")
        for proxy in self.proxies:
            self.learn(proxy, SHARDS)
            for key in KEYS:
                if not self.arrive(self.send(proxy, key, writes=True)):
                    raise WrongError(f"{proxy} is not served for {key}")

    def _finish(self) -> None:
        if (mover := self.resume()) is not None:
            while mover.left:
                if not self.step(mover):
                    raise WrongError(f"{mover.change.new} cannot be finished")
                self.check()


def _epoch(known: Map) -> int:
    return known.epoch
