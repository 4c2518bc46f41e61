"""Several proxies with `map: shards`, which know each other: what one has told means the same at another."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.tokens import is_token, number_of
from tests.harness import EspProcess, Esps, Etcds, connect, frozen, wait_until
from tests.integration.mapped import Mapped
from tests.stubs import rpc_pb2_grpc
from tests.watching import Requests

Put, Range = rpc_pb2.PutRequest, rpc_pb2.RangeRequest
EVERYTHING = Range(key=b"\0", range_end=b"\0")
ROUNDS = 40


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(3), ["i", "r"], tmp_path / "esp.yaml")


def launched(mapped: Mapped, start_esp: Esps) -> EspProcess:
    esp = start_esp.launch("-c", mapped.path, config=mapped.path)
    esp.wait_ready()
    return esp


@pytest.fixture
def two(mapped: Mapped, start_esp: Esps) -> list[EspProcess]:
    found = [launched(mapped, start_esp) for _ in range(2)]
    wait_until(lambda: all("; 1 other proxy" in ready(esp) for esp in found))
    return found


def page(esp: EspProcess, path: str) -> str:
    with urllib.request.urlopen(f"{esp.url}{path}", timeout=20) as answer:
        return str(answer.read().decode())


def ready(esp: EspProcess) -> str:
    return page(esp, "/readyz?verbose")


@contextmanager
def kv_of(server: EspProcess | LocalEtcd) -> Iterator[rpc_pb2_grpc.KVStub]:
    with connect(server) as channel:
        yield rpc_pb2_grpc.KVStub(channel)


@contextmanager
def watch(esp: EspProcess, start: int) -> Iterator[Iterator[rpc_pb2.WatchResponse]]:
    with connect(esp) as channel:
        requests = Requests()
        requests.create(key=b"\0", range_end=b"\0", start_revision=start)
        messages = rpc_pb2_grpc.WatchStub(channel).Watch(iter(requests), timeout=20)
        try:
            yield messages
        finally:
            messages.cancel()
            requests.half_close()


def test_list_at_one_and_watch_at_the_other(two: list[EspProcess]) -> None:
    right = 0
    with kv_of(two[0]) as one, kv_of(two[1]) as other:
        for number in range(ROUNDS):
            lists, watches = (one, two[1]) if number % 2 else (other, two[0])
            token = lists.Range(EVERYTHING, timeout=20).header.revision
            assert is_token(token)
            for key in (b"a", b"k", b"z"):
                one.Put(Put(key=key, value=b"%d" % number), timeout=20)
            with watch(watches, token + 1) as messages:
                assert next(messages).created
                seen = {}
                while len(seen) < 3:
                    message = next(messages)
                    assert not message.canceled, message
                    seen |= {event.kv.key: event.kv.value for event in message.events}
                right += seen == dict.fromkeys((b"a", b"k", b"z"), b"%d" % number)
    assert right == ROUNDS


def test_pages_filters_and_compactions_go_on_at_the_other(two: list[EspProcess]) -> None:
    with kv_of(two[0]) as one, kv_of(two[1]) as other:
        for number in range(9):
            one.Put(Put(key=b"%c" % b"abcjklxyz"[number]), timeout=20)
        first = one.Range(Range(key=b"\0", range_end=b"\0", limit=4), timeout=20)
        one.Put(Put(key=b"y", value=b"later"), timeout=20)
        rest = other.Range(
            Range(key=first.kvs[-1].key + b"\0", range_end=b"\0", revision=first.header.revision), timeout=20
        )
        assert rest.header.revision == first.header.revision
        assert [(pair.key, pair.value) for pair in rest.kvs] == [(b"%c" % key, b"") for key in b"klxyz"]
        token = one.Range(EVERYTHING, timeout=20).header.revision
        newest = other.Range(Range(key=b"j", range_end=b"m", max_mod_revision=token), timeout=20)
        assert [pair.key for pair in newest.kvs] == [b"j", b"k", b"l"]
        compare = rpc_pb2.Compare(
            key=b"y", target=rpc_pb2.Compare.MOD, result=rpc_pb2.Compare.GREATER, mod_revision=first.header.revision
        )
        token = one.Range(EVERYTHING, timeout=20).header.revision
        assert other.Txn(rpc_pb2.TxnRequest(compare=[compare]), timeout=20).succeeded
        other.Compact(rpc_pb2.CompactionRequest(revision=token), timeout=20)
        with pytest.raises(grpc.RpcError, match="required revision has been compacted"):
            one.Range(Range(key=b"x", range_end=b"z", revision=first.header.revision), timeout=20)
    told = page(two[1], "/metrics")
    assert "esp_proxies_others 1\n" in told
    assert 'esp_proxies_tokens_total{result="unknown"} 0\n' in told


def test_they_have_different_numbers_and_are_told_as_members(two: list[EspProcess]) -> None:
    urls = {esp.url for esp in two}
    numbers = set()
    for esp in two:
        with connect(esp) as channel:
            answer = rpc_pb2_grpc.ClusterStub(channel).MemberList(rpc_pb2.MemberListRequest(), timeout=20)
            assert {url for member in answer.members for url in member.clientURLs} == urls
            assert len(answer.members) == 2 == len({member.ID for member in answer.members})
            leases = rpc_pb2_grpc.LeaseStub(channel).LeaseLeases(rpc_pb2.LeaseLeasesRequest(), timeout=20)
            assert not leases.leases
            numbers.add(number_of(rpc_pb2_grpc.KVStub(channel).Range(EVERYTHING, timeout=20).header.revision))
    assert len(numbers) == 2
    assert numbers < set(range(48))


def test_what_a_killed_proxy_has_told_is_compacted(two: list[EspProcess]) -> None:
    with kv_of(two[0]) as one:
        token = one.Range(EVERYTHING, timeout=20).header.revision
    two[0].process.kill()
    two[0].process.wait()
    with watch(two[1], token + 1) as messages:
        assert next(messages).created
        assert next(messages).compact_revision
    with kv_of(two[1]) as other, pytest.raises(grpc.RpcError, match="required revision has been compacted"):
        other.Range(Range(key=b"\0", range_end=b"\0", revision=token), timeout=20)


def test_without_the_anchor_a_proxy_starts_with_a_number_of_another_shard(mapped: Mapped, start_esp: Esps) -> None:
    before = launched(mapped, start_esp)
    [anchor] = mapped.etcds["s0"]
    beyond = Range(key=b"j", range_end=b"\0")
    with frozen(anchor):
        with kv_of(before) as kv:
            assert number_of(kv.Range(beyond, timeout=20).header.revision) < 48
        esps = [launched(mapped, start_esp) for _ in range(2)]
        numbers = set()
        for esp in esps:
            assert "not registered with the other proxies: shard s0 " in esp.log()
            assert "[+]proxies: not registered: shard s0 " in ready(esp)
            with kv_of(esp) as kv:
                numbers.add(number_of(kv.Range(beyond, timeout=20).header.revision))
        assert len(numbers) == 2
        assert numbers <= set(range(48, 60))
    for esp in esps:
        wait_until(lambda esp=esp: "registered as number" in ready(esp))


def test_nobody_else_is_told(two: list[EspProcess]) -> None:
    with connect(two[0]) as channel:
        ask = channel.unary_unary("/esp.Proxies/Ask")
        for message in (b"", b"x" * 32, b"x" * 100):
            with pytest.raises(grpc.RpcError) as refused:
                ask(message, timeout=20)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    for esp in two:
        secret = json.loads(page(esp, "/version"))
        assert "secret" not in secret


class Follower(threading.Thread):
    """A client that lists in pages and watches, at any proxy, and goes on from the last header when its stream ends."""

    def __init__(self, esps: list[EspProcess], seed: int) -> None:
        super().__init__(daemon=True)
        self.esps = esps
        self.lists = self.resumed = self.pages = 0
        self.faults: list[str] = []
        self.rows: dict[bytes, bytes] = {}
        self.stop = threading.Event()
        self._turn = seed

    def run(self) -> None:
        token = 0
        while not self.stop.is_set():
            self._turn += 1
            esp = self.esps[self._turn % len(self.esps)]
            try:
                if not token:
                    token = self._list(esp)
                token = self._watch(esp, token)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.OUT_OF_RANGE:
                    self.faults.append(f"{esp.port}: {error.details()}")
                    token = 0
                elif error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    self.faults.append(str(error))
                time.sleep(0.01)

    def _list(self, esp: EspProcess) -> int:
        self.lists += 1
        rows: dict[bytes, bytes] = {}
        key, token = b"\1", 0
        while True:
            with kv_of(esp) as kv:
                answer = kv.Range(Range(key=key, range_end=b"\0", limit=7, revision=token), timeout=20)
            self.pages += 1
            rows |= {pair.key: pair.value for pair in answer.kvs}
            token = token or answer.header.revision
            if not answer.more:
                self.rows = rows
                return token
            key = answer.kvs[-1].key + b"\0"
            self._turn += 1
            esp = self.esps[self._turn % len(self.esps)]

    def _watch(self, esp: EspProcess, token: int) -> int:
        try:
            with watch(esp, token + 1) as messages:
                for message in messages:
                    if message.canceled:
                        self.faults.append(f"{esp.port}: {message}")
                        return 0
                    for event in message.events:
                        self.rows[event.kv.key] = event.kv.value
                    if message.events or message.created:
                        token = message.header.revision
                    if self.stop.is_set():
                        break
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE and not self.stop.is_set():
                raise
            self.resumed += 1
        return token


def test_a_rolling_restart_makes_no_client_list_again(mapped: Mapped, start_esp: Esps) -> None:
    esps = [launched(mapped, start_esp) for _ in range(3)]
    wait_until(lambda: all("; 2 other proxies" in ready(esp) for esp in esps))
    keys = [b"%c%d" % (letter, number) for number in range(6) for letter in b"akz"]
    writing = threading.Event()
    with kv_of(esps[0]) as kv:
        for key in keys:
            kv.Put(Put(key=key, value=b"0"), timeout=20)
    followers = [Follower(esps, seed) for seed in range(6)]
    for follower in followers:
        follower.start()
    counts = dict.fromkeys(keys, 0)

    def write() -> None:
        turn = 0
        while not writing.is_set():
            turn += 1
            key = keys[turn % len(keys)]
            try:
                with kv_of(esps[turn % len(esps)]) as kv:
                    kv.Put(Put(key=key, value=b"%d" % turn), timeout=20)
                counts[key] = turn
            except grpc.RpcError:
                pass

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        for _ in range(2):
            for place in range(3):
                fresh = launched(mapped, start_esp)
                old, esps[place] = esps[place], fresh
                wait_until(lambda: "; 3 other proxies" in ready(fresh))  # noqa: B023
                old.process.terminate()
                assert old.wait() == 0, old.log()
                assert "handed on to the proxy with number" in old.log(), old.log()
    finally:
        writing.set()
        writer.join()
        for follower in followers if sys.exc_info()[0] else ():
            follower.stop.set()
    last = {key: value for key, value in counts.items() if value}
    wait_until(lambda: all(one.rows.get(key) == b"%d" % value for one in followers for key, value in last.items()))
    for follower in followers:
        follower.stop.set()
    with kv_of(esps[0]) as kv:
        for key in keys:
            kv.Put(Put(key=key, value=b"end"), timeout=20)
    for follower in followers:
        follower.join()
    assert [follower.faults for follower in followers] == [[]] * len(followers)
    assert [follower.lists for follower in followers] == [1] * len(followers)
    assert sum(follower.resumed for follower in followers) >= len(followers)
