"""Tokens of other proxies, asked of scripted ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec
import pytest

from esp.core.background import Background
from esp.core.fleet import Peer, PeerError, Registered, sealed
from esp.core.services import fleet
from esp.core.services.fleet import Fellows
from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits

SECRET = b"secret"
HERE = ("http://here",)
VECTOR = Vector(("a", "b"), (5, 9))


def record(number: int, *, heir_of: tuple[int, ...] = (), leaves: bool = False) -> Registered:
    urls = (f"http://{number}",)
    return Registered(number=number, urls=urls, peers=urls, version="1", epoch=1, heir_of=heir_of, leaves=leaves)


class World:
    """Several proxies; each is asked by calling the other."""

    def __init__(self, background: Background) -> None:
        self.background = background
        self.others: dict[int, Registered] = {}
        self.proxies: dict[int, Fellows] = {}
        self.tokens: dict[int, Tokens] = {}
        self.looks = 0
        self.asked = 0
        self.on_ask: Callable[[], None] = lambda: None

    def add(self, number: int, context: WireContext | None = None) -> tuple[Tokens, Fellows]:
        tokens = Tokens(context or WireContext(Limits()), instance=number)
        self.others[number] = record(number)
        here = (f"http://{number}",)

        def find(_: object) -> None:
            raise NotImplementedError

        self.tokens[number] = tokens
        self.proxies[number] = Fellows(
            tokens,
            self.background,
            find,  # type: ignore[arg-type]
            lambda: {other: one for other, one in self.others.items() if other != number},
            lambda: SECRET,
            lambda: here,
            self.look,
            lambda: self.looks,
            lambda one: cast("Peer", _Asked(self, one.number)),
        )
        return tokens, self.proxies[number]

    def look(self) -> None:
        self.looks += 1


class _Asked:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number

    async def ask(self, secret: bytes, body: bytes, seconds: float) -> bytes:
        self.world.asked += 1
        self.world.on_ask()
        await asyncio.sleep(0)
        question = sealed.question(secret, body)
        answer = self.world.proxies[self.number].answer(question) if self.number in self.world.proxies else None
        if answer is None:
            raise PeerError("gone")
        return sealed.answered(secret, question, answer)

    def close(self) -> None:
        pass


def run(work: Callable[[World], object]) -> None:
    async def main() -> None:
        async with Background() as background:
            await work(World(background))  # type: ignore[misc]
            assert not background.failures

    asyncio.run(main())


def test_a_token_is_asked_of_the_proxy_that_has_minted_it_once() -> None:
    async def work(world: World) -> None:
        one, _ = world.add(1)
        other, fellows = world.add(2)
        token = one.mint(VECTOR)
        assert other.must_ask(token)
        assert other.must_ask(token + 1)
        await asyncio.gather(*(other.learn(token + 1) for _ in range(50)))
        assert world.asked == 1
        assert not other.must_ask(token)
        assert other.vector(token) == VECTOR
        assert other.adopted == 1
        assert fellows.counters["asked"] == 1
        assert fellows.waiting == 0
        assert other.highest == {"a": 5, "b": 9}

    run(work)


def test_many_tokens_are_one_question() -> None:
    async def work(world: World) -> None:
        one, _ = world.add(1)
        other, _ = world.add(2)
        tokens = [one.mint(Vector(("a",), (number,))) for number in range(2 * fleet.MOST_TOKENS + 1)]
        await asyncio.gather(*(other.learn(token) for token in tokens))
        assert world.asked == 3
        assert other.adopted == len(tokens)

    run(work)


def test_what_nobody_knows_is_not_asked_for_again() -> None:
    async def work(world: World) -> None:
        gone = Tokens(WireContext(Limits()), instance=9)
        world.add(1)
        other, fellows = world.add(2)
        token = gone.mint(VECTOR)
        await other.learn(token)
        assert not other.must_ask(token)
        assert other.position(token) is None
        assert fellows.counters["unknown"] == 1
        assert world.looks >= 2

    run(work)


def test_who_drains_is_asked_again_until_its_tokens_are_somewhere() -> None:
    async def work(world: World) -> None:
        one, drains = world.add(1)
        heir, _ = world.add(3)
        other, _ = world.add(2)
        token = one.mint(VECTOR)
        world.others[1] = record(1, leaves=True)
        del world.proxies[1]  # its listeners are closed
        turns = iter(range(99))

        def on_ask() -> None:
            if next(turns) == 3:
                heir.adopt(token, VECTOR)
                world.others[3] = record(3, heir_of=(1,))

        world.on_ask = on_ask
        await other.learn(token)
        assert other.vector(token) == VECTOR
        drains.close()

    run(work)


def test_tokens_are_given_and_the_heir_tells_them() -> None:
    async def work(world: World) -> None:
        one, drains = world.add(1)
        heir, heirs = world.add(3)
        other, _ = world.add(2)
        tokens = [one.mint(Vector(("a",), (number,))) for number in range(fleet.GIVEN_AT_ONCE + 7)]
        newest, _ = one.newer(0)[0]
        assert newest == tokens[-1]
        await drains.hand_on(world.others[3], one.newer(0))
        assert (drains.counters["given"], heirs.counters["taken"]) == (len(tokens), len(tokens))
        assert heirs.heir_of == {1}
        assert one.newer(newest) == []
        del world.others[1]
        world.others[3] = record(3, heir_of=(1,))
        await other.learn(tokens[0])
        assert other.vector(tokens[0]) == Vector(("a",), (0,))
        assert len(heir.newer(0)) == len(tokens)  # which it hands on in its turn

    run(work)


def test_no_more_tokens_of_others_are_known_than_of_its_own() -> None:
    async def work(world: World) -> None:
        context = WireContext(Limits(max_tokens=10))
        one, _ = world.add(1)
        other, _ = world.add(2, context)
        tokens = [one.mint(Vector(("a",), (number,))) for number in range(15)]
        await asyncio.gather(*(other.learn(token) for token in tokens))
        assert other.adopted == 10
        assert context.counters.limits["max_tokens"] == 5

    run(work)


def test_no_more_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "MOST_WAITING", 2)
    monkeypatch.setattr(fleet, "MOST_UNKNOWN", 3)

    async def work(world: World) -> None:
        one, _ = world.add(1)
        other, fellows = world.add(2)
        tokens = [one.mint(Vector(("a",), (number,))) for number in range(3)]
        waiting = [asyncio.ensure_future(other.learn(token)) for token in tokens[:2]]
        await asyncio.sleep(0)
        assert fellows.waiting == 2
        assert not other.must_ask(tokens[2])
        assert fellows.counters["dropped"] == 1
        await asyncio.gather(*waiting)
        gone = Tokens(WireContext(Limits()), instance=9)
        for number in range(5):
            await other.learn(gone.mint(Vector(("a",), (number,))))
        assert len(fellows._unknown) == 3

    run(work)


def test_tokens_for_which_nobody_waits_any_more_count_until_they_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "MOST_WAITING", 2)

    async def work(world: World) -> None:
        one, _ = world.add(1)
        other, fellows = world.add(2)
        tokens = [one.mint(Vector(("a",), (number,))) for number in range(3)]
        waiting = [asyncio.ensure_future(other.learn(token)) for token in tokens[:2]]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (fellows.waiting, fellows.wanted) == (0, 2)
        assert not other.must_ask(tokens[2])
        while fellows.wanted:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        assert other.must_ask(tokens[2])

    run(work)


def test_when_a_token_was_asked_for_is_forgotten_once_it_is_settled() -> None:
    """Else it would count as asked for long ago when it is wanted again, and be given up at once."""

    async def work(world: World) -> None:
        one, _ = world.add(1)
        other, fellows = world.add(2)
        first, second, third = (one.mint(Vector(("a",), (number,))) for number in range(3))
        waiting = asyncio.ensure_future(other.learn(second))

        def on_ask() -> None:
            if world.asked == 1:
                fellows._want(third)  # so the questions go on
            assert set(fellows._since) <= set(fellows._wanted)

        world.on_ask = on_ask
        await other.learn(first)
        await waiting
        while fellows.wanted:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        assert world.asked == 2
        assert fellows._since == {}

    run(work)


def test_who_is_no_proxy_is_told_nothing() -> None:
    async def work(world: World) -> None:
        _, fellows = world.add(1)
        question = msgspec.json.encode({"tokens": [1]})
        assert fellows.answer(question) is None
        assert fellows.answer(sealed.question(b"another", question)) is None
        for wrong in (b"", b"[]", b'{"tokens": "x"}', b'{"given": [[1, 0, [1]]], "shards": [["a"]]}'):
            assert fellows.answer(sealed.question(SECRET, wrong)) is None
        assert fellows.answer(sealed.question(SECRET, question)) is not None

    run(work)
