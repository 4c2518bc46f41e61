"""Reloads when the config file changes, with `watch_config: true`.

The file is looked at every few seconds, which also works on network file systems and in containers. A change counts
once the file has been the same in two looks, so that a file that is being written is not read halfway. Kubernetes
replaces a symbolic link in the path: that is another file, too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from esp.core.background import in_a_thread

LOOK_SECONDS: Final = 2.0

State = tuple[int, int, int, int] | None
"""Device, inode, size and time of change of a file; None if there is none."""


class ConfigFile:
    """The file, as the looks have seen it.

    Args:
        path: the file.
        changed: called when the file has changed, and then stayed as it is for one look; True in the first call, when
            the file may have changed since it was read.
    """

    def __init__(self, path: Path, changed: Callable[[bool], object]) -> None:
        self._path = path
        self._changed = changed
        self._told: State = None
        self._last: State = None
        self._is_first = True

    async def run(
        self, is_wanted: Callable[[], bool], seconds: float = LOOK_SECONDS, *, by_thread: bool = True
    ) -> None:
        """Looks every few seconds while that is wanted, until cancelled.

        Args:
            is_wanted: asked each time.
            seconds: the time between two looks.
            by_thread: look in a thread, since a network's file system may hang; False in a process that forks.
        """
        while True:
            await asyncio.sleep(seconds)
            if is_wanted():
                look = partial(state_of, self._path)
                self.look(await in_a_thread("the config file", look) if by_thread else look())

    def look(self, state: State) -> None:
        """Takes the state of the file."""
        if state == self._last and state != self._told:
            self._told = state
            self._changed(self._is_first)
            self._is_first = False
        self._last = state


def state_of(path: Path) -> State:
    """The state of a file now, behind all links."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
