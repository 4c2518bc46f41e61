"""esp with few open files: too many clients do no harm to the others."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, connect, wait_until, write_config
from tests.stubs import rpc_pb2_grpc

FILES = 160
ROOM = FILES - 64 - 6
CLIENTS = 500
UNDER = ("/bin/sh", "-c", f'ulimit -S -n 40; ulimit -H -n {FILES}; exec "$0" "$@"')


@pytest.fixture
def shard(start_etcd: Etcds) -> LocalEtcd:
    return start_etcd()


@pytest.fixture(params=["uvloop", "asyncio"])
def small_esp(request: pytest.FixtureRequest, shard: LocalEtcd, start_esp: Esps, tmp_path: Path) -> EspProcess:
    """On either loop: they accept clients each in a way of its own."""
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    if request.param == "asyncio":
        (hiding / "uvloop.py").write_text("raise ImportError\n")
    config = write_config(tmp_path / "esp.yaml", [shard], [])
    esp = start_esp.launch("-c", config, config=config, under=("/usr/bin/env", f"PYTHONPATH={hiding}", *UNDER))
    esp.wait_ready()
    return esp


@contextlib.contextmanager
def clients(esp: EspProcess) -> Iterator[list[socket.socket]]:
    """All at once, from many addresses: the last eighth of the room is not for one that has much already."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(CLIENTS)]
        for number, sock in enumerate(socks):
            sock.bind((f"127.0.{1 + number // 250}.{1 + number % 250}", 0))
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", esp.port))
        yield socks


def is_served(client: socket.socket) -> bool:
    client.settimeout(30)
    try:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: esp\r\n\r\n")
        return client.recv(4096).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False


def refusals(esp: EspProcess) -> int:
    return len(re.findall(r"refused, as are others", esp.log()))


def test_it_says_once_how_many_clients_it_has_room_for(small_esp: EspProcess) -> None:
    (line,) = re.findall(r"WARNING (max_connections .*)", small_esp.log())
    assert line.startswith(f"max_connections is {ROOM} instead of 10000")


def test_clients_beyond_the_limit_are_closed_and_the_others_served(small_esp: EspProcess, shard: LocalEtcd) -> None:
    with connect(small_esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        kv.Put(rpc_pb2.PutRequest(key=b"a"), timeout=30)
        with clients(small_esp) as crowd:
            assert sum(map(is_served, crowd)) == ROOM - 1
            assert refusals(small_esp) == 1
            kv.Put(rpc_pb2.PutRequest(key=b"b"), timeout=30)

            shard.kill()
            shard.start()
            # After a short loss and after an outage the log has different words.
            wait_until(lambda: re.search("connected (to|again)", small_esp.log()) is not None)
            kv.Put(rpc_pb2.PutRequest(key=b"c"), timeout=30, wait_for_ready=True)

        def again() -> bool:
            with socket.create_connection(("127.0.0.1", small_esp.port), timeout=30) as client:
                return is_served(client)

        wait_until(again)
        assert [row.key for row in kv.Range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")).kvs] == [b"a", b"b", b"c"]
