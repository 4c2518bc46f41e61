"""Samples of the shards' revisions: the revisions that the other shards had reached before one shard's revision."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core import errors
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.pb import rpc_pb2
from esp.core.samples import Samples
from esp.core.shard_map import ShardMap
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.status import Status

LEADING = 1
NAMES = ("s0", "s1", "s2")
MAP = ShardMap.build([("s0", KeyRange(b"", b"i")), ("s1", KeyRange(b"i", b"r")), ("s2", KeyRange(b"r", None))], NAMES)


def by_name(revisions: Sequence[int]) -> dict[str, int]:
    return dict(zip(NAMES, revisions, strict=True))


class Clocks:
    """Three shards, of which only the revisions matter. `asked` is who was asked, in order; `away` do not answer."""

    def __init__(self) -> None:
        self.revisions = [1, 1, 1]
        self.asked: list[int] = []
        self.away: set[int] = set()
        self.before_answer: Iterator[None] = iter(())

    def shards(self) -> list[Any]:
        return [_Shard(self, index) for index in range(3)]


class _Shard:
    def __init__(self, clocks: Clocks, index: int) -> None:
        self.clocks, self.index, self.name = clocks, index, f"s{index}"

    def parsed(self, answer: Any, message: bytes) -> Any:
        return answer.FromString(message)

    def free_connection(self) -> None:
        """None: each call has a task."""

    def wants_login(self, _: Status) -> bool:
        """Nobody has switched auth on."""
        return False

    async def forward_unary(self, head: object, message: bytes, **options: object) -> bytes:
        self.clocks.asked.append(self.index)
        await asyncio.sleep(0)
        next(self.clocks.before_answer, None)
        if self.index in self.clocks.away:
            raise errors.NO_CONNECTION.error()
        header = rpc_pb2.ResponseHeader(revision=self.clocks.revisions[self.index])
        return rpc_pb2.RangeResponse(header=header).SerializeToString()


def samples_of(clocks: Clocks | None = None, **limits: int) -> Samples:
    layout = Layout.of(MAP, (clocks or Clocks()).shards())
    return Samples(layout, b"k", WireContext(Limits(**limits)))  # type: ignore[arg-type]


def test_the_newest_that_the_leading_shard_had_not_passed() -> None:
    samples = samples_of()
    for vector in ((5, 10, 7), (6, 20, 8), (9, 30, 8)):
        samples.add(by_name(vector))
    assert samples.before(10) is None, "it may have been at 10 for long when it was asked"
    assert samples.before(11) == samples.before(20) == by_name((5, 10, 7))
    assert samples.before(21) == samples.before(30) == by_name((6, 20, 8))
    assert samples.before(1000) == by_name((9, 30, 8))


def test_while_the_leading_shard_rests_the_last_says_most() -> None:
    samples = samples_of()
    for vector in ((5, 10, 7), (6, 10, 8), (9, 10, 8)):
        samples.add(by_name(vector))
    assert len(samples) == 1
    assert samples.before(11) == by_name((9, 10, 8))


def test_a_shard_that_does_not_answer_counts_with_what_it_said_before() -> None:
    samples = samples_of()
    samples.add(by_name((0, 10, 7)))
    assert samples.before(11) == by_name((0, 10, 7))
    samples.add(by_name((6, 20, 0)))
    assert samples.before(21) == by_name((6, 20, 7))


def test_a_history_that_begins_anew_is_not_mixed_with_the_old() -> None:
    samples = samples_of()
    samples.add(by_name((100, 100, 100)))
    samples.add(by_name((50, 200, 120)))  # restored from a backup
    assert len(samples) == 1
    assert samples.before(150) is None
    assert samples.before(201) == by_name((50, 200, 120))


def test_no_more_than_so_many_are_kept() -> None:
    samples = samples_of(max_samples=3)
    for number in range(1, 6):
        samples.add(by_name((number, number, number)))
    assert len(samples) == 3
    assert samples._context.counters.limits["max_samples"] == 2
    assert samples.before(3) is None
    assert samples.before(4) == by_name((3, 3, 3))


def test_the_leading_shard_is_asked_when_all_others_have_answered() -> None:
    clocks = Clocks()
    samples = samples_of(clocks)
    asyncio.run(samples.take())
    assert sorted(clocks.asked[:2]) == [0, 2]
    assert clocks.asked[2:] == [LEADING]
    assert samples.before(2) == by_name((1, 1, 1))


@pytest.mark.parametrize(("away", "expected"), [({0}, (0, 1, 1)), ({LEADING}, None), ({0, 2}, (0, 1, 0))])
def test_without_the_leading_shard_there_is_no_sample(away: set[int], expected: tuple[int, ...] | None) -> None:
    clocks = Clocks()
    clocks.away = away
    samples = samples_of(clocks)
    asyncio.run(samples.take())
    assert samples.before(2) == (None if expected is None else by_name(expected))


@given(st.lists(st.one_of(st.just("sample"), st.lists(st.integers(0, 2), max_size=6)), max_size=30))
def test_whatever_is_written_meanwhile_no_shard_is_said_to_have_been_further_than_it_was(steps: list[Any]) -> None:
    """The claim of docs/consistency.md: when the leading shard came to R, each other was where `before(R)` says."""
    clocks = Clocks()
    samples = samples_of(clocks)
    reached: dict[int, list[int]] = {}

    def write(shards: list[int]) -> None:
        for shard in shards:
            clocks.revisions[shard] += 1
            if shard == LEADING:
                reached[clocks.revisions[shard]] = list(clocks.revisions)

    async def run() -> None:
        pending: list[list[int]] = []
        for step in steps:
            if step == "sample":
                # What came since the last is written in between the questions of this one.
                clocks.before_answer = (write(shards) for shards in pending)
                await samples.take()
                for _ in clocks.before_answer:
                    pass
                pending = []
            else:
                pending.append(step)
        for shards in pending:
            write(shards)

    asyncio.run(run())
    for revision, at_that_moment in reached.items():
        vector = samples.before(revision)
        if vector is not None:
            assert all(said <= was for said, was in zip((vector[name] for name in NAMES), at_that_moment, strict=True))


def test_another_layout_keeps_the_samples_while_the_same_shard_leads() -> None:
    clocks = Clocks()
    samples = samples_of(clocks)
    samples.add(by_name((5, 10, 7)))
    first, second, _ = spans = [KeyRange(b"", b"i"), KeyRange(b"i", b"r"), KeyRange(b"r", None)]
    two = ShardMap.build([("s0", first), ("s1", second), ("s1", spans[2])], NAMES[:2])
    samples.install(Layout.of(two, clocks.shards()))
    clocks.revisions = [6, 20, 8]
    asyncio.run(samples.take())
    assert clocks.asked == [0, LEADING], "the third has left"
    assert samples.before(11) == by_name((5, 10, 7))
    assert samples.before(21) == {"s0": 6, "s1": 20}
    samples.install(Layout.of(MAP, clocks.shards()))
    samples.add(by_name((0, 30, 0)))
    assert samples.before(31) == {"s0": 6, "s1": 30, "s2": 0}, "of the one that came back nothing is known"
    other = ShardMap.build([("s1", first), ("s0", second), ("s2", spans[2])], NAMES)
    samples.install(Layout.of(other, clocks.shards()))
    assert len(samples) == 0
    assert samples.leading == "s0"
