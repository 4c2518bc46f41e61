"""What is asked of every peer. A new kind of load is a new Workload here, and perhaps a generator in `load.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import load
from bench.processes import BenchError
from esp.core.pb import rpc_pb2

Pair = tuple[bytes, bytes]
MIB = 1 << 20
KEY = b"bench/key"  # on the first shard, see peers.SHARD_STARTS
VALUE = b"v" * 256
SPAN = (b"l", b"u")  # this range touches all three shards


@dataclass(frozen=True)
class Workload:
    """One request, repeated at one concurrency."""

    name: str
    about: str
    method: str
    request: Any
    connections: int
    streams: int
    keys: Callable[[], Iterator[Pair]]  # what the store holds before
    generator: load.Generator = load.h2load
    spans: bool = False  # touches all shards; peers that cannot split get one etcd that holds the union
    most_requests: int = 10**9  # per measurement, where more would fill the memory
    rows: Callable[[list[Pair]], list[Pair]] = sorted  # of the answer, out of all keys
    at_revision: bool = False  # of an answer of the peer itself

    @property
    def concurrency(self) -> str:
        """Connections x streams, as the tables have it."""
        return f"{self.connections}x{self.streams}"

    @property
    def writes(self) -> bool:
        return self.method in ("Put", "Txn")

    @property
    def large(self) -> bool:
        """Whether the history of one measurement is too much to keep."""
        return self.method == "Put" and len(self.request.value) >= 1 << 16

    def check(self, reply: Any) -> None:
        """Raises BenchError unless `reply` is what etcd must answer."""
        if self.writes:
            if reply.header.revision < 1 or (self.method == "Txn" and not reply.succeeded):
                raise BenchError(f"{self.name}: a {self.method} was answered with {reply}")
            return
        stored = list(self.keys())
        expected = self.rows(stored)
        got = [(pair.key, pair.value) for pair in reply.kvs]
        if got != expected or reply.count != len(stored) or reply.more != (len(expected) < len(stored)):
            raise BenchError(
                f"{self.name}: not what is stored: {len(got)} pairs, count {reply.count}, more {reply.more}"
            )


def _one(value: bytes) -> Callable[[], Iterator[Pair]]:
    return lambda: iter([(KEY, value)])


def spread(count: int, *, values_differ: bool = False) -> Callable[[], Iterator[Pair]]:
    """`count` keys inside SPAN, as many on each of the three shards (the first gets what is left over)."""

    def keys() -> Iterator[Pair]:
        for index in range(count):
            value = b"%08d" % (index * 7919 % count) * 8 if values_differ else b"v" * 64
            yield b"%s/%06d" % ((b"l", b"p", b"t")[index % 3], index), value

    return keys


def _page(pairs: list[Pair]) -> list[Pair]:
    return sorted(pairs)[:1000]


def _by_value(pairs: list[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: pair[1])


_PUT = rpc_pb2.PutRequest(key=KEY, value=VALUE)
_GET = rpc_pb2.RangeRequest(key=KEY)
_TXN = rpc_pb2.TxnRequest(  # as kube-apiserver updates a key, but with a compare that is true again and again
    compare=[rpc_pb2.Compare(key=KEY, target=rpc_pb2.Compare.MOD, result=rpc_pb2.Compare.GREATER, mod_revision=1)],
    success=[rpc_pb2.RequestOp(request_put=_PUT)],
    failure=[rpc_pb2.RequestOp(request_range=_GET)],
)
_SPAN = rpc_pb2.RangeRequest(key=SPAN[0], range_end=SPAN[1])
_LARGE = b"v" * MIB
_CONCURRENCIES = ((8, 16), (64, 1), (1, 1))


def _all() -> Iterator[Workload]:
    for c, m in _CONCURRENCIES:
        yield Workload(f"put-{c}x{m}", "Put of 256 B", "Put", _PUT, c, m, _one(VALUE))
    for c, m in _CONCURRENCIES:
        yield Workload(f"range-{c}x{m}", "Range of one key, 256 B", "Range", _GET, c, m, _one(VALUE))
    prefix = rpc_pb2.RangeRequest(key=KEY, range_end=KEY[:-1] + bytes((KEY[-1] + 1,)))
    yield Workload("prefix-8x16", "Range of one shard by prefix, one row of 256 B", "Range", prefix, 8, 16, _one(VALUE))
    for c, m in _CONCURRENCIES:
        about = "Txn of one key: a compare, a put of 256 B, a range if not"
        yield Workload(f"txn-{c}x{m}", about, "Txn", _TXN, c, m, _one(VALUE))
    for c, m in ((8, 16), (1, 1)):
        about = "Put of 256 B, a new grpc-timeout in every request"
        yield Workload(f"deadline-{c}x{m}", about, "Put", _PUT, c, m, _one(VALUE), load.deadlines)
        about = "Range of one key, 256 B, a new grpc-timeout in every request"
        yield Workload(f"range-deadline-{c}x{m}", about, "Range", _GET, c, m, _one(VALUE), load.deadlines)
    about = "Range of {} keys on 3 shards (others: one etcd that holds all)"
    yield Workload("span-3", about.format(3), "Range", _SPAN, 8, 16, spread(3), spans=True)
    yield Workload("span-10k", about.format("10,000"), "Range", _SPAN, 4, 2, spread(10_000), spans=True)
    page = rpc_pb2.RangeRequest(key=SPAN[0], range_end=SPAN[1], limit=1000)
    pages = partial(Workload, method="Range", request=page, connections=4, streams=4, keys=spread(10_000), spans=True)
    yield pages("page-1000", "Range of 10,000 keys on 3 shards, the first 1,000", rows=_page)
    yield pages("token-page", "the same page at a token", rows=_page, at_revision=True)
    by_value = rpc_pb2.RangeRequest(key=SPAN[0], range_end=SPAN[1], sort_target="VALUE", sort_order="ASCEND")
    keys = spread(1000, values_differ=True)
    name, told = "sorted-1000", "Range of 1,000 keys on 3 shards, sorted by value"
    yield Workload(name, told, "Range", by_value, 4, 4, keys, spans=True, rows=_by_value)
    about += ", as a snapshot"
    snapshot = partial(load.h2load, metadata=("esp-read: snapshot",))
    yield Workload("snapshot-3", about.format(3), "Range", _SPAN, 8, 16, spread(3), snapshot, spans=True)
    yield Workload("snapshot-10k", about.format("10,000"), "Range", _SPAN, 4, 2, spread(10_000), snapshot, spans=True)
    large_put = rpc_pb2.PutRequest(key=KEY, value=_LARGE)
    yield Workload("put-1mib", "Put of 1 MiB", "Put", large_put, 4, 2, _one(_LARGE), most_requests=120)
    yield Workload("range-1mib", "Range of one key, 1 MiB", "Range", _GET, 4, 2, _one(_LARGE))


WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _all()}
