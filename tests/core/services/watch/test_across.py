"""A watcher over several shards: one to its client, and no shard's numbers mixed with another's."""

from __future__ import annotations

from esp.core.services.watch.messages import DUPLICATE_ID
from tests.core.services.watch.world import (
    Client,
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

ALL = {"key": b"\0", "range_end": b"\0"}


def merged(world: World, message: WatchResponse) -> WatchResponse:
    """The same with esp's ids."""
    if message.HasField("header"):
        message.header.cluster_id = world.routing.identity.cluster_id
        message.header.member_id = world.routing.identity.member_id
    return message


def both_create(world: World, client: Client, revisions: tuple[int, int], **create: object) -> list[tuple[int, int]]:
    """The calls and ids of a watcher in two shards."""
    client.creates(**create)
    parts = []
    for number, (etcd, revision) in enumerate(zip(world.etcds, revisions, strict=True)):
        stream, [asked] = etcd.hears()
        etcd.says(stream, created(asked.watch_id, revision, shard=number))
        parts.append((stream, asked.watch_id))
    return parts


def test_each_shard_is_asked_for_its_part_only() -> None:
    world = World(b"g", b"m", b"t")
    client = world.client()
    client.creates(key=b"h", range_end=b"u", prev_kv=True, filters=[1], fragment=True)
    world.etcds[0].hears_nothing()
    for number, part in ((1, (b"h", b"m")), (2, (b"m", b"t")), (3, (b"t", b"u"))):
        _, [asked] = world.etcds[number].hears()
        assert (asked.key, asked.range_end) == part
        assert (asked.prev_kv, list(asked.filters), asked.fragment, asked.start_revision) == (True, [1], True, 0)


def test_it_is_created_once_when_all_are_there_with_the_lowest_revision() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(**ALL)
    one, [a] = world.etcds[0].hears()
    two, [z] = world.etcds[1].hears()
    world.etcds[0].says(one, created(a.watch_id, 9), events(a.watch_id, put(b"a", 10)))
    assert client.hears() == []
    world.etcds[1].says(two, created(z.watch_id, 4, shard=1), events(z.watch_id, put(b"z", 5), shard=1))
    assert client.hears() == [
        merged(world, created(0, 4)),
        merged(world, events(0, put(b"a", 10))),
        merged(world, events(0, put(b"z", 5))),
    ]


def test_it_is_never_created_at_a_revision_that_means_from_the_beginning() -> None:
    """A client that comes back from there would be told all history again, where it should list."""
    world = World(b"m")
    client = world.client()
    both_create(world, client, (9, 1), **ALL)
    assert client.hears() == [merged(world, created(0, 2))]


def test_messages_of_shards_are_never_joined_and_their_order_is_kept() -> None:
    world = World(b"m")
    client = world.client()
    (one, a), (two, z) = both_create(world, client, (9, 4), **ALL)
    world.etcds[0].says(one, events(a, put(b"a", 10), put(b"b", 10)))
    world.etcds[1].says(two, events(z, put(b"z", 5), shard=1), events(z, put(b"z", 6), put(b"z", 7), shard=1))
    world.etcds[0].says(one, events(a, put(b"a", 11)))
    assert [[event.kv.mod_revision for event in message.events] for message in client.hears()[1:]] == [
        [10, 10],
        [5],
        [6, 7],
        [11],
    ]


def test_a_shard_that_owns_two_parts_of_the_range_watches_them_as_one() -> None:
    """So that a revision of it stays one message; what others own in between is not its to tell."""
    world = World(b"g", b"m", owners=(0, 1, 0))
    client = world.client()
    client.creates(key=b"b", range_end=b"x")
    one, [hull] = world.etcds[0].hears()
    two, [middle] = world.etcds[1].hears()
    assert (hull.key, hull.range_end) == (b"b", b"x")
    assert (middle.key, middle.range_end) == (b"g", b"m")
    world.etcds[0].says(one, created(hull.watch_id, 5))
    world.etcds[1].says(two, created(middle.watch_id, 5, shard=1))
    client.hears()
    world.etcds[0].says(one, events(hull.watch_id, put(b"c", 6), put(b"h", 6), put(b"n", 6)))
    world.etcds[0].says(one, events(hull.watch_id, put(b"h", 7)))
    assert client.hears() == [merged(world, events(0, put(b"c", 6), put(b"n", 6)))]


def test_a_range_in_two_parts_of_one_shard_without_another_between_spans_none() -> None:
    world = World(b"g", b"m", owners=(0, 1, 0))
    client = world.client()
    live(world, client, key=b"b", range_end=b"c")
    world.etcds[1].hears_nothing()


def test_from_the_beginning_means_so_on_every_shard() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(**ALL, start_revision=1)
    for etcd in world.etcds:
        _, [asked] = etcd.hears()
        assert asked.start_revision == 1


def test_any_other_revision_is_answered_as_compacted() -> None:
    world = World(b"m")
    client = world.client()
    both_create(world, client, (9, 4), **ALL, start_revision=7)
    end = compacted(0, 4)
    assert client.hears() == [merged(world, created(0, 4)), merged(world, end)]
    for etcd in world.etcds:
        etcd.all_heard()
    client.creates(key=b"a", watch_id=3)
    stream, [asked] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(asked.watch_id, 9))
    client.cancels(0)
    assert client.hears() == [created(3, 9), merged(world, canceled(0, 4))]


def test_a_refusal_by_one_shard_is_the_answer_and_the_others_are_taken_back() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(**ALL)
    one, [a] = world.etcds[0].hears()
    two, _ = world.etcds[1].hears()
    world.etcds[0].says(one, created(a.watch_id, 9))
    world.etcds[1].says(two, refused("no"))
    assert client.hears() == [refused("no")]
    world.etcds[0].all_heard()
    world.holds_nothing()


def test_a_compaction_on_one_shard_ends_it_all() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(**ALL, start_revision=1)
    one, [a] = world.etcds[0].hears()
    two, [z] = world.etcds[1].hears()
    world.etcds[0].says(one, created(a.watch_id, 9), compacted(a.watch_id, 7))
    world.etcds[1].says(two, created(z.watch_id, 4, shard=1))
    assert client.hears() == [merged(world, created(0, 4)), merged(world, compacted(0, 7))]
    world.etcds[1].all_heard()
    assert two in world.etcds[1].ended


def test_each_part_resumes_at_its_own_revision() -> None:
    world = World(b"m")
    client = world.client()
    (one, a), _ = both_create(world, client, (9, 4), **ALL)
    world.etcds[0].says(one, events(a, put(b"a", 20)))
    for etcd in world.etcds:
        etcd.goes()
        etcd.all_heard()
        etcd.comes()
    assert [etcd.hears()[1][0].start_revision for etcd in world.etcds] == [21, 5]
    assert client.status is None


def test_a_cancel_is_answered_once_and_stops_every_shard() -> None:
    world = World(b"m")
    client = world.client()
    both_create(world, client, (9, 4), **ALL)
    client.hears()
    client.cancels(0)
    assert client.hears() == [merged(world, canceled(0, 4))]
    for etcd in world.etcds:
        etcd.all_heard()
    world.holds_nothing()


def test_no_progress_is_told_to_a_watcher_over_shards() -> None:
    world = World(b"m")
    client = world.client()
    (one, a), _ = both_create(world, client, (9, 4), **ALL, progress_notify=True)
    client.hears()
    client.asks_progress()
    for etcd in world.etcds:
        etcd.hears_nothing()
    world.etcds[0].says(one, progress(a, 30))
    assert client.hears() == []


def test_progress_is_told_for_all_watchers_only_within_one_shard() -> None:
    world = World(b"m")
    client = world.client()
    one, _ = live(world, client, key=b"a")
    live(world, client, key=b"b")
    client.asks_progress()
    assert len(world.etcds[0].hears()[1]) == 1
    world.etcds[0].says(one, progress(-1, 12))
    assert client.hears() == [progress(-1, 12)]
    two, _ = live(world, client, shard=1, key=b"z")
    client.asks_progress()
    for etcd in world.etcds:
        assert len(etcd.hears()[1]) == 1
    world.etcds[0].says(one, progress(-1, 14))
    assert client.hears() == [progress(0, 14), progress(1, 14)]
    of_second = WatchResponse(header=header(3, 1), watch_id=-1)
    world.etcds[1].says(two, of_second)
    of_second.watch_id = 2
    assert client.hears() == []  # 3 is behind 5, at which it was created
    of_second.watch_id, of_second.header.revision = -1, 8
    client.asks_progress()
    world.etcds[1].says(two, of_second)
    of_second.watch_id = 2
    assert client.hears() == [of_second]


def test_progress_waits_for_all_calls_to_the_one_shard() -> None:
    world = World(b"m")
    client = world.client()
    shared, _ = live(world, client, key=b"a")
    own, _ = live(world, client, key=b"b", start_revision=3)
    client.asks_progress()
    assert {stream for stream, _ in world.etcds[0].all_heard()} == {shared, own}
    world.etcds[0].says(shared, progress(-1, 12))
    assert client.hears() == []
    world.etcds[0].says(own, progress(-1, 13))
    assert client.hears() == [progress(-1, 12)]


def test_a_part_may_join_what_another_watches_in_that_shard() -> None:
    world = World(b"m")
    stream, watch_id = live(world, world.client(), key=b"\0", range_end=b"m")
    client = world.client()
    client.creates(**ALL)
    _, [question] = world.etcds[0].hears()
    assert question.watch_id == watch_id
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 8))
    two, [z] = world.etcds[1].hears()
    world.etcds[1].says(two, created(z.watch_id, 4, shard=1))
    world.etcds[0].says(stream, events(watch_id, put(b"a", 9)))
    assert client.hears() == [merged(world, created(0, 4)), merged(world, events(0, put(b"a", 9)))]
