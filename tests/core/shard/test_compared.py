"""Requests with a comparison of the guard, and answers cut out of a transaction's, compared with protobuf."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard.compared import BEGINNING, MOST_FORMS, SMALL, Cut, GarbledError, Guard, Kind
from esp.core.wire.message import PREFIX_SIZE, prefix

ONE = (Kind.RANGE, Kind.PUT, Kind.DELETE_RANGE)
KEY = b"\0esp/guard"
VALUE = b"7-0123456789abcdef0123456789abcdef"
GUARD = Guard(KEY, VALUE)
COMPARE = rpc_pb2.Compare(key=KEY, target=rpc_pb2.Compare.VALUE, value=VALUE)
READ = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=KEY, serializable=True))
UINT64 = st.integers(0, 2**64 - 1)
HEADERS = st.builds(
    rpc_pb2.ResponseHeader,
    cluster_id=UINT64,
    member_id=UINT64,
    revision=st.integers(1, 2**63 - 1),
    raft_term=UINT64,
)
# Around these sizes the lengths take a further byte.
TEXTS = st.binary(max_size=8) | st.sampled_from([100, 118, 120, 122, 127, 128, 16383, 16384]).map(bytes)
PAIRS = st.builds(kv_pb2.KeyValue, key=TEXTS, value=TEXTS, mod_revision=st.integers(1, 2**63 - 1))
RANGES = st.builds(
    rpc_pb2.RangeRequest,
    key=TEXTS,
    range_end=TEXTS,
    limit=st.integers(0, 300),
    revision=st.sampled_from((0, 0, 0, 7)),
    sort_order=st.integers(0, 2),
    min_mod_revision=st.integers(0, 2**40),
    serializable=st.booleans(),
)
PUTS = st.builds(rpc_pb2.PutRequest, key=TEXTS, value=TEXTS, lease=st.integers(0, 2**62))
DELETES = st.builds(rpc_pb2.DeleteRangeRequest, key=TEXTS, range_end=TEXTS, prev_kv=st.booleans())
REQUESTS = RANGES | PUTS | DELETES
ANSWERS: Any = (
    st.builds(rpc_pb2.RangeResponse, kvs=st.lists(PAIRS, max_size=3), count=st.integers(0, 300), more=st.booleans())
    | st.builds(rpc_pb2.PutResponse, prev_kv=PAIRS)
    | st.just(rpc_pb2.PutResponse())
    | st.builds(rpc_pb2.DeleteRangeResponse, deleted=st.integers(0, 300), prev_kvs=st.lists(PAIRS, max_size=3))
)
KINDS = {
    rpc_pb2.RangeRequest: (Kind.RANGE, "request_range"),
    rpc_pb2.PutRequest: (Kind.PUT, "request_put"),
    rpc_pb2.DeleteRangeRequest: (Kind.DELETE_RANGE, "request_delete_range"),
    rpc_pb2.RangeResponse: (Kind.RANGE, "response_range"),
    rpc_pb2.PutResponse: (Kind.PUT, "response_put"),
    rpc_pb2.DeleteRangeResponse: (Kind.DELETE_RANGE, "response_delete_range"),
}


def body(message: bytes) -> bytes:
    """A message without its gRPC prefix, which must be right."""
    assert message[:PREFIX_SIZE] == b"\0" + (len(message) - PREFIX_SIZE).to_bytes(4)
    return message[PREFIX_SIZE:]


def operation(request: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(**{KINDS[type(request)][1]: request})


def inside(header: rpc_pb2.ResponseHeader, answer: Any) -> rpc_pb2.ResponseOp:
    """An answer as a transaction's answer has it: its header says the revision and nothing else."""
    response = rpc_pb2.ResponseOp(**{KINDS[type(answer)][1]: answer})
    getattr(response, KINDS[type(answer)][1]).header.revision = header.revision
    return response


def guard_read(value: bytes | None = VALUE) -> rpc_pb2.ResponseOp:
    pairs = [] if value is None else [kv_pb2.KeyValue(key=KEY, value=value, mod_revision=3)]
    return rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse(kvs=pairs, count=len(pairs)))


def test_what_is_made_once_for_each_size_has_a_bound() -> None:
    guard = Guard(KEY, VALUE)
    for _ in range(2):
        for kind in ONE:
            for size in range(SMALL + 50):
                guard.compared(kind, prefix(bytes(size)))
    assert sum(map(len, guard._fronts.values())) == len(ONE) * (SMALL + 1)


@given(REQUESTS)
def test_a_request_becomes_a_transaction_with_the_comparison(request: Any) -> None:
    kind, _ = KINDS[type(request)]
    wanted = rpc_pb2.TxnRequest(compare=[COMPARE], success=[operation(request)])
    made = body(GUARD.compared(kind, prefix(request.SerializeToString())))
    assert made == wanted.SerializeToString()


@given(HEADERS, ANSWERS)
def test_an_answer_is_cut_out_as_etcd_would_have_given_it(header: rpc_pb2.ResponseHeader, answer: Any) -> None:
    kind, _ = KINDS[type(answer)]
    whole = prefix(
        rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)]).SerializeToString()
    )
    found = GUARD.cut(whole, kind)
    assert found is not None
    alone = type(answer)()
    alone.CopyFrom(answer)
    alone.header.CopyFrom(header)
    assert found.head + whole[found.rest :] == prefix(alone.SerializeToString())
    assert GUARD.cut(whole[:BEGINNING], kind) == found  # its beginning is enough
    guard = Guard(KEY, VALUE)
    for revision in (header.revision, header.revision, header.revision + 1, header.revision - 1, 1, header.revision):
        header.revision = alone.header.revision = revision % 2**63 or 1
        text = rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)])
        assert guard.whole(prefix(text.SerializeToString()), kind) == prefix(alone.SerializeToString())
    text.succeeded = False
    del text.responses[:]
    assert guard.whole(prefix(text.SerializeToString()), kind) is None

    for other in ONE:
        if other is not kind:
            with pytest.raises(GarbledError):
                GUARD.cut(whole, other)


def test_how_to_cut_answers_is_kept_for_so_many_sizes() -> None:
    guard = Guard(KEY, VALUE)
    header = rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=4)
    for size in range(MOST_FORMS + 9):
        found = rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=bytes(size + 1))], count=1)
        response = rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, found)])
        assert guard.whole(prefix(response.SerializeToString()), Kind.RANGE) is not None
        assert len(guard._forms[Kind.RANGE]) <= MOST_FORMS


@given(HEADERS)
def test_a_refused_comparison_is_seen(header: rpc_pb2.ResponseHeader) -> None:
    answer = prefix(rpc_pb2.TxnResponse(header=header).SerializeToString())
    assert all(GUARD.cut(answer, kind) is None for kind in (*ONE, Kind.READS))


@given(HEADERS, ANSWERS, st.data())
def test_what_is_no_answer_of_etcds_is_garbled(
    header: rpc_pb2.ResponseHeader, answer: Any, data: st.DataObject
) -> None:
    kind, _ = KINDS[type(answer)]
    response = rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)])
    whole = prefix(response.SerializeToString())
    most = GUARD.cut(whole, kind)
    assert isinstance(most, Cut)
    for size in range(most.rest):  # cut off before the rest begins
        with pytest.raises(GarbledError):
            GUARD.cut(whole[:size], kind)
    place = data.draw(st.integers(0, most.rest - 1))
    other = whole[:place] + bytes((data.draw(st.integers(0, 255)),)) + whole[place + 1 :]
    with suppress(GarbledError):
        found = GUARD.cut(other, kind)
        assert found is None or len(found.head) + len(other) - found.rest <= len(other) + 8
    for count in (0, 2):
        several = rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)] * count)
        with pytest.raises(GarbledError):
            GUARD.cut(prefix(several.SerializeToString()), kind)
    later = rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)])
    getattr(later.responses[0], KINDS[type(answer)][1]).header.revision = header.revision - 1 or 2
    with pytest.raises(GarbledError):
        GUARD.cut(prefix(later.SerializeToString()), kind)


def txns(operations: Any) -> Any:
    compares = st.lists(st.builds(rpc_pb2.Compare, key=TEXTS, version=st.integers(0, 9)), max_size=3)
    some = st.lists(operations, max_size=3)
    return st.builds(rpc_pb2.TxnRequest, compare=compares, success=some, failure=some)


OPERATIONS = st.recursive(
    REQUESTS.map(operation), lambda inner: txns(inner).map(lambda one: rpc_pb2.RequestOp(request_txn=one)), max_leaves=6
)


@given(txns(OPERATIONS))
def test_a_clients_transaction_gets_one_comparison_more(request: rpc_pb2.TxnRequest) -> None:
    found = rpc_pb2.TxnRequest.FromString(body(GUARD.compared(Kind.TXN, prefix(request.SerializeToString()))))
    assert list(found.compare) == [*request.compare, COMPARE]
    assert list(found.success) == list(request.success)
    if any(one.WhichOneof("request") != "request_range" or one.request_range.revision for one in request.failure):
        inner = rpc_pb2.TxnRequest(compare=[COMPARE], success=request.failure)
        assert list(found.failure) == [rpc_pb2.RequestOp(request_txn=inner)]
    else:
        assert list(found.failure) == [READ, *request.failure]


@given(st.lists(RANGES.map(operation), max_size=4))
def test_joined_reads_get_the_comparison_and_nothing_else(reads: list[rpc_pb2.RequestOp]) -> None:
    message = prefix(rpc_pb2.TxnRequest(success=reads).SerializeToString())
    found = rpc_pb2.TxnRequest.FromString(body(GUARD.compared(Kind.READS, message)))
    assert found == rpc_pb2.TxnRequest(compare=[COMPARE], success=reads)


def test_a_read_that_is_followed_by_a_write_in_one_operation_is_a_write() -> None:
    """The last field of an operation counts."""
    read, write = rpc_pb2.RangeRequest(key=b"a"), rpc_pb2.DeleteRangeRequest(key=b"a")
    both = operation(read).SerializeToString() + operation(write).SerializeToString()
    made = GUARD.compared(Kind.TXN, prefix(bytes((3 << 3 | 2, len(both))) + both))
    assert rpc_pb2.TxnRequest.FromString(body(made)).failure[0].request_txn.success[0].HasField("request_delete_range")


@pytest.mark.parametrize("data", [b"\x1a", b"\x1a\x05\x0a", b"\x1a\xff\xff\xff\xff\xff\xff", b"\xff", b"\x1a\x02\x0a"])
def test_what_is_no_transaction_is_refused(data: bytes) -> None:
    with pytest.raises(GarbledError):
        GUARD.compared(Kind.TXN, prefix(data))


def taken(answer: bytes, kind: int = Kind.TXN) -> bytes | None:
    """The client's answer; its beginning is enough to know it."""
    found = GUARD.cut(answer, kind)
    assert GUARD.cut(answer[:BEGINNING], kind) == found
    whole = None if found is None else found.head + answer[found.rest :]
    assert GUARD.whole(answer, kind) == whole
    return whole


@given(HEADERS, st.lists(ANSWERS, max_size=3))
def test_the_answer_to_a_clients_transaction_is_its_own(header: rpc_pb2.ResponseHeader, answers: list[Any]) -> None:
    own = [inside(header, answer) for answer in answers]
    succeeded = prefix(rpc_pb2.TxnResponse(header=header, succeeded=True, responses=own).SerializeToString())
    failed = prefix(rpc_pb2.TxnResponse(header=header, responses=own).SerializeToString())

    def answered(*responses: rpc_pb2.ResponseOp) -> bytes:
        return prefix(rpc_pb2.TxnResponse(header=header, responses=responses).SerializeToString())

    assert taken(succeeded) == taken(succeeded, Kind.READS) == succeeded
    assert taken(answered(*own), Kind.READS) is None
    assert taken(answered(guard_read(), *own)) == failed
    for value in (None, b"", VALUE[:-1], VALUE + b"0"):
        assert taken(answered(guard_read(value), *own)) is None
    for inner in (
        rpc_pb2.TxnResponse(succeeded=True, responses=own),
        rpc_pb2.TxnResponse(header=rpc_pb2.ResponseHeader(), succeeded=True, responses=own),
        rpc_pb2.TxnResponse(header=header, succeeded=True, responses=own),
    ):
        assert taken(answered(rpc_pb2.ResponseOp(response_txn=inner))) == failed
        inner.succeeded = False
        del inner.responses[:]
        assert taken(answered(rpc_pb2.ResponseOp(response_txn=inner))) is None


@given(HEADERS, st.binary(max_size=40))
def test_an_answer_that_tells_nothing_of_the_guard_is_garbled(header: rpc_pb2.ResponseHeader, data: bytes) -> None:
    put = rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse())
    nested = rpc_pb2.ResponseOp(response_txn=rpc_pb2.TxnResponse(succeeded=True))
    for responses in ([], [put], [put, put], [nested, put]):
        answer = rpc_pb2.TxnResponse(header=header, responses=responses)
        with pytest.raises(GarbledError):
            GUARD.cut(prefix(answer.SerializeToString()), Kind.TXN)
    with suppress(GarbledError):
        GUARD.cut(prefix(header.SerializeToString() + data), Kind.TXN)
    with suppress(GarbledError):
        GUARD.cut(data, Kind.TXN)
