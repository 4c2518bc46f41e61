"""`esp serve` with `map: shards`: the start, other maps while it serves, and proxies that were frozen meanwhile."""

from __future__ import annotations

import json
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.shared_map import GUARD_KEY, MAP_KEY, NEXT_KEY, Next, with_shards
from tests.harness import EspProcess, Esps, Etcds, connect, freeze, frozen, wait_until, write_config
from tests.integration.mapped import Mapped
from tests.stubs import rpc_pb2_grpc

Put, Range = rpc_pb2.PutRequest, rpc_pb2.RangeRequest


def run_esp(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def page(esp: EspProcess, path: str) -> str:
    with urllib.request.urlopen(f"{esp.url}{path}", timeout=20) as answer:
        return str(answer.read().decode())


@contextmanager
def kv_of(server: EspProcess | LocalEtcd) -> Iterator[rpc_pb2_grpc.KVStub]:
    with connect(server) as channel:
        yield rpc_pb2_grpc.KVStub(channel)


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(3), ["i", "r"], tmp_path / "esp.yaml")


def test_it_serves_by_the_map_of_the_shards_and_tells_which(mapped: Mapped, start_esp: Esps) -> None:
    mapped.move(b"r", None, "s1")
    esp = start_esp.launch("-c", mapped.path, config=mapped.path)
    esp.wait_ready()
    assert f"map {mapped.now.map.fingerprint} of epoch 2" in esp.log()
    told = json.loads(page(esp, "/version"))
    assert (told["map"], told["epoch"], told["map_in"]) == (mapped.now.map.fingerprint, "2", "shards")
    assert f"[+]map of the shards: epoch 2, {mapped.now.map.fingerprint}\n" in page(esp, "/readyz?verbose")
    metrics = page(esp, "/metrics")
    assert "esp_map_epoch 2" in metrics
    assert 'esp_map_outdated_calls_total{result="rerouted"} 0' in metrics
    with kv_of(esp) as kv:
        kv.Put(Put(key=b"z", value=b"1"), timeout=20)
    assert mapped.read("s1", b"z") == [(b"z", b"1")]
    code, text = run_esp("check", "-c", mapped.path, "--proxy", esp.url)
    assert (code, "problem" in text) == (0, False), text
    code, text = run_esp("route", "-c", mapped.path, "z")
    assert (code, "s1" in text) == (0, True), text
    mapped.move(b"r", None, "s2")
    wait_until(lambda: json.loads(page(esp, "/version"))["epoch"] == "3")
    with kv_of(esp) as kv:
        kv.Put(Put(key=b"z", value=b"2"), timeout=20)
    assert mapped.read("s2", b"z") == [(b"z", b"2")]
    assert 'the map of the shards has epoch 3 now, before 2: ["r", end) moves from s1 to s2, by tests at ' in esp.log()
    assert run_esp("reload", "-c", mapped.path)[0] == 0  # the file has no map that could be in its way
    assert json.loads(page(esp, "/version"))["epoch"] == "3"
    assert "esp_map_moved_ranges_total 1" in page(esp, "/metrics").splitlines()
    told = json.loads(page(esp, "/ui/state"))["moves"]
    assert told["last"][0].pop("at") > 0
    how = 'map of the shards, epoch 3, by tests: ["r", end) moves from s1 to s2'
    assert told == {
        "last": [{"keys": '["r", end)', "from": "s1", "to": "s2", "how": how}],
        "more": 0,
        "unfinished": "",
    }


def test_the_status_page_tells_of_a_change_that_is_half_done(mapped: Mapped, start_esp: Esps) -> None:
    esp = start_esp.launch("-c", mapped.path, config=mapped.path)
    esp.wait_ready()
    after = with_shards(mapped.now, [*mapped.now.names, "new"], at=mapped_at(), by="ann", what="adds new")
    decided = rpc_pb2.RequestOp(request_put=Put(key=NEXT_KEY, value=Next(mapped.now, after).encode()))
    mapped.ask(mapped.now.anchor, rpc_pb2.TxnRequest(success=[decided]))

    def unfinished() -> str:
        return str(json.loads(page(esp, "/ui/state"))["moves"]["unfinished"])

    wait_until(lambda: unfinished() != "")
    assert "esp_map_change_unfinished 1" in page(esp, "/metrics").splitlines()
    assert unfinished() == (
        f"A change of the map on the shards to epoch 2, by ann at {mapped_at()}, is half done: adds new. "
        "esp map finish carries it out."
    )
    withdrawn = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=NEXT_KEY))
    mapped.ask(mapped.now.anchor, rpc_pb2.TxnRequest(success=[withdrawn]))
    wait_until(lambda: unfinished() == "")
    assert "esp_map_change_unfinished 0" in page(esp, "/metrics").splitlines()


def test_a_restored_shard_is_served_again_once_it_has_a_new_guard(mapped: Mapped, start_esp: Esps) -> None:
    old = mapped.now
    mapped.move(b"r", None, "s1")
    esp = start_esp.launch("-c", mapped.path, config=mapped.path)
    esp.wait_ready()
    mapped.hold("s1", old)  # a backup from before the move
    with kv_of(esp) as kv:
        kv.Put(Put(key=b"a", value=b"1"), timeout=20)
        with pytest.raises(grpc.RpcError, match="restored from a backup"):
            kv.Put(Put(key=b"z", value=b"1"), timeout=20)
        assert run_esp("map", "fence", "s1", "--yes", "-c", mapped.path)[0] == 0
        kv.Put(Put(key=b"z", value=b"2"), timeout=20)
        assert mapped.read("s1", b"z") == [(b"z", b"2")]
        mapped.hold("s0", old, guard=f"1-{0:032x}")  # which decides on changes
        with pytest.raises(grpc.RpcError, match="restored from a backup"):
            kv.Put(Put(key=b"a", value=b"2"), timeout=20)
        assert run_esp("map", "fence", "s0", "--yes", "-c", mapped.path)[0] == 0
        for key in (b"a", b"z"):
            kv.Put(Put(key=key, value=b"3"), timeout=20)
        code, text = run_esp("map", "remove", "--yes", "-c", mapped.path)
        assert code == 1
        assert f"proxies are registered that serve by the map ({esp.url}); stop them first" in text
        assert run_esp("map", "remove", "--yes", "--while-served", "-c", mapped.path)[0] == 0
        with pytest.raises(grpc.RpcError, match="the map was taken away"):
            kv.Put(Put(key=b"a", value=b"4"), timeout=20)
    assert mapped.read("s0", b"\0", b"b") == [(b"a", b"3")]


def mapped_at() -> str:
    return "2026-11-30T16:00:00Z"


def test_a_shard_that_is_away_does_not_keep_it_from_serving_the_others(mapped: Mapped, start_esp: Esps) -> None:
    [away] = mapped.etcds["s2"]
    with frozen(away):
        esp = start_esp.launch("-c", mapped.path, config=mapped.path)
        esp.wait_ready()
        assert "not reachable yet: s2" in esp.log()
        with kv_of(esp) as kv:
            kv.Put(Put(key=b"a", value=b"1"), timeout=20)
    assert mapped.read("s0", b"a") == [(b"a", b"1")]


def test_it_says_what_is_to_be_done_first(start_etcd: Etcds, start_esp: Esps, tmp_path: Path) -> None:
    etcds = start_etcd.several(2)
    path = write_config(tmp_path / "esp.yaml", etcds, ["m"], "map: shards\n")
    esp = start_esp.launch("-c", path)
    assert esp.wait() == 1
    assert "the shards hold no map; esp map init puts the first one there" in esp.log()
    assert run_esp("map", "init", "-c", path, "--yes")[0] == 0
    by_file = write_config(tmp_path / "file.yaml", etcds, ["m"])
    esp = start_esp.launch("-c", by_file)
    assert esp.wait() == 1
    assert "holds a map for all proxies (epoch 1), and the config has one of its own; write map: shards" in esp.log()
    esp = start_esp.launch("-c", path, config=path)
    esp.wait_ready()
    assert "map is on the shards" in run_esp("config", "check", "-c", path)[1]


def test_a_shard_that_is_added_gets_into_the_map_of_all_workers(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path
) -> None:
    etcds = start_etcd.several(3)
    path = write_config(tmp_path / "esp.yaml", etcds[:2], ["m"], "map: shards\n")
    assert run_esp("map", "init", "-c", path, "--yes")[0] == 0
    esp = start_esp.launch("-c", path, "--workers", "2", config=path)
    esp.wait_ready()
    assert "of epoch 1" in esp.log()
    lines = [f"  - name: s{number}\n    endpoints: [{etcd.endpoint}]\n" for number, etcd in enumerate(etcds)]
    path.write_text("map: shards\nshards:\n" + "".join(lines))
    assert run_esp("map", "apply", path, "--yes")[0] == 0
    wait_until(lambda: esp.log().count("the map of the shards has epoch 2 now, before 1") == 2)
    assert (
        "shard s2: the map names it, and the config does not; add it to the config" in esp.log()
    )  # until the proxy has read the file
    code, text = run_esp("reload", "-c", path)
    assert code == 0, (text, esp.log())
    wait_until(lambda: "s2 ok" in page(esp, "/readyz?verbose"))


def test_a_shard_that_is_new_to_the_map_gets_the_leases(start_etcd: Etcds, start_esp: Esps, tmp_path: Path) -> None:
    etcds = start_etcd.several(2)
    first = write_config(tmp_path / "first.yaml", etcds[:1], [], "map: shards\n")
    assert run_esp("map", "init", "-c", first, "--yes")[0] == 0
    lines = [f"  - name: s{number}\n    endpoints: [{etcd.endpoint}]\n" for number, etcd in enumerate(etcds)]
    path = tmp_path / "esp.yaml"
    path.write_text("map: shards\nshards:\n" + "".join(lines))  # the second shard is not in the map yet
    esp = start_esp.launch("-c", path, config=path)
    esp.wait_ready()
    with connect(esp) as channel:
        leases = rpc_pb2_grpc.LeaseStub(channel)
        lease = leases.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600), timeout=20).ID
    assert run_esp("map", "apply", path, "--yes")[0] == 0

    def has_lease() -> bool:
        with connect(etcds[1]) as channel:
            told = rpc_pb2_grpc.LeaseStub(channel).LeaseLeases(rpc_pb2.LeaseLeasesRequest(), timeout=20)
            return lease in [one.ID for one in told.leases]

    wait_until(has_lease)


@pytest.fixture
def cluster_mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped([start_etcd(), start_etcd.members(3)], ["m"], tmp_path / "esp.yaml")


class Writer(threading.Thread):
    """Puts one new key after the other through a proxy.

    Attributes:
        done: the keys of which a shard has acknowledged the put.
    """

    def __init__(self, esp: EspProcess, prefix: bytes) -> None:
        super().__init__(daemon=True)
        self.done: list[bytes] = []
        self._esp = esp
        self._prefix = prefix
        self._over = threading.Event()

    def run(self) -> None:
        number = 0
        with kv_of(self._esp) as kv:
            while not self._over.is_set():
                key = self._prefix + b"%06d" % number
                number += 1
                try:
                    kv.Put(Put(key=key, value=b"v"), timeout=30)
                except grpc.RpcError:
                    continue  # nobody knows whether it was done
                self.done.append(key)

    def stop(self) -> None:
        self._over.set()
        self.join(60)


def test_a_proxy_that_was_frozen_does_no_harm_when_it_wakes(cluster_mapped: Mapped, start_esp: Esps) -> None:
    """With calls under way: keys move to another shard, the former owner's leader is killed, and the proxy wakes."""
    mapped = cluster_mapped
    asleep, awake = (start_esp.launch("-c", mapped.path, config=mapped.path) for _ in range(2))
    for esp in (asleep, awake):
        esp.wait_ready()
    writers = [Writer(asleep, b"x/asleep/%d/" % number) for number in range(4)]
    writers += [Writer(awake, b"x/awake/%d/" % number) for number in range(2)]
    for writer in writers:
        writer.start()
    wait_until(lambda: all(len(writer.done) > 20 for writer in writers))
    freeze(asleep.process)
    before = [len(writer.done) for writer in writers]
    mapped.move(b"x", b"y", "s0")
    at_the_cut = mapped.read("s1", b"x", b"y")
    mapped.ask("s0", rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=Put(key=b"x/value", value=b"new"))]))
    leader = leader_of(mapped.etcds["s1"])
    assert leader.process is not None
    leader.process.kill()
    leader.process.wait()
    wait_until(
        lambda: all(len(writer.done) > count + 20 for writer, count in list(zip(writers, before, strict=True))[4:])
    )
    asleep.process.send_signal(signal.SIGCONT)
    with kv_of(asleep) as kv:
        assert [pair.value for pair in answer(kv, Range(key=b"x/value")).kvs] == [b"new"]
        everything = answer(kv, Range(key=b"x", range_end=b"y", keys_only=True))
        assert b"x/value" in [pair.key for pair in everything.kvs]
    wait_until(lambda: all(len(writer.done) > count + 20 for writer, count in zip(writers, before, strict=True)))
    for writer in writers:
        writer.stop()
    kept = {key for key, _ in mapped.read("s0", b"x", b"y")}
    assert [key for writer in writers for key in writer.done if key not in kept] == []
    assert mapped.read("s1", b"x", b"y") == at_the_cut  # nothing has come to the former owner since


def answer(kv: rpc_pb2_grpc.KVStub, request: Range) -> rpc_pb2.RangeResponse:
    """What a Range answers. The former owner may refuse the Range before, as etcd does while it has no leader."""
    answers: list[rpc_pb2.RangeResponse] = []

    def answered() -> bool:
        try:
            answers.append(kv.Range(request, timeout=60))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]
                raise
        return bool(answers)

    wait_until(answered)
    return answers[0]


def leader_of(members: list[LocalEtcd]) -> LocalEtcd:
    for etcd in members:
        with connect(etcd) as channel:
            status = rpc_pb2_grpc.MaintenanceStub(channel).Status(rpc_pb2.StatusRequest(), timeout=20)
            if status.leader == status.header.member_id:
                return etcd
    raise AssertionError("no leader")


def test_it_goes_back_to_a_file_when_the_map_is_taken_away(mapped: Mapped, start_esp: Esps, tmp_path: Path) -> None:
    for name in mapped.etcds:
        keys = (GUARD_KEY, MAP_KEY)
        deletes = [rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key)) for key in keys]
        mapped.ask(name, rpc_pb2.TxnRequest(success=deletes))
    etcds = [etcd for [etcd] in mapped.etcds.values()]
    path = write_config(tmp_path / "file.yaml", etcds, ["i", "r"])
    start_esp.launch("-c", path, config=path).wait_ready()
