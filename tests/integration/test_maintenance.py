"""Maintenance over several shards: alarms, Defragment, RPCs of one cluster; with etcdctl of three generations."""

from __future__ import annotations

import functools
import http.client
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import (
    EspProcess,
    Esps,
    Etcds,
    Server,
    connect,
    frozen,
    outcome,
    running_esps,
    running_etcds,
    wait_until,
)
from tests.stubs import rpc_pb2_grpc

Alarm = rpc_pb2.AlarmRequest
NOSPACE, CORRUPT = rpc_pb2.NOSPACE, rpc_pb2.CORRUPT
Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def etcds(tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[Etcds]:
    with running_etcds(tmp_path_factory.mktemp("etcds"), etcd_binary) as started:
        yield started


@pytest.fixture(scope="module")
def whole(etcds: Etcds) -> list[LocalEtcd]:
    """Three shards that no other module has."""
    return etcds.several(3)


@pytest.fixture(scope="module")
def proxy(whole: list[LocalEtcd], tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[EspProcess]:
    with running_esps(tmp_path_factory.mktemp("esp"), etcd_binary) as esps:
        yield esps(whole, ["i", "r"])


@pytest.fixture(scope="module")
def through(proxy: EspProcess) -> Iterator[rpc_pb2_grpc.MaintenanceStub]:
    with connect(proxy) as channel:
        yield rpc_pb2_grpc.MaintenanceStub(channel)


@pytest.fixture
def calm(whole: list[LocalEtcd]) -> Iterator[None]:
    """No alarm is left on any shard."""
    yield
    for shard in whole:
        change(shard, *[Alarm(action=Alarm.DEACTIVATE, memberID=m, alarm=a) for m, a in alarms_of(shard)])


def ask(server: Server, request: rpc_pb2.AlarmRequest) -> rpc_pb2.AlarmResponse:
    with connect(server) as channel:
        answer: rpc_pb2.AlarmResponse = rpc_pb2_grpc.MaintenanceStub(channel).Alarm(request, timeout=30)
        return answer


def change(server: Server, *requests: rpc_pb2.AlarmRequest) -> None:
    for request in requests:
        ask(server, request)


def alarms_of(server: Server, alarm: rpc_pb2.AlarmType = rpc_pb2.NONE) -> list[tuple[int, int]]:
    return [(one.memberID, one.alarm) for one in ask(server, Alarm(alarm=alarm)).alarms]


def member_of(server: Server) -> int:
    with connect(server) as channel:
        return rpc_pb2_grpc.MaintenanceStub(channel).Status(rpc_pb2.StatusRequest(), timeout=30).header.member_id


def raise_alarm(shard: LocalEtcd, alarm: rpc_pb2.AlarmType = NOSPACE) -> int:
    """The id of the member that has it."""
    member = member_of(shard)
    change(shard, Alarm(action=Alarm.ACTIVATE, memberID=member, alarm=alarm))
    return member


def page(server: Server, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


# Alarms.


@pytest.mark.usefixtures("calm")
def test_the_alarms_of_all_shards_are_told_and_each_ends_where_it_is(proxy: EspProcess, whole: list[LocalEtcd]) -> None:
    assert alarms_of(proxy) == []
    first, last = raise_alarm(whole[0]), raise_alarm(whole[2], CORRUPT)
    assert alarms_of(proxy) == [(first, NOSPACE), (last, CORRUPT)]
    assert alarms_of(proxy, CORRUPT) == [(last, CORRUPT)]
    header = ask(proxy, Alarm()).header
    assert (header.member_id, header.cluster_id) != (0, 0)
    assert header.member_id == member_of(proxy)
    ended = ask(proxy, Alarm(action=Alarm.DEACTIVATE, memberID=last, alarm=CORRUPT))
    assert [(one.memberID, one.alarm) for one in ended.alarms] == [(last, CORRUPT)]
    assert alarms_of(whole[2]) == []
    assert alarms_of(proxy) == alarms_of(whole[0]) == [(first, NOSPACE)]


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize("case", ["nobody", "an unknown member", "no alarm", "another alarm", "an unknown alarm"])
def test_what_is_not_there_ends_as_in_etcd(
    proxy: EspProcess, whole: list[LocalEtcd], etcd: LocalEtcd, case: str
) -> None:
    def answer(server: Server, member: int) -> list[tuple[int, int]]:
        request = {
            "nobody": Alarm(memberID=0, alarm=NOSPACE),
            "an unknown member": Alarm(memberID=12345, alarm=NOSPACE),
            "no alarm": Alarm(memberID=member),
            "another alarm": Alarm(memberID=member, alarm=CORRUPT),
            "an unknown alarm": Alarm(memberID=member, alarm=77),  # type: ignore[arg-type]
        }[case]
        request.action = Alarm.DEACTIVATE
        return [(one.memberID, one.alarm) for one in ask(server, request).alarms]

    member = raise_alarm(whole[1])
    judge = raise_alarm(etcd)
    try:
        assert answer(proxy, member) == answer(etcd, judge) == []
        assert alarms_of(proxy) == [(member, NOSPACE)]
    finally:
        change(etcd, Alarm(action=Alarm.DEACTIVATE, memberID=judge, alarm=NOSPACE))


@pytest.mark.usefixtures("calm")
def test_an_alarm_of_nobody_ends_too(proxy: EspProcess, whole: list[LocalEtcd]) -> None:
    """etcd lets an operator raise one for any id, also 0."""
    change(whole[1], Alarm(action=Alarm.ACTIVATE, alarm=NOSPACE))
    assert alarms_of(proxy) == [(0, NOSPACE)]
    change(proxy, Alarm(action=Alarm.DEACTIVATE, alarm=NOSPACE))
    assert alarms_of(whole[1]) == []


def test_no_alarm_is_raised_and_no_other_action_reaches_a_shard(
    through: rpc_pb2_grpc.MaintenanceStub, whole: list[LocalEtcd]
) -> None:
    code, text = outcome(lambda: through.Alarm(Alarm(action=Alarm.ACTIVATE, alarm=NOSPACE), timeout=30))
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert text.startswith("esp: an alarm is raised by a member of one shard; ")
    request = Alarm(action=7)  # type: ignore[arg-type]
    assert outcome(lambda: through.Alarm(request, timeout=30)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "esp: there is no alarm action 7",
    )
    assert [alarms_of(shard) for shard in whole] == [[], [], []]


@pytest.mark.usefixtures("calm")
def test_while_a_shard_is_away_its_alarms_are_not_told_as_none_and_others_end(
    through: rpc_pb2_grpc.MaintenanceStub, whole: list[LocalEtcd]
) -> None:
    member = raise_alarm(whole[0])
    with frozen(whole[1]):
        late = (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out")
        assert outcome(lambda: through.Alarm(Alarm(), timeout=30)) == late
        unknown = Alarm(action=Alarm.DEACTIVATE, memberID=5, alarm=NOSPACE)
        away = (grpc.StatusCode.UNAVAILABLE, "there is no connection available")  # once esp has found out
        assert outcome(lambda: through.Alarm(unknown, timeout=30)) in (late, away)
        through.Alarm(Alarm(action=Alarm.DEACTIVATE, memberID=member, alarm=NOSPACE), timeout=30)
        assert alarms_of(whole[0]) == []


@pytest.mark.usefixtures("calm")
def test_etcdctl_lists_and_disarms(proxy: EspProcess, whole: list[LocalEtcd], any_etcdctl: Etcdctl) -> None:
    members = [raise_alarm(shard) for shard in whole[:2]]
    listed = any_etcdctl(proxy, "alarm", "list").stdout.splitlines()
    assert sorted(line.split() for line in listed) == sorted([f"memberID:{one}", "alarm:NOSPACE"] for one in members)
    sick = any_etcdctl(proxy, "endpoint", "health", check=False)
    assert (sick.returncode == 0) == ("3.4." in any_etcdctl(proxy, "version").stdout), "3.4 does not look at alarms"
    assert len(any_etcdctl(proxy, "alarm", "disarm").stdout.splitlines()) == 2
    assert any_etcdctl(proxy, "alarm", "list").stdout == ""
    assert [alarms_of(shard) for shard in whole] == [[], [], []]


@pytest.mark.usefixtures("calm")
def test_alarms_show_on_the_pages_and_do_not_make_the_proxy_unhealthy_while_a_shard_has_none(
    proxy: EspProcess, whole: list[LocalEtcd], start_esp: Esps
) -> None:
    for shard in whole[:2]:
        raise_alarm(shard, CORRUPT)
    esp = start_esp(whole, ["i", "r"])  # whose pages remember nothing
    assert page(esp, "/health") == (200, '{"health":"true","reason":""}')
    status, body = page(esp, "/readyz?verbose")
    assert status == 200
    assert "[+]data_corruption ok\n" in body
    assert "[-]shard s1 failed: data_corruption: alarm activated: CORRUPT\n[+]shard s2 ok\n" in body
    assert page(esp, "/readyz/shard/s2") == (200, "ok\n")
    assert page(esp, "/readyz/shard/s1?exclude=data_corruption") == (200, "ok\n")
    status, body = page(esp, "/readyz/shard/s1")
    assert (status, body.splitlines()[0]) == (503, "[-]data_corruption failed: alarm activated: CORRUPT")
    raise_alarm(whole[2])
    esp = start_esp(whole, ["i", "r"])
    status, body = page(esp, "/health")
    assert status == 503
    assert json.loads(body) == {
        "health": "false",
        "reason": "shard s0: ALARM CORRUPT, shard s1: ALARM CORRUPT, shard s2: ALARM NOSPACE",
    }
    assert page(esp, "/health?exclude=NOSPACE") == (200, '{"health":"true","reason":""}')
    assert page(esp, "/readyz") == (200, "ok\n")


# What etcdctl shows of all.


def test_etcdctl_calls_esp_healthy_and_shows_the_sums(
    proxy: EspProcess, whole: list[LocalEtcd], any_etcdctl: Etcdctl
) -> None:
    done = any_etcdctl(proxy, "endpoint", "health")
    assert "is healthy: successfully committed proposal" in done.stdout + done.stderr
    table = any_etcdctl(proxy, "endpoint", "status", "-w", "table").stdout
    row = next(line for line in table.splitlines() if proxy.address in line)
    assert "true" in row
    assert f"{member_of(proxy):x}" in row
    [told] = json.loads(any_etcdctl(proxy, "endpoint", "status", "-w", "json").stdout)
    sizes = [json.loads(any_etcdctl(one, "endpoint", "status", "-w", "json").stdout) for one in whole]
    assert told["Status"]["dbSize"] == sum(size["Status"]["dbSize"] for [size] in sizes)


# What concerns one cluster.


@pytest.mark.parametrize("number", range(3))
def test_the_command_that_is_told_works(
    proxy: EspProcess, whole: list[LocalEtcd], etcdctl: Etcdctl, tmp_path: Path, number: int
) -> None:
    file = tmp_path / "db"
    told = etcdctl(proxy, "snapshot", "save", str(file), check=False).stderr
    command = told.partition(f" (shard s{number})")[0].rpartition("etcdctl --endpoints=")[2]
    endpoint, *arguments = command.replace("FILE", str(file)).split()
    etcdctl(endpoint, *arguments)
    assert file.stat().st_size % 512 == 32


# Defragment.


@pytest.fixture
def fragmented(whole: list[LocalEtcd]) -> None:
    """The files of all shards have free pages."""
    for number, shard in enumerate(whole):
        with connect(shard) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            key = b"aiz"[number : number + 1]
            for _ in range(4):
                revision = kv.Put(rpc_pb2.PutRequest(key=key, value=bytes(1_000_000)), timeout=20).header.revision
            kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=key), timeout=20)
            kv.Compact(rpc_pb2.CompactionRequest(revision=revision + 1), timeout=20)
            wait_until(lambda: in_use(channel) < 1_000_000)


def in_use(channel: grpc.Channel) -> int:
    """Bytes of the file that are not free; pages that a compaction has left count as free after a further write."""
    rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"\0"), timeout=30)
    return rpc_pb2_grpc.MaintenanceStub(channel).Status(rpc_pb2.StatusRequest(), timeout=30).dbSizeInUse


def sizes(shards: list[LocalEtcd]) -> list[int]:
    return [size_of(shard) for shard in shards]


def size_of(server: Server) -> int:
    with connect(server) as channel:
        return rpc_pb2_grpc.MaintenanceStub(channel).Status(rpc_pb2.StatusRequest(), timeout=30).dbSize


@pytest.mark.usefixtures("fragmented")
def test_defrag_goes_over_all_shards_where_the_config_says_so(
    whole: list[LocalEtcd], start_esp: Esps, any_etcdctl: Etcdctl
) -> None:
    esp = start_esp(whole, ["i", "r"], extra="defragment: sequential")
    before = sizes(whole)
    done = any_etcdctl(esp, "defrag", "--command-timeout=60s")
    assert "Finished defragmenting etcd member[" in done.stdout + done.stderr
    assert all(now < then / 2 for now, then in zip(sizes(whole), before, strict=True))
    told = [line.partition("INFO ")[2] for line in esp.log().splitlines() if "defragmented" in line]
    assert told == [f"shard s{number}: defragmented {shard.endpoint}" for number, shard in enumerate(whole)]


@pytest.mark.usefixtures("fragmented")
def test_defrag_stops_at_a_shard_that_fails_and_says_what_is_done(whole: list[LocalEtcd], start_esp: Esps) -> None:
    esp = start_esp(whole, ["i", "r"], extra="defragment: sequential\nlimits: {connect_timeout: 0.2}")
    before = sizes(whole)
    with connect(esp) as channel, frozen(whole[1]):
        stub = rpc_pb2_grpc.MaintenanceStub(channel)
        defragment = functools.partial(stub.Defragment, rpc_pb2.DefragmentRequest())
        assert outcome(lambda: defragment(timeout=1.5))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    after = sizes(whole)
    assert after[0] < before[0] / 2
    assert after[2] == before[2]
