"""Watchers of the same range share one watcher of the shard, but only if no client can notice."""

from __future__ import annotations

from typing import Any

import pytest

from esp.core.pb import rpc_pb2
from esp.core.services.watch.messages import DUPLICATE_ID
from esp.core.wire.frames import DATA, RST_STREAM
from esp.core.wire.message import MessageReader
from tests.core.services.watch.world import (
    Client,
    WatchRequest,
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
from tests.core.wire.conversation import data, message, split

DENIED = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
SAME = {"key": b"a", "range_end": b"c"}


def joined(world: World, revision: int, **create: Any) -> Client:
    """One more client, which joins a watcher that is there already."""
    client = world.client()
    client.creates(**create)
    stream, [question] = world.etcds[0].hears()
    assert question.start_revision == 0
    world.etcds[0].says(stream, refused(DUPLICATE_ID, revision))
    [reply] = client.hears()
    assert reply.created
    return client


def test_one_that_joins_is_created_at_the_shards_revision_and_told_what_comes_after_it() -> None:
    world = World(b"m")
    first = world.client()
    stream, watch_id = live(world, first, **SAME)
    second = world.client()
    second.creates(**SAME, watch_id=9)
    _, [question] = world.etcds[0].hears()
    assert (question.watch_id, question.key) == (watch_id, b"a")  # to be refused as a duplicate
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 8))
    # The header may be newer than what was on its way when it was written.
    world.etcds[0].says(stream, events(watch_id, put(b"a", 7)), events(watch_id, put(b"a", 8)))
    world.etcds[0].says(stream, events(watch_id, put(b"a", 9)))
    assert first.hears() == [events(0, put(b"a", revision)) for revision in (7, 8, 9)]
    assert second.hears() == [created(9, 8), events(9, put(b"a", 9))]


def test_one_that_joins_is_cut_out_of_a_message_that_begins_before_it() -> None:
    world = World(b"m")
    first = world.client()
    stream, watch_id = live(world, first, **SAME)
    second = joined(world, 8, **SAME)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 7), put(b"a", 8), put(b"b", 9), put(b"a", 9), revision=9))
    world.etcds[0].says(stream, events(watch_id, put(b"a", 10)))
    assert len(first.hears()[0].events) == 4
    assert second.hears() == [events(0, put(b"b", 9), put(b"a", 9)), events(0, put(b"a", 10))]


def test_one_that_joins_behind_what_was_passed_on_already_is_created_there() -> None:
    """An event may overtake the reply to the question. What was told before one joins, one is not told."""
    world = World(b"m")
    first = world.client()
    stream, watch_id = live(world, first, **SAME)
    second = world.client()
    second.creates(**SAME)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 9)))
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 8), events(watch_id, put(b"a", 10)))
    assert second.hears() == [created(0, 9), events(0, put(b"a", 10))]


def test_many_that_come_at_once_are_asked_for_together() -> None:
    world = World(b"m")
    client = world.client()
    for _ in range(5):
        client.creates(**SAME)
    stream, [create] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(create.watch_id, 5))
    assert client.hears() == [created(0, 5)]
    _, [question] = world.etcds[0].hears()
    client.creates(**SAME)
    world.etcds[0].hears_nothing()
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 6))
    assert client.hears() == [created(number, 6) for number in range(1, 5)]
    _, [question] = world.etcds[0].hears()
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 7), events(question.watch_id, put(b"a", 8)))
    assert client.hears() == [created(5, 7), *[events(number, put(b"a", 8)) for number in range(6)]]


def test_a_watcher_whose_clients_left_before_their_call_broke_is_not_created_again() -> None:
    world = World(b"m")
    first, second = world.client(), world.client()
    live(world, first, **SAME)
    second.creates(**SAME)
    first.leaves()
    second.leaves()
    world.etcds[0].all_heard()
    world.etcds[0].goes()  # with the reply to the question of the second
    world.etcds[0].comes()
    world.etcds[0].hears_nothing()


def test_permission_is_asked_for_anew_by_each_that_joins() -> None:
    world = World(b"m")
    first, second = world.client(), world.client()
    stream, watch_id = live(world, first, **SAME)
    second.creates(**SAME)
    world.etcds[0].all_heard()
    world.etcds[0].says(stream, refused(DENIED, 8), events(watch_id, put(b"a", 9)))
    assert second.hears() == [refused(DENIED, 8)]
    assert first.hears() == [events(0, put(b"a", 9))]


@pytest.mark.parametrize(
    "other", [{"key": b"aa"}, {"range_end": b"d"}, {"prev_kv": True}, {"fragment": True}, {"filters": [1]}]
)
def test_what_differs_is_not_shared(other: dict[str, Any]) -> None:
    world = World(b"m")
    _, watch_id = live(world, world.client(), **SAME)
    _, other_id = live(world, world.client(), **(SAME | other))
    assert other_id != watch_id


def test_filters_are_a_set_and_progress_is_everybodys() -> None:
    world = World(b"m")
    live(world, world.client(), **SAME, filters=[1, 0])
    joined(world, 6, **SAME, filters=[0, 1, 1], progress_notify=True)


@pytest.mark.parametrize("metadata", [(b"token", b"x"), (b"authorization", b"Bearer x"), (b"hasleader", b"true")])
def test_clients_with_other_metadata_share_nothing_and_have_it_passed_on(metadata: tuple[bytes, bytes]) -> None:
    world = World(b"m")
    stream, _ = live(world, world.client(), **SAME)
    assert metadata[0] not in world.etcds[0].paths[stream]
    another, _ = live(world, world.client(metadata, (b"user-agent", b"one"), (b"client-api-version", b"3.5")), **SAME)
    assert another != stream
    assert world.etcds[0].paths[another][metadata[0]] == metadata[1]
    second = world.client(metadata, (b"user-agent", b"two"))
    second.creates(**SAME)
    asked, _ = world.etcds[0].hears()
    assert asked == another


def test_a_shared_watcher_lives_until_the_last_leaves_it() -> None:
    world = World(b"m")
    first = world.client()
    stream, watch_id = live(world, first, **SAME)
    second = joined(world, 6, **SAME)
    first.cancels(0)
    assert len(world.etcds[0].hears()[1]) == 1  # for the present revision: the shard is not told to stop
    world.etcds[0].says(stream, events(watch_id, put(b"a", 9)), refused(DUPLICATE_ID, 9))
    assert first.hears() == [events(0, put(b"a", 9)), canceled(0, 9)]
    world.etcds[0].says(stream, events(watch_id, put(b"a", 10)))
    assert first.hears() == []
    assert len(second.hears()) == 2
    second.leaves()
    first.leaves()
    world.etcds[0].all_heard()
    world.holds_nothing()


def test_progress_of_a_shared_watcher_goes_to_those_it_is_true_for() -> None:
    world = World(b"m")
    first = world.client()
    stream, watch_id = live(world, first, **SAME, progress_notify=True)
    second = joined(world, 20, **SAME, progress_notify=True)
    world.etcds[0].says(stream, progress(watch_id, 15), progress(watch_id, 20))
    assert first.hears() == [progress(0, 15), progress(0, 20)]
    assert second.hears() == [progress(0, 20)]


# Watchers from a revision have a watcher of their own at first.


def own(world: World, start: int, revision: int = 5) -> tuple[Client, int, int]:
    client = world.client()
    stream, watch_id = live(world, client, revision=revision, start_revision=start, **SAME)
    return client, stream, watch_id


def test_two_that_have_caught_up_move_to_a_shared_watcher() -> None:
    world = World(b"m")
    first, a, _ = own(world, 6)
    second, b, _ = own(world, 6)
    shared, [create] = world.etcds[0].hears()
    assert create.start_revision == 6
    world.etcds[0].says(shared, created(create.watch_id, 5))
    world.etcds[0].all_heard()
    assert {a, b} <= world.etcds[0].ended
    world.etcds[0].says(shared, events(create.watch_id, put(b"a", 6)))
    assert first.hears() == second.hears() == [events(0, put(b"a", 6))]


def test_one_that_is_behind_moves_when_it_has_got_as_far() -> None:
    world = World(b"m")
    now = world.client()
    shared, shared_id = live(world, now, revision=10, **SAME)
    late, stream, watch_id = own(world, 3, revision=10)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 4), put(b"a", 5), revision=10))
    world.etcds[0].says(shared, events(shared_id, put(b"a", 11)), events(shared_id, put(b"b", 12)))
    world.etcds[0].hears_nothing()
    world.etcds[0].says(stream, events(watch_id, put(b"a", 11)))
    world.etcds[0].hears_nothing()
    world.etcds[0].says(stream, events(watch_id, put(b"b", 12)))
    world.etcds[0].all_heard()
    assert stream in world.etcds[0].ended
    world.etcds[0].says(shared, events(shared_id, put(b"a", 13)))
    told = [event.kv.mod_revision for message in late.hears() for event in message.events]
    assert told == [4, 5, 11, 12, 13]


def test_one_that_is_ahead_is_not_told_again_by_the_shared_watcher() -> None:
    world = World(b"m")
    now = world.client()
    shared, shared_id = live(world, now, revision=10, **SAME)
    ahead, stream, watch_id = own(world, 11, revision=10)
    world.etcds[0].all_heard()
    assert stream in world.etcds[0].ended  # it could move at once
    late, stream, watch_id = own(world, 9, revision=12)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 9), put(b"b", 12), revision=12))
    world.etcds[0].all_heard()
    assert stream in world.etcds[0].ended
    world.etcds[0].says(shared, events(shared_id, put(b"b", 12)), events(shared_id, put(b"a", 13)))
    assert [len(message.events) for message in late.hears()] == [2, 1]
    assert [message.header.revision for message in ahead.hears()] == [12, 13]


def test_one_that_still_reads_its_history_or_waits_for_the_future_shares_nothing() -> None:
    world = World(b"m")
    _, stream, watch_id = own(world, 2, revision=5000)
    world.etcds[0].says(stream, events(watch_id, *[put(b"a", revision) for revision in range(2, 1002)], revision=5000))
    own(world, 9000, revision=5000)
    own(world, 4000, revision=5000)
    world.etcds[0].hears_nothing()


def test_one_that_has_joined_further_on_outlives_a_compaction_of_the_shared_watcher() -> None:
    world = World(b"m")
    first = world.client()
    live(world, first, **SAME)
    second = joined(world, 20, **SAME)
    world.etcds[0].goes()
    world.etcds[0].comes()
    stream, [create] = world.etcds[0].hears()
    assert create.start_revision == 6
    world.etcds[0].says(stream, created(create.watch_id, 30), compacted(create.watch_id, 15))
    assert first.hears() == [compacted(0, 15)]
    stream, [again] = world.etcds[0].hears()
    assert again.start_revision == 21
    world.etcds[0].says(stream, created(again.watch_id, 30), events(again.watch_id, put(b"a", 25)))
    assert second.hears() == [events(0, put(b"a", 25))]


def creates(*keys: bytes) -> bytes:
    """Creates of one client, each in a frame of its own."""
    requests = [WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key)) for key in keys]
    return b"".join(data(1, message(request.SerializeToString())) for request in requests)


def frames_heard(world: World) -> list[bytes]:
    return [frame.payload for frame in split(world.etcds[0]._caller.said()) if frame.kind == DATA]


def ids_in(heard: list[bytes]) -> list[int]:
    reader = MessageReader(2**31 - 1)
    asked = [WatchRequest.FromString(body) for payload in heard for body in reader.feed(payload)]
    return [each.create_request.watch_id for each in asked]


def test_creates_of_one_turn_leave_in_one_frame_and_are_answered_in_their_order() -> None:
    world = World(b"m")
    client = world.client()
    stream, _ = live(world, client, key=b"first")
    keys = [b"k%d" % number for number in range(20)]
    world.sends(creates(*keys))
    heard = frames_heard(world)
    assert len(heard) == 1
    ids = ids_in(heard)
    assert len(ids) == 20
    # Replies with equal headers and with another, events in between, in one piece.
    for at, watch_id in enumerate(ids[:15]):
        world.etcds[0].says(stream, created(watch_id, 5 + at // 10), events(watch_id, put(keys[at], 50 + at)))
    world.etcds[0].says(stream, *[created(watch_id, 7) for watch_id in ids[15:]])
    told = client.hears()
    expected = []
    for at in range(15):
        expected += [created(at + 1, 5 + at // 10), events(at + 1, put(keys[at], 50 + at))]
    assert told == expected + [created(at + 1, 7) for at in range(15, 20)]


def test_creates_that_do_not_fit_a_frame_all_arrive() -> None:
    world = World(b"m")
    client = world.client()
    live(world, client, key=b"first")
    world.sends(creates(*[b"k%d" % number + b"y" * 3000 for number in range(12)]))
    heard = frames_heard(world)
    assert 3 <= len(heard) < 12
    assert max(map(len, heard)) <= 16384
    assert len(ids_in(heard)) == 12


def test_a_reply_for_another_create_than_the_oldest_ends_the_call() -> None:
    world = World(b"m")
    client = world.client()
    stream, _ = live(world, client, key=b"first")
    world.sends(creates(b"k1", b"k2"))
    one, other = ids_in(frames_heard(world))
    world.etcds[0].says(stream, created(other, 5))
    assert one != other
    client.hears()
    assert client.status is not None
    assert stream in {frame.stream for frame in split(world.etcds[0]._caller.said()) if frame.kind == RST_STREAM}
