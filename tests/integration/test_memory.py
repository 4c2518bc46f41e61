"""Memory while clients do not read their answers, or do not finish their requests: other clients go on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.wire import frames
from esp.core.wire.frames import SETTINGS_ACK, settings
from tests.core.wire.conversation import call, data, headers, message
from tests.harness import EspProcess, Esps, Etcds, connect, wait_until
from tests.stubs import rpc_pb2_grpc

MIB = 1 << 20
BUFFERED = 16 * MIB
CONNECTIONS = 10
READS = 40
RANGE = b"/etcdserverpb.KV/Range"
PUT = b"/etcdserverpb.KV/Put"


@pytest.fixture
def shards(start_etcd: Etcds) -> list[LocalEtcd]:
    return start_etcd.several(3)


@pytest.fixture
def esp(shards: list[LocalEtcd], start_esp: Esps) -> Iterator[EspProcess]:
    esp = start_esp(shards, ["i", "r"], extra=f"limits: {{max_buffered_bytes: {BUFFERED}}}")
    with connect(esp) as channel:
        rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"big", value=bytes(MIB)))
    yield esp
    assert esp.stop() == 0


class Hostile:
    """A connection that sends what it is told to, and reads nothing unless told to."""

    def __init__(self, esp: EspProcess, *, window: int, small_socket: bool = False) -> None:
        self.socket = socket.socket()
        if small_socket:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", esp.port))
        self.socket.settimeout(30)
        self.send(frames.PREFACE, settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: window}), SETTINGS_ACK)
        self.send(frames.window_update(0, 2**30))

    def send(self, *said: bytes) -> None:
        self.socket.sendall(b"".join(said))


def reads(connection: Hostile) -> None:
    asked = message(rpc_pb2.RangeRequest(key=b"big").SerializeToString())
    connection.send(
        *(headers(2 * n + 1, call(RANGE)) + data(2 * n + 1, asked, end=True) for n in range(READS)),
    )


def no_window(esp: EspProcess) -> Hostile:
    connection = Hostile(esp, window=0)
    reads(connection)
    return connection


def window_of_one(esp: EspProcess) -> Hostile:
    connection = Hostile(esp, window=1)
    reads(connection)
    return connection


def no_reading(esp: EspProcess) -> Hostile:
    connection = Hostile(esp, window=2**30, small_socket=True)
    reads(connection)
    return connection


def half_puts(esp: EspProcess) -> Hostile:
    """As much of each as its first window takes."""
    connection = Hostile(esp, window=65_535)
    begun = message(rpc_pb2.PutRequest(key=b"half", value=bytes(MIB)).SerializeToString())
    for n in range(READS):
        pieces = [data(2 * n + 1, begun[at : at + 15_000]) for at in range(0, 60_000, 15_000)]
        connection.send(headers(2 * n + 1, call(PUT)), *pieces)
    return connection


@pytest.mark.parametrize("attack", [no_window, window_of_one, no_reading, half_puts])
def test_connections_that_hold_all_the_memory_take_it_from_each_other(
    esp: EspProcess, attack: Callable[[EspProcess], Hostile]
) -> None:
    """Each of them wants more than there is, and a neighbour's calls, large ones among them, all succeed.

    Only requests can fill the memory so: of the answers that a connection does not read, few are made at a time.
    """
    with connect(esp) as channel, ExitStack() as attackers, ThreadPoolExecutor() as pool:
        kv = rpc_pb2_grpc.KVStub(channel)
        for connection in pool.map(attack, [esp] * CONNECTIONS):
            attackers.enter_context(connection.socket)
        if attack is half_puts:
            wait_until(lambda: "a call fails" in esp.log())
        everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
        for number in range(40):
            kv.Put(rpc_pb2.PutRequest(key=b"s%d" % number, value=bytes(MIB if number % 10 == 0 else 100)), timeout=20)
            assert kv.Range(everything, timeout=20).count == number + 2
            assert len(kv.Range(rpc_pb2.RangeRequest(key=b"big"), timeout=20).kvs[0].value) == MIB
        if attack is not half_puts:
            assert "a call fails" not in esp.log()


MB = 1_000_000
KEYS = 60
Request = rpc_pb2.RangeRequest
EVERYTHING = {"key": b"\0", "range_end": b"\0"}


@pytest.fixture
def large(shards: list[LocalEtcd], start_esp: Esps) -> Iterator[EspProcess]:
    """An esp over 60 MB in three shards, with memory for these and little more."""
    esp = start_esp(shards, ["i", "r"], extra=f"limits: {{max_buffered_bytes: {80 * MB}}}")
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for number in range(KEYS):
            kv.Put(rpc_pb2.PutRequest(key=b"%c%02d" % (b"ajs"[number % 3], number), value=b"%02d" % number + bytes(MB)))
    yield esp
    assert esp.stop() == 0


def any_size(esp: EspProcess) -> grpc.Channel:
    return grpc.insecure_channel(esp.address, options=[("grpc.max_receive_message_length", -1)])


def test_answers_over_shards_come_whole_however_large_they_are(large: EspProcess, etcd: LocalEtcd) -> None:
    with any_size(large) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        by_key = sorted(b"%c%02d" % (b"ajs"[number % 3], number) for number in range(KEYS))
        by_value = [b"%c%02d" % (b"ajs"[number % 3], number) for number in range(KEYS)]

        def keys_of(answer: rpc_pb2.RangeResponse) -> list[bytes]:
            assert answer.count == KEYS
            assert all(kv.value == kv.key[1:] + bytes(MB) for kv in answer.kvs)
            return [kv.key for kv in answer.kvs]

        answer = kv.Range(Request(**EVERYTHING, sort_target=Request.VALUE, sort_order=Request.DESCEND))
        assert keys_of(answer) == by_value[::-1]
        assert not answer.more
        answer = kv.Range(Request(**EVERYTHING, limit=KEYS - 1))
        assert keys_of(answer) == by_key[:-1]
        assert answer.more
        reading = rpc_pb2.RequestOp(request_range=Request(**EVERYTHING))
        both = kv.Txn(rpc_pb2.TxnRequest(success=[reading]))
        assert keys_of(both.responses[0].response_range) == by_key
        assert keys_of(kv.Range(Request(**EVERYTHING), metadata=[("esp-read", "snapshot")])) == by_key
        deleted = kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**EVERYTHING, prev_kv=True))
        assert deleted.deleted == KEYS
        assert [kv.key for kv in deleted.prev_kvs] == by_key
    assert "a call fails" not in large.log()


def test_large_answers_over_shards_at_once_on_one_channel_come_whole(large: EspProcess) -> None:
    """Twice 160 MB are asked for at once, and esp may hold 80."""
    reads = [
        Request(key=b"a", range_end=b"k"),
        Request(**EVERYTHING, sort_order=Request.DESCEND),
        Request(**EVERYTHING),
    ]
    with any_size(large) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for _ in range(3):
            calls = [kv.Range.future(read, timeout=60) for read in reads for _ in range(2)]
            assert [len(call.result().kvs) for call in calls] == [40, 40, KEYS, KEYS, KEYS, KEYS]
    assert "a call fails" not in large.log()


def test_clients_that_do_not_read_large_answers_hold_no_more_than_may_be_held(large: EspProcess) -> None:
    """Six times 60 MB are asked for; one's calls end for another, and whoever reads gets all of its answer."""
    asked = Request(**EVERYTHING, sort_target=Request.VALUE, sort_order=Request.ASCEND).SerializeToString()
    with any_size(large) as channel, ExitStack() as attackers:
        kv = rpc_pb2_grpc.KVStub(channel)
        for _ in range(6):
            connection = Hostile(large, window=0)
            attackers.enter_context(connection.socket)
            connection.send(headers(1, call(RANGE)), data(1, message(asked), end=True))
        wait_until(lambda: "a call fails" in large.log())
        for number in range(20):
            kv.Put(rpc_pb2.PutRequest(key=b"z%d" % number, value=b"v"), timeout=20)
            assert kv.Range(Request(key=b"a00"), timeout=20).count == 1
        assert len(kv.Range(Request(key=b"a", range_end=b"k", limit=20), timeout=20).kvs) == 20
        assert most_resident(large) < 4 * 80 * MB


def most_resident(esp: EspProcess) -> int:
    """The most memory that it ever had, in bytes."""
    status = Path(f"/proc/{esp.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
