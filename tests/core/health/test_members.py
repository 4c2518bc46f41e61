"""Members that are not among a shard's endpoints, and endpoints that lead to the same member or stand alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from esp.core.config import Endpoint
from esp.core.health.facts import EndpointHealth, Kind, Listed, Member, ShardHealth, Unlisted
from esp.core.health.members import judge_members, look_for, missing_of
from esp.core.wire.status import Code, Status


def listed(number: int, *urls: str, name: str = "m", learner: bool = False) -> Listed:
    return Listed(0xA0 + number, name and f"{name}{number}", urls, (f"http://h{number}:2380",), learner)


def well(number: int, members: tuple[Listed, ...] | None, applied: int = 7) -> EndpointHealth:
    member = Member(0xC1, 0xA0 + number, 0xA0, False, "3.7.1", 1, 1, raft_applied=applied)
    return EndpointHealth(Endpoint(f"h{number}", 2379), True, 0.001, member, (), members=members)


def dead(number: int) -> EndpointHealth:
    return EndpointHealth(Endpoint(f"h{number}", 2379), False, refusal=Status(Code.UNAVAILABLE, "connection refused"))


THREE = tuple(listed(number, f"http://h{number}:2379") for number in range(3))


@pytest.mark.parametrize(
    ("endpoints", "missing"),
    [
        ((well(0, THREE), well(1, THREE), well(2, THREE)), []),
        ((well(0, THREE),), [1, 2]),
        ((well(0, THREE), dead(1)), [2]),
        ((well(0, THREE), dead(7)), []),  # may be any of the others, under a name that no member advertises
        ((dead(0),), []),
        ((well(0, None),), []),
        ((well(0, THREE[:2]), well(1, THREE, applied=9)), [2]),
        ((well(0, THREE, applied=9), well(1, THREE[:2])), [2]),
    ],
)
def test_a_member_is_missing_if_no_endpoint_leads_to_it(
    endpoints: tuple[EndpointHealth, ...], missing: list[int]
) -> None:
    assert [member.member_id - 0xA0 for member in missing_of(endpoints)] == missing


H0 = Endpoint("h0", 2379)


def looked(member: Listed, answers: dict[str, EndpointHealth], near: Endpoint = H0) -> Unlisted:
    async def ask(endpoint: Endpoint) -> EndpointHealth:
        return answers[str(endpoint)]

    (found,) = asyncio.run(look_for([member], [replace(well(0, THREE), endpoint=near)], ask))
    return found


def test_a_member_lives_if_one_of_its_urls_leads_to_it() -> None:
    found = looked(
        listed(1, "http://old:1", "http://h1:2379"), {"http://old:1": dead(1), "http://h1:2379": well(1, ())}
    )
    assert (found.trouble, found.found and str(found.found.endpoint)) == ("", "http://h1:2379")


@pytest.mark.parametrize(
    ("urls", "trouble"),
    [
        (("http://h1:2379",), "does not answer at http://h1:2379: connection refused"),
        (("http://h2:2379",), "advertises http://h2:2379, where another member answers"),
        (("http://localhost:2379",), "advertises http://localhost:2379, which other machines cannot reach; mend its "),
        (("http://127.0.0.1:2379",), "advertises http://127.0.0.1:2379, which other machines cannot reach; mend its "),
        (("unix://x",), "advertises the client URL unix://x, which esp cannot use"),
        (("https://h1:2379",), "advertises https://h1:2379, and the endpoints of the shard are http"),
        ((), "advertises no client URL"),
    ],
)
def test_why_a_member_is_not_found(urls: tuple[str, ...], trouble: str) -> None:
    answers = {"http://h1:2379": dead(1), "http://h2:2379": well(2, ())}
    assert looked(listed(1, *urls), answers).trouble.startswith(trouble)


def test_a_member_of_this_machine_is_asked_if_the_endpoints_are_here_too() -> None:
    answers = {"http://127.0.0.1:2": well(1, ())}
    assert looked(listed(1, "http://127.0.0.1:2"), answers, Endpoint("127.0.0.1", 1)).trouble == ""


def test_a_member_that_has_never_started_is_told() -> None:
    assert looked(listed(1, name=""), {}).trouble == "has been added, and has never started"


def test_a_missing_member_that_lives_is_a_note_and_a_dead_one_a_problem() -> None:
    unlisted = (
        Unlisted(listed(1, "http://h1:2379"), well(1, ()), ""),
        Unlisted(listed(2, "http://h2:2379"), None, "does not answer at http://h2:2379: connection refused"),
        Unlisted(listed(3, "http://h3:2379", learner=True), well(3, ()), ""),
    )
    problems, notes = judge_members([ShardHealth("s", (), (well(0, THREE), well(4, THREE)), unlisted)])
    assert [(finding.kind, finding.text) for finding in problems] == [
        (
            Kind.DEAD_MEMBER,
            "member m2 (a2) of its cluster, not among its endpoints, does not answer at http://h2:2379: connection "
            "refused; start it, or remove it from the cluster (etcdctl member remove)",
        )
    ]
    assert [(finding.kind, finding.text) for finding in notes] == [
        (
            Kind.UNLISTED_MEMBER,
            "member m1 (a1) of its cluster lives at http://h1:2379 and is not among its endpoints; "
            "add it, so that esp can use it when others fail",
        ),
        (
            Kind.UNLISTED_MEMBER,
            "learner m3 (a3) of its cluster lives at http://h3:2379 and is not among its endpoints; promote it first",
        ),
    ]


def test_two_endpoints_of_one_member_are_a_note() -> None:
    other = replace(well(0, None), endpoint=Endpoint("alias", 2379))
    problems, notes = judge_members([ShardHealth("s", (), (well(0, None), other))])
    assert problems == []
    assert [(finding.kind, finding.text) for finding in notes] == [
        (
            Kind.SAME_MEMBER,
            "http://h0:2379 and http://alias:2379 lead to the same member (a0); name each member once",
        )
    ]


def test_shards_with_one_endpoint_are_told_together() -> None:
    one, two = ShardHealth("x", (), (well(0, None),)), ShardHealth("y", (), (well(0, None), well(1, None)))
    assert [(f.kind, f.shards) for f in judge_members([one, two])[1]] == [(Kind.SINGLE_ENDPOINT, ("x",))]
    both = judge_members([one, replace(one, name="z")])[1]
    assert [(f.shards, f.text) for f in both] == [
        (("x", "z"), "have one endpoint each: while that is down, so are its keys")
    ]
