"""The findings from the members' answers; test_check.py tests with real etcds how the answers come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from esp.core.config import Endpoint
from esp.core.health.facts import Alarm, EndpointHealth, Finding, Health, Kind, Member, ShardHealth
from esp.core.health.findings import judge, with_certificates
from esp.core.tls_files import Expiry
from esp.core.wire.status import Code, Status
from esp.core.wording import cured

MEMBER = Member(
    cluster_id=0xC1, member_id=0xA1, leader_id=0xA1, is_learner=False, version="3.5.1", db_size=20480, revision=7
)
WELL = EndpointHealth(Endpoint("a", 1), reachable=True, latency=0.001, member=MEMBER, alarms=())
OTHER = EndpointHealth(
    Endpoint("b", 1), reachable=True, latency=0.001, member=replace(MEMBER, member_id=0xA2), alarms=()
)


def judged(*endpoints: EndpointHealth) -> Health:
    """One shard with these endpoints."""
    return judge([ShardHealth("s", (), endpoints)])


def with_member(health: EndpointHealth, **changes: object) -> EndpointHealth:
    assert health.member
    return replace(health, member=replace(health.member, **changes))  # type: ignore[arg-type]


def kinds(findings: tuple[Finding, ...]) -> list[tuple[Kind, Endpoint | None]]:
    return [(finding.kind, finding.endpoint) for finding in findings]


def test_members_of_one_cluster_that_answer_are_well() -> None:
    health = judged(WELL, OTHER)
    assert (health.problems, health.notes) == ((), ())


def test_a_learner_is_one_problem_although_it_refuses_to_tell_alarms() -> None:
    refusal = Status(Code.UNAVAILABLE, "etcdserver: rpc not supported for learner")
    learner = replace(with_member(OTHER, is_learner=True), alarms=None, refusal=refusal)
    assert kinds(judged(WELL, learner).problems) == [(Kind.LEARNER, OTHER.endpoint)]


def test_no_leader_is_one_problem_although_alarms_are_not_told() -> None:
    alone = replace(with_member(WELL, leader_id=0), alarms=None, refusal=Status(Code.DEADLINE_EXCEEDED, "late"))
    assert kinds(judged(alone).problems) == [(Kind.NO_LEADER, WELL.endpoint)]


@pytest.mark.parametrize("member", [MEMBER, None])
def test_a_member_that_fails_to_answer_is_a_problem(member: Member | None) -> None:
    mute = replace(WELL, member=member, alarms=None, refusal=Status(Code.UNAVAILABLE, "etcdserver: server stopped"))
    health = judged(mute)
    assert kinds(health.problems) == [(Kind.NO_ANSWER, WELL.endpoint)]
    assert "etcdserver: server stopped" in health.problems[0].text
    assert health.notes == ()


@pytest.mark.parametrize(
    "refusal",
    [
        Status(Code.PERMISSION_DENIED, "etcdserver: permission denied"),
        Status(Code.UNAUTHENTICATED, "etcdserver: invalid auth token"),
        Status(Code.INVALID_ARGUMENT, "etcdserver: user name is empty"),
    ],
)
def test_a_member_that_asks_for_a_user_is_only_a_note(refusal: Status) -> None:
    health = judged(replace(WELL, alarms=None, refusal=refusal))
    assert health.problems == ()
    assert kinds(health.notes) == [(Kind.AUTH, WELL.endpoint)]
    assert refusal.message in health.notes[0].text


def test_another_invalid_argument_is_a_problem() -> None:
    health = judged(replace(WELL, alarms=None, refusal=Status(Code.INVALID_ARGUMENT, "etcdserver: something else")))
    assert kinds(health.problems) == [(Kind.NO_ANSWER, WELL.endpoint)]


def test_an_alarm_that_every_member_tells_is_one_problem_at_the_member_that_has_it() -> None:
    alarms = (Alarm(0xA2, "CORRUPT"),)
    health = judged(replace(WELL, alarms=alarms), replace(OTHER, alarms=alarms))
    assert kinds(health.problems) == [(Kind.ALARM, OTHER.endpoint)]


def test_an_alarm_of_a_member_that_is_no_endpoint_names_it() -> None:
    health = judged(replace(WELL, alarms=(Alarm(0xA9, "NOSPACE"),)))
    assert kinds(health.problems) == [(Kind.ALARM, None)]
    assert health.problems[0].text.startswith("member a9 has the alarm NOSPACE: ")


def test_endpoints_of_different_clusters_in_one_shard() -> None:
    health = judged(WELL, with_member(OTHER, cluster_id=0xC2))
    assert kinds(health.problems) == [(Kind.SEVERAL_CLUSTERS, None)]
    assert "c1: http://a:1; c2: http://b:1" in health.problems[0].text


def test_shards_with_one_cluster_id_are_named_together_whatever_else_is_between() -> None:
    third = replace(OTHER, endpoint=Endpoint("c", 1))
    between = with_member(OTHER, cluster_id=0xC2)
    health = judge([ShardHealth("x", (), (WELL,)), ShardHealth("y", (), (between,)), ShardHealth("z", (), (third,))])
    assert [(finding.kind, finding.shards) for finding in health.problems] == [(Kind.SAME_CLUSTER, ("x", "z"))]


def test_what_is_unreachable_is_compared_with_nothing() -> None:
    gone = EndpointHealth(OTHER.endpoint, reachable=False, refusal=Status(Code.UNAVAILABLE, "connection refused"))
    health = judged(WELL, gone)
    assert kinds(health.problems) == [(Kind.UNREACHABLE, OTHER.endpoint)]
    assert health.problems[0].text == f"cannot be reached: {cured('connection refused')}"
    assert health.notes == ()


def test_a_certificate_that_has_ended_is_a_problem_and_one_that_ends_soon_a_note() -> None:
    day, now = 86_400.0, 1_800_000_000.0
    path = Path("/tls/server.crt")
    expiries = [Expiry("listeners", path, now + days * day) for days in (-1, 13, 15)]
    health = with_certificates(judged(WELL, OTHER), expiries, now)
    assert [(f.kind, f.shards, f.text) for f in health.problems] == [
        (Kind.CERTIFICATE, (), "listeners: /tls/server.crt has ended on 2027-01-14 08:00 UTC; renew it")
    ]
    assert [f.text for f in health.notes] == ["listeners: /tls/server.crt ends on 2027-01-28 08:00 UTC; renew it"]
