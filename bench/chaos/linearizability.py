"""A checker of linearizability: decides whether clients' operations on one key have an order, each at one moment.

The search is that of Wing and Gong, with Lowe's addition: the search remembers the operations taken and the state of
the key, so that it looks at no such pair twice (Lowe, "Testing for linearizability", 2017). Histories are of one key.
Linearizability is local: a set of keys is linearizable if each key is.

An operation with an unknown outcome (the call failed, and may have been applied) may take effect at any time after the
call, or never.

Every write has a value of its own. So the value of a read identifies the write. And the revision in the read is that of
this write, even if the writer has got no answer.
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
    MOVE = "move"
    """The key has moved to another shard: it was written once more, with the same value."""


@dataclass(frozen=True)
class Operation:
    """A call, and what it answered.

    Attributes:
        kind: CAS is a put if the key's mod revision is `expected`, and a get otherwise.
        called, returned: the times; `returned` is NEVER if the outcome is unknown.
        value: the value that is put; no other operation puts the same.
        expected: the mod revision of a CAS; 0 for a key that is not there.
        done: whether a DELETE has deleted a key, or a CAS has put its value; true for a MOVE.
        read: the value that a GET, a MOVE, or a CAS that was not done, has found; None for no key.
        revision: for a PUT, a DELETE or a CAS that was done, the revision in the answer; for a read, the mod revision
            of the key. 0 if it is not known.
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
        """Whether the operation surely changed nothing."""
        return self.is_known and (self.kind == Kind.GET or (self.kind != Kind.PUT and not self.done))


@dataclass(frozen=True)
class State:
    """The key.

    Attributes:
        value: the value; None if the key does not exist.
        revision: the mod revision; 0 if it is not known.
        least: the highest revision that is surely in the past.
    """

    value: str | None = None
    revision: int = 0
    least: int = 0


class Undecided(Exception):
    """The search would take too long."""


def after(state: State, operation: Operation) -> list[State]:
    """The possible states of the key after the operation; empty if the answer is impossible in `state`."""
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
            return [state] if operation.is_known else []  # an unknown outcome that fails has no effect
        case Kind.CAS:
            matches = _matches(state, operation.expected)
            if operation.done or not operation.is_known:
                return _written(state, operation) if matches is not False else []
            return [found for found in _found(state, operation) if not _matches(found, operation.expected)]
        case Kind.MOVE:
            if operation.read != state.value:
                return []
            return [State(state.value, operation.revision, max(state.least, operation.revision))]


def _matches(state: State, expected: int) -> bool | None:
    """Whether the key's mod revision is the expected one; None if it is not known."""
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
    """Whether the history has an order, with each operation at one moment.

    Writes that nobody can have read need not be tried everywhere. If the only trace of a write with an unknown outcome
    is that the key exists, or does not, then the write only matters right before an operation that saw just that
    (`_unseen`). Of several such writes the first remaining one is enough: any later one can wait longer.

    Raises:
        Undecided: a reasonable number of steps does not decide.
    """
    operations = sorted(_with_revisions_read(history), key=lambda each: each.called)
    is_hidden = [not each.is_known and (each.kind == Kind.DELETE or each.value == UNREAD) for each in operations]
    known = sum(operation.is_known for operation in operations)
    returns = sorted((each.returned, place) for place, each in enumerate(operations) if each.is_known)
    # The known revisions of writes, and so the order of these writes.
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
        # The search tries the last entry of the stack first: the operation that returned first, and unknown ones last.
        candidates.sort(key=lambda place: (-operations[place].returned, -place))
        # A read that is possible here may be taken here: this excludes no later order.
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
    """The states that unseen writes may have made, and these writes, as bits.

    One write is enough for each state, or two: a delete, and a swap that needs the key to be absent. A third would only
    make a state that one write makes.
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
    """The history, with the revisions of writes that have no answer but were read by others.

    If nobody has read such a write, its revision makes no difference.
    """
    read: dict[str, int] = {}  # of a value that has moved, the revision that was read first
    for each in history:
        if each.read is not None:
            read[each.read] = min(each.revision, read.get(each.read, each.revision))
    completed = []
    for each in history:
        if each.kind in (Kind.PUT, Kind.CAS) and not each.is_known:
            is_read = each.value in read
            completed.append(replace(each, revision=read.get(each.value, 0), value=each.value if is_read else UNREAD))
        else:
            completed.append(each)
    return completed


def is_linearizable_by_force(history: Sequence[Operation]) -> bool:
    """As `is_linearizable`, by trying every order: for histories of a few operations."""
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
