"""The server's end against the h2 library's client, joined in memory.

For any steps of the client in any order, h2 finds no error, and every complete request gets its complete answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.wire.limits import Limits
from esp.core.wire.server_stream import Handler, ServerStream, Sink
from esp.core.wire.status import OK
from tests.core.wire.conversation import ECHO, STREAM, Echo, Server, call, message
from tests.examples import tries

ROOMY = Limits(max_header_list_bytes=65_536, max_header_block_bytes=65_536, glitch_budget=2**31 - 1)


class EchoStream(Handler):
    """Sends back whatever comes, and gives window back for what has left."""

    streaming = True

    def on_open(self, stream: ServerStream) -> None:
        stream.sink = Mirror(stream)
        stream.start()


class Mirror(Sink):
    def __init__(self, stream: ServerStream) -> None:
        self.stream = stream
        self.waiting = 0
        self.ended = False

    def request_data(self, payload: bytes, end: bool) -> None:
        self.ended = end
        if self.stream.send_data(payload, False):
            self.stream.consumed(len(payload))
        else:
            self.waiting += len(payload)
        self._end_when_empty()

    def drained(self, size: int) -> None:
        self.waiting -= size
        self.stream.consumed(size)
        self._end_when_empty()

    def _end_when_empty(self) -> None:
        if self.ended and not self.waiting:
            self.stream.sink = None
            self.stream.finish(OK)

    def cancelled(self, code: int, reason: str) -> None:
        self.stream.sink = None


@dataclass
class Request:
    """One call as the client sees it."""

    unsent: bytearray
    sent: bytes
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    end_sent: bool = False
    reset: bool = False
    answered: bool = False


class H2Client:
    """The library's client, and the wire between it and esp."""

    def __init__(self, *, eager: bool, has_table: bool) -> None:
        handlers: dict[bytes, Handler] = {ECHO: Echo([]), STREAM: EchoStream()}
        self.server = Server(ROOMY, lambda head: handlers[head.path])
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=False))
        self.h2.initiate_connection()
        self.requests: dict[int, Request] = {}
        self.eager = eager
        self.unread: list[tuple[int, int]] = []
        self.pings = 0
        if not has_table:
            self.h2.encoder.header_table_size = 0
        self.exchange()

    def exchange(self) -> None:
        """Moves bytes until both are silent."""
        while True:
            out = self.h2.data_to_send()
            if out:
                self.server.hears(out)
            back = self.server.says()
            for event in self.h2.receive_data(back) if back else []:
                self.on_event(event)
            self.send_bodies()
            if not back and not self.h2.data_to_send(0) and not self._has_output():
                return

    def _has_output(self) -> bool:
        return bool(self.h2._data_to_send)

    def on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.requests[event.stream_id].fields = event.headers
            case h2.events.TrailersReceived():
                self.requests[event.stream_id].trailers = event.headers
            case h2.events.DataReceived():
                self.requests[event.stream_id].body += event.data
                self.unread.append((event.flow_controlled_length, event.stream_id))
                if self.eager:
                    self.read()
            case h2.events.StreamEnded():
                self.requests[event.stream_id].answered = True
            case h2.events.StreamReset():
                raise AssertionError(f"esp reset stream {event.stream_id}: {event.error_code}")
            case h2.events.ConnectionTerminated():
                raise AssertionError(f"esp ended the connection: {event.additional_data!r}")

    def read(self) -> None:
        for size, stream in self.unread:
            self.h2.acknowledge_received_data(size, stream)
        self.unread.clear()

    def send_bodies(self) -> None:
        """Sends what the windows allow."""
        for stream, request in self.requests.items():
            while not request.reset and not request.end_sent:
                room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
                if request.unsent and room <= 0:
                    break
                piece = bytes(request.unsent[: max(room, 0)])
                del request.unsent[: len(piece)]
                request.end_sent = not request.unsent
                self.h2.send_data(stream, piece, end_stream=request.end_sent)

    def act(self, action: tuple[Any, ...]) -> None:
        match action:
            case ("request", path, size, big, timeout):
                stream = self.h2.get_next_available_stream_id()
                content = message(bytes((stream & 0xFF,)) * size)
                extra = [(b"x", b"y" * 25_000)] if big else []
                extra += [(b"grpc-timeout", b"%dS" % timeout)] if timeout else []
                self.requests[stream] = Request(bytearray(content), content)
                self.h2.send_headers(stream, call(path, *extra))
            case ("padded", size, pad):
                stream = self.h2.get_next_available_stream_id()
                content = message(b"p" * size)
                if self.h2.outbound_flow_control_window >= len(content) + pad + 1:
                    self.requests[stream] = Request(bytearray(), content, end_sent=True)
                    self.h2.send_headers(stream, call(ECHO), priority_weight=7, priority_depends_on=0)
                    self.h2.send_data(stream, content, end_stream=True, pad_length=pad)
            case ("reset", number):
                streams = [s for s, r in self.requests.items() if not r.answered and not r.reset]
                if streams:
                    self.requests[stream := streams[number % len(streams)]].reset = True
                    self.h2.reset_stream(stream, 8)
            case ("window", increment):
                self.h2.increment_flow_control_window(increment)
            case ("settings", name, value):
                self.h2.update_settings({name: value})
                self.exchange()  # h2 takes one ACK for all settings that wait for theirs
            case ("ping",):
                self.pings += 1
                if self.pings <= 3:  # more would be one too many for esp
                    self.h2.ping(b"12345678")
            case ("read",):
                self.read()
            case ("exchange",):
                self.exchange()

    def finish(self) -> None:
        """Reads everything, and opens every window."""
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**20})
        self.exchange()
        while self.unread:
            self.read()
            self.exchange()

    def check(self) -> None:
        for stream, request in self.requests.items():
            if request.reset:
                continue
            assert request.answered, f"stream {stream} was not answered"
            assert bytes(request.body) == request.sent
            assert dict(request.fields)[b":status"] == b"200"
            assert request.trailers == [(b"grpc-status", b"0")]
        assert not self.server.closed
        self.server.holds_nothing()


sizes = st.integers(0, 200) | st.sampled_from([16_379, 16_380, 70_000, 150_000])
actions = st.one_of(
    st.tuples(
        st.just("request"), st.sampled_from([ECHO, STREAM]), sizes, st.booleans(), st.sampled_from([0, 0, 10, 99])
    ),
    st.tuples(st.just("padded"), st.integers(0, 100), st.integers(0, 255)),
    st.tuples(st.just("reset"), st.integers(0, 10)),
    st.tuples(st.just("window"), st.integers(1, 100_000)),
    st.tuples(
        st.just("settings"), st.just(SettingCodes.INITIAL_WINDOW_SIZE), st.sampled_from([0, 500, 65_535, 500_000])
    ),
    st.tuples(st.just("settings"), st.just(SettingCodes.MAX_FRAME_SIZE), st.sampled_from([16_384, 100_000])),
    st.tuples(st.just("settings"), st.just(SettingCodes.HEADER_TABLE_SIZE), st.sampled_from([0, 4096])),
    st.sampled_from([("ping",), ("read",), ("exchange",)]),
)


@settings(max_examples=tries(100), deadline=None)
@given(script=st.lists(actions, max_size=30), eager=st.booleans(), has_table=st.booleans())
def test_every_complete_request_gets_its_complete_answer(
    script: list[tuple[Any, ...]], eager: bool, has_table: bool
) -> None:
    client = H2Client(eager=eager, has_table=has_table)
    for action in script:
        client.act(action)
    client.finish()
    client.check()


def test_a_thousand_calls_side_by_side() -> None:
    client = H2Client(eager=True, has_table=False)
    for number in range(1000):
        client.act(("request", ECHO, number % 50, False, number % 3))
    client.exchange()
    client.finish()
    client.check()


def test_large_bodies_both_ways_through_small_windows() -> None:
    client = H2Client(eager=False, has_table=True)
    client.act(("settings", SettingCodes.INITIAL_WINDOW_SIZE, 1000))
    client.exchange()
    for path in (ECHO, STREAM):
        client.act(("request", path, 1_000_000, False, 0))
    client.exchange()
    client.finish()
    client.check()
