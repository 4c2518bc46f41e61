"""The content of a response, and the part that goes to the client."""

from __future__ import annotations

import pytest
from hpack import Decoder
from hypothesis import example, given
from hypothesis import strategies as st

from esp.core.wire.frames import StreamFault
from esp.core.wire.message import decode_status_text, encode_status_text
from esp.core.wire.response import MAX_STATUS_TEXT, ResponseHead, parse_response, trailers_block
from esp.core.wire.status import Code, Status
from tests.core.wire.conversation import HEAD, Fields


def sent_on(head: ResponseHead) -> Fields:
    return [(bytes(name), bytes(value)) for name, value in Decoder(2**20).decode(head.forward, raw=True)]


def test_the_head_of_an_answer() -> None:
    head = parse_response([*HEAD, (b"x", b"y")])
    assert (head.http_status, head.is_grpc, head.status, head.opens, head.succeeds) == (200, True, None, True, False)
    assert sent_on(head) == [*HEAD, (b"x", b"y")]


def test_trailers() -> None:
    head = parse_response([(b"grpc-status", b"5"), (b"grpc-message", b"not%20found"), (b"x-bin", b"AAEC")])
    assert head.status == Status(Code.NOT_FOUND, "not found")
    assert (head.http_status, head.opens, head.succeeds) == (0, False, False)
    assert sent_on(head) == [(b"grpc-status", b"5"), (b"grpc-message", b"not%20found"), (b"x-bin", b"AAEC")]
    assert parse_response([(b"grpc-status", b"0")]).succeeds


def test_both_in_one() -> None:
    head = parse_response([*HEAD, (b"grpc-status", b"0")])
    assert head.status == Status(Code.OK)
    assert not head.opens
    assert not head.succeeds


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"1.0", b"00000", "\u0667".encode()])
def test_a_status_that_is_no_number_is_unknown(value: bytes) -> None:
    assert parse_response([(b"grpc-status", value)]).outcome().code == Code.UNKNOWN


def test_a_status_that_nobody_knows_is_passed_on() -> None:
    assert parse_response([(b"grpc-status", b"77")]).outcome().code == 77


@pytest.mark.parametrize(
    ("http", "code"),
    [
        (400, Code.INTERNAL),
        (401, Code.UNAUTHENTICATED),
        (403, Code.PERMISSION_DENIED),
        (404, Code.UNIMPLEMENTED),
        (429, Code.UNAVAILABLE),
        (500, Code.UNKNOWN),
        (502, Code.UNAVAILABLE),
        (503, Code.UNAVAILABLE),
        (504, Code.UNAVAILABLE),
        (204, Code.UNKNOWN),
        (200, Code.UNKNOWN),
    ],
)
def test_an_answer_without_grpc_status_is_judged_by_its_http_status(http: int, code: Code) -> None:
    assert parse_response([(b":status", b"%d" % http)]).outcome().code == code


def test_a_long_error_text_is_cut_and_its_details_dropped() -> None:
    text = b"%C3%B6" * 2000
    head = parse_response(
        [
            (b"grpc-status", b"2"),
            (b"grpc-message", text),
            (b"grpc-status-details-bin", b"A" * 5000),
            (b"x", b"y" * 9000),
        ]
    )
    status, message, other = sent_on(head)
    assert status == (b"grpc-status", b"2")
    assert MAX_STATUS_TEXT - 3 < len(message[1]) <= MAX_STATUS_TEXT
    assert text.startswith(message[1])
    assert text[len(message[1]) :].startswith(b"%")
    assert other == (b"x", b"y" * 9000)


def test_short_details_go_on() -> None:
    fields = [(b"grpc-status", b"2"), (b"grpc-message", b"no"), (b"grpc-status-details-bin", b"AAEC")]
    assert sent_on(parse_response(fields)) == fields


def test_what_belongs_to_one_hop_stays_there() -> None:
    fields = [*HEAD, (b"connection", b"close"), (b"content-length", b"5"), (b"transfer-encoding", b"chunked")]
    assert sent_on(parse_response(fields)) == HEAD


@pytest.mark.parametrize(
    "fields",
    [
        [(b":status", b"20")],
        [(b":status", b"abc")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b"x", b"y"), (b":status", b"200")],
        [(b":path", b"/")],
        [(b"", b"x")],
        [(b":", b"x")],
        [*HEAD, (b"X", b"y")],
        [*HEAD, (b"x", b"a\r\nb")],
        [*HEAD, (b"x", b"a\0b")],
    ],
)
def test_a_malformed_response_is_refused(fields: Fields) -> None:
    with pytest.raises(StreamFault):
        parse_response(fields)


def test_trailers_of_our_own() -> None:
    block = trailers_block(Status(Code.INTERNAL, "why?"), [(b"x", b"y")], http_status=0)
    expected = [(b"grpc-status", b"13"), (b"grpc-message", b"why?"), (b"x", b"y")]
    assert Decoder().decode(block, raw=True) == expected
    assert Decoder().decode(trailers_block(Status(0), http_status=200), raw=True) == [*HEAD, (b"grpc-status", b"0")]


@given(st.text(max_size=60), st.integers(3, 80))
@example(" ", 80)
@example("unknown service ", 80)
@example("\t a \t", 80)
@example("a   b", 4)
def test_no_text_has_a_blank_at_its_ends_and_none_is_changed(text: str, most: int) -> None:
    """Strict peers refuse a field that begins or ends with a blank (RFC 9113, section 8.2.1)."""
    block = trailers_block(Status(Code.UNKNOWN, text), http_status=200)
    value = dict(Decoder().decode(block, raw=True)).get(b"grpc-message", b"")
    assert value == value.strip()
    assert decode_status_text(value) == text.encode("utf-8", "replace").decode()
    cut = encode_status_text(text, most)
    assert cut == cut.strip()
    assert len(cut) <= most


@pytest.mark.parametrize("value", [b"unknown service ", b" x", b"\tx\t", b" "])
def test_nor_has_one_that_a_server_says(value: bytes) -> None:
    head = parse_response([*HEAD, (b"grpc-status", b"12"), (b"grpc-message", value)])
    assert head.status == Status(Code.UNIMPLEMENTED, value.decode())
    said = dict(Decoder().decode(head.forward, raw=True))[b"grpc-message"]
    assert said == said.strip()
    assert decode_status_text(said) == value.decode()
