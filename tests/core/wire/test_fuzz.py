"""Any bytes from a client: only its connection may end, no memory grows, and the cuts between reads do not matter."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp.core.wire import frames
from esp.core.wire.frames import MAX_FRAME_SIZE, PREFACE, SETTINGS_ACK
from esp.core.wire.hpack import MEMO_ENTRIES, encode
from esp.core.wire.limits import Limits
from esp.core.wire.recent_resets import RECENTLY_RESET
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    ECHO,
    HOLD,
    PAGE,
    STREAM,
    Server,
    call,
    continuation,
    data,
    goaway,
    headers,
    message,
    page,
    ping,
    priority,
    raw,
    rst,
    window,
)
from tests.core.wire.conversation import settings as settings_frame
from tests.examples import tries

TIGHT = Limits(
    max_concurrent_streams=20,
    max_buffered_bytes=50_000,
    max_message_bytes=20_000,
    glitch_budget=50,
    connection_window_bytes=65_535,
)
GREETING = PREFACE + settings_frame({}) + SETTINGS_ACK

streams = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 9, 2, 2**31 - 1])
small = st.binary(max_size=40)
paths = st.sampled_from([ECHO, HOLD, STREAM])
timeouts = st.sampled_from(
    [[], [], [(b"grpc-timeout", b"5S")], [(b"grpc-timeout", b"17m")], [(b"grpc-timeout", b"0n")]]
)
blocks = st.one_of(
    st.builds(lambda path, extra: encode(call(path, *extra)), paths, timeouts),
    st.builds(lambda path, extra: b"\x20" + encode(call(path, *extra)), paths, timeouts),
    st.just(encode(page(PAGE))),
    st.just(encode([(b"x", b"y")])),
    st.just(b"\x40\x01x\x01y"),
    small,
)
bodies = st.one_of(
    st.builds(message, small), st.builds(message, small).map(lambda m: m[:-1]), small, st.just(bytes(MAX_FRAME_SIZE))
)
pads = st.none() | st.integers(0, 255)
frame_kinds = st.one_of(
    st.builds(
        lambda s, block, end, whole, pad: headers(s, block, end=end, end_headers=whole, pad=pad),
        streams, blocks, st.booleans(), st.sampled_from([True, True, True, False]), pads,
    ),
    st.builds(lambda s, content, end, pad: data(s, content, end=end, pad=pad), streams, bodies, st.booleans(), pads),
    st.builds(lambda s, path, body: headers(s, call(path)) + data(s, body, end=True), streams, paths, bodies),
    st.builds(lambda s, block: continuation(s, block), streams, small),
    st.builds(rst, streams),
    st.builds(window, streams, st.sampled_from([0, 1, 1000, 2**31 - 1])),
    st.builds(priority, streams, streams),
    st.builds(lambda name, value: settings_frame({name: value}), st.sampled_from([3, 4, 4, 5, 9]),
              st.sampled_from([0, 1, 100, 65_535, 2**24, 2**31 - 1])),
    st.sampled_from([SETTINGS_ACK, ping(), ping(ack=True), goaway(0, frames.ErrorCode.NO_ERROR), raw(99, 7, 1, b"?")]),
    st.builds(lambda kind, flags, s, payload: raw(kind, flags, s, payload),
              st.integers(0, 12), st.integers(0, 255), streams, small),
)  # fmt: skip
conversations = st.lists(frame_kinds, max_size=40)


def listening(limits: Limits = TIGHT) -> Server:
    server = Server(limits, None)
    server.hears(GREETING)
    server.says()
    return server


def holds_little(server: Server) -> None:
    """No more than the limits allow, and nothing at all once it is over."""
    connection = server.connection
    limits = connection.limits
    assert len(connection.streams) <= limits.max_concurrent_streams
    assert server.context.buffers.used <= limits.max_buffered_bytes
    assert len(connection._tail) <= MAX_FRAME_SIZE + frames.HEADER_SIZE
    assert connection._block is None or len(connection._block) <= limits.max_header_block_bytes
    assert len(connection._resets) <= RECENTLY_RESET
    assert len(connection._decoder.memo) <= MEMO_ENTRIES
    assert connection._decoder._rests <= MEMO_ENTRIES
    assert server.context.unflushed == []
    assert 0 <= connection.recv_window <= connection.recv_limit
    if not connection.ended:
        connection.lost("the test is over")
        server.flush()
    server.holds_nothing()


@settings(max_examples=tries(300), deadline=None)
@given(st.binary(max_size=500))
def test_random_bytes_end_nothing_but_the_connection(said: bytes) -> None:
    for server in (Server(TIGHT, None), listening()):
        server.hears(said)
        holds_little(server)


@settings(max_examples=tries(800), deadline=None)
@given(conversations)
def test_random_frames_end_nothing_but_the_connection(said: list[bytes]) -> None:
    server = listening()
    for frame in said:
        server.hears(frame)
    holds_little(server)


@settings(max_examples=tries(500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversations, st.lists(st.integers(0, 5000), max_size=8), st.booleans())
def test_the_same_bytes_mean_the_same_wherever_they_are_cut(
    clock: Clock, said: list[bytes], cuts: list[int], has_table: bool
) -> None:
    whole = b"".join(said)
    if not has_table:
        whole = b"".join([headers(1, b"\x20" + encode(call(ECHO))), SETTINGS_ACK, data(1, message(), end=True), whole])
    at_once, in_pieces, byte_by_byte = listening(), listening(), listening()
    at_once.hears(whole)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    for start, end in pairwise(places):
        in_pieces.hears(whole[start:end])
    heard, told = at_once.says(), at_once.saw
    assert in_pieces.says() == heard
    assert in_pieces.saw == told
    if len(whole) < 3000:
        for index in range(len(whole)):
            byte_by_byte.hears(whole[index : index + 1])
        assert byte_by_byte.says() == heard
        assert byte_by_byte.saw == told


def valid_conversation(rng: random.Random) -> bytearray:
    """What a busy, well-behaved client says."""
    said = bytearray(SETTINGS_ACK)
    for stream in range(1, 2 * rng.randrange(2, 30), 2):
        path = rng.choice([ECHO, HOLD, STREAM])
        extra = rng.choice(
            [[], [(b"grpc-timeout", b"%dm" % rng.randrange(10**6))], [(b"token", rng.randbytes(9).hex().encode())]]
        )
        said += headers(stream, call(path, *extra), pad=rng.choice([None, None, 3]))
        body = message(rng.randbytes(rng.choice([0, 10, 300, 20_000])))
        while len(body) > 9000 or rng.random() < 0.2:
            size = min(len(body), rng.choice([9000, 16_384, 5]))
            said += data(stream, body[:size])
            body = body[size:]
        said += data(stream, body, end=True)
        if rng.random() < 0.3:
            said += rng.choice(
                [rst(stream), ping(), window(0, 5000), window(stream, 5000), settings_frame({4: 70_000})]
            )
    return said


@pytest.mark.parametrize("seed", range(100))
def test_mutated_conversations_end_nothing_but_the_connection(seed: int) -> None:
    rng = random.Random(seed)
    server = listening(Limits())
    said = valid_conversation(rng)
    server.hears(bytes(said))
    assert not server.closed
    for _ in range(8):
        said = valid_conversation(rng)
        for _ in range(rng.choice([1, 1, 2, 10])):
            at = rng.randrange(len(said))
            match rng.randrange(4):
                case 0:
                    said[at] ^= 1 << rng.randrange(8)
                case 1:
                    del said[at : at + rng.randrange(1, 20)]
                case 2:
                    said[at:at] = rng.randbytes(rng.randrange(1, 20))
                case 3:
                    piece = said[at : at + rng.randrange(200)]
                    said[at:at] = piece
        server = listening(Limits())
        piece = rng.choice([1 << 20, 5000, 100])
        for start in range(0, len(said), piece):
            server.hears(bytes(said[start : start + piece]))
        assert len(server.says()) < 4 * len(said) + 200_000
        holds_little(server)
