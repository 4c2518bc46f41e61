"""The drain of the server's end: GOAWAY, a PING that shows its arrival, GOAWAY with the last stream, the end."""

from __future__ import annotations

from esp.core.wire.frames import MAX_STREAM_ID, ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.status import OK, Code, Status
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    HOLD,
    STREAM,
    Client,
    Notes,
    Server,
    call,
    data,
    echoed,
    goaway,
    headers,
    meet,
    message,
    ping,
    refusal,
    rst,
    trailers,
    window,
)

DRAIN_PING = bytes.fromhex("0106010800030309")
STOPPING = Status(Code.UNAVAILABLE, "server is shutting down")
NOTICE = (goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR, b"draining"), ping(DRAIN_PING))


def last_call(stream: int) -> bytes:
    return goaway(stream, ErrorCode.NO_ERROR, b"draining")


def drained(server: Server) -> None:
    server.connection.drain(STOPPING)
    server.flush()


def answered(client: Client) -> None:
    client.sends(ping(DRAIN_PING, ack=True))


def test_an_idle_connection_ends_when_the_client_has_heard() -> None:
    client, server = meet()
    drained(server)
    server.answers(*NOTICE)
    assert not server.closed
    answered(client)
    server.answers(last_call(0))
    assert server.closed


def test_calls_begun_until_then_are_served() -> None:
    client, server = meet()
    drained(server)
    client.sends(headers(1, call()), data(1, message(b"hi"), end=True))
    server.answers(*NOTICE, *echoed(1, b"hi"))
    answered(client)
    server.answers(last_call(1))
    assert server.closed


def test_the_connection_ends_with_its_last_call() -> None:
    client, server = meet()
    client.sends(*(headers(s, call(HOLD)) + data(s, message(), end=True) for s in (1, 3)))
    drained(server)
    answered(client)
    server.answers(*NOTICE, last_call(3))
    server.hold.streams[1].finish(OK)
    server.flush()
    assert not server.closed
    server.says()
    server.hold.streams[3].respond(b"bye")
    server.flush()
    server.answers(*echoed(3, b"bye"))
    assert server.closed
    server.holds_nothing()


def test_an_answer_that_waits_for_a_window_is_finished_first() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    server.hold.streams[1].respond(bytes(100_000))
    drained(server)
    answered(client)
    assert not server.closed
    client.sends(window(0, 100_000), window(1, 100_000))
    assert server.frames()[-1].payload == encode(trailers())
    assert server.closed
    server.holds_nothing()


def test_a_client_that_resets_its_last_call_ends_the_connection() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    drained(server)
    answered(client)
    client.sends(rst(1))
    assert server.closed


def test_streaming_calls_are_ended_at_once_so_that_clients_resume_elsewhere() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)))
    server.stream.streams[1].start()
    drained(server)
    assert server.saw[1:] == [("cancelled", 1, ErrorCode.CANCEL, "draining")]
    server.answers(
        headers(1, [(b":status", b"200"), (b"content-type", b"application/grpc")]),
        *NOTICE,
        headers(1, trailers(STOPPING), end=True),
        rst(1, ErrorCode.NO_ERROR),
    )


def test_calls_that_may_wait_for_hours_are_ended_as_streams_are() -> None:
    client, server = meet()
    server.hold.waits = True
    client.sends(*(headers(s, call(HOLD)) + data(s, message(), end=True) for s in (1, 3)))
    server.hold.streams[1].sink = Notes(server.stream, server.hold.streams[1])
    drained(server)
    assert server.saw[2:] == [("cancelled", 1, ErrorCode.CANCEL, "draining")]
    server.answers(*NOTICE, *(refusal(s, Code.UNAVAILABLE, "server is shutting down") for s in (1, 3)))
    answered(client)
    assert server.closed
    server.holds_nothing()


def test_streaming_calls_begun_in_between_are_ended_too() -> None:
    client, server = meet()
    drained(server)
    client.sends(headers(1, call(STREAM)))
    server.answers(*NOTICE)
    answered(client)
    server.answers(last_call(1), refusal(1, Code.UNAVAILABLE, "server is shutting down"), rst(1, ErrorCode.NO_ERROR))
    assert server.closed


def test_calls_begun_too_late_are_refused_so_that_they_are_sent_again() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    drained(server)
    answered(client)
    server.says()
    client.sends(headers(3, call(HOLD)), data(3, message(), end=True))
    server.resets(3, ErrorCode.REFUSED_STREAM)
    assert 3 not in server.hold.streams
    assert server.limits_reached == {}


def test_known_header_blocks_begun_too_late_are_refused_as_well() -> None:
    client, server = meet()
    client.gives_up_its_table()
    client.sends(headers(5, call(HOLD)), data(5, message(), end=True))
    client.sends(headers(7, call(HOLD)), data(7, message(), end=True))
    drained(server)
    answered(client)
    server.says()
    client.sends(headers(9, call(HOLD)), data(9, message(), end=True))
    server.resets(9, ErrorCode.REFUSED_STREAM)


def test_the_last_stream_named_never_rises() -> None:
    client, server = meet()
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    drained(server)
    answered(client)
    client.sends(headers(3, call(HOLD)))
    server.says()
    client.sends(window(0, 0))
    server.answers(goaway(1, ErrorCode.PROTOCOL_ERROR, b"WINDOW_UPDATE of 0"))


def test_a_client_that_does_not_answer_is_not_waited_for(clock: Clock) -> None:
    _, server = meet()
    drained(server)
    server.says()
    server.tick(clock.passes(5.0))
    server.says_nothing()
    server.tick(clock.passes(0.1))
    server.answers(last_call(0))
    assert server.closed


def test_another_pings_answer_is_not_taken_for_it() -> None:
    client, server = meet()
    drained(server)
    client.sends(ping(b"12345678", ack=True))
    assert not server.closed


def test_its_own_ping_answered_before_it_was_sent_means_nothing() -> None:
    client, server = meet()
    answered(client)
    server.says_nothing()
    assert not server.closed


def test_to_drain_twice_is_to_drain_once() -> None:
    client, server = meet()
    drained(server)
    drained(server)
    server.answers(*NOTICE)
    answered(client)
    answered(client)
    server.answers(last_call(0))
    drained(server)
    server.says_nothing()
