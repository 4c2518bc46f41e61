"""The reloads of a process that serves alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from esp.core.config import Config
from esp.core.proxy import Proxy
from esp.core.reload.one_at_a_time import OneAtATime
from esp.core.reload.outcome import Outcome, Result
from esp.core.reload.steps import Reload, Told


class Reloads(OneAtATime[Outcome]):
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
        super().__init__(proxy.background, around)
        self.counters: Counter[str] = proxy.reloads
        self._proxy = proxy
        self._load = load
        self._on_done = on_done

    async def _reload(self, force: bool, only_check: bool, told: Told | None) -> Outcome:
        try:
            outcome = await Reload(self._proxy, told, force=force, only_check=only_check).run(self._load)
        except BaseException:
            self.counters[Result.REFUSED] += not only_check
            raise
        if not only_check:
            self.counters[outcome.result] += 1
        if outcome.result is Result.DONE:
            self._on_done(self._proxy.config)
        return outcome

    def _said(self, answer: Outcome) -> tuple[str, Sequence[str], Sequence[str]]:
        return answer.result, answer.lines(), answer.reasons
