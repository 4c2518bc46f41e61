"""`esp plan` on real etcds, on shards and through an esp: what it counts, proposes and refuses."""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core import config as configs
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import Esps, Etcds, Server, connect, write_config
from tests.stubs import rpc_pb2_grpc

Run = Callable[..., tuple[int, str, str]]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["plan", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def planned(*arguments: str) -> dict[str, Any]:
    code, out, err = run(*arguments, "-o", "json")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def put(server: Server, keys: dict[str, int], leases: dict[str, int] | None = None) -> None:
    """Puts keys with values of so many bytes."""
    with connect(server) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for key, size in keys.items():
            lease = (leases or {}).get(key, 0)
            kv.Put(rpc_pb2.PutRequest(key=key.encode(), value=b"v" * size, lease=lease))


def shapes() -> dict[str, int]:
    """Keys of several shapes, and the sizes of their values."""
    keys = {f"/registry/{name}/ns/o{number:03d}": 200 for name in ("events", "pods", "leases") for number in range(30)}
    keys |= {f"/app/{name}/{number:03d}": 50 for name in ("users", "orders") for number in range(40)}
    keys |= {f"/blobs/big/{number}": 100_000 for number in range(3)}
    return keys | {f"{number * 0x9E3779B1 % 2**32:08x}": 10 for number in range(60)}


@pytest.fixture(scope="module")
def full(module_etcds: Etcds) -> LocalEtcd:
    found = module_etcds()
    put(found, shapes())
    return found


def total(keys: dict[str, int], prefix: str = "") -> tuple[int, int]:
    inside = {key: size for key, size in keys.items() if key.startswith(prefix)}
    return len(inside), sum(len(key) + size for key, size in inside.items())


def test_keys_and_bytes_are_where_they_are(full: LocalEtcd) -> None:
    plan = planned("--from", full.endpoint, "--watch", "0")
    keys = shapes()
    assert (plan["keys"], plan["bytes"]) == total(keys)
    assert plan["writes_per_second"] is None
    for row in plan["prefixes"]:
        assert (row["keys"], row["bytes"]) == total(keys, row["prefix"]["text"]), row
    assert {"/app/users/", "/blobs/big/", "/registry/pods/"} <= {row["prefix"]["text"] for row in plan["prefixes"]}
    assert {row["prefix"]["text"]: row["resource"] for row in plan["prefixes"]}["/registry/events/"] == "events"
    assert plan["values_read"] < 30


def test_the_config_is_good_and_is_the_map_that_is_proposed(full: LocalEtcd, tmp_path: Path) -> None:
    for by in ("keys", "bytes"):
        file = tmp_path / f"{by}.yaml"
        plan = planned("--from", full.endpoint, "--watch", "0", "--by", by, "--to", str(file))
        loaded = configs.load(file)
        assert [shard.name for shard in loaded.shards] == [shard["name"] for shard in plan["shards"]]
        for shard in plan["shards"]:
            ranges = [(one["start"]["text"], one["end"] and one["end"]["text"]) for one in shard["ranges"]]
            owned = loaded.shard_map.ranges_of(shard["name"])
            assert [(one.start.decode(), one.end and one.end.decode()) for one in owned] == ranges
        assert file.read_text() == plan["config"]


def test_no_boundary_divides_what_stays_whole(full: LocalEtcd, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    planned("--from", full.endpoint, "--watch", "0", "--shards", "4", "--keep", "/app/", "--to", str(file))
    shard_map = configs.load(file).shard_map
    for prefix in (b"/app/", b"/registry/pods/", b"/registry/events/", b"/blobs/big/"):
        assert shard_map.owner(prefix) == shard_map.owner(prefix + b"zzz")
    assert shard_map.owner(b"/registry/pods") == shard_map.owner(b"/registry/pods/")


def test_keys_without_separators_are_divided_and_the_note_says_so(empty_etcd: LocalEtcd) -> None:
    etcd = empty_etcd
    put(etcd, {f"{number * 0x9E3779B1 % 2**32:08x}": 10 for number in range(300)})
    plan = planned("--from", etcd.endpoint, "--watch", "0")
    assert len(plan["at_keys"]) == 2
    assert [note["kind"] for note in plan["notes"]] == ["at-keys"]
    assert plan["largest"] < 1.25
    put(etcd, {f"user:{number}:name": 10 for number in range(3000)})
    plan = planned("--from", etcd.endpoint, "--watch", "0")
    assert "separator" in [note["kind"] for note in plan["notes"]]


def test_a_held_lock_stays_whole(empty_etcd: LocalEtcd) -> None:
    etcd = empty_etcd
    with connect(etcd) as channel:
        stub = rpc_pb2_grpc.LeaseStub(channel)
        leases = [stub.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600)).ID for _ in range(20)]
    waiting = {f"jobs/{lease:x}": lease for lease in leases}
    put(etcd, dict.fromkeys(waiting, 10), waiting)
    plan = planned("--from", etcd.endpoint, "--watch", "0", "--divide", "jobs/")
    assert [row["locks"] for row in plan["prefixes"]] == [True]
    assert plan["moves"] == []
    assert len(plan["shards"]) == 1


@pytest.fixture
def writer(full: LocalEtcd) -> Iterator[None]:
    """Writes one key below /hot/ all the time, and deletes another."""
    ended = threading.Event()

    def write() -> None:
        with connect(full) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            while not ended.is_set():
                kv.Put(rpc_pb2.PutRequest(key=b"/hot/c/1", value=b"x"))
                kv.Put(rpc_pb2.PutRequest(key=b"/hot/d/gone", value=b"x"))
                kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"/hot/d/gone"))

    thread = threading.Thread(target=write)
    thread.start()
    yield
    ended.set()
    thread.join()
    with connect(full) as channel:
        rpc_pb2_grpc.KVStub(channel).DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"/hot/", range_end=b"/hot0"))


@pytest.mark.usefixtures("writer")
def test_writes_are_where_they_are(full: LocalEtcd) -> None:
    plan = planned("--from", full.endpoint, "--watch", "1", "--by", "writes", "--shards", "2", "--depth", "1")
    assert plan["writes_seen"] > 10
    assert 1 <= plan["watched_seconds"] < 60
    assert plan["writes_per_second"] > 0
    [hot] = [row for row in plan["prefixes"] if row["prefix"]["text"] == "/hot/"]
    assert hot["share"] == 1.0
    assert plan["heaviest"] is not None
    deeper = planned("--from", full.endpoint, "--watch", "1", "--by", "writes", "--shards", "2")
    shares = sorted(shard["share"] for shard in deeper["shards"])
    assert 0.2 < shares[0] < 0.5  # one of three writes is to /hot/c/


def test_without_writes_there_is_no_plan_by_them(full: LocalEtcd) -> None:
    code, out, err = run("--from", full.endpoint, "--watch", "0.2", "--by", "writes")
    assert (code, out) == (1, "")
    assert err == "esp: nothing was written in 0.2 s; watch longer (--watch 60), or plan by keys (--by keys)\n"


def test_without_keys_there_is_no_plan(empty_etcd: LocalEtcd) -> None:
    code, out, err = run("--from", empty_etcd.endpoint, "--watch", "0")
    assert (code, out) == (1, "")
    assert err == "esp: there are no keys to plan by; plan when clients have written some\n"


class TestShards:
    def test_each_shard_counts_by_the_map(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        config = write_config(tmp_path / "esp.yaml", empty_shards, ["b", "c"], "whole: [a/x/]")
        put(empty_shards[0], {f"a/{name}/{number}": 10 for name in "xyz" for number in range(20)} | {"zz/stray": 10})
        put(empty_shards[1], {"b/1": 10})
        put(empty_shards[2], {"c/1": 10, "\0esp/map": 10})
        plan = planned("-c", str(config), "--watch", "0", "--against")
        assert plan["keys"] == 62
        assert {shard["name"]: shard["keys"] for shard in plan["today"]} == {"s0": 60, "s1": 1, "s2": 1}
        assert {shard["name"]: shard["keys"] for shard in plan["shards"]} == {"s0": 20, "s1": 22, "s2": 20}
        commands = [move["command"] for move in plan["moves"]]
        assert commands == [
            "esp move a/y/ a/z/ --to s2 --experimental",
            "esp move a/z/ b --to s1 --experimental",
            "esp move c '' --to s1 --experimental",
        ]
        assert plan["esp_move"] is False
        assert [one["name"] for one in plan["revisions"]] == ["s0", "s1", "s2"]
        code, out, _ = run("-c", str(config), "--watch", "0", "--against")
        assert code == 0
        assert "Today's map: the largest shard has 2.90 of a fair share of the keys." in out
        assert "  # esp move a/y/ a/z/ --to s2 --experimental  # 20 keys" in out
        assert "esp move needs the map in the shards" in " ".join(out.split())
        assert max(map(len, out.splitlines()[2:12])) <= 80

    def test_an_even_map_stays(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        config = write_config(tmp_path / "esp.yaml", empty_shards, ["b", "c"])
        for shard, name in zip(empty_shards, "abc", strict=True):
            put(shard, {f"{name}/{number}": 10 for number in range(5)})
        plan = planned("-c", str(config), "--watch", "0")
        assert (plan["stays"], plan["moves"]) == (True, [])
        _, out, _ = run("-c", str(config), "--watch", "0")
        assert "Nothing has to move." in out

    def test_the_map_of_the_shards(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        config = write_config(tmp_path / "esp.yaml", empty_shards, ["b", "c"])
        done = CliRunner().invoke(app, ["map", "init", "--yes", "-c", str(config)])
        assert done.exit_code == 0, done.output
        config.write_text(re.sub(r"(?m)^ +ranges: .*\n", "", config.read_text()) + "map: shards\n")
        put(empty_shards[0], {f"a/{name}/{number}": 10 for name in "xyz" for number in range(20)})
        plan = planned("-c", str(config), "--watch", "0", "--against")
        assert plan["keys"] == 60
        assert {shard["name"]: shard["keys"] for shard in plan["today"]} == {"s0": 60, "s1": 0, "s2": 0}
        assert {shard["name"]: shard["keys"] for shard in plan["shards"]} == {"s0": 20, "s1": 20, "s2": 20}
        assert plan["esp_move"] is True
        _, out, _ = run("-c", str(config), "--watch", "0")
        lines = out.partition("To move, in this order:\n")[2].partition("\n\n")[0].splitlines()
        assert len(lines) == len(plan["moves"]) > 1
        for line in lines:
            words = [*shlex.split(line, comments=True)[1:], "--yes", "--max-pause", "20", "-c", str(config)]
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, done.output
        plan = planned("-c", str(config), "--watch", "0", "--against")
        assert {shard["name"]: shard["keys"] for shard in plan["today"]} == {"s0": 20, "s1": 20, "s2": 20}

    def test_through_an_esp(self, start_esp: Esps, empty_shards: list[LocalEtcd]) -> None:
        esp = start_esp(empty_shards, ["b", "c"])
        put(esp, {f"{name}/x/{number}": 10 for name in "abc" for number in range(40)})
        plan = planned("--from", esp.url, "--watch", "0.2")
        assert plan["keys"] == 120
        assert [note["kind"] for note in plan["notes"]] == ["an-esp"]
        plan = planned("--from", esp.url, "-c", str(esp.config), "--watch", "0", "--against")
        assert {shard["name"]: shard["keys"] for shard in plan["today"]} == {"s0": 40, "s1": 40, "s2": 40}
        assert plan["notes"] == []

    def test_a_shard_that_is_down(self, start_etcd: Etcds, tmp_path: Path) -> None:
        up, down = start_etcd.several(2)
        down.kill()
        config = write_config(tmp_path / "esp.yaml", [up, down], ["i"])
        code, out, err = run("-c", str(config))
        assert (code, out) == (1, "")
        assert "s1" in err
        assert "cannot be reached" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--by", "writes", "--watch", "0", "--from", "http://h:1"],
            "--by writes needs a watch; give --watch some seconds",
        ),
        (["--user", "u"], "--cacert, --cert, --key, --user and --password-file are for --from; add it"),
        (
            ["--from", "http://h:1", "--against"],
            "--against with --from needs the config whose map is meant; add -c FILE",
        ),
        (
            ["--from", "http://h:1", "--separator", ""],
            '--separator is empty; give the text that ends a prefix, such as "/"',
        ),
        (["--from", "http://h:1", "--to", "/dev/null"], "/dev/null exists; give another file, or remove it"),
    ],
)
def test_wrong_usage(arguments: list[str], told: str) -> None:
    assert run(*arguments) == (2, "", f"esp: {told}\n")


def test_an_address_where_nobody_listens() -> None:
    code, out, err = run("--from", "http://127.0.0.1:1")
    assert (code, out) == (1, "")
    assert err.startswith("esp: http://127.0.0.1:1: ")
    assert "refused" in err
