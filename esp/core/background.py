"""The supervisor of all work beside the handling of bytes: tasks, timers, and the steps of the tick.

An exception that escapes such work is a bug in esp. The supervisor logs the bug with its traceback and counts it under
the name of the work. The bug ends or restarts this one piece of work: never the process, and never the work for other
clients. No other module of `esp.core` begins a task, a thread or a timer, except the wire's own transport
(`tests/core/test_background.py` holds this).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from threading import Thread
from time import monotonic
from typing import Any, Final, TypeVar

from esp.core.wording import counted

log = logging.getLogger("esp")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""The first and the longest pause, in seconds, before failed work begins again; each pause doubles the last one. After
work that has run for LONGEST_PAUSE without failing, the next pause is FIRST_PAUSE again."""
TOLD_SECONDS: Final = 10.0
"""How often failures of one name are logged; failures in between are counted, and summed up in the next line."""

Result = TypeVar("Result")
Work = Coroutine[Any, Any, None]
Callback = Callable[[], object]


class Timer:
    """A callback that runs later.

    The supervisor logs and counts a bug in the callback.
    """

    __slots__ = ("_background", "_callback", "_handle", "_on_bug")

    def __init__(self, background: Background, seconds: float, callback: Callback, on_bug: Callback | None) -> None:
        self._background = background
        self._callback = callback
        self._on_bug = on_bug
        self._handle = asyncio.get_running_loop().call_later(seconds, self._due)

    def _due(self) -> None:
        self._background.timers.discard(self)
        self._background.guard(name_of(self._callback), self._callback, self._on_bug)

    def cancel(self) -> None:
        """Stops the timer: the callback will not run."""
        self._background.timers.discard(self)
        self._handle.cancel()


class Background:
    """Owns tasks and timers until `close`.

    Attributes:
        failures: how often each piece of work has failed, by its name.
        tasks, timers: tasks that run, and timers that are due.
    """

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.tasks: set[asyncio.Task[None]] = set()
        self.timers: set[Timer] = set()
        self._told: dict[str, tuple[float, int]] = {}

    async def __aenter__(self) -> Background:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # Tasks.

    def start(
        self, work: Work, *, on_bug: Callback | None = None, on_end: Callback | None = None
    ) -> asyncio.Task[None]:
        """Begins work that ends by itself.

        Args:
            work: the coroutine; the log names it by its function.
            on_bug: called when `work` fails: ends the call, watcher or the like that needed it.
            on_end: called when `work` has ended in any way, even if it was cancelled before it ran.
        """
        name = name_of(work)
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self.tasks.discard(done)
            if not done.cancelled() and (error := done.exception()) is not None:
                self.failed(name, error, on_bug)
            if on_end is not None:
                self.guard(name, on_end)

        task.add_done_callback(ended)
        return task

    def keep(self, name: str, work: Callable[[], Work]) -> asyncio.Task[None]:
        """Begins work that the supervisor begins again whenever it fails; see `again`."""
        return self.start(self.again(name, work))

    async def again(self, name: str, work: Callable[[], Work]) -> None:
        """Does `work` until it returns. After a failure the work begins again, after a pause that grows."""
        pause = 0.0
        while True:
            began = monotonic()
            try:
                await work()
                return
            except Exception as error:  # CancelledError is not an Exception
                self.failed(name, error)
            if monotonic() - began >= LONGEST_PAUSE:
                pause = 0.0
            pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))
            await asyncio.sleep(pause)

    async def end(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Cancels these tasks and waits until they have ended."""
        tasks = list(tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Ends all tasks and timers, and those that they begin while they end."""
        while self.tasks or self.timers:
            for timer in list(self.timers):
                timer.cancel()
            await self.end(self.tasks)

    # Timers and steps.

    def later(self, seconds: float, callback: Callback, on_bug: Callback | None = None) -> Timer:
        """Calls `callback` after so many seconds, unless the timer is cancelled; calls `on_bug` if `callback` fails."""
        timer = Timer(self, seconds, callback, on_bug)
        self.timers.add(timer)
        return timer

    def guard(self, name: str, step: Callback, on_bug: Callback | None = None) -> None:
        """Calls `step` now, and `on_bug` if `step` fails. Raises nothing, so the caller's next step is done as well."""
        try:
            step()
        except Exception as error:
            self.failed(name, error, on_bug)

    # Failures.

    def failed(self, name: str, error: BaseException, on_bug: Callback | None = None) -> None:
        """Logs and counts a bug, and calls `on_bug`. A bug in `on_bug` is logged and counted as well."""
        self.failures[name] += 1
        since, told = self._told.get(name, (-TOLD_SECONDS, 0))
        now, count = monotonic(), self.failures[name]
        if now - since >= TOLD_SECONDS:
            self._told[name] = now, count
            times = f", {counted(count - told, 'time')} since this was last told" if count - told > 1 else ""
            log.error("%s: a bug in esp%s", name, times, exc_info=error)
        if on_bug is not None:
            self.guard(f"{name}: its end", on_bug)


def later_in_loop(seconds: float, callback: Callback) -> bool:
    """Calls `callback` so many seconds later in the loop that runs; False if none runs.

    Only for the log of the process, which begins before any supervisor and ends after all.
    """
    try:
        asyncio.get_running_loop().call_later(seconds, callback)
    except RuntimeError:
        return False
    return True


async def all_of(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of work done side by side, in its order; the first failure cancels the rest, and is raised."""
    failure: BaseException | None = None
    tasks: list[asyncio.Task[Result]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(each) for each in work]
        return [task.result() for task in tasks]
    except* Exception as failed:
        failure = failed.exceptions[0]
    finally:
        tasks.clear()  # a kept error refers to this frame, and would keep the results of the others in memory
    raise failure


async def first_of(
    work: Iterable[Callable[[], Coroutine[Any, Any, Result]]], pause: float, unwanted: Callable[[Result], object]
) -> Result:
    """The result of the first work that succeeds.

    The works begin in order: each `pause` seconds after the one before, or earlier, when a work fails. After the first
    success the others are cancelled; a result that one of them had already is given to `unwanted`.

    Raises:
        ExceptionGroup: all have failed; the failures in the order of the work.
    """
    begun: list[asyncio.Task[Result]] = []
    running: set[asyncio.Task[Result]] = set()
    winner: asyncio.Task[Result] | None = None

    def dispose(task: asyncio.Task[Result]) -> None:
        if not task.cancelled() and task.exception() is None:
            unwanted(task.result())

    rest = deque(work)
    try:
        while rest or running:
            if rest:
                begun.append(asyncio.get_running_loop().create_task(rest.popleft()()))
                running.add(begun[-1])
            timeout = pause if rest else None
            done, running = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            winner = next((task for task in done if task.exception() is None), None)
            if winner is not None:
                return winner.result()
        failures = [error for task in begun if isinstance(error := task.exception(), Exception)]
        raise ExceptionGroup("all have failed", failures)
    finally:
        for task in begun:
            if task is not winner:
                task.cancel()
                task.add_done_callback(dispose)


def in_a_thread(name: str, work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Begins work that blocks, in a thread of its own. Even the process's end does not wait for this thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(step: Callback) -> None:
        if not future.done():  # nobody may wait any more
            step()

    def run() -> None:
        try:
            step = partial(future.set_result, work())
        except Exception as error:
            step = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, step)

    Thread(target=run, name=name, daemon=True).start()
    return future


def name_of(work: object) -> str:
    """The name that a coroutine or a callback has in the code."""
    if isinstance(work, partial):
        work = work.func
    return str(getattr(work, "__qualname__", None) or type(work).__name__)
