"""Answers to a client's progress requests: the revisions that the client's watchers have reached."""

from __future__ import annotations

from esp.core.services.watch.exchange import Exchange
from esp.core.services.watch.messages import NO_ID, Response
from esp.core.services.watch.span_progress import SpanProgress
from esp.core.services.watch.watcher import Watcher, WatcherStream


class ProgressAnswers:
    """The answers of the shards to one client's progress requests, put together.

    To a client, an answer without a watch id is about all its watchers. So esp sends such an answer only if it is true
    for all: all watchers are in one shard, and all upstreams to that shard have answered. Otherwise each watcher gets
    an answer with its own shard's revision, and a watcher over several shards with a token (span_progress.py).
    """

    __slots__ = ("_answers", "_asked", "_of_spans", "_stream")

    def __init__(self, stream: WatcherStream, of_spans: SpanProgress) -> None:
        self._stream = stream
        self._of_spans = of_spans
        self._asked: set[Exchange] = set()
        self._answers: dict[Exchange, tuple[Response, int]] = {}

    def ask(self) -> None:
        """Asks the shards. The client gets its answer when all have answered, if they do."""
        self._of_spans.ask(watcher for watcher in self._live() if watcher.span is not None)
        upstreams = {upstream for watcher in self._live() if (upstream := _upstream(watcher))}
        self._asked = {upstream for upstream in self._asked if upstream.sources} | upstreams
        # A shard's answer to an earlier question may be older than a revision that the client knows now.
        self._answers.clear()
        for upstream in upstreams:
            upstream.ask_progress(self)

    def forget(self) -> None:
        """Drops the question: no answers are wanted any more."""
        for upstream in self._asked:
            upstream.forget_asker(self)
        self._asked.clear()
        self._answers.clear()

    def on_upstream_progress(self, upstream: Exchange, response: Response, times: int) -> None:
        """The shard of `upstream` has answered `times` requests at once."""
        every = self._live()
        live = [watcher for watcher in every if not watcher.is_crossing]  # their shard has no news of their keys
        if (
            len(live) == len(every)
            and len({watcher.taps[0].pool.shard for watcher in live}) == 1
            and not any(w.spans_shards for w in live)
        ):
            self._answers[upstream] = response, times
            heard = [self._answers.get(feeding) if (feeding := _upstream(watcher)) else None for watcher in live]
            if None in heard:
                return
            answers = [answer for answer in heard if answer is not None]
            self._answers.clear()
            response = min((answer for answer, _ in answers), key=lambda answer: answer.revision)
            if all(_may_hear(watcher, response) for watcher in live):
                for _ in range(min(times for _, times in answers)):
                    self._stream.outbox.send(response.encode(NO_ID))
                return
        for watcher in live:
            if _upstream(watcher) is upstream and _may_hear(watcher, response):
                self._stream.outbox.send(response.encode(watcher.id))

    def on_bug(self) -> None:
        """An exception came out of `on_upstream_progress`."""
        self._stream.outbox.on_bug()

    def _live(self) -> list[Watcher]:
        return [watcher for watcher in self._stream.watchers.values() if not watcher.is_dead]


def _upstream(watcher: Watcher) -> Exchange | None:
    """The upstream that feeds a watcher in one shard; None for a watcher over several."""
    source = watcher.taps[0].source
    return None if watcher.spans_shards or source is None else source.upstream


def _may_hear(watcher: Watcher, progress: Response) -> bool:
    """Whether the watcher has seen nothing newer than `progress`: a client resumes from the last revision it got."""
    return watcher.taps[0].position <= progress.revision + 1
