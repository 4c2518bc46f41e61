from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.tokens import (
    EPOCH,
    INSTANCES,
    MARK,
    MOST_SHARDS,
    SPAN,
    TICKS_PER_SECOND,
    Position,
    Tokens,
    Vector,
    claim_instance,
    number_of,
)
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits

MOST = 2**63 - 1


class Clock:
    def __init__(self) -> None:
        self.now = EPOCH + 60_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tokens(clock: Clock, instance: int = 7, **limits: float) -> Tokens:
    return Tokens(WireContext(replace(Limits(), **limits)), instance=instance, now=clock)


def two(one: int, other: int) -> Vector:
    return Vector(("a", "b"), (one, other))


def test_what_comes_back_stands_for_what_went_out(clock: Clock) -> None:
    here = tokens(clock)
    token = here.mint(two(5, 9))
    assert here.position(token) == Position(two(5, 9), 0)
    assert here.position(token + 1) == Position(two(5, 9), 1)
    assert [here.position(token + 1).revision(shard) for shard in ("a", "b")] == [6, 10]  # type: ignore[union-attr]


def test_what_clients_add_or_take_away_is_added_on_each_shard(clock: Clock) -> None:
    here = tokens(clock)
    token = here.mint(two(5, 1))
    means = {offset: here.position(token + offset) for offset in (-1, 0, 1, 2)}
    revisions = {offset: [means[offset].revision(shard) for shard in ("a", "b")] for offset in means}  # type: ignore[union-attr]
    assert revisions == {
        -1: [4, 0],
        0: [5, 1],
        1: [6, 2],
        2: [7, 3],
    }


@pytest.mark.parametrize("ours", [0, 7, INSTANCES - 1])
def test_next_to_a_token_of_another_process_there_is_none_of_ours(clock: Clock, ours: int) -> None:
    """Made in the same tick, and with the instance before or behind."""
    for theirs in {(ours + 1) % INSTANCES, (ours - 1) % INSTANCES}:
        here, there = tokens(clock, ours), tokens(clock, theirs)
        assert here.position(here.mint(two(5, 9))) is not None
        token = there.mint(two(7, 7))
        assert [here.position(token + offset) for offset in (-1, 0, 1, 2)] == [None] * 4


def test_a_shard_that_was_not_read_has_no_revision_behind_it_either(clock: Clock) -> None:
    here = tokens(clock)
    position = here.position(here.mint(two(5, 0)) + 1)
    assert position is not None
    assert (position.revision("a"), position.revision("b")) == (6, 0)


@given(st.lists(st.tuples(st.floats(-1, 10_000), st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=30))
def test_tokens_grow_whatever_the_clock_does_and_are_no_revisions(steps: list[tuple[float, int, int]]) -> None:
    clock = Clock()
    here = tokens(clock, token_seconds=2**31 - 1)
    seen: dict[int, Vector] = {}
    last = 0
    for seconds, *vector in steps:
        clock.now += seconds
        token = here.mint(two(*vector))
        assert last <= token <= MOST
        assert MARK <= token < 2 * MARK
        for number in range(token - 1, token + 3):
            assert int(float(number)) == number, "JavaScript and jq have nothing but doubles"
            assert number - token == here.position(number).offset  # type: ignore[union-attr]
        if token == last:
            assert seen[token] == two(*vector)
        seen[token] = two(*vector)
        last = token
    assert {token: here.position(token).vector for token in seen} == seen  # type: ignore[union-attr]


def test_the_same_position_asked_for_again_at_once_is_the_same_token(clock: Clock) -> None:
    here = tokens(clock)
    first = here.mint(two(5, 9))
    clock.now += 0.5
    assert here.mint(two(5, 9)) == first
    assert len(here) == 1
    assert here.mint(two(5, 10)) > first
    assert here.mint(two(5, 9)) > first, "another one lies between: time goes on"
    clock.now += 2
    assert here.mint(two(5, 9)) != first, "it must last as long as any"


def test_a_token_of_another_instance_is_not_known(clock: Clock) -> None:
    here, there = tokens(clock, 1), tokens(clock, 2)
    mine, theirs = here.mint(two(5, 9)), there.mint(two(7, 7))
    assert mine != theirs
    assert here.is_token(theirs)
    assert here.position(theirs) is None
    assert here.position(theirs + 1) is None
    assert (here.known, here.unknown) == (0, 2)


def test_whoever_is_given_what_it_did_not_make_under_its_own_number_draws_another(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    here, double = tokens(clock), tokens(clock)
    mine = here.mint(two(5, 9))
    for step in range(1, 5):
        clock.now += 1
        assert here.position(double.mint(two(7, step))) is None
        assert len(caplog.records) == 1, "once is enough: it has another number now"
    assert here.position(mine) == Position(two(5, 9), 0), "what it has made it still knows"
    later = here.mint(two(5, 10))
    assert later > mine
    assert later >> 2 & INSTANCES - 1 != mine >> 2 & INSTANCES - 1
    here.close()


def test_what_was_forgotten_or_is_of_an_earlier_process_is_no_double(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = tokens(clock).mint(two(5, 9))
    clock.now += 5
    here = tokens(clock, max_tokens=1)
    first = here.mint(two(1, 1))
    clock.now += 5
    here.mint(two(2, 2))
    assert (here.position(earlier), here.position(first)) == (None, None)
    assert not caplog.records


def test_after_34_years_numbers_begin_with_the_lowest_and_work_as_before(clock: Clock) -> None:
    clock.now = EPOCH + SPAN / TICKS_PER_SECOND - 5
    here = tokens(clock, token_seconds=60)
    last = here.mint(two(5, 9))
    assert last < 2 * MARK - 2**44
    clock.now += 10
    first = here.mint(two(6, 9))
    assert MARK <= first < last
    assert here.position(last) == Position(two(5, 9), 0)
    assert here.position(first) == Position(two(6, 9), 0)
    assert here.mint(two(7, 9)) > first
    clock.now += 58
    here.expire()
    assert here.position(last) is None
    assert here.position(first) == Position(two(6, 9), 0)


def test_a_clock_that_was_never_set_makes_numbers_too(clock: Clock) -> None:
    clock.now = 12.0
    here = tokens(clock)
    first = here.mint(two(5, 9))
    assert MARK <= first < here.mint(two(6, 9))
    assert here.position(first) == Position(two(5, 9), 0)
    clock.now = EPOCH + 60_000_000.0
    assert here.mint(two(7, 9)) > first


def test_revisions_and_numbers_without_end_are_no_tokens(clock: Clock) -> None:
    here = tokens(clock)
    for number in (-1, 0, 1, 1 << 40, MARK - 1, 2 * MARK, 2 * MARK - 1, 2 * MARK - 2, 1 << 62, MOST, MOST - 2):
        assert not here.is_token(number), number
    assert here.is_token(here.mint(two(1, 1)))
    assert here.is_token(here.mint(two(1, 1)) + 1)


def test_a_token_is_one_whatever_the_clock_has_become(clock: Clock) -> None:
    """Taken for a revision, it would be one that no shard reaches: a watch from there would be silent for ever."""
    here = tokens(clock)
    clock.now += 30 * 86_400
    ahead = here.mint(two(5, 9))
    clock.now -= 30 * 86_400
    late = here.mint(two(6, 9))
    for token in (ahead, ahead + 1, late, late + 1):
        assert here.is_token(token)
    assert here.position(late) == Position(two(6, 9), 0)
    assert tokens(clock, 8).is_token(ahead), "of a process that was there before the clock was put right"


def test_no_more_are_remembered_than_may_be_and_the_oldest_goes_first(clock: Clock) -> None:
    here = tokens(clock, max_tokens=3)
    minted = [here.mint(two(number, 1)) for number in range(1, 6)]
    assert [here.position(token) is not None for token in minted] == [False, False, True, True, True]
    assert len(here) == 3
    assert here._context.counters.limits["max_tokens"] == 2


def test_the_many_tokens_of_messages_do_not_push_out_those_of_answers(clock: Clock) -> None:
    here = tokens(clock, max_tokens=2)
    listed = here.mint(two(1, 1))
    told = [here.mint(two(number, 1), of_message=True) for number in range(1, 9)]
    assert told[0] == listed
    assert here.position(listed) is not None
    assert [here.position(token) is not None for token in told[1:]] == [False] * 5 + [True] * 2
    again = here.mint(two(8, 1))
    assert again > told[-1], "one that a message bears is not good enough for an answer"
    assert here.mint(two(8, 1), of_message=True) == again


def test_a_token_is_remembered_no_longer_than_its_time(clock: Clock) -> None:
    here = tokens(clock, token_seconds=10)
    old = here.mint(two(1, 1))
    clock.now += 9
    young = here.mint(two(2, 2))
    assert here.position(old) is not None
    clock.now += 2
    assert here.position(old) is None
    assert here.position(young) is not None
    here.expire()
    assert len(here) == 1
    assert here._context.counters.limits["token_seconds"] == 1


def test_the_highest_that_clients_may_have_heard_of_is_known(clock: Clock) -> None:
    here = tokens(clock, max_tokens=1)
    here.mint(two(5, 0))
    here.mint(two(3, 8))
    assert here.highest == {"a": 5, "b": 8}


def test_of_shards_that_have_left_no_more_than_some_are_remembered(clock: Clock) -> None:
    here = tokens(clock, max_tokens=1)
    for number in range(MOST_SHARDS):
        here.mint(Vector((f"left-{number}",), (7,)))
    here.mint(two(5, 9))
    assert here.highest == {"a": 5, "b": 9}
    assert here.forgotten_shards == MOST_SHARDS


@pytest.mark.skipif(sys.platform != "linux", reason="needs abstract Unix sockets")
def test_processes_of_one_machine_have_different_instances() -> None:
    mine = [claim_instance() for _ in range(20)]
    try:
        numbers = [number for number, _ in mine]
        assert len(set(numbers)) == 20
        assert all(0 <= number < INSTANCES for number in numbers)
        program = (
            "import esp.core.tokens as tokens\n"
            f"taken, others = {numbers[0]}, {[n for n in range(INSTANCES) if n not in numbers]}\n"
            "class Draw:\n"
            "    def shuffle(self, drawn):\n"
            "        drawn[:] = [taken, taken, *others]\n"
            "tokens.random.SystemRandom = Draw\n"
            "number, claim = tokens.claim_instance()\n"
            "claim.close()\n"
            "assert number in others, number\n"  # not always the first: other tests' processes have some
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        for _, claim in mine:
            assert claim is not None
            claim.close()


def test_an_instance_is_claimed_when_the_first_token_is_minted_and_let_go_at_the_end(clock: Clock) -> None:
    here = Tokens(WireContext(Limits()), now=clock)
    token = here.mint(two(4, 0))
    assert here.position(token) == Position(two(4, 0), 0)
    here.close()


def test_a_granted_number_is_minted_with_behind_the_ticks_of_others_and_no_longer_than_granted(clock: Clock) -> None:
    here = Tokens(WireContext(Limits()), now=clock)
    here.numbers = range(60, 64)
    assert number_of(here.mint(two(1, 1))) in here.numbers
    after = here.now() + 100
    here.grant(5, after, after + 2)
    clock.now += 2
    token = here.mint(two(1, 2))
    assert number_of(token) in here.numbers  # the time of the grant is over
    here.grant(5, after, here.now() + 10)
    tokens = [here.mint(two(2, number)) for number in range(3)]
    assert {number_of(token) for token in tokens} == {5}
    assert here.last_tick > after
    clock.now += 1
    assert number_of(here.mint(two(3, 3))) in here.numbers
    here.close()


def test_a_grant_begins_behind_the_ticks_of_the_number_before(clock: Clock) -> None:
    here = Tokens(WireContext(Limits()), now=clock)
    after = here.now() + 1000
    here.grant(5, after, after + 1000)
    here.mint(two(1, 1))
    assert here.last_tick == after + 1
    here.grant(5, 0, after + 5000)  # renewed
    here.mint(two(1, 2))
    assert here.last_tick == after + 2


def test_a_number_that_was_granted_is_not_drawn_anew_for_what_clients_send(clock: Clock) -> None:
    here, other = Tokens(WireContext(Limits()), now=clock), tokens(clock, 5)
    here.grant(5, 0, here.now() + 10**9)
    here.mint(two(1, 1))
    clock.now += 5
    token = other.mint(two(7, 7))
    clock.now += 1
    assert here.position(token) is None
    assert here.instance == 5


def test_tokens_of_others_are_forgotten_as_its_own(clock: Clock) -> None:
    here, other = tokens(clock, 1, token_seconds=60), tokens(clock, 2)
    token = other.mint(two(5, 9))
    here.adopt(token, two(5, 9))
    here.adopt(token, two(5, 9))
    assert here.position(token + 1) == Position(two(5, 9), 1)
    assert here.adopted == 1
    clock.now += 61
    here.expire()
    assert here.adopted == 0
    assert here.position(token) is None
