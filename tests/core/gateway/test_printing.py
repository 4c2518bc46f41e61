"""Messages printed as JSON, whole and in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from esp.core.gateway import printing
from esp.core.gateway.printing import PIECE, SMALL, Garbled, Printer, for_html, string, text_of
from esp.core.gateway.shapes import shape_of
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.wire.message import prefix

HEADER = rpc_pb2.ResponseHeader(cluster_id=2**64 - 1, member_id=7, revision=-1, raft_term=3)


def printed(message: Message, *, piece: int = 16384) -> str:
    """The message, printed as its bytes come."""
    return "".join(pieces(message.DESCRIPTOR, prefix(message.SerializeToString()), piece))


def pieces(descriptor: Any, data: bytes, piece: int) -> list[str]:
    texts: list[str] = []
    printer = Printer(shape_of(descriptor), texts.append, lambda _: None, lambda: None)
    for start in range(0, len(data), piece):
        printer.feed(data[start : start + piece])
        for _ in printer.steps():
            pass
    assert not printer.held
    assert not printer.is_within
    return texts


def as_protobuf_does(message: Message) -> Any:
    return json.loads(json_format.MessageToJson(message, preserving_proto_field_name=True))


def answer(rows: int, value: bytes = b"v") -> rpc_pb2.RangeResponse:
    kvs = [kv_pb2.KeyValue(key=b"k%d" % row, value=value, mod_revision=row, lease=-row) for row in range(rows)]
    return rpc_pb2.RangeResponse(header=HEADER, kvs=kvs, more=True, count=rows)


MESSAGES: list[Message] = [
    rpc_pb2.RangeResponse(),
    rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader()),
    answer(3),
    rpc_pb2.TxnResponse(
        header=HEADER,
        succeeded=True,
        responses=[
            rpc_pb2.ResponseOp(response_range=answer(2)),
            rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse()),
        ],
    ),
    rpc_pb2.WatchResponse(
        header=HEADER,
        watch_id=-1,
        created=True,
        cancel_reason='a "reason"\n\t\x01\x7f ä\u2028<&>',
        events=[kv_pb2.Event(type=1, kv=kv_pb2.KeyValue(key=b"\xff"), prev_kv=kv_pb2.KeyValue())],
    ),
    rpc_pb2.LeaseTimeToLiveResponse(ID=-1, TTL=5, grantedTTL=6, keys=[b"", b"a", b"\0"]),
    rpc_pb2.AlarmResponse(alarms=[rpc_pb2.AlarmMember(memberID=1, alarm=1), rpc_pb2.AlarmMember(alarm=77)]),
    rpc_pb2.MemberListResponse(members=[rpc_pb2.Member(ID=1, name="ä", peerURLs=["a", ""], isLearner=True)]),
    rpc_pb2.HashResponse(hash=2**32 - 1),
    rpc_pb2.StatusResponse(version="3.7.1", dbSize=5, errors=["x"], downgradeInfo=rpc_pb2.DowngradeInfo()),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.DESCRIPTOR.name)
@pytest.mark.parametrize("small", [SMALL, -1], ids=["whole", "in pieces"])
def test_messages_are_printed_as_protobuf_does(message: Message, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "SMALL", small)
    for piece in (1, 7, 16384):
        assert json.loads(printed(message, piece=piece)) == as_protobuf_does(message)
        assert len(printed(message, piece=piece)) == len(
            text_of(shape_of(message.DESCRIPTOR), message.SerializeToString())
        )
        if small == SMALL:
            assert printed(message, piece=piece) == text_of(shape_of(message.DESCRIPTOR), message.SerializeToString())


def test_a_text_as_etcd_prints_it() -> None:
    """The bytes are those of etcd 3.7.1, whose JSON may have a blank behind each comma."""
    message = rpc_pb2.RangeResponse(
        header=rpc_pb2.ResponseHeader(
            cluster_id=14841639068965178418, member_id=10276657743932975437, revision=2, raft_term=2
        ),
        kvs=[kv_pb2.KeyValue(key=b"foo", create_revision=2, mod_revision=2, version=1, value=b"bar")],
        count=1,
    )
    assert printed(message) == (
        '{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"2","raft_term":"2"},'
        '"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}'
    )


@pytest.mark.parametrize("rows", [1000, 20_000])
def test_a_large_answer(rows: int) -> None:
    message = answer(rows)
    assert json.loads(printed(message)) == as_protobuf_does(message)


def test_a_large_answer_inside_of_an_answer() -> None:
    inner = rpc_pb2.TxnResponse(responses=[rpc_pb2.ResponseOp(response_range=answer(2000)), rpc_pb2.ResponseOp()])
    message = rpc_pb2.TxnResponse(header=HEADER, responses=[rpc_pb2.ResponseOp(response_txn=inner)] * 2)
    assert json.loads(printed(message)) == as_protobuf_does(message)


def test_a_large_value_is_printed_when_it_is_whole() -> None:
    message = answer(3, b"x" * 100_000)
    assert json.loads(printed(message)) == as_protobuf_does(message)


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 1_500_001])
def test_a_large_value_is_printed_in_steps_and_counts_until_its_end(size: int) -> None:
    message = answer(1, bytes(number % 251 for number in range(size)))
    texts: list[str] = []
    printer = Printer(shape_of(message.DESCRIPTOR), texts.append, lambda _: None, lambda: None)
    printer.feed(prefix(message.SerializeToString()))
    before = longest = 0
    for _ in printer.steps():
        text = sum(map(len, texts))
        longest, before = max(longest, text - before), text
        if text < size:  # base64 has more
            assert printer.held >= size
    assert longest < PIECE * 4 // 3 + 300
    assert not printer.held
    assert json.loads("".join(texts)) == as_protobuf_does(message)


def test_of_a_large_answer_no_more_is_kept_than_what_is_not_whole() -> None:
    data = prefix(answer(20_000).SerializeToString())
    printer = Printer(shape_of(rpc_pb2.RangeResponse.DESCRIPTOR), lambda _: None, lambda _: None, lambda: None)
    for start in range(0, len(data), 16384):
        printer.feed(data[start : start + 16384])
        for _ in printer.steps():
            pass
        assert printer.held < 200


def test_several_messages_in_one_piece() -> None:
    texts = pieces(
        rpc_pb2.RangeResponse.DESCRIPTOR,
        b"".join(prefix(answer(rows).SerializeToString()) for rows in (1, 900, 0)),
        16384,
    )
    decoder, text, found = json.JSONDecoder(), "".join(texts), []
    while text:
        value, end = decoder.raw_decode(text)
        found.append(len(value.get("kvs", ())))
        text = text[end:]
    assert found == [1, 900, 0]


def test_fields_that_esp_does_not_know_are_left_out() -> None:
    extra = b"\xa0\x06\x05" + b"\xaa\x06\x03abc" + b"\xa9\x06" + bytes(8) + b"\xad\x06" + bytes(4)
    message = answer(1000)
    data = message.SerializeToString() + extra
    assert json.loads("".join(pieces(message.DESCRIPTOR, prefix(data), 100))) == as_protobuf_does(message)


@pytest.mark.parametrize("piece", [1, 100, 16384])
def test_of_several_answers_in_one_the_last_header_and_count_count(piece: int) -> None:
    """So are the answers of several shards to one Range."""
    last = rpc_pb2.RangeResponse(
        header=rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=77, raft_term=4), count=5
    )
    first = rpc_pb2.RangeResponse(header=last.header)
    data = b"".join(part.SerializeToString() for part in (first, answer(300), answer(500), last))
    text = "".join(pieces(last.DESCRIPTOR, prefix(data), piece))
    assert text.startswith('{"header":{"cluster_id":"1",')
    value = json.loads(text)
    assert len(value["kvs"]) == 800
    assert (value["count"], value["more"], value["header"]["revision"]) == ("5", True, "77")


def test_a_header_that_is_not_the_last_one_is_not_printed_as_if_it_were() -> None:
    data = b"".join(
        part.SerializeToString()
        for part in (answer(500), rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=9)))
    )
    with pytest.raises(Garbled, match="two of field header"):
        pieces(rpc_pb2.RangeResponse.DESCRIPTOR, prefix(data), 16384)


def test_rows_around_a_header_are_not_printed_in_two_places() -> None:
    rows = rpc_pb2.RangeResponse(kvs=answer(500).kvs).SerializeToString()
    with pytest.raises(Garbled, match="field kvs in two places"):
        pieces(rpc_pb2.RangeResponse.DESCRIPTOR, prefix(rows + answer(0).SerializeToString() + rows), 16384)


LARGE = answer(1000).SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0\x02\x0a\x05",
        b"\1" + prefix(b"")[1:],
        prefix(LARGE + b"\x0a\x05ab"),
        prefix(LARGE + b"\x0a\xff\xff\xff\xff\x0f"),
        prefix(LARGE + b"\x0b"),
        prefix(LARGE + b"\xff" * 12),
        prefix(LARGE + b"\x80"),
        prefix(LARGE + b"\x0a\x02\x08\x80"),
    ],
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(Garbled):
        pieces(rpc_pb2.RangeResponse.DESCRIPTOR, data, 16384)


@given(st.text())
def test_strings(text: str) -> None:
    assert json.loads(string(text)) == text
    assert json.loads(for_html(string(text))) == text
    assert not set("<>&\u2028\u2029") & set(for_html(string(text)))


@pytest.mark.parametrize("field", ["cluster_id", "revision", "raft_term"])
def test_a_header_with_a_zero(field: str) -> None:
    header = rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=4)
    header.ClearField(field)
    names = {"cluster_id": 1, "member_id": 2, "revision": 3, "raft_term": 4}
    wanted = ",".join(f'"{name}":"{value}"' for name, value in names.items() if name != field)
    message = rpc_pb2.PutResponse(header=header)
    assert text_of(shape_of(message.DESCRIPTOR), message.SerializeToString()) == f'{{"header":{{{wanted}}}}}'
