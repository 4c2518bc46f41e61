"""Watches all keys for some seconds, and samples what is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from esp.core.background import all_of
from esp.core.pb import rpc_pb2
from esp.core.plan.sources import Source, SurveyError, refusals
from esp.core.plan.writes import Writes
from esp.core.wire.call import MessageCall

TICK_SECONDS: Final = 0.1


async def watched(
    sources: Sequence[Source], writes: Writes, seconds: float, progress: Callable[[float], object]
) -> float:
    """Watches all keys of all sources for some seconds; says how long it was.

    Raises:
        SurveyError: a source refuses, or the watch ends.
    """
    calls: list[tuple[Source, MessageCall[bytes]]] = []
    try:
        for source in sources:
            for one in source.ranges:
                key, range_end = one.to_request()
                create = rpc_pb2.WatchCreateRequest(key=key, range_end=range_end, fragment=True)
                with refusals(source):
                    call = await source.open(rpc_pb2.WatchRequest(create_request=create))
                    calls.append((source, call))
                    await _read(source, call)
        begun = monotonic()

        async def tick() -> None:
            # Not by the loop's timers alone: they may go off a millisecond early.
            while (lasted := monotonic() - begun) < seconds:
                progress(lasted)
                await asyncio.sleep(min(TICK_SECONDS, seconds - lasted))
            raise TimeoutError

        async def take(source: Source, call: MessageCall[bytes]) -> None:
            while True:
                with refusals(source):
                    answer = await _read(source, call)
                for event in answer.events:
                    writes.add(event.kv.key)

        with suppress(TimeoutError):
            await all_of([tick(), *(take(source, call) for source, call in calls)])
        return monotonic() - begun
    finally:
        for _, call in calls:
            call.cancel()


async def _read(source: Source, call: MessageCall[bytes]) -> rpc_pb2.WatchResponse:
    """The next answer of a watch.

    Raises:
        SurveyError: the watch has ended.
        RpcError, BrokenCall, DecodeError: it has failed.
    """
    message = await call.read()
    if message is None:
        raise SurveyError(f"{source.name}: the watch of writes has ended; try again, or leave it out (--watch 0)")
    answer = rpc_pb2.WatchResponse.FromString(message)
    if answer.canceled:
        reason = answer.cancel_reason or "no reason told"
        raise SurveyError(f"{source.name}: the watch of writes is refused: {reason}; leave it out with --watch 0")
    return answer
