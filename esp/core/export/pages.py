"""The keys of one shard's range at a revision, in order, some at a time: pages of bounded size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from esp.core.export.patience import read
from esp.core.export.stride import Stride
from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import RANGE, Shard
from esp.core.wire.call import Reader
from esp.core.wire.message import MessageReader
from esp.core.wire.status import Code, RpcError, Status

FIRST_KEYS: Final = 100
MOST_KEYS: Final = 1000
"""Keys of the first page, and of any page; each page has at most twice as many as the one before."""
PAGE_BYTES: Final = 1 << 20
"""Bytes that a page is to have, by the size of the keys of the page before."""
MOST_PAGE_BYTES: Final = 32 << 20
"""A larger answer is not read: its page is asked for again with fewer keys."""

_TOO_LARGE: Final = Status(Code.RESOURCE_EXHAUSTED, "a page has too many bytes")


class _Bounded:
    """Reads an answer of at most so many bytes. A larger one fails as soon as its size is known, which is at once."""

    def __init__(self, most: int) -> None:
        self._reader = MessageReader(most)

    @property
    def held(self) -> int:
        return self._reader.held

    @property
    def wanted(self) -> int:
        return self._reader.wanted

    def feed(self, payload: bytes) -> Sequence[bytes]:
        try:
            return self._reader.feed(payload)
        except RpcError as error:
            raise (_TOO_LARGE.error() if error.status.code == Code.RESOURCE_EXHAUSTED else error) from None


Ask = Callable[[rpc_pb2.RangeRequest, Callable[[], Reader[bytes]] | None], Awaitable[rpc_pb2.RangeResponse]]
"""Asks for a Range; the answer is read by what the second argument makes, where there is one. Raises RpcError."""


def of_shard(shard: Shard) -> Ask:
    """Asks a shard, as patiently as `read`."""
    return partial(read, shard, RANGE)


class Pages:
    """The pages of a range of one shard at one revision."""

    def __init__(self, ask: Ask, key_range: KeyRange, revision: int, *, keys_only: bool = False) -> None:
        """With `keys_only` keys come without their values."""
        self._asked = ask
        self._revision = revision
        self._keys_only = keys_only
        self._stride = Stride(key_range)
        self._keys = FIRST_KEYS

    async def next(self) -> Sequence[kv_pb2.KeyValue] | None:
        """The next keys, perhaps none; None at the end.

        Raises:
            RpcError: the revision has been compacted, or the shard does not answer.
        """
        if self._stride.done:
            return None
        key, range_end = self._stride.part().to_request()
        request = rpc_pb2.RangeRequest(key=key, range_end=range_end, revision=self._revision, keys_only=self._keys_only)
        answer = await self._ask(request)
        kvs: Sequence[kv_pb2.KeyValue] = answer.kvs
        if not kvs:
            self._stride.read(b"", b"", 0, 0)
            self._stride.was_short()
            return kvs
        self._stride.read(kvs[0].key, kvs[-1].key, len(kvs), answer.count)
        if len(kvs) == answer.count and len(kvs) < self._keys // 4:
            self._stride.was_short()
        one = max(1, answer.ByteSize() // len(kvs))
        self._keys = max(1, min(MOST_KEYS, self._keys * 2, PAGE_BYTES // one))
        return kvs

    async def _ask(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        while True:
            request.limit = self._keys
            reader = partial(_Bounded, MOST_PAGE_BYTES) if self._keys > 1 else None
            try:
                return await self._asked(request, reader)
            except RpcError as error:
                if error.status != _TOO_LARGE:
                    raise
                self._keys = max(1, self._keys // 8)


async def count(ask: Ask, key_range: KeyRange, revision: int = 0) -> rpc_pb2.RangeResponse:
    """The number of keys of a range, in an answer without keys; with 0, at the revision in the answer's header.

    Raises:
        RpcError: as `Pages.next`.
    """
    key, range_end = key_range.to_request()
    return await ask(rpc_pb2.RangeRequest(key=key, range_end=range_end, revision=revision, count_only=True), None)
