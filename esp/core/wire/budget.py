"""Fair shares of memory, or of places: a bound that all clients share, and the rule which call gives way at the bound.

Memory that a call takes is counted for the call, for its connection, and for the address of the connection. Below the
limit any call may take any amount. At the limit a call gives way: of the address that holds most, the connection that
holds most, and of that the call that holds most. So a newcomer always gets some memory, however many connections or
calls others have opened. A call that asks for more is refused only if no other would hold more than this call then
does.

A call gives way when `settle` is called, at a moment when no connection is in the middle of a step. Until then the sum
may exceed the limit by an eighth, and by the last amount taken.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakValueDictionary


class Owner(Protocol):
    """The holder of an account."""

    def cut(self) -> None:
        """Others need memory, and this owner holds most: end, and keep nothing."""


class Account:
    """The memory, or places, that one address, connection or call has taken. Accounts above in the tree count it too.

    Attributes:
        held: the memory, in bytes, or the number of places.
        is_closed: the account has given all back, and takes nothing any more.
        owner: ends if the account has to give way; None for an account that consists of others, or never gives way.
    """

    __slots__ = (
        "__weakref__",
        "_above",
        "_budget",
        "_from",
        "_names",
        "_parent",
        "_place",
        "_ranks",
        "_ranks_in",
        "held",
        "is_closed",
        "owner",
    )

    def __init__(self, parent: Account | None, owner: Owner | None = None, *, gives_way: bool = True) -> None:
        self.held = 0
        self.owner = owner
        self._parent = parent
        self._budget: BufferBudget = parent._budget if parent is not None else self  # type: ignore[assignment]
        self.is_closed = False
        self._names: WeakValueDictionary[str, Account] | None = None
        # The accounts below that hold something, by size; sizes within an eighth share a rank.
        self._ranks: dict[int, dict[Account, None]] = {}
        self._ranks_in = parent._ranks if parent is not None and gives_way else None
        self._place = 0
        self._from, self._above = 0, 1  # the sizes at this place

    def of(self, name: str) -> Account:
        """The account below this one that has a name, such as an address; made when there is none."""
        if self._names is None:
            self._names = WeakValueDictionary()
        account = self._names.get(name)
        if account is None:
            account = self._names[name] = Account(self)
        return account

    def open(self, owner: Owner | None) -> Account:
        """A new account below this one, for `owner`."""
        return Account(self, owner)

    def take(self, size: int) -> bool:
        """Accounts for `size` more; False, without any change, if there is no room."""
        if not self.may_take(size):
            return False
        self._add(size)
        return True

    def may_take(self, size: int) -> bool:
        """Whether `take` would say yes."""
        budget = self._budget
        return not self.is_closed and (budget.held + size <= budget.limit or budget.has_bigger_than(self, size))

    def give(self, size: int) -> None:
        """Returns `size`. A closed account has returned all, and returns nothing."""
        if not self.is_closed:
            self._add(-size)

    def close(self) -> None:
        """Returns all that is held; nothing can be taken any more."""
        if not self.is_closed:
            self._add(-self.held)
            self.is_closed = True
            self.owner = None  # the owner refers to this account

    def biggest(self) -> Account | None:
        """The account below that holds most, within an eighth; None when none holds anything."""
        ranks = self._ranks
        return next(iter(ranks[max(ranks)])) if ranks else None

    def path(self) -> list[Account]:
        """The accounts from below the root down to this one."""
        parent = self._parent
        return [] if parent is None else [*parent.path(), self]

    def _add(self, size: int) -> None:
        account: Account | None = self
        while account is not None:
            held = account.held = account.held + size
            if not account._from <= held < account._above:
                account._move(held)
            account = account._parent

    def _move(self, held: int) -> None:
        # The first four bits of the number, and the count of bits behind them: grows with the number.
        shift = max(0, held.bit_length() - 4)
        top = held >> shift
        place = (shift << 4) + top
        self._from, self._above = top << shift, top + 1 << shift
        ranks = self._ranks_in
        if ranks is not None:
            before = self._place
            if before:
                del ranks[before][self]
                if not ranks[before]:
                    del ranks[before]
            if place:
                ranks.setdefault(place, {})[self] = None
        self._place = place


class BufferBudget(Account):
    """The root account: after `settle` all accounts together hold at most `limit`.

    Attributes:
        limit: the bound.
        shared: the account of memory for esp itself, or for several clients at once; never gives way.
    """

    __slots__ = ("limit", "shared")

    def __init__(self, limit: int) -> None:
        super().__init__(None)
        self.limit = limit
        self.shared = Account(self, gives_way=False)

    @property
    def used(self) -> int:
        """The sum over all accounts."""
        return self.held

    def has_bigger_than(self, account: Account, size: int) -> bool:
        """Whether another account will have to give way if `account` takes `size` more."""
        if self.held > self.limit + (self.limit >> 3):
            return False
        above: Account = self
        for own in account.path():
            biggest = above.biggest()
            if biggest is not None and biggest is not own and biggest.held > own.held + size:
                return True
            above = own
        return False

    def settle(self) -> None:
        """Lets the accounts that hold most give way until the sum is within the limit."""
        while self.held > self.limit:
            account: Account = self
            while (biggest := account.biggest()) is not None:
                account = biggest
            if account is self:
                return  # all of it is esp's own
            try:
                if account.owner is not None:
                    account.owner.cut()
            finally:
                account.close()
