"""A proxy gets another config while clients are at work: all of it, or nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from esp.core import config as configs
from esp.core.config import Config
from esp.core.former import FAR
from esp.core.local import LocalEtcd, find_etcdctl
from esp.core.metrics.scrape import of_reloads
from esp.core.pb import rpc_pb2
from esp.core.proxy import Proxy
from esp.core.reload import Outcome, Reload, Reloads, Result, steps
from esp.core.services import fence
from tests.harness import Etcds, connect, free_port, freeze
from tests.integration.test_layout import (
    ALL,
    Client,
    Op,
    Put,
    Range,
    Txn,
    at_work,
    how_it_ends,
    next_value,
    ttl_on,
    until,
    value_on,
)
from tests.stubs import rpc_pb2_grpc

LISTEN = configs.listen_of(["http://127.0.0.1:0"])


class World:
    """A running proxy, a client of it, and its config file.

    Attributes:
        told: the steps of the last reload.
    """

    def __init__(self, proxy: Proxy, path: Path) -> None:
        self.proxy = proxy
        self.client = Client(proxy)
        self.reloads = Reloads(proxy, lambda: load(path))
        self.path = path
        self.told: list[str] = []

    async def reload(self, text: str, **options: bool) -> Outcome:
        self.path.write_text(text)
        self.told.clear()

        async def tell(step: str) -> None:
            self.told.append(step)

        return await self.reloads.reload("test", told=tell, **options)


def load(path: Path) -> Config:
    return replace(configs.load(path), listen=LISTEN)


def text_of(etcds: dict[str, LocalEtcd | str], ranges: dict[str, str], extra: str = "") -> str:
    """A config of these shards; a range is written `start..end`, and several are joined by a blank."""
    lines = ["shards:"]
    for name, etcd in etcds.items():
        endpoint = etcd if isinstance(etcd, str) else etcd.endpoint
        pairs = [one.split("..") for one in ranges[name].split()]
        of_shard = ", ".join(f"{{start: '{start}', end: '{end}'}}" for start, end in pairs)
        lines.append(f"- {{name: {name}, endpoints: [{endpoint}], ranges: [{of_shard}]}}")
    return "\n".join(lines) + "\n" + extra


TWO = {"a": "..m", "b": "m.."}
THREE = {"a": "..m", "b": "m..t", "c": "t.."}


@pytest.fixture
def etcds(start_etcd: Etcds) -> dict[str, LocalEtcd | str]:
    return dict(zip("abc", start_etcd.several(3), strict=True))


@pytest.fixture
def two(etcds: dict[str, LocalEtcd | str]) -> dict[str, LocalEtcd | str]:
    return {name: etcds[name] for name in "ab"}


def put(etcd: LocalEtcd | str, key: bytes, value: bytes = b"") -> None:
    assert isinstance(etcd, LocalEtcd)
    with connect(etcd) as channel:
        rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=key, value=value), timeout=20)


def delete(etcd: LocalEtcd | str, key: bytes) -> None:
    assert isinstance(etcd, LocalEtcd)
    with connect(etcd) as channel:
        rpc_pb2_grpc.KVStub(channel).DeleteRange(rpc_pb2.DeleteRangeRequest(key=key), timeout=20)


@asynccontextmanager
async def serving(tmp_path: Path, text: str) -> AsyncIterator[World]:
    path = tmp_path / "esp.yaml"
    path.write_text(text)
    async with Proxy(load(path)) as proxy:
        assert await proxy.connected(20) == []
        world = World(proxy, path)
        yield world
        await world.client.channel.close()
        assert not proxy.background.failures
    assert not proxy.background.tasks


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CONNECT_SECONDS", 2.0)


def run(test: Callable[[], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(100):
            await test()

    asyncio.run(bounded())


def test_a_shard_joins_under_load_with_its_leases_and_leaves_again(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            client, c = world.client, etcds["c"]
            assert isinstance(c, LocalEtcd)
            grant = rpc_pb2.LeaseGrantRequest(TTL=600)
            with connect(etcds["a"]) as a, connect(etcds["b"]) as b:  # type: ignore[arg-type]
                for channel in (a, b):  # granted through another proxy: this one has never heard of it
                    rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=77, TTL=500), timeout=20)
            own = (await client.lease.LeaseGrant(grant, timeout=20)).ID
            stays, moves = await client.watch(key=b"n"), await client.watch(key=b"y")
            whole = await client.watch(**ALL)
            brought: list[int] = []
            install = world.proxy.install

            def installed(*args: Any) -> None:
                brought.append(min(ttl_on(c, 77), ttl_on(c, own)))
                install(*args)

            world.proxy.install = installed  # type: ignore[method-assign]
            before = await client.put(b"n", b"1")
            async with at_work(client, own, moving=b"n"):
                outcome = await world.reload(text_of(etcds, THREE))
            assert (outcome.result, outcome.epoch, outcome.reasons, outcome.warnings) == (Result.DONE, 2, [], [])
            *lines, about_revisions, about_leases = outcome.lines()
            assert lines == [f"shard c is new: {c.endpoint}", 'keys ["t", end) move from b to c']
            assert about_revisions.startswith("c is at revision 1, below b at ")
            assert about_leases == "shard c was given 2 leases"
            world.proxy.leases.repair.tick()
            assert world.proxy.leases.repair.waiting == 0, "nobody grants them again"
            assert brought[0] > 400, "the leases are there before the first key can be"
            assert world.told[0] == "connecting c"
            await client.put(b"y", b"new", lease=77)
            assert value_on(c, b"y") == b"new"
            assert await how_it_ends(moves) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
            assert (await how_it_ends(whole))[0] is grpc.StatusCode.UNAVAILABLE
            assert await next_value(stays) == b"1"
            assert await next_value(stays) == b"", "deleted by those at work"
            await client.put(b"n", b"2")
            while await next_value(stays) != b"2":  # it was deleted before and after the reload
                pass
            for lost in ({"key": b"y"}, ALL):  # as their clients do, which have a revision of another shard or map
                again = await client.watch(**lost, start_revision=before.header.revision + 1)
                assert (await again.read()).compact_revision > 0
                again.cancel()
            fresh = await client.watch(key=b"y", start_revision=(await client.get(key=b"y")).header.revision + 1)
            await client.put(b"y", b"newer")
            assert await next_value(fresh) == b"newer"
            fresh.cancel()
            resumed = await client.watch(key=b"n", start_revision=before.header.revision)
            assert await next_value(resumed) == b"1"
            refused = await world.reload(text_of(two, TWO))
            assert (refused.result, refused.epoch) == (Result.REFUSED, 2)
            assert refused.reasons == [
                'shard c holds 1 key of ["t", end), which no client would see any more: the range moves to b, which '
                "holds 0 keys there; copy them there before"
            ]
            await client.put(b"y", b"still in c")
            assert value_on(c, b"y") == b"still in c"
            put(etcds["b"], b"y", b"copied")
            checked = await world.reload(text_of(two, TWO), only_check=True)
            assert checked.notes == ['c still has 1 key of ["t", end), which nobody sees: as many as b']
            delete(c, b"y")
            outcome = await world.reload(text_of(two, TWO))
            assert (outcome.result, outcome.epoch) == (Result.DONE, 3)
            assert outcome.notes == ['clients see 1 key of ["t", end) that b has']
            assert (await client.get(key=b"y")).kvs[0].value == b"copied"
            stays.cancel()
            await until(lambda: len(world.proxy.running.shards) == 2)
            [moved, *_] = world.proxy.moves.last
            assert (str(moved.move), moved.how) == ('keys ["t", end) move from c to b', "reload of the file")
            assert world.reloads.counters == {"done": 2, "refused": 1}
            assert dict(of_reloads(world.proxy.reloads).rows) == {("done",): 2, ("unchanged",): 0, ("refused",): 1}

    run(test)


def test_a_reload_that_is_refused_changes_nothing(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"

    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            client, proxy = world.client, world.proxy
            routing, config = proxy.routing, proxy.config
            put(etcds["b"], b"y")
            watch = await client.watch(key=b"y")
            for text, reason in (
                ("shards: [", "esp.yaml:1: not YAML: "),
                (text_of(two, TWO, "limits: {max_tokens: 0}"), 'limits: "max_tokens" is 0; it must be above 0'),
                (
                    text_of(two, TWO, "namespace: x/\nlimits: {max_tokens: 1}"),
                    'namespace: none -> "x/" cannot change while esp runs; run esp serve --takeover, or restart esp',
                ),
                (text_of({**two, "c": nowhere}, THREE), "shard c cannot be reached: http://127.0.0.1:"),
                (text_of(etcds, THREE), 'shard b holds 1 key of ["t", end), which no client would see any more'),
            ):
                outcome = await world.reload(text)
                assert outcome.result is Result.REFUSED
                assert any(reason in told for told in outcome.reasons), outcome.reasons
                assert "refused, nothing has changed: " in caplog.records[-1].message
                assert reason in caplog.records[-1].message
            world.path.unlink()
            gone = await world.reloads.reload("test")
            assert "cannot be read: no such file or directory" in gone.reasons[0]
            assert (proxy.routing, proxy.config) == (routing, config)
            assert len(proxy.running.shards) == 2, "the clients of shards that did not join have ended"
            await client.put(b"y", b"1")
            assert await next_value(watch) == b"1"
            watch.cancel()
            assert world.reloads.counters == {"refused": 6}

    run(test)


def test_a_forced_reload_takes_the_risk_and_says_so(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"

    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            put(etcds["b"], b"y")
            put(etcds["b"], b"z")
            outcome = await world.reload(text_of(etcds, THREE), force=True)
            assert outcome.result is Result.DONE
            [warning] = outcome.warnings
            assert warning.startswith('shard b holds 2 keys of ["t", end), which no client would see any more')
            assert outcome.lines()[-1] == f"warning: {warning}"
            assert (await world.client.get(**ALL)).count == 0
            joins = {**two, "d": nowhere}
            outcome = await world.reload(text_of(joins, {**TWO, "b": "m..x", "d": "x.."}), force=True)
            assert outcome.result is Result.DONE
            assert outcome.warnings[0].startswith("shard d cannot be reached: ")
            assert all("holds 1 key" in text or "does not tell" in text for text in outcome.warnings[1:])
            outcome = await world.reload(text_of(two, TWO, "namespace: x/"), force=True)
            assert outcome.result is Result.REFUSED, "a field that is fixed cannot be forced"

    run(test)


def test_it_can_only_be_checked_and_the_same_config_is_no_change(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            lease = (await world.client.lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600), timeout=20)).ID
            outcome = await world.reload(text_of(etcds, THREE), only_check=True)
            assert (outcome.result, outcome.epoch) == (Result.POSSIBLE, 1)
            assert len(outcome.lines()) == 2
            assert isinstance(etcds["c"], LocalEtcd)
            assert ttl_on(etcds["c"], lease) == -1
            assert len(world.proxy.running.shards) == 2
            outcome = await world.reload("# a comment\n" + text_of(two, TWO))
            assert (outcome.result, outcome.epoch, outcome.lines()) == (Result.UNCHANGED, 1, [])
            assert world.reloads.counters == {"unchanged": 1}

    run(test)


def test_every_other_field_is_in_force_from_then_on(two: dict[str, LocalEtcd | str], tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            client, proxy = world.client, world.proxy
            await client.put(b"b")
            await client.put(b"y")
            old = await client.watch(key=b"b")
            extra = (
                "across_shards: refuse\ndeletes_across_shards: refuse\ndefragment: sequential\nleases: strict\n"
                "advertise: [http://esp:1]\ncors: [http://a]\nhost_whitelist: [b]\ndrain_seconds: 1\n"
                "compaction: {revisions_of: b}\nrange_reads: snapshot\ntxn_reads: each\nwatch_config: true\n"
                "limits: {max_message_bytes: 20000, max_parts_per_shard: 9, max_watcher_bytes: 7,"
                " max_buffered_bytes: 5000000, max_json_bytes: 3, max_connections: 77}\n"
            )
            outcome = await world.reload(text_of(two, TWO, extra))
            assert outcome.result is Result.DONE, outcome.reasons
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.get(**ALL)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            members: Any = rpc_pb2_grpc.ClusterStub(client.channel)
            answer = await members.MemberList(rpc_pb2.MemberListRequest(), timeout=20)
            assert [list(member.clientURLs) for member in answer.members] == [["http://esp:1"]]
            context = proxy.context
            assert proxy.leases.table.tolerant is False
            assert (context.shared["max_watcher_bytes"].limit, context.shared["max_connections"].limit) == (7, 77)
            assert context.buffers.limit == 5_000_000
            assert proxy.gate._limit == 9 * 16
            assert (proxy._site._cors, proxy._site._hosts, proxy._site._most_bytes) == ({"http://a"}, {"b"}, 3)
            assert proxy._served.samples is not None
            assert proxy._served.samples.leading == "a"
            await client.put(b"b", b"x" * 30000)  # an open connection keeps its limits
            assert await next_value(old) == b"x" * 30000
            new = Client(proxy)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await new.put(b"b", b"x" * 30000)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await new.channel.close()
            old.cancel()
            back = await world.reload(text_of(two, TWO))
            assert back.result is Result.DONE
            assert (await client.get(**ALL)).count == 2
            assert proxy.leases.table.tolerant is True
            assert context.shared["max_watcher_bytes"].limit == configs.load(world.path).limits.max_watcher_bytes

    run(test)


def test_a_member_more_or_less_disturbs_nobody(start_etcd: Etcds, tmp_path: Path) -> None:
    etcd = start_etcd()
    other = f"http://127.0.0.1:{free_port()}"
    alias = etcd.endpoint.replace("127.0.0.1", "localhost")
    all_keys = {"a": ".."}

    async def test() -> None:
        async with serving(tmp_path, text_of({"a": etcd}, all_keys)) as world:
            client, proxy = world.client, world.proxy
            watch = await client.watch(key=b"k")
            shard = proxy.routing.shards["a"]
            for endpoints in (f"{etcd.endpoint}, {other}", f"{etcd.endpoint}, {alias}"):
                outcome = await world.reload(text_of({"a": endpoints}, all_keys))
                assert outcome.lines() == [f"shard {change}" for change in outcome.difference.changed]  # type: ignore[union-attr]
                assert outcome.result is Result.DONE
                assert proxy.routing.shards["a"] is shard
                await client.put(b"k", endpoints.encode())
                assert await next_value(watch) == endpoints.encode()
            assert shard.dialled == 1, "it has stayed where it was"
            assert (await world.reload(text_of({"a": alias}, all_keys))).result is Result.DONE
            await until(lambda: shard.dialled == 2 and shard.is_ready)
            assert str(shard.endpoint) == alias
            await client.put(b"k", b"through the other name")
            assert (await client.get(key=b"k")).kvs[0].value == b"through the other name"
            watch.cancel()

    run(test)


def test_a_shards_name_that_leads_to_another_cluster_is_told(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            await world.client.put(b"y")
            other = {**two, "b": etcds["c"]}
            outcome = await world.reload(text_of(other, TWO))
            assert outcome.result is Result.REFUSED
            assert 'shard b holds 1 key of ["m", end), which no client would see any more' in outcome.reasons[0]
            renamed = {"a": two["a"], "other": two["b"]}
            outcome = await world.reload(text_of(renamed, {"a": "..m", "other": "m.."}))
            assert (outcome.result, outcome.warnings) == (Result.DONE, []), "the same cluster, with its keys"
            assert (await world.client.get(**ALL)).count == 1

    run(test)


def test_keys_that_come_to_the_former_owner_meanwhile_are_told(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            install = world.proxy.install

            def late(*args: Any) -> None:
                install(*args)
                put(etcds["b"], b"y")

            world.proxy.install = late  # type: ignore[method-assign]
            outcome = await world.reload(text_of(etcds, THREE))
            assert outcome.result is Result.DONE
            [warning] = outcome.warnings
            assert warning.startswith("while the map changed, 1 key came to shard b that c lacks: ")

    run(test)


@asynccontextmanager
async def meanwhile(what: Callable[[], Any]) -> AsyncIterator[None]:
    """Has every reload do something when it is prepared, before it holds the calls for keys that move."""
    close = Reload.close

    async def closing(self: Reload) -> None:
        await what()
        await close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reload, "close", closing)
        yield


def values(etcd: LocalEtcd | str, keys: list[bytes]) -> list[bytes | None]:
    assert isinstance(etcd, LocalEtcd)
    return [value_on(etcd, key) for key in keys]


def test_calls_for_keys_that_move_wait_until_those_have_ended_that_had_begun(
    etcds: dict[str, LocalEtcd | str],
    two: dict[str, LocalEtcd | str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "CLOSE_SECONDS", 30.0)
    monkeypatch.setattr(fence, "HOLD_SECONDS", 30.0)

    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            client, proxy, b = world.client, world.proxy, etcds["b"]
            assert isinstance(b, LocalEtcd)
            assert b.process
            await client.put(b"n")
            began: list[asyncio.Future[Any]] = []

            async def begins() -> None:
                freeze(b.process)
                began.append(asyncio.ensure_future(client.put(b"n", b"in flight")))
                await until(lambda: len(proxy.calls_in_flight()) == 1)

            async with meanwhile(begins):
                reload = asyncio.ensure_future(world.reload(text_of(etcds, THREE)))
                await until(lambda: proxy._fence is not None)
                txn = Txn(success=[Op(request_put=Put(key=b"y/txn"))])
                calls = client.put(b"y", b"new"), client.get(**ALL), client.kv.Txn(txn, timeout=20)
                held = [asyncio.ensure_future(call) for call in calls]
                await until(lambda: proxy._fence is not None and proxy._fence.held == 3)
                await client.put(b"b", b"of a shard that keeps its keys")
                assert not reload.done()
                assert not any(call.done() for call in (*began, *held))
                b.process.send_signal(signal.SIGCONT)
                outcome = await reload
            assert (outcome.result, outcome.warnings) == (Result.DONE, [])
            await asyncio.gather(*began, *held)
            assert values(b, [b"n", b"y"]) == [b"in flight", None]
            assert values(etcds["c"], [b"y", b"y/txn"]) == [b"new", b""]
            assert {kv.key for kv in held[1].result().kvs} >= {b"b", b"n"}
            assert proxy.fenced == {"held": 3}

    run(test)


def test_keys_that_come_while_a_reload_is_prepared_refuse_it_and_nothing_is_lost(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:

            async def writes() -> None:
                await world.client.put(b"y", b"late")

            async with meanwhile(writes):
                outcome = await world.reload(text_of(etcds, THREE))
            assert outcome.result is Result.REFUSED
            [reason] = outcome.reasons
            assert reason.startswith('shard b holds 1 key of ["t", end), which no client would see any more: ')
            assert reason.endswith("(they came while the reload was prepared)")
            await world.client.put(b"y/2", b"by the map of before")
            assert values(etcds["b"], [b"y", b"y/2"]) == [b"late", b"by the map of before"]
            async with meanwhile(writes):
                outcome = await world.reload(text_of(etcds, THREE), force=True)
            assert outcome.result is Result.DONE
            assert "which no client would see any more" in outcome.warnings[0]

    run(test)


def test_a_write_without_an_answer_does_not_hold_up_the_others_for_long(
    etcds: dict[str, LocalEtcd | str],
    two: dict[str, LocalEtcd | str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(steps, "LOOK_SECONDS", 0.2)

    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            client, proxy, b = world.client, world.proxy, etcds["b"]
            assert isinstance(b, LocalEtcd)
            assert b.process
            await client.put(b"n")
            stuck: list[asyncio.Future[Any]] = []

            async def begins() -> None:
                freeze(b.process)
                stuck.extend(map(asyncio.ensure_future, (client.put(b"y", b"late"), client.get(key=b"n"))))
                await until(lambda: len(proxy.calls_in_flight()) == 2)

            async with meanwhile(begins):
                reload = asyncio.ensure_future(world.reload(text_of(etcds, THREE)))
                await until(lambda: proxy.routing.layout.epoch == 2)
                with pytest.raises(grpc.aio.AioRpcError) as told:
                    await stuck[0]
                assert (told.value.code(), told.value.details()) == (
                    grpc.StatusCode.UNAVAILABLE,
                    "etcdserver: request timed out",
                )
                await client.put(b"y", b"new")
                assert not stuck[1].done(), "a read that has begun may end late"
                b.process.send_signal(signal.SIGCONT)
                assert (await stuck[1]).count == 1
                outcome = await reload
            assert outcome.result is Result.DONE
            assert outcome.warnings[0] == "1 write to b had no answer in time; the clients do not know the outcome"
            assert values(etcds["c"], [b"y"]) == [b"new"]
            assert proxy.fenced["cut"] == 1

    run(test)


def test_a_shard_that_does_not_tell_its_leases_hinders_another_from_joining(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            a = etcds["a"]
            assert isinstance(a, LocalEtcd)
            a.kill()
            await until(lambda: not world.proxy.routing.shards["a"].is_ready)
            outcome = await world.reload(text_of(etcds, THREE))
            assert outcome.result is Result.REFUSED
            [reason] = outcome.reasons
            assert reason.startswith("shard a does not tell its leases: ")
            assert reason.endswith("; it would have keys before it has its leases")
            assert (await world.reload(text_of(etcds, THREE), force=True)).result is Result.DONE
            # What has nothing to do with that shard is changed although it is away.
            assert (await world.reload(text_of(etcds, THREE, "limits: {max_tokens: 9}"))).result is Result.DONE

    run(test)


def test_reloads_come_one_after_the_other_and_those_that_wait_are_one(
    two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            world.path.write_text(text_of(two, TWO, "limits: {max_tokens: 9}"))
            at_once = [world.reloads.reload(f"{number}") for number in range(3)]
            for number in range(50):
                world.reloads.begin(f"signal {number}")
            await asyncio.gather(*at_once)
            await until(lambda: sum(world.reloads.counters.values()) >= 4)
            await asyncio.sleep(0.05)
            assert world.reloads.counters == {"done": 1, "unchanged": 3}

    run(test)


def test_no_read_sees_half_of_each_map(two: dict[str, LocalEtcd | str], tmp_path: Path) -> None:
    """Two shards have the same keys, with other values; maps that take turns give each key to the other shard."""
    texts = [text_of(two, ranges) for ranges in ({"a": "..m", "b": "m.."}, {"a": "m..", "b": "..m"})]
    keys = [b"k%d" % number for number in range(5)] + [b"p%d" % number for number in range(5)]
    for name, etcd in two.items():
        for key in keys:
            put(etcd, key, name.encode())
    whole = [[b"a"] * 5 + [b"b"] * 5, [b"b"] * 5 + [b"a"] * 5]

    async def by_range(client: Client, **fields: Any) -> list[bytes]:
        return [kv.value for kv in (await client.get(key=b"k", range_end=b"q", **fields)).kvs]

    async def by_txn(client: Client) -> list[bytes]:
        asked = [Op(request_range=Range(key=key)) for key in keys]
        answer = await client.kv.Txn(Txn(success=asked), timeout=20)
        return [one.response_range.kvs[0].value for one in answer.responses]

    readers: dict[str, Callable[[Client], Any]] = {
        "range": by_range,
        "range with a limit": lambda client: by_range(client, limit=10),
        "range by value": lambda client: by_range(client, sort_target=1, sort_order=1, limit=100),
        "txn": by_txn,
    }

    async def test() -> None:
        async with serving(tmp_path, texts[0]) as world:
            seen: dict[str, set[bytes]] = {name: set() for name in readers}
            is_over = asyncio.Event()

            async def reads(name: str) -> None:
                client = Client(world.proxy)
                while not is_over.is_set():
                    found = await readers[name](client)
                    assert found in whole, f"{name}: {found}"
                    seen[name].add(found[0])
                await client.channel.close()

            tasks = [asyncio.create_task(reads(name)) for name in readers]
            for number in range(1, 31):
                outcome = await world.reload(texts[number % 2])
                assert (outcome.result, outcome.warnings) == (Result.DONE, []), outcome.reasons
            await until(lambda: all(len(found) == 2 for found in seen.values()) or any(one.done() for one in tasks))
            is_over.set()
            await asyncio.gather(*tasks)

    run(test)


def test_revisions_from_before_a_move_are_compacted_and_those_since_are_served(
    two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    for _ in range(50):
        put(two["b"], b"z")  # counts higher than the former owner
    delete(two["b"], b"z")

    async def test() -> None:
        async with serving(tmp_path, text_of(two, {"a": "..t", "b": "t.."})) as world:
            client = world.client
            old = (await client.put(b"n", b"1")).header.revision
            token = (await client.get(**ALL)).header.revision
            put(two["b"], b"n", b"1")
            outcome = await world.reload(text_of(two, TWO))
            assert (outcome.result, outcome.warnings) == (Result.DONE, [])
            new = (await client.get(key=b"n")).header.revision
            assert new > old
            await client.put(b"n", b"2")

            async def is_compacted(revision: int, **keys: bytes) -> None:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.get(**keys, revision=revision)
                assert caught.value.details() == "etcdserver: mvcc: required revision has been compacted"
                if revision < 1 << 52:
                    asked = Txn(
                        success=[Op(request_range=Range(key=b"b")), Op(request_range=Range(**keys, revision=revision))]
                    )
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await client.kv.Txn(asked, timeout=20)
                    assert caught.value.details() == "etcdserver: mvcc: required revision has been compacted"
                watch = await client.watch(**keys, start_revision=revision + 1)
                assert (await watch.read()).compact_revision > 0
                watch.cancel()

            await is_compacted(old, key=b"n")
            await is_compacted(old, key=b"n", range_end=b"o")
            await is_compacted(token, key=b"n")
            await is_compacted(token, **ALL)
            assert (await client.get(key=b"n", revision=new)).kvs[0].value == b"1"
            asked = Txn(success=[Op(request_range=Range(key=b"n", revision=new))])
            answer = await client.kv.Txn(asked, timeout=20)
            assert answer.responses[0].response_range.kvs[0].value == b"1"
            shard = world.proxy.routing.shards["b"]
            before = shard.seen
            far = before + 2 * FAR
            for seen in (far, 0):  # as of a shard that has gone on since, and of one that is not known now
                shard.seen = seen
                asked = Txn(success=[Op(request_range=Range(key=b"n", revision=far))])
                for call in (client.kv.Txn(asked, timeout=20), client.get(key=b"n", revision=far)):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call
                    assert caught.value.details() == "etcdserver: mvcc: required revision is a future revision"
            shard.seen = before
            watch = await client.watch(key=b"n", start_revision=new + 1)
            assert await next_value(watch) == b"2"
            watch.cancel()
            await client.put(b"b", b"of a shard that keeps its keys")
            assert (await client.get(key=b"b", revision=(await client.get(key=b"b")).header.revision)).count == 1
            later = (await client.get(**ALL)).header.revision
            assert (await client.get(**ALL, revision=later)).count == 2
            one = {"only": two["b"]}
            assert (await world.reload(text_of(one, {"only": ".."}), force=True)).result is Result.DONE
            # The only shard itself has a state at the revision, but of other keys.
            await is_compacted(old, key=b"b")
            assert (await client.kv.Txn(Txn(), timeout=20)).header.revision < 1 << 52, "a revision of the only shard"
            lost = Txn(success=[Op(request_put=rpc_pb2.PutRequest(key=b"n", lease=12345))])
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.kv.Txn(lost, timeout=20)
            assert caught.value.details() == "etcdserver: requested lease not found"

    run(test)


def test_the_second_shard_hears_of_the_streams_of_the_first(two: dict[str, LocalEtcd | str], tmp_path: Path) -> None:
    """With one shard, calls are passed on as they are: a watch, or keepalives, would never leave the first shard."""
    a, b = two["a"], two["b"]

    async def test() -> None:
        async with serving(tmp_path, text_of({"a": a}, {"a": ".."})) as world:
            client = world.client
            lease = (await client.lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600), timeout=20)).ID
            watch = await client.watch(key=b"y")
            keepalives = client.lease.LeaseKeepAlive()
            await keepalives.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
            assert (await keepalives.read()).TTL == 600
            outcome = await world.reload(text_of(two, TWO))
            assert outcome.result is Result.DONE
            assert (await how_it_ends(watch))[0] is grpc.StatusCode.UNAVAILABLE
            assert (await how_it_ends(keepalives))[0] is grpc.StatusCode.UNAVAILABLE
            await client.put(b"y", b"leased", lease)
            assert isinstance(b, LocalEtcd)
            assert value_on(b, b"y") == b"leased"

    run(test)


def test_etcdctl_watches_on_what_stays_and_is_told_to_list_again_what_moves(
    etcds: dict[str, LocalEtcd | str], two: dict[str, LocalEtcd | str], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, text_of(two, TWO)) as world:
            endpoint = f"--endpoints=127.0.0.1:{world.proxy.bound[0][1]}"
            pipe = asyncio.subprocess.PIPE
            stays, moves = [
                await asyncio.create_subprocess_exec(find_etcdctl(), endpoint, "watch", key, stdout=pipe, stderr=pipe)
                for key in ("n", "y")
            ]

            async def hears(watch: asyncio.subprocess.Process, key: bytes, value: bytes) -> None:
                """Until it tells of that value, which is put again and again: nobody says when it watches."""
                assert watch.stdout is not None
                line = asyncio.create_task(watch.stdout.readuntil(value))
                while not line.done():
                    await world.client.put(key, value)
                    await asyncio.wait([line], timeout=0.1)
                await line

            await hears(stays, b"n", b"before")
            await hears(moves, b"y", b"before")
            outcome = await world.reload(text_of(etcds, THREE), force=True)
            assert outcome.result is Result.DONE
            await hears(stays, b"n", b"after")
            await world.client.put(b"y", b"after")
            _, said = await moves.communicate()
            assert b"required revision has been compacted" in said
            stays.kill()
            await stays.wait()

    run(test)
