"""A shard dies under load and comes back: only its keys are affected, and no acknowledged write is lost."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import grpc

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EVERYTHING, EspProcess, Esps, Etcds, connect, frozen, outcome, wait_ready
from tests.stubs import rpc_pb2_grpc

Put = rpc_pb2.PutRequest
Range = rpc_pb2.RangeRequest
KEYS_EACH = 10


@dataclass
class Writer:
    """Writes rising numbers to a few keys that no one else writes, one put at a time, and keeps the books."""

    esp: EspProcess
    prefix: str
    attempted: dict[bytes, int] = field(default_factory=dict)
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    errors: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with connect(self.esp) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            number = 0
            while not self.stopping.is_set():
                number += 1
                key = f"{self.prefix}{number % KEYS_EACH}".encode()
                self.attempted[key] = number
                try:
                    kv.Put(Put(key=key, value=b"%d" % number), timeout=60)
                except grpc.RpcError as error:
                    self.errors.append((error.code(), error.details()))
                    self.stopping.wait(0.02)
                else:
                    self.acknowledged[key] = number

    def total(self) -> int:
        return max(self.acknowledged.values(), default=0)

    def wait_for_more(self, puts: int = 50) -> None:
        """Return when this many further puts were attempted and the last of them acknowledged."""
        goal = self.total() + puts
        deadline = time.monotonic() + 60
        while self.total() < goal:
            assert time.monotonic() < deadline, f"{self.prefix} stands still: {self.errors[-3:]}"
            time.sleep(0.01)


def check_books(writer: Writer, shard: LocalEtcd) -> None:
    """Each key's value, read from the shard itself, is the last acknowledged or one attempted later."""
    with connect(shard) as channel:
        rows = rpc_pb2_grpc.KVStub(channel).Range(Range(**EVERYTHING)).kvs
    stored = {row.key: int(row.value) for row in rows if row.key.startswith(writer.prefix.encode())}
    for key, number in writer.acknowledged.items():
        assert number <= stored[key] <= writer.attempted[key]


def test_kill_9_of_one_shard_under_load_loses_nothing_acknowledged_and_spares_the_others(
    start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    shards = start_durable_etcd.several(3, "--unsafe-no-fsync=false")
    esp = start_esp(shards, ["i", "r"])
    writers = [Writer(esp, prefix) for prefix in ("a1-", "a2-", "j1-", "j2-", "j3-", "z1-", "z2-")]
    of_victim = [writer for writer in writers if writer.prefix.startswith("j")]
    of_others = [writer for writer in writers if writer not in of_victim]
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        for writer in writers:
            writer.wait_for_more()
        shards[1].kill()
        before = {writer.prefix: len(writer.errors) for writer in of_others}
        for writer in of_others:
            writer.wait_for_more()
        the_others_serve_everything(esp)
        shards[1].start()
        wait_ready(shards[1])
        for writer in writers:
            writer.wait_for_more()
    finally:
        for writer in writers:
            writer.stopping.set()
        for thread in threads:
            thread.join()
    for writer in of_others:
        assert len(writer.errors) == before[writer.prefix] == 0
    for writer in of_victim:
        # Never DeadlineExceeded or Canceled: etcd's client would send the put again, though it may have been applied.
        assert {code for code, _ in writer.errors} <= {grpc.StatusCode.UNAVAILABLE}
        check_books(writer, shards[1])
    assert any(writer.errors for writer in of_victim)
    for writer in of_others:
        check_books(writer, shards[0 if writer.prefix.startswith("a") else 2])


def the_others_serve_everything(esp: EspProcess) -> None:
    """With the middle one of three shards dead: the rest of KV works, and what needs it fails as a whole."""
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for key in (b"b", b"y"):
            kv.Put(Put(key=key, value=b"1"))
            assert kv.Range(Range(key=key)).kvs[0].value == b"1"
            compare = rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.VERSION, result=rpc_pb2.Compare.GREATER)
            assert kv.Txn(rpc_pb2.TxnRequest(compare=[compare])).succeeded
            assert kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=key)).deleted == 1
        assert kv.Range(Range(key=b"s", range_end=b"\0")).count > 0
        for ask in (
            lambda: kv.Range(Range(**EVERYTHING), timeout=60),
            lambda: kv.Range(Range(key=b"j"), timeout=60),
            lambda: kv.Range(Range(key=b"h", range_end=b"j", count_only=True), timeout=60),
            lambda: kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"q", range_end=b"r\0"), timeout=60),
        ):
            assert outcome(ask)[0] == grpc.StatusCode.UNAVAILABLE
        # Surely not sent: the text on which etcd's client may safely send it again.
        assert outcome(lambda: kv.Put(Put(key=b"j"), timeout=60)) == (
            grpc.StatusCode.UNAVAILABLE,
            "there is no connection available",
        )


def test_a_shard_of_three_members_lives_on_when_one_is_killed(start_durable_etcd: Etcds, start_esp: Esps) -> None:
    members = start_durable_etcd.members(3)
    esp = start_esp([members])
    writer = Writer(esp, "k-")
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        for member in members:
            writer.wait_for_more()
            member.kill()
            writer.wait_for_more()
            member.start()
            wait_ready(member)
        writer.wait_for_more()
    finally:
        writer.stopping.set()
        thread.join()
    assert {code for code, _ in writer.errors} <= {grpc.StatusCode.UNAVAILABLE}
    check_books(writer, members[0])


def test_a_frozen_shard_is_not_a_dead_proxy(start_durable_etcd: Etcds, start_esp: Esps) -> None:
    """A shard that accepts connections and never answers: its requests wait for their deadline, others do not."""
    shards = start_durable_etcd.several(2)
    esp = start_esp(shards, ["m"])
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        kv.Put(Put(key=b"z"))
        with frozen(shards[1]):
            stuck = [kv.Range.future(Range(key=b"z"), timeout=2) for _ in range(20)]
            for number in range(50):
                kv.Put(Put(key=b"a", value=b"%d" % number), timeout=30)
            for call in stuck:
                assert call.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        assert kv.Range(Range(key=b"z"), timeout=30).count == 1
