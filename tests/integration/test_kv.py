"""KV through esp, asked by grpcio: inside one shard the shard's own answer, over several the answer of one etcd."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import kv_pb2, rpc_pb2
from tests.harness import EVERYTHING, EspProcess, Esps, Etcds, connect, outcome, peer, raw, running_esps
from tests.stubs import rpc_pb2_grpc

KV = rpc_pb2_grpc.KVStub
Range = rpc_pb2.RangeRequest
Put = rpc_pb2.PutRequest
Delete = rpc_pb2.DeleteRangeRequest
Txn = rpc_pb2.TxnRequest
Compare = rpc_pb2.Compare
Op = rpc_pb2.RequestOp

REFUSED = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def judge(empty_etcd: LocalEtcd) -> Iterator[KV]:
    """One etcd without a shard: what it answers is right."""
    with connect(empty_etcd) as channel:
        yield KV(channel)


def put(key: bytes, value: bytes = b"") -> Op:
    return Op(request_put=Put(key=key, value=value))


def get(key: bytes, **fields: Any) -> Op:
    return Op(request_range=Range(key=key, **fields))


def delete(key: bytes, **fields: Any) -> Op:
    return Op(request_delete_range=Delete(key=key, **fields))


def absent(key: bytes) -> Compare:
    return Compare(key=key, target=Compare.CREATE, result=Compare.EQUAL, create_revision=0)


def without_revisions(answer: rpc_pb2.RangeResponse) -> tuple[list[tuple[bytes, bytes, int, int]], int, bool]:
    """What one etcd and several must agree on: keys, values, versions, leases; count; more."""
    rows = [(kv.key, kv.value, kv.version, kv.lease) for kv in answer.kvs]
    return rows, answer.count, answer.more


def keys(kvs: list[kv_pb2.KeyValue]) -> list[bytes]:
    return [kv.key for kv in kvs]


def is_refusal(ended: tuple[grpc.StatusCode, str]) -> bool:
    return ended[0] == REFUSED and ended[1].startswith("esp: ")


class TestOneShard:
    @pytest.mark.parametrize(
        "request_",
        [
            Range(key=b"j"),
            Range(key=b"i", range_end=b"r"),
            Range(key=b"j", range_end=b"k", limit=1, sort_order=Range.DESCEND, sort_target=Range.MOD),
            Range(key=b"i", range_end=b"r", count_only=True),
            Range(key=b"i", range_end=b"r", min_mod_revision=1, keys_only=True),
            Range(key=b"k", range_end=b"j"),
            Range(key=b"j", serializable=True),
            Range(key=b"nothing"),
        ],
        ids=str,
    )
    def test_a_range_is_answered_with_the_shards_own_bytes(
        self, kv: KV, esp: EspProcess, shards: list[LocalEtcd], request_: Range
    ) -> None:
        for key in (b"a", b"i", b"j", b"jj", b"z"):
            kv.Put(Put(key=key, value=b"v" + key))
        with connect(esp) as through, connect(shards[1]) as direct:
            method = "etcdserverpb.KV/Range"
            assert raw(through, method, request_) == raw(direct, method, request_)

    def test_a_range_that_ends_at_a_boundary_is_inside_the_shard_below(
        self, kv: KV, esp: EspProcess, shards: list[LocalEtcd]
    ) -> None:
        kv.Put(Put(key=b"h"))
        kv.Put(Put(key=b"i"))
        request = Range(key=b"\0", range_end=b"i")
        with connect(esp) as through, connect(shards[0]) as direct:
            method = "etcdserverpb.KV/Range"
            assert raw(through, method, request) == raw(direct, method, request)

    def test_the_boundary_key_itself_is_above(self, kv: KV, kv_direct: Callable[[int], KV]) -> None:
        kv.Put(Put(key=b"i"))
        kv.Put(Put(key=b"r"))
        assert [keys(kv_direct(index).Range(Range(**EVERYTHING)).kvs) for index in range(3)] == [[], [b"i"], [b"r"]]

    def test_a_put_answers_with_the_shards_revision_and_the_pair_before(
        self, kv: KV, kv_direct: Callable[[int], KV]
    ) -> None:
        first = kv.Put(Put(key=b"j", value=b"1"))
        second = kv.Put(Put(key=b"j", value=b"2", prev_kv=True))
        assert second.header.revision == first.header.revision + 1
        assert (second.prev_kv.value, second.prev_kv.mod_revision) == (b"1", first.header.revision)
        there = kv_direct(1).Range(Range(key=b"j"))
        assert there.header.revision == second.header.revision
        assert there.kvs[0].value == b"2"

    def test_a_txn_is_routed_by_its_compares_when_it_has_nothing_else(
        self, kv: KV, kv_direct: Callable[[int], KV]
    ) -> None:
        kv.Put(Put(key=b"z"))
        assert not kv.Txn(Txn(compare=[absent(b"z")])).succeeded
        assert kv.Txn(Txn(compare=[absent(b"y")])).succeeded
        assert kv.Txn(Txn(compare=[absent(b"y")])).header.member_id == kv_direct(2).Txn(Txn()).header.member_id

    def test_a_txns_branches_run_as_in_etcd(self, kv: KV) -> None:
        txn = Txn(compare=[absent(b"j")], success=[put(b"j", b"1"), get(b"j")], failure=[delete(b"i", range_end=b"k")])
        made = kv.Txn(txn)
        assert made.succeeded
        assert made.responses[1].response_range.kvs[0].value == b"1"
        gone = kv.Txn(txn)
        assert not gone.succeeded
        assert gone.responses[0].response_delete_range.deleted == 1

    def test_an_empty_txn_succeeds(self, kv: KV) -> None:
        assert kv.Txn(Txn()).succeeded

    def test_compare_and_swap_by_mod_revision_holds(self, kv: KV) -> None:
        revision = kv.Put(Put(key=b"j")).header.revision
        unchanged = Compare(key=b"j", target=Compare.MOD, result=Compare.EQUAL, mod_revision=revision)
        assert kv.Txn(Txn(compare=[unchanged], success=[put(b"j", b"mine")])).succeeded
        assert not kv.Txn(Txn(compare=[unchanged], success=[put(b"j", b"late")])).succeeded
        assert kv.Range(Range(key=b"j")).kvs[0].value == b"mine"


TOO_MANY = [put(f"j{number}".encode()) for number in range(129)]
NESTED_DUPLICATE = Op(request_txn=Txn(success=[delete(b"i", range_end=b"k")]))


class TestErrors:
    """The code and the text of an error are etcd's own: the same request to one etcd ends the same."""

    @pytest.mark.parametrize(
        ("method", "request_"),
        [
            ("Range", Range()),
            ("Range", Range(range_end=b"z")),
            ("Range", Range(key=b"j", revision=1 << 40)),
            ("Put", Put()),
            ("Put", Put(key=b"j", value=b"v", ignore_value=True)),
            ("Put", Put(key=b"j", lease=5, ignore_lease=True)),
            ("Put", Put(key=b"absent", ignore_value=True)),
            ("Put", Put(key=b"absent", ignore_lease=True)),
            ("Put", Put(key=b"j", lease=424242)),
            ("Put", Put(key=b"j", value=b"v" * 1_600_000)),
            ("Put", Put(key=b"j", value=b"v" * 2_200_000)),
            ("DeleteRange", Delete()),
            ("DeleteRange", Delete(range_end=b"\0")),
            ("Txn", Txn(success=TOO_MANY)),
            ("Txn", Txn(failure=TOO_MANY)),
            ("Txn", Txn(compare=[absent(b"j")] * 129)),
            ("Txn", Txn(compare=[absent(b"")])),
            ("Txn", Txn(success=[put(b"")])),
            ("Txn", Txn(success=[get(b"")])),
            ("Txn", Txn(success=[Op()])),
            ("Txn", Txn(success=[put(b"j"), put(b"j")])),
            ("Txn", Txn(success=[put(b"j"), NESTED_DUPLICATE])),
            ("Txn", Txn(success=[Op(request_txn=Txn(failure=[put(b"")]))])),
            ("Txn", Txn(success=[get(b"j", revision=1 << 40)])),
            ("Txn", Txn(success=[Op(request_put=Put(key=b"absent", ignore_value=True))])),
            ("Txn", Txn(success=[Op(request_put=Put(key=b"j", lease=424242))])),
        ],
        ids=lambda value: value if isinstance(value, str) else str(value)[:60],
    )
    def test_an_error_is_etcds_own(self, kv: KV, judge: KV, method: str, request_: Any) -> None:
        expected = outcome(lambda: getattr(judge, method)(request_, timeout=30))
        assert outcome(lambda: getattr(kv, method)(request_, timeout=30)) == expected

    @pytest.mark.parametrize(
        "request_",
        [
            Txn(success=[put(b"a"), put(b"z"), put(b"z")]),
            Txn(success=[put(b"a")], failure=[put(b"")]),
            Txn(compare=[absent(b"a")], success=[*TOO_MANY]),
            Txn(success=[put(b"a"), Op()]),
            Txn(success=[put(b"j"), delete(b"a", range_end=b"z")]),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_a_wrong_txn_over_several_shards_is_told_what_is_wrong_first(
        self, kv: KV, judge: KV, request_: Txn
    ) -> None:
        expected = outcome(lambda: judge.Txn(request_))
        assert expected[0] == INVALID
        assert outcome(lambda: kv.Txn(request_)) == expected

    @pytest.mark.parametrize("key", [b"r", b"s", b"t"])
    def test_a_put_beside_an_open_ended_delete_ends_as_in_etcd(self, kv: KV, judge: KV, key: bytes) -> None:
        # etcd's check of overlaps takes the open end for the key "\0", and so does not see this one.
        request = Txn(success=[put(key), delete(b"s", range_end=b"\0")])
        expected = judge.Txn(request).responses[1].response_delete_range.deleted
        assert kv.Txn(request).responses[1].response_delete_range.deleted == expected

    def test_a_compacted_revision_is_told_by_the_shard(self, kv: KV, kv_direct: Callable[[int], KV]) -> None:
        for _ in range(3):
            last = kv.Put(Put(key=b"j")).header.revision
        kv_direct(1).Compact(rpc_pb2.CompactionRequest(revision=last))
        assert outcome(lambda: kv.Range(Range(key=b"j", revision=last - 1))) == (
            grpc.StatusCode.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
        )
        assert len(kv.Range(Range(key=b"j", revision=last)).kvs) == 1

    @pytest.mark.parametrize("range_end", [b"", b"k", b"\0"])
    def test_an_unknown_sort_target_never_reaches_a_shard(
        self, start_etcd: Etcds, start_esp: Esps, range_end: bytes
    ) -> None:
        # etcd 3.5 crashes on one, so these shards are the test's own.
        shards = start_etcd.several(2)
        with connect(start_esp(shards, ["r"])) as channel:
            kv = KV(channel)
            request = Range(key=b"j", range_end=range_end, sort_order=Range.ASCEND, sort_target=9)
            assert outcome(lambda: kv.Range(request)) == (INVALID, "etcdserver: invalid sort option")
            nested = Txn(success=[Op(request_range=request)])
            assert outcome(lambda: kv.Txn(nested)) == (INVALID, "etcdserver: invalid sort option")
        assert all(shard.is_running() for shard in shards)


SAMPLE = [b"a", b"b", b"h\xff", b"i", b"j", b"q", b"r", b"z", b"\xff"]


class TestSeveralShards:
    @pytest.fixture
    def same_keys(self, kv: KV, judge: KV) -> None:
        """The same pairs through esp and in one etcd; values and versions all differ and follow no order of keys."""
        for place, key in enumerate(SAMPLE):
            turn = (place * 4) % len(SAMPLE)
            for server in (kv, judge):
                for _ in range(turn):
                    server.Put(Put(key=key, value=b"before"))
                server.Put(Put(key=key, value=b"%d" % turn))

    @pytest.mark.usefixtures("same_keys")
    @pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 8, 9, 10])
    @pytest.mark.parametrize(
        ("key", "range_end"), [(b"\0", b"\0"), (b"b", b"z"), (b"h", b"i\0"), (b"j", b"\0"), (b"c", b"j")]
    )
    def test_rows_count_and_more_are_as_of_one_etcd(
        self, kv: KV, judge: KV, key: bytes, range_end: bytes, limit: int
    ) -> None:
        for order in (Range.NONE, Range.ASCEND, Range.DESCEND):
            for target in (Range.KEY, Range.VERSION, Range.VALUE):
                request = Range(key=key, range_end=range_end, limit=limit, sort_order=order, sort_target=target)
                assert without_revisions(kv.Range(request)) == without_revisions(judge.Range(request)), request

    @pytest.mark.usefixtures("same_keys")
    @pytest.mark.parametrize(
        "fields",
        [
            {"keys_only": True},
            {"keys_only": True, "limit": 3, "sort_order": Range.DESCEND, "sort_target": Range.VALUE},
            {"count_only": True},
            {"count_only": True, "limit": 1},
            {"serializable": True},
            {"limit": -1},
        ],
        ids=str,
    )
    def test_options_are_as_of_one_etcd(self, kv: KV, judge: KV, fields: dict[str, Any]) -> None:
        request = Range(**EVERYTHING, **fields)
        assert without_revisions(kv.Range(request)) == without_revisions(judge.Range(request))

    def test_no_keys_at_all_is_an_answer(self, kv: KV) -> None:
        answer = kv.Range(Range(**EVERYTHING))
        assert (list(answer.kvs), answer.count, answer.more) == ([], 0, False)
        assert answer.header.revision > 0

    def test_an_inverted_range_is_empty_and_has_a_header(self, kv: KV) -> None:
        answer = kv.Range(Range(key=b"z", range_end=b"a"))
        assert (list(answer.kvs), answer.count, answer.more) == ([], 0, False)
        assert answer.header.revision > 0

    def test_a_key_on_a_shard_that_does_not_own_it_never_shows(self, kv: KV, kv_direct: Callable[[int], KV]) -> None:
        for key in (b"a", b"j", b"z"):
            kv.Put(Put(key=key, value=b"right"))
        kv_direct(0).Put(Put(key=b"j", value=b"stray"))
        kv_direct(0).Put(Put(key=b"k", value=b"stray"))
        kv_direct(2).Put(Put(key=b"b", value=b"stray"))
        answer = kv.Range(Range(**EVERYTHING))
        assert [(row.key, row.value) for row in answer.kvs] == [(b"a", b"right"), (b"j", b"right"), (b"z", b"right")]
        assert answer.count == 3
        assert kv.DeleteRange(Delete(**EVERYTHING)).deleted == 3
        assert keys(kv_direct(0).Range(Range(**EVERYTHING)).kvs) == [b"j", b"k"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"revision": 1},
            {"sort_order": Range.ASCEND, "sort_target": Range.CREATE},
            {"sort_order": Range.DESCEND, "sort_target": Range.MOD},
            {"sort_target": Range.MOD},
            {"min_mod_revision": 1},
            {"max_mod_revision": 1},
            {"min_create_revision": 1},
            {"max_create_revision": 1},
        ],
        ids=str,
    )
    def test_what_compares_revisions_of_different_shards_is_refused(self, kv: KV, fields: dict[str, Any]) -> None:
        kv.Put(Put(key=b"a"))
        code, text = outcome(lambda: kv.Range(Range(key=b"a", range_end=b"j", **fields)))
        assert is_refusal((code, text))
        for word in ("s0", "s1", "i"):
            assert re.search(rf"\b{word}\b", text), text

    def test_a_delete_counts_and_returns_the_pairs_of_all_shards_in_order(self, kv: KV) -> None:
        for key in (b"a", b"h", b"j", b"r", b"z"):
            kv.Put(Put(key=key, value=b"v" + key))
        answer = kv.DeleteRange(Delete(key=b"h", range_end=b"s", prev_kv=True))
        assert answer.deleted == 3
        assert [(row.key, row.value) for row in answer.prev_kvs] == [(b"h", b"vh"), (b"j", b"vj"), (b"r", b"vr")]
        assert keys(kv.Range(Range(**EVERYTHING)).kvs) == [b"a", b"z"]

    @pytest.mark.parametrize(
        "request_",
        [
            Txn(success=[put(b"a"), put(b"z")]),
            Txn(success=[put(b"a")], failure=[put(b"z")]),
            Txn(compare=[absent(b"z")], success=[put(b"a")]),
            Txn(compare=[Compare(key=b"a", range_end=b"j", result=Compare.EQUAL)], success=[put(b"a")]),
            Txn(success=[put(b"a"), Op(request_txn=Txn(failure=[get(b"z")]))]),
            Txn(success=[delete(b"a", range_end=b"\0")]),
            Txn(compare=[absent(b"a"), absent(b"z")], success=[get(b"a")]),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_a_txn_that_touches_several_shards_in_any_branch_is_refused_and_does_nothing(
        self, kv: KV, request_: Txn
    ) -> None:
        assert is_refusal(outcome(lambda: kv.Txn(request_)))
        assert kv.Range(Range(**EVERYTHING)).count == 0

    def test_compact_is_refused_and_compacts_nothing(self, kv: KV) -> None:
        first = kv.Put(Put(key=b"j", value=b"old")).header.revision
        last = kv.Put(Put(key=b"j", value=b"new")).header.revision
        assert is_refusal(outcome(lambda: kv.Compact(rpc_pb2.CompactionRequest(revision=last))))
        assert kv.Range(Range(key=b"j", revision=first)).kvs[0].value == b"old"

    def test_a_thousand_keys_of_each_shard_come_whole_and_in_order(self, kv: KV) -> None:
        expected = sorted(b"%c%03d" % (first, number) for first in b"ajz" for number in range(1000))
        calls = [kv.Put.future(Put(key=key, value=b"v" * 1000)) for key in expected]
        for call in calls:
            call.result(timeout=60)
        assert keys(kv.Range(Range(**EVERYTHING)).kvs) == expected

    def test_deletes_across_shards_can_be_switched_off(self, empty_shards: list[LocalEtcd], start_esp: Esps) -> None:
        strict = start_esp(empty_shards, ["i", "r"], extra="deletes_across_shards: refuse")
        with connect(strict) as channel:
            kv = KV(channel)
            kv.Put(Put(key=b"a"))
            assert is_refusal(outcome(lambda: kv.DeleteRange(Delete(**EVERYTHING))))
            assert kv.DeleteRange(Delete(key=b"a", range_end=b"b")).deleted == 1


@pytest.fixture(scope="module")
def streams(
    module_etcds: Etcds, tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path
) -> Iterator[tuple[KV, KV]]:
    """KV of an esp over two shards, and of one etcd, all of the newest version, with the same 80 keys."""
    shards = module_etcds.several(3, binary=peer("etcd"))
    with (
        running_esps(tmp_path_factory.mktemp("streams"), etcd_binary) as esps,
        connect(esps(shards[1:], ["m"])) as across,
        connect(shards[0]) as alone,
    ):
        for kv in (KV(across), KV(alone)):
            for number in range(80):
                kv.Put(Put(key=b"%c%02d" % (b"az"[number % 2], number // 2), value=b"v"))
        yield KV(across), KV(alone)


class TestRangeStream:
    def test_a_shard_that_does_not_know_it_says_so_itself(self, kv: KV, judge: KV) -> None:
        request = Range(key=b"j")
        expected = outcome(lambda: list(judge.RangeStream(request)))
        assert expected[0] == grpc.StatusCode.UNIMPLEMENTED
        assert outcome(lambda: list(kv.RangeStream(request))) == expected

    def test_over_shards_of_which_one_does_not_know_it_clients_are_told_to_use_range(self, kv: KV) -> None:
        assert outcome(lambda: list(kv.RangeStream(Range(**EVERYTHING))))[0] == grpc.StatusCode.UNIMPLEMENTED

    def test_the_shards_follow_one_another_in_one_stream(self, start_etcd: Etcds, start_esp: Esps) -> None:
        shards = start_etcd.several(2, binary=peer("etcd"))
        with connect(start_esp(shards, ["m"])) as channel:
            kv = KV(channel)
            expected = sorted(b"%c%02d" % (first, number) for first in b"az" for number in range(40))
            for key in expected:
                kv.Put(Put(key=key))
            parts = [part.range_response for part in kv.RangeStream(Range(**EVERYTHING))]
            assert [row.key for part in parts for row in part.kvs] == expected
            assert (parts[-1].count, parts[-1].more) == (80, False)
            assert parts[-1].header.revision > 0
            limited = [part.range_response for part in kv.RangeStream(Range(**EVERYTHING, limit=45))]
            assert [row.key for part in limited for row in part.kvs] == expected[:45]
            assert (limited[-1].count, limited[-1].more) == (80, True)

    @pytest.mark.parametrize("limit", [0, 1, 5, 9, 10, 11, 30, 45, 80, 81])
    def test_the_chunks_are_those_of_one_etcd(self, streams: tuple[KV, KV], limit: int) -> None:
        def form(kv: KV, request: Range) -> list[tuple[list[bytes], bool, int, bool]]:
            parts = [part.range_response for part in kv.RangeStream(request)]
            return [(keys(part.kvs), part.HasField("header"), part.count, part.more) for part in parts]

        across, alone = streams
        for start, end in ((b"\0", b"\0"), (b"a03", b"z02"), (b"b", b"z"), (b"a35", b"\0"), (b"a39", b"z")):
            request = Range(key=start, range_end=end, limit=limit)
            assert form(across, request) == form(alone, request)
