"""esp as the client of an etcd: the frames that it sends, and the events of its calls."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

import pytest
from hpack import Decoder
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from esp.core.wire import frames
from esp.core.wire.client import CONNECTION_WINDOW, KEEPALIVE_PING, LAST_STREAM_ID
from esp.core.wire.client_stream import STREAM_WINDOW
from esp.core.wire.frames import SETTINGS_ACK, ErrorCode, settings
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.recent_resets import RECENTLY_RESET
from esp.core.wire.status import Code, Status
from tests.core.wire import upstream
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    ECHO,
    HEAD,
    body,
    continuation,
    data,
    goaway,
    headers,
    message,
    ping,
    raw,
    rst,
    split,
    trailers,
    window,
)
from tests.core.wire.upstream import PREFACE_SAID, Call, Caller, dial, forward, head_of, request
from tests.examples import tries

GOING_AWAY = ("reset", ErrorCode.REFUSED_STREAM, "the server is going away")
MAX_STREAM_ID = 2**31 - 1


@pytest.fixture(autouse=True, params=[False, True], ids=["decoded", "known"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this with a server whose header blocks are decoded, and with one whose blocks are looked up."""
    monkeypatch.setattr(upstream, "blocks_are_known", request.param)


def ok(stream: int, content: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """A whole answer."""
    return headers(stream, HEAD), data(stream, message(content)), headers(stream, trailers(), end=True)


def only_trailers(stream: int, status: Status = Status(Code.OK)) -> bytes:  # noqa: B008
    """An answer in one block."""
    return headers(stream, HEAD + trailers(status), end=True)


class TestPreface:
    def test_after_the_preface_come_settings_and_the_connection_window(self) -> None:
        Caller().says(*PREFACE_SAID)

    def test_settings_are_acknowledged(self) -> None:
        esp = Caller()
        esp.said()
        esp.hears(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 7}))
        esp.says(SETTINGS_ACK)
        assert esp.changes == ["room True"]

    def test_a_first_frame_other_than_settings_is_a_fault(self) -> None:
        esp = Caller()
        esp.hears(ping())
        esp.ends(ErrorCode.PROTOCOL_ERROR)

    def test_an_http1_answer_is_a_fault(self) -> None:
        esp = Caller()
        esp.hears(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        esp.ends(ErrorCode.FRAME_SIZE_ERROR)

    def test_without_settings_the_connection_ends(self, clock: Clock) -> None:
        esp = Caller(Limits(preface_timeout=3))
        esp.tick(clock.passes(2.9))
        assert not esp.closed
        esp.tick(clock.passes(0.2))
        assert esp.closed

    def test_calls_may_be_made_before_the_settings_come(self) -> None:
        esp = Caller()
        call = esp.calls(b"hi")
        esp.hears(settings({}), SETTINGS_ACK, *ok(1, b"ho"))
        assert call.told == ["head", message(b"ho"), "OK"]

    def test_not_more_than_100_calls_before_the_settings_come(self) -> None:
        esp = Caller()
        for _ in range(100):
            esp.calls()
        assert not esp.connection.has_room
        esp.hears(settings({}))
        assert esp.connection.has_room


class TestCalls:
    def test_a_unary_call_and_its_answer(self) -> None:
        esp = dial()
        call = esp.calls(b"hi")
        esp.says(*request(1, b"hi"))
        esp.hears(*ok(1, b"ho"))
        assert call.told == ["head", message(b"ho"), "OK"]
        esp.says_nothing()
        esp.holds_nothing()

    def test_ids_are_odd_and_rise(self) -> None:
        esp = dial()
        assert [esp.calls().id for _ in range(3)] == [1, 3, 5]

    def test_the_second_block_refers_to_the_first(self) -> None:
        esp = dial()
        esp.calls()
        esp.calls()
        first, _, second, _ = split(esp.raw())
        assert len(first.payload) > 60
        assert second.payload == bytes.fromhex("8386 c1 c0 bf be")

    def test_metadata_stays_out_of_the_servers_table(self) -> None:
        esp = dial()
        server = Decoder()
        secrets = [(b"token", b"s1"), (b"authorization", b"s2"), (b"cookie", b"s3"), (b"user-agent", b"s4")]
        for _ in range(2):
            esp.connection.call(Call(esp.connection), (b"/a/B", encode(secrets)), b"5S", message(), end=True)
        esp.flush()
        for frame in split(esp.raw()):
            if frame.kind == frames.HEADERS:
                assert [(bytes(n), bytes(v)) for n, v in server.decode(frame.payload, raw=True)][6:-1] == secrets
        assert {bytes(name) for name, _ in server.header_table.dynamic_entries} == {
            b":authority", b":path", b"content-type", b"te"
        }  # fmt: skip

    @pytest.mark.parametrize("sizes", [[0], [100], [4095], [0, 4096], [4096, 50, 2000], [8192, 10, 5000, 3000]])
    def test_a_server_that_grants_another_table_is_told_of_it_once(self, sizes: list[int]) -> None:
        """RFC 7541, section 4.2. What left before its SETTINGS were acknowledged may still use the old one."""
        esp = dial()
        server = Decoder()
        esp.calls()
        early = Call(esp.connection)
        esp.connection.call(early, forward(b"/early/Call"), b"", message(), end=True)
        for size in sizes:
            esp.hears(settings({frames.SETTINGS_HEADER_TABLE_SIZE: size}))
        for path in (ECHO, b"/later/Call", ECHO, b"/later/Call"):
            esp.calls(path=path)
        blocks = []
        for frame in split(esp.raw()):
            if frame.kind == frames.SETTINGS:
                server.max_allowed_table_size = sizes[len(sizes) - 1]
            elif frame.kind == frames.HEADERS:
                blocks.append(frame.payload)
                assert dict(server.decode(frame.payload, raw=True))[b":method"] == b"POST"
        assert [block[0] == 0x20 for block in blocks] == [False, False, True, False, False, False]
        assert server.header_table_size == min(4096, sizes[-1])

    def test_a_larger_table_is_not_used(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_HEADER_TABLE_SIZE: 65536})
        esp.calls()
        assert next(split(esp.raw())).payload.startswith(bytes.fromhex("838641"))

    def test_the_timeout_is_sent_as_it_came(self) -> None:
        esp = dial()
        esp.calls(b"x", timeout=b"123m")
        esp.says(head_of(1, b"/test.Test/Echo", (b"grpc-timeout", b"123m")), data(1, message(b"x"), end=True))

    def test_a_streaming_call_in_both_directions(self) -> None:
        esp = dial()
        call = esp.calls(None)
        esp.says(head_of(1))
        assert call.send_data(message(b"a"), False)
        esp.flush()
        esp.says(data(1, message(b"a")))
        esp.hears(headers(1, HEAD), data(1, message(b"A")))
        assert call.send_data(message(b"b"), True)
        esp.flush()
        esp.says(data(1, message(b"b"), end=True))
        esp.hears(data(1, message(b"B")), headers(1, trailers(), end=True))
        assert call.told == ["head", message(b"A"), message(b"B"), "OK"]
        esp.holds_nothing()

    def test_answers_in_any_order(self) -> None:
        esp = dial()
        first, second = esp.calls(), esp.calls()
        esp.hears(
            headers(3, HEAD), headers(1, HEAD), data(3, message(b"3")), *ok(1)[1:], headers(3, trailers(), end=True)
        )
        assert first.told == ["head", message(), "OK"]
        assert second.told == ["head", message(b"3"), "OK"]

    def test_a_whole_answer_in_pieces_of_any_size(self) -> None:
        answer = b"".join(ok(1, b"hello"))
        for size in range(1, len(answer) + 1):
            esp = dial()
            call = esp.calls()
            for start in range(0, len(answer), size):
                esp.hears(answer[start : start + size])
            assert call.told == ["head", message(b"hello"), "OK"], size
            esp.holds_nothing()

    def test_many_whole_answers_in_one_piece(self) -> None:
        esp = dial()
        calls = [esp.calls() for _ in range(50)]
        esp.hears(b"".join(b"".join(ok(call.id, b"%d" % call.id)) for call in reversed(calls)))
        assert [call.told for call in calls] == [["head", message(b"%d" % call.id), "OK"] for call in calls]
        esp.holds_nothing()

    def test_an_error_is_told_with_its_text(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(only_trailers(1, Status(Code.NOT_FOUND, "100%25 lost")))
        assert call.told == ["NOT_FOUND: 100% lost"]
        esp.holds_nothing()

    def test_an_error_after_data(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD), data(1, b"abc"), headers(1, trailers(Status(Code.ABORTED, "no")), end=True))
        assert call.told == ["head", b"abc", "ABORTED: no"]

    @pytest.mark.parametrize(
        ("status", "told"),
        [
            (b"400", "INTERNAL"),
            (b"401", "UNAUTHENTICATED"),
            (b"403", "PERMISSION_DENIED"),
            (b"404", "UNIMPLEMENTED"),
            (b"429", "UNAVAILABLE"),
            (b"502", "UNAVAILABLE"),
            (b"503", "UNAVAILABLE"),
            (b"504", "UNAVAILABLE"),
            (b"500", "UNKNOWN"),
            (b"302", "UNKNOWN"),
        ],
    )
    def test_an_http_error_without_grpc_status(self, status: bytes, told: str) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, [(b":status", status)], end=True))
        text = f"unexpected HTTP status code received from server: {status.decode()}"
        assert call.told == [f"{told}: {text}"]

    def test_trailers_without_grpc_status(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD), headers(1, [(b"x", b"y")], end=True))
        assert call.told == ["head", "UNKNOWN: the server ended the call without a grpc-status"]

    def test_a_status_that_is_no_number(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, [*HEAD, (b"grpc-status", b"fine")], end=True))
        assert call.told == ["UNKNOWN"]

    def test_data_that_ends_without_trailers(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD), data(1, b"abc", end=True))
        assert call.told == ["head", b"abc", "no trailers"]
        esp.holds_nothing()

    def test_a_server_that_answers_early_is_sent_no_more(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 10})
        call = esp.calls(b"x" * 100)
        esp.said()
        esp.hears(only_trailers(1, Status(Code.UNAUTHENTICATED, "who")))
        assert call.told == ["UNAUTHENTICATED: who"]
        esp.says(rst(1, ErrorCode.CANCEL))
        esp.hears(window(1, 1000), rst(1, ErrorCode.NO_ERROR))
        esp.says_nothing()
        esp.holds_nothing()

    def test_data_without_trailers_while_the_request_is_not_sent_ends_the_call_once(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 10})
        call = esp.calls(b"x" * 100)
        esp.said()
        esp.hears(headers(1, HEAD), data(1, b"", end=True))
        assert call.told == ["head", b"", "no trailers"]
        esp.says(rst(1, ErrorCode.CANCEL))


class TestMalformedAnswers:
    """Each of these costs its own call and no other."""

    def broken(self, *said: bytes) -> str:
        esp = dial()
        call, other = esp.calls(), esp.calls()
        esp.said()
        esp.hears(*said)
        ((kind, code, reason),) = [told for told in call.told if isinstance(told, tuple)]
        assert (kind, code) == ("reset", ErrorCode.PROTOCOL_ERROR)
        esp.says(rst(1, ErrorCode.PROTOCOL_ERROR))
        assert other.told == []
        esp.hears(*ok(3))
        assert other.told[-1] == "OK"
        esp.lives()
        esp.holds_nothing()
        return str(reason)

    def test_data_before_the_head(self) -> None:
        assert self.broken(data(1, b"abc")) == "DATA before the response's head"

    def test_data_that_ends_the_stream_before_the_head(self) -> None:
        assert self.broken(data(1, b"abc", end=True)) == "DATA before the response's head"

    def test_a_second_head(self) -> None:
        assert "second response head" in self.broken(headers(1, HEAD), headers(1, HEAD))

    def test_a_second_head_that_ends_the_stream(self) -> None:
        assert "second response head" in self.broken(headers(1, HEAD), headers(1, HEAD + trailers(), end=True))

    def test_trailers_that_do_not_end_the_stream(self) -> None:
        assert "without END_STREAM" in self.broken(headers(1, HEAD), headers(1, trailers()))

    def test_trailers_first(self) -> None:
        assert self.broken(headers(1, trailers(), end=True)) == "no response head"

    def test_1xx_that_ends_the_stream(self) -> None:
        assert self.broken(headers(1, [(b":status", b"103")], end=True)) == "no response head"

    @pytest.mark.parametrize(
        "fields",
        [
            [(b":status", b"abc")],
            [(b":status", b"20")],
            [(b":status", b"200"), (b":status", b"200")],
            [(b"a", b"b"), (b":status", b"200")],
            [(b":path", b"/"), (b":status", b"200")],
            [(b":status", b"200"), (b"", b"x")],
            [(b":status", b"099")],
        ],
    )
    def test_a_head_that_is_none(self, fields: list[tuple[bytes, bytes]]) -> None:
        self.broken(headers(1, fields))

    def test_more_data_than_the_window(self) -> None:
        esp = dial()
        call, other = esp.calls(), esp.calls()
        esp.hears(headers(1, HEAD))
        for _ in range(STREAM_WINDOW // frames.MAX_FRAME_SIZE):
            esp.hears(data(1, bytes(frames.MAX_FRAME_SIZE)))
        esp.said()
        esp.hears(data(1, b"x"))
        assert call.told[-1] == ("reset", ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window")
        esp.says(rst(1, ErrorCode.FLOW_CONTROL_ERROR))
        assert other.told == []

    def test_nothing_is_told_or_said_twice_when_the_last_data_is_too_much(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 10})
        call = esp.calls(b"x" * 100)
        esp.hears(headers(1, HEAD))
        for _ in range(STREAM_WINDOW // frames.MAX_FRAME_SIZE):
            esp.hears(data(1, bytes(frames.MAX_FRAME_SIZE)))
        esp.said()
        esp.hears(data(1, b"x", end=True))
        assert call.told[-1] == ("reset", ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window")
        esp.says(rst(1, ErrorCode.FLOW_CONTROL_ERROR))
        esp.holds_nothing()


class TestInformational:
    def test_1xx_blocks_before_the_head_are_passed_over(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, [(b":status", b"100")]), headers(1, [(b":status", b"103"), (b"link", b"x")]), *ok(1))
        assert call.told == ["head", message(), "OK"]

    def test_a_server_may_send_one_for_each_of_many_calls(self, clock: Clock) -> None:
        esp = dial()
        for _ in range(2000):
            clock.passes(0.01)
            call = esp.calls()
            esp.hears(headers(call.id, [(b":status", b"103")]), *ok(call.id))
            assert call.told[-1] == "OK"

    def test_a_flood_of_them_ends_the_connection(self) -> None:
        esp = dial()
        esp.calls()
        for _ in range(100_000):
            if esp.closed:
                break
            esp.hears(headers(1, [(b":status", b"103")]))
        esp.ends(ErrorCode.ENHANCE_YOUR_CALM)


class TestReset:
    @pytest.mark.parametrize("code", [*ErrorCode, 0xABCDEF])
    def test_before_the_answer(self, code: int) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(rst(1, code))  # type: ignore[arg-type]
        assert call.told == [("reset", code, "")]
        assert call.surely_unprocessed(code) is (code == ErrorCode.REFUSED_STREAM)
        esp.holds_nothing()
        esp.lives()

    @pytest.mark.parametrize("code", [*ErrorCode, 0xABCDEF])
    def test_after_the_head_nothing_counts_as_unprocessed(self, code: int) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD), rst(1, code))  # type: ignore[arg-type]
        assert call.told == ["head", ("reset", code, "")]
        assert not call.surely_unprocessed(code)

    def test_while_the_request_waits_for_the_window(self) -> None:
        """Without its whole message the server cannot have acted on it."""
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 10})
        call = esp.calls(b"x" * 100)
        esp.hears(rst(1, ErrorCode.INTERNAL_ERROR))
        assert call.told == [("reset", ErrorCode.INTERNAL_ERROR, "")]
        assert call.surely_unprocessed(ErrorCode.INTERNAL_ERROR)
        esp.holds_nothing()

    def test_after_the_whole_answer_it_means_nothing(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(*ok(1), rst(1, ErrorCode.NO_ERROR))
        assert call.told == ["head", message(), "OK"]
        esp.lives()

    @pytest.mark.parametrize("stream", [2, 3, 101])
    def test_on_an_idle_stream_is_a_fault(self, stream: int) -> None:
        esp = dial()
        esp.calls()
        esp.hears(rst(stream))
        esp.ends(ErrorCode.PROTOCOL_ERROR)


class TestCancel:
    def test_it_says_so_and_is_told_no_more(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.said()
        call.cancel()
        esp.flush()
        esp.says(rst(1, ErrorCode.CANCEL))
        esp.hears(*ok(1), rst(1))
        assert call.told == []
        esp.says_nothing()
        esp.holds_nothing()
        esp.lives()

    def test_twice_is_said_once(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.said()
        call.cancel()
        call.cancel()
        esp.flush()
        esp.says(rst(1, ErrorCode.CANCEL))

    def test_after_the_end_is_not_said(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(*ok(1))
        esp.said()
        call.cancel()
        esp.flush()
        esp.says_nothing()

    def test_what_waited_is_dropped(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        call = esp.calls(b"x" * 100)
        esp.said()
        call.cancel()
        esp.flush()
        esp.says(rst(1, ErrorCode.CANCEL))
        esp.hears(window(1, 1000))
        esp.says_nothing()
        esp.holds_nothing()

    def test_late_data_is_given_back_to_the_connection(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD))
        call.cancel()
        esp.said()
        late = STREAM_WINDOW // frames.MAX_FRAME_SIZE
        for _ in range(CONNECTION_WINDOW // STREAM_WINDOW * 3):
            for _ in range(late):
                esp.hears(data(1, bytes(frames.MAX_FRAME_SIZE)))
        given = [frame for frame in split(esp.said()) if frame.kind == frames.WINDOW_UPDATE]
        assert {frame.stream for frame in given} == {0}
        window_now = CONNECTION_WINDOW - CONNECTION_WINDOW * 3 + sum(int.from_bytes(f.payload, "big") for f in given)
        assert window_now == esp.connection.recv_window > 0
        esp.lives()

    def test_padding_of_late_data_is_given_back_too(self) -> None:
        esp = dial()
        esp.calls().cancel()
        before = esp.connection.recv_window
        esp.hears(data(1, b"x", pad=200))
        assert esp.connection.recv_window == before - 202

    def test_late_header_blocks_keep_the_table_in_step(self) -> None:
        """A server that has not yet given up its table puts a field into it in an answer nobody waits for."""
        esp = Caller()
        esp.hears(settings({}))  # ours are not acknowledged yet
        first, second = esp.calls(), esp.calls()
        first.cancel()
        literal = b"\x40\x04name\x05value"
        esp.hears(headers(1, b"\x88" + literal), headers(3, b"\x88\xbe" + encode(trailers()), end=True))
        assert second.told == ["OK"]

    def test_any_number_of_them_does_not_end_the_connection(self) -> None:
        """Thousands of clients' calls share it; what comes late for those they cancelled is nobody's fault."""
        esp = dial()
        calls = [esp.calls() for _ in range(RECENTLY_RESET * 3)]
        for call in calls:
            call.cancel()
        esp.flush()
        for call in calls:
            esp.hears(*ok(call.id), window(call.id, 10))
        esp.lives()
        esp.holds_nothing()


class TestTakenBack:
    """A call that is cancelled before anything was written."""

    def taken_back(self, esp: Caller) -> Call:
        call = Call(esp.connection)
        esp.connection.call(call, forward(), b"", message(b"x" * 100), end=True)
        call.cancel()
        return call

    def test_it_is_never_said(self) -> None:
        esp = dial()
        esp.calls()
        esp.said()
        before = esp.connection.send_window
        self.taken_back(esp)
        after = esp.calls(b"hi")
        assert after.id == 5
        esp.says(*request(5, b"hi"))
        assert before - esp.connection.send_window == len(message(b"hi"))

    def test_one_whose_block_changes_the_servers_table_leaves_all_the_same(self) -> None:
        """Later blocks refer to what it put there."""
        esp = dial()
        call = self.taken_back(esp)
        esp.calls(b"hi")
        esp.says(head_of(1), data(1, message(b"x" * 100), end=True), rst(1, ErrorCode.CANCEL), *request(3, b"hi"))
        assert call.told == []

    def test_one_that_says_the_tables_new_size_leaves_all_the_same(self) -> None:
        esp = dial()
        esp.calls()
        esp.hears(settings({frames.SETTINGS_HEADER_TABLE_SIZE: 0}))
        esp.raw()
        self.taken_back(esp)
        self.taken_back(esp)
        esp.calls()
        kinds = [(frame.kind, frame.stream, frame.payload[:1]) for frame in split(esp.raw())]
        assert kinds == [
            (frames.HEADERS, 3, b"\x20"),
            (frames.DATA, 3, b"\x00"),
            (frames.RST_STREAM, 3, b"\x00"),
            (frames.HEADERS, 7, b"\x83"),
            (frames.DATA, 7, b"\x00"),
        ]


class TestClosedStreams:
    @pytest.mark.parametrize("frame", [data(1, b"x"), headers(1, HEAD), data(1, b"", end=True)])
    def test_an_answer_that_goes_on_after_its_end_is_a_fault(self, frame: bytes) -> None:
        esp = dial()
        esp.calls()
        esp.hears(*ok(1), frame)
        esp.ends(ErrorCode.STREAM_CLOSED)

    def test_frames_that_may_cross_the_end_are_not(self) -> None:
        esp = dial()
        esp.calls()
        esp.hears(*ok(1), window(1, 5), rst(1), raw(frames.PRIORITY, 0, 1, bytes(5)))
        esp.lives()

    @pytest.mark.parametrize("frame", [data(2), headers(2, HEAD), window(2, 1), headers(7, HEAD), data(7)])
    def test_streams_that_never_were(self, frame: bytes) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(frame)
        esp.ends(ErrorCode.PROTOCOL_ERROR)
        assert isinstance(call.told[-1], tuple)

    def test_push_promise_is_a_fault(self) -> None:
        esp = dial()
        esp.calls()
        esp.hears(raw(frames.PUSH_PROMISE, frames.END_HEADERS, 1, b"\0\0\0\2" + encode(HEAD)))
        esp.ends(ErrorCode.PROTOCOL_ERROR)


class TestFrames:
    def test_padded_answers(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD, pad=3), data(1, b"abc", pad=0), data(1, b"", pad=255))
        esp.hears(headers(1, trailers(), end=True, pad=9))
        assert call.told == ["head", b"abc", b"", "OK"]

    def test_padding_is_given_back_at_once(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD))
        for _ in range(3 * STREAM_WINDOW // 256):
            esp.hears(data(1, b"", pad=255))
        assert ("reset", ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window") not in call.told
        esp.hears(headers(1, trailers(), end=True))
        assert call.told[-1] == "OK"

    def test_a_head_over_continuations(self) -> None:
        esp = dial()
        call = esp.calls()
        block = encode(HEAD)
        esp.hears(headers(1, block[:1], end_headers=False), continuation(1, b"", end_headers=False))
        esp.hears(continuation(1, block[1:]), *ok(1)[1:])
        assert call.told == ["head", message(), "OK"]

    def test_a_head_with_priority(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD, depends_on=0), *ok(1)[1:])
        assert call.told == ["head", message(), "OK"]

    def test_a_reserved_bit_is_ignored(self) -> None:
        esp = dial()
        call = esp.calls()
        for frame in ok(1, b"abc"):
            esp.hears(frame[:5] + bytes([frame[5] | 0x80]) + frame[6:])
        assert call.told == ["head", message(b"abc"), "OK"]

    def test_pings_are_answered(self) -> None:
        esp = dial()
        esp.hears(ping(b"abcdefgh"))
        esp.says(ping(b"abcdefgh", ack=True))

    def test_header_tables_before_ours_is_acknowledged(self) -> None:
        esp = Caller()
        esp.hears(settings({}))
        first, second = esp.calls(), esp.calls()
        esp.hears(headers(1, b"\x88\x40\x0bgrpc-status\x010", end=True))
        esp.hears(SETTINGS_ACK)
        esp.hears(headers(3, b"\x20\x88" + encode([(b"grpc-status", b"0")]), end=True))
        assert first.told == second.told == ["OK"]

    @pytest.mark.parametrize("block", [b"\x80", b"\xff\xff\xff\xff\xff\xff\xff", b"\xc6", b"\x40\x01", b"\x3f\xe1\x7f"])
    def test_blocks_that_are_not_hpack(self, block: bytes) -> None:
        esp = dial()
        esp.calls()
        esp.hears(headers(1, block))
        esp.ends(ErrorCode.COMPRESSION_ERROR)

    def test_too_many_fields_cost_the_call(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, b"\x88" + encode([(b"x%d" % n, b"y") for n in range(300)])))
        assert call.told == [("reset", ErrorCode.ENHANCE_YOUR_CALM, "too many header fields")]
        esp.lives()

    def test_a_head_too_large(self) -> None:
        esp = dial()
        esp.calls()
        block = encode([*HEAD, (b"x", bytes(300_000))])
        esp.hears(headers(1, block[:16384], end_headers=False))
        esp.hears(*[continuation(1, block[at : at + 16384], end_headers=False) for at in range(16384, 300_000, 16384)])
        esp.ends(ErrorCode.ENHANCE_YOUR_CALM)

    def test_too_many_continuations(self) -> None:
        esp = dial()
        esp.calls()
        esp.hears(headers(1, b"\x88", end_headers=False), *[continuation(1, b"", end_headers=False)] * 18)
        esp.ends(ErrorCode.ENHANCE_YOUR_CALM)

    @pytest.mark.parametrize("limit", [16384, 65536])
    def test_an_error_that_repeats_the_longest_path_is_read(self, limit: int) -> None:
        """etcd names the method it does not know; a client must not end the connection of all with such a path."""
        esp = dial(Limits(max_header_list_bytes=limit))
        call = esp.calls()
        block = encode([*HEAD, (b"grpc-status", b"12"), (b"grpc-message", b"%7F" * (limit - 200))])
        pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
        esp.hears(headers(1, pieces[0], end_headers=False, end=True))
        for number, piece in enumerate(pieces[1:], 2):
            esp.hears(continuation(1, piece, end_headers=number == len(pieces)))
        assert call.told == ["UNIMPLEMENTED: " + "\x7f" * (limit - 200)]
        esp.lives()

    def test_nothing_is_read_after_the_end(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(data(0), *ok(1))
        assert len(call.told) == 1
        esp.hears(*ok(1))
        assert len(call.told) == 1


class TestGoaway:
    def test_the_notice_and_then_the_last_stream(self) -> None:
        """As grpc-go drains: first 2^31-1, then the last stream it took."""
        esp = dial()
        first, second, third = esp.calls(), esp.calls(), esp.calls()
        esp.hears(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
        assert esp.changes == ["draining"]
        assert not esp.connection.has_room
        assert first.told == second.told == third.told == []
        esp.hears(goaway(3, ErrorCode.NO_ERROR))
        assert third.told == [GOING_AWAY]
        assert third.surely_unprocessed(ErrorCode.REFUSED_STREAM)
        assert first.told == second.told == []
        esp.hears(*ok(1))
        assert not esp.closed
        esp.hears(*ok(3))
        assert first.told[-1] == second.told[-1] == "OK"
        assert esp.closed
        assert esp.changes == ["draining", "ended"]
        esp.holds_nothing()

    def test_streams_above_the_last_are_told_that_nobody_acted_on_them(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 10})
        calls = [esp.calls(b"x" * 50) for _ in range(4)]
        esp.hears(goaway(3, ErrorCode.NO_ERROR))
        assert [call.unprocessed for call in calls] == [False, False, True, True]
        assert [call.told for call in calls] == [[], [], [GOING_AWAY], [GOING_AWAY]]
        assert esp.context.buffers.used == 2 * (len(message(b"x" * 50)) - 10)

    def test_there_is_no_more_room_when_they_are_told(self) -> None:
        """Whoever is told sends its call again, and must not send it here."""
        esp = dial()
        room = []

        class Again(Call):
            def on_reset(self, code: int, reason: str) -> None:
                room.append(self.connection.has_room)

        for _ in range(3):
            esp.connection.call(Again(esp.connection), forward(), b"", message(), end=True)
        esp.hears(goaway(0, ErrorCode.NO_ERROR))
        assert room == [False] * 3
        assert esp.closed

    def test_the_connection_ends_at_once_when_it_has_no_streams(self) -> None:
        esp = dial()
        esp.hears(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
        assert esp.closed

    def test_the_connection_ends_when_the_second_leaves_no_streams(self) -> None:
        esp = dial()
        esp.calls()
        esp.hears(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
        assert not esp.closed
        esp.hears(goaway(0, ErrorCode.NO_ERROR))
        assert esp.closed

    @pytest.mark.parametrize("end", ["rst", "cancel", "trailers", "data", "fault"])
    def test_the_connection_ends_with_its_last_stream_however_that_ends(self, end: str) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(goaway(1, ErrorCode.NO_ERROR))
        if end == "cancel":
            call.cancel()
            esp.flush()
        else:
            esp.hears(
                {
                    "rst": rst(1),
                    "trailers": only_trailers(1),
                    "data": headers(1, HEAD) + data(1, b"", end=True),
                    "fault": data(1, b"early"),
                }[end]
            )
        assert esp.closed
        esp.holds_nothing()

    @pytest.mark.parametrize("code", [ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.INTERNAL_ERROR, 0x77])
    def test_with_an_error_the_streams_below_go_on_until_the_server_hangs_up(self, code: int) -> None:
        esp = dial()
        first, second = esp.calls(), esp.calls()
        esp.hears(goaway(1, code, b"too_many_pings"))  # type: ignore[arg-type]
        assert first.told == []
        assert second.told == [GOING_AWAY]
        esp.connection.lost("connection lost")
        assert first.told == [("reset", ErrorCode.CANCEL, "connection lost")]
        assert not first.surely_unprocessed(ErrorCode.CANCEL)

    def test_many_of_them_with_rising_ids_change_nothing(self) -> None:
        esp = dial()
        calls = [esp.calls() for _ in range(3)]
        for last in (1, 3, 5, MAX_STREAM_ID):
            esp.hears(goaway(last, ErrorCode.NO_ERROR))
        assert [call.told for call in calls] == [[], [GOING_AWAY], [GOING_AWAY]]
        esp.hears(*ok(1))
        assert esp.closed

    def test_from_here_it_ends_when_its_calls_have(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.connection.close()
        esp.flush()
        assert not esp.closed
        assert not esp.connection.has_room
        esp.hears(*ok(1))
        assert call.told[-1] == "OK"
        assert esp.closed


class TestLost:
    def test_calls_in_flight_are_told_that_their_fate_is_unknown(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 50})
        sent, answered_in_part, waiting = esp.calls(), esp.calls(), esp.calls(b"x" * 100)
        esp.hears(headers(3, HEAD))
        esp.connection.lost("connection lost")
        esp.flush()
        lost = ("reset", ErrorCode.CANCEL, "connection lost")
        assert sent.told == [lost]
        assert answered_in_part.told == ["head", lost]
        assert waiting.told == [lost]
        unprocessed = [call.surely_unprocessed(ErrorCode.CANCEL) for call in (sent, answered_in_part, waiting)]
        assert unprocessed == [False, False, True]
        assert esp.changes == ["ended"]
        esp.holds_nothing()


class TestStreamLimit:
    def test_one_then_none_then_many(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_MAX_CONCURRENT_STREAMS: 1})
        assert esp.connection.has_room
        esp.calls()
        assert not esp.connection.has_room
        esp.changes.clear()
        esp.hears(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 0}))
        assert not esp.connection.has_room
        esp.hears(*ok(1))
        assert not esp.connection.has_room
        esp.changes.clear()
        esp.hears(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 100}))
        assert esp.changes == ["room True"]
        assert [esp.calls().id for _ in range(100)][-1] == 201
        assert not esp.connection.has_room

    def test_whoever_found_it_full_is_told_of_each_place(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_MAX_CONCURRENT_STREAMS: 2})
        esp.calls()
        esp.calls()
        assert not esp.connection.has_room
        esp.hears(*ok(1))
        assert esp.changes == ["room True"]
        esp.hears(*ok(3))
        assert esp.changes == ["room True"], "nobody has found it full since"

    def test_calls_that_wait_go_in_order(self) -> None:
        """With a limit of one, as the shard's client does it: each place that becomes free takes the next."""
        esp = dial(server_settings={frames.SETTINGS_MAX_CONCURRENT_STREAMS: 1})
        waiting = deque(b"%d" % n for n in range(20))
        calls = []

        def go() -> None:
            while waiting and esp.connection.has_room:
                calls.append(esp.calls(waiting.popleft()))

        esp.connection.on_change = go
        go()
        while len(calls) < 20 or calls[-1].told == []:
            esp.hears(*ok(calls[-1].id))
        sent = [frame.payload for frame in split(esp.said()) if frame.kind == frames.DATA]
        assert sent == [message(b"%d" % n) for n in range(20)]


class TestStreamIds:
    def test_the_last_call_is_made_and_the_connection_drains(self) -> None:
        esp = dial(first_stream_id=LAST_STREAM_ID - 1)
        first = esp.calls()
        assert esp.connection.has_room
        last = esp.calls()
        assert last.id > LAST_STREAM_ID
        assert not esp.connection.has_room
        assert esp.changes == ["draining"]
        esp.hears(*ok(first.id), *ok(last.id))
        assert first.told == last.told == ["head", message(), "OK"]
        assert esp.closed

    def test_the_last_call_alone(self) -> None:
        """No other stream keeps the connection open while that one is being sent."""
        esp = dial(first_stream_id=LAST_STREAM_ID + 1)
        last = esp.calls()
        esp.says(*request(last.id))
        assert not esp.closed
        esp.hears(*ok(last.id))
        assert last.told[-1] == "OK"
        assert esp.closed


class TestSending:
    def test_a_large_request_goes_as_the_windows_open(self) -> None:
        content = random.Random(1).randbytes(2 * 1024 * 1024)
        esp = dial()
        call = esp.calls(content)
        got = bytearray()
        ended = False
        window_left = {0: 65535, 1: 65535}
        while not ended:
            heard = list(split(esp.said()))
            assert heard, "stands still"
            for frame in heard:
                if frame.kind == frames.DATA:
                    got += frame.payload
                    ended = bool(frame.flags & frames.END_STREAM)
                    for where in (0, 1):
                        window_left[where] -= len(frame.payload)
                        assert window_left[where] >= 0
            for where, size in ((0, 30_000), (1, 20_000)):
                window_left[where] += size
                esp.hears(window(where, size))
        assert bytes(got) == message(content)
        assert not call.local_open
        esp.hears(*ok(1))
        assert call.told[-1] == "OK"
        esp.holds_nothing()

    def test_what_waits_is_accounted_for(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        esp.calls(b"x" * 1000)
        esp.calls(b"y" * 500)
        assert esp.context.buffers.used == 1510
        esp.hears(window(1, 105))
        assert esp.context.buffers.used == 1405
        esp.hears(rst(1))
        assert esp.context.buffers.used == 505
        esp.hears(window(3, 10_000))
        assert esp.context.buffers.used == 0

    def test_streams_take_turns(self) -> None:
        esp = dial()
        first = esp.calls(b"a" * 200_000)
        second = esp.calls(b"b" * 200_000)
        esp.said()
        esp.hears(window(1, 500_000), window(3, 500_000), window(0, 500_000))
        order = [frame.stream for frame in split(esp.said()) if frame.kind == frames.DATA]
        both = order[: 2 * min(order.count(first.id), order.count(second.id)) - 2]
        assert all(both[n] != both[n + 1] for n in range(len(both) - 1)), order

    def test_a_server_may_give_back_little_at_a_time_while_one_call_waits(self) -> None:
        """As grpc-go does with each measurement of the bandwidth: a small call's bytes, beside one that stands."""
        esp = dial(Limits(glitch_budget=10, glitch_refill_per_second=1))
        esp.calls(b"x" * 100_000)
        esp.hears(window(0, 1_000_000))
        for stream in range(3, 3000, 2):
            esp.calls(b"")
            esp.hears(window(0, 5), *ok(stream))
        assert not esp.connection.ended

    def test_a_server_that_does_not_read_gets_no_more_calls_before_it_does(self) -> None:
        esp = dial(Limits(max_output_bytes=1000, max_output_hard_bytes=5000))
        esp.connection.pause()
        calls = 0
        while esp.connection.has_room:
            esp.calls(b"")
            calls += 1
            assert calls < 1000
        assert 5000 < len(esp.raw()) < 5300
        esp.changes.clear()
        esp.connection.resume()
        assert esp.changes == ["room True"]
        assert esp.context.counters.limits["max_output_hard_bytes"] == 1

    def test_a_smaller_window_mid_stream_counts_what_was_sent(self) -> None:
        esp = dial()
        esp.calls(b"x" * 100_000)
        assert len(body(split(esp.said()), 1)) == 65535
        esp.hears(settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 1000}))
        esp.hears(window(0, 1_000_000), window(1, 64535))
        assert body(split(esp.said()), 1) == b""
        esp.hears(window(1, 7))
        assert len(body(split(esp.said()), 1)) == 7

    def test_a_larger_window_mid_stream_goes_on_at_once(self) -> None:
        esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 10})
        calls = [esp.calls(b"x" * 100) for _ in range(3)]
        esp.said()
        esp.hears(settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 1000}))
        assert [call.local_open for call in calls] == [False] * 3
        assert esp.context.buffers.used == 0

    def test_a_transport_that_is_full_stops_data_but_not_window_updates(self) -> None:
        esp = dial()
        reader = esp.calls()
        esp.hears(headers(1, HEAD))
        esp.said()
        esp.connection.pause()
        waiting = esp.calls(b"hi")
        esp.says(head_of(3))
        for _ in range(10):
            esp.hears(data(1, bytes(16384)))
            reader.consumed(16384)
            esp.flush()
        assert {frame.kind for frame in split(esp.said())} == {frames.WINDOW_UPDATE}
        esp.connection.resume()
        esp.flush()
        esp.says(data(3, message(b"hi"), end=True))
        assert not waiting.local_open

    @pytest.mark.parametrize("stream", [0, 1])
    def test_a_window_above_the_largest_is_a_fault(self, stream: int) -> None:
        esp = dial()
        call = esp.calls()
        esp.said()
        esp.hears(window(stream, 2**31 - 1), window(stream, 2**31 - 1))
        if stream:
            esp.says(rst(1, ErrorCode.FLOW_CONTROL_ERROR))
            assert isinstance(call.told[-1], tuple)
            esp.lives()
        else:
            esp.ends(ErrorCode.FLOW_CONTROL_ERROR)


class TestReceiving:
    def test_the_window_moves_on_as_bytes_are_consumed(self) -> None:
        esp = dial()
        call = esp.calls()
        esp.hears(headers(1, HEAD))
        esp.said()
        sent = granted = 0
        for _ in range(1000):
            esp.hears(data(1, bytes(16384)))
            call.consumed(16384)
            esp.flush()
            sent += 16384
            granted += sum(
                int.from_bytes(frame.payload, "big")
                for frame in split(esp.said())
                if frame.kind == frames.WINDOW_UPDATE and frame.stream == 1
            )
            assert STREAM_WINDOW - sent + granted == call.recv_window > 0

    def test_who_does_not_consume_is_sent_no_more_than_a_window(self) -> None:
        esp = dial()
        esp.calls()
        esp.hears(headers(1, HEAD), *[data(1, bytes(16384)) for _ in range(STREAM_WINDOW // 16384)])
        assert not [frame for frame in split(esp.said()) if frame.kind == frames.WINDOW_UPDATE and frame.stream]

    def test_a_slow_call_does_not_hold_up_the_connection(self) -> None:
        esp = dial()
        esp.calls()
        other = esp.calls()
        esp.hears(headers(1, HEAD), headers(3, HEAD))
        esp.hears(*[data(1, bytes(16384)) for _ in range(STREAM_WINDOW // 16384)])
        for _ in range(2 * CONNECTION_WINDOW // 16384):
            esp.hears(data(3, bytes(16384)))
            other.consumed(16384)
            esp.flush()
        assert not esp.closed
        assert len(other.told) == 1 + 2 * CONNECTION_WINDOW // 16384


class TestKeepalive:
    def quiet(self, clock: Clock, seconds: float, esp: Caller) -> bytes:
        """What esp says over that time, ticked twice a second."""
        for _ in range(int(seconds * 2)):
            esp.tick(clock.passes(0.5))
        return esp.said()

    def test_no_ping_without_a_call(self, clock: Clock) -> None:
        esp = dial()
        assert self.quiet(clock, 3600, esp) == b""
        assert not esp.closed

    def test_a_ping_after_silence_with_a_call(self, clock: Clock) -> None:
        esp = dial(Limits(keepalive_time=10, keepalive_timeout=5))
        esp.calls(None)
        esp.said()
        assert self.quiet(clock, 10, esp) == b""
        assert self.quiet(clock, 1, esp) == ping(KEEPALIVE_PING)
        esp.hears(ping(KEEPALIVE_PING, ack=True))
        assert self.quiet(clock, 10, esp) == b""
        assert not esp.closed

    def test_no_two_pings_within_the_keepalive_time(self, clock: Clock) -> None:
        esp = dial(Limits(keepalive_time=10, keepalive_timeout=5))
        esp.calls(None)
        esp.said()
        sent = []
        for _ in range(400):
            esp.tick(clock.passes(0.5))
            if ping(KEEPALIVE_PING) in esp.said():
                sent.append(clock.now)
                esp.hears(ping(KEEPALIVE_PING, ack=True))
        assert len(sent) > 10
        assert min(b - a for a, b in pairwise(sent)) >= 10

    def test_whatever_is_heard_puts_it_off(self, clock: Clock) -> None:
        esp = dial(Limits(keepalive_time=10, keepalive_timeout=5))
        esp.calls(None)
        esp.hears(headers(1, HEAD))
        esp.said()
        for _ in range(20):
            assert self.quiet(clock, 9, esp) == b""
            esp.hears(data(1, message(b"event")))

    def test_no_answer_ends_the_connection_and_the_calls(self, clock: Clock) -> None:
        esp = dial(Limits(keepalive_time=10, keepalive_timeout=5))
        call = esp.calls(None)
        self.quiet(clock, 15, esp)
        assert not esp.closed
        self.quiet(clock, 1, esp)
        assert esp.closed
        assert call.told == [("reset", ErrorCode.CANCEL, "no answer to a keepalive PING")]

    def test_anything_counts_as_the_answer(self, clock: Clock) -> None:
        esp = dial(Limits(keepalive_time=10, keepalive_timeout=5))
        esp.calls(None)
        esp.hears(headers(1, HEAD))
        self.quiet(clock, 13, esp)
        esp.hears(data(1, message(b"event")))
        self.quiet(clock, 9, esp)
        assert not esp.closed

    def test_the_first_call_after_a_long_pause_does_not_end_it(self, clock: Clock) -> None:
        esp = dial(Limits(keepalive_time=10, keepalive_timeout=5))
        self.quiet(clock, 3600, esp)
        call = esp.calls()
        esp.tick(clock.passes(0.5))
        esp.hears(ping(KEEPALIVE_PING, ack=True), *ok(1))
        self.quiet(clock, 60, esp)
        assert call.told[-1] == "OK"
        assert not esp.closed

    def test_settings_that_are_never_acknowledged_end_it(self, clock: Clock) -> None:
        esp = Caller(Limits(settings_timeout=30))
        esp.hears(settings({}))
        self.quiet(clock, 29, esp)
        assert not esp.closed
        self.quiet(clock, 2, esp)
        assert esp.closed


# Anything at all.

FRAMES = st.one_of(
    st.builds(
        raw,
        st.integers(0, 12),
        st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
        st.sampled_from([0, 1, 2, 3, 5, 7, 9, 11, 101, 2**31 - 1, 2**32 - 1]),
        st.binary(max_size=40),
    ),
    st.builds(lambda s: headers(s, HEAD), st.sampled_from([1, 3, 5, 7])),
    st.builds(lambda s: headers(s, trailers(), end=True), st.sampled_from([1, 3, 5, 7])),
    st.builds(lambda s: headers(s, HEAD + trailers(), end=True), st.sampled_from([1, 3, 5, 7])),
    st.builds(lambda s, p, e: data(s, p, end=e), st.sampled_from([1, 3, 5]), st.binary(max_size=30), st.booleans()),
    st.builds(lambda s, c: rst(s, c), st.sampled_from([1, 3, 5, 7]), st.sampled_from(list(ErrorCode))),
    st.builds(window, st.sampled_from([0, 1, 3, 5]), st.integers(0, 2**31 - 1)),
    st.builds(lambda k, v: settings({k: v}), st.integers(1, 7), st.integers(0, 2**32 - 1)),
    st.builds(lambda last: goaway(last, ErrorCode.NO_ERROR), st.sampled_from([0, 1, 3, 5, MAX_STREAM_ID])),
    st.just(ping()),
    st.binary(min_size=1, max_size=30),
)


def check_books(esp: Caller, calls: list[Call]) -> None:
    """Every call is either open or was told of its end, and what waits is what is accounted for."""
    connection = esp.connection
    for call in calls:
        assert (connection.streams.get(call.id) is call) is not call.over
    waiting = sum(call.pending.size for call in calls if call.pending is not None)
    assert esp.context.buffers.used == waiting
    assert connection.recv_window > 0
    assert set(connection.pump.blocked) <= set(connection.streams)
    assert esp.closed is connection.ended
    if connection.ended:
        assert not connection.streams
        assert not waiting


@examples(
    max_examples=tries(300),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(FRAMES, max_size=25), st.integers(1, 200), st.integers(0, 100))
@example([settings({4: 0}), headers(1, HEAD), data(1, b"", end=True)], 200, 100)
def test_nothing_a_server_says_escapes_or_leaks(said: list[bytes], piece: int, window_size: int) -> None:
    esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: window_size})
    calls = [esp.calls(b"x" * size) for size in (0, 50, 150)]
    calls.append(esp.calls(None))
    everything = b"".join(said)
    for start in range(0, len(everything), piece):
        esp.hears(everything[start : start + piece])
        check_books(esp, calls)
    esp.connection.lost("over")
    esp.flush()
    assert all(call.over for call in calls)
    esp.holds_nothing()


@examples(
    max_examples=tries(200),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_nothing_a_mutated_conversation_says_escapes_or_leaks(draw: st.DataObject) -> None:
    """A conversation as it should be, with a few bytes changed, cut or doubled."""
    esp = dial(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 20})
    calls = [esp.calls(b"x" * size) for size in (0, 50, 10)]
    calls.append(esp.calls(None))
    script = bytearray(
        b"".join(
            (
                *ok(1, b"hello"),
                window(3, 1000),
                ping(),
                headers(5, encode(HEAD)[:3], end_headers=False),
                continuation(5, encode(HEAD)[3:]),
                data(5, b"abc", pad=3),
                headers(7, HEAD),
                settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 5}),
                data(7, b"x" * 20),
                rst(3),
                goaway(5, ErrorCode.NO_ERROR),
                headers(5, trailers(), end=True),
            )
        )
    )
    for _ in range(draw.draw(st.integers(1, 4))):
        position = draw.draw(st.integers(0, len(script) - 1))
        what = draw.draw(st.sampled_from(["set", "cut", "double"]))
        if what == "set":
            script[position] = draw.draw(st.integers(0, 255))
        elif what == "cut":
            del script[position : position + draw.draw(st.integers(1, 9))]
            script = script or bytearray(1)
        else:
            script[position:position] = script[position : position + draw.draw(st.integers(1, 30))]
    piece = draw.draw(st.integers(1, len(script)))
    for start in range(0, len(script), piece):
        esp.hears(bytes(script[start : start + piece]))
        check_books(esp, calls)
    esp.connection.lost("over")
    esp.flush()
    assert all(call.over for call in calls)
    esp.holds_nothing()
