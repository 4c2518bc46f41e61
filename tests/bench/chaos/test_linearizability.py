"""The checker of single-key histories: it must be able to say no."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.chaos.linearizability import (
    NEVER,
    Kind,
    Operation,
    Undecided,
    is_linearizable,
    is_linearizable_by_force,
)


def put(called: float, returned: float, value: str, revision: int = 0) -> Operation:
    return Operation(Kind.PUT, called, returned, value=value, revision=revision)


def get(called: float, returned: float, read: str | None, revision: int = 0) -> Operation:
    return Operation(Kind.GET, called, returned, read=read, revision=revision)


def delete(called: float, returned: float, done: bool, revision: int = 0) -> Operation:
    return Operation(Kind.DELETE, called, returned, done=done, revision=revision)


def cas(
    called: float, returned: float, value: str, expected: int, done: bool, read: str | None = None, revision: int = 0
) -> Operation:
    return Operation(Kind.CAS, called, returned, value, expected, done, read, revision)


def move(called: float, returned: float, read: str | None, revision: int = 0) -> Operation:
    return Operation(Kind.MOVE, called, returned, done=True, read=read, revision=revision)


GOOD = {
    "nothing": [],
    "one after the other": [put(0, 1, "a", 2), get(2, 3, "a", 2), delete(4, 5, True, 3), get(6, 7, None)],
    "a read beside a write sees it": [put(0, 9, "a", 2), get(1, 2, "a", 2)],
    "a read beside a write does not": [put(0, 9, "a", 2), get(1, 2, None)],
    "two writes at once, in the order of their revisions": [
        put(0, 9, "a", 3),
        put(0, 9, "b", 2),
        get(10, 11, "a", 3),
    ],
    "what is unknown happened late": [put(0, NEVER, "a"), get(1, 2, None), get(3, 4, None), get(5, 6, "a", 7)],
    "what is unknown never happened": [put(0, NEVER, "a"), get(1, 2, None), put(3, 4, "b", 2), get(5, 6, "b", 2)],
    "an unknown delete": [put(0, 1, "a", 2), delete(2, NEVER, False), get(3, 4, "a", 2), get(5, 6, None)],
    "an unknown swap explains a read": [put(0, 1, "a", 2), cas(2, NEVER, "b", 2, False), get(3, 4, "b", 3)],
    "a swap": [put(0, 1, "a", 2), cas(2, 3, "b", 2, True, revision=3), cas(4, 5, "c", 2, False, "b", 3)],
    "a swap of no key": [cas(0, 1, "a", 0, True, revision=2), cas(2, 3, "b", 0, False, "a", 2)],
    "a swap behind an unknown swap behind an unknown delete": [
        put(0, 1, "a", 2),
        delete(2, NEVER, False),
        cas(2, NEVER, "b", 0, False),
        cas(3, 4, "c", 4, True, revision=5),
    ],
    "a move, and reads and swaps by the revisions of before and after": [
        put(0, 1, "a", 2),
        move(2, 5, "a", 90),
        get(3, 4, "a", 2),
        cas(6, 7, "b", 2, False, "a", 90),
        cas(8, 9, "c", 90, True, revision=91),
    ],
    "a move of no key": [put(0, 1, "a", 2), delete(2, 3, True, 3), move(4, 5, None), get(6, 7, None)],
    "a move behind an unknown write": [put(0, NEVER, "a"), move(1, 2, "a", 90), get(3, 4, "a", 90)],
    "a swap behind an unknown write": [put(0, NEVER, "a"), get(1, 2, "a", 5), cas(3, 4, "b", 5, True, revision=6)],
}
BAD = {
    "a write is lost": [put(0, 1, "a", 2), get(2, 3, None)],
    "a read goes back": [put(0, 1, "a", 2), put(2, 9, "b", 3), get(3, 4, "b", 3), get(5, 6, "a", 2)],
    "a value from nowhere": [get(0, 1, "a", 2)],
    "a value from the future": [get(0, 1, "a", 2), put(2, 3, "a", 2)],
    "two swaps of the same": [
        put(0, 1, "a", 2),
        cas(2, 3, "b", 2, True, revision=3),
        cas(2, 3, "c", 2, True, revision=4),
    ],
    "a swap that should have been done": [put(0, 1, "a", 2), cas(2, 3, "b", 2, False, "a", 2)],
    "a swap that was not done in spite of what it read": [put(0, NEVER, "a"), cas(1, 2, "b", 5, False, "a", 5)],
    "revisions against time": [put(0, 1, "a", 5), put(2, 3, "b", 4)],
    "a read of another revision than was written": [put(0, 1, "a", 5), get(2, 3, "a", 6)],
    "a delete of nothing": [delete(0, 1, True, 2)],
    "a delete that missed a key": [put(0, 1, "a", 2), delete(2, 3, False)],
    "a key that comes back": [put(0, 1, "a", 2), delete(2, 3, True, 3), get(4, 5, "a", 2)],
    "an unknown write that happens twice": [
        put(0, NEVER, "a"),
        get(1, 2, "a", 2),
        put(3, 4, "b", 3),
        get(5, 6, "a", 2),
    ],
    "a write that a move loses": [put(0, 1, "a", 2), put(2, 3, "b", 3), move(4, 5, "a", 90)],
    "a key that a move brings back": [put(0, 1, "a", 2), delete(2, 3, True, 3), move(4, 5, "a", 90)],
    "a stale read behind a move": [put(0, 1, "a", 2), move(2, 3, "a", 90), put(4, 5, "b", 91), get(6, 7, "a", 90)],
    "a swap by a revision of before a move": [put(0, 1, "a", 2), move(2, 3, "a", 90), cas(4, 5, "b", 2, True)],
    "an unknown write before it was called": [get(0, 1, "a", 2), put(2, NEVER, "a")],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history(name: str) -> None:
    assert is_linearizable(GOOD[name])
    assert is_linearizable_by_force(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history(name: str) -> None:
    assert not is_linearizable(BAD[name])
    assert not is_linearizable_by_force(BAD[name])


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Up to six operations within a short time; answers that are sometimes possible."""
    operations = []
    count = draw(st.integers(0, 6))
    values = [f"v{number}" for number in range(count)]
    for number in range(count):
        called = draw(st.integers(0, 8))
        returned = draw(st.one_of(st.just(NEVER), st.integers(called, 10), st.integers(called, 10)))
        kind = draw(st.sampled_from(Kind))
        revision = draw(st.integers(0, 4))
        read = draw(st.sampled_from([None, *values]))
        done = draw(st.booleans())
        expected = draw(st.integers(0, 3))
        if returned == NEVER:
            operations.append(Operation(kind, called, value=values[number], expected=expected))
            continue
        match kind:
            case Kind.PUT:
                operations.append(put(called, returned, values[number], revision))
            case Kind.GET:
                operations.append(get(called, returned, read, revision if read else 0))
            case Kind.DELETE:
                operations.append(delete(called, returned, done, revision if done else 0))
            case Kind.CAS:
                found = None if done else read
                known = revision if done or found else 0
                operations.append(cas(called, returned, values[number], expected, done, found, known))
    return operations


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(histories())
def test_it_says_what_trying_every_order_says(history: list[Operation]) -> None:
    assert is_linearizable(history) == is_linearizable_by_force(history)


def made_by_a_register(chance: random.Random, count: int, clients: int) -> list[Operation]:
    """A long history that did happen: each operation at a moment between its call and its return."""
    operations = []
    free = [0.0] * clients
    value: str | None = None
    mod = revision = 1
    moment = 0.0
    for number in range(count):
        moment += 1
        client = min(range(clients), key=lambda each: free[each])
        called = max(free[client], moment - chance.random() * 5)
        called = min(called, moment)
        returned = moment + chance.random() * 5
        free[client] = returned + 0.001
        name = f"v{number}"
        kind = chance.choice(list(Kind))
        is_lost = kind != Kind.GET and chance.random() < 0.02
        end = NEVER if is_lost else returned
        now = mod if value is not None else 0
        match kind:
            case Kind.PUT:
                revision += 1
                value, mod = name, revision
                operations.append(put(called, end, name, 0 if is_lost else revision))
            case Kind.GET:
                operations.append(get(called, returned, value, now))
            case Kind.DELETE:
                done = value is not None
                revision += done
                value = None
                operations.append(delete(called, end, done, revision if done and not is_lost else 0))
            case Kind.CAS:
                expected = chance.choice([now, now, revision - 1, 0])
                if expected == now:
                    revision += 1
                    value, mod = name, revision
                    operations.append(cas(called, end, name, expected, not is_lost, revision=0 if is_lost else mod))
                else:
                    operations.append(cas(called, end, name, expected, False, None if is_lost else value, now))
    return operations


@pytest.mark.parametrize("seed", range(5))
def test_long_histories(seed: int) -> None:
    """One that happened is good; one whose late read is of something old is not."""
    chance = random.Random(seed)
    history = made_by_a_register(chance, 1000, 5)
    assert is_linearizable(history)
    end = max(each.returned for each in history if each.is_known)
    old = next(each for each in history if each.kind == Kind.PUT and each.is_known)
    spoiled = [*history, get(end + 1, end + 2, old.value, old.revision)]
    assert not is_linearizable(spoiled)


def test_it_gives_up_rather_than_search_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.chaos.linearizability.MAX_STATES", 100)
    at_once = [put(0, 9, f"v{number}") for number in range(12)]
    with pytest.raises(Undecided):
        is_linearizable([*at_once, get(10, 11, "nothing", 1)])
