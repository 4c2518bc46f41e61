"""Servers whose keys are counted: the shards of a config, or an etcd or an esp by its URL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.auth_tokens import OWN
from esp.core.config import Config
from esp.core.connected_shards import connected
from esp.core.export import Ask, count, of_shard
from esp.core.keys import KeyRange
from esp.core.load import Target, TargetError
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, Shard
from esp.core.wire.call import BrokenCall, MessageCall, Reader
from esp.core.wire.status import RpcError

WATCH: Final = b"/etcdserverpb.Watch/Watch"


class SurveyError(Exception):
    """The keys cannot be read, or the writes not be watched; the text is for people."""


class Source(NamedTuple):
    """A shard, or another server that speaks as an etcd, and the keys that are read from it.

    Attributes:
        name: the shard's, or a URL.
        ask: asks for a Range.
        open: begins a watch.
        ranges: in key order.
    """

    name: str
    ask: Ask
    open: Callable[[rpc_pb2.WatchRequest], Awaitable[MessageCall[bytes]]]
    ranges: Sequence[KeyRange]


@asynccontextmanager
async def sources_of(config: Config) -> AsyncIterator[list[Source]]:
    """The shards of a config, for as long as the block runs; each has what the map gives to it.

    Raises:
        UnreachableError: a shard cannot be reached.
    """
    async with connected(config) as shards:
        yield [
            Source(name, of_shard(shard), partial(_watch_shard, shard), config.shard_map.ranges_of(name))
            for name, shard in shards.items()
        ]


@asynccontextmanager
async def source_of(target: Target) -> AsyncIterator[list[Source]]:
    """An etcd, or an esp, for as long as the block runs; it has all keys.

    Raises:
        SurveyError: it cannot be reached.
    """
    try:
        await target.connect(1)
    except TargetError as error:
        raise SurveyError(str(error)) from None
    try:
        yield [Source(target.name, partial(_ask, target), partial(_watch, target), [KeyRange(b"", None)])]
    finally:
        target.close()


async def _watch_shard(shard: Shard, request: rpc_pb2.WatchRequest) -> MessageCall[bytes]:
    return await shard.open((WATCH, OWN), request.SerializeToString())


async def _watch(target: Target, request: rpc_pb2.WatchRequest) -> MessageCall[bytes]:
    return target.open(WATCH, request)


async def _ask(
    target: Target, request: rpc_pb2.RangeRequest, _reader: Callable[[], Reader[bytes]] | None
) -> rpc_pb2.RangeResponse:
    try:
        return await target.ask(RANGE, request)
    except TargetError as error:
        if error.status is not None:
            raise error.status.error() from None
        raise SurveyError(str(error)) from None


async def counts(source: Source) -> tuple[int, int]:
    """The number of a source's keys, and its revision.

    Raises:
        SurveyError: it refuses, or does not answer.
    """
    number = revision = 0
    with refusals(source):
        for one in source.ranges:
            answer = await count(source.ask, one, revision)
            number += answer.count
            revision = revision or answer.header.revision
    return number, revision


@contextmanager
def refusals(source: Source) -> Iterator[None]:
    """Turns what a source answers, other than what was asked for, into a SurveyError with the cure."""
    try:
        yield
    except (RpcError, BrokenCall, DecodeError) as error:
        text = error.status.message if isinstance(error, RpcError) else str(error)
        cure = ""
        if isinstance(error, RpcError) and (
            error.status == errors.PERMISSION_DENIED or error.status in errors.STALE_TOKEN
        ):
            cure = "; name a user who may read all keys (auth in the config, or --user)"
        raise SurveyError(f"{source.name}: {text}{cure}") from None
