"""An export: all keys of a range, at one moment over all shards, as lines of a file or a pipe."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO, Final

from esp import __version__
from esp.core import errors
from esp.core.background import all_of, in_a_thread
from esp.core.config import Config
from esp.core.connected_shards import connected
from esp.core.export.lines import (
    FORMAT,
    ExportError,
    Header,
    ShardAt,
    Trailer,
    bytes_of,
    header_line,
    key_line,
    lease_line,
    text_or_bytes,
    trailer_line,
)
from esp.core.export.moment import moment
from esp.core.export.pages import Pages, count, of_shard
from esp.core.export.patience import read, told
from esp.core.export.started import Started
from esp.core.keys import KeyRange
from esp.core.lease_sync import each
from esp.core.own_keys import is_own_lease
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import LEASE_LEASES, LEASE_TIME_TO_LIVE, RANGE, Shard
from esp.core.shard_map import Segment
from esp.core.shared_map import HELD_KEYS
from esp.core.wire.status import RpcError, Status
from esp.core.wording import counted, shard_called

LEASES_AT_ONCE: Final = 64

Progress = Callable[[int, int], object]
"""Called with the number of keys that are done, and the number of all."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A complete export: how many keys and leases it has, and how many of the leases had ended when looked at."""

    header: Header
    keys: int
    leases: int
    ended: int


class Output:
    """The file or pipe that the lines go to."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash | None = None, *, durable: bool = False) -> None:
        """`digest` is of the lines that the file has already; a `durable` file is on the disk when it is finished."""
        self._file = file
        self._durable = durable
        self._digest = digest or hashlib.sha256()

    async def write(self, lines: Sequence[bytes]) -> None:
        """Writes lines, as fast as the other end reads.

        Raises:
            OSError: they cannot be written.
        """
        data = b"".join(lines)
        self._digest.update(data)
        await in_a_thread("the output", partial(self._write, data))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    async def finish(self, keys: int, leases: int) -> None:
        """Writes the trailer.

        Raises:
            OSError: that cannot be done.
        """
        await self.write([trailer_line(Trailer(keys=keys, leases=leases, sha256=self._digest.hexdigest()))])
        if self._durable:
            await in_a_thread("the output", partial(os.fsync, self._file.fileno()))


async def export(config: Config, keys: KeyRange, out: Output, progress: Progress, *, each_shard: bool) -> Exported:
    """Exports the keys of a range.

    Args:
        config: names the shards.
        keys: the range as clients see it, without the prefix of a namespace.
        out: where the lines go.
        progress: called after each page.
        each_shard: read each shard at a moment of its own.

    Raises:
        ExportError: the keys cannot be read at one moment.
        OSError: the lines cannot be written.
        UnreachableError: a shard cannot be reached.
    """
    async with connected(config) as clients:
        found = await moment(_readable(segments(config, keys)), clients, each=each_shard)
        header = _header(config, keys, found.headers, found.seconds, each_shard=each_shard)
        await out.write([header_line(header)])
        return await _Export(config, clients, header, keys, out, progress).run(None, {}, 0)


async def go_on(config: Config, started: Started, out: Output, progress: Progress) -> Exported:
    """Goes on with an export that was cut off, at the revisions at which it began.

    Raises:
        ExportError: the config has another map, a shard is another cluster, or a revision has been compacted.
        OSError: the lines cannot be written.
        UnreachableError: a shard cannot be reached.
    """
    header = started.header
    keys = range_of(config, header)
    async with connected(config) as clients:
        await must_be_the_same(clients, header, segments(config, keys))
        run = _Export(config, clients, header, keys, out, progress)
        return await run.run(started.last, started.leases, started.keys)


def range_of(config: Config, header: Header) -> KeyRange:
    """The range of an export, as clients see it.

    Raises:
        ExportError: the config has another map or namespace than when the export began.
    """
    if header.map != config.shard_map.fingerprint or _namespace_of(header) != _namespace(config):
        raise ExportError("the shard map or the namespace is another one since this export began; begin anew")
    return KeyRange(bytes_of(header.start, header.start64) or b"", bytes_of(header.end, header.end64))


def segments(config: Config, keys: KeyRange) -> list[Segment]:
    """The parts of a range of clients, with the prefix of the namespace; without the keys of a map in shards."""
    if config.namespace is not None:
        key, range_end = keys.to_request()
        real = config.namespace.key(key), config.namespace.range_end(range_end)
        keys = KeyRange.of_request(*real)
    return [
        Segment(segment.shard, part)
        for segment in config.shard_map.split(keys)
        for part in segment.range.without(HELD_KEYS)
    ]


def _readable(parts: Sequence[Segment]) -> dict[str, bytes]:
    """A key of the range for each shard, by its name: a user who may read the range may read this key."""
    found: dict[str, bytes] = {}
    for shard, part in parts:
        found.setdefault(shard, part.to_request()[0])
    return found


def _namespace(config: Config) -> bytes:
    return b"" if config.namespace is None else config.namespace.prefix


def _namespace_of(header: Header) -> bytes:
    return bytes_of(header.namespace, header.namespace64) or b""


def _header(
    config: Config, keys: KeyRange, headers: dict[str, rpc_pb2.ResponseHeader], seconds: float, *, each_shard: bool
) -> Header:
    start, start64 = text_or_bytes(keys.start)
    end, end64 = (None, None) if keys.end is None else text_or_bytes(keys.end)
    prefix, prefix64 = (None, None) if config.namespace is None else text_or_bytes(config.namespace.prefix)
    return Header(
        esp_export=FORMAT,
        esp=__version__,
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        moment="each" if each_shard and len(headers) > 1 else "snapshot",
        seconds=round(seconds, 6),
        map=config.shard_map.fingerprint,
        shards=[ShardAt(name, f"{header.cluster_id:x}", header.revision) for name, header in headers.items()],
        start=start,
        start64=start64,
        end=end,
        end64=end64,
        namespace=prefix,
        namespace64=prefix64,
    )


async def must_be_the_same(clients: Mapping[str, Shard], header: Header, parts: Sequence[Segment]) -> None:
    """Looks whether the shards are the clusters of an export; `parts` are of its range, and may be read.

    Raises:
        ExportError: one is another cluster, or does not answer.
    """
    readable = _readable(parts)
    for shard in header.shards:
        client = clients[shard.name]
        try:
            answer = await read(client, RANGE, rpc_pb2.RangeRequest(key=readable[shard.name], count_only=True))
        except RpcError as error:
            raise ExportError(told(client, error.status)) from None
        if f"{answer.header.cluster_id:x}" != shard.cluster_id:
            raise ExportError(
                f"{shard_called(shard.name)} is another cluster now (id {answer.header.cluster_id:x}) than when this "
                f"export began ({shard.cluster_id}); begin anew"
            )


class _Export:
    """One export under way."""

    def __init__(
        self,
        config: Config,
        clients: dict[str, Shard],
        header: Header,
        keys: KeyRange,
        out: Output,
        progress: Progress,
    ) -> None:
        self._clients = clients
        self._header = header
        self._keys = keys
        self._prefix = len(_namespace(config))
        self._segments = segments(config, keys)
        self._start = config.namespace.key if config.namespace is not None else bytes
        self._out = out
        self._progress = progress
        self._revisions = {shard.name: shard.revision for shard in header.shards}
        self._leases: dict[int, int | None] = {}
        self._done = 0

    async def run(self, last: bytes | None, leases: dict[int, int | None], done: int) -> Exported:
        """Writes the keys after `last`; `leases` and the keys that are `done` are written already."""
        self._leases = leases
        self._done = done
        total = 0
        for segment in self._segments:
            with self._failures(segment):
                ask = of_shard(self._clients[segment.shard])
                total += (await count(ask, segment.range, self._revisions[segment.shard])).count
        self._progress(done, total)
        for segment in self._segments:
            rest = segment.range
            if last is not None:
                behind = rest.intersect(KeyRange(self._start(last) + b"\0", None))
                if behind is None:
                    continue
                rest = behind
            await self._write(Segment(segment.shard, rest), total)
        if self._done != total:
            raise ExportError(
                f"the shards have {counted(total, 'key')} at these revisions, and {self._done:,} came: do not trust it"
            )
        if self._keys == KeyRange(b"", None) and not self._prefix:
            await self._write_idle_leases()
        await self._out.finish(self._done, len(self._leases))
        ended = sum(ttl is None for ttl in self._leases.values())
        return Exported(self._header, self._done, len(self._leases), ended)

    @contextmanager
    def _failures(self, segment: Segment) -> Iterator[None]:
        """Turns refusals of a shard into errors that say what to do."""
        try:
            yield
        except RpcError as error:
            shard = self._clients[segment.shard]
            raise ExportError(_told(shard, self._revisions[segment.shard], error.status)) from None

    async def _write(self, segment: Segment, total: int) -> None:
        """Writes the keys of one shard's part, while the next page is on its way."""
        shard = self._clients[segment.shard]
        pages = Pages(of_shard(shard), segment.range, self._revisions[segment.shard])

        async def following() -> Sequence[kv_pb2.KeyValue] | None:
            with self._failures(segment):
                return await pages.next()

        async def after(kvs: Sequence[kv_pb2.KeyValue]) -> None:
            await asyncio.sleep(0)  # lets the next page be asked for first
            await self._write_page(shard, kvs)
            self._done += len(kvs)
            self._progress(self._done, total)

        kvs = await following()
        while kvs is not None:
            kvs, _ = await all_of([following(), after(kvs)])

    async def _write_page(self, shard: Shard, kvs: Sequence[kv_pb2.KeyValue]) -> None:
        new = dict.fromkeys(kv.lease for kv in kvs if kv.lease and kv.lease not in self._leases)
        lines = await self._lease_lines([shard], list(new), used=True) if new else []
        skip = self._prefix
        lines += [
            key_line(kv.key[skip:], kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs
        ]
        if lines:
            await self._out.write(lines)

    async def _lease_lines(self, shards: Sequence[Shard], ids: Sequence[int], *, used: bool) -> list[bytes]:
        """The lines of leases, in this order, as the first of the shards that has a lease tells its TTL.

        A lease that has ended has a line only if it is `used` by a key.
        """
        lines: dict[int, bytes] = {}

        async def look(lease: int) -> None:
            ttl = left = None
            for shard in shards:
                answer = await read(shard, LEASE_TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=lease))
                if answer.TTL >= 0:
                    ttl, left = answer.grantedTTL, answer.TTL
                    break
            if ttl is None and not used:
                return
            self._leases[lease] = ttl
            lines[lease] = lease_line(lease, ttl, left)

        try:
            await each(ids, look, LEASES_AT_ONCE)
        except RpcError as error:
            raise ExportError(f"a shard does not tell a lease: {error.status.message}") from None
        return [lines[lease] for lease in ids if lease in lines]

    async def _write_idle_leases(self) -> None:
        """Writes the leases that no exported key has."""
        shards = [self._clients[shard.name] for shard in self._header.shards]
        ids: dict[int, None] = {}
        for shard in shards:
            try:
                answer = await read(shard, LEASE_LEASES, rpc_pb2.LeaseLeasesRequest())
            except RpcError as error:
                raise ExportError(told(shard, error.status)) from None
            told_ids = (lease.ID for lease in answer.leases if not is_own_lease(lease.ID))
            ids |= dict.fromkeys(lease for lease in told_ids if lease not in self._leases)
        rest = sorted(ids)
        for first in range(0, len(rest), 1000):
            await self._out.write(await self._lease_lines(shards, rest[first : first + 1000], used=False))


def _told(shard: Shard, revision: int, status: Status) -> str:
    if status == errors.COMPACTED:
        return (
            f"{shard_called(shard.name)} has compacted revision {revision}, at which this export reads, so the rest "
            "cannot be read at that moment any more; begin anew, in a new file"
        )
    if status == errors.FUTURE_REV:
        return (
            f"{shard_called(shard.name)} has not reached revision {revision}, at which this export reads: it is "
            "another cluster, or restored from a backup; begin anew, in a new file"
        )
    return told(shard, status)
