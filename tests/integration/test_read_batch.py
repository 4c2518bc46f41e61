"""Bursts of reads through esp, which joins them, and the same bursts to etcd itself: the same bytes for each."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import grpc
import pytest
from google.protobuf.message import Message
from hpack import Decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.wire import frames
from tests.core.wire.conversation import call, data, headers, message, split, window
from tests.examples import tries
from tests.harness import EspProcess, Esps, Etcds, Server, connect, peer, wait_until
from tests.stubs import rpc_pb2_grpc

RANGE = b"/etcdserverpb.KV/Range"
Range = rpc_pb2.RangeRequest
Put = rpc_pb2.PutRequest
Field = tuple[bytes, bytes]


@dataclass
class Answer:
    """What came back on one stream."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    over: bool = False

    @property
    def status(self) -> tuple[int, bytes]:
        return int(self.fields[b"grpc-status"]), self.fields.get(b"grpc-message", b"")

    @property
    def response(self) -> rpc_pb2.RangeResponse:
        return rpc_pb2.RangeResponse.FromString(self.body[5:])


def burst(server: Server, requests: Sequence[tuple[Message, Sequence[Field]]]) -> list[Answer]:
    """Calls Range with all of them in one write, as no stock client can be made to do; each with its metadata.

    A new connection has one read at a shard until its first answer, so one read of nothing comes before.
    """
    said = [frames.PREFACE, frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 2**24}), window(0, 2**30)]
    first = message(Range(key=b"a", count_only=True).SerializeToString())
    opening = [*said, headers(1, call(RANGE, *requests[0][1])), data(1, first, end=True)]
    said, answers = [], {1: Answer()}
    for stream, (request, metadata) in zip(range(3, 2 * len(requests) + 2, 2), requests, strict=True):
        body = message(request.SerializeToString())
        said += [headers(stream, call(RANGE, *metadata)), data(stream, body, end=True)]
        answers[stream] = Answer()
    host, _, port = server.address.rpartition(":")
    decoder = Decoder(2**20)
    heard = b""
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(b"".join(opening))
        while not all(answer.over for answer in answers.values()):
            heard += client.recv(1 << 20) or pytest.fail("the server has hung up")
            end = 0
            while len(heard) >= end + 9 + int.from_bytes(heard[end : end + 3], "big") and len(heard) >= end + 9:
                end += 9 + int.from_bytes(heard[end : end + 3], "big")
            for frame in split(heard[:end]):
                if frame.kind in (frames.SETTINGS, frames.PING) and not frame.flags & frames.ACK:
                    payload = frame.payload if frame.kind == frames.PING else b""
                    client.sendall(frames.frame(frame.kind, frames.ACK, 0, payload))
                answer = answers.get(frame.stream)
                if answer is None:
                    continue
                assert frame.kind != frames.RST_STREAM
                if frame.kind == frames.HEADERS:
                    answer.fields.update(decoder.decode(frame.payload, raw=True))
                elif frame.kind == frames.DATA:
                    answer.body += frame.payload
                answer.over |= frame.kind in (frames.DATA, frames.HEADERS) and bool(frame.flags & frames.END_STREAM)
            heard = heard[end:]
            if said and answers[1].over:
                client.sendall(b"".join(said))
                said = []
    return list(answers.values())[1:]


def bare(*keys: bytes) -> list[tuple[Message, Sequence[Field]]]:
    return [(Range(key=key), ()) for key in keys]


def transactions(etcd: LocalEtcd) -> int:
    """How many it has answered."""
    with urllib.request.urlopen(f"http://{etcd.address}/metrics", timeout=30) as page:
        text = page.read().decode()
    counted = re.findall(r'^grpc_server_handled_total\{.*grpc_method="Txn".*\} (\S+)$', text, re.MULTILINE)
    return int(sum(map(float, counted)))


Start = Callable[..., LocalEtcd]


@pytest.fixture
def start(start_etcd: Etcds) -> Start:
    """Starts an etcd that esp sends such transactions to; the embedded one is too old."""
    return partial(start_etcd, binary=peer("etcd"))


def esp_that_joins(esps: Esps, shards: Sequence[LocalEtcd], boundaries: Sequence[str] = ()) -> EspProcess:
    """esp that has been told the version of its first shard."""
    esp = esps(shards, boundaries)
    wait_until(lambda: burst(esp, bare(b"a", b"a")) != [] and transactions(shards[0]) > 0)
    return esp


KEYS = st.sampled_from([b"j", b"ja", b"jb", b"k", b"k\0", b"l" * 120, b"m" * 127, b"m" * 128, b"lost"])
REQUESTS = st.one_of(
    KEYS.map(lambda key: Range(key=key)),
    KEYS.map(lambda key: Range(key=key)),
    KEYS.map(lambda key: Range(key=key)),
    st.builds(Range, key=KEYS, serializable=st.booleans(), keys_only=st.booleans(), count_only=st.booleans()),
    st.builds(Range, key=KEYS, revision=st.sampled_from([-1, 0, 1, 10**9])),
    st.just(Range(key=b"j", range_end=b"l")),
    st.just(Range()),
)
METADATA = st.sampled_from([(), (), ((b"hasleader", b"true"),), ((b"grpc-timeout", b"10S"),)])


def test_a_burst_is_answered_with_the_bytes_of_etcd(start_esp: Esps, start: Start) -> None:
    etcd = start()
    esp = esp_that_joins(start_esp, [etcd, start()], ["n"])
    with connect(etcd) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        lease = rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600)).ID
        for number, key in enumerate((b"j", b"ja", b"k", b"k\0", b"l" * 120, b"m" * 127, b"m" * 128)):
            kv.Put(Put(key=key, value=b"v" * (9**number % 60_000), lease=lease if number % 2 else 0))
            kv.Put(Put(key=b"ja", value=b""))
    before = transactions(etcd)

    @settings(max_examples=tries(60), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(REQUESTS, METADATA), min_size=1, max_size=100))
    def same(requests: list[tuple[Message, Sequence[Field]]]) -> None:
        through, direct = burst(esp, requests), burst(etcd, requests)
        assert [(one.status, one.body) for one in through] == [(one.status, one.body) for one in direct]

    same()
    assert transactions(etcd) > before  # or nothing was joined


def test_with_one_shard_it_is_the_same(start_esp: Esps, start: Start) -> None:
    etcd = start()
    esp = esp_that_joins(start_esp, [etcd])
    with connect(etcd) as channel:
        rpc_pb2_grpc.KVStub(channel).Put(Put(key=b"a", value=b"1"))
    requests = bare(*[b"a", b"b"] * 40)
    taken = []
    for _ in range(5):  # on a busy machine a burst may be read in parts
        before = transactions(etcd)
        assert [one.body for one in burst(esp, requests)] == [one.body for one in burst(etcd, requests)]
        taken.append(transactions(etcd) - before)
    assert min(taken) == 2, "of 64 and of 16"


def test_a_burst_over_all_shards_gives_each_its_own(start_esp: Esps, start: Start) -> None:
    etcds = [start(), start()]
    esp = esp_that_joins(start_esp, etcds, ["n"])
    keys = [b"a", b"z", b"b", b"y"]
    with connect(esp) as channel:
        for key in keys:
            rpc_pb2_grpc.KVStub(channel).Put(Put(key=key, value=b"of " + key))
    direct = {key: burst(etcds[key > b"n"], bare(key))[0].body for key in keys}
    answers = burst(esp, bare(*keys * 10))
    assert [one.response.kvs[0].value for one in answers] == [b"of " + key for key in keys * 10]
    assert [one.body for one in answers] == [direct[key] for key in keys * 10]


def test_a_key_that_one_user_may_not_read_hides_no_other(start_esp: Esps, start: Start) -> None:
    etcd, other_etcd = start(), start()
    esp = esp_that_joins(start_esp, [etcd, other_etcd], ["n"])
    for each in (etcd, other_etcd):
        with connect(each) as channel:
            auth, kv = rpc_pb2_grpc.AuthStub(channel), rpc_pb2_grpc.KVStub(channel)
            for key in (b"a", b"b"):
                kv.Put(Put(key=key, value=key))
            for user, key in (("root", b""), ("alice", b"a"), ("bob", b"b")):
                auth.UserAdd(rpc_pb2.AuthUserAddRequest(name=user, password="p"))
                auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name=user))
                auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user=user, role=user))
                if key:
                    permission = {"permType": 0, "key": key}
                    auth.RoleGrantPermission(rpc_pb2.AuthRoleGrantPermissionRequest(name=user, perm=permission))
            auth.AuthEnable(rpc_pb2.AuthEnableRequest())

    def asked(of: Server) -> list[tuple[Message, Sequence[Field]]]:
        with connect(of) as channel:
            auth = rpc_pb2_grpc.AuthStub(channel)
            as_: dict[str, Sequence[Field]] = {"nobody": ()}
            for user in ("alice", "bob"):
                token = auth.Authenticate(rpc_pb2.AuthenticateRequest(name=user, password="p")).token
                as_[user] = ((b"token", token.encode()),)
        return [(Range(key=key), as_[user]) for user in as_ for key in (b"a", b"b", b"a", b"c") * 3]

    requests = asked(esp)
    through, direct = burst(esp, requests), burst(etcd, asked(etcd))
    assert [(one.status, one.body) for one in through] == [(one.status, one.body) for one in direct]
    assert {one.status[0] for one in through} == {0, 3, 7}  # etcd's codes for no user and for no permission
    before = transactions(etcd)
    alice = next(metadata for _, metadata in requests if metadata)
    other = (*alice, (b"x", b"y"))
    assert {one.status for one in burst(esp, [(Range(key=b"a"), other)] * 10)} == {(0, b"")}
    assert transactions(etcd) == before + 1  # what was refused keeps no other from sharing one


def test_an_etcd_that_allows_fewer_operations_is_sent_fewer(start_esp: Esps, start: Start) -> None:
    etcd = start("--max-txn-ops=4")
    esp = esp_that_joins(start_esp, [etcd, start()], ["n"])
    alone = burst(etcd, bare(b"a"))[0].body
    for _ in range(5):
        answers = burst(esp, bare(*[b"a"] * 64))
        assert {(one.status, one.body) for one in answers} == {((0, b""), alone)}
    sent = []
    for _ in range(5):
        before = transactions(etcd)
        assert {one.body for one in burst(esp, bare(*[b"a"] * 64))} == {alone}
        sent.append(transactions(etcd) - before)
    # Four in each. A busy machine may work on a burst in several turns, and each leaves what it has; not on all five.
    assert min(sent) == 16, sent


def test_large_values_come_whole(start_esp: Esps, start: Start) -> None:
    etcd = start()
    esp = esp_that_joins(start_esp, [etcd, start()], ["n"])
    with connect(etcd) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        kv.Put(Put(key=b"large", value=bytes(1 << 20)))
        kv.Put(Put(key=b"little", value=b"1"))
    keys = [b"large", b"little"] * 30
    before = transactions(etcd)
    for one, key in zip(burst(esp, bare(*keys)), keys, strict=True):
        assert one.status == (0, b"")
        assert len(one.response.kvs[0].value) == (1 << 20 if key == b"large" else 1)
    wait_until(lambda: transactions(etcd) == before + 1)  # it was tried together


def test_readers_never_see_the_past_while_the_shard_is_killed_and_started(start_esp: Esps, start: Start) -> None:
    """One writer counts up; what a reader sees is never less than what was acknowledged before it asked."""
    etcd = start()
    esp = esp_that_joins(start_esp, [etcd, start()], ["n"])
    acknowledged = 0
    stop = threading.Event()
    wrong: list[tuple[int, int]] = []
    joined, since = 0, transactions(etcd)

    def write() -> None:
        nonlocal acknowledged
        with connect(esp) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    kv.Put(Put(key=b"count", value=b"%d" % number), timeout=10)
                    acknowledged = number
                except grpc.RpcError:
                    time.sleep(0.01)

    def read() -> None:
        while not stop.is_set():
            least = acknowledged
            for one in burst(esp, bare(*[b"count"] * 20)):
                if one.status[0] == 0:
                    seen = int(one.response.kvs[0].value) if one.response.kvs else 0
                    if seen < least:
                        wrong.append((least, seen))
                else:
                    assert one.status[0] == 14, one.status

    threads = [threading.Thread(target=write), *(threading.Thread(target=read) for _ in range(3))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            goal = acknowledged + 50
            wait_until(lambda goal=goal: acknowledged >= goal)
            joined += transactions(etcd) - since
            etcd.kill()
            etcd.start()
            since = 0
    finally:
        goal = acknowledged + 50
        wait_until(lambda: acknowledged >= goal)
        stop.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []
    assert joined > 0
