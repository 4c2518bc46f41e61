"""`esp check --fix-strays`, with real etcds: stray keys are moved or deleted, and no live key is touched."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from esp.core.config import Endpoint, load
from esp.core.health import How, MendError, Proxies, ProxyHealth, mend, standing
from esp.core.health.mending import _Mending
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.tls_paths import Files
from esp.core.wording import cured
from tests.commands.test_check import check
from tests.harness import connect, etcd34, write_config
from tests.stubs import rpc_pb2_grpc


def put(etcd: LocalEtcd, key: bytes, value: bytes = b"v", lease: int = 0) -> None:
    with connect(etcd) as channel:
        rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=key, value=value, lease=lease))


def grant(etcd: LocalEtcd, lease: int) -> None:
    with connect(etcd) as channel:
        rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=lease, TTL=600))


def held(etcd: LocalEtcd) -> dict[bytes, tuple[bytes, int]]:
    """All keys of an etcd, with value and lease."""
    with connect(etcd) as channel:
        answer = rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
    return {kv.key: (kv.value, kv.lease) for kv in answer.kvs}


@pytest.fixture
def config(empty_shards: list[LocalEtcd], tmp_path: Path) -> Path:
    """Shards s0 up to "i", s1 up to "r", s2."""
    return write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])


def fix(config: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = check("-c", config, "-o", "json", "--fix-strays", *arguments)
    return code, json.loads(out), err


class TestMove:
    def test_a_dry_run_changes_nothing(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        put(empty_shards[0], b"j")
        put(empty_shards[0], b"k", b"old")
        put(empty_shards[1], b"k", b"new")
        before = [held(etcd) for etcd in empty_shards]
        code, told, err = fix(config, "move")
        assert (code, err) == (1, "esp: 2 stray keys; nothing is changed yet\n")
        (part,) = told["ranges"]
        assert (told["applied"], told["left"], part["shard"], part["owner"], part["count"]) == (False, 2, "s0", "s1", 2)
        assert {fate: count for fate, count in part["fates"].items() if count} == {"moved": 1, "live": 1}
        assert [held(etcd) for etcd in empty_shards] == before

    def test_keys_move_with_value_and_lease(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        for etcd in empty_shards:
            grant(etcd, 77)
        put(empty_shards[0], b"a", b"own")
        put(empty_shards[0], b"j\n", bytes(range(256)))
        put(empty_shards[0], b"z", b"leased", lease=77)
        put(empty_shards[2], b"b", b"")
        code, told, err = fix(config, "move", "--apply")
        assert (code, err, told["left"]) == (0, "", 0)
        assert [held(etcd) for etcd in empty_shards] == [
            {b"a": (b"own", 0), b"b": (b"", 0)},
            {b"j\n": (bytes(range(256)), 0)},
            {b"z": (b"leased", 77)},
        ]
        assert check("-c", config, "--keys")[0] == 0
        assert fix(config, "move", "--apply")[:2] == (0, {**told, "ranges": []})

    def test_a_live_key_stays_and_its_stray_too(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        put(empty_shards[0], b"k", b"stray")
        put(empty_shards[1], b"k", b"live")
        code, told, err = fix(config, "move", "--apply")
        assert (code, err) == (1, "esp: 1 key still stray\n")
        assert told["ranges"][0]["kept"] == [{"key": {"text": "k", "base64": "aw=="}, "reason": "live"}]
        assert [held(etcd).get(b"k") for etcd in empty_shards[:2]] == [(b"stray", 0), (b"live", 0)]

    def test_what_an_earlier_run_has_put_is_only_deleted(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        """As after a run that was killed between the two."""
        for etcd in empty_shards[:2]:
            put(etcd, b"k", b"same")
        code, told, _ = fix(config, "move", "--apply")
        assert (code, told["ranges"][0]["fates"]["deleted"]) == (0, 1)
        assert [held(etcd) for etcd in empty_shards[:2]] == [{}, {b"k": (b"same", 0)}]

    def test_the_same_value_with_another_lease_is_another_key(
        self, empty_shards: list[LocalEtcd], config: Path
    ) -> None:
        grant(empty_shards[0], 78)
        put(empty_shards[0], b"k", b"same", lease=78)
        put(empty_shards[1], b"k", b"same")
        assert fix(config, "move", "--apply")[1]["ranges"][0]["kept"][0]["reason"] == "live"

    def test_a_key_stays_if_its_owner_lacks_the_lease(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        grant(empty_shards[0], 79)
        put(empty_shards[0], b"k", lease=79)
        put(empty_shards[0], b"l")
        code, out, err = check("-c", config, "--fix-strays", "move", "--apply")
        assert (code, err) == (1, "esp: 1 key still stray\n")
        assert '\n  "k" on shard s0: its owner lacks the key\'s lease; esp lease-sync --apply grants it\n' in out
        assert [set(held(etcd)) for etcd in empty_shards[:2]] == [{b"k"}, {b"l"}]

    def test_large_values_and_leases_among_others(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        """A Txn has room for a megabyte, and a lease that the owner lacks keeps nothing else back."""
        grant(empty_shards[0], 80)
        for number in range(6):
            put(empty_shards[0], b"k%d" % number, bytes([number]) * 700_000, lease=80 if number == 3 else 0)
        code, told, _ = fix(config, "move", "--apply")
        fates = {fate: count for fate, count in told["ranges"][0]["fates"].items() if count}
        assert (code, fates) == (1, {"moved": 5, "no-lease": 1})
        assert list(held(empty_shards[0])) == [b"k3"]
        moved = [(b"k%d" % number, (bytes([number]) * 700_000, 0)) for number in range(6) if number != 3]
        assert list(held(empty_shards[1]).items()) == moved

    def test_several_pages(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        with connect(empty_shards[0]) as channel:
            for first in range(0, 250, 50):
                puts = [rpc_pb2.PutRequest(key=b"j%03d" % number, value=b"v") for number in range(first, first + 50)]
                ops = [rpc_pb2.RequestOp(request_put=put) for put in puts]
                rpc_pb2_grpc.KVStub(channel).Txn(rpc_pb2.TxnRequest(success=ops))
        seen = []
        moved = asyncio.run(mend(load(config), How.MOVE, lambda done, total: seen.append((done, total)), apply=True))
        assert [(mended.shard, mended.fates["moved"]) for mended in moved] == [("s0", 250)]
        assert seen == [(number, 250) for number in range(1, 251)]
        assert (len(held(empty_shards[0])), len(held(empty_shards[1]))) == (0, 250)

    def test_a_key_that_is_written_meanwhile_stays(
        self, empty_shards: list[LocalEtcd], config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(empty_shards[0], b"k", b"old")
        deletes = _Mending._delete

        async def late(self: _Mending, revisions: Any) -> Any:
            put(empty_shards[0], b"k", b"new")  # the moment before the delete
            return await deletes(self, revisions)

        monkeypatch.setattr(_Mending, "_delete", late)
        (mended,) = asyncio.run(mend(load(config), How.MOVE, lambda *_: None, apply=True))
        assert {fate: count for fate, count in mended.fates.items() if count} == {"changed": 1}
        assert [held(etcd).get(b"k") for etcd in empty_shards[:2]] == [(b"new", 0), (b"old", 0)]


class TestDelete:
    def test_only_stray_keys_are_deleted(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        for etcd in empty_shards:
            for key in (b"a", b"j", b"z"):
                put(etcd, key, etcd.name.encode())
        code, told, _ = fix(config, "delete")
        assert (code, told["left"], len(told["ranges"])) == (1, 6, 6)
        assert all(len(held(etcd)) == 3 for etcd in empty_shards)
        code, told, err = fix(config, "delete", "--yes")
        assert (code, told["left"], err) == (0, 0, "")
        assert [held(etcd) for etcd in empty_shards] == [
            {key: (etcd.name.encode(), 0)} for etcd, key in zip(empty_shards, (b"a", b"j", b"z"), strict=True)
        ]

    def test_with_a_namespace_other_keys_are_left(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        config = write_config(tmp_path / "ns.yaml", empty_shards, ["ns/k", "ns/r"], "namespace: ns/")
        for key in (b"ns/", b"ns/z", b"z"):
            put(empty_shards[0], key)
        assert fix(config, "delete", "--apply")[0] == 0
        assert set(held(empty_shards[0])) == {b"ns/", b"z"}


class TestRefused:
    def test_one_cluster_as_two_shards(self, empty_etcd: LocalEtcd, tmp_path: Path) -> None:
        """What is stray by the one name is live by the other."""
        put(empty_etcd, b"a")
        put(empty_etcd, b"z")
        config = tmp_path / "esp.yaml"
        config.write_text(
            "shards:\n"
            f"  - {{name: low, endpoints: [{empty_etcd.endpoint}], ranges: [{{start: '', end: m}}]}}\n"
            f"  - {{name: high, endpoints: ['localhost:{empty_etcd.client_port}'], ranges: [{{start: m, end: ''}}]}}\n"
        )
        code, out, err = check("-c", config, "--fix-strays", "delete", "--apply")
        assert (code, out) == (1, "")
        assert err.startswith('esp: no key is touched: shards "low", "high": have the same cluster id ')
        with pytest.raises(MendError, match="have the same cluster id"):
            asyncio.run(mend(load(config), How.DELETE, lambda *_: None, apply=True))
        assert set(held(empty_etcd)) == {b"a", b"z"}

    def test_endpoints_of_two_clusters_in_one_shard(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        put(empty_shards[0], b"z")
        config = write_config(tmp_path / "esp.yaml", [empty_shards[:2], empty_shards[2]], ["m"])
        code, _, err = check("-c", config, "--fix-strays", "move", "--apply")
        assert code == 1
        assert err.startswith('esp: no key is touched: shard "s0": its endpoints belong to different etcd clusters')
        assert set(held(empty_shards[0])) == {b"z"}

    def test_a_shard_that_is_down(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        config = write_config(tmp_path / "esp.yaml", [empty_shards[0], LocalEtcd("dead", tmp_path)], ["m"])
        put(empty_shards[0], b"z")
        code, _, err = check("-c", config, "--fix-strays", "delete", "--apply")
        assert (code, err) == (1, f"esp: shard s1 cannot be asked: {cured('connection refused')}\n")
        assert set(held(empty_shards[0])) == {b"z"}

    def test_apply_alone_is_wrong_usage(self, config: Path) -> None:
        code, _, err = check("-c", config, "--apply")
        assert (code, err) == (
            2,
            "esp: --apply is for --fix-strays; add --fix-strays move or delete, or leave it out\n",
        )


@pytest.mark.parametrize(("ops", "owners_ops"), [(1, 5), (16, 1)])
def test_shards_that_take_few_operations(module_etcds: Any, tmp_path: Path, ops: int, owners_ops: int) -> None:
    few = [module_etcds(f"--max-txn-ops={most}") for most in (ops, owners_ops)]
    config = write_config(tmp_path / "few.yaml", few, ["m"])
    keys = [b"z%02d" % number for number in range(20)]
    for key in keys:
        put(few[0], key, key)
    put(few[1], keys[3], keys[3])
    put(few[1], keys[4], b"live")
    assert fix(config, "move")[1]["ranges"][0]["fates"]["live"] == 2
    code, told, err = fix(config, "move", "--apply")
    fates = {fate: count for fate, count in told["ranges"][0]["fates"].items() if count}
    assert (code, err, fates) == (1, "esp: 1 key still stray\n", {"moved": 18, "deleted": 1, "live": 1})
    assert held(few[0]) == {keys[4]: (keys[4], 0)}
    assert held(few[1]) == {key: (b"live" if key == keys[4] else key, 0) for key in keys}
    assert fix(config, "delete", "--apply")[0] == 0
    assert held(few[0]) == {}


class TestProxies:
    """Proxies that are named must have the map of the config, and keep it."""

    @pytest.fixture
    def strays(self, empty_shards: list[LocalEtcd]) -> None:
        with connect(empty_shards[0]) as channel:
            for first in range(0, 300, 100):
                puts = [rpc_pb2.PutRequest(key=b"j%03d" % number, value=b"v") for number in range(first, first + 100)]
                ops = [rpc_pb2.RequestOp(request_put=put) for put in puts]
                rpc_pb2_grpc.KVStub(channel).Txn(rpc_pb2.TxnRequest(success=ops))

    @pytest.mark.parametrize("how", list(How))
    @pytest.mark.parametrize(
        ("later", "text"),
        [
            ({"map": "another", "epoch": "1"}, "has the shard map another meanwhile, by which other keys are stray; "),
            ({"epoch": "2"}, "has read its config anew meanwhile; no further key is touched, and what was done "),
            ({}, "no longer tells its shard map; "),
        ],
    )
    @pytest.mark.usefixtures("strays")
    def test_one_that_changes_meanwhile(
        self,
        empty_shards: list[LocalEtcd],
        config: Path,
        monkeypatch: pytest.MonkeyPatch,
        how: How,
        later: dict[str, str],
        text: str,
    ) -> None:
        """It changes after the first 100 keys."""
        loaded = load(config)
        proxy = Endpoint("127.0.0.1", 2379)
        own = {"esp": "1", "map": loaded.shard_map.fingerprint, "epoch": "1"}
        told = [own, {**own, **later} if later else {}]
        asked = []

        async def version(endpoint: Endpoint, files: Files) -> dict[str, str]:
            asked.append(endpoint)
            return told.pop(0)

        monkeypatch.setattr(standing, "version_of", version)
        seen = [ProxyHealth(proxy, "", 0.1, "1", own["map"], "1", (), 0)]
        look = standing.Standing(loaded, Proxies((proxy,), Files()), seen).look
        with pytest.raises(MendError, match=re.escape(f"proxy {proxy} {text}")):
            asyncio.run(mend(loaded, how, lambda *_: None, apply=True, unchanged=look))
        assert asked == [proxy, proxy]
        assert len(held(empty_shards[0])) == 200
        assert len(held(empty_shards[1])) == (100 if how is How.MOVE else 0)

    def test_they_are_asked_at_the_end_as_well(self, empty_shards: list[LocalEtcd], config: Path) -> None:
        """A reload after the last keys were listed."""
        put(empty_shards[0], b"j")
        looks: list[int] = []

        async def look() -> None:
            looks.append(len(held(empty_shards[0])))

        asyncio.run(mend(load(config), How.MOVE, lambda *_: None, apply=True, unchanged=look))
        assert looks == [1, 0]


def test_text_for_people(empty_shards: list[LocalEtcd], config: Path) -> None:
    put(empty_shards[0], b"j")
    put(empty_shards[0], b"k", b"old")
    put(empty_shards[1], b"k", b"new")
    fingerprint = load(config).shard_map.fingerprint
    code, out, _ = check("-c", config, "--fix-strays", "move")
    assert out == (
        f"Stray keys by {config}, map {fingerprint}:\n\n"
        "SHARD  OWNER  RANGE       MOVED  LIVE\n"
        's0     s1     ["i", "r")  1      1\n\n'
        "Kept, for example:\n"
        '  "k" on shard s0: its owner has the key, with another value\n\n'
        "This is what would be done; nothing is changed yet. To move, add --apply.\n"
        "Running proxies must have this map: esp check --proxy URL tells.\n"
    )
    assert check("-c", config, "--fix-strays", "move", "--apply")[0] == 1
    code, out, _ = check("-c", config, "--fix-strays", "delete", "--apply")
    assert (code, out.splitlines()[2:]) == (0, ["SHARD  OWNER  RANGE       DELETED", 's0     s1     ["i", "r")  1'])
    code, out, _ = check("-c", config, "--fix-strays", "delete")
    assert (code, out) == (0, f"No stray keys by {config}, map {fingerprint}.\n")


def test_with_etcd_34(module_etcds: Any, tmp_path: Path) -> None:
    old = module_etcds.several(2, binary=etcd34())
    put(old[0], b"z", b"v")
    code, told, _ = fix(write_config(tmp_path / "old.yaml", old, ["m"]), "move", "--apply")
    assert (code, told["ranges"][0]["fates"]["moved"], held(old[1])) == (0, 1, {b"z": (b"v", 0)})
