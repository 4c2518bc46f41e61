"""A call as the client sees it: its stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from esp.core.wire.frames import ErrorCode
from esp.core.wire.response import ResponseHead
from esp.core.wire.stream import Stream

if TYPE_CHECKING:
    from esp.core.wire.client import ClientConnection

STREAM_WINDOW: Final = 262144
"""Bytes a server may send on one call before it has to wait."""
NOT_QUEUED: Final = (-1, 0)


class ClientStream(Stream):
    """One call as the client sees it. Exactly one end is told: `on_headers` or `on_data` with `end`, or `on_reset`.

    Attributes:
        headers_seen: the response's head has come.
        queued_at: the flush of the connection that takes the whole call along, and its place in `out`.
        unprocessed: the server said with GOAWAY that it has not acted on it.
    """

    connection: ClientConnection

    __slots__ = ("headers_seen", "queued_at", "unprocessed")

    def __init__(self, connection: ClientConnection) -> None:
        # Spelled out instead of super().__init__(): this runs once per request. The id is given when it is sent.
        self.connection = connection
        self.id = 0
        self.credit = 0
        self.recv_window = STREAM_WINDOW
        self.recv_owed = 0
        self.local_open = True
        self.remote_open = True
        self.pending = None
        self.headers_seen = False
        self.unprocessed = False
        self.queued_at = NOT_QUEUED

    def surely_unprocessed(self, code: int) -> bool:
        """Whether the server has surely not acted on this call, which has one request message and broke with `code`.

        It refused the stream, or said so with GOAWAY (RFC 9113, section 8.7), or was not sent the whole message.
        """
        if self.headers_seen:
            return False
        return self.unprocessed or code == ErrorCode.REFUSED_STREAM or self.local_open

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The response's head, its trailers, or both in one."""
        raise NotImplementedError

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer that ended well: head, one DATA frame, trailers. The stream has ended already."""
        self.on_headers(head, False)
        self.on_data(payload, False)
        self.on_headers(trailers, True)

    def on_retired(self) -> None:
        """Its connection takes no more calls and another will; this one goes on for as long as the server lets it."""

    def cancel(self) -> None:
        """Ends the call from here; nothing is told of it any more."""
        self.reset(ErrorCode.CANCEL)
