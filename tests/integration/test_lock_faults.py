"""Locks and elections while a shard or the proxy goes away: who waits is told, and nobody holds what another holds."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, Server, connect, frozen, outcome, peer, wait_ready, wait_until
from tests.integration.lock_client import Locks
from tests.stubs import rpc_pb2_grpc

LocksOf = Callable[[Server], Locks]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
TIMED_OUT = (UNAVAILABLE, "etcdserver: request timed out")
STOPPED = (UNAVAILABLE, "etcdserver: server stopped")


@pytest.fixture
def shards(start_durable_etcd: Etcds) -> list[LocalEtcd]:
    return start_durable_etcd.several(3)


@pytest.fixture
def proxy(start_esp: Esps, shards: list[LocalEtcd]) -> EspProcess:
    return start_esp(shards, ["i", "r"], extra="drain_seconds: 60")


@pytest.fixture
def locks(proxy: EspProcess, locks_of: LocksOf) -> Locks:
    return locks_of(proxy)


def ended(call: grpc.Future) -> tuple[grpc.StatusCode, str]:
    """How a call that waited has ended."""
    return outcome(call.result)


def test_when_the_owner_is_killed_who_waits_is_told_and_the_lock_stays_with_its_holder(
    locks: Locks, shards: list[LocalEtcd]
) -> None:
    holder, waiter, other = (locks.grant() for _ in range(3))
    had = locks.lock(b"m", holder)
    waiting = locks.waiting(b"m", waiter)
    won = locks.campaign(b"n", holder, b"one").leader
    seen = locks.observe(b"n")
    assert next(seen).kv.value == b"one"
    # Another shard's lock, and who waits for it, notice nothing.
    elsewhere = locks.lock(b"z", holder)
    waiting_elsewhere = locks.waiting(b"z", other)
    shards[1].kill()
    assert ended(waiting) == TIMED_OUT
    assert outcome(lambda: next(seen)) == STOPPED
    assert outcome(lambda: locks.lock(b"m", other, seconds=10))[0] == UNAVAILABLE
    assert not waiting_elsewhere.done()
    shards[1].start()
    wait_ready(shards[1])
    wait_until(lambda: told(lambda: locks.leader(b"n")) is None)
    assert locks.leader(b"n").kv.key == won.key
    again = locks.waiting(b"m", waiter)
    seen = locks.observe(b"n")
    assert next(seen).kv.value == b"one"
    seen.cancel()
    assert sorted(locks.under(b"m")) == sorted([had.key, b"m/%x" % waiter])
    locks.unlock(had.key)
    assert again.result().key == b"m/%x" % waiter
    assert locks.under(b"m") == [b"m/%x" % waiter]
    locks.unlock(elsewhere.key)
    assert waiting_elsewhere.result().key == b"z/%x" % other


def test_of_one_etcd_that_is_killed_who_waits_is_told_as_well(start_durable_etcd: Etcds, locks_of: LocksOf) -> None:
    """The judge of the code above."""
    etcd = start_durable_etcd()
    locks = locks_of(etcd)
    locks.lock(b"m", locks.grant())
    waiting = locks.waiting(b"m", locks.grant())
    won = locks.campaign(b"n", locks.grant(), b"one").leader
    seen = locks.observe(b"n")
    assert next(seen).kv.key == won.key
    etcd.kill()
    assert ended(waiting)[0] == UNAVAILABLE
    assert outcome(lambda: next(seen))[0] == UNAVAILABLE


def test_who_waits_outlives_a_change_of_leader_and_is_told_of_the_end_of_the_member_in_use(
    start_durable_etcd: Etcds, start_esp: Esps, locks_of: LocksOf
) -> None:
    members = start_durable_etcd.members(3)
    in_use, other, leader = sorted(members, key=is_leader)
    esp = start_esp([[in_use, other, leader], start_durable_etcd()], ["r"])
    locks = locks_of(esp)
    first, second, third = (locks.grant(600) for _ in range(3))
    had, waiting = locks.lock(b"m", first), locks.waiting(b"m", second)
    won = locks.campaign(b"n", first, b"one").leader
    seen = locks.observe(b"n")
    assert next(seen).kv.value == b"one"
    leader.kill()
    wait_until(lambda: told(lambda: locks.unlock(had.key)) is None)
    had = waiting.result()
    waiting = locks.waiting(b"m", third)
    locks.proclaim(won, b"uno")
    assert next(seen).kv.value == b"uno"
    leader.start()
    wait_ready(leader)
    in_use.kill()
    assert ended(waiting) == TIMED_OUT
    assert outcome(lambda: next(seen)) == STOPPED
    wait_until(lambda: told(lambda: locks.leader(b"n")) is None)
    again = locks.waiting(b"m", third)
    locks.unlock(had.key)
    assert again.result().key == b"m/%x" % third


def test_a_frozen_owner_holds_up_its_own_locks_only(locks: Locks, shards: list[LocalEtcd]) -> None:
    holder, waiter, late = (locks.grant(600) for _ in range(3))
    had, elsewhere = locks.lock(b"m", holder), locks.lock(b"z", holder)
    waiting, waiting_elsewhere = locks.waiting(b"m", waiter), locks.waiting(b"z", waiter)
    with frozen(shards[1]):
        locks.unlock(elsewhere.key)
        assert waiting_elsewhere.result().key == b"z/%x" % waiter
        assert outcome(lambda: locks.lock(b"m", late, seconds=1))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    locks.unlock(had.key)
    assert waiting.result().key == b"m/%x" % waiter


def test_a_lease_granted_without_the_owner_is_there_for_the_lock_when_the_owner_is_back(
    locks: Locks, shards: list[LocalEtcd], locks_of: LocksOf
) -> None:
    locks.put(b"m", 0)
    shards[1].kill()
    lease = locks.grant()
    shards[1].start()
    wait_ready(shards[1])

    def locked() -> bool:
        code = told(lambda: locks.lock(b"m", lease))
        assert code in (None, UNAVAILABLE)
        return code is None

    wait_until(locked)
    assert list(locks_of(shards[1]).ttl(lease, keys=True).keys) == [b"m/%x" % lease]


class TestDrain:
    def test_who_waits_is_told_at_once_and_leaves_no_key(
        self, locks: Locks, proxy: EspProcess, shards: list[LocalEtcd], locks_of: LocksOf
    ) -> None:
        holder, waiter = locks.grant(), locks.grant()
        had = locks.lock(b"m", holder)
        waiting = locks.waiting(b"m", waiter)
        campaigning = locks.campaigning(b"m", locks.grant(), b"one")
        wait_until(lambda: len(locks.under(b"m")) == 3)
        nobody_yet = locks.observe(b"n")
        wait_until(lambda: nobody_yet.is_active())
        proxy.process.send_signal(signal.SIGTERM)
        assert ended(waiting) == ended(campaigning) == STOPPED
        assert outcome(lambda: next(nobody_yet)) == STOPPED
        assert proxy.wait(20) == 0, "it waits for nobody, though it might for a minute"
        owner = locks_of(shards[1])
        wait_until(lambda: owner.under(b"m") == [had.key])

    def test_of_many_none_leaves_a_key(
        self, locks: Locks, proxy: EspProcess, shards: list[LocalEtcd], locks_of: LocksOf
    ) -> None:
        """The shard is told of all of them, one after the other, before its connection ends."""
        had = locks.lock(b"m")
        waiting = [locks.locking(b"m", locks.grant()) for _ in range(60)]
        wait_until(lambda: len(locks.under(b"m")) == 61)
        proxy.process.send_signal(signal.SIGTERM)
        assert {ended(call) for call in waiting} == {STOPPED}
        assert proxy.wait(20) == 0
        owner = locks_of(shards[1])
        wait_until(lambda: owner.under(b"m") == [had.key])

    def test_with_one_shard_too(self, shards: list[LocalEtcd], start_esp: Esps, locks_of: LocksOf) -> None:
        proxy = start_esp(shards[:1], extra="drain_seconds: 60")
        locks = locks_of(proxy)
        locks.lock(b"m", locks.grant())
        waiting = locks.waiting(b"m", locks.grant())
        proxy.process.send_signal(signal.SIGTERM)
        assert ended(waiting) == STOPPED
        assert proxy.wait(20) == 0


def test_who_waits_takes_no_place_from_others(
    start_etcd: Etcds, start_esp: Esps, locks_of: LocksOf, etcd_binary: Path
) -> None:
    """Neither of the shard's streams nor of the calls over all shards."""
    shards = start_etcd.several(2, "--max-concurrent-streams=8", binary=peer("etcd"))
    locks = locks_of(start_esp(shards, ["r"], extra="limits: {max_parts_per_shard: 1}"))
    locks.lock(b"m")
    waiting = [locks.waiting(b"m", locks.grant()) for _ in range(20)]
    for _ in range(20):
        without_lease = locks.locking(b"m")
        waiting.append(without_lease)
    wait_until(lambda: len(locks.under(b"m")) == 41)
    locks.put(b"k", locks.grant())
    assert locks.keys().count(b"k") == 1
    assert not any(call.done() for call in waiting)
    for call in waiting:
        call.cancel()
    wait_until(lambda: len(locks.under(b"m")) == 1)


def told(ask: Callable[[], object]) -> grpc.StatusCode | None:
    """The code with which it ends; None when that is well."""
    try:
        ask()
    except grpc.RpcError as error:
        return error.code()
    return None


def is_leader(member: LocalEtcd) -> bool:
    with connect(member) as channel:
        status = rpc_pb2_grpc.MaintenanceStub(channel).Status(rpc_pb2.StatusRequest(), timeout=30)
    return status.leader == status.header.member_id
