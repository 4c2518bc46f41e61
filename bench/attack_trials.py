"""Honest loads that once hurt others, made by the stock client: `python -m bench.attack_trials ADDRESS NAME`.

What fails in the load itself counts as well: one line of JSON on stdout, as `attack_load` prints it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from bench.attack_load import parser_of, spells
from esp.core.pb import rpc_pb2

FROZEN_KEY = b"u/frozen"  # of the shard that the runner stops


@dataclass
class Told:
    """What a trial has done, and what went wrong."""

    things: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """One row of the table. `freezes`: one shard is stopped, from before the quiet time on."""

    name: str
    about: str
    run: Callable[[Any, float, Told], Awaitable[None]]
    freezes: bool = False


def _call(channel: Any, path: str, request: Any, answer: Any, timeout: float) -> Any:
    unary = channel.unary_unary(f"/etcdserverpb.{path}", lambda message: message.SerializeToString(), answer.FromString)
    return unary(request, timeout=timeout)


def _get(channel: Any, key: bytes, timeout: float) -> Any:
    return _call(channel, "KV/Range", rpc_pb2.RangeRequest(key=key), rpc_pb2.RangeResponse, timeout)


async def _puts(channel: Any, count: int, pause: float, told: Told) -> None:
    async def put(number: int) -> None:
        request = rpc_pb2.PutRequest(key=b"a/trial/%d" % number, value=b"x")
        try:
            await _call(channel, "KV/Put", request, rpc_pb2.PutResponse, 3.0)
            told.things += 1
        except grpc.aio.AioRpcError as error:
            told.errors.append(f"own put: {error.code().name} {error.details()}"[:160])

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(put(number))
            await asyncio.sleep(pause)


async def many_watches(channel: Any, seconds: float, told: Told) -> None:
    """1,500 Watch calls, as Rust's and Java's clients open one for each watch; then Puts."""

    async def watch(number: int) -> Any:
        call = channel.stream_stream(
            "/etcdserverpb.Watch/Watch", lambda message: message.SerializeToString(), rpc_pb2.WatchResponse.FromString
        )()
        create = rpc_pb2.WatchCreateRequest(key=b"a/watched/%d" % number)
        await call.write(rpc_pb2.WatchRequest(create_request=create))
        if not (await call.read()).created:
            told.errors.append("own watch: not created")
        told.things += 1
        return call

    began, calls = time.monotonic(), []
    for first in range(0, 1500, 50):
        try:
            async with asyncio.timeout(3.0):
                calls += await asyncio.gather(*(watch(number) for number in range(first, first + 50)))
        except TimeoutError:
            told.errors.append(f"own watches from {first} on: not created within 3 s")
            break
    await _puts(channel, 20, 0.02, told)
    await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
    for call in calls:
        call.cancel()


async def waiting_gets(channel: Any, seconds: float, told: Told) -> None:
    """1,100 Gets that wait for a stopped shard, and Puts to a healthy one."""
    gets = [asyncio.ensure_future(_get(channel, FROZEN_KEY, seconds)) for _ in range(1100)]
    await asyncio.sleep(0.5)
    await _puts(channel, 32, 0.05, told)
    await asyncio.gather(*gets, return_exceptions=True)  # of them, each may fail: their shard is away


async def deadlines(channel: Any, seconds: float, told: Told) -> None:
    """600 Gets a second with 500 ms each to a stopped shard, and Puts to a healthy one."""
    puts = asyncio.ensure_future(_puts(channel, int(seconds * 10), 0.1, told))
    gets: set[Any] = set()
    began = due = time.monotonic()
    while due < began + seconds:
        for _ in range(6):
            get = asyncio.ensure_future(_get(channel, FROZEN_KEY, 0.5))
            gets.add(get)
            get.add_done_callback(gets.discard)
            get.add_done_callback(lambda done: done.exception())  # or asyncio would complain that nobody asked
        due += 0.01
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(puts, *gets, return_exceptions=True)


TRIALS = {
    trial.name: trial
    for trial in (
        Trial("many-watches", "1,500 Watch calls on one connection, then Puts", many_watches),
        Trial("waiting-gets", "1,100 Gets that wait for a stopped shard, and Puts", waiting_gets, freezes=True),
        Trial("deadlines", "600 Gets/s with 500 ms at a stopped shard, and Puts", deadlines, freezes=True),
    )
}


async def _run(address: str, name: str, connections: int, seconds: float, again: float) -> None:
    told = Told()
    # Each its own pool of connections: channels with equal options would share one.
    channels = [
        grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(min(connections, 5))
    ]
    for spell in spells(seconds, again):
        await asyncio.gather(*(TRIALS[name].run(channel, spell, told) for channel in channels))
    for channel in channels:
        await channel.close()
    counts = {"bytes": 0, "things": told.things, "opened": len(channels), "ended": 0}
    print(json.dumps({**counts, "cpu_seconds": time.process_time(), "errors": told.errors}))


def main() -> None:
    args = parser_of(__doc__, TRIALS).parse_args()
    asyncio.run(_run(args.address, args.name, args.connections, args.seconds, args.again))


if __name__ == "__main__":
    main()
