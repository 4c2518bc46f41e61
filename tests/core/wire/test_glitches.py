"""Points for pointless frames: spent, given back, used up."""

from __future__ import annotations

import pytest

from esp.core.wire.frames import ConnectionFault, ErrorCode
from esp.core.wire.glitches import ALLOWED, Allowance, GlitchBudget


def test_the_budget_is_reached() -> None:
    budget = GlitchBudget(10, 1)
    for _ in range(10):
        budget.charge(1, "frames", 100.0)
    with pytest.raises(ConnectionFault, match="too many frames") as caught:
        budget.charge(0.5, "frames", 100.0)
    assert (caught.value.code, caught.value.limit) == (ErrorCode.ENHANCE_YOUR_CALM, "glitch_budget")


def test_points_come_back_with_time() -> None:
    budget = GlitchBudget(10, 2)
    for second in range(100):
        budget.charge(2, "frames", 100.0 + second)
    budget.charge(8, "frames", 199.0)
    with pytest.raises(ConnectionFault):
        budget.charge(1, "frames", 199.0)


def test_who_was_good_for_long_has_saved_up_no_more_than_the_budget() -> None:
    budget = GlitchBudget(10, 2)
    budget.charge(1, "frames", 100.0)
    budget.charge(10, "frames", 1e6)
    with pytest.raises(ConnectionFault):
        budget.charge(1, "frames", 1e6)


def test_two_events_for_each_stream_are_free() -> None:
    allowance = Allowance()
    highest = 21  # eleven streams, of which the client opens every second id
    assert [allowance.is_used_up(highest) for _ in range(highest + ALLOWED)] == [False] * (highest + ALLOWED)
    assert allowance.is_used_up(highest)
    assert not allowance.is_used_up(highest + 2), "another stream explains it"
