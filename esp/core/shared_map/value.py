"""The map as the shards hold it: a value, and its bytes.

The bytes are canonical JSON: one value has exactly one form, and any other form is refused. So two shards hold the same
map if their bytes are the same, and a comparison of bytes in a transaction compares maps.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from esp.core.keys import KeyRange
from esp.core.shard_map import ShardMap
from esp.core.shared_map import moved
from esp.core.shared_map.moved import MAX_MOVES, Moved
from esp.core.wording import shard_called

OWN_KEYS: Final = KeyRange(b"\0", b"\x01")
"""The keys of esp's own, in shards that hold the map."""
HELD_KEYS: Final = KeyRange(b"\0esp/", b"\0esp0")
"""The keys under which shards hold the map. No copy of clients' keys has them, and they are no stray keys."""
MAP_KEYS: Final = KeyRange(b"\0esp/", b"\0esp/next\0")
"""Those of these that are about the map and its changes; behind them are those about proxies (`fleet`)."""
NEWS_KEYS: Final = KeyRange(b"\0esp/guard", b"\0esp/next\0")
"""Those of these that tell of another map; not the one that each copy of a move writes."""
MAP_KEY: Final = b"\0esp/map"
NEXT_KEY: Final = b"\0esp/next"

FORMAT: Final = 1
MAX_MAP_BYTES: Final = 262_144
"""The most bytes of a map: some thousand ranges."""
MAX_CHANGES: Final = 32
"""The changes that a map remembers; of these the oldest are forgotten first, also where the map would be too large."""
MAX_TEXT: Final = 200
"""The most characters of a text about a change."""
MAX_EPOCH: Final = 2**53 - 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_GUARD = re.compile(r"([1-9][0-9]{0,15})-[0-9a-f]{32}")
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_FIELDS: Final = ("anchor", "changes", "epoch", "format", "guards", "ranges", "shards")
_MAY_HAVE: Final = ("moves",)

Nonce = Callable[[], str]
"""Makes 32 hexadecimal digits that nobody has made before."""


def clients_keys(range_: KeyRange) -> KeyRange:
    """The keys of a range that clients can have: a range from the first key on has no key of esp's own."""
    assert OWN_KEYS.end is not None, "it has an end"
    return KeyRange(max(range_.start, OWN_KEYS.end), range_.end)


class MapFormatError(ValueError):
    """Bytes that are no map, or a map that has no bytes; the text is a clause for people."""


def fresh_nonce() -> str:
    """128 random bits, as 32 hexadecimal digits."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Change:
    """A change that has led to a map.

    Attributes:
        epoch: the epoch of the map that the change made.
        at: when, in UTC, as `2026-11-30T16:00:00Z`.
        by: who, as far as known: user and machine.
        what: in a few words.
        fingerprint: that of the map.
    """

    epoch: int
    at: str
    by: str
    what: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SharedMap:
    """The map as the shards hold it.

    Attributes:
        map: the owners of all keys; its epoch is that of the map.
        anchor: the shard that decides on changes.
        guards: the value of `GUARD_KEY` on each shard while this map is in force.
        changes: the last changes, the newest at the end.
        moves: the last moves of ranges, the newest at the end.
    """

    map: ShardMap
    anchor: str
    guards: Mapping[str, str]
    changes: tuple[Change, ...]
    moves: tuple[Moved, ...] = ()

    @property
    def epoch(self) -> int:
        """The number of the map; a later map has a higher number."""
        return self.map.epoch

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all shards."""
        return self.map.names

    def encode(self) -> bytes:
        """The bytes of the map.

        Raises:
            MapFormatError: they would be too many.
        """
        changes = self.changes
        while True:
            data = _dumped(self, changes)
            if len(data) <= MAX_MAP_BYTES:
                return data
            if len(changes) == 1:
                raise MapFormatError(f"has {len(data):,} bytes, and the most are {MAX_MAP_BYTES:,}; join some ranges")
            changes = changes[1:]


def first(shard_map: ShardMap, *, at: str, by: str, what: str, nonce: Nonce = fresh_nonce) -> SharedMap:
    """The first map, of epoch 1, with the owners of `shard_map`. The first shard is the anchor.

    Raises:
        MapFormatError: a boundary lies among the keys of esp's own, or the map is too large.
    """
    one = ShardMap(shard_map.names, 1, shard_map.starts, shard_map.owners)
    guards = {name: f"1-{nonce()}" for name in one.names}
    return checked(SharedMap(one, one.names[0], guards, (_change(one, at, by, what),)))


def with_shards(
    before: SharedMap, names: Collection[str], *, at: str, by: str, what: str, nonce: Nonce = fresh_nonce
) -> SharedMap:
    """The next map, with other shards that own nothing, and the same owners of all keys.

    Raises:
        MapFormatError: a shard would be left out that owns keys, or that is the anchor; or the map is too large.
    """
    for name in before.names:
        if name not in names and name in before.map.owners:
            raise MapFormatError(f"has keys of {shard_called(name)}, so {name} cannot be left out")
    if before.anchor not in names:
        raise MapFormatError(f"is decided on by {shard_called(before.anchor)}, so {before.anchor} cannot be left out")
    kept = [name for name in before.names if name in names]
    added = [name for name in names if name not in before.guards]
    after = ShardMap((*kept, *added), before.epoch + 1, before.map.starts, before.map.owners)
    guards = {name: before.guards.get(name) or f"{after.epoch}-{nonce()}" for name in after.names}
    moves = before.moves
    for name in before.names:
        if name not in guards:
            moves = moved.without_history(moves, name)
    return checked(SharedMap(after, before.anchor, guards, changed(before, after, at, by, what), moves))


def changed(before: SharedMap, after: ShardMap, at: str, by: str, what: str) -> tuple[Change, ...]:
    """The last changes, with the one that leads to the map after."""
    return (*before.changes, _change(after, at, by, what))[-MAX_CHANGES:]


def with_new_guards(
    before: SharedMap,
    names: Collection[str],
    *,
    at: str,
    by: str,
    what: str,
    moves: Sequence[Moved] | None = None,
    epoch: int = 0,
    nonce: Nonce = fresh_nonce,
) -> SharedMap:
    """A later map, with the same owners of all keys, and other guards of these shards.

    `moves` are those of `before` with all numbers that are known, and without what restored shards have lost. `epoch`
    is a higher one than the next, if a restored shard has a map of a time that is forgotten.

    Raises:
        MapFormatError: the map is too large.
    """
    after = ShardMap(before.names, max(epoch, before.epoch + 1), before.map.starts, before.map.owners)
    guards = {name: f"{after.epoch}-{nonce()}" if name in names else guard for name, guard in before.guards.items()}
    kept = before.moves if moves is None else tuple(moves)
    return checked(SharedMap(after, before.anchor, guards, changed(before, after, at, by, what), kept))


def checked(shared: SharedMap) -> SharedMap:
    """The map as it is after it was written and read.

    Raises:
        MapFormatError: the map cannot be written, or could not be read.
    """
    return decode(shared.encode())


def decode(data: bytes) -> SharedMap:
    """The map with these bytes, which come from the network.

    Raises:
        MapFormatError: they are no map, or no map that this esp can read.
    """
    if len(data) > MAX_MAP_BYTES:
        raise MapFormatError(f"has {len(data):,} bytes, and the most are {MAX_MAP_BYTES:,}")
    value = loaded(data, _FIELDS, _MAY_HAVE)
    try:
        shared = _read(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MapFormatError(f"cannot be read: {str(error) or type(error).__name__}"[:MAX_TEXT]) from None
    if shared.encode() != data:
        raise MapFormatError("is not written as esp writes it")
    return shared


def loaded(data: bytes, fields: Collection[str], may_have: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object in bytes of esp's own format, with exactly these fields, and those that it may have.

    Raises:
        MapFormatError: there is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise MapFormatError("is no JSON") from None
    if not isinstance(value, dict) or type(value.get("format")) is not int:
        raise MapFormatError("is nothing that esp has written")
    if value["format"] != FORMAT:
        raise MapFormatError(f"has format {value['format']}, and this esp knows format {FORMAT}; use a newer esp")
    if sorted(name for name in value if name not in may_have) != sorted(fields):
        raise MapFormatError("has other fields than a map")
    return value


def dumped(value: object) -> bytes:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def as_json(shared: SharedMap) -> dict[str, Any]:
    """The map as the JSON object that its bytes are."""
    value: dict[str, Any] = json.loads(shared.encode())
    return value


def _change(after: ShardMap, at: str, by: str, what: str) -> Change:
    return Change(after.epoch, at, by[:MAX_TEXT], what[:MAX_TEXT], after.fingerprint)


def _dumped(shared: SharedMap, changes: tuple[Change, ...]) -> bytes:
    moves = {"moves": [moved.as_json(one) for one in shared.moves]} if shared.moves else {}
    return dumped(
        {
            **moves,
            "format": FORMAT,
            "epoch": shared.epoch,
            "anchor": shared.anchor,
            "shards": list(shared.names),
            "guards": dict(shared.guards),
            "ranges": [[start.hex(), owner] for start, owner in zip(shared.map.starts, shared.map.owners, strict=True)],
            "changes": [
                {
                    "epoch": change.epoch,
                    "at": change.at,
                    "by": change.by,
                    "what": change.what,
                    "fingerprint": change.fingerprint,
                }
                for change in changes
            ],
        }
    )


def _read(value: dict[str, Any]) -> SharedMap:
    epoch = value["epoch"]
    _must(type(epoch) is int and 1 <= epoch <= MAX_EPOCH, "its epoch is none")
    names = tuple(value["shards"])
    _must(len(names) > 0 and all(isinstance(name, str) and _NAME.fullmatch(name) for name in names), "a name is none")
    _must(len(set(names)) == len(names), "a shard comes twice")
    _must(value["anchor"] in names, "its anchor is no shard")
    guards = dict(value["guards"])
    _must(set(guards) == set(names), "its guards are not those of its shards")
    for guard in guards.values():
        found = _GUARD.fullmatch(guard)
        _must(found is not None and int(found[1]) <= epoch, "a guard is none")
    starts = [bytes.fromhex(start) for start, _ in value["ranges"]]
    owners = [owner for _, owner in value["ranges"]]
    _must(starts[:1] == [b""] and all(low < high for low, high in pairwise(starts)), "its ranges are not in order")
    _must(not any(start.startswith(b"\0") for start in starts), "a boundary begins with a zero byte, as esp's own keys")
    _must(all(owner in names for owner in owners), "an owner is no shard")
    _must(all(one != other for one, other in pairwise(owners)), "neighbours have one owner")
    shard_map = ShardMap(names, epoch, starts, owners)
    changes = tuple(_read_change(change) for change in value["changes"])
    _must(1 <= len(changes) <= MAX_CHANGES, "its changes are too many, or none")
    _must(all(one.epoch < other.epoch for one, other in pairwise(changes)), "its changes are not in order")
    _must(changes[-1].epoch == epoch and changes[-1].fingerprint == shard_map.fingerprint, "its last change is not its")
    moves = tuple(moved.of_json(one) for one in value.get("moves", ()))
    _must("moves" not in value or len(moves) > 0, "its moves are none")
    _must(len(moves) <= max(MAX_MOVES, len(names)), "its moves are too many")
    _must(all(one.epoch < other.epoch for one, other in pairwise(moves)), "its moves are not in order")
    for one in moves:
        _must(one.epoch <= epoch, "a move is of a later epoch")
        _must(not one.source or _NAME.fullmatch(one.source) is not None, "the source of a move is none")
        _must(_NAME.fullmatch(one.target) is not None, "the target of a move is none")
    return SharedMap(shard_map, value["anchor"], guards, changes, moves)


def _read_change(value: dict[str, Any]) -> Change:
    change = Change(**value)
    _must(type(change.epoch) is int and change.epoch >= 1, "the epoch of a change is none")
    _must(_AT.fullmatch(change.at) is not None, "the time of a change is none")
    _must(_FINGERPRINT.fullmatch(change.fingerprint) is not None, "the fingerprint of a change is none")
    for text in (change.by, change.what):
        _must(isinstance(text, str) and len(text) <= MAX_TEXT and text.isprintable(), "a text of a change is none")
    return change


def _must(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(text)
