"""Rates between two answers of a proxy."""

from __future__ import annotations

from math import inf

import pytest

from esp.core.metrics.calls import BOUNDS
from esp.core.ui.rates import Rates, read
from esp.core.ui.state import Numbers, state
from tests.core.ui.test_state import proxy


def numbers(calls: dict[int, int], failed: int = 0) -> Numbers:
    """Calls by the number of their bucket."""
    buckets: list[int | float] = [calls.get(place, 0) for place in range(len(BOUNDS) + 1)]
    return Numbers(int(sum(buckets)), failed, 0.0, buckets)


def test_rates_and_quantiles() -> None:
    rates = Rates(BOUNDS)
    rates.add(numbers({1: 10}), numbers({1: 20, 4: 10}, failed=4), 2.0)
    assert (rates.calls, rates.failed, rates.slow) == (10.0, 2.0, 0.0)
    assert rates.quantile(0.5) == BOUNDS[1]
    assert rates.quantile(0.75) == pytest.approx((BOUNDS[3] + BOUNDS[4]) / 2)


def test_proxies_are_added_up() -> None:
    rates = Rates(BOUNDS)
    rates.add(numbers({}), numbers({0: 4}), 2.0)
    rates.add(numbers({}), numbers({len(BOUNDS): 4}), 4.0)
    assert (rates.calls, rates.slow) == (3.0, 1.0)
    assert rates.quantile(0.99) == inf


def test_no_calls_have_no_quantile() -> None:
    assert Rates(BOUNDS).quantile(0.5) is None


def test_a_proxy_that_began_anew_tells_nothing() -> None:
    rates = Rates(BOUNDS)
    rates.add(numbers({0: 9}), numbers({0: 1}), 2.0)
    rates.add(numbers({0: 1}), numbers({0: 9}), 0.0)
    assert rates.calls == 0.0


def test_what_the_proxy_tells_can_be_read() -> None:
    here = proxy(3)
    told = read("".join(state(iter([]), here.routing, (), here.moves)).encode())
    assert [shard.name for shard in told.shards] == ["s0", "s1", "s2"]
    assert {shard.condition for shard in told.shards} == {"connecting"}
    with pytest.raises(ValueError, match=r"."):
        read(b'{"health": "true"}')
