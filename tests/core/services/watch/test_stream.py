"""One client's stream: replies in the order of the requests, ids, held events, and the cost of a slow client."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from esp.core import errors
from esp.core.services.watch import stream as watch_stream
from esp.core.services.watch.messages import DUPLICATE_ID
from esp.core.wire.client_stream import STREAM_WINDOW
from esp.core.wire.limits import Limits
from esp.core.wire.status import Code
from tests.core.services.watch.world import World, canceled, compacted, created, events, live, progress, put, refused
from tests.core.wire.conversation import data

BIG = b"v" * 10_000


def test_replies_come_in_the_order_of_the_creates_whichever_shard_is_first() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(key=b"z")
    client.creates(key=b"a")
    late, [z] = world.etcds[1].hears()
    soon, [a] = world.etcds[0].hears()
    world.etcds[0].says(soon, created(a.watch_id, 5), events(a.watch_id, put(b"a", 6)))
    assert client.hears() == []
    world.etcds[1].says(late, created(z.watch_id, 2, shard=1))
    assert client.hears() == [created(0, 2, shard=1), created(1, 5), events(1, put(b"a", 6))]


def test_an_id_is_given_when_the_create_is_answered() -> None:
    world = World(b"m")
    client = world.client()
    for key in (b"a", b"b", b"c"):
        client.creates(key=key)
    stream, creates = world.etcds[0].hears()
    denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    world.etcds[0].says(stream, refused(denied), created(creates[1].watch_id, 5), created(creates[2].watch_id, 5))
    assert client.hears() == [refused(denied), created(0, 5), created(1, 5)]


def test_a_refusal_of_an_older_etcd_bears_the_id_that_the_client_asked_for() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(key=b"a", watch_id=44)
    stream, [create] = world.etcds[0].hears()
    refusal = refused("no")
    refusal.watch_id = create.watch_id
    world.etcds[0].says(stream, refusal)
    refusal.watch_id = 44
    assert client.hears() == [refusal]


def test_a_duplicate_id_is_refused_with_the_shards_header_and_the_watcher_is_taken_back() -> None:
    world = World(b"m")
    client = world.client()
    live(world, client, key=b"a", watch_id=7)
    client.creates(key=b"b", watch_id=7)
    stream, [create] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(create.watch_id, 9))
    assert client.hears() == [refused(DUPLICATE_ID, 9)]
    _, [cancel] = world.etcds[0].hears()
    assert cancel.watch_id == create.watch_id


def test_a_cancel_waits_for_the_create_before_it_and_holds_up_what_comes_after() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(key=b"a", watch_id=7)
    client.cancels(7)
    client.creates(key=b"b", watch_id=7)
    stream, [first, second] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(first.watch_id, 5), created(second.watch_id, 5))
    assert client.hears() == [created(7, 5)]
    _, [cancel] = world.etcds[0].hears()
    world.etcds[0].says(stream, canceled(cancel.watch_id, 6))
    assert client.hears() == [canceled(7, 6), created(7, 5)]


def test_events_go_on_until_the_shard_has_confirmed_the_cancel_and_not_after() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a")
    client.cancels(0)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 6)), canceled(watch_id, 6))
    assert client.hears() == [events(0, put(b"a", 6)), canceled(0, 6)]
    world.holds_nothing()


def test_a_cancel_is_answered_though_the_shard_is_away() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a")
    world.etcds[0].says(stream, events(watch_id, put(b"a", 8)))
    client.cancels(0)
    client.creates(key=b"z")
    other, [create] = world.etcds[1].hears()
    world.etcds[1].says(other, created(create.watch_id, 3, shard=1))
    world.etcds[0].goes()
    assert client.hears() == [events(0, put(b"a", 8)), canceled(0, 8), created(1, 3, shard=1)]


def test_the_watchers_of_a_call_that_is_over_end_a_few_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_stream, "SLICE", 0.0)
    world = World(b"m")
    client, other = world.client(), world.client()
    made = [live(world, client, key=b"a%d" % number) for number in range(5)]
    stream, kept = live(world, other, key=b"k")
    assert {stream} == {call for call, _ in made}
    soon: list[Callable[[], None]] = []
    world.context.turns.soon = soon.append
    client.leaves()
    left = [[asked.watch_id for asked in world.etcds[0].hears()[1]]]
    while soon:
        world.etcds[0].says(stream, *(events(watch_id, put(b"a", 6)) for _, watch_id in made))  # to nobody
        soon.pop(0)()
        left.append([asked.watch_id for asked in world.etcds[0].hears()[1]])
    assert [len(one) for one in left] == [1] * 5
    assert sorted(watch_id for one in left for watch_id in one) == [watch_id for _, watch_id in made]
    world.etcds[0].says(stream, events(kept, put(b"k", 7)))
    assert other.hears() == [events(0, put(b"k", 7))]
    world.context.turns.soon = None
    other.leaves()
    world.holds_nothing()


def test_nothing_is_said_about_ids_that_are_not_there() -> None:
    world = World(b"m")
    client = world.client()
    client.cancels(0)
    client.asks_progress()
    client.asks()
    assert client.hears() == []
    live(world, client, key=b"a")


def test_the_id_of_a_compacted_watcher_is_taken_until_it_is_canceled() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a", start_revision=2)
    world.etcds[0].says(stream, compacted(watch_id, 4))
    assert client.hears() == [compacted(0, 4)]
    client.creates(key=b"b")
    stream, [create] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(create.watch_id, 5))
    client.cancels(0)
    assert client.hears() == [created(1, 5), canceled(0, 5)]


def test_progress_comes_unasked_to_those_who_want_it() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(key=b"a", progress_notify=True)
    client.creates(key=b"a")
    stream, [create] = world.etcds[0].hears()
    assert create.progress_notify
    world.etcds[0].says(stream, created(create.watch_id, 5))
    world.etcds[0].all_heard()
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 5))
    client.hears()
    world.etcds[0].says(stream, progress(create.watch_id, 9))
    assert client.hears() == [progress(0, 9)]


def test_a_half_closed_stream_goes_on_and_a_client_that_leaves_takes_its_watchers_along() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a")
    live(world, client, key=b"b", start_revision=3)
    client.half_closes()
    world.etcds[0].says(stream, events(watch_id, put(b"a", 8)))
    assert client.hears() == [events(0, put(b"a", 8))]
    client.leaves()
    world.etcds[0].all_heard()
    world.holds_nothing()


def test_a_request_that_is_none_ends_the_stream() -> None:
    world = World(b"m")
    client = world.client()
    live(world, client, key=b"a")
    world.sends(data(client.stream, b"\0\0\0\0\x02\xff\xff"))
    client.hears()
    assert client.status is not None
    assert client.status.code == Code.INTERNAL
    assert client.status.message.startswith("grpc: error unmarshalling request")
    world.holds_nothing()


def test_a_request_that_is_too_large_ends_the_stream() -> None:
    world = World(b"m", limits=Limits(max_message_bytes=1000))
    client = world.client()
    client.creates(key=bytes(1001))
    client.hears()
    assert client.status is not None
    assert client.status.code == Code.RESOURCE_EXHAUSTED
    assert world.context.counters.limits == {"max_message_bytes": 1}


def test_a_proxy_that_ends_sends_clients_elsewhere_and_takes_its_watchers_back() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a")
    live(world, client, shard=1, key=b"z", start_revision=3)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 8)))
    world.drains(errors.SERVER_STOPPED)
    assert client.hears() == [events(0, put(b"a", 8))]
    assert client.status == errors.SERVER_STOPPED
    world.holds_nothing()


# Clients that read slowly. A stream's window is 65,535 bytes here.


def test_a_client_that_does_not_read_is_sent_away_and_others_are_not() -> None:
    world = World(b"m", limits=Limits(max_watch_buffer_bytes=100_000))
    slow, quick = world.client(), world.client()
    stream, watch_id = live(world, slow, key=b"a")
    quick.creates(key=b"a")
    world.etcds[0].all_heard()
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 5))
    quick.reads(1_000_000)
    for revision in range(6, 30):
        world.etcds[0].says(stream, events(watch_id, put(b"a", revision, BIG)))
    assert len(quick.hears()) == 1 + 24
    assert quick.status is None
    assert world.context.counters.limits == {"max_watch_buffer_bytes": 1}
    heard = slow.hears()
    assert slow.status is None
    slow.reads(1_000_000)
    heard += slow.hears()
    assert slow.status == errors.SERVER_STOPPED
    # What it has got is whole messages, without a gap: it goes on from there.
    assert [message.header.revision for message in heard] == list(range(6, 6 + len(heard)))
    assert 6 <= len(heard) < 10
    quick.leaves()
    world.etcds[0].all_heard()
    world.holds_nothing()


def test_a_message_larger_than_what_may_wait_is_delivered() -> None:
    world = World(b"m", limits=Limits(max_watch_buffer_bytes=100_000))
    client = world.client()
    stream, watch_id = live(world, client, key=b"a")
    huge = events(watch_id, *[put(b"a", revision, BIG) for revision in range(6, 56)])
    world.etcds[0].says(stream, huge)
    client.reads(2_000_000)
    [heard] = client.hears()
    assert len(heard.events) == 50
    world.etcds[0].says(stream, events(watch_id, put(b"a", 90)))
    assert client.hears() == [events(0, put(b"a", 90))]
    assert client.status is None


def test_what_waits_for_slow_clients_is_bounded_over_the_whole_process() -> None:
    world = World(b"m", limits=Limits(max_buffered_bytes=50_000))
    client = world.client()
    stream, watch_id = live(world, client, key=b"a")
    revision = 5
    while not world.context.counters.limits:
        revision += 1
        world.etcds[0].says(stream, events(watch_id, put(b"a", revision, BIG)))
        assert revision < 20, "it holds without end"
    assert world.context.counters.limits == {"max_buffered_bytes": 1}
    client.reads(1_000_000)
    client.hears()
    assert client.status == errors.SERVER_STOPPED
    world.holds_nothing()


def test_a_history_is_read_from_the_shard_no_faster_than_its_client_takes_it() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a", start_revision=2)
    world.etcds[0].window_given()
    room = STREAM_WINDOW
    revision = 5
    while room > 2 * len(BIG):
        revision += 1
        world.etcds[0].says(stream, events(watch_id, put(b"a", revision, BIG)))
        room += world.etcds[0].window_given() - len(BIG) - 100
        assert revision < 60, "it is read without end"
    client.reads(10_000_000)
    assert [message.header.revision for message in client.hears()] == list(range(6, revision + 1))
    assert world.etcds[0].window_given() > STREAM_WINDOW // 2
    assert client.status is None


def test_what_is_held_for_a_create_that_is_not_answered_is_bounded_too() -> None:
    world = World(b"m", limits=Limits(max_watch_buffer_bytes=100_000))
    client = world.client()
    client.creates(key=b"z")
    client.creates(key=b"a")
    stream, [create] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(create.watch_id, 5))
    for revision in range(6, 18):
        if client.status is None:
            world.etcds[0].says(stream, events(create.watch_id, put(b"a", revision, BIG)))
            client.hears()
    assert client.status == errors.SERVER_STOPPED


def test_a_client_that_asks_faster_than_it_is_answered_has_to_wait() -> None:
    world = World(b"m")
    client = world.client()
    number = 0
    while not client.reset:
        number += 1
        client.creates(key=b"z%d" % number)
        world.listen()
        assert number < 20_000, "it is never told to wait"
    assert world.context.counters.stream_faults == 1  # it has sent more than its window allows
