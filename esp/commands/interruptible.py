"""Work of a command that Ctrl-C ends in order, so that the command can put things right and say how to go on."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


@contextmanager
def by_exception() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt meanwhile, in work without a loop too. Otherwise it ends the process at once."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_DFL:  # a process that ignores it goes on ignoring it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work, in a loop of its own. The first SIGINT cancels it, and so does each further one.

    Raises:
        KeyboardInterrupt: the work was cancelled by a SIGINT.
    """
    interrupted = False

    async def main() -> Result:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"

        def cancel() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        loop.add_signal_handler(signal.SIGINT, cancel)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            return await work
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    # A SIGINT that comes before the loop has its handler waits for that.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if sys.platform == "win32" or sys.implementation.name != "cpython":
            return asyncio.run(main())
        import uvloop

        return uvloop.run(main())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
