"""Plain HTTP/1.1 requests, as clients repeat them: a head that h11 has read before is not read again.

Nothing is parsed here. A head is known by all of its bytes, after h11 has read the very same bytes, and only if nothing
in it is special to HTTP/1.1. A request with such a head, whose body has come with it, does not pass through h11 at all;
neither does its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from http.client import responses
from typing import Final

LARGEST_HEAD: Final = 2048
"""Bytes of a head that is remembered."""
MOST_HEADS: Final = 128
"""Heads of a generation. There are two: a head that is not used while a generation fills up is forgotten."""
LAST_CHUNK: Final = b"0\r\n\r\n"

_SPECIAL: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"))
_METHODS: Final = frozenset(("POST", "GET"))
_END: Final = b"\r\n\r\n"
_FIRST: Final = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in responses.items()}


class HttpRequest:
    """The head of a request.

    Attributes:
        method, target: as they came.
        headers: the fields in order, their names in lower case.
        plan: what the server of an earlier request with this very head made of it, for itself; None at first.
    """

    __slots__ = ("headers", "method", "plan", "target")

    def __init__(self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.plan: object = None

    def field(self, name: bytes) -> bytes:
        """The first value of field `name`, b"" without one."""
        for candidate, value in self.headers:
            if candidate == name:
                return value
        return b""


Known = tuple[HttpRequest, int]
"""A head, and the bytes of it and its body together."""


class PlainHeads:
    """The heads that are remembered, of all clients.

    Attributes:
        generations: how often the memory has been full.
    """

    __slots__ = ("_new", "_old", "generations")

    def __init__(self) -> None:
        self._new: dict[bytes, Known] = {}
        self._old: dict[bytes, Known] = {}
        self.generations = 0

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def find(self, head: bytes) -> Known | None:
        """The request with this head."""
        known = self._new.get(head)
        if known is None:
            known = self._old.get(head)
            if known is not None:
                self._remember(head, known)
        return known

    def learn(self, head: bytes, request: HttpRequest) -> int:
        """Remembers a head of HTTP/1.1 as h11 has read it, if it is plain; the bytes of it and its body, or 0."""
        lengths = [b"0"] if request.method == "GET" else []
        for name, value in request.headers:
            if name in _SPECIAL or (name == b"connection" and value.lower() != b"keep-alive"):
                return 0
            if name == b"content-length":
                lengths.append(value)
        if request.method not in _METHODS or len(lengths) != 1:
            return 0
        size = len(head) + int(lengths[0])
        self._remember(head, (request, size))
        return size

    def _remember(self, head: bytes, known: Known) -> None:
        if len(self._new) >= MOST_HEADS:
            self._old, self._new = self._new, {}
            self.generations += 1
        self._new[head] = known


def head_in(data: bytes) -> bytes:
    """The head with which `data` begins; b"" if that is not whole, or too large to be remembered."""
    end = data.find(_END, 0, LARGEST_HEAD)
    return data[: end + len(_END)] if end > 0 else b""


def front(status: int, lines: bytes) -> bytes:
    """The beginning of the head of an answer, as `answer_head` has it."""
    return (_FIRST.get(status) or b"HTTP/1.1 %d \r\n" % status) + lines


def answer_head(status: int, lines: bytes, headers: Sequence[tuple[str, str]]) -> bytes:
    """The head of an answer: `lines` are header lines that each end with CRLF, `headers` are further fields."""
    return (
        front(status, lines) + "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("latin-1") + b"\r\n"
    )


def chunk(data: bytes) -> bytes:
    """A piece of a body that comes in chunks."""
    return b"%x\r\n%b\r\n" % (len(data), data)
