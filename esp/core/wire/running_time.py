"""A clock that stands still while the thread does not run."""

from __future__ import annotations

from math import inf
from time import monotonic, thread_time
from typing import Final

UNSEEN: Final = 0.0005
"""Seconds that may pass between two looks at the thread's own clock. Such a look takes as long as ten at the other."""


class RunningTime:
    """A clock of the time that this thread has run; at most `UNSEEN` seconds in which it did not run may be included.

    The thread's own clock is a system call. So this clock reads the machine's clock, and now and then subtracts the
    time in which the thread did not run.
    """

    __slots__ = ("_before", "_off", "_seen", "_trusted")

    def __init__(self) -> None:
        self._seen = monotonic()
        self._before = self._seen - thread_time()
        self._off = 0.0
        self._trusted = self._seen + UNSEEN

    def now(self) -> float:
        """The time in seconds; never less than before."""
        now = monotonic()
        if now >= self._trusted:
            not_run = now - thread_time() - self._before
            self._off = max(self._off, min(not_run, now - (self._seen - self._off)))
            # What cannot be subtracted yet, because the time would go back, must not add up.
            self._trusted = now + UNSEEN if self._off >= not_run else now
        self._seen = now
        return now - self._off

    def leave_out(self, seconds: float) -> None:
        """Takes so many seconds, which the thread has just run, for time in which it did not run."""
        self._before -= seconds
        self._trusted = -inf
