"""A client that says what no library would: frames by hand, and what a server answers to them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpack import Decoder

from esp.core.wire import frames
from esp.core.wire.message import decode_status_text
from tests.core.wire.conversation import Fields, ping, settings, split, window
from tests.harness import Server

LAST_WORD = b"lastword"


@dataclass
class Answer:
    """What was said on one stream."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None

    @property
    def status(self) -> tuple[int, int, str]:
        """HTTP's status, gRPC's, and its text."""
        text = decode_status_text(self.fields.get(b"grpc-message", b""))
        return int(self.fields[b":status"]), int(self.fields[b"grpc-status"]), text


def request(
    path: bytes | None,
    method: bytes = b"POST",
    content_type: bytes | None = b"application/grpc",
    extra: Fields = (),  # type: ignore[assignment]
) -> Fields:
    fields = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    fields += [(b"content-type", content_type), (b"te", b"trailers"), *extra]
    return [(name, value) for name, value in fields if value is not None]


class RawClient:
    """One connection."""

    def __init__(self, server: Server) -> None:
        host, port = server.address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self._decoder = Decoder(2**24)
        self._heard = b""
        self.answers: dict[int, Answer] = {}
        self.goaway: bytes | None = None
        self.socket.sendall(frames.PREFACE + settings({}))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def says(self, *said: bytes) -> None:
        self.socket.sendall(b"".join(said))

    def hears(self, *streams: int) -> list[Answer]:
        """The answers on `streams`, once they have ended."""
        while not all(self._is_over(stream) for stream in streams):
            self._listen()
        return [self.answers[stream] for stream in streams]

    def hears_of(self, *streams: int) -> None:
        """Waits until something of the answer has come on each of `streams`."""
        while not all(stream in self.answers and self.answers[stream].body for stream in streams):
            self._listen()

    def is_answered(self) -> None:
        """Waits until the server answers a PING: all that was said before has been read."""
        self.says(ping(LAST_WORD))
        self._answered = False
        while not self._answered:
            self._listen()

    def _is_over(self, stream: int) -> bool:
        answer = self.answers.get(stream)
        return answer is not None and (b"grpc-status" in answer.fields or answer.reset is not None)

    def _listen(self) -> None:
        said = self.socket.recv(65_536)
        assert said, f"the connection was closed: {self.goaway!r}"
        self._heard += said
        whole = _whole(self._heard)
        for frame in split(self._heard[:whole]):
            if frame.stream:
                answer = self.answers.setdefault(frame.stream, Answer())
            if frame.kind == frames.HEADERS:
                answer.fields |= {bytes(n): bytes(v) for n, v in self._decoder.decode(frame.payload, raw=True)}
            elif frame.kind == frames.DATA:
                answer.body += frame.payload
                if frame.payload:
                    self.says(window(0, len(frame.payload)))
            elif frame.kind == frames.RST_STREAM:
                answer.reset = int.from_bytes(frame.payload, "big")
            elif frame.kind == frames.GOAWAY:
                self.goaway = frame.payload
            elif frame.kind == frames.SETTINGS and not frame.flags & frames.ACK:
                self.says(frames.SETTINGS_ACK)
            elif frame.kind == frames.PING and frame.flags & frames.ACK:
                self._answered = frame.payload == LAST_WORD
            elif frame.kind == frames.PING:
                self.says(ping(frame.payload, ack=True))
        self._heard = self._heard[whole:]


def _whole(heard: bytes) -> int:
    end = 0
    while len(heard) - end >= frames.HEADER_SIZE:
        size = frames.HEADER_SIZE + int.from_bytes(heard[end : end + 3], "big")
        if len(heard) - end < size:
            break
        end += size
    return end


def ask(server: Server, *said: bytes) -> Answer:
    """What is answered on stream 1 of a connection of its own."""
    with RawClient(server) as client:
        client.says(*said)
        return client.hears(1)[0]


def statuses(server: Server, asked: Sequence[Sequence[bytes]]) -> list[tuple[int, int, str]]:
    return [ask(server, *said).status for said in asked]
