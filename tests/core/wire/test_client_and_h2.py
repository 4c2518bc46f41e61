"""esp's client and the `h2` library as its server, joined in memory: no sequence of steps is an error for either."""

from __future__ import annotations

from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from esp.core.wire.client_stream import STREAM_WINDOW
from esp.core.wire.hpack import encode
from tests.core.wire.conversation import message
from tests.core.wire.upstream import FRONT, Call, Caller
from tests.examples import tries

HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
TRAILERS = [(b"grpc-status", b"0"), (b"grpc-message", b"fine")]


@dataclass
class Served:
    """One call as the server sees it."""

    head: list[tuple[bytes, bytes]]
    got: bytearray = field(default_factory=bytearray)
    sent: bytearray = field(default_factory=bytearray)
    whole: bool = False
    headed: bool = False
    over: bool = False
    reset_by_client: bool = False


class H2Server:
    def __init__(self) -> None:
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.connection.initiate_connection()
        self.calls: dict[int, Served] = {}

    def hears(self, said: bytes) -> None:
        for event in self.connection.receive_data(said):
            self._on(event)

    def _on(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.calls[event.stream_id] = Served([(bytes(name), bytes(value)) for name, value in event.headers])
        elif isinstance(event, h2.events.DataReceived):
            self.calls[event.stream_id].got += event.data
        elif isinstance(event, h2.events.StreamEnded):
            self.calls[event.stream_id].whole = True
        elif isinstance(event, h2.events.StreamReset):
            self.calls[event.stream_id].over = True
            self.calls[event.stream_id].reset_by_client = True

    def open(self) -> list[int]:
        return [stream for stream, call in self.calls.items() if not call.over]


class Talk:
    """esp and h2 with a wire between them that cuts what they say into pieces."""

    def __init__(self, piece: int) -> None:
        self.piece = piece
        self.esp = Caller()
        self.server = H2Server()
        self.server.hears(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.calls: list[Call] = []
        self.bodies: dict[int, bytes] = {}
        self.heads: dict[int, list[tuple[bytes, bytes]]] = {}
        self.cancelled: set[int] = set()
        self.exchange()

    def exchange(self) -> None:
        """Until neither has anything to say."""
        while True:
            to_server = self.esp.raw()
            for start in range(0, len(to_server), self.piece):
                self.server.hears(to_server[start : start + self.piece])
            to_esp = self.server.connection.data_to_send()
            for start in range(0, len(to_esp), self.piece):
                self.esp.hears(to_esp[start : start + self.piece])
            if not to_server and not to_esp:
                return

    # What may happen; `a` and `b` are any numbers.

    def call(self, a: int, b: int) -> None:
        if self.esp.connection.has_room:
            content = bytes((b,)) * a
            call = self._opened(b, message(content))
            self.esp.flush()
            self.calls.append(call)
            self.bodies[call.id] = message(content)

    def _opened(self, b: int, content: bytes | None) -> Call:
        path = b"/test.Test/Echo%d" % (b % 90)
        metadata = [(b"user-agent", b"%d" % b), (b"token", b"secret")][: b % 3]
        timeout = b"5S" if b & 1 and content is not None else b""
        call = Call(self.esp.connection)
        self.esp.connection.call(call, (path, encode(metadata)), timeout, content, end=content is not None)
        timeouts = [(b"grpc-timeout", timeout)] if timeout else []
        grpc = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        self.heads[call.id] = [*FRONT, (b":path", path), *grpc, *metadata, *timeouts]
        return call

    def take_back(self, a: int, b: int) -> None:
        """Calls of which one is cancelled before any was written."""
        for turn in range(3):
            if self.esp.connection.has_room:
                call = self._opened(b + turn, message(b"x" * a))
                if turn == a % 3:
                    self.cancelled.add(call.id)
                    call.cancel()
                self.calls.append(call)
                self.bodies[call.id] = message(b"x" * a)
        self.esp.flush()

    def stream(self, a: int, b: int) -> None:
        if self.esp.connection.has_room:
            call = self._opened(b, None)
            self.esp.flush()
            self.calls.append(call)
            self.bodies[call.id] = b""

    def send(self, a: int, b: int) -> None:
        going = [call for call in self.calls if call.local_open and not call.over and call.id not in self.cancelled]
        if going and (call := going[b % len(going)]).pending is None:
            call.send_data(bytes((b,)) * a, bool(b & 2))
            self.bodies[call.id] += bytes((b,)) * a
            self.esp.flush()

    def cancel(self, a: int, b: int) -> None:
        if self.calls:
            call = self.calls[b % len(self.calls)]
            if not call.over:
                self.cancelled.add(call.id)
            call.cancel()
            self.esp.flush()

    def consume(self, a: int, b: int) -> None:
        for call in self.calls:
            if not call.over and call.id not in self.cancelled:
                call.consumed(STREAM_WINDOW - call.recv_window - call.recv_owed)
        self.esp.flush()

    def give_back(self, a: int, b: int) -> None:
        connection = self.server.connection
        connection.increment_flow_control_window(a + 1)
        for stream in self.server.open():
            if not self.server.calls[stream].whole:
                connection.increment_flow_control_window(a + 1, stream)

    def answer_head(self, a: int, b: int) -> None:
        for stream in self.server.open()[: b % 3 + 1]:
            if not self.server.calls[stream].headed:
                self.server.connection.send_headers(stream, HEAD)
                self.server.calls[stream].headed = True

    def answer_data(self, a: int, b: int) -> None:
        for stream in self.server.open():
            served = self.server.calls[stream]
            room = self.server.connection.local_flow_control_window(stream)
            if served.headed and room > 0:
                payload = bytes((b,)) * min(a, room, 16384)
                pad = b % 200 if b & 1 and len(payload) + 201 <= min(room, 16000) else None
                self.server.connection.send_data(stream, payload, pad_length=pad)
                served.sent += payload

    def answer_trailers(self, a: int, b: int) -> None:
        for stream in self.server.open()[: b % 3 + 1]:
            served = self.server.calls[stream]
            trailers = [*TRAILERS, (b"x", b"%d" % (b % 100))] if b & 1 else TRAILERS
            self.server.connection.send_headers(stream, trailers if served.headed else HEAD + trailers, end_stream=True)
            served.over = True

    def reset(self, a: int, b: int) -> None:
        for stream in self.server.open()[:1]:
            self.server.connection.reset_stream(stream, b % 14)
            self.server.calls[stream].over = True

    def ping(self, a: int, b: int) -> None:
        self.server.connection.ping(b"12345678")

    def new_settings(self, a: int, b: int) -> None:
        self.server.connection.update_settings(
            {
                SettingCodes.INITIAL_WINDOW_SIZE: a,
                SettingCodes.HEADER_TABLE_SIZE: b * 20,
                SettingCodes.MAX_CONCURRENT_STREAMS: b % 20,
                SettingCodes.MAX_FRAME_SIZE: 16384 + a,
            }
        )


ACTIONS = (
    Talk.call,
    Talk.stream,
    Talk.send,
    Talk.cancel,
    Talk.take_back,
    Talk.consume,
    Talk.give_back,
    Talk.answer_head,
    Talk.answer_data,
    Talk.answer_trailers,
    Talk.reset,
    Talk.ping,
    Talk.new_settings,
)
SIZES = st.one_of(st.integers(0, 300), st.sampled_from([16384, 16385, 40_000, 65_535, 65_536, 100_000]))


@examples(
    max_examples=tries(300), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), SIZES, st.integers(0, 255), st.booleans()), max_size=40),
    st.sampled_from([1_000_000, 16_384, 1000, 37]),
)
def test_they_understand_each_other(actions: list[tuple[object, int, int, bool]], piece: int) -> None:
    talk = Talk(piece)
    for action, a, b, heard in actions:
        action(talk, a, b)  # type: ignore[operator]
        if heard:
            talk.exchange()
    talk.exchange()
    assert not talk.esp.closed
    for call in talk.calls:
        check_call(talk, call)
    finish(talk)


def check_call(talk: Talk, call: Call) -> None:
    served = talk.server.calls.get(call.id)
    if served is None:
        assert call.id in talk.cancelled
        return
    assert served.head == talk.heads[call.id]
    assert bytes(served.got) == talk.bodies[call.id][: len(served.got)]
    answer = b"".join(told for told in call.told if isinstance(told, bytes))
    if call.id in talk.cancelled:
        assert bytes(served.sent).startswith(answer)
        return
    assert answer == bytes(served.sent)
    assert call.over is served.over
    if call.over and call.told[-1] != "OK: fine":
        assert isinstance(call.told[-1], tuple)


def finish(talk: Talk) -> None:
    """With windows open and every call answered, nothing is left behind on either side."""
    talk.new_settings(100_000, 19)
    talk.exchange()
    for _ in range(20):
        talk.give_back(1_000_000, 0)
        talk.consume(0, 0)
        talk.exchange()
    for call in talk.calls:
        if call.id not in talk.cancelled and not call.over:
            assert call.pending is None
            assert bytes(talk.server.calls[call.id].got) == talk.bodies[call.id]
    while talk.server.open():
        talk.answer_trailers(0, 2)
    talk.exchange()
    assert all(call.over or call.id in talk.cancelled for call in talk.calls)
    assert not talk.esp.closed
    talk.esp.holds_nothing()
    assert talk.server.connection.open_inbound_streams == 0
