"""Watchers of a client whose keys have other owners by a new layout: told, or ended and told when they come again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from esp.core import errors
from esp.core.former import Came
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.routing import Routing
from esp.core.services.watch import crossing
from esp.core.services.watch.watcher import Watcher
from esp.core.shard_map import ShardMap
from esp.core.wire.limits import Limits
from tests.core.services.watch.world import Client, World, canceled, compacted, created, events, live, put

LAST = 1000
"""The revision of the shards that give keys away."""
FLOOR = 50
"""The new owner's: it counts lower, so by the number alone a client's revision might be its own."""
BIG = b"v" * 10_000
WORK = "a watch at a new map"


@pytest.fixture(autouse=True)
def _by_a_map_of_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """By that of a file no watcher is told: its stream ends (`test_layout`)."""
    monkeypatch.setattr(Layout, "is_guarded", True)


def installs(world: World, *edges: bytes, owners: Sequence[int]) -> None:
    """A layout by which "s0" has got all keys from `m` on that these owners give it."""
    before = world.routing.layout
    names = [f"s{number}" for number in sorted(set(owners))]
    bounds: list[bytes | None] = [b"", *edges, None]
    parts = [
        (f"s{owner}", KeyRange(start or b"", end))
        for owner, start, end in zip(owners, bounds[:-1], bounds[1:], strict=True)
    ]
    came = [Came(KeyRange(b"m", parts[0][1].end), "s0", FLOOR)]
    after = Layout.of(ShardMap.build(parts, names), [before.shards[name] for name in names])
    world.routing = Routing(after.behind(before, came), world.routing.tokens)
    world.watch.install(world.routing)
    world.context.flush()


def is_told_once(world: World, client: Client, key: bytes) -> None:
    """A client comes again for a key, with what it had: it is told "compacted"; and if it comes once more, nothing."""
    etcd = world.etcds[0]
    etcd.all_heard()
    told = []
    for _ in range(2):
        client.creates(key=key, start_revision=LAST + 1)
        call, [asked] = etcd.hears()
        told.append(asked.start_revision)
        etcd.says(call, created(asked.watch_id, FLOOR))
        first, *more = client.hears()
        if len(told) == 1:
            assert more == [compacted(first.watch_id, FLOOR)], "its own revision means nothing here"
        else:
            assert more == []
        etcd.all_heard()
    assert told == [0, LAST + 1], key


@pytest.mark.parametrize("keys", [[b"n"], [b"n", b"o"], [b"n", b"o", b"p"]], ids=len)
def test_each_watcher_of_a_shard_that_leaves_is_told_once_that_its_revision_means_nothing(keys: list[bytes]) -> None:
    world = World(b"m")
    client = world.client()
    for key in keys:
        live(world, client, 1, LAST, key=key)
    installs(world, owners=(0,))
    assert (client.hears(), client.status) == ([], errors.SERVER_STOPPED)
    assert len(world.watch.moved) == len(keys)
    again = world.client()
    for key in keys:
        is_told_once(world, again, key)


@pytest.mark.parametrize("first", [b"n", b"u"])
def test_so_is_one_whose_keys_move_between_shards_that_stay_if_another_of_the_client_ends_the_stream(
    first: bytes,
) -> None:
    world = World(b"m", b"t")
    client = world.client()
    for key in sorted([b"n", b"u"], key=lambda key: key != first):
        live(world, client, 1 if key < b"t" else 2, LAST, key=key)
    bystander = world.client()
    live(world, bystander, 0, LAST, key=b"a")
    installs(world, b"z", owners=(0, 1))  # "s2" leaves, and "s1" has nothing but the last keys
    client.hears()
    assert client.status == errors.SERVER_STOPPED
    assert bystander.status is None
    assert not world.background.failures
    again = world.client()
    for key in (b"n", b"u"):
        is_told_once(world, again, key)


def test_so_is_one_that_was_not_yet_created() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(key=b"n", start_revision=LAST + 1)
    installs(world, b"z", owners=(0, 1))
    client.hears()
    assert client.status == errors.SERVER_STOPPED
    is_told_once(world, world.client(), b"n")


def test_watchers_whose_keys_move_between_shards_that_stay_are_told_at_once() -> None:
    world = World(b"m")
    client = world.client()
    for key in (b"n", b"o"):
        live(world, client, 1, LAST, key=key)
    installs(world, b"z", owners=(0, 1))
    assert client.hears() == [compacted(watch_id, LAST + 1, shard=1) for watch_id in (0, 1)]
    assert client.status is None
    assert len(world.watch.moved) == 0


def test_a_client_too_slow_to_be_told_is_told_when_it_comes_again() -> None:
    world = World(b"m", limits=Limits(max_watch_buffer_bytes=100_000))
    slow, quick = world.client(), world.client()
    stream, watch_id = live(world, slow, 1, LAST - 100, key=b"n")
    live(world, slow, 1, LAST, key=b"o")
    live(world, quick, 1, LAST, key=b"p")
    outbox = next(each for each in world.watch.streams if len(each.watchers) == 2).outbox
    revision = LAST - 100
    while outbox.waiting <= 100_000:
        revision += 1
        world.etcds[1].says(stream, events(watch_id, put(b"n", revision, BIG), shard=1))
    quick.reads(1_000_000)
    assert not outbox.is_over, "the next message is one too many"
    installs(world, b"z", owners=(0, 1))
    assert outbox.is_over
    assert not world.background.failures
    assert quick.hears() == [compacted(0, LAST + 1, shard=1)]
    slow.reads(1_000_000)
    slow.hears()
    assert (slow.status, quick.status) == (errors.SERVER_STOPPED, None)
    again = world.client()
    for key in (b"n", b"o"):
        is_told_once(world, again, key)


@pytest.mark.parametrize("fails", [0, 1])
def test_a_bug_ends_the_stream_of_one_client_only(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two watchers, the first or the second fails; the client is told when it comes again."""
    world = World(b"m")
    clients = [world.client() for _ in range(3)]
    for number, client in enumerate(clients):
        for key in (b"n%d", b"o%d"):
            live(world, client, 1, LAST, key=key % number)
    victim = next(iter(world.watch.streams))
    keys = {one.keys.start for one in victim.watchers.values() if one.keys is not None}
    original = Watcher.end_for_move

    def planted(watcher: Watcher) -> bool:
        if watcher.stream is victim and watcher.id == fails:
            raise AssertionError("a bug")
        return original(watcher)

    monkeypatch.setattr(Watcher, "end_for_move", planted)
    installs(world, b"z", owners=(0, 1))
    assert world.background.failures == {WORK: 1}
    assert victim.outbox.is_over
    told = [client.hears() for client in clients]
    assert [client.status is None for client in clients].count(False) == 1
    assert told.count([compacted(watch_id, LAST + 1, shard=1) for watch_id in (0, 1)]) == 2
    again = world.client()
    for key in sorted(keys):
        is_told_once(world, again, key)


def test_many_watchers_begin_to_go_over_in_several_turns_and_one_that_ends_before_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All end at once to be told what their former owner does after the cut."""
    monkeypatch.setattr(crossing, "SLICE", -1.0)  # so that each takes as long as all may

    async def test() -> None:
        world = World(b"m")
        client = world.client()
        calls = [live(world, client, 1, LAST, key=b"n%d" % number) for number in range(4)]
        world.context.turns.soon = lambda _: None  # so that each turn comes when the test says so
        before = world.routing.layout
        parts = [("s0", KeyRange(b"", b"z")), ("s1", KeyRange(b"z", None))]
        shard_map = ShardMap.build(parts, ["s0", "s1"], before.epoch + 1)
        came = [Came(KeyRange(b"m", b"z"), "s0", 2 * LAST, LAST, shard_map.epoch, "s1")]
        after = Layout.of(shard_map, before.shards.values()).behind(before, came)
        begun = world.spawned
        world.watch.install(Routing(after, world.routing.tokens))
        assert world.spawned == begun
        for call, watch_id in calls:
            world.etcds[1].says(call, events(watch_id, put(b"n", LAST + 1), shard=1))
        client.cancels(1)
        world.etcds[1].all_heard()
        world.etcds[1].says(calls[1][0], canceled(calls[1][1], LAST + 1, shard=1))
        numbers = []
        for _ in range(4):
            world.context.go_on()
            numbers.append(world.spawned - begun)
        assert numbers == [1, 1, 2, 3]
        assert [message.canceled for message in client.hears()] == [True]
        assert not world.background.failures

    asyncio.run(test())
