"""Clients that read and write single keys: each key must be linearizable, whatever breaks.

A key is used for some seconds and then left for another, because the time to judge a history grows quickly with its
length.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic
from typing import Final

from bench.chaos.client import Client, Endpoints, RefusedError, UnknownError
from bench.chaos.linearizability import Kind, Operation, Undecided, is_linearizable
from esp.core.pb import rpc_pb2

PREFIXES: Final = (b"a/", b"k/", b"s/")
"""Where the keys are: one prefix in each shard."""
KEY_SECONDS: Final = 6.0
CLIENTS_EACH: Final = 3
MOST_OPERATIONS: Final = 250
_KINDS: Final = (Kind.PUT, Kind.GET, Kind.GET, Kind.CAS, Kind.CAS, Kind.DELETE)


class Register:
    """One key at a time, used by some clients.

    Attributes:
        histories: of all keys that are no longer used, by key.
        answered: the calls that were answered.
    """

    def __init__(self, prefix: bytes, endpoints: Endpoints, seed: int, pace: float) -> None:
        """`pace` is the mean number of calls that a client begins in a second."""
        self.prefix = prefix
        self.histories: dict[bytes, list[Operation]] = {}
        self.answered = 0
        self._endpoints = endpoints
        self._chance = random.Random(seed)
        self._pace = pace
        self._values = itertools.count()

    async def run(self, over: asyncio.Event) -> None:
        """Uses one key after the other until the load is over.

        Raises:
            WrongError: no fault explains an answer.
        """
        clients = [Client(self._endpoints, number) for number in range(CLIENTS_EACH)]
        try:
            for number in itertools.count():
                if over.is_set():
                    return
                key = self.prefix + b"%d" % number
                history = self.histories[key] = []
                end = monotonic() + KEY_SECONDS
                async with asyncio.TaskGroup() as group:
                    for client in clients:
                        group.create_task(self._use(client, key, history, end, over))
        finally:
            for client in clients:
                await client.close()

    async def _use(
        self, client: Client, key: bytes, history: list[Operation], until: float, over: asyncio.Event
    ) -> None:
        believed = 0
        while monotonic() < until and not over.is_set() and len(history) < MOST_OPERATIONS:
            kind = self._chance.choice(_KINDS)
            value = str(next(self._values)) if kind in (Kind.PUT, Kind.CAS) else ""
            asked = Operation(kind, monotonic(), value=value, expected=believed if kind == Kind.CAS else 0)
            try:
                answered = await _ask(client, key, asked)
            except RefusedError:
                continue
            except UnknownError:
                if kind != Kind.GET:  # an unanswered read says nothing
                    history.append(asked)
                continue
            self.answered += 1
            history.append(answered)
            believed = 0 if kind == Kind.DELETE else answered.revision
            await asyncio.sleep(self._chance.uniform(0, 2 / self._pace))


async def _ask(client: Client, key: bytes, asked: Operation) -> Operation:
    value = asked.value.encode()
    match asked.kind:
        case Kind.PUT:
            put = await client.put(key, value)
            return replace(asked, returned=monotonic(), revision=put.header.revision)
        case Kind.GET:
            got = await client.range(key)
            return _found(asked, got)
        case Kind.DELETE:
            gone = await client.delete(key)
            revision = gone.header.revision if gone.deleted else 0
            return replace(asked, returned=monotonic(), done=gone.deleted == 1, revision=revision)
        case Kind.CAS:
            txn = await client.put_if(key, value, asked.expected)
            if txn.succeeded:
                return replace(asked, returned=monotonic(), done=True, revision=txn.header.revision)
            return _found(asked, txn.responses[0].response_range)
        case Kind.MOVE:
            raise AssertionError("no client moves keys")


def _found(asked: Operation, answer: rpc_pb2.RangeResponse) -> Operation:
    if not answer.kvs:
        return replace(asked, returned=monotonic())
    [row] = answer.kvs
    return replace(asked, returned=monotonic(), read=row.value.decode(), revision=row.mod_revision)


def judged(history: list[Operation]) -> str:
    """The fault of a key's history; "" for none. Runs in any process."""
    ordered = sorted(history, key=lambda operation: operation.called)
    try:
        return "" if is_linearizable(ordered) else "not linearizable"
    except Undecided:
        return "undecided"


def parts(registers: list[Register]) -> Iterator[tuple[bytes, list[Operation]]]:
    """All histories."""
    for register in registers:
        yield from register.histories.items()
