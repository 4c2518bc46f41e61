"""`across_shards: refuse`, for all keys or some: a range that a boundary cuts is refused in every call that has one.

It matters most for a lock whose client sorts by create_revision itself. Over a boundary such a client compares the
clocks of two shards, and two clients hold the lock. `Lock` imitates such a client step by step; the real one, etcd3aio,
has its trial in tests/foreign/test_locks.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import Esps, Etcds, Server, outcome, write_config
from tests.stubs import rpc_pb2_grpc

REFUSED = grpc.StatusCode.FAILED_PRECONDITION
TEXT = (
    'esp: {} spans the shards s0, s1 (boundary "/locks/m"); '
    "this proxy is configured to refuse that; keep to one shard at a time"
)
LOCKS = {"key": b"/locks/", "range_end": b"/locks0"}
ALL = {"key": b"\0", "range_end": b"\0"}
BOUNDARIES = ["/locks/m", "/t"]


class Client:
    """A stock client of one server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.kv = rpc_pb2_grpc.KVStub(channel)
        self._watch = rpc_pb2_grpc.WatchStub(channel)

    def watch(self, **create: bytes | int) -> Iterator[rpc_pb2.WatchResponse]:
        """A Watch call with one watcher; the call stays open."""
        requests: Queue[rpc_pb2.WatchRequest] = Queue()
        requests.put(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(**create)))
        answers: Iterator[rpc_pb2.WatchResponse] = self._watch.Watch(iter(requests.get, None), timeout=30)
        return answers


@pytest.fixture
def client_of(channel_to: Callable[[Server], grpc.Channel]) -> Callable[[Server], Client]:
    return lambda server: Client(channel_to(server))


def read_in_txn(*ranges: dict[str, bytes]) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(
        success=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(**keys)) for keys in ranges]
    )


@pytest.mark.parametrize("extra", ["across_shards: refuse", "across_shards: {refuse: [/locks/]}"])
def test_every_call_with_a_range_that_is_cut_is_refused(
    start_esp: Esps, empty_shards: list[LocalEtcd], client_of: Callable[[Server], Client], extra: str
) -> None:
    client = client_of(start_esp(empty_shards, BOUNDARIES, extra=extra))
    kv = client.kv
    kv.Put(rpc_pb2.PutRequest(key=b"/locks/a"))
    kv.Put(rpc_pb2.PutRequest(key=b"/locks/z"))
    assert outcome(lambda: kv.Range(rpc_pb2.RangeRequest(**LOCKS))) == (REFUSED, TEXT.format("a Range"))
    assert outcome(lambda: list(kv.RangeStream(rpc_pb2.RangeRequest(**LOCKS)))) == (REFUSED, TEXT.format("a Range"))
    counted = rpc_pb2.RangeRequest(**LOCKS, count_only=True)
    assert outcome(lambda: kv.Range(counted)) == (REFUSED, TEXT.format("a Range"))
    assert outcome(lambda: kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**LOCKS))) == (
        REFUSED,
        TEXT.format("a DeleteRange"),
    )
    txn = read_in_txn({"key": b"/locks/a"}, {"key": b"/locks/z"})
    assert outcome(lambda: kv.Txn(txn)) == (REFUSED, TEXT.format("a transaction"))
    refusal = next(client.watch(**LOCKS))
    assert (refusal.created, refusal.canceled, refusal.watch_id) == (True, True, -1)
    assert refusal.cancel_reason == TEXT.format("a Watch")
    # What etcd itself would refuse gets etcd's answer first.
    no_order = rpc_pb2.RangeRequest(**LOCKS, sort_order=7)
    assert outcome(lambda: kv.Range(no_order))[1] == "etcdserver: invalid sort option"
    # And inside one shard everything is served.
    inside = {"key": b"/locks/", "range_end": b"/locks/m"}
    assert [row.key for row in kv.Range(rpc_pb2.RangeRequest(**inside)).kvs] == [b"/locks/a"]
    assert kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**inside)).deleted == 1
    assert not next(client.watch(**inside)).canceled


def test_a_watch_from_a_revision_is_told_to_list_again_and_one_from_the_beginning_is_refused(
    start_esp: Esps, empty_shards: list[LocalEtcd], client_of: Callable[[Server], Client]
) -> None:
    client = client_of(start_esp(empty_shards, BOUNDARIES, extra="across_shards: refuse"))
    answers = client.watch(**LOCKS, start_revision=17)
    created, canceled = next(answers), next(answers)
    assert (created.created, created.canceled, created.watch_id) == (True, False, 0)
    assert (canceled.canceled, canceled.compact_revision, canceled.cancel_reason) == (True, 1, "")
    # Who does as that says, instead of listing, does not go round for ever.
    refusal = next(client.watch(**LOCKS, start_revision=canceled.compact_revision))
    assert (refusal.created, refusal.canceled, refusal.watch_id) == (True, True, -1)
    assert refusal.cancel_reason == TEXT.format("a Watch")


def test_its_id_can_be_canceled_and_asked_about_as_in_etcd(
    start_esp: Esps, empty_shards: list[LocalEtcd], client_of: Callable[[Server], Client]
) -> None:
    client = client_of(start_esp(empty_shards, BOUNDARIES, extra="across_shards: refuse"))
    requests: Queue[rpc_pb2.WatchRequest] = Queue()
    requests.put(
        rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(**LOCKS, start_revision=17, watch_id=5))
    )
    requests.put(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
    requests.put(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a", watch_id=5)))
    requests.put(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=5)))
    requests.put(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a", watch_id=5)))
    answers = client._watch.Watch(iter(requests.get, None), timeout=30)
    told = [next(answers) for _ in range(5)]
    assert [(one.watch_id, one.created, one.canceled, one.compact_revision) for one in told] == [
        (5, True, False, 0),
        (5, False, True, 1),
        (-1, True, True, 0),
        (5, False, True, 0),
        (5, True, False, 0),
    ]
    assert told[2].cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"


def test_a_watch_that_is_refused_leaves_the_others_of_its_stream(
    start_esp: Esps, empty_shards: list[LocalEtcd], client_of: Callable[[Server], Client]
) -> None:
    client = client_of(start_esp(empty_shards, BOUNDARIES, extra="across_shards: refuse"))
    requests: Queue[rpc_pb2.WatchRequest] = Queue()
    for keys in ({"key": b"a"}, LOCKS, {"key": b"z"}):
        requests.put(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(**keys)))
    answers = client._watch.Watch(iter(requests.get, None), timeout=30)
    created = [next(answers) for _ in range(3)]
    assert [(one.watch_id, one.canceled) for one in created] == [(0, False), (-1, True), (1, False)]
    client.kv.Put(rpc_pb2.PutRequest(key=b"z"))
    assert next(answers).events[0].kv.key == b"z"


def test_only_the_ranges_that_are_named(
    start_esp: Esps, empty_shards: list[LocalEtcd], client_of: Callable[[Server], Client]
) -> None:
    esp = start_esp(empty_shards, BOUNDARIES, extra="across_shards: {refuse: [/locks/]}")
    client = client_of(esp)
    outside = {"key": b"/s", "range_end": b"/u"}
    client.kv.Put(rpc_pb2.PutRequest(key=b"/s"))
    client.kv.Put(rpc_pb2.PutRequest(key=b"/t"))
    assert [row.key for row in client.kv.Range(rpc_pb2.RangeRequest(**outside)).kvs] == [b"/s", b"/t"]
    assert not next(client.watch(**outside)).canceled
    assert client.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**outside)).deleted == 2
    # All keys together show the range that is cut.
    assert outcome(lambda: client.kv.Range(rpc_pb2.RangeRequest(**ALL)))[0] == REFUSED
    outcome(lambda: client.kv.Range(rpc_pb2.RangeRequest(**LOCKS)))
    assert esp.log().count("refused, and so are others like it") == 1


def test_etcdctl_says_so_and_ends(
    start_esp: Esps, empty_shards: list[LocalEtcd], etcdctl: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    esp = start_esp(empty_shards, BOUNDARIES, extra="across_shards: refuse")
    for command in ("get", "del", "watch"):
        done = etcdctl(esp, command, "--prefix", "/locks/", check=False)
        assert "esp: a" in done.stderr + done.stdout, command
        assert "spans the shards s0, s1" in done.stderr + done.stdout, command


class Lock:
    """A lock as clients make it that sort themselves: the oldest key below the prefix holds it."""

    def __init__(self, kv: rpc_pb2_grpc.KVStub, own: bytes) -> None:
        self.kv, self.own = kv, own

    def wait_in_line(self) -> None:
        self.kv.Put(rpc_pb2.PutRequest(key=b"/locks/" + self.own))

    def holds(self) -> bool:
        rows = self.kv.Range(rpc_pb2.RangeRequest(**LOCKS)).kvs
        return bool(min(rows, key=lambda row: row.create_revision).key == b"/locks/" + self.own)


def contend(kv: rpc_pb2_grpc.KVStub) -> list[bool]:
    """Who thinks that it holds the lock: one who came first, through a key of a shard with many writes, and another."""
    for _ in range(10):
        kv.Put(rpc_pb2.PutRequest(key=b"/a"))
    first, second = Lock(kv, b"c"), Lock(kv, b"x")
    first.wait_in_line()
    held = first.holds()
    second.wait_in_line()
    return [held, second.holds()]


def test_a_lock_that_sorts_by_itself_has_one_holder_unless_a_boundary_lies_in_its_prefix(
    start_esp: Esps, start_etcd: Etcds, client_of: Callable[[Server], Client]
) -> None:
    whole = "whole: [/locks/]"
    assert contend(client_of(start_esp(start_etcd.several(3), ["/locks/", "/t"], extra=whole)).kv) == [True, False]


def test_a_lock_over_a_boundary_has_two_holders_and_is_refused_where_that_is_said(
    start_esp: Esps, start_etcd: Etcds, client_of: Callable[[Server], Client]
) -> None:
    shards = start_etcd.several(3)
    assert contend(client_of(start_esp(shards, BOUNDARIES)).kv) == [True, True], "what the config is there to prevent"
    refusing = client_of(start_esp(shards, BOUNDARIES, extra="across_shards: {refuse: [/locks/]}"))
    assert outcome(lambda: contend(refusing.kv)) == (REFUSED, TEXT.format("a Range"))


def test_a_config_that_cuts_what_must_be_whole_does_not_start(
    start_esp: Esps, empty_shards: list[LocalEtcd], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "esp.yaml", empty_shards, BOUNDARIES, "whole: [/locks/]")
    esp = start_esp.launch("-c", config)
    assert esp.wait() == 2
    assert f'{config}:11: ["/locks/", "/locks0") must be whole, but is cut at "/locks/m" (line 7)' in esp.log()
