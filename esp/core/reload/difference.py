"""The difference between two configs, as plain values: for the decision whether to reload, for people, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from esp.core.config import AcrossShards, Compaction, Config, Listen, ShardConfig
from esp.core.keys import KeyRange, format_key, format_range
from esp.core.moves import Move, moves
from esp.core.namespace import Namespace
from esp.core.wire.limits import OF_A_CONNECTION
from esp.core.wording import shard_called

MAX_TOLD: Final = 200
"""The most lines of one kind that are told; of more, their number is told."""

LIVE: Final = frozenset(
    (
        "tls",
        "advertise",
        "cors",
        "host_whitelist",
        "across_shards",
        "compaction",
        "deletes_across_shards",
        "defragment",
        "kubernetes",
        "leases",
        "range_reads",
        "txn_reads",
        "drain_seconds",
        "watch_config",
        "hot_prefixes",
        "log.access",
        "log.format",
        "log.level",
        "log.slow_seconds",
    )
)
"""The fields of a config, beside `shards` and `limits`, that change while esp runs. All others need a restart."""
_APART: Final = frozenset(("path", "shards", "shard_map", "guards", "former", "spare", "limits", "log", "whole"))
"""The fields that are compared by themselves, or (`path`, `whole`) mean nothing to a running proxy."""


@dataclass(frozen=True, slots=True)
class Change:
    """A value that changes, as people read it: of a field, of a limit, or of a shard."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two configs.

    Attributes:
        added, removed: names of shards, with their endpoints.
        changed: by the name of a shard that stays: its endpoints, its user and the like.
        moved: the ranges that get another owner, in key order, as few as can be.
        limits: the limits that change.
        fields: other fields that change while esp runs.
        fixed: fields that cannot change while esp runs.
    """

    added: tuple[Change, ...]
    removed: tuple[Change, ...]
    changed: tuple[Change, ...]
    moved: tuple[Move, ...]
    limits: tuple[Change, ...]
    fields: tuple[Change, ...]
    fixed: tuple[Change, ...]

    @classmethod
    def of(cls, before: Config, after: Config) -> Difference:
        """The difference from `before`, which is in force, to `after`."""
        old = {shard.name: shard for shard in before.shards}
        new = {shard.name: shard for shard in after.shards}
        others = [field for field in dataclasses.fields(Config) if field.name not in _APART]
        changes = _changes(before, after, (field.name for field in others))
        # The namespace is a part of the key of `compaction: kubernetes`.
        changes = [change for change in changes if change.before != change.after]
        of_log = _changes(before.log, after.log, (field.name for field in dataclasses.fields(after.log)))
        changes += [dataclasses.replace(change, name=f"log.{change.name}") for change in of_log]
        return cls(
            added=tuple(Change(name, "", _endpoints(new[name])) for name in new if name not in old),
            removed=tuple(Change(name, _endpoints(old[name]), "") for name in old if name not in new),
            changed=tuple(change for name in old if name in new for change in _of_shard(old[name], new[name])),
            moved=tuple(moves(before.shard_map, after.shard_map)),
            limits=tuple(_changes(before.limits, after.limits, [f.name for f in dataclasses.fields(after.limits)])),
            fields=tuple(change for change in changes if change.name in LIVE),
            fixed=tuple(change for change in changes if change.name not in LIVE),
        )

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in dataclasses.fields(self))

    def lines(self) -> list[str]:
        """The difference for people, a line for each change; without `fixed`."""
        limits = [
            f"limit {change}{'; open connections keep theirs' if change.name in OF_A_CONNECTION else ''}"
            for change in self.limits
        ]
        return [
            *_few([f"{shard_called(change.name)} is new: {change.after}" for change in self.added]),
            *_few([f"{shard_called(change.name)} is removed" for change in self.removed]),
            *_few([shard_called(str(change)) for change in self.changed]),
            *_few(list(map(str, self.moved))),
            *limits,
            *map(str, self.fields),
        ]

    def as_json(self, most: int = MAX_TOLD) -> dict[str, Any]:
        """The difference for programs; of each list the first `most`, and how many were left out of all."""
        lists: dict[str, list[Any]] = {
            "shards_added": [{"name": change.name, "endpoints": change.after} for change in self.added],
            "shards_removed": [{"name": change.name, "endpoints": change.before} for change in self.removed],
            "shards_changed": [dataclasses.asdict(change) for change in self.changed],
            "ranges_moved": [move.as_json() for move in self.moved],
            "limits": [dataclasses.asdict(change) for change in self.limits],
            "fields": [dataclasses.asdict(change) for change in self.fields],
            "cannot_change": [dataclasses.asdict(change) for change in self.fixed],
        }
        left_out = sum(max(0, len(items) - most) for items in lists.values())
        return {**{name: items[:most] for name, items in lists.items()}, "left_out": left_out}


def _of_shard(before: ShardConfig, after: ShardConfig) -> list[Change]:
    apart = ("name", "ranges")
    names = [field.name for field in dataclasses.fields(ShardConfig) if field.compare and field.name not in apart]
    return [
        Change(f"{after.name}: {'auth' if change.name == 'user' else change.name}", change.before, change.after)
        for change in _changes(before, after, names)
    ]


def _changes(before: Any, after: Any, names: Iterable[str]) -> list[Change]:
    found = []
    for name in names:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            found.append(Change(name, _shown(old), _shown(new)))
    return found


def _shown(value: object) -> str:
    """A value about as the config file has it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case bytes():
            return f'"{format_key(value)}"'
        case KeyRange():
            return format_range(value)
        case Namespace():
            return f'"{format_key(value.prefix)}"'
        case AcrossShards(refused=refused, protects_kubernetes=protects):
            if refused == (KeyRange(b"", None),):
                return "refuse"
            return f"refuse {_shown(refused)}" if refused else "auto" if protects else "serve"
        case Compaction(key=key, takes_any=takes_any):
            return "refuse" if key is None else f"revisions_of {_shown(key)}" if takes_any else "kubernetes"
        case Listen():
            return str(value)
        case tuple():
            return ", ".join(map(_shown, value)) or "none"
    name = getattr(value, "name", None)  # of a user: nothing else of it is told
    if name is None and dataclasses.is_dataclass(value) and "__str__" not in type(value).__dict__:
        return "set"
    return f"{value:g}" if isinstance(value, float) else name if isinstance(name, str) else str(value)


def _endpoints(shard: ShardConfig) -> str:
    return _shown(shard.endpoints)


def _few(lines: list[str]) -> list[str]:
    if len(lines) <= MAX_TOLD:
        return lines
    return [*lines[:MAX_TOLD], f"and {len(lines) - MAX_TOLD} more like this"]
