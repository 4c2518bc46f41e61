"""The load of the watch workloads: many watchers, one writer. A process of its own; prints what it saw as JSON.

    python -m bench.watch_load ADDRESS WRITE_TO --watchers 1000 --connections 50 --rate 50 --puts 200

The watchers of a stream share it, as those of etcd's own client do. The writer puts past the proxy, at a
fixed rate as far as etcd follows, and writes the time into the value; so each event says how long it took. It is
Python, on esp's own client connection: fast enough to count some 100,000 events a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from esp.core.pb import rpc_pb2
from esp.core.shard.dial import connect
from esp.core.wire.call import MessageCall, messages
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.response import ResponseHead

PREFIX = b"bench/watch/"  # on the first shard, see peers.SHARD_STARTS
DIGITS = 20  # of the time in a value, nanoseconds
VALUE_BYTES = 256
LONGEST_OF_ONE = VALUE_BYTES * 3 // 2  # bytes of a message with one event, with some to spare
MOST_IN_FLIGHT = 64  # puts


class Watchers(ClientStream):
    """One Watch call."""

    __slots__ = ("_reader", "created", "created_at", "events", "late", "trouble")

    def __init__(self, connection: ClientConnection, late: list[int]) -> None:
        super().__init__(connection)
        self._reader = MessageReader(2**31 - 1)
        self.created = 0
        self.created_at = 0.0  # the last of them
        self.events = 0
        self.late = late  # nanoseconds, one for each event
        self.trouble = ""

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        if end:
            self.trouble = str(head.outcome())

    def on_data(self, payload: bytes, end: bool) -> None:
        self.consumed(len(payload))
        messages = self._reader.feed(payload)
        if self.events or not messages or messages[-1][-1:] == b"#":
            now = time.monotonic_ns()
            for message in messages:
                if len(message) > LONGEST_OF_ONE:
                    # etcd gives a watcher that has fallen behind several events in one message.
                    for event in rpc_pb2.WatchResponse.FromString(message).events:
                        self._note(now, event.kv.value)
                elif message[-1:] == b"#":
                    self._note(now, message)  # the value is the last field of the event, and ends so
        else:
            self.created += sum(rpc_pb2.WatchResponse.FromString(message).created for message in messages)
            self.created_at = time.monotonic()

    def _note(self, now: int, stamped: bytes) -> None:
        self.late.append(now - int(stamped[-DIGITS - 1 : -1]))
        self.events += 1

    def on_reset(self, code: int, reason: str) -> None:
        self.trouble = f"reset {code} {reason}"


async def _connect(context: WireContext, address: str) -> ClientConnection:
    host, _, port = address.rpartition(":")
    connection = ClientConnection(context, address)
    await connect(connection, [host], int(port))
    while not connection.got_settings:  # noqa: ASYNC110 - nobody signals it
        await asyncio.sleep(0.001)
    return connection


async def run(options: argparse.Namespace) -> dict[str, Any]:
    context = WireContext(Limits(max_output_bytes=1 << 26, max_output_hard_bytes=1 << 27))
    late: list[int] = []
    count = min(options.connections * options.streams, options.watchers)
    calls = []
    creates = []
    for number in range(count):
        if number % options.streams == 0:
            connection = await _connect(context, options.address)
        calls.append(Watchers(connection, late))
        own = [_create(watcher, same=options.keys == "same") for watcher in range(number, options.watchers, count)]
        creates.append([prefix(create.SerializeToString()) for create in own])
    began = time.monotonic()
    for call, messages_of_call in zip(calls, creates, strict=True):
        call.connection.call(call, (b"/etcdserverpb.Watch/Watch", b""), b"", None, end=False)
        for message in messages_of_call:
            call.send_data(message, False)
    context.flush()
    while sum(call.created for call in calls) < options.watchers:
        await asyncio.sleep(0.01)
        _check(calls, began + 60)
    ready = max(call.created_at for call in calls)
    await _wait_to_go("ready")
    writer = await _connect(context, options.write_to)
    await _write(context, writer, calls, options, range(options.warm_up))
    await _wait_to_go("warm")
    late.clear()
    took = await _write(context, writer, calls, options, range(options.warm_up, options.warm_up + options.puts))
    await asyncio.sleep(0.2)  # for events that should not come
    _check_each(calls, options)
    late.sort()
    return {
        "events": len(late),
        "per_second": len(late) / took,
        "p50_us": late[len(late) // 2] / 1000,
        "p99_us": late[len(late) * 99 // 100] / 1000,
        "create_seconds": ready - began,
    }


async def _wait_to_go(state: str) -> None:
    print(state, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def _write(
    context: WireContext,
    writer: ClientConnection,
    calls: list[Watchers],
    options: argparse.Namespace,
    numbers: range,
) -> float:
    """Makes these puts and waits until all their events have come: the seconds that took."""
    per_put = options.watchers if options.keys == "same" else 1
    start = time.monotonic()
    for made, number in enumerate(numbers, 1):
        key = PREFIX + b"%d" % (number * 7919 % options.watchers)
        stamp = b"%0*d#" % (DIGITS, time.monotonic_ns())
        put = rpc_pb2.PutRequest(key=key, value=stamp.rjust(VALUE_BYTES, b"v"))
        answer = MessageCall(writer, messages())
        writer.call(answer, (b"/etcdserverpb.KV/Put", b""), b"", prefix(put.SerializeToString()), end=True)
        context.flush()
        pause = start + made / options.rate - time.monotonic()
        if pause > 0 or made % 64 == 0:
            await asyncio.sleep(max(0.0, pause))
        while len(writer.streams) > MOST_IN_FLIGHT:  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.0005)
    while sum(call.events for call in calls) < numbers.stop * per_put:
        await asyncio.sleep(0.01)
        _check(calls, start + len(numbers) / options.rate + 60)
    return time.monotonic() - start


def _check_each(calls: list[Watchers], options: argparse.Namespace) -> None:
    """Every stream must have got each event that is its own once."""
    expected = [0] * len(calls)
    for number in range(options.warm_up + options.puts):
        if options.keys == "different":
            expected[number * 7919 % options.watchers % len(calls)] += 1
    if options.keys == "same":
        puts = options.warm_up + options.puts
        expected = [puts * len(range(number, options.watchers, len(calls))) for number in range(len(calls))]
    if [call.events for call in calls] != expected:
        raise SystemExit("an event came twice, or to the wrong stream")


def _check(calls: list[Watchers], deadline: float) -> None:
    trouble = next((call.trouble for call in calls if call.trouble), "")
    if trouble or time.monotonic() > deadline:
        created, events = sum(call.created for call in calls), sum(call.events for call in calls)
        raise SystemExit(f"{trouble or 'too slow'}: {created} created, {events} events")


def _create(watcher: int, *, same: bool) -> rpc_pb2.WatchRequest:
    if same:
        create = rpc_pb2.WatchCreateRequest(key=PREFIX, range_end=PREFIX[:-1] + b"0")
    else:
        create = rpc_pb2.WatchCreateRequest(key=PREFIX + b"%d" % watcher)
    return rpc_pb2.WatchRequest(create_request=create)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("write_to")
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--streams", type=int, default=1, help="on each connection")
    parser.add_argument("--keys", choices=("same", "different"), default="same")
    parser.add_argument("--rate", type=float, default=100, help="puts per second")
    parser.add_argument("--puts", type=int, default=300)
    parser.add_argument("--warm-up", type=int, default=0, help="puts that are not counted")
    print(json.dumps(asyncio.run(run(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()
