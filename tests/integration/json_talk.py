"""HTTP/1.1 by hand, with which tests of the JSON gateway see what a library would hide; and what two answers share."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.harness import Server

SECONDS = 20.0
WHOLE = 8192
"""Bytes of an answer, as protobuf, that esp prints at once: in the order in which etcd prints."""
Body = Mapping[str, Any] | list[Any] | str | bytes | None


def b64(text: str | bytes) -> str:
    """Bytes as a gateway takes and gives them."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def as_bytes(body: Body) -> bytes:
    """A body as it goes over the wire."""
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    return b"" if body is None else json.dumps(body, separators=(",", ":")).encode()


def post(path: str, body: Body, headers: Mapping[str, str] | None = None, method: str = "POST") -> bytes:
    """A request as most clients send it, with `headers` in place of its own; an empty one is left out."""
    content = as_bytes(body)
    fields = {"Host": "localhost:2379", "Content-Type": "application/json", "Content-Length": str(len(content))}
    fields |= headers or {}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


@dataclass
class Answer:
    """One answer.

    Attributes:
        lines: of the head, without the first.
        informed: statuses of answers that came before it, such as 100.
        is_last: the server closes the connection behind it, by its own word or by the end of the body.
    """

    status: int = 0
    lines: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    informed: list[int] = field(default_factory=list)
    is_last: bool = False

    def header(self, name: str) -> str:
        """A header, or all of its name with commas between them; "" without one."""
        return ", ".join(value for key, value in self.lines if key == name)

    def json(self) -> Any:
        """The body, which must be JSON."""
        return json.loads(self.body)


class Conversation:
    """One connection."""

    def __init__(self, server: Server) -> None:
        host, _, port = server.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = b""

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def says(self, data: bytes) -> None:
        """Sends; a server that has closed its side, or resets, may have answered before."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def ask(self, data: bytes) -> Answer | None:
        """The answer to a whole request."""
        self.says(data)
        return self.hears(is_head=data.startswith(b"HEAD "))

    def hears(self, *, is_head: bool = False) -> Answer | None:
        """The next answer; None if the server closes the connection instead."""
        informed = []
        while (answer := self.head()) is not None:
            if answer.status == 101 or not 100 <= answer.status < 200:
                break
            informed.append(answer.status)
        if answer is None:
            return None
        answer.informed = informed
        if not is_head and answer.status not in (101, 204, 304):
            answer.body = b"".join(self.body(answer))
        return answer

    def head(self) -> Answer | None:
        """The next answer's head."""
        lines = []
        while line := self._line():
            lines.append(line.decode("latin-1"))
        if not lines:
            assert not self._heard, self._heard
            return None
        matched = re.fullmatch(r"HTTP/1\.([01]) (\d{3}) .*", lines[0])
        assert matched, lines
        answer = Answer(int(matched[2]), [_field(line) for line in lines[1:]])
        stays = answer.header("connection").lower()
        answer.is_last = stays == "close" or (matched[1] == "0" and stays != "keep-alive")
        return answer

    def body(self, answer: Answer) -> Iterator[bytes]:
        """The pieces of a body: its chunks, if it has any."""
        coding, length = answer.header("transfer-encoding"), answer.header("content-length")
        assert not (coding and length), answer.lines
        if coding:
            assert coding == "chunked"
            while size := int(self._line() or b"", 16):
                yield self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            while line := self._line():
                answer.trailers.append(_field(line.decode("latin-1")))
        elif length:
            yield self._exactly(int(length))
        else:
            answer.is_last = True
            while self._more():
                pass
            yield self._heard
            self._heard = b""

    def is_over(self) -> bool:
        """Whether the server closes the connection, rather than waiting for more for a moment."""
        self.socket.settimeout(0.2)
        try:
            return not self._more() and not self._heard
        except TimeoutError:
            return False
        finally:
            self.socket.settimeout(SECONDS)

    def _line(self) -> bytes | None:
        while b"\n" not in self._heard:
            if not self._more():
                return None
        line, self._heard = self._heard.split(b"\n", 1)
        assert line.endswith(b"\r"), line
        return line[:-1]

    def _exactly(self, size: int) -> bytes:
        while len(self._heard) < size:
            assert self._more(), f"{size} bytes promised, {self._heard!r} came"
        taken, self._heard = self._heard[:size], self._heard[size:]
        return taken

    def _more(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        self._heard += data
        return bool(data)


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    assert colon, line
    return name.lower(), value.strip()


# What two servers may say otherwise.

_STRING_OR_BLANK = re.compile(rb'("(?:[^"\\]|\\.)*")| +')
_RESET_BY_DEADLINE = b"stream terminated by RST_STREAM with error code: CANCEL"
_OWN_IDS = re.compile(rb'("(?:member_id|cluster_id|raft_term)":)"\d+"')


def comparable_body(body: bytes) -> bytes:
    """A body without what no client can rely on.

    - Blanks: Go's protojson puts some behind commas, or not, by the hash of the program that it is in, so that nobody
      compares such texts. The newline at an end stays: it ends a message of a stream.
    - `proto: ` in its errors has a blank or a no-break space behind it, for the same reason.
    - Ids of members and clusters are random.
    - The text for a deadline: in etcd, the call's end and the end of its stream race with each other.
    - The order of members, where a body is so large that esp prints it while it comes.
    """
    if len(body) > WHOLE:
        body = json.dumps(json.loads(body), sort_keys=True).encode() + body[len(body.rstrip()) :]
    body = body.replace("\u00a0".encode(), b" ").replace(_RESET_BY_DEADLINE, b"context deadline exceeded")
    if body.startswith((b"{", b"[")):
        body = _STRING_OR_BLANK.sub(rb"\1", body)
    return _OWN_IDS.sub(rb'\1"#"', body)


# `date` differs by nature. How a body is framed, and whether the connection stays, is looked at when it is read.
_UNCOMPARED = {"date", "content-length", "transfer-encoding", "connection"}


def comparable(answer: Answer | None) -> tuple[object, ...]:
    """What two servers must have in common.

    A server that closes the connection with a refusal has not understood the HTTP, and says so in its own words.
    """
    if answer is None or (answer.status >= 400 and answer.is_last):
        return ("refused and closed",)
    lines = sorted(line for line in answer.lines if line[0] not in _UNCOMPARED)
    return answer.status, answer.informed, lines, comparable_body(answer.body), sorted(answer.trailers)
