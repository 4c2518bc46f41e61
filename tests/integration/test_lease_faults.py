"""Leases while a shard is away: sessions live on without it, and what it missed is put right when it is back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from esp.core.local import LocalEtcd
from tests.harness import EspProcess, Esps, Etcds, Server, outcome, wait_ready, wait_until
from tests.integration.lease_client import EXISTS, KEYS, NOT_FOUND, Client, Grant, Session

ClientOf = Callable[[Server], Client]
NO_CONNECTION = (grpc.StatusCode.UNAVAILABLE, "there is no connection available")


@pytest.fixture
def shards(start_etcd: Etcds) -> list[LocalEtcd]:
    return start_etcd.several(3)


@pytest.fixture
def proxy(start_esp: Esps, shards: list[LocalEtcd]) -> EspProcess:
    return start_esp(shards, ["i", "r"])


@pytest.fixture
def strict_proxy(start_esp: Esps, shards: list[LocalEtcd]) -> EspProcess:
    return start_esp(shards, ["i", "r"], extra="leases: strict")


@pytest.fixture
def client(proxy: EspProcess, client_of: ClientOf) -> Client:
    return client_of(proxy)


@pytest.fixture
def strict(strict_proxy: EspProcess, client_of: ClientOf) -> Client:
    return client_of(strict_proxy)


def down(*shards: LocalEtcd) -> None:
    for shard in shards:
        shard.kill()


def up(*shards: LocalEtcd) -> None:
    for shard in shards:
        shard.start()
    wait_ready(*shards)


@contextmanager
def frozen(shard: LocalEtcd) -> Iterator[None]:
    """The shard takes everything and says nothing."""
    assert shard.process is not None
    shard.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        shard.process.send_signal(signal.SIGCONT)


class TestTolerant:
    def test_a_lease_granted_while_a_shard_is_down_is_granted_there_when_it_is_back(
        self, client: Client, proxy: EspProcess, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        down(shards[1])
        lease_id = client.grant(60)
        client.put(b"a", lease_id)
        assert client.ttl(lease_id).TTL > 50
        assert client.keep_alive(lease_id) == [(lease_id, 60)]
        up(shards[1])
        there = client_of(shards[1])
        wait_until(lambda: there.has(lease_id))
        assert there.ttl(lease_id).grantedTTL == 60
        wait_until(lambda: outcome_or_none(lambda: client.put(b"j", lease_id)) is None)
        assert client.keep_alive(lease_id) == [(lease_id, 60)]
        assert sorted(client.ttl(lease_id, keys=True).keys) == [b"a", b"j"]

    def test_a_session_outlives_a_shard_that_is_away_for_longer_than_its_ttl(
        self, client: Client, proxy: EspProcess, shards: list[LocalEtcd]
    ) -> None:
        lease_id = client.grant(3)
        for key in KEYS:
            client.put(key, lease_id)
        session = Session(client)
        assert session.renew(lease_id) == 3
        down(shards[1])
        seen = [session.renew(lease_id)]
        while "does not answer" not in proxy.log():
            threading.Event().wait(0.2)
            seen.append(session.renew(lease_id))
        # What is left there counts until it has run out; then the others go on alone.
        assert min(seen) < 3
        assert seen[-1] == 3
        assert 0 not in seen
        up(shards[1])
        # It had no time to end there: an etcd that starts gives every lease its whole TTL.
        wait_until(lambda: session.renew(lease_id) == 3 and "answers again" in proxy.log())
        assert client.keys() == list(KEYS)
        session.close()

    def test_a_lease_that_ended_while_the_shard_could_not_be_reached_is_dead(
        self, client: Client, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        lease_id = client.grant(60)
        for key in KEYS:
            client.put(key, lease_id)
        client_of(shards[1]).revoke(lease_id)
        down(shards[1])
        assert client.keep_alive(lease_id)[0][1] > 50
        up(shards[1])
        wait_until(lambda: client.keep_alive(lease_id) == [(lease_id, 0)])
        wait_until(lambda: client.keys() == [])

    def test_a_revocation_that_cannot_reach_a_shard_is_an_error_and_done_there_later(
        self, client: Client, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        lease_id = client.grant(60)
        for key in KEYS:
            client.put(key, lease_id)
        down(shards[1])
        assert outcome(lambda: client.revoke(lease_id)) == NO_CONNECTION
        assert not client_of(shards[0]).has(lease_id)
        assert not client_of(shards[2]).has(lease_id)
        up(shards[1])
        there = client_of(shards[1])
        wait_until(lambda: not there.has(lease_id))
        wait_until(lambda: outcome_or_none(client.keys) is None)
        assert client.keys() == []
        assert outcome(lambda: client.revoke(lease_id)) == NOT_FOUND

    def test_a_grant_that_one_shard_refuses_is_taken_back_though_another_is_down(
        self, client: Client, shards: list[LocalEtcd], client_of: ClientOf, new_id: int
    ) -> None:
        client_of(shards[2]).grant(lease_id=new_id)
        down(shards[1])
        assert outcome(lambda: client.grant(lease_id=new_id)) == EXISTS
        assert not client_of(shards[0]).has(new_id)
        up(shards[1])
        assert not client_of(shards[1]).has(new_id)

    def test_what_only_the_missing_shard_may_know_is_not_answered(
        self, client: Client, shards: list[LocalEtcd]
    ) -> None:
        lease_id = client.grant(60)
        down(shards[1])
        assert client.ttl(lease_id).TTL > 50
        for ask in (
            lambda: client.ttl(lease_id, keys=True),
            lambda: client.ttl(4711),
            lambda: client.ids(),
        ):
            assert outcome(ask) == NO_CONNECTION

    def test_with_all_shards_down_everything_fails_and_nothing_is_said_to_be_lost(
        self, client: Client, shards: list[LocalEtcd]
    ) -> None:
        lease_id = client.grant(60)
        down(*shards)
        for ask in (
            lambda: client.grant(60),
            lambda: client.revoke(lease_id),
            lambda: client.ttl(lease_id),
            lambda: client.keep_alive(lease_id),
        ):
            assert outcome(ask)[0] == grpc.StatusCode.UNAVAILABLE
        up(*shards)
        wait_until(lambda: outcome_or_none(lambda: client.keep_alive(lease_id)) is None)
        # The revocation that reached nobody is still done: its client was told nothing else.
        wait_until(lambda: client.keep_alive(lease_id) == [(lease_id, 0)])

    @pytest.mark.parametrize("known", [True, False], ids=["with a stream to it", "without"])
    def test_a_frozen_shard_holds_up_nobody_for_long(
        self, client: Client, shards: list[LocalEtcd], known: bool
    ) -> None:
        session = Session(client)
        if known:
            session.renew(client.grant(60))
        with frozen(shards[1]):
            lease_id = client.grant(60)
            assert client.keep_alive(lease_id)[0][1] > 30
            assert min(session.renew(lease_id) for _ in range(3)) > 30
        wait_until(lambda: session.renew(lease_id) == 60)
        session.close()

    def test_a_client_in_a_hurry_hears_of_its_lease_in_time(self, client: Client, shards: list[LocalEtcd]) -> None:
        with frozen(shards[1]):
            assert client.lease.LeaseGrant(Grant(TTL=60), timeout=1.5).TTL == 60

    def test_a_session_lives_through_the_loss_of_each_member_of_a_shard(
        self, start_etcd: Etcds, start_esp: Esps, client_of: ClientOf
    ) -> None:
        members = start_etcd.members(3)
        client = client_of(start_esp([start_etcd(), members], ["m"]))
        lease_id = client.grant(10)
        client.put(b"z", lease_id)
        session = Session(client)
        for member in members:
            member.kill()
            for _ in range(10):
                assert session.renew(lease_id) > 0
                threading.Event().wait(0.1)
            up(member)
        wait_until(lambda: session.renew(lease_id) == 10)
        assert client.keys() == [b"z"]
        session.close()

    def test_two_proxies_do_not_grant_again_what_the_other_knows_to_be_over(
        self, client: Client, start_esp: Esps, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        """While a shard is away the lease is used through one proxy, and another one sees the shard come back."""
        start_esp(shards, ["i", "r"])
        lease_id = client.grant(60)
        client_of(shards[1]).revoke(lease_id)
        down(shards[1])
        assert client.keep_alive(lease_id)[0][1] > 50
        up(shards[1])
        wait_until(lambda: client.keep_alive(lease_id) == [(lease_id, 0)])
        wait_until(lambda: not client_of(shards[0]).has(lease_id))
        assert not client_of(shards[1]).has(lease_id)


class TestStrict:
    def test_nothing_is_granted_while_a_shard_is_down(
        self, strict: Client, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        down(shards[1])
        assert outcome(lambda: strict.grant(60)) == NO_CONNECTION
        assert client_of(shards[0]).ids() == client_of(shards[2]).ids() == []

    def test_a_grant_that_its_client_gave_up_is_taken_back(
        self, strict: Client, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        with frozen(shards[1]):
            late = outcome(lambda: strict.lease.LeaseGrant(Grant(TTL=600), timeout=0.5))
            assert late[0] == grpc.StatusCode.DEADLINE_EXCEEDED
            # Its id is esp's own, so nobody else would ever revoke it.
            wait_until(lambda: client_of(shards[0]).ids() == client_of(shards[2]).ids() == [])

    def test_a_keepalive_is_not_answered_while_a_shard_is_down(self, strict: Client, shards: list[LocalEtcd]) -> None:
        lease_id = strict.grant(60)
        session = Session(strict)
        assert session.renew(lease_id) == 60
        down(shards[1])
        assert outcome(lambda: [session.renew(lease_id) for _ in range(100)])[0] == grpc.StatusCode.UNAVAILABLE
        assert outcome(lambda: strict.ttl(lease_id)) == NO_CONNECTION
        up(shards[1])
        wait_until(lambda: outcome_or_none(lambda: strict.keep_alive(lease_id)) is None)
        assert strict.keep_alive(lease_id) == [(lease_id, 60)]

    def test_a_frozen_shard_ends_the_stream(self, strict: Client, shards: list[LocalEtcd]) -> None:
        assert strict.keep_alive(4711) == [(4711, 0)]
        with frozen(shards[1]):
            assert outcome(lambda: strict.keep_alive(4711)) == (
                grpc.StatusCode.UNAVAILABLE,
                "etcdserver: request timed out",
            )

    def test_a_lease_that_one_shard_does_not_have_is_dead_whatever_the_reason(
        self, strict: Client, shards: list[LocalEtcd], client_of: ClientOf, new_id: int
    ) -> None:
        for shard in (shards[0], shards[2]):
            client_of(shard).grant(lease_id=new_id)
        assert outcome(lambda: strict.put(b"j", new_id)) == NOT_FOUND
        assert strict.ttl(new_id).TTL == -1
        assert strict.keep_alive(new_id) == [(new_id, 0)]
        wait_until(lambda: not any(client_of(shard).has(new_id) for shard in shards))


def outcome_or_none(ask: Callable[[], object]) -> grpc.StatusCode | None:
    """The code that it ends with, None when that is well."""
    try:
        ask()
    except grpc.RpcError as error:
        return error.code()
    return None
