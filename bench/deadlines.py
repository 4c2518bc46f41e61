"""A load generator whose grpc-timeout differs in every request, as it does in those of real clients.

h2load repeats one header block, so it cannot do this. Run as `python -m bench.deadlines` by `load.deadlines`; prints
one JSON object. Each connection waits for the server's SETTINGS as grpc-go does and makes one call, because a server
may change its mind about the header table when it sees who is there. Then it prepares all its other requests, in the
order in which they will be sent (the header blocks depend on one another, see `grpc_go`), and all connections start
together. A reply counts when its trailers have ended the stream; every grpc-status is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import struct
import sys
import time
from pathlib import Path
from typing import cast

import uvloop
from hpack import Decoder
from hpack.table import HeaderTable

from bench import grpc_go

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RECEIVE_WINDOW = (1 << 30) - 65535  # never exhausted by the small replies this is for
AUTHORITY = b"127.0.0.1:2379"
SLOWEST_US, FASTEST_US = 4_990_000, 5_000_000  # what is left of a 5 s deadline when the request is written


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">BHBBL", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


class CountingTable(HeaderTable):
    """A decoder's table that counts its insertions."""

    insertions = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.insertions += 1
        super().add(name, value)


class Client(asyncio.Protocol):
    """One connection: one call alone, then from `start` on `streams` at any time until `count` are done."""

    def __init__(self, number: int, path: bytes, message: bytes, streams: int, count: int) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []
        self._number, self._path, self._message = number, path, message
        self._streams, self._count = streams, count
        self._requests: list[bytes] = []
        self._encoder = grpc_go.Encoder()
        self._timeouts = random.Random(number)
        self._sent = 0
        self._sent_at: list[float] = []
        self._held_back = 0  # requests that wait for flow control
        self._window = 65535
        self._rest = b""
        self._statuses: dict[bytes, bytes | None] = {}  # header block -> its grpc-status
        self._decoder = Decoder()
        self._table = self._decoder.header_table = CountingTable()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(
            PREFACE + frame(SETTINGS, 0, 0, b"") + frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", RECEIVE_WINDOW))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost: {exc}")

    def start(self) -> None:
        """Fills the streams."""
        self._send(self._streams)

    def _fail(self, reason: str) -> None:
        for future in (self.ready, self.done):
            if not future.done():
                future.set_exception(RuntimeError(reason))

    def _send(self, wanted: int) -> None:
        affordable = self._window // len(self._message)
        count = min(wanted, affordable, self._count - self._sent)
        self._held_back = min(wanted, self._count - self._sent) - count
        if not count:
            return
        self._window -= count * len(self._message)
        first = self._sent
        self._sent += count
        now = time.perf_counter()
        self._sent_at += [now] * count
        self._transport.write(b"".join(self._requests[first : self._sent]))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._rest:
            data = self._rest + data
        position, end, finished = 0, len(data), 0
        try:
            while end - position >= 9:
                length = int.from_bytes(data[position : position + 3], "big")
                after = position + 9 + length
                if after > end:
                    break
                kind, flags = data[position + 3], data[position + 4]
                if kind == HEADERS:
                    status = self._status(data[position + 9 : after], flags)
                    if flags & END_STREAM:
                        if status != b"0":
                            raise RuntimeError(f"grpc-status {status!r}")
                        stream = int.from_bytes(data[position + 5 : position + 9], "big")
                        self.latencies.append(now - self._sent_at[stream >> 1])
                        finished += 1
                elif kind != DATA:
                    self._other_frame(kind, flags, data[position + 5 : after])
                elif flags & END_STREAM:
                    raise RuntimeError("a stream ended without trailers")
                position = after
        except RuntimeError as error:
            self._fail(str(error))
            self._transport.abort()
            return
        self._rest = data[position:]
        if not self.ready.done():
            if finished:
                self._prepare(self._count - 1)
                self.latencies.clear()
                self.ready.set_result(None)
            return
        if finished or self._held_back:
            self._send(finished + self._held_back)
        if len(self.latencies) == self._count - 1 and not self.done.done():
            self.done.set_result(None)

    def _status(self, block: bytes, flags: int) -> bytes | None:
        if block in self._statuses:
            return self._statuses[block]
        if not flags & END_HEADERS or flags & (PADDED | PRIORITY):
            raise RuntimeError(f"HEADERS flags {flags:#x}: this generator knows no CONTINUATION, padding or priority")
        insertions = self._table.insertions
        headers = cast("dict[bytes, bytes]", dict(self._decoder.decode(block, raw=True)))
        if headers.get(b":status", b"200") != b"200":
            raise RuntimeError(f"answered with {headers}")
        status = headers.get(b"grpc-status")
        if status not in (None, b"0"):
            raise RuntimeError(f"answered with {headers}")
        if self._table.insertions != insertions:
            self._statuses.clear()  # every index has shifted, so the same bytes mean something else now
        elif block[0] & 0xE0 != 0x20:  # a change of the table's size is not to be repeated
            self._statuses[block] = status
        return status

    def _other_frame(self, kind: int, flags: int, stream_and_payload: bytes) -> None:
        stream, payload = int.from_bytes(stream_and_payload[:4], "big"), stream_and_payload[4:]
        if kind == SETTINGS and not flags & ACK:
            self._transport.write(frame(SETTINGS, ACK, 0, b""))
            self._follow(dict(struct.iter_unpack(">HL", payload)))
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:  # one message never exhausts the window of its stream
            self._window += int.from_bytes(payload, "big")
        elif kind in (RST_STREAM, GOAWAY):
            raise RuntimeError(f"the server sent frame type {kind}: {payload!r}")

    def _follow(self, settings: dict[int, int]) -> None:
        if settings.get(MAX_CONCURRENT_STREAMS, self._streams) < self._streams:
            raise RuntimeError(f"the server allows only {settings[MAX_CONCURRENT_STREAMS]} streams")
        if settings.get(INITIAL_WINDOW_SIZE, 65535) < len(self._message):
            raise RuntimeError("the message does not fit into the window of a stream")
        if HEADER_TABLE_SIZE in settings:
            if self.ready.done():
                raise RuntimeError("the header table's size changed under load, which this generator does not follow")
            self._encoder.announced(settings[HEADER_TABLE_SIZE])
        if not self._requests:
            self._prepare(1)
            self._send(1)

    def _prepare(self, count: int) -> None:
        for index in range(len(self._requests), len(self._requests) + count):
            timeout = b"%du" % self._timeouts.randrange(SLOWEST_US, FASTEST_US)
            block = self._encoder.encode(grpc_go.unary_fields(self._path, AUTHORITY, timeout))
            stream = 2 * index + 1
            self._requests.append(
                frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, self._message)
            )


async def run(
    address: str, path: bytes, message: bytes, connections: int, streams: int, requests: int
) -> dict[str, float]:
    """Makes `requests` calls, a multiple of `connections`; the first of each connection is not timed."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    clients = []
    for number in range(connections):
        client = Client(number, path, message, streams, requests // connections)
        await loop.create_connection(lambda client=client: client, host, int(port))  # type: ignore[misc]
        clients.append(client)
    await asyncio.gather(*(client.ready for client in clients))
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    for client in clients:
        client.start()
    await asyncio.gather(*(client.done for client in clients))
    seconds = time.perf_counter() - started
    latencies = sorted(latency for client in clients for latency in client.latencies)
    return {
        "requests": len(latencies) + connections,
        "throughput": len(latencies) / seconds,
        "p50_us": latencies[len(latencies) // 2] * 1e6,
        "p99_us": latencies[len(latencies) * 99 // 100] * 1e6,
        "generator_cpu_us": time.process_time() / len(latencies) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port")
    parser.add_argument("path", help="/etcdserverpb.KV/Put, say")
    parser.add_argument("message", type=Path, help="a file: the 5-byte gRPC prefix and the request")
    parser.add_argument("-c", dest="connections", type=int, default=1)
    parser.add_argument("-m", dest="streams", type=int, default=1)
    parser.add_argument("-n", dest="requests", type=int, default=1000)
    args = parser.parse_args()
    message = args.message.read_bytes()
    work = run(args.address, args.path.encode(), message, args.connections, args.streams, args.requests)
    try:
        print(json.dumps(uvloop.run(work)))
    except (RuntimeError, OSError) as error:
        sys.exit(f"bench.deadlines: {error}")


if __name__ == "__main__":
    main()
