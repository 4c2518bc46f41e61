"""What the status page is told: sums over what it does not tell apart, in steps, and with bounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from time import time
from typing import Any

from esp.core import config as configs
from esp.core.log.recent import RecentLine
from esp.core.metrics.calls import BOUNDS
from esp.core.metrics.families import Family, gauge
from esp.core.metrics.walk import AT_ONCE
from esp.core.proxy import Proxy
from esp.core.ui.state import MOST_RANGES, state

METHOD = ("grpc_type", "grpc_service", "grpc_method")


def proxy(shards: int = 2, ranges: Sequence[str] | None = None) -> Proxy:
    """A proxy that does not run; each range goes to the next shard in turn."""
    edges = ranges if ranges is not None else [f"{number:05}" for number in range(1, shards)]
    owned: dict[int, list[str]] = {number: [] for number in range(shards)}
    for number, (start, end) in enumerate(zip(["", *edges], [*edges, ""], strict=True)):
        owned[number % shards].append(f"{{start: '{start}', end: '{end}'}}")
    lines = [
        f"  - {{name: s{number}, endpoints: [127.0.0.1:{number + 1}], ranges: [{', '.join(owned[number])}]}}"
        for number in range(shards)
    ]
    return Proxy(configs.parse("\n".join(["shards:", *lines]), None))


def told(proxy: Proxy, families: Sequence[Family] = (), recent: Sequence[RecentLine] = ()) -> dict[str, Any]:
    pieces = list(state(iter(families), proxy.routing, recent, proxy.moves))
    found = json.loads("".join(pieces))
    assert isinstance(found, dict)
    return found


def test_the_map_and_the_shards() -> None:
    here = proxy(2, ["i", "q"])
    found = told(here)
    assert found["map"]["ranges"] == [["", "s0"], ["i", "s1"], ["q", "s0"]]
    assert found["map"]["fingerprint"] == here.routing.layout.map.fingerprint
    assert [shard["name"] for shard in found["shards"]] == ["s0", "s1"]
    assert found["shards"][0]["endpoints"] == [
        {"url": "http://127.0.0.1:1", "state": "IDLE", "trouble": "", "failures": 0, "round_trip": None}
    ]


def test_calls_are_added_up_over_what_the_page_does_not_tell_apart() -> None:
    put, read = ("unary", "etcdserverpb.KV", "Put"), ("unary", "etcdserverpb.KV", "Range")
    first = [1, *[0] * len(BOUNDS), 0.25]
    second = [0, 2, *[0] * (len(BOUNDS) - 1), 0.5]
    found = told(
        proxy(),
        [
            Family(
                "grpc_client_handled_total",
                "counter",
                "",
                ("shard", *METHOD, "grpc_code"),
                [
                    (("s1", *put, "OK"), 5),
                    (("s1", *put, "Unavailable"), 2),
                    (("s1", *read, "NotFound"), 1),
                    (("gone", *put, "OK"), 9),
                ],
            ),
            Family(
                "grpc_client_handling_seconds",
                "histogram",
                "",
                ("shard", *METHOD),
                [(("s1", *put), first), (("s1", *read), second)],
                bounds=BOUNDS,
            ),
            Family(
                "grpc_server_handled_total",
                "counter",
                "",
                (*METHOD, "grpc_code"),
                [((*put, "OK"), 7), ((*put, "Internal"), 1)],
            ),
            gauge("esp_leases", "", 3),
            Family("esp_shard_db_bytes", "gauge", "", ("shard",), [(("s0",), 4096)]),
            Family("esp_unknown_to_the_page", "gauge", "", ("shard",), [(("s0",), 1)]),
        ],
    )
    s0, s1 = (shard["numbers"] for shard in found["shards"])
    assert (s1["calls"], s1["failed"], s1["seconds"]) == (8, 2, 0.75)
    assert s1["buckets"] == [1, 2, *[0] * (len(BOUNDS) - 1)]
    assert s0["more"] == {"db_bytes": 4096}
    assert found["methods"]["etcdserverpb.KV/Put"]["calls"] == 8
    assert found["methods"]["etcdserverpb.KV/Put"]["failed"] == 1
    assert found["proxy"] == {"leases": 3}


def test_a_map_of_many_ranges_is_cut_and_says_so() -> None:
    found = told(proxy(2, [f"{number:05}" for number in range(1, MOST_RANGES + 5)]))
    assert len(found["map"]["ranges"]) == MOST_RANGES
    assert found["map"]["more_ranges"] == 5


def test_the_last_moves_in_a_few_words() -> None:
    here = proxy(2, ["m"])
    assert told(here)["moves"] == {"last": [], "more": 0, "unfinished": ""}
    here.moves.take(here.config.shard_map, proxy(2, ["k"]).config.shard_map, "reload of the file")
    here.moves.unfinished = "A change is half done."
    found = told(here)["moves"]
    at = found["last"][0].pop("at")
    assert abs(at - time()) < 3600
    assert found == {
        "last": [{"keys": '["k", "m")', "from": "s0", "to": "s1", "how": "reload of the file"}],
        "more": 0,
        "unfinished": "A change is half done.",
    }


def test_it_goes_in_steps() -> None:
    here = proxy(3 * AT_ONCE)
    rows = [((f"s{number}", "unary", "etcdserverpb.KV", "Put", "OK"), 1) for number in range(3 * AT_ONCE)]
    family = Family("grpc_client_handled_total", "counter", "", ("shard", *METHOD, "grpc_code"), rows)
    pieces = list(state(iter([None, family]), here.routing, (), here.moves))
    assert pieces.count("") >= 6
    assert max(map(len, pieces)) < 100 * AT_ONCE
    assert all(shard["numbers"]["calls"] == 1 for shard in json.loads("".join(pieces))["shards"])


def test_the_last_lines() -> None:
    lines = [RecentLine(1.5, "warning", "a", "shard a: lost")]
    assert told(proxy(), recent=lines)["recent"] == [
        {"at": 1.5, "level": "warning", "shard": "a", "text": "shard a: lost"}
    ]
