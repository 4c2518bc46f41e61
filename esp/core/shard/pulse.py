"""The health of a connection to a shard: whether the server at the other end answers, asked without any client's call.

The question is a Status call and no PING: etcd punishes PINGs while no call is open, and a member may answer PINGs and
nothing else. There is at most one question at a time, and no task for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic
from typing import Final

from esp.core.shard.member import PROBE, STATUS
from esp.core.wire.call import Together, TogetherCall, messages
from esp.core.wire.client import ClientConnection
from esp.core.wire.message import prefix

LONGEST_STEP: Final = 1.0
"""Seconds of silence that count between two ticks. If esp itself stood still for longer, that is no server's fault."""
SPREAD: Final = 0.1
"""The part by which pauses between questions differ, so that a thousand shards are not asked in the same moment."""

Answered = Callable[[bytes | Exception, float], None]


class Pulse:
    """Asks the server of one connection for its status, time and again, and finds out if it has fallen silent.

    Args:
        connection: the connection to look after.
        answered: gets the answer (or the RpcError or BrokenCall in its place), and the seconds that it took.
        only_if_silent: asks only if the server has sent nothing for `health_interval`.
    """

    __slots__ = ("_answered", "_asked", "_call", "_due", "_only_if_silent", "_ticked", "_waited", "connection")

    def __init__(self, connection: ClientConnection, answered: Answered, *, only_if_silent: bool = False) -> None:
        self.connection = connection
        self._answered = answered
        self._only_if_silent = only_if_silent
        self._call: TogetherCall[bytes] | None = None
        self._asked = 0.0
        self._waited = 0.0
        now = self._ticked = monotonic()
        self._due = now + random.uniform(0.5, 1) * connection.limits.health_interval  # noqa: S311

    def tick(self, now: float) -> str:
        """Asks if it is time. Returns why the server is to be left, for people; "" if nothing speaks for that."""
        connection = self.connection
        step, self._ticked = now - self._ticked, now
        if connection.draining or connection.ended:
            return ""
        takes_nothing = not connection.room and not connection.writable
        if self._call is not None or takes_nothing:
            heard = connection.silence(now) <= step
            self._waited = 0.0 if heard else self._waited + min(step, LONGEST_STEP)
            if self._waited >= connection.limits.health_timeout:
                connection.context.reached("health_timeout")
                return self._fault()
        elif now >= self._due and not (self._only_if_silent and self._has_spoken(now)):
            self.ask(now)
        return ""

    def _has_spoken(self, now: float) -> bool:
        return self.connection.silence(now) < self.connection.limits.health_interval

    def ask(self, now: float) -> None:
        """Asks now, unless a question is open already or there is no room for a call."""
        connection = self.connection
        if self._call is not None or not connection.has_room:
            return
        self._asked, self._waited = now, 0.0
        self._due = now + random.uniform(1 - SPREAD, 1 + SPREAD) * connection.limits.health_interval  # noqa: S311
        self._call = Together[bytes]().add(connection, messages(), None, self._over)
        connection.call(self._call, STATUS, b"", prefix(PROBE), end=True)
        connection.context.flush_soon()

    def stop(self) -> None:
        """Takes the open question back."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _over(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            outcome = call.error() if call.has_failed else call.take()
            self._answered(outcome, monotonic() - self._asked)

    def _fault(self) -> str:
        seconds = self.connection.limits.health_timeout
        if self.connection.unacknowledged():
            return f"cut off: its machine has acknowledged nothing for {seconds:g} s"
        return f"frozen: its machine takes bytes, but no answer came within {seconds:g} s"
