"""Every limit of the server's end can be reached, and is counted by its name when it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest

from esp.core.wire.context import WireContext
from esp.core.wire.frames import PREFACE, SETTINGS_INITIAL_WINDOW_SIZE, ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.open_calls import CALL_BYTES, CONNECTION_SHARE, FREE_CALLS
from esp.core.wire.status import Code
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    ECHO,
    HOLD,
    STREAM,
    Server,
    call,
    continuation,
    data,
    headers,
    meet,
    message,
    page,
    refusal,
    rst,
    settings,
    strangers,
)

Reach = Callable[[Clock], Server]


def max_concurrent_streams(clock: Clock) -> Server:
    client, server = meet(Limits(max_concurrent_streams=1))
    client.sends(headers(1, call(HOLD)), headers(3, call(HOLD)))
    server.resets(3, ErrorCode.REFUSED_STREAM)
    return server


def max_call_bytes(clock: Clock) -> Server:
    client, server = meet(Limits(max_call_bytes=CONNECTION_SHARE * 300 * CALL_BYTES))
    client.sends(*(headers(stream, call(HOLD)) for stream in range(1, 600, 2)))
    server.answers()
    client.sends(headers(601, call(HOLD)))
    text = "esp: no memory for another call on this connection, 300 are open; end some, or raise max_call_bytes"
    server.answers(refusal(601, Code.RESOURCE_EXHAUSTED, text), rst(601, ErrorCode.NO_ERROR))
    return server


def max_call_bytes_over_all_clients(clock: Clock) -> Server:
    client, server = meet(Limits(max_call_bytes=CONNECTION_SHARE * 300 * CALL_BYTES))
    assert server.context.calls.take(1001 * CALL_BYTES)
    client.sends(*(headers(stream, call(HOLD)) for stream in range(1, 2 * FREE_CALLS, 2)))
    server.answers()
    client.sends(headers(2 * FREE_CALLS + 1, page(), end=True))
    server.resets(2 * FREE_CALLS + 1, ErrorCode.REFUSED_STREAM)
    return server


def max_header_list_bytes(clock: Clock) -> Server:
    client, server = meet(Limits(max_header_list_bytes=1000))
    client.sends(headers(1, call(HOLD, (b"x", b"y" * 650))), data(1, message(), end=True))
    client.sends(headers(3, call(HOLD, (b"x", b"y" * 800))), data(3, message(), end=True))
    text = (
        "esp: the request's metadata takes 1118 bytes, max_header_list_bytes is 1000; "
        "send less, or raise that in the config"
    )
    server.answers(refusal(3, Code.RESOURCE_EXHAUSTED, text), rst(3, ErrorCode.NO_ERROR))
    assert server.saw == [("message", 1, message())]
    return server


def max_header_block_bytes_after_decoding(clock: Clock) -> Server:
    client, server = meet(Limits(max_header_list_bytes=1000, max_header_block_bytes=2000))
    client.sends(headers(1, b"\x82" * 50))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
    return server


def max_header_fields(clock: Clock) -> Server:
    client, server = meet(Limits(max_header_fields=10))
    client.sends(headers(1, call(HOLD, *[(b"x", b"y")] * 4)), data(1, message(), end=True))
    server.says()
    client.sends(headers(3, call(HOLD, *[(b"x", b"y")] * 5)), data(3, message(), end=True))
    text = "esp: the request's metadata has 11 fields, max_header_fields is 10; send less, or raise that in the config"
    server.answers(refusal(3, Code.RESOURCE_EXHAUSTED, text), rst(3, ErrorCode.NO_ERROR))
    assert server.saw == [("message", 1, message())]
    return server


def max_header_block_bytes(clock: Clock) -> Server:
    client, server = meet(Limits(max_header_block_bytes=100))
    client.sends(headers(1, bytes(80), end_headers=False))
    client.sends(continuation(1, bytes(20), end_headers=False))
    assert not server.closed
    client.sends(continuation(1, bytes(1), end_headers=False))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)
    return server


def max_header_block_bytes_in_one_frame(clock: Clock) -> Server:
    client, server = meet(Limits(max_header_block_bytes=100))
    client.sends(headers(1, call(HOLD, (b"x", b"y" * 60))))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)
    return server


def max_continuations(clock: Clock) -> Server:
    client, server = meet(Limits(max_continuations=2))
    client.sends(headers(1, b"", end_headers=False), *[continuation(1, b"", end_headers=False)] * 2)
    assert not server.closed
    client.sends(continuation(1, encode(call(HOLD))))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)
    return server


def max_message_bytes(clock: Clock) -> Server:
    client, server = meet(Limits(max_message_bytes=100))
    client.sends(headers(1, call(HOLD)), data(1, message(bytes(101))[:50]))
    assert server.connection.streams == {}
    return server


def stream_window_bytes(clock: Clock) -> Server:
    client, server = meet()
    client.sends(headers(1, call(STREAM)), *[data(1, bytes(16384))] * 4)
    server.resets(1, ErrorCode.FLOW_CONTROL_ERROR)
    return server


def connection_window_bytes(clock: Clock) -> Server:
    client, server = meet(Limits(connection_window_bytes=1000))
    client.sends(headers(1, call(STREAM)), data(1, bytes(1001)))
    server.closes(ErrorCode.FLOW_CONTROL_ERROR)
    return server


def max_buffered_bytes(clock: Clock) -> Server:
    client, server = meet(Limits(max_buffered_bytes=1000), client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 0})
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    server.hold.streams[1].respond(bytes(1000))
    assert server.connection.streams == {}
    return server


def max_buffered_bytes_by_requests(clock: Clock) -> Server:
    client, server = meet(Limits(max_buffered_bytes=1000))
    client.sends(headers(1, call(HOLD)), data(1, message(bytes(2000))[:1001]))
    assert server.connection.streams == {}
    return server


def max_output_bytes(clock: Clock) -> Server:
    _, server = meet()
    server.connection.pause()
    return server


def glitch_budget(clock: Clock) -> Server:
    client, server = meet(Limits(glitch_budget=3))
    client.sends(*(headers(s, call(STREAM)) + rst(s) for s in (1, 3, 5)))
    assert not server.closed
    client.sends(headers(7, call(STREAM)), rst(7))
    server.closes(ErrorCode.ENHANCE_YOUR_CALM)
    return server


def preface_timeout(clock: Clock) -> Server:
    client, server = strangers(Limits(preface_timeout=10))
    client.sends(PREFACE)
    server.tick(clock.passes(10))
    assert not server.closed
    server.tick(clock.passes(0.1))
    server.closes(ErrorCode.NO_ERROR)
    return server


def settings_timeout(clock: Clock) -> Server:
    client, server = strangers(Limits(settings_timeout=30))
    client.sends(PREFACE, settings({}))
    server.tick(clock.passes(30))
    assert not server.closed
    server.tick(clock.passes(0.1))
    server.closes(ErrorCode.SETTINGS_TIMEOUT)
    return server


def header_timeout(clock: Clock) -> Server:
    client, server = meet(Limits(header_timeout=10))
    client.sends(headers(1, b"", end_headers=False))
    server.tick(clock.passes(9))
    client.sends(continuation(1, b"", end_headers=False))
    server.tick(clock.passes(1))
    assert not server.closed
    server.tick(clock.passes(0.1))
    server.closes(ErrorCode.NO_ERROR)
    return server


def request_timeout(clock: Clock) -> Server:
    client, server = meet(Limits(request_timeout=1))
    client.sends(headers(1, call(HOLD)))
    for _ in range(3):
        server.tick(clock.passes(1))
    assert server.connection.streams == {}
    return server


def blocked_write_timeout(clock: Clock) -> Server:
    client, server = meet(Limits(blocked_write_timeout=1), client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 0})
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    server.hold.streams[1].respond(b"x")
    for _ in range(3):
        server.tick(clock.passes(1))
    assert server.connection.streams == {}
    return server


def idle_timeout(clock: Clock) -> Server:
    client, server = meet(Limits(idle_timeout=100))
    client.sends(headers(1, call(STREAM)))
    client.acknowledges()
    server.tick(clock.passes(1000))
    client.sends(rst(1))
    server.tick(clock.passes(100))
    assert not server.closed
    server.tick(clock.passes(0.1))
    server.closes(ErrorCode.NO_ERROR, "idle")
    return server


def test_a_connection_is_not_idle_while_calls_come_and_end_between_two_ticks(clock: Clock) -> None:
    client, server = meet(Limits(idle_timeout=100))
    for stream in (1, 3, 5):
        client.sends(headers(stream, call(ECHO)), data(stream, message(), end=True))
        client.acknowledges()
        server.tick(clock.passes(60))
        assert server.connection.idle_since == clock.now
    server.tick(clock.passes(100))
    assert not server.closed
    server.tick(clock.passes(0.1))
    server.closes(ErrorCode.NO_ERROR, "idle")


REACHED: list[Reach] = [
    max_concurrent_streams,
    max_call_bytes,
    max_call_bytes_over_all_clients,
    max_header_list_bytes,
    max_header_fields,
    max_header_block_bytes,
    max_header_block_bytes_after_decoding,
    max_header_block_bytes_in_one_frame,
    max_continuations,
    max_message_bytes,
    stream_window_bytes,
    connection_window_bytes,
    max_buffered_bytes,
    max_buffered_bytes_by_requests,
    max_output_bytes,
    glitch_budget,
    preface_timeout,
    settings_timeout,
    header_timeout,
    request_timeout,
    blocked_write_timeout,
    idle_timeout,
]
ELSEWHERE = {
    "max_json_bytes": "gateway/test_call.py",
    "glitch_refill_per_second": "test_abuse.py",
    "max_output_hard_bytes": "test_transport.py",
    "max_connections": "test_transport.py",
    "common_share": "test_shares.py",
    "max_watch_buffer_bytes": "services/watch/test_outbox.py",
    "max_watcher_bytes": "services/watch/test_hostile.py",
    "max_shared_watchers": "services/watch/test_crowd.py",
    "connect_timeout": "the shard's tests",
    "keepalive_time": "test_client.py",
    "keepalive_timeout": "test_client.py",
    "health_interval": "shard/test_pulse.py",
    "health_timeout": "shard/test_pulse.py",
    "max_waiting_requests": "the shard's tests",
    "max_waiting_seconds": "the shard's tests",
    "max_batched_reads": "test_read_batch.py",
    "max_keepalive_streams": "test_keepalive.py",
    "max_keepalives": "test_keepalive.py",
    "max_known_leases": "test_keepalive.py",
    "max_lease_repairs": "test_keepalive.py",
    "max_tokens": "test_tokens.py",
    "token_seconds": "test_tokens.py",
    "max_shared_token_bytes": "test_shared_tokens.py",
    "max_snapshot_tries": "test_snapshot.py",
    "max_parts_per_shard": "test_gate.py",
    "costly_share": "test_gate.py",
    "max_resume_positions": "test_positions.py",
    "max_samples": "test_samples.py",
    "sample_seconds": "integration/test_kubernetes.py",
    "worker_timeout": "workers/test_watchdog.py",
}


@pytest.mark.parametrize("reach", REACHED, ids=[reach.__name__ for reach in REACHED])
def test_a_limit_that_is_reached_is_counted_by_its_name(reach: Reach, clock: Clock) -> None:
    server = reach(clock)
    name = max((field.name for field in fields(Limits) if reach.__name__.startswith(field.name)), key=len)
    assert server.limits_reached == {name: 1}
    if server.closed:
        server.holds_nothing()


def test_every_limit_is_reached_by_some_test() -> None:
    reached = {f.name for f in fields(Limits) for reach in REACHED if reach.__name__.startswith(f.name)}
    assert {f.name for f in fields(Limits)} == reached | set(ELSEWHERE)


def test_limits_reached_by_several_connections_are_counted_together() -> None:
    context = WireContext(Limits())
    context.reached("idle_timeout")
    context.reached("idle_timeout")
    assert context.counters.limits == {"idle_timeout": 2}
