"""grpc.health.v1: a watching client gets each change; for one that does not read, one message waits at most."""

from __future__ import annotations

import pytest

from esp.core import errors
from esp.core.pb import health_pb2
from esp.core.services.health import HealthService
from esp.core.wire import frames
from tests.core.wire.conversation import (
    Frame,
    body,
    call,
    data,
    headers,
    meet,
    message,
    refusal,
    rst,
    window,
)

SERVICE = b"/grpc.health.v1.Health/"
Response = health_pb2.HealthCheckResponse
SERVING, NOT_SERVING, UNKNOWN = Response.SERVING, Response.NOT_SERVING, Response.SERVICE_UNKNOWN
SMALL = len(message(Response(status=SERVING).SerializeToString()))
"""Bytes that one status takes."""


class World:
    """A proxy's health, and a client of it."""

    def __init__(self, window_size: int = 65_535) -> None:
        self.serves = True
        self.health = HealthService(lambda: self.serves)
        handlers = self.health.handlers()
        self.client, self.server = meet(
            find=lambda head: handlers[head.path],
            client_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: window_size},
        )

    def asks(self, stream: int, method: bytes, service: str = "") -> None:
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        self.client.sends(headers(stream, call(SERVICE + method)), data(stream, message(request), end=True))

    def turns(self, *, serves: bool) -> None:
        self.serves = serves
        self.health.tick()
        self.server.flush()

    def hears(self, stream: int) -> list[int]:
        """The statuses that have come since the last time."""
        return statuses(self.server.frames(), stream)


def statuses(said: list[Frame], stream: int) -> list[int]:
    heard, found = body(said, stream), []
    while heard:
        size = int.from_bytes(heard[1:5], "big")
        found.append(Response.FromString(heard[5 : 5 + size]).status)
        heard = heard[5 + size :]
    return found


def test_a_watch_is_told_the_status_now_and_each_change() -> None:
    world = World()
    world.asks(1, b"Watch")
    assert world.hears(1) == [SERVING]
    world.turns(serves=True)
    assert world.hears(1) == []
    for serves in (False, True):
        world.turns(serves=serves)
        assert world.hears(1) == [SERVING if serves else NOT_SERVING]


def test_a_watch_hears_of_a_change_back_to_what_was_before_it_began() -> None:
    world = World()
    world.serves = False  # and nobody has looked since
    world.asks(1, b"Watch")
    assert world.hears(1) == [NOT_SERVING]
    world.turns(serves=True)
    assert world.hears(1) == [SERVING]


def test_a_watch_of_another_service_is_told_once_that_it_is_unknown() -> None:
    world = World()
    world.asks(1, b"Watch", "etcdserverpb.KV")
    assert world.hears(1) == [UNKNOWN]
    world.turns(serves=False)
    assert world.hears(1) == []


def test_a_check_says_the_status_and_knows_one_service() -> None:
    world = World()
    world.asks(1, b"Check")
    assert world.hears(1) == [SERVING]
    world.serves = False
    world.asks(3, b"Check")
    assert world.hears(3) == [NOT_SERVING]
    world.asks(5, b"Check", "etcdserverpb.KV")
    world.server.answers(refusal(5, errors.UNKNOWN_SERVICE.code, errors.UNKNOWN_SERVICE.message))


@pytest.mark.parametrize("gone", ["reset", "end"])
def test_who_does_not_watch_any_more_is_forgotten(gone: str) -> None:
    world = World()
    world.asks(1, b"Watch")
    world.asks(3, b"Watch")
    assert len(world.health.watching) == 2
    if gone == "reset":
        world.client.sends(rst(1), rst(3))
    else:
        world.server.connection.lost("gone")
    assert not world.health.watching
    world.turns(serves=False)


def test_a_client_that_does_not_read_has_one_status_waiting_and_then_gets_the_last() -> None:
    world = World(window_size=0)
    world.asks(1, b"Watch")
    for number in range(1, 1001):
        world.turns(serves=not number % 2)
        world.turns(serves=bool(number % 2))
    assert world.hears(1) == []
    assert world.server.context.buffers.used <= 2 * SMALL
    world.client.sends(window(1, 10 * SMALL))
    world.server.flush()
    assert world.hears(1)[-1] == (SERVING if world.serves else NOT_SERVING)
    assert world.server.context.buffers.used == 0


def test_at_the_end_watches_end_so_that_their_clients_ask_another_proxy() -> None:
    world = World()
    world.asks(1, b"Watch")
    world.server.says()
    world.health.stop()
    world.server.flush()
    said = world.server.frames()
    assert [frame.kind for frame in said if frame.stream == 1] == [frames.HEADERS]
    assert not world.health.watching
    world.asks(3, b"Check")
    assert world.hears(3) == [NOT_SERVING]
    world.asks(5, b"Watch")
    world.server.answers(refusal(5, errors.SERVER_STOPPED.code, errors.SERVER_STOPPED.message))
