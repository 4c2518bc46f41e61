"""The ways in which an operator has a running proxy take its config anew: `esp reload`, SIGHUP, and a changed file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from esp.core.background import Background
from esp.core.config import Config
from esp.core.control import MAX_ANSWER_BYTES, Call, Control, size_of
from esp.core.reload import ConfigFile, OneAtATime, Outcome
from esp.core.wording import counted

log = logging.getLogger("esp")

Answer = TypeVar("Answer")

COMMAND: Final = "reload"
_PARTS: Final = (200, 20, 3)
"""The most entries of each list in an answer; fewer, if the answer would be too long."""


class Reloading(Generic[Answer]):
    """Has an operator command the reloads of a running esp.

    Args:
        reloads: the reloads.
        to_json: an answer of a reload as that of the control socket.
        background: owner of the tasks.
        config: the config in force.
        by_thread: as in `ConfigFile.run`.
    """

    def __init__(
        self,
        reloads: OneAtATime[Answer],
        to_json: Callable[[Answer], Mapping[str, Any]],
        background: Background,
        config: Callable[[], Config],
        *,
        by_thread: bool = True,
    ) -> None:
        self._reloads = reloads
        self._to_json = to_json
        self._background = background
        self._config = config
        self._by_thread = by_thread

    def open(self, control: Control) -> None:
        """Takes the command `reload` from now on, and looks at the file as long as the config in force says so."""
        control.serve(COMMAND, self._answer)
        path = self._config().path
        if path is not None:
            file = ConfigFile(path, self._file_changed)

            async def look() -> None:
                await file.run(lambda: self._config().watch_config, by_thread=self._by_thread)

            self._background.keep("the look at the config file", look)

    def hung_up(self) -> None:
        """SIGHUP has come."""
        self._reloads.begin("SIGHUP")

    def _file_changed(self, is_first: bool) -> None:
        self._reloads.begin("the file has changed", quiet=is_first)

    async def _answer(self, call: Call) -> Mapping[str, Any]:
        async def tell(step: str) -> None:
            await call.tell({"step": step})

        asked = call.request
        answer = await self._reloads.reload(
            "esp reload", force=asked.get("force") is True, only_check=asked.get("check") is True, told=tell
        )
        return self._to_json(answer)


def answer_of(outcome: Outcome) -> dict[str, Any]:
    """The outcome of a reload as the answer of the control socket, cut to the size of one."""
    for most in _PARTS:
        lines = outcome.lines()
        told = (
            lines if len(lines) <= most else [*lines[:most], f"and {counted(len(lines) - most, 'more line')} like this"]
        )
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
