"""MemberList over several shards: the proxies, and never a shard's member."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

import grpc
import pytest

from esp.core.local import LocalEtcd, free_port
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Server, connect, frozen, outcome, unknown, wait_until
from tests.stubs import rpc_pb2_grpc

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


def members(server: Server, *, linearizable: bool = False) -> rpc_pb2.MemberListResponse:
    with connect(server) as channel:
        request = rpc_pb2.MemberListRequest(linearizable=linearizable)
        told: rpc_pb2.MemberListResponse = rpc_pb2_grpc.ClusterStub(channel).MemberList(request, timeout=30)
        return told


def status(server: Server) -> rpc_pb2.StatusResponse:
    with connect(server) as channel:
        told: rpc_pb2.StatusResponse = rpc_pb2_grpc.MaintenanceStub(channel).Status(rpc_pb2.StatusRequest(), timeout=30)
        return told


@pytest.mark.parametrize("linearizable", [False, True])
def test_the_proxy_is_the_only_member(esp: EspProcess, shards: list[LocalEtcd], linearizable: bool) -> None:
    told = members(esp, linearizable=linearizable)
    [member] = told.members
    header = status(esp).header
    assert (told.header.member_id, told.header.cluster_id) == (header.member_id, header.cluster_id)
    assert (told.header.revision, member.ID) == (0, header.member_id)
    assert member.ID
    assert (member.name, list(member.clientURLs)) == ("esp", [esp.url])
    assert (list(member.peerURLs), member.isLearner) == ([], False)
    for shard in shards:
        assert member.ID not in [one.ID for one in members(shard).members]


def test_all_proxies_of_the_same_shards_are_one_member(
    esp: EspProcess, shards: list[LocalEtcd], start_esp: Esps
) -> None:
    other = start_esp(shards, ["i", "r"])
    [one], [two] = members(esp).members, members(other).members
    assert one.ID == two.ID
    assert list(two.clientURLs) == [other.url]


def test_what_is_advertised_is_told_and_what_clients_cannot_use_is_said_at_the_start(
    esp: EspProcess, shards: list[LocalEtcd], start_esp: Esps
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    urls = [esp.url, "http://nowhere.invalid:2379", nobody]
    proxy = start_esp(shards, ["i", "r"], extra=f"advertise: {json.dumps(urls)}")
    assert list(members(proxy).members[0].clientURLs) == urls
    wait_until(lambda: f"advertise URL {nobody} cannot be reached from here: " in proxy.log())
    assert f"advertise URL {esp.url}" not in proxy.log()
    wait_until(lambda: "advertise URL http://nowhere.invalid:2379: " in proxy.log())
    told = next(line for line in proxy.log().splitlines() if "advertise URL http://nowhere" in line)
    assert f"{proxy.config}: advertise URL http://nowhere.invalid:2379: " in told
    assert re.search(unknown("nowhere.invalid"), told)


def test_a_wildcard_tells_no_url_and_clients_keep_their_endpoints(
    shards: list[LocalEtcd], start_esp: Esps, etcdctl: Etcdctl
) -> None:
    everywhere = f"http://0.0.0.0:{free_port()}"
    proxy = start_esp(shards, ["i", "r"], "--listen", everywhere)
    cure = "write advertise: [http://HOST:PORT]"
    wait_until(lambda: "nothing is advertised" in proxy.log())
    assert cure in proxy.log()
    with connect(proxy) as channel:
        stub = rpc_pb2_grpc.ClusterStub(channel)
        code, text = outcome(lambda: stub.MemberList(rpc_pb2.MemberListRequest(), timeout=30))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert cure in text
    assert cure in etcdctl(proxy, "member", "list", check=False).stderr


def test_a_loopback_url_is_said_to_lead_others_to_themselves(shards: list[LocalEtcd], start_esp: Esps) -> None:
    port = free_port()
    extra = f"advertise: [http://localhost:{port}]"
    proxy = start_esp(shards, ["i", "r"], "--listen", f"http://0.0.0.0:{port}", extra=extra)
    wait_until(lambda: f"advertise URL http://localhost:{port} leads clients on other machines to" in proxy.log())


@pytest.mark.parametrize("advertised", [True, False])
def test_with_one_shard_what_is_advertised_is_told_too(
    shards: list[LocalEtcd], start_esp: Esps, advertised: bool
) -> None:
    port = free_port()
    extra = f"advertise: [http://localhost:{port}]" if advertised else ""
    proxy = start_esp(shards[:1], [], "--listen", f"http://127.0.0.1:{port}", extra=extra)
    [member] = members(proxy, linearizable=True).members
    assert list(member.clientURLs) == [f"http://localhost:{port}" if advertised else f"http://{shards[0].address}"]


def test_members_are_told_while_shards_are_away(esp: EspProcess, shards: list[LocalEtcd]) -> None:
    with frozen(shards[0]), frozen(shards[1]), frozen(shards[2]):
        assert len(members(esp, linearizable=True).members) == 1


def test_etcdctl_goes_from_the_members_to_the_proxy(esp: EspProcess, any_etcdctl: Etcdctl) -> None:
    listed = any_etcdctl(esp, "member", "list", "-w", "table").stdout
    row = next(line for line in listed.splitlines() if esp.url in line)
    assert "started" in row
    assert f"{status(esp).header.member_id:x}" in row
    assert esp.url in any_etcdctl(esp, "endpoint", "status", "--cluster").stdout
    done = any_etcdctl(esp, "endpoint", "health", "--cluster")
    assert f"{esp.url} is healthy" in done.stdout + done.stderr
