"""A checker: whether what clients saw of one key can have happened in one order, each operation at one moment.

The search is that of Wing and Gong, with what Lowe added: which operations were taken and what the key then was is
remembered, so that nothing is looked at twice (Lowe, "Testing for linearizability", 2017). Histories are of one key:
linearizability is local, so a set of keys is linearizable if each is.

An operation whose outcome is unknown (the call failed, and may have been applied) may take effect at any time after it
was called, or never.

Every write writes a value that no other does. So the value that was read tells which write it was, and the revision
that came with it, whose write it is, is as good as the answer that the writer may not have got.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations, permutations

MAX_STATES = 1_000_000
NEVER = float("inf")
UNREAD = "(nobody has read it)"


class Kind(Enum):
    PUT = "put"
    GET = "get"
    DELETE = "delete"
    CAS = "cas"


@dataclass(frozen=True)
class Operation:
    """A call, and what it answered.

    Attributes:
        kind: CAS is a put if the key's mod revision is `expected`, and a get otherwise.
        called, returned: when; NEVER is when its outcome is unknown.
        value: what is put; no other operation puts the same.
        expected: the mod revision of a CAS; 0 for a key that is not there.
        done: whether a DELETE has deleted a key, or a CAS has put its value.
        read: what a GET, or a CAS that was not done, has found: None for no key.
        revision: of a PUT, a DELETE or a CAS that was done, the revision that the answer names; of what was read, its
            mod revision. 0 when it is not known.
    """

    kind: Kind
    called: float
    returned: float = NEVER
    value: str = ""
    expected: int = 0
    done: bool = False
    read: str | None = None
    revision: int = 0

    @property
    def is_known(self) -> bool:
        return self.returned != NEVER

    @property
    def only_reads(self) -> bool:
        """Whether it is known that it changed nothing."""
        return self.is_known and (self.kind == Kind.GET or (self.kind != Kind.PUT and not self.done))


@dataclass(frozen=True)
class State:
    """The key.

    Attributes:
        value: None when it is not there.
        revision: its mod revision; 0 when it is not known.
        least: the highest revision that is known to be past.
    """

    value: str | None = None
    revision: int = 0
    least: int = 0


class Undecided(Exception):
    """The search would take too long."""


def after(state: State, operation: Operation) -> list[State]:
    """What the key may be after the operation; nothing when it cannot have answered so there."""
    match operation.kind:
        case Kind.PUT:
            return _written(state, operation)
        case Kind.GET:
            return _found(state, operation)
        case Kind.DELETE:
            is_there = state.value is not None
            if operation.is_known and operation.done != is_there:
                return []
            if is_there:
                return _written(state, operation)
            return [state] if operation.is_known else []  # it had better not be taken
        case Kind.CAS:
            matches = _matches(state, operation.expected)
            if operation.done or not operation.is_known:
                return _written(state, operation) if matches is not False else []
            return [found for found in _found(state, operation) if not _matches(found, operation.expected)]


def _matches(state: State, expected: int) -> bool | None:
    """Whether the key's mod revision is the expected one; None when that is not known."""
    if state.value is None or not expected:
        return state.value is None and not expected
    if not state.revision:
        return None if expected > state.least else False
    return state.revision == expected


def _written(state: State, operation: Operation) -> list[State]:
    if operation.revision and operation.revision <= state.least:
        return []
    least = max(operation.revision, state.least)
    if operation.kind == Kind.DELETE:
        return [State(None, 0, least)]
    return [State(operation.value, operation.revision, least)]


def _found(state: State, operation: Operation) -> list[State]:
    if operation.read != state.value:
        return []
    if state.value is None or not operation.revision:
        return [state]
    if state.revision:
        return [state] if state.revision == operation.revision else []
    if operation.revision <= state.least:
        return []
    return [State(state.value, operation.revision, max(state.least, operation.revision))]


def is_linearizable(history: Sequence[Operation]) -> bool:
    """Whether there is such an order.

    What nobody can have read need not be tried everywhere: a write of unknown outcome that leaves nothing behind but
    that the key is there, or is not, only matters right before an operation that saw just that (`_unseen`). Of several
    such the first that is left will do, since any later one can wait longer.

    Raises:
        Undecided: it cannot be told with a reasonable number of steps.
    """
    operations = sorted(_with_revisions_read(history), key=lambda each: each.called)
    is_hidden = [not each.is_known and (each.kind == Kind.DELETE or each.value == UNREAD) for each in operations]
    known = sum(operation.is_known for operation in operations)
    returns = sorted((each.returned, place) for place, each in enumerate(operations) if each.is_known)
    # The revisions that writes are known to have had, and so the order of these.
    revisions = sorted(
        (each.revision, place)
        for place, each in enumerate(operations)
        if each.is_known and each.revision and not each.only_reads
    )
    # `taken` is bits; `first` and `write` run along `returns` and `revisions`, past it.
    seen: set[tuple[int, State]] = set()
    stack = [(0, 0, 0, 0, State())]  # taken, how many known ones of it, first, next in `revisions`, the key

    def go_on(taken: int, count: int, state: State) -> None:
        if (taken, state) not in seen:
            if len(seen) >= MAX_STATES:
                raise Undecided
            seen.add((taken, state))
            stack.append((taken, count, first, write, state))

    while stack:
        taken, count, first, write, state = stack.pop()
        if count == known:
            return True
        while taken >> returns[first][1] & 1:
            first += 1
        while write < len(revisions) and taken >> revisions[write][1] & 1:
            write += 1
        deadline = returns[first][0]
        least_left = revisions[write][0] if write < len(revisions) else NEVER
        candidates: list[int] = []
        hidden: dict[object, int] = {}
        for place in _not_taken(taken, len(operations)):
            operation = operations[place]
            if operation.called > deadline:
                break
            if is_hidden[place]:
                hidden.setdefault((operation.kind, operation.expected), place)
            elif operation.only_reads or operation.revision <= least_left:
                candidates.append(place)
        # The last that is put on the stack is tried first: the one that returned first, and the unknown ones last.
        candidates.sort(key=lambda place: (-operations[place].returned, -place))
        # What only reads and can be right here is right here: nothing that follows is the worse for it.
        reads = [place for place in candidates if operations[place].only_reads and after(state, operations[place])]
        for place in reads[:1] or candidates:
            operation = operations[place]
            bit = 1 << place
            at_once = after(state, operation)
            for following in at_once:
                go_on(taken | bit, count + operation.is_known, following)
            if at_once:
                continue
            for unseen, between in _unseen(operations, list(hidden.values()), state):
                for following in after(between, operation):
                    go_on(taken | bit | unseen, count + operation.is_known, following)
    return False


def _unseen(operations: Sequence[Operation], hidden: Sequence[int], state: State) -> Iterator[tuple[int, State]]:
    """What the key may have become unseen, and by which operations, as bits.

    One is enough for that, or two: a delete, and a swap that needs the key not to be there. A third would only make
    again what one makes.
    """
    for one in hidden:
        for then in after(state, operations[one]):
            yield 1 << one, then
            for other in hidden:
                if other != one:
                    for last in after(then, operations[other]):
                        yield 1 << one | 1 << other, last


def _not_taken(taken: int, count: int) -> Iterator[int]:
    """The places of the bits that are not set, from the lowest on."""
    free = ~taken & ((1 << count) - 1)
    while free:
        low = free & -free
        yield low.bit_length() - 1
        free ^= low


def _with_revisions_read(history: Sequence[Operation]) -> list[Operation]:
    """With the revisions of writes whose answer is not known, but which were read by others.

    What such a write has written, if nobody has read it, makes no difference.
    """
    read = {each.read: each.revision for each in history if each.read is not None}
    completed = []
    for each in history:
        if each.kind in (Kind.PUT, Kind.CAS) and not each.is_known:
            is_read = each.value in read
            completed.append(replace(each, revision=read.get(each.value, 0), value=each.value if is_read else UNREAD))
        else:
            completed.append(each)
    return completed


def is_linearizable_by_force(history: Sequence[Operation]) -> bool:
    """The same, by trying every order: for histories of a few operations."""
    known = [operation for operation in history if operation.is_known]
    unknown = [operation for operation in history if not operation.is_known]
    for count in range(len(unknown) + 1):
        for some in combinations(unknown, count):
            for order in permutations([*known, *some]):
                if _respects_time(order) and _explains(order):
                    return True
    return not known


def _respects_time(order: Sequence[Operation]) -> bool:
    return all(later.returned >= earlier.called for place, earlier in enumerate(order) for later in order[place + 1 :])


def _explains(order: Sequence[Operation]) -> bool:
    states = [State()]
    for operation in order:
        states = [following for state in states for following in after(state, operation)]
    return bool(states)
