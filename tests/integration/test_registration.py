"""The registration of proxies on real shards: numbers are one process's alone, whoever stood still."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from esp.core import config
from esp.core.connected_shards import connected
from esp.core.fleet import Registered, Registration, registration, values
from esp.core.shard import Shard
from esp.core.tokens import Tokens, Vector, number_of
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from tests.harness import Etcds
from tests.integration.mapped import Mapped

Make = Callable[[], tuple[Registration, Tokens]]


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(2), ["m"], tmp_path / "esp.yaml")


def run(mapped: Mapped, work: Callable[[Make, Mapping[str, Shard]], Awaitable[None]]) -> None:
    async def main() -> None:
        async with connected(config.load(mapped.path)) as shards:

            def make() -> tuple[Registration, Tokens]:
                tokens = Tokens(WireContext(Limits()))

                def describe(number: int) -> Registered:
                    url = (f"http://127.0.0.1:{1000 + id(tokens) % 60000}",)
                    return Registered(number=number, urls=url, peers=url, version="1", epoch=1)

                here = Registration(lambda: shards, lambda: "s0", lambda: mapped.now.guards, describe, tokens)
                return here, tokens

            await work(make, shards)

    asyncio.run(main())


def minted(tokens: Tokens) -> tuple[int, int]:
    """The number and the tick of a new token."""
    token = tokens.mint(Vector(("s0",), (tokens.minted + 1,)))
    return number_of(token), tokens.last_tick


def test_a_number_goes_on_to_another_behind_all_that_was_granted(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "AT_ANCHOR", range(1))
    monkeypatch.setattr(values, "ELSEWHERE", range(48, 49))
    monkeypatch.setattr(registration, "TTL_SECONDS", 1)

    async def work(make: Make, _: Mapping[str, Shard]) -> None:
        slept, of_slept = make()
        await slept.begin(5)
        assert (slept.number, slept.shard, slept.is_registered) == (0, "s0", True)
        before = minted(of_slept)
        other, of_other = make()
        await other.begin(5)
        assert (other.number, other.shard, other.is_registered) == (48, "s1", False)  # the only one is taken
        assert "has given all 1 numbers to others" in other.trouble
        while not other.is_registered:  # `slept` stands still, and its lease ends
            await asyncio.sleep(0.2)
            await other._round()
        assert other.number == 0
        after = minted(of_other)
        still = [minted(of_slept) for _ in range(3)]  # it wakes up, and has not looked yet
        assert {number for number, _ in (before, after, *still)} == {0}
        assert max(tick for _, tick in (before, *still)) <= slept._until < after[1]
        await slept._round()
        assert slept.number != 0
        assert not slept.is_registered
        assert minted(of_slept)[0] != 0
        await other.leave(5)
        await slept._round()
        assert slept.number == 0
        assert minted(of_slept)[1] > after[1]
        await slept.leave(5)

    run(mapped, work)


def test_nothing_is_written_where_another_guard_is(mapped: Mapped) -> None:
    async def work(make: Make, _: Mapping[str, Shard]) -> None:
        here, _tokens = make()
        before = mapped.now.guards
        mapped.hold("s0", mapped.now, guard=f"1-{0:032x}")
        mapped.hold("s1", mapped.now, guard=f"1-{0:032x}")
        await here.begin(5)
        assert here.number is None
        assert "another guard than the map" in here.trouble
        for name in ("s0", "s1"):
            assert mapped.read(name, b"\0esp/numbers/", b"\0esp0") == []
            mapped.hold(name, mapped.now, guard=before[name])
        await here._round()
        assert here.is_registered
        number = here.number
        mapped.hold("s0", mapped.now, guard=f"1-{1:032x}")
        await here._round()
        assert here.number == number  # once had, it is kept
        await here.leave(5)

    run(mapped, work)


def test_a_round_under_way_does_not_register_anew_who_leaves(mapped: Mapped) -> None:
    async def work(make: Make, _: Mapping[str, Shard]) -> None:
        here, _tokens = make()
        await here.begin(5)
        assert here.is_registered
        look, has_looked, may_go = here._look, asyncio.Event(), asyncio.Event()

        async def slow(shard: Shard) -> values.Fleet:
            found = await look(shard)
            has_looked.set()
            await may_go.wait()
            return found

        here._look = slow  # type: ignore[method-assign]
        under_way = asyncio.create_task(here._round())
        await has_looked.wait()
        leaves = asyncio.create_task(here.leave(5))
        await asyncio.wait((leaves,), timeout=0.2)  # it would be through by then
        may_go.set()
        await asyncio.gather(under_way, leaves)
        assert mapped.read("s0", values.PROXIES, values.PROXIES + b"\xff") == []
        assert here.number is None

    run(mapped, work)
