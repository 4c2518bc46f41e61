"""Shared places: one address may have nearly all of them, but not the last."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.wire.shares import Shares, address_of


def taken(shares: Shares, address: str, size: int = 1) -> int:
    """How often an address gets a place."""
    count = 0
    while shares.take(address, size):
        count += 1
    return count


def test_one_alone_gets_what_is_common_and_others_still_get_some() -> None:
    shares = Shares(1000, 0.875)
    assert taken(shares, "10.0.0.1") == 875
    assert shares.is_scarce
    assert not shares.holds_little("10.0.0.1")
    assert shares.holds_little("10.0.0.2")
    assert [taken(shares, f"10.0.0.{number}") for number in range(2, 12)] == [15] * 8 + [5, 0]
    shares.give("10.0.0.1", 200)
    assert not shares.is_scarce
    assert taken(shares, "10.0.0.1") == 75


def test_sizes_count_as_places_do() -> None:
    shares = Shares(1_000_000, 0.875)
    assert taken(shares, "10.0.0.1", 2048) == 427
    assert shares.take("10.0.0.2", 15_000)
    assert not shares.take("10.0.0.2", 15_000)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_where_there_is_little_nothing_is_kept_back(limit: int) -> None:
    assert taken(Shares(limit, 0.875), "10.0.0.1") == limit


def test_a_share_of_all_keeps_nothing_back() -> None:
    assert taken(Shares(1000, 1), "10.0.0.1") == 1000


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.booleans())))
def test_what_is_held_adds_up_and_is_forgotten(steps: list[tuple[str, int, bool]]) -> None:
    shares = Shares(100, 0.8)
    held = {"a": 0, "b": 0, "c": 0}
    for address, size, takes in steps:
        if takes:
            held[address] += size * shares.take(address, size)
        elif held[address] >= size:
            shares.give(address, size)
            held[address] -= size
        assert shares.used == sum(held.values()) <= shares.limit
        assert shares._held == {name: count for name, count in held.items() if count}


def test_the_port_is_no_part_of_an_address() -> None:
    assert address_of("10.0.0.1:2379") == "10.0.0.1"
    assert address_of("fe80::1:2379") == "fe80::1"
    assert address_of("unknown") == "unknown"
