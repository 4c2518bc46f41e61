"""Keepalives: many leases on some connections, each renewed every third of its TTL, as etcd's own client does it.

    python -m bench.keepalives [--leases 10000] [--connections 50] [--ttl 30] [--seconds 20] [--peers esp,grpc-proxy]

Prints a Markdown table: CPU of the proxy per keepalive sent, answers per second, p50 and p99 from request to
answer. The load is paced, not as fast as possible: `grpc-proxy` renews by its own clock and answers only then, so a
generator that waits for answers would measure that clock. For the same reason its latencies say how long it kept a
client waiting, and its answers may be more or fewer than the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from bench.etcd import Etcd
from bench.peers import PEERS, Backends, Peer
from bench.processes import BenchError
from esp.core.pb import rpc_pb2
from esp.core.shard.dial import connect
from esp.core.wire.call import MessageCall, messages
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ResponseHead

COMPARED = ("direct", "esp", "esp-1", "grpc-proxy")
STEPS_PER_SECOND = 20
GRANTED_AT_ONCE = 90  # streams that any server allows before it has said how many
DRAIN_SECONDS = 2.0


@dataclass(frozen=True)
class Seen:
    """What one peer did."""

    sent: int
    answered: int
    p50_ms: float
    p99_ms: float
    cpu_us: float | None  # of the proxy, per keepalive that was sent
    rss_mb: float | None


class Stream(ClientStream):
    """One client's keepalives: what is sent, and how long each answer took."""

    __slots__ = ("_reader", "_waiting", "bodies", "ended", "lost", "took")

    def __init__(self, connection: ClientConnection, ids: Sequence[int]) -> None:
        super().__init__(connection)
        self.bodies = [(id_, prefix(rpc_pb2.LeaseKeepAliveRequest(ID=id_).SerializeToString())) for id_ in ids]
        self.took: list[float] = []
        self.lost = 0
        self.ended = ""
        self._waiting: dict[int, deque[float]] = {id_: deque() for id_ in ids}
        self._reader = MessageReader(1 << 20)

    def ask(self, start: int, count: int) -> int:
        """Sends keepalives for these of its leases."""
        part = self.bodies[start : start + count]
        now = monotonic()
        for id_, _ in part:
            self._waiting[id_].append(now)
        self.send_data(b"".join([body for _, body in part]), False)
        return len(part)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        if end:
            self.ended = f"the stream ended: {head.outcome()}"

    def on_data(self, payload: bytes, end: bool) -> None:
        self.consumed(len(payload))
        now = monotonic()
        for message in self._reader.feed(payload):
            answer = rpc_pb2.LeaseKeepAliveResponse.FromString(message)
            self.lost += answer.TTL <= 0
            if self._waiting[answer.ID]:  # grpc-proxy also answers what was not asked
                self.took.append(now - self._waiting[answer.ID].popleft())

    def on_reset(self, code: int, reason: str) -> None:
        self.ended = f"the stream broke: {reason or code}"


def _head(method: str) -> Forward:
    return f"/etcdserverpb.Lease/{method}".encode(), b""


async def _connected(address: str, context: WireContext) -> ClientConnection:
    host, _, port = address.rpartition(":")
    connection = ClientConnection(context, address)
    await connect(connection, [host], int(port))
    return connection


async def _granted(connection: ClientConnection, count: int, ttl: int) -> list[int]:
    """The ids of new leases."""
    body = prefix(rpc_pb2.LeaseGrantRequest(TTL=ttl).SerializeToString())
    ids = []
    for start in range(0, count, GRANTED_AT_ONCE):
        calls = []
        for _ in range(min(GRANTED_AT_ONCE, count - start)):
            calls.append(MessageCall(connection, messages()))
            connection.call(calls[-1], _head("LeaseGrant"), b"", body, end=True)
        connection.context.flush()
        ids += [rpc_pb2.LeaseGrantResponse.FromString(await call.read_only()).ID for call in calls]
    return ids


async def _drive(peer: Peer, options: argparse.Namespace) -> Seen:
    context = WireContext(Limits())
    each = options.leases // options.connections
    streams = []
    began = monotonic()
    for _ in range(options.connections):
        connection = await _connected(peer.address, context)
        ids = await _granted(connection, each, options.ttl)
        stream = Stream(connection, ids)
        connection.call(stream, _head("LeaseKeepAlive"), b"", None, end=False)
        stream.ask(0, each)
        context.flush()
        streams.append(stream)
    granted = monotonic() - began
    if granted > options.ttl / 2:
        raise BenchError(f"{peer.name}: {granted:.1f} s to grant the leases, too long for a TTL of {options.ttl} s")
    await _pace(streams, each, context, options, options.ttl / 3)
    for stream in streams:
        stream.took.clear()
    process = peer.process
    before = process.cpu().total if process else 0.0
    sent = await _pace(streams, each, context, options, options.seconds)
    cpu = process.cpu().total - before if process else None
    await asyncio.sleep(DRAIN_SECONDS)
    took = sorted(time for stream in streams for time in stream.took)
    if ended := [stream.ended for stream in streams if stream.ended]:
        raise BenchError(f"{peer.name}: {ended[0]}")
    if lost := sum(stream.lost for stream in streams):
        raise BenchError(f"{peer.name}: {lost} keepalives found their lease gone")
    for stream in streams:
        stream.connection.lost("done")
    context.flush()
    return Seen(
        sent=sent,
        answered=len(took),
        p50_ms=took[len(took) // 2] * 1e3,
        p99_ms=took[len(took) * 99 // 100] * 1e3,
        cpu_us=cpu / sent * 1e6 if cpu is not None else None,
        rss_mb=process.memory_mb() if process else None,
    )


async def _pace(
    streams: Sequence[Stream], each: int, context: WireContext, options: argparse.Namespace, seconds: float
) -> int:
    """Every lease once in each third of the TTL, a few at a time."""
    steps = max(1, round(options.ttl / 3 * STEPS_PER_SECOND))
    portion = -(-each // steps)
    began = monotonic()
    sent = 0
    for step in range(round(seconds * STEPS_PER_SECOND)):
        start = step % steps * portion
        for stream in streams:
            sent += stream.ask(start, portion)
        context.flush()
        await asyncio.sleep(max(0.0, began + (step + 1) / STEPS_PER_SECOND - monotonic()))
    return sent


def _measure(peer: Peer, folder: Path, options: argparse.Namespace) -> Seen:
    """With fresh etcds, so that no other peer's leases end meanwhile."""
    with ExitStack() as stack:
        etcds = []
        for name in "abc":
            etcds.append(Etcd(name, folder))
            stack.callback(etcds[-1].stop)
        own = folder / "peer"
        own.mkdir()
        stack.callback(peer.stop)
        peer.start(Backends(etcds, None), own)
        return asyncio.run(_drive(peer, options))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.keepalives", description=__doc__.partition("\n")[0])
    parser.add_argument("--leases", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--ttl", type=int, default=30, help="seconds; each lease is renewed every third of it")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--peers", default=",".join(COMPARED))
    options = parser.parse_args()
    print("| peer | answered of sent | per second | p50 ms | p99 ms | CPU µs per keepalive | RSS MB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.peers.split(","):
        folder = Path(tempfile.mkdtemp(prefix="esp-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        try:
            seen = _measure(PEERS[name](), folder, options)
        except BenchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        own = ["-" if value is None else f"{value:.1f}" for value in (seen.cpu_us, seen.rss_mb)]
        cells = [name, f"{seen.answered} of {seen.sent}", f"{seen.answered / options.seconds:.0f}"]
        print(f"| {' | '.join([*cells, f'{seen.p50_ms:.2f}', f'{seen.p99_ms:.2f}', *own])} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
