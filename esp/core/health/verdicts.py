"""One verdict for each shard, in words: whether clients can read and write its keys now.

A shard serves if one endpoint leads to a member that knows of a leader, is no learner, and has told its alarms, which
takes a quorum.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from esp.core.errors import is_esp
from esp.core.health.facts import EndpointHealth, ShardHealth
from esp.core.health.findings import is_auth
from esp.core.keys import KeyRange, format_range
from esp.core.wording import counted

MAX_RANGES: Final = 3
"""The most ranges of a shard that its verdict names."""


class State(StrEnum):
    """The state of a shard. The names are part of the JSON form: there may be new names, but none changes."""

    UP = "up"
    DEGRADED = "degraded"
    """Serves, and not through all of its endpoints."""
    READ_ONLY = "read-only"
    DOWN = "down"
    UNKNOWN = "unknown"
    """A member answers, and tells nothing to a caller without a user."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of a shard, and what that means for its keys, as a clause for people."""

    state: State
    text: str


def verdict_of(shard: ShardHealth) -> Verdict:
    """The verdict on a shard, from the answers of its endpoints."""
    keys = _keys(shard.ranges)
    serving = [each for each in shard.endpoints if _serves(each)]
    if not serving:
        if any(each.refusal is not None and is_auth(each.refusal) for each in shard.endpoints):
            return Verdict(State.UNKNOWN, f"{keys}: it tells nothing without a user; give esp one (auth in the config)")
        return Verdict(State.DOWN, f"{keys} cannot be read or written: {_reason(shard.endpoints)}")
    if alarms := sorted({alarm.name for each in serving for alarm in each.alarms or ()}):
        return Verdict(State.READ_ONLY, f"{keys} can be read, but not written: alarm {', '.join(alarms)}")
    if len(serving) < len(shard.endpoints):
        through = f"through {len(serving)} of {counted(len(shard.endpoints), 'endpoint')}"
        return Verdict(State.DEGRADED, f"{keys} can be read and written, {through}")
    return Verdict(State.UP, f"{keys} can be read and written")


def _serves(health: EndpointHealth) -> bool:
    member = health.member
    knows_leader = member is None or (member.leader_id != 0 and not member.is_learner)
    return health.reachable and knows_leader and health.alarms is not None


def _reason(endpoints: tuple[EndpointHealth, ...]) -> str:
    reached = [each for each in endpoints if each.reachable]
    if not reached:
        return "its endpoint cannot be reached" if len(endpoints) == 1 else "none of its endpoints can be reached"
    if all(each.refusal is not None and is_esp(each.refusal) for each in reached):
        return "an esp is there, and no etcd"
    if any(each.member is not None and not each.member.leader_id for each in reached):
        return "its members know of no leader"
    if all(each.member is not None and each.member.is_learner for each in reached):
        return "only learners answer"
    return "no member answers as it must"


def _keys(ranges: tuple[KeyRange, ...]) -> str:
    if not ranges:
        return "no keys"
    shown = [format_range(part) for part in ranges[:MAX_RANGES]]
    if len(ranges) > MAX_RANGES:
        shown.append(f"{len(ranges) - MAX_RANGES} more ranges")
    return "keys " + " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
