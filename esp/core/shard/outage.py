"""What the log says of a shard's connection: left for another endpoint, dead and why, still dead, back.

A shard is dead while none of its endpoints can be used. If another endpoint takes over, that is one line. A dead shard
is told with the reasons at once, then once a minute with the calls that it failed, then when it is back. A connection
that comes and goes fills no log: a shard may write AT_ONCE lines in a minute, and further ones are summed up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from esp.core.wording import counted

TOLD_SECONDS: Final = 60.0
"""How often a dead shard is told, and how long lines are counted for AT_ONCE."""
AT_ONCE: Final = 6
"""Lines that a shard may write in TOLD_SECONDS; there is one more, which sums up the rest."""
SLOW_SECONDS: Final = 1.0
"""A shard counts as dead so long after its connection was lost, even if an endpoint has not been tried yet."""

Tell = Callable[[int, str], None]


class Outages:
    """Tells of the losses and outages of one shard. All times are of one clock, in seconds.

    Args:
        tell: writes a line, which begins behind the shard's name; gets the level and the text.
        why: tells why the endpoints cannot be used, for people; "" while none has failed.
        failed_calls: tells how many calls the shard has failed since the start.

    Attributes:
        count: the outages so far: how often no endpoint could be used.
        losses: how often a connection in use was lost or left.
        since: when the shard was connected last, if it is dead; else None.
    """

    def __init__(self, tell: Tell, why: Callable[[], str], failed_calls: Callable[[], int]) -> None:
        self.count = 0
        self.losses = 0
        self.since: float | None = None
        self._tell_line = tell
        self._why = why
        self._failed_calls = failed_calls
        self._endpoint = ""
        self._left = ""
        self._left_at = 0.0
        self._away_since: float | None = None
        self._failed_before = 0
        self._failed_told = 0
        self._dead_told = 0.0
        self._window = float("-inf")
        self._lines = 0
        self._untold = 0
        self._losses_told = 0

    def begin(self, now: float) -> None:
        """The shard is connected for the first time."""
        self._go_away(now, now)

    def lost(self, why: str, now: float, since: float | None = None) -> None:
        """The connection in use is lost, or was left; `why` is for people. A silent server is away `since` earlier."""
        self.losses += 1
        self._left = why
        self._go_away(now, now if since is None else since)

    def all_failed(self, now: float) -> None:
        """Each endpoint was tried since the loss, and none can be used."""
        if self.since is None and self._away_since is not None:
            self.count += 1
            self.since = self._away_since
            self._dead_told = now
            self._failed_told = self._failed_calls()
            after = f" since {self._endpoint} was left ({self._left})" if self._endpoint else ""
            self._tell(logging.WARNING, f"no endpoint can be used{after}: {self._why()}", now)

    def connected(self, endpoint: str, now: float) -> None:
        """An endpoint is in use from now on."""
        if self._away_since is None:
            return
        away = span(now - self._away_since)
        failed = self._failed_calls() - self._failed_before
        if self.since is not None:
            calls = f"; {_calls(failed)} failed" if failed else ""
            level, text = logging.INFO, f"back after {away}: connected to {endpoint}{calls}"
        elif not self._endpoint:
            level, text = logging.INFO, f"connected to {endpoint}"
        else:
            level = logging.WARNING
            where = "again" if endpoint == self._endpoint else f"to {endpoint}"
            text = f"left {self._endpoint}: {self._left}; connected {where} after {away}"
        self._endpoint, self.since, self._away_since = endpoint, None, None
        self._tell(level, text, now)

    def note(self, text: str, now: float) -> None:
        """Tells something else about the connections; counts as a line."""
        self._tell(logging.WARNING, text, now)

    def tick(self, now: float) -> None:
        """Tells what is due; call this about twice a second."""
        if self._away_since is not None and now - self._left_at >= SLOW_SECONDS and self._why():
            self.all_failed(now)
        if self._untold and now - self._window >= TOLD_SECONDS:
            self._sum_up(now)
        if self.since is not None and now - self._dead_told >= TOLD_SECONDS:
            self._tell(logging.WARNING, self._still_dead(now), now)

    def _go_away(self, now: float, since: float) -> None:
        if self._away_since is None:
            self._left_at, self._away_since = now, since
            self._failed_before = self._failed_calls()

    def _still_dead(self, now: float) -> str:
        assert self.since is not None
        failed = self._failed_calls()
        lately, self._failed_told = failed - self._failed_told, failed
        self._dead_told = now
        text = f"no endpoint can be used for {span(now - self.since)}: {self._why()}"
        return f"{text}; {_calls(lately)} failed in the last minute"

    def _sum_up(self, now: float) -> None:
        """Begins to count lines anew, with a line for those that were only counted."""
        untold, losses = self._untold, self.losses - self._losses_told
        self._window, self._lines, self._untold, self._losses_told = now, 0, 0, self.losses
        if untold:
            state = f"connected to {self._endpoint}" if self.since is None else self._still_dead(now)
            self._tell_line(logging.WARNING, f"lost {counted(losses, 'time')} in the last minute; now {state}")

    def _tell(self, level: int, text: str, now: float) -> None:
        if now - self._window >= TOLD_SECONDS:
            self._sum_up(now)
        if self._lines < AT_ONCE:
            self._lines += 1
            self._tell_line(level, text)
        else:
            self._untold += 1


def _calls(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'}"


def span(seconds: float) -> str:
    """A time for people, with two units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
