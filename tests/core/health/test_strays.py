"""Which ranges are looked through for stray keys, and the findings about them."""

from __future__ import annotations

import pytest

from esp.core.config import parse
from esp.core.health.facts import Kind, ShardKeys, Stray
from esp.core.health.strays import gaps_of, judge_keys, scope_of
from esp.core.keys import KeyRange

ALL = KeyRange(b"", None)
CARVED = """
shards:
  - {name: a, endpoints: [h:1], ranges: [{start: "", end: ""}]}
  - {name: b, endpoints: [h:2], ranges: [{prefix: m/}]}
  - {name: c, endpoints: [h:3], ranges: [{prefix: n}]}
"""


@pytest.mark.parametrize(
    ("shard", "gaps"),
    [
        ("a", [[("b", b"m/", b"m0")], [("c", b"n", b"o")]]),
        ("b", [[("a", b"", b"m/")], [("a", b"m0", b"n"), ("c", b"n", b"o"), ("a", b"o", None)]]),
        ("c", [[("a", b"", b"m/"), ("b", b"m/", b"m0"), ("a", b"m0", b"n")], [("a", b"o", None)]]),
    ],
)
def test_each_gap_between_a_shards_ranges_is_looked_through(
    shard: str, gaps: list[list[tuple[str, bytes, bytes | None]]]
) -> None:
    found = gaps_of(parse(CARVED, None).shard_map, shard, ALL)
    assert [[(part.shard, *part.range) for part in gap] for gap in found] == gaps


def test_the_only_shard_has_no_gap() -> None:
    config = parse("shards: [{name: a, endpoints: [h:1], ranges: [{start: '', end: ''}]}]", None)
    assert gaps_of(config.shard_map, "a", ALL) == []


def test_with_a_namespace_only_its_keys_count() -> None:
    config = parse(f"namespace: m/\n{CARVED}", None)
    scope = scope_of(config)
    assert scope == KeyRange(b"m/\0", b"m0")
    assert gaps_of(config.shard_map, "b", scope) == []
    assert [part.range for (part,) in gaps_of(config.shard_map, "a", scope)] == [scope]


def test_a_finding_has_the_owner_the_number_and_some_keys() -> None:
    stray = Stray(KeyRange(b"i", b"r"), "b", 4, (b"j\n", b"k" * 200, b"l"))
    (finding,) = judge_keys({"a": ShardKeys(1, (stray,)), "b": ShardKeys(0, ())})
    assert (finding.kind, finding.shards) == (Kind.STRAY_KEYS, ("a",))
    assert finding.text == (
        f'holds 4 stray keys in ["i", "r"), which shard b owns: "j\\x0a", "{"k" * 100}...", "l", ...; '
        "no client sees them there; esp check --fix-strays moves or deletes them"
    )


def test_a_shard_that_does_not_tell_its_keys_is_a_problem() -> None:
    (finding,) = judge_keys({"a": ShardKeys(refusal="etcdserver: permission denied")})
    assert (finding.kind, finding.text) == (Kind.KEYS_UNKNOWN, "does not tell its keys: etcdserver: permission denied")
