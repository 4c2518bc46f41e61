"""The findings if shards do not have the same users and roles."""

from __future__ import annotations

import pytest

from esp.core.health.accounts import MAX_FINDINGS, Accounts, compare
from esp.core.health.facts import Kind

READER = frozenset({(b"a", b"b", 0)})


def accounts(**changes: object) -> Accounts:
    same = {"enabled": True, "users": {"ann": frozenset({"reader"})}, "roles": {"reader": READER}}
    return Accounts(**{**same, **changes})  # type: ignore[arg-type]


def texts(**shards: Accounts) -> list[str]:
    return [finding.text for finding in compare(shards)[0]]


def test_where_all_is_the_same_there_is_nothing_to_tell() -> None:
    assert compare({"a": accounts(), "b": accounts()}) == ([], [])
    assert compare({}) == ([], [])


@pytest.mark.parametrize(
    ("users", "told"),
    [
        ({}, 'the user "ann" is not the same (a, b: roles reader; c: no such user)'),
        ({"ann": frozenset()}, 'the user "ann" is not the same (a, b: roles reader; c: roles none)'),
        (
            {"ann": frozenset({"reader", "x"})},
            'the user "ann" is not the same (a, b: roles reader; c: roles reader, x)',
        ),
    ],
)
def test_a_user_that_differs_is_told_with_what_each_shard_has(users: dict[str, frozenset[str]], told: str) -> None:
    assert texts(a=accounts(), b=accounts(), c=accounts(users=users)) == [told]


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        ({}, 'the role "reader" is not the same (a: read ["a", "b"); b: no such role)'),
        (
            {"reader": frozenset({*READER, (b"x", b"", 2), (b"y", b"\0", 1)})},
            'the role "reader" is not the same (a: nothing more; b: readwrite "x", write ["y", end))',
        ),
        (
            {"reader": frozenset((bytes([at]), b"", 9) for at in b"pqrst")},
            'the role "reader" is not the same (a: read ["a", "b"); b: 9 "p", 9 "q", 9 "r" and 2 more)',
        ),
    ],
)
def test_a_role_that_differs_is_told_with_what_it_permits(roles: dict[str, object], told: str) -> None:
    assert texts(a=accounts(), b=accounts(roles=roles)) == [told]


def test_a_switch_that_differs_is_a_problem_also_where_a_shard_tells_nothing_else() -> None:
    problems, notes = compare(
        {"a": Accounts(enabled=True, refusal="etcdserver: user name is empty"), "b": accounts(enabled=False)}
    )
    assert [(finding.kind, finding.shards) for finding in problems] == [(Kind.AUTH, ("a", "b"))]
    assert problems[0].text.startswith("auth is on at a and off at b: clients cannot authenticate; ")
    assert [finding.text for finding in notes] == [
        "does not tell its users and roles: etcdserver: user name is empty; "
        "give esp a user with the role root (auth in the config)"
    ]


def test_a_shard_that_is_away_differs_from_none() -> None:
    assert compare({"a": accounts(), "b": Accounts(refusal="it does not answer")}) == ([], [])


def test_a_shard_that_does_not_tell_all_in_time_is_noted_whether_auth_is_on_or_off() -> None:
    late = "not within 10 s"
    problems, notes = compare({"a": accounts(), "b": Accounts(enabled=False, refusal=late)})
    assert [finding.kind for finding in problems] == [Kind.AUTH]
    assert [finding.text for finding in notes] == [f"does not tell its users and roles: {late}"]
    _, notes = compare({"a": accounts(), "b": Accounts(enabled=True, refusal=late)})
    assert [finding.text.startswith(f"does not tell its users and roles: {late}; ") for finding in notes] == [True]


def test_a_user_of_esps_own_that_is_refused_is_a_problem() -> None:
    refused = Accounts(enabled=True, refusal="etcdserver: user name is empty", login_trouble='as "esp": wrong')
    problems, notes = compare({"a": accounts(), "b": refused})
    assert [(finding.kind, finding.text) for finding in problems] == [
        (Kind.AUTH, 'esp cannot authenticate: as "esp": wrong')
    ]
    assert notes == []


def test_so_many_differences_are_told_one_by_one() -> None:
    many = accounts(users={f"u{number:02}": frozenset() for number in range(50)})
    told = texts(a=accounts(users={}), b=many)
    assert len(told) == MAX_FINDINGS + 1
    assert told[-1] == f"{50 - MAX_FINDINGS} more users or roles differ"
