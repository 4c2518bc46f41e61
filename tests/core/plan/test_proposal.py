"""Proposals: they cover everything once, divide nothing that stays whole, and are as even as that lets them be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange, prefix_end
from esp.core.kubernetes import cuts, directory, resource_range
from esp.core.plan.parts import smallest
from esp.core.plan.places import AT_A_KEY, Rules, places, whole_of
from esp.core.plan.proposal import UNEVEN, Proposal, Wish, propose, weights_of
from esp.core.plan.resources import clusters
from esp.core.plan.tally import Counted, Tally
from esp.core.plan.weights import Measure
from esp.core.plan.whole import Whole
from esp.core.shard_map import ShardMap

ROOT = directory("/registry")
ALONE = ShardMap.build([("main", KeyRange(b"", None))], ["main"])


def counted(entries: dict[bytes, tuple[int, int]], depth: int = 4, leases: dict[bytes, int] | None = None) -> Counted:
    tally = Tally(b"/", depth)
    for key in sorted(entries):
        size, writes = entries[key]
        tally.add(key, size, writes, lease=(leases or {}).get(key, 0))
    return tally.finish()


def wish(
    shards: int,
    measure: Measure = Measure.KEYS,
    depth: int = 2,
    kept: tuple[KeyRange, ...] = (),
    divided: tuple[bytes, ...] = (),
) -> Wish:
    return Wish(shards, measure, b"/", depth, kept, divided, (ROOT,))


def prefix(text: bytes) -> KeyRange:
    return KeyRange(text, prefix_end(text))


def under(*prefixes: bytes, each: int = 10) -> dict[bytes, tuple[int, int]]:
    return {one + b"%04d" % number: (100, 1) for one in prefixes for number in range(each)}


def cluster(**resources: int) -> dict[bytes, tuple[int, int]]:
    """Objects of resources: so many of each."""
    return {
        b"/registry/%s/default/o%06d" % (name.replace("_", "/").encode(), number): (200, 0)
        for name, many in resources.items()
        for number in range(many)
    }


PARTS = st.sampled_from([b"a", b"b", b"c", b"locks", b"694d", b"", b".x"])
PATHS = st.builds(
    lambda lead, parts: lead + b"/".join(parts), st.sampled_from([b"", b"/"]), st.lists(PARTS, max_size=5)
)
RESOURCES = st.sampled_from([b"pods", b"events", b"leases", b"secrets", b"services/specs", b"pods.io/foos", b"minions"])
OBJECTS = st.builds(lambda resource, name: b"/registry/" + resource + b"/ns/" + name, RESOURCES, PARTS)
KEYS = PATHS | OBJECTS | st.binary(min_size=1, max_size=4)
ENTRIES = st.dictionaries(KEYS, st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=60)
BOUNDARIES = st.lists(KEYS.filter(lambda key: key not in (b"", b"\0")), unique=True, max_size=3).map(sorted)
WISHES = st.builds(
    wish,
    st.integers(1, 5),
    st.sampled_from(Measure),
    st.integers(1, 4),
    st.lists(PATHS.map(lambda path: prefix(path + b"/")), max_size=2).map(tuple),
    st.lists(PATHS.map(lambda path: path + b"/"), max_size=1).map(tuple),
)


def map_of(boundaries: list[bytes]) -> ShardMap:
    edges = [b"", *boundaries]
    ends = [*boundaries, None]
    ranges = [(f"s{number}", KeyRange(*pair)) for number, pair in enumerate(zip(edges, ends, strict=True))]
    return ShardMap.build(ranges, [name for name, _ in ranges])


@given(ENTRIES, WISHES, BOUNDARIES)
def test_a_proposal_covers_all_and_divides_nothing_that_stays_whole(
    entries: dict[bytes, tuple[int, int]], wanted: Wish, boundaries: list[bytes]
) -> None:
    told, today = counted(entries), map_of(boundaries)
    proposal = propose(told, wanted, today)
    assert proposal == propose(told, wanted, today)
    assert len(proposal.map.names) <= wanted.shards
    whole = whole_of(told, clusters(told.prefixes, wanted.roots), wanted.roots, wanted.kept)
    assert [start for start in proposal.map.starts if whole.divided_by(start) is not None] == []
    for one in clusters(told.prefixes, wanted.roots):
        assert cuts(proposal.map, one.root) == []
    edges = {edge for one in clusters(told.prefixes, wanted.roots) for each in one.resources for edge in each.range}
    for start in [] if proposal.stays else proposal.map.starts[1:]:
        of_depth = (one.prefix for one in told.prefixes if one.depth == wanted.depth)
        divided = [one for one in of_depth if one < start and start.startswith(one) and one not in wanted.divided]
        allowed = any(start.startswith(one) for one in wanted.divided)
        assert not divided or allowed or start in proposal.at_keys or start in edges
    # moved by the moves, today's map is the one proposed
    owners = {start: today.owner(start) for start in {*proposal.map.starts, *today.starts}}
    for move in proposal.moves:
        for start, owner in owners.items():
            if start >= move.range.start and (move.range.end is None or start < move.range.end):
                assert owner == move.source
                owners[start] = move.target
    assert owners == {start: proposal.map.owner(start) for start in owners}
    assert sum(one.keys for one in proposal.weights.values()) == len(entries)
    assert weights_of(told, proposal.map) == proposal.weights


@given(ENTRIES, WISHES)
def test_no_other_boundaries_at_prefixes_are_more_even(entries: dict[bytes, tuple[int, int]], wanted: Wish) -> None:
    """But for what is tolerated to have boundaries at short prefixes."""
    told = counted(entries)
    found = clusters(told.prefixes, wanted.roots)
    if found:
        return  # its resources are dealt out
    proposal = propose(told, wanted, ALONE)
    total = told.curve.total.of(wanted.measure)
    rules = Rules(b"/", wanted.depth, wanted.divided, whole_of(told, found, wanted.roots, wanted.kept))
    possible = [place for place in places(told, found, rules) if place.rank < AT_A_KEY]
    least = smallest([0, *(place.before.of(wanted.measure) for place in possible), total], wanted.shards)
    largest = max(one.of(wanted.measure) for one in proposal.weights.values())
    assert largest <= max(1.02 * least, UNEVEN * total / wanted.shards) + 0.02 * total  # others decide ties


def boundaries_of(proposal: Proposal) -> list[bytes]:
    return proposal.map.starts[1:]


def test_boundaries_lie_at_prefixes_of_the_depth() -> None:
    told = counted(under(b"/app/users/", b"/app/orders/", b"/app/carts/"))
    assert boundaries_of(propose(told, wish(3), ALONE)) == [b"/app/orders/", b"/app/users/"]
    assert boundaries_of(propose(told, wish(3, depth=1), ALONE)) == []


def test_short_prefixes_are_preferred() -> None:
    told = counted(under(b"/a/1/", b"/a/2/", b"/b/1/", b"/b/2/", each=10) | under(b"/b/3/", each=1))
    assert boundaries_of(propose(told, wish(2), ALONE)) == [b"/b/"]


def test_what_the_heaviest_prefix_does_not_let_be_even_is_told() -> None:
    told = counted(under(b"/small/x/", each=10) | under(b"/big/x/", each=90))
    proposal = propose(told, wish(2), ALONE)
    assert proposal.heaviest == KeyRange(b"", b"/small/")
    assert {name: one.keys for name, one in proposal.weights.items()} == {"main": 90, "shard-1": 10}


def test_a_prefix_is_divided_where_that_is_allowed() -> None:
    told = counted(under(b"/kv/", each=100))
    assert boundaries_of(propose(told, wish(2), ALONE)) == []
    proposal = propose(told, wish(2, divided=(b"/kv/",)), ALONE)
    assert proposal.at_keys == boundaries_of(proposal) == [b"/kv/005"]


def test_keys_without_a_separator_are_divided_anywhere_and_that_is_told() -> None:
    told = counted({b"%08x" % (number * 0x9E3779B1 % 2**32): (10, 0) for number in range(1000)})
    proposal = propose(told, wish(2), ALONE)
    [boundary] = proposal.at_keys
    assert boundary == b"8"
    assert max(one.keys for one in proposal.weights.values()) <= 550


def test_locks_stay_whole() -> None:
    entries = {b"/locks/%x" % number: (10, 0) for number in range(0x7000, 0x7100)}
    told = counted(entries, leases={key: int(key.rpartition(b"/")[2], 16) for key in entries})
    proposal = propose(told, wish(2, divided=(b"/locks/",)), ALONE)
    assert boundaries_of(proposal) == []


def test_ranges_that_are_kept_stay_whole() -> None:
    told = counted(under(b"/a/1/", b"/a/2/", b"/b/1/", b"/b/2/"))
    assert boundaries_of(propose(told, wish(2, kept=(prefix(b"/b/"),)), ALONE)) == [b"/b/"]
    assert boundaries_of(propose(told, wish(4, kept=(prefix(b"/b/"),)), ALONE)) == [b"/a/2/", b"/b/"]
    assert boundaries_of(propose(told, wish(4, kept=(prefix(b"/"),)), ALONE)) == []


class TestKubernetes:
    def test_events_and_leases_go_first_then_the_largest(self) -> None:
        told = counted(cluster(pods=400, events=200, leases=50, secrets=100, configmaps=120, minions=5, namespaces=3))
        proposal = propose(told, wish(3), ALONE)
        assert [(move.resource, move.target) for move in proposal.moves] == [
            ("events", "events"),
            ("leases", "events"),
            ("pods", "pods"),
        ]
        assert proposal.map.ranges_of("pods") == [resource_range("pods")]
        assert proposal.map.owner(b"/registry/pods") == "pods"
        assert cuts(proposal.map, ROOT) == []

    def test_the_boundary_is_before_the_key_without_a_slash(self) -> None:
        told = counted(cluster(pods=10, events=10))
        assert b"/registry/events" in propose(told, wish(2), ALONE).map.starts
        assert b"/registry/events/" not in propose(told, wish(2), ALONE).map.starts

    def test_a_custom_resource_that_lies_in_the_range_of_another_goes_with_it(self) -> None:
        told = counted(cluster(pods=10, events=10) | under(b"/registry/events.example.com/things/a/", each=40))
        proposal = propose(told, wish(3), ALONE)
        assert proposal.map.owner(b"/registry/events.example.com/things/a/1") == proposal.map.owner(
            b"/registry/events/a"
        )
        assert cuts(proposal.map, ROOT) == []

    def test_resources_stay_whole_whatever_ends_a_prefix(self) -> None:
        told = Tally(b":", 2)
        for key in sorted(cluster(pods=50, events=50)):
            told.add(key, 10)
        proposal = propose(told.finish(), Wish(2, Measure.KEYS, b":", 2, (), (), (ROOT,)), ALONE)
        assert cuts(proposal.map, ROOT) == []

    def test_beside_much_else_resources_are_only_kept_whole(self) -> None:
        told = counted(cluster(pods=30, events=30) | under(b"/app/a/", b"/app/b/", each=20))
        assert boundaries_of(propose(told, wish(3), ALONE)) == [b"/registry/", b"/registry/pods"]

    def test_resources_are_named_as_in_the_config(self) -> None:
        entries = cluster(minions=9, services_specs=9, services_endpoints=9, controllers=9, ingress=9)
        entries |= under(b"/registry/example.com/widgets/a/", b"/registry/apiregistration.k8s.io/apiservices/")
        [found] = clusters(counted(entries).prefixes, [ROOT])
        assert [one.name for one in found.resources] == [
            "apiregistration.k8s.io/apiservices",
            "replicationcontrollers",
            "example.com/widgets",
            "ingresses",
            "nodes",
            "endpoints",
            "services",
        ]
        assert all(resource_range(one.name) == one.range for one in found.resources)

    def test_another_root_is_found_by_its_many_resources(self) -> None:
        names = [b"pods", b"events", b"leases", b"secrets", b"configmaps", b"minions", b"namespaces", b"roles"]
        told = counted(under(*(b"/k8s/" + name + b"/a/" for name in names)))
        assert [one.root for one in clusters(told.prefixes, [ROOT])] == [b"/k8s/"]
        few = counted(under(b"/shop/events/a/", b"/shop/jobs/a/", b"/registry/images/a/"))
        assert clusters(few.prefixes, [ROOT]) == []


class TestAgainstTodaysMap:
    def test_a_map_that_is_even_stays(self) -> None:
        told = counted(under(b"/a/", b"/b/", b"/c/", b"/d/"))
        proposal = propose(told, wish(2), map_of([b"/c/"]))
        assert proposal.stays
        assert proposal.moves == ()

    def test_a_map_that_divides_what_stays_whole_does_not_stay(self) -> None:
        told = counted(cluster(pods=10, events=10))
        assert not propose(told, wish(2), map_of([b"/registry/pods/"])).stays

    def test_shards_keep_what_they_have(self) -> None:
        told = counted(under(b"/a/", b"/b/", b"/c/", b"/d/", b"/e/", b"/f/"))
        proposal = propose(told, wish(3), map_of([b"/b/"]))
        assert [(move.range.start, move.source, move.target) for move in proposal.moves] == [
            (b"/b/", "s1", "s0"),
            (b"/e/", "s1", "shard-1"),
        ]

    def test_fewer_shards(self) -> None:
        told = counted(under(b"/a/", b"/b/", b"/c/", b"/d/"))
        proposal = propose(told, wish(1), map_of([b"/b/"]))
        assert proposal.map.names == ("s1",)
        assert [(move.range, move.source, move.target) for move in proposal.moves] == [
            (KeyRange(b"", b"/b/"), "s0", "s1")
        ]


def test_ranges_that_overlap_are_one() -> None:
    whole = Whole([prefix(b"a/"), prefix(b"a/b/"), KeyRange(b"c", b"c"), KeyRange(b"x", None), prefix(b"y")])
    assert whole.ranges == [KeyRange(b"a/", b"a0"), KeyRange(b"x", None)]
    assert whole.divided_by(b"a/") is None
    assert whole.divided_by(b"a/b") == KeyRange(b"a/", b"a0")
    assert whole.divided_by(b"a0") is None
    assert whole.divided_by(b"zz") == KeyRange(b"x", None)


@pytest.mark.parametrize("measure", Measure)
def test_by_each_measure(measure: Measure) -> None:
    """Most keys are in a, most bytes in b, most writes in c."""
    entries = {b"/a/x/%04d" % number: (1, 0) for number in range(90)}
    entries |= {b"/b/x/%04d" % number: (1000, 0) for number in range(10)}
    entries |= {b"/c/x/%04d" % number: (1, 50) for number in range(10)}
    heavy = {Measure.KEYS: b"/a/", Measure.BYTES: b"/b/", Measure.WRITES: b"/c/"}[measure]
    proposal = propose(counted(entries), wish(2, measure), ALONE)
    assert heavy in (proposal.heaviest or KeyRange(b"", None)).start or proposal.heaviest is not None
    assert proposal.map.owner(heavy + b"x/0000") == max(
        proposal.weights, key=lambda name: proposal.weights[name].of(measure)
    )


def test_ties_are_decided_by_the_other_measures() -> None:
    """All writes go to one prefix, so it gets a shard of its own, and the others have as many keys each."""
    entries = under(b"/a/x/", b"/b/x/", b"/y/x/", b"/z/x/") | {b"/hot/x/%04d" % number: (10, 9) for number in range(10)}
    entries = {key: (size, writes if key.startswith(b"/hot/") else 0) for key, (size, writes) in entries.items()}
    proposal = propose(counted(entries), wish(3, Measure.WRITES), ALONE)
    assert boundaries_of(proposal) == [b"/hot/", b"/y/"]
