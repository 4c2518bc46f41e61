"""The rounds of a workload: in each, one target after the other, so that a disturbance meets all alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from time import perf_counter, process_time
from typing import Final

from google.protobuf.message import DecodeError

from esp.core.background import Background, all_of
from esp.core.keys import OPEN_END, prefix_end
from esp.core.load.calls import UnaryLoop
from esp.core.load.figures import Figures, Measured
from esp.core.load.keys import Keys
from esp.core.load.loop import ClosedLoop
from esp.core.load.streams import KeepaliveLoop, StreamLoop, WatchLoop
from esp.core.load.target import Target, TargetError
from esp.core.pb import rpc_pb2
from esp.core.shard import DELETE_RANGE, LEASE_GRANT, LEASE_REVOKE, PUT, RANGE, TXN
from esp.core.wire.client import ClientConnection
from esp.core.wire.message import PREFIX_SIZE, prefix

ANSWER_SECONDS: Final = 10.0
"""Seconds after a round in which open requests may still be answered."""
LEASE_TTL: Final = 120
AT_ONCE: Final = 32
CHECKED: Final = 64
"""One answer in so many is parsed and compared."""


class Workload(StrEnum):
    """The loads. For watch a request is a put and its event, for keepalive one keepalive on a stream."""

    PUT = "put"
    RANGE = "range"
    TXN = "txn"
    WATCH = "watch"
    KEEPALIVE = "keepalive"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a load is made.

    Attributes:
        connections: connections to each target.
        streams: requests that are open on each connection.
        seconds: the length of a round.
        warm_up: seconds before the first round of each target in which nothing is counted.
        rounds: the number of rounds.
        keys: how many keys there are, for unary calls.
        value_bytes: bytes of each value.
    """

    connections: int
    streams: int
    seconds: float
    warm_up: float
    rounds: int
    keys: int
    value_bytes: int


Progress = Callable[[str, int, int], object]
"""Called with the work, and seconds that are done, and of all."""


class Bench:
    """Workloads on targets.

    Attributes:
        left: the targets in which the keys of this run may be left, since they did not answer in the end.
    """

    def __init__(self, plan: Plan, targets: Sequence[Target], keys: Keys, progress: Progress) -> None:
        self._plan = plan
        self._targets = targets
        self._keys = keys
        self._progress = progress
        self._value = b"v" * plan.value_bytes
        self._leases: dict[str, list[int]] = {}
        self.left: list[str] = []
        self._background = Background()
        self._done = self._total = 0.0

    async def run(self, workloads: Sequence[Workload]) -> list[Measured]:
        """All rounds of all workloads, and then nothing of them is left in the targets.

        Raises:
            TargetError: a target cannot be reached, or refuses what the load needs.
        """
        plan = self._plan
        self._total = len(workloads) * len(self._targets) * (plan.warm_up + plan.rounds * plan.seconds)
        measured = []
        async with Background() as background:
            self._background = background
            try:
                for workload in workloads:
                    measured += await self._measure(workload)
            finally:
                await self._clear()
        return measured

    async def _measure(self, workload: Workload) -> list[Measured]:
        rounds: list[list[Figures]] = [[] for _ in self._targets]
        for target in self._targets:
            await target.connect(self._plan.connections)
            await self._prepare(workload, target)
            await self._round(workload, target, self._plan.warm_up, "Warming up")
        for number in range(self._plan.rounds):
            order = list(range(len(self._targets)))
            for place in order[number % len(order) :] + order[: number % len(order)]:
                step = f"{workload}, round {number + 1}"
                rounds[place].append(await self._round(workload, self._targets[place], self._plan.seconds, step))
        return [Measured.of(workload, target.name, some) for target, some in zip(self._targets, rounds, strict=True)]

    async def _prepare(self, workload: Workload, target: Target) -> None:
        """Writes what the workload reads."""
        if workload is Workload.KEEPALIVE:
            if target.name in self._leases:
                return
            leases = self._leases[target.name] = []

            async def grant() -> None:
                leases.append((await target.ask(LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=LEASE_TTL))).ID)

            count = self._plan.connections * self._plan.streams
            for first in range(0, count, AT_ONCE):
                await all_of([grant() for _ in range(min(AT_ONCE, count - first))])
        elif workload is not Workload.WATCH:
            keys = self._keys.first(self._plan.keys)
            for first in range(0, len(keys), AT_ONCE):
                puts = [rpc_pb2.PutRequest(key=key, value=self._value) for key in keys[first : first + AT_ONCE]]
                await all_of([target.ask(PUT, put) for put in puts])

    def _loops(self, workload: Workload, target: Target, connections: Sequence[ClientConnection]) -> list[ClosedLoop]:
        streams = self._plan.streams
        loops: list[ClosedLoop] = []
        if workload is Workload.KEEPALIVE:
            leases = self._leases[target.name]
            for number, connection in enumerate(connections):
                own = leases[number * streams : (number + 1) * streams]
                loops.append(KeepaliveLoop(connection, own, target.metadata))
        elif workload is Workload.WATCH:
            keys = self._keys.first(len(connections) * streams)
            for number, connection in enumerate(connections):
                own_keys = keys[number * streams : (number + 1) * streams]
                loops.append(WatchLoop(connection, own_keys, self._value, target.metadata))
        else:
            path, requests, check = _unary(workload, self._keys.first(self._plan.keys), self._value)
            for number, connection in enumerate(connections):
                first = number * len(requests) // len(connections)
                forward = path, target.metadata
                loops.append(UnaryLoop(connection, streams, forward, requests, check, first))
        return loops

    async def _round(self, workload: Workload, target: Target, seconds: float, step: str) -> Figures:
        connections = await target.connect(self._plan.connections)
        figures = Figures()
        loops = self._loops(workload, target, connections)
        for loop in loops:
            loop.figures = figures
            loop.later = self._background.later
            loop.begin()
        begun, cpu = perf_counter(), process_time()
        try:
            while (left := seconds - (perf_counter() - begun)) > 0:
                await asyncio.sleep(min(left, 0.1))
                passed = min(seconds, perf_counter() - begun)
                self._progress(f"{target.name} {step}", int(self._done + passed), int(self._total))
            figures.seconds, figures.cpu = perf_counter() - begun, process_time() - cpu
        finally:  # also if the round is cancelled: no put may come after the keys have been deleted
            await self._stop(loops, target, figures)
        self._done += seconds
        return figures

    async def _stop(self, loops: Sequence[ClosedLoop], target: Target, figures: Figures) -> None:
        """Waits for the open requests, which do not count any more."""
        for loop in loops:
            loop.figures = None
        late = sum(await all_of([loop.stop(ANSWER_SECONDS) for loop in loops]))
        if late:
            figures.errors[f"no answer within {ANSWER_SECONDS:g} s after the round"] += late
            target.close()
        for loop in loops:
            if isinstance(loop, StreamLoop):
                loop.end()

    async def _clear(self) -> None:
        """Deletes the keys of this run, and revokes its leases, where that can be done."""
        for target in self._targets:
            try:
                await self._clear_one(target)
            except TargetError:
                self.left.append(target.name)
            target.close()

    async def _clear_one(self, target: Target) -> None:
        if not target.was_reached:
            return
        await target.connect(1)
        for one in self._keys.prefixes:
            end = prefix_end(one) or OPEN_END
            await target.ask(DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=one, range_end=end))
        leases = self._leases.pop(target.name, [])
        for first in range(0, len(leases), AT_ONCE):
            revokes = [rpc_pb2.LeaseRevokeRequest(ID=lease) for lease in leases[first : first + AT_ONCE]]
            await all_of([target.ask(LEASE_REVOKE, revoke) for revoke in revokes])


def _unary(
    workload: Workload, keys: Sequence[bytes], value: bytes
) -> tuple[bytes, list[bytes], Callable[[bytes], str]]:
    """The path, the requests and the check of the answers."""
    if workload is Workload.RANGE:
        ranges = [prefix(rpc_pb2.RangeRequest(key=key).SerializeToString()) for key in keys]
        return RANGE.path, ranges, _Check(partial(_is_range, value)).look
    puts = [rpc_pb2.PutRequest(key=key, value=value) for key in keys]
    if workload is Workload.PUT:
        messages = [prefix(put.SerializeToString()) for put in puts]
        return PUT.path, messages, _Check(lambda body: rpc_pb2.PutResponse.FromString(body).header.revision > 0).look
    txns = []
    for put in puts:
        compare = rpc_pb2.Compare(
            key=put.key, target=rpc_pb2.Compare.VERSION, result=rpc_pb2.Compare.GREATER, version=0
        )
        txn = rpc_pb2.TxnRequest(compare=[compare], success=[rpc_pb2.RequestOp(request_put=put)])
        txns.append(prefix(txn.SerializeToString()))
    return TXN.path, txns, _Check(lambda body: rpc_pb2.TxnResponse.FromString(body).succeeded).look


def _is_range(value: bytes, body: bytes) -> bool:
    answer = rpc_pb2.RangeResponse.FromString(body)
    return len(answer.kvs) == 1 and answer.kvs[0].value == value


class _Check:
    """Looks at one answer in CHECKED, so that the client has little work with them."""

    def __init__(self, is_right: Callable[[bytes], bool]) -> None:
        self._is_right = is_right
        self._seen = 0

    def look(self, answer: bytes) -> str:
        """What is wrong with an answer; "" for nothing."""
        self._seen += 1
        if self._seen % CHECKED != 1:
            return ""
        try:
            return "" if self._is_right(answer[PREFIX_SIZE:]) else "the answer is not what was written"
        except DecodeError:
            return "the answer cannot be read"
