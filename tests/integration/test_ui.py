"""The status page in a real browser: what it shows of a shard that is up and of one that is down."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from html import unescape
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd, free_port
from esp.core.pb import rpc_pb2
from tests.harness import Esps, Server, connect, wait_until
from tests.stubs import rpc_pb2_grpc

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")


def seen(server: Server, folder: Path, *, size: str = "1280,1000") -> str:
    """The page as Chromium has it after some seconds of its own clock."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={folder}"]
    wanted = ["--virtual-time-budget=6000", f"--window-size={size}", "--dump-dom", f"http://{server.address}/ui"]
    done = subprocess.run([BROWSER, *options, *wanted], capture_output=True, text=True, timeout=240, check=True)
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert told == []  # neither errors nor what the Content-Security-Policy forbids
    return done.stdout


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def element(html: str, name: str, identity: str) -> str:
    found = re.search(rf'<{name}[^>]* id="{identity}".*?</{name}>', html, re.DOTALL)
    assert found is not None, identity
    return text_of(found[0])


@pytest.fixture(scope="module")
def server(shards: list[LocalEtcd], module_esps: Esps) -> Server:
    """Shards `a` and `b`, and `c.d`, whose endpoint refuses connections; a range has moved from `b` to `a`."""
    config = module_esps.folder / "ui.yaml"
    refuses = free_port()

    def write(edge: str) -> None:
        config.write_text(
            f"""
            shards:
              - {{name: a, endpoints: ["{shards[0].endpoint}"], ranges: [{{start: "", end: "{edge}"}}]}}
              - {{name: b, endpoints: ["{shards[1].endpoint}"], ranges: [{{start: "{edge}", end: "r"}}]}}
              - {{name: c.d, endpoints: ["http://127.0.0.1:{refuses}"], ranges: [{{start: "r", end: ""}}]}}
            """
        )

    write("h")
    esp = module_esps.launch("-c", config, config=config)
    esp.wait_ready()
    write("i")
    esp.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "layout 2 is in force" in esp.log())
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for _ in range(3):
            kv.Put(rpc_pb2.PutRequest(key=b"j"), timeout=30)
    return esp


@needs_browser
@pytest.mark.parametrize("size", ["1280,1000", "360,700"])
def test_a_browser_shows_the_shards(server: Server, tmp_path: Path, size: str) -> None:
    html = seen(server, tmp_path, size=size)
    assert (
        element(html, "p", "verdict")
        == "1 of 3 shards cannot be used: c.d. Calls for their keys fail; all others go on."
    )
    assert "<title>✗ 1 down: esp</title>" in html
    for name, state in (("a", "✓ up"), ("b", "✓ up"), ("c.d", "✗ down")):
        row = element(html, "tr", f"shard-{name}")
        assert row.startswith(f"{name} {state} ")
    assert "connection refused" in element(html, "tr", "shard-c.d")
    assert "in use, " in element(html, "tr", "shard-a")
    keys = element(html, "ol", "keys")
    assert keys == "first key a i b r ✗ c.d"
    assert re.search(r"KV/Put [\d.]+ [\d.]+ \S+( ms)? \S+( ms)? 3\b", text_of(html))
    moved = element(html, "tbody", "moves")
    assert re.fullmatch(r'\["h", "i"\) b a .*\d+:\d+.* reload of the file', moved), moved
    assert "got another shard since this process began, newest first." in element(html, "caption", "moves-told")
    assert "no endpoint can be used" in element(html, "ol", "recent")
    buttons = re.findall(r"<button[^>]*>.*?</button>", html, re.DOTALL)
    assert len(buttons) == 16  # pause, three ranges, twelve columns
    assert all(text_of(button) or "aria-label=" in button for button in buttons)
