"""The map that the shards hold: a change that is half done, and shards that do not stand to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from esp.core.config import Config
from esp.core.fleet import Registered
from esp.core.health.facts import Finding, Kind
from esp.core.keys import KeyRange
from esp.core.shared_map import DisagreeError, Held, newest
from esp.core.wire.status import Status


def judge_shared_map(
    config: Config, held: Mapping[str, Held | Status], proxies: Collection[Registered] = ()
) -> tuple[list[Finding], list[Finding]]:
    """The problems and the notes about the map on the shards.

    Args:
        config: names the shards.
        held: what each shard tells, by name.
        proxies: the processes that are registered.
    """
    try:
        told = newest(held)
    except DisagreeError as error:
        return [Finding(Kind.MAP, (), None, str(error))], []
    if told is None:
        return [], []
    problems: list[Finding] = []
    if told.change is not None:
        epoch = told.change.after.epoch
        text = f"a change of the map on the shards to epoch {epoch} is half done; {told.change.cure}"
        problems.append(Finding(Kind.MAP, (), None, text))
    for name in told.unfenced:
        text = (
            "has not the guard of the map on the shards: data was lost there, or restored from a backup; "
            "esp map fence gives it a new one"
        )
        problems.append(Finding(Kind.MAP, (name,), None, text))
    for name in told.behind:
        if name not in told.unfenced:
            text = "has an older map than the other shards; esp map finish tells it the newest"
            problems.append(Finding(Kind.MAP, (name,), None, text))
    notes: list[Finding] = []
    behind = {one.urls or one.peers: one for one in proxies if one.epoch < told.map.epoch}
    for urls, one in sorted(behind.items()):
        text = (
            f"the proxy at {', '.join(urls) or 'unknown URLs'} serves by the map of epoch {one.epoch}, and the shards "
            f"have {told.map.epoch}; if that lasts, see its log"
        )
        notes.append(Finding(Kind.MAP, (), None, text))
    mine, theirs = config.shard_map.fingerprint, told.map.map.fingerprint
    if mine != theirs:
        text = f"the map on the shards, of epoch {told.map.epoch}, is {theirs}, and that of the config is {mine}"
        notes.append(Finding(Kind.MAP, (), None, text))
    return problems, notes


def moving_in(held: Mapping[str, Held | Status]) -> KeyRange | None:
    """The range that is being moved by what the shards tell; None if there is none."""
    changes = [one.next for one in held.values() if isinstance(one, Held) and one.next is not None]
    return next((change.move.range for change in changes if change.move is not None), None)
