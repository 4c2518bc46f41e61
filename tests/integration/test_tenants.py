"""Two proxies with different namespaces, and one without, before the same three shards: none shows keys of the others.

A boundary is inside of each namespace.
"""

from __future__ import annotations

import http.client
import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import (
    EVERYTHING,
    EspProcess,
    Esps,
    Server,
    connect,
    grpc_proxy,
    newest_etcd,
    outcome,
    running_esps,
    wait_until,
    wipe,
)
from tests.integration.lock_client import Locks
from tests.integration.test_json_gateway import b64, post
from tests.stubs import rpc_pb2_grpc
from tests.watching import watching

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def esps(
    shards: list[LocalEtcd], tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path
) -> Iterator[Sequence[EspProcess]]:
    """With the namespaces `a/` and `b/`, and without one."""
    limits = "limits: {max_buffered_bytes: 16000000}"
    with running_esps(tmp_path_factory.mktemp("tenants"), etcd_binary) as started:
        yield [
            started(shards, ["a/m", "b/m"], extra=f"{namespace}\n{limits}")
            for namespace in ("namespace: a/", "namespace: b/", "")
        ]


@pytest.fixture(autouse=True)
def _empty(shards: list[LocalEtcd]) -> None:
    for shard in shards:
        wipe(shard)


@pytest.fixture
def clients(esps: Sequence[EspProcess]) -> Iterator[list[Locks]]:
    several = [Locks(esp) for esp in esps]
    yield several
    for one in several:
        one.close()


def test_etcdctl(esps: Sequence[EspProcess], any_etcdctl: Etcdctl) -> None:
    """Of each generation."""
    one, other, plain = esps
    assert 'namespace: clients see the keys ["a/\\x00", "a0"), without "a/"' in one.log()
    assert "namespace" not in plain.log()
    for key, value in (("k", "1"), ("z", "2")):
        assert any_etcdctl(one, "put", key, value).stdout == "OK\n"
        assert any_etcdctl(other, "put", key, f"other {value}").stdout == "OK\n"
    assert any_etcdctl(one, "get", "", "--from-key").stdout.split() == ["k", "1", "z", "2"]
    assert any_etcdctl(one, "get", "", "--prefix", "--keys-only").stdout.split() == ["k", "z"]
    assert any_etcdctl(plain, "get", "", "--from-key", "--keys-only").stdout.split() == ["a/k", "a/z", "b/k", "b/z"]
    swap = 'value("k") = "1"\n\nput k 3\nget k\n\nget k\n\n'
    assert any_etcdctl(one, "txn", text=swap).stdout.split() == ["SUCCESS", "OK", "k", "3"]
    assert any_etcdctl(one, "txn", text=swap).stdout.split() == ["FAILURE", "k", "3"]
    lease = any_etcdctl(one, "lease", "grant", "60").stdout.split()[1]
    any_etcdctl(one, "put", "leased", "x", "--lease", lease)
    any_etcdctl(other, "put", "theirs", "x", "--lease", lease)
    assert "attached keys([leased])" in any_etcdctl(one, "lease", "timetolive", lease, "--keys").stdout
    assert any_etcdctl(one, "lock", "l", "echo", "held").stdout.split() == ["held"]
    assert any_etcdctl(one, "del", "", "--from-key", "--prev-kv").stdout.split() == [
        *("3", "k", "3", "leased", "x", "z", "2")
    ]
    assert any_etcdctl(plain, "get", "", "--from-key", "--keys-only").stdout.split() == ["b/k", "b/theirs", "b/z"]


def test_a_watch_of_everything_hears_nothing_of_others(esps: Sequence[EspProcess], shards: list[LocalEtcd]) -> None:
    """While all write as fast as they can, to keys with the same names."""
    done = threading.Event()

    def write(server: Server, *keys: bytes) -> None:
        with connect(server) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            for number in range(60):
                for key in keys:
                    kv.Put(rpc_pb2.PutRequest(key=key, value=b"%d of %s" % (number, server.address.encode())))
                    if number % 7 == 6:
                        kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=key))
        done.set()

    create = {**EVERYTHING, "prev_kv": True}
    with watching(esps[0], **create) as one, watching(esps[1], **create) as other, watching(esps[0], key=b"k") as key:
        threads = [
            threading.Thread(target=write, args=(esps[0], b"k", b"z", b"\0")),
            threading.Thread(target=write, args=(esps[1], b"k", b"z", b"\xff")),
            threading.Thread(target=write, args=(esps[2], b"a/", b"a", b"a0", b"b", b"b0", b"k")),
            threading.Thread(target=write, args=(shards[0], b"a")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        count = 3 * 60 + 3 * 8
        one.wait_for_events(count)
        other.wait_for_events(count)
        key.wait_for_events(count // 3)
    for watch, server, keys in ((one, esps[0], {b"k", b"z", b"\0"}), (other, esps[1], {b"k", b"z", b"\xff"})):
        assert {event.kv.key for event in watch.events()} == keys
        previous = {event.prev_kv.key for event in watch.events() if event.HasField("prev_kv")}
        assert previous == keys
        values = {event.kv.value.split()[-1] for event in watch.events() if event.kv.value}
        assert values == {server.address.encode()}
    assert {event.kv.key for event in key.events()} == {b"k"}
    assert len(one.events()) == len(other.events()) == count


def test_locks_and_elections_of_the_same_name_are_not_the_same(clients: list[Locks]) -> None:
    one, other, plain = clients
    mine, theirs = one.grant(), other.grant()
    key = one.lock(b"name", mine).key
    assert other.lock(b"name", theirs).key == b"name/%x" % theirs
    assert key == b"name/%x" % mine
    assert plain.under(b"a/name") == [b"a/" + key]
    again = one.grant()
    waiting = one.waiting(b"name", again)
    one.unlock(key)
    assert waiting.result().key == b"name/%x" % again
    won = one.campaign(b"race", mine, b"first").leader
    assert (won.name, won.key) == (b"race", b"race/%x" % mine)
    assert other.campaign(b"race", theirs, b"second").leader.key == b"race/%x" % theirs
    one.proclaim(won, b"third")
    seen = one.observe(b"race")
    for kv in (one.leader(b"race").kv, next(iter(seen)).kv):
        assert (kv.key, kv.value) == (won.key, b"third")
    seen.cancel()
    assert other.leader(b"race").kv.value == b"second"
    one.resign(won)
    assert outcome(lambda: one.leader(b"race"))[1] == "election: no leader"
    assert outcome(lambda: one.unlock(b""))[1] == "etcdserver: key is not provided"


def test_a_lease_shows_only_keys_of_the_namespace(clients: list[Locks]) -> None:
    one, other, plain = clients
    lease = one.grant()
    for client, key in ((one, b"k"), (one, b"z"), (other, b"k"), (plain, b"a/"), (plain, b"c")):
        client.put(key, lease)
    assert sorted(one.ttl(lease, keys=True).keys) == [b"k", b"z"]
    assert sorted(other.ttl(lease, keys=True).keys) == [b"k"]
    assert len(plain.ttl(lease, keys=True).keys) == 5
    one.revoke(lease)
    wait_until(lambda: plain.keys() == [])


def test_the_metadata_that_names_a_shard_does_not_lead_past_the_namespace(
    esps: Sequence[EspProcess], clients: list[Locks]
) -> None:
    clients[0].put(b"k", 0)
    clients[1].put(b"k", 0)
    clients[2].put(b"a", 0)
    seen = set()
    for shard in ("s0", "s1", "s2"):
        answer = clients[0].kv.Range(rpc_pb2.RangeRequest(**EVERYTHING), metadata=[("esp-shard", shard)])
        seen |= {row.key for row in answer.kvs}
    assert seen == {b"k"}
    with connect(esps[0]) as channel:
        snapshot = rpc_pb2_grpc.MaintenanceStub(channel).Snapshot
        for metadata in ([], [("esp-shard", "s0")]):
            with pytest.raises(grpc.RpcError) as caught:
                list(snapshot(rpc_pb2.SnapshotRequest(), metadata=metadata))
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        unknown = channel.unary_unary("/etcdserverpb.KV/Newest")
        metadata = [("esp-shard", "s0")]
        assert outcome(lambda: unknown(b"", metadata=metadata, timeout=30)) == (
            grpc.StatusCode.UNIMPLEMENTED,
            'esp: this proxy has the namespace "a/", and etcdserverpb.KV/Newest is unknown to esp, '
            "which cannot translate its keys",
        )


def test_json(esps: Sequence[EspProcess], clients: list[Locks]) -> None:
    """The gateway's calls take the same way."""
    one, other = esps[0], clients[1]
    everything = {"key": b64("\0"), "range_end": b64("\0")}
    other.put(b"k", 0)
    watch = {"create_request": everything}
    connection = http.client.HTTPConnection(one.address, timeout=30)
    connection.request("POST", "/v3/watch", json.dumps(watch))
    told = connection.getresponse()
    assert json.loads(told.readline())["result"]["created"] is True
    lease = clients[0].grant()
    assert post(one, "/v3/kv/put", {"key": b64("k"), "value": b64("v"), "lease": str(lease)})[0] == 200
    other.put(b"k", lease)
    assert post(one, "/v3/kv/put", {"key": b64("z"), "value": b64("w")})[0] == 200
    keys = [json.loads(told.readline())["result"]["events"][0]["kv"]["key"] for _ in range(2)]
    connection.close()
    assert keys == [b64("k"), b64("z")]
    status, answer = post(one, "/v3/kv/range", everything)
    assert (status, [row["key"] for row in answer["kvs"]], answer["count"]) == (200, [b64("k"), b64("z")], "2")
    status, answer = post(one, "/v3/lease/timetolive", {"ID": str(lease), "keys": True})
    assert (status, answer["keys"]) == (200, [b64("k")])
    branch = [{"request_range": {"key": b64("k")}}, {"request_delete_range": {"key": b64("k"), "prev_kv": True}}]
    compare = [{"key": b64("k"), "target": "VALUE", "value": b64("v")}]
    status, answer = post(one, "/v3/kv/txn", {"compare": compare, "success": branch})
    assert answer["succeeded"] is True
    assert answer["responses"][0]["response_range"]["kvs"][0]["key"] == b64("k")
    assert answer["responses"][1]["response_delete_range"]["prev_kvs"][0]["key"] == b64("k")
    status, answer = post(one, "/v3/lock/lock", {"name": b64("l"), "lease": str(lease)})
    assert (status, answer["key"]) == (200, b64(f"l/{lease:x}"))
    status, answer = post(one, "/v3/election/campaign", {"name": b64("e"), "lease": str(lease), "value": b64("me")})
    assert (answer["leader"]["name"], answer["leader"]["key"]) == (b64("e"), b64(f"e/{lease:x}"))
    status, answer = post(one, "/v3/election/leader", {"name": b64("e")})
    assert answer["kv"]["key"] == b64(f"e/{lease:x}")
    assert other.keys() == [b"k"]


BOUNDS = (b"\0", b"k", b"k\0", b"z", b"\xff", b"\0\0")


def test_ranges_with_odd_bounds_are_those_of_grpc_proxy(
    shards: list[LocalEtcd], start_esp: Esps, etcd_binary: Path
) -> None:
    """Of the same shard, with the same namespace; keys of others are around."""
    one = start_esp(shards[:1], extra="namespace: a/")
    with grpc_proxy(newest_etcd() or etcd_binary, shards[0].address, "--namespace=a/") as address, ExitStack() as stack:
        here, there = (
            rpc_pb2_grpc.KVStub(stack.enter_context(grpc.insecure_channel(each))) for each in (one.address, address)
        )
        for key in (b"a", b"a/", b"a0", b"a0\0", b"a/k", b"a/\0", b"a/k\0", b"a/z", b"a/\xff"):
            with connect(shards[0]) as channel:
                rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=key, value=b"v"))
        for key, range_end in itertools.product(BOUNDS, (b"", *BOUNDS)):
            asked = rpc_pb2.RangeRequest(key=key, range_end=range_end)
            compared = rpc_pb2.Compare(key=key, range_end=range_end, target="VALUE", value=b"v")
            txn = rpc_pb2.TxnRequest(compare=[compared], success=[rpc_pb2.RequestOp(request_range=asked)])
            seen = []
            for kv in (here, there):
                rows, done = kv.Range(asked, timeout=30).kvs, kv.Txn(txn, timeout=30)
                seen.append(([row.key for row in rows], done.succeeded, [str(each) for each in done.responses]))
            assert seen[0] == seen[1], asked


def test_large_answers(clients: list[Locks]) -> None:
    """Of one shard, of several, and one for which there is no memory; and a watch that begins with all of them."""
    one, other, _ = clients
    for number in range(12):
        for key in (b"k%d", b"z%d"):
            one.kv.Put(rpc_pb2.PutRequest(key=key % number, value=b"%d" % number * (MEGABYTE // 2)), timeout=30)
        other.kv.Put(rpc_pb2.PutRequest(key=b"k%d" % number, value=b"x"), timeout=30)
    for request, count in (({"key": b"k", "range_end": b"l"}, 12), (EVERYTHING, 24)):
        answer = one.kv.Range(rpc_pb2.RangeRequest(**request), timeout=60)
        assert [row.key for row in answer.kvs] == sorted(row.key for row in answer.kvs)
        assert len(answer.kvs) == answer.count == count
        assert all(row.value.startswith(row.key[1:]) for row in answer.kvs)
    branch = [rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"k", range_end=b"l")) for _ in range(2)]
    txn = one.kv.Txn(rpc_pb2.TxnRequest(success=branch), timeout=60)
    assert [len(response.response_range.kvs) for response in txn.responses] == [12, 12]
    assert all(row.key.startswith(b"k") for response in txn.responses for row in response.response_range.kvs)
    more = [rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"k", range_end=b"l")) for _ in range(4)]
    code, text = outcome(lambda: one.kv.Txn(rpc_pb2.TxnRequest(success=more), timeout=60))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text.startswith("esp: no memory for what waits in this call: read faster, ask for less at once (limit)")
    answer = one.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True), timeout=60)
    assert [row.key for row in answer.prev_kvs] == sorted(b"k%d" % number for number in range(12))
