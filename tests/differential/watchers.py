"""The watchers of a program, all on one Watch call of each side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.tokens import MARK
from tests.differential import programs as p
from tests.differential.clusters import Talk
from tests.differential.differences import Difference
from tests.differential.told import NO_ID, Event, Response, Watcher, events_of, is_end, is_reply, name, progress_of

if TYPE_CHECKING:
    from tests.differential.numbers import Number, Revisions
    from tests.differential.run import Run


class Watchers:
    """The watchers of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._talks: tuple[Talk, Talk] | None = None
        self._live: list[Watcher] = []
        self._replies = 0  # replies to creates and cancels that were checked

    def close(self) -> None:
        for talk in self._talks or ():
            talk.close()

    def talks(self) -> tuple[Talk, Talk]:
        """The calls to the single etcd and to esp."""
        if self._talks is None:
            clusters = self._run.clusters
            self._talks = Talk(clusters.alone), Talk(clusters.across)
        return self._talks

    def _next_replies(self) -> tuple[Response, Response]:
        """The reply of each side to the next create or cancel. The unasked end of a watcher is no reply."""
        replies = []
        for side, talk in enumerate(self.talks()):

            def found(talk: Talk = talk, side: int = side) -> list[Response]:
                return [message for message in talk.messages() if is_reply(message)]

            talk.wait_for(lambda found=found: len(found()) > self._replies, lambda: "a reply")  # type: ignore[misc]
            replies.append(found()[self._replies])
        self._replies += 1
        return replies[0], replies[1]

    # Create.

    def create(self, step: p.Watch) -> None:
        run = self._run
        keys = KeyRange.of_request(step.key or b"\0", step.end)
        sole = run.layout.sole(keys)
        number = run.number(step.start)
        if sole is None and not number.is_token and number.esp > 1:
            # esp may resume at a revision that it has sent itself, but at no other.
            number = run.number(p.Rev(None, 2**40))
        meaning = self._meaning(keys, number)
        if meaning is None:
            return
        begins, begins_alone = meaning
        before = None if begins is None else {shard: max(begin - 1, 1) for shard, begin in begins.items()}
        watcher = self._create(step, number.esp, begins_alone, begins, before)
        if watcher is None:
            return
        is_compacted = begins is None or (
            number.esp > 0 and any(begin < self._compacted(shard) for shard, begin in watcher.begins.items())
        )
        if is_compacted:
            self._compacted_at_once(watcher)
        self.collect()

    def resume(self, step: p.Resume) -> None:
        """Watches from behind the last message of a watcher: nothing comes again, and nothing is missing."""
        self.collect()
        run = self._run
        told = [each for each in self._alive() if each.progress or events_of(self.talks()[1], each.id)]
        if not told:
            return
        watcher = told[-1 - step.back % len(told)]
        messages = events_of(self.talks()[1], watcher.id)
        passed = {shard: begin - 1 for shard, begin in watcher.begins.items()}
        for message in messages:
            for event in message.events:
                passed[run.layout.owner(event.kv.key)] = event.kv.mod_revision
        if any(revision < self._compacted(shard) for shard, revision in passed.items()):
            return  # the message may stand for a later position of this shard, or else it is compacted
        begins = {shard: run.mapping.vector()[shard] + 1 for shard in watcher.shards}
        create = replace(watcher.step, watch_id=0)
        last = max([watcher.progress, *(message.header.revision for message in messages[-1:])])
        self._create(create, last + 1, run.mapping.now + 1, begins, None)

    def _create(
        self,
        step: p.Watch,
        start: int,
        begins_alone: int,
        begins: dict[int, int] | None,
        before: Revisions | None,
    ) -> Watcher | None:
        """Creates a watcher on both sides; None if both refuse it.

        Args:
            step: the options.
            start: the start revision for esp.
            begins_alone: that for the single etcd.
            begins: for each shard, the first revision whose events esp sends; None if it ends the watcher.
            before: the meaning of the token of `created` for several shards, if it has one that is known.
        """
        run = self._run
        keys = KeyRange.of_request(step.key or b"\0", step.end)
        talks = self.talks()
        for talk, number in zip(talks, (begins_alone, start), strict=True):
            talk.requests.create(
                key=step.key,
                range_end=step.end,
                start_revision=number,
                filters=step.filters,
                prev_kv=step.prev_kv,
                fragment=step.fragment,
                watch_id=step.watch_id,
            )
        alone, esp = self._next_replies()
        self._same_created(alone, esp, keys, before)
        if alone.canceled:
            return None
        watcher = Watcher(
            alone.watch_id,
            step,
            keys,
            run.layout.shards_of(keys),
            begins or {},
            begins_alone or run.mapping.now + 1,
            run.mapping.now,
            is_live=start <= 0,
            ignored=begins is None,
        )
        self._live.append(watcher)
        return watcher

    def _compacted(self, shard: int) -> int:
        """The revision at which a shard was compacted; 0 if it was not."""
        mapping = self._run.mapping
        return mapping.vector(mapping.compacted)[shard] if mapping.compacted else 0

    def _meaning(self, keys: KeyRange, number: Number) -> tuple[dict[int, int] | None, int] | None:
        """The revisions from which each shard, and the single etcd, must send events.

        Without shards if esp must end the watcher as compacted, whatever the single etcd does. None exactly at the
        compacted revision: there an etcd's answer depends on whether the revision has been removed yet.
        """
        run, mapping = self._run, self._run.mapping
        shards, sole = run.layout.shards_of(keys), run.layout.sole(keys)
        if run.clusters.exact:
            begin = number.esp or mapping.now + 1
            return None if begin == self._compacted(0) else ({0: begin}, number.esp)
        if number.esp <= 0:
            return {shard: mapping.vector()[shard] + 1 for shard in shards}, 0
        if number.is_token and not run.unknown_on(number, shards):
            begins = {shard: number.on_shard(shard) for shard in shards}
        elif sole is not None and not number.is_unknown and not number.is_token:
            begins = {sole: number.esp}
        elif number.esp == 1:
            begins = dict.fromkeys(shards, 1)
        else:
            return None, 0
        if any(begin == self._compacted(shard) for shard, begin in begins.items()):
            return None
        first = min(mapping.first_at(shard, begin) for shard, begin in begins.items())
        return begins, min(first, mapping.now + 1)

    def _same_created(self, alone: Response, esp: Response, keys: KeyRange, before: Revisions | None) -> None:
        run = self._run
        if run.clusters.exact:
            assert esp == alone
            return
        sole = run.layout.sole(keys)
        expected = Response()
        expected.CopyFrom(alone)
        if sole is not None:
            expected.header.CopyFrom(run.header_of(sole, alone.header.revision))
        else:
            shards = run.layout.shards_of(keys)
            revision = esp.header.revision
            if not alone.canceled and before is not None:
                run.token_for(revision, before)
            run.note(Difference.WATCH_HEADER)
            expected.header.CopyFrom(run.merged_header(shards, revision))
        assert esp == expected, f"esp says\n{esp}\nand should say\n{expected}"

    def _compacted_at_once(self, watcher: Watcher) -> None:
        """Checks that a watcher was created, and then canceled as compacted, perhaps by esp only."""
        run = self._run
        alone, esp = self.talks()
        sides = (esp,) if watcher.ignored else (alone, esp)
        ends = []
        for talk in sides:

            def found(talk: Talk = talk) -> list[Response]:
                return [each for each in talk.messages() if is_end(each) and each.watch_id == watcher.id][-1:]

            talk.wait_for(lambda found=found: bool(found()), lambda: f"the end of {watcher}")  # type: ignore[misc]
            ends += found()
        watcher.ended = True
        got = ends[-1]
        if run.clusters.exact:
            assert ends[0] == got
            return
        assert not got.header.revision
        assert (got.cancel_reason, list(got.events), got.fragment) == ("", [], False)
        if watcher.ignored:
            assert got.compact_revision > 0
            run.note(Difference.WATCH_RAW)
            return
        assert ends[0].compact_revision == run.mapping.compacted
        sole = run.layout.sole(watcher.keys)
        if sole is None:
            run.note(Difference.WATCH_HEADER)
            assert got.compact_revision >= MARK
        else:
            assert got.compact_revision == self._compacted(sole), (got, self._compacted(sole))
        header = run.header_of(sole, 0) if sole is not None else run.merged_header(watcher.shards, 0)
        assert got.header in (header, rpc_pb2.ResponseHeader(cluster_id=header.cluster_id, member_id=header.member_id))

    # Cancel.

    def cancel(self, step: p.Cancel) -> None:
        if step.back is None or not self._live:
            if self._talks is not None:
                for talk in self._talks:
                    talk.requests.cancel(99)  # this must get no reply: a reply would be taken for the next one
            return
        self.collect()
        self._cancel(self._live[-1 - step.back % len(self._live)])

    def cancel_all(self) -> None:
        """Ends the remaining watchers, and checks that no other message has come."""
        for watcher in list(self._live):
            self._cancel(watcher)
        for talk in self._talks or ():
            assert sum(map(is_reply, talk.messages())) == self._replies

    def _cancel(self, watcher: Watcher) -> None:
        run = self._run
        for talk in self.talks():
            talk.requests.cancel(watcher.id)
        alone, esp = self._next_replies()
        self._live.remove(watcher)
        if run.clusters.exact:
            assert esp == alone
            return
        expected = Response()
        expected.CopyFrom(alone)
        sole = run.layout.sole(watcher.keys)
        if sole is not None and not watcher.ended:
            expected.header.CopyFrom(run.header_of(sole, alone.header.revision))
        else:
            # Answered without asking the shards: with their last known revisions.
            if sole is None:
                run.note(Difference.WATCH_HEADER)
                expected.header.CopyFrom(run.merged_header(watcher.shards, 0))
            else:
                expected.header.CopyFrom(run.header_of(sole, 0))
            expected.header.revision = esp.header.revision
        assert esp == expected, f"esp says\n{esp}\nand should say\n{expected}"

    # Progress.

    def _alive(self) -> list[Watcher]:
        return [watcher for watcher in self._live if not watcher.ended and not watcher.ignored]

    def progress(self) -> None:
        """Asks for progress, and checks that esp tells each watcher, or all at once, the present revision.

        etcd tells none in a call while one of its watchers waits for the revision from which it was asked for: so no
        shard may tell any, where a part of a watcher waits.
        """
        self.collect()
        run, alive = self._run, self._alive()
        vector = run.mapping.vector()
        dated = [watcher for watcher in alive if not watcher.is_live]
        waits = any(begin > vector[shard] for watcher in dated for shard, begin in watcher.begins.items())
        if not alive or waits or not run.clusters.streams:
            return
        run.clusters.catch_up()
        _, esp = self.talks()
        soles = {run.layout.sole(watcher.keys) for watcher in alive}
        is_for_all = len(soles) == 1 and None not in soles
        told = {NO_ID: alive} if is_for_all else {watcher.id: [watcher] for watcher in alive}
        before = {watch_id: len(progress_of(esp, watch_id)) for watch_id in told}
        esp.requests.progress()
        esp.wait_for(
            lambda: all(len(progress_of(esp, watch_id)) > before[watch_id] for watch_id in told),
            lambda: f"the progress of {told}",
        )
        messages = [progress_of(esp, watch_id)[-1] for watch_id in told]
        for message in sorted(messages, key=lambda message: message.header.revision):
            watchers = told[message.watch_id]
            sole, shards = run.layout.sole(watchers[0].keys), watchers[0].shards
            if sole is not None:
                header = run.header_of(sole, run.mapping.now)
            else:
                run.token_for(message.header.revision, {shard: vector[shard] for shard in shards})
                header = run.merged_header(shards, message.header.revision)
            assert message == Response(header=header, watch_id=message.watch_id)
            for watcher in watchers:
                watcher.progress = watcher.last_token = message.header.revision

    # Events.

    def let_compact(self) -> None:
        """Waits for what would be compacted before a watcher has got it, or has got past it."""
        self.collect()
        if any(not watcher.is_live for watcher in self._live):
            self._run.clusters.catch_up()

    def collect(self) -> None:
        """Waits for the events that every watcher must have got by now, and compares all of its messages."""
        for watcher in self._live:
            if watcher.ended:
                continue
            self._collect(watcher)

    def _wanted(self, watcher: Watcher) -> list[Event]:
        """The events that the single etcd must have sent, without prev_kv."""
        kept = []
        for revision in range(watcher.begins_alone, self._run.mapping.now + 1):
            for event in self._run.clusters.observer.events.get(revision, ()):
                key = event.kv.key
                is_filtered = int(event.type == event.DELETE) in watcher.step.filters
                if not is_filtered and watcher.keys.intersect(KeyRange(key, key + b"\0")):
                    kept.append(event)
        return kept

    def _collect(self, watcher: Watcher) -> None:
        run = self._run
        wanted = self._wanted(watcher)
        if run.clusters.exact:
            told = [event for event in wanted if event.kv.mod_revision >= watcher.begins[0]]
        else:
            told = [event for event in wanted if self._is_told(watcher, event)]
        alone, esp = self.talks()
        if not watcher.ignored:
            for talk, count in ((alone, len(wanted)), (esp, len(told))):
                self._wait(talk, watcher, count)
        if watcher.ignored:
            return
        mine = events_of(esp, watcher.id)
        theirs = events_of(alone, watcher.id)
        happened = [event for message in theirs for event in message.events]
        if run.clusters.exact:
            # etcd sends past events in pieces, when it gets to them.
            assert mine == theirs if watcher.is_live else [each for one in mine for each in one.events] == happened
            return
        assert [name(event) for event in happened] == [name(event) for event in wanted], "the one etcd's own"
        expected = [self._translated(event) for event in happened if self._is_told(watcher, event)]
        got = [event for message in mine for event in message.events]
        if got != expected:
            run.note(Difference.WATCH_ORDER)
        for shard in watcher.shards:
            of_shard = [
                [each for each in events if run.layout.owner(each.kv.key) == shard] for events in (got, expected)
            ]
            assert of_shard[0] == of_shard[1], f"esp told {of_shard[0]} and should have told {of_shard[1]}"
        assert len(got) == len(expected)
        self._same_messages(watcher, mine)

    def _is_told(self, watcher: Watcher, event: Event) -> bool:
        """Whether the event is at or after the watcher's beginning in its shard."""
        key = event.kv.key
        begin = watcher.begins[self._run.layout.owner(key)]
        return self._run.mapping.write(event.kv.mod_revision, key) >= begin

    def _translated(self, event: Event) -> Event:
        copy = Event()
        copy.CopyFrom(event)
        self._run.row(copy.kv)
        if copy.HasField("prev_kv"):
            self._run.row(copy.prev_kv)
        return copy

    def _wait(self, talk: Talk, watcher: Watcher, count: int) -> None:
        talk.wait_for(
            lambda: sum(len(message.events) for message in events_of(talk, watcher.id)) >= count,
            lambda: f"what {watcher} must be told: {count} events",
        )

    def _same_messages(self, watcher: Watcher, messages: list[Response]) -> None:
        """Checks that each message is of one shard, that no revision is in two, and that the header is right."""
        run = self._run
        sole = run.layout.sole(watcher.keys)
        home: dict[tuple[int, int], int] = {}
        for number, message in enumerate(messages):
            [shard] = {run.layout.owner(event.kv.key) for event in message.events}
            for event in message.events:
                assert home.setdefault((shard, event.kv.mod_revision), number) == number, "a revision was torn apart"
            header = message.header
            last = message.events[-1].kv.mod_revision
            expected = run.header_of(sole, 0) if sole is not None else run.merged_header(watcher.shards, 0)
            expected.revision = header.revision
            assert header == expected
            assert message == Response(header=header, watch_id=watcher.id, events=message.events)
            if sole is None:
                if number >= watcher.checked:
                    assert header.revision > watcher.last_token, "tokens go back"
                    watcher.last_token = header.revision
            elif watcher.is_live:
                assert header.revision == last
            else:
                assert last <= header.revision <= run.mapping.vector()[shard]
        watcher.checked = len(messages)
