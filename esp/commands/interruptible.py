"""Work of a command that Ctrl-C ends in order, so that the command can put things right and say how to go on."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


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
        try:
            return await work
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    try:
        if sys.platform == "win32" or sys.implementation.name != "cpython":
            return asyncio.run(main())
        import uvloop

        return uvloop.run(main())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
