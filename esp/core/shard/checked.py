"""Calls of RPCs that compare nothing, at a shard that holds a guard: the guard is looked at behind the answer.

etcd cannot compare in a RangeStream, or in a call for a lock or an election. So nothing of the answer goes to the
client before the guard was read, after the answer began to come: it still has the value by which the call came, and had
it all the time, since no value comes twice. If it has not, the answer is dropped, and the call goes by another map.
What a lock has left on the former owner is seen by nobody, and ends with its lease.

Errors are looked behind, too: another shard might give another one. Streams of leaders (Observe) are not: they end when
another map is in force, as watches do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from esp.core.wire.client_stream import ClientStream
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.splice import CountedCall, LateCall, SplicedCall, WaitingCall
from esp.core.wire.status import Code, Status

BEHIND: Final = frozenset(
    (
        b"/etcdserverpb.KV/RangeStream",
        b"/v3lockpb.Lock/Lock",
        b"/v3lockpb.Lock/Unlock",
        b"/v3electionpb.Election/Campaign",
        b"/v3electionpb.Election/Proclaim",
        b"/v3electionpb.Election/Leader",
        b"/v3electionpb.Election/Resign",
    )
)
"""The RPCs, by path."""


class Checker(Protocol):
    """The shard, as such a call sees it."""

    def check_behind(self, call: Checked) -> None:
        """Looks at the guard, and then calls `Checked.settle`."""

    def on_outdated(self, down: ServerCall, message: bytes) -> None:
        """Gives a client's call to whoever sends it by another map."""


class Checked(ClientStream):
    """Such a call, in front of the class of any call that is passed on.

    Attributes:
        events: what has come and waits, in order; None once it is known that the shard owns the keys.
        down, message, owner: those of the call.
    """

    if not TYPE_CHECKING:
        __slots__ = ()  # as `guarded.Compared`

    events: list[Callable[[], object]] | None
    down: ServerCall
    message: bytes | None
    owner: Any

    def _wait(self, event: Callable[[], object]) -> None:
        assert self.events is not None
        self.events.append(event)
        if len(self.events) == 1:
            checker: Checker = self.owner
            checker.check_behind(self)

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer."""
        if self.events is None:
            super().on_answer(head, payload, trailers)
        else:
            self._wait(partial(super().on_answer, head, payload, trailers))

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The answer's head, or its trailers."""
        status = head.status
        is_away = end and status is not None and status.code == Code.UNAVAILABLE
        if self.events is None or (is_away and not self.events):
            super().on_headers(head, end)
        else:
            self._wait(partial(super().on_headers, head, end))

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer; the shard sends no more than its window until the client gets some."""
        if self.events is None:
            super().on_data(payload, end)
        else:
            self._wait(partial(super().on_data, payload, end))

    def on_reset(self, code: int, reason: str) -> None:
        """The stream is gone."""
        if self.events:
            self.events.append(partial(super().on_reset, code, reason))
        else:
            super().on_reset(code, reason)

    def fail(self, status: Status) -> None:
        """The guard could not be looked at."""
        sink: object = self.down.sink
        if sink is self:
            self.down.sink = None
            self.cancel()
            self.owner.refuse(self.down, status)

    def settle(self, *, is_owner: bool) -> None:
        """The guard was looked at. If the shard did not own the keys, the answer is dropped."""
        events, self.events = self.events, None
        sink: object = self.down.sink
        if sink is not self or events is None:
            return  # the client is gone
        if is_owner:
            for event in events:
                event()
            self.connection.context.flush_soon()
            return
        self.down.sink = None
        self.cancel()
        self.owner.on_outdated(self.down, self.message or b"")


class CheckedSplice(Checked, SplicedCall):
    """A call passed on."""

    __slots__ = ("events",)


class CheckedLate(Checked, LateCall):
    """A call passed on that is sent some time after it came."""

    __slots__ = ("events",)


class CheckedCounted(Checked, CountedCall):
    """A call passed on that has a place at its shard."""

    __slots__ = ("events",)


class CheckedWaiting(Checked, WaitingCall):
    """A call passed on that may wait for hours.

    Attributes:
        answer: the answer that waits, as far as it has come.
    """

    __slots__ = ("answer", "events")

    answer: bytes

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer."""
        self.answer = payload
        super().on_answer(head, payload, trailers)

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone: if it has got the lock while the guard was looked at, gives the lock back."""
        super().cancelled(code, reason)
        if self.events and self.answer:
            self.owner.waits.unlock(self.down.forward, self.answer[PREFIX_SIZE:])
