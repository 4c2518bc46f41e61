"""The members' files: how full they are, and what a defragmentation would give back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from esp.core.health.facts import EndpointHealth, Finding, Kind, ShardHealth
from esp.core.wording import size_of

FULL: Final = 0.9
"""From this share of the quota on a file is a problem."""
NEARLY_FULL: Final = 0.75
"""From this share of the quota on a file is worth a note."""
FREE_SHARE: Final = 0.5
FREE_BYTES: Final = 100_000_000
"""From this share and these bytes of free space in a file on, a defragmentation is worth a note."""


def judge_space(shards: Iterable[ShardHealth]) -> tuple[list[Finding], list[Finding]]:
    """The problems and the notes about the members' files."""
    problems: list[Finding] = []
    notes: list[Finding] = []
    for shard in shards:
        for health in shard.endpoints:
            for finding, is_problem in _quota(shard, health):
                (problems if is_problem else notes).append(finding)
            notes += _free(shard, health)
    return problems, notes


def _quota(shard: ShardHealth, health: EndpointHealth) -> Iterator[tuple[Finding, bool]]:
    if health.member is None or not health.quota:
        return
    share = health.member.db_size / health.quota
    if share < NEARLY_FULL:
        return
    text = (
        f"its file has {size_of(health.member.db_size)}, {share:.0%} of its quota of {size_of(health.quota)}; at 100% "
        "it takes no writes: compact and defragment, or raise --quota-backend-bytes"
    )
    yield Finding(Kind.QUOTA, (shard.name,), health.endpoint, text), share >= FULL


def _free(shard: ShardHealth, health: EndpointHealth) -> Iterator[Finding]:
    member = health.member
    if member is None or member.db_in_use is None:
        return
    free = member.db_size - member.db_in_use
    if free >= FREE_BYTES and free >= FREE_SHARE * member.db_size:
        text = (
            f"a defragmentation would give back {size_of(free)} of {size_of(member.db_size)} "
            "(etcdctl defrag, one member after the other: each answers nothing meanwhile)"
        )
        yield Finding(Kind.DEFRAGMENT, (shard.name,), health.endpoint, text)
