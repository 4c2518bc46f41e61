"""Windows, both ways, of streams and of the connection (RFC 9113, sections 5.2 and 6.9)."""

from __future__ import annotations

import pytest

from esp.core.wire.frames import (
    DATA,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    SETTINGS_ACK,
    SETTINGS_INITIAL_WINDOW_SIZE,
    WINDOW_UPDATE,
    ErrorCode,
    unpack_u32,
)
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.server_stream import OVERLOADED, ServerStream
from esp.core.wire.status import OK
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    HEAD,
    HOLD,
    PAGE,
    STREAM,
    Client,
    Frame,
    Notes,
    Server,
    Streaming,
    body,
    call,
    data,
    echoed,
    headers,
    meet,
    message,
    page,
    raw,
    rst,
    settings,
    trailers,
    window,
)


def held(limits: Limits | None = None, *, initial_window: int = 65_535) -> tuple[Client, Server, ServerStream]:
    """A call on stream 1 that waits for its answer."""
    client, server = meet(limits, client_settings={SETTINGS_INITIAL_WINDOW_SIZE: initial_window})
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    server.says()
    return client, server, server.hold.streams[1]


def sizes(server: Server) -> list[int]:
    return [len(frame.payload) for frame in server.frames(DATA)]


def increments(frames: list[Frame], stream: int) -> int:
    """What the server has given back on a stream."""
    return sum(unpack_u32(f.payload)[0] for f in frames if f.kind == WINDOW_UPDATE and f.stream == stream)


# Sending.


def test_an_answer_is_cut_into_frames() -> None:
    _, server, stream = held()
    stream.respond(bytes(40_000 - 5))
    server.flush()
    assert sizes(server) == [16384, 16384, 7232]
    server.holds_nothing()


def test_an_answer_stops_at_the_stream_window_and_goes_on_with_its_trailers() -> None:
    client, server, stream = held(initial_window=100)
    stream.respond(bytes(195))
    server.flush()
    whole = prefix(bytes(195))
    server.answers(headers(1, HEAD), data(1, whole[:100]))
    client.sends(window(1, 99))
    server.answers(data(1, whole[100:199]))
    client.sends(window(1, 1))
    server.answers(data(1, whole[199:]), headers(1, trailers(), end=True))
    server.holds_nothing()


def test_all_streams_together_stop_at_the_connection_window() -> None:
    client, server = meet()
    client.sends(*(headers(s, call(HOLD)) + data(s, message(), end=True) for s in (1, 3)))
    server.says()
    for stream in (1, 3):
        server.hold.streams[stream].respond(bytes(60_000))
    server.flush()
    frames = server.frames()
    assert len(body(frames, 1)) + len(body(frames, 3)) == 65_535
    client.sends(window(0, 100_000))
    frames += server.frames()
    for stream in (1, 3):
        assert body(frames, stream) == prefix(bytes(60_000))
    server.holds_nothing()


def test_waiting_streams_take_turns_frame_by_frame() -> None:
    client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 0})
    client.sends(*(headers(s, call(HOLD)) + data(s, message(), end=True) for s in (1, 3, 5)))
    for stream in (1, 3, 5):
        server.hold.streams[stream].respond(bytes(16384 * 2 - 5))
    server.flush()
    server.says()
    server.connection.pause()
    client.sends(window(1, 40_000), window(3, 40_000), window(5, 40_000), window(0, 100_000))
    assert server.frames(DATA) == []
    server.connection.resume()
    server.flush()
    assert [frame.stream for frame in server.frames(DATA)] == [1, 3, 5, 1, 3, 5]


def test_one_blocked_stream_does_not_stop_its_neighbours() -> None:
    client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 10})
    client.sends(headers(1, call(HOLD)), data(1, message(), end=True))
    server.hold.streams[1].respond(bytes(1000))
    server.flush()
    server.says()
    client.sends(headers(3, call()), data(3, message(b"hi"), end=True))
    server.answers(*echoed(3, b"hi"))


def test_an_end_without_data_needs_no_window() -> None:
    _, server, stream = held(initial_window=0)
    stream.start()
    stream.send_data(b"", True)
    server.flush()
    server.answers(headers(1, HEAD), data(1, end=True))
    server.holds_nothing()


def test_an_end_without_data_needs_no_window_even_below_zero() -> None:
    client, server, stream = held(initial_window=100)
    stream.start()
    stream.send_data(bytes(50), False)
    server.flush()
    client.sends(settings({SETTINGS_INITIAL_WINDOW_SIZE: 0}))
    server.says()
    stream.send_data(b"", True)
    server.flush()
    server.answers(data(1, end=True))
    server.holds_nothing()


def test_an_end_without_data_needs_no_connection_window() -> None:
    client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 100_000})
    client.sends(*(headers(s, call(HOLD)) + data(s, message(), end=True) for s in (1, 3)))
    server.hold.streams[1].send_data(bytes(70_000), False)
    server.flush()
    client.sends(settings({SETTINGS_INITIAL_WINDOW_SIZE: 0}))
    server.says()
    server.hold.streams[3].send_data(b"", True)
    server.flush()
    server.answers(data(3, end=True))


def test_trailers_need_no_window_but_wait_for_the_data_before_them() -> None:
    client, server, stream = held(initial_window=0)
    stream.start()
    stream.finish(OK)
    server.flush()
    server.answers(headers(1, HEAD), headers(1, trailers(), end=True))
    client.sends(headers(3, call(HOLD)), data(3, message(), end=True))
    server.hold.streams[3].respond(b"x")
    server.flush()
    server.answers(headers(3, HEAD))
    client.sends(window(3, 6))
    server.answers(data(3, prefix(b"x")), headers(3, trailers(), end=True))


def test_a_raised_initial_window_lets_waiting_streams_go_on() -> None:
    client, server, stream = held(initial_window=10)
    stream.respond(bytes(95))
    server.flush()
    server.says()
    client.sends(settings({SETTINGS_INITIAL_WINDOW_SIZE: 60}))
    server.answers(SETTINGS_ACK, data(1, bytes(50)))
    client.sends(settings({SETTINGS_INITIAL_WINDOW_SIZE: 1000}))
    server.answers(SETTINGS_ACK, data(1, bytes(40)), headers(1, trailers(), end=True))


def test_a_lowered_initial_window_makes_a_stream_wait_below_zero() -> None:
    client, server, stream = held(initial_window=100)
    stream.start()
    stream.send_data(bytes(80), False)
    server.flush()
    client.sends(settings({SETTINGS_INITIAL_WINDOW_SIZE: 30}))
    server.says()
    stream.send_data(bytes(20), False)
    server.flush()
    server.says_nothing()
    client.sends(window(1, 50))
    server.says_nothing()
    client.sends(window(1, 1))
    server.answers(data(1, bytes(1)))
    client.sends(settings({SETTINGS_INITIAL_WINDOW_SIZE: 49}))
    server.answers(SETTINGS_ACK, data(1, bytes(19)))


def test_a_lowered_initial_window_counts_for_later_streams_too() -> None:
    client, server, _ = held(initial_window=100)
    client.sends(settings({SETTINGS_INITIAL_WINDOW_SIZE: 3}))
    client.sends(headers(3, call(HOLD)), data(3, message(), end=True))
    server.says()
    server.hold.streams[3].respond(b"hello")
    server.flush()
    server.answers(headers(3, HEAD), data(3, prefix(b"hello")[:3]))


def test_settings_that_raise_a_window_above_the_largest_end_the_connection() -> None:
    client, server, _ = held()
    client.sends(window(1, 1), settings({SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW}))
    server.closes(ErrorCode.FLOW_CONTROL_ERROR)


def test_the_largest_window_is_allowed() -> None:
    client, server, stream = held(initial_window=0)
    client.sends(window(1, MAX_WINDOW), window(0, MAX_WINDOW - 65_535))
    stream.respond(bytes(100_000))
    server.flush()
    assert sum(sizes(server)) == 100_005
    server.holds_nothing()


@pytest.mark.parametrize("increment", [MAX_WINDOW, MAX_WINDOW - 65_534])
def test_a_stream_window_above_the_largest_ends_the_stream(increment: int) -> None:
    client, server, _ = held()
    client.sends(window(1, increment))
    server.resets(1, ErrorCode.FLOW_CONTROL_ERROR)
    server.holds_nothing()


def test_a_connection_window_above_the_largest_ends_the_connection() -> None:
    client, server, _ = held()
    client.sends(window(0, MAX_WINDOW))
    server.closes(ErrorCode.FLOW_CONTROL_ERROR)


def test_a_window_update_of_nothing_ends_the_stream() -> None:
    client, server, _ = held()
    client.sends(window(1, 0))
    server.resets(1, ErrorCode.PROTOCOL_ERROR)


def test_a_window_update_of_nothing_for_the_connection_ends_it() -> None:
    client, server, _ = held()
    client.sends(window(0, 0))
    server.closes(ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 3, 5])
@pytest.mark.parametrize("stream", [0, 1])
def test_a_window_update_is_four_bytes(stream: int, size: int) -> None:
    client, server, _ = held()
    client.sends(raw(WINDOW_UPDATE, 0, stream, b"\0\0\0\1\0"[:size]))
    server.closes(ErrorCode.FRAME_SIZE_ERROR)


def test_the_reserved_bit_of_an_increment_means_nothing() -> None:
    client, server, stream = held(initial_window=0)
    stream.start()
    stream.send_data(bytes(10), False)
    server.flush()
    server.says()
    client.sends(raw(WINDOW_UPDATE, 0, 1, b"\x80\0\0\4"))
    server.answers(data(1, bytes(4)))


def test_a_reset_takes_what_waits_along() -> None:
    client, server, stream = held(initial_window=0)
    stream.respond(bytes(10_000))
    server.flush()
    assert server.context.buffers.used == 10_005
    client.sends(rst(1))
    server.holds_nothing()
    server.says()
    client.sends(window(1, 10_000), window(0, 10_000))
    server.says_nothing()


def test_what_waits_is_bounded_over_all_streams() -> None:
    client, server = meet(Limits(max_buffered_bytes=20_000), client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 0})
    client.sends(*(headers(s, call(HOLD)) + data(s, message(), end=True) for s in (1, 3, 5)))
    server.says()
    for stream in (1, 3, 5):
        server.hold.streams[stream].respond(bytes(9000))
    server.flush()
    refused = headers(5, trailers(OVERLOADED), end=True)
    server.answers(headers(1, HEAD), headers(3, HEAD), headers(5, HEAD), refused)
    assert server.limits_reached == {"max_buffered_bytes": 1}
    client.sends(window(1, 10_000), window(3, 10_000))
    assert sum(sizes(server)) == 18_010
    server.holds_nothing()


# A transport that is full.


def test_while_the_transport_is_full_data_waits_and_nothing_else_does() -> None:
    client, server, stream = held()
    server.connection.pause()
    stream.respond(b"hello")
    client.sends(raw(6, 0, 0, b"12345678"))
    server.answers(headers(1, HEAD), raw(6, 1, 0, b"12345678"))
    server.connection.resume()
    server.flush()
    server.answers(data(1, prefix(b"hello")), headers(1, trailers(), end=True))
    assert server.limits_reached == {"max_output_bytes": 1}
    server.holds_nothing()


class Pieces(Streaming):
    """Sends `pieces` one after the other, each when the one before it has left."""

    def __init__(self, piece: bytes, count: int) -> None:
        super().__init__([])
        self.piece = piece
        self.left = count
        self.waiting = 0
        self.most_held = 0

    def on_open(self, stream: ServerStream) -> None:
        self.streams[stream.id] = stream
        stream.sink = Producer(self, stream)
        stream.start()
        stream.sink.drained(0)


class Producer(Notes):
    handler: Pieces

    def drained(self, size: int) -> None:
        pieces = self.handler
        pieces.waiting -= size
        while pieces.waiting == 0 and pieces.left:
            pieces.left -= 1
            pieces.waiting += len(pieces.piece)
            if self.stream.send_data(pieces.piece, False):
                pieces.waiting -= len(pieces.piece)
        pieces.most_held = max(pieces.most_held, self.stream.connection.context.buffers.used)
        if pieces.waiting == 0 and not pieces.left:
            self.stream.sink = None
            self.stream.finish(OK)


@pytest.mark.parametrize("size", [16_385, 100_000, 1_000_000])
def test_a_hundred_megabytes_in_pieces_never_pile_up(size: int) -> None:
    count = 100_000_000 // size
    pieces = Pieces(bytes(size), count)
    client, server = meet(find=lambda head: pieces, client_settings={SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW})
    high = server.context.limits.max_output_bytes
    in_transport = most_in_transport = sent = 0

    def write(said: bytes) -> None:
        nonlocal in_transport, most_in_transport
        in_transport += len(said)
        most_in_transport = max(most_in_transport, in_transport)
        if in_transport > high and server.connection.writable:
            server.connection.pause()

    server.connection.on_flush = write
    client.sends(window(0, MAX_WINDOW - 65_535), headers(1, call(STREAM)))
    while in_transport:
        sent += in_transport
        in_transport = 0
        if not server.connection.writable:
            server.connection.resume()
        server.flush()
    assert pieces.left == 0
    assert sent > 100_000_000
    assert pieces.most_held <= size
    assert most_in_transport < high + size + 2 * 262_144
    server.holds_nothing()


def test_whoever_is_told_that_bytes_left_may_send_more_at_once() -> None:
    """However often: one piece must not stand on the stack of the one before it."""
    pieces = Pieces(bytes(20_000), 2000)
    client, server = meet(find=lambda head: pieces, client_settings={SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW})
    client.sends(window(0, MAX_WINDOW - 65_535), headers(1, call(STREAM), end=True))
    assert sum(sizes(server)) == 40_000_000
    server.holds_nothing()


def test_a_stream_whose_window_stays_shut_is_reset_in_the_end(clock: Clock) -> None:
    client, server, stream = held(Limits(blocked_write_timeout=60), initial_window=10)
    client.acknowledges()
    stream.respond(bytes(9000))
    server.flush()
    server.says()
    for _ in range(60):
        server.tick(clock.passes(1))
    client.sends(window(1, 7000))
    assert sizes(server) == [7000]
    for _ in range(61):
        server.tick(clock.passes(1))
    server.says_nothing()
    server.tick(clock.passes(1))
    server.resets(1, ErrorCode.INTERNAL_ERROR)
    assert server.limits_reached == {"blocked_write_timeout": 1}
    server.holds_nothing()


def test_a_window_that_is_opened_by_a_crack_now_and_then_counts_as_shut(clock: Clock) -> None:
    client, server, stream = held(Limits(blocked_write_timeout=60), initial_window=10)
    client.acknowledges()
    stream.respond(bytes(9000))
    server.flush()
    server.says()
    for _ in range(6):
        for _ in range(10):
            server.tick(clock.passes(1))
        client.sends(window(1, 64))
        assert sizes(server) == [64]
    server.tick(clock.passes(1))
    server.tick(clock.passes(1))
    server.resets(1, ErrorCode.INTERNAL_ERROR)
    server.holds_nothing()


def test_whoever_serves_a_stream_whose_window_stays_shut_is_told(clock: Clock) -> None:
    client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 0})
    client.sends(headers(1, call(STREAM)))
    client.acknowledges()
    server.stream.streams[1].send_data(bytes(100), False)
    for _ in range(62):
        server.tick(clock.passes(1))
    assert server.saw[1:] == [("cancelled", 1, ErrorCode.INTERNAL_ERROR, "the peer gives no window for what waits")]
    server.holds_nothing()


def test_streams_do_not_wait_in_vain_while_the_connection_moves(clock: Clock) -> None:
    client, server = meet()
    client.sends(*(headers(s, call(HOLD)) + data(s, message(), end=True) for s in (1, 3, 5)))
    client.acknowledges()
    for stream in (1, 3, 5):
        server.hold.streams[stream].respond(bytes(60_000))
    server.flush()
    assert list(server.connection.streams) == [3, 5]
    for _ in range(200):
        server.tick(clock.passes(1))
        client.sends(window(0, 100))
    assert list(server.connection.streams) == [3, 5]
    for _ in range(62):
        server.tick(clock.passes(1))
    assert server.limits_reached == {"blocked_write_timeout": 2}
    server.holds_nothing()


def test_a_peer_that_does_not_read_is_left_in_the_end(clock: Clock) -> None:
    client, server, stream = held(Limits(blocked_write_timeout=60))
    client.acknowledges()
    server.connection.pause()
    stream.respond(bytes(1000))
    server.tick(clock.passes(60))
    assert not server.closed
    server.tick(clock.passes(1))
    server.closes(ErrorCode.NO_ERROR, "does not read what it asked for")
    assert server.limits_reached == {"max_output_bytes": 1, "blocked_write_timeout": 1}
    server.holds_nothing()


# Receiving.


def test_a_client_gets_its_connection_window_at_once() -> None:
    server = Server(Limits(connection_window_bytes=200_000), None)
    assert increments(server.frames(), 0) == 200_000 - 65_535


def test_every_byte_received_is_given_back_in_time() -> None:
    client, server = meet(Limits(connection_window_bytes=65_535))
    client.sends(headers(1, call(HOLD)))
    content = message(bytes(1_000_000))
    room = {0: 65_535, 1: 65_535}
    for start in range(0, len(content), 10_000):
        piece = content[start : start + 10_000]
        client.sends(data(1, piece))
        said = server.frames()
        for stream in room:
            room[stream] += increments(said, stream) - len(piece)
            assert room[stream] >= 10_000
    client.sends(data(1, end=True))
    assert server.saw == [("message", 1, content)]


def test_the_stream_window_of_a_streaming_call_is_given_back_when_its_data_was_used() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)))
    client.sends(*(data(1, bytes(16_000)) for _ in range(4)))
    assert increments(server.frames(), 1) == 0
    server.stream.streams[1].consumed(64_000)
    server.flush()
    assert increments(server.frames(), 1) == 64_000
    client.sends(*(data(1, bytes(16_000)) for _ in range(4)))
    assert len(server.connection.streams) == 1


def test_more_than_the_stream_window_ends_the_stream() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)))
    client.sends(*(data(1, bytes(16_383)) for _ in range(4)))
    server.says_nothing()
    client.sends(data(1, bytes(4)))
    server.resets(1, ErrorCode.FLOW_CONTROL_ERROR)
    assert server.limits_reached == {"stream_window_bytes": 1}
    assert server.saw[-1][0] == "cancelled"
    server.holds_nothing()


def test_more_than_the_connection_window_ends_the_connection() -> None:
    # It is given back at once, so that only a client that never waits for anything can exceed it: here in one frame.
    client, server = meet(Limits(connection_window_bytes=10_000))
    client.sends(headers(1, call(STREAM)))
    client.sends(data(1, bytes(10_001)))
    server.closes(ErrorCode.FLOW_CONTROL_ERROR)
    assert server.limits_reached == {"connection_window_bytes": 1}
    server.holds_nothing()


def returned(said: list[bytes], *, opened: bool = True) -> int:
    """How much of the connection's window comes back for `said`, on a connection that gives it back at once."""
    client, server = meet()
    server.connection.recv_limit = server.connection.recv_window = 65_535
    if opened:
        client.sends(headers(1, call(STREAM)))
    before = server.connection.recv_window
    back = 0
    for frame in said:
        client.sends(frame)
        back += increments(server.frames(), 0)
    assert not server.closed
    received = sum(len(frame) - 9 for frame in said if frame[3] == DATA)
    assert server.connection.recv_window == before - received + back
    return back


def test_padding_counts_and_is_given_back() -> None:
    assert returned([data(1, bytes(100), pad=255)] * 150) > 30_000
    client, server = meet()
    client.sends(headers(1, call(STREAM)))
    for _ in range(100):
        client.sends(data(1, bytes(10), pad=255))
        server.stream.streams[1].consumed(10)
    stream = server.connection.streams[1]
    assert stream.recv_window + stream.recv_owed == 65_535


@pytest.mark.parametrize("pad", [0, 200])
def test_data_on_a_stream_that_was_reset_is_given_back_to_the_connection(pad: int) -> None:
    assert returned([window(1, 0), *[data(1, bytes(16_000), pad=pad)] * 10]) > 100_000


def test_data_beyond_a_stream_that_refuses_it_is_given_back_to_the_connection() -> None:
    assert returned([headers(1, page(PAGE, b"POST")), *[data(1, bytes(16_000))] * 10], opened=False) > 100_000


def test_padding_alone_counts_too() -> None:
    client, server = meet()
    client.sends(headers(1, call(STREAM)))
    for _ in range(50):
        client.sends(data(1, b"", pad=255))
    stream = server.connection.streams[1]
    assert stream.recv_window + stream.recv_owed == 65_535
    assert server.connection.recv_window == server.connection.recv_limit - 50 * 256


def test_frames_are_never_larger_than_the_smallest_maximum() -> None:
    client, server, stream = held(initial_window=MAX_WINDOW)
    client.sends(window(0, 1_000_000), settings({5: 2**24 - 1}))
    stream.respond(bytes(500_000))
    server.flush()
    assert max(sizes(server)) == MAX_FRAME_SIZE
