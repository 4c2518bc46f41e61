"""Clients that ask for too much, shards that always fail, and bugs: which clients are affected, and how much."""

from __future__ import annotations

import gc
import logging
from itertools import product
from unittest.mock import patch

import pytest

from esp.core import errors
from esp.core.background import Background
from esp.core.services.watch import pool, progress_requests, upstream
from esp.core.services.watch.call import WatchCall
from esp.core.services.watch.messages import DUPLICATE_ID
from esp.core.services.watch.outbox import Outbox
from esp.core.wire.limits import Limits
from esp.core.wire.status import Code, Status
from tests.core.services.watch.test_across import ALL
from tests.core.services.watch.world import (
    Timers,
    WatchResponse,
    World,
    canceled,
    compacted,
    created,
    events,
    header,
    live,
    progress,
    put,
    refused,
)
from tests.core.wire.conversation import data, message

BIG = b"v" * 10_000
TOO_LARGE = Status(Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (2097160 vs. 2097152)")


# What clients ask for.


def test_a_create_that_is_too_large_for_the_shard_ends_its_own_clients_stream_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """etcd answers it by ending the call that it came in."""
    monkeypatch.setattr(pool, "LARGEST_SHARED", 1000)
    world = World(b"m")
    bystander, greedy = world.client(), world.client()
    shared, watch_id = live(world, bystander, key=b"a")
    greedy.creates(key=b"a" * 1001)
    call, [_] = world.etcds[0].hears()
    assert call != shared
    world.etcds[0].ends(call, TOO_LARGE)
    greedy.hears()
    assert greedy.status == TOO_LARGE
    world.etcds[0].says(shared, events(watch_id, put(b"a", 6)))
    assert bystander.hears() == [events(0, put(b"a", 6))]
    assert bystander.status is None


def test_watchers_of_large_keys_are_not_shared_and_otherwise_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LARGEST_SHARED", 1000)
    world = World(b"m")
    key = b"a" * 1001
    clients = [world.client(), world.client()]
    for client in clients:
        call, watch_id = live(world, client, key=key)
        world.etcds[0].says(call, events(watch_id, put(key, 6)))
        assert client.hears() == [events(0, put(key, 6))]
    for client in clients:
        client.cancels(0)
        call, [cancel] = world.etcds[0].hears()
        world.etcds[0].says(call, canceled(cancel.watch_id, 6))
        assert client.hears() == [canceled(0, 6)]
        world.etcds[0].all_heard()
    world.holds_nothing()


def test_filters_that_etcd_does_not_know_are_left_out() -> None:
    world = World(b"m")
    world.client().creates(key=b"a", filters=[5, 1, *range(100, 5000)])
    _, [asked] = world.etcds[0].hears()
    assert list(asked.filters) == [1]


def test_one_address_cannot_have_the_last_watchers() -> None:
    world = World(b"m", limits=Limits(max_watcher_bytes=400_000))
    clients = [world.client() for _ in range(4)]
    for number in range(60):
        for client in clients:
            client.creates(key=b"a%d" % number)
    full = world.watch.watchers.used
    assert 347_000 < full <= 350_000
    world._server.connection.peer = "10.0.0.2:1"
    other = world.client()
    other.creates(key=b"b")
    other.creates(key=b"c")
    other.creates(key=b"d")
    other.creates(key=b"e")
    *_, asked = world.etcds[0].hears()
    assert [create.key for create in asked[-3:]] == [b"b", b"c", b"d"], "a 64th of all"
    assert world.watch.watchers.used > full


def test_watchers_are_bounded_and_one_more_is_refused() -> None:
    world = World(b"m", limits=Limits(max_watcher_bytes=40_000))
    client, other = world.client(), world.client()
    admitted = 0
    while world.context.counters.limits == {}:
        client.creates(key=b"a%d" % admitted)
        admitted += 1
        assert admitted < 40, "it takes them without end"
    assert world.context.counters.limits == {"max_watcher_bytes": 1}
    admitted -= 1
    call, asked = world.etcds[0].hears()
    assert len(asked) == admitted
    for create in asked:
        world.etcds[0].says(call, created(create.watch_id, 5))
    *replies, refusal = client.hears()
    assert replies == [created(number, 5) for number in range(admitted)]
    assert (refusal.created, refusal.canceled, refusal.watch_id) == (True, True, -1)
    assert refusal.cancel_reason == "etcdserver: too many requests"
    live(world, other, key=b"z", shard=1)  # one client cannot have all of it
    client.cancels(0)
    call, [cancel] = world.etcds[0].hears()
    world.etcds[0].says(call, canceled(cancel.watch_id, 5))
    assert client.hears() == [canceled(0, 5)]
    live(world, client, key=b"again")
    assert client.status is None
    client.leaves()
    other.leaves()
    for etcd in world.etcds:
        etcd.all_heard()
    world.holds_nothing()


def test_a_stream_that_watches_and_cancels_again_and_again_keeps_nothing_of_it() -> None:
    world = World(b"m")
    client = world.client()

    def upstreams() -> int:
        gc.collect()
        return sum(isinstance(each, upstream.Upstream) for each in gc.get_objects())

    before = upstreams()
    for number in range(30):
        call, watch_id = live(world, client, key=b"a", start_revision=2 * (number % 2))
        client.asks_progress()
        client.cancels(number)
        world.etcds[0].says(call, canceled(watch_id, 5))
        assert client.hears() == [canceled(number, 5)]
        world.etcds[0].all_heard()
    assert upstreams() - before <= 2
    world.holds_nothing()


def test_progress_requests_that_come_while_one_is_out_are_asked_together() -> None:
    world = World(b"m")
    client, other = world.client(), world.client()
    call, _ = live(world, client, key=b"a")
    live(world, other, key=b"b")
    for _ in range(100):
        client.asks_progress()
    other.asks_progress()
    assert len(world.etcds[0].hears()[1]) == 1
    world.etcds[0].says(call, progress(-1, 8))
    assert client.hears() == [progress(-1, 8)]
    assert other.hears() == []  # it asked later: this may be too old
    assert len(world.etcds[0].hears()[1]) == 1
    world.etcds[0].says(call, progress(-1, 9))
    assert client.hears() == [progress(-1, 9)] * 99  # as etcd would: one for each
    assert other.hears() == [progress(-1, 9)]
    world.etcds[0].hears_nothing()


def test_a_progress_request_that_the_shard_passed_over_does_not_silence_later_ones() -> None:
    """etcd says nothing while a watcher of the call lags behind."""
    world = World(b"m")
    client = world.client()
    call, _ = live(world, client, key=b"a")
    client.asks_progress()
    world.etcds[0].hears()
    with patch.object(progress_requests, "monotonic", lambda: 1e12):
        client.asks_progress()
    assert len(world.etcds[0].hears()[1]) == 1
    world.etcds[0].says(call, progress(-1, 9))
    assert client.hears() == [progress(-1, 9)] * 2


def test_progress_of_an_earlier_question_is_no_answer_to_a_later_one() -> None:
    world = World(b"m")
    client = world.client()
    shared, _ = live(world, client, key=b"a")
    own, _ = live(world, client, key=b"b", start_revision=3)
    client.asks_progress()
    world.etcds[0].all_heard()
    world.etcds[0].says(shared, progress(-1, 12))  # the other lags behind, and so says nothing
    with patch.object(progress_requests, "monotonic", lambda: 1e12):
        client.asks_progress()
    world.etcds[0].says(own, progress(-1, 20))
    assert client.hears() == []
    world.etcds[0].says(shared, progress(-1, 21))
    assert client.hears() == [progress(-1, 20)]


# Memory.


def test_requests_that_wait_in_line_count() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(key=b"a")
    for number in range(200):
        client.cancels(number)
        client.asks_progress()
    assert world.context.buffers.used > 400 * 64
    call, [create] = world.etcds[0].hears()
    world.etcds[0].says(call, created(create.watch_id, 5))
    world.etcds[0].says(call, canceled(create.watch_id, 5))
    assert client.hears() == [created(0, 5), canceled(0, 5)]
    world.holds_nothing()


def test_a_stream_whose_requests_wait_for_too_long_in_line_ends_and_gives_back_what_it_took() -> None:
    world = World(b"m", limits=Limits(max_watch_buffer_bytes=5_000))
    client = world.client()
    for number in range(100):
        if client.status is None:
            client.creates(key=b"a%d" % number)
            client.hears()
    assert client.status == errors.SERVER_STOPPED
    world.etcds[0].all_heard()
    world.holds_nothing()


def test_a_request_that_is_not_whole_counts() -> None:
    world = World(b"m")
    client = world.client()
    body = message(b"x" * 1_000_000)
    for at in range(0, 320_000, 16_000):
        world.sends(data(client.stream, body[at : at + 16_000]))
    assert world.context.buffers.used >= 320_000
    client.leaves()
    world.holds_nothing()


def test_what_is_held_for_a_create_that_waits_for_a_shard_counts_over_the_whole_process() -> None:
    world = World(b"m", limits=Limits(max_buffered_bytes=50_000))
    client = world.client()
    client.creates(**ALL)
    call, [part] = world.etcds[0].hears()
    world.etcds[0].says(call, created(part.watch_id, 5))
    for revision in range(6, 9):
        world.etcds[0].says(call, events(part.watch_id, put(b"a", revision, BIG)))
    assert world.context.buffers.used > 30_000
    revision = 8
    while not world.context.counters.limits:
        revision += 1
        world.etcds[0].says(call, events(part.watch_id, put(b"a", revision, BIG)))
        assert revision < 20, "it holds without end"
    client.hears()
    assert client.status == errors.SERVER_STOPPED
    for etcd in world.etcds:
        etcd.all_heard()
    world.holds_nothing()


def test_a_message_larger_than_what_may_wait_is_delivered() -> None:
    """Or its client would come back for the same one for ever."""
    world = World(b"m", limits=Limits(max_watch_buffer_bytes=100_000))
    client = world.client()
    call, watch_id = live(world, client, key=b"a")
    huge = events(watch_id, *[put(b"a", revision, BIG) for revision in range(6, 56)])
    for _ in range(2):
        world.etcds[0].says(call, huge)
        assert client.hears() == []
        client.reads(600_000)
        [heard] = client.hears()
        assert len(heard.events) == 50
        huge = events(watch_id, *[put(b"a", revision, BIG) for revision in range(56, 106)])
    assert client.status is None
    assert world.context.counters.limits == {}
    assert world.context.buffers.used == 0


@pytest.mark.parametrize("start", [0, 3])
def test_one_event_that_is_not_whole_counts_and_without_room_its_clients_come_again(start: int) -> None:
    world = World(b"m", limits=Limits(max_buffered_bytes=50_000))
    client, other = world.client(), world.client()
    call, watch_id = live(world, client, key=b"a", start_revision=start, fragment=True)
    live(world, other, shard=1, key=b"z")
    body = message(events(watch_id, put(b"a", 6, b"v" * 100_000)).SerializeToString())
    world.etcds[0]._caller.hears(data(call, body[:16_000]), data(call, body[16_000:32_000]))
    assert world.context.buffers.used >= 32_000
    world.etcds[0]._caller.hears(data(call, body[32_000:48_000]), data(call, body[48_000:64_000]))
    client.hears()
    assert client.status == errors.SERVER_STOPPED
    assert world.context.counters.limits == {"max_buffered_bytes": 1}
    other.leaves()
    for etcd in world.etcds:
        etcd.all_heard()
    assert other.status is None
    world.holds_nothing()


@pytest.mark.parametrize(("start", "fragment"), [*product([0, 3], [True, False])])
def test_a_message_without_room_is_asked_for_in_fragments(
    start: int, fragment: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As etcd sends it: first as one, where nobody has asked for fragments."""
    world = World(b"m", limits=Limits(max_buffered_bytes=100_000))
    client, other = world.client(), world.client()
    call, watch_id = live(world, client, key=b"a", start_revision=start, fragment=fragment)
    live(world, other, key=b"b", start_revision=start)
    sent = [put(b"a", revision, BIG) for revision in (6, 7, 7, 8, 8, 9, 10, 10, 11, 12, 12, 12, 13, 14, 15, 15)]
    pieces = [sent[at : at + 2] for at in range(0, 16, 2)]
    if not fragment:
        body = message(events(watch_id, *sent, revision=30).SerializeToString())
        for at in range(0, 112_000, 16_000):
            world.etcds[0]._caller.hears(data(call, body[at : at + 16_000]))
        asked = [(stream, request.create_request) for stream, request in world.etcds[0].all_heard()]
        assert "asking for it in fragments" in caplog.text
        [again] = [create for stream, create in asked if stream != call and create.key == b"a"]
        assert (again.fragment, again.start_revision) == (True, start or 6)
        call = max(stream for stream, _ in asked)
        world.etcds[0].says(call, created(watch_id, 30))
    heard = []
    for number, piece in enumerate(pieces):
        world.etcds[0].says(call, events(watch_id, *piece, revision=30, fragment=number < len(pieces) - 1))
        heard += client.hears()
        client.reads(200_000)
    heard += client.hears()
    assert [event for each in heard for event in each.events] == sent
    assert any(each.fragment for each in heard) == fragment
    for each in heard:
        each.ClearField("events")
        each.fragment = False
        assert each == WatchResponse(header=header(30), watch_id=0)
    assert (client.status, other.status) == (None, None)
    assert world.context.counters.limits == ({} if fragment else {"max_buffered_bytes": 1})
    assert world.context.buffers.used == 0


def test_fragments_for_which_there_is_no_room_at_the_moment_end_the_streams_of_their_clients() -> None:
    """They come again, and others may hold less by then."""
    world = World(b"m", b"t", b"x", limits=Limits(max_buffered_bytes=50_000))
    client = world.client()
    call, watch_id = live(world, client, key=b"a", fragment=True)
    for shard, key in ((1, b"n"), (2, b"u"), (3, b"y")):
        stream, other = live(world, world.client(), shard=shard, key=key)
        half = message(events(other, put(key, 6, b"v" * 40_000)).SerializeToString())[:13_600]
        world.etcds[shard]._caller.hears(data(stream, half))
    for _ in range(2):
        world.etcds[0].says(call, events(watch_id, put(b"a", 6, BIG[:8_000]), fragment=True))
    client.hears()
    assert client.status == errors.SERVER_STOPPED
    assert world.context.counters.limits == {"max_buffered_bytes": 1}
    assert world.context.buffers.used == 3 * 13_600


@pytest.mark.parametrize(("start", "fragment"), [*product([0, 3], [True, False])])
def test_a_revision_for_which_there_will_never_be_room_ends_its_watchers_as_compacted(
    start: int, fragment: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Or they would come again for it without end."""
    world = World(b"m", limits=Limits(max_buffered_bytes=50_000))
    client = world.client()
    call, watch_id = live(world, client, key=b"a", start_revision=start, fragment=fragment)
    client.creates(key=b"b", start_revision=start)
    for stream, request in world.etcds[0].all_heard():
        beside = stream, request.create_request.watch_id
    world.etcds[0].says(beside[0], created(beside[1], 5))
    client.hears()
    while call not in world.etcds[0].ended:
        world.etcds[0].says(call, events(watch_id, put(b"a", 6, BIG), fragment=True))
        heard = [(stream, request.create_request.watch_id) for stream, request in world.etcds[0].all_heard()]
    assert client.hears() == [compacted(0, 7)]
    beside = next(each for each in heard if each[1] == beside[1])
    world.etcds[0].says(beside[0], created(beside[1], 9))
    assert "no memory for revision 6: its watchers are told it is compacted" in caplog.text
    assert world.context.counters.limits == {"max_buffered_bytes": 1}
    world.etcds[0].says(beside[0], events(beside[1], put(b"b", 7)))
    assert client.hears() == [events(1, put(b"b", 7))]
    client.leaves()
    world.etcds[0].all_heard()
    world.holds_nothing()


@pytest.mark.parametrize("start", [0, 3])
def test_fragments_without_room_are_passed_on_as_far_as_revisions_are_whole(start: int) -> None:
    world = World(b"m", limits=Limits(max_buffered_bytes=50_000))
    client = world.client()
    call, watch_id = live(world, client, key=b"a", range_end=b"c", start_revision=start, fragment=True)
    revisions = [6, 7, 7, 8, 8, 9, 10, 10, 11, 12]
    sent = [put(b"a", revision, BIG) for revision in revisions]
    cuts = [sent[at : at + 2] for at in range(1, 9, 2)]  # each cut lies inside a revision, or between two
    pieces = [[sent[0]], *cuts, [sent[9]]]
    heard = []
    for number, piece in enumerate(pieces):
        world.etcds[0].says(call, events(watch_id, *piece, revision=30, fragment=number < len(pieces) - 1))
        heard += client.hears()
        client.reads(200_000)
    heard += client.hears()
    assert [event for each in heard for event in each.events] == sent
    responses: list[set[int]] = [set()]
    for one in heard:
        responses[-1] |= {event.kv.mod_revision for event in one.events}
        if not one.fragment:
            responses.append(set())
    assert responses.pop() == set()
    assert len(responses) > 2
    assert sum(map(len, responses)) == len(set(revisions)), "a revision is in one response"
    assert client.status is None
    world.etcds[0].resets(call)
    _, [create] = world.etcds[0].hears()
    assert create.start_revision == 13
    assert world.context.buffers.used == 0


def test_a_break_in_fragments_goes_on_behind_what_was_passed_on() -> None:
    world = World(b"m", limits=Limits(max_buffered_bytes=50_000))
    client = world.client()
    call, watch_id = live(world, client, key=b"a", start_revision=3, fragment=True)
    for revision in range(6, 12):
        world.etcds[0].says(call, events(watch_id, put(b"a", revision, BIG), revision=30, fragment=True))
    heard = [event.kv.mod_revision for message in client.hears() for event in message.events]
    assert heard
    assert len(heard) < 6
    world.etcds[0].resets(call)
    _, [create] = world.etcds[0].hears()
    assert create.start_revision == heard[-1] + 1
    assert client.status is None


def test_a_clients_own_history_waits_in_the_shards_call_while_the_client_does_not_read() -> None:
    """It comes as fast as it was asked for: no slowness ends the stream, and nothing comes for a second time."""
    world = World(b"m", limits=Limits(max_watch_buffer_bytes=100_000))
    client = world.client()
    call, watch_id = live(world, client, key=b"a", start_revision=3)
    stream, other_id = live(world, client, key=b"b")
    world.etcds[0].says(call, *(events(watch_id, put(b"a", 6 + at, BIG * 12)) for at in range(3)))
    for revision in range(40, 45):
        world.etcds[0].says(stream, events(other_id, put(b"b", revision)))
    told = []
    while len(told) < 8:
        client.reads(65_536)
        told += [(message.watch_id, message.events[0].kv.mod_revision) for message in client.hears()]
    assert client.status is None
    assert world.context.counters.limits == {}
    assert sorted(told) == [(0, 6), (0, 7), (0, 8), *((1, revision) for revision in range(40, 45))]


def test_a_reply_that_a_create_waits_for_is_read_beside_what_is_held_for_it() -> None:
    world = World(b"m", limits=Limits(max_watch_buffer_bytes=100_000))
    client = world.client()
    client.creates(key=b"a", range_end=b"z", start_revision=1)
    calls = []
    for etcd in world.etcds:
        call, [asked] = etcd.hears()
        calls.append((call, asked.watch_id))
    (one, a), (two, b) = calls
    world.etcds[0].says(one, created(a, 9), *(events(a, put(b"a", 3 + at, BIG * 12)) for at in range(3)))
    assert client.hears() == []
    assert world.etcds[0].window_given() < 300_000
    world.etcds[1].says(two, created(b, 4, shard=1))
    told = 0
    while told < 4:
        client.reads(65_536)
        told += len(client.hears())
    assert client.status is None


def test_what_was_kept_of_a_message_is_given_back_when_the_call_breaks() -> None:
    world = World(b"m")
    client = world.client()
    call, watch_id = live(world, client, key=b"a", fragment=True)
    world.etcds[0].says(call, events(watch_id, put(b"a", 6, BIG), fragment=True))
    body = message(events(watch_id, put(b"a", 6, BIG)).SerializeToString())
    world.etcds[0]._caller.hears(data(call, body[:9000]))
    assert world.context.buffers.used > 18_000
    world.etcds[0].goes()
    assert world.context.buffers.used == 0


def test_a_compacted_watchers_id_is_free_in_the_shard() -> None:
    world = World(b"m")
    client = world.client()
    call, first = live(world, client, key=b"a", start_revision=2)
    live(world, client, key=b"b", start_revision=2)
    world.etcds[0].says(call, compacted(first, 4))
    assert client.hears() == [compacted(0, 4)]
    _, [cancel] = world.etcds[0].hears()
    assert cancel.watch_id == first
    world.etcds[0].says(call, canceled(first, 9))
    assert client.hears() == []


# Shards that never stop failing.


@pytest.mark.parametrize("start", [0, 3])
def test_a_shard_that_ends_each_call_is_not_asked_without_a_pause(start: int) -> None:
    world = World(b"m")
    client = world.client()
    with patch.object(Background, "later", Timers()) as timers:
        call, _ = live(world, client, key=b"a", start_revision=start)
        for number in range(5):
            world.etcds[0].ends(call, Status(Code.UNKNOWN, "context deadline exceeded"))
            if number:
                world.etcds[0].hears_nothing()
                timers.ring()
            call, [create] = world.etcds[0].hears()
            world.etcds[0].says(call, created(create.watch_id, 5))
        world.etcds[0].says(call, events(create.watch_id, put(b"a", 6)))
    assert client.hears() == [events(0, put(b"a", 6))]
    assert client.status is None


def test_a_call_that_fails_while_watchers_are_created_in_it_mixes_up_no_replies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(b"m")
    client = world.client()
    keys = [b"a", b"b", b"c", b"d", b"e"]
    for key in keys:
        live(world, client, key=key)
    etcd = world.etcds[0]
    etcd.goes()
    request = WatchCall.request
    sent = 0

    def runs_out_of_memory(self: WatchCall, body: bytes) -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            self.on_buffers_full()
        else:
            request(self, body)

    monkeypatch.setattr(WatchCall, "request", runs_out_of_memory)
    etcd.comes()
    heard = etcd.all_heard()
    call = heard[-1][0]
    creates = [asked.create_request for stream, asked in heard if stream == call]
    assert [create.key for create in creates] == keys
    etcd.says(call, *[created(create.watch_id, 5) for create in creates[:2]])
    etcd.says(call, refused("no"))
    client.hears()
    assert client.status == errors.SERVER_STOPPED  # and not by a reply to another create


def test_a_shard_that_watches_under_another_id_than_was_asked_for_is_blamed(caplog: pytest.LogCaptureFixture) -> None:
    """As etcd's grpc-proxy does: the events would go to nobody, or to another client."""
    world = World(b"m")
    client, other = world.client(), world.client()
    live(world, other, shard=1, key=b"z")
    client.creates(key=b"a")
    stream, [create] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(create.watch_id - 1, 5), events(create.watch_id - 1, put(b"a", 6)))
    assert client.hears() == []
    assert client.status == errors.garbled("s0", "gives a watch another id than was asked for")
    assert "an answer of None gives a watch another id than was asked for" in caplog.text
    world.etcds[0].all_heard()
    assert stream in world.etcds[0].ended
    other.hears()
    assert other.status is None


def test_a_shard_that_watches_twice_under_one_id_is_blamed_and_who_watched_already_goes_on() -> None:
    world = World(b"m")
    first, second = world.client(), world.client()
    stream, watch_id = live(world, first, key=b"a")
    second.creates(key=b"a")
    world.etcds[0].all_heard()
    world.etcds[0].says(stream, created(watch_id, 5), events(watch_id, put(b"a", 6)))
    second.hears()
    assert second.status == errors.garbled("s0", "watches twice under one id")
    again, [create] = world.etcds[0].hears()
    assert again != stream
    assert stream in world.etcds[0].ended
    assert create.start_revision == 6
    world.etcds[0].says(again, created(create.watch_id, 6), events(create.watch_id, put(b"a", 6)))
    assert first.hears() == [events(0, put(b"a", 6))]
    assert first.status is None


# Bugs.


def test_a_bug_in_one_clients_stream_ends_that_one_and_neither_repeats_nor_loses_anything_for_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(b"m")
    clients = [world.client() for _ in range(3)]
    call, watch_id = live(world, clients[0], key=b"a")
    for client in clients[1:]:
        client.creates(key=b"a")
    world.etcds[0].all_heard()
    world.etcds[0].says(call, refused(DUPLICATE_ID, 5))
    world.etcds[0].all_heard()
    world.etcds[0].says(call, refused(DUPLICATE_ID, 5))
    assert [len(client.hears()) for client in clients[1:]] == [1, 1]
    send = Outbox.send

    def fails(self: Outbox, body: bytes) -> None:
        if self.down.id == clients[1].stream:
            raise ValueError("a bug")
        send(self, body)

    monkeypatch.setattr(Outbox, "send", fails)
    with caplog.at_level(logging.ERROR):
        world.etcds[0].says(call, events(watch_id, put(b"a", 6)))
    assert "a bug" in caplog.text
    clients[1].hears()
    assert clients[1].status == errors.SERVER_STOPPED
    world.etcds[0].hears_nothing()  # and the shard's call goes on
    world.etcds[0].says(call, events(watch_id, put(b"a", 7)))
    for client in (clients[0], clients[2]):
        assert client.hears() == [events(0, put(b"a", 6)), events(0, put(b"a", 7))]
