"""Progress of watchers over several shards: told when it is true, under a number that stands for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from esp.core.background import Background
from esp.core.pb import rpc_pb2
from esp.core.services.watch.span_progress import LONGEST_PAUSE, PAUSE
from esp.core.shard import Shard
from tests.core.services.watch.world import Client, WatchResponse, World, created, events, header, progress, put

ALL = {"key": b"\0", "range_end": b"\0"}


class Scene:
    """Two shards that tell `revisions` to whoever reads, and a client that watches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: str = "3.6.0") -> None:
        self.world = World(b"m")
        self.world.background.start = self._start  # type: ignore[method-assign,assignment]
        self.revisions = [9, 4]
        self.reads = 0
        self.tasks: list[asyncio.Task[None]] = []
        for etcd in self.world.etcds:
            etcd.shard.version = etcd.shard.version_in_use = version

        async def read(shard: Shard, *args: object, **options: object) -> bytes:
            await asyncio.sleep(0)
            self.reads += 1
            revision = self.revisions[int(shard.name[1:])]
            return rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=revision)).SerializeToString()

        monkeypatch.setattr(Shard, "forward_unary", read)

    def _start(self, work: Coroutine[Any, Any, None], **ends: Any) -> asyncio.Task[None]:
        self.tasks.append(Background.start(self.world.background, work, **ends))
        return self.tasks[-1]

    async def rest(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def create(self, client: Client, **create: Any) -> list[tuple[int, int]]:
        """The calls and ids of a watcher in both shards."""
        client.creates(**ALL, **create)
        parts = []
        for number, etcd in enumerate(self.world.etcds):
            stream, [asked] = etcd.hears()
            etcd.says(stream, created(asked.watch_id, self.revisions[number], shard=number))
            parts.append((stream, asked.watch_id))
        client.hears()
        return parts

    def answers(self, parts: list[tuple[int, int]], *revisions: int) -> None:
        """The shards answer the progress requests in these calls."""
        for shard, ((stream, _), revision) in enumerate(zip(parts, revisions, strict=True)):
            self.world.etcds[shard].says(stream, WatchResponse(header=header(revision, shard), watch_id=-1))


def in_a_loop(
    play: Callable[[pytest.MonkeyPatch], Coroutine[Any, Any, None]],
) -> Callable[[pytest.MonkeyPatch], None]:
    def test(monkeypatch: pytest.MonkeyPatch) -> None:
        asyncio.run(play(monkeypatch))

    return test


@in_a_loop
async def test_no_progress_is_above_a_token_that_the_watcher_has_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    world, client = scene.world, scene.world.client()
    shared = scene.create(client)
    own = scene.create(client, prev_kv=True, start_revision=world.mint(9, 4) + 1)
    scene.revisions = [12, 6]
    client.asks_progress()
    await scene.rest()
    scene.answers(shared, 15, 6)
    scene.answers(own, 12, 6)
    told = {message.watch_id: message.header.revision for message in client.hears()}
    assert set(told) == {0, 1}
    lower = [vector.revisions for token, vector in world.routing.tokens._vectors.items() if token <= told[1]]
    assert max(lower) <= (12, 6), "the second watcher is there only"


@in_a_loop
async def test_a_round_that_waits_ends_when_the_shards_tell_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    world, client = scene.world, scene.world.client()
    (one, a), (two, z) = scene.create(client, progress_notify=True)
    scene.revisions = [12, 8]
    world.etcds[0].says(one, progress(a, 12))
    await scene.rest()
    scene.answers([(one, a), (two, z)], 12, 4)  # the second one's member lags behind
    assert client.hears() == []
    told = WatchResponse(header=header(8, 1), watch_id=z)
    world.etcds[1].says(two, told)
    await scene.rest()
    assert [message.watch_id for message in client.hears()] == [0]


@in_a_loop
async def test_on_an_old_etcd_what_it_tells_by_itself_counts_also_while_others_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, "3.5.12")
    world, client = scene.world, scene.world.client()
    (one, a), (two, z) = scene.create(client, progress_notify=True)
    scene.revisions = [13, 8]
    world.etcds[0].says(one, progress(a, 12))
    await scene.rest()
    scene.revisions = [14, 10]
    told = WatchResponse(header=header(9, 1), watch_id=z)
    world.etcds[1].says(two, told)
    await scene.rest()
    assert client.hears() == []
    world.etcds[0].says(one, progress(a, 14))
    await scene.rest()
    assert [message.watch_id for message in client.hears()] == [0]
    for etcd in world.etcds:
        etcd.hears_nothing()


@in_a_loop
async def test_on_an_old_etcd_it_follows_the_events_that_reach_far_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, "3.5.12")
    world, client = scene.world, scene.world.client()
    (one, a), (two, z) = scene.create(client)
    scene.revisions = [12, 6]
    client.asks_progress()
    await scene.rest()
    world.etcds[0].says(one, events(a, put(b"a", 12)))
    assert len(client.hears()) == 1, "the other shard has something left to tell"
    world.etcds[1].says(two, events(z, put(b"z", 6), shard=1))
    event, told = client.hears()
    assert (len(event.events), len(told.events)) == (1, 0)
    assert world.position(told) == (12, 6)
    world.etcds[1].says(two, events(z, put(b"z", 7), shard=1))
    assert len(client.hears()) == 1, "it was told once"


class Clock:
    """In place of the loop's timers: what was to be called, and in how many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._call_later)

    def _call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.due.append((seconds, call))
        return asyncio.TimerHandle(0, lambda: None, (), asyncio.get_running_loop())

    def strikes(self) -> float:
        """Calls the one that is due; after how many seconds that was to be."""
        [(seconds, call)], self.due = self.due, []
        call()
        return seconds


def overtake(scene: Scene, parts: list[tuple[int, int]], revision: int) -> None:
    """Somebody else has read further; and an event comes, under a token that is higher than that of the round."""
    (one, a), _ = parts
    scene.world.mint(revision, 99)
    scene.world.etcds[0].says(one, events(a, put(b"a", revision)))


@in_a_loop
async def test_one_that_was_overtaken_by_events_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    scene = Scene(monkeypatch)
    world, client = scene.world, scene.world.client()
    parts = scene.create(client)
    scene.revisions = [12, 6]
    client.asks_progress()
    await scene.rest()
    overtake(scene, parts, 12)
    scene.answers(parts, 12, 6)
    assert len(client.hears()) == 1
    scene.revisions = [12, 99]
    clock.strikes()
    await scene.rest()
    scene.answers(parts, 12, 99)
    [told] = client.hears()
    assert world.position(told) == (12, 99)
    assert clock.due == []


@in_a_loop
async def test_where_events_never_cease_the_shards_are_asked_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    scene = Scene(monkeypatch)
    client = scene.world.client()
    parts = scene.create(client)
    client.asks_progress()
    pauses = []
    for revision in range(12, 24):
        scene.revisions = [revision, 4]
        await scene.rest()
        overtake(scene, parts, revision)
        reads = scene.reads
        scene.answers(parts, revision, 4)
        await scene.rest()
        assert scene.reads == reads, "not before the time has come"
        pauses.append(clock.strikes())
    assert pauses[:3] == [PAUSE, 2 * PAUSE, 4 * PAUSE]
    assert pauses[-2:] == [LONGEST_PAUSE] * 2
    await scene.rest()
    client.asks_progress()  # who asks is not made to wait
    reads = scene.reads
    await scene.rest()
    assert scene.reads == reads + 2


@in_a_loop
async def test_one_that_events_end_meanwhile_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    scene = Scene(monkeypatch)
    world, client = scene.world, scene.world.client()
    parts = [_, (two, z)] = scene.create(client)
    scene.revisions = [12, 6]
    client.asks_progress()
    await scene.rest()
    overtake(scene, parts, 12)
    scene.answers(parts, 12, 6)
    world.etcds[1].says(two, events(z, put(b"z", 99), shard=1))
    assert [len(message.events) for message in client.hears()] == [1, 1, 0]
    reads = scene.reads
    clock.strikes()
    await scene.rest()
    assert scene.reads == reads
    assert client.hears() == []


@in_a_loop
async def test_a_shard_that_did_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    world, client = scene.world, scene.world.client()
    parts = [(one, a), (two, _)] = scene.create(client, progress_notify=True)
    world.etcds[1].goes()
    scene.revisions = [12, 8]
    world.etcds[0].says(one, progress(a, 12))
    await scene.rest()
    world.etcds[1].all_heard()
    world.etcds[1].comes()
    two, [asked] = world.etcds[1].hears()
    world.etcds[1].says(two, created(asked.watch_id, 8, shard=1))
    world.etcds[0].all_heard()
    world.etcds[0].says(one, progress(a, 13))
    await scene.rest()
    assert world.etcds[1].hears()[0] == two, "it is asked for its progress"
    parts[1] = (two, asked.watch_id)
    scene.answers(parts, 13, 8)
    assert [message.watch_id for message in client.hears()] == [0]


@in_a_loop
async def test_events_that_come_meanwhile_are_before_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    world, client = scene.world, scene.world.client()
    parts = [(one, a), _] = scene.create(client)
    client.asks_progress()
    await scene.rest()
    world.etcds[0].says(one, events(a, put(b"a", 10)))
    scene.answers(parts, 10, 4)
    event, told = client.hears()
    assert event.header.revision <= told.header.revision
    assert world.position(told) == (10, 4)


@in_a_loop
async def test_who_asks_without_end_has_one_question_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    client = scene.world.client()
    parts = scene.create(client)
    scene.revisions = [12, 6]
    for _ in range(500):
        client.asks_progress()
    assert len(scene.tasks) == 1
    await scene.rest()
    assert scene.reads == 4, "once for the first, and once for all that came after"
    scene.answers(parts, 12, 6)
    assert len(client.hears()) == 1


@in_a_loop
async def test_a_client_that_leaves_leaves_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    client = scene.world.client()
    scene.create(client)
    client.asks_progress()
    client.asks_progress()
    client.leaves()
    await scene.rest()
    assert [task.done() for task in scene.tasks] == [True]


@in_a_loop
async def test_calls_to_shards_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    client = scene.world.client()
    for number in range(5):
        scene.create(client)
        scene.revisions = [revision + 1 for revision in scene.revisions]
        client.asks_progress()
        await scene.rest()
        client.cancels(number)
        for etcd in scene.world.etcds:
            etcd.all_heard()
    [stream] = [connection.sink for connection in scene.world._server.connection.streams.values()]
    assert len(stream.span_progress._asked) <= 2  # type: ignore[union-attr]
