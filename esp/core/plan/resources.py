"""The resources of Kubernetes among the prefixes that were counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from typing import Final, NamedTuple

from esp.core.keys import KeyRange
from esp.core.kubernetes import built_in, is_listed, resource_below
from esp.core.plan.tally import Prefix
from esp.core.plan.weights import Weights

FEW: Final = 2
MANY: Final = 8
"""Built-in resources that are the sign of a kube-apiserver: below a directory where one is expected, and elsewhere."""
DEEPEST: Final = 2
"""The depth at which a directory is looked for."""
FIRST: Final = ("events", "leases")
"""The resources that go to a shard of their own first: written most, and nothing is lost with their history."""


class Resource(NamedTuple):
    """A resource of which there are objects.

    Attributes:
        name: as the config's `{kubernetes: NAME}` takes it.
        range: its keys, its own key included.
        weights: its objects.
        depth: of the prefix of its objects.
    """

    name: str
    range: KeyRange
    weights: Weights
    depth: int


class Cluster(NamedTuple):
    """The keys of a kube-apiserver.

    Attributes:
        root: the directory.
        weights: all below it.
        resources: in key order.
    """

    root: bytes
    weights: Weights
    resources: Sequence[Resource]

    @property
    def whole(self) -> list[KeyRange]:
        """The resources, those without objects too."""
        return [*built_in(self.root), *(one.range for one in self.resources)]


def clusters(prefixes: Sequence[Prefix], expected: Iterable[bytes]) -> list[Cluster]:
    """The clusters whose keys are there; `expected` are directories in which an apiserver's keys may be."""
    expected = frozenset(expected)
    found = []
    for place, root in enumerate(prefixes):
        if not 0 < root.depth <= DEEPEST or root.prefix[-1:] != b"/":
            continue
        below = _below(prefixes, place)
        listed = sum(is_listed(root.prefix, one.prefix) for one in below)
        if listed >= (FEW if root.prefix in expected else MANY):
            found.append(Cluster(root.prefix, root.weights, _resources(root.prefix, below)))
    return found


def _below(prefixes: Sequence[Prefix], place: int) -> list[Prefix]:
    """The prefix at this place, and those within it."""
    root = prefixes[place].prefix
    return list(takewhile(lambda one: one.prefix.startswith(root), islice(prefixes, place, None)))


def _resources(root: bytes, below: Iterable[Prefix]) -> list[Resource]:
    found = []
    for one in below:
        name = resource_below(root, one.prefix)
        if name is not None:
            key = one.prefix[:-1]
            found.append(Resource(name, KeyRange(key, key + b"0"), one.weights, one.depth))
    return found
