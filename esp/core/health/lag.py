"""Raft: members whose store is behind their log, or whose log is behind the others'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from esp.core.health.facts import Finding, Kind, ShardHealth

REFUSED: Final = 5000
"""With so many entries that are committed and not applied, etcd refuses writes (MaxGapBetweenApplyAndCommitIndex)."""
NOTED: Final = 1000
"""Members are not asked in one moment, so a few hundred entries between them say nothing."""


def judge_lag(shards: Iterable[ShardHealth]) -> tuple[list[Finding], list[Finding]]:
    """The problems and the notes about members that lag behind."""
    problems: list[Finding] = []
    notes: list[Finding] = []
    for shard in shards:
        for finding, is_problem in _lag(shard):
            (problems if is_problem else notes).append(finding)
    return problems, notes


def _lag(shard: ShardHealth) -> Iterator[tuple[Finding, bool]]:
    # A member of another cluster counts other entries.
    newest: dict[int, int] = {}
    for health in shard.endpoints:
        if health.member is not None:
            cluster = health.member.cluster_id
            newest[cluster] = max(newest.get(cluster, 0), health.member.raft_index)
    for health in shard.endpoints:
        member = health.member
        if member is None:
            continue
        behind = newest[member.cluster_id] - member.raft_index
        if behind > NOTED:
            text = f"its log is {behind} entries behind the newest of the shard's members"
            yield Finding(Kind.RAFT_LAG, (shard.name,), health.endpoint, text), behind > REFUSED
        unapplied = member.raft_index - member.raft_applied if member.raft_applied is not None else 0
        if unapplied > NOTED:
            text = f"its store is {unapplied} entries behind its own log; from {REFUSED} on it refuses writes"
            yield Finding(Kind.RAFT_LAG, (shard.name,), health.endpoint, text), unapplied > REFUSED
