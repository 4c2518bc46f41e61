"""The load: clients of all kinds, begun together, and what they have to answer for in the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final

from bench.chaos.accounts import Trespassers
from bench.chaos.client import Endpoints
from bench.chaos.registers import PREFIXES, Register, judged, parts
from bench.chaos.replicas import Copy, Replica, settled
from bench.chaos.report import Verdict
from bench.chaos.sessions import Sessions
from bench.chaos.wal import Evidence
from esp.core.pb import kv_pb2

SETTLE_SECONDS: Final = 30.0
SECOND: Final = 1.0


def shard_of(key: bytes) -> int:
    """The number of the shard that owns a key of the load."""
    return (key >= b"i") + (key >= b"r")


@dataclass
class Load:
    """Everything that runs while things break.

    Attributes:
        endpoints: the proxies.
        who_ended: looks in the shards' logs who has ended a lease.
        pace: the calls a second that each client of a register begins.
        leases: the clients with leases.
        rates: the calls answered in each second.
    """

    endpoints: Endpoints
    who_ended: Callable[[int], Evidence]
    pace: float
    leases: int
    seed: int
    registers: list[Register] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    sessions: list[Sessions] = field(default_factory=list)
    trespassers: list[Trespassers] = field(default_factory=list)
    rates: list[int] = field(default_factory=list)

    async def run(self, beside: Callable[[], Coroutine[None, None, None]]) -> None:
        """Runs all clients while `beside` runs. The replicas go on until `judge`.

        Raises:
            WrongError: a client got an answer that no fault explains.
        """
        chance, over = random.Random(self.seed), asyncio.Event()
        proxies = len(self.endpoints.addresses)
        for prefix in PREFIXES:
            for _ in range(2):
                at = prefix + b"%d/" % len(self.registers)
                self.registers.append(Register(at, self.endpoints, chance.getrandbits(32), self.pace))
        for number in range(2 * proxies):
            self.replicas.append(Replica(f"all keys, client {number}", self.endpoints, number, Copy(shard_of)))
        for number, prefix in enumerate(PREFIXES):
            copy = Copy(shard_of, (prefix, prefix[:-1] + b"0"))
            self.replicas.append(Replica(f"shard {number}", self.endpoints, number, copy))
        for number in range(self.leases):
            seed = chance.getrandbits(32)
            self.sessions.append(Sessions(str(number), self.endpoints, number, seed, PREFIXES, self.who_ended))
        self.trespassers.append(Trespassers(self.endpoints, 0, chance.getrandbits(32), PREFIXES))
        async with asyncio.TaskGroup() as group:
            clients: list[Register | Sessions | Trespassers] = [*self.registers, *self.sessions, *self.trespassers]
            for one in clients:
                group.create_task(one.run(over))
            group.create_task(self._count(over))
            await beside()
            over.set()

    async def _count(self, over: asyncio.Event) -> None:
        done = 0
        while not over.is_set():
            await asyncio.sleep(SECOND)
            now = self.endpoints.outcomes["done"]
            self.rates.append(now - done)
            done = now

    async def judge(self, truth: Callable[[], Awaitable[list[kv_pb2.KeyValue]]]) -> Verdict:
        """What came of it, after all has been mended and the clients have ended."""
        faults = await settled(self.replicas, truth, SETTLE_SECONDS)
        for name, ones in (("sessions", self.sessions), ("accounts", self.trespassers)):
            faults += [f"{name}: {fault}" for one in ones for fault in one.faults]
        histories = dict(parts(self.registers))
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # gRPC's threads do not bear a fork
            judgements = await asyncio.gather(
                *(loop.run_in_executor(pool, judged, history) for history in histories.values())
            )
        undecided = 0
        for key, judgement in zip(histories, judgements, strict=True):
            if judgement == "undecided":
                undecided += 1
            elif judgement:
                faults.append(f"key {key!r}: {judgement}")
        operations = [operation for history in histories.values() for operation in history]
        return Verdict(
            faults=faults,
            counts={
                "calls": dict(self.endpoints.outcomes),
                "keys judged": len(histories) - undecided,
                "keys undecided": undecided,
                "operations on them": len(operations),
                "of these with unknown outcome": sum(not one.is_known for one in operations),
                "events": sum(one.copy.events for one in self.replicas),
                "watches": dict(sum((one.begun for one in self.replicas), Counter())),
                "sessions": dict(sum((one.counts for one in self.sessions), Counter())),
                "trespassers": dict(sum((one.counts for one in self.trespassers), Counter())),
            },
            rates=self.rates,
        )
