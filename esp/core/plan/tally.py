"""Keys in their order, counted by prefixes, in bounded memory.

A prefix ends with a separator: `/registry/pods/`. Its depth is the number of separators in it, without one at the very
start. Because keys come in order, a prefix is complete when a key comes that does not begin with it, and what it has is
the difference between two running sums: exact, whatever else is forgotten.

What is forgotten: when `most` prefixes are complete, the lighter half of them goes. The weight of a prefix is the
greatest of its shares in the keys, bytes and writes so far. Why no heavy prefix goes: of the prefixes of one depth,
which have no key in common, the shares by one measure add up to 1 at most; so with three measures and D depths there
are at most 3 D / s prefixes with a share of s or more. If one that weighs s goes, most/2 others weigh s or more, so
s <= 6 D / most, and its share in the end is no greater, since the sums only grow. `Tally.bound` is that number. A
prefix that stays has its parents with it: they weigh as much or more. So that crowds of light prefixes cost little,
one that is lighter when it is complete than all that stayed the last time goes at once: the same most/2 weighed more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from esp.core.keys import prefix_end
from esp.core.plan.curve import LONGEST, Curve, Steps
from esp.core.plan.weights import NOTHING, Weights

MOST_PREFIXES: Final = 8192
MOST_LOCKS: Final = 4096


class Prefix(NamedTuple):
    """A prefix.

    Attributes:
        prefix: the bytes, with the separator at the end; those of all keys are empty. There are none above `LONGEST`.
        depth: the number of separators in it, without one at the start.
        before: what lies before its first key.
        weights: what lies below it.
        locks: whether keys directly below it are those of a lock or an election.
    """

    prefix: bytes
    depth: int
    before: Weights
    weights: Weights
    locks: bool


class Counted(NamedTuple):
    """All keys, counted.

    Attributes:
        prefixes: in the order of their bytes, so that each comes after its parents; the first is that of all keys.
        curve: what lies before each key.
        samples: some keys, in order, at most a step of the curve apart.
        locks: further prefixes of locks, those that do not end with a separator; None if there are too many to tell.
        bound: a prefix that is not among `prefixes` has at most this share of all keys, bytes, and writes.
    """

    prefixes: Sequence[Prefix]
    curve: Curve
    samples: Sequence[bytes]
    locks: Sequence[bytes] | None
    bound: float


class _Open:
    """A prefix that is not complete."""

    __slots__ = ("before", "depth", "locks", "prefix")

    def __init__(self, prefix: bytes, depth: int, before: Weights) -> None:
        self.prefix = prefix
        self.depth = depth
        self.before = before
        self.locks = False


class Tally:
    """The count while keys come."""

    def __init__(self, separator: bytes, depth: int, marks: Sequence[bytes] = (), most: int = MOST_PREFIXES) -> None:
        """Prefixes of at most `depth` are told; `marks`: sorted keys at which the curve is to be exact."""
        self._separator = separator
        self._depth = depth
        self._marks = list(reversed(marks))
        self._most = most
        self._steps = Steps()
        self._exact: list[tuple[bytes, Weights]] = []
        self._complete: list[Prefix] = []
        self._open = [_Open(b"", 0, NOTHING)]
        self._locks: dict[bytes, None] = {}
        self._floor = 0.0  # the lightest that stayed the last time
        self._last = b""
        self.keys = self.bytes = self.writes = 0

    @property
    def total(self) -> Weights:
        """What has come so far."""
        return Weights(self.keys, self.bytes, self.writes)

    @property
    def bound(self) -> float:
        """No prefix with a greater share of all keys, bytes or writes is forgotten."""
        return 6 * (self._depth + 1) / self._most if self._floor else 0.0

    def add(self, key: bytes, size: int, writes: int = 0, *, lease: int = 0, exists: bool = True) -> None:
        """A key, not before the last one.

        Args:
            key: its bytes.
            size: bytes of the key and its value.
            writes: how often it was written.
            lease: the id of its lease; 0 for none.
            exists: False for a key that was written, and is not there.
        """
        assert key >= self._last, "keys come in order"
        self._last = key
        before = Weights(self.keys, self.bytes, self.writes)
        while self._marks and self._marks[-1] <= key:
            self._exact.append((self._marks.pop(), before))
        self._steps.passed(key, before)
        here = self._open[-1]
        while not key.startswith(here.prefix):
            self._close(before)
            here = self._open[-1]
        if here.depth < self._depth:
            here = self._descend(key, before)
        if lease and key.endswith(b"/%x" % lease):
            self._lock(key[: key.rindex(b"/") + 1], here)
        if exists:
            self.keys += 1
            self.bytes += size
        self.writes += writes

    def _descend(self, key: bytes, before: Weights) -> _Open:
        here = self._open[-1]
        separator = self._separator
        while here.depth < self._depth:
            place = key.find(separator, len(here.prefix))
            if place < 0 or place >= LONGEST:
                break
            here = _Open(key[: place + len(separator)], here.depth + (place > 0), before)
            self._open.append(here)
        return here

    def _lock(self, prefix: bytes, here: _Open) -> None:
        if prefix == here.prefix:
            here.locks = True
        elif len(self._locks) <= MOST_LOCKS:
            self._locks[prefix] = None

    def _close(self, before: Weights) -> None:
        one = self._open.pop()
        weights = before.less(one.before)
        if self._floor and weights.share(before) < self._floor:
            return
        self._complete.append(Prefix(one.prefix, one.depth, one.before, weights, one.locks))
        if len(self._complete) >= self._most:
            self._complete.sort(key=lambda prefix: (-prefix.weights.share(before), prefix.prefix))
            del self._complete[self._most // 2 :]
            self._floor = self._complete[-1].weights.share(before) or 1e-300

    def finish(self) -> Counted:
        """No more keys come."""
        total = self.total
        while self._open:
            self._close(total)
        prefixes = sorted(self._complete)
        points = [*self._steps.points, *self._exact, *((mark, total) for mark in self._marks)]
        for prefix in prefixes:
            points.append((prefix.prefix, prefix.before))
            end = prefix_end(prefix.prefix)
            if end is not None:
                points.append((end, _sum(prefix.before, prefix.weights)))
        locks = None if len(self._locks) > MOST_LOCKS else sorted(self._locks)
        samples = [key for key, _ in self._steps.points]
        return Counted(prefixes, Curve(points, total), samples, locks, self.bound)


def _sum(one: Weights, other: Weights) -> Weights:
    return Weights(one[0] + other[0], one[1] + other[1], one[2] + other[2])
