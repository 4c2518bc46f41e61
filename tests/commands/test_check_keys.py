"""`esp check --keys`: what shards hold and do not own, with real etcds."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.commands.test_check import check, check_json
from tests.harness import connect, write_config
from tests.stubs import rpc_pb2_grpc


def put(etcd: LocalEtcd, *keys: bytes) -> None:
    with connect(etcd) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for key in keys:
            kv.Put(rpc_pb2.PutRequest(key=key, value=b"v"))


def stray_parts(told: dict[str, object]) -> dict[str, list[tuple[str, int, list[str]]]]:
    """By shard: the owner, number and samples of each range with stray keys."""
    found = {}
    for shard in told["shards"]:  # type: ignore[attr-defined]
        found[shard["name"]] = [
            (part["owner"], part["count"], [key.get("text", key["base64"]) for key in part["samples"]])
            for part in shard["keys"]["strays"]
        ]
    return found


class TestKeys:
    def test_shards_that_hold_only_what_they_own_are_healthy(
        self, empty_shards: list[LocalEtcd], tmp_path: Path
    ) -> None:
        for etcd, key in zip(empty_shards, (b"\0", b"i", b"\xff"), strict=True):
            put(etcd, key)
        config = write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])
        code, out, _ = check("-c", config, "--keys")
        assert code == 0
        table = [line.split() for line in out.partition("OWN KEYS")[2].splitlines()[1:4]]
        assert table == [["s0", "1", "0"], ["s1", "1", "0"], ["s2", "1", "0"]]

    def test_every_stray_key_is_found_with_its_owner(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        put(empty_shards[0], b"a", b"i", b"k\n", b"q", b"qq", b"r", b"\xff\xff")
        put(empty_shards[1], b"h", b"j")
        config = write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])
        code, told = check_json(config, "--keys")
        assert code == 1
        assert stray_parts(told) == {
            "s0": [("s1", 4, ["i", "k\n", "q"]), ("s2", 2, ["r", "//8="])],
            "s1": [("s0", 1, ["h"])],
            "s2": [],
        }
        assert [shard["keys"]["owned"] for shard in told["shards"]] == [1, 1, 0]
        assert [(one["kind"], one["shards"]) for one in told["problems"]] == [
            ("stray-keys", ["s0"]),
            ("stray-keys", ["s0"]),
            ("stray-keys", ["s1"]),
        ]
        code, out, err = check("-c", config, "--keys")
        assert 'shard s0 up, 2 problems: keys ["", "i") can be read and written\n' in out
        assert 'holds 4 stray keys in ["i", "r"), which shard s1 owns: "i", "k\\x0a", "q", ...; no client' in out
        assert (code, err) == (1, "esp: not healthy: 3 problems\n")

    def test_without_the_option_no_key_is_counted(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        put(empty_shards[0], b"z")
        config = write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])
        code, told = check_json(config)
        assert (code, [shard["keys"] for shard in told["shards"]]) == (0, [None] * 3)

    def test_keys_outside_of_the_namespace_are_not_esps(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        put(empty_shards[0], b"ns/", b"ns/z", b"z")
        config = write_config(tmp_path / "esp.yaml", empty_shards, ["ns/k", "ns/r"], "namespace: ns/")
        code, told = check_json(config, "--keys")
        assert code == 1
        assert stray_parts(told) == {"s0": [("s2", 1, ["ns/z"])], "s1": [], "s2": []}

    def test_a_shard_that_is_down_does_not_tell(
        self, empty_shards: list[LocalEtcd], tmp_path: Path, unused_endpoint: str
    ) -> None:
        config = tmp_path / "esp.yaml"
        config.write_text(
            "shards:\n"
            f"- {{name: a, endpoints: ['{empty_shards[0].endpoint}'], ranges: [{{start: '', end: m}}]}}\n"
            f"- {{name: b, endpoints: ['{unused_endpoint}'], ranges: [{{start: m, end: ''}}]}}\n"
        )
        code, told = check_json(config, "--keys")
        assert code == 1
        assert [shard["keys"]["error"] for shard in told["shards"]] == [None, "connection refused"]
        assert "keys-unknown" in [one["kind"] for one in told["problems"]]


@pytest.fixture
def unused_endpoint() -> str:
    from esp.core.local import free_port

    return f"http://127.0.0.1:{free_port()}"
