"""The call that ends, and how, when the calls of several connections want more memory than there is."""

from __future__ import annotations

import pytest

from esp.core.wire.context import WireContext
from esp.core.wire.frames import SETTINGS_INITIAL_WINDOW_SIZE, ErrorCode
from esp.core.wire.limits import Limits
from esp.core.wire.server_stream import OVERLOADED
from tests.core.wire.conversation import (
    ECHO,
    HEAD,
    HOLD,
    STREAM,
    Client,
    Server,
    call,
    data,
    headers,
    meet,
    message,
    refusal,
    rst,
    trailers,
    window,
)

LIMITS = Limits(max_buffered_bytes=100_000)
CUT = trailers(OVERLOADED)


def meet_all(*peers: str, initial_window: int = 0) -> list[tuple[Client, Server]]:
    context = WireContext(LIMITS)
    windows = {SETTINGS_INITIAL_WINDOW_SIZE: initial_window}
    return [meet(LIMITS, client_settings=windows, context=context, peer=peer) for peer in peers]


def ask(client: Client, server: Server, stream: int, size: int) -> None:
    """A call whose answer has so many bytes, and waits."""
    client.sends(headers(stream, call(HOLD)), data(stream, message(), end=True))
    server.hold.streams[stream].respond(bytes(size - 5))
    server.flush()


def test_the_largest_call_of_who_holds_most_ends_for_a_newcomer() -> None:
    (greedy, most), (other, some), (newcomer, few) = meet_all("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
    for stream, size in ((1, 10_000), (3, 30_000), (5, 20_000)):
        ask(greedy, most, stream, size)
    ask(other, some, 1, 40_000)
    most.says()
    some.says()
    ask(newcomer, few, 1, 5_000)
    most.answers(headers(3, CUT, end=True))
    some.says_nothing()
    few.answers(headers(1, HEAD))
    assert most.context.buffers.used == 75_000
    newcomer.sends(window(1, 5_000))
    assert sum(len(frame.payload) for frame in few.frames(0)) == 5_000


def test_one_whose_message_has_left_in_part_is_reset() -> None:
    (greedy, most), (newcomer, few) = meet_all("10.0.0.1:1", "10.0.0.2:1")
    ask(greedy, most, 1, 99_000)
    greedy.sends(window(1, 1_000))
    most.says()
    ask(newcomer, few, 1, 5_000)
    most.resets(1, ErrorCode.ENHANCE_YOUR_CALM)
    few.answers(headers(1, HEAD))
    assert most.context.buffers.used == 5_000


def test_connections_of_one_address_give_way_to_one_of_another() -> None:
    *many, (newcomer, few) = meet_all(*(f"10.0.0.1:{port}" for port in range(10)), "10.0.0.2:1")
    for client, server in many:
        ask(client, server, 1, 10_000)
        server.says()
    for stream in (1, 3, 5):
        ask(newcomer, few, stream, 15_000)
    few.answers(*(headers(stream, HEAD) for stream in (1, 3, 5)))
    cut = [server for _, server in many if server.says() == headers(1, CUT, end=True)]
    assert len(cut) == 5
    assert few.context.buffers.used == 95_000
    # And one of that address that comes later has no less than the others there.
    for client, server in many:
        client.sends(rst(1))
        server.says()


def test_who_holds_most_and_wants_more_fails_itself() -> None:
    (greedy, most), (other, some) = meet_all("10.0.0.1:1", "10.0.0.2:1")
    ask(greedy, most, 1, 60_000)
    ask(other, some, 1, 40_000)
    most.says()
    ask(greedy, most, 3, 61_000)
    most.answers(headers(3, HEAD), headers(3, CUT, end=True))
    assert most.limits_reached == {"max_buffered_bytes": 1}
    assert most.context.buffers.used == 100_000


@pytest.mark.parametrize("announced", [60_000, 95_000])
def test_half_a_request_ends_with_a_status(announced: int) -> None:
    (greedy, most), (newcomer, few) = meet_all("10.0.0.1:1", "10.0.0.2:1")
    whole = message(bytes(announced))
    for stream in (1, 3):
        pieces = [data(stream, whole[at : at + 12_000]) for at in range(0, 48_000, 12_000)]
        greedy.sends(headers(stream, call(ECHO)), *pieces)
    most.says()
    ask(newcomer, few, 1, 10_000)
    assert most.frames(1) == Server.frames(_says(refusal(1, OVERLOADED.code, OVERLOADED.message)), 1)
    assert set(most.connection.streams) == {3}
    assert few.context.buffers.used == 58_000


@pytest.mark.parametrize("path", [STREAM, ECHO])
def test_large_heads_of_calls_that_stay_open_count(path: bytes) -> None:
    (greedy, most), (newcomer, few) = meet_all("10.0.0.1:1", "10.0.0.2:1")
    many = [(b"x-%02d" % number, b"y" * 20) for number in range(90)]
    budget = most.context.buffers
    for stream in range(1, 21, 2):
        greedy.sends(headers(stream, call(path, *many, (b"x-n", b"%d" % stream))))
    opened = len(most.connection.streams)
    assert 5 <= opened <= 7, "a call of 90 fields takes some 15 kB"
    assert budget.used > 80_000
    assert most.limits_reached["max_buffered_bytes"] == 10 - opened
    newcomer.sends(headers(1, call(path, *many)))
    few.flush()
    assert len(few.connection.streams) == 1, "a newcomer always gets some"
    assert len(most.connection.streams) == opened - 1
    newcomer.sends(headers(3, call(path)))
    assert set(few.connection.streams) == {1, 3}, "an ordinary head costs nothing"
    newcomer.sends(rst(1))
    for stream in list(most.connection.streams):
        greedy.sends(rst(stream))
    assert budget.used == 0


def test_the_large_head_of_a_whole_call_that_waits_for_its_answer_counts() -> None:
    """It came in one piece with its message, after one with the same head: the shortest way that there is."""
    ((client, server),) = meet_all("10.0.0.1:1")
    budget = server.context.buffers
    many = [(b"x-%02d" % number, b"y" * 20) for number in range(25)]
    for stream in range(1, 11, 2):
        client.sends(headers(stream, call(HOLD, *many)) + data(stream, message(), end=True))
    head = server.hold.streams[9].head
    assert head.size > 1024
    assert head is server.hold.streams[3].head
    assert budget.used == 5 * head.size
    client.sends(*(rst(stream) for stream in range(1, 11, 2)))
    assert budget.used == 0


def _says(said: bytes) -> Server:
    server = Server(Limits(), None)
    server.says()
    server._said.extend(said)
    return server
