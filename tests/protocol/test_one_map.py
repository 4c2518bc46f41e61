"""The protocol by which shards hold the map: any order of steps keeps its promises, and no rule can be left out."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.protocol.one_map import ANCHOR, KEYS, SHARDS, Mistake, Mover, World, WrongError

keys = st.sampled_from(KEYS)
shards = st.sampled_from(SHARDS)
proxies = st.sampled_from(("p", "q"))


class Moves(RuleBasedStateMachine):
    """Several movers at once, and clients who write through a proxy that knows all. A subclass plants a mistake."""

    mistake: Mistake | None = None

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.mistake)

    @rule(key=keys)
    def a_client_writes(self, key: str) -> None:
        self.world.learn("q", SHARDS)
        self.world.arrive(self.world.send("q", key, writes=True))

    @rule(key=keys, to=shards, steps=st.integers(0, 3))
    def a_move_is_decided(self, key: str, to: str, steps: int) -> None:
        if len(self.world.movers) < 3:
            self.go_on(self.world.decide(key, to), steps)

    @rule(steps=st.integers(0, 3))
    def a_change_is_resumed(self, steps: int) -> None:
        if len(self.world.movers) < 3:
            self.go_on(self.world.resume(), steps)

    @rule(key=keys, to=shards)
    def all_is_finished_and_a_key_moves(self, key: str, to: str) -> None:
        self.go_on(self.world.resume(), 9)
        self.go_on(self.world.decide(key, to), 9)

    @precondition(lambda self: self.world.movers)
    @rule(data=st.data(), steps=st.integers(1, 3))
    def a_mover_goes_on(self, data: st.DataObject, steps: int) -> None:
        self.go_on(data.draw(st.sampled_from(self.world.movers)), steps)

    def go_on(self, mover: Mover | None, steps: int) -> None:
        for _ in range(steps):
            if mover is None or not mover.left or not self.world.step(mover):
                break
            self.world.check()

    @invariant()
    def one_shard_at_most_accepts_a_key_and_has_its_value(self) -> None:
        self.world.check()


class Calls(Moves):
    """Also proxies that sleep, and calls that come late."""

    @rule(proxy=proxies, reached=st.sets(shards, min_size=1))
    def a_proxy_reads_maps(self, proxy: str, reached: set[str]) -> None:
        self.world.learn(proxy, sorted(reached))

    @rule(proxy=proxies, key=keys, writes=st.booleans())
    def a_call_is_sent(self, proxy: str, key: str, writes: bool) -> None:
        if len(self.world.sent) < 4:
            self.world.send(proxy, key, writes=writes)

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data())
    def a_call_arrives(self, data: st.DataObject) -> None:
        self.world.arrive(data.draw(st.sampled_from(self.world.sent)))

    @rule(proxy=proxies, key=keys, writes=st.booleans())
    def a_call_is_sent_and_arrives(self, proxy: str, key: str, writes: bool) -> None:
        self.world.arrive(self.world.send(proxy, key, writes=writes))


class Protocol(Calls):
    """Also backups, and times at which all is finished."""

    @precondition(lambda self: len(self.world.backups) < 4)
    @rule()
    def a_backup_is_made(self) -> None:
        self.world.back_up()

    @precondition(lambda self: not self.world.is_changing and not self.world.hidden)
    @rule(data=st.data(), names=st.sets(shards, min_size=1))
    def shards_are_restored(self, data: st.DataObject, names: set[str]) -> None:
        self.world.restore(sorted(names), data.draw(st.integers(0, len(self.world.backups) - 1)))

    @precondition(lambda self: not self.world.is_changing and not self.world.hidden)
    @rule(data=st.data(), names=st.sets(shards, min_size=1))
    def shards_are_restored_and_come_back_at_once(self, data: st.DataObject, names: set[str]) -> None:
        self.shards_are_restored(data=data, names=names)
        self.go_on(self.world.fence(), 9)
        assert self.world.show()

    @precondition(lambda self: not self.world.is_half_done and not self.world.hidden)
    @rule(data=st.data())
    def the_anchor_is_restored_and_a_decision_may_be_lost(self, data: st.DataObject) -> None:
        self.world.restore([ANCHOR], data.draw(st.integers(0, len(self.world.backups) - 1)))

    @precondition(lambda self: self.world.hidden)
    @rule(steps=st.integers(0, 9))
    def restored_shards_get_guards(self, steps: int) -> None:
        self.go_on(self.world.fence(), steps)
        self.world.show()

    @precondition(lambda self: self.world.hidden)
    @rule()
    def restored_shards_come_back(self) -> None:
        self.go_on(self.world.resume(), 9)
        self.world.show()

    @precondition(lambda self: self.mistake in (None, Mistake.DECIDED_ANYWHERE))  # others have to give a wrong answer
    @rule()
    def all_settles(self) -> None:
        self.world.settle()


MACHINES = {
    Mistake.READS_WITHOUT_COMPARISON: Calls,
    Mistake.STEPS_WITHOUT_COMPARISON: Moves,
    Mistake.COPY_WITHOUT_COMPARISON: Moves,
}
"""The least that has to happen for a mistake to show, where all else that happens would hide it for long."""
SCRIPTED = {
    Mistake.TOLD_WITHOUT_COMPARISON,
    Mistake.FENCE_WITHOUT_COMPARISON,
    Mistake.FENCE_WITHOUT_DECISION,
    Mistake.ANCHOR_FENCED_ALONE,
}
"""Mistakes that take too many steps in one order for chance to find them."""
HOLDS = settings(max_examples=40, stateful_step_count=40, deadline=None)
FINDS = settings(
    max_examples=5000,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    report_multiple_bugs=False,
)


def test_any_order_of_steps_keeps_the_promises() -> None:
    run_state_machine_as_test(Protocol, settings=HOLDS)


@pytest.mark.parametrize(
    "mistake", [one for one in Mistake if one not in SCRIPTED], ids=lambda mistake: mistake.name.lower()
)
def test_a_protocol_without_one_of_its_rules_is_found_out(mistake: Mistake) -> None:
    machine = MACHINES.get(mistake, Protocol)
    with pytest.raises(WrongError):
        run_state_machine_as_test(type("Planted", (machine,), {"mistake": mistake}), settings=FINDS)


def test_who_slept_while_all_shards_were_restored_leaves_no_forgotten_map_behind() -> None:
    def settled(mistake: Mistake | None) -> None:
        world = World(mistake)
        finish(world, world.decide("k", "b"))
        sleeps = world.decide("k", "c")
        assert sleeps is not None
        for _ in ("cut", "copy", "open"):
            assert world.step(sleeps)
        finish(world, world.resume())
        world.restore(SHARDS, 0)
        finish(world, world.fence())
        assert world.show()
        finish(world, sleeps)
        world.settle()

    settled(None)
    with pytest.raises(WrongError, match="p is not served for k"):
        settled(Mistake.TOLD_WITHOUT_COMPARISON)


def test_who_slept_while_a_restored_shard_got_a_guard_does_not_give_it_back() -> None:
    def settled(mistake: Mistake | None) -> None:
        world = World(mistake)
        world.restore(["b"], 0)
        sleeps = world.fence()
        assert sleeps is not None
        if mistake is not Mistake.FENCE_WITHOUT_DECISION:
            assert world.step(sleeps)  # it has looked
        finish(world, world.resume())
        assert world.show()
        finish(world, world.decide("l", "c"))
        finish(world, sleeps)
        world.settle()

    settled(None)
    for mistake in (Mistake.FENCE_WITHOUT_COMPARISON, Mistake.FENCE_WITHOUT_DECISION):
        with pytest.raises(WrongError, match="l is accepted by"):
            settled(mistake)


def test_a_decision_that_a_restored_anchor_has_lost_is_never_carried_out() -> None:
    def settled(mistake: Mistake | None) -> None:
        world = World(mistake)
        sleeps = world.decide("l", "c")
        world.restore([ANCHOR], 0)
        finish(world, world.fence())
        assert world.show()
        finish(world, sleeps)
        world.settle()

    settled(None)
    with pytest.raises(WrongError, match="is not served for"):
        settled(Mistake.ANCHOR_FENCED_ALONE)


def finish(world: World, mover: Mover | None) -> None:
    assert mover is not None
    while mover.left and world.step(mover):
        world.check()
