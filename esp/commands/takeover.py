"""`esp serve --takeover` and SIGUSR2: what the old and the new process do for it, with one worker or with several."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from esp.commands.output import CommandError
from esp.core.config import Config
from esp.core.control import Client, NoneRunsError, PlaceError, find
from esp.core.notify import ServiceManager
from esp.core.services.watch import Finding
from esp.core.shared_tokens import Part, Ring, Ticks
from esp.core.takeover import Predecessor, TakeoverError
from esp.core.tokens import TICKS_PER_SECOND, Tokens

log = logging.getLogger("esp")

FLAG: Final = "--takeover"
LOOK_SECONDS: Final = 0.1


def predecessor(config: Config) -> Predecessor:
    """The running esp with this config, which hands over.

    Raises:
        CommandError: none runs, or it does not hand over.
    """
    if config.control is None or config.path is None:
        raise CommandError("cannot take over: the config says control: off; restart esp instead")
    try:
        place = find(config.control, config.path, os.environ)
        if place is None:
            raise CommandError(f"cannot take over: no esp runs with {config.path}; start without {FLAG}")
        return Predecessor(Client(place.path), config.map_sign)
    except (NoneRunsError, PlaceError, TakeoverError) as error:
        text = str(error)
        raise CommandError(text if text.startswith("cannot") else f"cannot take over: {text}") from None


async def begin_successor(manager: ServiceManager) -> None:
    """Starts the program anew, with this process's command line, to take over from this process.

    The log tells if the new process ends without having taken over.
    """
    arguments = [argument for argument in sys.orig_argv[1:] if argument != FLAG]
    environment = dict(os.environ)
    if manager.address is not None:
        environment["NOTIFY_SOCKET"] = manager.address
        if manager.watchdog_seconds is not None:
            environment["WATCHDOG_USEC"] = str(int(manager.watchdog_seconds * 1e6))
    try:
        # This very command line once more; it only forks here, and does not wait.
        process = subprocess.Popen([sys.executable, *arguments, FLAG], env=environment)  # noqa: ASYNC220, S603
    except OSError as error:
        log.error("cannot start a process to take over: %s", error.strerror)
        return
    log.info("process %d starts, to take over", process.pid)
    while process.poll() is None:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_SECONDS)
    if process.returncode != 0:
        log.error("process %d has ended with exit code %d; this one goes on", process.pid, process.returncode)


class OwnTokens:
    """The tokens of a single process, shared once another process takes over, or from the start after a takeover."""

    def __init__(self, tokens: Tokens, config: Config, before: Predecessor | None) -> None:
        self._tokens = tokens
        limits = config.limits
        self._lifetime = limits.token_seconds
        self._before = before
        self._part: Part | None = None
        self._shards, self._limits = len(config.shards), limits
        self._slots = (0, 1)
        self._ticks: Ticks
        if before is not None:
            (self._part,) = before.tokens([self._make()])
            self._ticks, self._slots = before.ticks, before.slots_here

    def _make(self) -> Ring:
        return Ring.create(self._limits.max_shared_token_bytes, self._limits.max_tokens, self._shards)

    @property
    def part(self) -> Part:
        """This process's part, after a takeover."""
        assert self._part is not None
        return self._part

    async def shared(self) -> tuple[Sequence[Ring], Ticks, tuple[int, int]]:
        """As `takeover.Tokens` has it."""
        if self._part is None:
            ring, self._ticks = self._make(), Ticks()
            self._ticks.take(1)
            part = Part(ring, self._ticks, 0, [ring])
            await self._tokens.share_gradually(part)
            self._part = part
        return young(self._part.rings, self._ticks, self._lifetime), self._ticks, self._slots


def young(rings: Sequence[Ring], ticks: Ticks, seconds: float) -> list[Ring]:
    """The rings with tokens that are not forgotten yet, or of processes that mint."""
    oldest = ticks.last() - seconds * TICKS_PER_SECOND
    return [ring for ring in rings if ring.last_tick >= oldest] or list(rings[:1])


class Before:
    """The process before this single one, where clients may have watched."""

    def __init__(self, before: Predecessor) -> None:
        self._before = before

    async def find(self, _: object, start_revision: int) -> list[Finding]:
        """Waits for the positions of the process before; what it has not told is doubtful."""
        return [Finding(False, None, await self._before.is_doubtful(start_revision - 1))]

    def give_back(self, _: object, __: int) -> None:
        """Nothing: its positions are this process's own."""
