"""`etcdctl make-mirror` through esp: docs/errors.md, "Tools"."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import (
    EVERYTHING,
    EspProcess,
    Esps,
    Etcds,
    Server,
    connect,
    peer,
    program,
    run_etcdctl,
    wait_until,
    write_config,
)
from tests.stubs.rpc_pb2_grpc import KVStub

PREFIX = "s/"


@pytest.fixture
def uneven(esp: EspProcess, empty_shards: list[LocalEtcd]) -> EspProcess:
    """esp with two keys in the last shard, whose revision is behind that of the owner of `foo`, the first."""
    with connect(esp) as channel, connect(empty_shards[0]) as first, connect(empty_shards[2]) as last:
        for number in range(2):
            KVStub(channel).Put(rpc_pb2.PutRequest(key=f"{PREFIX}{number}".encode(), value=b"v"))
        behind = KVStub(last).Range(rpc_pb2.RangeRequest(key=b"s")).header.revision
        while KVStub(first).Put(rpc_pb2.PutRequest(key=b"foo")).header.revision <= behind + 10:
            pass
    return esp


@contextmanager
def mirroring(etcdctl: Path, source: Server, target: Server, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [etcdctl, "--endpoints", source.address, "make-mirror", "--prefix", PREFIX, f"http://{target.address}"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.kill()


def mirrored(target: Server) -> list[str]:
    return run_etcdctl(program("etcdctl", "ESP_ETCDCTL"), target, "get", "--keys-only", "--prefix", "").stdout.split()


def check_mirror(etcdctl: Path, source: Server, esp: EspProcess, target: Server, log: Path) -> None:
    with mirroring(etcdctl, source, target, log):
        wait_until(lambda: mirrored(target) == ["s/0", "s/1"])
        with connect(esp) as channel:
            KVStub(channel).Put(rpc_pb2.PutRequest(key=b"s/2", value=b"v"))
            KVStub(channel).DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"s/0"))
        wait_until(lambda: mirrored(target) == ["s/1", "s/2"])


def test_one_that_asks_foo_for_the_revision_gets_another_shards(
    uneven: EspProcess, empty_etcd: LocalEtcd, tmp_path: Path
) -> None:
    """Up to some 3.5; the revision of `foo` is in the future of the shard that is mirrored."""
    log = tmp_path / "log"
    with mirroring(program("etcdctl", "ESP_ETCDCTL"), uneven, empty_etcd, log) as process:
        assert process.wait(30)
    assert "required revision is a future revision" in log.read_text()


def test_one_that_asks_for_the_prefix_mirrors_it(uneven: EspProcess, empty_etcd: LocalEtcd, tmp_path: Path) -> None:
    check_mirror(peer("etcdctl"), uneven, uneven, empty_etcd, tmp_path / "log")


def test_any_mirrors_from_the_shard_itself(
    uneven: EspProcess, empty_shards: list[LocalEtcd], empty_etcd: LocalEtcd, tmp_path: Path
) -> None:
    check_mirror(program("etcdctl", "ESP_ETCDCTL"), empty_shards[2], uneven, empty_etcd, tmp_path / "log")


@pytest.fixture
def ahead(start_etcd: Etcds, start_esp: Esps) -> tuple[EspProcess, LocalEtcd]:
    """esp over two shards, and that of PREFIX, far ahead of the owner of `foo`."""
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    with connect(esp) as channel:
        for number in range(20):
            KVStub(channel).Put(rpc_pb2.PutRequest(key=f"{PREFIX}{number:02}".encode(), value=b"v"))
    return esp, shards[1]


def test_a_lower_revision_of_foo_begins_with_an_older_state(
    ahead: tuple[EspProcess, LocalEtcd], empty_etcd: LocalEtcd, tmp_path: Path
) -> None:
    """The list of then is empty, and the watch behind it brings all keys."""
    esp, _ = ahead
    with mirroring(program("etcdctl", "ESP_ETCDCTL"), esp, empty_etcd, tmp_path / "log"):
        wait_until(lambda: len(mirrored(empty_etcd)) == 20)


def test_a_lower_revision_of_foo_may_be_compacted(
    ahead: tuple[EspProcess, LocalEtcd], empty_etcd: LocalEtcd, tmp_path: Path
) -> None:
    esp, owner = ahead
    with connect(owner) as channel:
        KVStub(channel).Compact(rpc_pb2.CompactionRequest(revision=10))
    log = tmp_path / "log"
    with mirroring(program("etcdctl", "ESP_ETCDCTL"), esp, empty_etcd, log) as process:
        assert process.wait(30)
    assert "required revision has been compacted" in log.read_text()


class TestAcrossShards:
    """Keys of all shards: esp has boundaries at i and r."""

    @pytest.fixture
    def spread(self, esp: EspProcess, empty_shards: list[LocalEtcd], empty_etcd: LocalEtcd) -> Iterator[KVStub]:
        with connect(esp) as channel:
            kv = KVStub(channel)
            for key in (b"a", b"k", b"s"):
                kv.Put(rpc_pb2.PutRequest(key=key, value=b"1"))
            yield kv

    @staticmethod
    def command(etcdctl: Path, source: Server, target: Server, *flags: str) -> list[str]:
        return [str(etcdctl), "--endpoints", source.address, "make-mirror", *flags, f"http://{target.address}"]

    def test_out_of_all_shards_is_refused(self, spread: KVStub, esp: EspProcess, empty_etcd: LocalEtcd) -> None:
        command = self.command(peer("etcdctl"), esp, empty_etcd)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode
        assert "esp: a Range at a revision spans the shards s0, s1, s2" in done.stderr
        assert mirrored(empty_etcd) == []

    def test_out_of_all_shards_from_a_token_on(
        self, spread: KVStub, esp: EspProcess, shards: list[LocalEtcd], empty_etcd: LocalEtcd, tmp_path: Path
    ) -> None:
        """The steps of docs/operations.md, "Mirror": a token, an export of everything, the changes since the token."""
        token = spread.Range(rpc_pb2.RangeRequest(**EVERYTHING, count_only=True)).header.revision
        spread.Put(rpc_pb2.PutRequest(key=b"k", value=b"2"))
        spread.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"a"))
        config = str(write_config(tmp_path / "esp.yaml", shards, ["i", "r"]))
        file = str(tmp_path / "all.jsonl")
        assert CliRunner().invoke(app, ["export", "-c", config, "--to", file]).exit_code == 0
        spread.Put(rpc_pb2.PutRequest(key=b"b", value=b"3"))
        assert (
            CliRunner().invoke(app, ["import", file, "--no-leases", "--endpoint", empty_etcd.endpoint]).exit_code == 0
        )
        command = self.command(peer("etcdctl"), esp, empty_etcd, "--rev", str(token + 1))
        with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                wait_until(lambda: mirrored(empty_etcd) == ["b", "k", "s"])
                for number in range(20):
                    for key in (b"c", b"l", b"t"):
                        spread.Put(rpc_pb2.PutRequest(key=key, value=b"%d" % number))
                spread.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"s"))
                wait_until(lambda: self.pairs(empty_etcd) == self.pairs(esp))
            finally:
                process.kill()
        assert self.pairs(esp)["k"] == "2"

    @staticmethod
    def pairs(server: Server) -> dict[str, str]:
        with connect(server) as channel:
            kvs = KVStub(channel).Range(rpc_pb2.RangeRequest(**EVERYTHING)).kvs
            return {kv.key.decode(): kv.value.decode() for kv in kvs}

    def test_into_all_shards(self, spread: KVStub, esp: EspProcess, empty_etcd: LocalEtcd, tmp_path: Path) -> None:
        with connect(empty_etcd) as channel:
            source = KVStub(channel)
            for key in (b"a", b"k", b"s"):
                source.Put(rpc_pb2.PutRequest(key=key, value=b"mirrored"))
            command = self.command(peer("etcdctl"), empty_etcd, esp)
            with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
                try:
                    wait_until(lambda: set(self.pairs(esp).values()) == {"mirrored"})
                    source.Put(rpc_pb2.PutRequest(key=b"t", value=b"new"))
                    source.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"a"))
                    wait_until(lambda: self.pairs(esp) == {"k": "mirrored", "s": "mirrored", "t": "new"})
                    puts = [rpc_pb2.PutRequest(key=key, value=b"both") for key in (b"a", b"s")]
                    source.Txn(rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put) for put in puts]))
                    assert process.wait(60)  # one transaction of the source, whose keys are in two shards here
                finally:
                    process.kill()
            assert 'esp: a transaction spans the shards s0, s2 (boundary "i")' in (tmp_path / "log").read_text()
            assert self.pairs(esp) == {"k": "mirrored", "s": "mirrored", "t": "new"}
