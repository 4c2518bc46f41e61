"""Locks of etcd's own client (`concurrency.Mutex`), whose keys move while workers hold and await them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from esp.core.pb import rpc_pb2
from tests.foreign.test_trials import go
from tests.harness import Esps, Etcds, connect, peer, wait_until
from tests.integration.mapped import Mapped
from tests.stubs import rpc_pb2_grpc

WORKERS = 6


def test_a_lock_never_has_two_owners_while_its_keys_move(start_etcd: Etcds, start_esp: Esps, tmp_path: Path) -> None:
    mapped = Mapped(start_etcd.several(3, binary=peer("etcd")), ["m", "t"], tmp_path / "esp.yaml")
    esp = start_esp.launch("-c", mapped.path, config=mapped.path)
    esp.wait_ready()
    told: dict[str, Any] = {}
    work = threading.Thread(target=lambda: told.update(go("mutexes", esp, WORKERS)), daemon=True)
    work.start()

    def waiters() -> int:
        owner = mapped.now.map.owner(b"x/lock")
        return len(mapped.read(owner, b"x/lock/", b"x/lock0"))

    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for target in ("s0", "s1", "s2"):
            wait_until(lambda: waiters() > WORKERS // 2)  # one has it, and others wait
            mapped.move(b"x/", b"x0", target)
        kv.Put(rpc_pb2.PutRequest(key=b"over"), timeout=30)
    work.join(120)
    assert told["most"] == 1, told
    assert told["taken"] >= 3 * WORKERS
    assert told["refused"], "those that waited for an owner of before"
    for text in told["refused"]:
        assert "revision has been compacted" in text or "none can be ordered with those of now" in text, text
