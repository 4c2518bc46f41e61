"""The commands of docs/operations.md, as they stand, on real etcds."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.deploy.page import BLOCKS, Operator
from tests.harness import (
    EVERYTHING,
    LASTING,
    PATIENCE,
    EspProcess,
    Esps,
    Etcds,
    Server,
    connect,
    etcd_of,
    peer,
    wait_ready,
    wait_until,
    write_config,
)
from tests.stubs.rpc_pb2_grpc import KVStub, WatchStub

RESTORE = ["backup", "restore", "after-restore"]
RESTORE_ALL = "all-restored"
REPLACE = ["add-member", "use-member", "remove-member"]
MOVE = ["check-new-map", "copy", "switch", "clean"]

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


def map_of(folder: Path, name: str, shards: dict[str, LocalEtcd], boundaries: list[str]) -> Path:
    """A config whose shards have these names."""
    path = write_config(folder / name, list(shards.values()), boundaries)
    text = path.read_text()
    for number, shard in enumerate(shards):
        text = text.replace(f"name: s{number}\n", f"name: {shard}\n")
    path.write_text(text)
    return path


def rows(etcdctl: Etcdctl, server: Server, *words: str) -> list[str]:
    return etcdctl(server, "get", "--print-value-only", *words).stdout.split()


def serve(start_esp: Esps, operator: Operator) -> EspProcess:
    esp = start_esp.launch("-c", operator.config, config=operator.config)
    esp.wait_ready()
    return esp


def test_every_block_of_the_page_is_tried() -> None:
    assert {*RESTORE, RESTORE_ALL, *REPLACE, *MOVE, "systemd", "nginx"} == set(
        BLOCKS
    )  # scripts/systemd and test_load_balancer have the last two


def test_a_shard_is_restored_while_the_others_and_esp_go_on(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path, etcdctl: Etcdctl
) -> None:
    one, two = start_etcd.several(2, binary=peer("etcd"))
    operator = Operator(tmp_path, {"a": one, "b": two})
    map_of(tmp_path, "esp.yaml", {"a": one, "b": two}, ["i"])
    esp = serve(start_esp, operator)
    etcdctl(esp, "put", "a", "before")
    operator.types("backup")
    later = etcdctl(esp, "lease", "grant", "600").stdout.split()[1]
    etcdctl(esp, "put", "a", "after", "--lease", later)
    one.kill()
    shutil.move(one.data_dir, tmp_path / "moved-away")
    told = operator.types(
        "restore", SNAPSHOT="a.db", DATA=str(one.data_dir), NAME=one.name, PEER=one.peer_url, CLUSTER=cluster(one)
    )
    assert "restored snapshot" in told
    one.start()
    wait_ready(one)
    wait_until(lambda: etcdctl(esp, "get", "a", check=False).returncode == 0)
    told = operator.types("after-restore")
    assert "only on b" in told
    assert later.lstrip("0") in told
    assert rows(etcdctl, esp, "a") == ["before"]
    assert operator.done == RESTORE


def cluster(etcd: LocalEtcd) -> str:
    return f"{etcd.name}={etcd.peer_url}"


def test_a_range_moves_to_a_new_shard(start_etcd: Etcds, start_esp: Esps, tmp_path: Path, etcdctl: Etcdctl) -> None:
    one, two, three = start_etcd.several(3, binary=peer("etcd"))
    shards = {"a": one, "b": two, "c": three}
    operator = Operator(tmp_path, shards)
    map_of(tmp_path, "esp.yaml", {"a": one, "b": two}, ["i"])
    map_of(tmp_path, "new.yaml", shards, ["i", "r"])
    esp = serve(start_esp, operator)
    lease = etcdctl(esp, "lease", "grant", "600").stdout.split()[1]
    for key in ("a", "j", "x"):
        etcdctl(esp, "put", key, key, "--lease", lease)
    operator.types("check-new-map")
    told = operator.types("copy")
    assert "wrote 1 key\n" in told
    assert "1 key, and nothing has changed since the export" in told
    assert etcdctl(three, "lease", "timetolive", lease, "--keys").stdout.rstrip().endswith("attached keys([x])")
    assert "b still has 1 key" in operator.types("switch")
    operator.types("clean")
    assert rows(etcdctl, esp, "", "--from-key") == ["a", "j", "x"]
    assert rows(etcdctl, two, "", "--from-key") == ["j"]
    etcdctl(esp, "lease", "revoke", lease)
    assert rows(etcdctl, esp, "", "--from-key") == []
    assert operator.done == MOVE


def test_a_range_to_which_somebody_writes_meanwhile_is_found_out_and_copied_anew(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path, etcdctl: Etcdctl
) -> None:
    one, two, three = start_etcd.several(3, binary=peer("etcd"))
    shards = {"a": one, "b": two, "c": three}
    operator = Operator(tmp_path, shards)
    map_of(tmp_path, "esp.yaml", {"a": one, "b": two}, ["i"])
    map_of(tmp_path, "new.yaml", shards, ["i", "r"])
    esp = serve(start_esp, operator)
    for key in ("x", "y"):
        etcdctl(esp, "put", key, "before")
    export, resume, verify = BLOCKS["copy"].splitlines()[1:]
    operator.blocks = {**BLOCKS, "export": export, "resume": resume, "verify": verify}
    operator.types("export")
    etcdctl(esp, "put", "y", "after")
    etcdctl(esp, "del", "x")
    operator.types("resume")
    with pytest.raises(AssertionError, match=r"1 key was written, 1 key was deleted \(the first: \"y\"\)"):
        operator.types("verify")
    etcdctl(three, "del", "r", "--from-key")
    (tmp_path / "range.jsonl").unlink()
    assert "nothing has changed" in operator.types("copy")
    assert rows(etcdctl, three, "", "--from-key") == ["after"]


def restored(operator: Operator, etcd: LocalEtcd, snapshot: str) -> None:
    """Restores a cluster of one member, which does not run, and starts it."""
    shutil.rmtree(etcd.data_dir)
    told = operator.types(
        "restore",
        SNAPSHOT=snapshot,
        DATA=str(etcd.data_dir),
        NAME=etcd.name,
        PEER=etcd.peer_url,
        CLUSTER=cluster(etcd),
    )
    assert "restored snapshot" in told
    etcd.start()


def test_all_shards_are_restored(start_etcd: Etcds, start_esp: Esps, tmp_path: Path, etcdctl: Etcdctl) -> None:
    one, two = start_etcd.several(2, binary=peer("etcd"))
    operator = Operator(tmp_path, {"a": one, "b": two})
    map_of(tmp_path, "esp.yaml", {"a": one, "b": two}, ["i"])
    esp = serve(start_esp, operator)
    # Of the shards' two snapshots this lease is in the second alone: it is granted between them.
    operator.types("backup")
    lease = etcdctl(esp, "lease", "grant", "600").stdout.split()[1]
    for key in ("a", "x"):
        etcdctl(esp, "put", key, "before", "--lease", lease)
    first = (tmp_path / "a.db").read_bytes()
    operator.types("backup")
    (tmp_path / "a.db").write_bytes(first)
    for key in ("a", "x"):
        etcdctl(esp, "put", key, "after")
    with connect(esp) as channel:
        token = KVStub(channel).Range(rpc_pb2.RangeRequest(**EVERYTHING)).header.revision
    assert esp.stop() == 0
    for etcd, snapshot in ((one, "a.db"), (two, "b.db")):
        etcd.kill()
        restored(operator, etcd, snapshot)
    wait_ready(one, two)
    assert "1 granted." in operator.types(RESTORE_ALL)
    esp = serve(start_esp, operator)
    assert rows(etcdctl, esp, "", "--from-key") == ["before"]
    assert etcdctl(esp, "lease", "timetolive", lease, "--keys").stdout.rstrip().endswith("attached keys([x])")
    with connect(esp) as channel:
        for key, revision in (({"key": b"x"}, 4), (EVERYTHING, token)):
            create = rpc_pb2.WatchCreateRequest(**key, start_revision=revision)
            answers = WatchStub(channel).Watch(iter([rpc_pb2.WatchRequest(create_request=create)]))
            assert next(answers).created
            assert next(answers).compact_revision > 1_000_000_000


class Writer:
    """Puts keys of a shard through esp all the time; `failed` has the errors."""

    def __init__(self, server: Server) -> None:
        self.failed: list[grpc.RpcError] = []
        self.put = 0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        wait_until(lambda: self.put > 0)
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with connect(self._server) as channel:
            while not self._over.wait(0.005):
                try:
                    KVStub(channel).Put(rpc_pb2.PutRequest(key=b"a"), timeout=PATIENCE)
                    self.put += 1
                except grpc.RpcError as error:
                    self.failed.append(error)


def test_a_member_that_esp_uses_and_that_leads_is_replaced(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path, etcdctl: Etcdctl
) -> None:
    # Else a cluster takes no member before its members have known each other for 5 s.
    early = "--strict-reconfig-check=false"
    old, stays, third = start_etcd.members(3, *LASTING, early, binary=peer("etcd"))
    two = start_etcd(binary=peer("etcd"))
    operator = Operator(tmp_path, {"a": stays, "b": two})
    write_config(operator.config, [[old, stays, third], two], ["i"])
    lead(etcdctl, [old, stays, third], old)
    esp = serve(start_esp, operator)
    with Writer(esp) as writer:
        new = LocalEtcd("new", tmp_path / "new", binary=peer("etcd"))
        start_etcd.started.append(new)
        told = operator.types("add-member", NAME="new", PEER=new.peer_url)
        found = re.search('ETCD_INITIAL_CLUSTER="(.+)"', told)
        assert found
        new.flags = (*LASTING, f"--initial-cluster={found[1]}", "--initial-cluster-state=existing", "--unsafe-no-fsync")
        new.start()
        wait_ready(new)
        operator.config.write_text(operator.config.read_text().replace(old.endpoint, new.endpoint))
        assert f"-> {new.endpoint}, {stays.endpoint}" in operator.types("use-member", NEW=new.endpoint)
        told = operator.types("remove-member", NEW=new.endpoint, OLD=old.endpoint)
        assert "Leadership transferred" in told
        assert "Healthy: 2 shards, 4 endpoints" in told
        old.kill()
    assert writer.failed == []
    assert etcdctl(esp, "get", "a").stdout


def lead(etcdctl: Etcdctl, members: list[LocalEtcd], member: LocalEtcd) -> None:
    """Makes this one the leader of its cluster."""
    all_of_them = ",".join(one.address for one in members)
    told = json.loads(etcdctl(member, "endpoint", "status", "-w", "json").stdout)[0]["Status"]
    if told["leader"] != told["header"]["member_id"]:
        etcdctl(all_of_them, "move-leader", f"{told['header']['member_id']:x}")


def test_members_are_upgraded_one_after_the_other(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path, etcdctl: Etcdctl
) -> None:
    members = start_etcd.members(3, *LASTING, binary=etcd_of("3.6"))
    esp = start_esp([members])
    with Writer(esp) as writer:
        for member in members:
            before = writer.put
            asyncio.run(member.stop())
            member.binary = peer("etcd")
            member.start()
            wait_ready(member)
            wait_until(lambda before=before: writer.put > before + 10)
    assert writer.failed == []
    with urllib.request.urlopen(f"{esp.url}/version", timeout=PATIENCE) as page:
        assert json.load(page)["etcdserver"].startswith("3.7.")
