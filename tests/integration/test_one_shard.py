"""With one shard configured esp stands aside: every RPC of every service passes through, known to esp or not."""

from __future__ import annotations

import http.client
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from tests.harness import EVERYTHING, EspProcess, Esps, Etcds, connect, outcome, peer, raw, running_esps, wait_until
from tests.stubs import rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def shard(module_etcds: Etcds) -> LocalEtcd:
    return module_etcds()


@pytest.fixture(scope="module")
def proxy(shard: LocalEtcd, tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[EspProcess]:
    with running_esps(tmp_path_factory.mktemp("one"), etcd_binary) as esps:
        yield esps([shard])


@pytest.fixture(scope="module")
def through(proxy: EspProcess) -> Iterator[grpc.Channel]:
    with connect(proxy) as channel:
        yield channel


@pytest.fixture(scope="module")
def direct(shard: LocalEtcd) -> Iterator[grpc.Channel]:
    with connect(shard) as channel:
        yield channel


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stdout.splitlines()


class Requests:
    """The client's half of a bidirectional stream: what is sent is up to the test, and when."""

    def __init__(self, *requests: object) -> None:
        self._queue: SimpleQueue[object] = SimpleQueue()
        for request in requests:
            self.send(request)

    def send(self, request: object) -> None:
        self._queue.put(request)

    def half_close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[object]:
        return iter(self._queue.get, None)


def test_a_watch_sees_what_happens_in_one_stream_of_several_watchers(through: grpc.Channel) -> None:
    kv = rpc_pb2_grpc.KVStub(through)
    create = rpc_pb2.WatchCreateRequest
    requests = Requests(
        rpc_pb2.WatchRequest(create_request=create(key=b"w", range_end=b"x", prev_kv=True)),
        rpc_pb2.WatchRequest(create_request=create(key=b"a", watch_id=7)),
    )
    answers = rpc_pb2_grpc.WatchStub(through).Watch(iter(requests), timeout=60)
    assert [(answer.watch_id, answer.created) for answer in (next(answers), next(answers))] == [(0, True), (7, True)]
    revision = kv.Put(rpc_pb2.PutRequest(key=b"w1", value=b"1")).header.revision
    put = next(answers)
    assert (put.watch_id, put.events[0].kv.value, put.header.revision) == (0, b"1", revision)
    kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"w1"))
    deleted = next(answers)
    assert (deleted.events[0].type, deleted.events[0].prev_kv.value) == (deleted.events[0].DELETE, b"1")
    requests.send(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=0)))
    assert next(answers).canceled
    kv.Put(rpc_pb2.PutRequest(key=b"a"))
    assert next(answers).watch_id == 7
    answers.cancel()


def test_watches_that_are_passed_on_are_counted(proxy: EspProcess, through: grpc.Channel) -> None:
    def streams() -> float:
        with urllib.request.urlopen(f"{proxy.url}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith("esp_watch_streams ")).split()[1])

    wait_until(lambda: streams() == 0)
    requests = [
        Requests(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"counted"))) for _ in range(2)
    ]
    watches = [rpc_pb2_grpc.WatchStub(through).Watch(iter(each), timeout=60) for each in requests]
    assert all(next(watch).created for watch in watches)
    assert streams() == 2
    for watch, each in zip(watches, requests, strict=True):
        watch.cancel()
        each.half_close()
    wait_until(lambda: streams() == 0)


def test_a_watch_goes_on_after_the_clients_half_close(through: grpc.Channel) -> None:
    requests = Requests(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"h")))
    requests.half_close()
    answers = rpc_pb2_grpc.WatchStub(through).Watch(iter(requests), timeout=60)
    assert next(answers).created
    rpc_pb2_grpc.KVStub(through).Put(rpc_pb2.PutRequest(key=b"h"))
    assert next(answers).events[0].kv.key == b"h"
    answers.cancel()


def test_a_keepalive_answers_one_for_one_and_ends_well_on_half_close(through: grpc.Channel) -> None:
    leases = rpc_pb2_grpc.LeaseStub(through)
    granted = leases.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=60))
    requests = Requests(*[rpc_pb2.LeaseKeepAliveRequest(ID=id_) for id_ in (granted.ID, 12345, granted.ID)])
    requests.half_close()
    answers = leases.LeaseKeepAlive(iter(requests), timeout=60)
    assert [(answer.ID, answer.TTL) for answer in answers] == [(granted.ID, 60), (12345, 0), (granted.ID, 60)]
    assert answers.code() == grpc.StatusCode.OK
    leases.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=granted.ID))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        pytest.param("etcdserverpb.Auth/AuthStatus", rpc_pb2.AuthStatusRequest(), marks=pytest.mark.needs_etcd(3, 5)),
        ("etcdserverpb.Auth/UserList", rpc_pb2.AuthUserListRequest()),
        ("etcdserverpb.Cluster/MemberList", rpc_pb2.MemberListRequest()),
        ("etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest()),
        ("etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmRequest()),
        ("etcdserverpb.Maintenance/HashKV", rpc_pb2.HashKVRequest()),
        ("etcdserverpb.Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest()),
        ("etcdserverpb.KV/Range", rpc_pb2.RangeRequest(**EVERYTHING)),
    ],
)
def test_an_answer_is_the_shards_very_bytes(
    through: grpc.Channel, direct: grpc.Channel, method: str, request_: rpc_pb2.RangeRequest
) -> None:
    expected = raw(direct, method, request_)
    # etcd renews the numbers of Status now and then; that it says the same before and after is part of the question.
    for _ in range(50):
        answer, again = raw(through, method, request_), raw(direct, method, request_)
        if expected == again:
            break
        expected = again
    assert answer == expected


@pytest.mark.parametrize("method", ["etcdserverpb.KV/Tomorrow", "etcdserverpb.Tomorrow/Range", "grpc.Nothing/At.All"])
def test_a_method_that_nobody_knows_is_refused_by_the_shard(
    through: grpc.Channel, direct: grpc.Channel, method: str
) -> None:
    request = rpc_pb2.RangeRequest(key=b"a")
    expected = outcome(lambda: raw(direct, method, request))
    assert expected[0] == grpc.StatusCode.UNIMPLEMENTED
    assert outcome(lambda: raw(through, method, request)) == expected


def test_an_error_is_the_shards_own(through: grpc.Channel, direct: grpc.Channel) -> None:
    def revoke(channel: grpc.Channel) -> tuple[grpc.StatusCode, str]:
        request = rpc_pb2.LeaseRevokeRequest(ID=99)
        return outcome(lambda: rpc_pb2_grpc.LeaseStub(channel).LeaseRevoke(request))

    assert revoke(through) == revoke(direct) == (grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")


def test_compact_takes_the_shards_revisions(through: grpc.Channel) -> None:
    kv = rpc_pb2_grpc.KVStub(through)
    kv.Put(rpc_pb2.PutRequest(key=b"c", value=b"1"))
    last = kv.Put(rpc_pb2.PutRequest(key=b"c", value=b"2")).header.revision
    kv.Compact(rpc_pb2.CompactionRequest(revision=last))
    old = rpc_pb2.RangeRequest(key=b"c", revision=last - 1)
    assert outcome(lambda: kv.Range(old))[0] == grpc.StatusCode.OUT_OF_RANGE


def test_a_snapshot_comes_whole(through: grpc.Channel) -> None:
    kv = rpc_pb2_grpc.KVStub(through)
    for number in range(100):
        kv.Put(rpc_pb2.PutRequest(key=b"s%d" % number, value=b"v" * 10_000))
    parts = list(rpc_pb2_grpc.MaintenanceStub(through).Snapshot(rpc_pb2.SnapshotRequest(), timeout=60))
    assert parts[-1].remaining_bytes == 0
    assert len(parts) > 1
    assert sum(len(part.blob) for part in parts) > 1_000_000


def test_etcdctl_saves_a_snapshot_that_it_finds_sound(proxy: EspProcess, tmp_path: Path, etcdctl: Etcdctl) -> None:
    etcdctl(proxy, "put", "a", "1")
    path = tmp_path / "snapshot.db"
    etcdctl(proxy, "snapshot", "save", str(path))
    assert etcdctl(proxy, "snapshot", "status", str(path), "-w", "simple").returncode == 0


def test_etcdctl_watches_and_sees_the_past(proxy: EspProcess, etcdctl: Etcdctl) -> None:
    field = next(line for line in lines(etcdctl(proxy, "put", "past", "1", "-w", "fields")) if '"Revision"' in line)
    # Ends by itself: etcdctl gives up when the command that it runs for an event fails.
    done = etcdctl(proxy, "watch", "past", "--rev", field.rpartition(" ")[2], "--", "false", check=False)
    assert lines(done) == ["PUT", "past", "1"]


@pytest.mark.needs_etcd(3, 5)  # 3.4 has no AuthStatus
def test_etcdctl_sees_members_status_and_auth_as_directly(
    proxy: EspProcess, shard: LocalEtcd, etcdctl: Etcdctl
) -> None:
    for question in (["member", "list"], ["auth", "status"], ["user", "list"], ["alarm", "list"]):
        assert etcdctl(proxy, *question).stdout == etcdctl(shard, *question).stdout
    assert len(etcdctl(proxy, "endpoint", "status", "-w", "simple").stdout.split(", ")) > 5


def test_etcdctl_takes_and_frees_a_lock(proxy: EspProcess, etcdctl: Etcdctl) -> None:
    assert etcdctl(proxy, "lock", "gate", "echo", "inside").stdout == "inside\n"


def test_lock_and_election_services_pass_through(through: grpc.Channel) -> None:
    lease = rpc_pb2_grpc.LeaseStub(through).LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=60)).ID
    lock = v3lock_pb2_grpc.LockStub(through)
    held = lock.Lock(v3lock_pb2.LockRequest(name=b"gate", lease=lease))
    assert held.key.startswith(b"gate/")
    lock.Unlock(v3lock_pb2.UnlockRequest(key=held.key))
    election = v3election_pb2_grpc.ElectionStub(through)
    election.Campaign(v3election_pb2.CampaignRequest(name=b"chair", lease=lease, value=b"me"))
    observed = election.Observe(v3election_pb2.LeaderRequest(name=b"chair"), timeout=60)
    assert next(observed).kv.value == b"me"
    observed.cancel()


def test_auth_passes_through_with_its_tokens(start_etcd: Etcds, start_esp: Esps, etcdctl: Etcdctl) -> None:
    shard = start_etcd()
    esp = start_esp([shard])
    etcdctl(esp, "user", "add", "root:secret")
    etcdctl(esp, "user", "grant-role", "root", "root")
    etcdctl(esp, "auth", "enable")
    assert etcdctl(esp, "--user", "root:secret", "put", "a", "1").stdout == "OK\n"
    for server in (esp, shard):
        done = etcdctl(server, "get", "a", check=False)
        assert "etcdserver: user name is empty" in done.stderr
    done = etcdctl(esp, "--user", "root:wrong", "get", "a", check=False)
    assert "etcdserver: authentication failed, invalid user ID or password" in done.stderr


def test_a_stream_ends_with_the_clients_deadline(through: grpc.Channel) -> None:
    requests = Requests(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"quiet")))
    answers = rpc_pb2_grpc.WatchStub(through).Watch(iter(requests), timeout=1)
    ended = outcome(lambda: list(answers))
    # The client's own word or etcd's, whichever is first. This etcd's is that, through esp or not.
    assert ended[0] == grpc.StatusCode.DEADLINE_EXCEEDED or ended == (
        grpc.StatusCode.UNKNOWN,
        "context deadline exceeded",
    )


def test_when_the_client_leaves_the_shard_is_told(proxy: EspProcess, shard: LocalEtcd, through: grpc.Channel) -> None:
    """etcd counts its watchers; those of a stream that was cancelled at esp must be gone there."""

    def watchers() -> float:
        connection = http.client.HTTPConnection(shard.address, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        line = next(line for line in text.splitlines() if line.startswith("etcd_debugging_mvcc_watcher_total "))
        return float(line.split()[1])

    def wait_for(count: float) -> None:
        wait_until(lambda: watchers() == count)

    wait_for(0)
    create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"left"))
    answers = rpc_pb2_grpc.WatchStub(through).Watch(iter(Requests(create, create)), timeout=60)
    assert next(answers).created
    assert next(answers).created
    wait_for(2)
    answers.cancel()
    wait_for(0)


def test_an_rpc_of_a_newer_etcd_passes_through(start_etcd: Etcds, start_esp: Esps) -> None:
    shard = start_etcd(binary=peer("etcd"))
    with connect(start_esp([shard])) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        kv.Put(rpc_pb2.PutRequest(key=b"a", value=b"1"))
        parts = list(kv.RangeStream(rpc_pb2.RangeRequest(**EVERYTHING)))
        assert [row.value for part in parts for row in part.range_response.kvs] == [b"1"]
