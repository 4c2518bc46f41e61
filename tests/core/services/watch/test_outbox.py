"""Messages that wait for a client: when they leave, how many may wait, and how the call ends."""

from __future__ import annotations

import logging

import pytest

from esp.core import errors
from esp.core.services.watch.outbox import READ_AHEAD_BYTES, Outbox
from esp.core.wire import frames
from esp.core.wire.frames import ErrorCode
from esp.core.wire.limits import Limits
from esp.core.wire.server_stream import Handler, ServerStream, Sink
from esp.core.wire.status import Code, Status
from tests.core.wire.conversation import HEAD, call, data, headers, meet, refusal, rst, trailers, window

INITIAL = 65_535
"""The windows of a client that has not said otherwise."""
LIMIT = 100_000
SMALL = b"m" * 100
STOPPED = headers(1, trailers(errors.SERVER_STOPPED), end=True)
UNHEARD = rst(1, ErrorCode.NO_ERROR)
"""To a client whose call has ended and who has not said that there will be no more requests."""


class Owned(Sink):
    """A call with an outbox; notes what the outbox says to its owner."""

    def __init__(self, down: ServerStream) -> None:
        self.told: list[str] = []
        down.sink = self
        self.outbox = Outbox(down, self)
        self.outbox.wants_room = True

    def on_room(self) -> None:
        self.told.append("room")

    def on_over(self) -> None:
        assert self.outbox.is_over
        self.outbox.send(b"too late")
        self.outbox.hold(-1)
        self.told.append("over")

    def cut(self, stream: ServerStream) -> None:
        self.outbox.cut()

    def drained(self, size: int) -> None:
        self.outbox.drained()

    def cancelled(self, code: int, reason: str) -> None:
        self.outbox.cancelled()


class Scene(Handler):
    """A client that has opened a call, and has not been answered."""

    streaming = True

    def __init__(self, **limits: int) -> None:
        limits = {"max_watch_buffer_bytes": LIMIT, **limits}
        self.client, self.server = meet(Limits(**limits), find=lambda head: self)  # type: ignore[arg-type]
        self.client.sends(headers(1, call()))

    def on_open(self, stream: ServerStream) -> None:
        self.owner = Owned(stream)
        self.outbox = self.owner.outbox

    def is_open(self) -> Scene:
        """The client has heard the head."""
        self.outbox.send(b"first")
        self.server.flush()
        self.server.answers(headers(1, HEAD), data(1, b"first"))
        self.owner.told.clear()
        return self

    def hears(self) -> int:
        """Bytes of messages since the last time."""
        return sum(len(frame.payload) for frame in self.server.frames(frames.DATA))

    def reads(self, size: int) -> None:
        self.client.sends(window(1, size), window(0, size))

    def has_ended(self) -> None:
        assert self.owner.told.count("over") == 1
        assert (self.outbox.queued, self.outbox.waiting) == (0, 0)
        self.server.flush()
        self.server.holds_nothing()


def test_messages_leave_together_with_the_next_flush() -> None:
    scene = Scene().is_open()
    scene.outbox.send(b"a")
    scene.outbox.send_together((b"b", b"c"), is_own=False)
    scene.server.says_nothing()
    assert (scene.outbox.queued, scene.outbox.waiting) == (3, 3)
    scene.server.flush()
    scene.server.answers(data(1, b"abc"))
    assert (scene.outbox.queued, scene.outbox.waiting) == (0, 0)
    assert scene.owner.told == ["room"]


def test_one_that_is_alone_leaves_without_a_flush() -> None:
    scene = Scene().is_open()
    scene.outbox.send_alone(b"a", is_own=False)
    assert scene.outbox not in scene.server.context.unflushed
    scene.server.flush()
    scene.server.answers(data(1, b"a"))
    assert scene.owner.told == []


def test_one_that_is_not_alone_keeps_its_place() -> None:
    scene = Scene()
    scene.outbox.send_alone(b"a", is_own=False)  # the head has not left
    scene.outbox.send_alone(b"b", is_own=False)
    scene.server.says_nothing()
    scene.server.flush()
    scene.server.answers(headers(1, HEAD), data(1, b"ab"))


def test_messages_are_put_into_frames_as_far_as_they_fit() -> None:
    scene = Scene().is_open()
    scene.outbox.send_together((b"a" * 10_000, b"b" * 6_384, b"c"), is_own=False)
    scene.server.flush()
    assert [len(frame.payload) for frame in scene.server.frames(frames.DATA)] == [frames.MAX_FRAME_SIZE, 1]


def test_what_the_client_does_not_read_waits_and_is_accounted_for() -> None:
    scene = Scene().is_open()
    for _ in range(8):
        scene.outbox.send_together((b"m" * frames.MAX_FRAME_SIZE,), is_own=False)
    scene.server.flush()
    heard = scene.hears()
    assert heard == INITIAL - len(b"first")
    whole = 8 * frames.MAX_FRAME_SIZE
    assert scene.server.context.buffers.used == whole - heard
    assert scene.outbox.waiting <= whole - heard
    for _ in range(8):
        scene.reads(frames.MAX_FRAME_SIZE)
    assert heard + scene.hears() == whole
    assert scene.server.context.buffers.used == 0


def test_its_owner_is_told_of_room_when_little_waits_and_not_before() -> None:
    scene = Scene().is_open()
    scene.outbox.send_together([SMALL] * ((INITIAL + READ_AHEAD_BYTES) // 100 + 200), is_own=True)
    assert scene.outbox.is_full
    scene.server.flush()
    assert scene.outbox.is_full
    assert scene.owner.told == []
    scene.reads(40_000)
    assert not scene.outbox.is_full
    assert "room" in scene.owner.told


# Bounds.


def test_a_client_that_is_too_slow_loses_its_call(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene().is_open()
    with caplog.at_level(logging.INFO):
        while not scene.outbox.is_over:
            scene.outbox.send(SMALL)
            assert scene.outbox.waiting <= LIMIT + INITIAL + len(SMALL)
    assert "reads a watch too slowly" in caplog.text
    assert scene.server.limits_reached == {"max_watch_buffer_bytes": 1}
    scene.reads(1_000_000)
    assert scene.server.says().endswith(STOPPED + UNHEARD)
    scene.has_ended()


def test_what_came_in_its_own_call_to_a_shard_counts_nothing_against_the_client() -> None:
    scene = Scene().is_open()
    for _ in range(4):
        scene.outbox.send_together((b"m" * LIMIT,), is_own=True)
    scene.outbox.hold(LIMIT, is_own=True)
    scene.outbox.send(SMALL)
    assert not scene.outbox.is_over
    assert scene.server.limits_reached == {}
    scene.outbox.hold(-LIMIT, is_own=True)
    scene.reads(1_000_000)
    assert scene.hears() == 4 * LIMIT + len(SMALL)


def test_what_waits_elsewhere_counts() -> None:
    scene = Scene().is_open()
    scene.outbox.hold(LIMIT)
    assert not scene.outbox.is_over
    scene.server.flush()
    assert scene.server.context.buffers.used == LIMIT
    scene.outbox.hold(1)
    assert scene.outbox.is_over
    assert scene.server.limits_reached == {"max_watch_buffer_bytes": 1}
    scene.has_ended()


def test_without_memory_for_what_waits_the_call_ends() -> None:
    scene = Scene(max_buffered_bytes=50_000).is_open()
    scene.outbox.hold(60_000)
    scene.server.flush()
    assert scene.server.limits_reached["max_buffered_bytes"] == 1
    scene.server.answers(STOPPED, UNHEARD)
    scene.has_ended()


# The end.


def test_a_call_is_stopped_behind_what_waits() -> None:
    scene = Scene().is_open()
    scene.outbox.send(b"last")
    status = Status(Code.INTERNAL, "so")
    scene.outbox.stop(status)
    scene.outbox.stop()
    scene.outbox.end(errors.SERVER_STOPPED)
    scene.outbox.send_alone(b"too late", is_own=False)
    scene.server.flush()
    scene.server.answers(data(1, b"last"), headers(1, trailers(status), end=True), UNHEARD)
    scene.has_ended()


def test_a_call_that_ends_at_once_drops_what_waits() -> None:
    scene = Scene()
    scene.outbox.send(b"never")
    scene.outbox.end(errors.SERVER_STOPPED)
    scene.server.flush()
    scene.server.answers(refusal(1, Code.UNAVAILABLE, errors.SERVER_STOPPED.message), UNHEARD)
    scene.has_ended()


def test_a_client_that_has_left_is_sent_nothing() -> None:
    scene = Scene().is_open()
    scene.outbox.send(b"never")
    scene.client.sends(rst(1))
    scene.server.says_nothing()
    scene.has_ended()


@pytest.mark.parametrize("in_the_middle", [False, True])
def test_a_call_gives_way_with_a_status_or_in_the_middle_of_a_message_with_a_reset(in_the_middle: bool) -> None:
    scene = Scene().is_open()
    if in_the_middle:
        scene.outbox.send_together((b"m" * (INITIAL + 1),), is_own=True)
        scene.server.flush()
        scene.hears()
    scene.outbox.cut()
    scene.outbox.cut()
    scene.server.flush()
    scene.server.answers(rst(1, ErrorCode.REFUSED_STREAM) if in_the_middle else STOPPED + UNHEARD)
    scene.has_ended()


def test_a_bug_ends_the_call_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene().is_open()

    def fails() -> None:
        raise ValueError("a bug")

    scene.owner.on_room = fails  # type: ignore[method-assign]
    scene.outbox.send(b"a")
    scene.server.flush()
    assert "a bug" in caplog.text
    scene.server.answers(data(1, b"a"), STOPPED, UNHEARD)
    scene.has_ended()


def test_a_bug_at_the_end_ends_the_connection() -> None:
    scene = Scene().is_open()

    def fails() -> None:
        raise ValueError("a bug")

    scene.owner.on_over = fails  # type: ignore[method-assign]
    scene.outbox.fail()
    assert scene.outbox.is_over
    assert scene.server.connection.ended
