"""The choice of boundaries: pure numbers, no keys.

The line of keys has places at which it may be cut, each with what lies before it, and a rank: the lower, the better to
cut there. It is cut into a given number of parts so that the largest is as small as can be, or at most as large as is
tolerated; within that, at low ranks, and evenly.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


def smallest(places: Sequence[int], parts: int) -> int:
    """The largest part, where the line is cut so that it is as small as can be.

    Args:
        places: what lies before each place; the first is 0, the last all there is; they never go down.
        parts: the number of parts, at least 1; as many as that, or fewer.
    """
    total = places[-1]
    low, high = -(-total // parts), total
    while low < high:
        middle = (low + high) // 2
        if _fits(places, parts, middle):
            high = middle
        else:
            low = middle + 1
    return low


def _fits(places: Sequence[int], parts: int, most: int) -> bool:
    """Whether parts of at most so much suffice."""
    here, last = 0, len(places) - 1
    for _ in range(parts):
        here = _furthest(places, here, most)
        if here == last:
            return True
    return False


def _furthest(places: Sequence[int], here: int, most: int) -> int:
    """The last place that a part from `here` of at most so much can reach."""
    return bisect_right(places, places[here] + most) - 1


def choose(places: Sequence[int], ranks: Sequence[int], parts: int, tolerated: float) -> list[int]:
    """The places to cut at, by their numbers, in order.

    There are as many parts as asked for, if there are places enough; else one for each piece between places. None is
    larger than the larger of `smallest` and `tolerated`.

    Args:
        places: as for `smallest`.
        ranks: of each place; those of the first and the last do not count.
        parts: the number of parts.
        tolerated: a part of this size is small enough.
    """
    last = len(places) - 1
    parts = min(parts, last)
    most = max(smallest(places, parts), int(tolerated))
    earliest = _earliest(places, parts, most)
    cuts: list[int] = []
    here = 0
    for left in range(parts, 1, -1):
        first = max(earliest[left - 1], here + 1)
        behind = min(_furthest(places, here, most), last - (left - 1))
        even = places[here] + (places[last] - places[here]) / left
        window = range(first, behind + 1)
        here = min(window, key=lambda place: (ranks[place], abs(places[place] - even), place))
        cuts.append(here)
    return cuts


def _earliest(places: Sequence[int], parts: int, most: int) -> list[int]:
    """For each number of parts up to `parts`, the first place behind which so many suffice."""
    here = len(places) - 1
    found = [here]
    for _ in range(parts):
        here = bisect_left(places, places[here] - most)
        found.append(here)
    return found
