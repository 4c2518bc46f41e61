"""Events that esp passes on unparsed: the bytes that came, in their order with other messages."""

from __future__ import annotations

import pytest

from esp.core.services.watch import exchange
from esp.core.services.watch.messages import DUPLICATE_ID, Response
from esp.core.services.watch.outbox import Outbox
from esp.core.wire.limits import Limits
from tests.core.services.watch.world import World, events, live, progress, put, refused

BIG = bytes(40_000)


class Parsed(list[bytes]):
    """The messages that were parsed."""

    def parse(self, body: bytes) -> Response:
        self.append(body)
        return Response.parse(body)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    made = Parsed()
    monkeypatch.setattr(exchange, "Response", made)
    return made


def test_an_event_of_one_watcher_goes_on_as_it_came(parsed: Parsed) -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a", prev_kv=True)
    parsed.clear()
    event = put(b"a", 6)
    event.prev_kv.CopyFrom(put(b"a", 4, b"before").kv)
    event.kv.lease = -7
    gone = put(b"a", 7)
    gone.type = gone.DELETE
    world.etcds[0].says(stream, events(watch_id, event), events(watch_id, gone))
    assert client.hears() == [events(0, event), events(0, gone)]
    assert parsed == []


def test_what_the_watcher_has_got_comes_no_second_time(parsed: Parsed) -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a", revision=5)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 5)), events(watch_id, put(b"a", 6)))
    world.etcds[0].says(stream, events(watch_id, put(b"a", 6)), events(watch_id, put(b"a", 9)))
    assert client.hears() == [events(0, put(b"a", 6)), events(0, put(b"a", 9))]
    world.etcds[0].resets(stream)
    _, [create] = world.etcds[0].hears()
    assert create.start_revision == 10


def test_fragments_are_not_mixed_with_what_comes_alone(parsed: Parsed) -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a", range_end=b"c", fragment=True)
    first = events(watch_id, put(b"a", 6), revision=6, fragment=True)
    last = events(watch_id, put(b"b", 6), revision=6)
    world.etcds[0].says(stream, first)
    assert client.hears() == []
    world.etcds[0].says(stream, last)
    assert [message.fragment for message in client.hears()] == [True, False]


def test_two_clients_of_one_watcher_both_get_it(parsed: Parsed) -> None:
    world = World(b"m")
    client, other = world.client(), world.client()
    stream, watch_id = live(world, client, key=b"a")
    other.creates(key=b"a")
    world.etcds[0].all_heard()
    world.etcds[0].says(stream, refused(DUPLICATE_ID, 5))
    other.hears()
    world.etcds[0].says(stream, events(watch_id, put(b"a", 6)))
    assert client.hears() == other.hears() == [events(0, put(b"a", 6))]


def test_it_goes_behind_what_waits() -> None:
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a", progress_notify=True)
    world.etcds[0].says(stream, progress(watch_id, 6), events(watch_id, put(b"a", 7)))
    world.etcds[0].says(stream, *(events(watch_id, put(b"a", 8 + n, BIG if n < 3 else b"v")) for n in range(6)))
    first = client.hears()
    client.reads(1_000_000)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 14)))
    heard = first + client.hears()
    assert [message.header.revision for message in heard] == list(range(6, 15))


def test_it_ends_a_stream_for_which_there_is_no_memory() -> None:
    world = World(b"m", limits=Limits(max_buffered_bytes=50_000))
    client = world.client()
    stream, watch_id = live(world, client, key=b"a")
    for revision in range(6, 12):
        if stream in world.etcds[0]._caller.connection.streams:
            world.etcds[0].says(stream, events(watch_id, put(b"a", revision, BIG)))
    client.hears()
    client.reads(1_000_000)
    client.hears()
    assert client.status is not None
    world.holds_nothing()


def test_a_bug_in_one_clients_stream_does_not_break_the_call_to_the_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(outbox: Outbox, message: bytes) -> None:
        raise RuntimeError("a bug")

    met = []
    monkeypatch.setattr(Outbox, "send_alone", fail)
    monkeypatch.setattr(Outbox, "on_bug", lambda outbox: met.append(outbox))
    world = World(b"m")
    client = world.client()
    stream, watch_id = live(world, client, key=b"a")
    world.etcds[0].says(stream, events(watch_id, put(b"a", 6)))
    assert len(met) == 1
    assert stream in world.etcds[0]._caller.connection.streams
    world.etcds[0].hears_nothing()
