"""Leases while a shard is unreachable: sessions live on, and the shard gets the missed calls when it is back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, Server, frozen, outcome, wait_ready, wait_until
from tests.integration.lease_client import EXISTS, KEYS, NOT_FOUND, Client, Grant, Put, Range, Session

ClientOf = Callable[[Server], Client]
NO_CONNECTION = (grpc.StatusCode.UNAVAILABLE, "there is no connection available")


@pytest.fixture
def shards(start_durable_etcd: Etcds) -> list[LocalEtcd]:
    return start_durable_etcd.several(3)


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
            assert client.lease.LeaseGrant(Grant(TTL=60), timeout=1.9).TTL == 60

    def test_a_session_lives_through_the_loss_of_each_member_of_a_shard(
        self, start_durable_etcd: Etcds, start_esp: Esps, client_of: ClientOf
    ) -> None:
        members = start_durable_etcd.members(3)
        client = client_of(start_esp([start_durable_etcd(), members], ["m"]))
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


class TestANewShard:
    """None of the shards has ever had a key, so no lease can have lost one there."""

    @pytest.fixture
    def direct(self, shards: list[LocalEtcd], client_of: ClientOf) -> list[Client]:
        return [client_of(shard) for shard in shards]

    def test_a_lease_that_it_lacks_is_granted_there(self, client: Client, direct: list[Client], new_id: int) -> None:
        for shard in (direct[0], direct[2]):
            shard.grant(ttl=60, lease_id=new_id)
        direct[0].put(b"a", new_id)
        assert client.ttl(new_id).TTL > 50
        assert client.keep_alive(new_id) == [(new_id, 60)]
        wait_until(lambda: direct[1].has(new_id))
        assert direct[1].ttl(new_id).grantedTTL == 60
        assert client.keep_alive(new_id) == [(new_id, 60)]

    @pytest.mark.parametrize("value", [b"", b"v" * 20_000], ids=["small", "large"])
    def test_a_put_succeeds(self, client: Client, direct: list[Client], value: bytes, new_id: int) -> None:
        direct[0].grant(ttl=60, lease_id=new_id)
        client.kv.Put(Put(key=b"j", value=value, lease=new_id))
        assert list(direct[1].ttl(new_id, keys=True).keys) == [b"j"]
        assert direct[1].kv.Range(Range(key=b"j")).kvs[0].version == 1

    def test_a_txn_succeeds(self, client: Client, direct: list[Client], new_id: int) -> None:
        ids = [new_id, new_id + 1]
        for lease_id in ids:
            direct[0].grant(ttl=60, lease_id=lease_id)
        puts = [rpc_pb2.RequestOp(request_put=Put(key=b"j%d" % lease, lease=lease)) for lease in ids]
        assert client.kv.Txn(rpc_pb2.TxnRequest(success=puts)).succeeded
        assert sorted(direct[1].ids()) == ids

    def test_many_puts_at_once_grant_the_lease_once(self, client: Client, direct: list[Client], new_id: int) -> None:
        direct[0].grant(ttl=60, lease_id=new_id)
        calls = [client.kv.Put.future(Put(key=b"j%d" % number, lease=new_id), timeout=30) for number in range(50)]
        for call in calls:
            call.result()
        assert len(direct[1].ttl(new_id, keys=True).keys) == 50


class TestAfterARestartOfTheProxy:
    """What the proxy knew is gone. A lease that a shard lacks may have lost keys there, so it is never revived."""

    def restarted(self, proxy: EspProcess, start_esp: Esps, shards: list[LocalEtcd], client_of: ClientOf) -> Client:
        assert proxy.stop() == 0
        return client_of(start_esp(shards, ["i", "r"]))

    def test_a_lock_that_somebody_else_has_by_now_is_not_told_to_be_held(
        self, client: Client, proxy: EspProcess, start_esp: Esps, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        mine = client.grant(60)
        for key in KEYS:
            client.put(key, mine)
        client_of(shards[1]).revoke(mine)  # it ended there while the proxy could not reach the shard
        theirs = client.grant(60)
        client.put(b"j", theirs)
        client = self.restarted(proxy, start_esp, shards, client_of)
        assert outcome(lambda: client.put(b"j", mine)) == NOT_FOUND
        assert client.ttl(mine).TTL == -1
        assert client.keep_alive(mine, theirs) == [(mine, 0), (theirs, 60)]
        wait_until(lambda: client.keys() == [b"j"])

    def test_a_lease_that_all_shards_have_lives_on(
        self, client: Client, proxy: EspProcess, start_esp: Esps, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        lease_id = client.grant(60)
        client.put(b"j", lease_id)
        client = self.restarted(proxy, start_esp, shards, client_of)
        assert client.keep_alive(lease_id) == [(lease_id, 60)]

    def test_a_lease_granted_without_a_shard_ends_when_that_is_back(
        self, client: Client, proxy: EspProcess, start_esp: Esps, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        """The price: only the proxy that granted it knew that the shard had missed it."""
        client.put(b"j", 0)
        down(shards[1])
        lease_id = client.grant(60)
        client = self.restarted(proxy, start_esp, shards, client_of)
        assert client.keep_alive(lease_id) == [(lease_id, 60)]
        up(shards[1])
        wait_until(lambda: client.keep_alive(lease_id) == [(lease_id, 0)])
        assert not client_of(shards[1]).has(lease_id)
        wait_until(lambda: not client_of(shards[0]).has(lease_id))


class TestTwoProxies:
    @pytest.fixture
    def other(self, start_esp: Esps, shards: list[LocalEtcd], client_of: ClientOf) -> Client:
        return client_of(start_esp(shards, ["i", "r"]))

    def test_a_lease_that_one_granted_without_a_shard_lives_on_through_the_other(
        self, client: Client, other: Client, shards: list[LocalEtcd], client_of: ClientOf
    ) -> None:
        client.put(b"j", 0)
        down(shards[1])
        lease_id = client.grant(60)
        session = Session(other)
        assert session.renew(lease_id) == 60
        up(shards[1])
        there = client_of(shards[1])
        seen = []
        while not there.has(lease_id):
            seen.append(session.renew(lease_id))
        assert 0 not in seen
        wait_until(lambda: outcome_or_none(lambda: other.put(b"j", lease_id)) is None)
        assert session.renew(lease_id) == 60
        session.close()

    def test_a_put_through_the_other_waits_until_the_shard_has_got_the_lease(
        self, client: Client, other: Client, shards: list[LocalEtcd]
    ) -> None:
        client.put(b"j", 0)
        down(shards[1])
        lease_id = client.grant(60)
        up(shards[1])

        def put() -> bool:
            code = outcome_or_none(lambda: other.put(b"j", lease_id))
            assert code != grpc.StatusCode.NOT_FOUND
            return code is None

        wait_until(put)


def test_a_put_too_large_to_be_kept_is_not_told_that_its_lease_is_dead(client: Client, shards: list[LocalEtcd]) -> None:
    client.put(b"j", 0)
    down(shards[1])
    lease_id = client.grant(60)
    up(shards[1])

    def put() -> bool:
        code = outcome_or_none(lambda: client.kv.Put(Put(key=b"j", value=bytes(100_000), lease=lease_id), timeout=10))
        assert code != grpc.StatusCode.NOT_FOUND
        return code is None

    wait_until(put)


def test_an_id_revoked_while_a_shard_was_away_may_be_granted_again(
    client: Client, shards: list[LocalEtcd], client_of: ClientOf, new_id: int
) -> None:
    client.grant(60, lease_id=new_id)
    for key in KEYS:
        client.put(key, new_id)
    down(shards[1])
    assert outcome(lambda: client.revoke(new_id)) == NO_CONNECTION
    assert client.grant(60, lease_id=new_id) == new_id
    client.put(b"a", new_id)
    up(shards[1])
    wait_until(lambda: outcome_or_none(client.keys) is None and client.keys() == [b"a"])
    wait_until(lambda: outcome_or_none(lambda: client.put(b"j", new_id)) is None)
    assert client.keep_alive(new_id) == [(new_id, 60)]
    assert client.keys() == [b"a", b"j"]


def test_a_revocation_that_its_client_gave_up_is_done_all_the_same(
    client: Client, shards: list[LocalEtcd], client_of: ClientOf
) -> None:
    lease_id = client.grant(600)
    for key in KEYS:
        client.put(key, lease_id)
    with frozen(shards[1]):
        request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)
        assert outcome(lambda: client.lease.LeaseRevoke(request, timeout=0.5))[0] in (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.UNAVAILABLE,
        )
        assert not client_of(shards[0]).has(lease_id)
    wait_until(lambda: outcome_or_none(client.keys) is None and client.keys() == [])


def test_when_the_proxy_stops_a_session_goes_on_through_another(
    client: Client, proxy: EspProcess, start_esp: Esps, shards: list[LocalEtcd], client_of: ClientOf
) -> None:
    other = client_of(start_esp(shards, ["i", "r"]))
    lease_id = client.grant(60)
    session = Session(client)
    assert session.renew(lease_id) == 60
    proxy.process.send_signal(signal.SIGTERM)
    assert outcome(session.answer) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
    assert proxy.wait() == 0
    assert other.keep_alive(lease_id) == [(lease_id, 60)]


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
