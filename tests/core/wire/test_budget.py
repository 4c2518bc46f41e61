"""The budget: how much an account may take, and which account gives way."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.wire.budget import Account, BufferBudget
from tests.examples import tries

ADDRESSES, CONNECTIONS, CALLS = 3, 2, 2


@dataclass(eq=False)
class Call:
    """One that gives way when it is told to."""

    name: tuple[int, int, int]
    told: list[tuple[int, int, int]] = field(default_factory=list)

    def cut(self) -> None:
        self.told.append(self.name)


class Model:
    """The same budget, in the simplest way: a number for each call."""

    def __init__(self, limit: int) -> None:
        self.budget = BufferBudget(limit)
        self.limit = limit
        self.cut: list[tuple[int, int, int]] = []
        self.held: dict[tuple[int, int, int], int] = {}
        self.connections = {
            (address, connection): self.budget.of(f"{address}").of(f"{address}:{connection}")
            for address in range(ADDRESSES)
            for connection in range(CONNECTIONS)
        }
        self.accounts: dict[tuple[int, int, int], Account] = {}
        for address, connection in self.connections:
            for call in range(CALLS):
                self.open((address, connection, call))

    def open(self, name: tuple[int, int, int]) -> None:
        self.held[name] = 0
        self.accounts[name] = self.connections[name[:2]].open(Call(name, self.cut))

    def sum(self, *prefix: int) -> int:
        return sum(size for name, size in self.held.items() if name[: len(prefix)] == prefix)

    def bigger(self, name: tuple[int, int, int], size: int) -> list[tuple[int, ...]]:
        """Those beside it, at each height, that hold more than it would."""
        found: list[tuple[int, ...]] = []
        for height in (1, 2, 3):
            own = name[:height]
            beside = {one[:height] for one in self.held if one[: height - 1] == own[:-1]} - {own}
            found += [other for other in beside if self.sum(*other) > self.sum(*own) + size]
        return found

    def take(self, name: tuple[int, int, int], size: int) -> None:
        before = sum(self.held.values())
        bigger = self.bigger(name, size)
        taken = self.accounts[name].take(size)
        if before + size <= self.limit:
            assert taken
        elif taken:
            assert bigger
            assert before <= self.limit + self.limit // 8
        else:
            assert before > self.limit + self.limit // 8 or all(
                self.sum(*other) <= (self.sum(*name[: len(other)]) + size) * 9 / 8 + 1 for other in bigger
            ), "who is refused would be the biggest, within an eighth"
        if taken:
            self.held[name] += size

    def give(self, name: tuple[int, int, int], size: int) -> None:
        size = min(size, self.held[name])
        self.accounts[name].give(size)
        self.held[name] -= size

    def settle(self) -> None:
        self.cut.clear()
        self.budget.settle()
        for name in self.cut:
            assert sum(self.held.values()) > self.limit, "nobody is cut without need"
            for height in (1, 2, 3):
                beside = {one[:height] for one in self.held if one[: height - 1] == name[: height - 1]}
                most = max(self.sum(*one) for one in beside)
                assert self.sum(*name[:height]) >= most * 8 / 9 - 1, "who is cut holds most"
            assert not self.accounts[name].take(1)
            self.open(name)
        assert sum(self.held.values()) <= self.limit

    def agrees(self) -> None:
        assert self.budget.used == sum(self.held.values())
        for name, account in self.accounts.items():
            assert account.held == self.held[name]
        for name, account in self.connections.items():
            assert account.held == self.sum(*name)


calls = st.tuples(*(st.integers(0, most - 1) for most in (ADDRESSES, CONNECTIONS, CALLS)))
sizes = st.integers(0, 40) | st.integers(0, 1200)
steps = st.lists(
    st.tuples(st.just("take"), calls, sizes)
    | st.tuples(st.just("give"), calls, sizes)
    | st.tuples(st.just("close"), calls, st.just(0))
    | st.tuples(st.just("settle"), calls, st.just(0)),
    max_size=60,
)


@settings(max_examples=tries(300), deadline=None)
@given(steps)
def test_it_does_as_the_model_does(steps: Iterable[tuple[str, tuple[int, int, int], int]]) -> None:
    model = Model(1000)
    for what, name, size in steps:
        if what == "take":
            model.take(name, size)
        elif what == "give":
            model.give(name, size)
        elif what == "settle":
            model.settle()
        else:
            model.accounts[name].close()
            model.open(name)
        model.agrees()
    model.settle()
    for account in model.accounts.values():
        account.close()
    assert model.budget.used == 0
    assert model.budget.biggest() is None


def full(limit: int, *shares: int) -> tuple[BufferBudget, list[Account], list[tuple[int, int, int]]]:
    """A budget that these calls fill, one on each connection, all from one address."""
    budget = BufferBudget(limit)
    cut: list[tuple[int, int, int]] = []
    accounts = [budget.of("here").of(f"here:{number}").open(Call((0, number, 0), cut)) for number in range(len(shares))]
    for account, share in zip(accounts, shares, strict=True):
        assert account.take(share)
    return budget, accounts, cut


def test_one_alone_may_have_all_and_no_more() -> None:
    budget, [account], cut = full(1000, 1000)
    assert not account.take(1)
    budget.settle()
    assert cut == []
    assert budget.used == 1000


def test_a_newcomer_takes_from_who_has_most() -> None:
    budget, _, cut = full(1000, 300, 500, 200)
    newcomer = budget.of("there").of("there:1").open(Call((1, 1, 1), cut))
    assert newcomer.take(100)
    budget.settle()
    assert cut == [(0, 1, 0)]
    assert newcomer.held == 100
    assert budget.used == 600


def test_many_connections_of_one_address_count_together() -> None:
    budget, accounts, cut = full(1000, *[50] * 20)
    other = budget.of("there").of("there:1").open(Call((1, 1, 1), cut))
    for _ in range(4):
        assert other.take(100)
        budget.settle()
    assert len(cut) == 8
    assert other.held == 400
    assert not accounts[-1].take(100), "its address has more than any other"
    assert budget.used == 1000


def test_one_that_holds_most_gives_way_to_another_of_its_connection() -> None:
    budget = BufferBudget(1000)
    cut: list[tuple[int, int, int]] = []
    connection = budget.of("here").of("here:1")
    big, small = connection.open(Call((1, 1, 1), cut)), connection.open(Call((1, 1, 2), cut))
    assert big.take(900)
    assert small.take(100)
    assert small.take(100)
    assert not big.take(1)
    budget.settle()
    assert cut == [(1, 1, 1)]
    assert budget.used == 200


def test_what_is_shared_never_gives_way() -> None:
    budget = BufferBudget(1000)
    cut: list[tuple[int, int, int]] = []
    assert budget.shared.take(900)
    account = budget.of("here").of("here:1").open(Call((1, 1, 1), cut))
    assert account.take(100)
    assert not account.take(1)
    assert not budget.shared.take(200)
    budget.settle()
    assert cut == []
    assert budget.used == 1000


def test_an_account_that_is_closed_takes_nothing_and_gives_nothing() -> None:
    budget, [account], _ = full(1000, 300)
    account.close()
    assert not account.take(1)
    account.give(300)
    account.close()
    assert budget.used == 0


def test_nothing_is_left_of_who_is_gone() -> None:
    budget, accounts, _ = full(1000, 300)
    gone = weakref.ref(accounts[0])
    gc.collect()
    gc.disable()
    try:
        accounts[0].close()
        accounts.clear()
        assert gone() is None
    finally:
        gc.enable()
    assert not budget._names


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100, 2**20, 2**31])
def test_who_holds_more_ranks_higher(size: int) -> None:
    budget = BufferBudget(2**40)
    one, other = budget.of("one"), budget.of("other")
    first, second = one.open(None), other.open(None)
    assert first.take(size)
    assert second.take(size + size // 4 + 1)
    assert budget.biggest() is other
    second.give(size // 2 + 1)
    assert budget.biggest() is one
