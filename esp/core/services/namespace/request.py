"""The requests of one streaming call with the prefix, message by message."""

from __future__ import annotations

from collections.abc import Iterator

from esp.core.services.namespace.forms import Form
from esp.core.services.namespace.rewrite import steps
from esp.core.wire.message import MessageReader


class RequestReader:
    """Takes the DATA of a call's requests as it comes, and makes the requests with the prefix.

    The handler gives back the window of the requests that it reads, which are longer than what the client has sent.

    Attributes:
        unused: bytes of the last DATA of which the handler will give nothing back.
    """

    __slots__ = ("_form", "_messages", "_surplus", "unused")

    def __init__(self, form: Form, max_bytes: int, encoding: bytes) -> None:
        """`max_bytes` is the most that a request may have, `encoding` the compression of those that are compressed."""
        self._form = form
        self._messages = MessageReader(max_bytes, encoding)
        self._surplus = 0  # bytes for the handler that the client has not sent
        self.unused = 0

    @property
    def held(self) -> int:
        """Bytes of memory that the incomplete request takes."""
        return self._messages.held

    def half_message(self) -> int | None:
        """The number of the request that has come only in part; None if there is none."""
        return self._messages.count if self._messages.held else None

    def steps(self, payload: bytes) -> Iterator[bytes]:
        """The requests that DATA completes, each with the prefix of gRPC, and b"" after each other step of the work.

        Raises:
            RpcError: as `MessageReader.feed`.
            Malformed: as `rewrite.steps`.
        """
        self.unused = len(payload)
        for body in self._messages.steps(payload):
            for message in () if body is None else steps(self._form, body, 0):
                if message:
                    taken = min(self.unused, len(message))
                    self.unused -= taken
                    self._surplus += len(message) - taken
                yield message
            yield b""

    def consumed(self, size: int) -> int:
        """The bytes of the client's window that `size` bytes of requests, which the handler has read, give back."""
        surplus = min(size, self._surplus)
        self._surplus -= surplus
        return size - surplus
