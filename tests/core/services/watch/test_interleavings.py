"""Shards with all the bad luck that etcd allows, in any order of steps: each watcher still gets exactly its events.

The shard here follows etcd's server (v3rpc/watch.go, mvcc/watchable_store.go) in what may come before what. Replies to
requests and messages of watchers are two queues, in order each, and either may overtake the other. The revision in a
reply is looked up after the watcher was registered. One that is behind is told in batches, and one that is compacted
hears of that later. A call may break at any point, and then what was in its queues is lost.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest

from esp.core.background import Background
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.watch import compaction
from esp.core.services.watch.messages import DUPLICATE_ID
from tests.core.services.watch.world import (
    Asleep,
    Client,
    Etcd,
    Timers,
    WatchResponse,
    World,
    canceled,
    compacted,
    created,
    events,
    progress,
    put,
    refused,
)

KEYS = [b"a", b"b", b"c", b"x", b"y", b"z"]
RANGES = [(b"a", b""), (b"a", b"c"), (b"x", b""), (b"x", b"\0"), (b"\0", b"\0"), (b"b", b"y")]
BATCH = 3


def within(key: bytes, start: bytes, end: bytes) -> bool:
    return key == start if not end else start <= key and (end == b"\0" or key < end)


@dataclass
class Registered:
    """A watcher of a shard."""

    create: rpc_pb2.WatchCreateRequest
    next: int
    is_compacted: bool = False  # its id stays taken until it is canceled


@dataclass
class Call:
    """One Watch call to a shard."""

    watchers: dict[int, Registered] = field(default_factory=dict)
    replies: deque[WatchResponse] = field(default_factory=deque)
    messages: deque[WatchResponse] = field(default_factory=deque)
    announced: set[int] = field(default_factory=set)


class Shard:
    """One shard, its history, and the calls that are open."""

    def __init__(self, etcd: Etcd, number: int, chance: random.Random) -> None:
        self.etcd = etcd
        self.number = number
        self.chance = chance
        self.revision = 1
        self.compacted = 0
        self.history: dict[int, list[kv_pb2.Event]] = {}
        self.calls: dict[int, Call] = {}
        self.is_up = True

    def writes(self, keys: list[bytes]) -> None:
        self.revision += 1
        self.history[self.revision] = [put(key, self.revision) for key in keys]
        for call in self.calls.values():
            for watch_id, watcher in call.watchers.items():
                if watcher.next == self.revision and not watcher.is_compacted:
                    self._send(call, watch_id, watcher, [self.revision], self.revision)

    def _send(self, call: Call, watch_id: int, watcher: Registered, revisions: list[int], header: int) -> None:
        wanted = [
            event
            for revision in revisions
            for event in self.history.get(revision, [])
            if within(event.kv.key, watcher.create.key, watcher.create.range_end)
        ]
        if wanted:
            call.messages.append(events(watch_id, *wanted, revision=header, shard=self.number))
        watcher.next = max(watcher.next, revisions[-1] + 1)

    def hears(self) -> None:
        for stream, request in self.etcd.all_heard():
            call = self.calls.setdefault(stream, Call())
            kind = request.WhichOneof("request_union")
            if kind == "create_request":
                self._on_create(call, request.create_request)
            elif kind == "cancel_request" and request.cancel_request.watch_id in call.watchers:
                watch_id = request.cancel_request.watch_id
                del call.watchers[watch_id]
                call.replies.append(canceled(watch_id, self.revision, shard=self.number))
        for stream in self.etcd.ended:
            self.calls.pop(stream, None)

    def _on_create(self, call: Call, create: rpc_pb2.WatchCreateRequest) -> None:
        if create.watch_id in call.watchers:
            call.replies.append(refused(DUPLICATE_ID, self.revision))
            return
        call.watchers[create.watch_id] = Registered(create, create.start_revision or self.revision + 1)
        if self.chance.random() < 0.3:
            self.writes([self.chance.choice(KEYS[:3] if not self.number else KEYS[3:])])
        call.replies.append(created(create.watch_id, self.revision, shard=self.number))

    def catches_up(self) -> None:
        """Those that are behind are told a batch."""
        for call in self.calls.values():
            for watch_id, watcher in list(call.watchers.items()):
                if watcher.is_compacted:
                    continue
                if watcher.next < self.compacted:
                    call.messages.append(compacted(watch_id, self.compacted, shard=self.number))
                    watcher.is_compacted = True
                elif watcher.next <= self.revision:
                    last = min(self.revision, watcher.next + BATCH - 1)
                    self._send(call, watch_id, watcher, list(range(watcher.next, last + 1)), self.revision)

    def tells_progress(self) -> None:
        for call in self.calls.values():
            for watch_id, watcher in call.watchers.items():
                if watcher.next > self.revision and watcher.create.start_revision <= self.revision:
                    message = progress(watch_id, self.revision)
                    message.header.cluster_id += self.number
                    call.messages.append(message)

    def says_one(self) -> bool:
        """The next message of either queue of some call; False when there is none."""
        ready = []
        for stream, call in self.calls.items():
            if call.replies:
                ready.append((stream, call, call.replies))
            # A message of a watcher is kept back until its `created` was sent.
            if call.messages and call.messages[0].watch_id in call.announced:
                ready.append((stream, call, call.messages))
        if not ready:
            return False
        stream, call, queue = self.chance.choice(ready)
        message = queue.popleft()
        if message.created and not message.canceled:
            call.announced.add(message.watch_id)
        self.etcd.says(stream, message)
        return True

    def goes(self) -> None:
        self.is_up = False
        self.calls.clear()
        self.etcd.goes()

    def comes(self) -> None:
        self.is_up = True
        self.etcd.comes()
        self.hears()


@dataclass
class Wanted:
    """A watcher of a client: what it asked for, and the shards' revisions when it did."""

    key: bytes
    range_end: bytes
    start: int
    asked_at: list[int]
    created_at: list[int] = field(default_factory=list)
    heard: list[WatchResponse] = field(default_factory=list)
    is_canceled: bool = False

    def concerns(self, shard: int) -> bool:
        return any(within(key, self.key, self.range_end) for key in (KEYS[:3], KEYS[3:])[shard])


class Run:
    """One story: two shards, some clients."""

    def __init__(self, chance: random.Random, timers: Timers) -> None:
        self.chance = chance
        self.timers = timers
        self.world = World(b"m")
        self.world.compacts(0, 0)
        self.shards = [Shard(etcd, number, chance) for number, etcd in enumerate(self.world.etcds)]
        self.clients: list[tuple[Client, list[Wanted]]] = []
        for _ in range(3):
            client = self.world.client()
            client.reads(10_000_000)
            self.clients.append((client, []))

    def step(self) -> None:
        shard = self.chance.choice(self.shards)
        what = self.chance.choices(
            ["write", "say", "catch up", "progress", "create", "cancel", "break", "call breaks", "pause", "compact"],
            [20, 40, 8, 4, 12, 4, 2, 2, 3, 1],
        )[0]
        if what == "write":
            keys = KEYS[:3] if shard is self.shards[0] else KEYS[3:]
            shard.writes(self.chance.sample(keys, self.chance.choice([1, 1, 2])))
        elif what == "say":
            shard.says_one()
        elif what == "catch up":
            shard.catches_up()
        elif what == "progress":
            shard.tells_progress()
        elif what == "create":
            self._create()
        elif what == "cancel":
            self._cancel()
        elif what == "break" and shard.is_up:
            shard.goes()
        elif what == "break":
            shard.comes()
        elif what == "call breaks" and shard.calls:
            stream = self.chance.choice(list(shard.calls))
            del shard.calls[stream]
            shard.etcd.resets(stream)
        elif what == "pause":
            self.timers.ring()
            self.world.search_on()
        elif what == "compact" and self.chance.random() < 0.5:
            shard.compacted = self.chance.randint(shard.compacted, shard.revision)
            self.world.compacted[shard.number] = shard.compacted
        self._listen()

    def _listen(self) -> None:
        for shard in self.shards:
            if shard.is_up:
                shard.hears()
        for client, watchers in self.clients:
            for message in client.hears():
                if message.created:
                    assert not message.canceled
                    number = next(number for number, one in enumerate(watchers) if not one.created_at)
                    assert message.watch_id == number, "created in the order of the requests"
                    watchers[number].created_at = [shard.revision for shard in self.shards]
                watchers[message.watch_id].heard.append(message)
            assert client.status is None

    def _create(self) -> None:
        client, watchers = self.chance.choice(self.clients)
        key, range_end = self.chance.choice(RANGES)
        wanted = Wanted(key, range_end, 0, [shard.revision for shard in self.shards])
        if self.chance.random() < 0.4:
            across = wanted.concerns(0) and wanted.concerns(1)
            shard = self.shards[0 if wanted.concerns(0) else 1]
            wanted.start = 1 if across else self.chance.randint(1, shard.revision + 3)
        watchers.append(wanted)
        client.creates(key=key, range_end=range_end, start_revision=wanted.start)

    def _cancel(self) -> None:
        client, watchers = self.chance.choice(self.clients)
        open_ = [number for number, watcher in enumerate(watchers) if watcher.created_at and not watcher.is_canceled]
        if open_:
            number = self.chance.choice(open_)
            watchers[number].is_canceled = True
            client.cancels(number)

    def ends_well(self) -> None:
        for shard in self.shards:
            if not shard.is_up:
                shard.comes()
        for _ in range(100):
            self.timers.ring()
            self.world.search_on()
            self._listen()
            for shard in self.shards:
                shard.catches_up()
                while shard.says_one():
                    self._listen()
            self._listen()
        for _, watchers in self.clients:
            for wanted in watchers:
                self._check(wanted)
        for client, _ in self.clients:
            client.leaves()
        for etcd in self.world.etcds:
            etcd.all_heard()
        self.world.holds_nothing()

    def _check(self, wanted: Wanted) -> None:
        begin, *messages = wanted.heard
        assert begin.created
        ends = [number for number, message in enumerate(messages) if message.canceled]
        for number, shard in enumerate(self.shards):
            if wanted.concerns(number):
                owns = [m for m in messages if m.events and (m.events[0].kv.key < b"m") == (number == 0)]
                self._check_shard(wanted, begin, shard, owns, is_over=bool(ends))
        reasons = [message.compact_revision > 0 for message in messages if message.canceled]
        assert reasons == [False] * wanted.is_canceled or reasons in ([True], [True, False])
        assert not [m for m in messages[ends[0] + 1 :] if not m.canceled] if ends else True

    def _check_shard(
        self, wanted: Wanted, begin: WatchResponse, shard: Shard, messages: list[WatchResponse], *, is_over: bool
    ) -> None:
        truth = {
            revision: kept
            for revision, several in shard.history.items()
            if (kept := [event for event in several if within(event.kv.key, wanted.key, wanted.range_end)])
        }
        told: dict[int, list[kv_pb2.Event]] = {}
        for message in messages:
            for event in message.events:
                told.setdefault(event.kv.mod_revision, []).append(event)
            assert min(event.kv.mod_revision for event in message.events) > max(
                (revision for revision in told if revision < message.events[0].kv.mod_revision), default=0
            )
            assert message.header.revision >= message.events[-1].kv.mod_revision
        across = wanted.concerns(0) and wanted.concerns(1)
        if wanted.start:
            starts = [wanted.start]
        elif across:
            # Its own "now" in each shard: at some moment between the request and the reply.
            starts = list(range(wanted.asked_at[shard.number] + 1, wanted.created_at[shard.number] + 2))
        else:
            now = begin.header.revision
            assert wanted.asked_at[shard.number] <= now <= wanted.created_at[shard.number]
            starts = [now + 1]
        matches = []
        for start in starts:
            expected = {revision: several for revision, several in truth.items() if revision >= start}
            if is_over:
                last = max(told, default=0)
                expected = {revision: several for revision, several in expected.items() if revision <= last}
            matches.append(told == expected)
        assert any(matches), (wanted, sorted(told), sorted(truth), starts)


def tell(seed: int) -> None:
    """One story of at most 300 steps."""
    chance = random.Random(seed)
    with patch.object(Background, "later", Timers()) as timers, patch.object(compaction, "sleep", Asleep):
        run = Run(chance, timers)
        for _ in range(chance.randint(20, 300)):
            run.step()
        run.ends_well()


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_whatever_happens_in_whatever_order_each_watcher_is_told_all_and_once(first: int) -> None:
    for seed in range(first, first + 10):
        tell(seed)
