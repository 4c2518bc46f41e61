"""Log lines that come again and again, told as a count: nobody fills the log, and nobody's disk, by being refused."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Final

INTERVAL: Final = 10.0
"""Seconds after which a kind of line is told of anew."""
AT_ONCE: Final = 10
"""Lines of one kind that are written as they come in an interval, one for each address; the rest is counted."""
MAX_KINDS: Final = 50
"""Kinds that are told apart in an interval; what comes beyond that is one kind together."""
MAX_ADDRESSES: Final = 1000
"""Addresses that are told apart for one kind in an interval."""
_KIND_LENGTH: Final = 120
_NUMBERS: Final = re.compile(r"\d+")
_PEER: Final = re.compile(r"(.+):\d{1,5}")
_BEYOND: Final = (0, "")


class _Kind:
    """What came of one kind in this interval."""

    __slots__ = ("addresses", "count", "last", "since", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written = 0
        self.count = 0
        self.addresses: dict[str, None] = {}
        self.last: logging.LogRecord | None = None


class SummingHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr; of lines that differ in nothing but who caused them, the first few and then how many more.

    Lines are of one kind when level and text agree, but for numbers and for the peer that stands in front as
    `host:port`. Each kind begins anew `INTERVAL` seconds after its first line; the count is written then, by a timer of
    the running loop, or at the latest when logging shuts down. Without a running loop every line is written.

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
        except (TypeError, ValueError):  # the text and its arguments do not fit: logging tells where
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
        """Writes the counts of the kinds that began `age` seconds ago or earlier, and forgets them.

        Returns:
            Seconds since the oldest of the others began; None when there is none.
        """
        now = self._now()
        for key, kind in list(self._kinds.items()):
            if now - kind.since >= age:
                del self._kinds[key]
                if kind.last is not None:
                    super().emit(_summary(kind, kind.last, now - kind.since, is_mixed=key == _BEYOND))
        return max((now - kind.since for kind in self._kinds.values()), default=None)

    def close(self) -> None:
        """Writes the counts that are left."""
        self.tell(0.0)
        super().close()


def _address_and_kind(record: logging.LogRecord) -> tuple[str, tuple[int, str]]:
    """Who caused the line, without the port, or ""; and what the line says without it."""
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
