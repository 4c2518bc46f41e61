"""Each key is one register for all clients of all proxies, even while etcds and proxies are killed or frozen."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import grpc
import pytest

from bench.chaos.linearizability import NEVER, Kind, Operation, is_linearizable
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, connect, freeze, wait_ready
from tests.stubs.rpc_pb2_grpc import KVStub

BOUNDARIES = ["i", "r"]
KEYS = (b"a", b"h\xff", b"i", b"k", b"r", b"z")
"""Two of each shard, boundaries among them."""
CLIENTS_EACH = 3
SECONDS = 1.0
"""The deadline of a call."""
NOT_SENT = ("there is no connection available", "failed to connect to all addresses")
"""Texts that say that nothing was sent: esp's, and grpcio's when there is no esp."""
PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def shard_of(key: bytes) -> int:
    return (key >= b"i") + (key >= b"r")


class Client:
    """Asks for one key through one of the proxies, one call after the other, and writes down what it saw.

    Attributes:
        clusters: which etcd clusters answered. Ports of what was killed are free for others on this machine.
    """

    def __init__(self, key: bytes, number: int, proxies: list[EspProcess], names: Iterator[int]) -> None:
        self.key = key
        self.history: list[Operation] = []
        self.clusters: set[int] = set()
        self.not_sent = 0
        self.failure: BaseException | None = None
        self._chance = random.Random(number)
        self._proxies = proxies
        self.place = number % len(proxies)
        self._names = names
        self._mod = 0  # what it believes is the key's mod revision
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def answered(self) -> int:
        return sum(operation.is_known for operation in list(self.history))

    def stop(self) -> None:
        self._stopping.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                proxy = self._proxies[self.place]
                with connect(proxy) as channel:
                    kv = KVStub(channel)
                    # Another one in its place listens elsewhere.
                    while not self._stopping.wait(0.01) and proxy is self._proxies[self.place]:
                        self._ask(kv)
        except BaseException as failure:
            self.failure = failure
            raise

    def _ask(self, kv: KVStub) -> None:
        kind = self._chance.choice([Kind.PUT, Kind.GET, Kind.GET, Kind.CAS, Kind.CAS, Kind.DELETE])
        value = f"{next(self._names)}" if kind in (Kind.PUT, Kind.CAS) else ""
        expected = self._mod if kind == Kind.CAS else 0
        called = time.monotonic()
        try:
            answered = self._call(kv, kind, value, expected, called)
        except grpc.RpcError as error:
            if error.code() not in PASSING:
                raise
            if error.details().startswith(NOT_SENT):
                self.not_sent += 1
            elif kind != Kind.GET:  # an unanswered read says nothing
                self.history.append(Operation(kind, called, value=value, expected=expected))
            self._stopping.wait(0.1)
            return
        self.history.append(answered)
        self._mod = 0 if kind == Kind.DELETE else answered.revision

    def _call(self, kv: KVStub, kind: Kind, value: str, expected: int, called: float) -> Operation:
        def operation(*, done: bool = False, revision: int = 0, rows: Sequence[object] | None = None) -> Operation:
            read = None
            for row in rows or ():
                read, revision = row.value.decode(), row.mod_revision  # type: ignore[attr-defined]
            return Operation(kind, called, time.monotonic(), value, expected, done, read, revision)

        match kind:
            case Kind.PUT:
                put = kv.Put(rpc_pb2.PutRequest(key=self.key, value=value.encode()), timeout=SECONDS)
                self.clusters.add(put.header.cluster_id)
                return operation(revision=put.header.revision)
            case Kind.GET:
                got = kv.Range(rpc_pb2.RangeRequest(key=self.key), timeout=SECONDS)
                self.clusters.add(got.header.cluster_id)
                return operation(rows=got.kvs)
            case Kind.DELETE:
                gone = kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=self.key), timeout=SECONDS)
                self.clusters.add(gone.header.cluster_id)
                return operation(done=gone.deleted == 1, revision=gone.header.revision if gone.deleted else 0)
            case Kind.CAS:
                compare = rpc_pb2.Compare(key=self.key, target=rpc_pb2.Compare.MOD, mod_revision=expected)
                put_it = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=self.key, value=value.encode()))
                get_it = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=self.key))
                txn = kv.Txn(rpc_pb2.TxnRequest(compare=[compare], success=[put_it], failure=[get_it]), timeout=SECONDS)
                self.clusters.add(txn.header.cluster_id)
                if txn.succeeded:
                    return operation(done=True, revision=txn.header.revision)
                return operation(rows=txn.responses[0].response_range.kvs)


class Clients:
    """All of them."""

    def __init__(self, proxies: list[EspProcess]) -> None:
        names = itertools.count()
        self.all = [
            Client(key, number, proxies, names)
            for number, key in enumerate(key for key in KEYS for _ in range(CLIENTS_EACH))
        ]

    def wait_for_more(self, which: Callable[[Client], bool] = lambda client: True, count: int = 15) -> None:
        """Returns when each of these has got so many answers more."""
        goals = {client: client.answered + count for client in self.all if which(client)}
        deadline = time.monotonic() + 60
        while not all(client.answered >= goal for client, goal in goals.items()):
            assert not any(client.failure for client in self.all)
            assert time.monotonic() < deadline, "a client stands still"
            time.sleep(0.02)

    def end(self) -> None:
        for client in self.all:
            client.stop()
        for client in self.all:
            client.join()

    def history(self, key: bytes) -> list[Operation]:
        return [operation for client in self.all if client.key == key for operation in client.history]


@pytest.fixture
def shards(start_durable_etcd: Etcds) -> list[LocalEtcd]:
    return start_durable_etcd.several(3, "--unsafe-no-fsync=false")


def test_the_history_of_each_key_through_two_proxies_is_linearizable(shards: list[LocalEtcd], start_esp: Esps) -> None:
    proxies = [start_esp(shards, BOUNDARIES) for _ in range(2)]
    clients = Clients(proxies)
    with ExitStack() as stack:
        stack.callback(clients.end)
        clients.wait_for_more()
        for victim in (1, 2):
            shards[victim].kill()
            clients.wait_for_more(lambda client, victim=victim: shard_of(client.key) != victim)  # type: ignore[misc]
            shards[victim].start()
            wait_ready(shards[victim])
            clients.wait_for_more()
        frozen = shards[0].process
        assert frozen is not None
        freeze(frozen)
        stack.callback(frozen.send_signal, signal.SIGCONT)
        # Its clients' calls end with their deadlines, and it still does later what it has in its sockets.
        clients.wait_for_more(lambda client: shard_of(client.key) != 0, 60)
        frozen.send_signal(signal.SIGCONT)
        clients.wait_for_more()
        proxies[0].stop(signal.SIGKILL)
        clients.wait_for_more(lambda client: client.place == 1)
        proxies[0] = start_esp(shards, BOUNDARIES)
        clients.wait_for_more()
        shards[0].kill()
        proxies[1].stop(signal.SIGKILL)
        proxies[1] = start_esp(shards, BOUNDARIES)
        shards[0].start()
        wait_ready(shards[0])
        clients.wait_for_more()
    answers = Counter((each.kind, each.done, each.is_known) for key in KEYS for each in clients.history(key))
    for kind in (Kind.CAS, Kind.DELETE):
        assert answers[kind, True, True], "it never did what it is for"
        assert answers[kind, False, True], "it was never in the wrong place"
    assert any(each.returned == NEVER for key in KEYS for each in clients.history(key)), "nothing broke"
    assert sum(client.not_sent for client in clients.all)
    for key in KEYS:
        asked = [client.clusters for client in clients.all if client.key == key]
        assert len(set().union(*asked)) == 1, "a stranger listens where a proxy or a shard did"
        history = sorted(clients.history(key), key=lambda each: each.called)
        assert is_linearizable(history), "\n".join(map(repr, [key, *history]))
