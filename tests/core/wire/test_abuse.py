"""Frames that are legal, or nearly, and only make work: esp cuts each kind short, and keeps nothing.

Well-behaved peers that look similar are here too: they must pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hpack.hpack import encode_integer

from esp.core.wire.frame_reader import BANDWIDTH_PING
from esp.core.wire.frames import (
    MAX_WINDOW,
    PRIORITY,
    SETTINGS_ACK,
    SETTINGS_INITIAL_WINDOW_SIZE,
    ErrorCode,
)
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.status import DEADLINE_EXCEEDED, OK
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    ECHO,
    HOLD,
    STREAM,
    Client,
    Server,
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
    window,
)

MANY = 20_000
TIGHT = Limits(glitch_budget=200, glitch_refill_per_second=33)


def opened(stream: int, path: bytes = STREAM) -> bytes:
    return headers(stream, call(path))


def half_closed(stream: int) -> bytes:
    return opened(stream, HOLD) + data(stream, message(), end=True)


# Each makes the frames of one round on a stream id of its own.
ROUNDS: dict[str, Callable[[int], bytes]] = {
    "requests reset at once": lambda s: opened(s) + rst(s),
    "whole requests reset at once": lambda s: half_closed(s) + rst(s),
    # The ways to have the server do the resetting ("MadeYouReset").
    "window updates of 0": lambda s: opened(s) + window(s, 0),
    "windows above the largest": lambda s: opened(s) + window(s, MAX_WINDOW),
    "data after the end": lambda s: half_closed(s) + data(s, b"x"),
    "headers after the end": lambda s: half_closed(s) + headers(s, [(b"x", b"y")], end=True),
    "priority of the wrong size": lambda s: opened(s) + raw(PRIORITY, 0, s, bytes(4)),
    "streams that depend on themselves": lambda s: opened(s) + priority(s, s),
    # And more of them.
    "malformed requests": lambda s: headers(s, call(ECHO, (b"X", b"y"))),
    "too many fields": lambda s: headers(s, call(ECHO, *[(b"a", b"b")] * 100)),
    "malformed trailers": lambda s: opened(s) + headers(s, [(b"X", b"y")], end=True),
    "lengths that do not match": lambda s: headers(s, call(STREAM, (b"content-length", b"9")), end=True),
    "streams that exceed their window": lambda s: opened(s) + data(s, bytes(16384)) * 5,
}


@pytest.mark.parametrize("make", ROUNDS.values(), ids=ROUNDS.keys())
def test_resets_beyond_the_budget_end_the_connection(make: Callable[[int], bytes], clock: Clock) -> None:
    client, server = meet(TIGHT)
    for stream in range(1, 2 * 3000, 2):
        client.sends(make(stream))
        if server.closed:
            break
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)
    assert 150 < stream // 2 <= 200
    assert server.limits_reached["glitch_budget"] == 1
    served = [event for event in server.saw if event[0] in ("open", "message")]
    assert len(served) <= 201
    assert len([event for event in server.saw if event[0] == "cancelled"]) == len(
        [event for event in server.saw if event[0] == "open"]
    )
    server.holds_nothing()


@pytest.mark.parametrize("make", ROUNDS.values(), ids=ROUNDS.keys())
def test_three_thousand_in_one_write_are_cut_short_as_well(make: Callable[[int], bytes], clock: Clock) -> None:
    client, server = meet(TIGHT)
    client.sends(*(make(stream) for stream in range(1, 2 * 3000, 2)))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)
    assert len([event for event in server.saw if event[0] in ("open", "message")]) <= 201
    server.holds_nothing()


def test_resets_now_and_then_are_free(clock: Clock) -> None:
    client, server = meet(TIGHT)
    for stream in range(1, 2 * 3000, 2):
        clock.passes(1 / 33)
        client.sends(opened(stream), rst(stream))
    assert not server.closed
    server.holds_nothing()


def test_the_budget_comes_back(clock: Clock) -> None:
    client, server = meet(Limits(glitch_budget=10, glitch_refill_per_second=2))
    streams = iter(range(1, 1000, 2))
    for _ in range(3):
        client.sends(*(opened(stream) + rst(stream) for stream, _ in zip(streams, range(10), strict=False)))
        assert not server.closed
        clock.passes(5.0)
    client.sends(*(opened(stream) + rst(stream) for stream, _ in zip(streams, range(11), strict=False)))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)


def test_resets_of_calls_that_were_being_answered_are_free(clock: Clock) -> None:
    client, server = meet(TIGHT)
    for stream in range(1, 2 * 3000, 2):
        client.sends(opened(stream))
        server.stream.streams[stream].start()
        client.sends(rst(stream))
    assert not server.closed


class TestAShardThatIsSlow:
    """What honest clients send while a shard does not answer: their deadlines run out, and they take calls back."""

    def test_resets_when_the_time_out_has_run_out_are_free(self, clock: Clock) -> None:
        client, server = meet(TIGHT)
        for first in range(1, 6000, 600):
            streams = range(first, first + 600, 2)
            client.sends(
                *(headers(s, call(HOLD, (b"grpc-timeout", b"20m"))) + data(s, message(), end=True) for s in streams)
            )
            clock.passes(0.019)
            client.sends(*(rst(stream) for stream in streams))
        assert not server.closed
        server.holds_nothing()

    @pytest.mark.parametrize("path", [HOLD, STREAM])
    def test_resets_of_calls_that_have_lived_are_free(self, path: bytes, clock: Clock) -> None:
        client, server = meet(TIGHT)
        for first in range(1, 6000, 600):
            streams = range(first, first + 600, 2)
            client.sends(*(opened(stream, path) for stream in streams))
            clock.passes(0.051)
            client.sends(*(rst(stream) for stream in streams))
        assert not server.closed
        server.holds_nothing()

    @pytest.mark.parametrize("timeout", [b"1n", b"1u", b"900u", b"20m", b"1H"])
    def test_resets_before_that_are_not(self, timeout: bytes, clock: Clock) -> None:
        client, server = meet(TIGHT)
        for stream in range(1, 6000, 2):
            client.sends(headers(stream, call(HOLD, (b"grpc-timeout", timeout))))
            clock.passes(0.0005)
            client.sends(rst(stream))
        server.closes(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset before their response")

    @pytest.mark.parametrize("late", [rst, lambda s: window(s, 100)], ids=["resets", "windows"])
    def test_what_crosses_the_answer_is_free(self, late: Callable[[int], bytes], clock: Clock) -> None:
        client, server = meet(TIGHT)
        for first in range(1, 60_000, 600):
            streams = range(first, first + 600, 2)
            client.sends(*(half_closed(stream) for stream in streams))
            for stream in streams:
                server.hold.streams.pop(stream).finish(DEADLINE_EXCEEDED)
            server.flush()
            client.sends(*(late(stream) for stream in streams))
        assert not server.closed
        server.holds_nothing()

    def test_so_is_data_for_calls_that_were_ended_early(self, clock: Clock) -> None:
        client, server = meet(TIGHT)
        streams = range(1, 10_000, 2)
        for first in range(0, len(streams), 500):
            some = streams[first : first + 500]
            client.sends(*(opened(stream) for stream in some))
            for stream in some:
                server.stream.streams.pop(stream).finish(DEADLINE_EXCEEDED)
            server.flush()
        client.sends(*(data(stream, message(b"late"), end=True) for stream in streams))
        assert not server.closed
        server.holds_nothing()


def test_streams_above_the_limit_are_not_for_free(clock: Clock) -> None:
    client, server = meet(replace(TIGHT, max_concurrent_streams=1))
    client.sends(opened(1, HOLD), *(opened(stream, HOLD) for stream in range(3, 2 * 500, 2)))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM, "too many streams above the limit")
    server.holds_nothing()


FLOODS: dict[str, bytes] = {
    "empty DATA": data(1),
    "padded empty DATA": data(1, b"", pad=10),
    "DATA of a byte": data(1, b"\0"),
    "DATA on closed streams": data(3, b"x"),
    "small window updates": window(1, 1),
    "small window updates of the connection": window(0, 1),
    "priorities": priority(1, 3),
    "settings": settings({}),
    "windows to and fro": settings({SETTINGS_INITIAL_WINDOW_SIZE: 0})
    + settings({SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW}),
    "acknowledgements of nothing": SETTINGS_ACK,
    "answers to no ping": ping(ack=True),
    "goodbyes": goaway(0, ErrorCode.INTERNAL_ERROR, b"bye"),
    "unknown frames": raw(99, 0, 0),
    "unknown frames on a stream": raw(99, 0, 1, b"x"),
    "pings": ping(),
    "resets of closed streams": rst(3),
    "window updates of closed streams": window(3, 100),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_ends_the_connection(frame: bytes, clock: Clock) -> None:
    client, server = meet(TIGHT)
    client.sends(opened(1), opened(3), window(3, 0))
    client.acknowledges()
    server.says()
    for _ in range(MANY // 100):
        client.sends(frame * 100)
        if server.closed:
            break
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)
    server.holds_nothing()


HEADER_FLOODS: dict[str, bytes] = {
    "empty pieces": continuation(1, b"", end_headers=False),
    "pieces of a byte": continuation(1, b"\x82", end_headers=False),
    "large pieces": continuation(1, bytes(16384), end_headers=False),
}


@pytest.mark.parametrize("frame", HEADER_FLOODS.values(), ids=HEADER_FLOODS.keys())
def test_a_header_block_without_end_ends_the_connection(frame: bytes) -> None:
    client, server = meet(TIGHT)
    client.sends(headers(1, b"", end_headers=False))
    for _ in range(TIGHT.max_continuations):
        client.sends(frame)
        if server.closed:
            break
    else:
        client.sends(frame)
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)
    assert set(server.limits_reached) <= {"max_continuations", "max_header_block_bytes"}


def test_fields_that_unfold_end_the_connection() -> None:
    client, server = meet(TIGHT)
    client.sends(headers(1, b"\x82" * 15_000))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
    assert server.limits_reached == {"max_header_block_bytes": 1}


def test_a_large_entry_that_is_referred_to_often_ends_the_connection() -> None:
    client, server = meet(TIGHT)
    entry = b"\x40\x01x" + bytes(encode_integer(4000, 7)) + b"v" * 4000  # a literal with indexing
    client.sends(headers(1, encode(call()) + entry + b"\xbe" * 40))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")


def test_table_size_updates_without_end_end_the_connection() -> None:
    client, server = meet(TIGHT)
    client.sends(headers(1, b"\x20" * 16_000))
    server.closes(ErrorCode.COMPRESSION_ERROR)


def test_a_warning_per_connection_is_enough(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    client, server = meet(TIGHT)
    client.sends(*(make(2 * n + 1) for n, make in enumerate([*ROUNDS.values()] * 100)))
    assert server.closed
    client.sends(*[goaway(0, ErrorCode.INTERNAL_ERROR, b"bye")] * 100)
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == [
        "the client: closing: ENHANCE_YOUR_CALM: too many stream errors"
    ]


def test_goodbyes_do_not_fill_the_log(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    caplog.set_level("INFO")
    client, server = meet(TIGHT)
    client.sends(*[goaway(0, ErrorCode.INTERNAL_ERROR, b"bye")] * 1000)
    assert server.closed
    assert len(caplog.records) == 2


# PING, as etcd polices it: grpc-go's enforcement with 5 s between pings and none without streams.


def pinging(client: Client, server: Server, clock: Clock, seconds: float, times: int) -> None:
    for _ in range(times):
        client.sends(ping())
        if server.closed:
            return
        server.answers(ping(ack=True))
        clock.passes(seconds)


def test_pings_that_come_too_fast_end_the_connection_with_the_words_clients_know(clock: Clock) -> None:
    client, server = meet(TIGHT)
    client.sends(opened(1))
    server.says()
    # The first has none before it; then two strikes are forgiven.
    pinging(client, server, clock, 1, 3)
    assert not server.closed
    client.sends(ping())
    server.closes(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")


def test_keepalive_every_five_seconds_is_fine_with_a_stream(clock: Clock) -> None:
    client, server = meet(TIGHT)
    client.sends(opened(1))
    server.says()
    pinging(client, server, clock, 5, 1000)
    assert not server.closed


def test_keepalive_without_a_stream_is_too_much(clock: Clock) -> None:
    client, server = meet(TIGHT)
    pinging(client, server, clock, 60, 10)
    server.closes(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")


def test_two_hours_between_pings_are_enough_without_a_stream(clock: Clock) -> None:
    client, server = meet(TIGHT)
    pinging(client, server, clock, 7200, 10)
    assert not server.closed


def test_pings_after_data_are_free(clock: Clock) -> None:
    """A grpc-go client measures the bandwidth so: WINDOW_UPDATE and PING for nearly everything it gets."""
    client, server = meet(TIGHT)
    client.gives_up_its_table()
    held = []
    for stream in range(5, 2 * 5000, 2):
        client.sends(headers(stream, call()), data(stream, message(b"hi"), end=True))
        server.answers(*echoed(stream, b"hi"), *(held if len(held) == 2 else ()))
        if len(held) == 2:
            held.clear()
        client.sends(window(0, 7), ping(BANDWIDTH_PING))
        server.says_nothing()
        held.append(ping(BANDWIDTH_PING, ack=True))
    server.tick(clock.now)
    server.holds_nothing()


class TestBandwidthPings:
    """The answer to what grpc-go measures with waits, or it would come, in a packet of its own, with every call."""

    def test_it_leaves_with_the_next_tick(self, clock: Clock) -> None:
        client, server = meet()
        client.sends(ping(BANDWIDTH_PING))
        client.sends(headers(1, call(ECHO)), data(1, message(b"hi"), end=True))
        server.answers(*echoed(1, b"hi"))
        server.tick(clock.now)
        server.answers(ping(BANDWIDTH_PING, ack=True))
        server.tick(clock.now)
        server.says_nothing()

    def test_or_behind_enough_to_measure(self) -> None:
        client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 2**20})
        client.sends(window(0, 2**20), ping(BANDWIDTH_PING))
        for stream in (1, 3, 5, 7, 9):
            client.sends(headers(stream, call(ECHO)), data(stream, message(bytes(15_000)), end=True))
            answered = server.says().endswith(ping(BANDWIDTH_PING, ack=True))
            assert answered == (stream == 9)

    def test_or_when_another_is_there(self) -> None:
        client, server = meet()
        client.sends(ping(BANDWIDTH_PING), ping(BANDWIDTH_PING))
        client.sends(headers(1, call(ECHO)), data(1, message(b"hi"), end=True))
        server.answers(*echoed(1, b"hi"), *[ping(BANDWIDTH_PING, ack=True)] * 2)


def test_any_other_ping_is_answered_at_once() -> None:
    client, server = meet()
    client.sends(ping(b"12345678"))
    server.answers(ping(b"12345678", ack=True))


def test_strikes_are_forgotten_when_something_was_sent(clock: Clock) -> None:
    client, server = meet(TIGHT)
    client.sends(opened(1))
    for _ in range(100):
        server.stream.streams[1].send_data(message(b"event"), False)
        server.flush()
        server.says()
        pinging(client, server, clock, 0, 3)
        assert not server.closed


# What looks like abuse and is not.


def test_a_client_may_end_every_request_with_an_empty_frame(clock: Clock) -> None:
    client, server = meet(TIGHT)
    for stream in range(1, 2 * 3000, 2):
        client.sends(headers(stream, call()), data(stream, message(b"hi")), data(stream, end=True))
    assert not server.closed
    server.holds_nothing()


def test_a_client_may_send_each_prefix_in_a_frame_of_its_own(clock: Clock) -> None:
    client, server = meet(TIGHT)
    for stream in range(1, 2 * 3000, 2):
        client.sends(headers(stream, call()), data(stream, message(b"hi")[:5]), data(stream, b"hi", end=True))
    assert not server.closed


def test_a_stream_may_carry_many_small_messages(clock: Clock) -> None:
    client, server = meet(TIGHT)
    client.sends(opened(1))
    for _ in range(5000):
        client.sends(data(1, message(b"\x08\x01")))
        server.stream.streams[1].consumed(7)
        server.flush()
    assert not server.closed


def test_a_client_may_give_back_every_byte_at_once(clock: Clock) -> None:
    client, server = meet(TIGHT)
    for stream in range(1, 2 * 3000, 2):
        client.sends(headers(stream, call(HOLD)), data(stream, message(), end=True))
        call_ = server.hold.streams[stream]
        call_.start()
        call_.send_data(message(b"x"), False)
        server.flush()
        client.sends(window(0, 6), window(stream, 6))
        call_.finish(OK)
        server.flush()
    assert not server.closed
    server.holds_nothing()


def test_a_client_may_reset_each_call_right_after_its_answer(clock: Clock) -> None:
    client, server = meet(TIGHT)
    for stream in range(1, 2 * 3000, 2):
        clock.passes(1 / 500)
        client.sends(headers(stream, call()), data(stream, message(b"hi"), end=True), rst(stream, ErrorCode.NO_ERROR))
    assert not server.closed


def test_a_page_may_be_asked_for_often(clock: Clock) -> None:
    client, server = meet(TIGHT)
    client.sends(*(headers(stream, page(), end=True) for stream in range(1, 2 * 3000, 2)))
    assert not server.closed
