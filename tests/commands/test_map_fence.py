"""`esp map fence` and `esp map remove` on real shards that hold a map."""
# ruff: noqa: F401, F811 - fixtures

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.shared_map import GUARD_KEY, MAP_KEY, NEXT_KEY, Next, SharedMap, decode, with_new_guards
from tests.commands.test_map import MAP, config, kvs, map_of, run, run_esp, value_of, write_shards
from tests.core.shared_map.made import after
from tests.harness import frozen
from tests.stubs import rpc_pb2_grpc

Run = Callable[..., tuple[int, str, str]]
Stub = rpc_pb2_grpc.KVStub


def held(stub: Stub) -> dict[bytes, bytes]:
    return {pair.key: pair.value for pair in stub.Range(rpc_pb2.RangeRequest(key=MAP, range_end=b"\0esp0")).kvs}


def restore(stub: Stub, backup: dict[bytes, bytes]) -> None:
    """As far as esp's own keys go."""
    stub.DeleteRange(rpc_pb2.DeleteRangeRequest(key=MAP, range_end=b"\0esp0"))
    for key, value in backup.items():
        stub.Put(rpc_pb2.PutRequest(key=key, value=value))


@pytest.fixture
def first(run: Run, kvs: list[Stub]) -> SharedMap:
    assert run("init", "--yes")[0] == 0
    return map_of(kvs[0])


def is_whole(run: Run, kvs: list[Stub]) -> SharedMap:
    assert run("show")[0] == 0
    return map_of(kvs[0])


def test_a_restored_shard_gets_a_new_guard(run: Run, kvs: list[Stub], first: SharedMap) -> None:
    code, out, err = run("fence", "s1", "--yes")
    assert (code, err) == (0, "")
    now = is_whole(run, kvs)
    assert out == (
        "From epoch 1 to 2: new guards for s1: s1 restored. No keys move.\n"
        "shard s1 has got the map and a new guard\n"
        "shard s2 has got the map\n"
        "shard s0 has noted that the change is carried out\n"
        f"The map is now of epoch 2, fingerprint {now.map.fingerprint}.\n"
    )
    assert [name for name in now.names if now.guards[name] != first.guards[name]] == ["s1"]
    # That was with the guard of the backup. Now with an older one, and with none at all.
    restore(kvs[1], {GUARD_KEY: first.guards["s1"].encode(), MAP_KEY: first.encode()})
    code, _, err = run("show")
    assert code == 1
    assert "s1 has not the guard of this map: data was lost there, or restored from a backup (see esp map fence)" in err
    assert run("fence", "s1", "--yes")[0] == 0
    assert is_whole(run, kvs).epoch == 3
    restore(kvs[1], {})
    told = json.loads(run("fence", "s1", "--yes", "-o", "json")[1])
    assert [(one["step"], one["shard"]) for one in told["steps"]] == [
        ("fence", "s1"),
        ("tell", "s2"),
        ("finish", "s0"),
    ]
    assert is_whole(run, kvs).epoch == told["epoch"] == 4


def test_with_the_anchor_all_get_new_guards(run: Run, kvs: list[Stub], first: SharedMap) -> None:
    backup = held(kvs[0])
    old = Next(first, after(first, "s0", "s1", "s2"))
    assert run("fence", "s2", "--yes")[0] == 0
    second = map_of(kvs[1])
    restore(kvs[0], backup | {NEXT_KEY: old.encode()})  # made in the midst of a change
    code, out, err = run("fence", "s0", "--yes")
    assert (code, err) == (0, "")
    assert "From epoch 2 to 3: new guards for s0, s1, s2: s0 restored. No keys move.\n" in out
    now = is_whole(run, kvs)
    assert not set(now.guards.values()) & set(second.guards.values())
    assert value_of(kvs[0], NEXT_KEY) is None
    restore(kvs[0], {})  # all its data is lost
    assert run("fence", "s0", "--yes")[0] == 0
    assert is_whole(run, kvs).epoch == 4


def test_a_backup_of_a_time_that_is_forgotten(run: Run, kvs: list[Stub], first: SharedMap) -> None:
    old = [held(stub) for stub in kvs]
    for _ in range(3):
        assert run("fence", "s0", "--yes")[0] == 0
    forgotten = held(kvs[0])
    for stub, backup in zip(kvs, old, strict=True):
        restore(stub, backup)
    assert run("fence", "s0", "s1", "s2", "--yes")[0] == 0
    assert is_whole(run, kvs).epoch == 2
    restore(kvs[0], forgotten)  # of epoch 4
    assert run("fence", "s0", "--yes")[0] == 0
    assert is_whole(run, kvs).epoch == 5


def test_all_shards_are_restored(run: Run, kvs: list[Stub], first: SharedMap) -> None:
    backups = [held(stub) for stub in kvs]
    assert run("fence", "s1", "--yes")[0] == 0
    for stub, backup in zip(kvs, backups, strict=True):
        restore(stub, backup)
    assert run("fence", "s0", "s1", "s2", "--yes")[0] == 0
    now = is_whole(run, kvs)
    assert now.epoch == 2
    assert not set(now.guards.values()) & set(first.guards.values())


def test_a_fence_that_is_half_done_is_gone_on_with(run: Run, kvs: list[Stub], first: SharedMap) -> None:
    for names in (["s1"], ["s0"]):
        before = [held(stub) for stub in kvs]
        assert run("fence", *names, "--yes")[0] == 0
        now = map_of(kvs[0])
        change = Next(json_map(before[0]), now, restored=tuple(names))
        for command in (["fence", *names], ["finish"]):
            for number in range(3):  # so many steps were done
                for one, (stub, backup) in enumerate(zip(kvs, before, strict=True)):
                    restore(stub, backup if one >= number or one == 0 else {**backup, **of(now, one)})
                kvs[0].Put(rpc_pb2.PutRequest(key=NEXT_KEY, value=change.encode()))
                code, _, err = run(*command)
                assert (code, err) == (0, ""), (names, command, number)
                assert is_whole(run, kvs) == now


def json_map(values: dict[bytes, bytes]) -> SharedMap:
    return decode(values[MAP_KEY])


def of(shared: SharedMap, number: int) -> dict[bytes, bytes]:
    return {GUARD_KEY: shared.guards[f"s{number}"].encode(), MAP_KEY: shared.encode()}


def test_what_a_fence_refuses(
    run: Run,
    kvs: list[Stub],
    first: SharedMap,
    empty_shards: list[LocalEtcd],
) -> None:
    assert run("fence", "x", "--yes") == (2, "", "esp: the config names no shard x\n")
    code, _, err = run("fence", "s1")
    assert (code, err) == (2, "esp: nothing is done without a yes; to do it without a question, add --yes\n")
    restore(kvs[2], {})
    code, _, err = run("fence", "s1", "--yes")
    assert (code, err) == (
        1,
        "esp: shard s2 has not the guard of the map, so it was restored too, and has to be named as well\n",
    )
    code, _, err = run("fence", "s0", "--yes")
    assert code == 1
    assert "or a change of the map was half done when shard s0, which decides on changes, was lost" in err
    assert run("fence", "s1", "s2", "--yes")[0] == 0
    now = map_of(kvs[0])
    kvs[0].Put(rpc_pb2.PutRequest(key=NEXT_KEY, value=Next(now, after(now, "s0", "s1", "s2")).encode()))
    code, _, err = run("fence", "s1", "--yes")
    assert (code, err) == (1, "esp: a change of the map is half done; esp map finish carries it out\n")
    assert run("finish")[0] == 0
    with frozen(empty_shards[2]):
        code, _, err = run("fence", "s0", "--yes")
        assert code == 1
        assert "shard s2 has to tell what it holds, and does not: " in err
    assert is_whole(run, kvs).epoch == 3


def test_a_shard_without_its_guard_holds_up_no_change_and_gets_one_afterwards(
    run: Run,
    kvs: list[Stub],
    first: SharedMap,
) -> None:
    following = after(first, "s0", "s1", "s2")
    kvs[0].Put(rpc_pb2.PutRequest(key=NEXT_KEY, value=Next(first, following).encode()))
    restore(kvs[1], {GUARD_KEY: b"1-00"})
    code, _, err = run("finish")
    assert code == 1
    assert "esp: shard s1 is not told (holds no map with the guard 1-00, which is another one than this change" in err
    assert held(kvs[1]) == {GUARD_KEY: b"1-00"}
    assert run("fence", "s1", "--yes")[0] == 0
    assert is_whole(run, kvs).epoch == 3


def test_the_map_is_taken_away(run: Run, kvs: list[Stub], first: SharedMap) -> None:
    code, out, err = run("remove", "--yes")
    assert (code, err) == (0, "")
    assert out == (
        "The map of epoch 1 is taken from the shards. Its ranges, for the configs of the proxies:\n"
        "SHARD  KEYS\n"
        's0     ["", "i")\n'
        's1     ["i", "r")\n'
        's2     ["r", end)\n'
        "A proxy that serves by the map refuses all calls from then on. Stop it first, and start it with map: file.\n"
        "shard s1 has no map any more\n"
        "shard s2 has no map any more\n"
        "shard s1 has no guard any more\n"
        "shard s2 has no guard any more\n"
        "shard s0 has no map and no guard any more\n"
        "The map is taken from 3 shards.\n"
    )
    assert all(held(stub) == {} for stub in kvs)
    assert run("remove", "--yes") == (1, "", "esp: the shards hold no map; esp map init puts the first one there\n")
    assert run("init", "--yes")[0] == 0
    assert is_whole(run, kvs).epoch == 1


def test_a_removal_that_is_half_done_is_gone_on_with(run: Run, kvs: list[Stub], first: SharedMap) -> None:
    ended = with_new_guards(first, (), at="2026-11-30T16:00:00Z", by="root@here", what="taken")
    change = Next(first, ended, removes=True)
    backups = [held(stub) for stub in kvs]
    without_map = [{GUARD_KEY: backup[GUARD_KEY]} for backup in backups]
    steps: list[list[dict[bytes, bytes]]] = [
        [backups[1], backups[2]],
        [without_map[1], backups[2]],
        [without_map[1], without_map[2]],
        [{}, without_map[2]],
        [{}, {}],
    ]
    for states in steps:
        for command in ("finish", "remove"):
            restore(kvs[0], backups[0] | {NEXT_KEY: change.encode()})
            for stub, state in zip(kvs[1:], states, strict=True):
                restore(stub, state)
            code, out, err = run(command)
            assert (code, err) == (0, "")
            assert out.endswith("The map is taken from 3 shards.\n")
            assert all(held(stub) == {} for stub in kvs)


def test_what_a_removal_refuses(
    run: Run,
    kvs: list[Stub],
    first: SharedMap,
    tmp_path: Path,
    empty_shards: list[LocalEtcd],
) -> None:
    code, _, err = run("remove")
    assert (code, err) == (2, "esp: nothing is done without a yes; to do it without a question, add --yes\n")
    two = write_shards(tmp_path / "two.yaml", {"s0": empty_shards[0], "s1": empty_shards[1]})
    code, _, err = run_esp("remove", "--yes", "-c", str(two))
    assert (code, err) == (1, "esp: the map names shard s2, and the config does not; it would keep its guard\n")
    restore(kvs[2], {})
    code, _, err = run("remove", "--yes")
    assert code == 1
    assert "s2 has not the guard of this map" in err
    assert value_of(kvs[0], NEXT_KEY) is None
