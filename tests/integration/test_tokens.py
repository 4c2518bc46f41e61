"""Tokens, the revisions of answers of several shards: their use in later requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.tokens import MARK
from tests.harness import EVERYTHING, EspProcess, Esps, connect, outcome
from tests.stubs.rpc_pb2_grpc import KVStub

Range = rpc_pb2.RangeRequest
Put = rpc_pb2.PutRequest
Delete = rpc_pb2.DeleteRangeRequest
Compact = rpc_pb2.CompactionRequest
Txn = rpc_pb2.TxnRequest
Op = rpc_pb2.RequestOp
Compare = rpc_pb2.Compare
COMPACTED = (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE = (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")


def row(kv: kv_pb2.KeyValue) -> tuple[bytes, bytes]:
    return kv.key, kv.value


def as_javascript_has_it(number: int) -> int:
    """A revision as clients have it whose numbers are doubles, and JSON tools: `Number(header.revision)`."""
    return int(json.loads(json.dumps(float(number))))


def rows(answer: rpc_pb2.RangeResponse) -> list[tuple[bytes, bytes]]:
    return [row(kv) for kv in answer.kvs]


@pytest.fixture
def filled(kv: KVStub) -> KVStub:
    """Nine keys, three on each shard."""
    for key in (b"a", b"b", b"c", b"i", b"j", b"k", b"r", b"s", b"t"):
        kv.Put(Put(key=key, value=b"old"))
    return kv


def write_everywhere(kv: KVStub) -> None:
    for key in (b"a", b"b1", b"j", b"k1", b"s", b"z"):
        kv.Put(Put(key=key, value=b"new"))
    kv.DeleteRange(Delete(key=b"c"))
    kv.DeleteRange(Delete(key=b"t"))


class TestReading:
    def test_the_header_of_a_merged_answer_is_a_token_that_grows(self, filled: KVStub) -> None:
        last = 0
        for _ in range(3):
            token = filled.Range(Range(**EVERYTHING)).header.revision
            assert MARK <= last < token or (not last and token >= MARK)
            last = token
            filled.Put(Put(key=b"a"))

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 8])
    def test_pages_at_the_token_of_the_first_show_what_the_first_saw(self, filled: KVStub, limit: int) -> None:
        whole = rows(filled.Range(Range(**EVERYTHING)))
        page = filled.Range(Range(**EVERYTHING, limit=limit))
        token, seen = page.header.revision, rows(page)
        while page.more:
            write_everywhere(filled)
            key = page.kvs[-1].key + b"\0"
            page = filled.Range(Range(key=key, range_end=b"\0", limit=limit, revision=token))
            assert page.header.revision == token
            assert page.count == len(whole) - len(seen)
            seen += rows(page)
        assert seen == whole

    @pytest.mark.parametrize(
        "fields",
        [
            {"key": b"a"},
            {"key": b"b", "range_end": b"d"},
            {"key": b"b", "range_end": b"k"},
            {"key": b"b", "range_end": b"\0", "sort_order": Range.DESCEND},
            {"key": b"b", "range_end": b"\0", "sort_order": Range.ASCEND, "sort_target": Range.VALUE, "limit": 4},
            {"key": b"a", "range_end": b"\0", "count_only": True},
            {"key": b"a", "range_end": b"\0", "keys_only": True, "serializable": True},
            {"key": b"z", "range_end": b"a"},
        ],
        ids=str,
    )
    def test_any_range_at_a_token_is_as_it_was(self, filled: KVStub, fields: dict[str, object]) -> None:
        token = filled.Range(Range(**EVERYTHING)).header.revision
        before = filled.Range(Range(**fields))  # type: ignore[arg-type]
        write_everywhere(filled)
        after = filled.Range(Range(**fields, revision=token))  # type: ignore[arg-type]
        assert (list(after.kvs), after.count, after.more) == (list(before.kvs), before.count, before.more)
        assert after.header.revision == token

    @pytest.mark.parametrize("target", [Range.MOD, Range.CREATE, Range.VERSION, Range.VALUE])
    @pytest.mark.parametrize("order", [Range.NONE, Range.DESCEND])
    @pytest.mark.parametrize("fields", [{}, {"limit": 2}, {"limit": 1, "min_mod_revision": 3}], ids=str)
    def test_inside_one_shard_a_token_changes_nothing_about_order_filters_and_limit(
        self, filled: KVStub, target: Range.SortTarget, order: Range.SortOrder, fields: dict[str, int]
    ) -> None:
        for key, value in ((b"c", b"1"), (b"a", b"2"), (b"b", b"0"), (b"b", b"3"), (b"a", b"9"), (b"a", b"0")):
            filled.Put(Put(key=key, value=value))
        here = Range(key=b"a", range_end=b"d", sort_target=target, sort_order=order, **fields)
        before = filled.Range(here)
        here.revision = filled.Range(Range(**EVERYTHING)).header.revision
        after = filled.Range(here)
        assert (list(after.kvs), after.count, after.more) == (list(before.kvs), before.count, before.more)

    def test_a_part_that_the_token_says_nothing_about_is_compacted(self, filled: KVStub) -> None:
        token = filled.Range(Range(key=b"a", range_end=b"k")).header.revision
        assert filled.Range(Range(key=b"a", range_end=b"k", revision=token)).count == 5
        assert outcome(lambda: filled.Range(Range(key=b"s", revision=token))) == COMPACTED
        assert outcome(lambda: filled.Range(Range(key=b"j", range_end=b"s", revision=token))) == COMPACTED

    def test_a_token_that_went_through_a_double_is_the_same(self, filled: KVStub) -> None:
        for _ in range(5):
            page = filled.Range(Range(**EVERYTHING, limit=4))
            token = as_javascript_has_it(page.header.revision)
            write_everywhere(filled)
            rest = filled.Range(Range(key=page.kvs[-1].key + b"\0", range_end=b"\0", revision=token))
            assert page.count == len(page.kvs) + len(rest.kvs)
            behind = as_javascript_has_it(token + 1)
            assert rows(filled.Range(Range(key=b"a", min_mod_revision=behind))) == [(b"a", b"new")]
            filled.Compact(Compact(revision=as_javascript_has_it(token - 1)))
            assert filled.Range(Range(**EVERYTHING, revision=token)).count == page.count
            filled.Compact(Compact(revision=token))

    def test_what_is_behind_a_token_cannot_be_read(self, filled: KVStub) -> None:
        token = filled.Range(Range(**EVERYTHING)).header.revision
        assert outcome(lambda: filled.Range(Range(**EVERYTHING, revision=token + 1))) == COMPACTED

    def test_a_plain_revision_is_refused_over_shards_and_passed_on_inside_one(self, filled: KVStub) -> None:
        one = filled.Put(Put(key=b"a", value=b"newer")).header.revision
        code, text = outcome(lambda: filled.Range(Range(**EVERYTHING, revision=one)))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert text.startswith("esp: a Range at a revision spans the shards s0, s1, s2")
        assert rows(filled.Range(Range(key=b"a", revision=one - 1))) == [(b"a", b"old")]
        assert outcome(lambda: filled.Range(Range(key=b"a", revision=2**63 - 1))) == FUTURE

    def test_a_filter_by_a_token_means_each_shards_own_revision(self, filled: KVStub) -> None:
        token = filled.Range(Range(**EVERYTHING)).header.revision
        filled.Put(Put(key=b"a", value=b"new"))
        here = {"key": b"a", "range_end": b"d"}
        assert rows(filled.Range(Range(**here, min_mod_revision=token + 1))) == [(b"a", b"new")]
        assert [key for key, _ in rows(filled.Range(Range(**here, max_mod_revision=token)))] == [b"b", b"c"]
        assert len(filled.Range(Range(**here, max_mod_revision=2**63 - 1)).kvs) == 3

    def test_a_transaction_compares_and_reads_at_a_token(self, filled: KVStub) -> None:
        token = filled.Range(Range(**EVERYTHING)).header.revision
        unchanged = Compare(key=b"j", target=Compare.MOD, result=Compare.LESS, mod_revision=token + 1)
        write = Op(request_put=Put(key=b"j", value=b"new"))
        read = Op(request_range=Range(key=b"j", revision=token))
        assert filled.Txn(Txn(compare=[unchanged], success=[write])).succeeded
        again = filled.Txn(Txn(compare=[unchanged], success=[write], failure=[read]))
        assert not again.succeeded
        assert rows(again.responses[0].response_range) == [(b"j", b"old")]

    def test_a_transaction_cannot_read_behind_a_token(self, filled: KVStub) -> None:
        """As a Range cannot: the shard's next revision is one that the keys of other shards have nothing to do with."""
        token = filled.Range(Range(**EVERYTHING)).header.revision
        write_everywhere(filled)
        write_everywhere(filled)
        for fields in ({"key": b"a"}, {"key": b"a", "range_end": b"d"}):
            request = Txn(success=[Op(request_range=Range(**fields, revision=token + 1))])  # type: ignore[arg-type]
            assert outcome(lambda: filled.Txn(request)) == COMPACTED  # noqa: B023

    def test_range_stream_reads_at_a_token_and_ends_with_one(
        self, etcd37: LocalEtcd, start_etcd: Callable[..., LocalEtcd], start_esp: Esps
    ) -> None:
        shards = start_etcd.several(2, binary=etcd37.binary)  # type: ignore[attr-defined]
        with connect(start_esp(shards, ["m"])) as channel:
            kv = KVStub(channel)
            for number in range(40):
                kv.Put(Put(key=b"%c%02d" % (b"az"[number % 2], number), value=b"old"))
            everything = Range(**EVERYTHING)

            def stream(request: rpc_pb2.RangeRequest) -> tuple[list[tuple[bytes, bytes]], int]:
                chunks = [chunk.range_response for chunk in kv.RangeStream(request)]
                return [row(pair) for chunk in chunks for pair in chunk.kvs], chunks[-1].header.revision

            old, token = stream(everything)
            kv.Put(Put(key=b"a00", value=b"new"))
            kv.Put(Put(key=b"z99", value=b"new"))
            assert stream(Range(**EVERYTHING, revision=token)) == (old, token)
            assert rows(kv.Range(Range(**EVERYTHING, revision=token))) == old
            new, later = stream(everything)
            assert later > token
            assert len(new) == 41
            snapshot = kv.RangeStream(everything, metadata=[("esp-read", "snapshot")])
            assert sum(len(chunk.range_response.kvs) for chunk in snapshot) == 41

    def test_the_token_of_a_delete_is_behind_it(self, filled: KVStub) -> None:
        before = filled.Range(Range(**EVERYTHING)).header.revision
        deleted = filled.DeleteRange(Delete(key=b"b", range_end=b"s"))
        assert deleted.header.revision > before
        filled.Put(Put(key=b"b"))
        seen = filled.Range(Range(key=b"b", range_end=b"s", revision=deleted.header.revision))
        assert seen.count == 0
        assert filled.Range(Range(**EVERYTHING, revision=before)).count == 9


class TestUnknown:
    @pytest.fixture
    def other(self, empty_shards: list[LocalEtcd], start_esp: Esps) -> Iterator[KVStub]:
        """A second proxy before the same shards, which remembers two tokens at most."""
        with connect(start_esp(empty_shards, ["i", "r"], extra="limits: {max_tokens: 2}")) as channel:
            yield KVStub(channel)

    def test_the_token_of_another_proxy_is_compacted(self, filled: KVStub, other: KVStub) -> None:
        token = filled.Range(Range(**EVERYTHING)).header.revision
        for number in (token - 1, token, token + 1):
            assert outcome(lambda: other.Range(Range(**EVERYTHING, revision=number))) == COMPACTED  # noqa: B023
            assert outcome(lambda: other.Range(Range(key=b"a", revision=number))) == COMPACTED  # noqa: B023
            assert outcome(lambda: other.Compact(Compact(revision=number))) == COMPACTED  # noqa: B023

    def test_a_token_that_was_forgotten_is_compacted(self, other: KVStub) -> None:
        tokens = []
        for _ in range(3):
            other.Put(Put(key=b"a"))
            tokens.append(other.Range(Range(**EVERYTHING)).header.revision)
        assert outcome(lambda: other.Range(Range(**EVERYTHING, revision=tokens[0]))) == COMPACTED
        for token in tokens[1:]:
            assert other.Range(Range(**EVERYTHING, revision=token)).count == 1

    def test_tokens_do_not_outlive_the_proxy(self, empty_shards: list[LocalEtcd], start_esp: Esps) -> None:
        tokens = []
        for _ in range(2):
            esp = start_esp(empty_shards, ["i", "r"])
            with connect(esp) as channel:
                kv = KVStub(channel)
                for token in tokens:
                    assert outcome(lambda: kv.Range(Range(**EVERYTHING, revision=token))) == COMPACTED  # noqa: B023
                tokens.append(kv.Range(Range(**EVERYTHING)).header.revision)
            esp.stop()
        assert tokens[0] < tokens[1]


class TestCompaction:
    def test_it_compacts_each_shard_at_its_own_revision(
        self, filled: KVStub, kv_direct: Callable[[int], KVStub]
    ) -> None:
        old = filled.Range(Range(**EVERYTHING)).header.revision
        write_everywhere(filled)
        middle = filled.Range(Range(**EVERYTHING))
        write_everywhere(filled)
        now = [kv_direct(shard).Range(Range(key=b"x")).header.revision for shard in range(3)]
        assert filled.Compact(Compact(revision=middle.header.revision, physical=True)).header.revision >= MARK
        assert outcome(lambda: filled.Range(Range(**EVERYTHING, revision=old))) == COMPACTED
        assert rows(filled.Range(Range(**EVERYTHING, revision=middle.header.revision))) == rows(middle)
        for shard in range(3):
            for revision in (now[shard] - 1, now[shard]):
                kv_direct(shard).Range(Range(key=b"x", revision=revision))
        assert outcome(lambda: filled.Compact(Compact(revision=old))) == COMPACTED
        assert outcome(lambda: filled.Compact(Compact(revision=middle.header.revision))) == COMPACTED

    def test_a_shard_that_is_compacted_further_does_not_keep_it_from_the_others(
        self, filled: KVStub, kv_direct: Callable[[int], KVStub]
    ) -> None:
        old = filled.Range(Range(**EVERYTHING)).header.revision
        write_everywhere(filled)
        token = filled.Range(Range(**EVERYTHING)).header.revision
        revision = kv_direct(1).Put(Put(key=b"j")).header.revision
        kv_direct(1).Compact(Compact(revision=revision))
        filled.Compact(Compact(revision=token))
        assert outcome(lambda: filled.Range(Range(key=b"a", revision=old))) == COMPACTED

    def test_behind_a_token_is_the_future(self, filled: KVStub) -> None:
        token = filled.Range(Range(**EVERYTHING)).header.revision
        assert outcome(lambda: filled.Compact(Compact(revision=token + 1))) == FUTURE

    def test_a_token_of_some_shards_is_refused_with_the_names_of_the_others(self, filled: KVStub) -> None:
        token = filled.Range(Range(key=b"a", range_end=b"k")).header.revision
        code, text = outcome(lambda: filled.Compact(Compact(revision=token)))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert text.startswith("esp: a compaction at this revision leaves out shard s2; take the revision of")

    def test_a_plain_revision_is_refused(self, filled: KVStub) -> None:
        code, text = outcome(lambda: filled.Compact(Compact(revision=3)))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert "compact at the revision of an answer over all shards" in text


@pytest.fixture
def islands(empty_shards: list[LocalEtcd], start_esp: Esps, tmp_path: Path) -> EspProcess:
    """esp over two shards, where "m" to "n" is cut out of what the first owns."""
    config = tmp_path / "islands.yaml"
    config.write_text(
        "shards:\n"
        f"  - {{name: sea, endpoints: [{empty_shards[0].endpoint}], ranges: [{{start: '', end: ''}}]}}\n"
        f"  - {{name: island, endpoints: [{empty_shards[1].endpoint}], ranges: [{{prefix: m}}]}}\n"
    )
    esp = start_esp.launch("-c", config, config=config)
    esp.wait_ready()
    return esp


@pytest.mark.parametrize("limit", [0, 10])
def test_a_shard_that_owns_several_parts_is_read_at_one_moment(islands: EspProcess, limit: int) -> None:
    with connect(islands) as channel:
        kv = KVStub(channel)
        both = [Op(request_put=Put(key=key)) for key in (b"a", b"z")]
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                for operation in both:
                    operation.request_put.value = b"%d" % number
                kv.Txn(Txn(success=both))

        kv.Txn(Txn(success=both))
        kv.Put(Put(key=b"m", value=b"island"))
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(300):
                answer = kv.Range(Range(**EVERYTHING, limit=limit))
                first, middle, last = answer.kvs
                assert middle.value == b"island"
                assert first.value == last.value
                again = kv.Range(Range(**EVERYTHING, limit=limit, revision=answer.header.revision))
                assert rows(again) == rows(answer)
        finally:
            stop.set()
            writer.join()


@pytest.mark.parametrize("fields", [{}, {"limit": 10}, {"count_only": True}], ids=str)
def test_a_negative_revision_is_the_latest_also_where_a_shard_owns_several_parts(
    islands: EspProcess, fields: dict[str, int]
) -> None:
    """Which are asked for in a transaction; and there, once it has compacted, etcd says that this is as well."""
    with connect(islands) as channel:
        kv = KVStub(channel)
        for key in (b"a", b"m", b"z"):
            kv.Put(Put(key=key))
        kv.Compact(Compact(revision=kv.Range(Range(**EVERYTHING)).header.revision))
        assert kv.Range(Range(**EVERYTHING, revision=-1, **fields)).count == 3  # type: ignore[arg-type]
