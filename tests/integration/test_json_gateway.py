"""The JSON gateway of a running esp, with curl and Python's own client; test_json_differential.py has all the rest."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import subprocess
from typing import Any

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, wait_until
from tests.stubs import rpc_pb2_grpc


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def post(esp: EspProcess, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(esp.address, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_what_is_written_as_json_is_read_with_grpc_and_the_other_way_round(
    esp: EspProcess, kv: rpc_pb2_grpc.KVStub
) -> None:
    for key in ("a", "k", "z"):  # a shard each
        assert post(esp, "/v3/kv/put", {"key": b64(key), "value": b64(f"of {key}")})[0] == 200
        assert kv.Range(rpc_pb2.RangeRequest(key=key.encode())).kvs[0].value == f"of {key}".encode()
    kv.Put(rpc_pb2.PutRequest(key=b"a", value=b"anew"))
    status, answer = post(esp, "/v3/kv/range", {"key": b64("\0"), "range_end": b64("\0")})
    assert (status, answer["count"]) == (200, "3")
    assert [row["value"] for row in answer["kvs"]] == [b64(text) for text in ("anew", "of k", "of z")]


def test_a_refusal_of_esps_own(esp: EspProcess, kv: rpc_pb2_grpc.KVStub) -> None:
    writes = [{"request_put": {"key": b64(key)}} for key in ("a", "z")]
    status, answer = post(esp, "/v3/kv/txn", {"success": writes})
    assert (status, answer["code"]) == (400, 9)
    assert answer["message"].startswith("esp: a transaction spans the shards s0, s2")


def test_each_of_very_many_requests_sent_ahead_is_answered(esp: EspProcess) -> None:
    """Those that esp itself answers at once, and those that go to a shard."""
    for body, status in (('{"key":"YQ==","sort_order":77}', 400), ('{"key":"YQ=="}', 200)):
        request = b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode())
        with socket.socket() as client:
            client.settimeout(30)
            host, _, port = esp.address.rpartition(":")
            client.connect((host, int(port)))
            client.sendall(request * 500)
            client.shutdown(socket.SHUT_WR)
            heard = b""
            while more := client.recv(1 << 16):
                heard += more
        assert heard.count(b"HTTP/1.1 %d " % status) == 500


def test_a_large_answer_streams_to_a_slow_reader(esp: EspProcess, kv: rpc_pb2_grpc.KVStub) -> None:
    value = bytes(range(256)) * 400
    for number in range(60):
        kv.Put(rpc_pb2.PutRequest(key=b"%d%02d" % (number % 3, number), value=value))
    body = json.dumps({"key": b64("\0"), "range_end": b64("\0")}).encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(30)
        host, _, port = esp.address.rpartition(":")
        slow.connect((host, int(port)))
        slow.sendall(b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        for _ in range(20):  # esp goes on serving the others meanwhile
            assert kv.Range(rpc_pb2.RangeRequest(key=b"000")).count == 1
        answer = http.client.HTTPResponse(slow, method="POST")
        answer.begin()
        rows = json.loads(answer.read())["kvs"]
    assert len(rows) == 60
    assert {row["value"] for row in rows} == {b64(value)}


def test_curl_watches(esp: EspProcess, kv: rpc_pb2_grpc.KVStub) -> None:
    curl = shutil.which("curl") or pytest.skip("no curl")
    request = json.dumps({"create_request": {"key": b64("\0"), "range_end": b64("\0")}})
    command = [curl, "--silent", "--no-buffer", "--max-time", "30", f"http://{esp.address}/v3/watch", "-d", request]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["result"]["created"] is True
        for key in (b"a", b"k", b"z"):
            kv.Put(rpc_pb2.PutRequest(key=key, value=b"1"))
            event = json.loads(watching.stdout.readline())["result"]["events"][0]
            assert event["kv"]["key"] == b64(key)
        watching.kill()


def test_a_lease_is_granted_and_kept_alive(esp: EspProcess, kv: rpc_pb2_grpc.KVStub) -> None:
    _, lease = post(esp, "/v3/lease/grant", {"TTL": 60})
    connection = http.client.HTTPConnection(esp.address, timeout=30)
    connection.request("POST", "/v3/lease/keepalive", json.dumps({"ID": lease["ID"]}) * 2)
    lines = connection.getresponse().read().splitlines()
    connection.close()
    assert [json.loads(line)["result"]["TTL"] for line in lines] == ["60", "60"]
    assert post(esp, "/v3/lease/revoke", {"ID": lease["ID"]})[0] == 200
    status, answer = post(esp, "/v3/lease/revoke", {"ID": lease["ID"]})
    assert (status, answer) == (404, {"code": 5, "message": "etcdserver: requested lease not found"})


def test_a_client_that_leaves_gives_up_its_place_in_the_lines_of_a_lock(
    esp: EspProcess, kv: rpc_pb2_grpc.KVStub
) -> None:
    _, first = post(esp, "/v3/lock/lock", {"name": b64("a")})
    waiting = http.client.HTTPConnection(esp.address, timeout=30)
    waiting.request("POST", "/v3/lock/lock", json.dumps({"name": b64("a")}))
    line = rpc_pb2.RangeRequest(key=b"a/", range_end=b"a0", count_only=True)
    wait_until(lambda: kv.Range(line).count == 2)
    waiting.close()
    wait_until(lambda: kv.Range(line).count == 1)
    assert post(esp, "/v3/lock/unlock", {"key": first["key"]})[0] == 200
    assert post(esp, "/v3/lock/lock", {"name": b64("a")})[0] == 200


def test_a_drain_ends_streams_with_a_line(start_esp: Esps, shards: list[LocalEtcd]) -> None:
    esp = start_esp(shards, ["i", "r"])
    connection = http.client.HTTPConnection(esp.address, timeout=30)
    connection.request("POST", "/v3/watch", json.dumps({"create_request": {"key": b64("a")}}))
    answer = connection.getresponse()
    assert b'"created":true' in answer.readline()
    start_esp.finish()
    assert json.loads(answer.readline()) == {"error": {"code": 14, "message": "etcdserver: server stopped"}}
    assert answer.readline() == b""
    connection.close()
