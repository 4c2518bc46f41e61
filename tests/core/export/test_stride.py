"""The parts of a range that pages are asked for: each key comes once, and an etcd counts few more than it sends."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.export.stride import Stride
from esp.core.keys import KeyRange


def walk(keys: list[bytes], key_range: KeyRange, limit: int) -> tuple[list[bytes], int, int]:
    """The keys that pages of `limit` bring, the keys that the etcd counts meanwhile, and the number of pages."""
    keys = sorted(keys)
    stride = Stride(key_range)
    got: list[bytes] = []
    counted = pages = 0
    while not stride.done:
        part = stride.part()
        first = bisect_left(keys, part.start)
        last = len(keys) if part.end is None else bisect_left(keys, part.end)
        there = keys[first:last]
        page = there[:limit]
        counted += len(there)
        pages += 1
        got += page
        stride.read(page[0] if page else b"", page[-1] if page else b"", len(page), len(there))
        if len(page) == len(there) and len(page) < limit // 4:
            stride.was_short()
        assert pages < 100_000
    return got, counted, pages


few_bytes = st.lists(st.sampled_from([0, 1, 97, 98, 254, 255]), min_size=1, max_size=6).map(bytes)


@given(
    keys=st.sets(few_bytes | st.binary(min_size=1, max_size=6), max_size=80),
    bounds=st.tuples(st.just(b"") | few_bytes, st.none() | few_bytes),
    limit=st.integers(1, 20),
)
def test_each_key_comes_once_in_order(keys: set[bytes], bounds: tuple[bytes, bytes | None], limit: int) -> None:
    key_range = KeyRange(*bounds)
    wanted = sorted(key for key in keys if key >= key_range.start and (key_range.end is None or key < key_range.end))
    assert walk(list(keys), key_range, limit)[0] == wanted


@pytest.mark.parametrize("form", ["k/%09d", "/registry/pods/default/pod-with-a-long-name-%x", "%d/x", "%064d"])
def test_an_etcd_counts_few_keys_more_than_it_sends(form: str) -> None:
    keys = [(form % number).encode() for number in range(0, 300_000, 3)]
    got, counted, pages = walk(keys, KeyRange(b"", None), 1000)
    assert len(got) == len(keys)
    assert counted < 20 * len(keys)  # 50 if all pages were asked for in the whole range
    assert pages < 200
