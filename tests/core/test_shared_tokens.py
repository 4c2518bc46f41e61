"""Tokens of several processes in shared memory; here mostly in one process, which is all the same to the memory."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core import shared_tokens
from esp.core.shared_tokens import Memory, Part, Ring, Ticks
from esp.core.tokens import EPOCH, MOST_SHARDS, Position, Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits

MANY_BYTES = 1 << 20


class Clock:
    now = EPOCH + 60_000_000.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """Processes that share tokens."""

    def __init__(self, count: int, most_bytes: int = MANY_BYTES, **limits: float) -> None:
        self.clock = Clock()
        self.limits = replace(Limits(), **limits)
        self.ticks = Ticks()
        self.rings = [Ring.create(most_bytes, self.limits.max_tokens, 2) for _ in range(count)]
        self.contexts = [WireContext(self.limits) for _ in range(count)]
        self.first = self.ticks.take(count)
        self.all = [self.begin(number) for number in range(count)]

    def begin(self, number: int, instance: int | None = None) -> Tokens:
        """The process with this number, or another in its place."""
        made = Tokens(self.contexts[number], instance=number if instance is None else instance, now=self.clock)
        made.share(Part(self.rings[number], self.ticks, self.first + number, self.rings))
        return made


def two(one: int, other: int) -> Vector:
    return Vector(("a", "b"), (one, other))


def test_what_one_has_minted_all_know() -> None:
    crowd = Crowd(3)
    for number, tokens in enumerate(crowd.all):
        for of_message in (False, True):
            token = tokens.mint(two(number + 1, 10 + of_message), of_message=of_message)
            for other in crowd.all:
                assert other.position(token) == Position(two(number + 1, 10 + of_message), 0)
                assert other.position(token + 1) == Position(two(number + 1, 10 + of_message), 1)


def test_a_token_is_higher_than_all_that_anybody_has_minted_before() -> None:
    """Even of a process that is ahead of the clock, and of clocks that go back."""
    crowd = Crowd(3)
    one, two_, three = crowd.all
    minted = [one.mint(two(number, 1)) for number in range(1, 50)]
    minted.append(two_.mint(two(1, 1)))
    crowd.clock.now -= 100
    minted.append(three.mint(two(1, 1)))
    minted.append(one.mint(two(100, 1)))
    assert minted == sorted(set(minted))


def test_a_token_is_not_used_again_when_another_process_has_minted_one_since() -> None:
    crowd = Crowd(2)
    one, other = crowd.all
    first = one.mint(two(5, 9))
    assert one.mint(two(5, 9)) == first
    between = other.mint(two(6, 9))
    assert one.mint(two(5, 9)) > between


def test_clients_of_any_process_may_know_of_the_highest_revisions() -> None:
    crowd = Crowd(2)
    one, other = crowd.all
    one.mint(two(5, 9))
    other.mint(two(7, 2))
    for tokens in crowd.all:
        assert [tokens.may_be_known("a", revision) for revision in (6, 7)] == [True, False]
        assert [tokens.may_be_known("b", revision) for revision in (8, 9)] == [True, False]
        assert not tokens.may_be_known("c", 0)
    again = crowd.begin(1, 40)
    again.mint(two(1, 1))
    assert one.may_be_known("a", 6), "what a process before it has minted still counts"


def test_who_comes_in_the_place_of_another_knows_its_tokens_and_goes_on_behind_them() -> None:
    crowd = Crowd(2)
    before = [crowd.all[0].mint(two(number, 1)) for number in range(1, 200)]
    again = crowd.begin(0, 33)
    later = again.mint(two(7, 7))
    assert later > before[-1]
    for tokens in (again, crowd.all[1]):
        assert tokens.position(before[0]) == Position(two(1, 1), 0)
        assert tokens.position(before[-1]) == Position(two(199, 1), 0)
        assert tokens.position(later) == Position(two(7, 7), 0)


def test_of_too_many_the_oldest_are_overwritten_and_those_are_counted() -> None:
    crowd = Crowd(2, most_bytes=16_000)
    one, other = crowd.all
    places = one._shared.ring._places  # type: ignore[union-attr]
    assert 64 <= places < 300
    minted = [one.mint(two(number, 1)) for number in range(1, 3 * places)]
    known = [other.position(token) is not None for token in minted]
    assert known == sorted(known), "the newest are known"
    assert places - 16 <= sum(known) <= places
    assert all(one.position(token) is not None for token in minted), "its own it has in its own table too"
    assert crowd.contexts[0].counters.limits["max_shared_token_bytes"] == 2 * places - 1
    listed = one.mint(two(1, 1))
    for number in range(2 * places):
        one.mint(two(number + 2, 3), of_message=True)
    assert other.position(listed) is not None, "tokens of messages do not push out those of answers"


def test_a_token_that_is_too_old_nobody_knows() -> None:
    crowd = Crowd(2, token_seconds=10)
    token = crowd.all[0].mint(two(1, 1))
    crowd.clock.now += 11
    assert [tokens.position(token) for tokens in crowd.all] == [None, None]


def test_vectors_of_other_layouts_keep_their_names() -> None:
    crowd = Crowd(2)
    one, other = crowd.all
    vectors = [Vector(tuple(f"s{n}" for n in range(size)), tuple(range(1, size + 1))) for size in (2, 3, 40, 2)]
    minted = [one.mint(vector) for vector in vectors]
    assert [other.position(token).vector for token in minted] == vectors  # type: ignore[union-attr]


def test_without_room_for_names_a_token_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tokens, "NAMES_BYTES", 64)
    crowd = Crowd(2)
    one, other = crowd.all
    shared = one.mint(two(5, 9))
    vector = Vector(("a" * 60, "b"), (1, 2))
    unshared = one.mint(vector)
    assert one.position(unshared) == Position(vector, 0)
    assert other.position(unshared) is None
    assert other.position(shared) is not None
    assert crowd.rings[0].unshared == 1
    assert other.may_be_known("a", 100), "as its revisions are not known, any may be"


def test_of_too_many_shards_any_revision_may_be_known() -> None:
    crowd = Crowd(2)
    one, other = crowd.all
    for number in range(MOST_SHARDS // 100 + 1):
        one.mint(Vector(tuple(f"s{number}-{n}" for n in range(100)), (5,) * 100))
    assert other.may_be_known("s0-0", 5)
    assert other.may_be_known("unheard-of", 1)


@given(st.binary(min_size=8, max_size=8), st.integers(0, 200))
def test_an_entry_that_is_overwritten_while_it_is_read_is_not_taken_for_another(noise: bytes, place: int) -> None:
    crowd = Crowd(2)
    one, other = crowd.all
    minted = {one.mint(two(number, number)): number for number in range(1, 9)}
    ring = crowd.rings[0]
    at = ring._logs[0] + place
    ring.memory.bytes[at : at + 8] = noise
    for token, number in minted.items():
        assert other.position(token) in (Position(two(number, number), 0), None)


def test_another_process_reads_while_tokens_are_minted_and_gets_all_or_none_of_each() -> None:
    crowd = Crowd(2, most_bytes=8_000)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for number in range(1, 20_001):
                token = crowd.all[0].mint(two(number, 2 * number))
                if number % 50 == 0:
                    os.write(tell, b"%20d" % token)
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    known = 0
    while line := os.read(told, 20):
        token = int(line)
        for _ in range(20):
            position = crowd.all[1].position(token)
            if position is not None:
                known += 1
                one, other = position.vector.revisions
                assert other == 2 * one
                assert one % 50 == 0
    os.close(told)
    assert os.waitpid(child, 0)[1] == 0
    assert known


@pytest.fixture
def memory() -> Memory:
    return Memory(4096)


def test_memory_of_another_form_is_refused(memory: Memory) -> None:
    with pytest.raises(ValueError, match="another version of esp"):
        Ring(memory)
    memory.cells[0] = shared_tokens.VERSION + 1
    with pytest.raises(ValueError, match="another version of esp"):
        Ring(memory)


def test_a_descriptor_leads_to_the_same_tokens() -> None:
    """As after a takeover."""
    crowd = Crowd(1)
    token = crowd.all[0].mint(two(5, 9))
    descriptors = [crowd.rings[0].memory.descriptor, crowd.ticks.memory.descriptor]
    assert None not in descriptors
    ring, ticks = [os.dup(descriptor) for descriptor in descriptors if descriptor is not None]
    old, ours, clock = Ring(Memory.of(ring)), Ring.create(MANY_BYTES, 100, 2), Ticks(Memory.of(ticks))
    there = Tokens(WireContext(Limits()), instance=50, now=crowd.clock)
    there.share(Part(ours, clock, clock.take(1, beside=(0, 1)), [ours, old]))
    assert there.position(token) == Position(two(5, 9), 0)
    later = there.mint(two(5, 9))
    assert later > token
    assert crowd.all[0].mint(two(9, 9)) > later, "the old process heeds the ticks of the new one"


def test_slots_are_those_beside_the_ones_in_use() -> None:
    ticks = Ticks()
    assert ticks.take(2) == 0
    assert ticks.take(3, beside=(0, 2)) == 2
    assert ticks.take(2, beside=(2, 3)) == 0
    assert ticks.take(3, beside=(2, 3)) == 5
    with pytest.raises(ValueError, match="255 processes"):
        ticks.take(250, beside=(3, 10))
