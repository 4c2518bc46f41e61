"""Clients that speak TLS, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import pairwise

import pytest

from esp.core.wire.accepted import ServerProtocol
from esp.core.wire.accepted_tls import TlsServerProtocol
from esp.core.wire.exchange import Page
from esp.core.wire.frames import PREFACE
from esp.core.wire.limits import Limits
from esp.core.wire.tls import Tls
from esp.core.wire.turns import Turns
from tests.core.wire.certificates import ClientEnd, client_context, server_context
from tests.core.wire.conversation import (
    ECHO,
    HOLD,
    STREAM,
    body,
    call,
    data,
    headers,
    message,
    ping,
    split,
    window,
)
from tests.core.wire.test_transport import GET, GREETING, STOPPING, Client, Run, Serving, ended

__all__ = ["run"]
from tests.core.wire.test_transport import run


class TlsClient(Client):
    """A client of TLS; `says` and `hears` are about plain bytes."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self.end = ClientEnd(context)

    async def shakes_hands(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await loop.sock_sendall(self.sock, self.end.shakes())
            if self.end.is_open:
                return
            self.end.incoming.write(await loop.sock_recv(self.sock, 65536))

    async def says(self, *said: bytes) -> None:
        await self.says_sealed(self.end.says(*said))

    async def says_sealed(self, *said: bytes) -> None:
        await super().says(*said)

    async def hears(self, enough: Callable[[bytes], bool]) -> bytes:
        while not enough(self.heard):
            piece = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            assert piece, f"closed after {self.heard[-500:]!r}"
            self._opens(piece)
        heard, self.heard = self.heard, b""
        return heard

    def _opens(self, piece: bytes) -> None:
        self.end.hears(piece)
        self.heard, self.end.plain = self.heard + self.end.plain, b""

    async def hears_the_end(self) -> bytes:
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                self._opens(piece)
        return self.heard


class TlsServing(Serving):
    """A listener for clients of TLS."""

    async def tls_client(self, context: ssl.SSLContext | None = None, *, receive_buffer: int = 0) -> TlsClient:
        plain = await self.client(receive_buffer=receive_buffer)
        client = TlsClient(plain.sock, context or client_context())
        await client.shakes_hands()
        return client

    @property
    def protocols(self) -> list[TlsServerProtocol]:
        return [each for each in self.listener._protocols if isinstance(each, TlsServerProtocol)]


@contextlib.asynccontextmanager
async def serving(
    limits: Limits | None = None, turns: Turns | None = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[TlsServing]:
    server = TlsServing(limits or Limits(), turns or Turns())
    sock = socket.create_server(("127.0.0.1", 0))
    server.port = sock.getsockname()[1]
    await server.listener.listen(sock, lambda: context or server_context())
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


def is_page(heard: bytes) -> bool:
    return heard.endswith(b"page\n")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - of the server's own state
        await asyncio.sleep(0.001)


def test_http2_and_http1_share_a_port(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            two, one = await server.tls_client(), await server.tls_client()
            await two.says(GREETING, headers(1, call()), data(1, message(b"hi"), end=True))
            await one.says(GET)
            assert body(await two.hears_frames(ended(1)), 1) == message(b"hi")
            assert (await one.hears(is_page)).startswith(b"HTTP/1.1 200 ")
            two_said = GREETING + headers(1, call()) + data(1, message(b"hi"), end=True)
            assert server.context.counters.clients.received == len(two_said + GET)  # in the plain
            await two.says_sealed(two.end.says(ping()) + two.end.says(ping()))  # two records in one read
            await two.hears(lambda heard: heard.count(ping(ack=True)) == 2)
            assert server.context.counters.clients.received == len(two_said + GET + ping() * 2)
            assert server.context.counters.tls_handshakes == 2
            assert server.context.counters.tls_faults == 0

    run(test)


def test_bytes_may_come_one_by_one_from_the_first(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = TlsClient((await server.client()).sock, client_context())
            for byte in client.end.shakes():
                await client.says_sealed(bytes((byte,)))
                await asyncio.sleep(0)
            await client.shakes_hands()
            for byte in client.end.says(GREETING + ping()):
                await client.says_sealed(bytes((byte,)))
                await asyncio.sleep(0)
            await client.hears(lambda heard: heard.endswith(ping(ack=True)))
            await client.says(*(bytes((byte,)) for byte in ping()))  # a record for each byte
            await client.hears(lambda heard: heard.endswith(ping(ack=True)))

    run(test)


def test_a_request_and_an_answer_of_many_records(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(stream_window_bytes=2_000_000, connection_window_bytes=3_000_000)) as server:
            client = await server.tls_client()
            large = bytes(1_000_000)
            sent = message(large)
            frames = [
                data(1, sent[at : at + 16_000], end=at + 16_000 >= len(sent)) for at in range(0, len(sent), 16_000)
            ]
            await client.says(GREETING, window(0, 2_000_000), headers(1, call()), window(1, 2_000_000))
            talking = asyncio.create_task(client.says(*frames))
            assert body(await client.hears_frames(ended(1)), 1) == sent
            await talking

    run(test)


def test_a_client_that_reads_slowly_gets_all_of_its_answers(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(max_output_bytes=100_000)) as server:
            client = await server.tls_client(receive_buffer=4096)
            await client.says(GREETING, window(0, 2**30))
            for stream in range(1, 13, 2):
                await client.says(headers(stream, call(b"/large")), data(stream, message(b""), end=True))
                await client.says(window(stream, 2_000_000))
            await until(lambda: "max_output_bytes" in server.limits_reached)
            said = await client.hears_frames(lambda said: all(ended(stream)(said) for stream in range(1, 13, 2)))
            assert [len(body(said, stream)) for stream in range(1, 13, 2)] == [1_000_005] * 6

    run(test)


def test_requests_behind_one_that_is_served_wait_for_its_answer(run: Run) -> None:
    """Some of the bytes wait in esp sealed, some in the kernel: nothing takes so much, and nothing is lost."""

    async def test() -> None:
        async with serving() as server:
            client = await server.tls_client()
            late = GET.replace(b"/health", b"/late")
            await client.says(late)
            await until(lambda: bool(server.late))
            sending = asyncio.create_task(client.says(*[GET * 10] * 300))
            await until(lambda: not server.protocols[0]._reads)
            assert server.protocols[0]._tls.waiting < 1_000_000
            server.late.pop()(Page(200, b"late\n"))
            heard = await client.hears(lambda heard: heard.count(b"page\n") == 3000)
            assert heard.count(b"late\n") == 1
            await sending

    run(test)


def test_a_client_that_ends_gets_the_answers_that_it_waits_for_and_the_end(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.tls_client()
            await client.says_sealed(client.end.says(GET, GET) + client.end.ends())
            heard = await client.hears_the_end()
            assert heard.count(b"page\n") == 2
            assert client.end.is_ended

    run(test)


def test_the_end_comes_behind_bytes_that_wait(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.tls_client()
            await client.says(*[GET * 30] * 50)  # for more than a turn
            client.sock.shutdown(socket.SHUT_WR)
            assert (await client.hears_the_end()).count(b"page\n") == 1500

    run(test)


def test_half_a_request_is_no_request_however_the_connection_ends(run: Run) -> None:
    """A connection that ends without TLS's own end may have been cut by others."""

    async def test() -> None:
        async with serving() as server:
            for end in ("of TLS", "of TCP", "in a record"):
                client = await server.tls_client()
                if end == "in a record":
                    await client.says_sealed(
                        client.end.says(GREETING, headers(1, call(ECHO)), data(1, message(b"a")))[:-3]
                    )
                else:
                    await client.says(GREETING, headers(1, call(ECHO)), data(1, message(b"half"))[:-2])
                if end == "of TLS":
                    await client.says_sealed(client.end.ends())
                client.sock.shutdown(socket.SHUT_WR)
                await client.hears_the_end()
            assert [seen for seen in server.saw if seen[0] == "message"] == []

    run(test)


def test_a_drain_ends_with_the_end_of_tls(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            two, one, new = await server.tls_client(), await server.tls_client(), await server.client()
            await two.says(GREETING, headers(1, call(HOLD)), data(1, message(b"x"), end=True))
            await one.says(GET)
            await one.hears(is_page)
            await until(lambda: bool(server.hold.streams))
            draining = asyncio.create_task(server.listener.drain(STOPPING, 10))
            assert await new.hears_the_end() == b""
            assert await one.hears_the_end() == b""
            assert one.end.is_ended
            server.hold.streams[1].respond(b"held")
            server.context.flush()
            await two.says(ping(bytes.fromhex("0106010800030309"), ack=True))
            assert body(list(split(await two.hears_the_end())), 1)
            assert two.end.is_ended
            for client in server.clients:
                client.sock.close()
            assert await draining

    run(test)


def test_a_handshake_has_a_deadline(run: Run) -> None:
    async def test() -> None:
        async with serving(Limits(preface_timeout=10)) as server:
            silent, half, done = await server.client(), await server.client(), await server.tls_client()
            await half.says(ClientEnd().shakes()[:100])
            await until(lambda: len(server.protocols) == 3)
            server.passes(11)
            for client in (silent, half, done):
                assert await client.hears_the_end() == b""
            assert server.limits_reached == {"preface_timeout": 3}

    run(test)


def test_clients_without_tls_are_answered_in_the_plain_and_told_in_the_log(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving() as server:
            two, one, other = [await server.client() for _ in range(3)]
            await two.says(PREFACE)
            await one.says(GET)
            await other.says(b"SSH-2.0-x\r\n")
            for client in (two, one):
                assert (await client.hears_the_end()).endswith(b"this port speaks TLS; use https://\n")
            await other.hears_the_end()
            told = [record.getMessage() for record in caplog.records]
            assert any(text.startswith(f"{two.name}: closing: HTTP/2 without TLS at a TLS port") for text in told)
            assert any(text.startswith(f"{one.name}: closing: HTTP/1.1 without TLS at a TLS port") for text in told)
            assert f"{other.name}: closing: SSH: the client has the wrong port" in told
            assert server.context.counters.tls_faults == 3

    caplog.set_level(logging.WARNING, "esp.wire")
    run(test)


def test_a_broken_record_ends_the_connection_and_its_calls(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            client = await server.tls_client()
            await client.says(GREETING, headers(1, call(STREAM)), data(1, b"x"))
            await until(lambda: bool(server.saw))
            await client.says_sealed(b"\x17\x03\x03\x00\x20" + bytes(32))
            await client.hears_the_end()
            await until(lambda: not server.protocols)
            assert server.context.counters.tls_faults == 1
            assert server.saw[-1][:2] == ("cancelled", 1)

    run(test)


def test_certificates_are_asked_for_at_each_connection(run: Run) -> None:
    async def test() -> None:
        given: list[int] = []

        def context() -> ssl.SSLContext:
            given.append(1)
            return server_context()

        async with serving() as server:
            sock = socket.create_server(("127.0.0.1", 0))
            await server.listener.listen(sock, context)
            server.port = sock.getsockname()[1]
            assert not given
            await server.tls_client()
            await server.tls_client()
            assert len(given) == 2

    run(test)


def test_connections_that_end_leave_nothing_for_the_garbage_collector(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:

            async def one(said: bytes) -> None:
                client = await server.tls_client()
                await client.says(said)
                if said != PREFACE[:2]:
                    await client.hears(lambda heard: is_page(heard) or heard.endswith(ping(ack=True)))
                client.sock.close()

            for times in (3, 20):
                for _ in range(times):
                    for said in (GREETING + ping(), PREFACE[:2]):
                        await one(said)
                await until(lambda: not server.protocols)
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


class Wire(asyncio.Transport):
    """A socket that takes everything at once."""

    def __init__(self) -> None:
        super().__init__({"peername": ("10.0.0.1", 1)})
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Caller:
    """A client without a socket."""

    def __init__(self, server: Serving) -> None:
        self.end = ClientEnd()
        self.wire = Wire()
        self.protocol = TlsServerProtocol(server_context, server.listener)
        self.protocol.connection_made(self.wire)

    def says(self, sealed: bytes) -> None:
        self.protocol.data_received(sealed)

    def hears(self) -> bytes:
        self.end.hears(self.wire.written)
        self.wire.written = b""
        return self.end.plain


def test_a_crowd_of_handshakes_does_not_hold_up_a_client_that_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now, opened = 0.0, 0

    def costly(tls: Tls) -> bytes:
        nonlocal now, opened
        now += 0.001
        opened += 1
        return open_(tls)

    open_ = Tls.open

    async def test() -> None:
        server = Serving(Limits(), Turns(lambda: now))
        neighbour = Caller(server)
        neighbour.says(neighbour.end.shakes())
        await asyncio.sleep(0)
        neighbour.hears()
        neighbour.says(neighbour.end.shakes() + neighbour.end.says(GREETING))
        await asyncio.sleep(0)
        neighbour.hears()
        monkeypatch.setattr(Tls, "open", costly)
        crowd = [Caller(server) for _ in range(50)]
        for each in crowd:
            each.says(each.end.shakes())
        neighbour.says(neighbour.end.says(ping()))
        assert opened == 0
        turns = 0
        while not neighbour.hears().endswith(ping(ack=True)):
            await asyncio.sleep(0)
            turns += 1
        assert turns <= 2
        assert opened <= 2
        for _ in range(100):
            await asyncio.sleep(0)
        assert opened == 50
        for each in crowd:
            each.hears()
            assert each.end.is_open

    asyncio.run(test())


def test_no_handshake_is_made_for_a_client_that_has_gone() -> None:
    async def test() -> None:
        server = Serving(Limits(), Turns(lambda: 0.0))
        client = Caller(server)
        client.says(client.end.shakes())
        assert client.protocol.eof_received()  # so the transport closes in its turn
        await asyncio.sleep(0)
        assert client.wire.is_closed
        assert not client.wire.written
        assert not client.protocol.is_behind

    asyncio.run(test())


@pytest.mark.parametrize("is_plain", [True, False])
def test_the_ends_of_a_crowd_are_worked_on_in_turns(is_plain: bool) -> None:
    now, closed = 0.0, [0]

    class Costly(Wire):
        """It takes a while to close."""

        def close(self) -> None:
            nonlocal now
            now += 0.000_05
            super().close()

    async def test() -> None:
        server = Serving(Limits(), Turns(lambda: now))
        crowd = []
        for number in range(1000):
            kind = ServerProtocol if is_plain else partial(TlsServerProtocol, server_context)
            protocol, wire = kind(server.listener), Costly()
            protocol.connection_made(wire)
            if number % 2 and is_plain:
                protocol.data_received(GREETING)
            crowd.append((protocol, wire))
        for protocol, _ in crowd:
            assert protocol.eof_received()
        while closed[-1] < len(crowd):
            await asyncio.sleep(0)
            closed.append(sum(wire.is_closed for _, wire in crowd))
        assert max(after - before for before, after in pairwise(closed)) <= 45, "one turn's time, twice"

    asyncio.run(test())


@pytest.mark.parametrize("piece", [1, 4000, 70_000])
def test_records_that_are_cheap_to_send_are_opened_in_slices(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """A record of one byte takes as long to open as one of a kilobyte, and 11,000 of them fit one read."""
    now = 0.0
    longest = 0.0

    def costly(tls: Tls) -> bytes:
        nonlocal now
        now += 0.000_25
        return open_(tls)

    def work(protocol: TlsServerProtocol, stop: float) -> bool:
        nonlocal longest
        begun = now
        is_left = work_(protocol, stop)
        longest = max(longest, now - begun)
        return is_left

    open_, work_ = Tls.open, TlsServerProtocol.work

    async def test() -> None:
        server = Serving(Limits(), Turns(lambda: now))
        client = Caller(server)
        client.says(client.end.shakes())
        await asyncio.sleep(0)
        client.hears()
        client.says(client.end.shakes() + client.end.says(GREETING))
        client.hears()
        monkeypatch.setattr(Tls, "open", costly)
        monkeypatch.setattr(TlsServerProtocol, "work", work)
        said = headers(1, call(STREAM)) + data(1, bytes(500)) + ping()
        sealed = client.end.says(*(said[at : at + 1] for at in range(len(said))))
        for at in range(0, len(sealed), piece):
            client.says(sealed[at : at + piece])
            await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)
            if client.hears().endswith(ping(ack=True)):
                break
        assert client.end.plain.endswith(ping(ack=True))
        assert longest <= 0.001 + 0.000_25

    asyncio.run(test())
