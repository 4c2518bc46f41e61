"""Watches over several shards whose position clients name: by the token of an answer, or by the last event they saw."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.tokens import MARK
from tests.harness import EVERYTHING, EspProcess, Esps, Etcds, connect, frozen, wait_until
from tests.stubs.rpc_pb2_grpc import KVStub
from tests.watching import (
    History,
    Watch,
    Writers,
    by_shard,
    history_of,
    reliable,
    revision_of,
    unique,
    watching,
)

Put = rpc_pb2.PutRequest
Range = rpc_pb2.RangeRequest
PREFIXES = ("a", "j", "s")
BOUNDARIES = ["i", "r"]


def owner(key: bytes) -> int:
    return (key >= b"i") + (key >= b"r")


@pytest.fixture
def kv_of(start_esp: Esps) -> Iterator[Callable[[EspProcess], KVStub]]:
    channels: list[grpc.Channel] = []

    def make(esp: EspProcess) -> KVStub:
        channels.append(connect(esp))
        return KVStub(channels[-1])

    yield make
    for channel in channels:
        channel.close()


def write_to_all(kv: KVStub, count: int = 1) -> None:
    for number in range(count):
        for prefix in PREFIXES:
            kv.Put(Put(key=f"{prefix}{number % 3}".encode(), value=b"%d" % number))


def told(watch: Watch) -> list[tuple[bytes, int]]:
    return [(event.kv.key, event.kv.mod_revision) for event in watch.events()]


def is_compacted(watch: Watch) -> bool:
    return any(message.canceled and message.compact_revision for message in watch.messages)


class TestFromAToken:
    def test_a_list_and_the_watch_behind_it_meet_exactly(self, esp: EspProcess, kv: KVStub) -> None:
        write_to_all(kv, 3)
        token = kv.Range(Range(**EVERYTHING)).header.revision
        write_to_all(kv, 2)
        expected = [(f"{prefix}{number}".encode(), 2) for number in range(2) for prefix in PREFIXES]
        for create in (EVERYTHING, {"key": b"b", "range_end": b"s1"}, {"key": b"j0"}):
            with watching(esp, **create, start_revision=token + 1) as watch:
                wanted = sorted(key for key, _ in expected if watch.covers(key))
                watch.wait_for_events(len(wanted))
                assert sorted(key for key, _ in told(watch)) == wanted

    def test_from_the_token_itself_the_last_of_each_shard_come_too(self, esp: EspProcess, kv: KVStub) -> None:
        write_to_all(kv, 3)
        token = kv.Range(Range(**EVERYTHING)).header.revision
        with watching(esp, **EVERYTHING, start_revision=token) as watch:
            watch.wait_for_events(3)
            assert sorted(key for key, _ in told(watch)) == [b"a2", b"j2", b"s2"]
            assert watch.created is not None
            assert watch.created.header.revision >= MARK

    def test_numbers_that_went_through_a_double_are_the_same(self, esp: EspProcess, kv: KVStub) -> None:
        for _ in range(5):
            start = float(kv.Range(Range(**EVERYTHING)).header.revision)
            write_to_all(kv)
            with watching(esp, **EVERYTHING, start_revision=int(start + 1), progress_notify=True) as watch:
                watch.wait_for_events(3)
                assert sorted(key for key, _ in told(watch)) == [b"a0", b"j0", b"s0"]
                watch.requests.progress()
                watch.wait_for(lambda watch: not watch.messages[-1].events)
                numbers = [message.header.revision for message in watch.messages]
            for number in numbers:
                with watching(esp, **EVERYTHING, start_revision=int(float(number) + 1)) as watch:
                    kv.Put(Put(key=b"a9"))
                    watch.wait_for(lambda watch: any(event.kv.key == b"a9" for event in watch.events()))

    def test_behind_a_delete_of_several_shards_comes_what_was_written_since(self, esp: EspProcess, kv: KVStub) -> None:
        write_to_all(kv, 3)
        token = kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**EVERYTHING)).header.revision
        write_to_all(kv)
        with watching(esp, **EVERYTHING, start_revision=token + 1) as watch:
            watch.wait_for_events(3)
            assert sorted(key for key, _ in told(watch)) == [b"a0", b"j0", b"s0"]

    def test_an_unknown_token_is_compacted_and_says_where_to_begin_again(
        self, esp: EspProcess, kv: KVStub, shards: list[LocalEtcd], start_esp: Esps
    ) -> None:
        write_to_all(kv)
        other = start_esp(shards, BOUNDARIES)
        with connect(other) as channel:
            foreign = KVStub(channel).Range(Range(**EVERYTHING)).header.revision
        for create in (EVERYTHING, {"key": b"j0"}):
            for start in (foreign, foreign + 1):
                with watching(esp, **create, start_revision=start) as watch:
                    watch.wait_for(is_compacted)
                    again = watch.messages[-1].compact_revision
                    assert watch.messages[-1].cancel_reason == ""
                with watching(esp, **create, start_revision=again) as watch:
                    kv.Put(Put(key=b"j0", value=b"new"))
                    watch.wait_for(lambda watch: any(event.kv.value == b"new" for event in watch.events()))

    def test_what_a_shard_has_compacted_is_told_as_compacted(
        self, esp: EspProcess, kv: KVStub, kv_direct: Callable[[int], KVStub]
    ) -> None:
        write_to_all(kv)
        token = kv.Range(Range(**EVERYTHING)).header.revision
        write_to_all(kv, 3)
        last = kv_direct(1).Range(Range(key=b"x")).header.revision
        kv_direct(1).Compact(rpc_pb2.CompactionRequest(revision=last))
        with watching(esp, **EVERYTHING, start_revision=token + 1) as watch:
            watch.wait_for(is_compacted)
            assert watch.messages[-1].header.revision == 0
            assert watch.messages[-1].compact_revision >= MARK

    def test_the_header_of_every_message_is_a_place_to_go_on_from(
        self, esp: EspProcess, kv: KVStub, empty_shards: list[LocalEtcd]
    ) -> None:
        starts = {shard: revision_of(each) + 1 for shard, each in enumerate(empty_shards)}
        with watching(esp, **EVERYTHING, start_revision=kv.Range(Range(**EVERYTHING)).header.revision + 1) as watch:
            with Writers(empty_shards, PREFIXES, pause=0.005) as writers:
                writers.wait_for_more(20)
            histories = {shard: history_of(each, starts[shard]) for shard, each in enumerate(empty_shards)}
            count = sum(len(events) for history in histories.values() for events in history.values())
            watch.wait_for_events(count)
            messages = list(watch.messages)
        revisions = [message.header.revision for message in messages]
        assert revisions == sorted(revisions)
        for place in random.Random(1).sample(range(len(messages)), 12):
            rest = [event for message in messages[place + 1 :] for event in message.events]
            with watching(esp, **EVERYTHING, start_revision=messages[place].header.revision + 1) as again:
                again.wait_for_events(len(rest))
                assert sorted(told(again)) == sorted((event.kv.key, event.kv.mod_revision) for event in rest)


class Client:
    """Watches everything as etcd's own client does: it resumes behind the last event it saw, or lists again.

    Attributes:
        told: the messages with events, over all its streams, since it listed last.
        exact, compacted: how its attempts to resume ended.
    """

    def __init__(self, esp: EspProcess) -> None:
        self._esp = esp
        self.told: list[rpc_pb2.WatchResponse] = []
        self.exact = self.compacted = 0
        self._start = 0

    def watch(self, more: int) -> bool:
        """Until so many more messages came; False when it could not go on where it was."""
        with watching(self._esp, **EVERYTHING, prev_kv=True, start_revision=self._start) as watch:
            if self._start:
                with_events = lambda watch: any(message.events for message in watch.messages)  # noqa: E731
                watch.wait_for(lambda watch: is_compacted(watch) or with_events(watch))
                if is_compacted(watch):
                    self.compacted += 1
                    return False
                self.exact += 1
            watch.wait_for(lambda watch: len([m for m in watch.messages if m.events]) >= more)
        messages = [message for message in watch.messages if message.events]
        self.told += messages
        self._start = messages[-1].events[-1].kv.mod_revision + 1
        return True

    def list_again(self) -> None:
        self._start = 0
        self.told = []


def between(messages: Sequence[rpc_pb2.WatchResponse], history: History) -> History:
    revisions = [event.kv.mod_revision for message in messages for event in message.events]
    return {revision: events for revision, events in history.items() if min(revisions) <= revision <= max(revisions)}


@pytest.mark.parametrize("apart", ["near", "far"])
def test_resuming_from_the_last_event_is_exact_or_compacted(
    start_etcd: Etcds, start_esp: Esps, apart: str, record_property: Callable[[str, object], None]
) -> None:
    """`near`: all shards count the same numbers, so that what an event's revision means is often in doubt."""
    shards = start_etcd.several(3)
    if apart == "far":
        for number, shard in enumerate(shards):
            with connect(shard) as channel:
                kv = KVStub(channel)
                for _ in range(20 * number):  # further apart than what the writers below write
                    for put in [kv.Put.future(Put(key=b"other")) for _ in range(100)]:
                        put.result()
    client = Client(start_esp(shards, BOUNDARIES))
    starts = [revision_of(shard) + 1 for shard in shards]
    with Writers(shards, PREFIXES, pause=0.005):
        for number in range(24):
            if not client.watch(5 + number % 7):
                client.list_again()
                client.watch(5)
            if number % 8 == 7:
                for shard, messages in by_shard(_as_watch(client), owner).items():
                    unique(messages)
                    reliable(messages, between(messages, history_of(shards[shard], starts[shard])))
    record_property("resumed exactly", client.exact)
    record_property("compacted", client.compacted)
    sys.stderr.write(f"{apart}: {client.exact} resumed exactly, {client.compacted} compacted\n")
    assert client.exact > (18 if apart == "far" else 0)


def _as_watch(client: Client) -> Watch:
    watch = Watch(dict(EVERYTHING))
    watch.messages = client.told
    return watch


class TestProgress:
    def progresses(self, watch: Watch) -> list[rpc_pb2.WatchResponse]:
        return [message for message in watch.messages if not message.events and not message.canceled]

    def place_of_progress(self, watch: Watch, start: int) -> int | None:
        """Where the first one from `start` on is."""
        for place, message in enumerate(watch.messages[start:], start):
            if not message.events and not message.canceled:
                return place
        return None

    def test_it_says_that_all_that_was_told_before_has_come(
        self, esp: EspProcess, kv: KVStub, empty_shards: list[LocalEtcd]
    ) -> None:
        with watching(esp, **EVERYTHING) as watch, Writers(empty_shards, PREFIXES, pause=0.002):
            for number in range(30):
                listed = kv.Range(Range(**EVERYTHING))
                written = kv.Put(Put(key=f"{PREFIXES[number % 3]}x".encode())).header.revision
                before = len(watch.messages)
                watch.requests.progress()
                # Only what came since: a scan of all would take the interpreter from the thread that listens.
                watch.wait_for(lambda watch, before=before: self.place_of_progress(watch, before) is not None)
                place = self.place_of_progress(watch, before)
                assert place is not None
                progress = watch.messages[place].header.revision
                assert progress > listed.header.revision
                seen = {
                    (event.kv.key, event.kv.mod_revision)
                    for message in watch.messages[:place]
                    for event in message.events
                }
                assert (f"{PREFIXES[number % 3]}x".encode(), written) in seen
                newest = dict(sorted(seen))
                for row in listed.kvs:
                    if row.key in newest:
                        assert newest[row.key] >= row.mod_revision
            revisions = [message.header.revision for message in watch.messages]
            assert revisions == sorted(revisions)

    def test_a_watch_goes_on_from_it(self, esp: EspProcess, kv: KVStub) -> None:
        with watching(esp, **EVERYTHING) as watch:
            write_to_all(kv)
            watch.requests.progress()
            watch.wait_for(lambda watch: len(self.progresses(watch)) == 1)
            token = self.progresses(watch)[0].header.revision
            assert self.progresses(watch)[0].watch_id == 0, "never for all watchers of a stream"
            kv.Put(Put(key=b"outside of nothing"))
        with watching(esp, **EVERYTHING, start_revision=token + 1) as watch:
            watch.wait_for_events(1)
            assert [key for key, _ in told(watch)] == [b"outside of nothing"]

    def test_it_is_withheld_while_a_shard_does_not_answer(self, start_etcd: Etcds, start_esp: Esps) -> None:
        shards = start_etcd.several(3)
        esp = start_esp(shards, BOUNDARIES)
        with watching(esp, **EVERYTHING) as watch, connect(esp) as channel:
            kv = KVStub(channel)
            with frozen(shards[1]):
                watch.requests.progress()
                kv.Put(Put(key=b"a"))
                watch.wait_for_events(1)
                assert self.progresses(watch) == []

            def asked_again_and_told() -> bool:
                watch.requests.progress()
                return bool(self.progresses(watch))

            wait_until(asked_again_and_told)
            assert watch.ended is None

    def test_it_comes_by_itself_to_who_asked_for_it_at_creation(self, start_etcd: Etcds, start_esp: Esps) -> None:
        shards = start_etcd.several(3, "--experimental-watch-progress-notify-interval=200ms")
        esp = start_esp(shards, BOUNDARIES)
        with (
            watching(esp, **EVERYTHING, progress_notify=True) as watch,
            watching(esp, **EVERYTHING) as other,
            connect(esp) as channel,
        ):
            kv = KVStub(channel)
            listed = kv.Range(Range(**EVERYTHING)).header.revision
            written = kv.Put(Put(key=b"j0")).header.revision
            assert written < MARK
            later = kv.Range(Range(**EVERYTHING)).header.revision
            watch.wait_for(lambda watch: any(m.header.revision > later for m in self.progresses(watch)))
            assert all(message.header.revision > listed for message in self.progresses(watch))
            first = next(m for m in self.progresses(watch) if m.header.revision > later)
            assert told(watch)[0] == (b"j0", written)
            assert watch.messages.index(first) > next(n for n, m in enumerate(watch.messages) if m.events)
            assert self.progresses(other) == []
