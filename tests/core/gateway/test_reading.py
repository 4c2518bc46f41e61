"""JSON read as messages, as Go's protojson does."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from esp.core.gateway.reading import MAX_DEPTH, TOKENS, NotTheMessage, read, read_small
from esp.core.gateway.shapes import shape_of
from esp.core.pb import rpc_pb2, v3lock_pb2

RANGE = rpc_pb2.RangeRequest
TXN = rpc_pb2.TxnRequest
PUT = rpc_pb2.PutRequest
WATCH = rpc_pb2.WatchRequest


def thoroughly(message: type[Message], text: str | bytes) -> bytes:
    value = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    steps = read(shape_of(message.DESCRIPTOR), value)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            data: bytes = end.value
            return data


def read_as(message: type[Message], text: str) -> Any:
    """The message; both ways of reading agree on it."""
    data = thoroughly(message, text)
    small = read_small(shape_of(message.DESCRIPTOR), text.encode())
    assert small in (None, data)
    return message.FromString(data)


B = base64.b64encode(b"foo?>").decode()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{}", RANGE()),
        (" { } ", RANGE()),
        ('{"key":"Zm9v"}', RANGE(key=b"foo")),
        (
            '{"key":"Zm9v","range_end":"AA==","limit":"5","serializable":true}',
            RANGE(key=b"foo", range_end=b"\0", limit=5, serializable=True),
        ),
        ('{"rangeEnd":"AA","key":"AA"}', RANGE(key=b"\0", range_end=b"\0")),
        (f'{{"key":"{B}"}}', RANGE(key=b"foo?>")),
        ('{"key":"Zm9vPz4"}', RANGE(key=b"foo?>")),
        ('{"key":"_-8"}', RANGE(key=b"\xff\xef")),
        ('{"key":"_-8="}', RANGE(key=b"\xff\xef")),
        ('{"key":"Zm9\\nv\\r"}', RANGE(key=b"foo")),
        ('{"key":"AB"}', RANGE(key=b"\0")),
        ('{"limit":7}', RANGE(limit=7)),
        ('{"limit":-7}', RANGE(limit=-7)),
        ('{"limit":"-9223372036854775808"}', RANGE(limit=-(2**63))),
        ('{"limit":1e3}', RANGE(limit=1000)),
        ('{"limit":"1.50e1"}', RANGE(limit=15)),
        ('{"limit":100e-2}', RANGE(limit=1)),
        ('{"limit":-0.0}', RANGE()),
        ('{"limit":0e99999999999999999999999}', RANGE()),
        ('{"limit":null,"key":null}', RANGE()),
        ('{"sort_order":"DESCEND","sort_target":2}', RANGE(sort_order=2, sort_target=2)),
        ('{"sort_order":"sideways"}', RANGE()),
        ('{"sort_order":9}', RANGE(sort_order=9)),
        ('{"unknown":{"a":[1,{"b":null}],"c":"d"},"key":"AA=="}', RANGE(key=b"\0")),
        ('{"k\\u0065y":"AA=="}', RANGE(key=b"\0")),
        ('{"serializable":false,"limit":"0"}', RANGE()),
    ],
)
def test_messages(text: str, wanted: Message) -> None:
    assert read_as(RANGE, text) == wanted


def test_messages_in_messages() -> None:
    text = json.dumps(
        {
            "compare": [{"key": "AA==", "target": "CREATE", "create_revision": "0"}, {"target": 3, "value": ""}],
            "success": [{"request_put": {"key": "AA==", "value": "Zm9v"}}, {"requestRange": {}}],
            "failure": [{"request_txn": {"success": [{"request_delete_range": {"prev_kv": True}}]}}],
        }
    )
    wanted = TXN(
        compare=[
            rpc_pb2.Compare(key=b"\0", target=rpc_pb2.Compare.CREATE, create_revision=0),
            rpc_pb2.Compare(target=rpc_pb2.Compare.VALUE, value=b""),
        ],
        success=[
            rpc_pb2.RequestOp(request_put=PUT(key=b"\0", value=b"foo")),
            rpc_pb2.RequestOp(request_range=RANGE()),
        ],
    )
    inner = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(prev_kv=True))
    wanted.failure.add().request_txn.success.append(inner)
    assert read_as(TXN, text) == wanted
    assert thoroughly(TXN, text) == wanted.SerializeToString()


def test_lists_of_other_values() -> None:
    watch = read_as(WATCH, '{"create_request":{"key":"AA==","filters":["NOPUT",1,"no such"],"watch_id":3}}')
    assert watch.create_request.filters == [0, 1]
    member = read_as(rpc_pb2.MemberAddRequest, '{"peerURLs":["http://a","http://ä"]}')
    assert member.peerURLs == ["http://a", "http://ä"]
    assert read_as(v3lock_pb2.LockRequest, '{"name":"AA=="}').name == b"\0"


def test_a_request_without_fields_in_a_oneof() -> None:
    """Presence counts there: etcd's client asks for progress with an empty message."""
    assert read_as(WATCH, '{"progress_request":{}}').HasField("progress_request")
    assert not read_as(WATCH, '{"progress_request":null}').HasField("progress_request")


# Each text is that of protojson 1.36.11 with DiscardUnknown, with a plain blank behind "proto:".
@pytest.mark.parametrize(
    ("message", "text", "fault"),
    [
        (RANGE, "[]", "proto: syntax error (line 1:1): unexpected token ["),
        (RANGE, "null", "proto: syntax error (line 1:1): unexpected token null"),
        (RANGE, '"x"', 'proto: syntax error (line 1:1): unexpected token "x"'),
        (RANGE, '{"key":"!"}', 'proto: (line 1:8): invalid value for bytes field key: "!"'),
        (RANGE, '{"key":"A"}', 'proto: (line 1:8): invalid value for bytes field key: "A"'),
        (RANGE, '{"key":"AA="}', 'proto: (line 1:8): invalid value for bytes field key: "AA="'),
        (RANGE, '{"key":"-+"}', 'proto: (line 1:8): invalid value for bytes field key: "-+"'),
        (RANGE, '{"key":1}', "proto: (line 1:8): invalid value for bytes field key: 1"),
        (RANGE, '{"key":[1]}', "proto: (line 1:8): invalid value for bytes field key: ["),
        (RANGE, '{"rangeEnd":{}}', "proto: (line 1:13): invalid value for bytes field rangeEnd: {"),
        (RANGE, '{"limit":1.5}', "proto: (line 1:10): invalid value for int64 field limit: 1.5"),
        (RANGE, '{"limit":" 1"}', 'proto: (line 1:10): invalid value for int64 field limit: " 1"'),
        (RANGE, '{"limit":"01"}', 'proto: (line 1:10): invalid value for int64 field limit: "01"'),
        (RANGE, '{"limit":""}', 'proto: (line 1:10): invalid value for int64 field limit: ""'),
        (
            RANGE,
            '{"limit":9223372036854775808}',
            "proto: (line 1:10): invalid value for int64 field limit: 9223372036854775808",
        ),
        (RANGE, '{"limit":1e99999999999}', "proto: (line 1:10): invalid value for int64 field limit: 1e99999999999"),
        (RANGE, '{"limit":true}', "proto: (line 1:10): invalid value for int64 field limit: true"),
        (RANGE, '{"serializable":"true"}', 'proto: (line 1:17): invalid value for bool field serializable: "true"'),
        (RANGE, '{"serializable":1}', "proto: (line 1:17): invalid value for bool field serializable: 1"),
        (RANGE, '{"sort_order":2147483648}', "proto: (line 1:15): invalid value for enum field sortOrder: 2147483648"),
        (RANGE, '{"key":"AA==","key":"AA=="}', 'proto: (line 1:15): duplicate field "key"'),
        (RANGE, '{"range_end":null,"rangeEnd":null}', 'proto: (line 1:19): duplicate field "rangeEnd"'),
        (RANGE, '{\n "ä":"ä",\n "ä":1, "key":[]}', "proto: (line 3:15): invalid value for bytes field key: ["),
        (RANGE, b'{"x":"\xff"}', "proto: syntax error (line 1:6): invalid UTF-8 in string"),
        (RANGE, '{"x":"\\ud800"}', "proto: unexpected EOF"),
        (
            RANGE,
            '{"x":"\\ud83d\\ude00\\udc00\\u0041"}',
            'proto: syntax error (line 1:6): invalid escape code "\\\\u0041" in string',
        ),
        (TXN, '{"success":{}}', "proto: syntax error (line 1:12): unexpected token {"),
        (TXN, '{"success":[null]}', "proto: syntax error (line 1:13): unexpected token null"),
        (
            WATCH,
            '{"create_request":{"filters":[null]}}',
            "proto: (line 1:31): invalid value for enum field filters: null",
        ),
        (
            WATCH,
            '{"create_request":{},"cancel_request":{}}',
            'proto: (line 1:22): error parsing "cancel_request", '
            "oneof etcdserverpb.WatchRequest.request_union is already set",
        ),
    ],
)
def test_refusals(message: type[Message], text: str | bytes, fault: str) -> None:
    with pytest.raises(NotTheMessage) as refusal:
        thoroughly(message, text)
    assert str(refusal.value) == fault
    value = text.encode() if isinstance(text, str) else text
    assert read_small(shape_of(message.DESCRIPTOR), value) is None


def test_a_number_of_many_digits() -> None:
    with pytest.raises(NotTheMessage, match=r"invalid value for int64 field limit: 1.0+\.\.\."):
        thoroughly(RANGE, '{"limit":1.' + "0" * 2000 + "}")
    assert read_as(RANGE, '{"limit":1.' + "0" * 900 + "}").limit == 1


def test_messages_nested_too_deep() -> None:
    def nested(depth: int) -> str:
        return '{"success":[{"request_txn":' * depth + "{}" + "}]}" * depth

    assert thoroughly(TXN, nested(MAX_DEPTH // 2 - 1))
    with pytest.raises(NotTheMessage, match="proto: exceeded max recursion depth"):
        thoroughly(TXN, nested(MAX_DEPTH // 2 + 1))


def test_what_is_ignored_may_nest_as_it_likes() -> None:
    text = '{"x":' + "[" * 9000 + "]" * 9000 + "}"
    assert read_as(RANGE, text) == RANGE()


def test_a_long_value_is_read_in_steps() -> None:
    operations = 2000
    text = json.dumps({"success": [{"request_put": {"key": "AA==", "value": "AA=="}}] * operations}).encode()
    steps = read(shape_of(TXN.DESCRIPTOR), text)
    count = 0
    while next(steps, b"") is None:
        count += 1
    assert count > operations * 15 // TOKENS // 2


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "key": st.binary(),
    "range_end": st.binary(),
    "limit": st.integers(-(2**63), 2**63 - 1),
    "sort_order": st.integers(0, 2),
    "serializable": st.booleans(),
}


@given(st.fixed_dictionaries({}, optional=VALUES), st.booleans())
def test_what_protobuf_prints_is_read_alike(values: dict[str, Any], proto_names: bool) -> None:
    message = RANGE(**values)
    text = json_format.MessageToJson(message, preserving_proto_field_name=proto_names)
    assert thoroughly(RANGE, text) == read_small(shape_of(RANGE.DESCRIPTOR), text.encode())
    assert thoroughly(RANGE, text) == message.SerializeToString()


FRAGMENTS = st.lists(
    st.sampled_from(
        [
            '"key"',
            '"limit"',
            '"success"',
            '"request_put"',
            ":",
            ",",
            "{",
            "}",
            "[",
            "]",
            '"AA=="',
            "1",
            "null",
            '"x"',
            "true",
        ]
    ),
    max_size=14,
).map("".join)


@given(FRAGMENTS, st.sampled_from([RANGE, TXN, WATCH]))
def test_both_ways_agree_on_any_json(text: str, message: type[Message]) -> None:
    try:
        json.loads(text)
    except ValueError:
        return
    small = read_small(shape_of(message.DESCRIPTOR), text.encode())
    try:
        whole = thoroughly(message, text)
    except NotTheMessage:
        assert small is None
    else:
        assert small in (None, whole)


@pytest.mark.parametrize("blanks", [" ", "\t", "\r\n", " \n\t\r "])
def test_blanks_around_a_value_are_plain(blanks: str) -> None:
    value = f'{blanks}{{"key":"Zm9v"}}{blanks}'.encode()
    assert read_small(shape_of(RANGE.DESCRIPTOR), value) == RANGE(key=b"foo").SerializeToString()


@pytest.mark.parametrize("behind", ["x", "{}", "\x00", "\u00a0", "\x0b", ","])
def test_what_stands_behind_a_value_is_not_plain(behind: str) -> None:
    assert read_small(shape_of(RANGE.DESCRIPTOR), b'{"key":"Zm9v"}' + behind.encode()) is None
