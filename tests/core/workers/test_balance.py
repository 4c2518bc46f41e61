"""Several shares in one loop, as if each were a worker's."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from esp.core.workers import Balance, Share
from tests.harness import PATIENCE


class Crowd:
    """Workers that count their clients; a client is a socket whose other end is kept open."""

    def __init__(self, count: int) -> None:
        self.balance = Balance(count)
        self.clients: list[list[int]] = [[] for _ in range(count)]
        self.shares = [Share(self.balance, number, self._taker(number)) for number in range(count)]

    def _taker(self, number: int):  # type: ignore[no-untyped-def]
        def take(descriptor: int, port: int) -> None:
            assert port == 3
            self.clients[number].append(descriptor)
            self.shares[number].tell(len(self.clients[number]))

        return take

    def accept(self, number: int) -> None:
        """A client comes, and the kernel gives it to this worker."""
        here, there = socket.socketpair()
        there.close()
        descriptor = here.detach()
        if self.shares[number].give_away(descriptor, 3, len(self.clients[number])):
            os.close(descriptor)
        else:
            self.clients[number].append(descriptor)
            self.shares[number].tell(len(self.clients[number]))

    def close(self) -> None:
        for share in self.shares:
            share.end()
        self.balance.close()
        for descriptors in self.clients:
            for descriptor in descriptors:
                os.close(descriptor)

    @property
    def counts(self) -> list[int]:
        return [len(clients) for clients in self.clients]


@contextmanager
def crowd(count: int) -> Iterator[Crowd]:
    made = Crowd(count)
    try:
        for share in made.shares:
            share.open()
        yield made
    finally:
        made.close()


async def until_all_have_come(made: Crowd, clients: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while sum(made.counts) < clients:  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_a_burst_that_one_worker_accepts_is_shared_evenly() -> None:
    async def run() -> None:
        with crowd(4) as made:
            for _ in range(64):
                made.accept(1)
            await until_all_have_come(made, 64)
            assert made.counts == [16, 16, 16, 16]
            assert made.shares[0].lines() == ["[+]workers ok\n"]
            assert (made.shares[1].given, made.shares[0].taken) == (48, 16)

    asyncio.run(run())


def test_one_more_than_another_is_even_enough() -> None:
    async def run() -> None:
        with crowd(2) as made:
            made.accept(0)
            assert made.counts == [1, 0]
            made.accept(0)
            await until_all_have_come(made, 2)
            assert made.counts == [1, 1]

    asyncio.run(run())


def test_a_worker_that_does_not_tick_gets_no_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10**12
    monkeypatch.setattr("esp.core.workers.balance.monotonic_ns", lambda: now)

    async def run() -> None:
        nonlocal now
        with crowd(2) as made:
            now += 1_900_000_000
            made.shares[0].tick(0.0)
            made.accept(0)
            made.accept(0)  # on its way to the other, which is still thought to be alive
            asyncio.get_running_loop().remove_reader(made.balance.pairs[1][0])  # and is not
            now += 200_000_000
            for _ in range(5):
                made.accept(0)
            assert made.counts == [6, 0]
            made.shares[0].tick(0.0)
            assert made.shares[0].lines() == ["[-]worker 1 failed: it is stuck, or begins anew\n"]
            assert made.counts == [7, 0], "a client on the way to a stuck worker is served after all"

    asyncio.run(run())


def test_a_worker_that_ends_gets_none_and_gives_none() -> None:
    async def run() -> None:
        with crowd(2) as made:
            made.shares[1].close()
            for _ in range(3):
                made.accept(0)
            assert made.counts == [3, 0]
            made.shares[0].close()
            made.shares[1].open()
            made.accept(0)
            assert made.counts == [4, 0]

    asyncio.run(run())


def test_what_the_way_to_another_does_not_hold_stays_here() -> None:
    async def run() -> None:
        with crowd(2) as made:
            asyncio.get_running_loop().remove_reader(made.balance.pairs[1][0])
            for _ in range(2000):
                here, there = socket.socketpair()
                there.close()
                given = made.shares[0].give_away(here.fileno(), 3, 1 << 30)
                here.close()
                if not given:
                    break
            else:
                pytest.fail("no end to what was given")
            assert made.shares[0].given

    asyncio.run(run())


def test_clients_on_their_way_between_workers_that_end_at_once_come_to_one_of_them() -> None:
    async def run() -> None:
        with crowd(3) as made:
            loop = asyncio.get_running_loop()
            made.accept(0)
            for number in (1, 2):
                loop.remove_reader(made.balance.pairs[number][0])  # it is busy
                loop.add_reader(made.balance.pairs[number][0], lambda: None)
            made.accept(0)
            made.accept(0)
            assert made.shares[0].given == 2
            ends = [share.end() for share in made.shares]
            assert [len(end) for end in ends] == [0, 1, 1]
            made.clients[1] += [descriptor for end in ends for descriptor, port in end if port == 3]
            assert sum(made.counts) == 3

    asyncio.run(run())


def test_a_worker_that_ends_last_finds_what_it_has_given_to_one_that_has_ended() -> None:
    async def run() -> None:
        with crowd(2) as made:
            made.accept(0)
            seen = made.balance.ticks[1]
            assert made.shares[1].end() == []
            made.balance.ticks[1] = seen  # the first has looked just before the other has closed
            made.accept(0)
            made.balance.ticks[1] = 0
            assert (made.shares[0].given, made.counts) == (1, [1, 0])
            (client,) = made.shares[0].end()
            made.clients[0].append(client[0])
            assert made.shares[0].end() == []

    asyncio.run(run())
