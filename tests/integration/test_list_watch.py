"""List, then watch, while everything fails: the copy that a client builds is what the shards hold.

Two clients list by page and watch from there, one resuming from the header of the last message, one, as etcd's own
client, from behind the last event. Meanwhile 40,000 writes go to the shards, each shard is killed and restarted, and
the proxy is killed and replaced. The only thing a client may notice is that its connection broke, and that its position
is compacted; then it lists again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import kv_pb2, rpc_pb2
from tests.harness import EVERYTHING, EspProcess, Esps, Etcds, connect, wait_ready
from tests.stubs.rpc_pb2_grpc import KVStub, WatchStub
from tests.watching import Requests

WRITES = 40_000  # so many that each client breaks off some hundred times, which more would only repeat
IN_A_TXN = 25
BREAK_AFTER = 100
"""Events after which a client breaks its own stream, to resume."""
KEYS = 150
"""Of each shard; they are written in turn, so that each is written many times, and some are deleted."""
PAGE = 40
PREFIXES = ("a", "j", "s")
EXPECTED_CODES = frozenset((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.INTERNAL))
Rows = dict[bytes, tuple[int, bytes]]


class Writer(threading.Thread):
    """Writes past esp, until its share is acknowledged."""

    def __init__(self, shard: LocalEtcd, prefix: str) -> None:
        super().__init__()
        self._shard = shard
        self._prefix = prefix
        self.acknowledged = 0

    def run(self) -> None:
        number = 0
        with connect(self._shard) as channel:
            kv = KVStub(channel)
            while self.acknowledged < WRITES // 3:
                number += 1
                try:
                    kv.Txn(self._txn(number), timeout=5)
                    self.acknowledged += IN_A_TXN
                except grpc.RpcError:
                    time.sleep(0.05)  # applied or not: what the shard holds at the end is the truth

    def write(self, number: int) -> None:
        """Writes once more, when all shards are up."""
        with connect(self._shard) as channel:
            KVStub(channel).Txn(self._txn(number), timeout=20)

    def _txn(self, number: int) -> rpc_pb2.TxnRequest:
        request = rpc_pb2.TxnRequest()
        for place in range(IN_A_TXN):
            key = f"{self._prefix}{(number * IN_A_TXN + place) % KEYS:03}".encode()
            operation = request.success.add()
            if (number + place) % 11:
                operation.request_put.key, operation.request_put.value = key, b"%d" % number
            else:
                operation.request_delete_range.key = key
        return request


class Replica(threading.Thread):
    """A copy of all keys, by list and watch.

    Attributes:
        rows: the copy: mod revision and value of each key.
        lists: how often it listed.
        broken: how often it broke its stream to go on watching where it was.
        failure: what must not happen, and did.
    """

    def __init__(self, server: Callable[[], EspProcess], *, by_header: bool) -> None:
        super().__init__()
        self.rows: Rows = {}
        self.lists = self.broken = 0
        self.failure: BaseException | None = None
        self._server = server
        self._by_header = by_header
        self._start = 0
        self._events = 0  # since it broke its stream; on a slow machine shards and proxies are killed in between
        self._stopping = False
        self._answers: grpc.Call | None = None

    def stop(self) -> None:
        self._stopping = True
        if self._answers is not None:
            self._answers.cancel()
        self.join()

    def run(self) -> None:
        try:
            while not self._stopping:
                with connect(self._server()) as channel:
                    try:
                        if not self._start:
                            self._list(KVStub(channel))
                        self._watch(WatchStub(channel))
                    except grpc.RpcError as error:
                        if not self._stopping and error.code() not in EXPECTED_CODES:
                            raise
                        time.sleep(0.05)
        except BaseException as failure:
            self.failure = failure

    def _list(self, kv: KVStub) -> None:
        rows: Rows = {}
        key, token, more = b"\0", 0, True
        while more:
            page = kv.Range(rpc_pb2.RangeRequest(key=key, range_end=b"\0", limit=PAGE, revision=token), timeout=10)
            token = token or page.header.revision
            assert page.header.revision == token
            rows.update({row.key: (row.mod_revision, row.value) for row in page.kvs})
            more = page.more
            key = page.kvs[-1].key + b"\0" if page.kvs else key
        self.rows, self._start = rows, token + 1
        self.lists += 1

    def _watch(self, stub: WatchStub) -> None:
        requests = Requests()
        requests.create(**EVERYTHING, start_revision=self._start)
        self._answers = answers = stub.Watch(iter(requests))
        if self._stopping:
            answers.cancel()
        for message in answers:
            if message.canceled:
                assert message.compact_revision, message
                self._start = 0
                answers.cancel()
                return
            for event in message.events:
                self._apply(event)
            if message.events:
                last = message.events[-1].kv.mod_revision
                self._start = (message.header.revision if self._by_header else last) + 1
            self._events += len(message.events)
            if self._events >= BREAK_AFTER:
                self._events = 0
                self.broken += 1
                answers.cancel()
                return

    def _apply(self, event: kv_pb2.Event) -> None:
        kv = event.kv
        known = self.rows.get(kv.key)
        assert known is None or kv.mod_revision > known[0], (
            f"{kv.key!r} at {kv.mod_revision}, again or too late: {known}"
        )
        if event.type == event.PUT:
            self.rows[kv.key] = kv.mod_revision, kv.value
        else:
            self.rows.pop(kv.key, None)


def held_by(shards: list[LocalEtcd]) -> Rows:
    rows: Rows = {}
    for shard in shards:
        with connect(shard) as channel:
            answer = KVStub(channel).Range(rpc_pb2.RangeRequest(**EVERYTHING), timeout=30)
            rows.update({row.key: (row.mod_revision, row.value) for row in answer.kvs})
    return rows


@pytest.mark.timeout(240)
def test_the_copy_is_what_the_shards_hold(start_durable_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_durable_etcd.several(3)
    servers = [start_esp(shards, ["i", "r"])]
    other = start_esp(shards, ["i", "r"])
    replicas = [Replica(lambda: servers[-1], by_header=by_header) for by_header in (True, False)]
    writers = [Writer(shard, prefix) for shard, prefix in zip(shards, PREFIXES, strict=True)]
    for thread in (*replicas, *writers):
        thread.start()
    try:
        shares = iter(range(1, 9))
        goal = WRITES // 3 // 9

        def wait_for_share() -> None:
            share = next(shares) * goal
            while any(writer.acknowledged < share for writer in writers) and all(r.failure is None for r in replicas):
                time.sleep(0.05)

        for shard in shards:
            wait_for_share()
            shard.kill()
            time.sleep(0.2)
            shard.start()
            wait_ready(shard)
        wait_for_share()
        servers.append(other)
        servers[0].process.kill()
        servers[0].process.wait()
        for writer in writers:
            writer.join()
        number = WRITES
        while any(replica.broken < 2 and replica.failure is None for replica in replicas):
            number += 1  # a replica on a busy machine has got most from lists, and a hundred events in a message
            for writer in writers:
                writer.write(number)
            time.sleep(0.05)
        truth = held_by(shards)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and any(
            (r.rows != truth or r.lists < 2) and r.failure is None for r in replicas
        ):
            time.sleep(0.05)
    finally:
        for replica in replicas:
            replica.stop()
    for replica in replicas:
        if replica.failure is not None:
            raise replica.failure
        assert replica.rows == truth
        assert replica.lists >= 2, "the second proxy knows no position of the first"
        assert replica.broken >= 2
    assert len(truth) > KEYS
