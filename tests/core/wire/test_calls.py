"""Calls with one request message: whole, in pieces, malformed, too large, compressed, late."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hpack import Decoder

from esp.core.wire.frames import MAX_FRAME_SIZE, ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.server_stream import OVERLOADED, Sink
from esp.core.wire.status import Code, Status
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    ECHO,
    HOLD,
    PAGE,
    SETTINGS_ACK,
    STREAM,
    body,
    call,
    continuation,
    data,
    echoed,
    headers,
    meet,
    message,
    page,
    ping,
    refusal,
    rst,
    trailers,
    window,
)

GZIP = (b"grpc-encoding", b"gzip")


def compressed(content: bytes, packed: bytes | None = None) -> bytes:
    return b"\1" + message(gzip.compress(content) if packed is None else packed)[1:]


# One whole message.


def test_a_whole_request_gets_a_whole_answer() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO)), data(1, message(b"hi"), end=True))
    server.answers(*echoed(1, b"hi"))
    assert server.saw == [("message", 1, message(b"hi"))]
    server.holds_nothing()


def test_a_client_without_a_table_is_answered_the_same() -> None:
    client, server = meet()
    client.gives_up_its_table()
    for stream in (5, 7, 9):
        client.sends(headers(stream, call(ECHO)), data(stream, message(b"hi"), end=True))
        server.answers(*echoed(stream, b"hi"))
    server.holds_nothing()


def test_many_requests_in_one_piece_are_answered_in_order() -> None:
    client, server = meet()
    client.gives_up_its_table()
    asked = [headers(s, call(ECHO)) + data(s, message(b"%d" % s), end=True) for s in range(5, 105, 2)]
    client.sends(*asked)
    server.answers(*(frame for s in range(5, 105, 2) for frame in echoed(s, b"%d" % s)))


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("split", range(len(message(b"hello")) + 1))
def test_a_message_may_be_split_over_frames_at_every_byte(split: int, has_table: bool) -> None:
    client, server = meet()
    if not has_table:
        client.gives_up_its_table()
    whole = message(b"hello")
    client.sends(headers(5, call(ECHO)), data(5, whole[:split]), data(5, whole[split:], end=True))
    server.answers(*echoed(5, b"hello"))
    server.holds_nothing()


def test_a_message_may_come_in_frames_of_one_byte() -> None:
    client, server = meet()
    whole = message(b"hello, world")
    client.sends(headers(1, call(ECHO)), *(data(1, whole[i : i + 1]) for i in range(len(whole))), data(1, end=True))
    server.answers(*echoed(1, b"hello, world"))
    server.holds_nothing()


def test_the_end_may_come_in_a_frame_of_its_own() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO)), data(1, message(b"hi")))
    server.says_nothing()
    client.sends(data(1, end=True))
    server.answers(*echoed(1, b"hi"))
    server.holds_nothing()


class TestAMessageWithoutEnd:
    """etcd serves the message of a unary call when it is whole, and tells a client that goes on that nobody listens."""

    def test_it_is_served_when_nothing_more_has_come(self) -> None:
        client, server = meet()
        client.sends(headers(1, call(ECHO)), data(1, message(b"hi")))
        server.connection.paused()
        server.flush()
        server.answers(*echoed(1, b"hi"), rst(1, ErrorCode.NO_ERROR))
        client.sends(data(1, end=True))
        server.says_nothing()
        server.holds_nothing()

    def test_the_end_may_follow_while_it_is_served(self) -> None:
        client, server = meet()
        client.sends(headers(1, call(HOLD)), data(1, message(b"hi")))
        server.connection.paused()
        client.sends(data(1, end=True))
        server.connection.paused()
        server.hold.streams[1].respond(b"hello")
        server.flush()
        server.answers(*echoed(1, b"hello"))
        assert server.saw == [("message", 1, message(b"hi"))]
        server.holds_nothing()

    def test_a_second_message_is_one_too_many(self) -> None:
        client, server = meet()
        client.sends(headers(1, call(HOLD)), data(1, message(b"hi")))
        server.connection.paused()
        client.sends(data(1, message(b"again")))
        server.connection.paused()
        server.answers(
            refusal(1, Code.INTERNAL, "more than one message in a unary request"), rst(1, ErrorCode.NO_ERROR)
        )
        assert server.saw == [("message", 1, message(b"hi"))]
        server.holds_nothing()

    @pytest.mark.parametrize("rest", [message(b"again"), message(b"again")[:3]])
    def test_more_that_came_with_it_is_seen_first(self, rest: bytes) -> None:
        client, server = meet()
        client.sends(headers(1, call(HOLD)), data(1, message(b"hi")), data(1, rest))
        server.connection.paused()
        assert server.saw == []

    def test_a_promised_length_is_waited_for(self) -> None:
        client, server = meet()
        client.sends(headers(1, call(HOLD, (b"content-length", b"100"))), data(1, message(b"hi")))
        server.connection.paused()
        assert server.saw == []

    def test_it_has_not_come_too_late(self, clock: Clock) -> None:
        client, server = meet()
        client.sends(headers(1, call(HOLD)), data(1, message(b"hi")))
        client.acknowledges()
        server.connection.paused()
        for _ in range(200):
            server.tick(clock.passes(0.5))
        assert list(server.connection.streams) == [1]

    def test_one_reset_meanwhile_is_not_served(self) -> None:
        client, server = meet()
        client.sends(headers(1, call(HOLD)), data(1, message(b"hi")), rst(1))
        server.connection.paused()
        assert server.saw == []
        server.holds_nothing()


def test_an_empty_message_is_a_message() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO)), data(1, message(), end=True))
    server.answers(*echoed(1))


def test_padding_is_not_part_of_the_message() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO), pad=7), data(1, message(b"padded")[:3], pad=0))
    client.sends(data(1, message(b"padded")[3:], pad=255, end=True))
    server.answers(*echoed(1, b"padded"))


def test_a_large_message_comes_in_many_frames() -> None:
    client, server = meet()
    content = bytes(range(256)) * 8000
    whole = message(content)
    client.sends(headers(1, call(HOLD)))
    for start in range(0, len(whole), MAX_FRAME_SIZE):
        client.sends(data(1, whole[start : start + MAX_FRAME_SIZE]))
    assert server.context.buffers.used == len(content)
    client.sends(data(1, end=True))
    assert server.saw == [("message", 1, whole)]
    assert server.context.buffers.used == 0


def test_the_answer_of_a_unary_call_is_head_message_and_trailers() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    stream = server.hold.streams[1]
    stream.start()
    stream.send_data(prefix(b"answer"), False)
    stream.finish(Status(Code.OK))
    server.flush()
    server.answers(*echoed(1, b"answer"))
    server.holds_nothing()


def test_an_error_alone_is_one_header_block() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    server.hold.streams[1].finish(Status(Code.NOT_FOUND, "no such thing"))
    server.flush()
    server.answers(refusal(1, Code.NOT_FOUND, "no such thing"))
    server.holds_nothing()


@pytest.mark.parametrize("before", ["50 % für ", "50 % for ", "50%"])
def test_an_error_text_is_percent_encoded_and_bounded(before: str) -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    server.hold.streams[1].finish(Status(Code.NOT_FOUND, before + "ö" * 5000))
    server.flush()
    *_, block = server.frames()
    value = dict(Decoder().decode(block.payload, raw=True))[b"grpc-message"]
    assert 4093 <= len(value) <= 4096
    whole = before.replace("%", "%25").replace("ü", "%C3%BC").encode() + b"%C3%B6" * 5000
    assert whole.startswith(value)
    assert whole[len(value) :][:1] == b"%"


def test_an_answer_after_the_call_is_over_is_not_sent() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    client.sends(rst(1))
    server.hold.streams[1].respond(b"too late")
    server.hold.streams[1].finish(Status(Code.INTERNAL, "too late"))
    server.flush()
    server.says_nothing()
    server.holds_nothing()


def test_only_the_first_end_of_a_call_counts_even_while_it_waits_for_a_window() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    stream = server.hold.streams[1]
    stream.respond(bytes(70_000))
    stream.finish(Status(Code.INTERNAL, "once more"))
    server.flush()
    server.says()
    client.sends(window(0, 70_000), window(1, 70_000))
    assert server.frames()[-1].payload == encode(trailers())
    server.holds_nothing()


# Not one whole message.


NOT_ONE_MESSAGE = {
    "no DATA frame": [headers(1, call(), end=True)],
    "an empty body": [headers(1, call()), data(1, end=True)],
    "half a prefix": [headers(1, call()), data(1, b"\0\0\0", end=True)],
    "a prefix alone": [headers(1, call()), data(1, message(b"hello")[:5], end=True)],
    "half a message": [headers(1, call()), data(1, message(b"hello")[:7], end=True)],
    "half a message, then an empty frame": [headers(1, call()), data(1, message(b"hello")[:7]), data(1, end=True)],
    "a message and half a prefix": [headers(1, call()), data(1, message(b"hello") + b"\0\0", end=True)],
    "a message and half of another": [headers(1, call()), data(1, message(b"hello") + message(b"x")[:5], end=True)],
    "no DATA, but trailers": [headers(1, call()), headers(1, [], end=True)],
}


@pytest.mark.parametrize("said", NOT_ONE_MESSAGE.values(), ids=NOT_ONE_MESSAGE.keys())
@pytest.mark.parametrize("has_table", [True, False])
def test_a_request_that_is_no_whole_message_is_refused(said: list[bytes], has_table: bool) -> None:
    client, server = meet()
    if not has_table:
        client.gives_up_its_table()
        said = [frame[:8] + b"\5" + frame[9:] for frame in said]
    client.sends(*said)
    server.answers(refusal(5 - 4 * has_table, Code.INTERNAL, "the request ended without a whole message"))
    assert server.saw == []
    server.holds_nothing()


TWO_MESSAGES = {
    "in one frame": [data(1, message(b"a") + message(b"b"), end=True)],
    "in two frames": [data(1, message(b"a")), data(1, message(b"b"), end=True)],
    "in an odd cut": [data(1, message(b"a") + message(b"b")[:2]), data(1, message(b"b")[2:], end=True)],
    "both empty": [data(1, message() + message(), end=True)],
}


@pytest.mark.parametrize("said", TWO_MESSAGES.values(), ids=TWO_MESSAGES.keys())
def test_two_messages_are_one_too_many(said: list[bytes]) -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO)), *said)
    server.answers(refusal(1, Code.INTERNAL, "more than one message in a unary request"))
    assert server.saw == []
    server.holds_nothing()


def test_two_messages_are_noticed_before_the_request_ends() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO)), data(1, message(b"a")), data(1, message(b"b")))
    server.answers(refusal(1, Code.INTERNAL, "more than one message in a unary request"), rst(1, ErrorCode.NO_ERROR))
    server.holds_nothing()


def test_a_message_too_large_is_refused_by_its_prefix() -> None:
    client, server = meet(Limits(max_message_bytes=100))
    client.sends(headers(1, call(ECHO)), data(1, message(bytes(101))[:5]))
    text = "grpc: received message larger than max (101 vs. 100)"
    server.answers(refusal(1, Code.RESOURCE_EXHAUSTED, text), rst(1, ErrorCode.NO_ERROR))
    assert server.limits_reached == {"max_message_bytes": 1}
    server.holds_nothing()


def test_a_message_as_large_as_allowed_is_served() -> None:
    client, server = meet(Limits(max_message_bytes=100))
    client.sends(headers(1, call(ECHO)), data(1, message(bytes(100))), data(1, end=True))
    server.answers(*echoed(1, bytes(100)))


def test_what_is_announced_is_not_reserved() -> None:
    client, server = meet(Limits(max_buffered_bytes=1000))
    client.sends(headers(1, call(ECHO)), data(1, message(bytes(2_000_000))[:500]))
    server.says_nothing()
    assert server.context.buffers.used == 500


def test_requests_that_do_not_end_are_held_within_the_budget() -> None:
    client, server = meet(Limits(max_buffered_bytes=1000))
    for stream in (1, 3, 5):
        client.sends(headers(stream, call(ECHO)), data(stream, message(bytes(500))[:400]))
    server.answers(refusal(5, OVERLOADED.code, OVERLOADED.message), rst(5, ErrorCode.NO_ERROR))
    assert server.limits_reached == {"max_buffered_bytes": 1}
    assert server.context.buffers.used == 800
    client.sends(rst(1), data(3, bytes(105), end=True))
    server.answers(*echoed(3, bytes(500)))
    server.holds_nothing()


def test_a_call_that_is_over_is_given_no_memory_and_that_is_no_lack_of_it(caplog: pytest.LogCaptureFixture) -> None:
    client, server = meet()
    client.sends(
        *(frame for stream in (1, 3) for frame in (headers(stream, call(HOLD)), data(stream, message(), end=True)))
    )
    never_held, held = server.hold.streams[1], server.hold.streams[3]
    assert held.hold(100)
    client.sends(rst(1), rst(3))
    server.says()
    for stream in (never_held, held):
        assert not stream.hold(10)
        stream.cut()
    assert server.limits_reached == {}
    assert "fails" not in caplog.text
    server.holds_nothing()


# content-length.


def test_a_matching_content_length_is_fine() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO, (b"content-length", b"7"))), data(1, message(b"hi"), end=True))
    client.sends(headers(3, call(ECHO, (b"content-length", b"7"))), data(3, message(b"hi")), data(3, end=True))
    server.answers(*echoed(1, b"hi"), *echoed(3, b"hi"))


MISMATCHES = {
    "too short": [data(1, message(b"h"), end=True)],
    "too short, end apart": [data(1, message(b"h")), data(1, end=True)],
    "too short, with trailers": [data(1, message(b"h")), headers(1, [(b"x", b"y")], end=True)],
    "too long": [data(1, message(b"hip"), end=True)],
    "too long before its end": [data(1, message(b"hip"))],
}


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("path", [ECHO, STREAM])
@pytest.mark.parametrize("said", MISMATCHES.values(), ids=MISMATCHES.keys())
def test_data_that_does_not_match_the_content_length_is_malformed(
    said: list[bytes], path: bytes, has_table: bool
) -> None:
    client, server = meet()
    head = headers(1, call(path, (b"content-length", b"7")))
    if not has_table:
        client.gives_up_its_table()
        head, *said = [frame[:8] + b"\5" + frame[9:] for frame in (head, *said)]
    client.sends(head, *said)
    server.resets(1 if has_table else 5, ErrorCode.PROTOCOL_ERROR)
    assert ("message", 1) not in [event[:2] for event in server.saw]
    server.holds_nothing()


@pytest.mark.parametrize("path", [ECHO, STREAM, PAGE])
def test_a_content_length_without_data_is_malformed_before_anybody_sees_it(path: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(path, (b"content-length", b"7")), end=True))
    server.resets(1, ErrorCode.PROTOCOL_ERROR)
    assert server.saw == []


# Compression.


def test_a_compressed_message_arrives_plain() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO, GZIP)), data(1, compressed(b"hello" * 100), end=True))
    server.answers(*echoed(1, b"hello" * 100))


def test_a_plain_message_of_a_client_that_may_compress_arrives_plain() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO, GZIP)), data(1, message(b"hello"), end=True))
    server.answers(*echoed(1, b"hello"))


def test_all_members_of_a_compressed_message_count() -> None:
    client, server = meet()
    packed = gzip.compress(b"one, ") + gzip.compress(b"two")
    client.sends(headers(1, call(ECHO, GZIP)), data(1, compressed(b"", packed), end=True))
    server.answers(*echoed(1, b"one, two"))


NO_FLAG = "grpc: compressed flag set with identity or empty encoding"
BAD_COMPRESSION = {
    "no encoding": (call(), compressed(b"x"), Code.INTERNAL, NO_FLAG),
    "identity": (call(ECHO, (b"grpc-encoding", b"identity")), compressed(b"x"), Code.INTERNAL, NO_FLAG),
    "an unknown encoding": (
        call(ECHO, (b"grpc-encoding", b"snappy")),
        compressed(b"x"),
        Code.UNIMPLEMENTED,
        'grpc: Decompressor is not installed for grpc-encoding "snappy"',
    ),
    "a flag of 2": (
        call(),
        b"\2" + message(b"x")[1:],
        Code.INTERNAL,
        "grpc: received unexpected payload format 2",
    ),
}


@pytest.mark.parametrize(("head", "content", "code", "text"), BAD_COMPRESSION.values(), ids=BAD_COMPRESSION.keys())
def test_a_flag_that_the_encoding_does_not_explain(head, content: bytes, code: Code, text: str) -> None:
    client, server = meet()
    client.sends(headers(1, head), data(1, content, end=True))
    server.answers(refusal(1, code, text))
    assert server.saw == []


@pytest.mark.parametrize(
    "packed",
    [b"", b"no gzip", gzip.compress(b"hello")[:-1], gzip.compress(b"hello") + b"rest", zlib.compress(b"hello")],
    ids=["empty", "other bytes", "cut", "with a rest", "zlib"],
)
def test_what_cannot_be_decompressed_is_refused(packed: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO, GZIP)), data(1, compressed(b"", packed), end=True))
    [answer] = [frame for frame in server.frames() if frame.stream == 1]
    assert b"grpc: failed to decompress the received message" in answer.payload
    assert encode([(b"grpc-status", b"13")]) in answer.payload
    assert server.saw == []
    server.holds_nothing()


@pytest.mark.parametrize("members", [1, 3])
def test_a_bomb_is_not_unfolded_beyond_the_limit(members: int) -> None:
    client, server = meet(Limits(max_message_bytes=100_000))
    bomb = gzip.compress(bytes(100_001 // members + members)) * members
    assert len(bomb) < 1000
    client.sends(headers(1, call(ECHO, GZIP)), data(1, compressed(b"", bomb), end=True))
    text = "grpc: received message after decompression larger than max 100000"
    server.answers(refusal(1, Code.RESOURCE_EXHAUSTED, text))
    assert server.limits_reached == {"max_message_bytes": 1}


# Trailers of the request.


@pytest.mark.parametrize("path", [ECHO, STREAM])
def test_request_trailers_end_the_request_and_go_nowhere(path: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(path)), data(1, message(b"hi")), headers(1, [(b"x-secret", b"value")], end=True))
    if path == ECHO:
        server.answers(*echoed(1, b"hi"))
    else:
        assert server.saw == [("open", 1), ("data", 1, message(b"hi"), False), ("data", 1, b"", True)]
        assert server.stream.streams[1].head.field(b"x-secret") == b""


def test_trailers_that_look_like_a_request_are_malformed() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO)), data(1, message(b"hi")), headers(1, call(ECHO), end=True))
    server.resets(1, ErrorCode.PROTOCOL_ERROR)
    assert server.saw == []
    server.holds_nothing()


def test_a_second_header_block_that_does_not_end_the_request_is_malformed() -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO)), headers(1, [(b"x", b"y")]))
    server.resets(1, ErrorCode.PROTOCOL_ERROR)
    server.holds_nothing()


def test_trailers_may_come_in_pieces() -> None:
    client, server = meet()
    block = encode([(b"x", b"y" * 100)])
    client.sends(headers(1, call(ECHO)), data(1, message(b"hi")))
    client.sends(headers(1, block[:10], end=True, end_headers=False), continuation(1, block[10:]))
    server.answers(*echoed(1, b"hi"))


# Early answers.


def test_an_answer_before_the_request_has_ended_stops_the_client() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), data(1, message(b"a")))
    server.stream.streams[1].sink = None
    server.stream.streams[1].finish(Status(Code.PERMISSION_DENIED, "no"))
    server.flush()
    server.answers(refusal(1, Code.PERMISSION_DENIED, "no"), rst(1, ErrorCode.NO_ERROR))
    client.sends(data(1, message(b"b")), data(1, message(b"c"), end=True), window(1, 10), rst(1))
    server.says_nothing()
    assert not server.closed
    server.holds_nothing()


def test_what_is_still_sent_to_a_call_whose_answer_waits_for_a_window_is_dropped() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)))
    stream = server.stream.streams[1]
    stream.sink = None
    stream.start()
    stream.send_data(bytes(100_000), False)
    stream.finish(Status(Code.OK))
    server.flush()
    server.says()
    client.sends(data(1, message(b"more")), data(1, message(b"and more")))
    server.says_nothing()
    client.sends(window(0, 100_000), window(1, 100_000))
    *_, last, reset = server.frames()
    assert last.payload == encode(trailers())
    assert reset.stream == 1
    server.holds_nothing()


# Pages.


def test_a_page_is_served_without_grpc() -> None:
    client, server = meet()
    client.sends(headers(1, page(), end=True))
    client.sends(headers(3, page(method=b"POST")), data(3, b"ignored " * 1000), data(3, end=True))
    server.answers(headers(1, [(b":status", b"200")], end=True), headers(3, [(b":status", b"200")], end=True))
    assert server.saw == [("message", 1, b""), ("message", 3, b"")]
    server.holds_nothing()


# Deadlines.


@pytest.mark.parametrize("value", [b"0S", b"0n", b"00000000H"])
@pytest.mark.parametrize("has_table", [True, False])
def test_a_deadline_of_nothing_has_passed(value: bytes, has_table: bool) -> None:
    client, server = meet()
    if not has_table:
        client.gives_up_its_table()
    client.sends(headers(5, call(ECHO, (b"grpc-timeout", value))), data(5, message(), end=True))
    server.answers(
        refusal(5, Code.DEADLINE_EXCEEDED, "context deadline exceeded"),
        rst(5, ErrorCode.NO_ERROR),
    )
    assert server.saw == []
    server.holds_nothing()


@pytest.mark.parametrize("value", [b"S", b"1", b"1s", b"-1S", b"1.5S", b"123456789S", b"1 S", b"\xc2\xb2S", b"+1S"])
@pytest.mark.parametrize("path", [ECHO, STREAM])
def test_a_malformed_deadline_is_refused(value: bytes, path: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(path, (b"grpc-timeout", value))), data(1, message(), end=True))
    server.answers(refusal(1, Code.INTERNAL, "malformed grpc-timeout"), rst(1, ErrorCode.NO_ERROR))
    assert server.saw == []


def test_a_call_ends_shortly_after_its_deadline(clock: Clock) -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD, (b"grpc-timeout", b"2S"))), data(1, message(), end=True))
    server.tick(clock.passes(2.0))
    server.says_nothing()
    server.tick(clock.passes(0.1))
    server.answers(refusal(1, Code.DEADLINE_EXCEEDED, "context deadline exceeded"))
    server.holds_nothing()


def test_a_streaming_call_whose_deadline_passes_is_taken_from_whoever_serves_it(clock: Clock) -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM, (b"grpc-timeout", b"500m"))))
    server.stream.streams[1].start()
    server.flush()
    server.says()
    server.tick(clock.passes(0.6))
    server.answers(
        headers(1, trailers(Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded")), end=True),
        rst(1, ErrorCode.NO_ERROR),
    )
    assert server.saw[1:] == [("cancelled", 1, ErrorCode.CANCEL, "context deadline exceeded")]
    server.tick(clock.passes(10))
    server.says_nothing()


def test_at_its_deadline_an_answer_that_waits_for_a_window_is_given_up(clock: Clock) -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD, (b"grpc-timeout", b"1S"))), data(1, message(), end=True))
    server.hold.streams[1].respond(bytes(100_000))
    server.flush()
    server.says()
    server.tick(clock.passes(1.1))
    server.resets(1, ErrorCode.CANCEL)
    server.holds_nothing()


def test_half_a_request_is_dropped_at_its_deadline(clock: Clock) -> None:
    client, server = meet()
    client.sends(headers(1, call(ECHO, (b"grpc-timeout", b"1S"))), data(1, message(bytes(1000))[:500]))
    server.tick(clock.passes(1.1))
    server.answers(
        refusal(1, Code.DEADLINE_EXCEEDED, "context deadline exceeded"),
        rst(1, ErrorCode.NO_ERROR),
    )
    server.holds_nothing()


def test_the_time_left_is_what_the_next_hop_is_told(clock: Clock) -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD, (b"grpc-timeout", b"2S"))), data(1, message(), end=True))
    clock.passes(0.5)
    stream = server.hold.streams[1]
    assert stream.remaining() == pytest.approx(1.5)
    assert stream.remaining_timeout() == b"1500000u"
    clock.passes(5)
    assert stream.remaining_timeout() == b"0u"


@pytest.mark.parametrize("value", [b"99999999H", b"1H", b"24H"])
def test_a_deadline_may_be_hours_away(clock: Clock, value: bytes) -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD, (b"grpc-timeout", value))), data(1, message(), end=True))
    client.acknowledges()
    server.says()
    server.tick(clock.passes(3000))
    server.says_nothing()
    left = server.hold.streams[1].remaining_timeout()
    assert len(left) <= 9
    assert left[-1:] in (b"m", b"S")


def test_a_call_without_a_deadline_has_none() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    assert server.hold.streams[1].remaining() is None
    assert server.hold.streams[1].remaining_timeout() == b""


def test_a_request_whose_message_does_not_come_is_ended(clock: Clock) -> None:
    client, server = meet(Limits(request_timeout=60))
    client.sends(
        headers(1, call(ECHO)), headers(3, call(ECHO)), data(3, message(b"hello")[:7]), headers(5, call(STREAM))
    )
    client.acknowledges()
    server.says()
    for _ in range(62):
        server.tick(clock.passes(1))
    text = "esp: the request's message did not come in time"
    server.answers(
        refusal(1, Code.INTERNAL, text),
        rst(1, ErrorCode.NO_ERROR),
        refusal(3, Code.INTERNAL, text),
        rst(3, ErrorCode.NO_ERROR),
    )
    assert server.limits_reached == {"request_timeout": 2}
    assert server.context.buffers.used == 0
    assert list(server.connection.streams) == [5]


def test_a_call_that_is_being_served_may_take_long(clock: Clock) -> None:
    client, server = meet(Limits(request_timeout=60))
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    client.acknowledges()
    for _ in range(100):
        server.tick(clock.passes(1))
    server.hold.streams[1].respond(b"at last")
    server.flush()
    server.answers(*echoed(1, b"at last"))


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_request_for_a_page_that_does_not_end_is_ended(clock: Clock, method: bytes) -> None:
    client, server = meet(Limits(request_timeout=60))
    client.sends(headers(1, page(method=method)))
    for _ in range(62):
        client.sends(data(1, b"more of what nobody reads"))
        server.tick(clock.passes(1))
    server.answers(headers(1, [(b":status", b"408")], end=True), rst(1, ErrorCode.NO_ERROR))
    assert server.limits_reached == {"request_timeout": 1}


@pytest.mark.parametrize(
    ("frame", "seconds"),
    [
        (headers(3, call(ECHO))[:-1], 10),
        (headers(3, call(ECHO), end_headers=False) + continuation(3, b"abc")[:-1], 10),
        (data(1, message(b"hello"))[:-1], 60),
        (ping()[:3], 60),
    ],
    ids=["HEADERS", "CONTINUATION", "DATA", "a few bytes"],
)
def test_a_frame_that_does_not_end_ends_the_connection(clock: Clock, frame: bytes, seconds: int) -> None:
    client, server = meet(Limits(header_timeout=10, request_timeout=60))
    client.sends(headers(1, call(STREAM)), SETTINGS_ACK, frame)
    for _ in range(seconds):
        server.tick(clock.passes(1))
    assert not server.closed
    for _ in range(3):
        server.tick(clock.passes(1))
    server.closes(ErrorCode.NO_ERROR)


def test_frames_that_come_in_pieces_may_go_on_for_ever(clock: Clock) -> None:
    client, server = meet(Limits(header_timeout=10, request_timeout=60))
    client.sends(headers(1, call(STREAM)), SETTINGS_ACK)
    said = data(1, bytes(100))
    client.sends(said[:20])
    for _ in range(200):
        server.tick(clock.passes(1))
        client.sends(said[20:] + said[:20])
    assert not server.closed
    assert server.limits_reached == {}


def test_bytes_that_wait_for_their_turn_are_not_late(clock: Clock) -> None:
    client, server = meet(Limits(header_timeout=10, request_timeout=60))
    client.sends(headers(1, call(ECHO)), SETTINGS_ACK, headers(3, call(ECHO))[:-1])
    server.connection.unread = True
    for _ in range(200):
        server.tick(clock.passes(1))
    assert not server.closed
    assert server.limits_reached == {}


def test_a_streaming_request_with_half_a_message_is_ended(clock: Clock) -> None:
    client, server = meet(Limits(request_timeout=60))
    client.sends(headers(1, call(STREAM)), headers(3, call(STREAM)), headers(5, call(STREAM)))
    client.acknowledges()
    halves: dict[int, int | None] = {1: None, 3: 7, 5: 0}

    class Half(Sink):
        def __init__(self, stream: int) -> None:
            self.stream = stream

        def half_message(self) -> int | None:
            return halves[self.stream]

    for number, stream in server.stream.streams.items():
        stream.sink = Half(number)
    for second in range(62):
        halves[5] = second  # always a half, and never the same
        server.tick(clock.passes(1))
    assert list(server.connection.streams) == [1, 5]
    assert server.limits_reached == {"request_timeout": 1}


# Streaming calls.


def test_a_streaming_call_passes_data_on_as_it_comes() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)))
    client.sends(data(1, message(b"a")[:3]), data(1, message(b"a")[3:] + message(b"b"), end=True))
    assert server.saw == [
        ("open", 1),
        ("data", 1, message(b"a")[:3], False),
        ("data", 1, message(b"a")[3:] + message(b"b"), True),
    ]


def test_a_client_may_go_on_sending_and_end_first_or_last() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)))
    stream = server.stream.streams[1]
    stream.start()
    stream.send_data(prefix(b"one"), False)
    server.flush()
    client.sends(data(1, message(b"a"), end=True))
    stream.send_data(prefix(b"two"), False)
    stream.finish(Status(Code.OK))
    server.flush()
    frames = server.frames()
    assert body(frames, 1) == prefix(b"one") + prefix(b"two")
    server.holds_nothing()


def test_a_reset_reaches_whoever_serves_the_call() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), rst(1, ErrorCode.CANCEL))
    assert server.saw == [("open", 1), ("cancelled", 1, ErrorCode.CANCEL, "")]
    server.says_nothing()
    server.holds_nothing()


def test_a_lost_connection_reaches_whoever_serves_its_calls() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), headers(3, call(STREAM)), headers(5, call(ECHO)))
    server.stream.streams[3].send_data(bytes(100_000), False)
    server.connection.on_flush = None
    server.connection.lost("connection reset by peer")
    server.flush()
    assert [event for event in server.saw if event[0] == "cancelled"] == [
        ("cancelled", 1, ErrorCode.CANCEL, "connection reset by peer"),
        ("cancelled", 3, ErrorCode.CANCEL, "connection reset by peer"),
    ]
    server.holds_nothing()
