"""Percentiles, ratios, and keys that are spread over the shards of a map."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from xml.etree import ElementTree

import pytest

from esp.commands.bench_plot import drawn
from esp.core import config as configs
from esp.core.config import Config
from esp.core.load import Figures, Keys, Measured, NoKeysError, keys_in, spread_over


def measured(latencies: list[float], rates: tuple[float, ...] = (1.0,), target: str = "a") -> Measured:
    return Measured("put", target, list(rates), sorted(latencies), Counter(), 0.1)


def test_a_percentile_is_the_latency_that_so_many_did_not_exceed() -> None:
    of = measured([number / 1000 for number in range(1, 1001)])
    assert [of.percentile(percent) for percent in (0, 50, 99, 99.9, 100)] == [0.001, 0.5, 0.99, 0.999, 1.0]
    assert measured([7.0]).percentile(99.9) == 7.0
    assert measured([]).percentile(50) == 0.0


def test_rounds_together() -> None:
    rounds = [
        Figures(1.0, 0.5, array("d", [0.3, 0.1]), Counter({"no": 1})),
        Figures(2.0, 0.4, array("d", [0.2] * 6), Counter({"no": 2})),
        Figures(1.0, 0.1, array("d", [0.2] * 9), Counter()),
    ]
    of = Measured.of("put", "a", rounds)
    assert (of.rates, of.rate, of.requests) == ([2.0, 3.0, 9.0], 3.0, 17)
    assert (of.latencies[0], of.latencies[-1]) == (0.1, 0.3)
    assert of.errors == {"no": 3}
    assert of.cpu == 0.5


def test_a_ratio_is_formed_inside_each_round() -> None:
    assert measured([], (10.0, 200.0, 30.0)).ratio(measured([], (5.0, 100.0, 10.0))) == 2.0
    assert measured([], (10.0,)).ratio(measured([], (0.0,))) == 0.0


def config(boundaries: list[str], extra: str = "") -> Config:
    keys = ["", *boundaries, ""]
    shards = [
        {"name": f"s{n}", "endpoints": [f"http://10.0.0.{n}:1"], "ranges": [{"start": keys[n], "end": keys[n + 1]}]}
        for n in range(len(keys) - 1)
    ]
    return configs.parse(f"shards: {json.dumps(shards)}\n{extra}", None)


@pytest.mark.parametrize(
    ("boundaries", "extra"),
    [
        (["i", "r"], ""),
        (["a", "aa", "aaa", "b"], ""),
        (["esp-bench/", "esp-bench0"], ""),
        (["team/m"], "namespace: team/"),
    ],
)
def test_keys_are_in_the_shards_for_which_they_are(boundaries: list[str], extra: str) -> None:
    loaded = config(boundaries, extra)
    names = [shard.name for shard in loaded.shards]
    keys = spread_over(loaded, names, "1f")
    before = loaded.namespace.prefix if loaded.namespace else b""
    found = [loaded.shard_map.owner(before + key) for key in keys.first(3 * len(names))]
    assert found == names * 3
    assert all(b"esp-bench/1f/" in prefix for prefix in keys.prefixes)


def test_keys_of_a_kube_apiserver_are_left_alone() -> None:
    loaded = config(["/registry/m", "/registry/p", "/registry0"])
    with pytest.raises(NoKeysError, match="shard s1 owns no range"):
        spread_over(loaded, ["s0", "s1"], "1f")
    assert spread_over(loaded, ["s3"], "1f") == Keys([b"/registry0esp-bench/1f/"], ["s3"])


def test_a_shard_outside_of_the_namespace_gets_no_keys() -> None:
    with pytest.raises(NoKeysError, match="shard s1 owns no range"):
        spread_over(config(["u"], "namespace: team/"), ["s1"], "1f")


def test_without_a_map_there_is_one_prefix() -> None:
    assert keys_in("1f").first(2) == [b"esp-bench/1f/00000000", b"esp-bench/1f/00000001"]


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_a_drawing_is_whole_and_loads_nothing(suffix: str) -> None:
    one = measured([0.001, 0.002, 0.4], (3.0,), "http://a:1/<&>")
    text = drawn([one, measured([], (0.0,), "http://b:1"), measured([], target="c")], ["a < b"], suffix)
    svg = text[text.index("<svg") : text.index("</svg>") + 6]
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter() if element.text]
    assert "http://a:1/<&>" in texts
    assert "3 requests/s" in texts
    assert text.count("http") == svg.count("http") == 2  # the namespace of SVG, and the target
    nothing = drawn([measured([])], [], suffix)
    assert "no request was answered" in nothing
