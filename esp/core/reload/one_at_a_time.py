"""Reloads that are wanted from several sides, and done one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from esp.core.background import Background
from esp.core.reload.outcome import Result, log_outcome
from esp.core.reload.steps import Told

Answer = TypeVar("Answer")


class OneAtATime(Generic[Answer]):
    """Does one reload at a time. A subclass says how.

    Args:
        background: owner of the tasks.
        around: called with True when a reload begins, and with False when it has ended.
    """

    def __init__(self, background: Background, around: Callable[[bool], object]) -> None:
        self._background = background
        self._around = around
        self._lock = asyncio.Lock()
        self._is_wanted = False

    @property
    def is_under_way(self) -> bool:
        """Whether another config may be about to be in force."""
        return self._lock.locked()

    def begin(self, why: str, *, quiet: bool = False) -> None:
        """Reloads in the background. One reload that has yet to begin serves all who want one.

        Args:
            why: who wants the reload, for the log.
            quiet: log nothing if nothing changes.
        """
        if not self._is_wanted:
            self._is_wanted = True
            self._background.start(self._begun(why, quiet))

    async def _begun(self, why: str, quiet: bool) -> None:
        await self.reload(why, quiet=quiet)

    async def reload(
        self, why: str, *, force: bool = False, only_check: bool = False, quiet: bool = False, told: Told | None = None
    ) -> Answer:
        """Puts the config of the file in force, or changes nothing.

        Args:
            why: who wants the reload, for the log.
            force: as `Reload` has it.
            only_check: as `Reload` has it.
            quiet: log nothing if nothing changes.
            told: called with each step.
        """
        async with self._lock:
            self._is_wanted = False
            self._around(True)
            try:
                answer = await self._reload(force, only_check, told)
            finally:
                self._around(False)
        result, lines, reasons = self._said(answer)
        if result != Result.UNCHANGED or not quiet:
            log_outcome(why, result, lines, reasons)
        return answer

    async def _reload(self, force: bool, only_check: bool, told: Told | None) -> Answer:
        raise NotImplementedError

    def _said(self, answer: Answer) -> tuple[str, Sequence[str], Sequence[str]]:
        """The result in an answer, the lines for people, and the reasons of a refusal."""
        raise NotImplementedError
