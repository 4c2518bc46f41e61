"""Calls to this very process: whole requests and answers pass without frames, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.wire.client_stream import ClientStream
from esp.core.wire.context import WireContext
from esp.core.wire.divided import COMPOSITE
from esp.core.wire.frames import ConnectionFault, ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.local_calls import LocalCalls
from esp.core.wire.message import prefix
from esp.core.wire.request import RequestHead
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ENDING, OPENING, ResponseHead
from esp.core.wire.server_stream import Handler, ServerStream, Sink
from esp.core.wire.status import Code, Status

UNARY: Forward = (b"/a.B/Unary", b"")
GONE = Status(Code.UNAVAILABLE, "etcdserver: server stopped")


class Heard(ClientStream):
    """Notes what it is told, and what was to be told when its end came."""

    def __init__(self, calls: LocalCalls) -> None:
        super().__init__(calls.client)
        self.told: list[object] = []

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        self.told.append(Code(head.outcome().code).name if end else "head")

    def on_data(self, payload: bytes, end: bool) -> None:
        self.told.append(payload)
        self.consumed(len(payload))

    def on_reset(self, code: int, reason: str) -> None:
        self.told.append((code, reason))


class Noted(Sink):
    def __init__(self, handler: Kept) -> None:
        self.handler = handler

    def cancelled(self, code: int, reason: str) -> None:
        self.handler.cancelled.append(reason)


class Kept(Handler):
    """Keeps its calls; `at_once` is what it does with one as it comes."""

    def __init__(self) -> None:
        self.streams: list[ServerStream] = []
        self.asked: list[bytes] = []
        self.cancelled: list[str] = []
        self.at_once: Callable[[ServerStream], None] = lambda stream: None

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        self.streams.append(stream)
        self.asked.append(message)
        stream.sink = Noted(self)
        self.at_once(stream)


class OnlyFrames(LocalCalls):
    """As if no call were usual."""

    def _serve_whole(self, stream: ClientStream, forward: Forward, data: bytes) -> bool:
        return False


class Pair:
    """Both ends, and one handler."""

    def __init__(self, limits: Limits | None = None, *, frames: bool = False) -> None:
        self.context = WireContext(limits or Limits())
        self.handler = Kept()
        self.charged = 0.0
        kind = OnlyFrames if frames else LocalCalls
        self.calls = kind(self.context, "192.0.2.1:5", self._find, self._charge, lambda: None)
        self.frames = 0
        for end in (self.calls.client, self.calls.server):
            end.on_flush = self._counted(end.on_flush)

    def _counted(self, hand_on: Callable[[bytes], None] | None) -> Callable[[bytes], None]:
        assert hand_on is not None

        def counted(data: bytes) -> None:
            self.frames += 1
            hand_on(data)

        return counted

    def _find(self, head: RequestHead) -> Handler:
        return self.handler

    def _charge(self, seconds: float) -> None:
        self.charged += seconds

    def asks(self, message: bytes = b"", *, forward: Forward = UNARY, timeout: bytes = b"", end: bool = True) -> Heard:
        call = Heard(self.calls)
        self.calls.call(call, forward, timeout, prefix(message), end=end)
        return call

    def works(self) -> None:
        while True:
            is_left = self.calls.run(inf)
            self.context.flush()
            if not is_left and not self.calls.client.out:
                return

    def answers(self, message: bytes = b"", index: int = -1) -> bool:
        stream = self.handler.streams[index]
        stream.sink = None
        return stream.send_answer(OPENING, prefix(message), ENDING)

    def acquainted(self) -> Pair:
        """Has made three calls: from then on the header table is gone, and both ends know head and trailers."""
        for _ in range(3):
            self.asks()
            self.works()
            assert self.answers()
            self.works()
        self.handler.streams.clear()
        self.handler.asked.clear()
        self.frames = 0
        return self


@pytest.fixture
def pair() -> Pair:
    return Pair().acquainted()


def test_a_whole_call_needs_no_frames(pair: Pair) -> None:
    call = pair.asks(b"hi")
    assert pair.handler.asked == [prefix(b"hi")], "served at once"
    assert not call.told
    assert pair.answers(b"there")
    assert not call.told, "told at the end of the step, as ever"
    pair.works()
    assert call.told == ["head", prefix(b"there"), "OK"]
    assert not pair.frames
    assert not pair.calls.server.streams
    assert not pair.calls.client.streams
    assert pair.charged > 0


def test_any_number_of_calls_fits_the_windows(pair: Pair) -> None:
    for number in range(1000):
        call = pair.asks(bytes(10_000))
        pair.works()
        assert pair.answers(bytes(16_000))
        pair.works()
        assert call.told == ["head", prefix(bytes(16_000)), "OK"], number
    assert 0 < pair.frames < 1000, "windows are given back by frames, now and then"


def test_a_call_does_not_overtake_a_frame(pair: Pair) -> None:
    first = pair.asks(b"1", timeout=b"10S")
    assert not pair.handler.asked
    second = pair.asks(b"2")
    assert not pair.handler.asked
    pair.works()
    assert pair.handler.asked == [prefix(b"1"), prefix(b"2")]
    for index in (0, 1):
        assert pair.answers(index=index)
    pair.works()
    assert first.told == second.told == ["head", prefix(b""), "OK"]


def test_an_answer_does_not_overtake_a_frame(pair: Pair) -> None:
    first, second = pair.asks(), pair.asks()
    pair.handler.streams[0].finish(GONE)
    assert pair.answers(b"2")
    assert pair.calls.server.out
    pair.works()
    assert first.told == ["UNAVAILABLE"]
    assert second.told == ["head", prefix(b"2"), "OK"]


def test_a_call_that_is_answered_as_it_comes(pair: Pair) -> None:
    pair.handler.at_once = lambda _: pair.works() if pair.answers(b"now") else None
    call = pair.asks()
    assert call.told == ["head", prefix(b"now"), "OK"]


def test_an_answer_on_its_way_to_a_call_that_is_cancelled(pair: Pair) -> None:
    call = pair.asks()
    assert pair.answers(b"late")
    call.cancel()
    pair.works()
    assert not call.told
    assert not pair.calls.server.ended
    assert not pair.calls.client.ended
    assert pair.calls.client.recv_window == pair.calls.server.send_window


def test_a_call_that_is_cancelled(pair: Pair) -> None:
    call = pair.asks()
    call.cancel()
    pair.works()
    assert pair.handler.cancelled
    assert not pair.calls.server.streams
    assert not call.told


def test_the_answer_comes_before_the_end_of_a_drained_connection(pair: Pair) -> None:
    call = pair.asks()
    pair.calls.server.drain(GONE)
    pair.works()
    assert not pair.calls.is_usable
    assert pair.answers(b"last")
    pair.works()
    assert call.told == ["head", prefix(b"last"), "OK"]
    assert pair.calls.server.ended


def test_an_answer_and_the_end_in_one_step(pair: Pair) -> None:
    call = pair.asks()
    assert pair.answers(b"last")
    pair.calls.server.end(ErrorCode.NO_ERROR, "bye")
    pair.works()
    assert call.told == ["head", prefix(b"last"), "OK"]


def test_metadata_for_several_servers(pair: Pair) -> None:
    forward = UNARY[0], encode([(b"authorization", COMPOSITE + b"a.b")])
    assert forward[1].__class__ is not bytes
    for frames in (1, 0):
        pair.frames = 0
        pair.asks(forward=forward)
        pair.works()
        assert pair.frames == frames
        assert pair.handler.streams[-1].head.field(b"authorization") == COMPOSITE + b"a.b"


def test_a_client_that_is_gone(pair: Pair) -> None:
    call = pair.asks()
    assert pair.answers(b"late")
    pair.calls.close("gone")
    pair.works()
    assert call.told == [(ErrorCode.CANCEL, "gone")]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "enough")])
def test_an_exception_ends_the_calls(pair: Pair, error: Exception) -> None:
    def fails(_: ServerStream) -> None:
        raise error

    pair.handler.at_once = fails
    call = pair.asks()
    pair.works()
    assert pair.calls.server.ended
    assert [code for code, _ in call.told] == [ErrorCode.CANCEL]  # type: ignore[misc, has-type]
    assert not pair.calls.is_usable
    assert pair.context.counters.connection_faults == isinstance(error, ConnectionFault)


def test_a_bug_in_the_caller_ends_its_call_only(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    call, other = pair.asks(), pair.asks()

    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    call.on_answer = fails  # type: ignore[method-assign]
    assert pair.answers(index=0)
    assert pair.answers(index=1)
    pair.works()
    assert call.told == [(ErrorCode.INTERNAL_ERROR, "internal error")]
    assert other.told == ["head", prefix(b""), "OK"]
    assert "a bug in esp" in caplog.text


def test_calls_are_bounded_as_ever() -> None:
    pair = Pair(Limits(max_concurrent_streams=2)).acquainted()
    calls = [pair.asks() for _ in range(3)]
    pair.works()
    assert len(pair.handler.streams) == 2
    assert calls[2].told
    assert pair.context.counters.limits["max_concurrent_streams"] == 1


def test_steps_that_a_call_begins_are_taken_in_turns(pair: Pair) -> None:
    taken = []

    def begins(stream: ServerStream) -> None:
        stream.connection.do(taken.append(number) for number in range(5))  # type: ignore[func-returns-value]

    pair.handler.at_once = begins
    pair.asks()
    assert len(taken) == 1
    assert pair.calls.server.behind
    assert not pair.calls.run(inf)
    assert len(taken) == 5


def test_what_waits_until_all_is_read(pair: Pair) -> None:
    read: list[str] = []
    pair.handler.at_once = lambda stream: stream.connection.when_read.append(lambda: read.append("yes"))
    pair.asks()
    pair.works()
    assert read == ["yes"]


def test_a_handler_of_another_layout_gets_the_next_call(pair: Pair) -> None:
    pair.calls.server.forget_heads()
    before, pair.handler = pair.handler, Kept()
    pair.asks(b"1")
    pair.works()
    assert not before.asked
    assert pair.handler.asked == [prefix(b"1")]


ACTS = st.sampled_from(("asks", "asks much", "asks in time", "answers", "answers much", "refuses", "cancels", "works"))


@given(st.lists(st.tuples(ACTS, st.integers(0, 3)), max_size=40))
def test_nobody_can_tell_whether_calls_pass_as_frames(acts: list[tuple[str, int]]) -> None:
    def told(pair: Pair) -> object:
        calls: list[Heard] = []
        for number, (act, which) in enumerate([*acts, ("works", 0)]):
            waiting = [stream for stream in pair.handler.streams if not stream.is_over]
            if act.startswith("asks"):
                content = b"%d" % number + bytes(12_000 if act == "asks much" else 0)
                metadata = encode([(b"number", b"%d" % which)])
                timeout = b"100S" if act == "asks in time" else b""
                calls.append(pair.asks(content, forward=(UNARY[0], metadata), timeout=timeout))
                pair.works()  # a call by frames that is cancelled before does not reach the server
            elif act.startswith("answers") and waiting:
                stream = waiting[which % len(waiting)]
                stream.sink = None
                payload = prefix(b"%d" % number + bytes(15_000 if act == "answers much" else 0))
                if not stream.send_answer(OPENING, payload, ENDING):
                    stream.respond(payload[5:])
            elif act == "refuses" and waiting:
                waiting[which % len(waiting)].finish(GONE)
            elif act == "cancels" and calls:
                calls[which % len(calls)].cancel()
            if act == "works":
                pair.works()
        ends = pair.calls.client, pair.calls.server
        windows = [(end.recv_window, end.send_window, len(end.streams), end.ended) for end in ends]
        return [call.told for call in calls], pair.handler.asked, len(pair.handler.cancelled), windows

    assert told(Pair().acquainted()) == told(Pair(frames=True).acquainted())
