"""Hot prefixes: what is counted, in a table that does not grow, and who is told."""

from __future__ import annotations

import random
from collections import Counter
from math import inf

import pytest

from esp.core.config import HotConfig
from esp.core.metrics.families import Family
from esp.core.metrics.hot import CALLS, MOST_BYTES, TOLD, WINDOW, WRITES, HotPrefixes, prefix_of
from esp.core.metrics.text import text
from esp.core.pb import rpc_pb2
from esp.core.wire.ended import EndedCall
from esp.core.wire.message import prefix

PUT, RANGE, TXN = (f"/etcdserverpb.KV/{name}".encode() for name in ("Put", "Range", "Txn"))


def ended(path: bytes, key: bytes) -> EndedCall:
    request = rpc_pb2.PutRequest(key=key) if path == PUT else rpc_pb2.RangeRequest(key=key)
    return EndedCall(path, "10.0.0.1:1", 0, 0.0, 0.0, message=prefix(request.SerializeToString()))


def told(hot: HotPrefixes) -> dict[str, tuple[float, float]]:
    calls, writes = ({labels[0]: value for labels, value in family.rows} for family in hot.families())
    return {name: (calls[name], writes[name]) for name in calls}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("key", "depth", "found"),
    [
        (b"/registry/pods/default/web", 3, b"/registry/pods/"),
        (b"/registry/pods/default/web", 1, b"/"),
        (b"/registry/pods", 3, b"/registry/pods"),
        (b"a/b/c", 1, b"a/"),
        (b"", 2, b""),
    ],
)
def test_the_prefix_of_a_key(key: bytes, depth: int, found: bytes) -> None:
    assert prefix_of(key, b"/", depth) == found


def test_calls_a_second_of_the_last_window() -> None:
    hot = HotPrefixes(HotConfig(depth=1), 0.0)
    for _ in range(30):
        hot.ended(ended(RANGE, b"a/1"))
    for _ in range(10):
        hot.ended(ended(PUT, b"a/2"))
        hot.ended(ended(RANGE, b"b/2"))
    hot.ended(EndedCall(b"/etcdserverpb.Lease/LeaseGrant", "", 0, 0.0, 0.0))
    hot.tick(WINDOW / 2)
    assert told(hot) == {}
    hot.tick(WINDOW)
    assert told(hot) == {"a/": (4.0, 1.0), "b/": (1.0, 0.0)}
    hot.tick(2 * WINDOW)
    assert told(hot) == {}


def test_one_of_so_many_calls_stands_for_all() -> None:
    hot = HotPrefixes(HotConfig(depth=1, one_of=5), 0.0)
    for _ in range(100):
        hot.ended(ended(RANGE, b"a/1"))
    hot.tick(WINDOW)
    assert told(hot) == {"a/": (10.0, 0.0)}


def test_the_table_is_bounded_and_what_is_hot_is_in_it() -> None:
    rng = random.Random(7)
    hot = HotPrefixes(HotConfig(depth=1, keep=16), 0.0)
    true: Counter[bytes] = Counter()
    for number in range(4000):
        key = b"hot/x" if number % 5 == 0 else b"%d/x" % rng.randrange(3000)
        true[key] += 1
        hot.ended(ended(RANGE, key))
        assert len(hot._table) <= 16
    hot.tick(WINDOW)
    calls = {name: round(rate * WINDOW) for name, (rate, _) in told(hot).items()}
    assert len(calls) == 16 <= TOLD
    assert next(iter(calls)) == "hot/"
    assert all(number >= true[f"{name}x".encode()] for name, number in calls.items())  # none is too low
    assert calls["hot/"] <= true[b"hot/x"] + 4000 / 16


def test_a_long_key_is_cut_and_bytes_are_printable() -> None:
    hot = HotPrefixes(HotConfig(), 0.0)
    hot.ended(ended(PUT, b"\xff" * 1000))
    hot.tick(WINDOW)
    assert list(told(hot)) == ["\\xff" * MOST_BYTES]


def test_off_costs_nothing_and_a_reload_switches() -> None:
    hot = HotPrefixes(None, 0.0)
    assert (hot.least, hot.families()) == (inf, [])
    hot.ended(ended(PUT, b"a"))
    hot.tick(WINDOW)
    hot.use(HotConfig(), WINDOW)
    assert hot.least == 0
    hot.ended(ended(PUT, b"a"))
    hot.tick(2 * WINDOW)
    assert list(told(hot)) == ["a"]
    hot.use(None, 2 * WINDOW)
    assert (hot.least, hot.families()) == (inf, [])


def test_prometheus_never_gets_them() -> None:
    hot = HotPrefixes(HotConfig(), 0.0)
    assert [family.name for family in hot.families()] == [CALLS, WRITES]
    assert "".join(text([*hot.families(), Family("esp_x", "gauge", "X.")])) == "# HELP esp_x X.\n# TYPE esp_x gauge\n"
