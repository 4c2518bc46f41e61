"""How long a client's call waits for the shards that it asks, for the log of slow calls."""

from __future__ import annotations

from time import monotonic

from esp.core.wire.ended import Several


class ShardTimes:
    """The seconds for which a call has waited for each shard, and for any of them; several may be asked at once."""

    __slots__ = ("_asked", "_since", "_upstream", "_waited")

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}  # the shards that have not answered, each with the time of the question
        self._waited: dict[str, float] = {}
        self._since = self._upstream = 0.0

    def begin(self, shard: str) -> None:
        """A shard is asked."""
        now = monotonic()
        if not self._asked:
            self._since = now
        self._asked.setdefault(shard, now)
        self._waited.setdefault(shard, 0.0)

    def end(self, shard: str) -> None:
        """The shard has answered, or is not waited for any more; without effect if it was not asked."""
        asked = self._asked.pop(shard, 0.0)
        if asked:
            now = monotonic()
            self._waited[shard] += now - asked
            if not self._asked:
                self._upstream += now - self._since

    def told(self, names: tuple[str, ...]) -> Several:
        """These shards with their times until now; those that were asked, if any was."""
        now = monotonic()
        asked, waited = self._asked, self._waited
        upstream = self._upstream + (now - self._since if asked else 0.0)
        every = tuple([seconds + now - asked.get(shard, now) for shard, seconds in waited.items()])
        return Several(tuple(waited) or names, every, upstream)
