"""The one message of a unary call that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from esp.core.wire.message import PREFIX_SIZE, MessageReader
from esp.core.wire.status import Code, Status

SECOND_MESSAGE: Final = Status(Code.INTERNAL, "more than one message in a unary request")
NO_MESSAGE: Final = Status(Code.INTERNAL, "the request ended without a whole message")


class RequestMessage:
    """The pieces of a message that have come.

    Args:
        most_bytes: the bound on the message.
        encoding: how the message is compressed, as `grpc-encoding` says.

    Attributes:
        counted: bytes that the caller has accounted for.
        message: the message, with its prefix and not compressed; None until all of it has come.
    """

    __slots__ = ("_reader", "counted", "message")

    def __init__(self, most_bytes: int, encoding: bytes) -> None:
        self._reader = MessageReader(most_bytes, encoding, prefixed=True)
        self.counted = 0
        self.message: bytes | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the message has come, and nothing of another one."""
        return self.message is not None and not self._reader.wanted

    @property
    def held(self) -> int:
        """Bytes that the pieces and the message take."""
        return self._reader.held + max(0, len(self.message or b"") - PREFIX_SIZE)

    def steps(self, payload: bytes) -> Iterator[int]:
        """Takes a piece in steps; each step yields the bytes that the pieces take so far.

        Raises:
            RpcError: more than one message, a message above the bound, or one that cannot be inflated.
        """
        for message in self._reader.steps(payload):
            if message is None:
                yield self._reader.held
            elif self.message is not None:
                raise SECOND_MESSAGE.error()
            else:
                self.message = message

    def ended(self) -> bytes:
        """The request has ended: the message.

        Raises:
            RpcError: the message is not whole.
        """
        if self.message is None or not self.is_whole:
            raise NO_MESSAGE.error()
        return self.message
