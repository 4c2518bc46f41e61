"""The progress requests of one Watch call to a shard: one is under way at a time."""

from __future__ import annotations

from time import monotonic
from typing import Final, Generic, TypeVar

from esp.core.services.maintenance import version_key

A = TypeVar("A")

PATIENCE: Final = 1.0
"""Seconds after which a progress request without an answer no longer holds up the next one."""


class ProgressRequests(Generic[A]):
    """The askers that wait for the answer to the present request, and for the next; and how often each has asked.

    An asker that comes while a request is under way waits for the next one: the answer to the present request may be
    older than a revision that the asker knows. etcd does not answer at all while one of the call's watchers lags
    behind.
    """

    __slots__ = ("_asking", "_asking_next", "_is_out", "_sent_at")

    def __init__(self) -> None:
        self._asking: dict[A, int] = {}
        self._asking_next: dict[A, int] = {}
        self._is_out = False
        self._sent_at = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether an asker waits for the present request, or for the next."""
        return bool(self._asking)

    def add(self, asker: A) -> bool:
        """Adds `asker`; False if its request has to wait until the present one is answered."""
        is_out = self._is_out and monotonic() - self._sent_at < PATIENCE
        waiting = self._asking_next if is_out else self._asking
        waiting[asker] = waiting.get(asker, 0) + 1
        return not is_out

    def on_sent(self) -> None:
        """A request has been sent."""
        self._is_out = True
        self._sent_at = monotonic()

    def on_answer(self) -> dict[A, int]:
        """The present request was answered: the askers, and the number of requests of each that this answers."""
        told = self._asking
        self._asking, self._asking_next = self._asking_next, {}
        self._is_out = False
        return told

    def on_break(self) -> None:
        """The call broke, and the present request with it. Its askers wait for the next one."""
        self._is_out = False

    def on_open(self) -> None:
        """Another call is open: one request has to be sent for all askers that wait."""
        for asker, times in self._asking_next.items():
            self._asking[asker] = self._asking.get(asker, 0) + times
        self._asking_next.clear()

    def forget(self, asker: A) -> None:
        """`asker` wants no answer any more."""
        self._asking.pop(asker, None)
        self._asking_next.pop(asker, None)

    def clear(self) -> None:
        """Drops all askers."""
        self._asking.clear()
        self._asking_next.clear()
        self._is_out = False


def tells_in_order(version: str) -> bool:
    """Whether etcd's answer to a progress request never overtakes events."""
    known = version_key(version)
    return known >= (3, 5, 13) or (3, 4, 31) <= known < (3, 5)
