"""What the shards hold of the map, and the map that is in force by what they tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import GUARD_KEY, RANGE, Shard, ask_all_for_esp
from esp.core.shared_map.change import Next, Values, decode_next, look
from esp.core.shared_map.moved import Moved, noted
from esp.core.shared_map.value import HELD_KEYS, MAP_KEY, NEXT_KEY, OWN_KEYS, MapFormatError, SharedMap, decode
from esp.core.wire.status import Status
from esp.core.wording import both_called


class DisagreeError(Exception):
    """Shards hold different maps of one epoch, or different guards for it; the text is a clause for people."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one shard holds.

    Attributes:
        guard: the value of the guard; None if there is none.
        map: the map; None if there is none, or if it cannot be read.
        next: a change that is decided and not carried out; None if there is none, or if it cannot be read.
        map_bytes: the bytes of the map.
        faults: what cannot be read, and why: clauses that begin with what it is.
        cluster_id: the id of the etcd cluster.
        guard_revision: the shard's revision at which the guard was written; 0 if there is none.
        values: the bytes of all three.
    """

    guard: str | None
    map: SharedMap | None
    next: Next | None
    map_bytes: bytes = field(default=b"", repr=False)
    faults: tuple[str, ...] = ()
    cluster_id: int = 0
    guard_revision: int = 0
    values: Values = field(default=Values(None, None, None), repr=False, compare=False)

    @property
    def is_empty(self) -> bool:
        """Whether the shard holds nothing of a map."""
        return self.guard is None and self.map is None and self.next is None and not self.faults


def held_in(keys: Iterable[kv_pb2.KeyValue], header: rpc_pb2.ResponseHeader) -> Held:
    """What a shard holds whose keys of esp's own are these."""
    keys = list(keys)
    values = {pair.key: pair.value for pair in keys}
    revision = next((pair.mod_revision for pair in keys if pair.key == GUARD_KEY), 0)
    faults: list[str] = []
    shared = change = None
    if (data := values.get(MAP_KEY)) is not None:
        try:
            shared = decode(data)
        except MapFormatError as error:
            faults.append(f"its map {error}")
    if (following := values.get(NEXT_KEY)) is not None:
        try:
            change = decode_next(following)
        except MapFormatError as error:
            faults.append(f"its next map {error}")
    guard = values.get(GUARD_KEY)
    text = None if guard is None else guard.decode("ascii", "replace")[:64]
    raw = Values(guard, data, following)
    return Held(text, shared, change, data or b"", tuple(faults), header.cluster_id, revision, raw)


def held_in_range(answer: rpc_pb2.RangeResponse) -> Held:
    """What a shard holds that has answered `look` so."""
    return held_in(answer.kvs, answer.header)


async def read(shards: Iterable[Shard], seconds: float) -> dict[str, Held | Status]:
    """What each shard holds, or why it does not tell, by name. All are asked at once, as esp's own user.

    Each answer is linearizable: no change that was acknowledged before is missing in it.
    """
    answers = await ask_all_for_esp(shards, RANGE, look(), seconds=seconds)
    return {name: answer if isinstance(answer, Status) else held_in_range(answer) for name, answer in answers.items()}


def moves_of(shared: SharedMap, told: Mapping[str, Held | Status]) -> tuple[Moved, ...]:
    """The moves of a map with all their numbers that are known, by what the shards tell.

    Whoever decides on a change that gives a shard another guard writes these into the map after: the guard that is
    there tells the numbers of the shard's last move.
    """
    revisions = {
        name: held.guard_revision
        for name, held in told.items()
        if isinstance(held, Held) and held.guard == shared.guards.get(name)
    }
    return noted(shared.moves, shared.guards, revisions)


async def foreign_keys(shards: Iterable[Shard], seconds: float) -> dict[str, int | Status]:
    """How many keys each shard holds that begin with a NUL byte and are not esp's, or why it does not tell, by name."""
    shards = tuple(shards)
    start, end = OWN_KEYS.to_request()
    everything = rpc_pb2.RangeRequest(key=start, range_end=end, count_only=True)
    held, held_end = HELD_KEYS.to_request()
    own = rpc_pb2.RangeRequest(key=held, range_end=held_end, count_only=True)
    counts = await ask_all_for_esp(shards, RANGE, everything, seconds=seconds)
    owns = await ask_all_for_esp(shards, RANGE, own, seconds=seconds)
    found: dict[str, int | Status] = {}
    for name, count in counts.items():
        less = owns[name]
        if isinstance(count, Status):
            found[name] = count
        else:
            found[name] = less if isinstance(less, Status) else max(0, count.count - less.count)
    return found


@dataclass(frozen=True, slots=True)
class Told:
    """The map in force, and how the shards stand to it.

    Attributes:
        map: the newest map that a shard tells.
        change: the change that the anchor has decided and that is not carried out; None if there is none.
        behind: the shards that tell an older map.
        unfenced: the shards whose guard is not the one that the map names: they refuse what comes by this map.
        silent: the shards that do not tell, and why.
    """

    map: SharedMap
    change: Next | None
    behind: tuple[str, ...]
    unfenced: tuple[str, ...]
    silent: Mapping[str, str]


def opening(guards: Mapping[str, str], anchor: str, found: Mapping[str, Held | Status]) -> frozenset[str]:
    """The shards that are about to get the guards of the map in force: the change that has made it goes on.

    If the anchor does not tell, each shard that holds another guard may be one of them.

    Args:
        guards: those of the map in force, by the shards' names.
        anchor: the anchor's name.
        found: what the shards hold.
    """
    others = {
        name: held.guard for name, held in found.items() if isinstance(held, Held) and held.guard != guards.get(name)
    }
    decides = found.get(anchor)
    if not isinstance(decides, Held):
        return frozenset(others)
    change = decides.next
    if change is None or guards not in (change.after.guards, change.result.guards):
        return frozenset()
    return frozenset(name for name, guard in others.items() if guard in change.guards_of(name))


def newest(told: Mapping[str, Held | Status]) -> Told | None:
    """The map in force by what the shards tell; None if none of them tells a map.

    Raises:
        DisagreeError: two shards tell different maps of the highest epoch.
    """
    maps = {name: held.map for name, held in told.items() if isinstance(held, Held) and held.map is not None}
    if not maps:
        return None
    best = max(maps.values(), key=lambda shared: shared.epoch)
    others = [name for name, shared in maps.items() if shared.epoch == best.epoch and shared != best]
    if others:
        one = next(name for name, shared in maps.items() if shared == best)
        raise DisagreeError(
            f"{both_called(one, ', '.join(others))} hold different maps of epoch {best.epoch}: they were made apart "
            "from each other, perhaps by two configs that name the same shards"
        )
    anchor = told.get(best.anchor)
    change = anchor.next if isinstance(anchor, Held) else None
    behind, unfenced, silent = [], [], {}
    for name in best.names:
        held = told.get(name)
        if held is None:
            silent[name] = "is not in the config"
        elif isinstance(held, Status):
            silent[name] = held.message
        else:
            if held.guard != best.guards[name]:
                unfenced.append(name)
            if name not in maps and held.faults:
                silent[name] = "; ".join(held.faults)
            elif name not in maps or maps[name].epoch < best.epoch:
                behind.append(name)
    return Told(best, change, tuple(behind), tuple(unfenced), silent)
