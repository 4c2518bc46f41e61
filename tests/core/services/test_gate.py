"""The gate before the shards, with clients in memory: which calls begin when, which wait, and what is counted."""

from __future__ import annotations

from time import monotonic

import pytest

from esp.core.background import Background
from esp.core.services import gate
from esp.core.services.gate import PLACE_BYTES, PLACES, SMALL_ANSWER, STUCK_SECONDS, Entry, Gate
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.server_stream import OVERLOADED
from esp.core.wire.status import Code, Status
from tests.core.wire.conversation import STREAM, Client, Server, call, headers, meet, rst

A, B, C = SHARDS = "abc"


class World:
    """Clients of one esp with three shards; `begun` are the calls that were let in, by name."""

    def __init__(self, limits: Limits) -> None:
        self.context = WireContext(limits)
        self.background = Background()
        self.gate = Gate(self.context, self.background)
        self.begun: dict[str, Entry] = {}
        self.clients: dict[str, tuple[Client, Server]] = {}
        self.streams: dict[str, tuple[str, int]] = {}

    def asks(self, name: str, *shards: str, size: int = 2000) -> None:
        """`name` begins with the client's; a client's calls have one stream each."""
        self.opens(name)
        self.comes(name, *shards, size=size)
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

    def comes(self, name: str, *shards: int, size: int = 2000) -> None:
        """Its message is read, and perhaps not all that has come with it."""
        client, number = self.streams[name]
        stream = self.clients[client][1].stream.streams[number]

        def begin(entry: Entry) -> None:
            if "refused" in name:
                raise Status(Code.UNAVAILABLE, "refused").error()
            if "bug" in name:
                raise AssertionError("a bug")
            self.begun[name] = entry

        self.gate.let_in(stream, shards, size, begin)

    def leaves(self, name: str, *shards: str) -> None:
        """Parts of it are answered."""
        for shard in shards:
            self.begun[name].leave(shard)
        self.context.flush()

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
        """Parts at work, by shard, where each takes as much as an ordinary one."""
        return [self.gate.busy[shard] / PLACES for shard in SHARDS]

    @property
    def reached(self) -> int:
        return self.context.counters.limits["max_parts_per_shard"]


@pytest.fixture
def world() -> World:
    return World(Limits(max_parts_per_shard=2))


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
    world.leaves("x2", A)
    assert world.since("x0", "x1") == {"x2", "y0", "z0"}


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


def test_a_large_answer_takes_several_places_and_gives_them_all_back() -> None:
    world = World(Limits(max_parts_per_shard=16))
    world.asks("x1", A)
    world.begun["x1"].weigh(A, PLACES * PLACE_BYTES - 1)
    assert world.busy[0] == 1, "as one of unknown size"
    world.begun["x1"].weigh(A, 7 * PLACE_BYTES)
    assert world.busy[0] == 2
    world.begun["x1"].weigh(A, 1 << 30)
    assert world.busy[0] == 8, "two of any size are at work"
    world.asks("y1", A)
    world.begun["y1"].weigh(A, 1 << 30)
    world.asks("z1", A)
    assert (world.busy[0], world.gate.waiting) == (16, 1)
    world.leaves("x1", A)
    assert "z1" in world.begun
    world.begun["x1"].weigh(A, 1 << 30)
    assert world.busy[0] == 9, "what is answered takes none"


def test_small_answers_let_four_times_as_many_parts_of_their_client_through() -> None:
    world = World(Limits(max_parts_per_shard=2))
    for name in ("x1", "x2", "x3"):
        world.asks(name, A)
    assert world.since() == {"x1", "x2"}
    world.begun["x1"].answered(A, SMALL_ANSWER)
    world.context.flush()
    world.leaves("x2", A)
    for number in range(4, 20):
        world.asks(f"x{number}", A)
    assert len(world.begun) == 2 + 8, "eight are at work"
    world.asks("y1", A)
    world.leaves("x3", A)
    assert "y1" not in world.begun, "nobody knows yet how large its answers are, and there is one place"
    for number in range(4, 20):
        if f"x{number}" in world.begun:
            world.begun[f"x{number}"].answered(A, SMALL_ANSWER + 1)
    world.context.flush()
    assert world.gate.small == {}
    assert "y1" in world.begun


def test_no_more_clients_are_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_SMALL", 2)
    world = World(Limits())
    for name in "xyz":
        world.asks(name, A)
        world.begun[name].answered(A, 100)
    assert list(world.gate.small) == [world.clients[name][1].connection.peer for name in "yz"]


def test_with_a_limit_of_one_a_part_of_any_size_is_let_in() -> None:
    world = World(Limits(max_parts_per_shard=1))
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


def test_a_request_for_which_there_is_no_memory_is_refused() -> None:
    world = World(Limits(max_parts_per_shard=1, max_buffered_bytes=1500))
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
