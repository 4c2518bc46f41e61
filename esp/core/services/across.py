"""KV calls that span shards: every shard concerned is asked for its part, clipped to what it owns; parts are merged.

A part that fails fails the call: an answer is whole or it is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.handlers import CoroutineCall
from esp.core.services.merge import delete_part, merge, merge_deletes, part
from esp.core.services.revision import merged_header
from esp.core.services.stream_merge import StreamMerge
from esp.core.shard import Shard
from esp.core.shard_map import Segment
from esp.core.wire.call import BrokenCall
from esp.core.wire.message import prefix
from esp.core.wire.status import OK, Code, RpcError, Status


async def range_across(
    call: CoroutineCall, routing: Routing, request: rpc_pb2.RangeRequest, segments: Sequence[Segment]
) -> None:
    """Answers a Range: all parts at once, merged.

    Raises:
        RpcError: a shard's, as it came.
    """
    parts = [
        ask(call, routing, segment.shard, part(request, segment.range), rpc_pb2.RangeResponse, idempotent=True)
        for segment in segments
    ]
    answers = await all_of(parts)
    header = merged_header([answer.header for answer in answers], routing.identity)
    call.stream.respond(merge(request, answers, header).SerializeToString())


async def range_stream_across(
    call: CoroutineCall, routing: Routing, request: rpc_pb2.RangeRequest, segments: Sequence[Segment]
) -> None:
    """Answers a RangeStream: shard after shard, each chunk passed on as it comes and as the client takes it.

    Raises:
        RpcError: a shard's, as it came; also when chunks were sent already.
    """
    stream = call.stream
    merged = StreamMerge(request, [segment.range for segment in segments], routing.identity)
    for segment in segments:
        asked = merged.next_part()
        assert asked is not None, "one part for each segment"
        shard = routing.shards[segment.shard]
        chunks = await shard.open(stream.head.forward, asked.SerializeToString(), stream.remaining())
        try:
            while (message := await chunks.read()) is not None:
                chunk = merged.feed(rpc_pb2.RangeStreamResponse.FromString(message))
                if chunk is not None:
                    stream.start()
                    await call.write(prefix(chunk.SerializeToString()))
        except BrokenCall:
            raise errors.REQUEST_TIMED_OUT.error() from None
        finally:
            chunks.cancel()
    if merged.next_part() is not None:
        raise AssertionError("more parts than segments")
    stream.finish(OK)


async def delete_across(
    call: CoroutineCall, routing: Routing, request: rpc_pb2.DeleteRangeRequest, segments: Sequence[Segment]
) -> None:
    """Answers a DeleteRange, one shard after the other: not atomic, and an error when a later one fails.

    Raises:
        RpcError: the first shard's as it came; Unavailable once a shard before has deleted.
    """
    unreachable = [shard.name for shard in _distinct(routing, segments) if not shard.is_ready]
    if unreachable:
        raise errors.NO_CONNECTION.error()
    answers: list[rpc_pb2.DeleteRangeResponse] = []
    for segment in segments:
        asked = delete_part(request, segment.range)
        try:
            answers.append(
                await ask(call, routing, segment.shard, asked, rpc_pb2.DeleteRangeResponse, idempotent=False)
            )
        except RpcError as error:
            deleted = sum(answer.deleted for answer in answers)
            if not deleted:
                raise
            name = routing.shards[segment.shard].name
            raise Status(
                Code.UNAVAILABLE,
                f"esp: {deleted} keys were deleted before shard {name} failed: {error.status.message}",
            ).error() from None
    header = merged_header([answer.header for answer in answers], routing.identity)
    call.stream.respond(merge_deletes(answers, header).SerializeToString())


def _distinct(routing: Routing, segments: Sequence[Segment]) -> list[Shard]:
    return [routing.shards[index] for index in dict.fromkeys(segment.shard for segment in segments)]


Answer = TypeVar("Answer", bound=Message)


async def ask(
    call: CoroutineCall, routing: Routing, shard: int, request: Message, answer: type[Answer], *, idempotent: bool
) -> Answer:
    """One shard's answer to its part, with the client's metadata and what is left of its deadline.

    Raises:
        RpcError: the shard's, as it came.
    """
    stream = call.stream
    body = await routing.shards[shard].forward_unary(
        stream.head.forward, request.SerializeToString(), idempotent=idempotent, timeout=stream.remaining()
    )
    return answer.FromString(body)


Result = TypeVar("Result")


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
