"""The taps that get the same events, and the position of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

from esp.core.services.watch.messages import Response, as_one
from esp.core.services.watch.outbox import Outbox


class Follower(Protocol):
    """A tap that is fed.

    Attributes:
        next: the lowest revision that the tap has not passed on, where that is not the feed's own `next`.
        outbox: the way back to the tap's client.
        plain_id: the watch id under which a message goes to the client as it came; None if only `deliver` may send it.
    """

    next: int
    outbox: Outbox
    plain_id: int | None

    def deliver(self, responses: tuple[Response, ...]) -> None:
        """Events: a message, or the fragments of one."""


class _Never(dict[Any, None]):
    """A set that stays empty. A mapping proxy is no dict, and so would not do for compiled code."""

    def __setitem__(self, one: Any, value: None) -> None:
        raise TypeError("this set stays empty")


NONE: Final[dict[Any, None]] = _Never()
"""The set of no tap or source, shared by all that have none, as nearly all have; see `added`."""
PLAIN_AT_ONCE = 8
"""Taps in a step, if they get the message unchanged, which costs little."""

F = TypeVar("F", bound=Follower)
T = TypeVar("T")


def added(some: dict[T, None], one: T) -> dict[T, None]:
    """`some` with `one` added; a new set instead of NONE."""
    if some is NONE:
        return {one: None}
    some[one] = None
    return some


class Feed(Generic[F]):
    """Taps, and the events that they have got. Events come in the order of their revisions, each of them once.

    Attributes:
        next: the lowest revision that has not come; 0 until the shard has told the revision of "now".
        taps: the taps that have got everything below `next` and nothing else.
        fed: while a message is passed on in steps, the taps that have got the message: each has a `next` behind it.
        fresh: taps that have joined and are ahead of `next`: they get only events from their own `next` on.
        joining: taps that wait for the shard's permission to join.
    """

    __slots__ = ("fed", "fresh", "joining", "next", "taps")

    def __init__(self, start_revision: int) -> None:
        self.next = start_revision
        self.taps: dict[F, None] = {}
        self.fed: dict[F, None] = NONE
        self.fresh: dict[F, None] = NONE
        self.joining: dict[F, None] = NONE

    def everybody(self) -> list[F]:
        """All taps that are fed; taps that are to join are left out."""
        return [*self.taps, *self.fed, *self.fresh]

    def feeds(self, tap: F) -> bool:
        """Whether `tap` is one of `everybody`."""
        return tap in self.taps or tap in self.fed or tap in self.fresh

    def outboxes(self) -> Iterator[Outbox]:
        """The outboxes of the clients of all taps, taps that are to join included."""
        for tap in (*self.taps, *self.fed, *self.fresh, *self.joining):
            yield tap.outbox

    @property
    def count(self) -> int:
        """The number of taps, with taps that are to join."""
        return len(self.taps) + len(self.fed) + len(self.fresh) + len(self.joining)

    def take_in(self, tap: F, revision: int) -> None:
        """Feeds `tap` all events from `revision` on, which must not be below `next`."""
        if self.joining:
            self.joining.pop(tap, None)
        if revision == self.next:
            self.taps[tap] = None
        else:
            tap.next = revision
            self.fresh = added(self.fresh, tap)

    def let_go(self, tap: F) -> None:
        """Stops feeding `tap`."""
        for taps in (self.taps, self.fed, self.fresh, self.joining):
            if taps:
                taps.pop(tap, None)

    def pass_on(self, responses: tuple[Response, ...], *, to_only_one: bool) -> None:
        """Passes on events of whole revisions, none of which is below `next`: a message, or the fragments of one.

        `to_only_one` says that the events came in a call that feeds only one client.
        """
        first, last = responses[0].first, responses[-1].last
        if self.fresh:
            self._feed_fresh(responses, first, last)
        _tell_all(tuple(self.taps), responses, {} if len(responses) == 1 and not to_only_one else None)
        self.next = last + 1

    def pass_on_in_steps(self, responses: tuple[Response, ...]) -> Iterator[None]:
        """As `pass_on`, in steps of a few taps: meanwhile taps may come and go."""
        first, last = responses[0].first, responses[-1].last
        if self.fresh:
            self._feed_fresh(responses, first, last)
        encoded: dict[int, bytes] | None = {} if len(responses) == 1 else None
        if self.fed is NONE:
            self.fed = {}
        while self.taps:
            some: list[F] = []
            while self.taps and len(some) < PLAIN_AT_ONCE:
                tap, _ = self.taps.popitem()
                tap.next = last + 1
                self.fed[tap] = None
                some.append(tap)
                if encoded is None or tap.plain_id is None:
                    break  # this one takes long
            _tell_all(some, responses, encoded)
            yield
        self.next = last + 1
        self.taps, self.fed = self.fed, self.taps
        for tap in [tap for tap in self.fresh if tap.next <= last + 1]:  # also taps that have come meanwhile
            del self.fresh[tap]
            self.taps[tap] = None
            if tap.next <= last:
                tell(tap, tap.deliver, as_one([kept for each in responses if (kept := each.since(tap.next))]))

    def _feed_fresh(self, responses: tuple[Response, ...], first: int, last: int) -> None:
        """Takes fresh taps that the feed has reached into `taps`. They do not get events below their `next`."""
        for tap in list(self.fresh):
            if last < tap.next:
                continue
            del self.fresh[tap]
            if first < tap.next:
                tell(tap, tap.deliver, as_one([kept for each in responses if (kept := each.since(tap.next))]))
                tap.next = last + 1
                self.fresh[tap] = None
            else:
                self.taps[tap] = None

    def reach(self, revision: int) -> None:
        """Notes that all events up to `revision` have come."""
        if revision >= self.next:
            self.next = revision + 1
        for tap in [tap for tap in self.fresh if tap.next <= self.next]:
            del self.fresh[tap]
            self.taps[tap] = None


def tell(tap: Follower, on_told: Callable[[T], None], told: T) -> None:
    """Calls `on_told` for one tap. A bug in it ends only this client's stream; other taps are told, and only once."""
    try:
        on_told(told)
    except Exception:
        tap.outbox.on_bug()


def _tell_all(taps: Iterable[Follower], responses: tuple[Response, ...], encoded: dict[int, bytes] | None) -> None:
    """Passes events on to taps. The loop over all taps of the same range: the usual case is spelled out here.

    `encoded` keeps the message by watch id, for taps that get the message as it came; None if no tap does.
    """
    for tap in taps:
        watch_id = tap.plain_id
        if encoded is None or watch_id is None:
            tell(tap, tap.deliver, responses)
            continue
        try:
            data = encoded.get(watch_id)
            if data is None:
                data = encoded[watch_id] = responses[0].encode(watch_id)
            tap.outbox.send(data)
        except Exception:
            tap.outbox.on_bug()
