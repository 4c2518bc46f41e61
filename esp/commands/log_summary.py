"""A summary of repeated log lines, so that no client can fill the log, and the disk, with its refusals."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Final

INTERVAL: Final = 10.0
"""Seconds after which the count of a kind is written and the kind starts anew."""
AT_ONCE: Final = 10
"""Lines of one kind that are written at once in an interval, one for each address; further lines are counted."""
MAX_KINDS: Final = 50
"""Kinds that are told apart in an interval; all further kinds count as one."""
MAX_ADDRESSES: Final = 1000
"""Addresses that are told apart for one kind in an interval."""
_KIND_LENGTH: Final = 120
_NUMBERS: Final = re.compile(r"\d+")
_PEER: Final = re.compile(r"(.+):\d{1,5}")
_BEYOND: Final = (0, "")


class _Kind:
    """The lines of one kind in this interval."""

    __slots__ = ("addresses", "count", "last", "since", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written = 0
        self.count = 0
        self.addresses: dict[str, None] = {}
        self.last: logging.LogRecord | None = None


class SummingHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A log handler to stderr that writes the first lines of a kind, and then the number of further lines.

    Lines are of one kind if they have the same level and text, apart from numbers and from the peer in front as
    `host:port`. A kind starts anew `INTERVAL` seconds after its first line. Its count is written then by a timer of the
    running loop, at the latest when logging shuts down. Without a running loop every line is written.

    Args:
        now: a clock in seconds that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._kinds: dict[tuple[int, str], _Kind] = {}
        self._timer: asyncio.TimerHandle | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line, or counts it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            super().emit(record)
            return
        try:
            address, key = _address_and_kind(record)
        except (TypeError, ValueError):  # text and arguments do not match: logging reports the place
            self.handleError(record)
            return
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            key = _BEYOND
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(self._now())
        if self._timer is None:
            self._timer = loop.call_later(INTERVAL, self._on_timer)
        is_new = address not in kind.addresses
        if is_new and len(kind.addresses) < MAX_ADDRESSES:
            kind.addresses[address] = None
        if (is_new or not address) and kind.written < AT_ONCE:
            kind.written += 1
            super().emit(record)
        else:
            kind.count += 1
            kind.last = record

    def _on_timer(self) -> None:
        self._timer = None
        oldest = self.tell(INTERVAL)
        if oldest is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, INTERVAL - oldest), self._on_timer)

    def tell(self, age: float) -> float | None:
        """Writes the counts of the kinds that began `age` seconds ago or earlier, and forgets these kinds.

        Returns:
            Age in seconds of the oldest remaining kind; None if no kind remains.
        """
        now = self._now()
        for key, kind in list(self._kinds.items()):
            if now - kind.since >= age:
                del self._kinds[key]
                if kind.last is not None:
                    super().emit(_summary(kind, kind.last, now - kind.since, is_mixed=key == _BEYOND))
        return max((now - kind.since for kind in self._kinds.values()), default=None)

    def close(self) -> None:
        """Writes the remaining counts."""
        self.tell(0.0)
        super().close()


def _address_and_kind(record: logging.LogRecord) -> tuple[str, tuple[int, str]]:
    """The address of the line's peer without its port, or ""; and the kind: level and text without peer and numbers."""
    text = record.getMessage()
    peer = record.args[0] if isinstance(record.args, tuple) and record.args else None
    address = ""
    if isinstance(peer, str) and record.msg.startswith("%s: ") and (found := _PEER.fullmatch(peer)):
        address, text = found[1], text[len(peer) :]
    return address, (record.levelno, _NUMBERS.sub("#", text[:_KIND_LENGTH]))


def _summary(kind: _Kind, last: logging.LogRecord, seconds: float, *, is_mixed: bool) -> logging.LogRecord:
    many = len(kind.addresses)
    told = "" if not any(kind.addresses) else f" from {many}{'+' if many == MAX_ADDRESSES else ''} address"
    told += "es" if told and many != 1 else ""
    like = "other lines" if is_mixed else "more like this"
    text = f"{kind.count:,} {like} in the last {max(1, round(seconds))} s{told}, the last: {last.getMessage()}"
    return logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, None, None)
