"""The map on real etcds, and ranges that change their owner there, by the protocol and without any tool of esp's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from esp.core import config, shared_map
from esp.core.config import Config
from esp.core.following import Following
from esp.core.keys import KeyRange
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.proxy import Proxy
from esp.core.shard_map import ShardMap
from esp.core.shared_map import GUARD_KEY, MAP_KEY, Change, SharedMap, served
from esp.core.shared_map.value import fresh_nonce
from tests.harness import connect, write_config
from tests.stubs import rpc_pb2_grpc

AT = "2026-11-30T16:00:00Z"
Put, Range = rpc_pb2.PutRequest, rpc_pb2.RangeRequest


class Mapped:
    """Etcds with a map; shard `sN` is the N-th of them.

    Attributes:
        now: the map in force.
        config: a config without ranges of its own, but with the map as it was at the start.
    """

    def __init__(
        self,
        etcds: Sequence[LocalEtcd | Sequence[LocalEtcd]],
        boundaries: Sequence[str],
        path: Path,
        extra: str = "",
    ) -> None:
        self.etcds = {
            f"s{number}": [etcd] if isinstance(etcd, LocalEtcd) else list(etcd) for number, etcd in enumerate(etcds)
        }
        self.path = write_config(path, etcds, boundaries, f"map: shards\n{extra}")
        loaded = config.load(self.path)
        self.now = shared_map.first(loaded.shard_map, at=AT, by="tests", what="the first map")
        self.config: Config = replace(
            served(loaded, self.now), listen=config.listen_of(["http://127.0.0.1:0"]), drain_seconds=1.0
        )
        for name in self.etcds:
            self.hold(name, self.now)

    def ask(self, name: str, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        """A shard's own answer, of the first member that runs."""
        member = next(etcd for etcd in self.etcds[name] if etcd.is_running())
        with connect(member) as channel:
            answer: rpc_pb2.TxnResponse = rpc_pb2_grpc.KVStub(channel).Txn(request, timeout=60)
            return answer

    def read(self, name: str, key: bytes, range_end: bytes = b"") -> list[tuple[bytes, bytes]]:
        """What a shard itself holds."""
        read = rpc_pb2.RequestOp(request_range=Range(key=key, range_end=range_end))
        answer = self.ask(name, rpc_pb2.TxnRequest(success=[read])).responses[0].response_range
        return [(pair.key, pair.value) for pair in answer.kvs]

    def hold(self, name: str, shared: SharedMap, guard: str = "", more: Sequence[rpc_pb2.RequestOp] = ()) -> None:
        """Has a shard hold a map and its guard, both in one transaction."""
        values = {GUARD_KEY: (guard or shared.guards[name]).encode(), MAP_KEY: shared.encode()}
        puts = [rpc_pb2.RequestOp(request_put=Put(key=key, value=value)) for key, value in values.items()]
        self.ask(name, rpc_pb2.TxnRequest(success=[*puts, *more]))

    def next(self, start: bytes, end: bytes | None, target: str) -> SharedMap:
        """The map in which these keys belong to `target`."""
        before = self.now
        moved = KeyRange(start, end)
        ranges = [
            (owner, part)
            for owner in before.names
            for one in before.map.ranges_of(owner)
            for part in one.without(moved)
        ]
        after = ShardMap.build([*ranges, (target, moved)], before.names, before.epoch + 1)
        loses = {before.map.owner(part.start) for part in [moved]}
        guards = {
            name: f"{after.epoch}-{fresh_nonce()}" if name == target or name in loses else guard
            for name, guard in before.guards.items()
        }
        change = Change(after.epoch, AT, "tests", f"{start!r} moves to {target}", after.fingerprint)
        return shared_map.decode(SharedMap(after, before.anchor, guards, (*before.changes, change)).encode())

    def move(self, start: bytes, end: bytes | None, target: str) -> SharedMap:
        """Gives keys, which one shard owns, to another: the cut, the copies, the opening, and the others are told."""
        source = self.now.map.owner(start)
        after = self.next(start, end, target)
        self.hold(source, after)
        copied = self.read(source, *KeyRange(start, end).to_request())
        puts = [rpc_pb2.RequestOp(request_put=Put(key=key, value=value)) for key, value in copied]
        for first in range(0, len(puts), 100):
            self.ask(target, rpc_pb2.TxnRequest(success=puts[first : first + 100]))
        self.hold(target, after)
        for name in self.etcds:
            if name not in (source, target):
                self.hold(name, after)
        self.now = after
        return after


@asynccontextmanager
async def proxy_of(used: Config, *, follows: bool = True) -> AsyncIterator[Proxy]:
    """A proxy that serves by the map of its config; without `follows` it hears of no other."""
    async with Proxy(used) as proxy:
        if follows:
            proxy.background.keep("the map", Following(proxy).run)
        assert await proxy.connected(20) == []
        yield proxy
        assert not proxy.background.failures
