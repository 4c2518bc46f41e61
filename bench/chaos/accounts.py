"""Clients with a name and a password: nobody does what they may not do, or gets in without the password."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Final, NamedTuple

from bench.chaos.client import Client, Endpoints, RefusedError, UnknownError, WrongError
from esp.core.pb import rpc_pb2


class Account(NamedTuple):
    """A user of all shards."""

    name: str
    password: str


ROOT: Final = Account("root", "chaos-root")
ESP: Final = Account("esp", "chaos-esp")
"""The proxies' own user. It has the role root, and another name: only an etcd itself revokes leases as root."""
APP: Final = Account("app", "chaos-app")
"""May read and write all keys: the user of the load."""
READER: Final = Account("reader", "chaos-reader")
"""May read the first prefix, and nothing else."""
PAUSE: Final = 0.2


class Trespassers:
    """A reader that tries what it may not do.

    Attributes:
        counts: tries by their outcome.
        faults: tries that were not refused.
    """

    def __init__(self, endpoints: Endpoints, place: int, seed: int, prefixes: tuple[bytes, ...]) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._client = Client(endpoints, place, READER)
        self._stranger = Client(endpoints, place)
        self._chance = random.Random(seed)
        self._prefixes = prefixes

    async def run(self, over: asyncio.Event) -> None:
        """Tries until the load is over.

        Raises:
            WrongError: an answer that no fault explains.
        """
        try:
            while not over.is_set():
                await asyncio.sleep(PAUSE)
                for attempt in (self._read, self._write, self._read_elsewhere, self._guess):
                    try:
                        await attempt()
                    except RefusedError as error:
                        self.counts["refused" if "permission denied" in str(error) else "in vain"] += 1
                    except UnknownError:
                        self.counts["in vain"] += 1
        finally:
            await self._client.close()
            await self._stranger.close()

    async def _read(self) -> None:
        await self._client.range(self._prefixes[0] + b"0")
        self.counts["read what it may"] += 1

    async def _write(self) -> None:
        key = self._chance.choice(self._prefixes) + b"trespass"
        await self._client.put(key, b"written")
        self.faults.append(f"{READER.name} has written {key!r}")

    async def _read_elsewhere(self) -> None:
        key = self._chance.choice(self._prefixes[1:]) + b"0"
        await self._client.range(key)
        self.faults.append(f"{READER.name} has read {key!r}")

    async def _guess(self) -> None:
        request = rpc_pb2.AuthenticateRequest(name=APP.name, password="wrong")
        try:
            await self._stranger.call("Auth", "Authenticate", request, rpc_pb2.AuthenticateResponse)
        except WrongError as error:
            if "invalid user ID or password" not in str(error):
                raise
            self.counts["refused"] += 1
        else:
            self.faults.append("a wrong password was taken")
