"""`create_in` reads in a request with a create the same as protobuf does; any other message it leaves to protobuf."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from esp.core.pb import rpc_pb2
from esp.core.services.watch.create import Create, create_in

CREATES = st.builds(
    rpc_pb2.WatchCreateRequest,
    key=st.one_of(st.binary(max_size=20), st.sampled_from([0, 127, 128, 16_384]).map(bytes)),
    range_end=st.one_of(st.just(b""), st.binary(max_size=20), st.sampled_from([127, 128]).map(bytes)),
    start_revision=st.one_of(st.just(0), st.integers(-(2**63), 2**63 - 1)),
    progress_notify=st.booleans(),
    filters=st.one_of(st.just([]), st.lists(st.sampled_from([0, 1]), max_size=3)),
    prev_kv=st.booleans(),
    watch_id=st.one_of(st.just(0), st.integers(-(2**63), 2**63 - 1)),
    fragment=st.booleans(),
)


FIELDS = [field.name for field in rpc_pb2.WatchCreateRequest.DESCRIPTOR.fields]


def values(create: Create) -> dict[str, object]:
    return {name: getattr(create, name) for name in FIELDS}


def read(body: bytes) -> dict[str, object] | None:
    """What is seen in the message, after protobuf has seen the same; None if it has to be parsed."""
    seen = create_in(body)
    if seen is None:
        return None
    request = rpc_pb2.WatchRequest.FromString(body)
    assert request.WhichOneof("request_union") == "create_request"
    assert values(seen) == values(Create.of(request.create_request))
    return values(seen)


@given(CREATES)
def test_creates_as_protobuf_writes_them(create: rpc_pb2.WatchCreateRequest) -> None:
    seen = read(rpc_pb2.WatchRequest(create_request=create).SerializeToString())
    assert seen is not None or create.filters or create.watch_id < 0 or create.start_revision < 0


@given(CREATES, st.data())
def test_creates_with_bytes_that_are_others(create: rpc_pb2.WatchCreateRequest, data: st.DataObject) -> None:
    body = bytearray(rpc_pb2.WatchRequest(create_request=create).SerializeToString())
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(1, len(body))) :]
    try:
        read(bytes(body))
    except DecodeError:
        pytest.fail(f"{bytes(body)!r} is no WatchRequest")


@given(st.binary(max_size=12))
def test_any_bytes(tail: bytes) -> None:
    for body in (tail, b"\x0a" + tail, bytes((0x0A, len(tail))) + tail):
        try:
            read(body)
        except DecodeError:
            pytest.fail(f"{body!r} is no WatchRequest")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=1)).SerializeToString(),
        rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()).SerializeToString(),
        b"\x0a\x03\x0a\x01a" * 2,  # merged by protobuf
        b"\x0a\x03\x0a\x01a\x12\x00",  # the last of a oneof counts
        b"\x0a\x06\x0a\x01a\x0a\x01b",
        b"\x0a\x06\x12\x01b\x0a\x01a",
        b"\x0a\x05\x0a\x01a\x48\x01",  # a field of a later etcd
        b"\x0a\x04\x0a\x81\x00a",
    ],
)
def test_unusual_messages_are_parsed(body: bytes) -> None:
    assert read(body) is None


def test_filters_are_those_that_etcd_knows_in_order() -> None:
    request = rpc_pb2.WatchCreateRequest.FromString(bytes((0x2A, 4, 1, 9, 0, 1)))
    assert Create.of(request).filters == (0, 1)
