"""Leases and locks as Python's etcd clients from PyPI use them: through esp they must read as on one etcd.

Each runs as a script of its own: their generated messages and those of esp have the same names, which one process
cannot hold twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from tests.harness import EspProcess, Server

ETCD3 = """
import etcd3, sys
client = etcd3.client(host=sys.argv[1], port=int(sys.argv[2]))
lease = client.lease(60)
print(lease.id > 0, lease.ttl, lease.granted_ttl, 55 < lease.remaining_ttl <= 60)
for key in ("a", "j", "z"):
    client.put(key, "1", lease=lease)
print(sorted(lease.keys), [answer.TTL for answer in lease.refresh()])
print(sorted((value, meta.key) for value, meta in client.get_all()))
lease.revoke()
print(list(client.get_all()), lease.remaining_ttl, [answer.TTL for answer in lease.refresh()])
chosen = client.lease(60, lease_id=-7)
print(chosen.id)
try:
    client.lease(60, lease_id=-7)
except etcd3.exceptions.Etcd3Exception as error:
    print(type(error).__name__)
except Exception as error:
    print(error.code(), error.details())
chosen.revoke()
with client.lock("name", ttl=60) as lock:
    print(lock.is_acquired(), len(list(client.get_prefix("/locks/"))), [a.TTL for a in lock.refresh()])
print(lock.is_acquired(), list(client.get_prefix("/locks/")))
"""

AETCD = """
import aetcd, asyncio, sys

async def main():
    async with aetcd.Client(host=sys.argv[1], port=int(sys.argv[2])) as client:
        lease = await client.lease(60)
        print(lease.id > 0, lease.ttl, await lease.granted_ttl(), 55 < await lease.remaining_ttl() <= 60)
        for key in (b"a", b"j", b"z"):
            await client.put(key, b"1", lease=lease)
        print(sorted(await lease.keys()), (await lease.refresh()).TTL)
        print([kv.key for kv in await client.get_all()])
        await lease.revoke()
        print([kv.key for kv in await client.get_all()], await lease.remaining_ttl(), (await lease.refresh()).TTL)
        chosen = await client.lease(60, lease_id=-7)
        print(chosen.id)
        try:
            await client.lease(60, lease_id=-7)
        except Exception as error:
            print(type(error).__name__)
        await chosen.revoke()
        async with client.lock(b"name", ttl=60) as lock:
            print(await lock.is_acquired(), len(list(await client.get_prefix(b"/locks/"))))
            await lock.refresh()
            other = client.lock(b"name", ttl=60)
            waiting = asyncio.create_task(other.acquire(timeout=30))
            await asyncio.sleep(0.2)
            print(waiting.done())
        print(await waiting, await other.is_acquired(), await lock.is_acquired())
        await other.release()
        print(list(await client.get_prefix(b"/locks/")))

asyncio.run(main())
"""


def run(script: Path, server: Server) -> str:
    # etcd3 was generated for a protobuf of 2019; that reads it only in pure Python.
    environment = os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    command = [sys.executable, str(script), *server.address.split(":")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("program", [ETCD3, AETCD], ids=["etcd3", "aetcd"])
def test_a_client_library_cannot_tell_esp_from_etcd(
    esp: EspProcess, empty_shards: list[LocalEtcd], empty_etcd: LocalEtcd, tmp_path: Path, program: str
) -> None:
    script = tmp_path / "client.py"
    script.write_text(program)
    mine, right = (run(script, server) for server in (esp, empty_etcd))
    assert mine == right
    assert len(right.splitlines()) >= 8
