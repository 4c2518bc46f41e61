"""Reads of several shards at one moment, and the states that reads without a snapshot may show."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EVERYTHING, Esps, Etcds, connect, outcome
from tests.stubs.rpc_pb2_grpc import KVStub
from tests.watching import Relay, relaying

Range = rpc_pb2.RangeRequest
Put = rpc_pb2.PutRequest
Txn = rpc_pb2.TxnRequest
Op = rpc_pb2.RequestOp
SNAPSHOT = [("esp-read", "snapshot")]
BOTH = Txn(success=[Op(request_range=Range(key=b"a")), Op(request_range=Range(key=b"z"))])


def number(answer: rpc_pb2.RangeResponse, place: int) -> int:
    return int(answer.kvs[place].value)


class Writer:
    """Writes 1, 2, 3, ... to `a`, on the first shard, each number then to `z`, on the last: a is z or z + 1."""

    def __init__(self, kv: KVStub) -> None:
        self._kv = kv
        self._stop = threading.Event()
        self.count = 0
        self._write()
        self._thread = threading.Thread(target=self._run)

    def _write(self) -> None:
        for key in (b"a", b"z"):
            self._kv.Put(Put(key=key, value=b"%d" % self.count))
        self.count += 1

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self._write()

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("form", ["metadata", "config", "transaction"])
def test_a_snapshot_shows_no_state_that_never_was(empty_shards: list[LocalEtcd], start_esp: Esps, form: str) -> None:
    extra = "range_reads: snapshot" if form == "config" else ""
    extra += "\nlimits: {max_snapshot_tries: 1000}"
    with connect(start_esp(empty_shards, ["i", "r"], extra=extra)) as channel:
        kv = KVStub(channel)
        with Writer(kv) as writer:
            seen = set()
            for _ in range(60):
                if form == "transaction":
                    a, z = (int(each.response_range.kvs[0].value) for each in kv.Txn(BOTH).responses)
                else:
                    answer = kv.Range(Range(**EVERYTHING), metadata=SNAPSHOT if form == "metadata" else ())
                    a, z = number(answer, 0), number(answer, 1)
                assert a in (z, z + 1)
                seen.add(a)
            assert writer.count > 3
        assert len(seen) > 3, "it was read while it was written"


@contextmanager
def moving(kv: KVStub) -> Iterator[None]:
    """While a key goes from `a` on the first shard to `z` on the last and back: put there before it is deleted here."""
    stop = threading.Event()

    def move() -> None:
        here, there = b"a", b"z"
        while not stop.wait(0.003):
            kv.Put(Put(key=there))
            kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=here))
            here, there = there, here

    kv.Put(Put(key=b"a"))
    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield
    finally:
        stop.set()
        mover.join()


@pytest.mark.parametrize(
    "request_",
    [
        BOTH,
        Txn(success=[Op(request_range=Range(key=b"a", range_end=b"i")), Op(request_range=Range(key=b"z"))]),
        Txn(success=[Op(request_range=Range(key=b"a")), Op(request_range=Range(key=b"j", range_end=b"\0"))]),
        Txn(success=[Op(request_range=Range(**EVERYTHING, keys_only=True))]),
    ],
    ids=["keys", "range and key", "key and range", "range"],
)
def test_a_snapshot_never_misses_a_key_that_moves_between_shards(
    empty_shards: list[LocalEtcd], start_esp: Esps, request_: rpc_pb2.TxnRequest
) -> None:
    with connect(start_esp(empty_shards, ["i", "r"], extra="limits: {max_snapshot_tries: 1000}")) as channel:
        kv = KVStub(channel)
        seen = set()
        with moving(kv):
            for _ in range(80):
                rows = [row.key for op in kv.Txn(request_).responses for row in op.response_range.kvs]
                assert rows, "there always is one of them"
                seen.add(tuple(rows))
        assert {(b"a",), (b"z",)} <= seen, "it moved meanwhile"


@pytest.fixture
def held(start_etcd: Etcds, start_esp: Esps) -> Iterator[tuple[KVStub, KVStub, Relay]]:
    """KV through an esp that reaches the second of two shards by a relay, and through one that reaches it at once."""
    shards = start_etcd.several(2)
    with relaying(shards[1]) as relay:
        slow, quick = start_esp([[shards[0]], [relay]], ["m"]), start_esp(shards, ["m"])  # type: ignore[list-item]
        with connect(slow) as one, connect(quick) as other:
            kv = KVStub(one), KVStub(other)
            for key in (b"a", b"z"):
                kv[1].Put(Put(key=key, value=b"0"))
            kv[0].Range(Range(**EVERYTHING))
            yield (*kv, relay)


def read_across_a_write(held: tuple[KVStub, KVStub, Relay], limit: int, metadata: list[tuple[str, str]]) -> int:
    """How far `z` is ahead of `a` in a read in whose midst first `a` and then `z` is raised by one."""
    slow, quick, relay = held
    relay.hold()
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(slow.Range, Range(**EVERYTHING, limit=limit), metadata=metadata)
        relay.wait_until_it_holds()  # the first shard, asked as well, answers meanwhile
        for key in (b"a", b"z"):
            value = int(quick.Range(Range(key=key)).kvs[0].value) + 1
            quick.Put(Put(key=key, value=b"%d" % value))
        relay.release()
        answer = read.result(30)
    return number(answer, 1) - number(answer, 0)


@pytest.mark.parametrize("limit", [0, 5])
def test_the_default_read_can_show_a_state_that_never_was_and_a_snapshot_then_cannot(
    held: tuple[KVStub, KVStub, Relay], limit: int
) -> None:
    assert any(read_across_a_write(held, limit, []) == 1 for _ in range(100)), "z was never ahead, yet it is seen so"
    assert all(read_across_a_write(held, limit, SNAPSHOT) <= 0 for _ in range(10))


def test_a_transaction_that_only_reads_answers_as_one_etcd(
    kv: KVStub, empty_etcd: LocalEtcd, empty_shards: list[LocalEtcd]
) -> None:
    request = Txn(
        success=[
            Op(request_range=Range(key=b"a", range_end=b"\0", limit=3)),
            Op(request_range=Range(key=b"z")),
            Op(request_range=Range(key=b"j", range_end=b"a")),
            Op(request_range=Range(key=b"none")),
            Op(request_range=Range(key=b"b", range_end=b"s", sort_order=Range.DESCEND, keys_only=True)),
            Op(request_range=Range(key=b"b", range_end=b"s", count_only=True, serializable=True)),
            Op(request_range=Range(key=b"a", range_end=b"c", sort_order=Range.DESCEND, sort_target=Range.MOD)),
        ],
        failure=[Op(request_range=Range(key=b"q"))],
    )
    with connect(empty_etcd) as channel:
        judge = KVStub(channel)
        answers = []
        for one in (kv, judge):
            for key in (b"b", b"a", b"i", b"j", b"r", b"z"):
                one.Put(Put(key=key, value=b"v" + key))
            answers.append(one.Txn(request))
    across, alone = answers
    assert across.succeeded
    assert len(across.responses) == len(alone.responses)
    for mine, theirs in zip(across.responses, alone.responses, strict=True):
        got, wanted = mine.response_range, theirs.response_range
        assert [(row.key, row.value) for row in got.kvs] == [(row.key, row.value) for row in wanted.kvs]
        assert (got.count, got.more) == (wanted.count, wanted.more)
        assert got.header == rpc_pb2.ResponseHeader(revision=across.header.revision)
    again = kv.Range(Range(**EVERYTHING, revision=across.header.revision))
    assert again.count == 6


def test_a_transaction_over_shards_that_compares_or_writes_is_refused(kv: KVStub) -> None:
    read = Op(request_range=Range(**EVERYTHING))
    compare = rpc_pb2.Compare(key=b"a", result=rpc_pb2.Compare.EQUAL)
    for request in (
        Txn(compare=[compare], success=[read]),
        Txn(success=[read, Op(request_put=Put(key=b"a"))]),
        Txn(success=[read], failure=[Op(request_put=Put(key=b"a"))]),
        Txn(success=[read, Op(request_txn=Txn(success=[read]))]),
        Txn(success=[Op(request_range=Range(**EVERYTHING, min_mod_revision=1))]),
        Txn(success=[Op(request_range=Range(**EVERYTHING, revision=2))]),
    ):
        code, text = outcome(lambda: kv.Txn(request))  # noqa: B023
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert text.startswith("esp: ")


@contextmanager
def written(shards: list[LocalEtcd]) -> Iterator[None]:
    """While each of these shards is written on and on: `a` of the first, `j` of the second, `z` of the third."""
    stop = threading.Event()

    def write(shard: LocalEtcd, key: bytes) -> None:
        with connect(shard) as channel:
            while not stop.is_set():
                KVStub(channel).Put(Put(key=key, value=b"v"))
                time.sleep(0.002)

    writers = [threading.Thread(target=write, args=pair) for pair in zip(shards, (b"a", b"j", b"z"), strict=False)]
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_what_never_rests_is_unavailable_after_the_tries(empty_shards: list[LocalEtcd], start_esp: Esps) -> None:
    with connect(start_esp(empty_shards, ["i", "r"], extra="limits: {max_snapshot_tries: 1}")) as channel:
        kv = KVStub(channel)
        with written(empty_shards):
            code, text = outcome(lambda: [kv.Range(Range(**EVERYTHING), metadata=SNAPSHOT) for _ in range(1000)])
    assert code == grpc.StatusCode.UNAVAILABLE
    assert re.fullmatch(
        r"esp: no snapshot in 1 tries, since keys of the range kept changing on s[012](, s[12])*; "
        r"try again, read fewer keys, or read each shard at its own moment \(esp-read: each\)",
        text,
    )


@pytest.mark.parametrize("form", ["config", "metadata"])
def test_a_transaction_may_read_each_shard_at_its_own_moment(
    empty_shards: list[LocalEtcd], start_esp: Esps, form: str
) -> None:
    extra = ("txn_reads: each" if form == "config" else "") + "\nlimits: {max_snapshot_tries: 1}"
    metadata = [("esp-read", "each")] if form == "metadata" else []
    reads = Txn(success=[Op(request_range=Range(**EVERYTHING)), Op(request_range=Range(key=b"z"))])
    with connect(start_esp(empty_shards, ["i", "r"], extra=extra)) as channel:
        kv = KVStub(channel)
        for key in (b"a", b"j", b"z"):
            kv.Put(Put(key=key, value=b"v"))
        with written(empty_shards):
            for _ in range(60):
                whole, last = (op.response_range for op in kv.Txn(reads, metadata=metadata).responses)
                assert [row.key for row in whole.kvs] == [b"a", b"j", b"z"]
                assert whole.kvs[2] == last.kvs[0], "what is read in one shard is of one moment"
            code, text = outcome(lambda: [kv.Txn(reads, metadata=SNAPSHOT) for _ in range(1000)])
            assert code == grpc.StatusCode.UNAVAILABLE
            assert text.startswith("esp: no snapshot in 1 tries")
        answer = kv.Txn(reads, metadata=metadata)
        again = kv.Range(Range(**EVERYTHING, revision=answer.header.revision))
        assert again.kvs == answer.responses[0].response_range.kvs


def test_one_shard_that_is_written_all_the_time_does_not_keep_a_snapshot_from_being_found(
    empty_shards: list[LocalEtcd], start_esp: Esps
) -> None:
    """Two tries are enough, whether or not the shard rests during one of them."""
    with connect(start_esp(empty_shards, ["i", "r"], extra="limits: {max_snapshot_tries: 2}")) as channel:
        kv = KVStub(channel)
        for key in (b"a", b"j", b"z"):
            kv.Put(Put(key=key, value=b"v"))
        with written(empty_shards[:1]):
            for _ in range(80):
                assert kv.Range(Range(**EVERYTHING), metadata=SNAPSHOT).count == 3
                assert len(kv.Txn(BOTH).responses) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda kv, **fields: kv.Range(Range(**EVERYTHING), **fields),
        lambda kv, **fields: kv.Range(Range(key=b"a"), **fields),
        lambda kv, **fields: kv.Range(Range(key=b"a", range_end=b"c"), **fields),
        lambda kv, **fields: list(kv.RangeStream(Range(**EVERYTHING), **fields)),
        lambda kv, **fields: kv.Txn(BOTH, **fields),
        lambda kv, **fields: kv.Txn(Txn(success=[Op(request_put=Put(key=b"a"))]), **fields),
        lambda kv, **fields: kv.Put(Put(key=b"a"), **fields),
    ],
    ids=["all", "a key", "one shard", "stream", "reads", "writes", "put"],
)
@pytest.mark.parametrize("named", [False, True])
def test_what_esp_read_does_not_take_is_refused_whatever_the_call(
    kv: KVStub, call: Callable[..., object], named: bool
) -> None:
    shard = [("esp-shard", "s0")] if named else []
    assert outcome(lambda: call(kv, metadata=[("esp-read", "exact"), *shard])) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "esp: the metadata key esp-read takes snapshot, each or default",
    )
    assert kv.Range(Range(**EVERYTHING), metadata=[("esp-read", "default")]).count == 0


def test_it_is_refused_with_one_shard_too(empty_etcd: LocalEtcd, start_esp: Esps) -> None:
    with connect(start_esp([empty_etcd])) as channel:
        kv = KVStub(channel)
        code, _ = outcome(lambda: kv.Range(Range(key=b"a"), metadata=[("esp-read", "exact")]))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert kv.Range(Range(key=b"a"), metadata=[("esp-read", "snapshot")]).count == 0
