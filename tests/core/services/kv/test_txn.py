"""Transactions: those that etcd refuses, with a real etcd as the judge, and the keys that they touch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.kv import txn
from esp.core.wire.status import OK, Status
from tests.examples import tries
from tests.harness import Etcds, connect
from tests.stubs import rpc_pb2_grpc

Op = rpc_pb2.RequestOp
Range = rpc_pb2.RangeRequest
Txn = rpc_pb2.TxnRequest


def put(key: bytes, **fields: object) -> Op:
    return Op(request_put=rpc_pb2.PutRequest(key=key, **fields))


def delete(key: bytes, range_end: bytes = b"") -> Op:
    return Op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end))


def get(key: bytes, range_end: bytes = b"", **fields: object) -> Op:
    return Op(request_range=Range(key=key, range_end=range_end, **fields))


def nested(success: list[Op] = [], failure: list[Op] = []) -> Op:  # noqa: B006
    return Op(request_txn=Txn(success=success, failure=failure))


def steps_taken(steps: Generator[None, None, Any]) -> tuple[Any, int]:
    """What a generator returns once all its steps are taken, and how many those were."""
    count = 1
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


def validated(request: Txn, max_ops: int = txn.MAX_PARSED) -> Status | None:
    return steps_taken(txn.validate(request, max_ops))[0]


KEY_NAMES = [b"a", b"b", b"b\0", b"c"]
KEYS = st.sampled_from(KEY_NAMES)
ANY_KEY = st.sampled_from([b"", *KEY_NAMES * 4])
RANGE_ENDS = st.sampled_from([b"", b"", b"\0", b"a", b"b", b"c", b"d"])
WRITES = st.one_of(st.builds(put, KEYS), st.builds(delete, KEYS, RANGE_ENDS))
FLAWED = st.one_of(
    st.builds(put, ANY_KEY, value=st.sampled_from([b"", b"v"]), ignore_value=st.booleans()),
    st.builds(put, ANY_KEY, lease=st.sampled_from([0, 0, 77]), ignore_lease=st.booleans(), value=st.just(b"")),
    st.builds(delete, ANY_KEY, RANGE_ENDS),
    st.builds(get, ANY_KEY, RANGE_ENDS),
    st.just(Op()),
)
COMPARES = st.lists(
    st.builds(rpc_pb2.Compare, key=ANY_KEY, range_end=RANGE_ENDS, result=st.integers(0, 3), target=st.integers(0, 4)),
    max_size=2,
)
FEW_OPS = 4


@pytest.fixture(scope="module")
def strict_judge(module_etcds: Etcds) -> Iterator[rpc_pb2_grpc.KVStub]:
    """KV of an etcd that allows FEW_OPS operations in a Txn, so that nesting soon reaches the limit."""
    with connect(module_etcds(f"--max-txn-ops={FEW_OPS}", name="few-ops")) as channel:
        yield rpc_pb2_grpc.KVStub(channel)


def transactions(operations: st.SearchStrategy[Op], compares: st.SearchStrategy) -> st.SearchStrategy[Txn]:
    def of(operation: st.SearchStrategy[Op]) -> st.SearchStrategy[Txn]:
        branch = st.lists(operation, max_size=3)
        return st.builds(Txn, compare=compares, success=branch, failure=branch)

    return of(st.recursive(operations, lambda inner: of(inner).map(lambda txn: Op(request_txn=txn)), max_leaves=12))


def would_crash_etcd(request: Txn) -> bool:
    """Whether it may delete a key and then change its value or lease alone: that ends every etcd that applies it."""
    ops = list(every_operation(request))
    deletes = any(op.HasField("request_delete_range") for op in ops)
    return deletes and any(op.request_put.ignore_value or op.request_put.ignore_lease for op in ops)


def every_operation(request: Txn) -> Iterator[Op]:
    for op in (*request.success, *request.failure):
        yield op
        yield from every_operation(op.request_txn)


def answer(kv: rpc_pb2_grpc.KVStub, request: Txn) -> Status:
    try:
        kv.Txn(request)
    except grpc.RpcError as error:
        return Status(error.code().value[0], error.details())
    return OK


def check_judged(kv: rpc_pb2_grpc.KVStub, request: Txn, max_ops: int = txn.MAX_OPS) -> None:
    # With all keys in place and every lease refused by the shard, etcd has no later reason of the same words.
    kv.Txn(Txn(success=[put(key, value=b"v") for key in KEY_NAMES]))
    judged = answer(kv, request)
    if judged == errors.LEASE_NOT_FOUND:
        judged = OK
    assert (validated(request, max_ops) or OK) == judged


def test_etcd_refuses_the_same_writes_that_meet(judge: rpc_pb2_grpc.KVStub) -> None:
    @settings(max_examples=tries(250), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(transactions(WRITES, st.just([])))
    def check(request: Txn) -> None:
        check_judged(judge, request)

    check()


def test_etcd_refuses_the_same_flaws_with_the_same_words(judge: rpc_pb2_grpc.KVStub) -> None:
    @settings(max_examples=tries(250), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(transactions(st.one_of(WRITES, FLAWED), COMPARES).filter(lambda request: not would_crash_etcd(request)))
    def check(request: Txn) -> None:
        check_judged(judge, request)

    check()


def test_etcd_refuses_the_same_numbers_of_operations(strict_judge: rpc_pb2_grpc.KVStub) -> None:
    @settings(max_examples=tries(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(transactions(st.builds(get, ANY_KEY), COMPARES))
    def check(request: Txn) -> None:
        check_judged(strict_judge, request, FEW_OPS)

    check()


@pytest.mark.parametrize(
    "asked",
    [
        get(b"a", sort_order=3),
        get(b"a", sort_target=5),
        get(b"a", sort_target=-1, sort_order=Range.ASCEND),
        get(b"", sort_target=5),
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["success", "failure", "nested"])
def test_unknown_sort_options_are_refused_as_etcd_3_6_does(
    newest_judge: rpc_pb2_grpc.KVStub, asked: Op, place: str
) -> None:
    # Not asked of a 3.5: an unknown target would crash it.
    request = Txn(failure=[nested([asked])]) if place == "nested" else Txn(**{place: [asked]})
    check_judged(newest_judge, request)
    assert validated(request) in (errors.INVALID_SORT_OPTION, errors.KEY_NOT_PROVIDED)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Txn(), None),
        (Txn(success=[put(b"a"), put(b"b")], failure=[put(b"a")]), None),
        (Txn(success=[put(b"a"), put(b"a")]), errors.DUPLICATE_KEY),
        (Txn(failure=[delete(b"a"), put(b"a")]), errors.DUPLICATE_KEY),
        (Txn(success=[put(b"b"), delete(b"a", b"c")]), errors.DUPLICATE_KEY),
        (Txn(success=[delete(b"a", b"c"), delete(b"b", b"d"), put(b"d")]), None),
        (Txn(success=[delete(b"a", b"b"), delete(b"b", b"d"), put(b"c")]), errors.DUPLICATE_KEY),
        (Txn(success=[delete(b"a", b"b"), delete(b"c", b"d"), put(b"b\0")]), None),
        (Txn(success=[delete(b"a", b"c"), delete(b"a", b"b"), put(b"b")]), errors.DUPLICATE_KEY),
        (Txn(success=[delete(b"a", b"a"), delete(b"b", b"c"), delete(b"c", b"a"), put(b"b")]), errors.DUPLICATE_KEY),
        (Txn(success=[nested([put(b"a")], [put(b"a")])]), None),
        (Txn(success=[nested([put(b"a")], [delete(b"a")])]), None),
        (Txn(success=[nested([put(b"a")]), put(b"a")]), errors.DUPLICATE_KEY),
        (Txn(success=[nested([put(b"a")]), nested([], [put(b"a")])]), errors.DUPLICATE_KEY),
        (Txn(success=[nested([nested([delete(b"a")])]), put(b"a")]), errors.DUPLICATE_KEY),
        # What etcd lets through, against its own intention, must pass here as well.
        (Txn(success=[nested([put(b"a")]), nested([delete(b"a")])]), None),
        (Txn(success=[nested([delete(b"a")]), nested([put(b"a")])]), errors.DUPLICATE_KEY),
        (Txn(success=[put(b"b"), delete(b"a", b"\0")]), None),
        (Txn(success=[put(b"b"), delete(b"c", b"a")]), None),
        (Txn(success=[put(b"")] + [put(b"a")] * 2), errors.KEY_NOT_PROVIDED),
        (Txn(success=[put(b"a")] * 2 + [Op()]), errors.KEY_NOT_FOUND),
        (Txn(compare=[rpc_pb2.Compare()], success=[Op()]), errors.KEY_NOT_PROVIDED),
        (Txn(success=[put(b"a", value=b"v", ignore_value=True)]), errors.VALUE_PROVIDED),
        (Txn(success=[put(b"a", lease=1, ignore_lease=True)]), errors.LEASE_PROVIDED),
        (Txn(success=[get(b"a")] * 128, failure=[get(b"a")] * 128), None),
        (Txn(success=[get(b"a")] * 129), errors.TOO_MANY_OPS),
        (Txn(compare=[rpc_pb2.Compare(key=b"a")] * 129), errors.TOO_MANY_OPS),
        (Txn(success=[nested([get(b"a")] * 127)]), None),
        (Txn(success=[nested([get(b"a")] * 128)]), errors.TOO_MANY_OPS),
        (Txn(success=[nested([get(b"a")] * 27)], failure=[get(b"a")] * 101), None),
        (Txn(success=[nested([get(b"a")] * 28)], failure=[get(b"a")] * 101), errors.TOO_MANY_OPS),
    ],
)
def test_the_errors_by_example(judge: rpc_pb2_grpc.KVStub, request_: Txn, status: Status | None) -> None:
    assert validated(request_, txn.MAX_OPS) == status
    check_judged(judge, request_)


def deep(levels: int) -> Txn:
    request = Txn(success=[put(b"a")])
    for level in range(levels - 1):
        request = Txn(success=[Op(request_txn=request)], failure=[put(b"z%d" % level)])
    return request


def test_the_deepest_nesting_that_the_wire_carries_is_walked() -> None:
    request = Txn.FromString(deep(49).SerializeToString())
    assert validated(request) is None
    with pytest.raises(Exception, match="pars"):
        Txn.FromString(deep(51).SerializeToString())


def bushy(levels: int) -> list[Op]:
    """Four to the power of `levels` puts, each of another key."""
    number = iter(range(4**levels))

    def branch(level: int) -> list[Op]:
        if not level:
            return [put(b"%d" % next(number))]
        return [nested(branch(level - 1), branch(level - 1)) for _ in range(2)]

    return branch(levels)


def test_writes_that_meet_are_found_among_many() -> None:
    below = bushy(5)
    assert validated(Txn(success=below)) is None
    assert validated(Txn(success=[*below, put(b"x"), put(b"x")])) == errors.DUPLICATE_KEY


def chained(levels: int, operations: list[Op]) -> Txn:
    """Operations at the bottom of as many levels, with a delete of another key in each."""
    request = Txn(success=operations)
    for level in range(levels):
        request = Txn(success=[delete(b"x%d" % level), Op(request_txn=request)])
    return request


LARGE: dict[str, Callable[[], Txn]] = {
    "in a row": lambda: Txn(success=[put(b"%d" % number) for number in range(9_000)]),
    "compares": lambda: Txn(compare=[rpc_pb2.Compare(key=b"%d" % number) for number in range(9_000)]),
    "deep": lambda: chained(40, [put(b"%d" % number) for number in range(9_000)]),
    "bushy": lambda: Txn(success=bushy(6)),
    "deletes": lambda: chained(40, [delete(b"%05d" % number, b"%05d\0" % number) for number in range(0, 18_000, 2)]),
    "an unknown sort": lambda: Txn(success=[get(b"%d" % n) for n in range(9_000)] + [get(b"z", sort_order=9)]),
}


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE.keys())
def test_no_more_than_a_few_are_looked_at_in_one_step(
    large: Callable[[], Txn], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    is_over = txn.Pace.is_over

    def counted(pace: txn.Pace) -> bool:
        nonlocal looked
        looked += 1
        return is_over(pace)

    monkeypatch.setattr(txn.Pace, "is_over", counted)
    request = large()
    steps, most, taken = txn.validate(request), 0, 0
    while True:
        before = looked
        taken += 1
        try:
            next(steps)
        except StopIteration:
            break
        finally:
            most = max(most, looked - before)
    assert most <= 2 * txn.LOOKED_AT_ONCE
    assert taken >= looked // txn.LOOKED_AT_ONCE
    assert looked >= 4_000, "each is looked at"


def test_the_leases_are_those_of_all_puts_of_both_branches_and_nested_ones() -> None:
    def put(lease: int) -> rpc_pb2.RequestOp:
        return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"a", lease=lease))

    nested = rpc_pb2.TxnRequest(success=[put(3)], failure=[put(4)])
    request = rpc_pb2.TxnRequest(
        success=[put(1), put(0), rpc_pb2.RequestOp(request_txn=nested)],
        failure=[put(2), rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"a"))],
    )
    assert sorted(put.lease for put in txn.puts(request) if put and put.lease) == [1, 2, 3, 4]
    assert len(list(txn.puts(request))) == 7, "with those that are none"
