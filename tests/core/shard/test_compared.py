"""Requests with a comparison of the guard, and answers cut out of a transaction's, compared with protobuf."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard.compared import SMALL, Cut, GarbledError, Guard, Kind, cut
from esp.core.wire.message import PREFIX_SIZE, prefix

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
        for kind in Kind:
            for size in range(SMALL + 50):
                guard.around(kind, prefix(bytes(size)))
    assert len(guard._fronts) == len(Kind) * (SMALL + 1)


@given(REQUESTS)
def test_a_request_becomes_a_transaction_with_the_comparison(request: Any) -> None:
    kind, _ = KINDS[type(request)]
    wanted = rpc_pb2.TxnRequest(compare=[COMPARE], success=[operation(request)])
    made = body(GUARD.around(kind, prefix(request.SerializeToString())))
    assert made == wanted.SerializeToString()


@given(HEADERS, ANSWERS)
def test_an_answer_is_cut_out_as_etcd_would_have_given_it(header: rpc_pb2.ResponseHeader, answer: Any) -> None:
    kind, _ = KINDS[type(answer)]
    whole = prefix(
        rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)]).SerializeToString()
    )
    found = cut(whole, kind)
    assert found is not None
    alone = type(answer)()
    alone.CopyFrom(answer)
    alone.header.CopyFrom(header)
    assert found.head + whole[found.rest :] == prefix(alone.SerializeToString())
    assert cut(whole[:256], kind) == found  # its beginning is enough
    for other in Kind:
        if other is not kind:
            with pytest.raises(GarbledError):
                cut(whole, other)


@given(HEADERS)
def test_a_refused_comparison_is_seen(header: rpc_pb2.ResponseHeader) -> None:
    answer = prefix(rpc_pb2.TxnResponse(header=header).SerializeToString())
    assert all(cut(answer, kind) is None for kind in Kind)


@given(HEADERS, ANSWERS, st.data())
def test_what_is_no_answer_of_etcds_is_garbled(
    header: rpc_pb2.ResponseHeader, answer: Any, data: st.DataObject
) -> None:
    kind, _ = KINDS[type(answer)]
    response = rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)])
    whole = prefix(response.SerializeToString())
    most = cut(whole, kind)
    assert isinstance(most, Cut)
    for size in range(most.rest):  # cut off before the rest begins
        with pytest.raises(GarbledError):
            cut(whole[:size], kind)
    place = data.draw(st.integers(0, most.rest - 1))
    other = whole[:place] + bytes((data.draw(st.integers(0, 255)),)) + whole[place + 1 :]
    with suppress(GarbledError):
        found = cut(other, kind)
        assert found is None or len(found.head) + len(other) - found.rest <= len(other) + 8
    for count in (0, 2):
        several = rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)] * count)
        with pytest.raises(GarbledError):
            cut(prefix(several.SerializeToString()), kind)
    later = rpc_pb2.TxnResponse(header=header, succeeded=True, responses=[inside(header, answer)])
    getattr(later.responses[0], KINDS[type(answer)][1]).header.revision = header.revision - 1 or 2
    with pytest.raises(GarbledError):
        cut(prefix(later.SerializeToString()), kind)


def txns(operations: Any) -> Any:
    compares = st.lists(st.builds(rpc_pb2.Compare, key=TEXTS, version=st.integers(0, 9)), max_size=3)
    some = st.lists(operations, max_size=3)
    return st.builds(rpc_pb2.TxnRequest, compare=compares, success=some, failure=some)


OPERATIONS = st.recursive(
    REQUESTS.map(operation), lambda inner: txns(inner).map(lambda one: rpc_pb2.RequestOp(request_txn=one)), max_leaves=6
)


@given(txns(OPERATIONS))
def test_a_clients_transaction_gets_one_comparison_more(request: rpc_pb2.TxnRequest) -> None:
    made, nested = GUARD.beside(prefix(request.SerializeToString()))
    found = rpc_pb2.TxnRequest.FromString(body(made))
    assert list(found.compare) == [*request.compare, COMPARE]
    assert list(found.success) == list(request.success)
    assert nested == any(
        one.WhichOneof("request") != "request_range" or one.request_range.revision for one in request.failure
    )
    if nested:
        inner = rpc_pb2.TxnRequest(compare=[COMPARE], success=request.failure)
        assert list(found.failure) == [rpc_pb2.RequestOp(request_txn=inner)]
    else:
        assert list(found.failure) == [READ, *request.failure]


def test_a_read_that_is_followed_by_a_write_in_one_operation_is_a_write() -> None:
    """The last field of an operation counts."""
    read, write = rpc_pb2.RangeRequest(key=b"a"), rpc_pb2.DeleteRangeRequest(key=b"a")
    both = operation(read).SerializeToString() + operation(write).SerializeToString()
    message = prefix(bytes((3 << 3 | 2, len(both))) + both)
    made, nested = GUARD.beside(message)
    assert nested
    assert rpc_pb2.TxnRequest.FromString(body(made)).failure[0].request_txn.success[0].HasField("request_delete_range")


@pytest.mark.parametrize("data", [b"\x1a", b"\x1a\x05\x0a", b"\x1a\xff\xff\xff\xff\xff\xff", b"\xff", b"\x1a\x02\x0a"])
def test_what_is_no_transaction_is_refused(data: bytes) -> None:
    with pytest.raises(GarbledError):
        GUARD.beside(prefix(data))


@given(HEADERS, st.lists(ANSWERS, max_size=3))
def test_the_answer_to_a_clients_transaction_is_its_own(header: rpc_pb2.ResponseHeader, answers: list[Any]) -> None:
    own = [inside(header, answer) for answer in answers]
    succeeded = prefix(rpc_pb2.TxnResponse(header=header, succeeded=True, responses=own).SerializeToString())
    failed = rpc_pb2.TxnResponse(header=header, responses=own).SerializeToString()

    def taken(nested: bool, *responses: rpc_pb2.ResponseOp) -> bytes | None:
        answer = rpc_pb2.TxnResponse(header=header, responses=responses)
        return GUARD.taken(prefix(answer.SerializeToString()), nested)

    assert GUARD.taken(succeeded, False) == GUARD.taken(succeeded, True) == succeeded
    assert taken(False, guard_read(), *own) == prefix(failed)
    for value in (None, b"", VALUE[:-1], VALUE + b"0"):
        assert taken(False, guard_read(value), *own) is None
    inner = rpc_pb2.TxnResponse(succeeded=True, responses=own)
    assert taken(True, rpc_pb2.ResponseOp(response_txn=inner)) == prefix(failed)
    assert taken(True, rpc_pb2.ResponseOp(response_txn=rpc_pb2.TxnResponse())) is None


@given(HEADERS, st.booleans(), st.binary(max_size=40))
def test_an_answer_that_tells_nothing_of_the_guard_is_garbled(
    header: rpc_pb2.ResponseHeader, nested: bool, data: bytes
) -> None:
    put = rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse())
    for responses in ([], [put], [put, put]):
        answer = rpc_pb2.TxnResponse(header=header, responses=responses)
        with pytest.raises(GarbledError):
            GUARD.taken(prefix(answer.SerializeToString()), nested)
    with suppress(GarbledError, DecodeError):
        GUARD.taken(prefix(header.SerializeToString() + data), nested)
    with suppress(GarbledError):
        GUARD.taken(data, nested)
