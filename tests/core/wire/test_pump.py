"""The pump: which streams send, in which order, how much in a turn; and which stand still."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from esp.core.wire.frames import MAX_FRAME_SIZE
from esp.core.wire.pump import PUMP_BYTES, Pending, Pump
from esp.core.wire.stalled import LEAST_PROGRESS, StalledStreams


@dataclass
class Outlet:
    send_window: int = 1 << 30
    writable: bool = True


@dataclass
class Stream:
    """A stream with so many bytes waiting, which writes into `log`."""

    id: int
    waits: int
    outlet: Outlet
    log: list[int]
    window: int = 1 << 30
    pending: Pending | None = field(default_factory=Pending)

    def send_pending(self, limit: int) -> int:
        size = min(limit, self.waits, self.window)
        if size:
            self.log.append(self.id)
        self.waits -= size
        self.window -= size
        self.outlet.send_window -= size
        if not self.waits:
            self.pending = None
        return size


def pumped(outlet: Outlet, *waits: int) -> tuple[Pump[Stream], list[int]]:
    pump: Pump[Stream] = Pump()
    log: list[int] = []
    for number, size in enumerate(waits, 1):
        pump.blocked[number] = Stream(number, size, outlet, log)
    return pump, log


def test_streams_send_a_frame_each_in_turn() -> None:
    outlet = Outlet()
    pump, log = pumped(outlet, 3 * MAX_FRAME_SIZE, MAX_FRAME_SIZE + 1, 5)
    assert not pump.run(outlet)
    assert log == [1, 2, 3, 1, 2, 1]
    assert pump.blocked == {}
    assert pump.sent == 4 * MAX_FRAME_SIZE + 6


def test_the_window_of_the_connection_is_never_exceeded_and_the_next_in_line_keeps_its_place() -> None:
    outlet = Outlet(send_window=MAX_FRAME_SIZE + 10)
    pump, log = pumped(outlet, 2 * MAX_FRAME_SIZE, 2 * MAX_FRAME_SIZE, 1)
    assert not pump.run(outlet), "the peer will say when it goes on"
    assert outlet.send_window == 0
    assert log == [1, 2]
    assert list(pump.blocked) == [3, 1, 2]


def test_nothing_leaves_while_the_transport_is_full() -> None:
    outlet = Outlet(writable=False)
    pump, log = pumped(outlet, 1)
    assert not pump.run(outlet)
    assert log == []


def test_a_stream_without_a_window_of_its_own_leaves_the_line() -> None:
    outlet = Outlet()
    pump, log = pumped(outlet, 10, 10)
    pump.blocked[1].window = 0
    assert not pump.run(outlet)
    assert log == [2]
    assert pump.blocked == {}


def test_the_budget_of_a_turn_is_reached_and_granted_anew() -> None:
    outlet = Outlet()
    pump, log = pumped(outlet, PUMP_BYTES, PUMP_BYTES)
    assert pump.run(outlet), "only the budget is in the way"
    assert pump.sent == PUMP_BYTES
    assert pump.run(outlet)
    assert pump.sent == PUMP_BYTES, "nothing more in this turn"
    pump.new_turn()
    assert not pump.run(outlet)
    assert pump.sent == 2 * PUMP_BYTES
    assert len(log) == 2 * PUMP_BYTES // MAX_FRAME_SIZE


def test_a_producer_that_queues_more_while_it_is_told_waits_for_the_turn_that_runs() -> None:
    outlet = Outlet()
    pump, log = pumped(outlet, 1)

    class Producer(Stream):
        def send_pending(self, limit: int) -> int:
            sent = super().send_pending(limit)
            pump.blocked[9] = Stream(9, 1, outlet, log)
            assert not pump.run(outlet), "already running"
            assert log == [5]
            return sent

    pump.blocked = {5: Producer(5, 1, outlet, log)}
    assert not pump.run(outlet)
    assert log == [5, 9]


def test_a_failing_stream_does_not_stop_the_pump_for_good() -> None:
    outlet = Outlet()
    pump, log = pumped(outlet, 1, 1)

    class Broken(Stream):
        def send_pending(self, limit: int) -> int:
            raise RuntimeError

    pump.blocked[1] = Broken(1, 1, outlet, log)
    with pytest.raises(RuntimeError):
        pump.run(outlet)
    assert not pump.run(outlet)
    assert log == [2]


class TestStalled:
    """Streams whose DATA makes no progress."""

    def test_next_to_nothing_is_no_progress(self) -> None:
        stalled, pump = StalledStreams(), Pump[Stream]()
        stream = Stream(1, 10, Outlet(), [])
        assert stream.pending is not None
        assert look(stalled, stream, pump, 100.0) == 100.0
        stream.pending.sent = LEAST_PROGRESS - 1
        assert look(stalled, stream, pump, 160.5) == 100.0
        stream.pending.sent = LEAST_PROGRESS
        assert look(stalled, stream, pump, 161.0) == 161.0

    def test_a_stream_in_line_stands_still_only_when_the_whole_connection_does(self) -> None:
        stalled, pump = StalledStreams(), Pump[Stream]()
        stream = pump.blocked[1] = Stream(1, 10, Outlet(), [])
        assert look(stalled, stream, pump, 100.0) == 100.0
        pump.sent += LEAST_PROGRESS
        assert look(stalled, stream, pump, 161.0) == 161.0
        assert look(stalled, stream, pump, 222.0) == 161.0

    def test_new_data_and_streams_that_are_left_out_begin_anew(self) -> None:
        stalled, pump = StalledStreams(), Pump[Stream]()
        stream = Stream(1, 10, Outlet(), [])
        assert look(stalled, stream, pump, 100.0) == 100.0
        stream.pending = Pending()
        assert look(stalled, stream, pump, 161.0) == 161.0
        stalled.begin()
        assert look(stalled, stream, pump, 300.0) == 300.0


def look(stalled: StalledStreams, stream: Stream, pump: Pump[Stream], now: float) -> float:
    """A round with one stream."""
    stalled.begin()
    return stalled.since(stream, pump, now)
