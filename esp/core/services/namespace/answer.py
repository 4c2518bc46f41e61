"""The answers of one call without the prefix of their keys, message by message."""

from __future__ import annotations

from typing import Final

from esp.core.services.namespace.forms import Form, Malformed, number
from esp.core.services.namespace.rewrite import Rewriter, rewritten
from esp.core.wire.frames import pack_u32, unpack_u32
from esp.core.wire.message import PREFIX_SIZE

REMEMBERED_BYTES: Final = 65_536
"""The largest events of a watch that are remembered for its other watchers."""
_HEADER_TAG, _WATCH_ID_TAG = 0x0A, 0x10


class AnswerReader:
    """Takes the DATA of a call's answers as it comes, and returns that of the answers without the prefix.

    A message is returned when it is whole, because its length comes first and is not known before.
    """

    __slots__ = ("_form", "_left", "_prefix", "_rewriter")

    def __init__(self, form: Form) -> None:
        self._form = form
        self._prefix = b""
        self._rewriter: Rewriter | None = None
        self._left = 0

    @property
    def is_between(self) -> bool:
        """Whether no message has come only in part."""
        return self._rewriter is None and not self._prefix

    @property
    def held(self) -> int:
        """About the bytes of memory that the incomplete message takes."""
        return 0 if self._rewriter is None else self._rewriter.held

    def feed(self, payload: bytes) -> list[bytes]:
        """Takes DATA; returns the bytes of the messages that it completes, in pieces.

        Raises:
            Malformed, Outside: as `Rewriter.take`.
        """
        pieces: list[bytes] = []
        position, size = 0, len(payload)
        if self._rewriter is None and not self._prefix:
            while size - position >= PREFIX_SIZE and not payload[position]:
                end = position + PREFIX_SIZE + unpack_u32(payload, position + 1)[0]
                if end > size:
                    break
                pieces.append(self.whole(payload[position + PREFIX_SIZE : end]))
                position = end
        while position < size:
            rewriter = self._rewriter
            if rewriter is None:
                taken = payload[position : position + PREFIX_SIZE - len(self._prefix)]
                position += len(taken)
                self._prefix += taken
                if len(self._prefix) < PREFIX_SIZE:
                    break
                if self._prefix[0]:
                    raise Malformed
                self._left = unpack_u32(self._prefix, 1)[0]
                self._prefix = b""
                rewriter = self._rewriter = Rewriter(self._form, self._left)
            taken = payload[position : position + self._left]
            position += len(taken)
            self._left -= len(taken)
            if taken:
                rewriter.take(taken)
            if rewriter.is_whole:
                pieces.append(b"\0" + pack_u32(rewriter.size))
                pieces += rewriter.pieces
                self._rewriter = None
            elif not self._left:
                raise Malformed
        return pieces

    def whole(self, body: bytes) -> bytes:
        """A whole message, rewritten, with its gRPC prefix."""
        return rewritten(self._form, body)


class Remembered:
    """The events that were rewritten last: those for the next watcher are the same, behind another watch id."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before = b""
        self.after = b""


class WatchReader(AnswerReader):
    """Rewrites the same events for many watchers once."""

    __slots__ = ("_remembered",)

    def __init__(self, form: Form, remembered: Remembered) -> None:
        super().__init__(form)
        self._remembered = remembered

    def whole(self, body: bytes) -> bytes:
        """A whole WatchResponse, rewritten, with its gRPC prefix."""
        at = _behind_watch_id(body)
        events = body[at:]
        if not events:
            return b"\0" + pack_u32(at) + body
        remembered = self._remembered
        if events == remembered.before:
            after = remembered.after
        else:
            after = rewritten(self._form, events)[PREFIX_SIZE:]
            if len(events) <= REMEMBERED_BYTES:
                remembered.before, remembered.after = events, after
        return b"".join((b"\0", pack_u32(at + len(after)), body[:at], after))


def _behind_watch_id(body: bytes) -> int:
    """The place behind header and watch id; 0 if they do not come first."""
    try:
        at = 0
        if body[0] == _HEADER_TAG and body[1] < 0x80:
            at = 2 + body[1]
        if at < len(body) and body[at] == _WATCH_ID_TAG:
            _, at = number(body, at + 1)
    except IndexError:
        return 0
    return at if at <= len(body) else 0
