"""The map on the shards: put there, read, changed, gone on with by others, on real etcds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest

from esp.core import shared_map
from esp.core.config import load
from esp.core.connected_shards import connected
from esp.core.keys import KeyRange
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.shared_map import (
    GUARD_KEY,
    MAP_KEY,
    NEXT_KEY,
    ChangeError,
    Held,
    How,
    Next,
    SharedMap,
    Told,
    carry_out,
    decide,
    newest,
    read,
    steps,
)
from esp.core.shared_map import writing as writing_module
from esp.core.wire.status import Status
from tests.core.shared_map.made import after
from tests.harness import connect, frozen, write_config
from tests.stubs import rpc_pb2_grpc

Shards = Mapping[str, Shard]
Work = Callable[[Shards], Awaitable[None]]
AT = "2026-11-30T16:00:00Z"


@pytest.fixture
def config(tmp_path: Path, empty_shards: list[LocalEtcd]) -> Path:
    return write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])


def first_of(config: Path) -> SharedMap:
    return shared_map.first(load(config).shard_map, at=AT, by="root@here", what="init")


def run(config: Path, work: Work) -> None:
    async def main() -> None:
        async with connected(load(config)) as shards:
            await work(shards)

    asyncio.run(main())


async def done(change: Next, shards: Shards, most: int = 99) -> list[tuple[str, str, How]]:
    """Carries out the first steps of a change."""
    found: list[tuple[str, str, How]] = []
    async with aclosing(carry_out(change, shards)) as outcomes:
        async for outcome in outcomes:
            found.append((outcome.step.kind.value, outcome.step.shard, outcome.how))
            if len(found) == most:
                break
    return found


async def told(shards: Shards) -> Told:
    found = newest(await read(shards.values(), 5))
    assert found is not None
    return found


async def is_whole(shards: Shards, shared: SharedMap) -> None:
    now = await told(shards)
    assert (now.map, now.change, now.behind, now.unfenced, now.silent) == (shared, None, (), (), {})


def kv(etcd: LocalEtcd) -> tuple[grpc.Channel, rpc_pb2_grpc.KVStub]:
    channel = connect(etcd)
    return channel, rpc_pb2_grpc.KVStub(channel)


def values(etcd: LocalEtcd) -> dict[bytes, bytes]:
    channel, stub = kv(etcd)
    with channel:
        return {pair.key: pair.value for pair in stub.Range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\1")).kvs}


def test_the_first_map_is_put_on_every_shard(config: Path, empty_shards: list[LocalEtcd]) -> None:
    shared = first_of(config)
    change = Next(None, shared)

    async def work(shards: Shards) -> None:
        assert newest(await read(shards.values(), 5)) is None
        await decide(shards["s0"], change)
        assert await done(change, shards) == [
            ("admit", "s0", How.DONE),
            ("admit", "s1", How.DONE),
            ("admit", "s2", How.DONE),
            ("finish", "s0", How.DONE),
        ]
        await is_whole(shards, shared)
        assert {how for _, _, how in await done(change, shards)} == {How.ALREADY}

    run(config, work)
    for number, etcd in enumerate(empty_shards):
        assert values(etcd) == {GUARD_KEY: shared.guards[f"s{number}"].encode(), MAP_KEY: shared.encode()}


def test_whoever_comes_goes_on_wherever_a_change_was_left(config: Path, empty_shards: list[LocalEtcd]) -> None:
    shared = first_of(config)

    async def work(shards: Shards) -> None:
        before: SharedMap | None = None
        following = shared
        for most in range(1, 9):  # each change is left after one step more
            change = Next(before, following)
            await decide(shards["s0"], change)
            most %= len(list(steps(change)))
            if most:
                await done(change, shards, most)
            held = (await read([shards["s0"]], 5))["s0"]
            assert isinstance(held, Held)
            assert held.next == change  # of this the other has read all that it knows
            assert held.next is not change
            await done(held.next, shards)
            await is_whole(shards, following)
            before, following = following, after(following, "s0", "s1", "s2")

    run(config, work)
    assert all(NEXT_KEY not in values(etcd) for etcd in empty_shards)


def test_one_change_is_decided_whoever_tries_at_once(config: Path) -> None:
    shared = first_of(config)

    async def work(shards: Shards) -> None:
        changes = [Next(None, first_of(config)) for _ in range(8)]
        outcomes = await asyncio.gather(*(decide(shards["s0"], one) for one in changes), return_exceptions=True)
        [won] = [change for change, outcome in zip(changes, outcomes, strict=True) if outcome is None]
        texts = {str(outcome) for outcome in outcomes if outcome is not None}
        assert texts == {"another change is decided and not carried out yet; esp map finish carries it out"}
        await asyncio.gather(*(done(won, shards) for _ in range(4)))
        await is_whole(shards, won.after)
        with pytest.raises(ChangeError, match="shard s0 holds the map of epoch 1 by now; look again"):
            await decide(shards["s0"], Next(None, shared))
        following = Next(won.after, after(won.after, "s0", "s1", "s2"))
        await decide(shards["s0"], following)
        await decide(shards["s0"], following)  # the same: its answer may have been lost
        await done(following, shards)
        with pytest.raises(ChangeError, match="shard s0 holds the map of epoch 2 by now; look again"):
            await decide(shards["s0"], following)

    run(config, work)


def test_a_shard_is_added_and_left_out(config: Path) -> None:
    async def work(shards: Shards) -> None:
        owners = ShardMap.build([("s0", KeyRange(b"", None))], ("s0", "s1"))
        two = shared_map.first(owners, at=AT, by="root@here", what="init")
        change = Next(None, two)
        await decide(shards["s0"], change)
        await done(change, {name: shards[name] for name in two.names})
        three = after(two, "s0", "s1", "s2")
        change = Next(two, three)
        await decide(shards["s0"], change)
        with pytest.raises(
            ChangeError, match="the change needs shard s2, which is not reached: the config does not name it"
        ):
            await done(change, {name: shards[name] for name in two.names})
        assert await done(change, {name: shards[name] for name in ("s0", "s2")}) == [
            ("admit", "s2", How.DONE),
            ("tell", "s1", How.WAITS),
            ("finish", "s0", How.DONE),
        ]
        now = await told(shards)
        assert (now.map, now.behind, now.unfenced) == (three, ("s1",), ())
        again = after(three, "s0", "s1")
        change = Next(three, again)
        await decide(shards["s0"], change)
        assert await done(change, shards) == [
            ("dismiss", "s2", How.DONE),
            ("tell", "s1", How.DONE),  # which was two maps behind
            ("finish", "s0", How.DONE),
        ]
        now = await told({name: shards[name] for name in again.names})
        assert (now.map, now.behind) == (again, ())
        held = (await read([shards["s2"]], 5))["s2"]
        assert isinstance(held, Held)
        assert held.is_empty

    run(config, work)


def test_a_shard_that_has_lost_its_guard_is_never_told_a_map(config: Path, empty_shards: list[LocalEtcd]) -> None:
    shared = first_of(config)

    async def work(shards: Shards) -> None:
        await decide(shards["s0"], Next(None, shared))
        await done(Next(None, shared), shards)
        channel, stub = kv(empty_shards[1])
        with channel:
            stub.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\1"))
        now = await told(shards)
        assert (now.map, now.behind, now.unfenced) == (shared, ("s1",), ("s1",))
        change = Next(shared, after(shared, "s0", "s1", "s2"))
        await decide(shards["s0"], change)
        assert ("tell", "s1", How.WAITS) in await done(change, shards)
        with pytest.raises(ChangeError, match="shard s1 has no guard: its data was lost"):
            await shared_map.tell(change.after, shards["s1"])
        now = await told(shards)
        assert (now.map, now.behind, now.unfenced) == (change.after, ("s1",), ("s1",))
        assert GUARD_KEY not in values(empty_shards[1])
        assert MAP_KEY not in values(empty_shards[1])

    run(config, work)


def test_who_slept_while_all_began_anew_leaves_nothing_behind(config: Path, empty_shards: list[LocalEtcd]) -> None:
    """As after a restore of all shards, which then get new guards."""
    shared, anew = first_of(config), first_of(config)

    async def work(shards: Shards) -> None:
        await decide(shards["s0"], Next(None, shared))
        await done(Next(None, shared), shards)
        slept = Next(shared, after(shared, "s0", "s1", "s2"))
        await decide(shards["s0"], slept)
        for etcd in empty_shards:
            channel, stub = kv(etcd)
            with channel:
                stub.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\1"))
        await decide(shards["s0"], Next(None, anew))
        await done(Next(None, anew), shards)
        for step in steps(slept):
            if step.can_wait:
                outcome = await writing_module._take(step, slept, shards[step.shard])
                assert outcome.how is How.WAITS
                assert outcome.why.startswith("holds the map of epoch 1 with the guard 1-")
                continue
            with pytest.raises(ChangeError, match=f"shard {step.shard} holds the map of epoch 1 with the guard 1-"):
                await writing_module._take(step, slept, shards[step.shard])
        await is_whole(shards, anew)

    run(config, work)


def test_a_frozen_shard_keeps_nobody_from_the_map(
    config: Path, empty_shards: list[LocalEtcd], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = first_of(config)

    async def work(shards: Shards) -> None:
        await decide(shards["s0"], Next(None, shared))
        await done(Next(None, shared), shards)
        change = Next(shared, after(shared, "s0", "s1", "s2"))
        await decide(shards["s0"], change)
        with frozen(empty_shards[2]):
            monkeypatch.setattr(writing_module, "CALL_SECONDS", 3.0)
            assert await done(change, shards) == [
                ("tell", "s1", How.DONE),
                ("tell", "s2", How.WAITS),
                ("finish", "s0", How.DONE),
            ]
            found = await read(shards.values(), 3.0)
            assert isinstance(found["s2"], Status)
            now = newest(found)
            assert now is not None
            assert (now.map, now.change, now.behind) == (change.after, None, ())
            assert now.silent == {"s2": "etcdserver: request timed out"}

    run(config, work)


def test_keys_of_others_that_begin_with_a_zero_byte_are_counted(config: Path, empty_shards: list[LocalEtcd]) -> None:
    channel, stub = kv(empty_shards[1])
    with channel:
        for key in (b"\0", b"\0esp", b"\0esp/guard", b"\0esp0", b"\0\xff", b"\1", b"a"):
            stub.Put(rpc_pb2.PutRequest(key=key))

    async def work(shards: Shards) -> None:
        assert await shared_map.foreign_keys(shards.values(), 5) == {"s0": 0, "s1": 4, "s2": 0}

    run(config, work)
