"""The gate before the shards, with clients in memory: which calls begin when, which wait, and what is counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from esp.core.background import Background
from esp.core.services import gate
from esp.core.services.entry import (
    KINDS,
    LARGE,
    LARGE_ANSWER,
    MEDIUM,
    ORDINARY,
    PLACE_BYTES,
    PLACES,
    WAITING_PART,
    Entry,
)
from esp.core.services.gate import COSTLY_PLACES, STUCK_SECONDS, Gate
from esp.core.services.handlers import CoroutineCall, Keeps
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.multiplexed import TOLD_AT_ONCE
from esp.core.wire.server_stream import OVERLOADED
from esp.core.wire.status import Code, Status
from tests.core.wire.conversation import STREAM, Client, Server, call, headers, meet, rst

A, B, C = SHARDS = "abc"
MIDDLE = 4 * PLACE_BYTES - 1
"""Bytes of an answer that takes four places."""


class Patient(Background):
    """Timers go off when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.now = 0.0

    def later(self, seconds: float, callback: Callable[[], object], on_bug: object = None) -> Any:
        self.due.append((self.now + seconds, callback))

    def passes(self, seconds: float) -> None:
        """So much time passes."""
        self.now += seconds
        over = [one for one in self.due if one[0] <= self.now]
        self.due = [one for one in self.due if one[0] > self.now]
        for _, callback in over:
            callback()


class World:
    """Clients of one esp with three shards; `begun` are the calls that were let in, by name.

    Calls take half a part's places each, or, if they are `reads`, what the gate finds right: `one_key` reads.
    """

    def __init__(self, limits: Limits, *, weight: int = PLACES // 2, reads: bool = False, one_key: bool = True) -> None:
        self.weight = weight
        self.one_key = one_key
        self.reads = reads
        self.context = WireContext(limits)
        self.background = Patient()
        self.sent = 0
        self.gate = Gate(self.context, self.background, lambda: {A: self.sent}, lambda: self.background.now)
        self.begun: dict[str, Entry] = {}
        self.clients: dict[str, tuple[Client, Server]] = {}
        self.streams: dict[str, tuple[str, int]] = {}

    def asks(self, name: str, *shards: str, size: int = 2000, costly: bool = False) -> None:
        """`name` begins with the client's; a client's calls have one stream each."""
        self.opens(name)
        self.comes(name, *shards, size=size, costly=costly)
        self.pauses(name)

    def opens(self, name: str) -> None:
        """The head of the call is there."""
        client = name[0]
        if client not in self.clients:
            self.clients[client] = meet(context=self.context, peer=f"10.0.0.{len(self.clients)}:1")
        sender, _ = self.clients[client]
        number = 1 + 2 * sum(owner == client for owner, _ in self.streams.values())
        self.streams[name] = client, number
        sender.sends(headers(number, call(STREAM)))

    def comes(self, name: str, *shards: int, size: int = 2000, costly: bool = False) -> None:
        """Its message is read, and perhaps not all that has come with it."""
        client, number = self.streams[name]
        stream = self.clients[client][1].stream.streams[number]

        def begin(entry: Entry) -> None:
            if "refused" in name:
                raise Status(Code.UNAVAILABLE, "refused").error()
            if "bug" in name:
                raise AssertionError("a bug")
            self.begun[name] = entry

        self.gate.let_in(stream, shards, size, begin, self.reads, self.weight if not self.reads else 1, costly=costly)
        if isinstance(stream.sink, Entry):
            stream.sink.one_key = self.one_key

    def leaves(self, name: str, *shards: str) -> None:
        """Parts of it are answered."""
        for shard in shards:
            self.begun[name].leave(shard)
        self.context.flush()

    def comes_to(self, name: str, shard: str, size: int) -> None:
        """The answer to a part of it begins to come."""
        self.begun[name].weigh(shard, size)
        self.context.flush()

    def is_answered(self, name: str, shard: str, size: int) -> None:
        """The answer is whole."""
        self.begun[name].weigh(shard, size)
        self.begun[name].close()
        self.context.flush()

    def all_begin(self, size: int) -> list[int]:
        """Shard A answers all that is at work with `size` bytes each, until no call waits. How many calls each time."""
        numbers = []
        while self.gate.waiting:
            names = [name for name, entry in self.begun.items() if entry.held]
            numbers.append(len(names))
            for name in names:
                self.is_answered(name, A, size)
        return numbers

    def passes(self, seconds: float) -> None:
        """So much time passes."""
        self.background.passes(seconds)
        self.context.flush()

    @property
    def at_work(self) -> int:
        """How many calls hold places."""
        return sum(bool(entry.held) for entry in self.begun.values())

    def pauses(self, name: str) -> None:
        """All is read that has come with it."""
        self.clients[name[0]][1].connection.paused()
        self.context.flush()

    def resets(self, *names: str) -> None:
        """One client takes calls back, in one go."""
        client, _ = self.streams[names[0]]
        self.clients[client][0].sends(b"".join(rst(self.streams[name][1]) for name in names))

    def since(self, *names: str) -> set[str]:
        """Those that have begun besides these."""
        return set(self.begun) - set(names)

    @property
    def busy(self) -> list[float]:
        """Calls at work, by shard."""
        return [sum(self.gate.busy[shard, kind] for kind in KINDS) / (PLACES // 2) for shard in SHARDS]

    @property
    def reached(self) -> int:
        return self.context.counters.limits["max_parts_per_shard"]


@pytest.fixture
def world() -> World:
    """One in which two calls are at work at a time at a shard."""
    return World(Limits(max_parts_per_shard=1))


def test_as_many_parts_as_the_limit_are_at_work_on_a_shard_and_the_next_waits(world: World) -> None:
    for name in ("x1", "x2", "x3", "x4"):
        world.asks(name, A, B)
    assert world.since() == {"x1", "x2"}
    assert (world.busy, world.gate.waiting, world.reached) == ([2, 2, 0], 2, 2)
    world.leaves("x1", A)
    assert world.since() == {"x1", "x2"}, "it needs a place at both"
    world.leaves("x1", B)
    assert world.since() == {"x1", "x2", "x3"}
    for name in ("x2", "x3", "x4"):
        world.leaves(name, A, B)
    assert (world.busy, world.gate.waiting, world.gate.at_work) == ([0, 0, 0], 0, {})


def test_the_calls_of_clients_begin_in_turn_however_many_one_has_sent(world: World) -> None:
    for number in range(8):
        world.asks(f"x{number}", A)
    world.asks("y0", A)
    world.asks("z0", A)
    world.leaves("x0", A)
    world.leaves("x1", A)
    assert world.since("x0", "x1") == {"y0", "z0"}
    world.leaves("y0", A)
    assert world.since("x0", "x1") == {"x2", "y0", "z0"}


@pytest.mark.parametrize("keeps", Keeps)
def test_a_call_has_the_places_that_it_keeps_when_its_shards_have_replied(world: World, keeps: Keeps) -> None:
    world.asks("x0", A, B)
    call = CoroutineCall(world.begun["x0"].stream, world.begun["x0"])
    call.keeps = keeps
    call.replied(A)
    assert set(world.begun["x0"].held) == ({A, B} if keeps is Keeps.ALL else {B})
    call.replied(B)
    kept = {Keeps.NOTHING: set(), Keeps.LAST: {B}, Keeps.ALL: {A, B}}[keeps]
    assert set(world.begun["x0"].held) == kept
    world.begun["x0"].close()
    assert world.busy == [0, 0, 0]


def test_calls_that_wait_for_a_stopped_shard_hold_a_place_there_and_nowhere_else(world: World) -> None:
    for number in range(100):
        world.asks(f"x{number}", A, B, C)
    for name in ("x0", "x1"):
        world.leaves(name, A, B)  # C has stopped
    assert world.busy == [0, 0, 2]
    for number in range(100, 110):
        world.asks(f"x{number}", A, B)
        world.leaves(f"x{number}", A, B)
    assert world.gate.waiting == 98


def test_a_call_that_waits_for_one_shard_and_then_for_another_is_not_forgotten(world: World) -> None:
    world.asks("x1", A)
    world.asks("x2", A)
    world.asks("y1", A, C)
    world.asks("z1", C)
    world.asks("z2", C)
    world.leaves("x1", A)
    assert "y1" not in world.begun
    world.leaves("x2", A)
    world.leaves("z1", C)
    assert "y1" in world.begun


def test_one_read_whose_client_has_had_no_answer_is_at_work_and_then_its_others_are() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    for number in range(64):
        world.asks(f"x{number}", A)
    assert world.since() == {"x0"}, "nobody knows how large its answers are"
    world.is_answered("x0", A, PLACE_BYTES)
    assert len(world.since("x0")) == 16, "a quarter of the places, of which each takes one"
    world.asks("y0", A)
    assert "y0" in world.begun, "another client waits for none of them"


def test_a_client_with_large_answers_has_one_read_at_work_at_a_shard_and_holds_up_nobody() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    for number in range(20):
        world.asks(f"x{number}", A)
    for number in range(10):
        world.comes_to(f"x{number}", A, LARGE_ANSWER)
        assert (world.gate.busy[A, LARGE], world.gate.busy[A, ORDINARY]) == (PLACES, 0), "known by now to be large"
        assert world.since(*(f"x{before}" for before in range(number + 1))) == set()
        world.leaves(f"x{number}", A)
    for client in "bcde":
        world.asks(f"{client}0", A)
    assert world.since(*(f"x{number}" for number in range(11))) == {"b0", "c0", "d0", "e0"}, "as without it"


def test_those_whose_answers_are_large_are_at_work_one_at_a_time_and_in_turn() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    for client in "xyz":
        for number in range(3):
            world.asks(f"{client}{number}", A)
    assert world.since() == {"x0", "y0", "z0"}, "of unknown size"
    for client in "xyz":
        world.is_answered(f"{client}0", A, 1 << 30)
    assert world.gate.busy[A, LARGE] == PLACES
    for _ in range(5):
        (name,) = [name for name, entry in world.begun.items() if entry.held]
        world.is_answered(name, A, 1 << 30)
    assert [name[0] for name in world.begun][3:6] in (["x", "y", "z"], ["x", "z", "y"])


def test_with_more_parts_more_large_ones_are_at_work() -> None:
    world = World(Limits(max_parts_per_shard=16), reads=True)
    for client in "tuvwxyz":
        world.asks(f"{client}0", A)
        world.comes_to(f"{client}0", A, 1 << 30)
    for client in "tuvwxyz":
        world.leaves(f"{client}0", A)
    for client in "tuvwxyz":
        world.asks(f"{client}1", A)
    assert world.since(*(f"{client}0" for client in "tuvwxyz")) == {"t1", "u1", "v1", "w1"}


def test_small_answers_open_the_way_again() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    world.asks("x", A, B)
    world.comes_to("x", A, 1 << 30)
    connection = world.clients["x"][1].connection
    assert connection.weight == PLACES
    world.comes_to("x", B, 100)
    world.begun["x"].close()
    assert connection.weight == PLACES, "the largest part of an answer counts"
    seen = []
    for number in range(6):
        world.asks(f"x{number}", A)
        world.is_answered(f"x{number}", A, 100)
        seen.append(connection.weight)
    assert seen == [8, 4, 2, 1, 0, 0]
    world.asks("x6", A)
    world.is_answered("x6", A, 3 * PLACE_BYTES)
    assert connection.weight == 4


def test_where_many_clients_are_new_more_of_them_go_at_a_time_as_long_as_answers_are_small() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    names = [f"{chr(0x100 + number)}0" for number in range(200)]
    for name in names:
        world.asks(name, A)
    begun = world.all_begin(100)
    assert begun[:3] == [4, 30, 64]
    assert max(begun) <= 64
    for name in names:
        world.is_answered(name, A, 100)
    world.asks("z0", A)
    world.comes_to("z0", A, 1 << 30)
    world.leaves("z0", A)
    for name in "tuvwxy":
        world.asks(f"{name}0", A)
    assert sum(bool(entry.held) for entry in world.begun.values()) == 4


def test_the_first_read_of_a_client_does_not_wait_behind_others_whose_answers_are_large() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    crowd = "stuvwxyz"
    for client in crowd:
        world.asks(f"{client}0", A)
        world.is_answered(f"{client}0", A, (PLACES - 2) * PLACE_BYTES)
    for client in crowd:
        for number in range(1, 6):
            world.asks(f"{client}{number}", A)
    assert world.gate.busy[A, MEDIUM] >= PLACES, "all that such reads may have"
    assert world.gate.waiting
    assert world.gate.waiting
    world.asks("h0", A)
    assert "h0" in world.begun


@pytest.mark.parametrize("clients", ["stuvwxyz", "z"])
def test_large_calls_have_all_places_while_nobody_else_uses_the_shard(clients: str) -> None:
    world = World(Limits(max_parts_per_shard=4), weight=PLACES)

    def at_work() -> int:
        return sum(bool(entry.held) for entry in world.begun.values())

    for client in clients:
        for number in range(24 // len(clients)):
            world.asks(f"{client}{number}", A)
    assert at_work() == 1
    for others, most in ((0, 1), (0, 4), (9, 1), (0, 4)):
        world.sent += others
        world.gate.tick(0.0)
        before = len(world.begun)
        for _ in range(4):  # so that those of before have gone
            first = next(name for name, entry in world.begun.items() if entry.held)
            world.is_answered(first, A, 100)
        world.sent += len(world.begun) - before
        assert at_work() == most


@pytest.mark.parametrize(("size", "is_alone"), [(LARGE_ANSWER, True), (100, False)])
def test_first_reads_count_as_large_calls_until_their_answers_come(size: int, is_alone: bool) -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    world.gate.tick(0.0)
    for client in "uvwxyz":
        world.asks(f"{client}0", A)
        world.sent += 1
        world.is_answered(f"{client}0", A, size)
    world.gate.tick(0.0)
    assert (A in world.gate.alone) == is_alone


def test_a_large_request_takes_places_of_large_ones_whatever_the_answers_were() -> None:
    world = World(Limits(max_parts_per_shard=4), weight=PLACES)
    for name in ("x1", "x2", "y1"):
        world.asks(name, A)
    assert (world.since(), world.gate.busy[A, LARGE]) == ({"x1"}, PLACES)
    world.is_answered("x1", A, 100)
    world.leaves("x1", A)
    assert world.clients["x"][1].connection.weight < 0, "the answer to a write says nothing about those of reads"
    assert len(world.begun) == 2


def test_a_shard_that_answers_has_not_stopped() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    for answers in ("answered", "comes_to"):
        name = f"{answers[0]}1"
        world.asks(name, A)
        world.gate.tick(monotonic() + STUCK_SECONDS)
        assert world.gate.stopped == {A}
        world.is_answered(name, A, 100) if answers == "answered" else world.comes_to(name, A, 100)
        assert world.gate.stopped == set()


def test_first_reads_of_ranges_begin_few_at_a_time_until_answers_are_small() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True, one_key=False)
    for number in range(40):
        world.asks(f"{chr(0x100 + number)}0", A)
    assert world.all_begin(100) == [1, 2, 6, 16]


def test_small_answers_to_reads_of_one_key_let_no_more_ranges_begin_at_a_time() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True, one_key=False)
    crowd = [f"{chr(0x100 + number)}0" for number in range(20)]
    for name in crowd:
        world.asks(name, A)
    world.one_key = True
    for number in range(8):
        name = f"{chr(0x200 + number)}0"
        world.asks(name, A)
        world.is_answered(name, A, 100)
    assert world.at_work == 1
    world.is_answered(crowd[0], A, 100)
    assert world.at_work == 2, "as after one small answer"


@pytest.mark.parametrize("size", [MIDDLE, LARGE_ANSWER])
def test_after_a_first_range_that_has_proved_large_no_other_begins_for_as_long_as_it_took(size: int) -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True, one_key=False)
    for client in "xy":
        world.asks(f"{client}0", A)
    world.passes(0.008)
    world.is_answered("x0", A, size)
    part = world.gate.places_for(size) / PLACES
    world.one_key = True
    world.asks("z0", A)
    assert "z0" in world.begun, "first reads of one key do not wait"
    world.passes(0.008 * part - 0.0001)
    assert "y0" not in world.begun
    world.passes(0.0002)
    assert "y0" in world.begun


def test_first_ranges_whose_answers_are_small_come_without_rests() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True, one_key=False)
    for client in "xyz":
        world.asks(f"{client}0", A)
    world.passes(0.008)
    world.is_answered("x0", A, 100)
    assert world.at_work == 2
    assert not world.background.due


def test_so_many_large_answers_of_a_connection_wait_for_it_and_further_calls_wait_for_these() -> None:
    world = World(Limits(max_parts_per_shard=4), weight=PLACES)
    for number in range(7):
        world.asks(f"x{number}", A, B)
    for number in range(WAITING_PART):
        assert world.since() == {f"x{before}" for before in range(number + 1)}
        world.begun[f"x{number}"].weigh(A, LARGE_ANSWER)
        assert world.begun[f"x{number}"].give_way(A)
        world.leaves(f"x{number}", B)
    assert len(world.begun) == WAITING_PART
    world.asks("y0", A)
    assert "y0" in world.begun, "another client's"
    world.leaves("y0", A)
    world.asks("xb", B)
    assert "xb" in world.begun, "another shard's"
    world.begun["xb"].close()
    world.begun["x0"].enter(A)
    assert world.busy[0] == 2, "the client reads"
    world.begun["x0"].close()
    world.context.flush()
    assert world.since() == {"x0", "x1", "x2", "x3", "y0", "xb", "x4"}
    for name in ("x1", "x2", "x3", "x4", "x5", "x6"):
        world.begun[name].close()
        world.context.flush()
    assert world.busy == [0, 0, 0]
    assert not world.gate._held


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("is_alone", [False, True])
def test_as_many_answers_wait_for_a_client_whoever_else_uses_the_shard_and_however_slow_it_is(
    is_alone: bool, is_late: bool
) -> None:
    """Each answer that waits takes memory here and at the shard; a slow shard's answer may come after a second."""
    world = World(Limits(max_parts_per_shard=4), reads=True)
    for number in range(40):
        world.asks(f"x{number}", A)
        world.asks(f"y{number}", A)
    waiting: list[str] = []
    was_alone = False
    while at_work := [name for name in world.begun if name not in waiting]:
        world.sent += len(at_work) if is_alone else 9
        world.gate.tick(monotonic() + (STUCK_SECONDS if is_late else 0.0))
        was_alone = was_alone or A in world.gate.alone
        for name in at_work:
            world.begun[name].comes(1 << 20)
            world.begun[name].wait_for_client()
            waiting.append(name)
        world.context.flush()
    assert was_alone == is_alone
    assert sorted(name[0] for name in waiting) == ["x"] * WAITING_PART + ["y"] * WAITING_PART
    for name in waiting:
        world.begun[name].close()
    world.context.flush()
    assert world.since(*waiting), "others begin when these have left"
    for name in world.since(*waiting):
        world.begun[name].close()
    assert not world.gate._kept


@pytest.mark.parametrize("is_coming", [True, False])
def test_a_call_that_is_held_up_by_its_client_does_not_stop_the_shard(is_coming: bool) -> None:
    world = World(Limits(max_parts_per_shard=4), weight=PLACES)
    for number in range(9):
        world.asks(f"x{number}", A)
    begun = []
    for _ in range(9):
        begun.append(len(world.begun))
        if is_coming:
            world.begun[f"x{begun[-1] - 1}"].weigh(A, LARGE_ANSWER)
        world.sent += 9  # by others: these calls are not alone
        world.gate.tick(monotonic() + STUCK_SECONDS)
        world.context.flush()
    assert world.gate.stopped == (set() if is_coming else {A})
    assert begun == ([1, 2, 3, 4, 4, 4, 4, 4, 4] if is_coming else list(range(1, 10)))
    assert not world.gate.at_work


def test_with_a_limit_of_one_a_part_of_any_size_is_let_in() -> None:
    world = World(Limits(max_parts_per_shard=1), reads=True)
    world.asks("x1", A)
    world.begun["x1"].weigh(A, 1 << 30)
    world.asks("x2", A)
    world.leaves("x1", A)
    assert "x2" in world.begun


def test_what_a_call_asks_further_is_counted_and_does_not_wait(world: World) -> None:
    for name in ("x1", "x2"):
        world.asks(name, A)
    world.begun["x1"].enter(B)
    world.leaves("x1", A)
    world.asks("y1", A)
    world.begun["x1"].enter(A)
    assert world.busy == [3, 1, 0]
    world.begun["x1"].close()
    world.begun["x1"].close()
    assert world.busy == [2, 0, 0]


def test_a_place_that_is_held_for_long_is_given_to_others(world: World) -> None:
    for name in ("x1", "x2", "y1"):
        world.asks(name, A)
    world.gate.tick(monotonic() + STUCK_SECONDS / 2)
    world.context.flush()
    assert "y1" not in world.begun
    world.gate.tick(monotonic() + STUCK_SECONDS)
    world.context.flush()
    assert world.since("x1", "x2") == {"y1"}
    world.leaves("x1", A)
    assert world.busy == [1, 0, 0], "it is given back once"


def test_a_client_that_takes_back_what_waits_leaves_nothing(world: World) -> None:
    for name in ("x1", "x2", "x3", "x4", "y1"):
        world.asks(name, A)
    held = world.context.buffers.used
    world.resets("x3")
    assert world.context.buffers.used == held - 2000
    world.resets("x4")
    world.leaves("x1", A)
    assert world.since("x1", "x2") == {"y1"}
    world.leaves("x2", A)
    world.leaves("y1", A)
    assert (world.busy, world.gate.waiting, world.context.buffers.used) == ([0, 0, 0], 0, 0)


def test_calls_that_are_taken_back_as_they_come_never_begin(world: World) -> None:
    names = [f"x{number}" for number in range(50)]
    for name in names:
        world.opens(name)
    for name in names:
        world.comes(name, A, B, C)
    world.context.flush()
    assert not world.begun, "more of what came may be unread"
    assert world.context.buffers.used == 50 * 2000
    world.resets(*(name for name in names if name != "x7"))
    world.pauses("x7")
    assert world.since() == {"x7"}
    assert (world.busy, world.gate.waiting, world.reached) == ([1, 1, 1], 0, 0)
    world.leaves("x7", A, B, C)
    assert (world.busy, world.gate.at_work, world.context.buffers.used) == ([0, 0, 0], {}, 0)


def test_a_connection_that_ends_leaves_nothing(world: World) -> None:
    for name in ("x1", "x2", "y1", "y2"):
        world.asks(name, A)
    world.clients["y"][1].connection.lost("gone")
    assert (world.gate.waiting, world.context.buffers.used) == (0, 0)
    world.leaves("x1", A)
    assert world.since("x1", "x2") == set()


def test_no_call_of_a_connection_that_has_ended_begins_before_it_learns_of_that(world: World) -> None:
    """Thousands of calls learn of it in many turns, and meanwhile each that ended would let the next one begin."""
    for number in range(5 * TOLD_AT_ONCE):
        world.asks(f"y{number}", A)
    assert world.since() == {"y0", "y1"}
    world.asks("x1", A)
    world.context.turns.soon = lambda _: None  # so that each turn comes when the test says so
    world.clients["y"][1].connection.lost("gone")
    for name in ("y0", "y1"):
        world.begun[name].close()
    while world.gate.waiting:
        told = world.gate.waiting
        world.context.go_on()
        world.context.flush()
        assert world.gate.waiting < told
    assert world.since("y0", "y1") == {"x1"}
    world.begun["x1"].close()
    world.context.flush()
    assert (world.busy, world.gate._lines, world.gate._left, world.gate._queues) == ([0, 0, 0], {}, deque(), {})
    assert world.context.buffers.used == 0


def test_many_connections_that_have_ended_are_passed_over_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Limits(max_parts_per_shard=1), weight=PLACES)
    world.asks("x1", A)
    gone = "abcde"
    for client in gone:
        for number in range(TOLD_AT_ONCE + 1):  # so many that they learn of it later
            world.asks(f"{client}{number}", A)
    world.asks("y1", A)
    world.context.turns.soon = lambda _: None  # so that each turn comes when the test says so
    for client in gone:
        world.clients[client][1].connection.lost("gone")
    monkeypatch.setattr(gate, "SLICE", -1.0)  # so that each line takes as long as all may
    world.begun["x1"].close()
    passed_over = []
    for _ in gone:
        world.gate.flush()
        passed_over.append(len(world.gate._left))
    assert (passed_over, world.since("x1")) == ([1, 2, 3, 4, 5], set())
    world.gate.flush()
    assert world.since("x1") == {"y1"}
    while world.gate.waiting:
        world.context.go_on()
        world.context.flush()
    world.begun["y1"].close()
    world.context.flush()
    assert (world.busy, world.gate._lines, world.gate._left, world.gate._queues) == ([0, 0, 0], {}, deque(), {})


def test_a_request_for_which_there_is_no_memory_is_refused() -> None:
    world = World(Limits(max_parts_per_shard=1, max_buffered_bytes=1500), weight=PLACES - 1)
    world.asks("x1", A)
    world.asks("y1", A, size=2000)
    assert (world.gate.waiting, world.context.buffers.used) == (0, 0)
    world.context.flush()
    assert OVERLOADED.message.split(":")[0].encode() in world.clients["y"][1].says()


@pytest.mark.parametrize("fault", ["refused", "bug"])
def test_a_call_that_fails_as_it_begins_ends_alone(world: World, fault: str) -> None:
    for name in ("x1", "x2", f"y {fault}", "z1"):
        world.asks(name, A)
    world.leaves("x1", A)
    assert world.since("x1", "x2") == {"z1"}
    assert world.clients["y"][1].says(), "it is told"
    world.leaves("z1", A)
    assert world.busy == [1, 0, 0], "x2"
    assert sum(world.background.failures.values()) == (fault == "bug")


@pytest.mark.parametrize("fault", ["refused", "bug"])
def test_a_call_that_fails_as_it_begins_at_once_leaves_no_place_taken(world: World, fault: str) -> None:
    world.asks(f"y {fault}", A, B)
    assert world.clients["y"][1].says(), "it is told"
    assert world.busy == [0, 0, 0]
    assert not world.gate.at_work


def test_many_that_waited_for_one_answer_begin_over_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Limits(), reads=True)
    names = [f"x{number}" for number in range(1 + PLACES)]
    for name in names:
        world.asks(name, A)
    assert world.since() == {"x0"}
    monkeypatch.setattr(gate, "SLICE", -1.0)  # so that each call takes as long as all may
    world.context.turns.soon = lambda _: None  # as where a loop runs
    world.is_answered("x0", A, 100)
    for begun in range(2, 2 + PLACES):
        assert len(world.begun) == begun
        world.context.go_on()
        world.context.flush()
    assert not world.gate.waiting


def test_a_crowd_whose_answers_are_neither_small_nor_large_has_no_more_places_together_than_one_of_them() -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    crowd = [chr(ord("A") + number) for number in range(30)]
    world.asks("h0", A)
    world.is_answered("h0", A, 10)
    for client in crowd:
        world.asks(f"{client}0", A)
        world.is_answered(f"{client}0", A, MIDDLE)
    for number in range(1, 4):
        for client in crowd:
            world.asks(f"{client}{number}", A)
    assert (world.gate.busy[A, MEDIUM], world.at_work, world.gate.waiting) == (PLACES, 4, 86)
    world.asks("h1", A)
    assert "h1" in world.begun, "a client of small answers does not wait for them"
    order: list[str] = []
    while world.gate.waiting:
        before = set(world.begun)
        world.is_answered(next(name for name, entry in world.begun.items() if entry.held and name[0] != "h"), A, MIDDLE)
        order += [name for name in world.begun if name not in before]
    assert {name[0] for name in order[:26]} == set(crowd[4:]), "each client's first comes before anybody's second"


@pytest.mark.parametrize("costly", [True, False])
def test_snapshots_have_places_apart_from_others_even_if_they_are_small(costly: bool) -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    for client in "stuvwxyz":
        world.asks(f"{client}0", A)
        world.is_answered(f"{client}0", A, 10)
        world.clients[client][1].connection.weight = 0
        for number in range(1, 9):
            world.asks(f"{client}{number}", A, costly=costly)
    assert world.at_work == (PLACES // COSTLY_PLACES if costly else 4 * PLACES)
    world.asks("z9", A)
    assert ("z9" in world.begun) == costly, "beside its client's own snapshots, which wait"


@pytest.mark.parametrize("size", [MIDDLE, LARGE_ANSWER])
def test_after_costly_calls_a_shard_rests_for_as_long_as_they_have_kept_it_busy(size: int) -> None:
    world = World(Limits(max_parts_per_shard=4), reads=True)
    for client in "xy":
        world.asks(f"{client}0", A)
        world.is_answered(f"{client}0", A, size)
    part = world.gate.places_for(size) / PLACES
    world.asks("x1", A)
    world.passes(0.008)
    world.is_answered("x1", A, size)
    world.asks("y1", A)
    assert (world.at_work, world.gate.waiting) == (0, 1)
    world.asks("z1", A)
    assert "z1" in world.begun, "other calls do not wait"
    world.passes(0.008 * part - 0.0001)
    assert "y1" not in world.begun
    world.passes(0.0002)
    assert "y1" in world.begun


@pytest.mark.parametrize(("share", "rest"), [(0.25, 0.024), (0.8, 0.002)])
def test_the_length_of_rests_is_configurable(share: float, rest: float) -> None:
    world = World(Limits(max_parts_per_shard=4, costly_share=share), weight=PLACES)
    world.asks("x1", A)
    world.passes(0.008)
    world.leaves("x1", A)
    world.asks("y1", A)
    world.passes(rest - 0.0001)
    assert "y1" not in world.begun
    world.passes(0.0002)
    assert "y1" in world.begun


def test_a_shard_that_may_be_busy_with_costly_calls_all_the_time_does_not_rest() -> None:
    world = World(Limits(max_parts_per_shard=4, costly_share=1), weight=PLACES)
    world.asks("x1", A)
    world.passes(0.008)
    world.leaves("x1", A)
    world.asks("y1", A)
    assert "y1" in world.begun
    assert not world.background.due


def test_a_shard_that_has_only_costly_calls_does_not_rest() -> None:
    world = World(Limits(max_parts_per_shard=4), weight=PLACES)
    world.gate.tick(0.0)
    world.gate.tick(0.0)
    assert A in world.gate.alone
    for number in range(8):
        world.asks(f"x{number}", A)
    world.passes(0.008)
    world.leaves("x0", A)
    world.leaves("x1", A)
    assert (world.at_work, world.gate.waiting) == (4, 2)
    assert not world.background.due


@pytest.mark.parametrize("answers", [True, False])
def test_calls_that_are_taken_back_as_they_begin_do_not_count_as_asked(world: World, answers: bool) -> None:
    """Where thousands of a client's calls end at once, the calls of others would not be seen beside them."""
    world.weight = PLACES
    world.gate.tick(0.0)
    for number in range(20):
        world.asks(f"x{number}", A)
        if answers:
            world.begun[f"x{number}"].heard(A)
        world.begun[f"x{number}"].close()
        world.passes(1.0)
    world.sent += 20
    world.gate.tick(0.0)
    assert (A in world.gate.alone) == answers


def test_a_call_that_is_asked_again_and_again_counts_each_time_it_is_answered(world: World) -> None:
    world.weight = PLACES
    world.asks("x1", A)
    for _ in range(3):
        world.begun["x1"].weigh(A, 100)
        world.begun["x1"].weigh(A, LARGE_ANSWER)
        world.begun["x1"].leave(A)
        world.begun["x1"].enter(A)
    assert world.gate.alone.asked[A] == 4
    world.begun["x1"].close()
    assert world.gate.alone.asked[A] == 3


def test_work_with_an_answer_counts_as_no_call_to_the_shard(world: World) -> None:
    """Or the shard would seem to have only large calls, beside those of others."""
    world.weight = PLACES
    world.asks("x1", A)
    entry = world.begun["x1"]
    entry.weigh(A, LARGE_ANSWER)
    work = CoroutineCall(entry.stream, entry)
    for _ in range(5):
        work.work_on({A: LARGE_ANSWER})
    assert (world.gate.alone.asked[A], world.gate.busy[A, LARGE]) == (1, PLACES)
