"""The count of prefixes: exact for what it tells, and what it tells is all that is heavy, in bounded memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange, prefix_end
from esp.core.plan.curve import STEPS
from esp.core.plan.tally import MOST_PREFIXES, Counted, Tally
from esp.core.plan.weights import NOTHING, Weights

KEYS = st.binary(max_size=8) | st.lists(st.sampled_from([b"/", b"a", b"b", b"."]), max_size=8).map(b"".join)
ENTRIES = st.dictionaries(KEYS, st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40)
Entries = dict[bytes, tuple[int, int]]


def counted(entries: Entries, depth: int = 3, most: int = MOST_PREFIXES, marks: Sequence[bytes] = ()) -> Counted:
    tally = Tally(b"/", depth, marks, most)
    for key in sorted(entries):
        size, writes = entries[key]
        tally.add(key, size, writes)
    return tally.finish()


def depth_of(prefix: bytes) -> int:
    return prefix.count(b"/") - prefix.startswith(b"/")


def exact(entries: Entries, depth: int) -> dict[bytes, Weights]:
    found: dict[bytes, list[int]] = defaultdict(lambda: [0, 0, 0])
    for key, (size, writes) in entries.items():
        ends = [0, *(place + 1 for place, byte in enumerate(key) if byte == 0x2F)]
        for prefix in (key[:end] for end in ends if depth_of(key[:end]) <= depth):
            for place, more in enumerate((1, size, writes)):
                found[prefix][place] += more
    found.setdefault(b"", [0, 0, 0])
    return {prefix: Weights(*weights) for prefix, weights in found.items()}


@given(ENTRIES, st.integers(1, 4))
def test_each_prefix_has_what_lies_below_it(entries: Entries, depth: int) -> None:
    told = counted(entries, depth)
    assert {one.prefix: one.weights for one in told.prefixes} == exact(entries, depth)
    assert [one.prefix for one in told.prefixes] == sorted(one.prefix for one in told.prefixes)
    assert all(one.depth == depth_of(one.prefix) for one in told.prefixes)
    assert told.bound == 0


@given(ENTRIES, st.integers(1, 4), st.integers(2, 12))
def test_what_is_told_is_exact_and_what_is_forgotten_is_light(entries: Entries, depth: int, most: int) -> None:
    told = counted(entries, depth, most)
    right = exact(entries, depth)
    kept = {one.prefix: one.weights for one in told.prefixes}
    assert all(right[prefix] == weights for prefix, weights in kept.items())
    assert all(weights.share(right[b""]) <= told.bound for prefix, weights in right.items() if prefix not in kept)
    for prefix in kept:
        assert not prefix or any(prefix.startswith(other) and other != prefix for other in kept)
    for prefix in right:
        parents = [other for other in right if prefix.startswith(other)]
        assert prefix not in kept or all(parent in kept for parent in parents)


@given(ENTRIES, st.lists(KEYS, max_size=5))
def test_the_curve_is_exact_at_prefixes_and_marks(entries: Entries, marks: list[bytes]) -> None:
    told = counted(entries, marks=sorted(marks))
    ends = [end for one in told.prefixes if (end := prefix_end(one.prefix)) is not None]
    for key in [*marks, *ends, *(one.prefix for one in told.prefixes)]:
        below = [(1, size, writes) for other, (size, writes) in entries.items() if other < key]
        assert told.curve.before(key) == tuple(map(sum, zip(*below, strict=True))) if below else NOTHING
    assert told.curve.within(KeyRange(b"", None)) == told.curve.total


def test_the_curve_is_a_step_off_at_most() -> None:
    tally = Tally(b"/", 2)
    for number in range(100_000):
        tally.add(b"%08d" % number, 10)
    told = tally.finish()
    assert len(told.samples) <= 8 * STEPS
    for number in range(0, 100_000, 997):
        assert 0 <= told.curve.before(b"%08d" % number).keys - number <= 100_000 // STEPS + 1


def test_a_million_keys_take_bounded_memory() -> None:
    """Each key has a prefix of its own, so that what is told cannot be all; one prefix has a hundredth."""
    tally = Tally(b"/", 4)
    most = 0
    for number in range(1_000_000):
        tally.add((b"/0500000/y/%07d" if 500_000 < number <= 510_000 else b"/%07d/x") % number, 100)
        if number % 1000 == 0:
            kept = (tally._complete, tally._steps.points, tally._open, tally._exact, tally._locks)
            most = max(most, sum(map(len, kept)))
    told = tally.finish()
    assert most <= MOST_PREFIXES + 8 * STEPS + 6
    assert told.curve.total == (1_000_000, 100_000_000, 0)
    assert 0 < told.bound < 0.005
    heavy = next(one for one in told.prefixes if one.prefix == b"/0500000/y/")
    assert heavy.weights == (10_000, 1_000_000, 0)
    assert len(told.prefixes) <= MOST_PREFIXES + 6


def test_keys_of_locks_are_known_by_their_leases() -> None:
    tally = Tally(b"/", 2)
    tally.add(b"/jobs/7001", 1, lease=0x7001)
    tally.add(b"/jobs/other", 1, lease=0x7001)
    tally.add(b"/locks/backup/694d7a1c", 1, lease=0x694D7A1C)
    tally.add(b"plain/x/y/z/7001", 1, lease=0x7001)
    told = tally.finish()
    assert [one.prefix for one in told.prefixes if one.locks] == [b"/jobs/", b"/locks/backup/"]
    assert told.locks == [b"plain/x/y/z/"]


def test_keys_that_were_only_written_count_as_writes() -> None:
    tally = Tally(b"/", 1)
    tally.add(b"a/1", 5, 3)
    tally.add(b"a/2", 0, 7, exists=False)
    assert tally.finish().curve.total == (1, 5, 10)
