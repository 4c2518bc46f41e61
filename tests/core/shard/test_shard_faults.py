"""A shard's connection breaks at every frame of a call: a write is applied once, or its error leaves that open.

The etcd here keeps count of what it applied: a request that it heard whole, and did not disown. It breaks its first
connection at the frame it is told to, in one of several ways, and serves well on every later one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from esp.core import errors
from esp.core.wire import frames
from esp.core.wire.frames import ErrorCode
from esp.core.wire.limits import Limits
from tests.core.front import Front
from tests.core.scripted_etcd import STATUS, HeardCall, ScriptedConnection, ScriptedEtcd
from tests.core.wire.conversation import HEAD, Frame, data, goaway, headers, message, rst, trailers

OK = (0, "")
TIMED_OUT = (errors.REQUEST_TIMED_OUT.code, errors.REQUEST_TIMED_OUT.message)
NO_CONNECTION = (errors.NO_CONNECTION.code, errors.NO_CONNECTION.message)
STOPPED = (errors.SERVER_STOPPED.code, errors.SERVER_STOPPED.message)
PATIENT = Limits(max_waiting_seconds=20)

Breaks = Callable[[ScriptedConnection, int], bool]
"""Breaks the connection, or the stream; whether it says that the stream was not processed."""


def hangs_up(connection: ScriptedConnection, stream: int) -> bool:
    connection.hangs_up()
    return False


def aborts(connection: ScriptedConnection, stream: int) -> bool:
    connection.hangs_up(abort=True)
    return False


def disowns(connection: ScriptedConnection, stream: int) -> bool:
    connection.says(goaway(stream - 2, ErrorCode.NO_ERROR))
    return True


def disowns_and_hangs_up(connection: ScriptedConnection, stream: int) -> bool:
    connection.says(goaway(2**31 - 1, ErrorCode.NO_ERROR), goaway(stream - 2, ErrorCode.NO_ERROR))
    connection.hangs_up()
    return True


def owns_and_hangs_up(connection: ScriptedConnection, stream: int) -> bool:
    connection.says(goaway(stream, ErrorCode.NO_ERROR))
    connection.hangs_up()
    return False


def complains_and_hangs_up(connection: ScriptedConnection, stream: int) -> bool:
    connection.says(goaway(2**31 - 1, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings"))
    connection.hangs_up()
    return False


def refuses(connection: ScriptedConnection, stream: int) -> bool:
    connection.says(rst(stream, ErrorCode.REFUSED_STREAM))
    return True


def resets(connection: ScriptedConnection, stream: int) -> bool:
    connection.says(rst(stream, ErrorCode.INTERNAL_ERROR))
    return False


def cancels(connection: ScriptedConnection, stream: int) -> bool:
    connection.says(rst(stream, ErrorCode.CANCEL))
    return False


def breaks_the_protocol(connection: ScriptedConnection, stream: int) -> bool:
    connection.says(data(0, b"on no stream"))
    return False


BREAKS = [
    hangs_up,
    aborts,
    disowns,
    disowns_and_hangs_up,
    owns_and_hangs_up,
    complains_and_hangs_up,
    refuses,
    resets,
    cancels,
    breaks_the_protocol,
]


GOES_ON = (refuses, resets, cancels)
"""Those after which the connection serves other calls."""


@dataclass
class FaultyEtcd:
    """What it does with the calls it hears.

    Attributes:
        at: after so many frames of calls, in both directions, the first connection breaks.
        applied: how often each request was applied, by its body.
        heard: how often each was heard whole.
    """

    at: int
    breaks: Breaks
    applied: Counter[bytes] = field(default_factory=Counter)
    heard: Counter[bytes] = field(default_factory=Counter)
    broken_on: HeardCall | None = None
    _seen: int = 0

    def on_frame(self, connection: ScriptedConnection, frame: Frame) -> None:
        call = connection.call(frame.stream)
        if call is None or call.path == STATUS or frame.kind not in (frames.HEADERS, frames.DATA):
            return
        first = connection is connection.etcd.connections[0]
        if first and self.broken_on is not None and (call is self.broken_on or self.breaks not in GOES_ON):
            return
        self._seen += 1
        if call.whole:
            self.heard[bytes(call.body)] += 1
            self.applied[bytes(call.body)] += 1
            for said in answer(call):
                if self._is_time(connection):
                    break
                self._seen += 1
                connection.says(said)
        if self._is_time(connection):
            self._break(connection, call)

    def _is_time(self, connection: ScriptedConnection) -> bool:
        return self.broken_on is None and self._seen >= self.at

    def _break(self, connection: ScriptedConnection, call: HeardCall) -> None:
        self.broken_on = call
        disowned = self.breaks(connection, call.stream)
        # One that has begun to answer has applied it, whatever it says then.
        if disowned and call.whole and not connection.answered(call.stream):
            self.applied[bytes(call.body)] -= 1


def answer(call: HeardCall) -> tuple[bytes, bytes, bytes]:
    stream = call.stream
    return headers(stream, HEAD), data(stream, message(b"done")), headers(stream, trailers(), end=True)


FRAMES_OF_A_SMALL_CALL = 5
"""Its HEADERS and DATA; the answer's HEADERS, DATA and trailers."""
FRAMES_OF_A_LARGE_CALL = 11


async def outcome_of(ask: Callable[[Front], int], faulty: FaultyEtcd) -> tuple[int, str]:
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        await front.until(lambda: front.shard.version)
        etcd.on_frame = faulty.on_frame
        return await front.outcome(ask(front))


def check_write(outcome: tuple[int, str], faulty: FaultyEtcd, body: bytes) -> None:
    applied = faulty.applied[body]
    if outcome == OK:
        assert applied == 1
    elif outcome == NO_CONNECTION:
        assert applied == 0
    else:
        assert outcome == TIMED_OUT
        assert applied <= 1
    assert faulty.broken_on is not None


@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("at", range(1, FRAMES_OF_A_SMALL_CALL + 1))
def test_a_write(at: int, breaks: Breaks) -> None:
    faulty = FaultyEtcd(at, breaks)
    outcome = asyncio.run(outcome_of(lambda front: front.put(b"a=1"), faulty))
    check_write(outcome, faulty, message(b"a=1"))
    if at == FRAMES_OF_A_SMALL_CALL:
        assert outcome == OK
    elif at <= 2 and breaks in (disowns, disowns_and_hangs_up, refuses):
        assert outcome == OK, "it was sent again"
    else:
        assert outcome == TIMED_OUT


@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("at", range(1, FRAMES_OF_A_LARGE_CALL + 1))
def test_a_large_write(at: int, breaks: Breaks) -> None:
    content = bytes(range(256)) * 450  # more than the 65535 bytes that may go before etcd grants more
    faulty = FaultyEtcd(at, breaks)
    outcome = asyncio.run(outcome_of(lambda front: front.put(content), faulty))
    check_write(outcome, faulty, message(content))


@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("at", range(1, FRAMES_OF_A_SMALL_CALL + 1))
def test_a_read(at: int, breaks: Breaks) -> None:
    faulty = FaultyEtcd(at, breaks)
    outcome = asyncio.run(outcome_of(lambda front: front.range(b"a"), faulty))
    assert faulty.heard[message(b"a")] <= 2
    if at <= 2 or at == FRAMES_OF_A_SMALL_CALL:
        assert outcome == OK, "nothing of the answer had come, or all of it"
    else:
        assert outcome == TIMED_OUT


@pytest.mark.parametrize("breaks", BREAKS)
def test_a_hundred_writes_at_once(breaks: Breaks) -> None:
    """Some were answered, some were not, some were never sent: each is told the truth."""
    faulty = FaultyEtcd(20 * FRAMES_OF_A_SMALL_CALL + 2, breaks)

    async def run() -> dict[bytes, tuple[int, str]]:
        few = {frames.SETTINGS_MAX_CONCURRENT_STREAMS: 40}
        async with ScriptedEtcd(few) as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            await front.until(lambda: front.shard.version)
            etcd.on_frame = faulty.on_frame
            streams = {b"%d" % n: front.put(b"%d" % n) for n in range(100)}
            return {content: await front.outcome(stream) for content, stream in streams.items()}

    outcomes = asyncio.run(run())
    for content, outcome in outcomes.items():
        check_write(outcome, faulty, message(content))
    assert list(outcomes.values()).count(OK) >= 60, "those that waited were sent elsewhere"
