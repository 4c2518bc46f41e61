"""Steps of coroutines that wait for their turn: counted, never timed."""

from __future__ import annotations

from functools import partial

import pytest

from esp.core.wire.held_steps import AT_ONCE, MOST_KNOWN, HeldSteps


def held(steps: HeldSteps, log: list[str], *names: str) -> None:
    """Holds a step for each name; its first letter is the connection."""
    for name in names:
        steps.hold(name[0], partial(log.append, name))


def full(seconds: float = AT_ONCE) -> HeldSteps:
    """Steps of `seconds` each, and no time left in this turn."""
    steps = HeldSteps()
    for _ in range(200):  # until the guess is right
        steps.took(seconds)
    return steps


def test_steps_need_not_wait_while_there_is_time() -> None:
    steps = HeldSteps()
    assert not steps.must_wait(None)
    steps.took(AT_ONCE / 2)
    assert not steps.must_wait(None)
    steps.took(AT_ONCE / 2)
    assert steps.must_wait(None)
    steps.release()
    assert not steps.must_wait(None), "another turn"


def test_a_turn_lets_as_many_go_on_as_are_likely_to_fit() -> None:
    steps, log = full(AT_ONCE / 4.5), []
    held(steps, log, *(f"a{number}" for number in range(20)))
    steps.release()
    assert log == ["a0", "a1", "a2", "a3"]
    assert steps.must_wait(None), "whoever comes now comes after those that wait"
    assert len(steps) == 16


@pytest.mark.parametrize("seconds", [0.0, 1e-9, AT_ONCE, 100 * AT_ONCE])
def test_at_least_one_goes_on_and_all_do_in_the_end(seconds: float) -> None:
    steps, log = full(seconds), []
    held(steps, log, "a0", "a1", "a2")
    for _ in range(3):
        before = len(log)
        steps.release()
        assert len(log) > before or len(log) == 3
    assert log == ["a0", "a1", "a2"]
    assert not len(steps)


def test_a_step_for_which_the_time_was_over_keeps_its_place() -> None:
    steps, log = full(), []
    held(steps, log, "a0", "b0", "c0")
    steps.release()
    assert log == ["a0"]
    assert not steps.must_wait(0.0), "its turn has come"
    steps.took(AT_ONCE)
    assert steps.must_wait(0.0), "others took longer than was likely"
    steps.hold("a", partial(log.append, "a0 again"), 0.0)
    held(steps, log, "a1")
    for _ in range(4):
        steps.release()
    assert log == ["a0", "b0", "c0", "a0 again", "a1"]


def test_connections_take_turns() -> None:
    steps, log = full(), []
    held(steps, log, *(f"a{number}" for number in range(100)))
    for _ in range(50):
        steps.release()
    held(steps, log, "b0", "b1")
    log.clear()
    for _ in range(6):
        steps.release()
    assert log.index("b0") <= 1
    assert log.index("b1") <= 3


def test_clients_with_little_do_not_starve_one_with_much() -> None:
    steps, log = full(), []
    held(steps, log, "a0", "a1")
    for number in range(70):
        steps.hold(number, partial(log.append, "x"))  # always another
        steps.release()
    assert "a1" in log


def test_connections_of_the_past_are_forgotten() -> None:
    steps, log = full(), []
    held(steps, log, "a", "a")
    for number in range(10 * MOST_KNOWN):
        steps.hold(number, partial(log.append, "x"))
        steps.release()
        assert len(steps._last) <= 2 * len(steps) + MOST_KNOWN
    while len(steps):
        steps.release()
    assert not steps._last
