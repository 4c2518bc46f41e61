"""The commands of docs/growing.md, as they stand, on real etcds, under clients that go on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.deploy.page import Operator, boxes
from tests.harness import EspProcess, Esps, Etcds, Server, connect, peer, wait_until, write_config
from tests.stubs.rpc_pb2_grpc import KVStub, LeaseStub, WatchStub

STEPS = ["look", "one-shard", "the-same", "who-is-left", "plan-two", "join", "move", "switch", "clean"]
END_OF_ALL = 10**9
TTL = 5


class Client:
    """A writer of keys below a prefix, a watcher of them, and a lease that is kept alive, at one address after another.

    Attributes:
        written: the values that were acknowledged, in order.
        seen: the values that the watcher saw, in order.
        failures: texts of the errors of any of the three.
        renewed: whether the lease was there at each renewal.
    """

    def __init__(self, server: Server, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.written: list[int] = []
        self.seen: list[int] = []
        self.failures: list[str] = []
        self.renewed: list[bool] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self._stands = threading.Event()
        self._ended = threading.Event()
        self._at(server)
        self._lease = LeaseStub(self._channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=TTL)).ID
        self._revision = 0
        self._threads = [threading.Thread(target=run) for run in (self._write, self._watch, self._renew)]
        for thread in self._threads:
            thread.start()

    def _at(self, server: Server) -> None:
        self._channel = connect(server).__enter__()

    def moves_to(self, server: Server) -> None:
        """Connects to another address, as after a new configuration: the calls that are under way are done first."""
        self.pause()
        before = self._channel
        self._at(server)
        before.close()
        self.may_write.set()

    def pause(self) -> None:
        """The writer stands still."""
        self._stands.clear()
        self.may_write.clear()
        assert self._stands.wait(60)

    def _write(self) -> None:
        number = 0
        while not self._ended.is_set():
            if not self.may_write.is_set():
                self._stands.set()
                self.may_write.wait(0.01)
                continue
            key = self.prefix + b"%d" % (number % 10)
            try:
                KVStub(self._channel).Put(rpc_pb2.PutRequest(key=key, value=b"%d" % number, lease=self._lease))
                self.written.append(number)
            except grpc.RpcError as error:
                self.failures.append(f"put: {error}")
            number += 1
            time.sleep(0.002)

    def _watch(self) -> None:
        while not self._ended.is_set():
            channel = self._channel
            create = rpc_pb2.WatchCreateRequest(
                key=self.prefix, range_end=self.prefix[:-1] + b"0", start_revision=self._revision + 1
            )
            asked = threading.Event()

            def requests(
                create: rpc_pb2.WatchCreateRequest = create, asked: threading.Event = asked
            ) -> Iterator[object]:
                yield rpc_pb2.WatchRequest(create_request=create)
                asked.wait()

            try:
                for answer in WatchStub(channel).Watch(requests()):
                    if answer.canceled:
                        self._list()
                        break
                    for event in answer.events:
                        self.seen.append(int(event.kv.value))
                        self._revision = event.kv.mod_revision
                    if self._ended.is_set() or channel is not self._channel:
                        break
            except (grpc.RpcError, ValueError):
                time.sleep(0.05)  # the channel is closed, or the answer is that of a moved range: go on at the new one
            finally:
                asked.set()

    def _list(self) -> None:
        """Reads all keys again, as clients do whose watch is answered as compacted."""
        answer = KVStub(self._channel).Range(rpc_pb2.RangeRequest(key=self.prefix, range_end=self.prefix[:-1] + b"0"))
        self.seen += sorted(int(kv.value) for kv in answer.kvs if int(kv.value) > self.seen[-1])
        self._revision = answer.header.revision

    def _renew(self) -> None:
        while not self._ended.wait(TTL / 5):
            request = rpc_pb2.LeaseKeepAliveRequest(ID=self._lease)
            try:
                [answer] = LeaseStub(self._channel).LeaseKeepAlive(iter([request]))
                self.renewed.append(answer.TTL > 0)
            except (grpc.RpcError, ValueError):
                pass  # the channel was closed meanwhile

    def goes_on(self) -> None:
        """Waits for further writes, and until the watcher has seen them."""
        before = len(self.written)
        wait_until(lambda: len(self.written) > before + 20)
        last = self.written[-1]
        wait_until(lambda: bool(self.seen) and self.seen[-1] >= last)

    def ends(self) -> None:
        """No more writes; waits until all have been seen."""
        self.pause()
        wait_until(lambda: self.seen[-1] >= self.written[-1])

    def end(self) -> None:
        self._ended.set()
        self.may_write.set()
        with contextlib.suppress(grpc.RpcError):
            KVStub(self._channel).Put(rpc_pb2.PutRequest(key=self.prefix + b"0", value=b"%d" % END_OF_ALL))
        for thread in self._threads:
            thread.join(60)
        self._channel.close()


@contextmanager
def clients(server: Server) -> Iterator[list[Client]]:
    """One whose keys stay, and one whose keys move."""
    started = [Client(server, "/app/orders/"), Client(server, "/app/users/")]
    try:
        yield started
    finally:
        for client in started:
            client.end()


def serve(start_esp: Esps, config: Path) -> EspProcess:
    esp = start_esp.launch("-c", config, config=config)
    esp.wait_ready()
    return esp


def of_one_etcd(folder: Path, etcd: LocalEtcd) -> Path:
    """The config of step 2."""
    config = write_config(folder / "esp.yaml", [etcd], [])
    config.write_text(config.read_text().replace("name: s0", "name: main"))
    return config


def test_from_one_etcd_to_two_shards(start_etcd: Etcds, start_esp: Esps, tmp_path: Path) -> None:
    one, two = start_etcd.several(2, binary=peer("etcd"))
    operator = Operator(tmp_path, {"a": one, "b": two}, boxes("growing.md"))
    config = of_one_etcd(tmp_path, one)
    with clients(one) as (stays, moves):
        go_on(stays, moves)
        assert "/app/users/" in operator.types("look")
        operator.types("one-shard")
        esp = serve(start_esp, config)
        told = operator.types("the-same", ESP=esp.url).splitlines()
        keys = [line for line in told if line.startswith("/app/")]
        assert len(keys) == 10
        assert keys[:5] == keys[5:]
        for client in (stays, moves):
            client.moves_to(esp)
        go_on(stays, moves)
        operator.types("who-is-left")
        assert "# esp move /app/users/ '' --to shard-1 --experimental" in operator.types("plan-two")
        planned = (tmp_path / "new.yaml").read_text().replace("http://shard-1.example:2379", two.endpoint)
        (tmp_path / "new.yaml").write_text(planned)
        join = write_config(tmp_path / "join.yaml", [one, two], ["nobody-uses-this/"])
        text = join.read_text().replace("name: s0", "name: main").replace("name: s1", "name: shard-1")
        ranges = '{start: "nobody-uses-this/", end: ""}'
        assert ranges in text
        text = text.replace(ranges, "{prefix: nobody-uses-this/}")
        join.write_text(text.replace('{start: "", end: "nobody-uses-this/"}', '{start: "", end: ""}'))
        operator.types("join")
        go_on(stays, moves)
        moves.pause()
        told = operator.types("move", START="/app/users/", END="")
        assert "10 keys, and nothing has changed since the export" in told
        operator.types("switch")
        moves.may_write.set()
        go_on(stays, moves)
        operator.types("clean")
        go_on(stays, moves)
        for client in (stays, moves):
            client.ends()
    for client in (stays, moves):
        assert client.failures == []
        assert all(client.renewed)
        assert client.seen == sorted(set(client.seen))
        assert set(client.written) <= set(client.seen)
    assert operator.done == STEPS
    with connect(two) as channel:
        assert KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"/app/users/", range_end=b"/app/users0")).count == 10


def test_the_way_back_from_one_shard(start_etcd: Etcds, start_esp: Esps, tmp_path: Path) -> None:
    """The clients get the address of the etcd again."""
    etcd = start_etcd(binary=peer("etcd"))
    esp = serve(start_esp, of_one_etcd(tmp_path, etcd))
    with clients(esp) as (one, other):
        go_on(one, other)
        one.moves_to(etcd)
        go_on(one, other)
        for client in (one, other):
            client.ends()
    for client in (one, other):
        assert client.failures == []
        assert all(client.renewed)
        assert client.seen == sorted(set(client.seen))
        assert set(client.written) <= set(client.seen)


def go_on(*some: Client) -> None:
    for client in some:
        client.goes_on()
