"""Which shard is to own what, and what has to move for that: a pure function of what was counted.

Usually the line of keys is cut into as many parts as there are shards (`parts`). Where a Kubernetes cluster has most,
its resources are dealt out instead: events and leases first, to a shard of their own, then each other resource that
matters, from the heaviest down, to the shard that has least. What is left stays with one shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Final

from esp.core.keys import KeyRange
from esp.core.plan.parts import choose, smallest
from esp.core.plan.places import AT_A_KEY, Place, Rules, places, whole_of
from esp.core.plan.resources import FIRST, Cluster, Resource, clusters
from esp.core.plan.tally import Counted
from esp.core.plan.weights import NOTHING, Measure, Weights
from esp.core.plan.whole import Whole
from esp.core.shard_map import ShardMap

EVEN: Final = 1.1
"""A largest part of so many fair shares is even: nothing better is looked for, nor anything moved."""
UNEVEN: Final = 1.25
"""Only if the largest part would be more than so many fair shares is a boundary laid at a key that ends no prefix."""
MOST: Final = 0.8
"""The share from which on a Kubernetes cluster decides how keys are divided."""
MATTERS: Final = 0.02
"""A resource with a lesser share stays where most are."""
_MUCH: Final = 10**9
_LITTLE: Final = 10**7


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for.

    Attributes:
        shards: the number of shards.
        measure: what is to be even.
        separator: the end of prefixes.
        depth: prefixes of this depth are not divided.
        kept: ranges that are not divided.
        divided: prefixes that may be divided anywhere.
        roots: directories in which the keys of a kube-apiserver may be.
    """

    shards: int
    measure: Measure
    separator: bytes
    depth: int
    kept: Sequence[KeyRange]
    divided: Sequence[bytes]
    roots: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Move:
    """Keys that go from one shard to another; `resource` is their name, if they are those of one resource."""

    range: KeyRange
    source: str
    target: str
    weights: Weights
    resource: str | None


@dataclass(frozen=True, slots=True)
class Proposal:
    """Which shard is to own what.

    Attributes:
        map: all shards, those of today first.
        weights: what each shard has, by its name.
        moves: in the order in which to make them.
        stays: today's map is even already, and is the one proposed.
        at_keys: boundaries that end no prefix: what is listed or watched together may lie on both sides.
        clusters: of Kubernetes.
        heaviest: what is not divided and has more than a fair share, if that keeps the parts from being even.
    """

    map: ShardMap
    weights: Mapping[str, Weights]
    moves: Sequence[Move]
    stays: bool
    at_keys: Sequence[bytes]
    clusters: Sequence[Cluster]
    heaviest: KeyRange | None


@dataclass(frozen=True, slots=True)
class _Group:
    """What one shard is to own.

    Attributes:
        ranges: its ranges.
        name: of the shard, if it is new.
        is_rest: it is what is not dealt out, and stays with the shard that has most of it.
    """

    ranges: Sequence[KeyRange]
    name: str = ""
    is_rest: bool = False


def propose(counted: Counted, wish: Wish, today: ShardMap) -> Proposal:
    """The proposal for what was counted; the same for the same."""
    found = clusters(counted.prefixes, wish.roots)
    rules = Rules(wish.separator, wish.depth, wish.divided, whole_of(counted, found, wish.roots, wish.kept))
    total = counted.curve.total.of(wish.measure)
    fair = total / wish.shards
    now = weights_of(counted, today)
    great = next((one for one in found if one.weights.of(wish.measure) >= MOST * total), None)
    possible = places(counted, found, rules)
    all_ = counted.curve.total
    groups = _dealt_out(great, counted, wish, rules.whole) if great is not None else _cut(possible, wish, all_)
    wanted = _named(groups, counted, wish.measure, today)
    then = weights_of(counted, wanted)
    divides = any(rules.whole.divided_by(start) is not None for start in today.starts)
    largest_now = max(one.of(wish.measure) for one in now.values())
    largest = max(one.of(wish.measure) for one in then.values())
    stays = len(today.names) == wish.shards and not divides and largest_now <= max(EVEN * fair, largest)
    chosen = today if stays else wanted
    ranks = {place.boundary: place.rank for place in possible}
    return Proposal(
        chosen,
        now if stays else then,
        () if stays else _moves(counted, wish.measure, today, wanted, found),
        stays,
        [] if stays else [start for start in wanted.starts if ranks.get(start) == AT_A_KEY],
        found,
        _heaviest(counted, wish.measure, possible, fair) if largest > UNEVEN * fair else None,
    )


def weights_of(counted: Counted, shard_map: ShardMap) -> dict[str, Weights]:
    """What each shard of a map has, by its name."""
    found = dict.fromkeys(shard_map.names, NOTHING)
    for segment in shard_map.split(KeyRange(b"", None)):
        one, more = found[segment.shard], counted.curve.within(segment.range)
        found[segment.shard] = Weights(one[0] + more[0], one[1] + more[1], one[2] + more[2])
    return found


def _cut(possible: Sequence[Place], wish: Wish, total: Weights) -> list[_Group]:
    """The line of keys in parts, one after the other."""
    taken = [place for place in possible if place.rank < AT_A_KEY]
    numbers = _numbers(taken, wish.measure, total)
    fair = numbers[-1] / wish.shards
    tolerated = EVEN * fair
    if smallest(numbers, wish.shards) > UNEVEN * fair:
        anywhere = _numbers(possible, wish.measure, total)
        if smallest(anywhere, wish.shards) < smallest(numbers, wish.shards) / EVEN:
            taken, numbers, tolerated = list(possible), anywhere, UNEVEN * fair
    ranks = [0, *(place.rank for place in taken), 0]
    edges = [b"", *(taken[number - 1].boundary for number in choose(numbers, ranks, wish.shards, tolerated))]
    return [_Group([KeyRange(start, end)]) for start, end in pairwise([*edges, None]) if start is not None]


def _numbers(possible: Iterable[Place], measure: Measure, total: Weights) -> list[int]:
    """What lies before each place, and all of it: by the measure, and a little by the others, which decide ties."""

    def number(weights: Weights) -> int:
        found = 0
        for one in Measure:
            of = total.of(one)
            found += (_MUCH if one is measure else _LITTLE) * weights.of(one) // of if of else 0
        return found

    return [0, *(number(place.before) for place in possible), number(total)]


def _dealt_out(cluster: Cluster, counted: Counted, wish: Wish, whole: Whole) -> list[_Group]:
    """The resources of a Kubernetes cluster, dealt out; the first group has all that is not."""
    total = counted.curve.total.of(wish.measure)
    undivided = frozenset(whole.ranges)  # a resource that lies in another range is not dealt out by itself
    weights = {
        one: counted.curve.within(one.range).of(wish.measure) for one in cluster.resources if one.range in undivided
    }
    first = [one for one in weights if one.name in FIRST]
    others = [one for one, weight in weights.items() if one.name not in FIRST and weight >= MATTERS * total]
    others.sort(key=lambda one: (-weights[one], one.name))
    loads = [total - sum(weights[one] for one in [*first, *others]), *[0] * (wish.shards - 1)]
    taken: list[list[Resource]] = [[] for _ in loads]
    for resource in [*first, *others]:
        group = min(range(len(loads)), key=lambda number: (loads[number], number == 0, number))
        if resource in first:
            group = min(1, wish.shards - 1)
        loads[group] += weights[resource]
        taken[group].append(resource)
    groups = [
        _Group([one.range for one in sorted(some, key=lambda one: one.range.start)], some[0].name.replace("/", "-"))
        for some in taken[1:]
        if some
    ]
    rest = [KeyRange(b"", None)]
    for one in (one for group in groups for one in group.ranges):
        rest = [part for piece in rest for part in piece.without(one)]
    return [_Group(rest, is_rest=True), *groups]


def _named(groups: Sequence[_Group], counted: Counted, measure: Measure, today: ShardMap) -> ShardMap:
    """A map in which each group belongs to the shard that has most of it today, or else to a new one.

    Each shard gets one group at most: the heaviest that they have in common decides first.
    """
    overlaps = []
    for number, group in enumerate(groups):
        for place, shard in enumerate(today.names):
            parts = (one.intersect(own) for one in group.ranges for own in today.ranges_of(shard))
            common = sum(counted.curve.within(part).of(measure) for part in parts if part is not None)
            overlaps.append((not group.is_rest, -common, number, place))
    names: dict[int, str] = {}
    for _, _, number, place in sorted(overlaps):
        if number not in names and today.names[place] not in names.values():
            names[number] = today.names[place]
    known = list(today.names)
    for number, group in enumerate(groups):
        if number not in names:
            names[number] = group.name if group.name and group.name not in known else _free_name(known)
            known.append(names[number])
    ranges = [(names[number], one) for number, group in enumerate(groups) for one in group.ranges]
    used = set(names.values())
    return ShardMap.build(ranges, [name for name in known if name in used])


def _free_name(known: Sequence[str]) -> str:
    return next(name for name in (f"shard-{number}" for number in count(1)) if name not in known)


def _moves(
    counted: Counted, measure: Measure, today: ShardMap, wanted: ShardMap, found: Sequence[Cluster]
) -> list[Move]:
    """What has to move: first resources of Kubernetes (events, leases, then from the heaviest down), then by key."""
    names = {one.range: one.name for cluster in found for one in cluster.resources}
    pieces: list[tuple[KeyRange, str, str]] = []
    for segment in wanted.split(KeyRange(b"", None)):
        for part in today.split(segment.range):
            last = pieces[-1] if pieces else None
            if last is not None and last[0].end == part.range.start and last[1:] == (part.shard, segment.shard):
                pieces[-1] = (KeyRange(last[0].start, part.range.end), *last[1:])
            elif part.shard != segment.shard:
                pieces.append((part.range, part.shard, segment.shard))
    moves = [Move(one, source, target, counted.curve.within(one), names.get(one)) for one, source, target in pieces]

    def order(move: Move) -> tuple[bool, int, int, bytes]:
        if move.resource is None:
            return True, 0, 0, move.range.start
        first = FIRST.index(move.resource) if move.resource in FIRST else len(FIRST)
        return False, first, -move.weights.of(measure), move.range.start

    return sorted(moves, key=order)


def _heaviest(counted: Counted, measure: Measure, possible: Sequence[Place], fair: float) -> KeyRange | None:
    """The heaviest piece between two places, if it has more than a fair share."""
    edges = [b"", *(place.boundary for place in possible), None]
    pieces = [KeyRange(start, end) for start, end in pairwise(edges) if start is not None]
    heaviest = max(pieces, key=lambda piece: counted.curve.within(piece).of(measure))
    return heaviest if counted.curve.within(heaviest).of(measure) > fair else None
