"""When a member that has no leader is left for another one."""

from __future__ import annotations

from typing import Final

NO_LEADER: Final = "it has no leader: it is cut off from its cluster, or the quorum is lost"
DOUBLINGS: Final = 5
"""How often the time doubles for which a member without a leader is kept."""


class Leaderless:
    """Decides from the members' own statuses. All times are in seconds, of one clock.

    A member without a leader may be cut off from its cluster, while others have the quorum. Two answers in a row say
    so, because an election takes a moment. If all members say so, the quorum is lost: each is kept about twice as long
    as the one before, up to 32 times `interval`, as it still serves serializable reads.

    Args:
        interval: from one status to the next.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._since: float | None = None
        self._moves = 0

    def begin(self) -> None:
        """Another connection is in use."""
        self._since = None

    def is_to_be_left(self, has_leader: bool, now: float) -> bool:
        """Takes the status of the member in use; whether the member is to be left, which then counts as done."""
        if has_leader:
            self._since, self._moves = None, 0
        elif self._since is None:
            self._since = now
        elif now - self._since >= self._interval * (2**self._moves - 0.5):
            self._since = None
            self._moves = min(self._moves + 1, DOUBLINGS)
            return True
        return False
