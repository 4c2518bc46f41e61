"""One watcher of a shard, and the taps that it feeds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from esp.core.services.watch.feed import NONE, Feed, Follower, tell
from esp.core.services.watch.fragments import Fragments
from esp.core.services.watch.messages import Response, Spec, as_one, compacted, encoded, joined
from esp.core.services.watch.upstream import Upstream
from esp.core.wire.status import Status

log = logging.getLogger("esp.watch")

Answer = Callable[["Response | None"], None]
"""Called with the shard's reply; with None if the call broke before the reply."""

BATCH_REVISIONS: Final = 1000
"""While etcd catches up, each message has so many revisions; a message with fewer events is the last."""


class SourceTap(Follower, Protocol):
    """A tap that a source feeds.

    Attributes:
        source: the source that feeds the tap; None when there is none.
        is_part: several shards feed the tap's watcher.
    """

    source: Source | None
    is_part: bool

    @property
    def position(self) -> int:
        """The lowest revision that the tap has not passed on."""

    def restart(self, revision: int) -> None:
        """Leaves the source, and looks for another with the events from `revision` on."""

    def on_created(self, response: Response) -> None:
        """The shard watches."""

    def on_refused(self, response: Response) -> None:
        """The shard has refused the create."""

    def on_progress(self, response: Response) -> None:
        """All events up to the header's revision have come."""

    def on_canceled(self, response: Response) -> None:
        """The shard has ended the watcher."""


class Neighbours(Protocol):
    """The sources of one spec. Taps move to the `shared` source when they have got as far."""

    shared: Source | None

    def on_created(self, source: Source) -> None:
        """The shard watches."""

    def on_advanced(self, source: Source) -> None:
        """A source other than the shared one has passed on events."""

    def forget(self, source: Source) -> None:
        """A source has ended."""

    def on_left(self, tap: SourceTap) -> None:
        """A tap has left a source, and joins no other."""


class Source(Feed[SourceTap]):
    """One watcher of a shard.

    Attributes:
        upstream: the Watch call that the source is part of.
        spec: the range and options that are watched.
        asked: the same, as the shard is asked: perhaps for fragments that clients have not asked for.
        shelf: the neighbours.
        id: the watch id upstream.
        is_live: the shard has created the source in the call that is open now.
    """

    __slots__ = (
        "_asked",
        "_cancel_answer",
        "_fragments",
        "_questions",
        "asked",
        "has_caught_up",
        "id",
        "is_live",
        "is_over",
        "shelf",
        "spec",
        "upstream",
        "was_live",
    )

    def __init__(self, upstream: Upstream, spec: Spec, shelf: Neighbours, start_revision: int) -> None:
        # Spelled out instead of super().__init__(): clients make watchers by the thousand.
        self.next = start_revision
        self.taps = {}
        self.fed = self.fresh = self.joining = NONE
        self.upstream = upstream
        self.shelf = shelf
        self.spec = self.asked = spec
        self.id = upstream.take_id()
        self.is_live = self.was_live = self.has_caught_up = self.is_over = False
        self._fragments: Fragments | None = None  # of the present response, if it comes in fragments
        self._questions: Sequence[Answer] = ()
        self._asked: Sequence[Answer] = ()
        self._cancel_answer: Answer | None = None

    # Taps.

    def add(self, tap: SourceTap) -> None:
        """Feeds `tap` all events from `next` on."""
        tap.source = self
        self.taps[tap] = None

    def join(self, tap: SourceTap, revision: int) -> None:
        """Feeds `tap` all events from `revision` on, which must not be below `next`."""
        tap.source = self
        self.take_in(tap, revision)

    def remove(self, tap: SourceTap) -> None:
        """Stops feeding `tap`; ends the source if no tap is left."""
        self.let_go(tap)
        if tap.source is None:
            self.shelf.on_left(tap)
        self.end_if_unwanted()

    def end_if_unwanted(self) -> None:
        """Ends the source upstream if it has no taps and no questions."""
        if not (self.count or self._questions or self._asked or self.is_over):
            self.end()

    @property
    def awaits_cancel(self) -> bool:
        """Whether the source has ended, and waits only for the shard's reply."""
        return self._cancel_answer is not None

    def end(self, answer: Answer | None = None) -> None:
        """Ends the source upstream; `answer` gets the shard's reply."""
        if self.is_over:
            return
        self.is_over = True
        if answer is None:
            self._forget_fragments()
        self._cancel_answer = answer
        self.shelf.forget(self)
        self.upstream.cancel(self)

    def cancel(self, tap: SourceTap, answer: Answer) -> None:
        """Cancels for the client of `tap`, which is fed until `answer` gets the shard's reply.

        The header of that reply has the shard's present revision.
        """
        if not self.is_live:
            answer(None)
        elif self.count - len(self.joining) == 1 and not self._questions and not self._asked:
            self.end(answer)
        else:
            self.ask(answer)

    # Questions.

    def ask(self, answer: Answer) -> None:
        """Asks the shard whether the same client may watch this now, and for the shard's revision.

        The question is a create of the same watcher under the same id. A shard never grants that. If it would grant
        another create, the reason is the id alone (`DUPLICATE_ID`). The reply has a header, and so the revision.
        """
        if isinstance(self._questions, list):
            self._questions.append(answer)
        else:
            self._questions = [answer]
        self._send_questions()

    def _send_questions(self) -> None:
        if self.is_live and self._questions and not self._asked:
            self._asked, self._questions = self._questions, ()
            self.upstream.ask(self)

    def on_answer(self, response: Response) -> None:
        """The shard has replied to the question."""
        asked, self._asked = self._asked, ()
        self.upstream.do(self._answer(asked, response))

    def _answer(self, asked: Sequence[Answer], response: Response) -> Iterator[None]:
        for answer in asked:
            answer(response)
            yield
        self._send_questions()
        self.end_if_unwanted()

    def on_granted(self, status: Status) -> None:
        """The shard has granted the duplicate create, as no etcd does: ends the streams of the taps that would join."""
        for tap in list(self.joining):
            tap.outbox.stop(status)

    def _drop_questions(self) -> None:
        answers = (*self._asked, *self._questions)
        self._asked, self._questions = (), ()
        for answer in answers:
            answer(None)
        if answers:
            self.end_if_unwanted()  # the taps that asked may all have left

    # From upstream.

    def on_break(self) -> None:
        """The call broke; the upstream creates the source again at `next`."""
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
        self.is_live = True
        if not self.was_live:
            self.was_live = True
            if self.next == 0:
                # etcd makes the header after the watcher: events up to its revision may still come, and are dropped.
                self.next = response.revision + 1
            self.has_caught_up = self.next == response.revision + 1
        for tap in list(self.taps):
            tell(tap, tap.on_created, response)
        if self._questions:
            self._send_questions()
        self.shelf.on_created(self)

    def _on_refused(self, response: Response) -> None:
        self.is_over = True
        self.shelf.forget(self)
        self.upstream.drop(self)
        for tap in self.everybody():
            if self.was_live:
                # The shard had granted it before: perhaps a token has expired. The client finds out when it comes
                # again.
                tap.outbox.stop()
            else:
                tell(tap, tap.on_refused, response)
        questions, self._questions = self._questions, ()
        for answer in questions:
            answer(response)

    def pass_on_one(self, head: bytes, tail: bytes, revision: int) -> bool:
        """Takes a message with one event as its bytes before and behind the watch id, if they can go on unchanged.

        False, without any effect, if more than the event's revision has to be known: then `on_response` takes it.
        """
        taps = self.taps
        if len(taps) != 1 or revision < self.next or self.fresh or self._fragments is not None:
            return False
        tap = next(iter(taps))
        watch_id = tap.plain_id
        if watch_id is None:
            return False
        try:
            tap.outbox.send_alone(encoded(head, watch_id, tail), is_own=self.upstream.reader is not None)
        except Exception:
            tap.outbox.on_bug()  # ends this client's stream only, not those of all clients in this call
        self.next = revision + 1
        self.has_caught_up = True
        if self.shelf.shared is not self:
            self.shelf.on_advanced(self)
        return True

    def ask_for_fragments(self) -> bool:
        """Makes the next create ask for fragments; False if the last one did already."""
        if self.asked.fragment:
            return False
        self.asked = self.spec._replace(fragment=True)
        return True

    def on_response(self, response: Response) -> None:
        """Events, progress, or the end."""
        message = response.message
        if message.canceled:
            self._on_canceled(response)
        elif message.fragment or self._fragments is not None:
            self._on_fragment(response)
        elif response.last:
            self.upstream.do(self._on_events((response,)))
        else:
            self.upstream.do(self._on_progress(response))

    def _on_fragment(self, response: Response) -> None:
        fragments = self._fragments
        if fragments is None:
            fragments = self._fragments = Fragments(self.upstream, is_joined=not self.spec.fragment)
        if not fragments.has_room(response):
            whole = fragments.take_before(response.first)
            if whole:
                self.upstream.do(self._on_events(self._wanted(whole), None))
            if self._fragments is not fragments:
                return  # no tap wants the rest, or the call broke
        if not fragments.keep(response):
            self.upstream.cut()
        elif not response.fragment:
            self._fragments = None
            self.upstream.do(self._on_events(self._wanted(fragments.take()), fragments.passed_events))

    def _wanted(self, fragments: tuple[Response, ...]) -> tuple[Response, ...]:
        """The fragments in the form that the clients have asked for."""
        return fragments if self.spec.fragment else (joined(fragments),)

    def get_past_fragments(self) -> bool:
        """Drops the kept fragments, for which there is no memory; False if they must come again.

        Whole revisions are passed on before. A single revision that is too large ends the watchers as if it were
        compacted, because clients would come back for it again and again. So they list, and watch from behind it.
        """
        fragments = self._fragments
        if fragments is None or fragments.last is None:
            return False
        last, is_hopeless = fragments.last, fragments.is_hopeless
        whole = fragments.take_whole()
        if whole:
            self.upstream.do(self._on_events(self._wanted(whole), None))
        elif is_hopeless:
            shard = self.upstream.shard.name
            log.warning("shard %s: no memory for revision %d: its watchers are told it is compacted", shard, last.last)
            self._on_canceled(compacted(last, last.last + 1))
        return bool(whole) or is_hopeless

    def _forget_fragments(self) -> None:
        fragments, self._fragments = self._fragments, None
        if fragments is not None:
            fragments.take()

    def _on_events(self, responses: tuple[Response, ...], passed: int | None = 0) -> Iterator[None]:
        """Events of whole revisions; `passed` is how many of the same response came before, None when more will."""
        count = sum(len(response.message.events) for response in responses)
        if responses[0].first < self.next:
            responses = as_one([kept for response in responses if (kept := response.since(self.next))])
            if not responses:
                return
        if self.upstream.crowd is not None and len(self.taps) > 1:
            yield from self.pass_on_in_steps(responses)
        else:
            self.pass_on(responses, to_only_one=self.upstream.reader is not None)
        if passed is not None and passed + count < BATCH_REVISIONS:
            self.has_caught_up = True
        if self.shelf.shared is not self:
            self.shelf.on_advanced(self)

    def _on_progress(self, response: Response) -> Iterator[None]:
        for tap in self.everybody():
            if self.feeds(tap):
                tell(tap, tap.on_progress, response)
            yield
        self.reach(response.revision)
        self.has_caught_up = True
        if self.shelf.shared is not self:
            self.shelf.on_advanced(self)

    def _on_canceled(self, response: Response) -> None:
        self._forget_fragments()
        answer, self._cancel_answer = self._cancel_answer, None
        if self.is_over:
            self.upstream.drop(self)
            if answer is not None:
                answer(response)
            return
        self.is_over = True
        self.shelf.forget(self)
        self.upstream.cancel(self)  # the shard remembers the id until it is cancelled
        self.upstream.do(self._tell_canceled(response))

    def _tell_canceled(self, response: Response) -> Iterator[None]:
        for tap in self.everybody():
            if not self.feeds(tap):
                continue
            if tap.position >= response.message.compact_revision > 0:
                tap.restart(tap.position)  # the tap is further on, and has lost nothing
            else:
                tell(tap, tap.on_canceled, response)
            yield
        self._drop_questions()
