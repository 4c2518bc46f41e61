"""Counts clients' calls when they have ended: by method, shard and code, and how long they took.

A call has two sides. Towards the client esp is the server; towards the shard that it is passed on to, the client. For a
call that is sent to its shard in the turn in which it came, both sides are one event and are counted once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator
from math import inf
from typing import Final

from esp.core.wire.context import WireContext
from esp.core.wire.ended import UNKNOWN, EndedCall, Passed
from esp.core.wire.traffic import Messages
from esp.core.wire.turns import SLICE

BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the buckets, in seconds."""
AT_ONCE: Final = 1024
"""Calls that are counted between two looks at the clock."""


class Tally:
    """Calls of one kind: how many ended with each code, and how long they took.

    Attributes:
        buckets: for each of BOUNDS the calls that took at most so many seconds, and more than the bound before; at the
            end the calls above all bounds.
        seconds: the sum of the calls' seconds.
        codes: the calls by status code.
    """

    __slots__ = ("buckets", "codes", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self.codes: Counter[int] = Counter()

    def add(self, seconds: float, code: int) -> None:
        """Counts a call."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
        self.codes[code] += 1

    def add_all(self, took: list[float]) -> None:
        """Counts calls that ended well. Sorts the list, which is quicker than to look up the bucket of each call."""
        took.sort()
        below = 0
        for place, bound in enumerate(BOUNDS):
            up_to = bisect_right(took, bound, below)
            self.buckets[place] += up_to - below
            below = up_to
        self.buckets[-1] += len(took) - below
        self.seconds += sum(took)
        self.codes[0] += len(took)

    def include(self, other: Tally) -> None:
        """Adds the calls of another tally."""
        for place, calls in enumerate(other.buckets):
            self.buckets[place] += calls
        self.seconds += other.seconds
        self.codes.update(other.codes)


class Tallies(dict[bytes, Tally]):
    """Tallies by path; that of a path is there as soon as it is asked for."""

    def __missing__(self, path: bytes) -> Tally:
        tally = self[path] = Tally()
        return tally


class Calls:
    """The observer of a process (`Observer`).

    Args:
        context: of the wire. Making this object puts it there as the observer: make it before any client of a shard.
        known: the paths that have tallies of their own. All others share the path UNKNOWN.

    Attributes:
        passed: by shard and path, the calls that were sent to one shard in the turn in which they came.
        served: by path, all other calls, as the client sees them.
        sent: by shard and path, what else the shard was asked: calls of `served`, and questions of esp's own.
    """

    def __init__(self, context: WireContext, known: Container[bytes]) -> None:
        self.passed: defaultdict[str, Tallies] = defaultdict(Tallies)
        self.served = Tallies()
        self.sent: defaultdict[str, Tallies] = defaultdict(Tallies)
        self._context = context
        self._known = known
        self._slow = inf
        self._listeners: dict[Callable[[EndedCall], None], float] = {}
        self._lists: dict[str, Passed] = {}
        self._joined: dict[str, Passed] = {}
        context.observer = self

    def listen(self, listener: Callable[[EndedCall], None], slow: float) -> None:
        """Has `listener` told of each ended call that took `slow` seconds or more; with 0 of every call.

        The listener also hears of quicker calls, unless they were passed on in the usual way and ended well. The
        listener raises nothing. Called again for a listener, this changes its seconds. If there are clients of shards
        already, they have to observe anew.
        """
        self._listeners[listener] = slow
        self._slow = min(self._listeners.values())
        for passed in (*self._lists.values(), *self._joined.values()):
            passed.slow = self._slow

    # As the wire and the clients of the shards see it.

    def passed_to(self, name: str) -> Passed:
        """The usual calls passed on to the shard of this name."""
        return self._list(self._lists, name)

    def joined_to(self, name: str) -> Passed:
        """The calls of which several were sent to that shard as one."""
        return self._list(self._joined, name)

    def _list(self, lists: dict[str, Passed], name: str) -> Passed:
        found = lists.get(name)
        if found is None:
            found = lists[name] = Passed(name, self._known, self._slow)
        return found

    def ended(self, call: EndedCall) -> None:
        """Counts a call that is in no list, and tells the listeners."""
        path = call.path if call.path in self._known else UNKNOWN
        if call.server in self._lists and call.sent == call.opened:
            self.passed[call.server][path].add(call.at - call.opened, call.code)
        else:
            self.served[path].add(call.at - call.opened, call.code)
            if call.server in self._lists and call.sent:
                self.sent[call.server][path].add(call.at - call.sent, call.code)
        for listener in self._listeners:
            listener(call)

    def asked(self, name: str, path: bytes, code: int, seconds: float) -> None:
        """Counts a question of esp's own to a shard."""
        if name in self._lists:
            self.sent[name][path if path in self._known else UNKNOWN].add(seconds, code)

    def streamed(self) -> Iterator[tuple[str, bytes, Messages]]:
        """By shard and path, the messages of streams to the shards."""
        for name, passed in tuple(self._lists.items()):
            for path, messages in tuple(passed.messages.items()):
                yield name, path, messages

    # The lists.

    def tick(self) -> None:
        """Counts the calls that are in lists; the rest of many follows in the next turns."""
        clock = self._context.turns.clock
        stop = clock() + SLICE
        for tallies, lists in self._counted():
            for path, took in lists.items():
                while took:
                    tallies[path].add_all(_cut(took))
                    if clock() >= stop:
                        self._context.put_off(self)
                        return

    def _counted(self) -> Iterator[tuple[Tallies, dict[bytes, list[float]]]]:
        """The lists by path, and where their calls are counted."""
        for name, passed in self._lists.items():
            yield self.passed[name], passed.took.lists
            yield self.sent[name], passed.asked.lists
        for joined in self._joined.values():
            yield self.served, joined.took.lists

    def go_on(self) -> None:
        """Counts some more."""
        self.tick()

    def on_bug(self) -> None:
        """An exception came out of `go_on`: the next tick begins anew."""

    def forget(self, name: str) -> None:
        """A shard has left the layout: its calls are counted on without its name, so that no sum becomes smaller."""
        for passed in (self._lists.pop(name, None), self._joined.pop(name, None)):
            for path, took in passed.took.lists.items() if passed is not None else ():
                self.served[path].add_all(took)
        self.sent.pop(name, None)
        for path, tally in self.passed.pop(name, {}).items():
            self.served[path].include(tally)


def _cut(took: list[float]) -> list[float]:
    """Takes at most AT_ONCE items out of the list."""
    part = took[-AT_ONCE:]
    del took[-AT_ONCE:]
    return part
