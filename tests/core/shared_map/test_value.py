from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.shard_map import ShardMap
from esp.core.shared_map import MAX_MAP_BYTES, MapFormatError, decode, with_shards
from esp.core.shared_map.value import MAX_CHANGES, MAX_TEXT
from tests.core.shared_map.made import AT, MAP, after, made, nonce


def changed(**fields: Any) -> bytes:
    """The bytes of a map with other values in these fields."""
    return json.dumps({**json.loads(made().encode()), **fields}, sort_keys=True, separators=(",", ":")).encode()


boundaries = st.sets(st.binary(min_size=1, max_size=4).filter(lambda key: key[0] != 0), max_size=6)


@given(boundaries, st.data())
def test_a_map_is_what_was_written(cuts: set[bytes], data: st.DataObject) -> None:
    starts = [b"", *sorted(cuts)]
    owners = ["abc"[(place + data.draw(st.integers(0, 1))) % 3] for place in range(0, 2 * len(starts), 2)]
    pieces = [KeyRange(low, high) for low, high in zip(starts, [*starts[1:], None], strict=True)]
    shared = made(ShardMap.build(list(zip(owners, pieces, strict=True)), "abc"))
    assert decode(shared.encode()) == shared
    assert decode(shared.encode()).map.fingerprint == shared.map.fingerprint


def test_the_first_map_has_epoch_1_and_a_guard_for_each_shard() -> None:
    shared = made(ShardMap(MAP.names, 7, MAP.starts, MAP.owners))
    assert (shared.epoch, shared.anchor, shared.names) == (1, "a", ("a", "b", "c"))
    assert len(set(shared.guards.values())) == 3
    assert all(guard.startswith("1-") for guard in shared.guards.values())
    [change] = shared.changes
    assert (change.epoch, change.by, change.what, change.fingerprint) == (1, "root@here", "init", MAP.fingerprint)


def test_a_shard_that_owns_nothing_comes_and_goes_and_never_has_the_same_guard() -> None:
    before = made()
    with_d = after(before, "a", "b", "c", "d")
    assert (with_d.epoch, with_d.names) == (2, ("a", "b", "c", "d"))
    assert {name: with_d.guards[name] for name in "abc"} == before.guards
    without = after(with_d, "a", "b", "c")
    assert without.guards == before.guards
    again = after(without, "a", "b", "c", "d")
    assert again.guards["d"] not in (with_d.guards["d"], None)
    assert again.guards["d"].startswith("4-")
    assert [change.epoch for change in again.changes] == [1, 2, 3, 4]


def test_a_shard_with_keys_and_the_anchor_cannot_be_left_out() -> None:
    with pytest.raises(MapFormatError, match="has keys of shard b, so b cannot be left out"):
        after(made(), "a", "c")
    only_c = made(ShardMap.build([("c", KeyRange(b"", None))], "abc"))
    with pytest.raises(MapFormatError, match="is decided on by shard a, so a cannot be left out"):
        after(only_c, "b", "c")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "is nothing that esp has written"),
        (b'{"format":true}', "is nothing that esp has written"),
        (changed(format=2), "has format 2, and this esp knows format 1; use a newer esp"),
        (changed(more=1), "has other fields than a map"),
        (changed(epoch=0), "cannot be read: its epoch is none"),
        (changed(epoch=True), "cannot be read: its epoch is none"),
        (changed(epoch=2**60), "cannot be read: its epoch is none"),
        (changed(anchor="x"), "cannot be read: its anchor is no shard"),
        (changed(shards=[]), "cannot be read: a name is none"),
        (changed(shards=["a", "b", "c", ""]), "cannot be read: a name is none"),
        (changed(shards=["a", "a", "b", "c"]), "cannot be read: a shard comes twice"),
        (changed(guards={}), "cannot be read: its guards are not those of its shards"),
        (changed(guards={"a": "1-" + "0" * 32, "b": "2-" + "0" * 32, "c": "1-" + "1" * 32}), "a guard is none"),
        (changed(guards={"a": "1", "b": "1", "c": "1"}), "a guard is none"),
        (changed(guards=[["a", 1], ["b", 1], ["c", 1]]), "cannot be read: "),
        (changed(ranges=[]), "its ranges are not in order"),
        (changed(ranges=[["69", "a"]]), "its ranges are not in order"),
        (changed(ranges=[["", "a"], ["69", "b"], ["69", "c"]]), "its ranges are not in order"),
        (changed(ranges=[["", "a"], ["0069", "b"]]), "a boundary begins with a zero byte, as esp's own keys"),
        (changed(ranges=[["", "a"], ["zz", "b"]]), "cannot be read: "),
        (changed(ranges=[["", "a"], ["69", "d"]]), "an owner is no shard"),
        (changed(ranges=[["", "a"], ["69", "a"]]), "neighbours have one owner"),
        (changed(ranges=[["", "a", 1]]), "cannot be read: "),
        (changed(ranges=None), "cannot be read: "),
        (changed(changes=[]), "its changes are too many, or none"),
        (changed(changes=[{"epoch": 1}]), "cannot be read: "),
        (changed(epoch=2), "its last change is not its"),
        (changed(ranges=[["", "a"]]), "its last change is not its"),
        (made().encode() + b" ", "is not written as esp writes it"),
        (made().encode().replace(b'"a"', b'"\\u0061"'), "is not written as esp writes it"),
        (changed(ranges=[["", "a"], ["6B", "b"]]), "its last change is not its"),
        (b" " * (MAX_MAP_BYTES + 1), "has 262,145 bytes, and the most are 262,144"),
    ],
)
def test_bytes_that_are_no_map_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(MapFormatError) as error:
        decode(data)
    assert text in str(error.value)


@given(st.integers(0, 900), st.binary(min_size=1, max_size=3))
def test_no_other_bytes_are_a_map(place: int, other: bytes) -> None:
    good = made().encode()
    place %= len(good)
    data = good[:place] + other + good[place + len(other) :]
    try:
        found = decode(data)
    except MapFormatError as error:
        found, text = None, str(error)
        assert len(text) < 2 * MAX_TEXT
    assert found is None or found.encode() == data


def test_a_map_of_too_many_ranges_is_refused() -> None:
    starts = [b"", *(b"%06d" % number + b"/" * 40 for number in range(1, 2_700))]
    shared = made()
    large = ShardMap(MAP.names, 1, starts, ["ab"[place % 2] for place in range(len(starts))])
    with pytest.raises(MapFormatError, match=r"has 2\d\d,\d\d\d bytes, and the most are 262,144; join some ranges"):
        replace(shared, map=large).encode()


def test_old_changes_are_forgotten_by_number_and_where_the_map_would_be_too_large() -> None:
    shared = made()
    for _ in range(MAX_CHANGES + 3):
        shared = after(shared, "a", "b", "c")
    assert [change.epoch for change in shared.changes] == list(range(5, MAX_CHANGES + 5))
    starts = [b"", *(b"%06d" % number + b"/" * 40 for number in range(1, 2_560))]
    large = ShardMap(MAP.names, 1, starts, ["ab"[place % 2] for place in range(len(starts))])
    shared = made(large)
    for _ in range(MAX_CHANGES):
        shared = with_shards(shared, "abc", at=AT, by="b" * 999, what="w" * 999, nonce=nonce)
    assert 1 <= len(shared.changes) < MAX_CHANGES
    assert shared.changes[-1].epoch == shared.epoch
    assert len(shared.encode()) <= MAX_MAP_BYTES
