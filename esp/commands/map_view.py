"""What `esp map` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from esp.commands.output import Format, complain, json_key, write, write_json, write_prose, write_table
from esp.core.config import Config
from esp.core.keys import format_key, format_range
from esp.core.shared_map import Change, Held, How, Kind, Next, Outcome, SharedMap, Told
from esp.core.wire.status import Status
from esp.core.wording import counted, shard_called

_DID = {
    Kind.ADMIT: "has got the map and a guard",
    Kind.DISMISS: "is left out, without map and guard",
    Kind.TELL: "has got the map",
    Kind.FENCE: "has got the map and a new guard",
    Kind.FORGET: "has no map any more",
    Kind.RELEASE: "has no guard any more",
    Kind.FINISH: "has noted that the change is carried out",
    Kind.GIVE_BACK: "has got the map of before the move",
    Kind.END: "has no map and no guard any more",
}


def key_text(key: bytes) -> str:
    """A key for people."""
    return format_key(key)


def write_map(told: Told, held: Mapping[str, Held | Status]) -> None:
    """Writes the map as a table, a row for each shard."""
    shared = told.map
    write(
        f"Map of epoch {shared.epoch}, fingerprint {shared.map.fingerprint}; "
        f"{shard_called(shared.anchor)} decides on changes."
    )
    write("")
    rows = [
        [
            name,
            ", ".join(map(format_range, shared.map.ranges_of(name))) or "-",
            shared.guards[name][:12],
            _stand(name, told),
        ]
        for name in shared.names
    ]
    marked = {number for number, row in enumerate(rows) if row[-1] != "holds it"}
    write_table(["SHARD", "KEYS", "GUARD", "STANDS"], rows, marked)
    others = [name for name in held if name not in shared.guards]
    if others:
        write("")
        write(f"Not in the map, but in the config: {', '.join(others)}.")


def _stand(name: str, told: Told) -> str:
    if name in told.silent:
        return f"does not tell: {told.silent[name]}"
    if name in told.unfenced:
        return "has another guard, and refuses this map"
    return "has an older map" if name in told.behind else "holds it"


def faults_of(told: Told) -> str:
    """Why not all shards hold the map, in one line; "" if all do."""
    if told.change is not None:
        return f"a change to epoch {told.change.after.epoch} is half done; {told.change.cure}"
    if told.unfenced:
        those = _names(told.unfenced)
        return f"{those} not the guard of this map: data was lost there, or restored from a backup (see esp map fence)"
    if told.silent:
        names = list(told.silent)
        return (
            f"{', '.join(names)} {'does not tell what it holds' if len(names) == 1 else 'do not tell what they hold'}"
        )
    if told.behind:
        return f"{_names(told.behind)} an older map; esp map finish brings the newest there"
    return ""


def _names(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'}"


def write_history(shared: SharedMap) -> None:
    """Writes the changes as a table, the newest at the end."""
    rows = [[str(one.epoch), one.at, one.by, one.what, one.fingerprint] for one in shared.changes]
    write_table(["EPOCH", "AT", "BY", "CHANGE", "FINGERPRINT"], rows)


def write_plan(change: Next, output: Format) -> None:
    """Writes what a change would do, before anybody is asked; nothing for programs."""
    if output is Format.JSON:
        return
    after = change.after
    if change.before is None:
        write_prose(
            f"The first map, fingerprint {after.map.fingerprint}; "
            f"{shard_called(after.anchor)} decides on later changes."
        )
        rows = [[name, ", ".join(map(format_range, after.map.ranges_of(name)))] for name in after.names]
        write_table(["SHARD", "KEYS"], rows)
        write_prose(
            "Proxies that run go on with their files. Then write map: shards into the config of each, and start it "
            "anew; with map: file none starts."
        )
    else:
        write_prose(f"From epoch {change.before.epoch} to {after.epoch}: {after.changes[-1].what}. No keys move.")


def write_removal(change: Next, output: Format) -> None:
    """Writes what taking away the map would do, before anybody is asked; nothing for programs."""
    if output is Format.JSON:
        return
    shared = change.after
    write_prose(
        f"The map of epoch {shared.epoch - 1} is taken from the shards. Its ranges, for the configs of the proxies:"
    )
    rows = [[name, ", ".join(map(format_range, shared.map.ranges_of(name))) or "-"] for name in shared.names]
    write_table(["SHARD", "KEYS"], rows)
    write_prose(
        "A proxy that serves by the map refuses all calls from then on. Stop it first, and start it with map: file."
    )


def write_waiting(outcome: Outcome) -> None:
    """Tells of a shard that was not reached."""
    complain(f"{shard_called(outcome.step.shard)} is not told ({outcome.why}); the change is in force without it")


def write_done(
    shared: SharedMap,
    outcomes: Sequence[Outcome],
    granted: Mapping[str, Sequence[str]],
    output: Format,
    *,
    removed: bool = False,
) -> None:
    """Writes what was done, and the map in force, or that it was `removed`."""
    if output is Format.JSON:
        write_json(
            {
                "epoch": shared.epoch,
                "map": shared.map.fingerprint,
                "steps": [
                    {"step": one.step.kind, "shard": one.step.shard, "how": one.how, "why": one.why or None}
                    for one in outcomes
                ],
                "granted": [{"shard": name, "roles": list(roles)} for name, roles in granted.items()],
            }
        )
        return
    for name, roles in granted.items():
        write(f"{shard_called(name)}: {counted(len(roles), 'role')} may read the guard now: {', '.join(roles)}")
    done = [one for one in outcomes if one.how is How.DONE]
    for one in done:
        write(f"{shard_called(one.step.shard)} {_DID[one.step.kind]}")
    if removed:
        write(f"The map is taken from {counted(len(shared.names), 'shard')}.")
        return
    start = "The map is now" if done else "Nothing to do: the map is"
    write(f"{start} of epoch {shared.epoch}, fingerprint {shared.map.fingerprint}.")


def json_of(loaded: Config, told: Told, held: Mapping[str, Held | Status]) -> dict[str, Any]:
    """The JSON form of the map: docs/json.md has its fields."""
    shared = told.map
    return {
        "config": str(loaded.path),
        "epoch": shared.epoch,
        "map": shared.map.fingerprint,
        "anchor": shared.anchor,
        "whole": not faults_of(told),
        "next": None if told.change is None else told.change.after.epoch,
        "shards": [
            {
                "name": name,
                "guard": shared.guards[name],
                "holds": _holds(held.get(name)),
                "error": told.silent.get(name),
                "fenced": name not in told.unfenced and name not in told.silent,
                "ranges": [
                    {"start": json_key(one.start), "end": None if one.end is None else json_key(one.end)}
                    for one in shared.map.ranges_of(name)
                ],
            }
            for name in shared.names
        ],
        "changes": [json_change(change) for change in shared.changes],
    }


def _holds(held: Held | Status | None) -> int | None:
    """The epoch of the map that a shard holds."""
    return held.map.epoch if isinstance(held, Held) and held.map is not None else None


def json_change(change: Change) -> dict[str, Any]:
    """The JSON form of a change."""
    return asdict(change)
