"""Leases through esp, asked by grpcio: on every shard under one id, and answered as by one etcd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, Server, connect, outcome, wait_until
from tests.integration.lease_client import EXISTS, KEYS, NOT_FOUND, Client, Grant, KeepAlive, Put
from tests.stubs import rpc_pb2_grpc


@pytest.fixture
def esp_(esp: EspProcess, empty_shards: list[LocalEtcd], client_of: Callable[[Server], Client]) -> Client:
    return client_of(esp)


@pytest.fixture
def direct(empty_shards: list[LocalEtcd], client_of: Callable[[Server], Client]) -> list[Client]:
    """Each shard, past esp."""
    return [client_of(shard) for shard in empty_shards]


@pytest.fixture
def judge(empty_etcd: LocalEtcd, client_of: Callable[[Server], Client]) -> Client:
    """One etcd: what it answers is right."""
    return client_of(empty_etcd)


class TestGrant:
    def test_a_lease_is_on_every_shard_under_one_positive_id(self, esp_: Client, direct: list[Client]) -> None:
        granted = esp_.lease.LeaseGrant(Grant(TTL=60))
        assert granted.ID > 0
        assert granted.TTL == 60
        assert granted.header.revision > 0
        assert [shard.ids() for shard in direct] == [[granted.ID]] * 3

    def test_ids_differ_also_between_two_proxies(
        self, esp_: Client, start_esp: Esps, shards: list[LocalEtcd], client_of: Callable[[Server], Client]
    ) -> None:
        other = client_of(start_esp(shards, ["i", "r"]))
        ids = [client.grant() for _ in range(20) for client in (esp_, other)]
        assert len(set(ids)) == 40
        assert sorted(esp_.ids()) == sorted(other.ids()) == sorted(ids)

    @pytest.mark.parametrize("lease_id", [1, 2**63 - 1, -1, -(2**63)])
    def test_any_id_but_0_may_be_chosen(self, esp_: Client, direct: list[Client], lease_id: int) -> None:
        assert esp_.grant(lease_id=lease_id) == lease_id
        assert [shard.ids() for shard in direct] == [[lease_id]] * 3

    def test_a_lease_that_one_shard_has_already_is_taken_back_on_the_others(
        self, esp_: Client, direct: list[Client], new_id: int
    ) -> None:
        direct[1].grant(lease_id=new_id)
        assert outcome(lambda: esp_.grant(lease_id=new_id)) == EXISTS
        assert [shard.ids() for shard in direct] == [[], [new_id], []]

    def test_a_ttl_below_the_minimum_is_raised(
        self, start_etcd: Etcds, start_esp: Esps, client_of: Callable[[Server], Client]
    ) -> None:
        """To what follows from the election time-out, which is an etcd's own default here."""
        judge, *shards = start_etcd.several(3, "--heartbeat-interval=100", "--election-timeout=1000")
        asked = [client_of(server).lease for server in (start_esp(shards, ["m"]), judge)]
        for ttl in (0, 1, -5):
            assert [one.LeaseGrant(Grant(TTL=ttl)).TTL for one in asked] == [2, 2]


class TestErrors:
    @pytest.mark.parametrize(
        "ask",
        [
            lambda client: client.lease.LeaseGrant(Grant(TTL=9_000_000_001)),
            lambda client: client.grant(lease_id=client.grant()),
            lambda client: client.revoke(4711),
            lambda client: client.revoke(0),
            lambda client: client.put(b"j", 4711),
            lambda client: client.kv.Txn(
                rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=Put(key=b"j", lease=4711))])
            ),
        ],
        ids=["too large a TTL", "exists", "revoke unknown", "revoke 0", "put unknown", "txn unknown"],
    )
    def test_an_error_is_that_of_one_etcd(self, esp_: Client, judge: Client, ask: Callable[[Client], object]) -> None:
        assert outcome(lambda: ask(esp_)) == outcome(lambda: ask(judge))

    def test_too_large_a_ttl_leaves_nothing_behind(self, esp_: Client, direct: list[Client]) -> None:
        assert outcome(lambda: esp_.grant(ttl=2**62))[1] == "etcdserver: too large lease TTL"
        assert [shard.ids() for shard in direct] == [[], [], []]

    def test_what_is_not_known_has_ttl_minus_1_and_no_error(self, esp_: Client, judge: Client) -> None:
        for client in (esp_, judge):
            answer = client.ttl(4711, keys=True)
            assert (answer.ID, answer.TTL, answer.grantedTTL, list(answer.keys)) == (4711, -1, 0, [])
            assert client.keep_alive(4711, 0) == [(4711, 0), (0, 0)]


class TestKeepAlive:
    def test_each_request_has_one_answer_in_order_and_the_half_close_drains(self, esp_: Client) -> None:
        first, second = esp_.grant(60), esp_.grant(90)
        asked = [first, 4711, second, first, second, 4711, first] * 50
        ttls = {first: 60, second: 90, 4711: 0}
        assert esp_.keep_alive(*asked) == [(lease_id, ttls[lease_id]) for lease_id in asked]

    def test_a_half_close_at_once_ends_well(self, esp_: Client) -> None:
        assert esp_.keep_alive() == []

    def test_an_answer_comes_before_the_next_request(self, esp_: Client) -> None:
        lease_id = esp_.grant(60)
        may_go = [True]

        def requests() -> Iterator[KeepAlive]:
            for _ in range(3):
                wait_until(lambda: may_go.pop() if may_go else False)
                yield KeepAlive(ID=lease_id)

        for answer in esp_.lease.LeaseKeepAlive(requests(), timeout=60):
            assert answer.TTL == 60
            assert answer.header.revision > 0
            may_go.append(True)

    def test_it_renews_on_every_shard(self, esp_: Client, direct: list[Client]) -> None:
        lease_id = esp_.grant(60)
        wait_until(lambda: max(shard.ttl(lease_id).TTL for shard in direct) < 59)
        esp_.keep_alive(lease_id)
        assert min(shard.ttl(lease_id).TTL for shard in direct) >= 59

    def test_many_leases_of_many_clients(self, esp_: Client, esp: EspProcess, client_of: Callable) -> None:
        clients = [client_of(esp) for _ in range(5)]
        ids = [[client.grant(60) for _ in range(40)] for client in clients]
        streams = [
            client.lease.LeaseKeepAlive(iter([KeepAlive(ID=lease_id) for lease_id in own * 5]), timeout=60)
            for client, own in zip(clients, ids, strict=True)
        ]
        for stream, own in zip(streams, ids, strict=True):
            assert [(answer.ID, answer.TTL) for answer in stream] == [(lease_id, 60) for lease_id in own * 5]

    def test_what_is_no_message_is_refused_as_by_etcd(self, esp: EspProcess, etcd: LocalEtcd) -> None:
        ended = []
        for server in (esp, etcd):
            with connect(server) as channel:
                call = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")(iter([b"\xff\xff"]), timeout=30)
                code, text = outcome(lambda call=call: list(call))
                ended.append((code, text.partition(": proto")[0].partition(": error")[0]))
        assert ended[0][0] == ended[1][0] == grpc.StatusCode.INTERNAL


class TestTimeToLive:
    def test_the_keys_are_those_of_all_shards_and_the_ttl_the_lowest(
        self, esp_: Client, direct: list[Client], judge: Client, new_id: int
    ) -> None:
        for shard, ttl in zip(direct, (50, 70, 90), strict=True):
            shard.grant(ttl=ttl, lease_id=new_id)
        judge.grant(ttl=50, lease_id=new_id)
        for client in (esp_, judge):
            for key in KEYS:
                client.put(key, new_id)
        mine, right = esp_.ttl(new_id, keys=True), judge.ttl(new_id, keys=True)
        assert (mine.ID, mine.grantedTTL, sorted(mine.keys)) == (right.ID, right.grantedTTL, sorted(right.keys))
        assert abs(mine.TTL - right.TTL) <= 1
        assert list(esp_.ttl(new_id).keys) == []

    def test_stray_keys_do_not_surface(self, esp_: Client, direct: list[Client]) -> None:
        lease_id = esp_.grant()
        esp_.put(b"a", lease_id)
        direct[2].put(b"a", lease_id)
        assert list(esp_.ttl(lease_id, keys=True).keys) == [b"a"]


def test_the_leases_are_those_of_all_shards_each_once(esp_: Client, direct: list[Client]) -> None:
    everywhere = [esp_.grant() for _ in range(3)]
    for index, shard in enumerate(direct):
        shard.grant(lease_id=index + 1)
    assert sorted(esp_.ids()) == sorted([*everywhere, 1, 2, 3])


class TestRevoke:
    def test_the_keys_go_on_every_shard(self, esp_: Client, direct: list[Client]) -> None:
        lease_id = esp_.grant()
        for key in KEYS:
            esp_.put(key, lease_id)
        assert esp_.keys() == list(KEYS)
        esp_.revoke(lease_id)
        assert esp_.keys() == []
        assert [shard.ids() for shard in direct] == [[], [], []]
        assert outcome(lambda: esp_.revoke(lease_id)) == NOT_FOUND

    def test_one_that_is_only_on_some_shards_is_revoked_without_an_error(
        self, esp_: Client, direct: list[Client], new_id: int
    ) -> None:
        direct[2].grant(lease_id=new_id)
        esp_.revoke(new_id)
        assert not direct[2].has(new_id)


def test_when_the_client_dies_the_keys_go_on_all_shards(esp_: Client, direct: list[Client]) -> None:
    lease_id = esp_.grant(2)
    for key in KEYS:
        esp_.put(key, lease_id)
    esp_.keep_alive(lease_id)
    wait_until(lambda: esp_.keys() == [])
    assert esp_.keep_alive(lease_id) == [(lease_id, 0)]
    assert [shard.ids() for shard in direct] == [[], [], []]


class TestTwoProxies:
    @pytest.fixture
    def other(self, start_esp: Esps, shards: list[LocalEtcd], client_of: Callable[[Server], Client]) -> Client:
        return client_of(start_esp(shards, ["i", "r"]))

    def test_a_lease_of_one_is_a_lease_of_the_other(self, esp_: Client, other: Client) -> None:
        lease_id = esp_.grant()
        for key in KEYS:
            other.put(key, lease_id)
        assert other.keep_alive(lease_id, lease_id) == [(lease_id, 60)] * 2
        assert sorted(other.ttl(lease_id, keys=True).keys) == list(KEYS)
        assert other.ids() == [lease_id]

    def test_what_one_has_revoked_the_other_does_not_bring_back(
        self, esp_: Client, other: Client, direct: list[Client]
    ) -> None:
        lease_id = esp_.grant()
        assert other.keep_alive(lease_id) == [(lease_id, 60)]
        other.revoke(lease_id)
        assert esp_.keep_alive(lease_id) == [(lease_id, 0)]
        assert outcome(lambda: esp_.put(b"j", lease_id)) == NOT_FOUND
        assert [shard.ids() for shard in direct] == [[], [], []]

    def test_the_same_id_is_granted_once(self, esp_: Client, other: Client, new_id: int, direct: list[Client]) -> None:
        esp_.grant(lease_id=new_id)
        assert outcome(lambda: other.grant(lease_id=new_id)) == EXISTS
        assert [shard.ids() for shard in direct] == [[new_id]] * 3


class TestHalfDead:
    def test_a_lease_that_ended_on_one_shard_is_dead_and_revoked_on_the_others(
        self, esp_: Client, direct: list[Client]
    ) -> None:
        lease_id = esp_.grant()
        for key in KEYS:
            esp_.put(key, lease_id)
        direct[1].revoke(lease_id)
        assert esp_.keep_alive(lease_id) == [(lease_id, 0)]
        wait_until(lambda: esp_.keys() == [])
        assert [shard.ids() for shard in direct] == [[], [], []]

    def test_it_is_not_granted_again_for_a_put(self, esp_: Client, direct: list[Client]) -> None:
        lease_id = esp_.grant()
        direct[1].revoke(lease_id)
        assert outcome(lambda: esp_.put(b"j", lease_id)) == NOT_FOUND
        assert not direct[1].has(lease_id)
        assert esp_.ttl(lease_id).TTL == -1

    def test_a_lease_that_expired_on_one_shard_only_is_dead(
        self, esp_: Client, direct: list[Client], new_id: int
    ) -> None:
        """As by a partition: nobody has revoked it there."""
        for shard, ttl in zip(direct, (60, 2, 60), strict=True):
            shard.grant(ttl=ttl, lease_id=new_id)
        for key in KEYS:
            esp_.put(key, new_id)
        assert esp_.keep_alive(new_id) == [(new_id, 2)]
        wait_until(lambda: not direct[1].has(new_id))
        assert esp_.keys() == [b"a", b"z"]
        assert esp_.ttl(new_id, keys=True).TTL == -1
        assert esp_.keep_alive(new_id) == [(new_id, 0)]
        wait_until(lambda: esp_.keys() == [])

    def test_a_lease_that_one_shard_lacks_and_may_have_had_is_dead(
        self, esp_: Client, direct: list[Client], new_id: int
    ) -> None:
        """esp has never seen it there, and cannot know whether it lost keys."""
        esp_.kv.Put(Put(key=b"j"))
        for shard in (direct[0], direct[2]):
            shard.grant(ttl=60, lease_id=new_id)
        assert outcome(lambda: esp_.put(b"j", new_id)) == NOT_FOUND
        assert esp_.ttl(new_id).TTL == -1
        assert esp_.keep_alive(new_id) == [(new_id, 0)]
        wait_until(lambda: [shard.ids() for shard in direct] == [[], [], []])


class TestExtremes:
    @pytest.mark.parametrize("lease_id", [-1, -(2**63), 2**63 - 1])
    @pytest.mark.parametrize("ttl", [2, 9_000_000_000])
    def test_ids_and_ttls_at_the_bounds_are_as_on_one_etcd(
        self, esp_: Client, judge: Client, lease_id: int, ttl: int
    ) -> None:
        said = []
        for client in (esp_, judge):
            granted = client.lease.LeaseGrant(Grant(ID=lease_id, TTL=ttl))
            client.put(b"j", lease_id)
            renewed = client.keep_alive(lease_id)
            left = client.ttl(lease_id, keys=True)
            assert ttl - 2 <= left.TTL <= ttl
            client.revoke(lease_id)
            said.append((granted.ID, granted.TTL, granted.error, renewed, left.grantedTTL, list(left.keys)))
        assert said[0] == said[1]

    @pytest.mark.parametrize("ttl", [-(2**63), 9_000_000_001, 2**63 - 1])
    def test_ttls_out_of_bounds_end_as_on_one_etcd(self, esp_: Client, judge: Client, ttl: int) -> None:
        def ask(client: Client) -> object:
            try:
                return client.lease.LeaseGrant(Grant(TTL=ttl)).TTL
            except grpc.RpcError as error:
                return error.code(), error.details()

        assert ask(esp_) == ask(judge)


def test_one_shard_still_gets_the_calls_as_they_are(
    esp: EspProcess, empty_shards: list[LocalEtcd], direct: list[Client], new_id: int
) -> None:
    """Metadata names the shard."""
    metadata = [("esp-shard", "s1")]
    with connect(esp) as channel:
        lease = rpc_pb2_grpc.LeaseStub(channel)
        lease.LeaseGrant(Grant(ID=new_id, TTL=60), metadata=metadata)
        assert [shard.ids() for shard in direct] == [[], [new_id], []]
        answers = lease.LeaseKeepAlive(iter([KeepAlive(ID=new_id)]), metadata=metadata, timeout=30)
        assert [answer.TTL for answer in answers] == [60]
