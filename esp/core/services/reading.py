"""Reads of several shards for one call of a client: each shard's parts at one revision of that shard."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.handlers import CoroutineCall
from esp.core.services.metadata import call_head, load_bearing
from esp.core.services.txn import MAX_OPS
from esp.core.shard_map import Segment
from esp.core.wire.status import RpcError

RANGE: Final = b"/etcdserverpb.KV/Range"
TXN: Final = b"/etcdserverpb.KV/Txn"

Answer = TypeVar("Answer", bound=Message)
Result = TypeVar("Result")


def segments_of(routing: Routing, key_range: KeyRange) -> list[Segment]:
    """What each shard owns of a range. An empty one is the owner's of its start, which looks at permissions."""
    return routing.map.split(key_range) or [Segment(routing.map.owner(key_range.start), key_range)]


class Parts:
    """What one shard answered.

    Attributes:
        header: of the first answer; its revision is the one that all parts without a revision of their own show.
        responses: one for each part.
    """

    __slots__ = ("header", "responses")

    def __init__(self, header: rpc_pb2.ResponseHeader, responses: Sequence[rpc_pb2.RangeResponse]) -> None:
        self.header = header
        self.responses = responses


async def read_all(
    call: CoroutineCall, routing: Routing, parts: Mapping[int, Sequence[rpc_pb2.RangeRequest]]
) -> dict[int, Parts]:
    """Reads the parts of every shard, by its index; all shards at once.

    Raises:
        RpcError: a shard's, as it came.
    """
    answers = await all_of([_read(call, routing, shard, asked) for shard, asked in parts.items()])
    return dict(zip(parts, answers, strict=True))


async def _read(call: CoroutineCall, routing: Routing, shard: int, parts: Sequence[rpc_pb2.RangeRequest]) -> Parts:
    if len(parts) == 1:
        answer = await ask(call, routing, shard, RANGE, parts[0], rpc_pb2.RangeResponse, idempotent=True)
        return Parts(answer.header, [answer])
    # One transaction is one moment. More parts than it takes follow at the revision of the first.
    responses: list[rpc_pb2.RangeResponse] = []
    header: rpc_pb2.ResponseHeader | None = None
    for start in range(0, len(parts), MAX_OPS):
        request = rpc_pb2.TxnRequest()
        for part in parts[start : start + MAX_OPS]:
            asked = request.success.add().request_range
            asked.CopyFrom(part)
            if header is not None and asked.revision <= 0:
                asked.revision = header.revision
        together = await ask(call, routing, shard, TXN, request, rpc_pb2.TxnResponse, idempotent=True)
        responses += [operation.response_range for operation in together.responses]
        header = header or together.header
    assert header is not None, "there are parts"
    return Parts(header, responses)


async def ask(
    call: CoroutineCall,
    routing: Routing,
    shard: int,
    path: bytes,
    request: Message,
    answer: type[Answer],
    *,
    idempotent: bool,
) -> Answer:
    """One shard's answer to its part, with the client's metadata and what is left of its deadline.

    Raises:
        RpcError: the shard's, as it came.
    """
    stream = call.stream
    head = stream.head
    forward = head.forward if path == head.path else call_head(path, load_bearing(head))
    body = await routing.shards[shard].forward_unary(
        forward, request.SerializeToString(), idempotent=idempotent, timeout=stream.remaining()
    )
    return answer.FromString(body)


async def all_of(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results in order; the first failure cancels the rest.

    Raises:
        RpcError: one of them failed.
    """
    failure: RpcError | None = None
    tasks: list[asyncio.Task[Result]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except* RpcError as failed:
        failure = next(error for error in failed.exceptions if isinstance(error, RpcError))
    if failure is not None:
        raise failure
    return [task.result() for task in tasks]
