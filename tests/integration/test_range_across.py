"""Every Range over three shards is what one etcd that holds all the keys answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.examples import tries
from tests.harness import EspProcess, Esps, Etcds, connect, running_esps, wipe
from tests.stubs.rpc_pb2_grpc import KVStub

Request = rpc_pb2.RangeRequest
BOUNDARIES = [b"g", b"p\x00"]
KEYS = [
    b"a",
    b"b\xff",
    b"f\xff\xff",
    b"g",
    b"g\x00",
    b"h",
    b"k1",
    b"k10",
    b"p",
    b"p\x00",
    b"p\x00\x00",
    b"q",
    b"z",
    b"\xff",
]
EDGES = st.sampled_from([*KEYS, *BOUNDARIES, b"\x00", b"0", b"m", b"zz", b"\xff\xff"])


class Both(NamedTuple):
    across: KVStub
    one: KVStub


@pytest.fixture(scope="module")
def proxy(shards: list[LocalEtcd], tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[EspProcess]:
    with running_esps(tmp_path_factory.mktemp("across"), etcd_binary) as esps:
        yield esps(shards, BOUNDARIES)


@pytest.fixture
def both(empty_shards: list[LocalEtcd], empty_etcd: LocalEtcd, proxy: EspProcess) -> Iterator[Both]:
    """The same keys behind esp and in one etcd: values and versions all different, and not in the order of the keys."""
    with connect(proxy) as across, connect(empty_etcd) as one:
        stubs = Both(KVStub(across), KVStub(one))
        for number, key in enumerate(KEYS):
            for _ in range(1 + number * 5 % len(KEYS)):
                put = rpc_pb2.PutRequest(key=key, value=b"%d" % (number * 11 % len(KEYS) + 10) * (number + 1))
                for stub in stubs:
                    stub.Put(put)
        yield stubs


def comparable(answer: rpc_pb2.RangeResponse) -> tuple[object, ...]:
    """All but the revisions and ids, which are each cluster's own."""
    rows = [(kv.key, kv.value, kv.version, kv.lease) for kv in answer.kvs]
    return rows, answer.more, answer.count


requests = st.builds(
    Request,
    key=EDGES,
    range_end=EDGES | st.just(b""),
    limit=st.integers(-1, len(KEYS) + 1),
    sort_order=st.sampled_from(Request.SortOrder.values()),
    sort_target=st.sampled_from([Request.KEY, Request.VERSION, Request.VALUE]),
    serializable=st.booleans(),
    keys_only=st.booleans(),
    count_only=st.booleans(),
)


def test_every_form_of_range_is_as_of_one_etcd(both: Both) -> None:
    @settings(max_examples=tries(400), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(requests)
    def run(request: rpc_pb2.RangeRequest) -> None:
        answer = both.across.Range(request)
        assert comparable(answer) == comparable(both.one.Range(request))
        assert answer.header.revision > 0
        assert answer.header.cluster_id
        assert answer.header.member_id

    run()


@pytest.mark.parametrize("order", [Request.NONE, Request.ASCEND, Request.DESCEND])
@pytest.mark.parametrize("size", [1, 16_379, 16_384, 100_000, 700_000])
def test_rows_of_any_size_come_whole(both: Both, order: int, size: int) -> None:
    for stub in both:
        for key in (b"b", b"h", b"x"):
            stub.Put(rpc_pb2.PutRequest(key=key, value=b"v" * size))
    request = Request(key=b"\0", range_end=b"\0", sort_order=order)
    assert comparable(both.across.Range(request)) == comparable(both.one.Range(request))


def test_many_large_ranges_at_once_over_one_channel_all_come_whole(both: Both) -> None:
    for key in (b"b", b"h", b"x"):
        both.across.Put(rpc_pb2.PutRequest(key=key, value=key * 300_000))
    calls = [both.across.Range.future(Request(key=b"\0", range_end=b"\0")) for _ in range(16)]
    for call in calls:
        answer = call.result(timeout=60)
        assert answer.count == len(answer.kvs) == len({*KEYS, b"b", b"x"})


def test_shards_without_a_key_answer_an_empty_range(empty_shards: list[LocalEtcd], start_esp: Esps) -> None:
    with connect(start_esp(empty_shards, BOUNDARIES)) as channel:
        answer = KVStub(channel).Range(Request(key=b"\0", range_end=b"\0"))
    assert comparable(answer) == ([], False, 0)
    assert answer.header.revision > 0


@pytest.mark.parametrize("limit", [0, 100])
def test_one_shard_down_fails_the_whole_range(start_etcd: Etcds, start_esp: Esps, limit: int) -> None:
    shards = start_etcd.several(3)
    with connect(start_esp(shards, BOUNDARIES)) as channel:
        kv = KVStub(channel)
        kv.Put(rpc_pb2.PutRequest(key=b"a"))
        shards[2].kill()
        with pytest.raises(grpc.RpcError) as failed:
            kv.Range(Request(key=b"\0", range_end=b"\0", limit=limit))
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert kv.Range(Request(key=b"a")).count == 1


@pytest.mark.parametrize("version", ["3.5", "3.7"])
def test_a_shard_of_another_version_is_merged_alike(
    version: str, empty_shards: list[LocalEtcd], etcd37: LocalEtcd, start_esp: Esps
) -> None:
    wipe(etcd37)
    shards = [empty_shards[0], etcd37, empty_shards[2]] if version == "3.5" else [etcd37, *empty_shards[1:]]
    with connect(start_esp(shards, BOUNDARIES)) as channel:
        kv = KVStub(channel)
        for key in KEYS:
            kv.Put(rpc_pb2.PutRequest(key=key, value=key))
        answer = kv.Range(Request(key=b"\0", range_end=b"\0"))
    assert [kv.key for kv in answer.kvs] == sorted(KEYS)
    assert answer.count == len(KEYS)


class TestPages:
    """A limit of 100 and more: the shard whose keys come first is asked before the others."""

    @pytest.fixture
    def many(self, both: Both) -> Both:
        for stub in both:
            for letter in b"a", b"h", b"q":
                operations = [
                    rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"%s%03d" % (letter, number), value=b"v"))
                    for number in range(120)
                ]
                stub.Txn(rpc_pb2.TxnRequest(success=operations))
        return both

    @pytest.mark.parametrize("order", Request.SortOrder.values(), ids=Request.SortOrder.keys())
    def test_a_page_is_that_of_one_etcd_wherever_the_limit_falls(
        self, many: Both, order: Request.SortOrder.ValueType
    ) -> None:
        total = many.one.Range(Request(key=b"\0", range_end=b"\0", count_only=True)).count
        for start in (b"\0", b"a119", b"b"):
            for limit in (100, 123, 124, 125, 126, 127, 250, 254, 255, 256, total - 1, total, total + 1):
                for keys_only in (False, True):
                    request = Request(key=start, range_end=b"\0", limit=limit, sort_order=order, keys_only=keys_only)
                    assert comparable(many.across.Range(request)) == comparable(many.one.Range(request))

    def test_the_pages_of_a_list_are_all_of_it(self, many: Both) -> None:
        got: list[bytes] = []
        start, token, more = b"\0", 0, True
        while more:
            answer = many.across.Range(Request(key=start, range_end=b"\0", limit=100, revision=token))
            got += [row.key for row in answer.kvs]
            start, token, more = got[-1] + b"\0", answer.header.revision, answer.more
        assert got == [row.key for row in many.one.Range(Request(key=b"\0", range_end=b"\0")).kvs]
