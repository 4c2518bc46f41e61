"""One watcher of a shard, and the taps that it feeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from esp.core.services.watch.messages import Response, Spec, as_one, encoded

if TYPE_CHECKING:
    from esp.core.services.watch.pool import Pool, Shelf
    from esp.core.services.watch.tap import Tap
    from esp.core.services.watch.upstream import Upstream

Answer = Callable[["Response | None"], None]
"""Told what a shard said; None when the call to it broke before it said anything."""

BATCH_REVISIONS: Final = 1000
"""etcd catches up in messages of this many revisions; one with fewer events is the last of them."""
MOST_JOINED: Final = 12 << 20
"""Bytes of a response in fragments that are passed on as one; etcd's own tests expect that of 10 MiB."""


class Source:
    """One watcher of a shard.

    Attributes:
        upstream: the Watch call that it is part of.
        spec: what it watches.
        pool, shelf: who its neighbours are.
        next: the lowest revision that has not come; 0 until the shard has said which "now" is.
        id: its watch id upstream.
        is_live: the shard has created it in the call that is open now.
        taps: whom it feeds.
        fresh: taps that have joined and are ahead of it: they get what is not below their `next`.
        joining: taps that may join when the shard has said so.
    """

    __slots__ = (
        "_asked",
        "_cancel_answer",
        "_fragment_bytes",
        "_fragments",
        "_passed_events",
        "_questions",
        "fresh",
        "has_caught_up",
        "id",
        "is_live",
        "is_over",
        "joining",
        "next",
        "pool",
        "shelf",
        "spec",
        "taps",
        "upstream",
        "was_live",
    )

    def __init__(self, upstream: Upstream, pool: Pool, spec: Spec, shelf: Shelf, start_revision: int) -> None:
        self.upstream = upstream
        self.pool = pool
        self.shelf = shelf
        self.spec = spec
        self.next = start_revision
        self.id = upstream.take_id()
        self.is_live = self.was_live = self.is_over = False
        self.has_caught_up = False
        self.taps: dict[Tap, None] = {}
        self.fresh: dict[Tap, None] = {}
        self.joining: dict[Tap, None] = {}
        self._fragments: list[Response] = []
        self._fragment_bytes = 0
        self._passed_events = 0  # of the response whose fragments come
        self._questions: list[Answer] = []
        self._asked: list[Answer] = []
        self._cancel_answer: Answer | None = None

    # Taps.

    def add(self, tap: Tap) -> None:
        """Feeds `tap` all that comes from `next` on."""
        tap.source = self
        self.taps[tap] = None

    def join(self, tap: Tap, revision: int) -> None:
        """Feeds `tap` what comes from `revision` on, which must not be below `next`."""
        tap.source = self
        self.joining.pop(tap, None)
        if revision == self.next:
            self.taps[tap] = None
        else:
            tap.next = revision
            self.fresh[tap] = None

    def remove(self, tap: Tap) -> None:
        """Feeds `tap` no more; a source that nobody wants any more ends."""
        self.taps.pop(tap, None)
        self.fresh.pop(tap, None)
        self.joining.pop(tap, None)
        self.end_if_unwanted()

    def end_if_unwanted(self) -> None:
        """Ends it upstream when there is nobody for whom to go on."""
        if not (self.taps or self.fresh or self.joining or self._questions or self._asked or self.is_over):
            self.end()

    def everybody(self) -> list[Tap]:
        """All taps, those that are to join left out."""
        return [*self.taps, *self.fresh]

    @property
    def awaits_cancel(self) -> bool:
        """Whether it has ended, but for the shard's reply."""
        return self._cancel_answer is not None

    def end(self, answer: Answer | None = None) -> None:
        """Ends it upstream; `answer` is told the shard's reply."""
        if self.is_over:
            return
        self.is_over = True
        if answer is None:
            self._forget_fragments()
        self._cancel_answer = answer
        self.pool.forget(self)
        self.upstream.cancel(self)

    def cancel(self, tap: Tap, answer: Answer) -> None:
        """The client of `tap` wants it no more; what the shard says to that goes to `answer`.

        Until then the tap is fed as before. The header of what the shard says has its present revision.
        """
        if not self.is_live:
            answer(None)
        elif len(self.taps) + len(self.fresh) == 1 and not self._questions and not self._asked:
            self.end(answer)
        else:
            self.ask(answer)

    # Questions.

    def ask(self, answer: Answer) -> None:
        """Asks the shard whether the same client may watch this now, and for its revision.

        It is asked to create the same watcher again, under the same id. That is never granted, but refused for the id
        alone (`DUPLICATE_ID`) where a create would have been granted, and the reply has a header.
        """
        self._questions.append(answer)
        self._send_questions()

    def _send_questions(self) -> None:
        if self.is_live and self._questions and not self._asked:
            self._asked, self._questions = self._questions, []
            self.upstream.ask(self)

    def on_answer(self, response: Response) -> None:
        """The shard has replied to the question."""
        asked, self._asked = self._asked, []
        for answer in asked:
            answer(response)
        self._send_questions()
        self.end_if_unwanted()

    def _drop_questions(self) -> None:
        answers = self._asked + self._questions
        self._asked, self._questions = [], []
        for answer in answers:
            answer(None)

    # From upstream.

    def on_break(self) -> None:
        """The call broke; the upstream will create it again at `next`."""
        self.is_live = False
        self._forget_fragments()
        self._drop_questions()

    def on_cancel_lost(self) -> None:
        """The call broke, and with it went the shard's reply to the cancel."""
        self._forget_fragments()
        answer, self._cancel_answer = self._cancel_answer, None
        if answer is not None:
            answer(None)

    def on_created(self, response: Response) -> None:
        """The reply to a create."""
        if response.message.canceled:
            self._on_refused(response)
            return
        start, self.is_live = self.next, True
        if not self.was_live:
            self.was_live = True
            if start == 0:
                # The header is made after the watcher is: events up to its revision may still come, and are dropped.
                self.next = response.revision + 1
            self.has_caught_up = self.next == response.revision + 1
        for tap in list(self.taps):
            _tell(tap, tap.on_created, response)
        self._send_questions()
        self.pool.on_created(self)

    def _on_refused(self, response: Response) -> None:
        self.is_over = True
        self.pool.forget(self)
        self.upstream.drop(self)
        taps = self.everybody()
        for tap in taps:
            if self.was_live:
                # It was granted once: a token has run out, say. The client finds out by coming again.
                tap.outbox.stop()
            else:
                _tell(tap, tap.on_refused, response)
        questions, self._questions = self._questions, []
        for answer in questions:
            answer(response)

    def pass_on(self, head: bytes, tail: bytes, revision: int) -> bool:
        """Takes a message with one event, as what stands before and behind the watch id, if it goes on just as it came.

        False, and nothing done, where that takes more than to know its revision: `on_response` is for that.
        """
        taps = self.taps
        if len(taps) != 1 or revision < self.next or self.fresh or self._fragments:
            return False
        tap = next(iter(taps))
        if not tap.is_plain:
            return False
        try:
            is_own = self.upstream.reader is not None
            tap.outbox.send_alone(encoded(head, tap.watcher.id, tail), is_own=is_own)
        except Exception:
            tap.outbox.on_bug()  # its own client's, not that of all whose watches are in this call
        self.next = revision + 1
        self.has_caught_up = True
        if self.shelf.shared is not self:
            self.pool.on_advanced(self)
        return True

    def on_response(self, response: Response) -> None:
        """Events, progress, or the end."""
        message = response.message
        if message.canceled:
            self._on_canceled(response)
        elif message.fragment or self._fragments or self._passed_events:
            self._on_fragment(response)
        elif response.last:
            self._on_events((response,))
        else:
            self._on_progress(response)

    def _on_fragment(self, response: Response) -> None:
        """Fragments are passed on together: clients join what comes one behind the other, whoever it is for.

        What gets too large is cut between two revisions, as if etcd had sent several responses: after a break it goes
        on there, and no client comes back for the same for ever.
        """
        too_large = self._fragment_bytes + response.size > MOST_JOINED
        if self._fragments and (too_large or not self.upstream.has_room(response.size)):
            self._pass_revisions_before(response.first)
            if self.is_over and not self.awaits_cancel:
                return
        if not self.upstream.keep(response.size):
            return
        self._fragments.append(response)
        self._fragment_bytes += response.size
        if not response.fragment:
            passed, self._passed_events = self._passed_events, 0
            self._on_events(self._take_fragments(), passed)

    def _pass_revisions_before(self, revision: int) -> None:
        """Passes on of the fragments that have come what is whole: none but the last revision may go on in the next."""
        fragments = self._take_fragments()
        whole = [part for fragment in fragments if (part := fragment.before(revision))]
        self._fragments = [part for fragment in fragments if (part := fragment.since(revision))]
        self._fragment_bytes = sum(part.size for part in self._fragments)
        if self._fragment_bytes and not self.upstream.keep(self._fragment_bytes):
            self._fragments, self._fragment_bytes = [], 0
        elif whole:
            self._passed_events += sum(len(part.message.events) for part in whole)
            self._on_events(as_one(whole), None)

    def _take_fragments(self) -> tuple[Response, ...]:
        fragments = as_one(self._fragments)
        self.upstream.give(self._fragment_bytes)
        self._fragments, self._fragment_bytes = [], 0
        return fragments

    def _forget_fragments(self) -> None:
        self._take_fragments()
        self._passed_events = 0

    def _on_events(self, responses: tuple[Response, ...], passed: int | None = 0) -> None:
        """Events of whole revisions; `passed` is how many of the same response came before, None when more will."""
        first, last = responses[0].first, responses[-1].last
        count = sum(len(response.message.events) for response in responses)
        if first < self.next:
            responses = as_one([kept for response in responses if (kept := response.since(self.next))])
            if not responses:
                return
            first = responses[0].first
        if self.fresh:
            self._feed_fresh(responses, first, last)
        self._feed(responses)
        self.next = last + 1
        if not self.has_caught_up and passed is not None and passed + count < BATCH_REVISIONS:
            self.has_caught_up = True
        if self.shelf.shared is not self:
            self.pool.on_advanced(self)

    def _feed(self, responses: tuple[Response, ...]) -> None:
        # The loop over all who watch the same; what most of them get is spelled out here.
        encoded: dict[int, bytes] | None = {} if len(responses) == 1 and self.upstream.reader is None else None
        for tap in tuple(self.taps):
            if encoded is None or not tap.is_plain:
                _pass_on(tap, responses)
                continue
            try:
                watch_id = tap.watcher.id
                data = encoded.get(watch_id)
                if data is None:
                    data = encoded[watch_id] = responses[0].encode(watch_id)
                tap.outbox.send(data)
            except Exception:
                tap.outbox.on_bug()

    def _feed_fresh(self, responses: tuple[Response, ...], first: int, last: int) -> None:
        """Those that the source has reached become taps like others; what is below their `next` they do not get."""
        for tap in list(self.fresh):
            if last < tap.next:
                continue
            del self.fresh[tap]
            if first < tap.next:
                _pass_on(tap, as_one([kept for response in responses if (kept := response.since(tap.next))]))
                tap.next = last + 1
                self.fresh[tap] = None
            else:
                self.taps[tap] = None

    def _on_progress(self, response: Response) -> None:
        for tap in self.everybody():
            _tell(tap, tap.on_progress, response)
        if response.revision >= self.next:
            self.next = response.revision + 1
        for tap in [tap for tap in self.fresh if tap.next <= self.next]:
            del self.fresh[tap]
            self.taps[tap] = None
        self.has_caught_up = True
        if self.shelf.shared is not self:
            self.pool.on_advanced(self)

    def _on_canceled(self, response: Response) -> None:
        self._forget_fragments()
        answer, self._cancel_answer = self._cancel_answer, None
        if self.is_over:
            self.upstream.drop(self)
            if answer is not None:
                answer(response)
            return
        self.is_over = True
        self.pool.forget(self)
        self.upstream.cancel(self)  # until then the shard remembers the id
        for tap in self.everybody():
            if tap.position >= response.message.compact_revision > 0:
                tap.restart(tap.position)  # it had joined further on, and has lost nothing
            else:
                _tell(tap, tap.on_canceled, response)
        self._drop_questions()


# A bug that one client's stream meets is that client's: the others are told all the same, and nothing twice.


def _pass_on(tap: Tap, responses: tuple[Response, ...]) -> None:
    try:
        if tap.is_plain:
            watch_id = tap.watcher.id
            tap.outbox.send_together([response.encode(watch_id) for response in responses], is_own=tap.is_own)
        else:
            tap.deliver(responses)
    except Exception:
        tap.outbox.on_bug()


def _tell(tap: Tap, tell: Callable[[Response], None], response: Response) -> None:
    try:
        tell(response)
    except Exception:
        tap.outbox.on_bug()
