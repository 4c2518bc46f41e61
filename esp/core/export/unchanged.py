"""Whether the keys of a complete export are still as it has them: nobody has written to its range since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esp.core.config import Config
from esp.core.connected_shards import connected
from esp.core.export.exporting import must_be_the_same, range_of, segments
from esp.core.export.lines import ExportError
from esp.core.export.pages import Pages, of_shard
from esp.core.export.patience import told
from esp.core.export.started import Started
from esp.core.pb import kv_pb2
from esp.core.wire.status import RpcError


@dataclass(slots=True)
class Changes:
    """What has become of the keys since the export.

    Attributes:
        keys: the keys that there are now.
        written: those of the export that were written since.
        new: those that the export lacks.
        deleted: those of the export that are gone.
        first: the first key that was written or is new, as the shard has it; b"" if there is none.
    """

    keys: int = 0
    written: int = 0
    new: int = 0
    deleted: int = 0
    first: bytes = b""

    @property
    def any(self) -> bool:
        """Whether anything has changed."""
        return bool(self.written or self.new or self.deleted)


async def changes_since(config: Config, export: Started, progress: Callable[[int, int], object]) -> Changes:
    """What has changed in the range of an export since its moment. Reads the keys only, each shard as it is now.

    A key counts as written if its mod_revision is above that of its shard at that moment, whatever its value.

    Args:
        config: names the shards, as when the export was made.
        export: is complete.
        progress: called after each page with the number of keys so far, and that of the export.

    Raises:
        ExportError: the export is not complete, the config has another map, a shard is another cluster, or it does not
            answer.
        UnreachableError: a shard cannot be reached.
    """
    header = export.header
    if export.trailer is None:
        raise ExportError("the export is not complete; complete it with --resume, or begin anew")
    parts = segments(config, range_of(config, header))
    revisions = {shard.name: shard.revision for shard in header.shards}
    found = Changes()
    async with connected(config) as clients:
        await must_be_the_same(clients, header, parts)
        for name, part in parts:
            pages = Pages(of_shard(clients[name]), part, 0, keys_only=True)
            try:
                while (kvs := await pages.next()) is not None:
                    _count(found, kvs, revisions[name])
                    progress(found.keys, export.trailer.keys)
            except RpcError as error:
                raise ExportError(told(clients[name], error.status)) from None
    found.deleted = export.trailer.keys - (found.keys - found.new)
    return found


def _count(found: Changes, kvs: Sequence[kv_pb2.KeyValue], revision: int) -> None:
    found.keys += len(kvs)
    for kv in kvs:
        if kv.mod_revision > revision:
            found.first = found.first or kv.key
            if kv.create_revision > revision:
                found.new += 1
            else:
                found.written += 1
