"""The question for the status on an idle connection, with a clock held by hand and no socket."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from esp.core.pb import rpc_pb2
from esp.core.shard import pulse
from esp.core.shard.member import PROBE, STATUS_PATH
from esp.core.shard.pulse import LONGEST_STEP, Pulse
from esp.core.wire import frames
from esp.core.wire.call import BrokenCall
from esp.core.wire.client import KEEPALIVE_PING
from esp.core.wire.frames import ErrorCode, settings
from esp.core.wire.limits import Limits
from esp.core.wire.status import Code, RpcError, Status
from tests.core.wire.conftest import Clock
from tests.core.wire.conftest import clock as clock  # the fixture
from tests.core.wire.conversation import HEAD, data, headers, message, ping, rst, split, trailers
from tests.core.wire.upstream import Caller, dial, request

ANSWER = rpc_pb2.StatusResponse(version="3.5.99", leader=7).SerializeToString()
LIMITS = Limits(health_interval=2, health_timeout=2)


class World:
    """A connection with its pulse, ticked twice a second."""

    def __init__(self, clock: Clock, limits: Limits, *, only_if_silent: bool = False) -> None:
        self.clock = clock
        self.esp: Caller = dial(limits)
        self.outcomes: list[tuple[bytes | Exception, float]] = []
        self.pulse = Pulse(
            self.esp.connection, lambda *outcome: self.outcomes.append(outcome), only_if_silent=only_if_silent
        )
        self.unacknowledged = 0
        self.esp.connection.unacknowledged = lambda: self.unacknowledged

    def passes(self, seconds: float) -> str:
        """Lets time pass; why the server is to be left, as soon as there is a reason."""
        for _ in range(int(seconds * 2)):
            if why := self.pulse.tick(self.clock.passes(0.5)):
                return why
        self.esp.flush()
        return ""

    def asks(self, stream: int) -> None:
        """The question, and nothing else, was said since the last time."""
        self.esp.says(*request(stream, PROBE, STATUS_PATH))

    def answers(self, stream: int) -> None:
        self.esp.hears(headers(stream, HEAD), data(stream, message(ANSWER)), headers(stream, trailers(), end=True))


Make = Callable[..., World]


@pytest.fixture
def world(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(pulse, "monotonic", clock)
    monkeypatch.setattr(pulse.random, "uniform", lambda low, high: high if high == 1 else (low + high) / 2)

    def make(limits: Limits = LIMITS, *, only_if_silent: bool = False) -> World:
        return World(clock, limits, only_if_silent=only_if_silent)

    return make


def test_an_idle_server_is_asked_each_interval_and_the_round_trip_is_told(world: Make, clock: Clock) -> None:
    it = world()
    assert it.passes(1.5) == ""
    it.esp.says_nothing()
    for stream in range(1, 100, 2):
        assert it.passes(0.5) == ""
        it.asks(stream)
        clock.passes(0.25)
        it.answers(stream)
        assert it.outcomes.pop() == (ANSWER, 0.25)
        clock.passes(0.25)
        assert it.passes(1) == ""
        it.esp.says_nothing()
    it.esp.holds_nothing()


def test_a_busy_server_is_asked_too_for_its_round_trip(world: Make) -> None:
    it = world()
    for _ in range(4):
        it.esp.hears(ping(b"whatever"))
        it.esp.said()
        assert it.passes(0.5) == ""
    it.asks(1)


def test_a_connection_for_streams_is_asked_only_while_it_is_silent(world: Make) -> None:
    it = world(only_if_silent=True)
    for _ in range(20):
        it.esp.hears(ping(b"an event"))
        it.esp.said()
        assert it.passes(1.5) == ""
        it.esp.says_nothing()
    assert it.passes(0.5) == ""
    it.asks(1)


@pytest.mark.parametrize(("bytes_left", "why"), [(0, "frozen: its machine takes"), (77, "cut off: its machine has")])
def test_a_silent_server_is_left_within_interval_and_timeout(world: Make, bytes_left: int, why: str) -> None:
    it = world()
    it.unacknowledged = bytes_left
    assert it.passes(3.5) == ""
    assert it.passes(0.5).startswith(why)
    assert it.esp.context.counters.limits == {"health_timeout": 1}
    it.pulse.stop()
    it.esp.flush()
    it.esp.holds_nothing()
    assert it.outcomes == []


def test_whatever_is_heard_shows_that_it_lives(world: Make) -> None:
    it = world()
    for _ in range(20):
        assert it.passes(1.5) == ""
        it.esp.hears(ping(b"whatever"))
    assert it.passes(1.5) == ""
    assert it.passes(1).startswith("frozen")


def test_one_question_is_open_at_a_time(world: Make) -> None:
    it = world()
    for _ in range(60):
        it.esp.hears(ping(b"whatever"))
        assert it.passes(0.5) == ""
    said = it.esp.said()
    assert [frame.stream for frame in split(said) if frame.kind == frames.HEADERS] == [1]
    it.pulse.ask(it.clock.now)
    it.esp.says_nothing()


def test_a_time_in_which_esp_itself_stood_still_does_not_count(world: Make, clock: Clock) -> None:
    it = world()
    assert it.passes(2) == ""
    clock.passes(3600)
    assert LIMITS.health_timeout > LONGEST_STEP
    assert it.pulse.tick(clock.now) == ""
    it.answers(1)
    assert len(it.outcomes) == 1
    assert it.passes(1) == ""


def test_a_refusal_and_a_broken_call_are_told(world: Make) -> None:
    it = world()
    it.passes(2)
    it.esp.hears(headers(1, HEAD + trailers(Status(Code.UNAUTHENTICATED, "invalid auth token")), end=True))
    refusal, _ = it.outcomes.pop()
    assert isinstance(refusal, RpcError)
    assert refusal.status == Status(Code.UNAUTHENTICATED, "invalid auth token")
    it.passes(2)
    it.esp.hears(rst(3, ErrorCode.INTERNAL_ERROR))
    broken, _ = it.outcomes.pop()
    assert isinstance(broken, BrokenCall)
    it.passes(2)
    it.esp.hears(headers(5, HEAD), data(5, b"\0\0\0\0\5gar"), headers(5, trailers(), end=True))
    assert isinstance(it.outcomes.pop()[0], RpcError)
    it.esp.holds_nothing()


def test_a_connection_whose_calls_are_all_taken_is_not_left(world: Make) -> None:
    """A hundred watches on a server that allows no more may be silent for hours; keepalive looks after them."""
    it = world()
    it.esp.hears(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 1}))
    it.esp.calls(None)
    it.esp.said()
    assert it.passes(100) == ""
    it.esp.says_nothing()
    it.esp.hears(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 0}))
    assert it.passes(100) == ""


def test_a_server_that_takes_no_bytes_is_left_though_it_cannot_be_asked(world: Make) -> None:
    it = world(Limits(health_interval=2, health_timeout=2, max_output_hard_bytes=1000, max_output_bytes=100))
    it.esp.connection.pause()
    while it.esp.connection.room:
        it.esp.calls()
    it.unacknowledged = 2000
    assert it.passes(2) == ""
    assert it.passes(0.5).startswith("cut off")


def test_a_connection_that_is_over_is_neither_asked_nor_left(world: Make) -> None:
    it = world()
    it.esp.calls(None)
    it.esp.connection.close("no leader")
    assert it.passes(100) == ""
    assert it.esp.connection.why_over == "no leader"
    assert it.outcomes == []


def test_no_ping_takes_the_place_of_the_question(world: Make) -> None:
    """etcd closes a connection that sends PINGs while no call is open."""
    it = world()
    for stream in range(1, 60, 2):
        it.passes(2)
        said = it.esp.said()
        assert ping(KEEPALIVE_PING) not in said
        it.answers(stream)
