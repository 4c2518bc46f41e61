"""`esp check --proxy`: running proxies, asked by grpcio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd, free_port
from esp.core.local_tls import Authority
from esp.core.wording import cured
from tests.commands.test_check import check
from tests.harness import EspProcess, Esps, running_esps, write_config


@pytest.fixture(scope="module")
def esps(tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[Esps]:
    with running_esps(tmp_path_factory.mktemp("esps"), etcd_binary) as esps:
        yield esps


@pytest.fixture(scope="module")
def esp(esps: Esps, shards: list[LocalEtcd]) -> EspProcess:
    return esps(shards, ["i", "r"])


@pytest.fixture(scope="module")
def other(esps: Esps, shards: list[LocalEtcd]) -> EspProcess:
    """Of another map: the boundary is at "s"."""
    return esps(shards, ["i", "s"])


@pytest.fixture
def config(empty_shards: list[LocalEtcd], tmp_path: Path) -> Path:
    return write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])


def of_proxies(config: Path, *arguments: str) -> tuple[int, dict[str, object], list[tuple[str, str | None, str]]]:
    """The exit code, the JSON, and what is told about proxies."""
    code, out, _ = check("-c", config, "-o", "json", *arguments)
    told = json.loads(out)
    findings = [(f["kind"], f["endpoint"], f["text"]) for f in told["problems"] + told["notes"]]
    return code, told, [finding for finding in findings if finding[0].startswith("proxy-")]


def test_a_proxy_of_the_same_map(esp: EspProcess, config: Path) -> None:
    code, told, findings = of_proxies(config, "--proxy", esp.url)
    assert (code, findings) == (0, [])
    (proxy,) = told["proxies"]  # type: ignore[misc]
    assert proxy.pop("latency_seconds") > 0
    assert proxy.pop("esp")
    assert proxy == {
        "proxy": esp.url,
        "reachable": True,
        "error": None,
        "map": told["map"],
        "same_map": True,
        "epoch": 1,
        "reads": 3,
        "wrong_reads": [],
    }
    code, out, _ = check("-c", config, "--proxy", esp.url)
    assert f"\n{esp.url}  " in out
    assert f"{told['map']}  1      " in out
    assert "  3 of 3 right\n" in out


def test_without_proxies_none_are_told(config: Path) -> None:
    _, told, findings = of_proxies(config)
    assert (told["proxies"], findings) == (None, [])


def test_a_proxy_of_another_map(esp: EspProcess, other: EspProcess, config: Path) -> None:
    code, told, findings = of_proxies(config, "--proxy", esp.url, "--proxy", other.url)
    assert code == 1
    assert [(kind, endpoint) for kind, endpoint, _ in findings] == [
        ("proxy-map", None),
        ("proxy-map", other.url),
        ("proxy-route", other.url),
    ]
    assert "running proxies have different shard maps" in findings[0][2]
    assert f"that of {config} is {told['map']}" in findings[1][2]
    assert findings[2][2] == 'a read of "r\\x00", which shard s2 owns, came from shard s1'
    wrong = [proxy["wrong_reads"] for proxy in told["proxies"]]  # type: ignore[attr-defined]
    assert wrong == [
        [],
        [
            {
                "key": {"text": "r\0", "base64": "cgA="},
                "owner": "s2",
                "answered_by": "s1",
                "error": None,
            }
        ],
    ]


def test_the_same_map_with_other_clusters_behind_it(esp: EspProcess, shards: list[LocalEtcd], tmp_path: Path) -> None:
    """As if an endpoint was written to the wrong shard: no fingerprint tells that."""
    config = write_config(tmp_path / "esp.yaml", [shards[1], shards[0], shards[2]], ["i", "r"])
    code, _, findings = of_proxies(config, "--proxy", esp.url)
    assert (code, [kind for kind, _, _ in findings]) == (1, ["proxy-route"] * 2)
    assert findings[0][2] == 'a read of "\\x00", which shard s0 owns, came from shard s1'


def test_no_stray_is_touched_while_a_proxy_has_another_map(esp: EspProcess, other: EspProcess, config: Path) -> None:
    arguments = ("--fix-strays", "delete", "--apply", "--proxy", esp.url)
    assert check("-c", config, *arguments)[0] == 0
    code, out, err = check("-c", config, *arguments, "--proxy", other.url)
    assert (code, out) == (1, "")
    assert err.startswith("esp: no key is touched: running proxies have different shard maps (")
    code, _, err = check("-c", config, "--fix-strays", "move", "--proxy", other.url)
    assert err.startswith(f"esp: no key is touched: proxy {other.url}: its shard map is ")


def test_a_proxy_that_is_down(config: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, out, err = check("-c", config, "--proxy", url)
    assert (code, err) == (1, "esp: not healthy: 1 problem\n")
    assert f"\n  proxy {url}: cannot be used: {cured('connection refused')}\n" in out
    assert f"\n{url}  ?    ?    ?      down     ?\n" in out


def test_an_etcd_in_the_place_of_a_proxy(shards: list[LocalEtcd], config: Path) -> None:
    code, _, findings = of_proxies(config, "--proxy", shards[0].endpoint)
    assert code == 1
    assert findings[0] == ("proxy-no-esp", shards[0].endpoint, "answers, and does not say that it is an esp")
    assert [kind for kind, _, _ in findings[1:]] == ["proxy-route"] * 2


def test_a_server_that_is_no_etcd(config: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        code, _, findings = of_proxies(config, "--proxy", url)
    finally:
        server.stop(None).wait()
    assert (code, findings) == (1, [("proxy-unreachable", url, "cannot be used: Method not found!")])


def test_a_proxy_with_tls(esps: Esps, shards: list[LocalEtcd], config: Path, tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.issue(["127.0.0.1"], life=timedelta(days=1)).write(tmp_path, "server")
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.cert)
    url = f"https://127.0.0.1:{free_port()}"
    esps(shards, ["i", "r"], "--listen", url, extra=f"tls: {{cert: {cert}, key: {key}}}")
    code, told, findings = of_proxies(config, "--proxy", url, "--cacert", str(ca))
    assert (code, findings, told["proxies"][0]["reads"]) == (0, [], 3)  # type: ignore[index]
    code, _, findings = of_proxies(config, "--proxy", url)
    assert (code, [kind for kind, _, _ in findings]) == (1, ["proxy-unreachable"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--proxy", "nonsense"], 'esp: proxy "nonsense" has no port; write http://nonsense:2379\n'),
        (["--cacert", "ca.crt"], "esp: --cacert, --cert and --key are for --proxy; add it, or leave them out\n"),
        (
            ["--proxy", "https://h:1", "--cacert", "none.crt"],
            "esp: none.crt cannot be read: no such file or directory\n",
        ),
    ],
)
def test_wrong_usage(arguments: list[str], told: str, config: Path) -> None:
    code, out, err = check("-c", config, *arguments)
    assert (code, out, err) == (2, "", told)
