"""The ways in which an operator has a running proxy take its config anew: `esp reload`, SIGHUP, and a changed file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from esp.core.config import Config
from esp.core.control import MAX_ANSWER_BYTES, Call, Control, size_of
from esp.core.proxy import Proxy
from esp.core.reload import ConfigFile, Outcome, Reloads

log = logging.getLogger("esp")

COMMAND: Final = "reload"
_PARTS: Final = (200, 20, 3)
"""The most entries of each list in an answer; fewer, if the answer would be too long."""


class Reloading:
    """The reloads of a running proxy.

    Args:
        proxy: the proxy.
        load: reads and checks the config, with what the command line said at the start; called in a thread.
        done: called with each config that was put in force.
        around: called with True before a reload, and with False after it.
    """

    def __init__(
        self,
        proxy: Proxy,
        load: Callable[[], Config],
        done: Callable[[Config], object] = lambda _: None,
        around: Callable[[bool], object] = lambda _: None,
    ) -> None:
        self.reloads = Reloads(proxy, load, done, around)
        self._proxy = proxy

    def open(self, control: Control) -> None:
        """Takes the command `reload` from now on, and looks at the file as long as the config in force says so."""
        control.serve(COMMAND, self._answer)
        proxy = self._proxy
        if proxy.config.path is not None:
            file = ConfigFile(proxy.config.path, self._file_changed)
            proxy.background.keep("the look at the config file", lambda: file.run(lambda: proxy.config.watch_config))

    def hung_up(self) -> None:
        """SIGHUP has come."""
        self.reloads.begin("SIGHUP")

    def _file_changed(self, is_first: bool) -> None:
        self.reloads.begin("the file has changed", quiet=is_first)

    async def _answer(self, call: Call) -> Mapping[str, Any]:
        async def tell(step: str) -> None:
            await call.tell({"step": step})

        asked = call.request
        outcome = await self.reloads.reload(
            "esp reload", force=asked.get("force") is True, only_check=asked.get("check") is True, told=tell
        )
        return answer_of(outcome)


def answer_of(outcome: Outcome) -> dict[str, Any]:
    """The outcome of a reload as the answer of the control socket, cut to the size of one."""
    for most in _PARTS:
        lines = outcome.lines()
        told = lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more lines like this"]
        answer = {**outcome.as_json(most), "lines": told}
        if size_of(answer) < MAX_ANSWER_BYTES:
            return answer
    return {**outcome.as_json(0), "lines": ["the changes are too long to be told here"]}


class Terminal:
    """The terminal from which the process was started, if there is one.

    A terminal that is closed sends SIGHUP, as does an operator who wants a reload. `is_gone` tells them apart.
    """

    def __init__(self) -> None:
        self._was_there = _has_terminal()

    @property
    def is_gone(self) -> bool:
        """Whether there was a terminal, and is none any more."""
        return self._was_there and not _has_terminal()


def _has_terminal() -> bool:
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    return False
