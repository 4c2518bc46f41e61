"""Which keys are read through proxies, who is known by a cluster's id, and the findings about proxies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from esp.core.config import Endpoint, parse
from esp.core.health.facts import EndpointHealth, Kind, Member, ProxyHealth, Sample, ShardHealth
from esp.core.health.proxies import MAX_SAMPLES, MAX_WRONG, clusters_of, judge_proxies, samples_of

CONFIG = """
shards:
  - {name: a, endpoints: [h:1], ranges: [{start: "", end: ""}]}
  - {name: b, endpoints: [h:2], ranges: [{prefix: m/}]}
"""


def shard(name: str, *clusters: int) -> ShardHealth:
    members = [Member(cluster, 1, 1, is_learner=False, version="3.7.1", db_size=1, revision=1) for cluster in clusters]
    return ShardHealth(name, (), tuple(EndpointHealth(Endpoint("h", 1), True, member=member) for member in members))


def test_an_id_that_two_shards_have_tells_nobody_apart() -> None:
    assert clusters_of([shard("a", 1, 1), shard("b", 2), shard("c")]) == {1: "a", 2: "b"}
    assert clusters_of([shard("a", 1), shard("b", 1), shard("c", 3)]) == {3: "c"}


def test_a_key_of_each_range_is_read_those_of_all_shards_first() -> None:
    config = parse(CONFIG, None)
    assert samples_of(config) == [Sample(b"\0", "a"), Sample(b"m/\0", "b"), Sample(b"m0\0", "a")]


def test_with_a_namespace_only_its_keys_are_read() -> None:
    config = parse(f"namespace: m/\n{CONFIG}", None)
    assert samples_of(config) == [Sample(b"m/\0\0", "b")]


def test_of_very_many_ranges_some_are_read_and_each_shard_is() -> None:
    ranges = ", ".join(f"{{prefix: p{number:03d}/}}" for number in range(100))
    text = CONFIG.replace("[{prefix: m/}]", f"[{ranges}]")
    text += "  - {name: last, endpoints: [h:3], ranges: [{prefix: x/}]}\n"
    found = samples_of(parse(text, None))
    assert (len(found), {sample.owner for sample in found}) == (MAX_SAMPLES, {"a", "b", "last"})


def test_the_findings_about_proxies() -> None:
    config = parse(CONFIG, Path("esp.yaml"))
    well = ProxyHealth(
        Endpoint("p", 1), "", 0.001, "0.1.0", config.shard_map.fingerprint, "1", (Sample(b"k", "a", "a"),)
    )
    assert judge_proxies(config, [well, replace(well, endpoint=Endpoint("q", 1))]) == ([], [])
    wrong = (Sample(b"k", "a", "b"), Sample(b"l\n", "a", ""), Sample(b"m", "a", error="x"), *(Sample(b"n", "a"),) * 4)
    problems, notes = judge_proxies(
        config,
        [
            well,
            replace(well, esp="0.0.9", map="000000000000"),
            replace(well, esp=None, map=None),
            replace(well, samples=wrong),
            ProxyHealth(Endpoint("p", 1), "connection refused"),
        ],
    )
    assert [finding.kind for finding in problems] == [
        Kind.PROXY_MAP,
        Kind.PROXY_MAP,
        Kind.PROXY_NO_ESP,
        *[Kind.PROXY_ROUTE] * (MAX_WRONG + 1),
        Kind.PROXY_UNREACHABLE,
    ]
    assert [finding.text for finding in problems[3:]] == [
        'a read of "k", which shard a owns, came from shard b',
        'a read of "l\\x0a", which shard a owns, came from a cluster that is no shard of the config',
        'a read of "m", which shard a owns, failed: x',
        "4 more of 7 reads went wrong",
        "cannot be used: connection refused; nothing listens there: start it, or name the address where it listens",
    ]
    assert [finding.kind for finding in notes] == [Kind.PROXY_VERSION]
