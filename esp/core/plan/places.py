"""The boundaries that are possible: ends of prefixes, and single keys where nothing else divides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from esp.core.keys import OPEN_END, KeyRange, prefix_end
from esp.core.kubernetes import built_in
from esp.core.plan.resources import Cluster
from esp.core.plan.tally import Counted
from esp.core.plan.weights import Weights
from esp.core.plan.whole import Whole

AT_A_KEY: Final = 1 << 16
"""The rank of a boundary that is no end of a prefix."""


class Place(NamedTuple):
    """A possible boundary.

    Attributes:
        before: what lies before it.
        rank: the depth of the prefix that begins or ends there, or `AT_A_KEY`.
        boundary: the key.
    """

    before: Weights
    rank: int
    boundary: bytes


def whole_of(counted: Counted, clusters: Iterable[Cluster], roots: Iterable[bytes], kept: Iterable[KeyRange]) -> Whole:
    """All that stays whole: the ranges that are `kept`, resources of Kubernetes, and what locks have.

    The built-in resources below the `roots`, where a kube-apiserver is expected, stay whole even if there are none.
    """
    ranges = [*kept]
    for root in roots:
        ranges += built_in(root)
    for cluster in clusters:
        ranges += cluster.whole
    locks = [one.prefix for one in counted.prefixes if one.locks and one.prefix]
    locks += counted.locks or ()
    ranges += [KeyRange(prefix, prefix_end(prefix)) for prefix in locks]
    return Whole(ranges)


class Rules(NamedTuple):
    """What is divided.

    Attributes:
        separator: the end of prefixes.
        depth: prefixes of this depth are not divided.
        divided: prefixes that may be divided anywhere.
        whole: what is not divided all the same.
    """

    separator: bytes
    depth: int
    divided: Sequence[bytes]
    whole: Whole


def places(counted: Counted, clusters: Iterable[Cluster], rules: Rules) -> list[Place]:
    """The possible boundaries, in key order, no two with nothing between them: of these a beginning stays.

    It has the lowest of their ranks.
    """
    best: dict[Weights, tuple[bool, int, bytes]] = {}
    ranks: dict[Weights, int] = {}
    found = [*_ends(counted, clusters, rules), *_keys(counted, rules)]
    for rank, is_end, boundary in found:
        if boundary in (b"", OPEN_END) or rules.whole.divided_by(boundary) is not None:
            continue
        before = counted.curve.before(boundary)
        here = (is_end, rank, boundary)
        best[before] = min(here, best.get(before, here))
        ranks[before] = min(rank, ranks.get(before, rank))
    empty = (counted.curve.before(b""), counted.curve.total)
    ordered = sorted(Place(before, ranks[before], boundary) for before, (_, _, boundary) in best.items())
    return [one for one in ordered if one.before not in empty]


def _ends(counted: Counted, clusters: Iterable[Cluster], rules: Rules) -> Iterator[tuple[int, bool, bytes]]:
    """Begins and ends of prefixes: rank, whether it is the end, boundary."""
    divided = tuple(rules.divided)
    for one in counted.prefixes:
        if one.depth <= rules.depth or (divided and one.prefix.startswith(divided)):
            yield one.depth, False, one.prefix
            end = prefix_end(one.prefix)
            if end is not None:
                yield one.depth, True, end
    for cluster in clusters:
        for resource in cluster.resources:
            assert resource.range.end is not None, "a resource has an end"
            yield resource.depth, False, resource.range.start
            yield resource.depth, True, resource.range.end


def _keys(counted: Counted, rules: Rules) -> Iterator[tuple[int, bool, bytes]]:
    """Keys without a separator, and any in what may be divided anywhere."""
    if counted.locks is None or counted.prefixes[0].locks:
        return
    divided = tuple(rules.divided)
    last = b""
    for key in counted.samples:
        if key.find(rules.separator, 1) < 0 or (divided and key.startswith(divided)):
            boundary = _short(key, last)
            inside = key.startswith(divided) and not boundary.startswith(divided) if divided else False
            if not inside:
                yield AT_A_KEY, False, boundary
        last = key


def _short(key: bytes, last: bytes) -> bytes:
    """The shortest beginning of `key` that is above `last`, and whole characters if `key` is."""
    for length in range(1, len(key)):
        if key[:length] > last and (length == len(key) or key[length] & 0xC0 != 0x80):
            return key[:length]
    return key
