"""The lines of an export in portions that are written together; the whole is checked while it passes."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader, BytesIO
from typing import Final

from esp.core.background import in_a_thread
from esp.core.export.lines import MOST_LINE, ExportError, Grant, Header, Row, Trailer, read_header, read_line
from esp.core.export.started import check
from esp.core.wording import counted

CHUNK_BYTES: Final = 1 << 20
ROUND_KEYS: Final = 1024
ROUND_BYTES: Final = 4 << 20
"""Keys and bytes in a portion, at most; a single key may be larger."""
SLOW_SECONDS: Final = 0.2
"""Seconds for which a portion waits for more input."""
_KEYS_IN_A_STEP: Final = 128

Source = BufferedReader | BytesIO
"""A file or a pipe."""


@dataclass(slots=True)
class Round:
    """Some leases and keys, in the order of the file."""

    grants: list[Grant] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    bytes: int = 0


class Rounds:
    """The portions of a file or pipe, at its beginning.

    Attributes:
        header: the first line, after `begin`.
    """

    header: Header

    def __init__(self, file: Source, most: int = ROUND_KEYS) -> None:
        """`most` is the number of keys or leases in a portion, at most."""
        self._most = most
        self._file = file
        self._digest = hashlib.sha256()
        self._lines: deque[bytes] = deque()
        self._reading: asyncio.Future[bytes] | None = None
        self._rest = b""
        self._number = 0
        self._keys = self._leases = 0
        self._over = False

    async def begin(self) -> None:
        """Reads the header.

        Raises:
            ExportError: this is no export of esp.
        """
        line = await self._line()
        if line is None and self._rest:
            raise ExportError(
                "the file ends within its first line: it is no export, or one that was cut off; export anew"
            )
        if line is None:
            raise ExportError("this is no export of esp: it is empty")
        self.header = read_header(line)
        self._digest.update(line)

    async def next(self) -> Round | None:
        """The next portion; None when the export is complete.

        Raises:
            ExportError: a line is broken, the export is truncated, or its checksum is wrong.
            OSError: the file cannot be read.
        """
        found = Round()
        while max(len(found.rows), len(found.grants)) < self._most and found.bytes < ROUND_BYTES and not self._over:
            is_late = (found.rows or found.grants) and not await self._comes_soon()
            if is_late:
                break  # of a slow pipe: what has come need not wait
            line = await self._line()
            if line is None:
                raise ExportError(
                    f"the export is truncated: it ends after {counted(self._keys, 'key')}, without the line "
                    "that ends it; esp export --resume completes it"
                )
            try:
                self._take(read_line(line), found, len(line))
            except ExportError as error:
                raise ExportError(f"line {self._number} {error}") from None
            if self._over and (await self._line() is not None or self._rest):
                raise ExportError(f"line {self._number} comes after the end of the export; import one at a time")
            self._digest.update(line)
            if len(found.rows) % _KEYS_IN_A_STEP == 0:
                await asyncio.sleep(0)  # answers of the portion before come meanwhile
        return found if found.rows or found.grants else None

    def _take(self, read: Row | Grant | Trailer, found: Round, size: int) -> None:
        match read:
            case Row():
                found.rows.append(read)
                self._keys += 1
            case Grant():
                found.grants.append(read)
                self._leases += 1
            case Trailer():
                check(read, self._keys, self._leases, self._digest.hexdigest())
                self._over = True
        found.bytes += size

    async def _comes_soon(self) -> bool:
        """Whether the next bytes are there, or come soon, if there is no whole line."""
        if self._lines:
            return True
        await asyncio.wait((self._read(),), timeout=SLOW_SECONDS)
        return self._read().done()

    def _read(self) -> asyncio.Future[bytes]:
        """The bytes that are being read."""
        if self._reading is None:
            self._reading = in_a_thread("the input", partial(self._file.read1, CHUNK_BYTES))
        return self._reading

    async def _line(self) -> bytes | None:
        """The next line with its end; None if there is no whole line any more."""
        while not self._lines:
            chunk = await self._read()
            self._reading = None
            if not chunk:
                return None
            if len(self._rest) > MOST_LINE:
                raise ExportError(f"line {self._number + 1} has more than {MOST_LINE >> 20} MiB")
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            self._lines = deque(whole)
        self._number += 1
        return self._lines.popleft() + b"\n"


async def verify(file: Source, progress: Callable[[int], object]) -> int:
    """Reads a whole file; the number of its keys. The file is at its beginning again.

    Raises:
        ExportError: as `Rounds`.
    """
    rounds = Rounds(file)
    await rounds.begin()
    keys = 0
    while (found := await rounds.next()) is not None:
        keys += len(found.rows)
        progress(keys)
    file.seek(0)
    return keys
