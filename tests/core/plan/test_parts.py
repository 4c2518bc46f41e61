"""The choice of boundaries, against all choices there are."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from esp.core.plan.parts import choose, smallest

PIECES = st.lists(st.integers(0, 20), min_size=1, max_size=9)


def sizes(places: list[int], cuts: list[int]) -> list[int]:
    return [places[end] - places[start] for start, end in pairwise([0, *cuts, len(places) - 1])]


def best(places: list[int], parts: int) -> int:
    inner = range(1, len(places) - 1)
    return min(
        max(sizes(places, list(cuts)))
        for count in range(min(parts, len(places) - 1))
        for cuts in combinations(inner, count)
    )


@given(PIECES, st.integers(1, 6))
def test_no_other_cuts_give_a_smaller_largest_part(pieces: list[int], parts: int) -> None:
    places = [0, *accumulate(pieces)]
    assert smallest(places, parts) == best(places, parts)


@given(PIECES, st.integers(1, 6), st.randoms(use_true_random=False), st.floats(0, 3))
def test_parts_are_as_many_as_asked_for_and_none_is_too_large(
    pieces: list[int], parts: int, random: object, tolerance: float
) -> None:
    places = [0, *accumulate(pieces)]
    ranks = [random.randrange(3) for _ in places]  # type: ignore[attr-defined]
    tolerated = tolerance * places[-1] / parts
    cuts = choose(places, ranks, parts, tolerated)
    assert cuts == choose(places, ranks, parts, tolerated)
    assert len(cuts) == min(parts, len(pieces)) - 1
    assert cuts == sorted(set(cuts))
    assert all(0 < cut < len(pieces) for cut in cuts)
    assert max(sizes(places, cuts)) <= max(best(places, parts), tolerated)


@given(PIECES, st.integers(1, 6))
def test_a_part_is_at_most_a_fair_share_and_the_largest_piece(pieces: list[int], parts: int) -> None:
    places = [0, *accumulate(pieces)]
    cuts = choose(places, [0] * len(places), parts, 0)
    assert max(sizes(places, cuts)) <= places[-1] / parts + max(pieces)


def test_low_ranks_are_taken_within_what_is_tolerated() -> None:
    places = [0, 10, 20, 30, 40, 50, 60]
    ranks = [0, 2, 2, 2, 1, 2, 0]
    assert choose(places, ranks, 2, 0) == [3]
    assert choose(places, ranks, 2, 40) == [4]


def test_equal_pieces_are_dealt_out_evenly() -> None:
    places = list(range(11))
    assert sizes(places, choose(places, [0] * 11, 3, 0)) == [3, 3, 4]


def test_a_heavy_piece_at_the_start_leaves_the_others_to_the_rest() -> None:
    places = [0, 70, 80, 90, 100]
    assert choose(places, [0] * 5, 4, 0) == [1, 2, 3]
