"""A move keeps its promises in any order of steps, whoever stops and goes on, and none of its rules can be left out."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.protocol.one_move import KEYS, Mistake, Mover, World, WrongError

keys = st.sampled_from(KEYS)
proxies = st.sampled_from(("p", "q"))
steps = st.integers(1, 12)


class Protocol(RuleBasedStateMachine):
    """Movers who stop and go on, proxies that sleep, calls that come late, watches."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(proxy=proxies, key=keys, kind=st.sampled_from(("put", "put", "delete", "read")))
    def a_client_calls(self, proxy: str, key: str, kind: str) -> None:
        self.world.learn(proxy)
        self.world.arrive(self.world.send(proxy, key, kind))

    @precondition(lambda self: self.world.seen)
    @rule(proxy=proxies, data=st.data())
    def a_client_swaps_what_it_has_seen_once(self, proxy: str, data: st.DataObject) -> None:
        key, pair = data.draw(st.sampled_from(self.world.seen))
        self.world.learn(proxy)
        self.world.arrive(self.world.send(proxy, key, "cas", pair))

    @rule(done=steps)
    def a_move_begins(self, done: int) -> None:
        self.go_on(self.world.announce(), done)

    @precondition(lambda self: len(self.world.movers) < 3)
    @rule(done=steps)
    def a_move_is_resumed(self, done: int) -> None:
        self.go_on(self.world.resume(), done)

    @precondition(lambda self: self.world.movers)
    @rule(data=st.data(), done=steps)
    def a_mover_goes_on(self, data: st.DataObject, done: int) -> None:
        self.go_on(data.draw(st.sampled_from(self.world.movers)), done)

    def go_on(self, mover: Mover | None, done: int) -> None:
        for _ in range(done):
            if mover is None or mover.is_gone:
                break
            self.world.step(mover)
            self.world.check()

    @rule()
    def a_move_is_given_up(self) -> None:
        self.world.abort()

    @rule()
    def somebody_gives_back(self) -> None:
        self.world.give_back()

    @rule()
    def what_is_not_owned_is_deleted(self) -> None:
        self.world.purge()

    @rule()
    def all_settles(self) -> None:
        self.world.settle()

    @rule(proxy=proxies)
    def a_proxy_reads_maps(self, proxy: str) -> None:
        self.world.learn(proxy)

    @precondition(lambda self: len(self.world.sent) < 4)
    @rule(proxy=proxies, key=keys, kind=st.sampled_from(("put", "delete", "read")))
    def a_call_is_sent(self, proxy: str, key: str, kind: str) -> None:
        self.world.send(proxy, key, kind)

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data())
    def a_call_arrives(self, data: st.DataObject) -> None:
        self.world.arrive(data.draw(st.sampled_from(self.world.sent)))

    @rule(proxy=proxies, events=st.integers(1, 5))
    def a_watch_goes_on(self, proxy: str, events: int) -> None:
        for _ in range(events):
            self.world.watch(proxy)

    @invariant()
    def one_shard_at_most_accepts_calls_and_has_all_that_was_acknowledged(self) -> None:
        self.world.check()


def walk(random: Random, mistake: Mistake | None, length: int = 120) -> None:
    """A walk through the states of a world. Some walks have one mover who is never disturbed, some many who are."""
    world = World(mistake)
    stops, calls, settles = random.choice((0.0, 0.1, 0.3)), random.choice((0.2, 0.5)), random.random() < 0.3
    mover: Mover | None = None
    for _ in range(length):
        if mover is not None and (mover.is_gone or random.random() < stops):
            mover = None
        if mover is None and world.movers and random.random() < 0.5:
            mover = random.choice(world.movers)
        if random.random() < calls:
            call_something(world, random)
        elif mover is not None:
            if mistake is Mistake.FENCE_AFTER_COPY and random.random() < 0.2:
                world.fenced_early(mover)
            else:
                world.step(mover)
        else:
            match random.randrange(10):
                case 0 | 1 | 2:
                    mover = world.announce()
                case 3 if len(world.movers) < 3:
                    mover = world.resume()
                case 4:
                    world.abort()
                case 5 | 6 | 7:
                    world.give_back()
                case 8:
                    world.purge()
                case 9 if settles:
                    world.settle()
        world.check()


def call_something(world: World, random: Random) -> None:
    proxy, key = random.choice(("p", "q")), random.choice(KEYS)
    match random.randrange(8):
        case 0 | 1 | 2:
            world.learn(proxy)
            world.arrive(world.send(proxy, key, random.choice(("put", "put", "delete", "read"))))
        case 3 if world.seen:
            key, pair = random.choice(world.seen)
            world.learn(proxy)
            world.arrive(world.send(proxy, key, "cas", pair))
        case 4:
            world.learn(proxy)
        case 5 if len(world.sent) < 4:
            world.send(proxy, key, random.choice(("put", "delete", "read")))
        case 6 if world.sent:
            world.arrive(random.choice(world.sent))
        case 7:
            world.watch(proxy)


WALKS = 20_000
"""The walks within which each planted mistake is found."""


def test_any_order_of_steps_keeps_the_promises() -> None:
    run_state_machine_as_test(Protocol, settings=settings(max_examples=60, stateful_step_count=50, deadline=None))


def test_walks_keep_the_promises() -> None:
    for seed in range(1500):
        walk(Random(seed), None)


@pytest.mark.parametrize("mistake", Mistake, ids=lambda mistake: mistake.name.lower())
def test_a_move_without_one_of_its_rules_is_found_out(mistake: Mistake) -> None:
    def walks() -> None:
        for seed in range(WALKS):
            walk(Random(seed), mistake)

    with pytest.raises(WrongError):
        walks()


def test_a_move_that_nobody_disturbs_moves_the_keys_there_and_back() -> None:
    world = World()
    for key in KEYS:
        world.arrive(world.send("p", key, "put"))
    for owner in ("t", "s", "t"):
        mover = world.announce()
        assert mover is not None
        while not mover.is_gone:
            world.step(mover)
            world.check()
        assert (world.map.owner, world.next) == (owner, None)
        for proxy in world.proxies:
            world.learn(proxy)
        world.purge()
        world.check()
