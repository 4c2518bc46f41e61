"""`esp top` at a real terminal, and without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import Esps, Server, connect, wait_until
from tests.stubs import rpc_pb2_grpc

TMUX = shutil.which("tmux")
TOP = (sys.executable, "-m", "esp", "top", "-i", "0.3")


@pytest.fixture(scope="module")
def server(shards: list[LocalEtcd], module_esps: Esps) -> Server:
    return module_esps(shards, ["i", "r"], extra="hot_prefixes: on")


def put(server: Server) -> None:
    with connect(server) as channel:
        for key in (b"/registry/pods/default/web", b"z"):
            rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=key), timeout=30)


def test_lines_of_json(server: Server) -> None:
    put(server)
    done = subprocess.run([*TOP, f"http://{server.address}", "-n", "2", "-o", "json"], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    for line in done.stdout.splitlines():
        told = json.loads(line)
        assert {shard["name"]: shard["state"] for shard in told["shards"]} == {"s0": "up", "s1": "up", "s2": "up"}
        assert [proxy["url"] for proxy in told["proxies"]] == [f"http://{server.address}"]


@pytest.mark.skipif(TMUX is None, reason="no tmux: apt-get install tmux")
def test_a_terminal_shows_it_until_q(server: Server, tmp_path: Path) -> None:
    def tmux(*arguments: str) -> str:
        assert TMUX is not None
        done = subprocess.run(
            [TMUX, "-S", str(tmp_path / "tmux"), *arguments], capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def shows_a_put() -> bool:
        put(server)  # again and again: an RPC that is not called any more is not shown
        return "KV/Put" in tmux("capture-pane", "-p")

    command = f"{' '.join(TOP)} {server.address}; echo ended with $?; sleep 1000"
    tmux("new-session", "-d", "-x", "80", "-y", "24", "-c", os.getcwd(), command)
    try:
        wait_until(lambda: re.search(r"s2 +up ", tmux("capture-pane", "-p")) is not None)
        wait_until(shows_a_put)
        picture = tmux("capture-pane", "-p").rstrip("\n").splitlines()
        assert picture[0].startswith("PROXY")
        assert "q ends" in picture
        tmux("send-keys", "q")
        wait_until(lambda: "ended with 0" in tmux("capture-pane", "-p"))
        assert "PROXY" not in tmux("capture-pane", "-p")  # the terminal shows again what it showed before
    finally:
        tmux("kill-server")
