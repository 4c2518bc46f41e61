"""Ends workers whose loop stands still, so that others begin in their places.

Each worker tells the time of its last tick in memory that all share (`Balance`). A worker that has not ticked for two
seconds gets no new clients; its own clients wait, and after `worker_timeout` it is killed. A process that serves alone
has the service manager for that.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Final

from esp.core.workers.balance import Balance
from esp.core.workers.supervisor import Supervisor

_MS: Final = 1_000_000
LATE_MS: Final = 2000
"""If the supervisor itself has not looked for so long, the whole machine stood still: workers get time to tick."""


class Watchdog:
    """Looks at the ticks of all workers.

    Args:
        balance: has the ticks.
        supervisor: the workers.
        seconds: the longest time without a tick.
    """

    def __init__(self, balance: Balance, supervisor: Supervisor, seconds: Callable[[], float]) -> None:
        self._balance = balance
        self._supervisor = supervisor
        self._seconds = seconds
        self._looked = monotonic_ns() // _MS

    def look(self) -> None:
        """Called about twice a second."""
        now = monotonic_ns() // _MS
        was_away, self._looked = now - self._looked > LATE_MS, now
        if was_away:
            return
        seconds = self._seconds()
        for number in self._supervisor.channels():
            since = self._balance.ticks[number]
            if since and now - since > seconds * 1000:  # one that drains has 0
                self._supervisor.kill_stuck(number, seconds)
