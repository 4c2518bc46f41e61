"""Ranges that move between real etcds by esp's own mover, while clients write them through proxies."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from esp.core import move
from esp.core.connected_shards import connected
from esp.core.giving_up import MoveError, give_up
from esp.core.keys import KeyRange
from esp.core.move import (
    Copies,
    GivenUpError,
    Moved,
    Mover,
    TakenOverError,
    Told,
    announced,
    planned,
    purge,
    purging,
    raising,
    taken_over,
    taking,
)
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import TXN, Shard
from esp.core.shared_map import COPIES_KEY, NEXT_KEY, Held, Next, SharedMap, newest, read
from tests.harness import Etcds
from tests.integration.mapped import AT, Mapped
from tests.stubs import rpc_pb2_grpc

Put, Range, Delete = rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.DeleteRangeRequest
RANGE = KeyRange(b"b", b"d")


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(3), ["i", "r"], tmp_path / "esp.yaml")


def put(key: bytes, value: bytes = b"", lease: int = 0) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=Put(key=key, value=value, lease=lease))


def write(mapped: Mapped, name: str, *operations: rpc_pb2.RequestOp) -> None:
    mapped.ask(name, rpc_pb2.TxnRequest(success=list(operations)))


def pairs(mapped: Mapped, name: str, range_: KeyRange = RANGE, revision: int = 0) -> list[kv_pb2.KeyValue]:
    key, range_end = range_.to_request()
    look = rpc_pb2.RequestOp(request_range=Range(key=key, range_end=range_end, revision=revision))
    return list(mapped.ask(name, rpc_pb2.TxnRequest(success=[look])).responses[0].response_range.kvs)


def order(found: Sequence[kv_pb2.KeyValue], by: str) -> list[list[bytes]]:
    """The keys in the order of their revisions; those of one revision together."""
    numbers = sorted({getattr(pair, by) for pair in found})
    return [[pair.key for pair in found if getattr(pair, by) == number] for number in numbers]


def same(before: Sequence[kv_pb2.KeyValue], after: Sequence[kv_pb2.KeyValue]) -> None:
    """All is as before, but for the revisions, which are higher and in the same order."""
    assert [(one.key, one.value, one.lease) for one in after] == [(one.key, one.value, one.lease) for one in before]
    for by in ("create_revision", "mod_revision"):
        assert order(after, by) == order(before, by)
        if before:
            assert min(getattr(one, by) for one in after) > max(one.mod_revision for one in before)


@asynccontextmanager
async def reached(mapped: Mapped) -> AsyncIterator[dict[str, Shard]]:
    async with connected(replace(mapped.config, guards=None)) as shards:
        yield shards


async def decided(mapped: Mapped, shards: dict[str, Shard], range_: KeyRange, target: str, pause: int = 5000) -> Next:
    told = await read(shards.values(), 10)
    found = newest(told)
    assert found is not None
    change = planned(found.map, told, range_, target, pause=pause, at=AT, by="tests")
    await announced(change, shards)
    return change


async def moved(
    mapped: Mapped, range_: KeyRange, target: str, tell: Callable[[Told], object] = lambda _: None, **more: Any
) -> Moved:
    async with reached(mapped) as shards:
        change = await decided(mapped, shards, range_, target, **more)
        done = await Mover(change, shards, {}, tell, margin=None, by="tests").run()
        mapped.now = done.map
        return done


async def held(mapped: Mapped) -> dict[str, Held]:
    async with reached(mapped) as shards:
        found = await read(shards.values(), 10)
    return {name: one for name, one in found.items() if isinstance(one, Held)}


def all_hold(found: dict[str, Held], shared: SharedMap) -> None:
    assert {name: one.map for name, one in found.items()} == dict.fromkeys(found, shared)
    assert {name: one.guard for name, one in found.items()} == shared.guards
    assert [one.next for one in found.values()] == [None] * len(found)


@in_a_loop
async def test_a_range_moves_with_its_order_and_back(mapped: Mapped) -> None:
    for number in range(300):
        write(mapped, "s0", put(b"b%03d" % (number * 7 % 300), b"one"))
    write(mapped, "s0", put(b"b004", b"two"), put(b"b001", b"two"), put(b"c-both"))
    write(mapped, "s0", put(b"b000", b"three"))
    write(mapped, "s0", put(b"a", b"stays"))
    before = pairs(mapped, "s0")
    done = await moved(mapped, RANGE, "s2")
    same(before, pairs(mapped, "s2"))
    found = await held(mapped)
    all_hold(found, done.map)
    assert done.map.map.owner(b"b001") == "s2"
    assert (done.cut, done.opened) == (found["s0"].guard_revision, found["s2"].guard_revision)
    assert all(pair.mod_revision > done.cut for pair in pairs(mapped, "s2"))
    assert mapped.read("s2", COPIES_KEY) == []
    assert pairs(mapped, "s0") == before
    async with reached(mapped) as shards:
        here, there = await move.compared(shards["s0"], done.cut, shards["s2"], done.opened, RANGE, lambda _: None)
        assert here == there
        assert here.keys == len(before)
        await purge(shards["s0"], done.map.guards["s0"], RANGE, copies=None, rate=1e6, progress=lambda _: None)
    assert pairs(mapped, "s0") == []
    assert mapped.read("s0", b"a") == [(b"a", b"stays")]
    before = pairs(mapped, "s2")
    again = await moved(mapped, RANGE, "s0")
    same(before, pairs(mapped, "s0"))
    assert again.map.moves[0].cut == done.cut
    assert again.map.moves[0].opened == done.opened
    assert [(one.source, one.target) for one in again.map.moves] == [("s0", "s2"), ("s2", "s0")]


@in_a_loop
async def test_what_is_written_meanwhile_comes_along(mapped: Mapped) -> None:
    for number in range(2000):
        write(mapped, "s0", put(b"b%04d" % number, b"old"))
    stop, written = threading.Event(), 0
    guard = mapped.now.guards["s0"].encode()

    def writes() -> None:
        nonlocal written
        from tests.harness import connect

        with connect(mapped.etcds["s0"][0]) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            compare = rpc_pb2.Compare(key=b"\0esp/guard", target=rpc_pb2.Compare.VALUE, value=guard)
            number = 0
            while not stop.is_set():
                number += 1
                key = b"b%04d" % (number * 37 % 2500)
                one = put(key, b"%d" % number)
                if number % 5 == 0:
                    one = rpc_pb2.RequestOp(request_delete_range=Delete(key=key, range_end=key[:-1] + b":"))
                answer = kv.Txn(rpc_pb2.TxnRequest(compare=[compare], success=[one, put(b"c-last", b"%d" % number)]))
                if not answer.succeeded:
                    return
                written += 1

    thread = threading.Thread(target=writes)
    thread.start()
    try:
        done = await moved(mapped, RANGE, "s2")
    finally:
        stop.set()
        thread.join()
    assert written > 100
    assert done.pause is not None
    same(pairs(mapped, "s0", revision=done.cut), pairs(mapped, "s2", revision=done.opened))


@in_a_loop
async def test_leases_come_along_and_those_that_end_take_their_keys(mapped: Mapped) -> None:
    lives, ends = 1111, 2222

    def grant(name: str, lease: int, ttl: int) -> None:
        from tests.harness import connect

        with connect(mapped.etcds[name][0]) as channel:
            rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=lease, TTL=ttl))

    grant("s0", lives, 600)
    grant("s0", ends, 600)
    write(mapped, "s0", put(b"b-lives", b"", lives), put(b"b-ends", b"", ends))
    write(mapped, "s0", put(b"b-more", b"", lives))
    before = pairs(mapped, "s0")

    def revoke_once(told: Told) -> None:
        if told.stage is move.Stage.LISTING and told.done:
            from tests.harness import connect

            with connect(mapped.etcds["s0"][0]) as channel:
                try:
                    rpc_pb2_grpc.LeaseStub(channel).LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=ends))
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.NOT_FOUND  # noqa: PT017

    await moved(mapped, RANGE, "s2", revoke_once)
    same([pair for pair in before if pair.lease == lives], pairs(mapped, "s2"))


async def aborted(mapped: Mapped, change: Next) -> SharedMap:
    async with reached(mapped) as shards:
        mapped.now = await give_up(change, shards, {}, by="tests")
        return mapped.now


async def ended_at(shards: dict[str, Shard], change: Next, stage: move.Stage) -> bool:
    """Whether a mover has come to this stage; there it ended."""

    def tell(told: Told) -> None:
        if told.stage is stage:
            raise KilledError

    has_come = False
    try:
        await Mover(change, shards, {}, tell, margin=None, by="tests").run()
    except* KilledError:
        has_come = True
    return has_come


class KilledError(BaseException):
    """In place of a SIGKILL."""


@pytest.mark.parametrize("stage", list(move.Stage))
@pytest.mark.parametrize("then", ["resume", "abort"])
@in_a_loop
async def test_a_mover_that_ends_anywhere_is_resumed_or_aborted(mapped: Mapped, stage: move.Stage, then: str) -> None:
    for number in range(200):
        write(mapped, "s0", put(b"b%03d" % (number * 7 % 200), b"old"))
    write(mapped, "s2", put(b"b-stray"))  # to be cleared
    async with reached(mapped) as shards:
        change = await decided(mapped, shards, RANGE, "s2")
        assert await ended_at(shards, change, stage)
    if stage is not move.Stage.OPEN:  # no proxy writes there any more
        for number in range(50):
            write(mapped, "s0", put(b"b%03d" % (number * 3), b"new"))
    before = pairs(mapped, "s0")
    now = (await held(mapped))[mapped.now.anchor].next
    assert now is not None
    if then == "abort":
        shared = await aborted(mapped, now)
        all_hold(await held(mapped), shared)
        is_open = stage is move.Stage.OPEN
        assert shared.map.owner(b"b") == ("s2" if is_open else "s0")
        if is_open:
            return
        async with reached(mapped) as shards:
            await purge(shards["s2"], shared.guards["s2"], RANGE, copies=None, rate=1e6, progress=lambda _: None)
    else:
        async with reached(mapped) as shards:
            again = await taken_over(now, shards)
            done = await Mover(again, shards, {}, lambda _: None, margin=None, by="tests").run()
        same(before, pairs(mapped, "s2"))
        all_hold(await held(mapped), done.map)


@in_a_loop
async def test_a_mover_that_sleeps_can_do_nothing_after_an_abort(mapped: Mapped) -> None:
    write(mapped, "s0", put(b"b1", b"1"))
    async with reached(mapped) as shards:
        change = await decided(mapped, shards, RANGE, "s2")
        result: SharedMap | None = None
        gone: list[Told] = []

        class Sleeper(Mover):
            async def _go_over(self, phase: Any) -> None:
                await super()._go_over(phase)
                nonlocal result
                result = await give_up(self._change, shards, {}, by="tests")

        with pytest.raises(MoveError):
            await Sleeper(change, shards, {}, gone.append, margin=None, by="tests").run()
    assert result is not None
    all_hold(await held(mapped), result)
    assert result.epoch == 3
    assert mapped.read(result.anchor, NEXT_KEY) == []


class Sleep:
    """A purge that sleeps before it deletes its first piece, in one task only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._has_come = asyncio.Event()
        self._goes_on = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        ask = purging.ask_for_esp

        async def asks(shard: Shard, method: Any, request: Any, *, seconds: float) -> Any:
            if method is TXN and asyncio.current_task() is self._task:
                self._has_come.set()
                await self._goes_on.wait()
            return await ask(shard, method, request, seconds=seconds)

        monkeypatch.setattr(purging, "ask_for_esp", asks)

    async def begun(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begins the work, up to the sleep."""
        self._task = asyncio.create_task(work)
        await self._has_come.wait()

    async def ended(self) -> None:
        """Wakes it, and awaits it."""
        self._goes_on.set()
        assert self._task is not None
        await self._task


@in_a_loop
async def test_a_mover_that_slept_while_it_cleared_deletes_no_copies_of_another(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = Sleep(monkeypatch)
    for number in range(20):
        write(mapped, "s0", put(b"b%03d" % number, b"live"))
        write(mapped, "s2", put(b"b%03d" % number, b"stray"))
    before = pairs(mapped, "s0")
    async with reached(mapped) as shards:
        change = await decided(mapped, shards, RANGE, "s2")
        await sleep.begun(Mover(change, shards, {}, lambda _: None, margin=None, by="tests").run())
        change = await taken_over(change, shards)
        assert await ended_at(shards, change, move.Stage.FOLLOWING)
        same(before, pairs(mapped, "s2"))
        with pytest.raises(TakenOverError):
            await sleep.ended()
        same(before, pairs(mapped, "s2"))
        change = await taken_over(change, shards)
        await Mover(change, shards, {}, lambda _: None, margin=None, by="tests").run()
    same(before, pairs(mapped, "s2"))


@in_a_loop
async def test_a_slow_purge_of_a_former_source_deletes_no_copies_of_a_move_back(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = Sleep(monkeypatch)
    for number in range(20):
        write(mapped, "s0", put(b"b%03d" % number, b"live"))
    done = await moved(mapped, RANGE, "s2")
    before = pairs(mapped, "s2")
    async with reached(mapped) as shards:
        guard = done.map.guards["s0"]
        work = purge(shards["s0"], guard, RANGE, copies=None, rate=1e6, progress=lambda _: None)
        await sleep.begun(work)
        change = await decided(mapped, shards, RANGE, "s0")
        assert await ended_at(shards, change, move.Stage.FOLLOWING)
        with pytest.raises(TakenOverError):
            await sleep.ended()
        same(before, pairs(mapped, "s0"))


@in_a_loop
async def test_a_counter_is_raised_for_the_mover_only_that_copies(mapped: Mapped) -> None:
    async with reached(mapped) as shards:
        guard = mapped.now.guards["s2"]
        await taking.take_over(shards["s2"], guard, "a" * 32)
        with pytest.raises(TakenOverError):
            await raising.raise_counter(shards["s2"], guard, Copies("b" * 32).encode(), 1, lambda _: None)
        await raising.raise_counter(shards["s2"], guard, Copies("a" * 32).encode(), 1, lambda _: None)


@in_a_loop
async def test_a_mover_that_slept_after_the_cut_tells_that_others_gave_the_move_up(mapped: Mapped) -> None:
    write(mapped, "s0", put(b"b1", b"1"))
    result: SharedMap | None = None
    async with reached(mapped) as shards:
        change = await decided(mapped, shards, RANGE, "s2")

        class Sleeper(Mover):
            async def _cut(self) -> int:
                await super()._cut()
                nonlocal result
                result = await give_up(self._change, shards, {}, by="tests")
                raise TimeoutError

        with pytest.raises(GivenUpError, match="the range stays with shard s0"):
            await Sleeper(change, shards, {}, lambda _: None, margin=None, by="tests").run()
        assert result is not None
        assert result.map.owner(b"b1") == "s0"
        assert await give_up(change, shards, {}, by="tests") == result
    all_hold(await held(mapped), result)


@in_a_loop
async def test_who_gives_up_a_move_that_was_carried_out_hears_so_also_after_another_move(mapped: Mapped) -> None:
    write(mapped, "s0", put(b"b1", b"1"))
    async with reached(mapped) as shards:
        change = await decided(mapped, shards, RANGE, "s2")
        done = await Mover(change, shards, {}, lambda _: None, margin=None, by="tests").run()
        assert await give_up(change, shards, {}, by="tests") == done.map
    await moved(mapped, RANGE, "s1")
    async with reached(mapped) as shards:
        assert await give_up(change, shards, {}, by="tests") == done.map


@in_a_loop
async def test_a_move_that_takes_too_long_is_given_up(mapped: Mapped) -> None:
    write(mapped, "s0", put(b"b1", b"1"))
    with pytest.raises(GivenUpError, match=r"the range stays with shard s0: it took longer than 0.001 s"):
        await moved(mapped, RANGE, "s2", pause=1)
    found = await held(mapped)
    shared = found["s1"].map
    assert shared is not None
    all_hold(found, shared)
    assert (shared.epoch, shared.map.owner(b"b1")) == (3, "s0")
