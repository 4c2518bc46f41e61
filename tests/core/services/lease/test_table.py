"""The verdict on a lease when shards disagree about it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.services.lease import table as lease_table
from esp.core.services.lease.table import ALIVE, KEPT_SECONDS, SETTLE_SECONDS, SWEPT_AT_ONCE, LeaseTable
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from tests.core.wire.conftest import Clock

NAMES = ("s0", "s1", "s2")


def table(*, tolerant: bool = True, limits: Limits | None = None) -> LeaseTable:
    return LeaseTable(WireContext(limits or Limits()), tolerant=tolerant)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_table, "monotonic", clock)
    return clock


lives = st.lists(st.sampled_from([True, False, None]), min_size=3, max_size=3)
seen = st.one_of(st.none(), st.lists(st.booleans(), min_size=3, max_size=3))
empty = st.sets(st.sampled_from(NAMES))


def by_name(values: Sequence[Any]) -> dict[str, Any]:
    """Values of the three shards."""
    return dict(zip(NAMES, values, strict=True))


def judged(
    tolerant: bool, granted_on: Sequence[bool] | None, lives_on: Sequence[bool | None], empty: Collection[str]
) -> tuple[bool, list[str]]:
    known = table(tolerant=tolerant)
    if granted_on is not None:
        known.granted(7, {name: 100.0 for name, here in by_name(granted_on).items() if here}, [])
    judgement = known.judge(7, by_name(lives_on), empty)
    return judgement.dead, list(judgement.missed)


@given(seen, lives, empty)
def test_in_strict_mode_one_shard_without_it_is_the_end(
    granted_on: Sequence[bool] | None, lives_on: Sequence[bool | None], empty: Collection[str]
) -> None:
    assert judged(False, granted_on, lives_on, empty) == (False in lives_on or True not in lives_on, [])


@given(seen, lives, empty)
def test_a_tolerated_lease_ends_where_it_lives_nowhere_or_may_have_been_lost(
    granted_on: Sequence[bool] | None, lives_on: Sequence[bool | None], empty: Collection[str]
) -> None:
    def may_have_been(shard: str) -> bool:
        return shard not in empty if granted_on is None else by_name(granted_on)[shard]

    lacking = [shard for shard, here in by_name(lives_on).items() if here is False]
    dead, missed = judged(True, granted_on, lives_on, empty)
    assert dead == (True not in lives_on or any(map(may_have_been, lacking)))
    assert missed == ([] if dead else lacking)


def test_a_shard_without_which_it_was_only_renewed_may_have_had_it() -> None:
    known = table()
    known.renewed(7, by_name((10, -1, 10)), 100.0, [])
    assert known.judge(7, by_name((True, False, True)), ()).dead
    known.missed(7, "s1")
    assert known.judge(7, by_name((True, False, True)), ()).missed == ("s1",)


def test_one_that_held_it_and_has_no_past_now_has_lost_everything() -> None:
    known = table()
    known.granted(7, dict.fromkeys(NAMES, 100.0), [])
    assert known.judge(7, by_name((True, False, True)), {"s1"}).dead


def test_a_shard_that_was_away_counts_as_away_until_others_had_time_to_tell_it(clock: Clock) -> None:
    known = table()
    known.renewed(8, by_name((10, 10, 10)), clock(), [])
    known.away("s1")
    clock.passes(1000)
    lacking = by_name((True, False, True))
    assert known.judge(7, lacking, ()) == ALIVE
    known.returned("s1", clock())
    clock.passes(SETTLE_SECONDS - 0.1)
    assert known.judge(7, lacking, ()) == ALIVE
    assert known.judge(8, lacking, ()).dead, "it was seen there, so there is nothing to wait for"
    assert known.judge(7, by_name((True, True, False)), ()).dead, "the other shard was not away"
    clock.passes(0.2)
    assert known.judge(7, lacking, ()).dead


def test_a_shard_without_which_leases_were_answered_for_was_away(clock: Clock) -> None:
    """A frozen one keeps its connection."""
    known = table()
    known.leave_out("s1")
    known.answers("s1")
    assert known.judge(7, by_name((True, False, True)), ()) == ALIVE
    clock.passes(SETTLE_SECONDS + 0.1)
    known.answers("s1")
    assert known.judge(7, by_name((True, False, True)), ()).dead


def test_that_an_unknown_lease_is_taken_for_dead_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    known = table()
    for lease_id in (-1, 7, 8):
        known.judge(lease_id, by_name((True, False, True)), ())
    assert [record.getMessage() for record in caplog.records] == [
        "shard s1 lacks lease ffffffffffffffff, which lives elsewhere and may have ended there: it is dead; "
        "more are counted"
    ]
    assert known.counters["unknown_taken_for_ended"] == 3


def test_a_keepalive_shows_where_a_lease_lives() -> None:
    known = table()
    known.renewed(7, by_name((10, 0, -1)), 100.0, [])
    assert [known.was_on(7, shard) for shard in NAMES] == [True, False, False]
    assert known.missed_on("s1") == []
    known.renewed(7, by_name((-1, 20, -1)), 105.0, [])
    assert [known.left(7, shard, 106.5) for shard in NAMES] == [3, 18, None]


def test_less_than_a_second_left_is_nothing_left() -> None:
    known = table()
    known.renewed(7, by_name((10, 10, 10)), 100.0, [])
    assert known.left(7, "s0", 108.9) == 1
    assert known.left(7, "s0", 109.1) is None


def test_a_lease_that_begins_anew_has_no_past() -> None:
    known = table()
    known.granted(7, dict.fromkeys(NAMES, 100.0), [])
    known.granted(7, {"s0": 100.0, "s2": 100.0}, [])
    assert known.judge(7, by_name((True, False, True)), ()).missed == ("s1",)
    assert known.missed_on("s1") == [7]


def test_what_was_granted_later_was_seen_there() -> None:
    known = table()
    known.granted(7, {"s0": 100.0, "s2": 100.0}, [])
    known.seen(7, "s1", 50.0)
    assert known.was_on(7, "s1")
    assert known.missed_on("s1") == []
    known.seen(8, "s1", 50.0)
    assert known.get(8) is None


def test_leases_are_forgotten_a_while_after_their_end_and_the_living_are_kept() -> None:
    known = table()
    for lease_id in range(3 * SWEPT_AT_ONCE):
        known.granted(lease_id, {"s0": 100.0} | ({"s2": 1e9} if lease_id % 2 else {}), [])
    for _ in range(4):
        known.sweep(100.0 + KEPT_SECONDS - 1)
    assert len(known) == 3 * SWEPT_AT_ONCE
    for _ in range(4):
        known.sweep(100.0 + KEPT_SECONDS)
    assert len(known) == 3 * SWEPT_AT_ONCE // 2
    assert known.get(1) is not None
    assert known.get(2) is None


def test_the_table_is_bounded() -> None:
    known = table(limits=Limits(max_known_leases=2))
    for lease_id in (1, 2, 1, 3):
        known.granted(lease_id, dict.fromkeys(NAMES, 100.0), [])
    assert [lease_id for lease_id in (1, 2, 3) if known.get(lease_id)] == [1, 3]


def test_that_a_shard_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    known = table()
    with caplog.at_level(logging.INFO, logger="esp.lease"):
        known.leave_out("s1")
        known.leave_out("s1")
        known.answers("s1")
        known.answers("s1")
        known.leave_out("s1")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
    assert known.counters["left_out"] == 3


def test_a_shard_that_joined_later_misses_what_was_granted_before_and_may_have_had_what_was_only_renewed() -> None:
    known = table()
    known.granted(7, {"s0": 100.0, "s1": 100.0}, [])
    known.renewed(8, {"s0": 10, "s1": 10}, 90.0, [])
    assert known.missed_on("s2") == [7]
    lacking = by_name((True, True, False))
    assert known.judge(7, lacking, ()).missed == ("s2",)
    assert known.judge(8, lacking, ()).dead
    known.seen(7, "s2", 50.0)
    assert known.missed_on("s2") == []


def test_of_a_shard_that_left_only_the_leases_are_remembered() -> None:
    known = table()
    known.granted(7, dict.fromkeys(NAMES, 100.0), [])
    known.away("s1")
    known.leave_out("s1")
    known.drop_shard("s1")
    assert known.left_out == set()
    assert known.was_on(7, "s1"), "had it come back without the lease, the lease would have ended there"
    assert known.judge(9, by_name((True, False, True)), ()).dead, "nothing is known of its absence any more"


def test_the_answer_of_a_shard_that_was_asked_before_a_lease_was_brought_there_says_nothing(clock: Clock) -> None:
    known = table()
    known.granted(7, {"s0": 100.0, "s2": 100.0}, [])
    asked = clock()
    clock.passes(0.5)
    known.seen(7, "s1", clock() + 1)
    lacking = by_name((True, False, True))
    assert known.judge(7, lacking, (), asked) == ALIVE
    assert known.judge(7, lacking, (), clock.passes(0.1)).dead, "it was there, and is not any more"
    strict = table(tolerant=False)
    strict.granted(7, {"s0": 100.0, "s2": 100.0}, [])
    strict.seen(7, "s1", clock() + 1)
    assert strict.judge(7, lacking, (), asked).dead
