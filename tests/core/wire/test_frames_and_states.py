"""Prefaces, SETTINGS, frame sizes, header blocks in pieces, and frames in states that do not expect them."""

from __future__ import annotations

import struct

import pytest

from esp.core.wire.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    SETTINGS_ENABLE_PUSH,
    SETTINGS_HEADER_TABLE_SIZE,
    SETTINGS_INITIAL_WINDOW_SIZE,
    SETTINGS_MAX_CONCURRENT_STREAMS,
    SETTINGS_MAX_FRAME_SIZE,
    SETTINGS_MAX_HEADER_LIST_SIZE,
    WINDOW_UPDATE,
    ErrorCode,
)
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.open_calls import CALL_BYTES, CALLS_AT_ONCE, FREE_CALLS
from esp.core.wire.status import OK
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    ECHO,
    HOLD,
    PAGE,
    SHRINK,
    STREAM,
    call,
    continuation,
    data,
    echoed,
    goaway,
    headers,
    meet,
    message,
    page,
    ping,
    priority,
    raw,
    rst,
    settings,
    strangers,
    window,
)

GREETING = (
    settings({SETTINGS_MAX_HEADER_LIST_SIZE: 65_536}),
    window(0, 1048576 - 65535),
)

# Prefaces.


def test_the_server_speaks_first() -> None:
    _, server = strangers()
    server.answers(*GREETING)


def test_a_stream_window_that_is_not_the_default_is_announced() -> None:
    _, server = strangers(Limits(stream_window_bytes=100_000, connection_window_bytes=65_535))
    announced = {
        SETTINGS_MAX_HEADER_LIST_SIZE: 65_536,
        SETTINGS_INITIAL_WINDOW_SIZE: 100_000,
    }
    server.answers(settings(announced))


def test_a_limit_on_streams_is_announced_where_there_is_one() -> None:
    _, server = strangers(Limits(max_concurrent_streams=1000, connection_window_bytes=65_535))
    server.answers(settings({SETTINGS_MAX_HEADER_LIST_SIZE: 65_536, SETTINGS_MAX_CONCURRENT_STREAMS: 1000}))


@pytest.mark.parametrize("split", range(1, len(PREFACE) + 10))
def test_the_preface_may_be_split_at_every_byte(split: int) -> None:
    client, server = strangers()
    said = PREFACE + settings({}) + SETTINGS_ACK
    client.sends(said[:split])
    client.sends(said[split:], headers(1, call()), data(1, message(b"hi"), end=True))
    server.answers(*GREETING, SETTINGS_ACK, *echoed(1, b"hi"))


def test_everything_may_come_byte_by_byte() -> None:
    client, server = strangers()
    request = headers(1, call(), pad=3) + data(1, message(b"hi"), end=True, pad=1)
    client.sends_in_pieces(1, PREFACE + settings({3: 7}) + SETTINGS_ACK + request + ping())
    server.answers(*GREETING, SETTINGS_ACK, *echoed(1, b"hi"), ping(ack=True))


@pytest.mark.parametrize("at", range(len(PREFACE)))
def test_a_preface_wrong_in_any_byte_ends_the_connection(at: int) -> None:
    client, server = strangers()
    client.sends(PREFACE[:at] + b"\xff" + PREFACE[at + 1 :] + settings({}))
    server.closes(ErrorCode.PROTOCOL_ERROR, "not the HTTP/2 preface")


@pytest.mark.parametrize(
    "first", [SETTINGS_ACK, ping(), headers(1, call()), window(0, 1), raw(99, 0, 0), continuation(1, b"")]
)
def test_the_first_frame_must_be_settings(first: bytes) -> None:
    client, server = strangers()
    client.sends(PREFACE, first)
    server.closes(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")


def test_requests_may_come_before_the_servers_settings_were_seen() -> None:
    client, server = strangers()
    client.sends(PREFACE, settings({}), headers(1, call()), data(1, message(b"hi"), end=True))
    server.answers(*GREETING, SETTINGS_ACK, *echoed(1, b"hi"))


# SETTINGS.


def test_settings_are_acknowledged() -> None:
    client, server = meet()
    client.sends(settings({SETTINGS_MAX_FRAME_SIZE: 2**24 - 1, SETTINGS_ENABLE_PUSH: 0, 0xFFFF: 7}))
    server.answers(SETTINGS_ACK)


@pytest.mark.parametrize("greeted", [True, False])
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (SETTINGS_ENABLE_PUSH, 2, ErrorCode.PROTOCOL_ERROR),
        (SETTINGS_INITIAL_WINDOW_SIZE, 2**31, ErrorCode.FLOW_CONTROL_ERROR),
        (SETTINGS_INITIAL_WINDOW_SIZE, 2**32 - 1, ErrorCode.FLOW_CONTROL_ERROR),
        (SETTINGS_MAX_FRAME_SIZE, 0, ErrorCode.PROTOCOL_ERROR),
        (SETTINGS_MAX_FRAME_SIZE, 16383, ErrorCode.PROTOCOL_ERROR),
        (SETTINGS_MAX_FRAME_SIZE, 2**24, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_setting_out_of_range_ends_the_connection(name: int, value: int, code: ErrorCode, greeted: bool) -> None:
    client, server = meet() if greeted else strangers()
    client.sends(b"" if greeted else PREFACE, settings({SETTINGS_INITIAL_WINDOW_SIZE: 1, name: value}))
    server.closes(code)
    assert server.connection.peer_initial_window == 65_535, "nothing is applied of SETTINGS that are refused"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (raw(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (raw(SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(SETTINGS, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (settings({100 + number: 0 for number in range(33)}), ErrorCode.ENHANCE_YOUR_CALM),
    ],
)
def test_malformed_settings_end_the_connection(frame: bytes, code: ErrorCode) -> None:
    client, server = meet()
    client.sends(frame)
    server.closes(code)


def test_of_a_setting_given_twice_the_last_counts() -> None:
    client, server = meet()
    client.sends(raw(SETTINGS, 0, 0, struct.pack(">HIHI", 4, 100, 4, 7)))
    server.answers(SETTINGS_ACK)
    assert server.connection.peer_initial_window == 7


def test_the_first_grpc_call_asks_the_client_to_give_up_its_table() -> None:
    client, server = meet()
    client.sends(headers(1, page(), end=True))
    assert SHRINK not in server.says()
    client.sends(headers(3, call()), headers(5, call()))
    server.answers(SHRINK)


# Frame sizes.


@pytest.mark.parametrize("kind", [DATA, HEADERS, SETTINGS, PING, 99])
def test_a_frame_too_large_is_refused_by_its_header(kind: int) -> None:
    client, server = meet()
    client.sends(raw(kind, 0, 1, b"", length=16385))
    server.closes(ErrorCode.FRAME_SIZE_ERROR)


def test_a_frame_as_large_as_allowed_is_taken() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), data(1, bytes(16384)))
    assert server.saw[-1] == ("data", 1, bytes(16384), False)


WRONG_SIZES = [
    *((PING, 0, bytes(size)) for size in (0, 7, 9)),
    *((RST_STREAM, 1, bytes(size)) for size in (0, 3, 5)),
    *((GOAWAY, 0, bytes(size)) for size in (0, 7)),
    *((WINDOW_UPDATE, 1, bytes(size)) for size in (0, 3, 5)),
]


@pytest.mark.parametrize(("kind", "stream", "payload"), WRONG_SIZES)
def test_a_frame_of_the_wrong_size_ends_the_connection(kind: int, stream: int, payload: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), raw(kind, 0, stream, payload))
    server.closes(ErrorCode.FRAME_SIZE_ERROR)


def test_a_priority_frame_of_the_wrong_size_ends_its_stream() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), raw(PRIORITY, 0, 1, bytes(4)))
    server.resets(1, ErrorCode.FRAME_SIZE_ERROR)


WRONG_STREAMS = [
    raw(DATA, 0, 0, b"x"),
    headers(0, call()),
    priority(0, 1),
    raw(RST_STREAM, 0, 0, bytes(4)),
    raw(SETTINGS, 0, 1),
    raw(PUSH_PROMISE, 4, 1, bytes(4)),
    raw(PING, 0, 1, bytes(8)),
    raw(GOAWAY, 0, 1, bytes(8)),
    raw(CONTINUATION, 4, 1, b""),
    raw(CONTINUATION, 4, 0, b""),
    headers(2, call()),
    data(2, b"x"),
    rst(2),
    window(2, 1),
]


@pytest.mark.parametrize("frame", WRONG_STREAMS)
def test_a_frame_on_a_stream_it_cannot_have_ends_the_connection(frame: bytes) -> None:
    client, server = meet()
    client.sends(frame)
    server.closes(ErrorCode.PROTOCOL_ERROR)
    assert server.saw == []


def test_the_reserved_bit_of_a_stream_id_means_nothing() -> None:
    client, server = meet()
    top = 1 << 31
    client.sends(headers(1 | top, call()), data(1 | top, message(b"hi"), end=True))
    server.answers(*echoed(1, b"hi"))


def test_the_reserved_bit_means_nothing_for_known_header_blocks_either() -> None:
    client, server = meet()
    client.gives_up_its_table()
    top = 1 << 31
    client.sends(headers(5 | top, call()), data(5 | top, message(b"hi"), end=True))
    server.answers(*echoed(5, b"hi"))


# Padding.


@pytest.mark.parametrize(
    "payload", [b"", b"\1", b"\5abcd", b"\xff" + bytes(254)], ids=["nothing", "all", "one too many", "255"]
)
@pytest.mark.parametrize("kind", [DATA, HEADERS])
def test_padding_longer_than_its_frame_ends_the_connection(kind: int, payload: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), raw(kind, 0x8 | 0x4, 1 if kind == DATA else 3, payload))
    server.closes(ErrorCode.PROTOCOL_ERROR)


def test_padding_may_fill_its_frame() -> None:
    client, server = meet()
    client.sends(headers(1, call()), data(1, message(b"hi")), data(1, b"", pad=255, end=True))
    server.answers(*echoed(1, b"hi"))


def test_priority_and_padding_stand_around_a_header_block() -> None:
    client, server = meet()
    client.sends(headers(1, call(), depends_on=0, pad=20), data(1, message(b"hi"), end=True))
    server.answers(*echoed(1, b"hi"))


def test_headers_shorter_than_their_priority_end_the_connection() -> None:
    client, server = meet()
    client.sends(raw(HEADERS, 0x24, 1, bytes(4)))
    server.closes(ErrorCode.FRAME_SIZE_ERROR)


@pytest.mark.parametrize("end_headers", [True, False])
def test_a_request_that_depends_on_itself_ends_the_connection_unseen(end_headers: bool) -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM), depends_on=1, end_headers=end_headers), continuation(1, b""))
    server.closes(ErrorCode.PROTOCOL_ERROR)
    assert server.saw == []


# CONTINUATION.


def test_a_header_block_may_come_in_pieces() -> None:
    client, server = meet(Limits(max_continuations=100))
    block = encode(call())
    pieces = [block[i : i + 1] for i in range(len(block))][:100]
    rest = block[len(pieces) :]
    client.sends(headers(1, pieces[0], end_headers=False))
    client.sends(*(continuation(1, piece, end_headers=False) for piece in pieces[1:]))
    client.sends(continuation(1, rest), data(1, message(b"hi"), end=True))
    server.answers(*echoed(1, b"hi"))


@pytest.mark.parametrize("at", [0, 1, 20])
def test_the_end_of_a_request_stands_on_its_first_piece(at: int) -> None:
    client, server = meet()
    block = encode(page())
    client.sends(headers(1, block[:at], end=True, end_headers=False), continuation(1, block[at:]))
    server.answers(headers(1, [(b":status", b"200")], end=True))


@pytest.mark.parametrize(
    "frame",
    [ping(), data(1, b"x"), headers(1, b""), headers(3, call()), continuation(3, b""), raw(99, 0, 1), SETTINGS_ACK],
)
def test_nothing_may_come_inside_a_header_block(frame: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, encode(call())[:10], end_headers=False), frame)
    server.closes(ErrorCode.PROTOCOL_ERROR, "a frame inside a header block")


def test_a_continuation_after_the_block_has_ended_ends_the_connection() -> None:
    client, server = meet()
    client.sends(headers(1, call()), continuation(1, b""))
    server.closes(ErrorCode.PROTOCOL_ERROR)


# Streams that are not open.

IDLE_FRAMES = {"DATA": data(5, b"x"), "RST_STREAM": rst(5), "WINDOW_UPDATE": window(5, 1)}


@pytest.mark.parametrize("frame", IDLE_FRAMES.values(), ids=IDLE_FRAMES.keys())
def test_a_frame_on_a_stream_that_never_was_ends_the_connection(frame: bytes) -> None:
    client, server = meet()
    client.sends(headers(3, call(HOLD)), frame)
    server.closes(ErrorCode.PROTOCOL_ERROR)


def test_priority_may_come_before_its_stream() -> None:
    client, server = meet()
    client.sends(priority(5, 3), headers(1, call()), data(1, message(b"hi"), end=True))
    server.answers(*echoed(1, b"hi"))


@pytest.mark.parametrize("frame", [rst(1), window(1, 1), priority(1)])
def test_late_frames_on_a_stream_that_has_ended_are_ignored(frame: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call()), data(1, message(b"hi"), end=True), frame)
    server.answers(*echoed(1, b"hi"))


@pytest.mark.parametrize("frame", [data(1, b"x"), headers(1, call())])
def test_a_request_on_a_stream_that_has_ended_ends_the_connection(frame: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call()), data(1, message(b"hi"), end=True), frame)
    server.closes(ErrorCode.STREAM_CLOSED)


@pytest.mark.parametrize("frame", [data(1, b"x"), headers(1, call())])
def test_a_request_on_a_stream_that_its_client_reset_ends_the_connection(frame: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), rst(1), frame)
    server.closes(ErrorCode.STREAM_CLOSED)


@pytest.mark.parametrize(
    "frame", [data(1, b"x"), data(1, b"x", end=True), headers(1, [(b"x", b"y")], end=True), rst(1), window(1, 1)]
)
def test_late_frames_on_a_stream_that_was_reset_from_here_are_ignored(frame: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), window(1, 0))
    server.resets(1, ErrorCode.PROTOCOL_ERROR)
    client.sends(frame)
    server.says_nothing()
    assert not server.closed


def test_a_late_header_block_still_counts_for_the_table() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), window(1, 0))
    # Literal with indexing on the reset stream; the next request refers to it.
    client.sends(headers(1, b"\x40\x01x\x05value", end=True))
    client.sends(headers(3, encode(call(HOLD)) + b"\xbe"), data(3, message(), end=True))
    assert server.hold.streams[3].head.field(b"x") == b"value"


@pytest.mark.parametrize("frame", [data(1, b"x"), headers(1, [(b"x", b"y")], end=True)])
def test_a_request_that_goes_on_after_its_end_is_reset(frame: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True), frame)
    server.resets(1, ErrorCode.STREAM_CLOSED)
    server.holds_nothing()


def test_stream_ids_may_skip_but_not_go_back() -> None:
    client, server = meet()
    client.sends(headers(101, call()), data(101, message(b"hi"), end=True))
    server.answers(*echoed(101, b"hi"))
    client.sends(headers(99, call()))
    server.closes(ErrorCode.PROTOCOL_ERROR, "a stream id below an earlier one")


def test_the_last_stream_id_of_all_is_served() -> None:
    client, server = meet()
    client.sends(headers(MAX_WINDOW, call()), data(MAX_WINDOW, message(b"hi"), end=True))
    server.answers(*echoed(MAX_WINDOW, b"hi"))


def test_a_stream_above_the_limit_is_refused_and_its_header_block_read() -> None:
    client, server = meet(Limits(max_concurrent_streams=2))
    client.sends(headers(1, call(HOLD)), headers(3, call(HOLD)))
    client.sends(headers(5, encode(call(HOLD)) + b"\x40\x01x\x05value"), data(5, message(), end=True))
    server.resets(5, ErrorCode.REFUSED_STREAM)
    client.sends(rst(1), headers(7, encode(call(HOLD)) + b"\xbe"), data(7, message(), end=True))
    assert server.hold.streams[7].head.field(b"x") == b"value"
    assert server.limits_reached == {"max_concurrent_streams": 1}
    assert 5 not in server.hold.streams


def test_memory_for_calls_is_given_back_when_they_have_ended(clock: Clock) -> None:
    client, server = meet()
    client.sends(*(headers(stream, call(HOLD)) for stream in range(1, 10_000, 2)))
    client.acknowledges()
    assert server.context.calls.used >= (5000 - FREE_CALLS) * CALL_BYTES
    client.sends(*(headers(stream, [(b"x", b"y")], end=True) for stream in range(1, 10_000, 2)))
    server.tick(clock.passes(0.5))
    assert server.connection.streams == {}
    assert server.context.calls.used <= CALLS_AT_ONCE * CALL_BYTES
    client.sends(*(headers(stream, call(HOLD)) for stream in range(10_001, 20_000, 2)))
    server.connection.lost("gone")
    assert server.context.calls.used == 0


def test_a_stream_makes_room_when_it_has_ended() -> None:
    client, server = meet(Limits(max_concurrent_streams=1))
    for stream in range(1, 100, 2):
        client.sends(headers(stream, call(HOLD)), data(stream, message(), end=True))
        server.hold.streams[stream].finish(OK)
        server.flush()
    assert server.limits_reached == {}
    server.holds_nothing()


@pytest.mark.parametrize("flags", [0, 0xFF])
def test_frames_of_unknown_type_are_ignored(flags: int) -> None:
    client, server = meet()
    client.sends(raw(99, flags, 0, b"what"), raw(0x10, flags, 7, b""), headers(1, call()))
    client.sends(raw(99, flags, 1, bytes(16384)), data(1, message(b"hi"), end=True))
    server.answers(*echoed(1, b"hi"))


def test_flags_that_a_frame_does_not_have_are_ignored() -> None:
    client, server = meet()
    client.sends(raw(HEADERS, 0x04 | 0xD2, 1, encode(call())), raw(DATA, 0x01 | 0xF6, 1, message(b"hi")))
    client.sends(raw(PING, 0xFE, 0, b"12345678"), raw(RST_STREAM, 0xFF, 1, bytes(4)))
    server.answers(*echoed(1, b"hi"), ping(ack=True))


# PING and GOAWAY.


def test_a_ping_comes_back() -> None:
    client, server = meet()
    client.sends(ping(b"\0\1\2\3\4\5\6\7"))
    server.answers(ping(b"\0\1\2\3\4\5\6\7", ack=True))


def test_a_pings_answer_is_not_answered() -> None:
    client, server = meet()
    client.sends(ping(ack=True))
    server.says_nothing()


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.INTERNAL_ERROR])
def test_a_client_that_goes_away_is_served_to_the_end(code: ErrorCode) -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO)), goaway(0, code, b"bye"), data(1, message(b"hi"), end=True))
    server.answers(*echoed(1, b"hi"))
    assert not server.closed


def test_nothing_is_read_after_the_connection_has_ended() -> None:
    client, server = meet()
    client.sends(ping(b"1" * 8), window(0, 0), headers(1, call(STREAM)))
    server.closes(ErrorCode.PROTOCOL_ERROR)
    client.sends(headers(3, call(STREAM)), headers(5, page(PAGE)))
    server.says_nothing()
    assert server.saw == []


# The table the client grants. esp uses none, but a client that takes some of it back waits to hear so.


@pytest.mark.parametrize("size", [0, 100, 4095])
def test_a_client_that_takes_back_its_table_is_told_so_once(size: int) -> None:
    client, server = meet()
    client.sends(headers(1, call()), data(1, message(b"a"), end=True))
    server.answers(*echoed(1, b"a"))
    client.sends(settings({SETTINGS_HEADER_TABLE_SIZE: size}))
    server.answers(SETTINGS_ACK)
    client.sends(headers(3, call()), data(3, message(b"b"), end=True))
    head, *rest = echoed(3, b"b")
    server.answers(headers(3, b"\x20" + head[9:]), *rest)
    client.sends(settings({SETTINGS_HEADER_TABLE_SIZE: 4096}), settings({SETTINGS_HEADER_TABLE_SIZE: size}))
    client.sends(headers(5, call()), data(5, message(b"c"), end=True))
    server.answers(SETTINGS_ACK, SETTINGS_ACK, *echoed(5, b"c"))


def test_a_client_that_grants_a_larger_table_is_told_nothing() -> None:
    client, server = meet(client_settings={SETTINGS_HEADER_TABLE_SIZE: 65536})
    client.sends(headers(1, call()), data(1, message(b"a"), end=True))
    server.answers(*echoed(1, b"a"))


@pytest.mark.parametrize("size", [16383, 16384, 16385, 40000])
def test_it_is_told_so_in_a_large_header_block_as_well(size: int) -> None:
    client, server = meet(client_settings={SETTINGS_HEADER_TABLE_SIZE: 0})
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    block = encode([(b":status", b"200")])
    block += encode([(b"x", b"y" * (size - len(block) - 6))])
    block = block[:size]
    server.says()
    server.hold.streams[1].send_headers(block, True)
    server.flush()
    frames = server.frames()
    assert b"".join(frame.payload for frame in frames) == b"\x20" + block
    assert [frame.kind for frame in frames] == [HEADERS] + [CONTINUATION] * (len(frames) - 1)
    assert max(len(frame.payload) for frame in frames) <= 16384
    assert frames[0].flags & 1
    assert [frame.flags & 4 for frame in frames] == [0] * (len(frames) - 1) + [4]
