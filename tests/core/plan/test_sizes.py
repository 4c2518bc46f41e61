"""Sizes of values by samples."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esp.core.plan.sizes import EVERY, NEW, Sizes
from esp.core.plan.survey import prefix_of
from esp.core.plan.writes import Writes


def estimated(pages: list[list[tuple[bytes, int]]]) -> tuple[list[int], int]:
    sizes = Sizes(lambda key: prefix_of(key, b"/", 2))
    found: list[int] = []
    for page in pages:
        keys = [key for key, _ in page]
        found += sizes.all_of(keys, {place: page[place][1] for place in sizes.chosen(keys)})
    return found, sizes.read


def test_values_of_one_prefix_are_alike() -> None:
    """Twenty huge values among thousands of small ones are seen, and do not weigh on others."""
    keys = [(b"/a/x/%05d" % number, 100) for number in range(2500)]
    keys += [(b"/blobs/big/%05d" % number, 500_000) for number in range(20)]
    keys += [(b"/c/x/%05d" % number, 10) for number in range(2500)]
    found, read = estimated([keys[first : first + 1000] for first in range(0, len(keys), 1000)])
    assert found == [size for _, size in keys]
    assert read <= len(keys) // EVERY + 8


def test_a_page_of_many_prefixes_reads_a_bounded_number() -> None:
    keys = [(b"/t/%05d/x" % number, 100) for number in range(1000)]
    found, read = estimated([keys])
    assert read <= 1000 // EVERY + NEW
    assert set(found) == {100}


@given(st.lists(st.lists(st.integers(0, 1000), max_size=120), max_size=4))
def test_an_estimate_lies_between_what_was_read(pages: list[list[int]]) -> None:
    number = iter(range(1000))
    named = [[(b"/a/%d/%04d" % (size % 3, next(number)), size) for size in page] for page in pages]
    found, read = estimated(named)
    sizes = [size for page in pages for size in page]
    assert len(found) == len(sizes)
    assert read <= len(sizes)
    if found:
        assert min(sizes) <= min(found)
        assert max(found) <= max(sizes)


def test_a_sample_of_writes_is_bounded_and_fair() -> None:
    writes = Writes(most=1000)
    for number in range(100_000):
        writes.add(b"hot" if number % 4 == 0 else b"k%d" % number)
    assert (writes.seen, writes.kept) == (100_000, 1000)
    by_key = writes.by_key()
    assert [key for key, _ in by_key] == sorted(key for key, _ in by_key)
    assert sum(number for _, number in by_key) == 1000
    assert 200 < dict(by_key)[b"hot"] < 300


def test_few_writes_are_all_in_the_sample() -> None:
    writes = Writes()
    for key in (b"b", b"a", b"b", b"c" * 10_000):
        writes.add(key)
    assert writes.by_key() == [(b"a", 1), (b"b", 2), (b"c" * 512, 1)]


def test_the_prefix_of_a_key() -> None:
    assert prefix_of(b"/a/b/c/d", b"/", 2) == b"/a/b/"
    assert prefix_of(b"a/b/c/d", b"/", 2) == b"a/b/"
    assert prefix_of(b"a:b", b"/", 2) == b""
    assert prefix_of(b"/a", b"/", 2) == b"/"
