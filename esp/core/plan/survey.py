"""What shards, an etcd or an esp hold, and what is written there: the keys without values, some values, a watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from esp.core import errors
from esp.core.background import all_of
from esp.core.export import Pages, count
from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.plan.sizes import Sizes
from esp.core.plan.sources import Source, counts, refusals
from esp.core.plan.tally import Counted, Tally
from esp.core.plan.watching import watched
from esp.core.plan.writes import Writes
from esp.core.shared_map import HELD_KEYS
from esp.core.wire.status import RpcError

AT_ONCE: Final = 8
"""Values that are read at a time."""

Progress = Callable[[str, int, int | None], object]
"""Called with the step, what is done, and what there is to do."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        counted: the keys; writes are those of the sample.
        revisions: at which the keys of each source were read.
        values: the number of values that were read.
        writes: the number of all writes that were seen.
        sampled: how many of them are in the sample.
        seconds: for which writes were watched.
        compacted: names of sources that compacted the revision meanwhile, so that the rest is of a later one.
    """

    counted: Counted
    revisions: dict[str, int]
    values: int
    writes: int
    sampled: int
    seconds: float
    compacted: Sequence[str]


async def surveyed(
    sources: Sequence[Source],
    *,
    separator: bytes,
    depth: int,
    told_depth: int,
    marks: Sequence[bytes],
    seconds: float,
    progress: Progress,
) -> Survey:
    """Counts keys, estimates their sizes, and watches writes.

    Args:
        sources: where the keys are; no two have the same.
        separator: the end of prefixes.
        depth: values below one prefix of this depth are taken for alike.
        told_depth: prefixes of at most this depth are counted.
        marks: sorted keys before which the count is to be exact.
        seconds: for which writes are watched, before keys are read; 0 for not at all.
        progress: called now and then.

    Raises:
        SurveyError: a source refuses, or does not answer.
    """
    for source in sources:
        await counts(source)  # which logs in where that is needed
    writes = Writes()
    lasted = 0.0
    if seconds:
        lasted = await watched(
            sources, writes, seconds, lambda done: progress("Watching writes (seconds)", int(done), round(seconds))
        )
    return await _Survey(sources, separator, depth, Tally(separator, told_depth, marks), writes, progress).run(lasted)


class _Survey:
    """The keys, read in their order."""

    def __init__(
        self,
        sources: Sequence[Source],
        separator: bytes,
        depth: int,
        tally: Tally,
        writes: Writes,
        progress: Progress,
    ) -> None:
        self._sources = sources
        self._tally = tally
        self._writes = writes
        self._written = iter(writes.by_key())
        self._next = next(self._written, None)
        self._progress = progress
        self._sizes = Sizes(partial(prefix_of, separator=separator, depth=depth))
        self._revisions: dict[str, int] = {}
        self._compacted: list[str] = []
        self._total = 0

    async def run(self, seconds: float) -> Survey:
        for source in self._sources:
            number, self._revisions[source.name] = await counts(source)
            self._total += number
        parts = sorted(
            ((one, source) for source in self._sources for one in source.ranges), key=lambda part: part[0].start
        )
        for one, source in parts:
            await self._read(source, one)
        self._pass(None)
        return Survey(
            self._tally.finish(),
            self._revisions,
            self._sizes.read,
            self._writes.seen,
            self._writes.kept,
            seconds,
            self._compacted,
        )

    async def _read(self, source: Source, key_range: KeyRange) -> None:
        """Reads the keys of a range; the next page is on its way while one is counted."""
        reading = _Reading(source, key_range, self._revisions[source.name])
        kvs = await reading.next()
        while kvs is not None:
            kvs, _ = await all_of([reading.next(), self._take(source, reading.revision, kvs)])
        if reading.again and source.name not in self._compacted:
            self._compacted.append(source.name)

    async def _take(self, source: Source, revision: int, kvs: Sequence[kv_pb2.KeyValue]) -> None:
        """Counts the keys of a page."""
        self._count(kvs, await self._sizes_of(source, revision, kvs))
        self._progress("Reading keys", self._tally.keys, self._total)

    async def _sizes_of(self, source: Source, revision: int, kvs: Sequence[kv_pb2.KeyValue]) -> list[int]:
        """The sizes of the values of a page: some are read."""
        keys = [kv.key for kv in kvs]
        read: dict[int, int] = {}

        async def look(places: Iterator[int]) -> None:
            for place in places:
                request = rpc_pb2.RangeRequest(key=keys[place], revision=revision)
                try:
                    answer = await source.ask(request, None)
                except RpcError as error:
                    if error.status == errors.COMPACTED:
                        continue  # the next page is told so too
                    raise
                if answer.kvs:
                    read[place] = len(answer.kvs[0].value)

        places = iter(self._sizes.chosen(keys))
        with refusals(source):
            await all_of([look(places) for _ in range(AT_ONCE)])
        return self._sizes.all_of(keys, read)

    def _count(self, kvs: Sequence[kv_pb2.KeyValue], sizes: Sequence[int]) -> None:
        add = self._tally.add
        for kv, size in zip(kvs, sizes, strict=True):
            key = kv.key
            if key.startswith(HELD_KEYS.start):
                continue  # esp's own
            here = self._next
            if here is None or here[0] > key:
                add(key, len(key) + size, lease=kv.lease)
                continue
            self._pass(key)
            here = self._next
            written = 0
            if here is not None and here[0] == key:
                written = here[1]
                self._next = next(self._written, None)
            add(key, len(key) + size, written, lease=kv.lease)

    def _pass(self, key: bytes | None) -> None:
        """Counts the writes of keys that are not there, up to a key."""
        while self._next is not None and (key is None or self._next[0] < key):
            self._tally.add(self._next[0], 0, self._next[1], exists=False)
            self._next = next(self._written, None)


class _Reading:
    """The pages of a range of a source, at a revision, or at a later one when that is compacted.

    Attributes:
        revision: that of the last page.
        again: whether the revision was compacted.
    """

    def __init__(self, source: Source, key_range: KeyRange, revision: int) -> None:
        self._source = source
        self._range = key_range
        self._pages = Pages(source.ask, key_range, revision, keys_only=True)
        self.revision = revision
        self.again = False

    async def next(self) -> Sequence[kv_pb2.KeyValue] | None:
        """The next keys; None at the end.

        Raises:
            SurveyError: the source refuses.
        """
        with refusals(self._source):
            try:
                kvs = await self._pages.next()
            except RpcError as error:
                if error.status != errors.COMPACTED:
                    raise
                self.again = True
                self.revision = (await count(self._source.ask, self._range)).header.revision
                self._pages = Pages(self._source.ask, self._range, self.revision, keys_only=True)
                kvs = await self._pages.next()
        if kvs:
            self._range = KeyRange(kvs[-1].key + b"\0", self._range.end)
        return kvs


def prefix_of(key: bytes, separator: bytes, depth: int) -> bytes:
    """The prefix of at most this depth that a key begins with."""
    end = 0
    for _ in range(depth + key.startswith(separator)):
        place = key.find(separator, end)
        if place < 0:
            break
        end = place + len(separator)
    return key[:end]
