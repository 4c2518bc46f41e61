"""Transactions through esp over three shards: the shard that owns them, and the number of their operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.tokens import MARK
from tests.harness import EspProcess, Esps, Etcds, connect, outcome, program, run_etcdctl
from tests.stubs.rpc_pb2_grpc import KVStub

Range = rpc_pb2.RangeRequest
Put = rpc_pb2.PutRequest
Txn = rpc_pb2.TxnRequest
Op = rpc_pb2.RequestOp
Compare = rpc_pb2.Compare


def get(key: bytes, range_end: bytes = b"") -> Op:
    return Op(request_range=Range(key=key, range_end=range_end))


def put(key: bytes) -> Op:
    return Op(request_put=Put(key=key, value=b"v"))


@pytest.fixture
def apart(kv: KVStub) -> KVStub:
    """KV over three shards whose revisions are far apart."""
    for number, key in enumerate((b"a", b"j", b"s")):
        for _ in range(40 * number):
            kv.Put(Put(key=key))
        kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=key))
    return kv


def revision_of(kv: KVStub, key: bytes) -> int:
    return kv.Range(Range(key=key)).header.revision


@pytest.mark.parametrize("unread", [get(b"\0", b"\0"), get(b"a", b"z"), get(b"j", b"z")], ids=str)
def test_a_branch_that_does_not_run_may_read_over_a_boundary(kv: KVStub, empty_etcd: LocalEtcd, unread: Op) -> None:
    request = Txn(failure=[unread])
    with connect(empty_etcd) as channel:
        right = KVStub(channel).Txn(request)
    got = kv.Txn(request)
    assert (got.succeeded, list(got.responses)) == (right.succeeded, list(right.responses)) == (True, [])
    assert got.header.revision >= MARK
    assert kv.Range(Range(key=b"j", range_end=b"z", revision=got.header.revision)).count == 0


def test_what_is_read_beside_it_is_answered_all_the_same(apart: KVStub) -> None:
    apart.Put(Put(key=b"j", value=b"v"))
    got = apart.Txn(Txn(success=[get(b"j")], failure=[get(b"\0", b"\0")]))
    assert [op.response_range.kvs[0].value for op in got.responses] == [b"v"]
    assert got.header.revision >= MARK
    assert got.header.raft_term


@pytest.mark.parametrize("key", [b"a", b"j", b"s"])
def test_one_of_empty_ranges_belongs_to_the_owner_of_its_first_key(apart: KVStub, key: bytes) -> None:
    own = revision_of(apart, key)
    compare = Compare(key=key, range_end=key, target=Compare.VERSION, result=Compare.EQUAL, version=0)
    for request in (
        Txn(success=[get(key, key)]),
        Txn(success=[get(key, b"a"), get(b"a", b"a"), get(b"s", b"a")]),
        Txn(failure=[get(key, key)]),
        Txn(compare=[compare]),
        Txn(success=[Op(request_txn=Txn(failure=[get(key, key)]))]),
        Txn(success=[Op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=key))]),
    ):
        assert apart.Txn(request).header.revision == own


def test_one_without_an_operation_speaks_for_all_shards(apart: KVStub, empty_etcd: LocalEtcd) -> None:
    apart.Put(Put(key=b"j", value=b"then"))
    for request in (Txn(), Txn(success=[Op(request_txn=Txn())], failure=[Op(request_txn=Txn())])):
        got = apart.Txn(request)
        token = got.header.revision
        assert token >= MARK
        with connect(empty_etcd) as channel:
            assert list(got.responses) == list(KVStub(channel).Txn(request).responses)
        apart.Put(Put(key=b"j", value=b"now"))
        rows = apart.Range(Range(key=b"\0", range_end=b"\0", revision=token)).kvs
        assert [row.value for row in rows] == [b"then"]
        apart.Put(Put(key=b"j", value=b"then"))


@pytest.fixture(scope="module")
def uneven(module_etcds: Etcds, tmp_path_factory: pytest.TempPathFactory) -> list[LocalEtcd]:
    """Shards that allow 1024, 128 and 5 operations."""
    return [module_etcds(*flags) for flags in (["--max-txn-ops=1024"], [], ["--max-txn-ops=5"])]


@pytest.fixture(scope="module")
def many_ops(module_etcds: Etcds) -> LocalEtcd:
    """One more that allows 1024."""
    return module_etcds("--max-txn-ops=1024", name="many-ops")


@pytest.fixture
def uneven_kv(uneven: Sequence[LocalEtcd], start_esp: Esps) -> Iterator[KVStub]:
    with connect(start_esp(uneven, ["i", "r"])) as channel:
        yield KVStub(channel)


@pytest.mark.parametrize(("prefix", "most"), [("a", 1024), ("j", 128), ("s", 5)])
def test_the_shard_says_how_many_operations_there_may_be(uneven_kv: KVStub, prefix: str, most: int) -> None:
    operations = [put(b"%s%d" % (prefix.encode(), number)) for number in range(most + 1)]
    assert len(uneven_kv.Txn(Txn(success=operations[:-1])).responses) == most
    too_many = grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"
    assert outcome(lambda: uneven_kv.Txn(Txn(success=operations))) == too_many
    # As etcd counts: a nested one may have what the outer one leaves.
    nested = Op(request_txn=Txn(success=operations[:-2]))
    assert len(uneven_kv.Txn(Txn(success=[nested])).responses[0].response_txn.responses) == most - 1
    assert outcome(lambda: uneven_kv.Txn(Txn(success=[Op(request_txn=Txn(success=operations[:-1]))]))) == too_many


TOO_MANY = grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"


@pytest.mark.parametrize(("second", "most"), [(b"j", 1024), (b"s", 128)])
def test_a_reading_one_over_shards_may_have_as_many_as_each_of_them_allows(
    uneven: Sequence[LocalEtcd], many_ops: LocalEtcd, start_esp: Esps, second: bytes, most: int
) -> None:
    """However few of them are in one: one etcd counts them all, in either branch."""
    first, other = get(b"a"), get(second)
    with connect(start_esp([uneven[0], many_ops, uneven[1]], ["i", "r"])) as channel:
        kv = KVStub(channel)
        assert len(kv.Txn(Txn(success=[other, *[first] * (most - 1)])).responses) == most
        assert kv.Txn(Txn(success=[other], failure=[first] * most)).succeeded
        for request in (Txn(success=[other, *[first] * most]), Txn(success=[other], failure=[first] * (most + 1))):
            for _ in range(2):
                assert outcome(partial(kv.Txn, request)) == TOO_MANY


def test_a_shard_that_allows_fewer_than_usual_is_found_out_when_it_refuses(uneven_kv: KVStub) -> None:
    of_third = [get(b"s%d" % number) for number in range(6)]
    five, six = Txn(success=[get(b"a"), *of_third[:4]]), Txn(success=[*[get(b"a")] * 5, *of_third[:1]])
    assert len(uneven_kv.Txn(five).responses) == 5
    assert len(uneven_kv.Txn(six).responses) == 6, "nothing has told yet"
    assert outcome(lambda: uneven_kv.Txn(Txn(success=[get(b"a"), *of_third]))) == TOO_MANY
    assert outcome(lambda: uneven_kv.Txn(six)) == TOO_MANY
    assert len(uneven_kv.Txn(five).responses) == 5
    assert outcome(lambda: uneven_kv.Txn(six)) == TOO_MANY


def test_the_parts_of_a_shard_that_allows_few_are_read_at_one_moment(
    uneven: Sequence[LocalEtcd], start_esp: Esps
) -> None:
    """Ten parts of the shard that allows five, and nine of another between them."""
    boundaries = [b"s%02d" % number for number in range(1, 20)]
    shards = [uneven[2] if number % 2 else uneven[1] for number in range(20)]
    config = ["shards:"]
    edges = ["", *(boundary.decode() for boundary in boundaries), ""]
    for name, shard in (("few", uneven[2]), ("more", uneven[1])):
        ranges = [
            f'{{start: "{edges[number]}", end: "{edges[number + 1]}"}}'
            for number in range(20)
            if shards[number] is shard
        ]
        config.append(f"  - {{name: {name}, endpoints: [{shard.endpoint}], ranges: [{', '.join(ranges)}]}}")
    path = start_esp.folder / "parts.yaml"
    path.write_text("\n".join(config))
    esp: EspProcess = start_esp.launch("-c", path, config=path)
    esp.wait_ready()
    with connect(esp) as channel:
        kv = KVStub(channel)
        kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        for number in range(20):
            kv.Put(Put(key=b"s%02d" % number, value=b"v"))
        rows = kv.Range(Range(key=b"s", range_end=b"t")).kvs
        assert [row.key for row in rows] == [b"s%02d" % number for number in range(20)]
        assert kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"s", range_end=b"t")).deleted == 20


def test_the_branch_that_does_not_run_is_shown_to_its_shards(start_etcd: Etcds, start_esp: Esps) -> None:
    """Who may not read there is refused, as by one etcd."""
    shards = start_etcd.several(2)
    etcdctl = program("etcdctl", "ESP_ETCDCTL")
    for command in (("user", "add", "root:r"), ("user", "grant-role", "root", "root"), ("auth", "enable")):
        run_etcdctl(etcdctl, shards[1], *command)
    with connect(start_esp(shards, ["m"])) as channel:
        kv = KVStub(channel)
        assert kv.Txn(Txn(success=[get(b"a")], failure=[get(b"b")])).succeeded
        code, text = outcome(lambda: kv.Txn(Txn(success=[get(b"a")], failure=[get(b"z")])))
        assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty")


@pytest.fixture(scope="module")
def large(module_etcds: Etcds) -> list[LocalEtcd]:
    """Shards that allow 50,000 operations."""
    return [module_etcds("--max-txn-ops=50000", name=f"large-{number}") for number in range(2)]


@pytest.fixture
def large_kv(large: Sequence[LocalEtcd], start_esp: Esps) -> Iterator[KVStub]:
    with connect(start_esp(large, ["m"])) as channel:
        kv = KVStub(channel)
        kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        yield kv


class TestLarge:
    """More than 10,000 compares and operations: looked through in bytes, never parsed."""

    def test_one_of_one_shard_passes_as_with_one_etcd(self, large_kv: KVStub) -> None:
        puts = [put(b"a%d" % number) for number in range(12_000)]
        assert len(large_kv.Txn(Txn(success=puts)).responses) == 12_000
        assert large_kv.Range(Range(key=b"a", range_end=b"b", count_only=True)).count == 12_000
        twice = Txn(success=[*puts, put(b"a7")])
        code = grpc.StatusCode.INVALID_ARGUMENT
        assert outcome(lambda: large_kv.Txn(twice)) == (code, "etcdserver: duplicate key given in txn request")
        without_key = Txn(success=[get(b"")] * 12_000)
        assert outcome(lambda: large_kv.Txn(without_key)) == (code, "etcdserver: key is not provided")
        assert outcome(lambda: large_kv.Txn(Txn(success=[get(b"a")] * 50_001))) == TOO_MANY

    def test_its_tokens_are_those_of_its_shard(self, large_kv: KVStub) -> None:
        large_kv.Put(Put(key=b"z", value=b"v"))
        large_kv.Put(Put(key=b"a", value=b"then"))
        token = large_kv.Range(Range(key=b"\0", range_end=b"\0")).header.revision
        large_kv.Put(Put(key=b"a", value=b"now"))
        reads = [Op(request_range=Range(key=b"a", revision=token))] * 11_000
        compare = Compare(key=b"a", target=Compare.MOD, result=Compare.GREATER, mod_revision=token)
        got = large_kv.Txn(Txn(compare=[compare], success=reads))
        assert got.succeeded
        assert {op.response_range.kvs[0].value for op in got.responses} == {b"then"}
        unknown = Txn(success=[*reads, Op(request_range=Range(key=b"a", revision=MARK + (1 << 40)))])
        compacted = grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"
        assert outcome(lambda: large_kv.Txn(unknown)) == compacted

    def test_one_that_spans_shards_is_refused(self, large_kv: KVStub) -> None:
        assert outcome(lambda: large_kv.Txn(Txn(success=[*[get(b"a")] * 12_000, get(b"z")]))) == TOO_MANY
        code, text = outcome(lambda: large_kv.Txn(Txn(success=[*[put(b"a")] * 12_000, put(b"z")])))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert text.startswith("esp: a transaction spans the shards")

    def test_an_unknown_sort_is_refused_before_a_shard_sees_it(self, large_kv: KVStub) -> None:
        odd = Op(request_range=Range(key=b"a", sort_target=7))
        code = grpc.StatusCode.INVALID_ARGUMENT
        assert outcome(lambda: large_kv.Txn(Txn(success=[*[get(b"a")] * 12_000, odd]))) == (
            code,
            "etcdserver: invalid sort option",
        )

    def test_one_that_names_nothing_is_all_shards(self, large_kv: KVStub) -> None:
        code = grpc.StatusCode.INVALID_ARGUMENT
        assert outcome(lambda: large_kv.Txn(Txn(success=[Op()] * 12_000))) == (code, "etcdserver: key not found")

    def test_what_is_written_twice_is_what_esp_has_understood(
        self, large: Sequence[LocalEtcd], start_esp: Esps
    ) -> None:
        """An etcd must not take another key of it than that by which it was routed."""
        twice = b"\x12\x0b\x12\x09\x0a\x01z\x0a\x01a\x12\x01v"  # a Put of z, or of a
        with connect(start_esp(large, ["m"])) as channel:
            raw = channel.unary_unary("/etcdserverpb.KV/Txn", response_deserializer=rpc_pb2.TxnResponse.FromString)
            kv = KVStub(channel)
            kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
            assert raw(twice).succeeded
            assert [row.key for row in kv.Range(Range(key=b"\0", range_end=b"\0")).kvs] == [b"a"]
            code, text = outcome(lambda: raw(Txn(success=[get(b"a")] * 12_000).SerializeToString() + twice))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert text.startswith("esp: the transaction cannot be looked through; write it as protobuf libraries do")

    def test_what_is_parsed_is_counted(self, large: Sequence[LocalEtcd], start_esp: Esps) -> None:
        reads = Txn(success=[*[get(b"a")] * 9_000, get(b"z")])
        with connect(start_esp(large, ["m"])) as channel:
            assert len(KVStub(channel).Txn(reads).responses) == 9_001
        with connect(start_esp(large, ["m"], extra=f"limits: {{max_buffered_bytes: {1 << 20}}}")) as channel:
            code, text = outcome(lambda: KVStub(channel).Txn(reads))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "no memory for what waits in this call" in text
