"""The supervisor's side of `esp serve` with several processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from esp.commands.workers_watches import Watches, find
from esp.core import config as configs
from esp.core.background import Background
from esp.core.proxy import Proxy
from esp.core.services.watch import Finding
from esp.core.shared_tokens import Part, Ring, Ticks
from esp.core.takeover import HandOver
from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.workers import Channel, ChannelError, Supervisor

TWO = """
shards:
- {name: a, endpoints: [127.0.0.1:1], ranges: [{start: "", end: m}]}
- {name: b, endpoints: [127.0.0.1:2], ranges: [{start: m, end: ""}]}
"""


class NoOthers:
    """No other process knows of any watch."""

    async def find(self, _: object, __: int) -> list[Finding]:
        return []

    def give_back(self, _: object, __: int) -> None:
        raise AssertionError


def test_a_place_without_a_worker_leaves_doubt_where_a_client_has_watched() -> None:
    async def run() -> None:
        async with Background() as background:
            supervisor = Supervisor(3, background)
            workers, findings = await find(supervisor, {"worker": 0, "watched": "", "start": 5})
            assert workers == [-1, -1], "all but the one that asks"
            assert [finding["is_doubtful"] for finding in findings] == [True, True]

    asyncio.run(run())


@pytest.mark.parametrize("is_anew", [False, True])
def test_a_worker_begun_anew_doubts_also_if_the_one_that_died_has_made_no_token(is_anew: bool) -> None:
    own, other = (Ring.create(1 << 20, 1000, 2) for _ in range(2))
    ticks = Ticks()
    ticks.take(2)
    before = Tokens(WireContext(Limits()), instance=51)
    before.share(Part(other, ticks, 1, [own, other]))
    before.mint(Vector(("a", "b"), (5, 9)))
    proxy = Proxy(configs.parse(TWO, None))
    proxy.join(Part(own, ticks, 0, [own, other]), NoOthers(), is_anew=is_anew)
    found = [proxy.positions.find(b"watched", start).is_doubtful for start in (2, 10, 11)]
    assert found == [is_anew, is_anew, False], "it may have had positions from a takeover"


class _Places:
    """A supervisor whose workers answer, in this order of questions: "" for one that takes the positions."""

    def __init__(self, *answers: str) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.answers = list(answers)
        self.asked: list[tuple[int, int]] = []
        self.workers = {0: _Place(self, 0), 1: _Place(self, 1)}

    def channels(self) -> dict[int, Channel]:
        return {number: cast("Channel", place) for number, place in self.workers.items() if not place.gone.is_set()}


class _Place:
    def __init__(self, places: _Places, number: int) -> None:
        self.gone = asyncio.Event()
        self.places = places
        self.number = number

    async def ask(self, _: str, __: float, *, number: int, positions: list[Any]) -> Mapping[str, Any]:
        assert positions == [{"some": 1}]
        self.places.asked.append((self.number, number))
        why = self.places.answers.pop(0)
        if why == "dies":
            self.gone.set()
        if why:
            raise ChannelError(why)
        return {}


def test_positions_of_the_process_before_are_given_again_until_a_worker_has_them() -> None:
    async def run() -> None:
        async with Background() as background:

            async def adopt(*answers: str) -> list[tuple[int, int]]:
                places = _Places(*answers)
                watches = Watches(cast("Supervisor", places), background, None, cast("HandOver", None))
                await watches.adopt([{"some": 1}])
                return places.asked

            assert await adopt("") == [(0, 0)]
            assert await adopt("silent", "silent", "") == [(0, 0)] * 3, "it may have taken them, and knows the number"
            assert await adopt("silent", "dies", "") == [(0, 0), (0, 0), (1, 0)]
            with pytest.raises(ChannelError, match="silent"):
                await adopt(*["silent"] * 4)

    asyncio.run(run())
