"""The progress requests of one Watch call to a shard: one is out at a time."""

from __future__ import annotations

from time import monotonic
from typing import Final, Generic, TypeVar

A = TypeVar("A")

PATIENCE: Final = 1.0
"""Seconds after which a progress request that etcd has not answered no longer keeps others waiting."""


class ProgressRequests(Generic[A]):
    """Who waits for the answer to the request that is out, and who for the next; how often each has asked.

    Whoever asks while a request is out waits for the next one: the answer to the one that is out may be older than the
    revision that the asker knows of. etcd does not answer at all while one of the call's watchers lags behind.
    """

    __slots__ = ("_asking", "_asking_next", "_is_out", "_sent_at")

    def __init__(self) -> None:
        self._asking: dict[A, int] = {}
        self._asking_next: dict[A, int] = {}
        self._is_out = False
        self._sent_at = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for the request that is out, or is to be sent."""
        return bool(self._asking)

    def add(self, asker: A) -> bool:
        """Notes that `asker` asks; False when its request has to wait until the one that is out is answered."""
        is_out = self._is_out and monotonic() - self._sent_at < PATIENCE
        waiting = self._asking_next if is_out else self._asking
        waiting[asker] = waiting.get(asker, 0) + 1
        return not is_out

    def on_sent(self) -> None:
        """A request has been sent."""
        self._is_out = True
        self._sent_at = monotonic()

    def on_answer(self) -> dict[A, int]:
        """The request that is out was answered: whom to tell, and how many requests of each that answers."""
        told = self._asking
        self._asking, self._asking_next = self._asking_next, {}
        self._is_out = False
        return told

    def on_break(self) -> None:
        """The call broke, and the request that was out went with it; whoever waits for it waits on."""
        self._is_out = False

    def on_open(self) -> None:
        """Another call is open: one request is to be sent for all who wait."""
        for asker, times in self._asking_next.items():
            self._asking[asker] = self._asking.get(asker, 0) + times
        self._asking_next.clear()

    def forget(self, asker: A) -> None:
        """`asker` wants no answer any more."""
        self._asking.pop(asker, None)
        self._asking_next.pop(asker, None)

    def clear(self) -> None:
        """Nobody wants an answer any more."""
        self._asking.clear()
        self._asking_next.clear()
        self._is_out = False
