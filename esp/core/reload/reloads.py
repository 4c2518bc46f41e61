"""The steps of a reload. Until the last step nothing that a client could notice has changed.

Read and check the file; compare; connect the shards that are new; look for keys that would get out of sight; give new
shards their leases; put the config in force. A step that fails ends the reload, and the proxy goes on as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Any, Final

from esp.core.background import in_a_thread
from esp.core.config import Config, ConfigError
from esp.core.former import Came
from esp.core.layout import Layout
from esp.core.proxy import Proxy
from esp.core.reload.difference import Difference, Move
from esp.core.reload.keys import Keys, counted, keys_of
from esp.core.reload.leases import Brought, MissingLeasesError, bring_leases
from esp.core.shard import Shard
from esp.core.tls_paths import TlsFileError

log = logging.getLogger("esp")

CONNECT_SECONDS: Final = 5.0
"""Seconds that a new shard may take to be connected."""
SETTLE_SECONDS: Final = 5.0
"""Seconds to wait for the calls of the former map before its shards are asked for late keys."""
SEEN_SECONDS: Final = 1.0
"""Seconds that a lease surely lives on after it was granted: half of etcd's least TTL."""
NOTED_AT_ONCE: Final = 1000
HANDING_OVER: Final = "another process takes over from this one, with the config in force; try again when it serves"
MAX_LOGGED: Final = 20
"""The most lines of a difference in the log; the answer of `esp reload` has more."""

Told = Callable[[str], Awaitable[None]]
"""Called with each step that may take long, for people."""


class Result(StrEnum):
    """The result of a reload."""

    DONE = "done"
    UNCHANGED = "unchanged"
    """The file says what is in force already."""
    POSSIBLE = "possible"
    """A reload that was only to be checked would be done."""
    REFUSED = "refused"
    """Nothing has changed."""


@dataclass(slots=True)
class Outcome:
    """The outcome of a reload.

    Attributes:
        result: the result.
        epoch: the number of the layout that is in force now.
        difference: the difference to the config that was in force; None if the file could not be read.
        reasons: why the reload was refused, each a clause with its cure.
        warnings: faults that did not hinder the reload, because it was forced or came too late.
        notes: other facts that an operator wants to know.
    """

    result: Result
    epoch: int
    difference: Difference | None = None
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The outcome for people; first the changes."""
        lines = self.difference.lines() if self.difference is not None else []
        return [*lines, *self.notes, *(f"warning: {text}" for text in self.warnings)]

    def as_json(self, most: int) -> dict[str, Any]:
        """The outcome for programs, with the first `most` changes of each kind."""
        return {
            "result": self.result.value,
            "epoch": self.epoch,
            "changes": None if self.difference is None else self.difference.as_json(most),
            "reasons": self.reasons[:most],
            "warnings": self.warnings[:most],
            "notes": self.notes[:most],
        }


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
        self,
        why: str | None,
        *,
        force: bool = False,
        only_check: bool = False,
        quiet: bool = False,
        told: Told | None = None,
    ) -> Outcome:
        """Puts the config of the file in force, or changes nothing.

        Args:
            why: who wants the reload, for the log; None if the outcome is logged elsewhere.
            force: reasons against the reload are warnings, except that the file is wrong or has a field that is fixed.
            only_check: stop before anything is changed, also at the shards.
            quiet: log nothing if nothing changes.
            told: called with each step.
        """
        async with self._lock:
            self._is_wanted = False
            reload = _Reload(self._proxy, told, force=force, only_check=only_check)
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
        if why is not None and (outcome.result is not Result.UNCHANGED or not quiet):
            log_outcome(why, outcome.result, outcome.lines(), outcome.reasons)
        return outcome


class _Reload:
    """One reload."""

    def __init__(self, proxy: Proxy, told: Told | None, *, force: bool, only_check: bool) -> None:
        self._proxy = proxy
        self._progress = told
        self._force = force
        self._only_check = only_check
        self._outcome = Outcome(Result.REFUSED, proxy.routing.layout.epoch)

    async def run(self, load: Callable[[], Config]) -> Outcome:
        outcome, proxy = self._outcome, self._proxy
        try:
            config = await in_a_thread("the config", load)
        except ConfigError as error:
            outcome.reasons.append(str(error))
            return outcome
        difference = outcome.difference = Difference.of(proxy.config, config)
        outcome.reasons += [
            f"{change} cannot change while esp runs; run esp serve --takeover, or restart esp"
            for change in difference.fixed
        ]
        if outcome.reasons:
            return outcome
        if not difference:
            outcome.result = Result.UNCHANGED
            return outcome
        try:
            layout = proxy.layout_of(config)
        except TlsFileError as error:  # a file has changed since the config was read
            outcome.reasons.append(str(error))
            return outcome
        try:
            await self._try(config, layout)
        finally:
            await proxy.forget(layout)  # nothing, if it is in force
        outcome.epoch = proxy.routing.layout.epoch
        return outcome

    async def _try(self, config: Config, layout: Layout) -> None:
        outcome, proxy = self._outcome, self._proxy
        before = proxy.routing.layout
        new = [shard for name, shard in layout.shards.items() if before.shards.get(name) is not shard]
        await self._connect(new, layout)
        keys = await self._look_for_keys(new, before, layout)
        if outcome.reasons:
            return
        if self._only_check:
            outcome.result = Result.POSSIBLE
            return
        usable = [shard for shard in new if shard.is_ready]
        others = [shard for shard in before.shards.values() if shard not in new]
        try:
            brought = await self._bring_leases(usable, others)
        except MissingLeasesError as error:
            outcome.reasons.append(f"{error}; it would have keys before it has its leases")
            return
        if proxy.is_handing_over():
            outcome.reasons.append(HANDING_OVER)
            return
        calls = proxy.calls_in_flight()
        proxy.install(layout, config, [Came(found.move.range, found.move.target, found.reached) for found in keys])
        outcome.result = Result.DONE
        await self._note(brought)
        await self._settle(calls, keys, usable, others, before, layout)

    # The steps.

    async def _connect(self, new: list[Shard], layout: Layout) -> None:
        if new:
            await self._tell(f"connecting {', '.join(shard.name for shard in new)}")
        missing = await self._proxy.prepare(layout, CONNECT_SECONDS)
        for shard in new:
            if reason := shard.implausible or shard.unsafe:
                self._outcome.reasons.append(f"shard {shard.name} cannot be served: {reason}")
            elif shard.name in missing:
                why = "; ".join(f"{endpoint}: {trouble}" for endpoint, trouble in shard.troubles.items())
                self._object(f"shard {shard.name} cannot be reached: {why or 'no answer'}")

    async def _look_for_keys(self, new: list[Shard], before: Layout, layout: Layout) -> list[Keys]:
        difference = self._outcome.difference
        assert difference is not None
        moves = list(difference.moved)
        for shard in new:  # perhaps another cluster under the same name
            if shard.name in before.shards and before.shards[shard.name].is_ready:
                moves += [Move(part, shard.name, shard.name) for part in before.map.ranges_of(shard.name)]
        if moves:
            await self._tell("looking for keys that would get out of sight")
        keys = await keys_of(moves, before.shards, layout.shards)
        for found in keys:
            if fault := found.fault():
                self._object(fault)
            if news := found.news():
                self._outcome.notes.append(news)
        lower = {(found.move.source, found.move.target): found for found in keys if found.counts_lower}
        self._outcome.notes += [
            f"{target} is at revision {found.reached:,}, below {source} at {found.passed:,}: have clients list again "
            "that come back with a revision of moved keys, other than for a watch that ends now"
            for (source, target), found in lower.items()
        ]
        return keys

    async def _bring_leases(self, new: list[Shard], others: list[Shard]) -> list[Brought]:
        if not new or not others:
            return []
        brought = await bring_leases(new, others, self._tell, lenient=self._force)
        counts = Counter(name for _, name in brought)
        self._outcome.notes += [f"shard {name} was given {count:,} leases" for name, count in counts.items()]
        return brought

    async def _note(self, brought: list[Brought]) -> None:
        """Tells the table of leases, which would have them granted once more."""
        table = self._proxy.leases.table
        for number, (lease, name) in enumerate(brought, 1):
            table.seen(lease, name, monotonic() + SEEN_SECONDS)
            if not number % NOTED_AT_ONCE:
                await asyncio.sleep(0)

    async def _settle(
        self,
        calls: list[Any],
        keys: list[Keys],
        new: list[Shard],
        others: list[Shard],
        before: Layout,
        layout: Layout,
    ) -> None:
        """Looks once more when the calls of the former map have ended, for what they have done meanwhile."""
        clean = {found.move: found.left for found in keys if not found.fault()}
        if not clean and not new:
            return
        until = monotonic() + min(SETTLE_SECONDS, self._proxy.config.drain_seconds)
        while monotonic() < until and not all(call.is_over for call in calls):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
        warnings = self._outcome.warnings
        for found in await keys_of(clean, before.shards, layout.shards):
            late = (found.left or 0) - (clean[found.move] or 0)
            if late > 0:
                warnings.append(
                    f"while the map changed, {counted(late)} came to shard {found.move.source} that "
                    f"{found.move.target} lacks: {found.move}; copy them"
                )
        try:
            await self._bring_leases(new, others)
        except MissingLeasesError as error:
            warnings.append(f"{error}; run esp lease-sync --apply")

    def _object(self, text: str) -> None:
        """Has a reason against the reload, or a warning if the reload is forced."""
        if self._force:
            self._outcome.warnings.append(text)
        else:
            self._outcome.reasons.append(text)

    async def _tell(self, text: str) -> None:
        if self._progress is not None:
            await self._progress(text)


def log_outcome(why: str, result: str, lines: Sequence[str], reasons: Sequence[str]) -> None:
    """Logs a reload; of a long difference the first lines.

    Args:
        why: who wanted the reload.
        result: the `Result`.
        lines: what has changed.
        reasons: why the reload was refused.
    """
    match result:
        case Result.DONE:
            for line in lines[:MAX_LOGGED]:
                log.info("reload (%s): %s", why, line)
            if len(lines) > MAX_LOGGED:
                log.info("reload (%s): and %d more changes", why, len(lines) - MAX_LOGGED)
        case Result.REFUSED:
            more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
            log.error("reload (%s): refused, nothing has changed: %s%s", why, "; ".join(reasons[:3]), more)
        case Result.UNCHANGED:
            log.info("reload (%s): the config has not changed", why)
