"""Watches while ranges move between live shards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.proxy import Proxy
from tests.harness import Etcds
from tests.integration.mapped import Mapped, put_op
from tests.integration.test_fenced import Client, serve
from tests.integration.test_moved import X, knows, until
from tests.stubs import rpc_pb2_grpc

Create, Txn = rpc_pb2.WatchCreateRequest, rpc_pb2.TxnRequest


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(3), ["m", "t"], tmp_path / "esp.yaml")


class Watching:
    """A watch stream of a client, with what came, by watch id.

    Attributes:
        events: the events.
        canceled: the ends.
        revisions: the headers' revisions.
        is_over: the stream has ended.
    """

    def __init__(self, client: Client) -> None:
        self.call = rpc_pb2_grpc.WatchStub(client.channel).Watch()
        self.events: dict[int, list[kv_pb2.Event]] = {}
        self.canceled: dict[int, Any] = {}
        self.revisions: dict[int, list[int]] = {}
        self.is_over = False
        self._task = asyncio.create_task(self._read())

    async def create(self, watch_id: int, key: bytes, end: bytes = b"", **more: Any) -> None:
        create = Create(key=key, range_end=end, watch_id=watch_id, **more)
        await self.call.write(rpc_pb2.WatchRequest(create_request=create))
        await until(lambda: watch_id in self.events)

    async def _read(self) -> None:
        try:
            async for answer in self.call:
                mine = self.events.setdefault(answer.watch_id, [])
                self.revisions.setdefault(answer.watch_id, []).append(answer.header.revision)
                mine.extend(answer.events)
                if answer.canceled:
                    self.canceled[answer.watch_id] = answer
        finally:
            self.is_over = True

    def values(self, watch_id: int) -> list[tuple[bytes, bytes]]:
        return [(event.kv.key, event.kv.value) for event in self.events[watch_id]]

    async def end(self) -> None:
        self.call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def test_watchers_of_other_keys_go_on_without_a_break(mapped: Mapped) -> None:
    """Also at the shards that have another guard by the next map."""

    async def work(proxy: Proxy, client: Client) -> None:
        watching = Watching(client)
        keys = {2: b"a", 3: b"n", 4: b"z"}  # of each shard one
        for watch_id, key in keys.items():
            await watching.create(watch_id, key)
        await watching.create(5, b"u", b"v")
        for watch_id in (6, 7):  # these share
            await watching.create(watch_id, b"n", b"o")
        for number in range(5):
            for key in keys.values():
                await client.put(key, b"%d" % number)
            mapped.move(*X, ("s1", "s0", "s2")[number % 3])
        await until(knows(proxy, mapped))
        wanted = [b"%d" % number for number in range(5)]
        await until(lambda: all(len(watching.events[watch_id]) == 5 for watch_id in keys))
        for watch_id in (2, 3, 4, 6, 7):
            assert [value for _, value in watching.values(watch_id)] == wanted, watch_id
        assert (watching.events[5], watching.canceled, watching.is_over) == ([], {}, False)
        assert not proxy.gate.waiting
        await watching.end()

    serve(mapped, work)


def test_a_proxy_that_does_not_know_of_a_move_tells_nothing_of_what_comes_after(mapped: Mapped) -> None:
    """Not the purge, not the copies that come back, and not the revisions of the former owner."""

    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x/1", b"one")
        watching = Watching(client)
        await watching.create(2, *X, progress_notify=True)
        last = (await client.put(b"x/1", b"two")).header.revision
        await until(lambda: len(watching.events[2]) == 1)
        change = mapped.begin(*X, "s1")
        mapped.raise_target(change)
        mapped.cut(change)
        mapped.copy(change)
        mapped.open(change)
        mapped.finish(change)
        mapped.purge(change)
        mapped.ask("s1", Txn(success=[put_op(b"x/1", b"three")]))
        mapped.move(*X, "s2")
        late = Watching(client)
        await late.call.write(rpc_pb2.WatchRequest(create_request=Create(key=X[0], range_end=X[1], watch_id=3)))
        await watching.call.write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
        mapped.ask("s2", Txn(success=[put_op(b"x/1", b"four")]))
        await asyncio.sleep(1)
        assert watching.values(2) == [(b"x/1", b"two")]
        assert max(revision for revisions in watching.revisions.values() for revision in revisions) == last
        assert late.events == {}
        await watching.end()
        await late.end()

    serve(mapped, work, follows=False)


SPANS: Sequence[tuple[bytes, bytes]] = [(b"\1", b"\0"), (b"t", b"z"), (b"m", b"z")]


@pytest.mark.parametrize("keys", SPANS, ids=["everything", "one shard before", "several before and after"])
def test_a_watcher_of_which_only_some_keys_move_is_told_compacted_and_lists_again(
    mapped: Mapped, keys: tuple[bytes, bytes]
) -> None:
    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x/1", b"one")
        watching = Watching(client)
        await watching.create(2, *keys)
        await watching.create(3, b"a")
        await client.put(b"x/1", b"two")
        await until(lambda: len(watching.events[2]) == 1)
        mapped.move(*X, "s0")
        await until(lambda: 2 in watching.canceled)
        end = watching.canceled[2]
        assert end.compact_revision > 0
        assert watching.values(2) == [(b"x/1", b"two")]
        await until(knows(proxy, mapped))
        await client.put(b"a", b"goes on")
        await until(lambda: len(watching.events[3]) == 1)
        assert not watching.is_over
        again = end.compact_revision  # as some do, without a list
        while True:
            watching.events.pop(4, None)
            await watching.create(4, *keys, start_revision=again)
            await client.put(b"x/1", b"three")
            await until(lambda: 4 in watching.canceled or len(watching.events[4]) > 0)
            if 4 not in watching.canceled:
                break
            again = watching.canceled.pop(4).compact_revision
            await watching.call.write(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=4)))
        assert {value for _, value in watching.values(4)} == {b"three"}
        listed = await client.get(*keys)
        await watching.create(5, *keys, start_revision=listed.header.revision + 1)
        await client.put(b"x/1", b"four")
        await until(lambda: len(watching.events[5]) == 1)
        assert watching.values(5) == [(b"x/1", b"four")]
        await watching.create(6, *keys, start_revision=1)
        await until(lambda: 6 in watching.canceled)  # the shards' histories have copies
        await watching.end()

    serve(mapped, work)


def test_watchers_at_the_target_go_on_however_long_it_takes_until_it_opens(mapped: Mapped) -> None:
    """A proxy has the next map from the source, and the target its guard only later; of the copies nothing is told."""

    async def work(proxy: Proxy, client: Client) -> None:
        await client.put(b"x/1", b"one")
        watching = Watching(client)
        await watching.create(2, b"n")
        await client.put(b"n", b"before")
        await until(lambda: len(watching.events[2]) == 1)
        change = mapped.begin(*X, "s1")
        mapped.raise_target(change, 100)
        mapped.cut(change)
        await until(lambda: proxy.routing.layout.epoch == change.after.epoch)
        late = Watching(client)
        create = Create(key=X[0], range_end=X[1], watch_id=3)
        await late.call.write(rpc_pb2.WatchRequest(create_request=create))
        await asyncio.sleep(0.3)
        mapped.raise_target(change)
        mapped.copy(change)
        await asyncio.sleep(0.3)
        mapped.open(change)
        mapped.finish(change)
        await until(knows(proxy, mapped))
        await until(lambda: 3 in late.events)
        await client.put(b"n", b"after")
        await until(lambda: (b"n", b"after") in watching.values(2))
        assert watching.canceled == {}
        await client.put(b"x/1", b"two")
        await until(lambda: (b"x/1", b"two") in late.values(3))
        assert (b"x/1", b"one") not in late.values(3)
        await watching.end()
        await late.end()

    serve(mapped, work)
