"""Tells at which shards no calls but costly ones are at work.

Costly calls come few at a time at a shard, and with rests, so that others do not wait for the shard's cores. Where
there are no others, that costs throughput, and nobody gains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

FEW: Final = 1
"""Other calls between two looks that do not count: esp asks its shards how they are now and then."""


class Alone:
    """The shards that were sent no calls but costly ones between the last two looks.

    Attributes:
        asked: parts of costly calls that were sent since the last look, by shard.
    """

    def __init__(self, calls_sent: Callable[[], Mapping[str, int]]) -> None:
        """`calls_sent` tells how many calls and keepalives were sent to each shard on its present connection."""
        self.asked: Counter[str] = Counter()
        self._calls_sent = calls_sent
        self._before: Mapping[str, int] = {}
        self._alone: set[str] = set()

    def __contains__(self, shard: str) -> bool:
        return shard in self._alone

    def look(self) -> None:
        """Looks at all shards; call this about twice a second."""
        before, self._before = self._before, self._calls_sent()
        self._alone = {
            shard
            for shard, sent in self._before.items()
            if shard in before and 0 <= sent - before[shard] <= self.asked[shard] + FEW
        }
        self.asked.clear()
