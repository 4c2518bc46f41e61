"""Watchers that go over with their keys to another shard: nothing lost, nothing twice, no step back."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.proxy import Proxy
from esp.core.services.watch import crossing
from esp.core.services.watch.watcher import Watcher
from tests.harness import Etcds, peer
from tests.integration.mapped import Mapped, put_op
from tests.integration.test_fenced import Client, serve
from tests.integration.test_moved import X, knows, until
from tests.integration.test_moved_watches import Watching

Create, Txn, Delete = rpc_pb2.WatchCreateRequest, rpc_pb2.TxnRequest, rpc_pb2.DeleteRangeRequest
NOPUT, NODELETE = Create.NOPUT, Create.NODELETE


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(3, binary=peer("etcd")), ["m", "t"], tmp_path / "esp.yaml")


def told(events: list[kv_pb2.Event]) -> list[tuple[bytes, bytes]]:
    return [(event.kv.key, event.kv.value) for event in events]


def in_order(events: list[kv_pb2.Event]) -> bool:
    revisions = [event.kv.mod_revision for event in events]
    return revisions == sorted(revisions)


def test_each_key_is_put_once_more_at_its_revision_on_the_new_owner(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x/1", b"one")
        await client.put(b"x/2", b"gone")
        watching = Watching(client)
        await watching.create(2, *X)
        await watching.create(3, *X, prev_kv=True, progress_notify=True)
        await watching.create(4, *X, filters=[NOPUT])
        await watching.create(5, b"x/1", fragment=True)
        await watching.create(6, *X, start_revision=10**9)
        for watch_id in (7, 8, 9):
            await watching.create(watch_id, b"x/", b"x/2")
        for key, value in ((b"x/3", b"a"), (b"x/1", b"two"), (b"x/4", b"b")):
            await client.put(key, value)
        await client.kv.DeleteRange(Delete(key=b"x/2"), timeout=30)
        await client.put(b"x/3", b"c")
        await until(lambda: len(watching.events[2]) == 5)
        before = await client.get(*X)
        cut = before.header.revision
        change = mapped.begin(*X, "s0")
        mapped.raise_target(change)
        mapped.cut(change)
        mapped.copy(change)
        await asyncio.sleep(0.3)
        assert [len(watching.events[watch_id]) for watch_id in (2, 3, 4, 5)] == [5, 5, 1, 1]
        opened = mapped.open(change)
        mapped.finish(change)
        mapped.purge(change)
        await until(knows(proxy, mapped))
        await client.put(b"x/1", b"three")
        await client.kv.DeleteRange(Delete(key=b"x/4"), timeout=30)
        await until(lambda: all(len(watching.events[watch_id]) >= 10 for watch_id in (2, 3)))
        last = [(b"x/1", b"two"), (b"x/4", b"b"), (b"x/3", b"c")]
        for watch_id in (2, 3):
            events = watching.events[watch_id]
            assert told(events[5:]) == [*last, (b"x/1", b"three"), (b"x/4", b"")]
            assert in_order(events)
            moved = [event.kv for event in events[5:8]]
            assert all(cut < pair.mod_revision <= opened for pair in moved)
            kept = {pair.key: pair for pair in before.kvs}
            if watch_id == 3:
                assert [event.prev_kv for event in events[5:8]] == [kept[pair.key] for pair in moved]
                assert events[8].prev_kv == moved[0]
            else:
                assert not any(event.HasField("prev_kv") for event in events)
            revisions = watching.revisions[watch_id]
            assert revisions == sorted(revisions)
            now = {pair.key: pair.mod_revision for pair in moved}
            assert [pair.key for pair in sorted(before.kvs, key=lambda pair: pair.mod_revision)] == list(now)
        await until(lambda: len(watching.events[4]) == 2)
        assert [event.kv.key for event in watching.events[4]] == [b"x/2", b"x/4"]
        await until(lambda: len(watching.events[5]) == 3)
        assert [value for _, value in told(watching.events[5])] == [b"two", b"two", b"three"]
        for watch_id in (7, 8, 9):
            await until(lambda watch_id=watch_id: len(watching.events[watch_id]) == 3)
            assert [value for _, value in told(watching.events[watch_id])] == [b"two", b"two", b"three"]
        assert (watching.events[6], watching.canceled, watching.is_over) == ([], {}, False)
        await watching.call.write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
        await until(lambda: watching.revisions.get(-1, watching.revisions[2])[-1] > opened)
        await watching.end()

    serve(mapped, work)


def test_nothing_is_lost_and_nothing_comes_twice_while_keys_move_back_and_forth(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        watching = Watching(client)
        await watching.create(2, *X)
        await watching.create(3, *X, prev_kv=True)
        await watching.create(4, b"x/0")
        over = asyncio.Event()

        def last(watch_id: int) -> int:
            events = watching.events[watch_id]
            return events[-1].kv.mod_revision if events else 0

        written: dict[bytes, list[bytes]] = {}

        async def write(key: bytes) -> None:
            mine = written.setdefault(key, [])
            while not over.is_set():
                try:
                    await client.put(key, b"%d" % len(mine))
                except grpc.aio.AioRpcError as error:
                    if "nothing was done, send the call again" not in str(error.details()):
                        raise
                    continue  # the move has taken long
                mine.append(b"%d" % len(mine))

        writers = [asyncio.create_task(write(b"x/%d" % number)) for number in range(4)]
        targets = ("s0", "s1", "s2", "s1")
        for target in targets:
            before = {key: len(values) for key, values in written.items()}
            await until(lambda before=before: all(len(written[key]) > count + 3 for key, count in before.items()))
            await asyncio.to_thread(mapped.move, *X, target)
            await until(knows(proxy, mapped))
            opened = proxy.routing.layout.former.came[0].revision
            await until(lambda opened=opened: watching.canceled or all(last(at) > opened for at in (2, 3, 4)))
            assert watching.canceled == {}
        over.set()
        await asyncio.gather(*writers)
        ends = {at: (await client.get(*keys)).kvs for at, keys in ((2, X), (3, X), (4, (b"x/0", b"x/1")))}
        await until(lambda: all(last(at) == max(pair.mod_revision for pair in kvs) for at, kvs in ends.items()))
        assert watching.canceled == {}
        for watch_id, keys in ((2, list(written)), (3, list(written)), (4, [b"x/0"])):
            events = watching.events[watch_id]
            assert in_order(events)
            assert len({(event.kv.key, event.kv.mod_revision) for event in events}) == len(events)
            for key in keys:
                values = [value for each, value in told(events) if each == key]
                repeated = [value for one, value in pairwise(values) if one == value]
                assert len(repeated) == len(targets), "once more with each move"
                assert list(dict.fromkeys(values)) == written[key]
                assert len(values) == len(written[key]) + len(targets)
        revisions = watching.revisions[2]
        assert revisions == sorted(revisions)
        await watching.end()

    serve(mapped, work)


def test_a_watcher_with_too_many_keys_is_told_compacted(mapped: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "MOST_KEYS", 2)

    async def work(proxy: Proxy, client: Client) -> None:
        for number in range(3):
            await client.put(b"x/%d" % number, b"v")
        watching = Watching(client)
        await watching.create(2, *X)
        await watching.create(3, b"x/0", b"x/2")
        mapped.move(*X, "s0")
        await until(lambda: 2 in watching.canceled and len(watching.events[3]) == 2)
        assert watching.canceled[2].compact_revision > 0
        assert watching.events[2] == []
        await watching.end()

    serve(mapped, work)


def test_a_watcher_with_too_many_bytes_is_told_compacted_before_these_are_read(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crossing, "MOST_BYTES", 10_000)
    caplog.set_level(logging.INFO, "esp.watch")

    async def work(proxy: Proxy, client: Client) -> None:
        for number in range(3):
            await client.put(b"x/%d" % number, b"v" * 4000)
        watching = Watching(client)
        await watching.create(2, *X)
        await watching.create(3, b"x/0", b"x/2")
        mapped.move(*X, "s0")
        await until(lambda: 2 in watching.canceled and len(watching.events[3]) == 2)
        assert watching.canceled[2].compact_revision > 0
        assert watching.events[2] == []
        assert not watching.is_over
        await watching.end()

    serve(mapped, work)
    assert "received message larger than max" in caplog.text, "told by its first bytes"


def test_a_bug_as_one_client_goes_over_leaves_the_others(mapped: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Watcher.cross
    hit: list[Any] = []

    def planted(watcher: Watcher, passage: crossing.Passage) -> bool:
        if watcher.id == 2:
            hit.append(watcher)
            raise AssertionError("a bug")
        return original(watcher, passage)

    monkeypatch.setattr(Watcher, "cross", planted)

    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x/1", b"one")
        victim, before, after = Watching(client), Watching(client), Watching(client)
        await before.create(3, *X)
        await victim.create(1, *X)
        await victim.create(2, b"x/1")
        await after.create(4, *X)
        mapped.move(*X, "s0")
        await until(lambda: victim.is_over and len(before.events[3]) == len(after.events[4]) == 1)
        await until(knows(proxy, mapped))
        await client.put(b"x/1", b"two")
        await until(lambda: len(before.events[3]) == len(after.events[4]) == 2)
        assert told(before.events[3]) == told(after.events[4]) == [(b"x/1", b"one"), (b"x/1", b"two")]
        again = Watching(client)
        await again.create(5, *X, start_revision=hit[0].stream.routing.layout.former.came[0].cut)
        await until(lambda: 5 in again.canceled)
        assert again.canceled[5].compact_revision > 0
        for watching in (victim, before, after, again):
            await watching.end()
        assert proxy.background.failures.pop("a watch at a new map") == 1

    serve(mapped, work)


def test_at_an_etcd_whose_progress_may_overtake_events_it_is_told_compacted(start_etcd: Etcds, tmp_path: Path) -> None:
    mapped = Mapped(start_etcd.several(2), ["m"], tmp_path / "esp.yaml")  # of the tests' own etcd, 3.5.1

    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x/0", b"v")
        watching = Watching(client)
        await watching.create(2, *X)
        mapped.move(*X, "s0")
        await until(lambda: 2 in watching.canceled)
        assert (watching.canceled[2].compact_revision > 0, watching.events[2]) == (True, [])
        await watching.end()

    serve(mapped, work)


def test_a_watcher_may_be_canceled_on_the_way_and_one_of_a_move_that_is_given_up_goes_on(mapped: Mapped) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x/1", b"one")
        watching = Watching(client)
        for watch_id in (2, 3):
            await watching.create(watch_id, *X)
        change = mapped.begin(*X, "s0")
        mapped.raise_target(change)
        mapped.cut(change)
        await until(lambda: proxy.routing.layout.epoch == change.after.epoch)
        cancel = rpc_pb2.WatchCancelRequest(watch_id=2)
        await watching.call.write(rpc_pb2.WatchRequest(cancel_request=cancel))
        await until(lambda: 2 in watching.canceled)
        mapped.give_back(change)
        await until(lambda: proxy.routing.layout.epoch == mapped.now.epoch)
        await until(lambda: watching.is_over or 3 in watching.canceled)  # it comes again, and finds all as it was
        again: Any = Watching(client)
        await again.create(4, *X, start_revision=mapped.revision("s2") + 1)
        await client.put(b"x/1", b"two")
        await until(lambda: len(again.events[4]) == 1 or 4 in again.canceled)
        mapped.ask("s0", Txn(success=[put_op(b"\0scratch", b"")]))
        await watching.end()
        await again.end()

    serve(mapped, work)
