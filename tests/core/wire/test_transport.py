"""The listener with real sockets: the protocols on one port, the end of connections, the cost of slow readers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from time import monotonic
from typing import Any

import pytest

from esp.core.wire import accepted, first_bytes, frames, listener, turns
from esp.core.wire.context import WireContext
from esp.core.wire.exchange import AnswerPage, Page, ServePages
from esp.core.wire.frames import DATA, MAX_WINDOW, PREFACE, SETTINGS_ACK, SETTINGS_INITIAL_WINDOW_SIZE, ErrorCode
from esp.core.wire.limits import Limits
from esp.core.wire.listener import ACCEPTED_AT_ONCE, Listener
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler, ServerStream
from esp.core.wire.status import Code, Status
from esp.core.wire.turns import Turns
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    ECHO,
    HOLD,
    STREAM,
    Echo,
    Frame,
    Recorder,
    Streaming,
    body,
    call,
    data,
    echoed,
    goaway,
    headers,
    message,
    ping,
    settings,
    split,
    transcript,
    window,
)

GET = b"GET /health HTTP/1.1\r\nHost: esp\r\n\r\n"
STOPPING = Status(Code.UNAVAILABLE, "server is shutting down")
GREETING = PREFACE + settings({})


class Broken(Handler):
    """A bug."""

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        raise ZeroDivisionError


class Large(Handler):
    """Answers with a megabyte."""

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        stream.respond(bytes(1_000_000))


class Small(Handler):
    """Answers with what fits one frame."""

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        stream.respond(bytes(16_000))


class Serving:
    """A listener with its handlers, and clients for it."""

    def __init__(self, limits: Limits, turns: Turns) -> None:
        self.context = WireContext(limits, turns=turns)
        self.saw: list[tuple[Any, ...]] = []
        self.hold = Recorder(self.saw)
        self.handlers: dict[bytes, Handler] = {
            ECHO: Echo(self.saw),
            HOLD: self.hold,
            STREAM: Streaming(self.saw),
            b"/broken": Broken(),
            b"/large": Large(),
            b"/small": Small(),
        }
        self.listener = Listener(self.context, self._find, ServePages(self._page))
        self.late: list[AnswerPage] = []
        self.port = 0
        self.clients: list[Client] = []

    def _find(self, head: RequestHead) -> Handler:
        return self.handlers[head.path]

    def _page(self, method: str, target: str, answer: AnswerPage) -> None:
        if target == "/broken":
            raise ZeroDivisionError
        if target == "/late":
            self.late.append(answer)
            return
        answer(Page(200 if target == "/health" else 404, b"page\n" * (200_000 if target == "/large" else 1)))

    @property
    def limits_reached(self) -> dict[str, int]:
        return dict(self.context.counters.limits)

    async def client(self, *, receive_buffer: int = 0, address: str = "") -> Client:
        sock = socket.socket()
        if address:
            sock.bind((address, 0))
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        self.clients.append(Client(sock))
        return self.clients[-1]

    def passes(self, seconds: float) -> None:
        """Has the listener look at all its deadlines as if so much time had passed."""
        self.listener.tick(monotonic() + seconds)
        while self.listener._unseen:  # on a busy machine a slice may not do for all
            self.listener.go_on()
        self.listener.context.flush()


class Client:
    """A plain socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.name = "{}:{}".format(*sock.getsockname())
        self.heard = b""

    async def says(self, *said: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(said))

    async def hears(self, enough: Callable[[bytes], bool]) -> bytes:
        """Reads until that is enough, or the server has closed; forgets it."""
        while not enough(self.heard):
            piece = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            if not piece:
                raise AssertionError(f"closed after {self.heard[-500:]!r}")
            self.heard += piece
        heard, self.heard = self.heard, b""
        return heard

    async def hears_frames(self, enough: Callable[[list[Frame]], bool]) -> list[Frame]:
        said: list[Frame] = []
        read = 0

        def is_enough(heard: bytes) -> bool:
            nonlocal read
            if not whole(heard[read:]):
                return False
            said.extend(split(heard[read:]))
            read = len(heard)
            return enough(said)

        await self.hears(is_enough)
        return said

    async def hears_the_end(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                self.heard += piece
        return self.heard


def whole(heard: bytes) -> bool:
    """Whether these are whole frames."""
    position = 0
    while position + 9 <= len(heard):
        position += 9 + int.from_bytes(heard[position : position + 3], "big")
    return position == len(heard)


def ended(stream: int) -> Callable[[list[Frame]], bool]:
    return lambda said: any(f.stream == stream and f.kind in (DATA, frames.HEADERS) and f.flags & 1 for f in said)


@contextlib.asynccontextmanager
async def serving(limits: Limits | None = None, turns: Turns | None = None) -> AsyncIterator[Serving]:
    server = Serving(limits or Limits(), turns or Turns())
    sock = socket.create_server(("127.0.0.1", 0))
    server.port = sock.getsockname()[1]
    await server.listener.listen(sock)
    try:
        yield server
    finally:
        server.listener.close()
        server.listener.abort()
        for client in server.clients:
            client.sock.close()
        await asyncio.sleep(0.01)
        assert server.context.counters.connections_open == 0
        assert server.context.buffers.used == 0


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop

Test = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=LOOPS.values(), ids=LOOPS.keys())
def run(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    """Runs a test in an event loop of each kind."""

    def run(test: Test) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120):  # slow readers take a busy machine half a minute
                await test()

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded())

    return run


Run = Callable[[Test], None]

# Who speaks what.


def test_http2_and_http1_share_a_port(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            two, one = await server.client(), await server.client()
            await two.says(GREETING, headers(1, call()), data(1, message(b"hi"), end=True))
            await one.says(GET)
            said = await two.hears_frames(ended(1))
            assert body(said, 1) == message(b"hi")
            assert (await one.hears(lambda heard: heard.endswith(b"page\n"))).startswith(b"HTTP/1.1 200 ")
            assert server.context.counters.connections_open == 2

    run(test)


def test_the_first_words_may_come_byte_by_byte(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            two, one = await server.client(), await server.client()
            for byte in GREETING + ping():
                await two.says(bytes((byte,)))
                await asyncio.sleep(0)
            for byte in GET:
                await one.says(bytes((byte,)))
                await asyncio.sleep(0)
            await two.hears(lambda heard: heard.endswith(ping(ack=True)))
            await one.hears(lambda heard: heard.endswith(b"page\n"))

    run(test)


NEITHER = "neither HTTP/2 nor HTTP/1.1"
GARBAGE = {
    "zeros": (bytes(10), NEITHER),
    "TLS": (bytes.fromhex("160301020001fc0303"), "a TLS ClientHello at a plain port: let the client use http://"),
    "other text": (b"HELO esp\r\n", NEITHER),
    "one wrong byte": (b"\xff", NEITHER),
    "a method nobody knows": (b"BREW /pot HTTP/1.1\r\n", NEITHER),
    "a method in lower case": (b"get / HTTP/1.1\r\n", NEITHER),
    "SSH": (b"SSH-2.0-OpenSSH\r\n", "SSH: the client has the wrong port"),
    "PROXY": (b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n", "leave out send-proxy in the load balancer"),
    "PROXY, version 2": (bytes.fromhex("0d0a0d0a000d0a515549540a2111000c"), "leave out send-proxy-v2"),
}


@pytest.mark.parametrize(("garbage", "said"), GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_closed_and_the_log_says_who_and_the_cure(
    run: Run, garbage: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving() as server:
            neighbour, client = await server.client(), await server.client()
            await client.says(garbage)
            heard = await client.hears_the_end()
            if "TLS" in said:
                assert heard.endswith(b"\r\n\r\nthis port speaks no TLS; use http://\n")
            else:
                assert heard == b""
            (line,) = [record.getMessage() for record in caplog.records if client.name in record.getMessage()]
            assert line.startswith(f"{client.name}: closing: ")
            assert said in line
            await neighbour.says(GET)
            await neighbour.hears(lambda heard: heard.endswith(b"page\n"))

    run(test)


def test_half_a_preface_and_then_something_else_is_a_protocol_error(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
            said = await client.hears_the_end()
            assert transcript(said)[-1] == "GOAWAY 0 0 PROTOCOL_ERROR b'not the HTTP/2 preface'"
            assert client.name in caplog.text

    run(test)


def test_a_post_to_a_grpc_path_over_http1_gets_a_page(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(b"POST " + ECHO + b" HTTP/1.1\r\nHost: esp\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0")
            assert (await client.hears(lambda heard: heard.endswith(b"page\n"))).startswith(b"HTTP/1.1 404 ")
            assert server.saw == []

    run(test)


def test_a_short_request_of_http1_that_takes_some_steps_is_served_without_a_pause(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[bool] = []
    monkeypatch.setattr(accepted.ServerProtocol, "_read", lambda _, wanted: paused.append(wanted))

    async def test() -> None:
        async with serving(turns=Turns(lambda: 0.0)) as server:  # no step takes so long that the turn is over
            client = await server.client()
            for _ in range(3):
                await client.says(GET.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
                await client.hears(lambda heard: heard.endswith(b"page\n"))
        assert not paused

    run(test)


LATE = b"GET /late HTTP/1.1\r\nHost: esp\r\n\r\n"


async def asked(server: Serving, client: Client, *said: bytes) -> None:
    await client.says(LATE, *said)
    while not server.late:  # noqa: ASYNC110 - there is nothing that tells
        await asyncio.sleep(0.001)


def test_a_page_that_comes_later_goes_before_what_was_asked_for_meanwhile(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client, other = await server.client(), await server.client()
            await asked(server, client, GET)
            await client.says(GET)
            await other.says(GET)
            await other.hears(lambda heard: heard.endswith(b"page\n"))
            server.passes(3600)  # a client that waits is not idle, and owes nothing
            server.late.pop()(Page(200, b"late\n"))
            heard = await client.hears(lambda heard: heard.count(b"page\n") == 2)
            assert heard.index(b"late\n") < heard.index(b"page\n")

    run(test)


@pytest.mark.parametrize("how", ["half-close", "drain", "gone", "flood"])
def test_a_page_that_comes_later_reaches_who_still_wants_it(run: Run, how: str) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await asked(server, client)
            if how == "half-close":
                client.sock.shutdown(socket.SHUT_WR)
            elif how == "drain":
                [protocol] = server.listener._protocols
                protocol.drain(STOPPING)
            elif how == "gone":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sock.close()
            else:  # it is not read from, and what it sends waits in the kernel
                client.sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(200):
                        client.sock.send(GET * 1000)
                        await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            if how == "flood":
                [protocol] = server.listener._protocols
                assert protocol._unread_bytes() <= 512 * 1024
            server.late.pop()(Page(200, b"late\n"))
            if how in ("half-close", "drain"):
                assert (await client.hears_the_end()).endswith(b"late\n")
            elif how == "flood":
                await client.hears(lambda heard: b"late\n" in heard)

    run(test)


def test_an_error_page_reaches_a_client_that_is_still_sending(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(b"POST /x HTTP/1.1\r\nHost: esp\r\nContent-Length: 10000000\r\n\r\n", bytes(300_000))
            await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError):
                await client.says(bytes(300_000))
            assert (await client.hears_the_end()).startswith(b"HTTP/1.1 413 ")

    run(test)


# How connections end.


def test_the_last_words_reach_a_client_that_is_still_sending(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(GREETING, window(0, 0))
            await asyncio.sleep(0.05)
            await client.says(headers(1, call()), data(1, bytes(1000)))
            said = await client.hears_the_end()
            assert transcript(said)[-1] == "GOAWAY 0 0 PROTOCOL_ERROR b'WINDOW_UPDATE of 0'"

    run(test)


def test_a_client_that_does_not_close_is_left_after_a_while(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(GREETING, window(0, 0))
            await client.hears_the_end()
            server.passes(0.5)
            await asyncio.sleep(0.01)
            assert server.context.counters.connections_open == 1
            server.passes(1.5)
            await asyncio.sleep(0.01)
            assert server.context.counters.connections_open == 0

    run(test)


def test_a_bug_ends_its_connection_and_no_other(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            neighbour, client, page = await server.client(), await server.client(), await server.client()
            await client.says(GREETING, headers(1, call(b"/broken")), data(1, message(), end=True))
            said = await client.hears_the_end()
            assert transcript(said)[-1] == "GOAWAY 0 1 INTERNAL_ERROR b'internal error'"
            assert f"{client.name}: a bug in esp" in caplog.text
            await page.says(b"GET /broken HTTP/1.1\r\nHost: esp\r\n\r\n")
            assert await page.hears_the_end() == b""
            assert f"{page.name}: a bug in esp" in caplog.text
            await neighbour.says(GREETING, headers(1, call()), data(1, message(b"hi"), end=True))
            await neighbour.hears_frames(ended(1))

    run(test)


def test_a_client_that_vanishes_cancels_its_calls(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(GREETING, headers(1, call(STREAM)))
            await client.hears(lambda heard: SETTINGS_ACK in heard)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()
            for _ in range(100):
                await asyncio.sleep(0.01)
                if len(server.saw) > 1:
                    break
            assert server.saw[1][:3] == ("cancelled", 1, ErrorCode.CANCEL)

    run(test)


def test_a_client_that_resets_as_it_is_closed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The loop has not told of the reset yet: nothing can be shut down, and that is nobody's fault."""

    async def test() -> None:
        async with serving() as server:
            others = [await server.client() for _ in range(3)]
            client = await server.client()
            for one in (*others, client):
                await one.says(GET)
                await one.hears(lambda heard: heard.endswith(b"page\n"))
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()
            ended = asyncio.create_task(server.listener.drain(STOPPING, 5))
            for one in others:
                await one.hears_the_end()
                one.sock.close()
            assert await ended

    run(test)
    assert "bug" not in caplog.text


def test_connections_beyond_the_limit_are_refused(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(Limits(max_connections=2)) as server:
            clients = [await server.client() for _ in range(2)]
            for client in clients:
                await client.says(GREETING, ping())
                await client.hears(lambda heard: heard.endswith(ping(ack=True)))
            third = await server.client()
            with contextlib.suppress(ConnectionError):
                await third.says(GET)
            assert await third.hears_the_end() == b""
            assert server.limits_reached == {"max_connections": 1}
            assert f"{third.name}: refused" in caplog.text
            caplog.clear()
            await (await server.client()).hears_the_end()
            assert caplog.text == ""
            clients[0].sock.close()
            await asyncio.sleep(0.05)
            server.passes(0)
            fifth = await server.client()
            await fifth.says(GET)
            await fifth.hears(lambda heard: heard.endswith(b"page\n"))
            sixth = await server.client()
            await sixth.hears_the_end()
            assert f"{sixth.name}: refused" in caplog.text
            assert server.context.counters.connections_accepted == 6

    run(test)


def test_one_address_cannot_have_the_last_connections_and_those_that_are_idle_make_room(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(max_connections=32)) as server:
            clients = [await server.client() for _ in range(28)]
            for client in clients:
                await client.says(GREETING, ping())
                await client.hears(lambda heard: heard.endswith(ping(ack=True)))
            await clients[0].says(headers(1, call(HOLD)))
            refused = await server.client()
            assert await refused.hears_the_end() == b""
            assert server.limits_reached == {"max_connections": 1}

            other = await server.client(address="127.0.0.2")
            await other.says(GREETING, ping())
            await other.hears(lambda heard: heard.endswith(ping(ack=True)))
            second = await server.client(address="127.0.0.2")
            assert await second.hears_the_end() == b"", "it holds a 32nd already, and places are scarce"

            server.passes(9)
            assert server.limits_reached == {"max_connections": 2}, "they are not idle for long"
            server.passes(11)
            assert server.limits_reached == {"max_connections": 3}
            for gone in clients[1:3]:
                assert transcript(await gone.hears_the_end())[-1].startswith("GOAWAY 0 0 NO_ERROR b'idle, and")
            await clients[0].says(ping())
            await clients[0].hears(lambda heard: heard.endswith(ping(ack=True)))
            await other.says(ping())
            await other.hears(lambda heard: heard.endswith(ping(ack=True)))
            for gone in clients[1:3]:
                gone.sock.close()
            await asyncio.sleep(0.05)
            newcomer = await server.client()
            await newcomer.says(GET)
            await newcomer.hears(lambda heard: heard.endswith(b"page\n"))

    run(test)


# Deadlines.


@pytest.mark.parametrize("said", [b"", b"PR", b"GE", b"GET / HT", GREETING[:30], b"GET / HTTP/1.1\r\nHost: esp\r\nX: "])
def test_a_client_that_does_not_come_to_the_point_is_left(run: Run, said: bytes) -> None:
    async def test() -> None:
        async with serving(Limits(preface_timeout=10)) as server:
            client = await server.client()
            await client.says(said)
            await asyncio.sleep(0.02)
            server.passes(9)
            await asyncio.sleep(0.01)
            assert server.context.counters.connections_open == 1
            server.passes(11)
            client.sock.shutdown(socket.SHUT_WR)
            await client.hears_the_end()
            assert server.limits_reached == {"preface_timeout": 1}

    run(test)


def test_an_idle_http1_client_may_stay_for_a_while(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(preface_timeout=10, idle_timeout=100)) as server:
            client = await server.client()
            await client.says(GET)
            await client.hears(lambda heard: heard.endswith(b"page\n"))
            server.passes(90)
            await client.says(GET)
            await client.hears(lambda heard: heard.endswith(b"page\n"))
            await client.says(GET[:5])
            await asyncio.sleep(0.02)
            server.passes(11)
            await client.hears_the_end()
            assert server.limits_reached == {"preface_timeout": 1}
            client = await server.client()
            await client.says(GET)
            await client.hears(lambda heard: heard.endswith(b"page\n"))
            server.passes(101)
            await client.hears_the_end()
            assert server.limits_reached == {"preface_timeout": 1, "idle_timeout": 1}

    run(test)


def test_a_body_that_does_not_come_is_not_awaited_for_ever(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(preface_timeout=10, request_timeout=60)) as server:
            client = await server.client()
            await client.says(b"POST /health HTTP/1.1\r\nHost: esp\r\nContent-Length: 10\r\n\r\nhalf")
            await asyncio.sleep(0.02)
            server.passes(0)
            server.passes(59)
            await asyncio.sleep(0.01)
            assert server.context.counters.connections_open == 1
            server.passes(61)
            await client.hears_the_end()
            assert server.limits_reached == {"request_timeout": 1}

    run(test)


def test_a_client_that_waits_for_esp_is_not_late(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(idle_timeout=100)) as server:
            client = await server.client()
            await client.says(GET.replace(b"/health", b"/late"))
            await asyncio.sleep(0.02)
            for seconds in (0, 50, 100, 1000):
                server.passes(seconds)
            server.late.pop()(Page(200, b"late\n"))
            await client.hears(lambda heard: heard.endswith(b"late\n"))
            assert not server.limits_reached

    run(test)


def test_many_that_connect_at_once_are_accepted_in_few_turns(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            socks = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3 * ACCEPTED_AT_ONCE)]
            counters = server.context.counters
            accepted = []
            while counters.connections_accepted < len(socks):
                before = counters.connections_accepted
                await asyncio.sleep(0)
                accepted.append(counters.connections_accepted - before)
            assert [count for count in accepted if count] == [ACCEPTED_AT_ONCE] * 3
            for sock in socks:
                sock.close()

    run(test)


def test_who_asks_something_is_answered_before_a_crowd_that_has_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "is_crowded", True)
    monkeypatch.setattr(turns, "LONGEST_HELD", 1e9)  # however slow the machine
    begun: list[int] = []  # how many had begun when bytes came that ask something, and when these were served

    def note() -> None:
        begun.append(sum(protocol.server is not None for protocol in serves[0].listener.protocols))

    def asks(first: bytes) -> bool:
        found = first_bytes.asks(first)
        if found:
            note()
        return found

    class Noting(Echo):
        def on_message(self, stream: ServerStream, message: bytes) -> None:
            note()
            super().on_message(stream, message)

    monkeypatch.setattr(accepted, "asks", asks)
    serves: list[Any] = []

    async def test() -> None:
        async with serving() as server:
            serves.append(server)
            server.handlers[ECHO] = Noting(server.saw)
            clients = [await server.client() for _ in range(10 * ACCEPTED_AT_ONCE)]
            for client in clients:
                await client.says(PREFACE, settings({}), headers(1, call(ECHO))[:-1])
            asking = await server.client()
            await asking.says(PREFACE, settings({}), headers(1, call(ECHO)), data(1, message(b"x"), end=True))
            await asking.hears_frames(ended(1))
            assert begun[1] - begun[0] <= 4, "one of the others in a turn"
            for client in clients:
                await client.says(headers(1, call(ECHO))[-1:], data(1, message(b"x"), end=True))
                await client.hears_frames(ended(1))

    run(test)


def test_the_deadlines_of_many_clients_are_looked_at_in_several_turns(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "SLICE", -1.0)
    looked: list[float] = []

    def look(protocol: Any, now: float) -> None:
        looked.append(now)
        if now == 2.0:
            raise ZeroDivisionError

    async def test() -> None:
        async with serving() as server:
            for _ in range(20):
                await server.client()
            await comes_true(lambda: server.context.counters.connections_open == 20)
            monkeypatch.setattr(accepted.ServerProtocol, "tick", look)
            server.listener.tick(0.0)
            assert looked == [0.0], "others have their turn"
            server.listener.tick(1.0)  # before it is over
            await comes_true(lambda: len(looked) == 20)
            await asyncio.sleep(0.02)
            assert looked == [0.0] + [1.0] * 19
            with pytest.raises(ZeroDivisionError):
                server.listener.tick(2.0)
            server.listener.tick(3.0)
            await comes_true(lambda: len(looked) == 41)

    run(test)


def test_a_request_after_a_long_pause_has_the_usual_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(accepted, "monotonic", clock)

    async def test() -> None:
        async with serving(Limits(preface_timeout=10, idle_timeout=100)) as server:
            client = await server.client()
            for _ in range(3):
                await client.says(GET)
                await client.hears(lambda heard: heard.endswith(b"page\n"))
                server.listener.tick(clock.passes(90))
            await client.says(GET[:5])
            await asyncio.sleep(0.02)
            server.listener.tick(clock.passes(9))
            await client.says(GET[5:7])
            await asyncio.sleep(0.02)
            assert server.limits_reached == {}
            server.listener.tick(clock.passes(2))
            await client.hears_the_end()
            assert server.limits_reached == {"preface_timeout": 1}

    run(test)


# Draining.


def test_a_drain_ends_idle_connections_and_finishes_calls(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            silent, page = await server.client(), await server.client()
            idle, busy = await server.client(), await server.client()
            await page.says(GET)
            await page.hears(lambda heard: heard.endswith(b"page\n"))
            for client in (idle, busy):
                await client.says(GREETING, SETTINGS_ACK, ping())
                await client.hears(lambda heard: heard.endswith(ping(ack=True)))
            await busy.says(headers(1, call(HOLD)), data(1, message(), end=True))
            await busy.hears(lambda heard: len(heard) > 0)
            drain = asyncio.create_task(server.listener.drain(STOPPING, 20))
            for client in (idle, busy):
                said = await client.hears(lambda heard: len(heard) >= 17 + 8 + 17)
                assert transcript(said)[0] == "GOAWAY 0 2147483647 NO_ERROR b'draining'"
                await client.says(ping(bytes.fromhex("0106010800030309"), ack=True))
            assert transcript(await idle.hears_the_end()) == ["GOAWAY 0 0 NO_ERROR b'draining'"]
            assert await silent.hears_the_end() == await page.hears_the_end() == b""
            for client in (silent, page, idle):
                client.sock.close()
            await asyncio.sleep(0.01)
            assert not drain.done()
            server.hold.streams[1].respond(b"bye")
            server.context.flush()
            said = await busy.hears_the_end()
            assert transcript(said) == transcript(
                goaway(1, ErrorCode.NO_ERROR, b"draining") + b"".join(echoed(1, b"bye"))
            )
            busy.sock.close()
            assert await drain

    run(test)


def test_a_drain_resets_no_client_that_waits_to_be_accepted(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            # All in one turn of the loop, and the drain in the next: its first step comes before sockets are looked at.
            clients = [Client(socket.create_connection(("127.0.0.1", server.port))) for _ in range(20)]
            for client in clients:
                client.sock.sendall(GREETING)
                client.sock.setblocking(False)
            drain = asyncio.create_task(server.listener.drain(STOPPING, 20))
            asks = bytes.fromhex("0106010800030309")
            for client in clients:
                await client.hears(lambda heard: ping(asks) in heard)
                await client.says(SETTINGS_ACK, ping(asks, ack=True))
                assert transcript(await client.hears_the_end())[-1] == "GOAWAY 0 0 NO_ERROR b'draining'"
                client.sock.close()
            assert await drain

    run(test)


def test_a_drain_that_takes_too_long_is_cut(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(GREETING, headers(1, call(HOLD)), data(1, message(), end=True))
            await client.hears(lambda heard: SETTINGS_ACK in heard)
            assert not await server.listener.drain(STOPPING, 0.05)
            await client.hears_the_end()

    run(test)


def test_the_end_of_a_drain_waits_for_a_slow_reader(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(settings_timeout=1000)) as server:
            client = await server.client(receive_buffer=65_536)
            opened = settings({SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW}) + window(0, MAX_WINDOW - 65_535)
            calls = [headers(s, call(b"/large")) + data(s, message(), end=True) for s in range(1, 17, 2)]
            await client.says(PREFACE, opened, SETTINGS_ACK, *calls)
            await asyncio.sleep(0.1)
            drain = asyncio.create_task(server.listener.drain(STOPPING, 100))
            await client.says(ping(bytes.fromhex("0106010800030309"), ack=True))
            heard = b""
            while piece := await asyncio.get_running_loop().sock_recv(client.sock, 200_000):
                heard += piece
                server.passes(30)  # far longer than a client without bytes to read would be waited for
            client.sock.close()
            assert await drain
            assert [len(body(split(heard), s)) for s in range(1, 17, 2)] == [1_000_005] * 8

    run(test)


def test_connections_that_end_leave_nothing_for_the_garbage_collector(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:

            async def one() -> None:
                client = await server.client()
                await client.says(GREETING, headers(1, call()), data(1, message(b"hi"), end=True))
                await client.hears_frames(ended(1))
                client.sock.close()

            for times in (3, 20):
                for _ in range(times):
                    await one()
                await comes_true(lambda: server.context.counters.connections_open == 0)
                server.clients.clear()
                if times == 3:  # what is made once has been made
                    gc.collect()
                    gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = [one for one in gc.garbage if type(one).__module__.startswith("esp.")]
            gc.set_debug(0)
            gc.garbage.clear()
            assert not found

    try:
        run(test)
    finally:
        gc.set_debug(0)
        gc.enable()


# Slow readers.


def test_a_client_that_does_not_read_is_not_read_from(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client(receive_buffer=4096)
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened = settings({SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW}) + window(0, MAX_WINDOW - 65_535)
            await client.says(PREFACE, opened, SETTINGS_ACK)
            asked = 0
            with contextlib.suppress(TimeoutError):
                for stream in range(1, 2 * 900, 2):
                    request = headers(stream, call(b"/small")) + data(stream, message(), end=True)
                    async with asyncio.timeout(0.3):
                        await client.says(request)
                    asked += 1
                    await asyncio.sleep(0)
            [protocol] = server.listener._protocols
            assert protocol.transport is not None
            assert protocol.transport.get_write_buffer_size() < 3_000_000
            assert server.limits_reached["max_output_bytes"] >= 1
            assert "max_output_hard_bytes" not in server.limits_reached
            client.sock.close()

    run(test)


def test_a_hundred_megabytes_for_a_slow_reader_do_not_pile_up(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client(receive_buffer=65_536)
            opened = settings({SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW}) + window(0, MAX_WINDOW - 65_535)
            await client.says(PREFACE, opened, SETTINGS_ACK, headers(1, call(b"/large")), data(1, message(), end=True))
            heard, most = 0, 0
            next_stream = 3
            while heard < 100_000_000:
                piece = await asyncio.get_running_loop().sock_recv(client.sock, 1 << 20)
                assert piece
                heard += len(piece)
                if heard > (next_stream // 2 - 8) * 1_000_000 and next_stream < 210:  # eight at a time
                    await client.says(headers(next_stream, call(b"/large")), data(next_stream, message(), end=True))
                    next_stream += 2
                [protocol] = server.listener._protocols
                assert protocol.transport is not None
                most = max(most, protocol.transport.get_write_buffer_size())
            assert most < 2_000_000
            client.sock.close()
            await asyncio.sleep(0.05)

    run(test)


def test_too_much_for_a_client_that_does_not_read_ends_its_connection(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(Limits(max_output_bytes=1000, max_output_hard_bytes=100_000)) as server:
            client = await server.client(receive_buffer=4096)
            opened = settings({SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW}) + window(0, MAX_WINDOW - 65_535)
            calls = [headers(s, call(HOLD)) + data(s, message(), end=True) for s in range(1, 2 * 900, 2)]
            await client.says(PREFACE, opened, SETTINGS_ACK, *calls)
            await comes_true(lambda: len(server.hold.streams) == 900)
            for stream in server.hold.streams.values():
                stream.respond(bytes(16_000))
            server.context.flush()
            server.passes(0)
            await asyncio.sleep(0.01)
            assert server.limits_reached["max_output_hard_bytes"] == 1
            assert f"{client.name}: closing: " in caplog.text
            assert server.context.counters.connections_open == 0

    run(test)


def test_a_slow_reader_is_left_only_when_it_does_not_read_at_all(run: Run, clock: Clock) -> None:
    async def test() -> None:
        async with serving(Limits(blocked_write_timeout=60, settings_timeout=1000)) as server:
            client = await server.client(receive_buffer=4096)
            opened = settings({SETTINGS_INITIAL_WINDOW_SIZE: MAX_WINDOW}) + window(0, MAX_WINDOW - 65_535)
            calls = [headers(s, call(b"/large")) + data(s, message(), end=True) for s in range(1, 41, 2)]
            await client.says(PREFACE, opened, SETTINGS_ACK, *calls)
            await asyncio.sleep(0.1)
            for _ in range(5):
                read = 0
                while read < 3_000_000:  # the kernel moves its part in large steps
                    piece = await asyncio.get_running_loop().sock_recv(client.sock, 65536)
                    assert piece
                    read += len(piece)
                server.listener.tick(clock.passes(50))
            [protocol] = server.listener._protocols
            connection = protocol.connection
            assert connection is not None
            await comes_true(lambda: not connection.writable)
            assert server.context.counters.connections_open == 1
            server.listener.tick(clock.passes(1))
            server.listener.tick(clock.passes(61))
            assert server.limits_reached["blocked_write_timeout"] == 1

    run(test)


def test_a_peer_that_vanishes_while_it_is_sent_to_has_as_long_as_a_slow_one(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(blocked_write_timeout=45)) as server:
            client = await server.client()
            await client.says(GREETING)
            await client.hears(lambda heard: SETTINGS_ACK in heard)
            [protocol] = server.listener._protocols
            assert protocol.transport is not None
            sock = protocol.transport.get_extra_info("socket")
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 45_000

    run(test)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


# Clients that send more than fits a turn.


async def comes_true(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (there is no event for it)
        await asyncio.sleep(0)


def many(first: int, count: int, path: bytes = ECHO) -> bytes:
    calls = (headers(s, call(path)) + data(s, message(b"%d" % s), end=True) for s in range(first, first + 2 * count, 2))
    return b"".join(calls)


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn has passed as soon as something was done in it, so that everything goes by way of the line."""
    monkeypatch.setattr(turns, "SLICE", -1.0)
    monkeypatch.setattr(turns, "AT_ONCE", 0.0)


def test_all_is_served_in_the_end_and_in_order(run: Run, no_time: None) -> None:
    async def test() -> None:
        async with serving() as server:
            clients = [await server.client() for _ in range(30)]
            for client in clients:
                await client.says(GREETING, many(1, 20))
            for client in clients:
                said = await client.hears_frames(ended(39))
                assert [body(said, s) for s in range(1, 40, 2)] == [message(b"%d" % s) for s in range(1, 40, 2)]
            for client in clients:
                await client.says(many(41, 20))
            for client in clients:
                await client.hears_frames(ended(79))
            await comes_true(lambda: not server.context.turns.waiting)

    run(test)


def test_a_client_in_line_is_not_read_from_and_then_is_again(
    run: Run, no_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepted, "MOST_UNREAD", 1000)

    async def test() -> None:
        async with serving(Limits(max_concurrent_streams=100_000)) as server:
            client = await server.client()
            await client.says(GREETING, many(1, 1000))
            await client.hears_frames(ended(1999))
            assert len([event for event in server.saw if event[0] == "message"]) == 1000
            await client.says(many(2001, 1))
            await client.hears_frames(ended(2001))

    run(test)


@pytest.mark.parametrize("first", [GREETING + many(1, 1000), GET * 2000], ids=["HTTP/2", "HTTP/1.1"])
def test_what_has_come_of_a_client_in_line_counts_as_memory_that_it_holds(
    run: Run, no_time: None, first: bytes
) -> None:
    async def test() -> None:
        async with serving(Limits(max_concurrent_streams=100_000)) as server:
            client = await server.client()
            most = 0

            def is_done() -> bool:
                nonlocal most
                most = max(most, server.context.buffers.used)
                return most > 0 and not server.context.turns.waiting

            await client.says(first)
            await comes_true(is_done)
            assert most > 16_384
            assert server.context.buffers.used == 0

    run(test)


@pytest.mark.parametrize("first", [GREETING + many(1, 1000), GET * 2000], ids=["HTTP/2", "HTTP/1.1"])
def test_a_client_in_line_for_whose_bytes_there_is_no_memory_ends(run: Run, no_time: None, first: bytes) -> None:
    async def test() -> None:
        async with serving(Limits(max_buffered_bytes=10_000)) as server:
            client, other = await server.client(), await server.client()
            await client.says(first)
            await comes_true(lambda: server.context.counters.limits["max_buffered_bytes"] == 1)
            await comes_true(lambda: server.context.counters.connections_open == 1)
            assert server.context.buffers.used == 0
            await other.says(GET)
            await other.hears(lambda heard: heard.endswith(b"page\n"))

    run(test)


@pytest.mark.parametrize("first", [GREETING, b""], ids=["HTTP/2", "HTTP/1.1"])
def test_what_came_before_the_end_is_served(run: Run, no_time: None, first: bytes) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(first + many(1, 50) if first else GET * 50)
            client.sock.shutdown(socket.SHUT_WR)
            heard = await client.hears_the_end()
            if first:
                assert len([event for event in server.saw if event[0] == "message"]) == 50
                assert body(split(heard), 99) == message(b"99")
            else:
                assert heard.count(b"HTTP/1.1 200 ") == 50

    run(test)


def test_who_leaves_while_in_line_is_forgotten(run: Run, no_time: None) -> None:
    async def test() -> None:
        async with serving() as server:
            for first in (GREETING + many(1, 500), GET * 500):
                client = await server.client()
                await client.says(first)
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sock.close()
            await comes_true(lambda: not server.context.turns.waiting)
            await comes_true(lambda: not server.context.counters.connections_open)

    run(test)


@pytest.mark.parametrize("first", [GREETING, b""], ids=["HTTP/2", "HTTP/1.1"])
def test_a_drain_serves_what_came_before_it(run: Run, no_time: None, first: bytes) -> None:
    async def test() -> None:
        async with serving() as server:
            client, other = await server.client(), await server.client()
            await other.says(GET)
            await other.hears(lambda heard: heard.endswith(b"page\n"))
            await client.says(first + many(1, 50) if first else GET * 50)
            await comes_true(lambda: any(p.peer == client.name and p.is_behind for p in server.listener._protocols))
            drain = asyncio.create_task(server.listener.drain(STOPPING, 20))
            heard = b""
            if first:
                asks = bytes.fromhex("0106010800030309")
                heard = await client.hears(lambda heard: ping(asks) in heard)
                await client.says(ping(asks, ack=True))
            heard += await client.hears_the_end()
            client.sock.close()
            other.sock.close()
            assert await drain
            if first:
                assert body(split(heard), 99) == message(b"99")
            else:
                assert heard.count(b"HTTP/1.1 200 ") == 50

    run(test)


def test_a_client_is_not_late_while_its_bytes_wait_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", 0.0)  # so that nothing is done as bytes come

    async def test() -> None:
        async with serving(Limits(preface_timeout=10, settings_timeout=10)) as server:
            client, other = await server.client(), await server.client()
            await comes_true(lambda: server.context.counters.connections_open == 2)
            held: list[Callable[[], None]] = []
            server.context.turns.soon = held.append  # no turn comes
            await client.says(GREETING, SETTINGS_ACK)
            await other.says(GET)
            await comes_true(lambda: server.context.turns.waiting == 2)
            server.listener.tick(monotonic() + 5)
            server.listener.tick(monotonic() + 11)
            server.context.turns.soon = asyncio.get_running_loop().call_soon
            held.pop()()
            await other.hears(lambda heard: heard.endswith(b"page\n"))
            await client.says(many(1, 1))
            await client.hears_frames(ended(1))
            assert server.limits_reached == {}

    run(test)


def test_a_client_that_is_ended_is_read_from_no_longer_than_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted, "MOST_DISCARDED", 100_000)

    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            await client.says(GREETING)
            await comes_true(lambda: len(server.listener._protocols) == 1)
            await client.says(data(0, b"x"))
            [protocol] = server.listener._protocols
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(0.5):
                    while True:
                        await client.says(bytes(100_000))
            assert 100_000 < protocol._discarded < 1_000_000
            assert not protocol._reads

    run(test)


@pytest.mark.parametrize("kind", ["h2", "page"])
def test_a_client_that_has_just_connected_is_answered_by_a_drain_and_not_just_closed(run: Run, kind: str) -> None:
    """It may have sent its first request before it can know."""

    async def test() -> None:
        async with serving() as server:
            client = await server.client()
            drain = asyncio.create_task(server.listener.drain(STOPPING, 20))
            await asyncio.sleep(0.01)
            assert not drain.done()
            if kind == "page":
                await client.says(GET)
                assert (await client.hears_the_end()).endswith(b"page\n")
            else:
                await client.says(GREETING, SETTINGS_ACK)
                said = await client.hears(lambda heard: b"draining" in heard)
                assert "GOAWAY 0 2147483647 NO_ERROR b'draining'" in transcript(said)
                await client.says(ping(bytes.fromhex("0106010800030309"), ack=True))
                await client.hears_the_end()
            client.sock.close()
            assert await drain

    run(test)
