"""The parts of a proxy that have counters, and a walk over its clients and shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from esp.core.background import Background
from esp.core.metrics.calls import Calls
from esp.core.metrics.names import NAMES
from esp.core.routing import Routing
from esp.core.samples import Samples
from esp.core.services.gate import Gate
from esp.core.services.lease import Leases
from esp.core.services.watch import Watch
from esp.core.tls_files import TlsFiles
from esp.core.wire.accepted import ServerProtocol
from esp.core.wire.context import WireContext
from esp.core.wire.ended import UNKNOWN

AT_ONCE: Final = 64
"""Clients, shards or rows that are looked at in a step."""
WATCH: Final = b"/etcdserverpb.Watch/Watch"

Thing = TypeVar("Thing")


def in_steps(things: Iterable[Thing]) -> Iterator[Thing | None]:
    """The things, and None between two steps."""
    left = AT_ONCE
    for thing in things:
        if not left:
            left = AT_ONCE
            yield None
        left -= 1
        yield thing


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a proxy that have counters.

    Attributes:
        protocols: tells the connections of clients.
        routing, samples: tell those in force.
    """

    context: WireContext
    background: Background
    calls: Calls
    protocols: Callable[[], Collection[ServerProtocol]]
    routing: Callable[[], Routing]
    gate: Gate
    leases: Leases
    watch: Watch
    samples: Callable[[], Samples | None]
    tls_files: TlsFiles


class Walk:
    """What a walk over all clients and shards has found.

    Attributes:
        calls: the clients' open calls, by path.
        most_calls, most_output: the most open calls, and bytes of output that wait, of one client's connection.
        watchers: clients' watchers.
        passed_watches: clients' Watch calls that are passed on to a shard as they come.
        most_watch_buffer: the most bytes of events that wait for one client's stream.
        most_waiting: the most calls that wait for the connection of one shard.
        most_parts: the most parts at work at one shard.
    """

    def __init__(self) -> None:
        self.calls: Counter[bytes] = Counter()
        self.most_calls = self.most_output = self.watchers = self.most_watch_buffer = self.most_waiting = 0
        self.passed_watches = 0
        self.most_parts = 0.0

    def go(self, parts: Parts) -> Iterator[None]:
        """Walks, in steps."""
        for protocol in in_steps(tuple(parts.protocols())):
            if protocol is None:
                yield
                continue
            if protocol.transport is not None:
                self.most_output = max(self.most_output, protocol.transport.get_write_buffer_size())
            server = protocol.server
            if server is None or not server.streams:
                continue
            self.most_calls = max(self.most_calls, len(server.streams))
            for stream in in_steps(tuple(server.streams.values())):
                if stream is None:
                    yield
                elif stream.head.is_grpc and not stream.told:
                    self.calls[stream.head.path if stream.head.path in NAMES else UNKNOWN] += 1
                    self.passed_watches += stream.head.path == WATCH and stream.head.handler.forwards
        for watch in in_steps(tuple(parts.watch.streams)):
            if watch is None:
                yield
                continue
            self.watchers += len(watch.watchers)
            self.most_watch_buffer = max(self.most_watch_buffer, watch.outbox.waiting)
        for shard in in_steps(parts.routing().shards.values()):
            if shard is None:
                yield
                continue
            self.most_waiting = max(self.most_waiting, shard.calls_waiting)
            self.most_parts = max(self.most_parts, parts.gate.parts_of(shard.name))
