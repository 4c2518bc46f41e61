"""The map on real etcds, and ranges that change their owner there, by the protocol and without any tool of esp's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc

from esp.core import config, shared_map
from esp.core.config import Config
from esp.core.following import Following
from esp.core.keys import KeyRange
from esp.core.local import LocalEtcd
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.proxy import Proxy
from esp.core.shared_map import (
    COPIES_KEY,
    GUARD_KEY,
    MAP_KEY,
    NEXT_KEY,
    Held,
    Move,
    Next,
    Phase,
    SharedMap,
    moves_of,
    served,
)
from esp.core.shared_map.change import look
from esp.core.shared_map.reading import held_in
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
        self._channels: dict[LocalEtcd, grpc.Channel] = {}
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
        if member not in self._channels:
            self._channels[member] = connect(member)
        answer: rpc_pb2.TxnResponse = rpc_pb2_grpc.KVStub(self._channels[member]).Txn(request, timeout=60)
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

    def held(self, name: str) -> Held:
        """What a shard holds of the map."""
        answer = self.ask(name, rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=look())]))
        return held_in(answer.responses[0].response_range.kvs, answer.header)

    def revision(self, name: str) -> int:
        """A shard's revision."""
        return self.ask(name, rpc_pb2.TxnRequest()).header.revision

    # A move of keys, which one shard owns, to another, step by step.

    def begin(self, start: bytes, end: bytes | None, target: str) -> Next:
        """Decides on a move, on the anchor."""
        before, keys = self.now, KeyRange(start, end)
        moves = moves_of(before, {name: self.held(name) for name in self.etcds})
        after = shared_map.moved_to(before, keys, target, at=AT, by="tests", moves=moves)
        move = Move("0123456789ab", keys, before.map.owner(start), target, Phase.CUT, fresh_nonce(), 60_000)
        change = Next(before, after, move)
        self._note(change)
        return change

    def raise_target(self, change: Next, ahead: int = 2) -> None:
        """Has the target count higher than the source has by now."""
        assert change.move is not None
        wanted, reached = self.revision(change.move.source) + ahead, 0
        while reached < wanted:
            answer = self.ask(change.move.target, rpc_pb2.TxnRequest(success=[put_op(COPIES_KEY, b"")]))
            reached = answer.header.revision

    def cut(self, change: Next) -> int:
        """Ends the source's ownership; the revision of that."""
        assert change.move is not None
        self.hold(change.move.source, change.after)
        return self.held(change.move.source).guard_revision

    def copy(self, change: Next) -> None:
        """Copies the keys: each where it was created, and once more where it was changed last, in order."""
        assert change.move is not None
        key, range_end = change.move.range.to_request()
        remove = rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end)
        self.ask(change.move.target, rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_delete_range=remove)]))
        found = self._pairs(change.move.source, change.move.range)
        puts = {(revision, pair.key): pair for pair in found for revision in (pair.create_revision, pair.mod_revision)}
        for _, pair in sorted(puts.items()):
            put = put_op(pair.key, pair.value, pair.lease)
            self.ask(change.move.target, rpc_pb2.TxnRequest(success=[put]))

    def open(self, change: Next) -> int:
        """Begins the target's ownership; the revision of that."""
        assert change.move is not None
        self.hold(change.move.target, change.after)
        return self.held(change.move.target).guard_revision

    def finish(self, change: Next) -> None:
        """Tells the others of a move, and forgets it on the anchor."""
        assert change.move is not None
        forget = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=NEXT_KEY))
        for name in self.etcds:
            if name not in (change.move.source, change.move.target):
                self.hold(name, change.after)
        self.ask(self.now.anchor, rpc_pb2.TxnRequest(success=[forget]))
        self.now = change.after

    def give_back(self, change: Next) -> None:
        """Gives a move up."""
        assert change.move is not None
        assert change.before is not None
        back = shared_map.given_back(change.before, change.move, at=AT, by="tests", moves=change.before.moves)
        self._note(change.with_move(replace(change.move, phase=Phase.ABORT, back=back)))
        for name in (change.move.target, change.move.source):
            self.hold(name, back)
        self.finish(replace(change, after=back))

    def purge(self, change: Next) -> None:
        """Deletes the keys on the source."""
        assert change.move is not None
        key, range_end = change.move.range.to_request()
        remove = rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end)
        self.ask(change.move.source, rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_delete_range=remove)]))

    def move(self, start: bytes, end: bytes | None, target: str) -> SharedMap:
        """A whole move, without the purge."""
        change = self.begin(start, end, target)
        self.raise_target(change, 100)
        self.cut(change)
        self.raise_target(change)
        self.copy(change)
        self.open(change)
        self.finish(change)
        return self.now

    def _note(self, change: Next) -> None:
        self.ask(self.now.anchor, rpc_pb2.TxnRequest(success=[put_op(NEXT_KEY, change.encode())]))

    def _pairs(self, name: str, keys: KeyRange) -> list[kv_pb2.KeyValue]:
        key, range_end = keys.to_request()
        read = rpc_pb2.RequestOp(request_range=Range(key=key, range_end=range_end))
        return list(self.ask(name, rpc_pb2.TxnRequest(success=[read])).responses[0].response_range.kvs)


def put_op(key: bytes, value: bytes, lease: int = 0) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=Put(key=key, value=value, lease=lease))


@asynccontextmanager
async def proxy_of(used: Config, *, follows: bool = True) -> AsyncIterator[Proxy]:
    """A proxy that serves by the map of its config; without `follows` it hears of no other."""
    async with Proxy(used) as proxy:
        if follows:
            proxy.background.keep("the map", Following(proxy).run)
        assert await proxy.connected(20) == []
        yield proxy
        assert not proxy.background.failures
