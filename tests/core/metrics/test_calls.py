"""The counts of calls: by method, shard and code, and their seconds in buckets."""

from __future__ import annotations

import random
from bisect import bisect_left

from esp.core.metrics.calls import AT_ONCE, BOUNDS, Calls, Tally
from esp.core.wire.context import WireContext
from esp.core.wire.ended import UNKNOWN, EndedCall
from esp.core.wire.limits import Limits
from esp.core.wire.turns import Turns

PUT, WATCH = b"/kv/Put", b"/watch/Watch"


def calls(now: list[float] | None = None) -> Calls:
    clock = now or [0.0]
    return Calls(WireContext(Limits(), turns=Turns(lambda: clock[0])), {PUT, WATCH})


def ended(path: bytes = PUT, code: int = 0, *, sent: float = 1.0, server: str = "a") -> EndedCall:
    return EndedCall(path, "client:1", code, 1.0, 3.0, server, sent)


def test_seconds_fall_into_the_buckets_of_prometheus_whose_bounds_are_inclusive() -> None:
    rng = random.Random(1)
    took = [*BOUNDS, 0.0, 11.0, *(rng.expovariate(20) for _ in range(1000))]
    one, many = Tally(), Tally()
    for seconds in took:
        one.add(seconds, 0)
    many.add_all(list(took))
    expected = [0] * (len(BOUNDS) + 1)
    for seconds in took:
        expected[bisect_left(BOUNDS, seconds)] += 1
    assert one.buckets == many.buckets == expected
    assert one.codes == many.codes == {0: len(took)}
    assert abs(one.seconds - sum(took)) < 1e-6 > abs(many.seconds - sum(took))


def test_calls_in_lists_are_counted_at_the_tick_and_leave_the_lists() -> None:
    counted = calls()
    passed, joined = counted.passed_to("a"), counted.joined_to("a")
    for _ in range(3 * AT_ONCE):
        passed.took[PUT](0.001)
    joined.took[PUT](0.2)
    counted.tick()
    assert counted.passed["a"][PUT].codes == {0: 3 * AT_ONCE}
    assert counted.served[PUT].codes == {0: 1}
    assert passed.took.lists == joined.took.lists == {PUT: []}


def test_many_calls_are_counted_in_several_turns() -> None:
    now = [0.0]
    context = WireContext(Limits(), turns=Turns(lambda: now.__setitem__(0, now[0] + 1.0) or now[0]))
    counted = Calls(context, {PUT})
    for _ in range(3 * AT_ONCE):
        counted.passed_to("a").took[PUT](0.001)
    counted.tick()
    for turn in (1, 2, 3):
        assert counted.passed["a"][PUT].codes == {0: turn * AT_ONCE}
        context.go_on()


def test_a_call_sent_as_it_came_is_one_event_and_another_call_has_two_sides() -> None:
    counted = calls()
    counted.passed_to("a")
    counted.ended(ended(code=5))
    counted.ended(ended(sent=2.5))
    counted.ended(ended(server="", sent=0.0))
    assert {path: (t.seconds, t.codes) for path, t in counted.passed["a"].items()} == {PUT: (2.0, {5: 1})}
    assert (counted.served[PUT].seconds, counted.served[PUT].codes) == (4.0, {0: 2})
    assert (counted.sent["a"][PUT].seconds, counted.sent["a"][PUT].codes) == (0.5, {0: 1})


def test_paths_that_a_client_makes_up_are_one() -> None:
    counted = calls()
    counted.passed_to("a")
    for number in range(100):
        counted.ended(ended(b"/made/up%d" % number, 12))
        counted.ended(ended(b"/made/up%d" % number, 12, server=""))
        counted.passed_to("a").took[b"/other/%d" % number](1.0)
    counted.tick()
    assert set(counted.passed["a"]) == set(counted.served) == {UNKNOWN}
    assert counted.passed["a"][UNKNOWN].codes == {12: 100, 0: 100}


def test_no_sum_becomes_smaller_when_a_shard_leaves() -> None:
    counted = calls()
    counted.passed_to("a").took[PUT](0.1)
    counted.joined_to("a").took[PUT](0.1)
    counted.ended(ended(code=5))
    counted.tick()
    counted.passed_to("a").took[PUT](0.1)
    counted.forget("a")
    assert (counted.passed, counted.sent) == ({}, {})
    assert counted.served[PUT].codes == {0: 3, 5: 1}
    counted.ended(ended())
    assert (counted.passed, counted.sent, counted.served[PUT].codes) == ({}, {}, {0: 4, 5: 1})


def test_listeners_hear_of_slow_calls_and_of_unusual_ones() -> None:
    heard: list[EndedCall] = []
    counted = calls()
    counted.listen(heard.append, 0.5)
    counted.listen(lambda call: None, 3.0)
    assert counted.passed_to("a").slow == counted.joined_to("b").slow == 0.5
    one = ended()
    counted.ended(one)
    assert heard == [one]
