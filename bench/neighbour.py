"""An honest client beside attackers: `python -m bench.neighbour ADDRESS` works at a steady pace and times what it does.

Puts and Gets of its own keys, a watch of what it puts, keepalives of a lease of 6 s, and new connections. It says
`ready` once all is set up; then each line on stdin begins a new phase by its name, and `end` is answered by one line of
JSON: for each phase and kind of work the latencies in ms, the errors, and whether the lease still lives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from bench.attack_shapes import frame, grpc_head, message, opening
from esp.core.pb import rpc_pb2

LEASE_SECONDS = 6
PATIENCE = 5.0  # seconds, a call's deadline
_PACE = {"put": 0.02, "get": 0.02, "keepalive": 0.04, "connect": 0.04}  # seconds between two of a kind
_PREFIXES = (b"a/neighbour/", b"n/neighbour/")  # on two of the three shards
_KEYS = 1000


def keys_of_neighbour() -> list[bytes]:
    """All keys that it puts in the course of time."""
    return [_PREFIXES[number % 2] + b"%d" % number for number in range(_KEYS)]


class Neighbour:
    """One client with one channel, and new connections beside it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(address)
        self._phase = "warm-up"
        self._latencies: dict[str, dict[str, list[float]]] = {}
        self._errors: dict[str, list[str]] = {}
        self._put_at: dict[bytes, float] = {}
        self._alive: asyncio.Queue[float] = asyncio.Queue(1)  # when the next one was due
        self._numbers = dict.fromkeys(_PACE, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease = 0
        self.lease_lost = False

    async def run(self) -> None:
        """Sets up, works until stdin says `end`, and tells."""
        self._lease = (await self._unary("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=LEASE_SECONDS))).ID
        for kind in ("put", "get", "get", "put"):  # the first of each kind pays for the connection
            await self._once(kind)
        self._put_at.clear()  # nobody watches yet
        watches = [asyncio.create_task(self._watch(prefix)) for prefix in _PREFIXES]
        keepalives = asyncio.create_task(self._keepalives())
        await asyncio.sleep(0.2)
        paces = [asyncio.create_task(self._pace(kind, pause)) for kind, pause in _PACE.items()]
        print("ready", flush=True)
        async for line in _lines():
            if line == "end":
                break
            self._phase = line
        for task in paces:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE + 1)
        await asyncio.sleep(0.3)  # for the last put's event
        for prefix in _PREFIXES:
            late = [key for key in self._put_at if key.startswith(prefix)]
            if late:
                self._errors.setdefault(self._phase, []).append(f"watch: {len(late)} events never came")
        if self._alive.full() and time.perf_counter() - self._alive.get_nowait() > PATIENCE:
            self._errors.setdefault(self._phase, []).append("keepalive: never answered")
        await self._look_at_lease()
        for task in [*watches, keepalives]:
            task.cancel()
        print(
            json.dumps({"latencies": self._latencies, "errors": self._errors, "lease_lost": self.lease_lost}),
            flush=True,
        )

    async def _unary(self, path: str, request: Any, answer: Any = None) -> Any:
        kind = answer or rpc_pb2.LeaseGrantResponse
        call = self._channel.unary_unary(f"/etcdserverpb.{path}", _serialized, kind.FromString)
        return await call(request, timeout=PATIENCE)

    async def _pace(self, kind: str, pause: float) -> None:
        due = time.monotonic()
        while True:
            due += pause
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._timed(kind))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _timed(self, kind: str) -> None:
        phase, began = self._phase, time.perf_counter()
        try:
            await self._once(kind)
        except (grpc.aio.AioRpcError, OSError, TimeoutError, EOFError) as error:
            text = f"{error.code().name} {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else repr(error)
            self._errors.setdefault(phase, []).append(f"{kind}: {text}")
        if kind != "keepalive":  # timed where its answer is read
            self._took(phase, kind, time.perf_counter() - began)

    def _took(self, phase: str, kind: str, seconds: float) -> None:
        self._latencies.setdefault(phase, {}).setdefault(kind, []).append(seconds * 1000)

    async def _once(self, kind: str) -> None:
        self._numbers[kind] += 1
        number = self._numbers[kind]
        prefix = _PREFIXES[number % 2]
        if kind == "put":
            key = prefix + b"%d" % (number % _KEYS)
            self._put_at[key] = time.perf_counter()
            request = rpc_pb2.PutRequest(key=key, value=b"x" * 100, lease=self._lease)
            try:
                await self._unary("KV/Put", request, rpc_pb2.PutResponse)
            except BaseException:
                self._put_at.pop(key, None)  # may never have been made
                raise
        elif kind == "get":
            await self._unary("KV/Range", rpc_pb2.RangeRequest(key=prefix + b"7"), rpc_pb2.RangeResponse)
        elif kind == "keepalive":
            if not self._alive.full():
                self._alive.put_nowait(time.perf_counter())
        else:
            async with asyncio.timeout(PATIENCE):
                await _connect(self._address)

    async def _watch(self, prefix: bytes) -> None:
        """Watches a prefix; a watch that ends is an error, and is begun again."""
        while True:
            call = self._channel.stream_stream(
                "/etcdserverpb.Watch/Watch", _serialized, rpc_pb2.WatchResponse.FromString
            )()
            create = rpc_pb2.WatchCreateRequest(key=prefix, range_end=prefix[:-1] + bytes([prefix[-1] + 1]))
            try:
                await call.write(rpc_pb2.WatchRequest(create_request=create))
                async for response in call:
                    for event in response.events:
                        put_at = self._put_at.pop(event.kv.key, None)
                        if put_at is not None:
                            self._took(self._phase, "watch", time.perf_counter() - put_at)
                raise EOFError("ended")
            except (grpc.aio.AioRpcError, EOFError, asyncio.InvalidStateError) as error:
                self._errors.setdefault(self._phase, []).append(f"watch: {error!r}"[:200])
                await asyncio.sleep(0.1)

    async def _keepalives(self) -> None:
        while True:
            call = self._channel.stream_stream(
                "/etcdserverpb.Lease/LeaseKeepAlive", _serialized, rpc_pb2.LeaseKeepAliveResponse.FromString
            )()
            try:
                while True:
                    began, phase = await self._alive.get(), self._phase
                    await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=self._lease))
                    answer = await call.read()
                    if answer is grpc.aio.EOF:
                        raise EOFError("ended")
                    self._took(phase, "keepalive", time.perf_counter() - began)
                    if answer.TTL <= 0:
                        self.lease_lost = True
            except (grpc.aio.AioRpcError, EOFError, asyncio.InvalidStateError) as error:
                self._errors.setdefault(self._phase, []).append(f"keepalive: {error!r}"[:200])
                await asyncio.sleep(0.1)

    async def _look_at_lease(self) -> None:
        try:
            request = rpc_pb2.LeaseTimeToLiveRequest(ID=self._lease)
            left = await self._unary("Lease/LeaseTimeToLive", request, rpc_pb2.LeaseTimeToLiveResponse)
            self.lease_lost = self.lease_lost or left.TTL <= 0
        except grpc.aio.AioRpcError as error:
            self._errors.setdefault(self._phase, []).append(f"lease: {error.code().name} {error.details()}")


_GET = (
    opening()
    + frame(1, 4, 1, grpc_head(b"/etcdserverpb.KV/Range"))
    + frame(0, 1, 1, message(rpc_pb2.RangeRequest(key=b"a/neighbour/7").SerializeToString()))
)


async def _connect(address: str) -> None:
    """A new connection, and a Get on it until its answer is whole."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(_GET)
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == 3 or (head[3] == 7):
                raise EOFError("reset" if head[3] == 3 else "GOAWAY")
            if head[5:9] == b"\0\0\0\1" and head[3] in (0, 1) and head[4] & 1:
                return
    finally:
        writer.close()


def _serialized(request: Any) -> bytes:
    return bytes(request.SerializeToString())


async def _lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().strip()


async def _work(address: str) -> None:
    await Neighbour(address).run()  # made here, since a channel belongs to the loop it was made in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port")
    asyncio.run(_work(parser.parse_args().address))


if __name__ == "__main__":
    main()
