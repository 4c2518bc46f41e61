"""An import: the lines of an export into the shards of a config, by the map in force, or into one etcd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from esp.core.background import Background, all_of
from esp.core.config import Config
from esp.core.connected_shards import connected
from esp.core.export.granting import Granting, SameLeases
from esp.core.export.lines import ExportError, Header, Row, bytes_of, header_line
from esp.core.export.patience import read, told
from esp.core.export.rounds import ROUND_KEYS, Round, Rounds, Source, verify
from esp.core.export.writing import Existing, Writer
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, Shard
from esp.core.shard_map import Segment
from esp.core.shared_map import HELD_KEYS
from esp.core.wire.status import RpcError

Progress = Callable[[str, int, int | None], object]
"""Called with the step, the number of keys that are done, and the number of all; None if that is not known."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The outcome of an import, or of its part up to a failure.

    Attributes:
        written: keys that were written.
        present: keys that an earlier import of the file had written.
        skipped: keys that were there, and stayed as they were.
        left_out: keys whose leases have ended.
        leases: leases that were granted, or were granted by an earlier import of the file.
        renamed: the new ids of leases whose own were taken.
        lost: by shard, the leases that have ended there while the import ran, with the keys that they had there.
    """

    written: int
    present: int
    skipped: int
    left_out: int
    leases: int
    renamed: dict[int, int]
    lost: dict[str, set[int]]


class Import:
    """One import.

    Args:
        config: names the shards.
        file: the export, at its beginning; a file that is no pipe is read through before anything is written.
        existing: what becomes of keys that are there already.
        progress: called from time to time.
        at_once: transactions at a time in each shard.
        leases: whether keys get their leases; else none is granted.
        same_leases: the leases are there under the same ids, so that none is granted.
    """

    def __init__(
        self,
        config: Config,
        file: Source,
        existing: Existing,
        progress: Progress,
        *,
        at_once: int = 1,
        leases: bool = True,
        same_leases: bool = False,
    ) -> None:
        self._same_leases = same_leases
        self._at_once = at_once
        self._with_leases = leases
        self._config = config
        self._file = file
        self._existing = existing
        self._progress = progress
        self._prefix = b"" if config.namespace is None else config.namespace.prefix
        self._writers: dict[str, Writer] = {}
        self._leases: Granting | None = None
        self._total: int | None = None

    @property
    def has_begun(self) -> bool:
        """Whether anything may have been written."""
        return self._leases is not None

    @property
    def done(self) -> Imported:
        """What has been done so far; each key counts when its shard has acknowledged it."""
        writers = self._writers.values()
        leases = self._leases
        return Imported(
            sum(writer.written for writer in writers),
            sum(writer.present for writer in writers),
            sum(writer.skipped for writer in writers),
            sum(writer.left_out for writer in writers),
            0 if leases is None else leases.granted,
            {} if leases is None else leases.renamed,
            {} if leases is None else leases.lost,
        )

    async def run(self) -> None:
        """Does the import.

        Raises:
            ExportError: the export is damaged, a key is there already, or a shard refuses or does not answer.
            OSError: the file cannot be read.
            UnreachableError: a shard cannot be reached.
        """
        is_file = self._file.seekable()
        if is_file:
            self._total = await verify(self._file, lambda keys: self._progress("Checking the file", keys, None))
        async with connected(self._config) as clients, Background() as background:
            if is_file and self._existing is Existing.REFUSE:
                rounds = self._rounds()
                await rounds.begin()
                if await self._has_keys(rounds.header, clients):
                    await self._pass(rounds, clients, Existing.LOOK, "Looking for keys that are there")
                self._file.seek(0)
            rounds = self._rounds()
            await rounds.begin()
            salt = header_line(rounds.header)
            resumes = self._existing is Existing.RESUME
            shares = self._existing is not Existing.REFUSE
            self._leases = (
                SameLeases(list(clients.values()))
                if self._same_leases
                else Granting(list(clients.values()), salt, resumes=resumes, shares=shares, grants=self._with_leases)
            )
            keeping = background.start(self._leases.keep_alive())
            await self._pass(rounds, clients, self._existing, "Importing")
            await background.end([keeping])
            await self._leases.renew_all()

    def _rounds(self) -> Rounds:
        return Rounds(self._file, ROUND_KEYS * self._at_once)

    async def _has_keys(self, header: Header, clients: dict[str, Shard]) -> bool:
        """Whether there are keys in the range of the export."""
        start = bytes_of(header.start, header.start64) or b""
        end = bytes_of(header.end, header.end64)
        wanted = KeyRange(self._prefix + start, None if end is None else self._prefix + end)
        if end is None and self._config.namespace is not None:
            wanted = KeyRange(wanted.start, self._config.namespace.keys.end)
        segments = self._config.shard_map.split(wanted)
        for segment in [Segment(one.shard, part) for one in segments for part in one.range.without(HELD_KEYS)]:
            key, range_end = segment.range.to_request()
            request = rpc_pb2.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True)
            try:
                if (await read(clients[segment.shard], RANGE, request)).kvs:
                    return True
            except RpcError as error:
                raise ExportError(told(clients[segment.shard], error.status)) from None
        return False

    async def _pass(self, rounds: Rounds, clients: dict[str, Shard], existing: Existing, step: str) -> None:
        """Takes all keys to their shards: a portion while the next one is read."""
        leases = self._leases if existing is not Existing.LOOK else None
        writers = {
            name: Writer(shard, existing, leases or _NO_LEASES, prefix=self._prefix, at_once=self._at_once)
            for name, shard in clients.items()
        }
        if existing is not Existing.LOOK:
            self._writers = writers

        def progress() -> None:
            done = sum(each.written + each.present + each.skipped + each.left_out for each in writers.values())
            self._progress(step, done, self._total)

        async def write(found: Round) -> None:
            if leases is not None:
                await leases.grant(found.grants)
            rows: dict[str, list[Row]] = {}
            for row in found.rows:
                key = self._prefix + row.key
                if key.startswith(HELD_KEYS.start):
                    raise ExportError(
                        "the file has keys under which shards hold a map (\\x00esp/...); no import writes them, so "
                        "export anew, which leaves them out"
                    )
                owner = self._config.shard_map.owner(key)
                rows.setdefault(owner, []).append(row if leases else row._replace(lease=0))
            await all_of([writers[name].write(some, progress) for name, some in rows.items()])

        found = await rounds.next()
        while found is not None:
            _, found = await all_of([write(found), rounds.next()])


_NO_LEASES = Granting([], b"", resumes=False)
