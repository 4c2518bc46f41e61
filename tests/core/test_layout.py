"""A layout: what it finds, what two of them have in common, and vectors over the shards of another."""

from __future__ import annotations

import pytest

from esp.core.background import Background
from esp.core.config import Endpoint
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.shard import Shard
from esp.core.shard_map import Segment, ShardMap
from esp.core.tokens import Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits

CONTEXT = WireContext(Limits())
SHARDS = {name: Shard(name, [Endpoint("h", 1)], CONTEXT, Background()) for name in ("a", "b", "c")}


def layout(*owned: tuple[bytes, str], shards: dict[str, Shard] = SHARDS) -> Layout:
    """Each shard owns the keys from a start to the next."""
    ends = [*(start for start, _ in owned[1:]), None]
    ranges = [(name, KeyRange(start, end)) for (start, name), end in zip(owned, ends, strict=True)]
    return Layout.of(ShardMap.build(ranges, list(dict.fromkeys(name for _, name in owned))), shards.values())


TWO = layout((b"", "a"), (b"m", "b"))
THREE = layout((b"", "a"), (b"m", "b"), (b"t", "c"))


def test_a_layout_has_the_shards_of_its_map_in_the_order_of_the_map_and_nothing_can_change_it() -> None:
    assert list(layout((b"", "c"), (b"m", "a")).shards.values()) == [SHARDS["c"], SHARDS["a"]]
    with pytest.raises(TypeError):
        TWO.shards["c"] = SHARDS["c"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        TWO.map = THREE.map  # type: ignore[misc]


def test_owners_of_keys_and_ranges() -> None:
    assert THREE.owner(b"n") is SHARDS["b"]
    assert THREE.sole_owner(b"n", b"t") is SHARDS["b"]
    assert THREE.sole_owner(b"n", b"u") is None
    assert THREE.segments(KeyRange(b"s", b"u")) == [
        Segment("b", KeyRange(b"s", b"t")),
        Segment("c", KeyRange(b"t", b"u")),
    ]
    assert THREE.segments(KeyRange(b"n", b"n")) == [Segment("b", KeyRange(b"n", b"n"))], "somebody has to answer"


def test_two_layouts_divide_a_range_alike_if_the_same_clients_own_the_same_parts() -> None:
    assert TWO.divides_alike(KeyRange(b"a", b"t"), THREE)
    assert not TWO.divides_alike(KeyRange(b"a", b"u"), THREE)
    assert not TWO.divides_alike(KeyRange(b"x", b"y"), THREE)
    moved = layout((b"", "a"), (b"l", "b"))
    assert not TWO.divides_alike(KeyRange(b"a", b"z"), moved), "the same shards, but not the same parts"
    elsewhere = layout((b"", "a"), (b"m", "b"), shards=SHARDS | {"b": Shard("b", [], CONTEXT, Background())})
    assert TWO.divides_alike(KeyRange(b"a", b"m"), elsewhere)
    assert not TWO.divides_alike(KeyRange(b"a", b"n"), elsewhere), "the same name, but another cluster"


def test_vectors_name_their_shards_and_leave_none_out() -> None:
    assert THREE.vector({"c": 7, "a": 5}) == Vector(("a", "b", "c"), (5, 0, 7))
    assert TWO.vector({"a": 5, "b": 6}).shards is TWO.map.names, "of which all vectors of a layout share one"
    assert TWO.vector({"c": 7, "a": 5}) == Vector(("c", "a"), (7, 5)), "the third has left since it was asked"
