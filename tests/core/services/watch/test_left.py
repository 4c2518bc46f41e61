"""What Watch calls leave behind when they have ended: nothing that only a full run of the garbage collector frees.

Such runs are rare (`esp/core/garbage.py`), and clients may open and end thousands of calls a second.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from esp.core.services.watch.messages import DUPLICATE_ID
from esp.core.services.watch.stream import WatchStream
from esp.core.services.watch.watcher import Watcher
from esp.core.wire.server_stream import ServerStream
from tests.core.services.watch.test_across import ALL, both_create
from tests.core.services.watch.world import Client, World, canceled, compacted, created, events, live, put, refused


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _one(world: World, client: Client) -> None:
    stream, watch_id = live(world, client, key=b"a")
    world.etcds[0].says(stream, events(watch_id, put(b"a", 7)))


def _several(world: World, client: Client) -> None:
    for number in range(3):
        live(world, client, key=b"a%d" % number, start_revision=number)


def _across(world: World, client: Client) -> None:
    (stream, watch_id), _ = both_create(world, client, (5, 6), **ALL, progress_notify=True)
    world.etcds[0].says(stream, events(watch_id, put(b"a", 7)))


def _canceled(world: World, client: Client) -> None:
    stream, watch_id = live(world, client, key=b"a")
    client.cancels(0)
    world.etcds[0].hears()
    world.etcds[0].says(stream, canceled(watch_id, 5))


def _canceled_across(world: World, client: Client) -> None:
    both_create(world, client, (5, 6), **ALL)
    client.cancels(0)


def _asked_for_progress(world: World, client: Client) -> None:
    live(world, client, key=b"a")
    both_create(world, client, (5, 6), **ALL)
    client.asks_progress()


def _refused(world: World, client: Client) -> None:
    client.creates(key=b"a")
    stream, _ = world.etcds[0].hears()
    world.etcds[0].says(stream, refused("no"))


def _duplicate(world: World, client: Client) -> None:
    both_create(world, client, (5, 6), **ALL, watch_id=7)
    client.creates(**ALL, watch_id=7)
    for etcd in world.etcds:  # they are asked whether the same client may watch this again
        for stream, _ in etcd.all_heard():
            etcd.says(stream, refused(DUPLICATE_ID))


def _unanswered(world: World, client: Client) -> None:
    client.creates(key=b"a")
    client.creates(**ALL)
    client.cancels(0)


def _early(world: World, client: Client) -> None:
    """Events of one shard come before the other has answered."""
    client.creates(**ALL)
    stream, [asked] = world.etcds[0].hears()
    world.etcds[0].says(stream, created(asked.watch_id, 5), events(asked.watch_id, put(b"a", 7)))


def _compacted(world: World, client: Client) -> None:
    stream, watch_id = live(world, client, key=b"a", start_revision=2)
    world.etcds[0].says(stream, compacted(watch_id, 9))


def _compacted_across(world: World, client: Client) -> None:
    (stream, watch_id), _ = both_create(world, client, (5, 6), **ALL)
    world.etcds[0].says(stream, compacted(watch_id, 9))


def _malformed(world: World, client: Client) -> None:
    live(world, client, key=b"a")
    client.creates(key=b"b", range_end=b"a")


HAVE = [
    *(_one, _several, _across, _canceled, _canceled_across, _asked_for_progress, _refused, _duplicate),
    *(_unanswered, _early, _compacted, _compacted_across, _malformed),
]


def _leaves(world: World, client: Client) -> None:
    client.leaves()


def _is_lost(world: World, client: Client) -> None:
    world._server.connection.lost("gone")


def _is_cut(world: World, client: Client) -> None:
    (stream,) = world.watch.streams
    stream.cut(stream.down)


@pytest.mark.parametrize("ends", [_leaves, _is_lost, _is_cut])
@pytest.mark.parametrize("has", HAVE)
def test_a_call_that_has_ended_is_free_at_once(
    has: Callable[[World, Client], None], ends: Callable[[World, Client], None]
) -> None:
    before = _left()
    world = World(b"m")
    client = world.client()
    has(world, client)
    client.hears()
    assert (_left() - before)["WatchStream"] == 1
    ends(world, client)
    world.context.flush()
    client.hears()
    assert not _left() - before


def _left() -> Counter[str]:
    return Counter(
        type(one).__name__ for one in gc.get_objects() if isinstance(one, WatchStream | Watcher | ServerStream)
    )
