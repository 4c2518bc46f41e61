"""`esp top`: the picture at several sizes, in JSON, and what it says of proxies that cannot be asked."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.commands.top_view import Seen, as_json, picture
from esp.core.metrics.calls import BOUNDS
from esp.core.ui.rates import HotTold, LineTold, MapTold, ShardTold, State
from esp.core.ui.state import Numbers

DOWN: dict[str, str | int | float | None] = {
    "url": "http://10.0.0.3:2379",
    "state": "TRANSIENT_FAILURE",
    "trouble": "connection refused",
}


def numbers(calls: int, failed: int = 0, **more: float) -> Numbers:
    return Numbers(calls, failed, calls * 0.002, [0, calls, *[0] * (len(BOUNDS) - 1)], more)


def told(at: float, calls: int, *, shards: int = 3, fingerprint: str = "f865a56e3757") -> State:
    """The state of a proxy whose last shard is down."""
    found = [
        ShardTold(f"shard-{n}", numbers=numbers(calls * n, up=1, open=2, watchers=n, events=calls, db_bytes=4e6 * n))
        for n in range(1, shards)
    ]
    found.append(ShardTold(f"shard-{shards}", is_dead=True, endpoints=[DOWN], numbers=numbers(7, 7, up=0)))
    return State(
        "0.1.0",
        at,
        MapTold(fingerprint, 1),
        {"connections": 12, "watchers": 3, "leases": 1, "memory_bytes": 4.7e7},
        {"etcdserverpb.KV/Put": numbers(calls * 3, calls // 100), "etcdserverpb.KV/Range": numbers(calls)},
        list(BOUNDS),
        found,
        [LineTold(1.0, "warning", f"shard-{shards}", f"shard-{shards}: no endpoint can be used: refused")],
        [HotTold("/registry/pods/", 120.5, 3), HotTold("", 0.25, 0)],
    )


def seen(url: str = "http://a:2379", *, shards: int = 3, fingerprint: str = "f865a56e3757") -> Seen:
    one = Seen(url)
    one.take(told(10.0, 1000, shards=shards, fingerprint=fingerprint))
    one.take(told(12.0, 3000, shards=shards, fingerprint=fingerprint))
    return one


def shown(proxies: Sequence[Seen], width: int, height: int | None = None) -> list[str]:
    console = Console(width=width, force_terminal=False, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(picture(proxies, width, height))
    return [line.rstrip() for line in captured.get().rstrip("\n").split("\n")]


@pytest.mark.parametrize("width", [80, 120])
def test_the_picture(width: int) -> None:
    assert shown([seen()], width) == (Path(__file__).parent / f"top_{width}.txt").read_text().splitlines()


def test_shards_in_trouble_come_first_then_those_with_the_most_calls() -> None:
    lines = shown([seen()], 120)
    order = [line.split()[0] for line in lines if line.startswith("shard-") and ": " not in line]
    assert order == ["shard-3", "shard-2", "shard-1"]
    assert "shard-3: http://10.0.0.3:2379: connection refused" in "\n".join(lines)


def test_maps_that_differ_are_told() -> None:
    text = "\n".join(shown([seen(), seen("http://b:2379", fingerprint="0000aaaa1111")], 120))
    assert "The proxies have different maps" in text
    assert "different maps" not in "\n".join(shown([seen(), seen("http://b:2379")], 120))


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("height", [24, 50])
def test_many_shards_fit_a_terminal(width: int, height: int) -> None:
    lines = shown([seen(shards=300)], width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert any("of 300)" in line for line in lines)


def test_a_proxy_that_does_not_answer_has_the_reason_in_its_row() -> None:
    gone = seen("http://b:2379")
    gone.take("connection refused")
    lines = shown([seen(), gone], 120)
    assert any(line.startswith("http://b:2379") and "connection refused" in line for line in lines)


def test_json() -> None:
    found = json.loads(as_json([seen()]))
    assert found["proxies"][0]["map"] == "f865a56e3757"
    assert found["proxies"][0]["calls"] == 4000.0
    assert [shard["name"] for shard in found["shards"]] == ["shard-3", "shard-2", "shard-1"]
    assert found["shards"][0]["state"] == "down"
    assert found["shards"][1]["calls"] == 2000.0
    assert found["methods"][0]["rpc"] == "KV/Put"
    assert found["hot"][0] == {"prefix": "/registry/pods/", "calls": 120.5, "writes": 3.0}


@contextmanager
def serving(status: int, body: bytes) -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b"", "it has no status page: set ui: true there"),
        (500, b"", "it answers 500"),
        (200, b"{}", "it is no esp, or a newer one"),
    ],
)
def test_what_is_no_status_page(status: int, body: bytes, text: str) -> None:
    with serving(status, body) as url:
        result = CliRunner().invoke(app, ["top", url, "-n", "1"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert text in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["http://127.0.0.1:1"], 1, "http://127.0.0.1:1: connection refused; nothing listens there: start it"),
        (["ftp://a"], 2, '"ftp://a" is no URL of a proxy; write http://HOST:PORT'),
        (["a:1:2"], 2, '"a:1:2" is no URL of a proxy'),
        (["https://127.0.0.1:1", "--cacert", "/missing"], 2, "certificate files cannot be used (/missing)"),
        (["-c", "/missing.yaml"], 2, "/missing.yaml"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, text: str) -> None:
    result = CliRunner().invoke(app, ["top", "-n", "1", *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr


def test_a_config_without_a_status_page(tmp_path: Path) -> None:
    path = tmp_path / "esp.yaml"
    path.write_text("ui: false\nshards: [{endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]")
    result = CliRunner().invoke(app, ["top", "-n", "1", "-c", str(path)])
    assert result.exit_code == 2
    assert "has no status page at a port" in result.stderr
