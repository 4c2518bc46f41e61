"""`peek` reads in a message with one event the same as protobuf does; any other message it leaves to protobuf."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.watch.messages import encoded
from esp.core.services.watch.peek import CREATED, granted, one_event, watch_id_of
from tests.core.services.watch.world import WatchResponse, events, put
from tests.examples import tries

NUMBERS = st.one_of(st.integers(1, 300), st.integers(1, 2**63 - 1))
SIZES = st.sampled_from([0, 1, 127, 128, 300, 16_384])
KVS = st.builds(
    kv_pb2.KeyValue,
    key=st.one_of(st.binary(min_size=1, max_size=40), SIZES.filter(bool).map(bytes)),
    create_revision=st.one_of(st.just(0), NUMBERS),
    mod_revision=NUMBERS,
    version=st.one_of(st.just(0), NUMBERS),
    value=st.one_of(st.binary(max_size=40), SIZES.map(bytes)),
    lease=st.one_of(st.just(0), st.integers(-(2**63), 2**63 - 1)),
)
EVENTS = st.builds(kv_pb2.Event, type=st.sampled_from([0, 1]), kv=KVS, prev_kv=st.one_of(st.none(), KVS))
HEADERS = st.builds(
    rpc_pb2.ResponseHeader,
    cluster_id=st.integers(0, 2**64 - 1),
    member_id=st.integers(0, 2**64 - 1),
    revision=NUMBERS,
    raft_term=NUMBERS,
)
RESPONSES = st.builds(
    lambda header, watch_id, event: WatchResponse(header=header, watch_id=watch_id, events=[event]),
    HEADERS,
    NUMBERS,
    EVENTS,
)


def check(body: bytes) -> bool:
    """Whether the message is seen; if so, that protobuf sees the same."""
    seen = one_event(body)
    if seen is None:
        return False
    watch_id, head, tail, revision = seen
    try:
        message = WatchResponse.FromString(body)
    except DecodeError:
        return True  # in what is passed over: it is the client's to find out
    assert (message.watch_id, [event.kv.mod_revision for event in message.events]) == (watch_id, [revision])
    assert {field.name for field, _ in message.ListFields()} == {"header", "watch_id", "events"}
    assert encoded(body[:head], watch_id, body[tail:])[5:] == body
    message.watch_id = 77
    assert WatchResponse.FromString(encoded(body[:head], 77, body[tail:])[5:]) == message
    return True


@given(RESPONSES)
def test_one_event_is_seen(response: WatchResponse) -> None:
    assert check(response.SerializeToString())


@given(RESPONSES, st.data())
@settings(max_examples=tries(400))
def test_bytes_that_were_changed_are_seen_as_protobuf_sees_them_or_not_at_all(
    response: WatchResponse, data: st.DataObject
) -> None:
    body = bytearray(response.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if not body:
            break
        at = data.draw(st.integers(0, min(len(body) - 1, 120)))
        how = data.draw(st.integers(0, 3))
        if how == 0:
            body[at] = data.draw(st.integers(0, 255))
        elif how == 1:
            body.insert(at, data.draw(st.integers(0, 255)))
        elif how == 2:
            del body[at]
        else:
            body = body[: at + 1]
    check(bytes(body))


@given(st.binary(max_size=60))
def test_noise_is_not_seen(body: bytes) -> None:
    check(body)


@given(RESPONSES)
def test_one_that_is_cut_off_is_not_seen(response: WatchResponse) -> None:
    body = response.SerializeToString()
    assert not any(check(body[:size]) for size in {*range(min(len(body), 150)), len(body) - 1})


ONE = events(1, put(b"a", 3))
KV = ONE.events[0].kv.SerializeToString()
FRONT = WatchResponse(header=ONE.header, watch_id=1).SerializeToString()


def bytes_field(tag: int, content: bytes) -> bytes:
    return bytes((tag, len(content))) + content


@pytest.mark.parametrize(
    "body",
    [
        b"",
        WatchResponse(header=ONE.header, watch_id=1).SerializeToString(),
        WatchResponse(header=ONE.header, watch_id=1, created=True).SerializeToString(),
        WatchResponse(header=ONE.header, watch_id=1, canceled=True, events=ONE.events).SerializeToString(),
        WatchResponse(header=ONE.header, watch_id=1, fragment=True, events=ONE.events).SerializeToString(),
        WatchResponse(header=ONE.header, events=ONE.events).SerializeToString(),
        WatchResponse(header=ONE.header, watch_id=-1, events=ONE.events).SerializeToString(),
        WatchResponse(watch_id=1, events=ONE.events).SerializeToString(),
        events(1, put(b"a", 3), put(b"b", 3)).SerializeToString(),
        events(1, put(b"a", 0), revision=7).SerializeToString(),
        events(1, put(b"", 3)).SerializeToString(),
        ONE.SerializeToString() + b"\xfa\x01\x03new",
        ONE.SerializeToString() + b"\x38\x01",  # fragment, behind the events
        FRONT + bytes_field(0x5A, bytes_field(0x12, KV + b"\x18\x09")),  # another revision, which counts
        FRONT + bytes_field(0x5A, bytes_field(0x12, KV) + bytes_field(0x12, b"\x18\x09")),
        FRONT + bytes_field(0x5A, bytes_field(0x12, b"\x18\x03" + bytes_field(0x0A, b"a"))),
        FRONT + bytes_field(0x5A, b"\x08\x80" + bytes_field(0x12, KV)),  # a type of two bytes
        FRONT + b"\x10\x05" + bytes_field(0x5A, bytes_field(0x12, KV)),
        b"\x10\x01" + bytes_field(0x5A, bytes_field(0x12, KV)) + FRONT[:-2],
    ],
)
def test_anything_else_is_left_to_protobuf(body: bytes) -> None:
    assert one_event(body) is None


def test_the_longest_numbers() -> None:
    most = 2**63 - 1
    response = events(most, put(b"a", most))
    assert check(response.SerializeToString())


@pytest.mark.parametrize("size", range(2, 10))
def test_a_watch_id_that_is_longer_than_need_be_is_left_to_protobuf(size: int) -> None:
    """Nothing that etcd writes; but what is not written as protobuf writes it is not passed on as it came."""
    body = ONE.SerializeToString()
    at = body[1] + 3
    assert body[at] == 1
    longer = body[:at] + b"\x81" + b"\x80" * (size - 2) + b"\0" + body[at + 1 :]
    assert WatchResponse.FromString(longer).watch_id == 1
    assert one_event(longer) is None


@given(RESPONSES, st.integers(0, 60))
def test_the_watch_id_of_a_message_that_has_come_in_part(response: WatchResponse, size: int) -> None:
    body = response.SerializeToString()
    assert watch_id_of(body) == response.watch_id
    assert watch_id_of(body[:size]) in (None, response.watch_id)


@pytest.mark.parametrize("body", [b"", b"\x0a", b"\x0a\xff\x01", b"\x12\0\x10\1", b"\x0a\0\x58\1", b"\x0a\0\x10\x80"])
def test_no_watch_id_where_there_is_none(body: bytes) -> None:
    assert watch_id_of(body) is None


@given(HEADERS, NUMBERS)
def test_a_reply_that_grants_a_create_is_seen(header: rpc_pb2.ResponseHeader, watch_id: int) -> None:
    reply = WatchResponse(header=header, watch_id=watch_id, created=True)
    body = reply.SerializeToString()
    seen = granted(body)
    if len(header.SerializeToString()) > 0x7F:
        assert seen is None
    else:
        assert seen is not None
        assert seen[0] == watch_id
        assert WatchResponse.FromString(body[: seen[1]]).header == header


@pytest.mark.parametrize(
    "message",
    [
        WatchResponse(created=True),
        WatchResponse(watch_id=3, created=True),  # without a header
        WatchResponse(header=rpc_pb2.ResponseHeader(revision=5), created=True),  # id 0, which esp never asks for
        WatchResponse(header=rpc_pb2.ResponseHeader(revision=5), watch_id=-1, created=True, canceled=True),
        WatchResponse(header=rpc_pb2.ResponseHeader(revision=5), watch_id=3, created=True, compact_revision=2),
        WatchResponse(header=rpc_pb2.ResponseHeader(revision=5), watch_id=3),
        events(3, put(b"k", 5, b"..." + CREATED)),
    ],
)
def test_other_messages_are_no_grants(message: rpc_pb2.WatchResponse) -> None:
    assert granted(message.SerializeToString()) is None


@settings(max_examples=tries(100))
@given(st.binary(max_size=40), st.binary(max_size=10))
def test_a_grant_means_the_same_to_protobuf(begin: bytes, middle: bytes) -> None:
    for body in (begin, b"\x0a" + bytes((len(begin),)) + begin + b"\x10" + middle + CREATED):
        seen = granted(body)
        if seen is not None:
            try:
                message = WatchResponse.FromString(body)
            except DecodeError:
                continue  # the header is nonsense, and found to be when it is read
            assert message.created
            assert (message.watch_id, message.canceled, message.cancel_reason) == (seen[0], False, "")
            assert not message.events
