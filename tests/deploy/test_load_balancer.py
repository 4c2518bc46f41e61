"""Two esps behind a TCP load balancer as docs/operations.md has it: what clients see of a rolling restart."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from esp.core.local import free_port, tied_to_this_process
from esp.core.pb import rpc_pb2
from tests.deploy.page import BLOCKS, ROOT
from tests.harness import (
    EVERYTHING,
    PATIENCE,
    EspProcess,
    Esps,
    Etcds,
    is_listening,
    wait_until,
    write_config,
)
from tests.stubs import rpc_pb2_grpc
from tests.watching import Requests

HAPROXY = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
HELD_FOR_DEAD = 2.5
"""Seconds for which either of these may hold an esp for dead that serves again; the page says that one has to wait."""
Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


def haproxy() -> str:
    return shutil.which("haproxy") or pytest.skip("no haproxy: apt install haproxy")


def test_haproxy_takes_the_config() -> None:
    done = subprocess.run([haproxy(), "-c", "-f", HAPROXY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def haproxy_command(folder: Path, text: Callable[[str], str]) -> list[str | Path]:
    config = folder / "haproxy.cfg"
    config.write_text(text(HAPROXY.read_text()))
    return [haproxy(), "-f", config]


def nginx_command(folder: Path, text: Callable[[str], str]) -> list[str | Path]:
    program = shutil.which("nginx") or pytest.skip("no nginx: apt install nginx libnginx-mod-stream")
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    if not module.exists():
        pytest.skip(f"no {module}: apt install libnginx-mod-stream")
    config = folder / "nginx.conf"
    rest = f"load_module {module};\ndaemon off;\npid nginx.pid;\nerror_log nginx.err;\nevents {{}}\n"
    config.write_text(rest + text(BLOCKS["nginx"]))
    return [program, "-p", folder, "-c", config]


@contextmanager
def balancer(
    command: Callable[[Path, Callable[[str], str]], list[str | Path]], folder: Path, esps: list[EspProcess]
) -> Iterator[str]:
    """A load balancer by the published config, but with these addresses; gives its own."""
    address = f"127.0.0.1:{free_port()}"

    def of_this_test(text: str) -> str:
        for published, actual in (
            ("127.0.0.1:2379", address),
            ("10.0.0.1:2379", esps[0].address),
            ("10.0.0.2:2379", esps[1].address),
        ):
            text, changed = re.subn(re.escape(published), actual, text)
            assert changed == 1, published
        return text

    words = tied_to_this_process(list(map(str, command(folder, of_this_test))))
    with (folder / "balancer.log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: is_listening(address))
            yield address
        finally:
            process.terminate()


@pytest.mark.parametrize("command", [haproxy_command, nginx_command])
def test_a_rolling_restart_fails_no_call(
    command: Callable[[Path, Callable[[str], str]], list[str | Path]],
    start_etcd: Etcds,
    start_esp: Esps,
    tmp_path: Path,
    etcdctl: Etcdctl,
) -> None:
    shards = start_etcd.several(2)
    config = write_config(tmp_path / "esp.yaml", shards, ["i"], "control: off")

    def serve(*arguments: str) -> EspProcess:
        esp = start_esp.launch("-c", config, *arguments, config=config)
        esp.wait_ready()
        return esp

    esps = [serve(), serve()]
    urls = [esp.url for esp in esps]
    with balancer(command, tmp_path, esps) as address, grpc.insecure_channel(address) as channel:
        kv, watch = rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.WatchStub(channel)
        over = threading.Event()
        failed: list[object] = []
        watching: SimpleQueue[rpc_pb2.WatchResponse] = SimpleQueue()

        def one_connection() -> None:
            while not over.wait(0.005):
                try:
                    kv.Put(rpc_pb2.PutRequest(key=b"x"), timeout=PATIENCE)
                except grpc.RpcError as error:
                    failed.append(error)

        def one_connection_each() -> None:
            while not over.is_set():
                done = etcdctl(address, "put", "a", "1", check=False)
                failed.extend([done.stderr] if done.returncode else [])

        def resumed(**create: Any) -> rpc_pb2.WatchResponse:
            """What a watch that a restart ended is answered first when it comes back."""
            requests = Requests()
            requests.create(**create)
            call = watch.Watch(iter(requests), timeout=PATIENCE)
            created = next(call)
            watching.put(created)
            with pytest.raises(grpc.RpcError, match="server stopped"):
                for _ in call:
                    pass
            again = Requests()
            again.create(**create, start_revision=created.header.revision + 1)
            call = watch.Watch(iter(again), timeout=PATIENCE, wait_for_ready=True)
            assert next(call).created
            answer: rpc_pb2.WatchResponse = next(call)
            call.cancel()
            return answer

        with ThreadPoolExecutor() as pool:
            try:
                writers = [pool.submit(one_connection), pool.submit(one_connection_each)]
                inside, across = pool.submit(resumed, key=b"a"), pool.submit(resumed, **EVERYTHING)
                for _ in range(2):
                    watching.get(timeout=PATIENCE)
                for esp, url in zip(esps, urls, strict=True):
                    assert esp.stop() == 0
                    serve("--listen", url)
                    time.sleep(HELD_FOR_DEAD)
            finally:
                over.set()
            assert [writer.result() for writer in writers] == [None, None]
            assert failed == []
            assert inside.result().events
            assert across.result().compact_revision
