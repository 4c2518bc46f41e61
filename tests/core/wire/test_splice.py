"""Calls passed on: the test is both the client and the etcd, esp is between them."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from esp.core.wire import frames
from esp.core.wire.client_stream import STREAM_WINDOW
from esp.core.wire.frames import SETTINGS_ACK, ErrorCode, settings
from esp.core.wire.limits import Limits
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import OVERLOADED, Handler, ServerStream
from esp.core.wire.splice import REPLAY_BYTES, SplicedCall
from esp.core.wire.status import Code, Status
from tests.core.wire import upstream
from tests.core.wire.conversation import (
    ECHO,
    HEAD,
    STREAM,
    Frame,
    Server,
    body,
    call,
    data,
    goaway,
    headers,
    message,
    refusal,
    rst,
    split,
    trailers,
    window,
)
from tests.core.wire.upstream import dial, head_of, request
from tests.examples import tries

BROKEN = Status(Code.UNAVAILABLE, "broken")


@pytest.fixture(autouse=True, params=[False, True], ids=["decoded", "known"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this with a server whose header blocks are decoded, and with one whose blocks are looked up."""
    monkeypatch.setattr(upstream, "blocks_are_known", request.param)


class Pass(Handler):
    def __init__(self, between: Between, *, streaming: bool) -> None:
        self.between = between
        self.streaming = streaming

    def on_open(self, stream: ServerStream) -> None:
        self.between.splice(stream, None)

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        self.between.splice(stream, message)


class Between:
    """esp with one client and one etcd; it owns the calls, as a shard does."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        client_settings: dict[int, int] | None = None,
        server_settings: dict[int, int] | None = None,
    ) -> None:
        self.handlers = {ECHO: Pass(self, streaming=False), STREAM: Pass(self, streaming=True)}
        self.client = Server(limits or Limits(), self._find)
        self.context = self.client.context
        self.etcd = dial(context=self.context, server_settings=server_settings)
        self.client.hears(frames.PREFACE + settings(client_settings or {}) + SETTINGS_ACK)
        self.client.says()
        self.calls: list[SplicedCall] = []
        self.broken: list[tuple[int, int, str]] = []
        self.statuses: list[Status] = []

    def _find(self, head: RequestHead) -> Handler:
        head.forward = head.path, head.encode_metadata()
        return self.handlers[head.path]

    def splice(self, down: ServerStream, message: bytes | None) -> None:
        spliced = SplicedCall(self.etcd.connection, down, message, self)
        self.calls.append(spliced)
        self.etcd.connection.call(spliced, down.head.forward, down.timeout, message, end=message is not None)

    def on_broken(self, call: SplicedCall, code: int, reason: str) -> None:
        self.broken.append((call.down.id, code, reason))
        call.down.finish(BROKEN)

    def on_status(self, call: SplicedCall, status: Status) -> bool:
        self.statuses.append(status)
        return False

    # The language of the tests. esp's other end is flushed with the first, since they share a context.

    def client_says(self, *said: bytes) -> None:
        self.client.hears(b"".join(said))

    def etcd_says(self, *said: bytes) -> None:
        self.etcd.hears(*said)

    def client_hears(self, *expected: bytes) -> None:
        self.client.answers(*expected)

    def etcd_hears(self, *expected: bytes) -> None:
        self.etcd.says(*expected)

    def holds_nothing(self) -> None:
        self.client.holds_nothing()
        self.etcd.holds_nothing()


def unary(between: Between, stream: int = 1, content: bytes = b"hi") -> None:
    """The client has made a unary call and etcd has heard it."""
    between.client_says(headers(stream, call(ECHO)), data(stream, message(content), end=True))
    between.etcd_hears(*request(stream, content))


def stream(between: Between, number: int = 1) -> None:
    """The client has opened a stream and etcd has heard it."""
    between.client_says(headers(number, call(STREAM)))
    between.etcd_hears(head_of(number, STREAM))


class TestUnary:
    def test_the_answer_comes_back_as_it_is(self) -> None:
        between = Between()
        unary(between)
        answer = headers(1, HEAD), data(1, message(b"ho")), headers(1, trailers(), end=True)
        between.etcd_says(*answer)
        between.client_hears(*answer)
        between.holds_nothing()

    def test_frame_by_frame_too(self) -> None:
        between = Between()
        unary(between)
        for frame in (headers(1, HEAD), data(1, message(b"ho")), headers(1, trailers(), end=True)):
            between.etcd_says(frame)
            between.client_hears(frame)
        between.holds_nothing()

    def test_metadata_and_trailers_come_back_in_their_order(self) -> None:
        between = Between()
        unary(between)
        head = [*HEAD, (b"x", b"1"), (b"x", b"2"), (b"y-bin", b"AAE=")]
        last = [(b"b", b"1"), (b"a", b"2"), *trailers()]
        answer = headers(1, head), data(1, message(b"ho")), headers(1, last, end=True)
        between.etcd_says(*answer)
        between.client_hears(*answer)

    def test_an_error_without_an_answer(self) -> None:
        between = Between()
        unary(between)
        error = Status(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
        between.etcd_says(headers(1, HEAD + trailers(error), end=True))
        between.client_hears(refusal(1, Code.OUT_OF_RANGE, error.message))
        assert between.statuses == [error]
        between.holds_nothing()

    def test_details_of_an_error_are_passed_on(self) -> None:
        between = Between()
        unary(between)
        fields = HEAD + trailers(Status(Code.ABORTED, "x")) + [(b"grpc-status-details-bin", b"CAo=")]
        between.etcd_says(headers(1, fields, end=True))
        between.client_hears(headers(1, fields, end=True))

    def test_an_http_error(self) -> None:
        between = Between()
        unary(between)
        between.etcd_says(headers(1, [(b":status", b"503"), (b"content-type", b"text/html")]), data(1, b"<html>"))
        between.client_hears(refusal(1, Code.UNAVAILABLE, "unexpected HTTP status code received from server: 503"))
        between.etcd_hears(rst(1, ErrorCode.CANCEL))
        between.holds_nothing()

    def test_an_answer_that_ends_without_a_status(self) -> None:
        between = Between()
        unary(between)
        between.etcd_says(headers(1, HEAD), headers(1, [(b"x", b"y")], end=True))
        status = Status(Code.UNKNOWN, "the server ended the call without a grpc-status")
        between.client_hears(headers(1, HEAD), headers(1, trailers(status), end=True))
        between.holds_nothing()

    def test_data_that_ends_without_trailers(self) -> None:
        between = Between()
        unary(between)
        between.etcd_says(headers(1, HEAD), data(1, message(b"ho"), end=True))
        status = Status(Code.INTERNAL, "server closed the stream without sending trailers")
        between.client_hears(headers(1, HEAD), data(1, message(b"ho")), headers(1, trailers(status), end=True))
        between.holds_nothing()

    def test_a_broken_call_is_told_to_its_owner(self) -> None:
        between = Between()
        unary(between)
        between.etcd_says(rst(1, ErrorCode.INTERNAL_ERROR))
        assert between.broken == [(1, ErrorCode.INTERNAL_ERROR, "")]
        between.client_hears(refusal(1, BROKEN.code, BROKEN.message))
        between.holds_nothing()

    def test_one_that_breaks_within_its_answer_ends_with_trailers(self) -> None:
        between = Between()
        unary(between)
        between.etcd_says(headers(1, HEAD), data(1, message(b"half")[:-1]), rst(1, ErrorCode.INTERNAL_ERROR))
        between.client_hears(headers(1, HEAD), data(1, message(b"half")[:-1]), headers(1, trailers(BROKEN), end=True))
        between.holds_nothing()

    def test_a_deadline_is_passed_on_as_it_came(self) -> None:
        between = Between()
        between.client_says(headers(1, call(ECHO, (b"grpc-timeout", b"4999m"))), data(1, message(), end=True))
        between.etcd_hears(head_of(1, ECHO, (b"grpc-timeout", b"4999m")), data(1, message(), end=True))


class TestStreaming:
    def test_messages_go_by_in_both_directions(self) -> None:
        between = Between()
        stream(between)
        between.client_says(data(1, message(b"a")))
        between.etcd_hears(data(1, message(b"a")))
        between.etcd_says(headers(1, HEAD), data(1, message(b"A")))
        between.client_hears(headers(1, HEAD), data(1, message(b"A")))
        between.client_says(data(1, message(b"b"), end=True))
        between.etcd_hears(data(1, message(b"b"), end=True))
        between.etcd_says(data(1, message(b"B")), headers(1, trailers(), end=True))
        between.client_hears(data(1, message(b"B")), headers(1, trailers(), end=True))
        between.holds_nothing()

    def test_the_client_may_end_first_and_go_on_reading(self) -> None:
        between = Between()
        stream(between)
        between.client_says(data(1, b"", end=True))
        between.etcd_hears(data(1, b"", end=True))
        for n in range(5):
            between.etcd_says(headers(1, HEAD) if n == 0 else b"", data(1, message(b"%d" % n)))
        between.etcd_says(headers(1, trailers(), end=True))
        assert body(split(between.client.says()), 1) == b"".join(message(b"%d" % n) for n in range(5))
        between.holds_nothing()

    def test_etcd_may_end_first(self) -> None:
        between = Between()
        stream(between)
        between.etcd_says(headers(1, HEAD), headers(1, trailers(), end=True))
        between.etcd_hears(rst(1, ErrorCode.CANCEL))
        between.client_hears(headers(1, HEAD), headers(1, trailers(), end=True), rst(1, ErrorCode.NO_ERROR))
        between.client_says(data(1, message(b"late")), data(1, b"", end=True))
        between.client.says_nothing()
        between.holds_nothing()

    def test_a_client_that_says_more_while_the_trailers_wait(self) -> None:
        """The answer waits for the client's window; what the client sends meanwhile does not change how it ends."""
        between = Between(client_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 3})
        stream(between)
        between.etcd_says(headers(1, HEAD), data(1, message(b"answer")), headers(1, trailers(), end=True))
        between.client_says(data(1, message(b"one more")), data(1, message(b"and the last"), end=True))
        between.client_says(window(1, 1000))
        said = list(split(between.client.says()))
        assert body(said, 1) == message(b"answer")
        assert [(f.kind, f.flags) for f in said][-1] == (frames.HEADERS, frames.END_STREAM | frames.END_HEADERS)
        assert not [frame for frame in said if frame.kind == frames.RST_STREAM]
        between.holds_nothing()


class TestCancel:
    @pytest.mark.parametrize("answered", [False, True])
    def test_a_client_that_cancels_cancels_upstream(self, answered: bool) -> None:
        between = Between()
        unary(between)
        if answered:
            between.etcd_says(headers(1, HEAD), data(1, b"abc"))
        between.client_says(rst(1, ErrorCode.CANCEL))
        between.etcd_hears(rst(1, ErrorCode.CANCEL))
        between.etcd_says(headers(1, trailers(), end=True))
        between.holds_nothing()
        assert between.broken == []

    def test_a_client_that_hangs_up_cancels_all_its_calls(self) -> None:
        between = Between()
        for number in (1, 3, 5):
            unary(between, number)
        between.client.connection.lost("connection lost")
        between.client.flush()
        between.etcd_hears(*(rst(number, ErrorCode.CANCEL) for number in (1, 3, 5)))
        between.etcd.holds_nothing()

    def test_what_waits_in_either_direction_is_dropped(self) -> None:
        nothing = {frames.SETTINGS_INITIAL_WINDOW_SIZE: 0}
        between = Between(client_settings=nothing, server_settings=nothing)
        stream(between)
        between.client_says(data(1, bytes(1000)))
        between.etcd_says(headers(1, HEAD), data(1, bytes(2000)))
        assert between.context.buffers.used == 3000
        between.client_says(rst(1))
        between.holds_nothing()

    def test_the_fault_of_a_client_cancels_upstream_and_nothing_else(self) -> None:
        between = Between()
        stream(between, 1)
        unary(between, 3)
        between.client_says(window(1, 0))
        between.client.resets(1, ErrorCode.PROTOCOL_ERROR)
        between.etcd_hears(rst(1, ErrorCode.CANCEL))
        answer = headers(3, HEAD), data(3, message()), headers(3, trailers(), end=True)
        between.etcd_says(*answer)
        between.client_hears(*answer)
        between.holds_nothing()

    def test_trailers_and_cancel_may_cross(self) -> None:
        between = Between()
        unary(between)
        between.etcd_says(headers(1, HEAD), data(1, message()), headers(1, trailers(), end=True))
        between.client_says(rst(1))
        between.etcd_says(rst(1, ErrorCode.NO_ERROR))
        between.etcd.says_nothing()
        between.holds_nothing()

    def test_goaway_breaks_what_was_not_processed(self) -> None:
        between = Between()
        unary(between, 1)
        unary(between, 3)
        between.etcd_says(goaway(1, ErrorCode.NO_ERROR))
        assert [number for number, _, _ in between.broken] == [3]
        answer = headers(1, HEAD), data(1, message()), headers(1, trailers(), end=True)
        between.client.says()
        between.etcd_says(*answer)
        between.client_hears(*answer)
        assert between.etcd.closed


class Granted:
    """What one peer may still send, by the books that peer keeps."""

    def __init__(self, stream_window: int, connection_window: int) -> None:
        self.left = {0: connection_window, 1: stream_window}

    def sends(self, size: int) -> None:
        self.left[0] -= size
        self.left[1] -= size
        assert min(self.left.values()) >= 0

    def hears(self, said: list[Frame]) -> None:
        for frame in said:
            if frame.kind == frames.WINDOW_UPDATE:
                self.left[frame.stream] += int.from_bytes(frame.payload, "big")

    def room(self) -> int:
        return min(self.left.values())


class Granting:
    """What one peer has granted and was not yet sent, by the books that peer keeps."""

    def __init__(self, stream_window: int, connection_window: int) -> None:
        self.left = {0: connection_window, 1: stream_window}

    def hears(self, said: list[Frame]) -> bytes:
        """The DATA, which must fit."""
        got = body(said, 1)
        for where in self.left:
            self.left[where] -= len(got)
            assert self.left[where] >= 0
        return got

    def grants(self, size: int) -> list[bytes]:
        """The frames that grant more."""
        for where in self.left:
            self.left[where] += size
        return [window(where, size) for where in self.left]


class TestFlowControl:
    def test_a_large_request_goes_through_small_windows(self) -> None:
        """2 MiB from the client, 65535 bytes of window on each side, credited in small portions."""
        between = Between()
        stream(between)
        whole = message(random.Random(3).randbytes(2 * 1024 * 1024))
        client, etcd = Granted(65_535, 1_048_576), Granting(65_535, 65_535)
        got = bytearray()
        sent = most = 0
        while len(got) < len(whole):
            before = len(got), sent
            while (room := min(client.room(), 16_384, len(whole) - sent)) > 0:
                client.sends(room)
                between.client_says(data(1, whole[sent : sent + room], end=sent + room == len(whole)))
                sent += room
                client.hears(list(split(between.client.says())))
            most = max(most, between.context.buffers.used)
            got += etcd.hears(list(split(between.etcd.said())))
            between.etcd_says(*etcd.grants(5000))
            client.hears(list(split(between.client.says())))
            got += etcd.hears(list(split(between.etcd.said())))
            assert (len(got), sent) != before, "stands still"
        assert bytes(got) == whole
        assert 0 < most <= 65_535
        between.etcd_says(headers(1, HEAD + trailers(), end=True))
        between.holds_nothing()

    def test_a_large_answer_to_a_slow_client_is_held_back(self) -> None:
        """100 MB from etcd: never more than a stream's window of it is here, and both windows are credited exactly."""
        between = Between()
        unary(between)
        size = 100_000_000
        etcd, client = Granted(STREAM_WINDOW, 4_194_304), Granting(65_535, 65_535)
        sent = received = most = 0
        between.etcd_says(headers(1, HEAD))
        while received < size:
            before = sent, received
            while (room := min(etcd.room(), 16_384, size - sent)) > 0:
                etcd.sends(room)
                sent += room
                between.etcd_says(data(1, bytes(room)))
                received += len(client.hears(list(split(between.client.says()))))
                etcd.hears(list(split(between.etcd.said())))
                assert between.context.buffers.used == sent - received <= STREAM_WINDOW
            most = max(most, sent - received)
            between.client_says(*client.grants(60_000))
            received += len(client.hears(list(split(between.client.says()))))
            etcd.hears(list(split(between.etcd.said())))
            assert (sent, received) != before, "stands still"
        assert most == STREAM_WINDOW, "the bound was reached"
        assert etcd.left[0] == between.etcd.connection.recv_window
        between.etcd_says(headers(1, trailers(), end=True))
        (last,) = split(between.client.says())
        assert (last.kind, last.flags) == (frames.HEADERS, frames.END_STREAM | frames.END_HEADERS)
        between.holds_nothing()

    def test_a_client_that_reads_nothing_stops_etcd_at_the_window(self) -> None:
        between = Between(client_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        unary(between)
        between.etcd_says(headers(1, HEAD), *[data(1, bytes(16_384)) for _ in range(STREAM_WINDOW // 16_384)])
        assert between.context.buffers.used == STREAM_WINDOW
        given = {frame.stream for frame in split(between.etcd.said()) if frame.kind == frames.WINDOW_UPDATE}
        assert 1 not in given

    def test_one_slow_client_does_not_hold_up_another(self) -> None:
        between = Between(client_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        unary(between, 1)
        unary(between, 3)
        between.client_says(window(3, 10_000_000), window(0, 10_000_000))
        between.etcd_says(headers(1, HEAD), *[data(1, bytes(16_384)) for _ in range(STREAM_WINDOW // 16_384)])
        between.etcd_says(headers(3, HEAD))
        sent = 0
        while sent < 8_000_000:
            for _ in range(4):
                between.etcd_says(data(3, bytes(16_384)))
            sent += 4 * 16_384
        assert not between.etcd.closed
        assert len(body(split(between.client.says()), 3)) == sent

    def test_windows_are_given_back_while_data_is_blocked(self) -> None:
        """A WINDOW_UPDATE must not queue behind DATA that waits for one."""
        between = Between(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        stream(between)
        between.client_says(data(1, bytes(1000)))
        between.etcd_says(headers(1, HEAD))
        for _ in range(20):
            between.etcd_says(data(1, bytes(16_384)))
            between.client_says(window(1, 16_384), window(0, 16_384))
        assert [f.stream for f in split(between.etcd.said()) if f.kind == frames.WINDOW_UPDATE].count(1) >= 1

    def test_what_does_not_fit_into_memory_ends_the_client_s_call_alone(self) -> None:
        between = Between(Limits(max_buffered_bytes=100_000), client_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        unary(between, 1)
        between.etcd_says(headers(1, HEAD), *[data(1, bytes(16_384)) for _ in range(6)])
        between.client.says()
        between.etcd_says(data(1, bytes(16_384)))
        between.client_hears(headers(1, trailers(OVERLOADED), end=True))
        assert rst(1, ErrorCode.CANCEL) in between.etcd.said()
        between.holds_nothing()

    def test_a_whole_answer_that_does_not_fit_into_memory(self) -> None:
        between = Between(Limits(max_buffered_bytes=100), client_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        unary(between)
        between.etcd_says(headers(1, HEAD), data(1, bytes(1000)), headers(1, trailers(), end=True))
        ending = headers(1, trailers(OVERLOADED), end=True)
        between.client_hears(headers(1, HEAD), ending)
        between.holds_nothing()

    def test_a_unary_request_for_which_there_is_no_memory(self) -> None:
        between = Between(Limits(max_buffered_bytes=100), server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        between.client_says(headers(1, call(ECHO)), data(1, message(bytes(1000)), end=True))
        between.client_hears(refusal(1, OVERLOADED.code, OVERLOADED.message))
        between.etcd_hears(head_of(1), rst(1, ErrorCode.CANCEL))
        assert between.broken == []
        between.holds_nothing()

    def test_a_streaming_request_for_which_there_is_no_memory(self) -> None:
        between = Between(Limits(max_buffered_bytes=100), server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        stream(between)
        between.client_says(data(1, bytes(90)))
        between.client_says(data(1, bytes(90)))
        between.etcd_hears(rst(1, ErrorCode.CANCEL))
        between.client_hears(refusal(1, OVERLOADED.code, OVERLOADED.message), rst(1, ErrorCode.NO_ERROR))
        between.holds_nothing()

    @pytest.mark.parametrize(("size", "kept"), [(100, True), (REPLAY_BYTES - 5, True), (REPLAY_BYTES, False)])
    def test_a_large_request_is_not_kept_once_it_has_left(self, size: int, kept: bool) -> None:
        between = Between(server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        content = bytes(size)
        pieces = [message(content)[at : at + 16_384] for at in range(0, size + 5, 16_384)]
        between.client_says(headers(1, call(ECHO)))
        for piece in pieces:
            between.client_says(data(1, piece, end=piece is pieces[-1]))
        (spliced,) = between.calls
        assert spliced.message == message(content)
        between.etcd_says(window(0, 1_000_000), window(1, 1_000_000))
        assert not spliced.local_open
        assert spliced.message == (message(content) if kept else b"")


SIZES = st.sampled_from([0, 1, 5, 100, 8192, 8193, 16_384])
STEPS = st.one_of(
    st.tuples(st.just("client data"), SIZES),
    st.tuples(st.just("etcd data"), SIZES),
    st.tuples(st.just("client window"), st.integers(1, 100_000)),
    st.tuples(st.just("etcd window"), st.integers(1, 100_000)),
    st.tuples(st.just("client settings"), st.integers(0, 100_000)),
    st.tuples(st.just("etcd settings"), st.integers(0, 100_000)),
    st.tuples(st.just("client full"), st.integers(0, 1)),
    st.tuples(st.just("etcd full"), st.integers(0, 1)),
)


@examples(
    max_examples=tries(150),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(STEPS, max_size=60))
def test_whatever_the_windows_do_bytes_arrive_in_order_and_are_given_back(steps: list[tuple[str, int]]) -> None:
    between = Between()
    stream(between)
    between.etcd_says(headers(1, HEAD))
    between.client.says()
    client, etcd = Granted(65_535, 1_048_576), Granted(STREAM_WINDOW, 4_194_304)
    noise = random.Random(5)
    sent: dict[str, bytearray] = {"client": bytearray(), "etcd": bytearray()}
    got: dict[str, bytearray] = {"client": bytearray(), "etcd": bytearray()}

    def listen() -> None:
        heard = list(split(between.client.says()))
        got["client"] += body(heard, 1)
        client.hears(heard)
        heard = list(split(between.etcd.said()))
        got["etcd"] += body(heard, 1)
        etcd.hears(heard)

    def say(who: str, granted: Granted, size: int) -> None:
        payload = noise.randbytes(max(0, min(size, granted.room())))
        granted.sends(len(payload))
        sent[who] += payload
        (between.client_says if who == "client" else between.etcd_says)(data(1, payload))

    for what, size in steps:
        who, verb = what.split()
        says = between.client_says if who == "client" else between.etcd_says
        connection = between.client.connection if who == "client" else between.etcd.connection
        if verb == "data":
            say(who, client if who == "client" else etcd, size)
        elif verb == "window":
            says(window(0, size), window(1, size))
        elif verb == "settings":
            says(settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: size}))
        elif size and connection.writable:
            connection.pause()
        elif not size and not connection.writable:
            connection.resume()
            between.context.flush()
        listen()
        waiting = len(sent["client"]) - len(got["etcd"]) + len(sent["etcd"]) - len(got["client"])
        assert between.context.buffers.used == waiting <= 65_535 + STREAM_WINDOW
    for connection in (between.client.connection, between.etcd.connection):
        if not connection.writable:
            connection.resume()
    for says in (between.client_says, between.etcd_says):
        says(settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 1_000_000}), window(0, 1_000_000), window(1, 1_000_000))
    between.context.flush()
    listen()
    assert got["etcd"] == sent["client"]
    assert got["client"] == sent["etcd"]
    assert between.context.buffers.used == 0
    (spliced,) = between.calls
    assert client.left[1] + spliced.down.recv_owed == 65_535
    assert etcd.left[1] + spliced.recv_owed == STREAM_WINDOW
    assert client.left[0] == between.client.connection.recv_window
    assert etcd.left[0] == between.etcd.connection.recv_window
