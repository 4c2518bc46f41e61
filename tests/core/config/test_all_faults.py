"""All faults of a file are told at once: whatever two fields are wrong, both are told.

A range that cannot be read is the one exception: whether the ranges leave a key without an owner is not known then.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from esp.core.config import faults_of

PATH: Final = Path("esp.yaml")
File = dict[str, Any]

GOOD: Final[File] = {
    "listen": ["http://127.0.0.1:2379", "http://127.0.0.1:2380"],
    "metrics_listen": ["http://127.0.0.1:2381", "http://127.0.0.1:2382"],
    "advertise": ["http://esp:2379", "http://esp:2380"],
    "shards": [
        {"name": "a", "endpoints": ["http://a:1", "http://a:2"], "ranges": [{"start": "", "end": "d"}]},
        {"name": "b", "endpoints": ["http://b:1", "http://b:2"], "ranges": [{"start": "d", "end": "k"}]},
        {"name": "c", "endpoints": ["http://c:1", "http://c:2"], "ranges": [{"start": "k", "end": "t"}]},
        {"name": "d", "endpoints": ["http://d:1", "http://d:2"], "ranges": [{"start": "t", "end": ""}]},
    ],
}


class Wrong(NamedTuple):
    """A fault: what makes it in a good file, and what is told of it.

    Attributes:
        hides_gaps: whether keys without an owner cannot be known beside it.
    """

    name: str
    make: Callable[[File], object]
    text: str
    hides_gaps: bool = False


def shard(file: File, number: int) -> dict[str, Any]:
    found: dict[str, Any] = file["shards"][number]
    return found


WRONG: Final = [
    Wrong("listen", lambda f: f["listen"].insert(0, ":1"), 'listen URL ":1"'),
    Wrong(
        "listen twice", lambda f: f["listen"].append("http://127.0.0.1:2380"), "http://127.0.0.1:2380 is listed twice"
    ),
    Wrong("listen by TLS", lambda f: f["listen"].append("https://h:1"), "https://h:1 needs a certificate"),
    Wrong("pages", lambda f: f["metrics_listen"].insert(0, ":2"), 'listen URL ":2"'),
    Wrong("pages twice", lambda f: f["metrics_listen"].append("http://127.0.0.1:2382"), ":2382 is listed twice"),
    Wrong("pages and listen", lambda f: f["metrics_listen"].append("http://127.0.0.1:2379"), ":2379 is listed twice"),
    Wrong("advertise", lambda f: f["advertise"].insert(0, "http://0.0.0.0:1"), "no client can connect"),
    Wrong("advertise twice", lambda f: f["advertise"].append("http://esp:2380"), "http://esp:2380 is listed twice"),
    Wrong("endpoint", lambda f: shard(f, 0)["endpoints"].insert(0, "a"), 'endpoint "a" has no port'),
    Wrong("endpoint twice", lambda f: shard(f, 1)["endpoints"].append("http://a:2"), "a:2 is listed in"),
    Wrong("endpoints differ", lambda f: shard(f, 2)["endpoints"].append("https://c:3"), "differ: all of a shard"),
    Wrong("no endpoints", lambda f: shard(f, 2).update(endpoints=[]), 'shard "c" has no endpoints'),
    Wrong("itself", lambda f: shard(f, 1)["endpoints"].append("http://127.0.0.1:2380"), "where esp itself listens"),
    Wrong(
        "itself for pages",
        lambda f: shard(f, 1)["endpoints"].append("http://127.0.0.1:2382"),
        "(http://127.0.0.1:2382)",
    ),
    Wrong("shard's TLS", lambda f: shard(f, 0).update(tls={"ca": "no.pem"}), 'has "tls", but endpoint http://a:1'),
    Wrong("shard's user", lambda f: shard(f, 0).update(auth={"user": "u"}), '"auth" has no "password_file"'),
    Wrong("all shards' TLS", lambda f: f.update(shard_tls={"server_name": "a b"}), '"server_name"'),
    Wrong("all shards' user", lambda f: f.update(auth={"user": "u", "password_file": "no"}), "no cannot be read"),
    Wrong("shard's field", lambda f: shard(f, 3).update(wrong=1), ': unknown field "wrong"'),
    Wrong("shard's name", lambda f: shard(f, 3).update(name="d d"), 'shard name "d d"'),
    Wrong("name twice", lambda f: shard(f, 3).update(name="b"), 'two shards are named "b"'),
    Wrong("range", lambda f: shard(f, 3)["ranges"].append(5), "a range must be a mapping", True),
    Wrong("range's key", lambda f: shard(f, 3)["ranges"].append({"prefix": 5}), '"prefix" is a number', True),
    Wrong("empty range", lambda f: shard(f, 3)["ranges"].append({"start": "y", "end": "x"}), "holds no key"),
    Wrong("zero byte", lambda f: shard(f, 3)["ranges"].append({"start": "hex:00", "end": "b"}), "single zero byte"),
    Wrong(
        "no ranges", lambda f: f["shards"].append({"name": "e", "endpoints": ["http://e:1"]}), '"e" has no ranges', True
    ),
    Wrong("gap", lambda f: shard(f, 0)["ranges"][0].update(end="c"), 'no shard owns ["c", "d")'),
    Wrong("second gap", lambda f: shard(f, 2)["ranges"][0].update(end="s"), 'no shard owns ["s", "t")'),
    Wrong("overlap", lambda f: shard(f, 1)["ranges"][0].update(end="l"), '["d", "l") of shard "b"'),
    Wrong("same", lambda f: shard(f, 3)["ranges"].append({"start": "t", "end": ""}), "is the same as"),
    Wrong(
        "owns nothing",
        lambda f: shard(f, 1)["ranges"].extend([{"prefix": "x"}, {"prefix": "x"}]),
        '["x", "y") of shard "b"',
    ),
    Wrong("whole", lambda f: f.update(whole=[5]), '"whole"'),
    Wrong("across_shards", lambda f: f.update(across_shards="x"), '"across_shards" is "x"'),
    Wrong("namespace", lambda f: f.update(namespace=""), '"namespace" is empty'),
    Wrong("compaction", lambda f: f.update(compaction="x"), '"compaction" is "x"'),
    Wrong("leases", lambda f: f.update(leases="x"), '"leases" is "x"'),
    Wrong("cors", lambda f: f.update(cors=[5]), '"cors" has 5'),
    Wrong("limits", lambda f: f.update(limits={"max_tokens": "many"}), '"max_tokens" must be a whole number'),
    Wrong("log", lambda f: f.update(log={"level": "x"}), '"level" is "x"'),
    Wrong("traces", lambda f: f.update(traces={}), '"endpoint" is missing'),
    Wrong("hot_prefixes", lambda f: f.update(hot_prefixes={"depth": 0}), '"depth" is 0'),
    Wrong("workers", lambda f: f.update(workers=0), '"workers" is "0"'),
    Wrong("drain", lambda f: f.update(drain_seconds=-1), '"drain_seconds" is "-1"'),
    Wrong("control", lambda f: f.update(control=5), '"control" is 5'),
    Wrong("unknown", lambda f: f.update(nope=5), 'unknown field "nope"'),
    Wrong("type", lambda f: f.update(ui="x"), '"ui" must be true or false'),
    Wrong("listeners' TLS", lambda f: f.update(tls={"cert": "no.pem", "key": "no.key"}), '"tls"'),
]
GAPS: Final = {"gap", "second gap"}
EXCLUDED: Final = {
    frozenset(pair)
    for pair in [
        ("endpoints differ", "no endpoints"),  # of one shard
        ("shard's name", "name twice"),
        ("overlap", "second gap"),  # the range that begins there
        ("listen by TLS", "listeners' TLS"),  # the cure of the one is the other
        ("endpoints differ", "all shards' TLS"),
    ]
}


def told(*wrong: Wrong) -> list[str]:
    file = copy.deepcopy(GOOD)
    for one in wrong:
        one.make(file)
    _, faults = faults_of(json.dumps(file, indent=1), PATH)
    return [fault.text for fault in faults]


def test_the_good_file_is_good() -> None:
    assert told() == []


@pytest.mark.parametrize("wrong", WRONG, ids=[one.name for one in WRONG])
def test_one_fault_is_told_once(wrong: Wrong) -> None:
    assert [text for text in told(wrong) if wrong.text in text] == told(wrong), "and nothing that only follows from it"


@pytest.mark.parametrize("first", WRONG, ids=[one.name for one in WRONG])
def test_two_faults_are_told_at_once(first: Wrong) -> None:
    missing = []
    for second in WRONG:
        pair = {first.name, second.name}
        if first is second or frozenset(pair) in EXCLUDED:
            continue
        texts = told(first, second)
        hidden = GAPS if first.hides_gaps or second.hides_gaps else set()
        missing += [
            (first.name, second.name, one.name)
            for one in (first, second)
            if one.name not in hidden and not any(one.text in text for text in texts)
        ]
    assert missing == []


def test_all_faults_that_go_together_are_told_at_once() -> None:
    chosen = [
        one
        for one in WRONG
        if one.name not in {"no endpoints", "name twice", "second gap", "listeners' TLS", "all shards' TLS"}
        and not one.hides_gaps
    ]
    assert all(frozenset((a.name, b.name)) not in EXCLUDED for a, b in combinations(chosen, 2))
    texts = told(*chosen)
    assert [one.name for one in chosen if not any(one.text in text for text in texts)] == []
