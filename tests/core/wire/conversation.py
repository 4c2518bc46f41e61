"""A small language for what a client and esp's server say to each other, so that tests read as transcripts.

    client, server = meet()
    client.sends(headers(1, call(ECHO)), data(1, message(b"hi"), end=True))
    server.answers(headers(1, HEAD), data(1, message(b"hi")), headers(1, OK, end=True))

Frames are made by the functions below and are bytes. Both what was said and what was expected are turned into lines,
one per frame, so that a failure is a diff of transcripts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hpack import Decoder

from esp.core.wire import frames
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler, ServerStream, Sink
from esp.core.wire.status import OK as STATUS_OK
from esp.core.wire.status import Code, Status

Fields = list[tuple[bytes, bytes]]

# Frames.


def raw(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Any frame at all; `length` is what its header claims."""
    size = len(payload) if length is None else length
    return struct.pack(">IBI", size << 8 | kind, flags, stream) + payload


def headers(
    stream: int,
    block: Fields | bytes,
    *,
    end: bool = False,
    end_headers: bool = True,
    pad: int | None = None,
    depends_on: int | None = None,
) -> bytes:
    flags = (frames.END_STREAM if end else 0) | (frames.END_HEADERS if end_headers else 0)
    payload = block if isinstance(block, bytes) else encode(block)
    if depends_on is not None:
        flags |= frames.PRIORITY_FLAG
        payload = struct.pack(">IB", depends_on, 15) + payload
    if pad is not None:
        flags |= frames.PADDED
        payload = bytes((pad,)) + payload + bytes(pad)
    return raw(frames.HEADERS, flags, stream, payload)


def continuation(stream: int, block: bytes, *, end_headers: bool = True) -> bytes:
    return raw(frames.CONTINUATION, frames.END_HEADERS if end_headers else 0, stream, block)


def data(stream: int, payload: bytes = b"", *, end: bool = False, pad: int | None = None) -> bytes:
    flags = frames.END_STREAM if end else 0
    if pad is not None:
        flags |= frames.PADDED
        payload = bytes((pad,)) + payload + bytes(pad)
    return raw(frames.DATA, flags, stream, payload)


def rst(stream: int, code: ErrorCode = ErrorCode.CANCEL) -> bytes:
    return frames.rst_stream(stream, code)


def window(stream: int, increment: int) -> bytes:
    return frames.window_update(stream, increment)


def priority(stream: int, depends_on: int = 0) -> bytes:
    return raw(frames.PRIORITY, 0, stream, struct.pack(">IB", depends_on, 15))


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frames.ping(payload, ack=ack)


def goaway(last_stream: int, code: ErrorCode, debug: bytes = b"") -> bytes:
    return frames.goaway(last_stream, code, debug)


settings = frames.settings
SETTINGS_ACK = frames.SETTINGS_ACK
SHRINK = settings({frames.SETTINGS_HEADER_TABLE_SIZE: 0})

# Requests and answers.

ECHO = b"/test.Test/Echo"
HOLD = b"/test.Test/Hold"
STREAM = b"/test.Test/Stream"
PAGE = b"/page"


def call(path: bytes = ECHO, *extra: tuple[bytes, bytes], without: bytes = b"") -> Fields:
    """The header list of a gRPC call."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"esp"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    return [field for field in fields if field[0] != without] + list(extra)


def page(path: bytes = PAGE, method: bytes = b"GET") -> Fields:
    return [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"esp")]


def message(content: bytes = b"") -> bytes:
    """`content` with its gRPC prefix."""
    return struct.pack(">BI", 0, len(content)) + content


HEAD: Fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def trailers(status: Status = STATUS_OK) -> Fields:
    text = [(b"grpc-message", status.message.encode())] if status.message else []
    return [(b"grpc-status", b"%d" % status.code), *text]


def refusal(stream: int, code: Code, text: str) -> bytes:
    """An answer that is nothing but an error."""
    return headers(stream, HEAD + trailers(Status(code, text)), end=True)


def echoed(stream: int, content: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """The three frames in which the echo handler answers."""
    return headers(stream, HEAD), data(stream, message(content)), headers(stream, trailers(), end=True)


# Reading what was said.


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


def split(said: bytes) -> Iterator[Frame]:
    position = 0
    while position < len(said):
        word, flags, stream = struct.unpack_from(">IBI", said, position)
        end = position + 9 + (word >> 8)
        assert end <= len(said), "half a frame"
        assert word >> 8 <= frames.MAX_FRAME_SIZE, "a frame that no peer has to take (RFC 9113, section 4.2)"
        yield Frame(word & 0xFF, flags, stream, said[position + 9 : end])
        position = end


_KINDS = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
)
_NAMES = {getattr(frames, name): name for name in _KINDS}


def _shown(payload: bytes) -> str:
    if len(payload) <= 48:
        return f"{payload!r}"
    return f"{payload[:24]!r}.. {len(payload)} bytes, hash {hash(payload) & 0xFFFF:x}"


def _line(frame: Frame) -> str:
    words = [_NAMES.get(frame.kind, str(frame.kind)), str(frame.stream)]
    flags = frame.flags
    if frame.kind in (frames.DATA, frames.HEADERS):
        words += ["END_STREAM"] if flags & frames.END_STREAM else []
        words += ["PADDED"] if flags & frames.PADDED else []
    elif flags & frames.ACK:
        words.append("ACK")
    if frame.kind == frames.HEADERS and flags & frames.END_HEADERS and not flags & frames.PADDED:
        # esp's blocks need no table, so each can be read on its own.
        fields = Decoder(2**20).decode(frame.payload, raw=True)
        words += [f"{name.decode()}={value.decode('latin-1')}" for name, value in fields]
    elif frame.kind == frames.SETTINGS:
        words += [f"{name}={value}" for name, value in struct.iter_unpack(">HI", frame.payload)]
    elif frame.kind == frames.RST_STREAM:
        words.append(ErrorCode(struct.unpack(">I", frame.payload)[0]).name)
    elif frame.kind == frames.WINDOW_UPDATE:
        words.append(str(struct.unpack(">I", frame.payload)[0]))
    elif frame.kind == frames.GOAWAY:
        last, code = struct.unpack_from(">II", frame.payload)
        words += [str(last), ErrorCode(code).name, repr(frame.payload[8:])]
    else:
        words.append(_shown(frame.payload))
    return " ".join(words)


def transcript(said: bytes) -> list[str]:
    """One line per frame."""
    return [_line(frame) for frame in split(said)]


# What the server does with calls.


class Recorder(Handler):
    """Notes everything that reaches it, as (event, stream id, ...)."""

    def __init__(self, saw: list[tuple[Any, ...]]) -> None:
        self.saw = saw
        self.streams: dict[int, ServerStream] = {}

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        self.saw.append(("message", stream.id, message))
        self.streams[stream.id] = stream


class Echo(Recorder):
    """Answers with the message it got."""

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        super().on_message(stream, message)
        stream.respond(message[5:])


class Streaming(Recorder):
    """Notes what a streaming call says; the test answers."""

    streaming = True

    def on_open(self, stream: ServerStream) -> None:
        self.saw.append(("open", stream.id))
        self.streams[stream.id] = stream
        stream.sink = Notes(self, stream)


class Notes(Sink):
    def __init__(self, handler: Streaming, stream: ServerStream) -> None:
        self.handler = handler
        self.stream = stream

    def request_data(self, payload: bytes, end: bool) -> None:
        self.handler.saw.append(("data", self.stream.id, payload, end))

    def cancelled(self, code: int, reason: str) -> None:
        self.handler.saw.append(("cancelled", self.stream.id, code, reason))
        self.stream.sink = None

    def drained(self, size: int) -> None:
        self.handler.saw.append(("drained", self.stream.id, size))


class Page(Recorder):
    """Answers 200 without a body."""

    is_page = True

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        super().on_message(stream, message)
        stream.send_headers(encode([(b":status", b"200")]), True)


# The two who talk.


class Server:
    """esp's end."""

    def __init__(
        self,
        limits: Limits,
        find: Callable[[RequestHead], Handler] | None,
        *,
        context: WireContext | None = None,
        peer: str = "the client",
    ) -> None:
        self.context = context or WireContext(limits)
        self.saw: list[tuple[Any, ...]] = []
        self.echo, self.hold, self.stream, self.page = (
            Echo(self.saw),
            Recorder(self.saw),
            Streaming(self.saw),
            Page(self.saw),
        )
        self._handlers: dict[bytes, Handler] = {ECHO: self.echo, HOLD: self.hold, STREAM: self.stream}
        self.connection = ServerConnection(self.context, peer, find or self._find)
        self._said = bytearray()
        self.closed = False
        self.connection.on_flush = self._said.extend
        self.connection.on_end = self._on_end
        self.context.flush()

    def _find(self, head: RequestHead) -> Handler:
        return self._handlers.get(head.path, self.page) if head.is_grpc else self.page

    def _on_end(self) -> None:
        self.closed = True

    @property
    def limits_reached(self) -> dict[str, int]:
        return dict(self.context.counters.limits)

    def hears(self, said: bytes) -> None:
        self.connection.receive(said)
        self.context.flush()

    def flush(self) -> None:
        """After a test has answered a call by hand."""
        self.context.flush()

    def tick(self, now: float) -> None:
        self.connection.tick(now)
        self.context.flush()

    def says(self) -> bytes:
        """Everything it has said since the last time anybody listened."""
        said = bytes(self._said)
        self._said.clear()
        return said

    def frames(self, kind: int | None = None) -> list[Frame]:
        return [frame for frame in split(self.says()) if kind is None or frame.kind == kind]

    def answers(self, *expected: bytes) -> None:
        """It has said exactly that since the last time; and, once, that it wants no header table (see `SHRINK`)."""
        said = self.says()
        if SHRINK not in expected:
            said = said.replace(SHRINK, b"", 1)
        assert transcript(said) == transcript(b"".join(expected))

    def says_nothing(self) -> None:
        self.answers()

    def resets(self, stream: int, code: ErrorCode) -> None:
        """It has ended a stream, and only that."""
        self.answers(rst(stream, code))
        assert not self.closed

    def closes(self, code: ErrorCode, text: str | None = None) -> None:
        """Its last words were GOAWAY with `code`, and the connection has ended."""
        last = list(split(self.says()))[-1]
        assert last.kind == frames.GOAWAY, _line(last)
        assert ErrorCode(struct.unpack_from(">I", last.payload, 4)[0]) is code, _line(last)
        assert text is None or last.payload[8:].decode() == text
        assert self.closed
        assert self.connection.ended

    def holds_nothing(self) -> None:
        """Every stream has ended and every byte was given back."""
        assert self.connection.streams == {}
        assert self.connection.pump.blocked == {}
        assert self.context.buffers.used == 0
        assert self.context.unflushed == self.context.gatherers == []


class Client:
    """The other end: says whatever the test makes it say."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def sends(self, *said: bytes) -> None:
        """All in one piece."""
        self._server.hears(b"".join(said))

    def sends_in_pieces(self, size: int, said: bytes) -> None:
        for start in range(0, len(said), size):
            self._server.hears(said[start : start + size])

    def acknowledges(self) -> None:
        """Takes over the settings the server has sent, SHRINK for one, without making use of them."""
        self.sends(SETTINGS_ACK)

    def gives_up_its_table(self) -> None:
        """Does as SHRINK asks, so that its header blocks are looked up instead of decoded. Costs stream 1."""
        self.sends(headers(1, call(ECHO)), data(1, message(), end=True), SETTINGS_ACK)
        self.sends(headers(3, b"\x20" + encode(call(ECHO))), data(3, message(), end=True))
        assert self._server.connection._decoder.stateless
        self._server.says()
        self._server.saw.clear()


def meet(
    limits: Limits | None = None,
    *,
    find: Callable[[RequestHead], Handler] | None = None,
    client_settings: dict[int, int] | None = None,
    context: WireContext | None = None,
    peer: str = "the client",
) -> tuple[Client, Server]:
    """A client and a server that have exchanged prefaces and settings; a `context` is shared with other servers."""
    server = Server(limits or Limits(), find, context=context, peer=peer)
    client = Client(server)
    client.sends(frames.PREFACE, settings(client_settings or {}), SETTINGS_ACK)
    server.says()
    return client, server


def strangers(limits: Limits | None = None) -> tuple[Client, Server]:
    """A client that has not said anything yet; the server's first words are still to be heard."""
    server = Server(limits or Limits(), None)
    return Client(server), server


def body(said: Iterable[Frame], stream: int) -> bytes:
    """The DATA of one stream."""
    return b"".join(frame.payload for frame in said if frame.kind == frames.DATA and frame.stream == stream)
