"""Coroutines whose steps are charged to a client, apart because no class with `__getattr__` can be compiled so."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

from esp.core.background import name_of
from esp.core.wire.connection import Connection

Result = TypeVar("Result")


class Timed(Coroutine[Any, Any, Result]):
    """A coroutine whose steps are charged to a client's connection, and wait while a turn of the loop has too many."""

    __slots__ = ("__qualname__", "_connection", "_place", "_turns", "_work")

    def __init__(self, work: Coroutine[Any, Any, Result], connection: Connection) -> None:
        self.__qualname__ = name_of(work)
        self._work = work
        self._connection = connection
        self._turns = connection.context.turns
        self._place: float | None = None  # among the steps that wait

    def __getattr__(self, name: str) -> Any:
        # The name of the wrapped coroutine.
        return getattr(self._work, name)

    def __await__(self) -> Generator[Any, None, Result]:
        """Not called: a task takes the coroutine itself."""
        return self._work.__await__()

    def send(self, value: Any, /) -> Any:
        """Does the next step, in its turn: the task is woken again for that."""
        turns = self._turns
        if turns.steps.must_wait(self._place) and turns.soon is not None:
            return self._hold()
        self._place = None
        clock = self._connection.clock
        began = clock()
        try:
            return self._work.send(value)
        finally:
            took = clock() - began
            turns.steps.took(took)
            self._connection.charge(took)

    def _hold(self) -> asyncio.Future[None]:
        turn = asyncio.get_running_loop().create_future()
        self._place = self._turns.steps.hold(self._connection, partial(_settle, turn), self._place)
        self._turns.run_soon()
        turn._asyncio_future_blocking = True  # as `await` does, so that the task waits for it
        return turn

    def throw(self, *error: Any) -> Any:
        """Does the next step, which begins with an exception."""
        self._place = None
        try:
            return self._work.throw(*error)
        finally:
            del error  # otherwise it would refer to this frame, and so to itself

    def close(self) -> None:
        """Ends it."""
        self._work.close()


def _settle(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # else its task was cancelled
        turn.set_result(None)
