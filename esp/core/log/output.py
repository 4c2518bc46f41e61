"""The end of the log: lines go to a file descriptor, and esp never waits for whoever reads them.

A log that nobody reads (a stopped terminal, a full pipe) would otherwise stop the proxy at its next line.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

MAX_WAITING: Final = 1_048_576
"""Bytes of lines that wait for the reader; further lines are lost, and counted."""
RETRY_SECONDS: Final = 0.1
_AT_ONCE: Final = 4096  # PIPE_BUF: so much goes into a pipe without waiting, if anything does

Later = Callable[[float, Callable[[], None]], bool]
"""As `later_in_loop`."""


class Output:
    """Writes lines to a descriptor, in order.

    Args:
        descriptor: of a file, a pipe, a socket or a terminal.
        later: for lines that wait. Without a loop `write` waits itself, for a second at most.
        missing: makes the line that tells of so many lost lines; written when the reader goes on.

    Attributes:
        lost: lines that were lost since the start.
        waiting: bytes that wait.
    """

    def __init__(self, descriptor: int, later: Later, missing: Callable[[int], str], encoding: str = "utf-8") -> None:
        self.lost = 0
        self.waiting = 0
        self._descriptor = descriptor
        self._later = later
        self._missing = missing
        self._encoding = encoding
        self._lines: deque[bytes] = deque()
        self._untold = 0
        self._telling = 0  # the first of the lines tells of so many lost ones
        self._is_timed = False
        self._is_blocked = False
        self._poll = select.poll() if hasattr(select, "poll") else None  # Windows has none, and writes as it can
        if self._poll is not None:
            self._poll.register(descriptor, select.POLLOUT)

    def write(self, line: str, *, soon: bool = False) -> None:
        """Writes the line, keeps it, or counts it as lost. Raises nothing.

        `soon`: at the end of this turn of the loop, with others, will do.
        """
        data = line.encode(self._encoding, "backslashreplace") + b"\n"
        if self.waiting + len(data) > MAX_WAITING:
            self._lose()
            return
        self._lines.append(data)
        self.waiting += len(data)
        if soon and not self._is_timed:
            self._is_timed = self._later(0.0, self._on_timer)
        if not self._is_blocked and not (soon and self._is_timed):
            self._go_on()

    def close(self, seconds: float = 1.0) -> None:
        """Writes what waits, as far as the reader takes it within so many seconds."""
        self._send(time.monotonic() + seconds)

    def _lose(self) -> None:
        self.lost += 1
        self._untold += 1

    def _on_timer(self) -> None:
        self._is_timed = False
        self._go_on()

    def _go_on(self) -> None:
        self._is_blocked = not self._send(0.0)
        if self._is_blocked and not self._is_timed:
            self._is_timed = self._later(RETRY_SECONDS, self._on_timer)
            if not self._is_timed:
                self._is_blocked = False
                self.close()

    def _send(self, until: float) -> bool:
        """Writes what waits, and tells of what was lost; False if the reader takes no more before `until`."""
        while self._lines or self._untold:
            if not self._lines:
                self._begin_telling()
            if self._poll is not None and not self._poll.poll(max(0, until - time.monotonic()) * 1000 if until else 0):
                return False
            together = self._first_together()
            try:
                sent = os.write(self._descriptor, together)
            except BlockingIOError:  # someone else has made it so: a terminal is shared
                return False
            except OSError:  # the reader has gone, or the disk is full
                self._drop()
                if not self._lines:
                    return True  # of the lost lines a later one tells
                continue
            self.waiting -= sent
            while sent:
                first = self._lines[0]
                if sent < len(first):
                    self._lines[0] = first[sent:]
                    break
                sent -= len(self._lines.popleft())
                self._telling = 0
        return True

    def _first_together(self) -> bytes:
        """As many of the first lines as go out at once."""
        size, many = 0, 0
        for line in self._lines:
            size += len(line)
            if size > _AT_ONCE:
                break
            many += 1
        return b"".join(islice(self._lines, many)) if many else self._lines[0][:_AT_ONCE]

    def _begin_telling(self) -> None:
        line = self._missing(self._untold).encode(self._encoding, "backslashreplace") + b"\n"
        self._telling, self._untold = self._untold, 0
        self._lines.append(line)
        self.waiting += len(line)

    def _drop(self) -> None:
        self.waiting -= len(self._lines.popleft())
        if self._telling:
            self._untold += self._telling
            self._telling = 0
        else:
            self._lose()
