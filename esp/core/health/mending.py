"""Stray keys moved to the shards that own them, or deleted.

No live key is touched. A key is put on its owner only if the owner has none (a Txn that compares create_revision with
0), and deleted from where it strayed only if it is still as it was read (a Txn that compares mod_revision). A key that
the owner has with the same value is only deleted where it strayed: so a run that was cut short between the two is
finished by the next one. A run is repeated whole; what is done is not there any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from esp.core import errors
from esp.core.config import Config
from esp.core.health.connecting import connecting, trouble_of
from esp.core.health.facts import Stray
from esp.core.health.strays import count_keys
from esp.core.keys import KeyRange
from esp.core.lease_sync import each
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import RANGE, TXN, Method, Shard, ask_for_esp
from esp.core.shared_map import COPIES_KEY, HELD_KEYS
from esp.core.tls_files import TlsFiles
from esp.core.wire.context import WireContext
from esp.core.wire.status import RpcError
from esp.core.wording import both_called, cured, shard_called

PAGE: Final = 100
"""The keys that are listed at once."""
CHUNK: Final = 16
"""The keys that are read, put or deleted in one Txn; each may have a value of a megabyte and more."""
AT_ONCE: Final = 2
"""The chunks that are worked on at the same time."""
TXN_BYTES: Final = 1_000_000
"""The most bytes of a Txn of several keys; etcd refuses 1.5 MB (--max-request-bytes)."""
CALL_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 3.0

Progress = Callable[[int, int], None]
"""Called with the number of keys that are done, and the number of all."""
Unchanged = Callable[[], Coroutine[Any, Any, None]]
"""Raises MendError if running proxies no longer have the map that they had."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class MendError(Exception):
    """The work cannot begin, or not go on; the text is a clause for people."""


class How(StrEnum):
    """What is done with stray keys."""

    MOVE = "move"
    DELETE = "delete"


class Fate(StrEnum):
    """What became of a stray key, or in a dry run what would. The names are part of the JSON form."""

    MOVED = "moved"
    DELETED = "deleted"
    """Also where the owner has the key with the same value and lease."""
    LIVE = "live"
    """Kept: the owner has the key with another value."""
    NO_LEASE = "no-lease"
    """Kept: the owner lacks the lease of the key."""
    CHANGED = "changed"
    """Kept: the key was written meanwhile, where it strayed."""
    LEFT = "left"
    """Kept: a move may have left the key, carried out or given up. Its owner had it, and may have deleted it since."""
    GONE = "gone"
    """Deleted meanwhile."""


_NO_COPIES: Final = rpc_pb2.Compare(
    key=COPIES_KEY, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=0
)
KEPT: Final = (Fate.LIVE, Fate.NO_LEASE, Fate.CHANGED, Fate.LEFT)
"""The fates of keys that are still stray."""


@dataclass(slots=True)
class Mended:
    """One range with stray keys, and how many keys have met each fate.

    Attributes:
        shard: the shard that holds the keys.
        stray: the keys as they were counted.
        fates: the numbers.
        kept: the first few keys that are still stray, each with the reason.
    """

    shard: str
    stray: Stray
    fates: Counter[Fate] = field(default_factory=Counter)
    kept: list[tuple[bytes, Fate]] = field(default_factory=list)


MAX_KEPT: Final = 5
"""The most keys of a range that are named because they are still stray."""


async def always_so() -> None:
    """No proxy can have changed, as none is known."""


async def mend(
    config: Config, how: How, progress: Progress, *, apply: bool, unchanged: Unchanged = always_so
) -> list[Mended]:
    """Moves or deletes the stray keys of all shards. Without `apply`, only tells what would become of each.

    `unchanged` is awaited before each page of keys is worked on, and at the end.

    Raises:
        MendError: a shard cannot be asked, or fails; or two shards are one cluster; or `unchanged` has raised one. What
            is done stays done.
    """
    async with connecting(config, WireContext(config.limits), TlsFiles(), compares=True) as clients:
        shards = {name: _Guarded(shard, is_mapped=config.guards is not None) for name, shard in clients.items()}
        for name, shard in shards.items():
            if trouble := await trouble_of(shard.client, CONNECT_SECONDS):
                raise MendError(f"{shard_called(name)} cannot be asked: {cured(trouble)}")
        try:
            _refuse_one_cluster({name: await shard.meet() for name, shard in shards.items()})
            work = []
            for name, shard in shards.items():
                told = await count_keys(config, shard.client)
                if told.strays is None:
                    raise MendError(f"{shard_called(name)} does not tell its keys: {told.refusal}")
                work += [Mended(name, stray) for stray in told.strays]
            total, done = sum(mended.stray.count for mended in work), 0

            def step(mended: Mended, key: bytes, fate: Fate) -> None:
                nonlocal done
                done += 1
                mended.fates[fate] += 1
                if fate in KEPT and len(mended.kept) < MAX_KEPT:
                    mended.kept.append((key, fate))
                progress(done, max(done, total))

            for mended in work:
                one = _Mending(shards[mended.shard], shards[mended.stray.owner], how, mended, step, unchanged)
                await (one.run() if apply else one.look())
            if apply:
                await unchanged()
        except RpcError as error:
            text = errors.MAP_CHANGED_MEANWHILE if error.status == errors.MAP_CHANGED else error.status.message
            raise MendError(f"{text}; what is done is done: run the command again") from None
    return work


def _refuse_one_cluster(ids: Mapping[str, int]) -> None:
    """Refuses shards that are one cluster, or look so: there a stray key is the live key.

    Raises:
        MendError: there are such shards.
    """
    for name, cluster in ids.items():
        same = [other for other, its in ids.items() if its == cluster and other != name]
        if same:
            raise MendError(
                f"{both_called(name, same[0])} have the same cluster id {cluster:x}: they may be one etcd, where a "
                "stray key of one is a live key of the other; give each shard a cluster of its own (esp check)"
            )


class _Guarded:
    """A shard whose answers must all be of the cluster that gave the first.

    Args:
        client: its client.
        is_mapped: it holds a map, so keys may be copied to it at any time; then nothing is written there.
    """

    def __init__(self, client: Shard, *, is_mapped: bool) -> None:
        self.client = client
        self._is_mapped = is_mapped
        self._cluster = 0
        self._most_ops = client.max_txn_ops  # as far as is known: fewer, once the shard has refused so many

    async def meet(self) -> int:
        """The id of the cluster."""
        request = rpc_pb2.RangeRequest(key=b"\0", count_only=True)
        answer = await ask_for_esp(self.client, RANGE, request, seconds=CALL_SECONDS)
        self._cluster = answer.header.cluster_id
        return self._cluster

    async def ask(self, method: Method[Any], request: Message) -> Any:
        """The answer to a call.

        Raises:
            RpcError: the shard's.
            MendError: the answer is of another cluster.
        """
        answer = await ask_for_esp(self.client, method, request, seconds=CALL_SECONDS)
        if answer.header.cluster_id != self._cluster:
            name = self.client.name
            raise MendError(
                f"the endpoints of {shard_called(name)} belong to different clusters; mend that first (esp check)"
            )
        return answer

    async def each_of(self, ops: Sequence[rpc_pb2.TxnRequest]) -> list[rpc_pb2.TxnResponse]:
        """The answers to several Txns of one operation, made as one or as few; each has its own comparison.

        Raises:
            RpcError, MendError: as `ask`.
        """

        async def ask(some: Sequence[rpc_pb2.TxnRequest]) -> list[rpc_pb2.TxnResponse]:
            if len(some) == 1 and not self._is_mapped:  # not in another one: --max-txn-ops counts both
                return [await self.ask(TXN, some[0])]
            request = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_txn=op) for op in some])
            answer = await self._without_copies(request)
            return [response.response_txn for response in answer.responses]

        return await self._in_parts(ops, ask)

    async def _without_copies(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        """The answer to a Txn that has no comparison: it is done only if nobody copies keys to the shard."""
        if self._is_mapped:
            request.compare.append(_NO_COPIES)
        answer: rpc_pb2.TxnResponse = await self.ask(TXN, request)
        if not answer.succeeded:
            raise MendError(
                f"keys are being copied to {shard_called(self.client.name)} by esp move; what is done is done: run "
                "the command again when that has ended"
            )
        return answer

    async def read(self, requests: Sequence[rpc_pb2.RangeRequest]) -> list[kv_pb2.KeyValue]:
        """The keys that several Ranges find, which are made in one Txn or in few.

        Raises:
            RpcError, MendError: as `ask`.
        """

        async def ask(some: Sequence[rpc_pb2.RangeRequest]) -> list[kv_pb2.KeyValue]:
            request = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=read) for read in some])
            answer = await self._without_copies(request)
            return [kv for response in answer.responses for kv in response.response_range.kvs]

        return await self._in_parts(requests, ask)

    async def _in_parts(
        self, items: Sequence[Item], ask: Callable[[Sequence[Item]], Coroutine[Any, Any, list[Result]]]
    ) -> list[Result]:
        """What `ask` finds for parts of `items` that are as large as the shard's --max-txn-ops allows."""
        found: list[Result] = []
        while items:
            some = items[: self._most_ops]
            try:
                found += await ask(some)
            except RpcError as error:
                if error.status != errors.TOO_MANY_OPS or len(some) == 1:
                    raise
                self._most_ops = len(some) // 2
            else:
                items = items[len(some) :]
        return found

    async def pages(self, part: KeyRange) -> AsyncIterator[list[kv_pb2.KeyValue]]:
        """The keys of a range without their values, page by page; without those under which shards hold the map."""
        for one in part.without(HELD_KEYS):
            async for page in self._pages(one):
                yield page

    async def _pages(self, part: KeyRange) -> AsyncIterator[list[kv_pb2.KeyValue]]:
        rest = part
        while True:
            key, range_end = rest.to_request()
            request = rpc_pb2.RangeRequest(key=key, range_end=range_end, keys_only=True, limit=PAGE)
            answer = await self.ask(RANGE, request)
            if answer.kvs:
                yield list(answer.kvs)
            if not answer.more or not answer.kvs:
                return
            rest = KeyRange(answer.kvs[-1].key + b"\0", part.end)


Step = Callable[[Mended, bytes, Fate], None]


class _Mending:
    """The work on one range with stray keys."""

    def __init__(
        self, here: _Guarded, owner: _Guarded, how: How, mended: Mended, step: Step, unchanged: Unchanged
    ) -> None:
        self._unchanged = unchanged
        self._here = here
        self._owner = owner
        self._how = how
        self._mended = mended
        self._is_left = mended.stray.is_left and how is How.MOVE
        self._step = step

    async def look(self) -> None:
        """Finds what would become of each key: those that the owner has count as live, whatever their value.

        Raises:
            RpcError, MendError: as `run`.
        """
        async for page in self._here.pages(self._mended.stray.range):
            live = await self._live(page) if self._how is How.MOVE and not self._is_left else set()
            for kv in page:
                moved = Fate.LEFT if self._is_left else Fate.LIVE if kv.key in live else Fate.MOVED
                self._step(self._mended, kv.key, moved if self._how is How.MOVE else Fate.DELETED)

    async def _live(self, page: list[kv_pb2.KeyValue]) -> set[bytes]:
        """The keys of a page that the owner has."""
        reads = [rpc_pb2.RangeRequest(key=kv.key, keys_only=True) for kv in page]
        return {kv.key for kv in await self._owner.read(reads)}

    async def run(self) -> None:
        """Moves or deletes all keys of the range.

        Raises:
            RpcError: a shard's.
            MendError: a shard has become another cluster.
        """

        async def work(keys: list[kv_pb2.KeyValue]) -> None:
            if self._is_left:
                fates = dict.fromkeys((kv.key for kv in keys), Fate.LEFT)
            elif self._how is How.DELETE:
                fates = await self._delete({kv.key: kv.mod_revision for kv in keys})
            else:
                fates = await self._move([kv.key for kv in keys])
            for key, fate in fates.items():
                self._step(self._mended, key, fate)

        async for page in self._here.pages(self._mended.stray.range):
            await self._unchanged()
            await each([page[first : first + CHUNK] for first in range(0, len(page), CHUNK)], work, AT_ONCE)

    async def _move(self, keys: list[bytes]) -> dict[bytes, Fate]:
        """Moves a few keys: read in one Txn, put in one or more, deleted in one."""
        found = await self._here.read([rpc_pb2.RangeRequest(key=key) for key in keys])
        fates = dict.fromkeys(keys, Fate.GONE)
        there: dict[bytes, Fate] = {}
        for batch in _batches(found):
            there |= await self._put(batch)
        fates |= there
        on_owner = {kv.key: kv.mod_revision for kv in found if there[kv.key] in (Fate.MOVED, Fate.DELETED)}
        for key, fate in (await self._delete(on_owner)).items():
            if fate is not Fate.DELETED:
                fates[key] = fate
        return fates

    async def _put(self, batch: list[kv_pb2.KeyValue]) -> dict[bytes, Fate]:
        """Puts keys on their owner where it has none. DELETED: it has the key as it is, so only the stray goes."""
        ops = []
        for kv in batch:
            absent = rpc_pb2.Compare(
                key=kv.key, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=0
            )
            put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=kv.key, value=kv.value, lease=kv.lease))
            look = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=kv.key))
            ops.append(rpc_pb2.TxnRequest(compare=[absent], success=[put], failure=[look]))
        try:
            answers = await self._owner.each_of(ops)
        except RpcError as error:
            if error.status != errors.LEASE_NOT_FOUND or len(batch) > 1:
                raise
            return {batch[0].key: Fate.NO_LEASE}
        fates = {}
        for kv, answer in zip(batch, answers, strict=True):
            if answer.succeeded:
                fates[kv.key] = Fate.MOVED
            else:
                (live,) = answer.responses[0].response_range.kvs
                is_same = (live.value, live.lease) == (kv.value, kv.lease)
                fates[kv.key] = Fate.DELETED if is_same else Fate.LIVE
        return fates

    async def _delete(self, revisions: Mapping[bytes, int]) -> dict[bytes, Fate]:
        """Deletes keys where they strayed, each if its mod_revision is still this."""
        ops = []
        for key, revision in revisions.items():
            same = rpc_pb2.Compare(
                key=key, target=rpc_pb2.Compare.MOD, result=rpc_pb2.Compare.EQUAL, mod_revision=revision
            )
            delete = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))
            look = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, count_only=True))
            ops.append(rpc_pb2.TxnRequest(compare=[same], success=[delete], failure=[look]))
        fates = {}
        for key, answer in zip(revisions, await self._here.each_of(ops), strict=True):
            if answer.succeeded:
                fates[key] = Fate.DELETED
            else:
                fates[key] = Fate.CHANGED if answer.responses[0].response_range.count else Fate.GONE
        return fates


def _batches(found: list[kv_pb2.KeyValue]) -> Iterator[list[kv_pb2.KeyValue]]:
    """The keys in few Txns, none of which is too large. A key with a lease is alone: its owner may lack the lease."""
    batch: list[kv_pb2.KeyValue] = []
    size = 0
    for kv in found:
        own = len(kv.key) + len(kv.value)
        if batch and (kv.lease or batch[-1].lease or size + own > TXN_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(kv)
        size += own
    if batch:
        yield batch


def left_in(work: Iterable[Mended]) -> int:
    """The number of keys that are still stray."""
    return sum(mended.fates[fate] for mended in work for fate in KEPT)
