"""The state that all connections of a process share: limits, output that waits, the memory budget, counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from esp.core.wire.budget import BufferBudget
from esp.core.wire.ended import Observer
from esp.core.wire.limits import Limits
from esp.core.wire.shares import Shares
from esp.core.wire.traces import Tracer
from esp.core.wire.traffic import Traffic
from esp.core.wire.turns import SLICE, Turns


class Flushable(Protocol):
    """A connection with output to be written, or an object that makes output for connections."""

    def flush(self) -> None:
        """Hand the waiting output on."""

    def on_bug(self) -> None:
        """`flush` or `go_on` has raised an exception: log the exception and end the connection."""


class Resumable(Protocol):
    """An object with work to do that does not fit one turn."""

    def go_on(self) -> None:
        """The next turn has come."""

    def on_bug(self) -> None:
        """An exception came out of `go_on`."""


@dataclass(slots=True)
class Counters:
    """The counters of the wire.

    Attributes:
        tls_handshakes: clients' TLS handshakes that have succeeded.
        tls_faults: clients' TLS connections that have failed, in the handshake or later.
        limits: how often each limit was reached, by its name in `Limits`.
        clients: the bytes of all clients.
        messages_received, messages_sent: the messages of clients' streaming calls, by path.
        pages: the answers to requests for pages, by the page's name and the HTTP status.
    """

    connections_accepted: int = 0
    connections_open: int = 0
    connection_faults: int = 0
    stream_faults: int = 0
    tls_handshakes: int = 0
    tls_faults: int = 0
    limits: Counter[str] = field(default_factory=Counter)
    clients: Traffic = field(default_factory=Traffic)
    messages_received: Counter[bytes] = field(default_factory=Counter)
    messages_sent: Counter[bytes] = field(default_factory=Counter)
    pages: Counter[tuple[str, int]] = field(default_factory=Counter)


@dataclass(slots=True)
class WireContext:
    """Shared by every connection of a process.

    Attributes:
        unflushed: connections with output, in the order in which they got it. Code that lets a connection take bytes
            flushes them all afterwards, so that many requests leave in one write.
        put_off_ones: connections with more to send than one turn allows.
        turns: decides which connection works when.
        calls: the memory that open calls take.
        gatherers: objects that turn gathered requests into output. They are flushed first, so that it leaves in the
            same write.
        tracer: learns of traced calls; None if no call is traced. Connections look when they begin.
        observer: learns of clients' calls that have ended; None if nobody wants to know.
        buffers: the memory for bytes that wait for slow peers, or for the rest of a message.
        shared: the places that addresses share, by the name of their limit.
    """

    limits: Limits
    unflushed: list[Flushable] = field(default_factory=list)
    gatherers: list[Flushable] = field(default_factory=list)
    put_off_ones: list[Resumable] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    turns: Turns = field(default_factory=Turns)
    observer: Observer | None = None
    tracer: Tracer | None = None
    buffers: BufferBudget = field(init=False)
    calls: BufferBudget = field(init=False)
    shared: dict[str, Shares] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.calls = BufferBudget(self.limits.max_call_bytes)
        self.buffers = BufferBudget(self.limits.max_buffered_bytes)
        self.turns.flush = self.flush
        self.turns.go_on = self.go_on

    def places(self, limit: str) -> Shares:
        """The places that addresses share, as many as the limit of this name."""
        if limit not in self.shared:
            self.shared[limit] = Shares(getattr(self.limits, limit), self.limits.common_share)
        return self.shared[limit]

    def install(self, limits: Limits) -> None:
        """Puts other limits in force. Open connections keep the limits `OF_A_CONNECTION` that they began with."""
        self.limits = limits
        self.calls.limit, self.buffers.limit = limits.max_call_bytes, limits.max_buffered_bytes
        for name, places in self.shared.items():
            places.resize(getattr(limits, name), limits.common_share)

    def reached(self, limit: str) -> None:
        """Counts that the limit of this name in `Limits` was reached."""
        self.counters.limits[limit] += 1

    def flush_soon(self) -> None:
        """Has all output written at the end of this turn of the loop: output of several callbacks leaves together."""
        if self.turns.soon is None:
            self.flush()  # without a loop there is no later
        else:
            self.turns.run_soon()

    def put_off(self, one: Resumable) -> None:
        """Lets `one` go on in the next turn; where no loop runs, with the next flush."""
        self.put_off_ones.append(one)
        if self.turns.soon is not None:
            self.turns.run_soon()

    def go_on(self) -> None:
        """Begins a new turn: the objects that were put off go on, as many as a slice allows, and the others next."""
        if not self.put_off_ones:
            return
        waiting, self.put_off_ones = self.put_off_ones, []
        turns = self.turns
        stop = turns.clock() + SLICE
        for number, one in enumerate(waiting, 1):
            try:
                one.go_on()
            except Exception:
                one.on_bug()
            if number < len(waiting) and turns.clock() >= stop:
                self.put_off_ones[:0] = waiting[number:]
                if turns.soon is not None:
                    turns.run_soon()
                return

    def flush(self) -> None:
        """Writes the waiting output of all connections. Called when no connection is in the middle of a step."""
        buffers, gatherers, unflushed = self.buffers, self.gatherers, self.unflushed
        if buffers.held > buffers.limit:
            buffers.settle()
        while True:
            while gatherers:
                _flush(gatherers.pop())
            while unflushed:
                one = unflushed.pop()
                try:  # `_flush`, spelled out, because this runs once per write
                    one.flush()
                except Exception:
                    one.on_bug()
            if gatherers:
                continue
            if not self.put_off_ones or self.turns.soon is not None:
                return
            self.go_on()


def _flush(one: Flushable) -> None:
    try:
        one.flush()
    except Exception:
        one.on_bug()
