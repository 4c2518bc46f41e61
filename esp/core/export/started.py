"""The first part of an export, to go on from there: read whole, as far as its last whole line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from esp.core.export.lines import MOST_LINE, ExportError, Grant, Header, Row, Trailer, read_header, read_line
from esp.core.wording import counted


@dataclass(slots=True)
class Started:
    """The part of an export that a file has.

    Attributes:
        header: the first line.
        digest: the SHA-256 of the lines so far.
        last: the last key; None if there is none yet.
        leases: the ids of the leases so far, and None for no seconds where a lease had ended.
        keys: the number of keys so far.
        size: bytes of all whole lines; what follows was cut off.
        trailer: the last line, if the export is complete.
    """

    header: Header
    digest: hashlib._Hash
    last: bytes | None = None
    leases: dict[int, int | None] = field(default_factory=dict)
    keys: int = 0
    size: int = 0
    trailer: Trailer | None = None


def read_started(file: BinaryIO, progress: Callable[[int], object]) -> Started:
    """The part of an export that `file` has.

    Args:
        file: at its beginning.
        progress: called with the number of keys from time to time.

    Raises:
        ExportError: it is no export, or a line before the last one is broken.
    """
    line = file.readline(MOST_LINE)
    if not line.endswith(b"\n"):
        raise ExportError("the file has no whole line of an export yet; remove it and begin anew")
    found = Started(read_header(line), hashlib.sha256(line), size=len(line))
    number = 1
    while line := file.readline(MOST_LINE):
        number += 1
        if found.trailer is not None:
            raise ExportError(f"line {number} comes after the end of the export")
        if not line.endswith(b"\n"):
            break
        try:
            read = read_line(line)
        except ExportError as error:
            if not file.read(1):
                break  # a crash may have left anything behind the last whole line
            raise ExportError(f"line {number} {error}; the file is damaged") from None
        _take(found, read)
        found.digest.update(line)
        found.size += len(line)
        if number % 4096 == 0:
            progress(found.keys)
    return found


def _take(found: Started, read: Row | Grant | Trailer) -> None:
    match read:
        case Row(key, _, _):
            found.last = key
            found.keys += 1
        case Grant(lease, ttl):
            found.leases[lease] = ttl
        case Trailer():
            found.trailer = read
            check(found.trailer, found.keys, len(found.leases), found.digest.hexdigest())


def check(trailer: Trailer, keys: int, leases: int, sha256: str) -> None:
    """Compares the trailer with the lines before.

    Raises:
        ExportError: they do not belong together.
    """
    if trailer.sha256 != sha256:
        raise ExportError("the checksum at the end does not fit: the file is damaged, nothing of it can be trusted")
    if (trailer.keys, trailer.leases) != (keys, leases):
        raise ExportError(
            f"has {counted(keys, 'key')} and {counted(leases, 'lease')}, and the end says {trailer.keys:,} "
            f"and {trailer.leases:,}"
        )
