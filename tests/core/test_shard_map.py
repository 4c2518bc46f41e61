from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.shard_map import Segment, ShardMap, ShardMapError, carve

keys = st.lists(st.sampled_from([0x00, 0x61, 0x62, 0xFF]), max_size=3).map(bytes)
ranges = st.builds(KeyRange, keys, st.none() | keys)

NAMES = ("left", "middle", "right")
THREE = [("left", KeyRange(b"", b"i")), ("middle", KeyRange(b"i", b"s")), ("right", KeyRange(b"s", None))]


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[str, KeyRange]]:
    """Ranges that cover every key once, in any order; one shard may own neighbours."""
    boundaries = draw(st.sets(keys.filter(lambda key: key not in (b"", b"\0")), max_size=6))
    cuts = [b"", *sorted(boundaries), None]
    pieces = [KeyRange(low, high) for low, high in pairwise(cuts) if low is not None]
    layout = [(draw(st.sampled_from(NAMES)), piece) for piece in pieces]
    return draw(st.permutations(layout))


def holds(key_range: KeyRange, key: bytes) -> bool:
    return key >= key_range.start and (key_range.end is None or key < key_range.end)


def owner_by_scan(layout: list[tuple[str, KeyRange]], key: bytes) -> str:
    [owner] = [shard for shard, piece in layout if holds(piece, key)]
    return owner


@given(layouts(), keys)
def test_a_key_belongs_to_the_shard_whose_range_holds_it(layout: list[tuple[str, KeyRange]], key: bytes) -> None:
    assert ShardMap.build(layout, NAMES).owner(key) == owner_by_scan(layout, key)


@given(layouts())
def test_neighbouring_ranges_of_one_shard_are_joined(layout: list[tuple[str, KeyRange]]) -> None:
    shard_map = ShardMap.build(layout, NAMES)
    assert shard_map.starts[0] == b""
    assert shard_map.starts == sorted(set(shard_map.starts))
    assert all(one != other for one, other in pairwise(shard_map.owners))


@given(layouts(), ranges, keys)
def test_a_split_gives_each_key_to_its_owner_once(
    layout: list[tuple[str, KeyRange]], key_range: KeyRange, key: bytes
) -> None:
    segments = ShardMap.build(layout, NAMES).split(key_range)
    holders = [segment.shard for segment in segments if holds(segment.range, key)]
    assert holders == ([owner_by_scan(layout, key)] if holds(key_range, key) else [])


@given(layouts(), ranges)
def test_a_split_is_the_range_in_key_order_without_seams(
    layout: list[tuple[str, KeyRange]], key_range: KeyRange
) -> None:
    segments = ShardMap.build(layout, NAMES).split(key_range)
    if key_range.is_empty():
        assert segments == []
        return
    assert (segments[0].range.start, segments[-1].range.end) == (key_range.start, key_range.end)
    for one, other in pairwise(segments):
        assert one.range.end == other.range.start
        assert one.shard != other.shard
    assert not any(segment.range.is_empty() for segment in segments)


@given(layouts(), ranges)
def test_sole_owner_and_first_boundary_agree_with_the_split(
    layout: list[tuple[str, KeyRange]], key_range: KeyRange
) -> None:
    shard_map = ShardMap.build(layout, NAMES)
    segments = shard_map.split(key_range)
    if len(segments) > 1:
        assert shard_map.sole_owner(key_range) is None
        assert shard_map.first_boundary(key_range) == segments[1].range.start
    else:
        owner = segments[0].shard if segments else owner_by_scan(layout, key_range.start)
        assert shard_map.sole_owner(key_range) == owner
        assert shard_map.first_boundary(key_range) is None


@given(layouts())
def test_the_ranges_of_all_shards_make_the_map_again(layout: list[tuple[str, KeyRange]]) -> None:
    shard_map = ShardMap.build(layout, NAMES, epoch=7)
    again = [(shard, piece) for shard in NAMES for piece in shard_map.ranges_of(shard)]
    assert ShardMap.build(again, NAMES, epoch=7) == shard_map


def test_boundaries_belong_to_the_range_they_open() -> None:
    shard_map = ShardMap.build(THREE, NAMES)
    assert [shard_map.owner(key) for key in (b"\0", b"h\xff\xff", b"i", b"i\0", b"r", b"s", b"\xff")] == [
        "left", "left", "middle", "middle", "middle", "right", "right",
    ]  # fmt: skip
    assert shard_map.split(KeyRange(b"a", b"i")) == [Segment("left", KeyRange(b"a", b"i"))]
    assert shard_map.split(KeyRange(b"a", b"i\0")) == [
        Segment("left", KeyRange(b"a", b"i")),
        Segment("middle", KeyRange(b"i", b"i\0")),
    ]


def test_a_shard_may_come_twice_in_a_split() -> None:
    shard_map = ShardMap.build(
        [("left", KeyRange(b"", b"e")), ("middle", KeyRange(b"e", b"f")), ("left", KeyRange(b"f", None))], NAMES[:2]
    )
    assert [segment.shard for segment in shard_map.split(KeyRange(b"a", None))] == ["left", "middle", "left"]
    assert shard_map.ranges_of("left") == [KeyRange(b"", b"e"), KeyRange(b"f", None)]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ([], "no shard has a range; give one shard all keys: {start: '', end: ''}"),
        ([("left", KeyRange(b"", b"i"))], 'no shard owns ["i", end), next to range 0; extend a range over it'),
        ([("left", KeyRange(b"b", None))], 'no shard owns ["", "b"), next to range 0; extend a range over it'),
        (
            [("middle", KeyRange(b"j", None)), ("left", KeyRange(b"", b"i"))],
            'no shard owns ["i", "j"), between range 1 and range 0; extend a range over it',
        ),
        (
            [("left", KeyRange(b"", b"j")), ("middle", KeyRange(b"i", None))],
            "range 1 overlaps range 0; let them meet at one boundary",
        ),
        (
            [("left", KeyRange(b"", None)), ("middle", KeyRange(b"i", None))],
            "range 1 overlaps range 0; let them meet at one boundary",
        ),
        (
            [("left", KeyRange(b"", None)), ("middle", KeyRange(b"", None))],
            "range 1 is the same as range 0; keep one of them",
        ),
        ([("left", KeyRange(b"b", b"b"))], "range 0 holds no key: its end must be above its start"),
        ([("left", KeyRange(b"b", b""))], "range 0 holds no key: its end must be above its start"),
        (
            [("left", KeyRange(b"", b"\0")), ("middle", KeyRange(b"\0", None))],
            "range 0 has the single zero byte as a boundary, which etcd reads as an open end; "
            "use the empty key, or a longer one",
        ),
        ([("none", KeyRange(b"", None))], "range 0 belongs to a shard that is not there"),
    ],
)
def test_a_layout_that_does_not_give_each_key_one_owner_is_refused(
    layout: list[tuple[str, KeyRange]], text: str
) -> None:
    with pytest.raises(ShardMapError) as caught:
        ShardMap.build(layout, NAMES)
    assert str(caught.value) == text


@given(st.lists(st.tuples(st.sampled_from(NAMES), ranges), min_size=1, max_size=5), keys)
def test_any_ranges_build_a_correct_map_or_are_refused(layout: list[tuple[str, KeyRange]], key: bytes) -> None:
    try:
        shard_map = ShardMap.build(layout, NAMES)
    except ShardMapError:
        return
    assert shard_map.owner(key) == owner_by_scan(layout, key)


@given(st.lists(ranges, min_size=1, max_size=6), keys)
def test_carving_leaves_each_key_to_the_narrowest_range_around_it(wide_and_narrow: list[KeyRange], key: bytes) -> None:
    try:
        parts = carve([("any", piece) for piece in wide_and_narrow])
    except ShardMapError:
        assert not nested_or_apart(wide_and_narrow)
        return
    assert nested_or_apart(wide_and_narrow)
    around = [position for position, piece in enumerate(wide_and_narrow) if holds(piece, key)]
    # Of nested ranges the narrowest starts last, and ends first where starts are equal.
    innermost = [p for p in around if all(inside(wide_and_narrow[p], wide_and_narrow[q]) for q in around)]
    assert [position for position, part in parts if holds(part, key)] == innermost
    assert [part.start for _, part in parts] == sorted(part.start for _, part in parts)
    assert not any(part.is_empty() for _, part in parts)


def inside(narrow: KeyRange, wide: KeyRange) -> bool:
    return narrow.intersect(wide) == narrow


def nested_or_apart(pieces: list[KeyRange]) -> bool:
    """What `carve` accepts, told pair by pair."""
    if any(piece.is_empty() or b"\0" in (piece.start, piece.end) for piece in pieces):
        return False
    return all(
        one != other and (one.intersect(other) in (None, one, other))
        for position, one in enumerate(pieces)
        for other in pieces[:position]
    )


def test_carving_two_levels_deep() -> None:
    everything, registry, events = KeyRange(b"", None), KeyRange(b"r", b"s"), KeyRange(b"re", b"rf")
    assert carve([("a", events), ("b", everything), ("c", registry)]) == [
        (1, KeyRange(b"", b"r")),
        (2, KeyRange(b"r", b"re")),
        (0, KeyRange(b"re", b"rf")),
        (2, KeyRange(b"rf", b"s")),
        (1, KeyRange(b"s", None)),
    ]


class TestFingerprint:
    def test_order_epoch_and_needless_boundaries_do_not_count(self) -> None:
        known = ShardMap.build(THREE, NAMES).fingerprint
        assert known == "ff80cb915ad8", "it is the same in every process and every release"
        cut = [*THREE[1:], ("left", KeyRange(b"", b"c")), ("left", KeyRange(b"c", b"i"))]
        assert ShardMap.build(cut, NAMES[::-1], epoch=7).fingerprint == known

    @given(layouts(), layouts())
    def test_maps_differ_in_it_exactly_if_an_owner_differs(
        self, one: list[tuple[str, KeyRange]], other: list[tuple[str, KeyRange]]
    ) -> None:
        first, second = ShardMap.build(one, NAMES), ShardMap.build(other, NAMES)
        is_same = (first.starts, first.owners) == (second.starts, second.owners)
        assert (first.fingerprint == second.fingerprint) == is_same

    def test_names_count(self) -> None:
        everything = [("left", KeyRange(b"", None))]
        prints = [
            ShardMap.build(everything, names).fingerprint for names in (("left",), NAMES, ("left", "middleright"))
        ]
        prints.append(ShardMap.build([("right", KeyRange(b"", None))], NAMES).fingerprint)
        assert len(set(prints)) == 4
