"""One direction of a bad line, with packets of a made-up clock."""

from __future__ import annotations

import math
import random

from bench.chaos.line import QUEUE_BYTES, WAITING_BYTES, Line, Shape

PACKET = bytes(1_000)


def line(shape: Shape) -> Line:
    return Line(shape, random.Random(7))


def arrivals(of: Line) -> list[float]:
    """When the packets on their way arrive."""
    found = []
    while of.due < math.inf:
        due = of.due
        found += [due] * len(list(of.take(due)))
    return found


def test_a_line_without_a_shape_changes_nothing() -> None:
    good = line(Shape())
    for number in range(100):
        good.put(b"%d" % number, 5.0)
    assert good.due == 5.0
    assert list(good.take(5.0)) == [b"%d" % number for number in range(100)]
    assert good.due == math.inf
    assert good.counts == {"passed": 100}


def test_packets_take_the_delay_and_at_most_the_jitter_and_stay_in_order() -> None:
    slow = line(Shape(delay=0.2, jitter=0.1))
    sent = [float(number) for number in range(200)]
    for number, now in enumerate(sent):
        slow.put(b"%d" % number, now)
    assert not list(slow.take(0.19))
    found = []
    while slow.due < math.inf:
        due = slow.due
        found += [(packet, due) for packet in slow.take(due)]
    assert [packet for packet, _ in found] == [b"%d" % number for number in range(200)]
    took = [due - now for (_, due), now in zip(found, sent, strict=True)]
    assert 0.2 <= min(took) < 0.21
    assert 0.29 < max(took) <= 0.3001


def test_a_rate_is_kept_and_what_the_queue_does_not_take_is_lost() -> None:
    narrow, packet = line(Shape(kilobits=8)), bytes(999)
    for _ in range(1_000):
        narrow.put(packet, 0.0)
    took = QUEUE_BYTES // len(packet)
    assert narrow.counts == {"dropped": 1_000 - took}
    assert [round(due, 6) for due in arrivals(narrow)] == [round(0.999 * (number + 1), 6) for number in range(took)]
    narrow.put(packet, 1_000.0)  # it was idle: no credit, no debt
    assert round(narrow.due, 6) == 1_000.999


def test_the_bytes_on_their_way_are_bounded() -> None:
    endless = line(Shape(delay=60))
    for _ in range(2 * WAITING_BYTES // len(PACKET)):
        endless.put(PACKET, 0.0)
    assert endless.counts["dropped"] == WAITING_BYTES // len(PACKET)
    assert len(list(endless.take(60))) == WAITING_BYTES // len(PACKET)
    endless.put(PACKET, 61.0)
    assert endless.due == 121.0


def test_the_share_that_is_lost_comes_alone_or_in_bursts() -> None:
    for burst in (1.0, 5.0):
        lossy = line(Shape(loss=0.2, burst=burst))
        passed = []
        for _ in range(50_000):
            lossy.put(PACKET, 0.0)
            passed.append(len(list(lossy.take(0.0))))
        lost = lossy.counts["lost"]
        begun = sum(before and not now for before, now in zip([1, *passed], passed, strict=False))
        assert 0.18 < lost / 50_000 < 0.22
        assert 0.9 * burst < lost / begun < 1.35 * burst
        assert lost + lossy.counts["passed"] == 50_000


def test_a_shape_goes_through_a_command_line() -> None:
    shape = Shape(0.1, 0.02, 400, 0.25, 3.5)
    assert Shape.of(shape.text()) == shape
