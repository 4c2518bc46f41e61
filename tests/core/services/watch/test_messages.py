"""WatchResponses: read, and written for another watcher, byte for byte as etcd would write them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.identity import Identity
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.watch.create import Create
from esp.core.services.watch.messages import Response, Spec, canceled, created, header_field, joined, raised, refused
from esp.core.wire.message import prefix
from tests.core.services.watch.world import WatchResponse, events, header, put
from tests.examples import tries

INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-2, 300))
HEADERS = st.builds(
    rpc_pb2.ResponseHeader,
    cluster_id=st.integers(0, 2**64 - 1),
    member_id=st.integers(0, 2**64 - 1),
    revision=INT64,
    raft_term=st.integers(0, 2**64 - 1),
)
KVS = st.builds(kv_pb2.KeyValue, key=st.binary(max_size=200), value=st.binary(max_size=200), mod_revision=INT64)
EVENTS = st.builds(kv_pb2.Event, type=st.sampled_from([0, 1]), kv=KVS, prev_kv=st.one_of(st.none(), KVS))
RESPONSES = st.builds(
    WatchResponse,
    header=st.one_of(st.none(), HEADERS),
    watch_id=INT64,
    created=st.booleans(),
    canceled=st.booleans(),
    compact_revision=INT64,
    cancel_reason=st.text(max_size=20),
    fragment=st.booleans(),
    events=st.lists(EVENTS, max_size=3),
)


@given(RESPONSES, INT64)
def test_a_message_for_another_watcher_is_the_same_bytes_but_for_the_id(response: WatchResponse, other: int) -> None:
    parsed = Response.parse(response.SerializeToString())
    assert parsed.message == response
    assert parsed.encode(response.watch_id) == prefix(response.SerializeToString())
    expected = WatchResponse()
    expected.CopyFrom(response)
    expected.watch_id = other
    assert parsed.encode(other) == prefix(expected.SerializeToString())


@given(RESPONSES, INT64, st.data())
def test_fields_in_another_order_are_read_all_the_same(
    response: WatchResponse, other: int, data: st.DataObject
) -> None:
    fields = []
    for field, value in response.ListFields():
        for one in value if field.name == "events" else [value]:
            alone = WatchResponse()
            if field.name == "events":
                alone.events.append(one)
            elif field.name == "header":
                alone.header.CopyFrom(one)
            else:
                setattr(alone, field.name, one)
            fields.append(alone.SerializeToString())
    order = data.draw(st.permutations(fields))
    parsed = Response.parse(b"".join(order))
    parsed.message.watch_id = other
    assert WatchResponse.FromString(parsed.encode(other)[5:]) == parsed.message


@given(st.binary(max_size=60))
@settings(max_examples=tries(300))
def test_noise_is_refused_or_read_as_protobuf_reads_it(body: bytes) -> None:
    try:
        expected = WatchResponse.FromString(body)
    except DecodeError:
        with pytest.raises(DecodeError):
            Response.parse(body)
        return
    parsed = Response.parse(body)
    assert WatchResponse.FromString(parsed.encode(expected.watch_id)[5:]) == expected


def test_a_field_that_is_not_known_goes_along() -> None:
    body = events(1, put(b"a", 3)).SerializeToString() + b"\xfa\x01\x03new"
    assert Response.parse(body).encode(1) == prefix(body)
    assert Response.parse(body).encode(0).endswith(b"new")


def test_what_is_too_old_is_cut_off() -> None:
    response = Response.parse(events(1, put(b"a", 3), put(b"b", 3), put(b"a", 5), revision=9).SerializeToString())
    assert response.since(3) is response
    later = response.since(4)
    assert later is not None
    assert WatchResponse.FromString(later.encode(7)[5:]) == events(7, put(b"a", 5), revision=9)
    assert (later.first, later.last, later.revision) == (5, 5, 9)
    assert response.since(6) is None


def test_ids_and_revision_of_the_header_are_exchanged_and_once_for_all_at_a_position() -> None:
    response = Response.parse(events(1, put(b"a", 3)).SerializeToString())
    expected = events(4, put(b"a", 3))
    expected.header.cluster_id, expected.header.member_id = 11, 22
    for token in (1 << 52, 2 << 51, 1 << 52 | 4):
        expected.header.revision = token
        under = response.under(Identity(11, 22), token)
        assert under.encode(4) == prefix(expected.SerializeToString())
        assert response.under(Identity(11, 22), token) is under


def test_a_revision_is_raised_and_never_lowered() -> None:
    head = header_field(header(7))
    assert raised(head, 6) == raised(head, 7) == head
    assert WatchResponse.FromString(raised(head, 8)) == WatchResponse(header=header(8))


def test_replies_that_esp_makes_have_etcds_shapes() -> None:
    head = header_field(header(7))
    made = [
        created(head).encode(3),
        refused(head, "no").encode(-1),
        canceled(head).encode(3),
        canceled(b"", 9).encode(3),
    ]
    assert [WatchResponse.FromString(each[5:]) for each in made] == [
        WatchResponse(header=header(7), watch_id=3, created=True),
        WatchResponse(header=header(7), watch_id=-1, created=True, canceled=True, cancel_reason="no"),
        WatchResponse(header=header(7), watch_id=3, canceled=True),
        WatchResponse(watch_id=3, canceled=True, compact_revision=9),
    ]


def test_a_create_always_asks_for_progress_and_names_its_id() -> None:
    request = Spec(b"a", b"b", (0, 1), True, True).create_request(5, 9)
    assert rpc_pb2.WatchRequest.FromString(request[5:]).create_request == rpc_pb2.WatchCreateRequest(
        key=b"a",
        range_end=b"b",
        start_revision=9,
        progress_notify=True,
        filters=[0, 1],  # type: ignore[list-item]
        prev_kv=True,
        watch_id=5,
        fragment=True,
    )


def test_fragments_of_one_response_are_joined_under_the_last_header() -> None:
    parts = [
        events(3, put(b"a", 6), put(b"b", 7), fragment=True, revision=9),
        events(3, put(b"c", 7), fragment=True, revision=9),
        events(3, put(b"d", 8), revision=10),
    ]
    whole = joined([Response.parse(part.SerializeToString()) for part in parts])
    assert WatchResponse.FromString(whole.encode(4)[5:]) == events(
        4, put(b"a", 6), put(b"b", 7), put(b"c", 7), put(b"d", 8), revision=10
    )
    assert (whole.first, whole.last, len(whole.message.events), whole.fragment) == (6, 8, 4, False)


SPECS = st.builds(
    Spec,
    key=st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([1, 127, 128, 300, 20_000]).map(bytes)),
    range_end=st.one_of(st.binary(max_size=40), st.sampled_from([127, 128, 300]).map(bytes)),
    filters=st.sampled_from([(), (0,), (1,), (0, 1)]),
    prev_kv=st.booleans(),
    fragment=st.booleans(),
)


@given(SPECS, st.one_of(st.integers(1, 20_000), st.integers(1, 2**63 - 1)), st.one_of(st.just(0), INT64))
def test_a_create_is_written_as_protobuf_writes_it(spec: Spec, watch_id: int, start_revision: int) -> None:
    create = rpc_pb2.WatchCreateRequest(
        key=spec.key,
        range_end=spec.range_end,
        start_revision=start_revision,
        progress_notify=True,
        filters=spec.filters,  # type: ignore[arg-type]
        prev_kv=spec.prev_kv,
        watch_id=watch_id,
        fragment=spec.fragment,
    )
    written = prefix(rpc_pb2.WatchRequest(create_request=create).SerializeToString())
    assert spec.create_request(watch_id, start_revision) == written
    assert Spec.of(Create.of(create), create.key, create.range_end) == spec
