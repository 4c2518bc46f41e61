"""A member that freezes while it has no calls: `/readyz?verbose` reports it."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest

from esp.core import config
from esp.core.local import LocalEtcd
from esp.core.proxy import Proxy
from esp.core.wire.limits import Limits
from tests.harness import Etcds, freeze, write_config


async def page(proxy: Proxy) -> str:
    port = proxy.bound[0][1]

    def read() -> str:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", "/readyz?verbose")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(read)


async def says(proxy: Proxy, text: str) -> None:
    async with asyncio.timeout(30):
        while True:
            if text in await page(proxy):
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_member_that_stands_still_is_not_told_as_ok_for_long(
    start_etcd: Etcds, etcd: LocalEtcd, tmp_path: Path, is_asked: bool
) -> None:
    """With keepalive alone this would take two minutes; there is no traffic that would show it."""
    victim = start_etcd()
    assert victim.process
    loaded = config.load(write_config(tmp_path / "esp.yaml", [victim, etcd], ["m"]))
    limits = Limits(keepalive_time=60.0, keepalive_timeout=60.0, health_interval=0.5, health_timeout=0.5)
    loaded = replace(loaded, listen=config.listen_of(["http://127.0.0.1:0"]), limits=limits)

    async def run() -> None:
        async with Proxy(loaded) as proxy:
            await says(proxy, "[+]shard s0 ok\n[+]shard s1 ok\nok\n")
            assert victim.process
            freeze(victim.process)
            if is_asked:  # then a PING is out, too
                call = asyncio.create_task(
                    proxy.routing.shards["s0"].forward_unary((b"/a/b", b""), b"", idempotent=False, timeout=20)
                )
            await says(proxy, "[-]shard s0 failed: serializable_read: ")
            victim.process.send_signal(signal.SIGCONT)
            await says(proxy, "[+]shard s0 ok\n[+]shard s1 ok\nok\n")
            if is_asked:
                await asyncio.gather(call, return_exceptions=True)

    try:
        asyncio.run(run())
    finally:
        victim.process.send_signal(signal.SIGCONT)
