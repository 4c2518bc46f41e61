"""esp's own work for a call, by the number of shards and of ranges, without sockets: microseconds of CPU.

    python -m bench.scaling [--shards 1 --shards 64] [--ranges 10000] [--rounds 30]

The frames of clients go through the same router and services as in a proxy, and the bench plays the shards. So all work
of esp is measured but that of moving bytes. Each figure is the best of the rounds: other programs on the machine only
ever add to it. Every call is answered, or the bench fails.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from time import thread_time
from typing import Any

from hpack import Decoder

from esp.core.background import Background
from esp.core.config import Endpoint, parse
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.metrics.calls import Calls
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.routing import Routing
from esp.core.served import Served
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.tokens import Tokens
from esp.core.wire import frames
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler

SHARDS = (1, 3, 16, 64)
RANGES = (100, 10_000)
SHARDS_OF_RANGES = 3
CONFIG = """
listen: [http://127.0.0.1:1]
shards: [{name: s0, endpoints: [http://127.0.0.1:2], ranges: [{start: "", end: ""}]}]
"""
LOOP_TURNS = 6  # in which a coroutine that has got its answer asks again or ends
CONNECTIONS = 8
STREAMS = 16
PUT, RANGE, TXN = b"/etcdserverpb.KV/Put", b"/etcdserverpb.KV/Range", b"/etcdserverpb.KV/Txn"
KEEPALIVE, WATCH = b"/etcdserverpb.Lease/LeaseKeepAlive", b"/etcdserverpb.Watch/Watch"
VALUE = b"x" * 256
HEAD = encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS = encode([(b"grpc-status", b"0"), (b"grpc-message", b"")])


class Unanswered(Exception):
    """A call was not answered, or not with OK."""


def _head(path: bytes) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"127.0.0.1:2379")]
    fields += [(b"content-type", b"application/grpc"), (b"user-agent", b"grpc-go/1.60.0"), (b"te", b"trailers")]
    return encode(fields)


@dataclass
class Played:
    """One connection to a shard, whose etcd the bench plays."""

    number: int
    connection: ClientConnection
    decoder: Decoder = field(default_factory=Decoder)
    paths: dict[int, bytes] = field(default_factory=dict)
    readers: dict[int, MessageReader] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)  # calls that have the head of their answer
    ids: list[int] = field(default_factory=list)  # of watchers
    watch: int = 0  # the stream of the Watch call
    revision: int = 1000

    def answers(self) -> bytes:
        """The answers to all that esp has sent since the last time."""
        said, at = self.connection.take_output(), 0
        out: list[bytes] = []
        if said.startswith(frames.PREFACE):
            at = len(frames.PREFACE)
        while at < len(said):
            word, _, stream = frames.unpack_header(said, at)
            payload = said[at + 9 : at + 9 + (word >> 8)]
            at += 9 + (word >> 8)
            if word & 0xFF == frames.HEADERS:
                self.paths[stream] = dict(self.decoder.decode(payload, raw=True))[b":path"]
                self.readers[stream] = MessageReader(1 << 30)
            elif word & 0xFF == frames.DATA:
                for body in self.readers[stream].feed(payload):
                    out += self._answer(stream, self.paths[stream], body)
        return b"".join(out)

    def header(self) -> rpc_pb2.ResponseHeader:
        return rpc_pb2.ResponseHeader(
            cluster_id=(1 << 63) + self.number, member_id=1 << 62, revision=self.revision + self.number, raft_term=3
        )

    def _answer(self, stream: int, path: bytes, body: bytes) -> Iterator[bytes]:
        streams = path in (KEEPALIVE, WATCH)
        if stream not in self.opened:
            yield frames.frame(frames.HEADERS, 4, stream, HEAD if self.opened else b"\x20" + HEAD)
            self.opened.add(stream)
        answer = prefix(self._message(stream, path, body).SerializeToString())
        for at in range(0, len(answer), frames.MAX_FRAME_SIZE):
            yield frames.frame(frames.DATA, 0, stream, answer[at : at + frames.MAX_FRAME_SIZE])
        if not streams:
            yield frames.frame(frames.HEADERS, 5, stream, TRAILERS)

    def _message(self, stream: int, path: bytes, body: bytes) -> Any:
        if path == PUT:
            return rpc_pb2.PutResponse(header=self.header())
        if path == RANGE:
            return self._range(rpc_pb2.RangeRequest.FromString(body))
        if path == TXN:
            ops = rpc_pb2.TxnRequest.FromString(body).success
            answers = [rpc_pb2.ResponseOp(response_range=self._range(op.request_range)) for op in ops]
            return rpc_pb2.TxnResponse(header=self.header(), succeeded=True, responses=answers)
        if path == KEEPALIVE:
            lease = rpc_pb2.LeaseKeepAliveRequest.FromString(body).ID
            return rpc_pb2.LeaseKeepAliveResponse(header=self.header(), ID=lease, TTL=60)
        if path == WATCH:
            self.watch = stream
            self.ids.append(rpc_pb2.WatchRequest.FromString(body).create_request.watch_id)
            return rpc_pb2.WatchResponse(header=self.header(), watch_id=self.ids[-1], created=True)
        raise Unanswered(f"esp asks for {path!r}")

    def _range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        row = kv_pb2.KeyValue(key=request.key, create_revision=9, mod_revision=9, version=1, value=VALUE)
        return rpc_pb2.RangeResponse(header=self.header(), kvs=[row], count=1)

    def events(self, keys: list[bytes]) -> bytes:
        """An event for each watcher."""
        said = []
        for watch_id, key in zip(self.ids, keys, strict=True):
            self.revision += 1
            row = kv_pb2.KeyValue(key=key, value=VALUE, create_revision=9, mod_revision=self.revision, version=2)
            told = rpc_pb2.WatchResponse(header=self.header(), watch_id=watch_id, events=[kv_pb2.Event(kv=row)])
            said.append(frames.frame(frames.DATA, 0, self.watch, prefix(told.SerializeToString())))
        return b"".join(said)


class World:
    """esp with so many shards and ranges, and its clients.

    Attributes:
        keys: a key of each shard.
    """

    def __init__(self, shards: int, ranges: int) -> None:
        self.context = WireContext(Limits())
        background = self._background = Background()
        names = [f"s{number}" for number in range(shards)]
        edges: list[bytes | None] = [b"", *(b"k/%08d" % number for number in range(1, ranges)), None]
        owned = [(names[at % shards], KeyRange(edges[at] or b"", edges[at + 1])) for at in range(ranges)]
        self.keys = [b"k/%08d/key" % (number + (ranges // 2) // shards * shards) for number in range(shards)]
        calls = Calls(self.context, {PUT, RANGE, TXN, KEEPALIVE, WATCH})
        its_shards = [Shard(name, [Endpoint("localhost", 2379)], self.context, background) for name in names]
        layout = Layout.of(ShardMap.build(owned, names), its_shards)
        routing = Routing(layout, Tokens(self.context, instance=1))
        config = parse(CONFIG, None)
        served = Served(config, lambda: routing, self.context, background, tuple)
        router = served.router(routing, config, Handler())
        self.tick = calls.tick
        self.etcds = [
            Played(number, self._connected(shard, link, calls))
            for number, shard in enumerate(its_shards)
            for link in (shard._links.unary, shard._links.streams)
        ]
        self.clients = [ServerConnection(self.context, f"127.0.0.{at}:9", router.find) for at in range(CONNECTIONS)]
        self._said: list[bytes] = []
        self._stream = 1
        settings = frames.settings({4: 1 << 30, 3: 2**31 - 1})
        for client in self.clients:
            client.on_flush = self._said.append
            client.receive(frames.PREFACE + settings + frames.SETTINGS_ACK + frames.window_update(0, 1 << 30))

    def _connected(self, shard: Shard, link: Any, calls: Calls) -> ClientConnection:
        connection = ClientConnection(self.context, shard.name)
        connection.observe(calls.passed_to(shard.name))
        link.connection = connection
        shard.version_in_use = "3.7.1"
        connection.receive(frames.settings({4: 1 << 30, 3: 2**31 - 1}) + frames.SETTINGS_ACK)
        connection.receive(frames.window_update(0, 1 << 30))
        return connection

    def opens(self, path: bytes) -> int:
        """A call on each connection; the id of its stream."""
        stream, self._stream = self._stream, self._stream + 2
        for client in self.clients:
            client.receive(frames.frame(frames.HEADERS, 4, stream, _head(path)))
        return stream

    async def asks(self, path: bytes, requests: list[bytes]) -> float:
        """Makes unary calls, as many on each connection; the seconds they took esp."""
        each = len(requests) // CONNECTIONS
        said = []
        for at in range(CONNECTIONS):
            part = requests[at * each : (at + 1) * each]
            ids = range(self._stream, self._stream + 2 * each, 2)
            head = _head(path)
            said.append(
                b"".join(
                    frames.frame(frames.HEADERS, 4, stream, head) + frames.frame(frames.DATA, 1, stream, request)
                    for stream, request in zip(ids, part, strict=True)
                )
            )
        self._stream += 2 * each
        took = await self.sends(said)
        if any(client.streams for client in self.clients):
            raise Unanswered(f"{path!r}: {sum(len(client.streams) for client in self.clients)} calls wait")
        return took

    async def sends(self, said: list[bytes]) -> float:
        """Gives the clients' bytes to esp, and the shards' answers, until all is said; the seconds that esp took."""
        self._said.clear()
        began = thread_time()
        for client, its in zip(self.clients, said, strict=True):
            client.take(its, inf)
        await self._goes_on()
        took = thread_time() - began
        while answers := [(etcd.connection, answer) for etcd in self.etcds if (answer := etcd.answers())]:
            took += await self.tells(answers)
        return took

    async def tells(self, answers: list[tuple[ClientConnection, bytes]]) -> float:
        """Gives shards' bytes to esp; the seconds that esp took."""
        began = thread_time()
        for connection, answer in answers:
            connection.take(answer, inf)
        await self._goes_on()
        self.tick()
        return thread_time() - began

    async def _goes_on(self) -> None:
        """Lets esp do all that it can: coroutines too, if there are any."""
        self.context.flush()
        for _ in range(LOOP_TURNS):
            if not self._background.tasks:
                return
            await asyncio.sleep(0)
        self.context.flush()

    def heard(self) -> int:
        """The frames of DATA that clients have got for the last request."""
        said, at, found = b"".join(self._said), 0, 0
        while at < len(said):
            word, _, _ = frames.unpack_header(said, at)
            found += word & 0xFF == frames.DATA
            at += 9 + (word >> 8)
        return found


async def _of_one_key(world: World, rounds: int, path: bytes, request: Callable[[bytes], Any], shards: int) -> float:
    """A unary call for one key; the calls go to so many shards in turn."""
    calls = CONNECTIONS * STREAMS
    requests = [prefix(request(world.keys[at % shards]).SerializeToString()) for at in range(calls)]
    return min([await world.asks(path, requests) for _ in range(rounds)]) / calls


async def put(world: World, rounds: int) -> float:
    """Put of one key, always the same."""
    return await _of_one_key(world, rounds, PUT, lambda key: rpc_pb2.PutRequest(key=key, value=VALUE), 1)


async def put_anywhere(world: World, rounds: int) -> float:
    """Put of one key; the keys lie in all shards."""
    shards = len(world.keys)
    return await _of_one_key(world, rounds, PUT, lambda key: rpc_pb2.PutRequest(key=key, value=VALUE), shards)


async def range_of_one(world: World, rounds: int) -> float:
    """Range of one key, always the same."""
    return await _of_one_key(world, rounds, RANGE, lambda key: rpc_pb2.RangeRequest(key=key), 1)


async def range_anywhere(world: World, rounds: int) -> float:
    """Range of one key; the keys lie in all shards."""
    return await _of_one_key(world, rounds, RANGE, lambda key: rpc_pb2.RangeRequest(key=key), len(world.keys))


async def range_of_all(world: World, rounds: int) -> float:
    """Range of one row in each shard."""
    first, last = world.keys[0], world.keys[-1]
    request = prefix(rpc_pb2.RangeRequest(key=first, range_end=last + b"\0").SerializeToString())
    return min([await world.asks(RANGE, [request] * CONNECTIONS) for _ in range(rounds)]) / CONNECTIONS


async def keepalive(world: World, rounds: int) -> float:
    """Keepalive of a lease, one at a time on each connection; each goes to all shards."""
    stream = world.opens(KEEPALIVE)
    took = []
    for number in range(rounds):
        ids = [(0x694D << 48) + 1 + number % 20 * CONNECTIONS + at for at in range(CONNECTIONS)]
        bodies = [prefix(rpc_pb2.LeaseKeepAliveRequest(ID=id_).SerializeToString()) for id_ in ids]
        took.append(await world.sends([frames.frame(frames.DATA, 0, stream, body) for body in bodies]))
        if world.heard() != CONNECTIONS:
            raise Unanswered("a keepalive")
    return min(took) / CONNECTIONS


def _create(key: bytes) -> bytes:
    create = rpc_pb2.WatchCreateRequest(key=key)
    return prefix(rpc_pb2.WatchRequest(create_request=create).SerializeToString())


async def watch_created(world: World, rounds: int) -> float:
    """A watcher of a key of its own, created; sixteen at a time on each connection, in all shards."""
    took = []
    for number in range(rounds):
        stream = world.opens(WATCH)
        said = []
        for at in range(CONNECTIONS):
            places = range(at * STREAMS, (at + 1) * STREAMS)
            keys = [world.keys[place % len(world.keys)] + b"/%d/%d" % (number, place) for place in places]
            said.append(b"".join(frames.frame(frames.DATA, 0, stream, _create(key)) for key in keys))
        took.append(await world.sends(said))
    return min(took) / CONNECTIONS / STREAMS


async def watch_event(world: World, rounds: int) -> float:
    """An event of a watcher of one key; every event goes to one client."""
    stream = world.opens(WATCH)
    number = len(world.keys)
    keys = [world.keys[place % number] + b"/%d" % place for place in range(CONNECTIONS * STREAMS)]
    creates = [frames.frame(frames.DATA, 0, stream, _create(key)) for key in keys]
    await world.sends([b"".join(creates[at * STREAMS : (at + 1) * STREAMS]) for at in range(CONNECTIONS)])
    by_shard = [keys[shard::number] for shard in range(number)]
    watched = [(etcd, by_shard[etcd.number]) for etcd in world.etcds if etcd.ids]
    took = []
    for _ in range(rounds):
        world._said.clear()
        took.append(await world.tells([(etcd.connection, etcd.events(some)) for etcd, some in watched]))
        if not world.heard():
            raise Unanswered("an event")
    return min(took) / CONNECTIONS / STREAMS


Row = Callable[[World, int], Any]
ROWS: dict[str, Row] = {
    "Put": put,
    "Put, the keys in all shards": put_anywhere,
    "Range of one key": range_of_one,
    "Range of one key, the keys in all shards": range_anywhere,
    "Range over all shards": range_of_all,
    "keepalive": keepalive,
    "watcher created": watch_created,
    "event": watch_event,
}


async def measure(row: Row, shards: int, ranges: int, rounds: int) -> float:
    """Microseconds of one call of a row."""
    return float(await row(World(shards, ranges), rounds)) * 1e6


def main() -> None:
    """Reads the command line, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, action="append", help="default: 1, 3, 16 and 64")
    parser.add_argument("--ranges", type=int, action="append", help="over 3 shards; default: 100 and 10000")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    sizes = [(shards, shards) for shards in options.shards or SHARDS]
    sizes += [(SHARDS_OF_RANGES, ranges) for ranges in options.ranges or RANGES]
    heads = [
        f"{shards} shard{'s' if shards > 1 else ''}, {ranges:,} range{'s' if ranges > 1 else ''}"
        for shards, ranges in sizes
    ]
    sys.stdout.write(f"| us of esp's own work | {' | '.join(heads)} |\n|---|{'---:|' * len(sizes)}\n")
    for name, row in ROWS.items():
        cells = [f"{asyncio.run(measure(row, shards, ranges, options.rounds)):.1f}" for shards, ranges in sizes]
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
