"""The other half of the language of conversation.py: esp is the client, the test is the server upstream.

esp = dial()
call = esp.calls()
esp.says(*request(1))
esp.hears(headers(1, HEAD), data(1, message(b"hi")), headers(1, trailers(), end=True))
assert call.told == ["head", b"hi", "OK"]
"""

from __future__ import annotations

from hpack import Decoder

from esp.core.wire import frames
from esp.core.wire.client import CONNECTION_WINDOW, ClientConnection
from esp.core.wire.client_stream import STREAM_WINDOW, ClientStream
from esp.core.wire.context import WireContext
from esp.core.wire.frames import SETTINGS_ACK, ErrorCode, settings
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ResponseHead
from esp.core.wire.status import Code
from tests.core.wire.conversation import ECHO, HEAD, Fields, data, headers, message, split, trailers, transcript

AUTHORITY = b"etcd:2379"
FRONT: Fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", AUTHORITY)]


def forward(path: bytes = ECHO) -> Forward:
    """A request's head as a service hands it on."""
    return path, b""


def head_of(stream: int, path: bytes = ECHO, *extra: tuple[bytes, bytes], end: bool = False) -> bytes:
    """The HEADERS of a call, as `Caller.said` writes what esp said."""
    fields = [*FRONT, (b":path", path), (b"content-type", b"application/grpc"), (b"te", b"trailers"), *extra]
    return headers(stream, fields, end=end)


def request(stream: int, content: bytes = b"", path: bytes = ECHO) -> tuple[bytes, bytes]:
    """The two frames of a unary call, as `Caller.said` writes what esp said."""
    return head_of(stream, path), data(stream, message(content), end=True)


class Call(ClientStream):
    """Notes what it is told: "head", the bytes of the answer, a status, ("reset", code, text)."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__(connection)
        self.told: list[object] = []

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        assert not self.over, "told after its end"
        if not end:
            self.told.append("head")
            return
        status = head.outcome()
        name = Code(status.code).name if status.code in Code._value2member_map_ else str(status.code)
        self.told.append(f"{name}: {status.message}" if status.message else name)

    def on_data(self, payload: bytes, end: bool) -> None:
        assert not self.over, "told after its end"
        self.told.append(payload)
        if end:
            self.told.append("no trailers")

    def on_reset(self, code: int, reason: str) -> None:
        assert not self.over, "told after its end"
        self.told.append(("reset", code, reason))

    @property
    def over(self) -> bool:
        """Whether it was told of its end."""
        last = self.told[-1] if self.told else None
        return (isinstance(last, str) and last != "head") or (isinstance(last, tuple) and last[0] == "reset")


class Caller:
    """esp's end."""

    def __init__(
        self, limits: Limits | None = None, *, first_stream_id: int = 1, context: WireContext | None = None
    ) -> None:
        self.context = context or WireContext(limits or Limits())
        self.changes: list[str] = []
        self.closed = False
        self._said = bytearray()
        self._decoder = Decoder()
        self.connection = ClientConnection(self.context, AUTHORITY.decode(), first_stream_id=first_stream_id)
        self.connection.on_change = self._on_change
        self.connection.on_flush = self._said.extend
        self.connection.on_end = self._on_end
        self.context.flush()
        assert self._said.startswith(frames.PREFACE)
        del self._said[: len(frames.PREFACE)]

    def _on_change(self) -> None:
        connection = self.connection
        self.changes.append(
            "ended" if connection.ended else "draining" if connection.draining else f"room {connection.has_room}"
        )

    def _on_end(self) -> None:
        assert not self.closed
        self.closed = True

    def calls(self, content: bytes | None = b"", *, path: bytes = ECHO, timeout: bytes = b"", end: bool = True) -> Call:
        """A unary call; without `content` a streaming one, whose messages the test sends."""
        assert self.connection.has_room
        call = Call(self.connection)
        if content is None:
            self.connection.call(call, forward(path), timeout, None, end=False)
        else:
            self.connection.call(call, forward(path), timeout, message(content), end=end)
        self.context.flush()
        return call

    def hears(self, *said: bytes) -> None:
        """All in one piece."""
        self.connection.receive(b"".join(said))
        self.context.flush()

    def flush(self) -> None:
        """After a test has called a method of a stream itself."""
        self.context.flush()

    def tick(self, now: float) -> None:
        self.connection.tick(now)
        self.context.flush()

    def said(self) -> bytes:
        """Everything it has said since the last time anybody listened, header blocks written without a table."""
        said = bytearray()
        block = b""
        for frame in split(self.raw()):
            if frame.kind not in (frames.HEADERS, frames.CONTINUATION):
                said += frames.frame(frame.kind, frame.flags, frame.stream, frame.payload)
                continue
            if frame.kind == frames.HEADERS:
                end = bool(frame.flags & frames.END_STREAM)
            block += frame.payload
            if frame.flags & frames.END_HEADERS:
                fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
                said += frames.header_block(frame.stream, encode(fields), end_stream=end)
                block = b""
        assert not block, "half a header block"
        return bytes(said)

    def raw(self) -> bytes:
        """As `said`, the bytes themselves. Whoever takes header blocks so has to decode all that come later, too."""
        said = bytes(self._said)
        self._said.clear()
        return said

    def says(self, *expected: bytes) -> None:
        """It has said exactly that since the last time."""
        assert transcript(self.said()) == transcript(b"".join(expected))

    def says_nothing(self) -> None:
        self.says()

    def ends(self, code: ErrorCode) -> None:
        """Its last words were GOAWAY with `code`, and the connection has ended."""
        last = list(split(self.said()))[-1]
        assert last.kind == frames.GOAWAY
        assert int.from_bytes(last.payload[4:8], "big") == code, ErrorCode(int.from_bytes(last.payload[4:8], "big"))
        assert self.closed

    def lives(self) -> None:
        """The connection has not ended: a call works."""
        assert not self.closed
        self.said()
        call = self.calls()
        self.hears(headers(call.id, [(b":status", b"200"), (b"grpc-status", b"0")], end=True))
        assert call.told == ["OK"]

    def holds_nothing(self) -> None:
        """Every stream has ended and every byte was given back."""
        assert self.connection.streams == {}
        assert self.connection.pump.blocked == {}
        assert self.context.buffers.used == 0
        assert self.context.unflushed == []


blocks_are_known = False
"""Whether the server has answered before, so that esp takes whole answers in one step."""

PREFACE_SAID = (
    settings(
        {
            frames.SETTINGS_ENABLE_PUSH: 0,
            frames.SETTINGS_INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            frames.SETTINGS_MAX_HEADER_LIST_SIZE: 4 * 65536,
        }
    ),
    frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW),
)


def dial(
    limits: Limits | None = None,
    *,
    server_settings: dict[int, int] | None = None,
    first_stream_id: int = 1,
    context: WireContext | None = None,
) -> Caller:
    """A connection that has exchanged prefaces and settings with the test."""
    esp = Caller(limits, first_stream_id=first_stream_id, context=context)
    esp.hears(settings(server_settings or {}), SETTINGS_ACK)
    if blocks_are_known:
        decoder = esp.connection._decoder
        for fields in (HEAD, trailers(), HEAD + trailers()):
            decoder.decode(encode(fields))
        head, ending = encode(HEAD), encode(trailers())
        decoder.expect(head, decoder.memo[head], len(message(b"ab")), ending, decoder.memo[ending])
    esp.said()
    esp.changes.clear()
    return esp
