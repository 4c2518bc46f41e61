"""`peek`, compared with protobuf; and the messages that it leaves to protobuf."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esp.core.pb import rpc_pb2
from esp.core.services.kv.peek import asked_range, put_key, range_key
from esp.core.services.kv.validate import validate_range
from tests.examples import tries

PREFIX = bytes(5)
INT64 = st.integers(-(2**63), 2**63 - 1)
# 127 and 128 are where a length takes a second byte; 16384 where it takes a third.
DATA = st.one_of(st.binary(max_size=8), st.sampled_from([126, 127, 128, 129, 16383, 16384]).map(lambda n: b"\x0a" * n))

PUTS = st.builds(
    rpc_pb2.PutRequest,
    key=DATA,
    value=DATA,
    lease=INT64,
    prev_kv=st.booleans(),
    ignore_value=st.booleans(),
    ignore_lease=st.booleans(),
)
RANGES = st.builds(
    rpc_pb2.RangeRequest,
    key=DATA,
    range_end=DATA,
    limit=st.one_of(st.just(0), INT64),
    revision=INT64,
    sort_order=st.integers(0, 4),
    sort_target=st.integers(0, 6),
    serializable=st.booleans(),
    keys_only=st.booleans(),
    count_only=st.booleans(),
    min_mod_revision=INT64,
    max_mod_revision=INT64,
    min_create_revision=INT64,
    max_create_revision=INT64,
)
DELETES = st.builds(rpc_pb2.DeleteRangeRequest, key=DATA, range_end=DATA, prev_kv=st.booleans())


@st.composite
def damaged(draw: st.DrawFn, messages: st.SearchStrategy[Message]) -> bytes:
    """Messages with bytes changed, cut out or put in, glued together, or noise from the start."""
    body = draw(messages).SerializeToString()
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(body)))
        stop = draw(st.integers(start, min(len(body), start + 3)))
        body = body[:start] + draw(st.binary(max_size=3)) + body[stop:]
    return body + draw(st.sampled_from([b"", b"\0", b"\x0a\x01a", b"\x12\0", b"\x78\x01", b"\x80\x01\x01"]))


def put_key_at(message: bytes, offset: int) -> bytes | None:
    """As the other functions are called."""
    assert offset == len(PREFIX)
    return put_key(message)


TINY = st.lists(st.sampled_from([0, 1, 2, 3, 0x0A, 0x12, 0x18, 0x28, 0x7F, 0x80, 0xFF]), max_size=16).map(bytes)
MESSAGES = [
    (rpc_pb2.PutRequest, PUTS),
    (rpc_pb2.RangeRequest, RANGES),
    (rpc_pb2.DeleteRangeRequest, DELETES),
]


def check_agrees(kind: type[Message], body: bytes) -> None:
    """Whatever is found in the bytes, protobuf finds too; nothing raises."""
    message = PREFIX + body
    if kind is rpc_pb2.PutRequest:
        key = put_key(message)
        if key is not None:
            assert key
            assert rpc_pb2.PutRequest.FromString(body).key == key
        return
    key, found = range_key(message, 5), asked_range(message, 5)
    assert key == (found[0] if found is not None and found[1] is None else None)
    if found is None:
        return
    parsed = kind.FromString(body)
    assert found == (parsed.key, parsed.range_end or None)
    if kind is rpc_pb2.RangeRequest:
        assert validate_range(parsed) is None


@pytest.mark.parametrize(("kind", "messages"), MESSAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_found_in_any_bytes_is_what_protobuf_finds(kind: type[Message], messages: st.SearchStrategy) -> None:
    @settings(max_examples=tries(400), deadline=None)
    @given(st.one_of(damaged(messages), TINY, st.binary(max_size=24)))
    @example(b"")
    @example(b"\x0a")
    @example(b"\x0a\x01")
    @example(b"\x0a\x01a\x12")
    @example(b"\x0a\x01a\x12\x80")
    @example(b"\x0a\x01a\x18" + b"\xff" * 11)
    def check(body: bytes) -> None:
        check_agrees(kind, body)

    check()


@settings(max_examples=tries(150), deadline=None)
@given(put=PUTS, request=RANGES, delete=DELETES)
def test_what_protobuf_writes_is_always_recognised(
    put: rpc_pb2.PutRequest, request: rpc_pb2.RangeRequest, delete: rpc_pb2.DeleteRangeRequest
) -> None:
    assert put_key(PREFIX + put.SerializeToString()) == (put.key or None)
    revisions = [request.revision, request.min_mod_revision, request.max_mod_revision]
    revisions += [request.min_create_revision, request.max_create_revision]
    plain = validate_range(request) is None and not any(number >> 52 in range(1, 16) for number in revisions)
    for asked, valid in ((request, plain), (delete, bool(delete.key))):
        message = PREFIX + asked.SerializeToString()
        assert range_key(message, 5) == (asked.key if valid and not asked.range_end else None)
        assert asked_range(message, 5) == ((asked.key, asked.range_end or None) if valid else None)


@pytest.mark.parametrize(
    "field", ["revision", "min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"]
)
def test_what_may_be_a_token_is_left_to_the_slow_path(field: str) -> None:
    for number, taken in (
        ((1 << 52) - 1, True),
        (1 << 52, False),
        ((1 << 53) - 1, False),
        (1 << 57, True),
        (1 << 62, True),
        ((1 << 63) - 1, True),
        (-1, True),
    ):
        request = rpc_pb2.RangeRequest(key=b"a", **{field: number})
        assert (range_key(PREFIX + request.SerializeToString(), 5) == b"a") == taken, number
    assert range_key(PREFIX + rpc_pb2.RangeRequest(key=b"a", limit=1 << 52).SerializeToString(), 5) == b"a"
    assert put_key(PREFIX + rpc_pb2.PutRequest(key=b"a", lease=1 << 52).SerializeToString()) == b"a"


@settings(max_examples=tries(100), deadline=None)
@given(prefix=st.binary(min_size=5, max_size=5), put=PUTS)
def test_bytes_before_the_offset_are_not_looked_at(prefix: bytes, put: rpc_pb2.PutRequest) -> None:
    assert put_key(prefix + put.SerializeToString()) == (put.key or None)


@pytest.mark.parametrize(
    ("look", "body"),
    [
        pytest.param(put_key_at, b"", id="nothing"),
        pytest.param(put_key_at, b"\x0a\x00\x12\x01v", id="an empty key"),
        pytest.param(put_key_at, b"\x12\x01v\x0a\x01a", id="fields out of order"),
        pytest.param(put_key_at, b"\x0a\x01a\x0a\x01b", id="the key twice"),
        pytest.param(put_key_at, b"\x0a\x01a\x12\x01v\x12\x01w", id="the value twice"),
        pytest.param(put_key_at, b"\x0a\x01a\x12\x01v\x20\x01\x20\x00", id="a number twice"),
        pytest.param(put_key_at, b"\x0a\x81\x00a", id="a length longer than need be"),
        pytest.param(put_key_at, b"\x0a\x01a\x12\x81\x00v", id="a value's length longer than need be"),
        pytest.param(put_key_at, b"\x0a\x01a\x12\x81\x80\x00v", id="a value's length much longer than need be"),
        pytest.param(put_key_at, b"\x0a\x01a\x18\x81\x00", id="a lease longer than need be"),
        pytest.param(put_key_at, b"\x0a\x01a\x18" + b"\xff" * 9 + b"\x02", id="a lease above 64 bits"),
        pytest.param(put_key_at, b"\x0a\x01a\x18" + b"\xff" * 10 + b"\x01", id="a lease of eleven bytes"),
        pytest.param(put_key_at, b"\x0a\x01a\x20\x02", id="a bool that is 2"),
        pytest.param(put_key_at, b"\x0a\x01a\x38\x01", id="a field Put does not have"),
        pytest.param(put_key_at, b"\x0a\x01a\x13\x14", id="a group"),
        pytest.param(put_key_at, b"\x0a\x01a\x1d\x01\x00\x00\x00", id="a number of fixed width"),
        pytest.param(put_key_at, b"\x0a\x01a\x08\x01", id="the key as a number"),
        pytest.param(put_key_at, b"\x0a\x01a\x12\x02v", id="a value cut off"),
        pytest.param(put_key_at, b"\x0a\x01a\x12\x01v\x00", id="a byte left over"),
        pytest.param(range_key, b"\x0a\x01a\x12\x00", id="an empty range_end"),
        pytest.param(range_key, b"\x0a\x01a\x12\x01b", id="a range_end"),
        pytest.param(range_key, b"\x0a\x01a\x28\x03", id="an unknown sort order"),
        pytest.param(range_key, b"\x0a\x01a\x30\x05", id="an unknown sort target"),
        pytest.param(range_key, b"\x0a\x01a\x30\x80\x80\x80\x80\x10", id="a sort target far off"),
        pytest.param(range_key, b"\x0a\x01a\x70\x01", id="a field Range does not have"),
        pytest.param(asked_range, b"\x0a\x01a\x12\x00", id="a range_end of no bytes"),
        pytest.param(asked_range, b"\x12\x01b", id="no key"),
    ],
)
def test_the_unusual_is_left_to_protobuf(look: Callable[[bytes, int], object], body: bytes) -> None:
    assert look(PREFIX + body, 5) is None


def test_an_endless_number_is_not_followed() -> None:
    # 2 MiB of continuation bytes: what matters is that this returns, and that no number of 2 MiB is built.
    endless = b"\xff" * (2 << 20)
    for start in (b"\x0a", b"\x0a\x01a\x12", b"\x0a\x01a\x18"):
        for look in (put_key_at, range_key, asked_range):
            assert look(PREFIX + start + endless, 5) is None
    with pytest.raises(DecodeError):
        rpc_pb2.PutRequest.FromString(b"\x0a" + endless)
