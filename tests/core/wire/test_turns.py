"""The sharing of the loop's time: the tests count the work for a connection in a turn, and never measure time.

The clock goes by one second with each step of work, so a slice of `n` seconds is `n` steps.
"""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esp.core.wire import context as context_module
from esp.core.wire import running_time, turns
from esp.core.wire.context import WireContext
from esp.core.wire.exchange import AnswerPage, Page, ServePages
from esp.core.wire.frames import MAX_FRAME_SIZE, SETTINGS_ACK, SETTINGS_INITIAL_WINDOW_SIZE, ErrorCode
from esp.core.wire.http1 import Http1Connection
from esp.core.wire.limits import Limits
from esp.core.wire.message import INFLATED_AT_ONCE
from esp.core.wire.multiplexed import LOOKED_AT_AT_ONCE, TOLD_AT_ONCE
from esp.core.wire.pump import PUMP_BYTES
from esp.core.wire.running_time import UNSEEN, RunningTime
from esp.core.wire.server import CHEAP_BYTES
from esp.core.wire.server_stream import Handler, ServerStream, Sink
from esp.core.wire.status import DEADLINE_EXCEEDED
from esp.core.wire.turns import Turns, Worker
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import (
    ECHO,
    HOLD,
    STREAM,
    Server,
    call,
    data,
    echoed,
    headers,
    meet,
    message,
    page,
    ping,
    rst,
    split,
    window,
)


class Steps:
    """A clock that is moved on by work, and the turns that look at it. A slice is ten steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turns, "SLICE", 10.0)
        monkeypatch.setattr(turns, "FIRST_SLICE", 4.0)
        monkeypatch.setattr(turns, "LAST_SLICE", 2.0)
        monkeypatch.setattr(turns, "LONGEST_HELD", 300.0)
        monkeypatch.setattr(turns, "AT_ONCE", 20.0)
        monkeypatch.setattr(turns, "ANSWERS_LEAST", 5.0)
        monkeypatch.setattr(turns, "LONGEST_STEP", 1000.0)
        monkeypatch.setattr(turns, "SAVED", 0.0)
        self.now = 0.0
        self.log: list[str] = []
        self.turns = Turns(lambda: self.now)
        self.turns.soon = self._called.append
        self.turns.flush = lambda: self.log.append("flush")

    _called: list[Callable[[], None]]

    def __new__(cls, monkeypatch: pytest.MonkeyPatch) -> Steps:
        self = super().__new__(cls)
        self._called = []
        return self

    def turn(self) -> list[str]:
        """One turn of the loop; what was done in it."""
        before = len(self.log)
        called, self._called[:] = list(self._called), []
        assert len(called) <= 1, "called twice in a turn"
        for one in called:
            one()
        return [line for line in self.log[before:] if line != "flush"]

    def until_done(self, most: int = 10_000) -> list[str]:
        before = len(self.log)
        for _ in range(most):
            if not self._called:
                return [line for line in self.log[before:] if line != "flush"]
            self.turn()
        raise AssertionError("never done")


class Load(Worker):
    """Has steps to do, each of which takes `cost`."""

    def __init__(self, steps: Steps, name: str, cost: float = 1.0) -> None:
        self.steps = steps
        self.name = name
        self.cost = cost
        self.left = 0
        self.is_new = False

    def gets(self, count: int) -> None:
        """So many steps more to do."""
        self.left += count
        self.steps.turns.serve(self, 0)

    def work(self, stop: float) -> bool:
        first = True
        while self.left and (first or self.steps.now < stop):
            first = False
            self.left -= 1
            self.steps.now += self.cost
            self.steps.log.append(self.name)
        return self.left > 0

    def gets_little(self, count: int = 1) -> bool:
        """So many steps more, which a few bytes have brought; False if they have to be served otherwise."""
        self.left += count
        return self.steps.turns.serve_little(self, lambda _, stop: self.work(stop), b"")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


# The time that is shared out.


class Machine:
    """The two clocks of a machine: the thread's own stands still while something else runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ran, self.looks = 1000.0, 3.0, 0
        monkeypatch.setattr(running_time, "monotonic", lambda: self.now)
        monkeypatch.setattr(running_time, "thread_time", self._thread_time)
        self.time = RunningTime()
        self.clock = self.time.now

    def _thread_time(self) -> float:
        self.looks += 1
        return self.ran

    def run(self, seconds: float) -> None:
        self.now += seconds
        self.ran += seconds

    def stand(self, seconds: float) -> None:
        self.now += seconds


def test_what_the_thread_has_not_run_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    began = machine.clock()
    for _ in range(100):
        machine.run(0.0003)
        machine.stand(0.004)
        machine.clock()
    assert machine.clock() - began == pytest.approx(0.03, abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 0.01))))
@example([(False, 0.00028847650100407803), (False, 0.0078125), (False, 0.00028847650100407803)])
def test_time_never_goes_back_and_at_most_a_little_of_it_was_not_run(steps: list[tuple[bool, float]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = Machine(monkeypatch)
        began = before = machine.clock()
        ran = machine.ran
        for runs, seconds in steps:
            machine.run(seconds) if runs else machine.stand(seconds)
            now = machine.clock()
            assert now >= before
            before = now
            assert -1e-6 <= now - began - (machine.ran - ran) <= UNSEEN + 1e-6


def test_what_is_to_be_left_out_is_no_running_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    before = machine.clock()
    machine.run(0.03)
    machine.time.leave_out(0.02)
    assert machine.clock() - before == pytest.approx(0.01)
    machine.run(UNSEEN / 2)
    machine.time.leave_out(UNSEEN / 2)  # at once, though the thread's own clock was just looked at
    assert machine.clock() - before == pytest.approx(0.01)
    machine.time.leave_out(0.02)  # more than since the last look: the time does not go back
    assert machine.clock() - before == pytest.approx(0.01)
    machine.run(0.03)
    assert machine.clock() - before == pytest.approx(0.02)


def test_the_threads_own_clock_is_seldom_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    for _ in range(1000):
        machine.run(UNSEEN / 10)
        machine.clock()
    assert machine.looks <= 101


def test_who_was_served_when_the_machine_stood_still_does_not_wait_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)

    class Work(Worker):
        done = left = 0

        def work(self, stop: float) -> bool:
            while self.left:
                self.left -= 1
                self.done += 1
                machine.run(0.0001)
                machine.stand(0.003)
                if machine.clock() >= stop:
                    break
            return self.left > 0

    shared = Turns(machine.clock)
    shared.soon = lambda _: None
    one = Work()
    one.is_new = False
    shared.welcome(one)
    one.left = 8
    shared.serve(one, 0)
    assert one.done == 8
    assert not one.in_line
    assert one.used == pytest.approx(0.0008, abs=1e-6)


# Who works when.


def test_nobody_else_there_a_slice_is_done_at_once_and_one_with_each_turn(steps: Steps) -> None:
    one = Load(steps, "a")
    one.gets(35)
    assert steps.log == ["a"] * 10
    assert [len(steps.turn()) for _ in range(3)] == [10, 10, 5]
    assert steps.turn() == []
    assert steps.turns.waiting == 0


def test_a_few_bytes_are_served_in_fewer_steps_and_paid_for_alike(steps: Steps) -> None:
    one, other = Load(steps, "a"), Load(steps, "b")
    assert one.gets_little()
    other.gets(1)
    assert steps.log == ["a", "b"]
    assert (one.used, other.used) == (1.0, 2.0), "who has had nothing so far begins where the others are"
    assert steps.turns.waiting == 0


def test_much_that_a_few_bytes_lead_to_is_served_like_anything_else(steps: Steps) -> None:
    one, other = Load(steps, "a"), Load(steps, "b")
    assert one.gets_little(100)
    assert steps.log == ["a"] * 11, "one step, and a slice"
    assert one.in_line
    other.gets(1)
    assert steps.log[11:] == ["b"]
    assert len(steps.turn()) == 10


def test_a_few_bytes_do_not_pass_those_in_line(steps: Steps) -> None:
    one, other = Load(steps, "a"), Load(steps, "b")
    one.gets(100)
    assert not other.gets_little()
    assert "b" not in steps.log
    assert not one.gets_little()


def test_a_few_bytes_of_many_stand_in_line_when_the_turn_is_over(steps: Steps) -> None:
    loads = [Load(steps, str(number)) for number in range(30)]
    steps.turns.run_soon()  # as the first of several clients has it
    served = [load.gets_little() for load in loads]
    assert served == [True] * 20 + [False] * 10, "no more than is done as bytes come"


def test_who_was_alone_for_long_owes_nothing(steps: Steps) -> None:
    one, other = Load(steps, "a"), Load(steps, "b")
    for _ in range(1000):
        assert one.gets_little()
    other.gets(100)
    before = len(steps.log)
    one.gets(1)
    assert steps.log[before:] == ["a"]


def test_what_few_bytes_of_a_shard_take_counts_as_answers(steps: Steps) -> None:
    load, shard = Load(steps, "a"), Load(steps, "shard")
    load.gets(100)
    shard.left = 12

    def receive(_: bytes) -> None:
        shard.work(inf)

    steps.turns.serve_little_answers(receive, b"")
    assert steps.log.count("shard") == 12
    assert steps.turn() == [], "the line waits for as much"
    assert steps.turn() == ["a"] * 10


def test_the_line_gets_a_slice_in_all_however_many_stand_in_it(steps: Steps) -> None:
    loads = [Load(steps, str(number)) for number in range(30)]
    for load in loads:
        load.gets(100)
    assert len(steps.log) <= 30, "what is done as bytes come is bounded as well"
    sizes = []
    while steps.turns.waiting:
        sizes.append(len(steps.turn()))
    assert max(sizes) <= 20, "one for those put off, and one for the line, which may not be left out for ever"
    assert len([size for size in sizes if size > 10]) <= 6
    assert len(steps.log) == len([line for line in steps.log if line == "flush"]) + 3000


def test_those_in_line_take_turns(steps: Steps) -> None:
    loads = [Load(steps, name) for name in "abc"]
    for load in loads:
        load.gets(60)
    for _ in range(9):
        steps.turn()
    counts = {name: steps.log.count(name) for name in "abc"}
    assert max(counts.values()) - min(counts.values()) <= 10


def test_a_costly_step_is_paid_for_by_waiting(steps: Steps) -> None:
    costly, cheap = Load(steps, "X", cost=100.0), Load(steps, ".")
    costly.gets(50)
    cheap.gets(1000)
    said = "".join(steps.until_done())
    assert "X" + "." * 90 in said, "a hundred steps of the others come between two of the costly ones"
    assert "XX" not in said[: said.rindex(".")]


def test_thirty_with_costly_steps_do_one_in_a_turn(steps: Steps) -> None:
    for number in range(30):
        Load(steps, str(number), cost=100.0).gets(5)
    while steps.turns.waiting:
        assert len(steps.turn()) <= (1 if not steps.turns._first else 2)


def test_who_wants_little_is_served_when_its_bytes_come(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SAVED", 20.0)
    heavy = [Load(steps, "x") for _ in range(30)]
    for load in heavy:
        load.gets(500)
    for _ in range(100):
        steps.turn()
    light = Load(steps, "light")
    for _ in range(40):
        steps.turn()
        light.gets(1)
        assert light.left == 0, "it stood in line"
        for _ in range(3):
            steps.turn()


def test_who_wants_more_than_its_share_waits_like_the_others(steps: Steps) -> None:
    heavy = Load(steps, "x")
    heavy.gets(2000)
    eager = Load(steps, "e")
    for _ in range(100):
        eager.gets(20)
        steps.turn()
    assert steps.log.count("e") <= steps.log.count("x") + 20
    assert steps.log.count("x") <= steps.log.count("e") + 20


def test_who_was_silent_is_owed_nothing(steps: Steps) -> None:
    silent, busy = Load(steps, "s"), Load(steps, "b")
    busy.gets(300)
    for _ in range(20):
        steps.turn()
    silent.gets(300)
    before = len(steps.log)
    for _ in range(10):
        steps.turn()
    assert steps.log[before:].count("b") >= 40


def test_work_outside_of_a_turn_is_paid_for(steps: Steps) -> None:
    charged, other = Load(steps, "c"), Load(steps, "o")
    charged.gets(200)
    other.gets(200)
    steps.turns.charge(charged, 100.0)
    before = len(steps.log)
    for _ in range(10):
        steps.turn()
    assert steps.log[before:].count("c") <= 10
    steps.until_done()
    assert steps.log.count("c") == steps.log.count("o") == 200


def test_what_was_charged_costs_nothing_when_nobody_waits(steps: Steps) -> None:
    one = Load(steps, "a")
    steps.turns.charge(one, 900.0)
    one.gets(1)
    assert steps.log == ["a"]


def test_a_machine_that_stood_still_is_not_put_down_to_a_client(steps: Steps) -> None:
    unlucky, other = Load(steps, "u", cost=1e6), Load(steps, "o")
    other.gets(5000)
    unlucky.gets(1)
    while "u" not in steps.log:
        steps.turn()
    unlucky.cost = 1.0
    unlucky.gets(1)
    before = steps.log.count("o")
    while steps.log.count("u") < 2:
        steps.turn()
    assert steps.log.count("o") - before <= turns.LONGEST_STEP + 10


def test_an_accident_does_not_put_one_that_wants_little_in_line(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONGEST_STEP", 20.0)
    monkeypatch.setattr(turns, "SAVED", 20.0)
    for number in range(30):
        Load(steps, str(number)).gets(2000)
    light = Load(steps, "light")
    for _ in range(1000):
        steps.turn()
    light.cost = 500.0
    light.gets(1)
    light.cost = 1.0
    steps.turn()
    for _ in range(20):
        light.gets(1)
        assert light.left == 0, "it stood in line"
        for _ in range(100):
            steps.turn()


def test_little_is_saved_up(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SAVED", 20.0)
    silent, busy = Load(steps, "s"), Load(steps, "b")
    steps.turns.welcome(silent)
    busy.gets(3000)
    for _ in range(100):
        steps.turn()
    silent.gets(1000)
    before = len(steps.log)
    for _ in range(20):
        steps.turn()
    assert steps.log[before:].count("b") >= 200 - 20 - 100


def test_who_is_new_has_saved_up_nothing(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SAVED", 20.0)
    busy, new = Load(steps, "b"), Load(steps, "n")
    busy.gets(3000)
    for _ in range(100):
        steps.turn()
    steps.turns.welcome(new)
    new.gets(100)
    before = len(steps.log)
    for _ in range(10):
        steps.turn()
    assert 40 <= steps.log[before:].count("b") <= 60


def test_a_crowd_that_is_new_does_not_hold_up_who_wants_little(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SAVED", 20.0)
    busy, honest = Load(steps, "b"), Load(steps, "h")
    busy.gets(1000)
    steps.until_done()
    steps.turns.run_soon()  # as whoever reads a socket
    for _ in range(100):
        new = Load(steps, "n", cost=5)
        steps.turns.welcome(new)
        new.gets(1)
    honest.gets(1)
    assert "h" not in steps.log, "the turn is over"
    assert steps.turn()[0] == "h"


def test_a_crowd_that_has_just_connected_does_not_hold_up_who_was_there_before(steps: Steps) -> None:
    honest = Load(steps, "h")
    honest.gets(1)
    steps.until_done()
    for _ in range(100):
        steps.turns.run_soon()
        Load(steps, "x").gets(20)
        crowd = [Load(steps, "n") for _ in range(20)]
        for one in crowd:
            one.is_new = True
            steps.turns.welcome(one)
            one.gets(3)
        honest.gets(1)
        steps.log.clear()
        steps.turn()
        assert not honest.left
        steps.until_done()


def test_who_is_new_is_served_though_all_others_want_more_than_a_turn(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SAVED", 1_000_000.0)
    crowd, new = [Load(steps, "b", cost=3) for _ in range(30)], Load(steps, "n")
    new.is_new = True
    steps.turns.run_soon()
    for one in crowd:
        one.used = -1_000_000.0  # each may have its turn at once
        one.gets(3)
    steps.turns.welcome(new)
    new.gets(1)
    assert new.left == 1, "the turn was over"
    steps.log.clear()
    assert "n" in steps.turn()


@pytest.mark.parametrize(("slices", "is_done"), [(5, True), (50, False)])
def test_the_first_work_of_a_new_client_gets_a_few_turns(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, slices: int, is_done: bool
) -> None:
    monkeypatch.setattr(turns, "FIRST_WORK", 20.0)
    monkeypatch.setattr(turns, "SAVED", 1_000_000.0)
    crowd, new = [Load(steps, "b") for _ in range(30)], Load(steps, "n")
    new.is_new = True
    steps.turns.run_soon()
    for one in crowd:
        one.used = -1_000_000.0  # each may have its turn at once
        one.gets(10_000)
    steps.turns.welcome(new)
    new.gets(4 * slices)
    for _ in range(10):
        steps.turn()
    assert (not new.left) is is_done
    assert steps.log.count("n") >= 20


def test_a_small_share_of_all_time_is_served_at_once_though_it_is_more_than_a_fair_one(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SAVED", 200.0)
    crowd, shard, honest = [Load(steps, "b") for _ in range(60)], Load(steps, "s"), Load(steps, "h", cost=1)
    for one in crowd:
        one.gets(100_000)
    late = 0
    due = steps.now
    while steps.now < 20_000:
        shard.left += 15
        steps.turns.serve_answers(shard)
        while due < steps.now:
            due += 40  # 0.025 of the time, where the crowd leaves 0.016 for each
            honest.gets(1)
        steps.turn()
        late += honest.left > 2
    assert not late


def test_the_first_turn_of_a_worker_counts_for_little_however_long_it_took(steps: Steps) -> None:
    new = Load(steps, "n", cost=500)
    new.is_new = True
    steps.turns.welcome(new)
    new.gets(2)
    assert (new.left, new.used) == (1, 4)
    steps.until_done()
    assert new.used == 504


def test_who_is_new_and_wants_little_does_not_wait_for_a_slice_of_each_of_a_new_crowd(steps: Steps) -> None:
    Load(steps, "x").gets(20)
    steps.turns.run_soon()
    crowd = [Load(steps, "n") for _ in range(12)]
    for one in crowd:
        one.gets(100)
    little = Load(steps, "h")
    little.gets(3)
    steps.log.clear()
    while little.left:
        steps.turn()
    done = steps.log.count("n")
    assert done <= 12 * 4 + 4 * 10, "of each what fits a first slice, and of the line what four turns have for it"


def test_who_leaves_or_asks_nothing_yet_does_not_hold_up_who_is_new_and_asks(steps: Steps) -> None:
    """They are held while a crowd comes, but not for long; then they have the slice for them."""
    for _ in range(100):
        last = Load(steps, "l")
        last.left = 1
        steps.turns.serve_last(last)
    done = []
    for comes in [0, *[turns.CROWD] * 20, turns.CROWD - 1, 0]:
        for _ in range(comes):
            steps.turns.welcome(Load(steps, "n"))
        for name in "xy":
            Load(steps, name).gets(10)
        new = Load(steps, "n")
        new.is_new = True
        new.gets(1)
        assert new.left == 1, "the turn was over"
        assert steps.turns.is_crowded
        turn = steps.turn()
        assert "l" not in turn or turn.index("n") < turn.index("l")
        done.append(turn.count("l"))
    held = done.index(4)
    assert 10 <= held - 1 <= 15, "each turn takes 21 and more"
    assert done == [2, *[0] * (held - 1), *[4] * (21 - held), 2, 2]
    assert steps.until_done().count("l") == 100 - sum(done)
    assert not steps.turns.is_crowded


def test_a_crowd_has_gone_when_a_turn_has_passed_in_which_few_came(steps: Steps) -> None:
    for _ in range(turns.CROWD):
        assert not steps.turns.is_crowded
        steps.turns.welcome(Load(steps, "n"))
    for expected in (True, True, False):
        assert steps.turns.is_crowded is expected
        steps.turns.run_soon()
        steps.turn()


def test_who_stands_last_is_served_though_a_crowd_comes_all_the_time(steps: Steps) -> None:
    last = [Load(steps, "l") for _ in range(20)]
    for one in last:
        one.left = 1
        steps.turns.serve_last(one)
    for _ in range(30):
        for _ in range(turns.CROWD):
            new = Load(steps, "n")
            new.is_new = True
            steps.turns.welcome(new)
            new.gets(20)
        steps.turn()
    assert not any(one.left for one in last)


def test_what_is_ready_leaves_before_the_line_is_served(steps: Steps) -> None:
    Load(steps, "x").gets(30)
    steps.log.clear()
    steps.turns.flush()
    steps.log.clear()
    for one in list(steps._called):
        one()
    assert steps.log[0] == "flush"
    assert steps.log[-1] == "flush"


def test_answers_of_shards_come_before_the_line_in_slices(steps: Steps) -> None:
    client, shard = Load(steps, "c"), Load(steps, "s")
    client.gets(100)
    shard.left = 70
    steps.turns.serve_answers(shard)
    assert steps.log[10:] == ["s"] * 20, "as much as may be done at once"
    assert steps.turn() == ["s"] * 5, "the time of this turn was over; the line has to wait"
    assert steps.turn() == ["s"] * 20, "and so much in the next turn, in which the line has to wait"
    steps.until_done()
    assert (client.left, shard.left) == (0, 0)


def test_reads_of_one_shard_in_the_same_turn_have_its_time_together(steps: Steps) -> None:
    """A socket is read up to 32 times in a turn of the loop, whatever comes out of that."""
    shard = Load(steps, "s")
    for _ in range(32):
        shard.left += 15
        steps.turns.serve_answers(shard)
    assert steps.log == ["s"] * 30, "the third read waits, and all behind it"
    assert steps.turn() == ["s"] * 5
    assert steps.turn() == ["s"] * 20
    steps.until_done()
    assert shard.left == 0


def test_answers_come_before_new_requests_but_not_for_ever(steps: Steps) -> None:
    client, shard = Load(steps, "c"), Load(steps, "s")
    client.gets(100)
    shard.left = 1000
    steps.turns.serve_answers(shard)
    said = [set(steps.turn()) for _ in range(20)]
    assert said.count({"s"}) == 16
    assert said.count({"s", "c"}) == 4


def test_what_answers_took_is_put_down_to_those_in_line(steps: Steps) -> None:
    heavy, shard, other = Load(steps, "h"), Load(steps, "s"), Load(steps, "o")
    heavy.gets(100)
    shard.left = 20
    steps.turns.serve_answers(shard)
    while heavy.left == 90:
        steps.turn()
    assert heavy.used >= 40, "twenty steps of its own, and twenty of answers"
    other.gets(25)
    assert other.left < 25, "whose answers these were not is served at once"


def test_what_answers_took_before_anybody_waited_is_put_down_to_nobody(steps: Steps) -> None:
    shard, client, other = Load(steps, "s", cost=5), Load(steps, "c"), Load(steps, "o")
    shard.left = 3
    steps.turns.serve_answers(shard)
    steps.turns.run_soon()
    steps.turn()
    client.gets(30)
    steps.turn()
    other.gets(30)
    assert client.used < 30, "its own steps"
    steps.until_done()


def test_those_put_off_do_not_wait_for_answers(steps: Steps) -> None:
    one, late, shard = Load(steps, "a"), Load(steps, "l"), Load(steps, "s")
    one.gets(300)
    shard.left = 1000
    steps.turns.serve_answers(shard)
    late.gets(1)
    assert late.left == 1, "the turn was over"
    assert "l" in steps.turn()


def test_the_line_waits_for_calls_that_go_on(steps: Steps) -> None:
    one, other = Load(steps, "a"), Load(steps, "b")
    one.gets(100)
    steps.turns.charge(other, 10.0)
    assert steps.turn() == []
    assert steps.turn() == ["a"] * 10


# A connection stops in the middle of what it was sent.


def everything() -> bytes:
    """Frames of every kind that a connection serves in pieces: fast, slow, streaming, pages, cut short."""
    said = b""
    for stream in range(1, 60, 6):
        said += headers(stream, call(ECHO)) + data(stream, message(b"m%d" % stream), end=True)
        said += headers(stream + 2, call(STREAM)) + data(stream + 2, b"abcdefg") + data(stream + 2, b"12345")
        said += ping(b"%08d" % stream) if stream < 10 else b""
        said += headers(stream + 4, page(), end=True) if stream % 4 == 1 else headers(stream + 4, call(HOLD))
        said += rst(stream + 2) if stream % 3 == 1 else data(stream + 2, b"the end", end=True)
        said += window(0, 1000)
    return said


class Ticking:
    """A clock that goes on by one each time it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def slices(server: Server, pieces: list[bytes], length: int) -> int:
    """Has the server work in slices of `length` looks at the clock; the most frames that one of them took."""
    connection = server.connection
    clock = connection.clock = Ticking()
    for piece in pieces:
        connection.stop = clock.now + length
        connection.receive(piece)
        while connection.behind:
            connection.stop = clock.now + length
            connection.receive(b"")
        server.flush()
    return length


EVERYTHING = everything()


@given(
    length=st.integers(1, 12),
    cuts=st.lists(st.integers(0, len(EVERYTHING)), max_size=6),
)
def test_the_same_is_done_whatever_the_slices_and_the_reads(length: int, cuts: list[int]) -> None:
    _, whole = meet()
    whole.hears(EVERYTHING)
    _, sliced = meet()
    edges = [0, *sorted(cuts), len(EVERYTHING)]
    slices(sliced, [EVERYTHING[a:b] for a, b in pairwise(edges)], length)
    assert sliced.saw == whole.saw
    assert list(split(sliced.says())) == list(split(whole.says()))
    assert sliced.connection._tail == b""
    assert not sliced.connection.behind


@pytest.mark.parametrize("quick", [False, True])
def test_a_connection_takes_no_more_than_fits_its_turn(monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    monkeypatch.setattr(Handler, "quick", quick)
    _, server = meet()
    connection = server.connection
    for stream_id in (1, 3):  # from the second on they are known
        connection.receive(headers(stream_id, call(ECHO)) + data(stream_id, message(), end=True))
        connection.receive(SETTINGS_ACK)
    server.saw.clear()
    clock = connection.clock = Ticking()
    connection.wall = lambda: inf  # tells nothing
    calls = [headers(s, call(ECHO)) + data(s, message(), end=True) for s in range(7, 2000, 2)]
    most = 5 * (1 + CHEAP_BYTES // len(calls[0])) if quick else 5
    connection.stop = clock.now + 5
    connection.receive(b"".join(calls))
    assert connection.behind
    assert most / 2 <= len(server.saw) <= most
    connection.stop = clock.now + 5
    connection.receive(b"")
    assert len(server.saw) <= 2 * most


class Inflaters:
    """Counts what zlib is given and makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        inflater = zlib.decompressobj

        class Counted:
            def __init__(counted, wbits: int) -> None:
                counted._inflater = inflater(wbits=wbits)

            def decompress(counted, packed: bytes, most: int) -> bytes:
                plain = counted._inflater.decompress(packed, most)
                self.bytes += len(plain) + len(packed) - len(counted._inflater.unconsumed_tail)
                return plain

            def __getattr__(counted, name: str) -> Any:
                return getattr(counted._inflater, name)

        monkeypatch.setattr(zlib, "decompressobj", Counted)


@pytest.mark.parametrize("content", [bytes(1_400_000), random.Random(7).randbytes(900_000)], ids=["zeros", "noise"])
@pytest.mark.parametrize("members", [1, 3])
def test_a_message_is_inflated_in_steps(monkeypatch: pytest.MonkeyPatch, content: bytes, members: int) -> None:
    counted = Inflaters(monkeypatch)
    third = len(content) // members + 1
    packed = b"".join(gzip.compress(content[at : at + third], 1) for at in range(0, len(content), third))
    _, server = meet(Limits(stream_window_bytes=2**21))
    connection = server.connection
    connection.stop = 0.0
    whole = b"\1" + len(packed).to_bytes(4, "big") + packed
    pieces = [whole[at : at + 16384] for at in range(0, len(whole), 16384)]
    said = [data(1, piece, end=piece is pieces[-1]) for piece in pieces]
    connection.receive(headers(1, call(HOLD, (b"grpc-encoding", b"gzip"))) + b"".join(said))
    turns_taken, most = 0, 0
    while connection.behind:
        before = counted.bytes
        connection.receive(b"")
        most = max(most, counted.bytes - before)
        turns_taken += 1
        # What there is of it is held, and counts for the client.
        assert server.context.buffers.used == 0 or server.context.buffers.used <= len(whole) + len(content)
    assert 2 * INFLATED_AT_ONCE >= most > 0
    assert turns_taken >= (len(content) + len(packed)) // (2 * INFLATED_AT_ONCE)
    assert server.saw == [("message", 1, message(content))]
    assert server.context.buffers.used == 0


def test_what_is_inflated_is_held_and_given_up_without_memory() -> None:
    packed = gzip.compress(bytes(1_000_000))
    _, server = meet(Limits(max_buffered_bytes=200_000))
    connection = server.connection
    connection.stop = 0.0
    said = data(1, b"\1" + len(packed).to_bytes(4, "big") + packed, end=True)
    connection.receive(headers(1, call(HOLD, (b"grpc-encoding", b"gzip"))) + said)
    held = [server.context.buffers.used]
    while connection.behind:
        connection.receive(b"")
        held.append(server.context.buffers.used)
    assert INFLATED_AT_ONCE in held
    assert max(held) <= 225_000
    server.flush()
    assert b"no memory" in server.says()
    assert server.saw == []
    server.holds_nothing()


def test_a_call_that_ends_while_its_message_is_inflated_is_not_served() -> None:
    packed = gzip.compress(bytes(1_000_000))
    _, server = meet()
    connection = server.connection
    connection.stop = 0.0
    said = data(1, b"\1" + len(packed).to_bytes(4, "big") + packed, end=True)
    connection.receive(headers(1, call(HOLD, (b"grpc-encoding", b"gzip"))) + said)
    connection.receive(b"")
    assert connection.behind
    connection.streams[1].expire(DEADLINE_EXCEEDED)
    while connection.behind:
        connection.receive(b"")
    assert server.saw == []
    server.flush()
    server.holds_nothing()


def test_at_least_one_frame_is_taken_in_a_turn_that_has_passed() -> None:
    _, server = meet()
    connection = server.connection
    calls = [headers(s, call(HOLD)) + data(s, message(), end=True) for s in range(1, 20, 2)]
    connection.stop = 0.0
    connection.receive(b"".join(calls))
    turns_taken = 1
    while connection.behind:
        connection.receive(b"")
        turns_taken += 1
    assert turns_taken <= 20
    assert len(server.saw) == 10


def test_an_end_leaves_nothing_to_do() -> None:
    _, server = meet()
    connection = server.connection
    connection.stop = 0.0
    connection.receive(b"".join(ping(b"%08d" % n) for n in range(10)))
    assert connection.behind
    connection.end(ErrorCode.NO_ERROR, "enough")
    assert not connection.behind
    connection.receive(b"")
    server.flush()
    server.holds_nothing()


def test_work_in_steps_comes_before_the_next_frame() -> None:
    client, server = meet()
    connection = server.connection
    did: list[str] = []

    def work() -> Iterator[None]:
        for _ in range(4):
            did.append("piece")
            yield

    class InPieces(Sink):
        def request_data(self, payload: bytes, end: bool) -> None:
            connection.do(work())

    connection.stop = 0.0
    client.sends(headers(1, call(STREAM)))
    server.stream.streams[1].sink = InPieces()
    server.saw.clear()
    said = headers(3, call(ECHO)) + data(3, message(), end=True)
    client.sends(data(1, b"much"), said[:20])
    assert (len(did), server.saw, connection.behind) == (1, [], True)
    client.sends(said[20:])
    assert (len(did), server.saw, connection.behind) == (2, [], True)
    client.sends(b"")
    client.sends(b"")
    assert (len(did), server.saw, connection.behind) == (4, [], True)
    connection.stop = inf
    client.sends(b"")
    assert (len(did), len(server.saw), connection.behind) == (4, 1, False)


def test_what_is_done_while_other_work_is_left_comes_after_it() -> None:
    _, server = meet()
    connection = server.connection
    did: list[str] = []

    def work(name: str) -> Iterator[None]:
        for _ in range(2):
            did.append(name)
            yield

    connection.stop = 0.0
    connection.do(work("a"))
    connection.do(work("b"))
    assert did == ["a"]
    while connection.behind:
        connection.receive(b"")
    assert did == ["a", "a", "b", "b"]


def test_work_that_was_to_be_finished_later_ends_with_the_connection() -> None:
    _, server = meet()
    server.connection.stop = 0.0
    server.connection.do(iter([None, None]))
    assert server.connection.behind
    server.connection.lost("gone")
    assert not server.connection.behind


# HTTP/1.1.


def found(method: str, target: str, answer: AnswerPage) -> None:
    answer(Page(200, target.encode()))


CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20 + b"0\r\n\r\n"
PIPELINED = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(20)) + CHUNKED


@given(length=st.integers(1, 12), cut=st.integers(0, len(PIPELINED)))
def test_http1_answers_alike_whatever_the_slices(length: int, cut: int) -> None:
    whole = Http1Connection(ServePages(found)).receive(PIPELINED)
    clock = Ticking()
    sliced = Http1Connection(ServePages(found), clock)
    said = b""
    for piece in (PIPELINED[:cut], PIPELINED[cut:]):
        sliced.stop = clock.now + length
        said += sliced.receive(piece)
        while sliced.behind:
            sliced.stop = clock.now + length
            said += sliced.receive(b"")
    assert said == whole
    assert sliced.is_idle


@pytest.mark.parametrize("said", [PIPELINED, CHUNKED * 3], ids=["requests", "chunks"])
def test_http1_does_no_more_than_fits_its_turn(said: bytes) -> None:
    clock = Ticking()
    connection = Http1Connection(ServePages(found), clock)
    connection.stop = clock.now + 3
    answers = connection.receive(said)
    assert connection.behind
    assert answers.count(b"HTTP/1.1 200") <= 3


# Output.


def test_what_waits_leaves_a_part_in_each_turn() -> None:
    client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 2**30})
    client.sends(window(0, 2**30), headers(1, call(HOLD)), data(1, message(), end=True))
    client.sends(headers(3, call(HOLD)), data(3, message(), end=True))
    called: list[Callable[[], None]] = []
    server.context.turns.soon = called.append
    server.says()
    for stream in (1, 3):
        server.hold.streams[stream].respond(bytes(1_500_000))
    server.flush()
    sent, together = [len(server.says())], 0
    while called:
        called.pop()()
        assert not server.context.unflushed
        said = server.frames()
        together += {frame.stream for frame in said} == {1, 3}
        sent.append(sum(len(frame.payload) for frame in said))
    assert max(sent) <= PUMP_BYTES + 2 * MAX_FRAME_SIZE
    assert len(sent) >= 3_000_000 // PUMP_BYTES
    assert together >= len(sent) - 3, "frames of both, in turn"
    server.holds_nothing()


def test_a_bug_in_what_goes_on_ends_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = meet(client_settings={SETTINGS_INITIAL_WINDOW_SIZE: 2**30})
    client.sends(window(0, 2**30), headers(1, call(HOLD)), data(1, message(), end=True))
    other_client, other = meet(context=server.context)
    called: list[Callable[[], None]] = []
    server.context.turns.soon = called.append
    server.hold.streams[1].respond(bytes(1_500_000))
    server.flush()

    def bug(limit: int) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(ServerStream, "send_pending", lambda self, limit: bug(limit))
    while called:
        called.pop()()
    assert server.closed
    monkeypatch.undo()
    other_client.sends(headers(1, call(ECHO)), data(1, message(b"hi"), end=True))
    other.answers(*echoed(1, b"hi"))


def test_the_end_of_a_connection_is_told_to_a_few_streams_in_each_turn() -> None:
    client, server = meet()
    client.sends(*(headers(stream, call(STREAM)) for stream in range(1, 1001, 2)))
    called: list[Callable[[], None]] = []
    server.context.turns.soon = called.append
    server.saw.clear()
    server.connection.lost("gone")
    told = [len(server.saw)]
    while called:
        called.pop()()
        told.append(len(server.saw))
    assert max(b - a for a, b in pairwise([0, *told])) == TOLD_AT_ONCE
    assert [event[:2] for event in server.saw] == [("cancelled", stream) for stream in range(1, 1001, 2)]
    server.holds_nothing()


def test_the_deadlines_of_a_few_calls_are_looked_at_in_each_turn(clock: Clock) -> None:
    client, server = meet()
    ids = range(1, 2001, 2)
    client.sends(*(headers(stream, call(HOLD, (b"grpc-timeout", b"1S"))) for stream in ids))
    called: list[Callable[[], None]] = []
    server.context.turns.soon = called.append
    server.tick(clock.passes(0.5))
    while called:
        called.pop()()
    assert len(server.connection.streams) == 1000, "none is late yet"
    server.tick(clock.passes(2))
    left = [1000, len(server.connection.streams)]
    server.tick(clock.passes(0.5))  # while the round is not over
    while called:
        called.pop()()
        left.append(len(server.connection.streams))
    assert max(a - b for a, b in pairwise(left)) == LOOKED_AT_AT_ONCE
    assert left[-1] == 0


def test_streams_that_end_while_deadlines_are_looked_at_are_left_out(clock: Clock) -> None:
    client, server = meet()
    client.sends(*(headers(stream, call(HOLD, (b"grpc-timeout", b"1S"))) for stream in range(1, 2001, 2)))
    called: list[Callable[[], None]] = []
    server.context.turns.soon = called.append
    server.tick(clock.passes(3))
    assert len(server.connection.streams) == 1000 - LOOKED_AT_AT_ONCE
    reached = server.context.counters.limits.copy()
    server.connection.lost("gone")
    while called:
        called.pop()()
    assert server.context.counters.limits == reached
    server.holds_nothing()


def test_connections_that_were_put_off_go_on_as_many_as_a_slice_allows(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "SLICE", 10.0)
    context = WireContext(Limits(), turns=steps.turns)

    class Busy:
        """Takes five steps each time, and wants three times."""

        def __init__(self, name: str) -> None:
            self.name, self.left = name, 3

        def go_on(self) -> None:
            steps.now += 5
            steps.log.append(self.name)
            self.left -= 1
            if self.left:
                context.put_off(self)

        def on_bug(self) -> None:
            raise AssertionError

    for name in "abcde":
        context.put_off(Busy(name))
    assert steps.turn() == ["a", "b"]
    assert steps.turn() == ["c", "d"]
    assert steps.turn() == ["e", "a"], "in turns: those that want more come after those that have waited"
    assert sorted(steps.until_done()) == list("abbccddee")
    assert not context.put_off_ones


def test_the_streams_of_many_connections_that_end_together_are_told_in_turns(steps: Steps) -> None:
    context = WireContext(Limits(), turns=steps.turns)
    servers = []
    for _ in range(5):
        client, server = meet(context=context)
        client.sends(*(headers(stream, call(STREAM)) for stream in range(1, 61, 2)))
        server.saw.clear()
        servers.append(server)
    for server in servers:
        server.connection.lost("gone")
    assert [len(server.saw) for server in servers] == [0] * 5, "nothing at once: thousands may end in one turn"
    steps.until_done()
    assert [len(server.saw) for server in servers] == [30] * 5


def test_the_collector_is_asked_after_so_much_work(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WORKED", 100.0)
    asked: list[float] = []
    steps.turns.after_work = lambda: asked.append(steps.now)
    Load(steps, "c").gets(1000)
    steps.until_done()
    assert len(asked) in (9, 10)
    assert min(b - a for a, b in pairwise(asked)) >= 100
