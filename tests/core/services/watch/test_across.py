"""A watcher over several shards: its client sees one watcher, and shards' revisions are never mixed."""

from __future__ import annotations

from unittest.mock import patch

from esp.core.services.watch import compaction
from esp.core.services.watch.messages import DUPLICATE_ID
from tests.core.services.watch.world import (
    Asleep,
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


Heard = tuple[WatchResponse, tuple[int, ...] | None]


def bare(message: WatchResponse, *vector: int) -> Heard:
    """A message without its header, and the position that the header's token stands for."""
    message.ClearField("header")
    return message, vector or None


def hears(world: World, client: Client) -> list[Heard]:
    """What the client is told, with the positions that tokens stand for, which grow from message to message."""
    heard = []
    last = 0
    for message in client.hears():
        revision = message.header.revision
        assert message.header.cluster_id == world.routing.identity.cluster_id
        assert message.header.member_id == world.routing.identity.member_id
        assert revision >= last or not revision
        last = revision or last
        vector = world.position(message) if revision else None
        message.ClearField("header")
        heard.append((message, vector))
    return heard


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


def test_it_is_created_once_when_all_are_there_and_each_message_has_the_position_behind_it() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(**ALL)
    one, [a] = world.etcds[0].hears()
    two, [z] = world.etcds[1].hears()
    world.etcds[0].says(one, created(a.watch_id, 9), events(a.watch_id, put(b"a", 10)))
    assert client.hears() == []
    world.etcds[1].says(two, created(z.watch_id, 4, shard=1), events(z.watch_id, put(b"z", 5), shard=1))
    assert hears(world, client) == [
        bare(created(0, 4), 9, 4),
        bare(events(0, put(b"a", 10)), 10, 4),
        bare(events(0, put(b"z", 5)), 10, 5),
    ]


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
    world.etcds[1].says(two, events(middle.watch_id, put(b"h", 6), shard=1))
    assert hears(world, client) == [
        bare(events(0, put(b"c", 6), put(b"n", 6)), 6, 5),
        bare(events(0, put(b"h", 6)), 7, 6),
    ]


def test_fragments_bear_the_position_behind_the_whole_message() -> None:
    """A client that joins them keeps one of their headers, and may go on from there."""
    world = World(b"m")
    client = world.client()
    (one, a), _ = both_create(world, client, (9, 4), **ALL, fragment=True)
    client.hears()
    world.etcds[0].says(
        one,
        events(a, put(b"a", 10), put(b"a", 11), fragment=True, revision=30),
        events(a, put(b"b", 11), fragment=True, revision=30),
        events(a, put(b"c", 12), revision=30),
    )
    heard = client.hears()
    assert [message.fragment for message in heard] == [True, True, False]
    assert [world.position(message) for message in heard] == [(12, 4)] * 3


def test_fragments_end_with_the_last_that_is_the_watchers() -> None:
    """Else a client would wait for the rest, and join the next message to them."""
    world = World(b"g", b"m", owners=(0, 1, 0))
    client = world.client()
    client.creates(key=b"b", range_end=b"x", fragment=True)
    for number in (0, 1):
        stream, [asked] = world.etcds[number].hears()
        world.etcds[number].says(stream, created(asked.watch_id, 5, shard=number))
        if number == 0:
            one, hull = stream, asked.watch_id
    client.hears()
    world.etcds[0].says(
        one,
        events(hull, put(b"c", 6), fragment=True),
        events(hull, put(b"h", 6), fragment=True),
        events(hull, put(b"n", 6), fragment=True),
        events(hull, put(b"h", 6)),
    )
    assert hears(world, client) == [
        bare(events(0, put(b"c", 6), fragment=True), 6, 5),
        bare(events(0, put(b"n", 6)), 6, 5),
    ]


def test_what_came_before_a_watch_was_found_to_be_from_nowhere_is_not_told() -> None:
    """A client whose stream broke behind it would go on from there, and never know that there is a gap."""
    world = World(b"m")
    client = world.client()
    client.creates(**ALL, start_revision=7)
    one, [a] = world.etcds[0].hears()
    two, [z] = world.etcds[1].hears()
    world.etcds[0].says(one, created(a.watch_id, 9), events(a.watch_id, put(b"a", 10)))
    world.etcds[1].says(two, created(z.watch_id, 4, shard=1))
    announced, end = client.hears()
    assert announced.created
    assert end.canceled


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


def test_who_watches_from_the_beginning_can_go_on_from_any_header() -> None:
    """Also when a shard has not sent anything yet: revision 1 of an etcd has no events."""
    world = World(b"m")
    client = world.client()
    (one, a), _ = both_create(world, client, (9, 4), **ALL, start_revision=1)
    world.etcds[0].says(one, events(a, put(b"a", 3), revision=9))
    for message in client.hears():
        world.client().creates(**ALL, start_revision=message.header.revision + 1)
        first = 2 if message.created else 4
        assert [etcd.hears()[1][0].start_revision for etcd in world.etcds] == [first, 2]


def test_any_other_plain_revision_is_answered_as_compacted() -> None:
    world = World(b"m")
    client = world.client()
    both_create(world, client, (9, 4), **ALL, start_revision=7)
    announced, end = client.hears()
    assert world.position(announced) == (9, 4)
    assert (end.canceled, end.header.revision) == (True, 0)
    assert world.means(end.compact_revision) == ((9, 4), 1), "from where it can begin again"
    for etcd in world.etcds:
        etcd.all_heard()
    client.creates(key=b"a", watch_id=3)
    stream, [asked] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(asked.watch_id, 9))
    client.cancels(0)
    first, second = client.hears()
    assert first == created(3, 9)
    assert world.position(second) == (9, 4)


def test_from_a_token_each_shard_is_watched_at_its_revision_and_from_behind_it_at_the_next() -> None:
    world = World(b"g", b"m")
    token = world.mint(9, 4, 6)
    for start, wanted in ((token, [9, 4, 6]), (token + 1, [10, 5, 7])):
        world.client().creates(**ALL, start_revision=start)
        assert [etcd.hears()[1][0].start_revision for etcd in world.etcds] == wanted
    world.client().creates(key=b"h", range_end=b"n", start_revision=token + 1)
    assert [etcd.hears()[1][0].start_revision for etcd in world.etcds[1:]] == [5, 7]
    world.client().creates(key=b"x", start_revision=token)
    assert world.etcds[2].hears()[1][0].start_revision == 6


def test_its_first_position_is_before_the_revision_that_it_begins_with() -> None:
    world = World(b"m")
    client = world.client()
    both_create(world, client, (90, 40), **ALL, start_revision=world.mint(9, 4) + 1)
    assert hears(world, client) == [bare(created(0, 1), 9, 4)]


def test_what_was_held_is_not_told_in_the_position_that_it_is_created_at() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(**ALL)
    one, [a] = world.etcds[0].hears()
    two, [z] = world.etcds[1].hears()
    world.etcds[0].says(
        one, created(a.watch_id, 9), events(a.watch_id, put(b"a", 10)), events(a.watch_id, put(b"a", 11))
    )
    world.etcds[0].says(one, progress(a.watch_id, 20))
    world.etcds[1].says(two, created(z.watch_id, 4, shard=1))
    assert [vector for _, vector in hears(world, client)] == [(9, 4), (10, 4), (11, 4)]
    world.etcds[1].says(two, events(z.watch_id, put(b"z", 5), shard=1))
    assert [vector for _, vector in hears(world, client)] == [(20, 5)], "and now what the shard said counts"


def test_a_token_that_is_not_known_or_says_nothing_about_a_shard_is_compacted() -> None:
    world = World(b"m")
    known = world.mint(9, 0)
    for start in (known, known + 1, known + 2, known + 4):
        client = world.client()
        both_create(world, client, (9, 4), **ALL, start_revision=start)
        announced, end = client.hears()
        assert announced.created
        assert (end.canceled, world.means(end.compact_revision)) == (True, ((9, 4), 1))


def test_an_unknown_token_is_compacted_inside_one_shard_too() -> None:
    world = World(b"m")
    client = world.client()
    client.creates(key=b"a", start_revision=world.mint(9, 4) + 4)
    stream, [asked] = world.etcds[0].hears()
    assert asked.start_revision == 0
    world.etcds[0].says(stream, created(asked.watch_id, 12))
    assert client.hears() == [created(0, 12), compacted(0, 12)]


def test_who_comes_again_behind_the_last_event_it_saw_goes_on_there() -> None:
    world = World(b"m")
    client = world.client()
    (one, a), (two, z) = both_create(world, client, (9, 40), **ALL)
    world.etcds[0].says(one, events(a, put(b"a", 10)))
    world.etcds[1].says(two, events(z, put(b"z", 41), shard=1))
    world.etcds[0].says(one, events(a, put(b"a", 11)))
    client.leaves()
    for etcd in world.etcds:
        etcd.all_heard()
    world.client().creates(**ALL, start_revision=42)
    assert [etcd.hears()[1][0].start_revision for etcd in world.etcds] == [11, 42]
    other = world.client()
    both_create(world, other, (11, 41), **ALL, start_revision=42)
    assert [message.canceled for message in other.hears()] == [False, True], "only one had gone"


def test_what_is_remembered_of_a_watcher_that_is_gone_is_small_however_long_its_keys_were() -> None:
    world = World(b"m")
    client = world.client()
    (one, a), _ = both_create(world, client, (9, 40), key=b"a" * 30_000, range_end=b"z" * 30_000)
    world.etcds[0].says(one, events(a, put(b"b", 10)))
    client.leaves()
    assert [len(watched) for watched in world.watch.positions._ranges] == [32]  # type: ignore[arg-type]


def test_a_client_of_another_host_does_not_come_again_for_it() -> None:
    world = World(b"m")
    client = world.client()
    (one, a), _ = both_create(world, client, (9, 40), **ALL)
    world.etcds[0].says(one, events(a, put(b"a", 10)))
    client.leaves()
    for etcd in world.etcds:
        etcd.all_heard()
    world._server.connection.peer = "192.0.2.1:4711"
    other = world.client()
    both_create(world, other, (11, 41), **ALL, start_revision=11)
    assert [message.canceled for message in other.hears()] == [False, True]


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
    world.compacts(7, 0)
    client = world.client()
    client.creates(**ALL, start_revision=1)
    one, [a] = world.etcds[0].hears()
    two, [z] = world.etcds[1].hears()
    world.etcds[0].says(one, created(a.watch_id, 9), compacted(a.watch_id, 7))
    world.etcds[1].says(two, created(z.watch_id, 4, shard=1))
    announced, end = client.hears()
    assert announced.created
    assert (end.canceled, end.header.revision) == (True, 0)
    assert world.means(end.compact_revision) == ((6, 1), 1)
    world.etcds[1].all_heard()
    assert two in world.etcds[1].ended


@patch.object(compaction, "sleep", Asleep)
def test_it_is_told_when_every_shard_is_known_and_fed_until_then() -> None:
    world = World(b"m")
    world.compacts(20, 9)
    client = world.client()
    (one, _), _ = both_create(world, client, (9, 4), **ALL)
    client.hears()
    world.etcds[0].resets(one)
    again, [create] = world.etcds[0].hears()
    world.etcds[0].says(again, created(create.watch_id, 30), compacted(create.watch_id, 20))
    assert client.hears() == []
    heard = [(call, request.create_request) for call, request in world.etcds[1].all_heard()]
    [(call, asked)] = [(call, request) for call, request in heard if request.start_revision]
    assert asked.start_revision == 5
    # A member that lags behind still has it.
    world.etcds[1].says(call, created(asked.watch_id, 6, shard=1), events(asked.watch_id, put(b"z", 6), shard=1))
    assert [message.events[0].kv.mod_revision for message in client.hears()] == [6]
    world.search_on()
    heard = [(call, request.create_request) for call, request in world.etcds[1].all_heard()]
    [(call, asked)] = [(call, request) for call, request in heard if request.start_revision]
    assert asked.start_revision == 7
    world.etcds[1].says(call, created(asked.watch_id, 9, shard=1), compacted(asked.watch_id, 9, shard=1))
    [end] = client.hears()
    assert world.means(end.compact_revision) == ((19, 8), 1)
    assert client.status is None
    client.leaves()
    for etcd in world.etcds:
        etcd.all_heard()
    world.holds_nothing()


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
    assert hears(world, client) == [bare(canceled(0, 4), 9, 4)]
    for etcd in world.etcds:
        etcd.all_heard()
    world.holds_nothing()


def test_progress_of_one_shard_begins_a_round_of_all_and_is_not_told_itself() -> None:
    """What such a round does: test_span_progress.py."""
    world = World(b"m")
    client = world.client()
    (one, a), _ = both_create(world, client, (9, 4), **ALL, progress_notify=True)
    client.hears()
    world.etcds[0].says(one, progress(a, 30))
    assert client.hears() == []
    assert world.spawned == 1


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
    assert hears(world, client) == [bare(created(0, 4), 8, 4), bare(events(0, put(b"a", 9)), 9, 4)]
