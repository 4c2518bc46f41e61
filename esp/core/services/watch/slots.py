"""A client's requests in order: each waits until the requests before it have been answered.

A create is a slot, too: `Watcher`.
"""

from __future__ import annotations

from typing import Protocol

from esp.core.services.watch.messages import Response, canceled
from esp.core.services.watch.progress import ProgressAnswers
from esp.core.services.watch.watcher import Watcher, WatcherStream


class Slot(Protocol):
    """A request that is answered after the requests before it."""

    @property
    def is_settled(self) -> bool:
        """Whether the request can be answered; looked at when it is first in line."""

    def answer(self) -> None:
        """Answers the request."""


class Cancel:
    """A request to cancel a watcher. Begins when first in line: a request before it may create that watcher."""

    __slots__ = ("_begun", "_head", "_stream", "_watch_id", "_watcher", "is_settled")

    def __init__(self, stream: WatcherStream, watch_id: int) -> None:
        self._stream = stream
        self.is_settled = False
        self._begun = False
        self._watch_id = watch_id
        self._watcher: Watcher | None = None
        self._head = b""

    def begin(self) -> None:
        """Cancels in the shard. For an id that is not in use there is no answer, as in etcd."""
        if self._begun:
            return
        self._begun = True
        watcher = self._watcher = self._stream.watchers.get(self._watch_id)
        if watcher is None:
            self.is_settled = True
        elif watcher.is_dead or watcher.spans_shards:
            self._on_reply(None)
        else:
            source = watcher.taps[0].source
            assert source is not None
            source.cancel(watcher.taps[0], self._on_reply)

    def _on_reply(self, response: Response | None) -> None:
        watcher = self._watcher
        if watcher is None or self.is_settled or self._stream.outbox.is_over:
            return
        if not watcher.is_dead:
            watcher.leave()
        self._head = response.head if response is not None else watcher.make_header()
        self.is_settled = True
        self._stream.advance()

    def answer(self) -> None:
        """Tells the client that the watcher is canceled."""
        if self._watcher is not None:
            self._stream.forget(self._watcher)
            self._stream.outbox.send(canceled(self._head).encode(self._watch_id))


class Progress:
    """A request for the watchers' progress. The answer comes when the shards give theirs, if they do."""

    __slots__ = ("_answers",)
    is_settled = True

    def __init__(self, answers: ProgressAnswers) -> None:
        self._answers = answers

    def answer(self) -> None:
        """Asks the shards."""
        self._answers.ask()
