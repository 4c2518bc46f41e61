"""The proof that revisions of several shards are of one moment."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.export import ExportError
from esp.core.export import moment as module
from esp.core.export.moment import Moment, moment, of_one_moment
from esp.core.pb import rpc_pb2


def test_one_shard_needs_one_round() -> None:
    assert of_one_moment([{"a": 7}]) == {"a": 7}


def test_two_equal_rounds_prove_a_moment() -> None:
    assert of_one_moment([{"a": 7, "b": 9}]) is None
    assert of_one_moment([{"a": 7, "b": 9}, {"a": 7, "b": 10}]) is None
    assert of_one_moment([{"a": 7, "b": 9}, {"a": 7, "b": 9}]) == {"a": 7, "b": 9}


def test_one_shard_may_change_all_the_time() -> None:
    rounds = [{"a": 7, "b": 9}, {"a": 7, "b": 10}, {"a": 7, "b": 11}]
    assert of_one_moment(rounds) == {"a": 7, "b": 10}


def test_two_shards_that_change_prove_nothing() -> None:
    rounds = [{"a": 7, "b": 9, "c": 1}, {"a": 7, "b": 10, "c": 1}, {"a": 8, "b": 11, "c": 1}]
    assert of_one_moment(rounds) is None


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """The states of three shards over time, and rounds of reads: each shard at any time within its round."""
    state = {"a": 1, "b": 1, "c": 1}
    states = [dict(state)]
    for _ in range(draw(st.integers(3, 24))):
        name = draw(st.sampled_from(["a", "b", "c", "a", ""]))
        if name:
            state[name] += 1
        states.append(dict(state))
    bounds = sorted(draw(st.lists(st.integers(0, len(states) - 1), min_size=6, max_size=6)))
    rounds = []
    for begin, end in zip(bounds[::2], bounds[1::2], strict=True):
        rounds.append({name: states[draw(st.integers(begin, end))][name] for name in state})
    return states, rounds


@given(histories())
def test_what_is_found_was_true_at_some_moment(history: tuple[list[dict[str, int]], list[dict[str, int]]]) -> None:
    states, rounds = history
    for count in (1, 2, 3):
        found = of_one_moment(rounds[:count])
        assert found is None or found in states


async def found(rounds: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch, *, each: bool = False) -> Moment:
    rest = iter(rounds)

    async def one(*_: object) -> dict[str, rpc_pb2.ResponseHeader]:
        return {name: rpc_pb2.ResponseHeader(revision=revision) for name, revision in next(rest).items()}

    monkeypatch.setattr(module, "_round", one)
    return await moment({"a": b"a", "b": b"b", "c": b"c"}, {}, each=each)


BUSY = [{"a": number, "b": number, "c": 7} for number in range(1, 5)]


def test_the_headers_are_those_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = [*BUSY, {"a": 4, "b": 5, "c": 7}, {"a": 4, "b": 6, "c": 7}]
    of = asyncio.run(found(quiet, monkeypatch))
    assert {name: header.revision for name, header in of.headers.items()} == {"a": 4, "b": 5, "c": 7}
    assert of.seconds == 0.0


def test_keys_of_several_shards_that_change_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEARCH_SECONDS", -1.0)
    with pytest.raises(ExportError, match=r"keys kept changing on a, b; .*\(--each\)"):
        asyncio.run(found(BUSY, monkeypatch))


def test_each_takes_the_first_revisions(monkeypatch: pytest.MonkeyPatch) -> None:
    of = asyncio.run(found(BUSY, monkeypatch, each=True))
    assert {name: header.revision for name, header in of.headers.items()} == {"a": 1, "b": 1, "c": 7}
    assert of.seconds > 0
