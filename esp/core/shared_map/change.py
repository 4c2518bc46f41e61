"""A change of the map: what is decided on the anchor, and the steps by which everybody carries it out.

A step is one transaction on one shard. It compares what the shard holds, does nothing where the step is done already,
and can be repeated by anybody at any time (docs/decisions/2026-11-30-one-map.md). Nothing here asks a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from esp.core.pb import rpc_pb2
from esp.core.shard import GUARD_KEY
from esp.core.shared_map.value import (
    FORMAT,
    HELD_KEYS,
    MAP_KEY,
    NEXT_KEY,
    MapFormatError,
    SharedMap,
    as_json,
    decode,
    dumped,
    loaded,
)

_FIELDS: Final = ("format", "from", "to")
_Compare = rpc_pb2.Compare


@dataclass(frozen=True, slots=True)
class Next:
    """A change that is decided: the map before, None for the first map, and the map after.

    Both have the same owners of all keys: moves of keys are not among the changes yet.
    """

    before: SharedMap | None
    after: SharedMap

    def encode(self) -> bytes:
        """The bytes that the anchor holds until the change is carried out."""
        before = None if self.before is None else as_json(self.before)
        return dumped({"format": FORMAT, "from": before, "to": as_json(self.after)})

    @property
    def added(self) -> list[str]:
        """The shards that only the map after has."""
        return [name for name in self.after.names if self.before is None or name not in self.before.guards]

    @property
    def dropped(self) -> list[str]:
        """The shards that only the map before has."""
        return [] if self.before is None else [name for name in self.before.names if name not in self.after.guards]


def decode_next(data: bytes) -> Next:
    """The change with these bytes, which come from the network.

    Raises:
        MapFormatError: they are no change, or none that this esp can carry out.
    """
    value = loaded(data, _FIELDS)
    before = None if value["from"] is None else decode(dumped(value["from"]))
    change = Next(before, decode(dumped(value["to"])))
    if change.encode() != data:
        raise MapFormatError("is not written as esp writes it")
    if not _can_follow(before, change.after):
        raise MapFormatError("moves keys, which this esp cannot carry out; use a newer esp")
    return change


def _can_follow(before: SharedMap | None, after: SharedMap) -> bool:
    if before is None:
        return after.epoch == 1
    return (
        after.epoch == before.epoch + 1
        and after.anchor == before.anchor
        and (after.map.starts, after.map.owners) == (before.map.starts, before.map.owners)
        and all(guard == before.guards.get(name, guard) for name, guard in after.guards.items())
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
    FINISH = "finish"
    """Puts the map on the anchor, where the change is then forgotten."""


class Step(NamedTuple):
    """One step, on one shard."""

    kind: Kind
    shard: str

    @property
    def can_wait(self) -> bool:
        """Whether the change is in force also while this step is not done, because the shard is silent."""
        return self.kind in (Kind.TELL, Kind.DISMISS)


def steps(change: Next) -> Iterator[Step]:
    """The steps of a change, in their order."""
    for name in change.added:
        yield Step(Kind.ADMIT, name)
    for name in change.dropped:
        yield Step(Kind.DISMISS, name)
    for name in change.after.names:
        if name not in change.added and name != change.after.anchor:
            yield Step(Kind.TELL, name)
    yield Step(Kind.FINISH, change.after.anchor)


# Transactions. If a comparison fails, the answer has what the shard holds.


def decision(change: Next) -> rpc_pb2.TxnRequest:
    """Decides on a change, on the anchor: only if the map before is there, and nothing else is decided."""
    if change.before is None:
        compares = [_absent(GUARD_KEY), _absent(MAP_KEY), _absent(NEXT_KEY)]
    else:
        anchor = change.before.anchor
        guard = _equal(GUARD_KEY, change.before.guards[anchor].encode())
        compares = [guard, _equal(MAP_KEY, change.before.encode()), _absent(NEXT_KEY)]
    return _txn(compares, [_put(NEXT_KEY, change.encode())])


def transaction(change: Next, step: Step, held: bytes = b"") -> rpc_pb2.TxnRequest:
    """The transaction of a step; for `TELL`, `held` are the bytes of the older map that the shard holds."""
    after, shard = change.after, step.shard
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
            return _txn([guard, _equal(MAP_KEY, held)], [_put(MAP_KEY, after.encode())])
        case Kind.FINISH:
            guard = _equal(GUARD_KEY, after.guards[shard].encode())
            decided = _equal(NEXT_KEY, change.encode())
            return _txn([guard, decided], [_put(MAP_KEY, after.encode()), _delete(NEXT_KEY)])


def _txn(compares: list[_Compare], writes: list[rpc_pb2.RequestOp]) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(compare=compares, success=writes, failure=[rpc_pb2.RequestOp(request_range=look())])


def look() -> rpc_pb2.RangeRequest:
    """A read of all that a shard holds of the map."""
    key, range_end = HELD_KEYS.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, limit=8)


def _absent(key: bytes) -> _Compare:
    return _Compare(key=key, target=_Compare.CREATE, result=_Compare.EQUAL, create_revision=0)


def _equal(key: bytes, value: bytes) -> _Compare:
    return _Compare(key=key, target=_Compare.VALUE, result=_Compare.EQUAL, value=value)


def _put(key: bytes, value: bytes) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))


def _delete(key: bytes) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))
