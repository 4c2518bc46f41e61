"""Many watchers of one range on one connection: others do not wait for them, and each gets every event once."""

from __future__ import annotations

import pytest

from esp.core.services.watch import feed
from esp.core.services.watch.messages import DUPLICATE_ID
from esp.core.services.watch.pool import PART_WEIGHT
from esp.core.wire.limits import Limits
from tests.core.services.watch.test_across import ALL
from tests.core.services.watch.world import (
    Client,
    World,
    canceled,
    compacted,
    created,
    events,
    live,
    progress,
    put,
    refused,
)

SAME = {"key": b"a", "range_end": b"c"}


@pytest.fixture(autouse=True)
def one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PLAIN_AT_ONCE", 1)


class Turns:
    """The client's connection works only when it is let, a step for each tick of its clock."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._connection = world._server.connection
        self._ticks = 0
        self.wanted = 0
        self._connection.clock = self._clock
        self._connection.on_behind = self._want

    def _clock(self) -> float:
        self._ticks += 1
        return float(self._ticks)

    def _want(self) -> None:
        self.wanted += 1

    def take(self, steps: int) -> bool:
        """Whether more is left."""
        is_left = self._connection.take(b"", self._ticks + steps)
        self._world.context.flush()
        return is_left


def crowded(world: World, crowd: int) -> tuple[list[Client], tuple[int, int], tuple[int, int]]:
    """Two watchers that share with other connections, and a crowd; the calls and ids of both at the shard."""
    clients = [world.client() for _ in range(crowd + 2)]
    shared = live(world, clients[0], **SAME)
    clients[1].creates(**SAME)
    world.etcds[0].says(shared[0], refused(DUPLICATE_ID, 5))
    world.etcds[0].hears()
    own = live(world, clients[2], **SAME)
    for client in clients[3:]:
        client.creates(**SAME)
    if crowd > 1:
        stream, questions = world.etcds[0].hears()
        assert (stream, {question.watch_id for question in questions}) == (own[0], {own[1]})
        world.etcds[0].says(own[0], refused(DUPLICATE_ID, 5), refused(DUPLICATE_ID, 5))
    for client in clients[1:2] + clients[3:]:
        assert [message.created for message in client.hears()] == [True]
    world.etcds[0].all_heard()
    return clients, shared, own


def world_of(most: int = 2) -> World:
    return World(b"m", limits=Limits(max_shared_watchers=most))


def test_few_of_a_connection_share_with_others_and_the_rest_among_themselves() -> None:
    world = world_of()
    clients, shared, own = crowded(world, 5)
    assert shared[0] != own[0]
    assert world.context.counters.limits == {"max_shared_watchers": 5}
    world.etcds[0].says(shared[0], events(shared[1], put(b"a", 6)))
    assert [len(client.hears()) for client in clients] == [1, 1, 0, 0, 0, 0, 0]
    world.etcds[0].says(own[0], events(own[1], put(b"a", 6)))
    assert [len(client.hears()) for client in clients] == [0, 0, 1, 1, 1, 1, 1]
    for client in clients:
        client.leaves()
    world.context.flush()
    world.holds_nothing()


def test_one_over_several_shards_counts_as_many() -> None:
    world = world_of(2 * PART_WEIGHT)
    clients = [world.client() for _ in range(3)]
    for client in clients:
        client.creates(**ALL)
    for etcd in world.etcds:
        asked = etcd.all_heard()
        assert [stream for stream, _ in asked] == [1, 3], "the third begins a call for the crowd"
        for number, (stream, request) in enumerate(asked):
            etcd.says(stream, created(request.create_request.watch_id, 5), *[refused(DUPLICATE_ID, 5)] * (not number))
    assert [len(client.hears()) for client in clients] == [1, 1, 1]
    assert world.context.counters.limits == {"max_shared_watchers": 2}  # once for each shard


def test_who_leaves_makes_room_among_those_that_share_with_others() -> None:
    world = world_of()
    clients, shared, _ = crowded(world, 2)
    clients[0].leaves()
    again = world.client()
    world.etcds[0].all_heard()
    again.creates(**SAME)
    stream, [question] = world.etcds[0].hears()
    assert (stream, question.watch_id) == shared


def test_a_crowd_is_fed_in_its_connections_turns_and_nobody_else_waits_for_that() -> None:
    world = world_of()
    clients, shared, own = crowded(world, 6)
    turns = Turns(world)
    world.etcds[0].says(own[0], events(own[1], put(b"a", 6)), events(own[1], put(b"a", 7)))
    world.etcds[0].says(shared[0], events(shared[1], put(b"a", 6)))
    assert [len(client.hears()) for client in clients] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert turns.wanted == 1
    assert turns.take(4)
    heard = {client: client.hears() for client in clients[2:]}
    assert sum(map(len, heard.values())) in (2, 3)
    while turns.take(1):
        pass
    for client in clients[2:]:
        heard[client] += client.hears()
        assert [message.events[0].kv.mod_revision for message in heard[client]] == [6, 7]
    assert world.etcds[0].window_given() == 0  # little has come so far


def test_what_the_connection_does_not_get_to_stays_with_the_shard() -> None:
    world = world_of()
    clients, _, own = crowded(world, 3)
    turns = Turns(world)
    for revision in range(6, 16):
        world.etcds[0].says(own[0], events(own[1], put(b"a", revision, b"x" * 16_000)))
    assert world.etcds[0].window_given() == 0
    assert world.context.buffers.used >= 160_000
    while turns.take(5):
        pass
    assert world.etcds[0].window_given() >= 150_000
    for client in clients:
        client.leaves()
    world.context.flush()
    world.holds_nothing()


def test_a_call_that_breaks_while_a_crowd_is_fed_leaves_nothing_out_and_repeats_nothing() -> None:
    world = world_of()
    clients, _, own = crowded(world, 4)
    turns = Turns(world)
    world.etcds[0].says(own[0], events(own[1], put(b"a", 6)))
    turns.take(2)
    world.etcds[0].resets(own[0])
    world.context.flush()
    stream, [again] = world.etcds[0].hears()
    assert (again.watch_id, again.start_revision) == (own[1], 6)  # not all have it
    world.etcds[0].says(stream, created(again.watch_id, 7), events(again.watch_id, put(b"a", 6), put(b"a", 7)))
    while turns.take(1):
        pass
    for client in clients[2:]:
        assert [event.kv.mod_revision for message in client.hears() for event in message.events] == [6, 7]


def test_who_leaves_a_crowd_while_it_is_fed_is_fed_no_more_and_the_others_are() -> None:
    world = world_of()
    clients, _, own = crowded(world, 4)
    turns = Turns(world)
    world.etcds[0].says(own[0], events(own[1], put(b"a", 6)), progress(own[1], 9))
    turns.take(2)
    heard = [bool(client.hears()) for client in clients[2:]]
    assert 0 < sum(heard) < 4
    gone = [clients[2 + heard.index(True)], clients[2 + heard.index(False)]]
    for client in gone:
        world._clients.pop(client.stream)
        world._server.connection.streams[client.stream].sink.cancelled(8, "gone")  # type: ignore[union-attr]
    while turns.take(1):
        pass
    assert all(had or client in gone or client.hears() for client, had in zip(clients[2:], heard, strict=True))


def test_a_crowd_that_is_canceled_is_told_one_by_one() -> None:
    world = world_of()
    clients, _, own = crowded(world, 4)
    turns = Turns(world)
    world.etcds[0].says(own[0], compacted(own[1], 20))
    turns.take(2)
    assert 0 < sum(bool(client.hears()) for client in clients[2:]) < 4
    while turns.take(1):
        pass
    clients[2].cancels(0)
    assert clients[2].hears() == [canceled(0, 5)]


def test_watchers_from_a_revision_join_the_crowd_once_they_have_caught_up() -> None:
    world = world_of()
    clients, _, own = crowded(world, 2)
    late = world.client()
    late.creates(**SAME, start_revision=3)
    stream, [asked] = world.etcds[0].hears()
    assert stream != own[0]
    world.etcds[0].says(stream, created(asked.watch_id, 5), events(asked.watch_id, put(b"a", 4), put(b"a", 5)))
    world.etcds[0].all_heard()
    assert stream in world.etcds[0].ended
    late.hears()
    world.etcds[0].says(own[0], events(own[1], put(b"a", 6)))
    assert [len(client.hears()) for client in (*clients[2:], late)] == [1, 1, 1]
