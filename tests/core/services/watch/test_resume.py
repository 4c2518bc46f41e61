"""After any break upstream, esp watches again from exactly the next revision, and clients do not notice."""

from __future__ import annotations

from typing import Any

import pytest

from esp.core import errors
from esp.core.services.watch.messages import DUPLICATE_ID
from esp.core.wire.status import Code, Status
from tests.core.services.watch.world import (
    Client,
    WatchResponse,
    World,
    compacted,
    created,
    events,
    live,
    progress,
    put,
    refused,
)
from tests.core.wire.conversation import data

INVALID_TOKEN = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"


def breaks(world: World) -> Any:
    """The shard goes and comes back; the create that it hears then, with its call."""
    etcd = world.etcds[0]
    etcd.goes()
    etcd.all_heard()
    etcd.comes()
    stream, [create] = etcd.hears()
    return stream, create


def watched(*said: WatchResponse, **create: Any) -> tuple[World, Client, int, int]:
    """A watcher that has been told `said`, whose watch id is put in here."""
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, **create)
    for message in said:
        message.watch_id = watch_id
        world.etcds[0].says(stream, message)
    client.hears()
    return world, client, stream, watch_id


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([events(0, put(b"a", 6))], 7),
        ([events(0, put(b"a", 6)), events(0, put(b"a", 9), put(b"b", 9))], 10),
        ([events(0, put(b"a", 6), put(b"a", 7), revision=30)], 8),  # catching up: more up to 30 may follow
        ([progress(0, 20)], 21),
        ([events(0, put(b"a", 6)), progress(0, 20)], 21),
        ([events(0, put(b"a", 6)), progress(0, 4)], 7),  # of a member that lags behind
        ([events(0, put(b"a", 6)), events(0, put(b"a", 9), fragment=True)], 7),  # not whole: all of it comes again
    ],
)
def test_it_resumes_behind_what_was_passed_on(start: int, said: list[WatchResponse], expected: int) -> None:
    world, client, *_ = watched(*said, key=b"a", range_end=b"c", start_revision=start, fragment=True)
    stream, create = breaks(world)
    assert create.start_revision == expected
    world.etcds[0].says(stream, created(create.watch_id, 40), events(create.watch_id, put(b"a", 41)))
    assert client.hears() == [events(0, put(b"a", 41))]
    assert client.status is None


@pytest.mark.parametrize(("start", "expected"), [(0, 6), (3, 3), (50, 50)])
def test_one_that_was_told_nothing_resumes_where_it_began(start: int, expected: int) -> None:
    world, *_ = watched(key=b"a", start_revision=start)  # created at revision 5
    _, create = breaks(world)
    assert create.start_revision == expected


def test_one_that_was_not_created_yet_is_asked_for_once_more() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(key=b"a")
    world.etcds[0].all_heard()
    stream, create = breaks(world)
    assert create.start_revision == 0
    world.etcds[0].says(stream, created(create.watch_id, 8))
    assert client.hears() == [created(0, 8)]


def test_events_up_to_the_revision_of_created_are_not_from_now_on() -> None:
    """etcd registers the watcher first and looks at its revision then; what comes between is sent all the same."""
    world, client, stream, watch_id = watched(key=b"a")
    world.etcds[0].says(stream, events(watch_id, put(b"a", 4)), events(watch_id, put(b"a", 5)))
    assert client.hears() == []
    world.etcds[0].says(stream, events(watch_id, put(b"a", 5), put(b"a", 6), revision=7))
    assert client.hears() == [events(0, put(b"a", 6), revision=7)]
    _, create = breaks(world)
    assert create.start_revision == 7


def test_what_comes_twice_is_told_once() -> None:
    world, client, stream, watch_id = watched(events(0, put(b"a", 6)), key=b"a")
    world.etcds[0].says(stream, events(watch_id, put(b"a", 6)), events(watch_id, put(b"a", 6), put(b"a", 7)))
    assert client.hears() == [events(0, put(b"a", 7))]


def test_fragments_of_several_watchers_of_one_stream_do_not_mix() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a", fragment=True)
    client.creates(key=b"a", fragment=True)
    world.etcds[0].all_heard()
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 5))
    client.hears()
    fragments = [events(watch_id, put(key, 9), revision=9, fragment=key == b"a") for key in (b"a", b"b")]
    world.etcds[0].says(stream, *fragments)
    assert [(message.watch_id, message.fragment) for message in client.hears()] == [
        (0, True),
        (0, False),
        (1, True),
        (1, False),
    ]


def test_fragments_are_passed_on_together_and_nothing_comes_between() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a", fragment=True)
    other, other_id = live(world, client, shard=1, key=b"z")
    world.etcds[0].says(stream, events(watch_id, put(b"a", 9), revision=12, fragment=True))
    world.etcds[1].says(other, events(other_id, put(b"z", 7), shard=1))
    world.etcds[0].says(stream, events(watch_id, put(b"b", 9), revision=12, fragment=True))
    world.etcds[1].says(other, events(other_id, put(b"z", 8), shard=1))
    assert client.hears() == [events(1, put(b"z", 7), shard=1), events(1, put(b"z", 8), shard=1)]
    world.etcds[0].says(stream, events(watch_id, put(b"a", 12)))
    assert client.hears() == [
        events(0, put(b"a", 9), revision=12, fragment=True),
        events(0, put(b"b", 9), revision=12, fragment=True),
        events(0, put(b"a", 12)),
    ]


@pytest.mark.parametrize("start", [0, 3])
def test_what_was_compacted_meanwhile_is_told_as_etcd_tells_it(start: int) -> None:
    world, client, *_ = watched(events(0, put(b"a", 6)), key=b"a", start_revision=start)
    stream, create = breaks(world)
    world.etcds[0].says(stream, created(create.watch_id, 40), compacted(create.watch_id, 30))
    assert client.hears() == [compacted(0, 30)]
    assert client.status is None


@pytest.mark.parametrize("start", [0, 3])
def test_a_refusal_when_resuming_sends_the_client_back_with_a_new_token(start: int) -> None:
    world, client, *_ = watched(key=b"a", start_revision=start)
    stream, _ = breaks(world)
    world.etcds[0].says(stream, refused(INVALID_TOKEN))
    assert client.hears() == []
    assert client.status == errors.SERVER_STOPPED
    world.holds_nothing()


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize(
    "status",
    [
        errors.SERVER_STOPPED,
        Status(Code.CANCELLED, "etcdserver: watch canceled"),
        Status(Code.UNKNOWN, "context deadline exceeded"),
        Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded"),
        Status(Code.ABORTED, "?"),
    ],
)
def test_a_call_that_the_shard_ends_is_opened_again(start: int, status: Status) -> None:
    world, client, stream, _ = watched(key=b"a", start_revision=start)
    world.etcds[0].ends(stream, status)
    again, [create] = world.etcds[0].hears()
    assert again != stream
    world.etcds[0].says(again, created(create.watch_id, 5), events(create.watch_id, put(b"a", 60)))
    assert client.hears() == [events(0, put(b"a", 60))]


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("status", [errors.NO_LEADER, Status(Code.PERMISSION_DENIED, "no")])
def test_what_would_be_the_same_again_is_told(start: int, status: Status) -> None:
    world, client, stream, _ = watched(key=b"a", start_revision=start)
    world.etcds[0].ends(stream, status)
    client.hears()
    assert client.status == status
    world.holds_nothing()


def test_a_member_that_the_shard_has_left_is_left() -> None:
    world, client, stream, _ = watched(events(0, put(b"a", 6)), key=b"a")
    world.etcds[0].moves()
    world.etcds[0].all_heard()
    assert world.etcds[0].ended == {stream}
    world.etcds[0].comes()
    again, [create] = world.etcds[0].hears()
    assert create.start_revision == 7
    world.etcds[0].says(again, created(create.watch_id, 6), events(create.watch_id, put(b"a", 7)))
    assert client.hears() == [events(0, put(b"a", 7))]


def test_all_watchers_of_a_call_come_back_each_at_its_own_revision() -> None:
    world = World(b"m")
    client = world.client()
    ids = {}
    for key in (b"a", b"b", b"c"):
        stream, ids[key] = live(world, client, key=key)
    world.etcds[0].says(stream, events(ids[b"a"], put(b"a", 20)), events(ids[b"b"], put(b"b", 30)))
    client.hears()
    world.etcds[0].goes()
    world.etcds[0].comes()
    stream, creates = world.etcds[0].hears()
    assert [(create.key, create.start_revision) for create in creates] == [(b"a", 21), (b"b", 31), (b"c", 6)]
    world.etcds[0].says(stream, *[created(create.watch_id, 40) for create in creates])
    world.etcds[0].says(stream, *[events(create.watch_id, put(create.key, 41)) for create in creates])
    assert client.hears() == [events(number, put(key, 41)) for number, key in enumerate(ids)]


def test_what_cannot_be_read_ends_the_call_and_not_the_watch() -> None:
    world, client, stream, _ = watched(key=b"a")
    world.etcds[0]._caller.hears(data(stream, b"\0\0\0\0\x02\xff\xff"))
    again, [create] = world.etcds[0].hears()
    assert again != stream
    world.etcds[0].says(again, created(create.watch_id, 5), events(create.watch_id, put(b"a", 9)))
    assert client.hears() == [events(0, put(b"a", 9))]


def test_a_watcher_that_waits_to_join_when_the_shard_goes_joins_when_it_is_back() -> None:
    world, *_ = watched(events(0, put(b"a", 6)), key=b"a")
    second = world.client()
    second.creates(key=b"a")
    world.etcds[0].all_heard()
    stream, create = breaks(world)
    world.etcds[0].says(stream, created(create.watch_id, 10))
    _, [question] = world.etcds[0].hears()
    assert question.watch_id == create.watch_id
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 12), events(create.watch_id, put(b"a", 11)))
    world.etcds[0].says(stream, events(create.watch_id, put(b"a", 13)))
    assert second.hears() == [created(0, 12), events(0, put(b"a", 13))]
