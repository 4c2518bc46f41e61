"""The keys of an export written into one shard, in their order, as transactions that a shard takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from time import monotonic
from typing import Final

from esp.core import errors
from esp.core.export.granting import Granting
from esp.core.export.lines import ExportError, Row
from esp.core.export.patience import CALL_SECONDS, PATIENCE_SECONDS, PAUSE_SECONDS, may_pass, told
from esp.core.keys import format_key
from esp.core.lease_sync import each
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import PUT, TXN, Shard, ask_for_esp
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wording import shard_called

TXN_BYTES: Final = 1_000_000
"""Bytes of a transaction; etcd takes 1.5 MiB. A larger key goes alone."""
_ROW_BYTES: Final = 64
"""Bytes that a key takes in a transaction beside its own, three times, and its value's."""


class Existing(StrEnum):
    """What becomes of keys that are there already."""

    REFUSE = "refuse"
    OVERWRITE = "overwrite"
    SKIP = "skip"
    RESUME = "resume"
    """Keys with the same value and lease were imported before; others are refused."""
    LOOK = "look"
    """Nothing is written; a key that is there is refused."""


class Writer:
    """Writes keys into one shard.

    Attributes:
        written: keys that were written.
        present: keys that were there as they are in the export (RESUME).
        skipped: keys that were left as they are (SKIP).
        left_out: keys whose leases have ended.
    """

    def __init__(
        self, shard: Shard, existing: Existing, leases: Granting, *, prefix: bytes = b"", at_once: int = 1
    ) -> None:
        """`prefix` is that of the namespace: it comes before each key. `at_once` is the number of transactions."""
        self._at_once = at_once
        self.written = self.present = self.skipped = self.left_out = 0
        self._shard = shard
        self._existing = existing
        self._leases = leases
        self._prefix = prefix

    async def write(self, rows: Sequence[Row], progress: Callable[[], object]) -> None:
        """Writes keys in their order, `at_once` transactions at a time: only with one are the writes in order, too.

        Raises:
            ExportError: a key is there already, or the shard refuses, or does not answer.
        """

        async def write(batch: list[Row]) -> None:
            await self._write(batch)
            progress()

        await each(self._batches(rows), write, self._at_once)

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        batch: list[Row] = []
        size = 0
        for row in rows:
            bytes_ = 3 * (len(self._prefix) + len(row.key)) + len(row.value) + _ROW_BYTES
            if batch and (len(batch) >= self._shard.max_txn_ops or size + bytes_ > TXN_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(row)
            size += bytes_
        if batch:
            yield batch

    async def _write(self, rows: list[Row], *, in_doubt: bool = False) -> None:
        """Writes keys in one transaction. With `in_doubt` a transaction of them was sent, and its fate is unknown."""
        until = monotonic() + PATIENCE_SECONDS
        while rows := self._living(rows):
            reads_values = in_doubt or self._existing is Existing.RESUME
            try:
                answer = await self._ask(rows, values=reads_values)
            except RpcError as error:
                status = error.status
                if _is_too_much(status) and len(rows) > 1:
                    half = len(rows) // 2
                    if status == errors.TOO_MANY_OPS:
                        self._shard.max_txn_ops = half
                    await self._write(rows[:half], in_doubt=in_doubt)
                    rows = rows[half:]
                    continue
                if status != errors.LEASE_NOT_FOUND and not may_pass(status):
                    raise ExportError(self._refused(rows, status)) from None
                if monotonic() > until:
                    raise ExportError(told(self._shard, status)) from None
                in_doubt |= status != errors.LEASE_NOT_FOUND
                await asyncio.sleep(PAUSE_SECONDS)
                if status == errors.LEASE_NOT_FOUND:
                    await self._leases.forget_ended({row.lease for row in rows if row.lease}, self._shard)
                continue
            if answer is None or answer.succeeded:
                self.written += len(rows)
                return
            rows = self._missing(rows, answer, in_doubt=in_doubt)

    def _living(self, rows: list[Row]) -> list[Row]:
        """The keys whose leases live; counts the others."""
        living = [row for row in rows if not row.lease or self._leases.id_of(row.lease) is not None]
        self.left_out += len(rows) - len(living)
        return living

    async def _ask(self, rows: Sequence[Row], *, values: bool) -> rpc_pb2.TxnResponse | None:
        """The answer to the transaction of these keys; None if they were put without one."""
        keys = [self._prefix + row.key for row in rows]
        if self._existing is Existing.LOOK:
            puts = []
        else:
            puts = [
                rpc_pb2.PutRequest(
                    key=key, value=row.value, lease=(self._leases.id_of(row.lease) or 0) if row.lease else 0
                )
                for key, row in zip(keys, rows, strict=True)
            ]
        if self._existing is Existing.OVERWRITE and len(puts) == 1:
            await ask_for_esp(self._shard, PUT, puts[0], seconds=CALL_SECONDS)
            return None
        request = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put) for put in puts])
        if self._existing is not Existing.OVERWRITE:
            create, equal = rpc_pb2.Compare.CREATE, rpc_pb2.Compare.EQUAL
            request.compare.extend(
                rpc_pb2.Compare(key=key, target=create, result=equal, create_revision=0) for key in keys
            )
            request.failure.extend(
                rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, keys_only=not values)) for key in keys
            )
        return await ask_for_esp(self._shard, TXN, request, seconds=CALL_SECONDS)

    def _missing(self, rows: Sequence[Row], answer: rpc_pb2.TxnResponse, *, in_doubt: bool) -> list[Row]:
        """The keys that are not there, after a transaction found that some are; counts those.

        Raises:
            ExportError: a key is there that may not be.
        """
        there: Mapping[bytes, kv_pb2.KeyValue] = {
            response.response_range.kvs[0].key: response.response_range.kvs[0]
            for response in answer.responses
            if response.response_range.kvs
        }
        missing = []
        for row in rows:
            found = there.get(self._prefix + row.key)
            if found is None:
                missing.append(row)
            elif in_doubt and self._is_as(row, found):
                self.written += 1  # by the transaction that nobody knew the fate of
            elif self._existing is Existing.SKIP:
                self.skipped += 1
            elif self._existing is Existing.RESUME and self._is_as(row, found):
                self.present += 1
            else:
                raise ExportError(self._told(row))
        return missing

    def _is_as(self, row: Row, found: kv_pb2.KeyValue) -> bool:
        lease = (self._leases.id_of(row.lease) or 0) if row.lease else 0
        return found.value == row.value and found.lease == lease

    def _told(self, row: Row) -> str:
        there = f'the key "{format_key(row.key)}" is on {shard_called(self._shard.name)} already'
        if self._existing is Existing.RESUME:
            return f"{there}, with another value or lease than in the export; --overwrite or --skip-existing settles it"
        return f"{there}; add --overwrite or --skip-existing, or --resume if it comes from an import of this file"

    def _refused(self, rows: Sequence[Row], status: Status) -> str:
        if len(rows) == 1 and _is_too_much(status):
            cure = "import it with --overwrite, or raise the shard's --max-request-bytes"
            return f'the key "{format_key(rows[0].key)}" is too large for a transaction; {cure}'
        return told(self._shard, status)


def _is_too_much(status: Status) -> bool:
    """Whether a shard takes no transaction that is so large."""
    return status in (errors.TOO_MANY_OPS, errors.REQUEST_TOO_LARGE) or (
        status.code == Code.RESOURCE_EXHAUSTED and "larger than max" in status.message
    )
