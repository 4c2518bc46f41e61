"""Lock and Election over three shards, beside one etcd of the same version, whose answers are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from tests.harness import (
    EspProcess,
    Esps,
    Etcds,
    Server,
    connect,
    newest_etcd,
    outcome,
    running_esps,
    running_etcds,
    wait_until,
    wipe,
)
from tests.integration.lock_client import LOST, Locks
from tests.stubs import rpc_pb2_grpc

Answer = TypeVar("Answer")
LocksOf = Callable[[Server], Locks]
NAMES = (b"a", b"m/jobs", b"z\xff", b"i", b"")
"""Of locks in each of the shards, where "i" and "r" are the boundaries."""
LeaderKey = v3election_pb2.LeaderKey


@pytest.fixture(scope="module")
def etcds(tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[Etcds]:
    with running_etcds(tmp_path_factory.mktemp("etcds"), newest_etcd() or etcd_binary) as started:
        yield started


@pytest.fixture(scope="module")
def whole(etcds: Etcds) -> list[LocalEtcd]:
    """Three shards that no other module has."""
    return etcds.several(3)


@pytest.fixture(scope="module")
def judged(etcds: Etcds) -> LocalEtcd:
    return etcds()


@pytest.fixture(scope="module")
def proxy(whole: list[LocalEtcd], tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[EspProcess]:
    with running_esps(tmp_path_factory.mktemp("esp"), etcd_binary) as esps:
        yield esps(whole, ["i", "r"])


@pytest.fixture(params=["esp", "one etcd"])
def server(
    request: pytest.FixtureRequest, proxy: EspProcess, whole: list[LocalEtcd], judged: LocalEtcd
) -> EspProcess | LocalEtcd:
    """Each test passes with one etcd, or it would ask something else of esp."""
    for etcd in (*whole, judged):
        with connect(etcd) as channel:  # so that esp cannot know that no lease ever was there
            rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"once"), timeout=30)
        wipe(etcd)
    return proxy if request.param == "esp" else judged


@pytest.fixture
def locks(server: Server, locks_of: LocksOf) -> Locks:
    return locks_of(server)


@pytest.fixture
def both(proxy: EspProcess, judged: LocalEtcd, locks_of: LocksOf) -> Callable[[Callable[[Locks], Answer]], Answer]:
    """Call it with a question for what esp and the one etcd answer alike."""

    def ask(question: Callable[[Locks], Answer]) -> Answer:
        told, right = question(locks_of(proxy)), question(locks_of(judged))
        assert told == right
        return told

    return ask


class TestLock:
    @pytest.mark.parametrize("name", NAMES)
    def test_who_comes_first_has_it_and_the_others_wait_in_order(self, locks: Locks, name: bytes) -> None:
        leases = [locks.grant() for _ in range(3)]
        had = locks.lock(name, leases[0])
        assert had.key == name + b"/%x" % leases[0]
        assert had.header.revision > 0
        waiting = [locks.waiting(name, lease) for lease in leases[1:]]
        for key, next_one in zip((had.key, name + b"/%x" % leases[1]), waiting, strict=True):
            assert not next_one.done()
            locks.unlock(key)
            had = next_one.result()
        assert had.key == name + b"/%x" % leases[2]
        locks.unlock(had.key)
        assert locks.under(name) == []

    def test_who_has_it_gets_it_again_at_once(self, locks: Locks) -> None:
        lease = locks.grant()
        assert locks.lock(b"m", lease).key == locks.lock(b"m", lease).key

    def test_to_unlock_what_is_not_locked_is_no_error(self, locks: Locks) -> None:
        assert locks.unlock(b"m/1").header.revision > 0

    @pytest.mark.parametrize("how", ["expiry", "revocation"])
    def test_it_goes_on_to_the_next_when_the_lease_ends(self, locks: Locks, how: str) -> None:
        first, second = locks.grant(2 if how == "expiry" else 60), locks.grant()
        locks.lock(b"m", first)
        waiting = locks.waiting(b"m", second)
        if how == "revocation":
            locks.revoke(first)
        assert waiting.result().key == b"m/%x" % second

    @pytest.mark.parametrize("has_lease", [True, False])
    def test_who_gives_up_leaves_no_key(self, locks: Locks, has_lease: bool) -> None:
        first, second, third = (locks.grant() for _ in range(3))
        had = locks.lock(b"m", first)
        given_up = locks.locking(b"m", second if has_lease else 0)
        wait_until(lambda: len(locks.under(b"m")) == 2)
        waiting = locks.waiting(b"m", third)
        given_up.cancel()
        wait_until(lambda: len(locks.under(b"m")) == 2)
        locks.unlock(had.key)
        assert waiting.result().key == b"m/%x" % third

    def test_the_deadline_of_the_client_ends_the_wait(self, locks: Locks) -> None:
        first, second = locks.grant(), locks.grant()
        had = locks.lock(b"m", first)
        waiting = locks.locking(b"m", second, seconds=1)
        # etcd and its client both look at the clock, and etcd's code depends on what it waits for.
        assert waiting.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
        wait_until(lambda: locks.under(b"m") == [had.key])

    def test_who_goes_away_leaves_no_key(self, server: Server, locks: Locks, locks_of: LocksOf) -> None:
        had = locks.lock(b"m", locks.grant())
        other = locks_of(server)
        other.waiting(b"m", locks.grant())
        other.close()
        wait_until(lambda: locks.under(b"m") == [had.key])

    def test_without_a_lease_it_gets_one_that_is_a_lease_like_any_other(self, locks: Locks) -> None:
        had = locks.lock(b"m")
        lease = int(had.key.removeprefix(b"m/"), 16)
        told = locks.ttl(lease, keys=True)
        assert (told.grantedTTL, list(told.keys)) == (60, [had.key])
        assert locks.ids() == [lease]
        assert locks.keep_alive(lease) == [(lease, 60)]
        waiting = locks.waiting(b"m", locks.grant())
        locks.revoke(lease)
        waiting.result()

    def test_a_name_that_comes_twice_is_the_last(self, locks: Locks) -> None:
        """esp must not take the first for the shard, and the shard the last for the key."""
        lease = locks.grant()
        request = b"\x0a\x01a" + v3lock_pb2.LockRequest(name=b"m", lease=lease).SerializeToString()
        answer = locks.channel.unary_unary("/v3lockpb.Lock/Lock")(request, timeout=30)
        assert v3lock_pb2.LockResponse.FromString(answer).key == b"m/%x" % lease
        assert locks.under(b"m") == [b"m/%x" % lease]

    def test_the_key_is_at_the_owner_and_the_header_is_the_owners(
        self, proxy: EspProcess, whole: list[LocalEtcd], locks_of: LocksOf
    ) -> None:
        locks, direct = locks_of(proxy), [locks_of(shard) for shard in whole]
        had = locks.lock(b"m", locks.grant())
        assert [one.under(b"m") for one in direct] == [[], [had.key], []]
        told = locks.unlock(b"m/none").header
        right = direct[1].unlock(b"m/none").header
        assert (told.cluster_id, told.member_id, told.revision) == (right.cluster_id, right.member_id, right.revision)


class TestElection:
    @pytest.mark.parametrize("name", NAMES)
    def test_leaders_follow_each_other_and_are_observed(self, locks: Locks, name: bytes) -> None:
        assert outcome(lambda: locks.leader(name)) == (grpc.StatusCode.UNKNOWN, "election: no leader")
        seen = locks.observe(name)
        first, second = locks.grant(), locks.grant()
        won = locks.campaign(name, first, b"one").leader
        assert (won.name, won.key, won.lease) == (name, name + b"/%x" % first, first)
        assert next(seen).kv.value == b"one"
        waiting = locks.campaigning(name, second, b"two")
        wait_until(lambda: len(locks.under(name)) == 2)
        locks.proclaim(won, b"uno")
        told = next(seen).kv
        assert (told.value, told.key, told.create_revision, told.lease) == (b"uno", won.key, won.rev, first)
        assert locks.leader(name).kv == told
        locks.resign(won)
        next_one = waiting.result().leader
        assert next_one.lease == second
        assert next(seen).kv.value == b"two"
        assert outcome(lambda: locks.proclaim(won, b"late")) == (grpc.StatusCode.UNKNOWN, "election: not leader")
        locks.resign(won)  # which it is not any more
        assert locks.leader(name).kv.value == b"two"
        locks.resign(next_one)
        seen.cancel()

    def test_who_observes_later_begins_with_the_leader(self, locks: Locks) -> None:
        won = locks.campaign(b"m", locks.grant(), b"one").leader
        seen = locks.observe(b"m")
        assert next(seen).kv.value == b"one"
        locks.proclaim(won, b"uno")
        assert next(seen).kv.value == b"uno"
        seen.cancel()

    def test_without_a_lease_it_gets_one_that_is_a_lease_like_any_other(self, locks: Locks) -> None:
        won = locks.campaign(b"m", value=b"one").leader
        assert locks.keep_alive(won.lease) == [(won.lease, 60)]
        assert list(locks.ttl(won.lease, keys=True).keys) == [won.key]
        locks.proclaim(LeaderKey(name=won.name, key=won.key, rev=won.rev), b"of another lease")
        other = locks.leader(b"m").kv.lease
        assert other not in (0, won.lease)
        assert locks.keep_alive(other) == [(other, 60)]
        locks.revoke(other)
        assert locks.under(b"m") == []

    def test_who_loses_the_lease_loses_the_election(self, locks: Locks) -> None:
        first, second = locks.grant(), locks.grant()
        locks.campaign(b"m", first, b"one")
        waiting = locks.campaigning(b"m", second, b"two")
        wait_until(lambda: len(locks.under(b"m")) == 2)
        locks.revoke(first)
        assert waiting.result().leader.lease == second

    def test_who_gives_up_leaves_no_key(self, locks: Locks) -> None:
        won = locks.campaign(b"m", locks.grant(), b"one").leader
        waiting = locks.campaigning(b"m", locks.grant(), b"two")
        wait_until(lambda: len(locks.under(b"m")) == 2)
        waiting.cancel()
        wait_until(lambda: locks.under(b"m") == [won.key])


WRONG: dict[str, Callable[[Locks], object]] = {
    "lock with a lease that never was": lambda locks: locks.lock(b"m", 4711),
    "campaign with a lease that never was": lambda locks: locks.campaign(b"m", 4711),
    "lock with a lease below 0": lambda locks: locks.lock(b"m", -1),
    "proclaim without a leader": lambda locks: locks.proclaim(None, b""),
    "resign without a leader": lambda locks: locks.resign(None),
    "proclaim with an empty leader": lambda locks: locks.proclaim(LeaderKey(lease=4711), b""),
    "resign with an empty leader": lambda locks: locks.resign(LeaderKey(lease=4711)),
    "proclaim of somebody else": lambda locks: locks.proclaim(LeaderKey(name=b"m", key=b"m/1", rev=9, lease=4711), b""),
    "unlock nothing": lambda locks: locks.unlock(b""),
    "no leader": lambda locks: locks.leader(b"nobody"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_that_of_one_etcd(
    both: Callable[[Callable[[Locks], tuple[grpc.StatusCode, str]]], object], case: str
) -> None:
    told = both(lambda locks: outcome(lambda: WRONG[case](locks)))
    if "never was" in case:
        assert told == LOST


def test_a_lease_that_ended_is_not_granted_again(proxy: EspProcess, whole: list[LocalEtcd], locks_of: LocksOf) -> None:
    locks, owner = locks_of(proxy), locks_of(whole[1])
    lease = locks.grant()
    owner.revoke(lease)
    for ask in (locks.lock, locks.campaign):
        assert outcome(lambda ask=ask: ask(b"m", lease)) == LOST
    assert not owner.has(lease)


class TestBoundary:
    @pytest.fixture
    def divided(self, start_esp: Esps, whole: list[LocalEtcd], locks_of: LocksOf) -> Locks:
        for shard in whole:
            wipe(shard)
        return locks_of(start_esp(whole, ["k/m", "r"]))

    def test_it_may_not_lie_inside_the_prefix(self, divided: Locks) -> None:
        lease = divided.grant()
        text = (
            'esp: {} spans the shards s0, s1 (boundary "k/m"); all keys that begin with its name and a slash have to '
            "be in one shard: take another name, or move the boundary"
        )
        calls: dict[str, list[Callable[[], object]]] = {
            "a lock": [lambda: divided.lock(b"k", lease), lambda: divided.lock(b"k")],
            "an election": [
                lambda: divided.campaign(b"k", lease),
                lambda: divided.leader(b"k"),
                lambda: list(divided.observe(b"k")),
            ],
        }
        for what, asked in calls.items():
            for ask in asked:
                assert outcome(ask) == (grpc.StatusCode.FAILED_PRECONDITION, text.format(what))
        assert divided.under(b"k") == []
        assert divided.ids() == [lease]

    @pytest.mark.parametrize("name", [b"k/m", b"k/l", b"k/n", b"j", b"l"])
    def test_beside_it_all_is_well(self, divided: Locks, name: bytes) -> None:
        divided.unlock(divided.lock(name, divided.grant()).key)
        won = divided.campaign(name, divided.grant(), b"one").leader
        assert divided.leader(name).kv.value == b"one"
        divided.resign(won)

    def test_what_names_a_key_needs_only_its_owner(self, divided: Locks) -> None:
        for key in (b"k/a", b"k/z"):
            divided.put(key, 0)
            divided.unlock(key)
        assert divided.under(b"k") == []


class TestALeaseThatTheOwnerHasMissed:
    """It was never there, since no key ever was."""

    @pytest.fixture
    def fresh(self, start_etcd: Etcds, etcd_binary: Path) -> list[LocalEtcd]:
        return start_etcd.several(3, binary=newest_etcd() or etcd_binary)

    @pytest.mark.parametrize("what", ["lock", "campaign", "campaign with much to say"])
    def test_it_is_granted_there(
        self, fresh: list[LocalEtcd], start_esp: Esps, locks_of: LocksOf, new_id: int, what: str
    ) -> None:
        locks, direct = locks_of(start_esp(fresh, ["i", "r"])), [locks_of(shard) for shard in fresh]
        direct[0].grant(lease_id=new_id)
        direct[2].grant(lease_id=new_id)
        if what == "lock":
            assert locks.lock(b"m", new_id).key == b"m/%x" % new_id
        else:
            value = bytes(20_000) if "much" in what else b""
            assert locks.campaign(b"m", new_id, value).leader.lease == new_id
        assert list(direct[1].ttl(new_id, keys=True).keys) == [b"m/%x" % new_id]
        assert locks.keep_alive(new_id) == [(new_id, 60)]

    def test_strict_leaves_it_as_it_is(
        self, fresh: list[LocalEtcd], start_esp: Esps, locks_of: LocksOf, new_id: int
    ) -> None:
        locks = locks_of(start_esp(fresh, ["i", "r"], extra="leases: strict"))
        locks_of(fresh[0]).grant(lease_id=new_id)
        assert outcome(lambda: locks.lock(b"m", new_id)) == LOST
