"""A watcher of one shard goes over to the shard to which all its keys have come.

To its client it is as if each key had been put once more, with the same value, at its revision on the new owner:

1. The former owner's events are passed on up to the cut, the last revision of the keys there, and nothing after it:
   what the shard does with its copies later is no event of the keys. All have come when the shard tells its progress.
2. When the new owner has told at which revision it was opened, the keys are read there at that revision.
3. The client gets a PUT for each, in the order of their revisions there.
4. The watcher goes on at the new owner, behind that revision.

Copies that were made before the opening are never told. A client that was not told all by then comes back, if its
stream breaks, with a revision of before or between, and is told "compacted". So is one whose watcher has too many keys,
or whose shards do not tell in time, or whose former owner is an etcd whose progress may overtake events (before 3.4.31
and 3.5.13).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Final, Protocol

from esp.core.former import Came, Former
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.watch.exchange import Exchange
from esp.core.services.watch.messages import Response
from esp.core.services.watch.progress_requests import tells_in_order
from esp.core.services.watch.tap import Client, Tap
from esp.core.shard import RANGE, ask
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import encode
from esp.core.wire.message import MessageReader
from esp.core.wire.status import RpcError
from esp.core.wire.turns import SLICE

log = logging.getLogger("esp.watch")

MOST_KEYS: Final = 10_000
"""The most keys of a watcher that goes over."""
MOST_BYTES: Final = 8_388_608
"""The most bytes of these, as an answer of a shard; a larger answer is not read."""
MESSAGE_BYTES: Final = 262_144
"""About the bytes of a message with their PUTs; one revision is never divided."""
AT_ONCE: Final = 4
"""The most watchers of a move whose keys are read at the same time."""
WAIT_SECONDS: Final = 30.0
"""The longest that a watcher waits for each of its shards."""
READ_SECONDS: Final = 10.0
ASK_SECONDS: Final = 0.5
"""Seconds after which the former owner is asked for its progress again."""


class Passage:
    """One move, for the watchers that go over with it.

    Args:
        came: the range that has come to its new owner.
        context: tells how much fits a turn.

    Attributes:
        cut: the last revision of the range on its former owner.
        places: for the reads of its watchers.
    """

    def __init__(self, came: Came, context: WireContext) -> None:
        self.came = came
        self.cut = came.cut
        self.places = asyncio.Semaphore(AT_ONCE)
        self._context = context
        self._to_begin: deque[Crossing] = deque()
        self._opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.learn(Former((came,)))

    def learn(self, former: Former) -> None:
        """The shards may have told when the range came."""
        for one in former.came:
            is_it = (one.range, one.shard, one.epoch) == (self.came.range, self.came.shard, self.came.epoch)
            if is_it and one.is_known and not self._opened.done():
                self._opened.set_result(one.revision)

    @property
    def is_open(self) -> bool:
        """Whether the new owner has told its revision."""
        return self._opened.done()

    async def opened(self) -> int:
        """The revision at which the new owner was opened."""
        return await asyncio.shield(self._opened)

    def add(self, crossing: Crossing) -> None:
        """Has a watcher begin to go over soon: thousands begin over several turns."""
        if not self._to_begin:
            self._context.put_off(self)
        self._to_begin.append(crossing)

    def go_on(self) -> None:
        """Has some more watchers begin; those that do not fit a slice follow in the next turns."""
        clock = self._context.turns.clock
        stop = clock() + SLICE
        while self._to_begin:
            crossing = self._to_begin.popleft()
            try:
                crossing.begin()
            except Exception:
                crossing.on_bug()
            if self._to_begin and clock() >= stop:
                self._context.put_off(self)
                return

    def on_bug(self) -> None:
        """An exception came out of `go_on`: the others begin."""
        log.exception("a bug in esp; watches begin later to go over to the new owner of their keys")
        if self._to_begin:
            self._context.put_off(self)


class Crosser(Protocol):
    """The watcher that goes over, as the crossing sees it."""

    @property
    def stream(self) -> Client:
        """The client's stream."""

    def on_crossing(self, responses: Sequence[Response]) -> None:
        """The PUTs of the keys."""

    def on_crossed(self, revision: int) -> None:
        """Goes on at the new owner, from a revision on."""

    def on_not_crossed(self) -> None:
        """It cannot go over: it is told "compacted"."""


class _CannotCrossError(Exception):
    """The watcher has too many keys, or the shards do not tell what is needed."""


class Crossing:
    """One watcher that goes over.

    Args:
        watcher: the watcher.
        tap: its part, at the former owner.
        passage: the move.
    """

    def __init__(self, watcher: Crosser, tap: Tap, passage: Passage) -> None:
        self._watcher = watcher
        self._tap = tap
        self._passage = passage
        self._start = tap.position if tap.position > passage.cut + 1 else 0  # of a watcher from the future
        self._asked: Exchange | None = None
        tap.cross(passage.cut)  # now: nothing of after the cut is passed on while the crossing waits to begin
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        passage.add(self)

    def begin(self) -> None:
        """Begins to look whether all has come, unless the watcher has ended."""
        if not self._is_over:
            stream = self._watcher.stream
            self._task = stream.background.start(self._run(), on_bug=stream.outbox.fail)

    def cancel(self) -> None:
        """The watcher has ended."""
        self._is_over = True
        self._forget()
        if self._task is not None:
            self._task.cancel()

    def _forget(self) -> None:
        if self._asked is not None:
            self._asked.forget_asker(self)
            self._asked = None

    async def _run(self) -> None:
        outbox = self._watcher.stream.outbox
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._drained()
            async with asyncio.timeout(WAIT_SECONDS):
                opened = await self._passage.opened()
            async with self._passage.places:
                responses = await self._puts(opened)
        except (RpcError, TimeoutError, _CannotCrossError) as error:
            log.info("a watch is told compacted, because its keys have moved and it cannot go over: %r", error)
            self._forget()
            self._watcher.on_not_crossed()
        else:
            self._forget()
            if responses:
                self._watcher.on_crossing(responses)
            self._watcher.on_crossed(max(opened + 1, self._start))
        outbox.context.flush()

    # The former owner.

    async def _drained(self) -> None:
        """Waits until all events up to the cut have come."""
        tap = self._tap
        assert tap.came is not None
        while not tap.has_all and tap.position <= tap.until:
            source = tap.source
            if source is not None and source.is_live:
                if not tells_in_order(source.upstream.shard.version_in_use):
                    raise _CannotCrossError("the etcd of the former owner may tell its progress too early")
                if self._asked is not source.upstream:
                    self._forget()
                self._asked = source.upstream
                self._asked.ask_progress(self)
                self._watcher.stream.outbox.context.flush()
            tap.came.clear()
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    await tap.came.wait()
            except TimeoutError:
                continue

    def on_upstream_progress(self, upstream: Exchange, response: Response, times: int) -> None:
        """The former owner has told its progress."""
        tap = self._tap
        is_fed = tap.source is not None and tap.source.is_live and tap.source.upstream is upstream
        if is_fed and upstream is self._asked and response.revision >= tap.until:
            tap.has_all = True
            if tap.came is not None:
                tap.came.set()

    def on_bug(self) -> None:
        """An exception came out of `begin` or `on_upstream_progress`."""
        self._watcher.stream.outbox.on_bug()

    # The new owner.

    async def _puts(self, opened: int) -> list[Response]:
        spec, routing, came = self._tap.spec, self._watcher.stream.routing, self._passage.came
        if rpc_pb2.WatchCreateRequest.NOPUT in spec.filters:
            return []
        answer = await self._read(came.shard, opened)
        before: dict[bytes, kv_pb2.KeyValue] = {}
        if spec.prev_kv:
            before = {pair.key: pair for pair in (await self._read(came.source, self._passage.cut)).kvs}
            if before.keys() != {pair.key for pair in answer.kvs}:
                raise _CannotCrossError("the shards have different keys")
        routing.shards[came.shard].saw(answer.header.revision)
        pairs = [pair for pair in answer.kvs if pair.mod_revision >= self._start]
        return [_message(answer.header, some, before) for some in _portions(pairs)]

    async def _read(self, shard: str, revision: int) -> rpc_pb2.RangeResponse:
        """The keys at a revision of a shard, in the order of their own."""
        spec, stream = self._tap.spec, self._watcher.stream
        request = rpc_pb2.RangeRequest(
            key=spec.key,
            range_end=spec.range_end,
            revision=revision,
            sort_order=rpc_pb2.RangeRequest.ASCEND,
            sort_target=rpc_pb2.RangeRequest.MOD,
            limit=MOST_KEYS + 1,
        )
        metadata = encode(stream.metadata)
        reader = partial(MessageReader, MOST_BYTES)  # refuses a larger answer by its first bytes
        answer = await ask(
            stream.routing.shards[shard], RANGE, request, metadata=metadata, seconds=READ_SECONDS, reader=reader
        )
        if len(answer.kvs) > MOST_KEYS:
            raise _CannotCrossError("the watcher has too many keys")
        return answer


def _portions(pairs: Iterable[kv_pb2.KeyValue]) -> Iterator[list[kv_pb2.KeyValue]]:
    """Pairs by messages; those of one revision are in one."""
    portion: list[kv_pb2.KeyValue] = []
    size = 0
    for _, some in groupby(pairs, key=lambda pair: pair.mod_revision):
        if size > MESSAGE_BYTES:
            yield portion
            portion, size = [], 0
        for pair in some:
            portion.append(pair)
            size += pair.ByteSize()
    if portion:
        yield portion


def _message(
    header: rpc_pb2.ResponseHeader, pairs: Sequence[kv_pb2.KeyValue], before: dict[bytes, kv_pb2.KeyValue]
) -> Response:
    """The message with the PUTs of these pairs. A client that goes on behind its header's revision loses nothing."""
    message = rpc_pb2.WatchResponse(header=header)
    message.header.revision = pairs[-1].mod_revision
    for pair in pairs:
        event = message.events.add(type=kv_pb2.Event.PUT, kv=pair)
        if pair.key in before:
            event.prev_kv.CopyFrom(before[pair.key])
    return Response.of(message)
