"""The findings in the answers of the shards' endpoints: faults, and facts worth knowing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from esp.core.errors import is_esp
from esp.core.health.facts import EndpointHealth, Finding, Health, Kind, ShardHealth
from esp.core.kubernetes import Cut
from esp.core.tls_files import Expiry
from esp.core.wire.status import Code, Status
from esp.core.wording import cured

_AUTH_CODES: Final = frozenset((Code.PERMISSION_DENIED, Code.UNAUTHENTICATED))
_NO_USER_TEXT: Final = "etcdserver: user name is empty"
"""The text with which a member with auth enabled refuses a call without token, as InvalidArgument."""


def judge(shards: Iterable[ShardHealth]) -> Health:
    """The findings about all shards: faults, and facts worth knowing."""
    shards = tuple(shards)
    problems: list[Finding] = []
    notes: list[Finding] = []
    for shard in shards:
        for endpoint in shard.endpoints:
            problems += _endpoint_problems(shard, endpoint)
        problems += _several_clusters(shard)
        problems += _alarm_problems(shard)
        notes += _auth_notes(shard)
    problems += _same_clusters(shards)
    return Health(shards, tuple(problems), tuple(notes))


def with_cuts(health: Health, cuts: Iterable[Cut], *, at_work: bool) -> Health:
    """`health`, with the divided resources of Kubernetes: problems if a kube-apiserver is at work, else notes."""
    findings = tuple(Finding(Kind.KUBERNETES, cut.shards, None, cut.explain()) for cut in cuts)
    if at_work:
        return replace(health, problems=health.problems + findings)
    return replace(health, notes=health.notes + findings)


def with_certificates(health: Health, expiries: Iterable[Expiry], now: float) -> Health:
    """`health`, with certificates that have ended, as problems, and that end soon, as notes."""
    told = [(Finding(Kind.CERTIFICATE, (), None, each.warning(now)), each.not_after <= now) for each in expiries]
    told = [(finding, is_over) for finding, is_over in told if finding.text]
    return with_findings(health, [f for f, is_over in told if is_over], [f for f, is_over in told if not is_over])


def with_findings(health: Health, problems: Iterable[Finding], notes: Iterable[Finding]) -> Health:
    """`health`, with further problems and notes."""
    return replace(health, problems=(*health.problems, *problems), notes=(*health.notes, *notes))


def is_auth(refusal: Status) -> bool:
    """Whether a member refused for lack of a user."""
    return refusal.code in _AUTH_CODES or (refusal.code, refusal.message) == (Code.INVALID_ARGUMENT, _NO_USER_TEXT)


def _endpoint_problems(shard: ShardHealth, health: EndpointHealth) -> Iterator[Finding]:
    def finding(kind: Kind, text: str) -> Finding:
        return Finding(kind, (shard.name,), health.endpoint, text)

    refusal = health.refusal
    if not health.reachable:
        reason = refusal.message if refusal else "no reason known"
        frozen = "; it is frozen (stopped, swapping, a dead disk), or no etcd" if "says nothing" in reason else ""
        yield finding(Kind.UNREACHABLE, f"cannot be reached: {cured(reason)}{frozen}")
        return
    if refusal is not None and is_esp(refusal):
        yield finding(Kind.NO_ETCD, "is an esp, this one or another, and no etcd; name the etcds themselves")
        return
    leaderless = health.member is not None and not health.member.leader_id
    if leaderless:
        yield finding(
            Kind.NO_LEADER, "knows of no leader: its cluster has lost its quorum, or cannot be reached from it"
        )
    elif health.member is not None and health.member.is_learner:
        text = "is a learner, which refuses writes and linearizable reads; promote it or take it out of the endpoints"
        yield finding(Kind.LEARNER, text)
    elif refusal is not None and not is_auth(refusal):
        what = "its status" if health.member is None else "its alarms, which takes a quorum"
        yield finding(Kind.NO_ANSWER, f"does not tell {what}: {refusal.message or f'code {refusal.code}'}")


def _several_clusters(shard: ShardHealth) -> Iterator[Finding]:
    """Endpoints of one shard that belong to different clusters: a key's value then depends on the endpoint in use."""
    members: dict[int, list[str]] = defaultdict(list)
    for health in shard.endpoints:
        if health.member is not None:
            members[health.member.cluster_id].append(str(health.endpoint))
    if len(members) > 1:
        groups = "; ".join(f"{cluster:x}: {', '.join(urls)}" for cluster, urls in members.items())
        text = f"its endpoints belong to different etcd clusters ({groups}); list only members of one"
        yield Finding(Kind.SEVERAL_CLUSTERS, (shard.name,), None, text)


def _alarm_problems(shard: ShardHealth) -> Iterator[Finding]:
    endpoint_of = {health.member.member_id: health.endpoint for health in shard.endpoints if health.member is not None}
    # Every member reports the alarms of all members.
    for alarm in dict.fromkeys(alarm for health in shard.endpoints for alarm in health.alarms or ()):
        endpoint = endpoint_of.get(alarm.member_id)
        cure = {
            "NOSPACE": "it takes no writes; compact, defragment, then `etcdctl alarm disarm`",
            "CORRUPT": "its data differs from the other members'; see etcd's page on data corruption",
        }.get(alarm.name, "see etcd's documentation")
        text = f"alarm {alarm.name}: {cure}"
        if endpoint is None:
            text = f"member {alarm.member_id:x} has the {text}"
        yield Finding(Kind.ALARM, (shard.name,), endpoint, text)


def _same_clusters(shards: Iterable[ShardHealth]) -> Iterator[Finding]:
    """Shards that are one cluster: each shows the other's keys, and a delete on one deletes them on both.

    The id of a cluster comes from its start flags, so clusters with the same flags have the same id. esp cannot tell
    the two cases apart. The second is a danger as well: such clusters let each other's members in.
    """
    names: dict[int, list[str]] = defaultdict(list)
    for shard in shards:
        for cluster in dict.fromkeys(health.member.cluster_id for health in shard.endpoints if health.member):
            names[cluster].append(shard.name)
    for cluster, sharing in names.items():
        if len(sharing) > 1:
            text = (
                f"have the same cluster id {cluster:x}: they are one etcd cluster under several names, or were started "
                "with the same --initial-cluster and --initial-cluster-token; give each shard a cluster of its own"
            )
            yield Finding(Kind.SAME_CLUSTER, tuple(sharing), None, text)


def _auth_notes(shard: ShardHealth) -> Iterator[Finding]:
    for health in shard.endpoints:
        if health.reachable and health.refusal is not None and is_auth(health.refusal):
            what = "its status" if health.member is None else "its alarms"
            text = f"does not tell {what} without a user: {health.refusal.message}"
            yield Finding(Kind.AUTH, (shard.name,), health.endpoint, text)
