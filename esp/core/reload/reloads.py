"""The reloads of a process that serves alone, one at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from esp.core.config import Config
from esp.core.proxy import Proxy
from esp.core.reload.outcome import Outcome, Result, log_outcome
from esp.core.reload.steps import Reload, Told


class Reloads:
    """Reloads a proxy's config, one reload at a time.

    Args:
        proxy: the running proxy.
        load: reads and checks the file; called in a thread. Raises ConfigError.
        on_done: called with a config that was put in force.
        around: called with True when a reload begins, and with False when it has ended.

    Attributes:
        counters: the number of reloads by `Result`.
    """

    def __init__(
        self,
        proxy: Proxy,
        load: Callable[[], Config],
        on_done: Callable[[Config], object] = lambda _: None,
        around: Callable[[bool], object] = lambda _: None,
    ) -> None:
        self.counters: Counter[str] = proxy.reloads
        self._proxy = proxy
        self._load = load
        self._on_done = on_done
        self._around = around
        self._lock = asyncio.Lock()
        self._is_wanted = False

    def begin(self, why: str, *, quiet: bool = False) -> None:
        """Reloads in the background. One reload that has yet to begin serves all who want one.

        Args:
            why: who wants the reload, for the log.
            quiet: log nothing if nothing changes.
        """
        if not self._is_wanted:
            self._is_wanted = True
            self._proxy.background.start(self._begun(why, quiet))

    async def _begun(self, why: str, quiet: bool) -> None:
        await self.reload(why, quiet=quiet)

    async def reload(
        self, why: str, *, force: bool = False, only_check: bool = False, quiet: bool = False, told: Told | None = None
    ) -> Outcome:
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
            reload = Reload(self._proxy, told, force=force, only_check=only_check)
            self._around(True)
            try:
                outcome = await reload.run(self._load)
            except BaseException:
                self.counters[Result.REFUSED] += not only_check
                raise
            finally:
                self._around(False)
            if not only_check:
                self.counters[outcome.result] += 1
        if outcome.result is Result.DONE:
            self._on_done(self._proxy.config)
        if outcome.result is not Result.UNCHANGED or not quiet:
            log_outcome(why, outcome.result, outcome.lines(), outcome.reasons)
        return outcome
