"""The table of errors, and esp's own refusal."""

from __future__ import annotations

import grpc
import pytest

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.wire.status import Code, Status
from tests.stubs import rpc_pb2_grpc

Range = rpc_pb2.RangeRequest
Put = rpc_pb2.PutRequest
Compact = rpc_pb2.CompactionRequest


@pytest.mark.parametrize(
    ("method", "request_", "status"),
    [
        ("Range", Range(), errors.KEY_NOT_PROVIDED),
        ("Range", Range(key=b"a", revision=2**62), errors.FUTURE_REV),
        ("Range", Range(key=b"a", revision=1), errors.COMPACTED),
        ("Compact", Compact(revision=1), errors.COMPACTED),
        ("Compact", Compact(revision=2**62), errors.FUTURE_REV),
        ("Put", Put(), errors.KEY_NOT_PROVIDED),
        ("Put", Put(key=b"absent", ignore_value=True), errors.KEY_NOT_FOUND),
        ("Put", Put(key=b"a", value=b"v", ignore_value=True), errors.VALUE_PROVIDED),
        ("Put", Put(key=b"a", lease=1, ignore_lease=True), errors.LEASE_PROVIDED),
        ("Put", Put(key=b"a", lease=2**40), errors.LEASE_NOT_FOUND),
        ("Put", Put(key=b"a", value=bytes(1_600_000)), errors.REQUEST_TOO_LARGE),
        ("DeleteRange", rpc_pb2.DeleteRangeRequest(), errors.KEY_NOT_PROVIDED),
    ],
)
def test_the_table_has_the_codes_and_texts_of_a_real_etcd(
    judge: rpc_pb2_grpc.KVStub, method: str, request_: object, status: Status
) -> None:
    if status == errors.COMPACTED:
        revision = judge.Put(Put(key=b"a")).header.revision
        judge.Compact(Compact(revision=revision))
    with pytest.raises(grpc.RpcError) as caught:
        getattr(judge, method)(request_)
    assert (caught.value.code().value[0], caught.value.details()) == (status.code, status.message)


def test_an_unknown_sort_option_has_the_text_of_the_newest_etcd(newest_judge: rpc_pb2_grpc.KVStub) -> None:
    # 3.5 has no such error: it takes the option, or crashes.
    with pytest.raises(grpc.RpcError) as caught:
        newest_judge.Range(Range(key=b"a", sort_order=9))
    status = errors.INVALID_SORT_OPTION
    assert (caught.value.code().value[0], caught.value.details()) == (status.code, status.message)


def test_a_refusal_names_the_shards_the_boundary_and_the_cure() -> None:
    assert errors.spans("a Txn", ["main", "events"], b"/registry/\xff", "keep to one shard") == Status(
        Code.FAILED_PRECONDITION,
        'esp: a Txn spans the shards main, events (boundary "/registry/\\xff"); keep to one shard',
    )
    assert errors.spans("a Txn", ["main", "events"], b"m").message.endswith('(boundary "m")')


def test_a_refusal_names_a_shard_once_and_not_too_many() -> None:
    assert "shards a, b (" in errors.spans("a Txn", ["a", "b", "a"], b"m").message
    many = errors.spans("a Txn", [f"s{number}" for number in range(300)], b"m").message
    assert "s0, s1, s2, s3, s4, s5, s6, s7 and 292 more (" in many
