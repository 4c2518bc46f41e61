"""Requests that another hop could read differently: each is refused, none reaches a handler (RFC 9113, 8.2, 8.3)."""

from __future__ import annotations

import pytest
from hpack import Decoder

from esp.core.wire.frames import ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.message import encode_status_text
from esp.core.wire.status import Code
from tests.core.wire.conversation import (
    ECHO,
    PAGE,
    STREAM,
    Fields,
    call,
    continuation,
    data,
    echoed,
    headers,
    meet,
    message,
    page,
    refusal,
)


def changed(name: bytes, value: bytes) -> Fields:
    """A gRPC call with another value for a field."""
    return [(n, value if n == name else v) for n, v in call()]


def swapped(first: int, second: int) -> Fields:
    fields = call()
    fields[first], fields[second] = fields[second], fields[first]
    return fields


METHOD, SCHEME, PATH, AUTHORITY, CONTENT_TYPE, TE = range(6)

CONTROLS = [byte for byte in (*range(0x20), 0x7F) if byte != 0x09]
BAD_NAME_BYTES = sorted(
    {*range(0x21), *b'"(),/:;<=>?@[\\]{}', *b"AZ", *range(0x7F, 0x100)}
)  # everything that is no lower-case token

MALFORMED: dict[str, Fields] = {
    # Names.
    "an empty name": call(ECHO, (b"", b"x")),
    **{f"a name with {byte:#04x}": call(ECHO, (b"x" + bytes((byte,)) + b"y", b"z")) for byte in BAD_NAME_BYTES},
    "an upper-case name": call(ECHO, (b"Token", b"x")),
    "a colon alone": call(ECHO, (b":", b"x")),
    "a name with a space before its colon": call(ECHO, (b"x :", b"y")),
    # Values.
    **{f"a value with {byte:#04x}": call(ECHO, (b"x", b"a" + bytes((byte,)) + b"b")) for byte in CONTROLS},
    "a value that begins with a space": call(ECHO, (b"x", b" y")),
    "a value that ends with a space": call(ECHO, (b"x", b"y ")),
    "a value that begins with a tab": call(ECHO, (b"x", b"\ty")),
    "a value that ends with a tab": call(ECHO, (b"x", b"y\t")),
    "a value that is a space": call(ECHO, (b"x", b" ")),
    "a path with a line end": changed(b":path", ECHO + b"\r\nx: y"),
    "a method with a line end": changed(b":method", b"POST\n"),
    "an authority with a NUL": changed(b":authority", b"a\0b"),
    # Pseudo-fields.
    "no method": call(without=b":method"),
    "no scheme": call(without=b":scheme"),
    "an empty method": changed(b":method", b""),
    "two methods": [(b":method", b"POST"), *call()],
    "two schemes": [(b":scheme", b"http"), *call()],
    "two paths": [(b":path", ECHO), *call()],
    "two authorities": [(b":authority", b"esp"), *call()],
    "a status": [(b":status", b"200"), *call()],
    "an unknown pseudo-field": [(b":unknown", b"x"), *call()],
    "an extended CONNECT": [(b":protocol", b"websocket"), *call()],
    "a CONNECT": [(b":method", b"CONNECT"), (b":authority", b"esp:80")],
    "a method after a regular field": swapped(METHOD, TE),
    "a path after a regular field": swapped(PATH, CONTENT_TYPE),
    "an authority at the end": [*call(without=b":authority"), (b":authority", b"esp")],
    "nothing at all": [],
    "only regular fields": [(b"x", b"y")],
    # Fields that belong to a connection.
    "connection": call(ECHO, (b"connection", b"close")),
    "keep-alive": call(ECHO, (b"keep-alive", b"timeout=5")),
    "proxy-connection": call(ECHO, (b"proxy-connection", b"close")),
    "transfer-encoding": call(ECHO, (b"transfer-encoding", b"chunked")),
    "upgrade": call(ECHO, (b"upgrade", b"h2c")),
    "another te": changed(b"te", b"gzip"),
    "te with more": changed(b"te", b"trailers, deflate"),
    "an empty te": changed(b"te", b""),
    # Whose request it is.
    "a host that disagrees": call(ECHO, (b"host", b"another")),
    "two hosts": call(ECHO, (b"host", b"esp"), (b"host", b"esp")),
    "two hosts that disagree": call(ECHO, (b"host", b"esp"), (b"host", b"other"), without=b":authority"),
    # How long it is.
    "two lengths": call(ECHO, (b"content-length", b"7"), (b"content-length", b"7")),
    "two lengths that disagree": call(ECHO, (b"content-length", b"7"), (b"content-length", b"8")),
    "a negative length": call(ECHO, (b"content-length", b"-7")),
    "a signed length": call(ECHO, (b"content-length", b"+7")),
    "a length in hex": call(ECHO, (b"content-length", b"0x7")),
    "an empty length": call(ECHO, (b"content-length", b"")),
    "a list of lengths": call(ECHO, (b"content-length", b"7, 7")),
    "a fraction as length": call(ECHO, (b"content-length", b"7.0")),
    "a length of other digits": call(ECHO, (b"content-length", "\u0667".encode())),
    "a length beyond measure": call(ECHO, (b"content-length", b"7" * 19)),
    # When it ends.
    "two deadlines": call(ECHO, (b"grpc-timeout", b"1S"), (b"grpc-timeout", b"1S")),
    "an empty deadline": call(ECHO, (b"grpc-timeout", b"")),
}


PATHS_OF_NOTHING: dict[bytes, str] = {
    b"": '""',
    ECHO[1:]: '"test.Test/Echo"',
    b"*": '"*"',
    b"http://esp" + ECHO: '"http://esp/test.Test/Echo"',
    b'a"\\b\xff\xc3\xa9': r'"a\"\\b\xffé"',
}
"""Paths that do not begin with a slash, and how Go writes them."""


def ids(table: dict[str, Fields]) -> list[str]:
    return list(table)


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=ids(MALFORMED))
def test_a_malformed_request_reaches_no_handler(fields: Fields) -> None:
    for path in (ECHO, STREAM, PAGE):
        client, server = meet()
        asked = [(name, path if value == ECHO else value) for name, value in fields]
        client.sends(headers(1, asked), data(1, message(b"hi"), end=True))
        server.resets(1, ErrorCode.PROTOCOL_ERROR)
        assert server.saw == [], path
        server.holds_nothing()
    without_a_table_however_often_it_is_tried(fields)
    in_pieces(fields)


def without_a_table_however_often_it_is_tried(fields: Fields) -> None:
    client, server = meet()
    client.gives_up_its_table()
    for stream in (5, 7):
        client.sends(headers(stream, fields), data(stream, message(b"hi"), end=True))
        server.resets(stream, ErrorCode.PROTOCOL_ERROR)
    assert server.saw == []
    client.sends(headers(9, call()), data(9, message(b"hi"), end=True))
    server.answers(*echoed(9, b"hi"))


def in_pieces(fields: Fields) -> None:
    client, server = meet()
    block = encode(fields)
    client.sends(headers(1, block[:3], end_headers=False), continuation(1, block[3:]))
    client.sends(data(1, message(b"hi"), end=True))
    server.resets(1, ErrorCode.PROTOCOL_ERROR)
    assert server.saw == []


@pytest.mark.parametrize("path", PATHS_OF_NOTHING)
@pytest.mark.parametrize("has_table", [True, False])
def test_a_call_to_a_path_without_a_slash_is_answered_as_etcd_answers_it(path: bytes, has_table: bool) -> None:
    client, server = meet()
    if not has_table:
        client.gives_up_its_table()
    for stream in (5, 7):
        client.sends(headers(stream, changed(b":path", path)), data(stream, message(b"hi"), end=True))
        [answer, reset] = [frame for frame in server.frames() if frame.stream]
        assert dict(Decoder().decode(answer.payload, raw=True)) == {
            b":status": b"200",
            b"content-type": b"application/grpc",
            b"grpc-status": b"12",
            b"grpc-message": encode_status_text(f"malformed method name: {PATHS_OF_NOTHING[path]}", 4096),
        }
        assert reset.payload == bytes(4)
    assert server.saw == []
    server.holds_nothing()


def test_one_without_a_path_too() -> None:
    client, server = meet()
    client.sends(headers(1, call(without=b":path"), end=True))
    server.answers(refusal(1, Code.UNIMPLEMENTED, 'malformed method name: ""'))


@pytest.mark.parametrize("path", [b"", b"page", b"*", b"http://esp/page"])
def test_a_page_without_a_slash_is_malformed(path: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, [(n, path if n == b":path" else v) for n, v in page()], end=True))
    server.resets(1, ErrorCode.PROTOCOL_ERROR)
    assert server.saw == []


WELL_FORMED: dict[str, Fields] = {
    "no authority": call(without=b":authority"),
    "a host instead": call(ECHO, (b"host", b"esp"), without=b":authority"),
    "a host that agrees": call(ECHO, (b"host", b"esp")),
    "no te": call(without=b"te"),
    "an empty value": call(ECHO, (b"x", b"")),
    "a value with inner white space": call(ECHO, (b"x", b"a \t b")),
    "a value of bytes above 127": call(ECHO, (b"x", bytes(range(0x80, 0x100)))),
    "a value of all visible characters": call(ECHO, (b"x", bytes(range(0x21, 0x7F)))),
    "a name of all token characters": call(ECHO, (b"!#$%&'*+-.^_`|~09az", b"x")),
    "one field several times": call(ECHO, (b"x", b"1"), (b"x", b"2"), (b"x", b"1")),
    "binary metadata": call(ECHO, (b"x-bin", b"AAEC")),
    "another order": [call()[index] for index in (PATH, METHOD, AUTHORITY, SCHEME, TE, CONTENT_TYPE)],
    "another scheme": changed(b":scheme", b"https"),
    "a length of its body": call(ECHO, (b"content-length", b"7")),
    "a content type that says proto": changed(b"content-type", b"application/grpc+proto"),
    "a content type with a parameter": changed(b"content-type", b"application/grpc;charset=utf-8"),
}


@pytest.mark.parametrize("fields", WELL_FORMED.values(), ids=ids(WELL_FORMED))
@pytest.mark.parametrize("has_table", [True, False])
def test_what_is_unusual_but_well_formed_is_served(fields: Fields, has_table: bool) -> None:
    client, server = meet()
    if not has_table:
        client.gives_up_its_table()
    client.sends(headers(5, fields), data(5, message(b"hi"), end=True))
    server.answers(*echoed(5, b"hi"))


def test_options_may_ask_for_a_star() -> None:
    client, server = meet()
    client.sends(headers(1, page(b"*", b"OPTIONS"), end=True))
    assert server.saw == [("message", 1, b"")]


NOT_GRPC = [b"application/grpcx", b"application/json", b"application/grpc-web", b"", b"Application/grpc"]


@pytest.mark.parametrize("content_type", NOT_GRPC)
def test_what_is_not_grpc_by_its_content_type_is_a_page(content_type: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, changed(b"content-type", content_type), end=True))
    assert not server.page.streams[1].head.is_grpc


BAD_TRAILERS: dict[str, Fields] = {
    "a pseudo-field": [(b":path", ECHO)],
    "a status": [(b":status", b"200")],
    "an upper-case name": [(b"X", b"y")],
    "a line end": [(b"x", b"y\r\nz")],
    "connection": [(b"connection", b"close")],
    "transfer-encoding": [(b"transfer-encoding", b"chunked")],
    "an empty name": [(b"", b"x")],
}


@pytest.mark.parametrize("path", [ECHO, STREAM])
@pytest.mark.parametrize("fields", BAD_TRAILERS.values(), ids=ids(BAD_TRAILERS))
def test_malformed_trailers_end_the_stream(fields: Fields, path: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(path)), data(1, message(b"hi")), headers(1, fields, end=True))
    server.resets(1, ErrorCode.PROTOCOL_ERROR)
    assert [event for event in server.saw if event[0] == "message"] == []
    server.holds_nothing()
