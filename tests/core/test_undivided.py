"""Undivided ranges: esp refuses requests that span shards there, although it could serve them."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.shard_map import ShardMap
from esp.core.undivided import Undivided
from esp.core.wire.status import Code, RpcError, Status

# a owns up to /locks/m, b up to /t, c the rest.
MAP = ShardMap.build(
    [("a", KeyRange(b"", b"/locks/m")), ("b", KeyRange(b"/locks/m", b"/t")), ("c", KeyRange(b"/t", None))],
    ["a", "b", "c"],
)
LOCKS = KeyRange(b"/locks/", b"/locks0")


def refused(undivided: Undivided, *asked: tuple[bytes, bytes | None]) -> str | None:
    status = undivided.refuse("a Range", *(KeyRange(*one) for one in asked))
    if status is None:
        return None
    assert status.code == Code.FAILED_PRECONDITION
    return status.message


def test_nothing_is_refused_where_nothing_is_said() -> None:
    assert refused(Undivided(MAP), (b"", None)) is None


def test_what_is_cut_inside_the_range_is_refused_and_named() -> None:
    undivided = Undivided(MAP, [LOCKS])
    text = (
        'esp: a Range spans the shards a, b (boundary "/locks/m"); '
        "this proxy is configured to refuse that; keep to one shard at a time"
    )
    assert refused(undivided, (b"/locks/", b"/locks0")) == text
    assert refused(undivided, (b"/locks/l", b"/locks/n")) == text
    assert refused(undivided, (b"", None)) == text, "a wider one shows the range divided too"


@pytest.mark.parametrize(
    "asked", [(b"/locks/a", b"/locks/m"), (b"/locks/m", b"/locks0"), (b"/s", b"/u"), (b"/locks/n", None)]
)
def test_what_is_cut_elsewhere_is_served(asked: tuple[bytes, bytes | None]) -> None:
    assert refused(Undivided(MAP, [LOCKS]), asked) is None


def test_several_ranges_of_one_request_count_together() -> None:
    undivided = Undivided(MAP, [LOCKS])
    text = refused(undivided, (b"/locks/a", b"/locks/b"), (b"/x", b"/y"), (b"/locks/x", b"/locks/y"))
    assert text is not None
    assert text.startswith('esp: a Range spans the shards a, b (boundary "/locks/m")')
    assert refused(undivided, (b"/locks/a", b"/locks/b"), (b"/x", b"/y")) is None


def test_everything_may_be_undivided() -> None:
    undivided = Undivided(MAP, [KeyRange(b"", None)])
    assert refused(undivided, (b"/s", b"/u")) is not None
    assert refused(undivided, (b"/t", None)) is None


def test_a_range_that_no_boundary_cuts_is_not_kept() -> None:
    assert not Undivided(MAP, [KeyRange(b"/x/", b"/x0"), KeyRange(b"/locks/m", b"/locks0")]).ranges


KEYS = st.sampled_from([b"", *(bytes((letter,)) + more for letter in b"abcdef" for more in (b"", b"\0", b"m"))])
RANGES = st.builds(KeyRange, KEYS, KEYS | st.none())


@given(st.lists(RANGES, max_size=4), st.lists(RANGES, min_size=1, max_size=5), st.sets(KEYS, min_size=1, max_size=4))
def test_refused_is_what_touches_several_shards_inside_one_range(
    kept: list[KeyRange], asked: list[KeyRange], boundaries: set[bytes]
) -> None:
    edges = [b"", *sorted(boundaries - {b""}), None]
    parts = [KeyRange(low, high) for low, high in pairwise(edges) if low is not None]
    shard_map = ShardMap.build([("ab"[place % 2], part) for place, part in enumerate(parts)], ["a", "b"][: len(parts)])

    def divides(one: KeyRange) -> bool:
        touched = [part for keys in asked if (part := keys.intersect(one)) is not None]
        return len({segment.shard for part in touched for segment in shard_map.split(part)}) > 1

    undivided = Undivided(shard_map)
    for place, one in enumerate(kept):
        undivided.add(one, f"cure {place}")
    expected = next((cure for one, cure in undivided.ranges.items() if divides(one)), None)
    status = undivided.refuse("a Range", *asked)
    assert (status and status.message.rpartition("; ")[2]) == expected


class Counted(bytes):
    """A key that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: bytes) -> bool:
        Counted.compared += 1
        return super().__lt__(other)

    def __le__(self, other: bytes) -> bool:
        Counted.compared += 1
        return super().__le__(other)

    def __gt__(self, other: bytes) -> bool:
        Counted.compared += 1
        return super().__gt__(other)

    def __ge__(self, other: bytes) -> bool:
        Counted.compared += 1
        return super().__ge__(other)


def test_many_ranges_cost_a_large_request_hardly_more_than_one() -> None:
    def compared(ranges: int) -> int:
        kept = [KeyRange(b"/s%02d" % place, b"/u%02d" % place) for place in range(ranges)]
        undivided = Undivided(MAP, kept)
        Counted.compared = 0
        for letter in b"az":
            keys = [Counted(b"/%c%03d" % (letter, place)) for place in range(500)]
            assert undivided.refuse("a transaction", *(KeyRange(key, Counted(key + b"\0")) for key in keys)) is None
        return Counted.compared

    assert compared(64) < 3 * compared(1)


def test_it_is_counted_each_time_and_logged_once_a_range(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[str] = []
    undivided = Undivided(MAP, [LOCKS, KeyRange(b"/s", b"/u")], counted.append)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            refused(undivided, (b"/locks/", b"/locks0"))
            refused(undivided, (b"/s", b"/u"))
    assert counted == ["across_shards"] * 6
    assert len(caplog.records) == 2


def test_a_parted_key_is_not_read_and_all_others_are() -> None:
    counted: list[str] = []
    undivided = Undivided(MAP, reached=counted.append)
    assert undivided.owner(b"/s") == "b"
    undivided.part(b"/s", ["b", "c"], b"/t", "mend it")
    undivided.part(b"/s", ["b", "c"], b"/t", "another cure comes too late")
    for _ in range(2):
        with pytest.raises(RpcError) as refused:
            undivided.owner(b"/s")
        text = 'esp: a list by the key "/s" spans the shards b, c (boundary "/t"); mend it'
        assert refused.value.status == Status(Code.FAILED_PRECONDITION, text)
    assert counted == ["across_shards"] * 2
    assert (undivided.owner(b"/r"), undivided.owner(b"/s\0"), undivided.owner(b"/t")) == ("b", "b", "c")
