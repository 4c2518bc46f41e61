"""A change of the map: what is decided on the anchor, and the steps by which everybody carries it out.

A step is one transaction on one shard. It compares what the shard holds, does nothing where the step is done already,
and can be repeated by anybody at any time (docs/decisions/2026-11-30-one-map.md). Nothing here asks a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

from esp.core.pb import rpc_pb2
from esp.core.shard import GUARD_KEY
from esp.core.shared_map.moving import COPIES_KEY, Move, Phase, fits, move_of
from esp.core.shared_map.value import (
    FORMAT,
    HELD_KEYS,
    MAP_KEY,
    MAP_KEYS,
    NEXT_KEY,
    MapFormatError,
    SharedMap,
    as_json,
    decode,
    dumped,
    loaded,
)

_FIELDS: Final = ("format", "from", "to")
_MAY_HAVE: Final = ("move", "removes", "restored")
_Compare = rpc_pb2.Compare


@dataclass(frozen=True, slots=True)
class Next:
    """A change that is decided: the map before, None for the first map, and the map after.

    Without a move both have the same owners of all keys.

    Attributes:
        before: the map before.
        after: the map after.
        move: the range that gets another owner; None for a change that moves no keys.
        restored: shards that get a new guard because they were restored, whatever guard they hold now. If the anchor
            is among them all shards get new ones: a change may have been decided of which it knows nothing any more.
        removes: the map is taken from all shards; the map after is only its name.
    """

    before: SharedMap | None
    after: SharedMap
    move: Move | None = None
    restored: tuple[str, ...] = ()
    removes: bool = False

    def encode(self) -> bytes:
        """The bytes that the anchor holds until the change is carried out."""
        before = None if self.before is None else as_json(self.before)
        more: dict[str, object] = {} if self.move is None else {"move": self.move.as_json()}
        if self.restored:
            more["restored"] = list(self.restored)
        if self.removes:
            more["removes"] = True
        return dumped({"format": FORMAT, "from": before, "to": as_json(self.after), **more})

    @property
    def result(self) -> SharedMap:
        """The map to which the change leads: of a move that is given up, another than the one after the move."""
        return self.after if self.move is None or self.move.back is None else self.move.back

    @property
    def is_open(self) -> bool:
        """Whether only a mover can go on with it, or somebody who gives it up."""
        return self.move is not None and self.move.phase in (Phase.COPY, Phase.CUT)

    @property
    def cure(self) -> str:
        """What is to be done if nobody goes on with it, as a clause."""
        if self.is_open:
            return "esp move --resume goes on with it, and esp move --abort gives it up"
        return "esp map finish carries it out"

    @property
    def taker(self) -> str:
        """The shard to which keys move; "" if none do."""
        return "" if self.move is None else self.move.target

    def with_move(self, move: Move) -> Next:
        """The same change with its move in another phase, or of another mover."""
        return replace(self, move=move)

    def opened(self) -> Next:
        """The same change, whose range the target owns."""
        assert self.move is not None, "no keys move"
        return self.with_move(replace(self.move, phase=Phase.OPEN, back=None))

    def guards_of(self, shard: str) -> list[str]:
        """The guards that a shard may hold while the change is carried out."""
        maps = [self.before, self.after, self.result]
        return [one.guards[shard] for one in maps if one is not None and shard in one.guards]

    @property
    def added(self) -> list[str]:
        """The shards that only the map after has."""
        return [name for name in self.after.names if self.before is None or name not in self.before.guards]

    @property
    def dropped(self) -> list[str]:
        """The shards that only the map before has."""
        return [] if self.before is None else [name for name in self.before.names if name not in self.after.guards]

    @property
    def renewed(self) -> list[str]:
        """The shards that get another guard."""
        if self.before is None:
            return []
        return [name for name, guard in self.before.guards.items() if self.after.guards.get(name, guard) != guard]


def decode_next(data: bytes) -> Next:
    """The change with these bytes, which come from the network.

    Raises:
        MapFormatError: they are no change, or none that this esp can carry out.
    """
    value = loaded(data, _FIELDS, _MAY_HAVE)
    before = None if value["from"] is None else decode(dumped(value["from"]))
    move = move_of(value["move"]) if "move" in value else None
    restored, removes = value.get("restored", []), value.get("removes", False)
    if not isinstance(restored, list) or not all(isinstance(name, str) for name in restored):
        raise MapFormatError("names no restored shards")
    change = Next(before, decode(dumped(value["to"])), move, tuple(restored), removes is True)
    if change.encode() != data:
        raise MapFormatError("is not written as esp writes it")
    if move is None:
        is_good = _can_follow(before, change)
    else:
        is_good = before is not None and before.anchor == change.after.anchor and fits(move, before, change.after)
        is_good = is_good and not change.restored and not change.removes
    if not is_good:
        raise MapFormatError("is a change that this esp cannot carry out; use a newer esp")
    return change


def _can_follow(before: SharedMap | None, change: Next) -> bool:
    after = change.after
    if before is None:
        return after.epoch == 1 and not change.restored and not change.removes
    stay = before.names == after.names
    if change.restored:
        renewed = after.names if after.anchor in change.restored else change.restored
        if change.removes or not stay or set(change.renewed) != set(renewed) or after.epoch <= before.epoch:
            return False
    elif change.renewed or (change.removes and not stay):
        return False
    return (
        (bool(change.restored) or after.epoch == before.epoch + 1)
        and after.anchor == before.anchor
        and (after.map.starts, after.map.owners) == (before.map.starts, before.map.owners)
        and not any(name in before.map.owners for name in before.names if name not in after.guards)
    )


class Kind(StrEnum):
    """What a step does. The names are part of the JSON form."""

    ADMIT = "admit"
    """Puts guard and map on a shard that has none."""
    DISMISS = "dismiss"
    """Takes guard and map from a shard that is left out."""
    TELL = "tell"
    """Puts the map on a shard that has an older one."""
    FENCE = "fence"
    """Puts the map and a new guard on a shard that has another guard."""
    FORGET = "forget"
    """Takes the map from a shard; the guard stays."""
    RELEASE = "release"
    """Takes the guard from a shard, and whatever else is esp's own there."""
    FINISH = "finish"
    """Puts the map on the anchor, where the change is then forgotten."""
    GIVE_BACK = "give back"
    """Puts the guard and the map of before a move, as renewed, on its target, and then on its source."""
    END = "end"
    """Takes all that is esp's own from the anchor, the change itself included."""


class Step(NamedTuple):
    """One step, on one shard."""

    kind: Kind
    shard: str

    @property
    def can_wait(self) -> bool:
        """Whether the change is in force also while this step is not done, because the shard is silent."""
        return self.kind in (Kind.TELL, Kind.DISMISS)


def steps(change: Next) -> Iterator[Step]:
    """The steps of a change, in their order.

    Of a move only those that anybody may do; `Next.is_open` tells whether it takes more.
    """
    assert not change.is_open, "a mover goes on with it"
    result, move = change.result, change.move
    anchor = result.anchor
    if change.removes:
        others = [name for name in result.names if name != anchor]
        for kind in (Kind.FORGET, Kind.RELEASE):
            for name in others:
                yield Step(kind, name)
        yield Step(Kind.END, anchor)
        return
    if move is not None and move.back is not None:
        yield Step(Kind.GIVE_BACK, move.target)
        yield Step(Kind.GIVE_BACK, move.source)
    renewed = change.renewed if change.restored else []
    for name in renewed:
        yield Step(Kind.FENCE, name)
    for name in change.added:
        yield Step(Kind.ADMIT, name)
    for name in change.dropped:
        yield Step(Kind.DISMISS, name)
    for name in result.names:
        if name not in change.added and name not in renewed and name != anchor:
            yield Step(Kind.TELL, name)
    yield Step(Kind.FINISH, anchor)


# Transactions. If a comparison fails, the answer has what the shard holds.


class Values(NamedTuple):
    """What a shard holds of the map, as bytes; None for a key that is not there."""

    guard: bytes | None
    map: bytes | None
    next: bytes | None


def decision(change: Next, held: Values | None = None) -> rpc_pb2.TxnRequest:
    """Decides on a change, on the anchor: only if the map before is there, and nothing else is decided.

    `held` is for an anchor that was restored: the change is decided if exactly this is there.
    """
    if held is not None:
        keys = zip((GUARD_KEY, MAP_KEY, NEXT_KEY), held, strict=True)
        compares = [_absent(key) if value is None else _equal(key, value) for key, value in keys]
    elif change.before is None:
        compares = [_absent(GUARD_KEY), _absent(MAP_KEY), _absent(NEXT_KEY)]
    else:
        anchor = change.before.anchor
        guard = _equal(GUARD_KEY, change.before.guards[anchor].encode())
        compares = [guard, _equal(MAP_KEY, change.before.encode()), _absent(NEXT_KEY)]
    return _txn(compares, [_put(NEXT_KEY, change.encode())])


def transaction(change: Next, step: Step, held: bytes | None = b"") -> rpc_pb2.TxnRequest:
    """The transaction of a step.

    `held` is what the shard was seen to hold and is to be replaced: for `TELL`, the bytes of an older map; for
    `GIVE_BACK` and `FENCE`, its guard, None if it has none.
    """
    after, shard = change.result, step.shard
    match step.kind:
        case Kind.ADMIT:
            writes = [_put(GUARD_KEY, after.guards[shard].encode()), _put(MAP_KEY, after.encode())]
            return _txn([_absent(GUARD_KEY), _absent(MAP_KEY)], writes)
        case Kind.DISMISS:
            assert change.before is not None, "the first map leaves nobody out"
            guard = _equal(GUARD_KEY, change.before.guards[shard].encode())
            return _txn([guard], [_delete(GUARD_KEY), _delete(MAP_KEY)])
        case Kind.TELL:
            guard = _equal(GUARD_KEY, after.guards[shard].encode())
            return _txn([guard, _equal(MAP_KEY, held or b"")], [_put(MAP_KEY, after.encode())])
        case Kind.FENCE:
            seen = _absent(GUARD_KEY) if held is None else _equal(GUARD_KEY, held)
            decides = [_equal(NEXT_KEY, change.encode())] if shard == after.anchor else []
            return _txn(
                [seen, *decides], [_put(GUARD_KEY, after.guards[shard].encode()), _put(MAP_KEY, after.encode())]
            )
        case Kind.FORGET:
            guard = _equal(GUARD_KEY, after.guards[shard].encode())
            return _txn([guard, _present(MAP_KEY)], [_delete(MAP_KEY)])
        case Kind.RELEASE:
            guard = _equal(GUARD_KEY, after.guards[shard].encode())
            return _txn([guard], [_delete(*HELD_KEYS.to_request())])
        case Kind.END:
            guard = _equal(GUARD_KEY, after.guards[shard].encode())
            decided = _equal(NEXT_KEY, change.encode())
            return _txn([guard, decided], [_delete(*HELD_KEYS.to_request())])
        case Kind.FINISH:
            guard = _equal(GUARD_KEY, after.guards[shard].encode())
            decided = _equal(NEXT_KEY, change.encode())
            return _txn([guard, decided], [_put(MAP_KEY, after.encode()), _delete(NEXT_KEY)])
        case Kind.GIVE_BACK:
            writes = [_put(GUARD_KEY, after.guards[shard].encode()), _put(MAP_KEY, after.encode())]
            return _txn([_equal(GUARD_KEY, held or b"")], [*writes, _delete(COPIES_KEY)])


def advance(change: Next, to: Next) -> rpc_pb2.TxnRequest:
    """Brings a change that is decided into another phase, on the anchor: only if it is still in this one."""
    return _txn([_equal(NEXT_KEY, change.encode())], [_put(NEXT_KEY, to.encode())])


def cutting(change: Next) -> rpc_pb2.TxnRequest:
    """Ends the source's ownership: only if the source has the guard of before."""
    assert change.move is not None
    assert change.move.phase is Phase.CUT
    compares, writes = _passing(change, change.move.source)
    return _txn(compares, writes)


def target_opening(change: Next, copies: bytes) -> rpc_pb2.TxnRequest:
    """Begins the target's ownership: only if it has the guard of before, and this value of `COPIES_KEY`: all copies.

    Only for who knows that the source is cut.
    """
    assert change.move is not None
    assert change.move.phase is Phase.CUT
    compares, writes = _passing(change, change.move.target)
    return _txn([*compares, _equal(COPIES_KEY, copies)], [*writes, _delete(COPIES_KEY)])


def _passing(change: Next, shard: str) -> tuple[list[_Compare], list[rpc_pb2.RequestOp]]:
    assert change.before is not None, "the first map moves nothing"
    compares = [_equal(GUARD_KEY, change.before.guards[shard].encode())]
    after = change.after
    return compares, [_put(GUARD_KEY, after.guards[shard].encode()), _put(MAP_KEY, after.encode())]


def _txn(compares: list[_Compare], writes: list[rpc_pb2.RequestOp]) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(compare=compares, success=writes, failure=[rpc_pb2.RequestOp(request_range=look())])


def look() -> rpc_pb2.RangeRequest:
    """A read of all that a shard holds of the map."""
    key, range_end = MAP_KEYS.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, limit=8)


def _absent(key: bytes) -> _Compare:
    return _Compare(key=key, target=_Compare.CREATE, result=_Compare.EQUAL, create_revision=0)


def _present(key: bytes) -> _Compare:
    return _Compare(key=key, target=_Compare.CREATE, result=_Compare.GREATER, create_revision=0)


def _equal(key: bytes, value: bytes) -> _Compare:
    return _Compare(key=key, target=_Compare.VALUE, result=_Compare.EQUAL, value=value)


def _put(key: bytes, value: bytes) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))


def _delete(key: bytes, range_end: bytes = b"") -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end))
