"""TLS records, told by their heads alone (RFC 8446 section 5.1): divides a connection's bytes into runs of few records.

OpenSSL works through all the bytes it is given before it returns, and a record of 30 bytes may cost as much as one of
16 KiB. So OpenSSL is given a run at a time.
"""

from __future__ import annotations

from typing import Final

HEAD_SIZE: Final = 5
RUN_RECORDS: Final = 32
"""The most records in a run. The dearest record, which changes the keys, takes OpenSSL some ten microseconds."""
RUN_BYTES: Final = 4096
"""A run with so many bytes ends with the record that it is in. OpenSSL's memory keeps the size of the largest run."""


class RecordRuns:
    """Finds the ends of records in bytes that come in any pieces.

    Attributes:
        records: how many records have a part in the last run.
    """

    __slots__ = ("_head", "_missing", "records")

    def __init__(self) -> None:
        self.records = 0
        self._head = b""  # of the record that has begun, if the head is not whole yet
        self._missing = 0  # bytes of the record whose head is whole

    def is_one(self, data: bytes) -> bool:
        """Whether `data` is exactly one record."""
        return (
            not self._missing
            and not self._head
            and len(data) >= HEAD_SIZE
            and (data[3] << 8 | data[4]) == len(data) - HEAD_SIZE
        )

    def end_of_run(self, data: bytes, start: int) -> int:
        """The end of the next run in `data`. The first byte of a run is the one after the last of the run before."""
        size, position = len(data), start
        for number in range(1, RUN_RECORDS + 1):
            self.records = number
            if not self._missing:
                taken = min(HEAD_SIZE - len(self._head), size - position)
                self._head += data[position : position + taken]
                position += taken
                if len(self._head) < HEAD_SIZE:
                    break
                self._missing = self._head[3] << 8 | self._head[4]
                self._head = b""
            taken = min(self._missing, size - position)
            self._missing -= taken
            position += taken
            if position == size or position - start >= RUN_BYTES:
                break
        return position
