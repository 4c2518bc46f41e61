from __future__ import annotations

import json
from dataclasses import replace

import pytest

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard_map import ShardMap
from esp.core.shared_map import (
    GUARD_KEY,
    MAP_KEY,
    NEXT_KEY,
    DisagreeError,
    Held,
    MapFormatError,
    Next,
    SharedMap,
    decode_next,
    newest,
    steps,
)
from esp.core.shared_map.change import decision, transaction
from esp.core.shared_map.reading import held_in
from esp.core.wire.status import Code, Status
from tests.core.shared_map.made import after, made

HEADER = rpc_pb2.ResponseHeader(cluster_id=7)
SILENT = Status(Code.UNAVAILABLE, "etcdserver: no leader")


def told(change: Next) -> list[str]:
    return [f"{step.kind} {step.shard}" for step in steps(change)]


def held(shared: SharedMap, name: str, change: Next | None = None) -> Held:
    return Held(shared.guards[name], shared, change, shared.encode())


def all_hold(shared: SharedMap) -> dict[str, Held | Status]:
    return {name: held(shared, name) for name in shared.names}


def test_the_steps_of_a_change_end_on_the_anchor() -> None:
    shared = made()
    assert told(Next(None, shared)) == ["admit a", "admit b", "admit c", "finish a"]
    with_d = after(shared, "a", "b", "c", "d")
    assert told(Next(shared, with_d)) == ["admit d", "tell b", "tell c", "finish a"]
    assert told(Next(with_d, after(with_d, "a", "b", "c"))) == ["dismiss d", "tell b", "tell c", "finish a"]


def test_a_change_is_what_was_written() -> None:
    shared = made()
    for change in (Next(None, shared), Next(shared, after(shared, "a", "b", "c", "d"))):
        assert decode_next(change.encode()) == change


def test_a_change_that_this_esp_cannot_carry_out_is_refused() -> None:
    shared = made()
    following = after(shared, "a", "b", "c", "d")
    moved = ShardMap(following.names, 2, [b"", b"s"], ["a", "c"])
    last = following.changes[-1]
    with_move = replace(following, map=moved, changes=(*shared.changes, replace(last, fingerprint=moved.fingerprint)))
    new_guard = replace(following, guards={**following.guards, "a": following.guards["d"]})
    for change in (
        Next(shared, with_move),
        Next(shared, new_guard),
        Next(shared, replace(following, anchor="b")),
        Next(shared, after(following, "a", "b", "c")),
        Next(None, following),
    ):
        with pytest.raises(MapFormatError, match="is a change that this esp cannot carry out; use a newer esp"):
            decode_next(change.encode())


def test_bytes_that_are_no_change_are_refused() -> None:
    good = Next(None, made()).encode()
    for data in (b"", b"{}", good + b" ", good[:-1], json.dumps({**json.loads(good), "to": 3}).encode()):
        with pytest.raises(MapFormatError):
            decode_next(data)


def test_a_decision_compares_the_map_before_and_that_nothing_else_is_decided() -> None:
    shared = made()
    request = decision(Next(None, shared))
    assert [(one.key, one.target, one.create_revision) for one in request.compare] == [
        (key, rpc_pb2.Compare.CREATE, 0) for key in (GUARD_KEY, MAP_KEY, NEXT_KEY)
    ]
    change = Next(shared, after(shared, "a", "b", "c", "d"))
    request = decision(change)
    assert [(one.key, one.value) for one in request.compare] == [
        (GUARD_KEY, shared.guards["a"].encode()),
        (MAP_KEY, shared.encode()),
        (NEXT_KEY, b""),
    ]
    assert [operation.request_put.value for operation in request.success] == [change.encode()]


def test_each_step_compares_the_guard() -> None:
    shared = made()
    with_d = after(shared, "a", "b", "c", "d")
    for change in (Next(None, shared), Next(shared, with_d), Next(with_d, after(with_d, "a", "b", "c"))):
        for step in steps(change):
            request = transaction(change, step, b"old")
            assert request.compare[0].key == GUARD_KEY
            assert request.compare[0].result == rpc_pb2.Compare.EQUAL


def test_what_a_shard_holds_is_read_as_far_as_it_can_be_read() -> None:
    shared = made()
    change = Next(shared, after(shared, "a", "b", "c", "d"))
    keys = {GUARD_KEY: b"1-ab", MAP_KEY: shared.encode(), NEXT_KEY: change.encode(), b"\0esp/more": b"x"}
    pairs = [kv_pb2.KeyValue(key=key, value=value) for key, value in keys.items()]
    assert held_in(pairs, HEADER) == Held("1-ab", shared, change, shared.encode(), (), 7)
    assert held_in([], HEADER).is_empty
    broken = [kv_pb2.KeyValue(key=key, value=b"{") for key in (GUARD_KEY, MAP_KEY, NEXT_KEY)]
    assert held_in(broken, HEADER) == Held("{", None, None, b"{", ("its map is no JSON", "its next map is no JSON"), 7)


def test_the_map_of_the_highest_epoch_is_in_force_whoever_is_silent() -> None:
    old = made()
    new = after(old, "a", "b", "c", "d")
    assert newest({}) is None
    assert newest({"a": SILENT, "b": held_in([], HEADER)}) is None
    everywhere = newest(all_hold(new))
    assert everywhere is not None
    assert (everywhere.map, everywhere.behind, everywhere.unfenced, everywhere.silent) == (new, (), (), {})
    change = Next(old, new)
    mixed = newest(
        {"a": held(old, "a", change), "b": SILENT, "c": held_in([], HEADER), "d": held(new, "d"), "x": SILENT}
    )
    assert mixed is not None
    assert (mixed.map, mixed.change, mixed.behind, mixed.unfenced) == (new, change, ("a", "c"), ("c",))
    assert mixed.silent == {"b": "etcdserver: no leader"}
    garbled = Held(new.guards["c"], None, None, b"{", ("its map is no JSON",))
    assert newest({"b": held(new, "b"), "c": garbled}) is not None


def test_different_maps_of_one_epoch_are_refused() -> None:
    one, other = made(), made()
    with pytest.raises(DisagreeError, match="shards a and b hold different maps of epoch 1"):
        newest({"a": held(one, "a"), "b": held(other, "b")})
    later = after(one, "a", "b", "c")
    found = newest({"a": held(later, "a"), "b": held(other, "b")})
    assert found is not None
    assert found.unfenced == ("b",)
