"""Messages of one call that leave together: those of a turn, in as few frames as can be."""

from __future__ import annotations

import logging

from esp.core.wire.client_stream import ClientStream
from esp.core.wire.frames import MAX_FRAME_SIZE, ErrorCode

log = logging.getLogger("esp.wire")


class Gathered:
    """The messages of a call that have been sent in this turn.

    Each frame costs both ends more than a small message in it. Messages that would wait for the end of a call are
    dropped with the call.
    """

    __slots__ = ("_messages", "_size", "_stream")

    def __init__(self) -> None:
        self._stream: ClientStream | None = None  # while messages wait: the stream refers to this object
        self._messages: list[bytes] = []
        self._size = 0

    def send(self, stream: ClientStream, message: bytes) -> None:
        """Sends a message of the call, or several in one piece, at the end of the turn."""
        messages = self._messages
        if not messages:
            stream.connection.context.gatherers.append(self)
        elif self._size + len(message) > MAX_FRAME_SIZE:
            self.flush()
        self._stream = stream
        messages.append(message)
        self._size += len(message)

    def flush(self) -> None:
        """Sends the messages on."""
        messages, stream = self._messages, self._stream
        if messages and stream is not None:
            data = messages[0] if len(messages) == 1 else b"".join(messages)
            messages.clear()
            self._size = 0
            if stream.connection.streams.get(stream.id) is stream:
                stream.send_data(data, False)
            self._stream = None

    def on_bug(self) -> None:
        """Ends the call: an exception came out of `flush`."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        log.exception("%s: a bug in esp; a call fails", stream.connection.peer)
        stream.cancel()
        stream.on_reset(ErrorCode.INTERNAL_ERROR, "internal error")
