"""The prefixes of keys that have the most calls lately, found in bounded memory; off unless the config wants it.

The counts are those of the algorithm SpaceSaving (Metwally, Agrawal, El Abbadi, 2005): a table of a fixed number of
prefixes; a prefix that is not in it takes the place of the one with the lowest count, and that count. So a prefix with
more than a `keep`-th of all calls is always in the table, and no count is too low. Each window of time has a table of
its own: what was hot an hour ago is not shown.
"""

from __future__ import annotations

from math import inf
from typing import Final

from esp.core.config import HotConfig
from esp.core.keys import format_key
from esp.core.log.first_key import first_key
from esp.core.metrics.families import Family
from esp.core.wire.ended import EndedCall

WINDOW: Final = 10.0
"""Seconds that are counted together."""
MOST_BYTES: Final = 64
"""Bytes of a prefix; a longer one is cut."""
TOLD: Final = 20
"""Prefixes that are told, of those with the most calls."""
CALLS: Final = "esp_hot_prefix_calls"
WRITES: Final = "esp_hot_prefix_writes"

_WRITES: Final = frozenset(
    (
        b"/etcdserverpb.KV/Put",
        b"/etcdserverpb.KV/DeleteRange",
        b"/etcdserverpb.KV/Txn",
    )
)
_PATHS: Final = _WRITES | {b"/etcdserverpb.KV/Range", b"/etcdserverpb.KV/RangeStream"}


class HotPrefixes:
    """Counts calls by the prefix of their first key.

    Args:
        config: how; None for not at all.
        now: the time of `monotonic`.

    Attributes:
        least: the seconds from which on calls are wanted here: 0 for all calls, or `inf`.
    """

    def __init__(self, config: HotConfig | None, now: float) -> None:
        self.use(config, now)

    def use(self, config: HotConfig | None, now: float) -> None:
        """Begins anew with another config; `least` may change."""
        self._config = config
        self.least = inf if config is None else 0.0
        self._skipped = 0
        self._table: dict[bytes, list[int]] = {}
        self._last: list[tuple[bytes, float, float]] = []
        self._since = now

    def ended(self, call: EndedCall) -> None:
        """Counts a call that has ended."""
        config = self._config
        if config is None or call.path not in _PATHS:
            return
        self._skipped += 1
        if self._skipped < config.one_of:
            return
        self._skipped = 0
        key, _ = first_key(call.path, call.message, MOST_BYTES)
        self._count(prefix_of(key, config.separator, config.depth), call.path in _WRITES, config.keep)

    def _count(self, prefix: bytes, is_write: bool, keep: int) -> None:
        table = self._table
        found = table.get(prefix)
        if found is None:
            found = [0, 0]
            if len(table) >= keep:
                coldest = min(table, key=table.__getitem__)
                found[0] = table.pop(coldest)[0]
            table[prefix] = found
        found[0] += 1
        found[1] += is_write

    def tick(self, now: float) -> None:
        """Begins a new window when the time has come."""
        if self._config is None or now - self._since < WINDOW:
            return
        scale = self._config.one_of / (now - self._since)
        hottest = sorted(self._table.items(), key=lambda item: item[1], reverse=True)[:TOLD]
        self._last = [(prefix, calls * scale, writes * scale) for prefix, (calls, writes) in hottest]
        self._table = {}
        self._since = now

    def families(self) -> list[Family]:
        """Calls a second of the last window, by prefix. Not for Prometheus: clients make up the labels."""
        if self._config is None:
            return []
        named = [(format_key(prefix), calls, writes) for prefix, calls, writes in self._last]
        return [
            Family(CALLS, "gauge", "Calls a second.", ("prefix",), [((n,), c) for n, c, _ in named], is_public=False),
            Family(WRITES, "gauge", "Writes a second.", ("prefix",), [((n,), w) for n, _, w in named], is_public=False),
        ]


def prefix_of(key: bytes, separator: bytes, depth: int) -> bytes:
    """The key up to and with the `depth`-th separator, or whole if it has fewer."""
    at = 0
    for _ in range(depth):
        found = key.find(separator, at)
        if found < 0:
            return key
        at = found + len(separator)
    return key[:at]
