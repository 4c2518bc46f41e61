"""What the status page shows, as JSON: the map, the last moves, the shards with their counters, the last lines.

The counters are those of /metrics, of all processes of the proxy, added up over what the page does not tell apart. The
browser makes rates of them. Everything goes in steps, as the metrics do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from time import time
from typing import Any, Final

import msgspec

from esp import __version__
from esp.core.keys import format_key
from esp.core.log.recent import RecentLine
from esp.core.metrics.calls import BOUNDS
from esp.core.metrics.families import Family, Row
from esp.core.metrics.hot import CALLS, WRITES
from esp.core.metrics.scrape import Step
from esp.core.metrics.walk import in_steps
from esp.core.moves import LastMoves
from esp.core.routing import Routing
from esp.core.shard import Shard

MOST_RANGES: Final = 1000
"""Ranges of the map that are told; of the rest only the number."""
FAILURES: Final = frozenset(("Unknown", "DeadlineExceeded", "ResourceExhausted", "Internal", "Unavailable", "DataLoss"))
"""The codes that are not the client's doing, as in the alert rules."""

_OF_PROXY: Final = {
    "esp_client_connections": "connections",
    "esp_watchers": "watchers",
    "esp_watch_streams": "watch_streams",
    "esp_leases": "leases",
    "esp_tokens": "tokens",
    "esp_gate_waiting": "waiting",
    "process_resident_memory_bytes": "memory_bytes",
    "process_cpu_seconds_total": "cpu_seconds",
    "process_start_time_seconds": "started",
}
_OF_SHARD: Final = {
    "esp_shard_up": "up",
    "esp_shard_calls": "open",
    "esp_shard_calls_waiting": "waiting",
    "esp_shard_watchers": "watchers",
    "esp_shard_watch_events_total": "events",
    "esp_shard_failed_calls_total": "refused",
    "esp_shard_received_bytes_total": "received_bytes",
    "esp_shard_sent_bytes_total": "sent_bytes",
    "esp_shard_outages_total": "outages",
    "esp_shard_db_bytes": "db_bytes",
    "esp_shard_db_in_use_bytes": "db_in_use_bytes",
    "esp_shard_db_quota_bytes": "db_quota_bytes",
}


class Numbers(msgspec.Struct, omit_defaults=False):
    """The calls of a shard or an RPC so far.

    Attributes:
        calls, failed: those that have ended, and those of them with a code of `FAILURES`.
        seconds: how long they took together.
        buckets: how many took no longer than each of the bounds, and longer than the bound before.
        more: further values, by their names.
    """

    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    buckets: list[int | float] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    more: dict[str, float] = {}


class Counted:
    """The counters that the page shows, out of metric families."""

    def __init__(self) -> None:
        self.proxy: dict[str, float] = {}
        self.shards: defaultdict[str, Numbers] = defaultdict(Numbers)
        self.methods: defaultdict[str, Numbers] = defaultdict(Numbers)
        self.hot: defaultdict[str, dict[str, float]] = defaultdict(lambda: {"calls": 0.0, "writes": 0.0})
        self._take: dict[str, Callable[[Row], None]] = {
            CALLS: partial(self._take_hot, "calls"),
            WRITES: partial(self._take_hot, "writes"),
            "grpc_client_handled_total": lambda row: _ended(self.shards[row[0][0]], row),
            "grpc_client_handling_seconds": lambda row: _took(self.shards[row[0][0]], row),
            "grpc_server_handled_total": lambda row: _ended(self.methods["/".join(row[0][1:3])], row),
            "grpc_server_handling_seconds": lambda row: _took(self.methods["/".join(row[0][1:3])], row),
        }

    def take(self, family: Family) -> Iterator[None]:
        """Adds a family, in steps."""
        name = family.name
        if name in _OF_PROXY:
            for _, value in family.rows:
                if not isinstance(value, list):
                    self.proxy[_OF_PROXY[name]] = value
        elif name in _OF_SHARD:
            for row in in_steps(family.rows):
                if row is None:
                    yield
                elif not isinstance(row[1], list):
                    self.shards[row[0][0]].more[_OF_SHARD[name]] = row[1]
        elif name in self._take:
            take = self._take[name]
            for row in in_steps(family.rows):
                if row is None:
                    yield
                else:
                    take(row)

    def _take_hot(self, name: str, row: Row) -> None:
        if not isinstance(row[1], list):
            self.hot[row[0][0]][name] = row[1]


def _ended(numbers: Numbers, row: Row) -> None:
    labels, value = row
    if not isinstance(value, list):
        numbers.calls += int(value)
        if labels[-1] in FAILURES:
            numbers.failed += int(value)


def _took(numbers: Numbers, row: Row) -> None:
    value = row[1]
    if isinstance(value, list):
        numbers.seconds += value[-1]
        for place, calls in enumerate(value[:-1]):
            numbers.buckets[place] += calls


def state(steps: Iterator[Step], routing: Routing, recent: Iterable[RecentLine], moves: LastMoves) -> Iterator[str]:
    """The JSON text, in pieces; an empty piece after a step that has made none."""
    counted = Counted()
    for step in steps:
        if step is not None:
            for _ in counted.take(step):
                yield ""
        yield ""
    layout = routing.layout
    ranges = [
        (format_key(start), layout.map.owners[number])
        for number, start in enumerate(islice(layout.map.starts, MOST_RANGES))
    ]
    head = {
        "esp": __version__,
        "now": time(),
        "map": {
            "epoch": layout.epoch,
            "fingerprint": layout.map.fingerprint,
            "ranges": ranges,
            "more_ranges": max(0, len(layout.map.starts) - MOST_RANGES),
        },
        "proxy": counted.proxy,
        "methods": {name: numbers for name, numbers in counted.methods.items() if numbers.calls},
        "bounds": BOUNDS,
        "hot": sorted(({"prefix": name, **hot} for name, hot in counted.hot.items()), key=_calls, reverse=True),
        "moves": moves.as_json(),
        "recent": [line._asdict() for line in recent],
    }
    yield msgspec.json.encode(head).decode()[:-1] + ',"shards":['
    comma = ""
    for shard in in_steps(layout.shards.values()):
        if shard is None:
            yield ""
            continue
        yield comma + msgspec.json.encode(_shard(shard, counted.shards[shard.name])).decode()
        comma = ","
    yield "]}\n"


def _calls(hot: Mapping[str, Any]) -> float:
    return float(hot["calls"])


def _shard(shard: Shard, numbers: Numbers) -> dict[str, object]:
    since = shard.outages.since
    return {
        "name": shard.name,
        "version": shard.version,
        "has_leader": shard.has_leader,
        "is_dead": since is not None,
        "endpoints": [
            {
                "url": str(endpoint),
                "state": state.connectivity.name,
                "trouble": state.trouble,
                "failures": state.failures,
                "round_trip": state.smoothed,
            }
            for endpoint, state in shard.states.items()
        ],
        "numbers": numbers,
    }
