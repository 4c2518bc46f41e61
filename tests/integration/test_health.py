"""Health for probes, over HTTP/1.1, HTTP/2 and gRPC, compared with the answers of etcd 3.7."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import health_pb2, rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, Server, connect, outcome, peer, raw, running_esps, wait_until
from tests.stubs import rpc_pb2_grpc

SERVICE = "grpc.health.v1.Health"
Response = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def one_shard(etcd37: LocalEtcd, tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[EspProcess]:
    with running_esps(tmp_path_factory.mktemp("one"), etcd_binary) as esps:
        yield esps([etcd37])


def get(server: Server, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """Status, the headers that matter, and the body."""
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        names = ("Content-Type", "Content-Length", "X-Content-Type-Options", "Allow")
        return answer.status, {name: answer.headers.get(name, "") for name in names}, answer.read().decode()
    finally:
        connection.close()


PLAIN = [
    "/health",
    "/health?serializable=true",
    "/health?exclude=NOSPACE&exclude=CORRUPT",
    "/livez",
    "/livez?exclude=serializable_read",
    "/livez/serializable_read",
    "/readyz",
    "/readyz?exclude=linearizable_read&exclude=nothing",
    "/readyz/data_corruption",
    "/readyz/serializable_read",
    "/readyz/linearizable_read",
    "/readyz/non_learner",
    "/readyz/nothing",
    "/livez/non_learner",
    "/readyz/",
    "/livez/",
    "/health/",
    "/",
    "/nothing",
]
VERBOSE = [
    "/readyz?verbose",
    "/readyz?verbose=false&exclude=non_learner",
    "/readyz/linearizable_read?verbose",
    "/livez/serializable_read?verbose",
]


@pytest.mark.parametrize("path", PLAIN)
def test_a_page_is_etcds(esp: EspProcess, one_shard: EspProcess, etcd37: LocalEtcd, path: str) -> None:
    expected = get(etcd37, path)
    assert get(one_shard, path) == expected
    assert get(esp, path) == expected


@pytest.mark.parametrize("path", VERBOSE)
def test_with_one_shard_each_check_is_told_as_etcd_tells_it(
    one_shard: EspProcess, etcd37: LocalEtcd, path: str
) -> None:
    def told(server: Server) -> tuple[int, dict[str, str], list[str]]:
        status, fields, body = get(server, path)
        return status, fields, sorted(body.splitlines())  # etcd tells them in any order

    assert told(one_shard) == told(etcd37)


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/readyz/non_learner", "/version", "/nothing"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_another_method_is_refused_as_by_etcd(esp: EspProcess, etcd37: LocalEtcd, method: str, path: str) -> None:
    assert get(esp, path, method) == get(etcd37, path, method)


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz?verbose", "/version", "/nothing"])
def test_head_tells_what_get_would(esp: EspProcess, path: str) -> None:
    status, fields, _ = get(esp, path)
    assert get(esp, path, "HEAD") == (status, fields, "")


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz?verbose", "/readyz/shard/s1?verbose", "/version"])
def test_a_page_comes_over_http_2_as_well(esp: EspProcess, path: str) -> None:
    curl = shutil.which("curl") or pytest.skip("no curl")
    command = [curl, "-s", "--max-time", "20", "--http2-prior-knowledge", esp.url + path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "nghttp2" not in subprocess.run([curl, "-V"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this curl speaks no HTTP/2")
    assert done.stdout == get(esp, path)[2]


def test_each_shard_has_a_line_and_a_page(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    assert get(esp, "/readyz?verbose")[2].endswith("[+]shard s0 ok\n[+]shard s1 ok\nok\n")
    shards[0].kill()
    wait_until(lambda: get(esp, "/readyz/shard/s0")[0] == 503)
    assert [get(esp, path)[0] for path in ("/health", "/readyz", "/livez", "/readyz/shard/s1")] == [200] * 4
    why = "there is no connection available: connection refused"
    told = f"[-]shard s0 failed: serializable_read: {why}\n[+]shard s1 ok\nok\n"
    wait_until(lambda: told in get(esp, "/readyz?verbose")[2])
    assert get(esp, "/readyz/shard/s2")[0] == 404
    shards[0].start()
    wait_until(lambda: get(esp, "/readyz/shard/s0")[0] == 200)


def test_a_shard_that_wants_a_user_is_healthy(start_etcd: Etcds, start_esp: Esps) -> None:
    shard = start_etcd()
    with connect(shard) as channel:
        auth = rpc_pb2_grpc.AuthStub(channel)
        auth.UserAdd(rpc_pb2.AuthUserAddRequest(name="root", password="x"), timeout=20)
        auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name="root"), timeout=20)
        auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"), timeout=20)
        auth.AuthEnable(rpc_pb2.AuthEnableRequest(), timeout=20)
    esp = start_esp([shard])
    assert get(esp, "/health")[0] == get(shard, "/health")[0] == 200
    assert get(esp, "/readyz")[0] == 200


# grpc.health.v1.


def check(server: Server, service: str) -> Response | tuple[grpc.StatusCode, str]:
    with connect(server) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return Response.FromString(raw(channel, f"{SERVICE}/Check", request))
        except grpc.RpcError as error:
            return error.code(), error.details()


def watch(channel: grpc.Channel, service: str = "") -> Iterator[Response]:
    method = channel.unary_stream(f"/{SERVICE}/Watch", response_deserializer=Response.FromString)
    return method(health_pb2.HealthCheckRequest(service=service).SerializeToString(), timeout=60)


@pytest.mark.parametrize("service", ["", "etcdserverpb.KV", "grpc.health.v1.Health", "nothing"])
def test_a_check_and_a_watch_say_what_etcd_says(esp: EspProcess, etcd37: LocalEtcd, service: str) -> None:
    assert check(esp, service) == check(etcd37, service)
    with connect(esp) as through, connect(etcd37) as direct:
        assert next(watch(through, service)) == next(watch(direct, service))


def test_the_list_and_what_is_no_method_are_as_etcds(esp: EspProcess, etcd37: LocalEtcd) -> None:
    with connect(esp) as through, connect(etcd37) as direct:
        listed = [raw(channel, f"{SERVICE}/List", health_pb2.HealthListRequest()) for channel in (through, direct)]
        assert listed[0] == listed[1]
        code, text = outcome(lambda: raw(direct, f"{SERVICE}/Nothing", health_pb2.HealthListRequest()))
        here, said = outcome(lambda: raw(through, f"{SERVICE}/Nothing", health_pb2.HealthListRequest()))
        assert (here, said) == (code, text)


def test_who_watches_hears_when_no_shard_is_left_and_when_one_is_back(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    with connect(esp) as channel:
        told = watch(channel)
        assert next(told).status == Response.SERVING
        for shard in shards:
            shard.kill()
        assert next(told).status == Response.NOT_SERVING
        assert check(esp, "") == Response(status=Response.NOT_SERVING)
        shards[1].start()
        assert next(told).status == Response.SERVING
        esp.process.send_signal(signal.SIGTERM)
        assert outcome(lambda: next(told)) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
    assert esp.wait() == 0  # a second SIGTERM could come as the process has no handler any more


# Reflection.


def grpcurl(*arguments: str) -> str:
    command = [shutil.which("grpcurl") or str(peer("grpcurl")), "-plaintext", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_grpcurl_calls_one_shard_without_proto_files(start_esp: Esps, empty_shards: list[LocalEtcd]) -> None:
    proxy = start_esp(empty_shards[:1], [])
    assert {"etcdserverpb.KV", SERVICE} <= set(grpcurl(proxy.address, "list").split())
    grpcurl("-d", '{"key":"YQ=="}', proxy.address, "etcdserverpb.KV/Put")


def test_grpcurl_calls_without_proto_files(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    run = grpcurl
    assert {"etcdserverpb.KV", SERVICE} <= set(run(esp.address, "list").split())
    for key in ("YQ==", "eg=="):  # a, z
        run("-d", f'{{"key":"{key}"}}', esp.address, "etcdserverpb.KV/Put")
    everything = '{"key":"AA==","range_end":"AA=="}'
    assert json.loads(run("-d", everything, esp.address, "etcdserverpb.KV/Range"))["count"] == "2"
    one = ("-rpc-header", "esp-shard: s2", "-d", everything, esp.address, "etcdserverpb.KV/Range")
    assert json.loads(run(*one))["count"] == "1"
    assert "message RangeRequest {" in run(esp.address, "describe", "etcdserverpb.RangeRequest")
