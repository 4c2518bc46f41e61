"""What `/ui/state` tells, read; and the rates between two answers of one proxy, added up over proxies."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

import msgspec

from esp.core.ui.state import Numbers

SLOW: Final = 1.0
"""Calls that take longer, in seconds, are told as slow; one of the histogram's bounds."""


class MapTold(msgspec.Struct):
    """The map of a proxy."""

    fingerprint: str = ""
    epoch: int = 0


class ShardTold(msgspec.Struct):
    """A shard as a proxy sees it; `trouble` of an endpoint is for people."""

    name: str
    version: str = ""
    has_leader: bool = True
    is_dead: bool = False
    endpoints: list[dict[str, str | int | float | None]] = []
    numbers: Numbers = msgspec.field(default_factory=Numbers)

    @property
    def condition(self) -> str:
        """The state in a word or two."""
        if self.numbers.more.get("up"):
            return "up" if self.has_leader else "no leader"
        return "down" if self.is_dead else "connecting"


class HotTold(msgspec.Struct):
    """A prefix with many calls; both are calls a second."""

    prefix: str
    calls: float = 0.0
    writes: float = 0.0


class LineTold(msgspec.Struct):
    """A line of the log about a shard; `at` is in seconds since 1970."""

    at: float
    level: str
    shard: str
    text: str


class State(msgspec.Struct):
    """An answer to `/ui/state`. Fields that an older proxy does not tell have their defaults.

    Attributes:
        now: the proxy's time, in seconds since 1970.
        proxy: numbers of the proxy as a whole.
        methods: numbers by RPC.
        bounds: the upper bounds of the buckets, in seconds.
    """

    esp: str
    now: float
    map: MapTold
    proxy: dict[str, float]
    methods: dict[str, Numbers]
    bounds: list[float]
    shards: list[ShardTold]
    recent: list[LineTold] = []
    hot: list[HotTold] = []


def read(data: bytes) -> State:
    """The state in an answer.

    Raises:
        ValueError: `data` holds none.
    """
    return msgspec.json.decode(data, type=State)


class Rates:
    """Calls of some seconds, over any number of proxies.

    Attributes:
        calls, failed: a second.
        buckets: calls by how long they took.
    """

    __slots__ = ("_bounds", "buckets", "calls", "failed")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.calls = self.failed = 0.0
        self.buckets = [0.0] * (len(bounds) + 1)

    def add(self, before: Numbers, now: Numbers, seconds: float) -> None:
        """Adds what came between two answers of a proxy. Counters that went back tell nothing: it began anew."""
        if now.calls < before.calls or seconds <= 0 or len(before.buckets) != len(now.buckets) != len(self.buckets):
            return
        self.calls += (now.calls - before.calls) / seconds
        self.failed += max(0, now.failed - before.failed) / seconds
        for place, (old, new) in enumerate(zip(before.buckets, now.buckets, strict=True)):
            self.buckets[place] += max(0, new - old) / seconds

    def quantile(self, part: float) -> float | None:
        """The seconds within which this part of the calls ended; None without calls, `inf` above all bounds."""
        all_of_them = sum(self.buckets)
        below = 0.0
        for place, calls in enumerate(self.buckets):
            if calls and below + calls >= part * all_of_them:
                if place == len(self._bounds):
                    return inf
                low = self._bounds[place - 1] if place else 0.0
                return low + (self._bounds[place] - low) * (part * all_of_them - below) / calls
            below += calls
        return None

    @property
    def slow(self) -> float:
        """Calls a second that took longer than `SLOW`."""
        return sum(
            calls
            for place, calls in enumerate(self.buckets)
            if place == len(self._bounds) or self._bounds[place] > SLOW
        )
