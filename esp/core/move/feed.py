"""The source of a move, watched: each revision that writes in the range, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import groupby
from typing import Final

from esp.core import errors
from esp.core.auth_tokens import OWN
from esp.core.giving_up import MoveError
from esp.core.keys import KeyRange
from esp.core.move.revisions import Revision, Write
from esp.core.move.troubles import CompactedError
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import GUARD_KEY, Shard
from esp.core.shared_map import clients_keys
from esp.core.wire.call import BrokenCall
from esp.core.wire.status import Code, RpcError
from esp.core.wording import shard_called

MOST_BYTES: Final = 256 << 20
"""Bytes of revisions that wait to be copied; with more the source is not read on."""
PAUSE_SECONDS: Final = 0.2
_WATCH: Final = b"/etcdserverpb.Watch/Watch"
_WRITE_BYTES: Final = 200
"""Memory that a write takes beside its key and its value."""


class Feed:
    """The revisions of a range behind a revision, as they come.

    Args:
        shard: the source.
        range_: the range.
        after: the revision.
        fence: whether also the guard is watched, by the same watcher: etcd gives a watcher its events in order, so all
            revisions before the one of the guard have come when that has. It costs that all keys before the range come.

    Attributes:
        is_live: whether the watch has begun, and goes on.
    """

    def __init__(self, shard: Shard, range_: KeyRange, after: int, *, fence: bool = False) -> None:
        self.is_live = False
        self._shard = shard
        self._range = clients_keys(range_)
        self._watched = KeyRange(GUARD_KEY, range_.end) if fence else self._range
        self._after = after
        self._waiting: deque[tuple[Revision, int]] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._failure: MoveError | None = None

    def __len__(self) -> int:
        """The revisions that have come and were not taken."""
        return len(self._waiting)

    async def take(self, most: int) -> list[Revision]:
        """The next revisions; waits for one.

        Raises:
            MoveError: no more will come.
        """
        while not self._waiting:
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        return self.taken(most)

    def taken(self, most: int) -> list[Revision]:
        """The next revisions that have come, perhaps none.

        Raises:
            MoveError: there are none, and no more will come.
        """
        if not self._waiting and self._failure is not None:
            raise self._failure
        taken: list[Revision] = []
        while self._waiting and len(taken) < most:
            revision, size = self._waiting.popleft()
            self._bytes -= size
            taken.append(revision)
        self._room.set()
        return taken

    async def run(self) -> None:
        """Watches, until cancelled."""
        try:
            while True:
                try:
                    await self._watch()
                except (RpcError, BrokenCall) as error:
                    if isinstance(error, RpcError) and error.status.code == Code.PERMISSION_DENIED:
                        raise MoveError(f"{shard_called(self._shard.name)}: {error.status.message}") from None
                await asyncio.sleep(PAUSE_SECONDS)
        except MoveError as error:
            self._fail(error)

    def on_bug(self) -> None:
        """Ends the feed: the watch has failed by a bug. Whoever waits for revisions would wait for ever."""
        self._fail(MoveError(f"{shard_called(self._shard.name)} cannot be watched: esp: internal error"))

    def _fail(self, error: MoveError) -> None:
        self._failure = error
        self._news.set()

    async def _watch(self) -> None:
        key, range_end = self._watched.to_request()
        create = rpc_pb2.WatchCreateRequest(key=key, range_end=range_end, start_revision=self._after + 1, fragment=True)
        request = rpc_pb2.WatchRequest(create_request=create).SerializeToString()
        call = await self._shard.open((_WATCH, OWN), request)
        events: list[kv_pb2.Event] = []
        try:
            while (message := await call.read()) is not None:
                answer = self._shard.parsed(rpc_pb2.WatchResponse, message)
                if answer.compact_revision:
                    raise CompactedError(
                        f"{shard_called(self._shard.name)} has compacted revisions that are not copied yet"
                    )
                if answer.canceled:
                    if errors.PERMISSION_DENIED.message.rpartition(": ")[2] in answer.cancel_reason:
                        raise MoveError(f"{shard_called(self._shard.name)}: {answer.cancel_reason}")
                    return  # esp has to log in, or the member ends
                self.is_live = True
                events += answer.events
                if not answer.fragment and events:
                    self._add(events)
                    events = []
                while self._bytes > MOST_BYTES:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self.is_live = False
            call.cancel()

    def _add(self, events: list[kv_pb2.Event]) -> None:
        start, end = self._range
        for number, some in groupby(events, lambda event: event.kv.mod_revision):
            self._after = number
            writes, is_fence, size = [], False, 0
            for event in some:
                key = event.kv.key
                if key == GUARD_KEY:
                    is_fence = True
                elif key >= start and (end is None or key < end):
                    is_put = event.type == kv_pb2.Event.PUT
                    writes.append(Write(key, event.kv.value if is_put else None, event.kv.lease))
                    size += _WRITE_BYTES + len(key) + len(event.kv.value)
            if writes or is_fence:
                self._waiting.append((Revision(number, tuple(writes), 0, is_fence), size))
                self._bytes += size
        self._news.set()
