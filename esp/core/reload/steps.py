"""The steps of one reload. Until `install` nothing has changed that a client could notice, but that some calls waited.

    prepare   read and check the file; compare; connect the shards that are new; look for keys that would get out of
              sight; give new shards their leases
    close     put up a fence around the keys that get another owner, and let the calls for them end
    look      look for keys once more, now that none can come any more
    install   put the config in force
    open      take the fence down
    settle    look at the shards once more, for what others have done meanwhile

A step that fails ends the reload (`end`), and the proxy goes on as before. Several processes take each step together:
none installs before all have closed, and none opens before all have installed. So no call for keys that move runs by
the former map once any call for them has run by the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final

from esp.core.background import in_a_thread
from esp.core.config import Config, ConfigError
from esp.core.former import Came, Former
from esp.core.moves import Move
from esp.core.proxy import Proxy
from esp.core.reload.difference import Difference
from esp.core.reload.keys import Keys, keys_of, one_cluster
from esp.core.reload.leases import Brought, MissingLeasesError, bring_leases
from esp.core.reload.outcome import Outcome, Result
from esp.core.shard import Shard
from esp.core.shared_map import served_as
from esp.core.tls_paths import TlsFileError
from esp.core.wording import counted, shard_called

CONNECT_SECONDS: Final = 5.0
"""Seconds that a new shard may take to be connected."""
CLOSE_SECONDS: Final = 2.0
"""Seconds that calls have to end which are for keys that get another owner; then writes are cut."""
LOOK_SECONDS: Final = 2.0
"""Seconds that a shard has to count keys while their calls are held."""
SETTLE_SECONDS: Final = 5.0
"""Seconds to wait for all calls of the former map before its shards are asked for late keys."""
SEEN_SECONDS: Final = 1.0
"""Seconds that a lease surely lives on after it was granted: half of etcd's least TTL."""
NOTED_AT_ONCE: Final = 1000
HANDING_OVER: Final = (
    "another process takes over from this one with the config in force, or the one before this one still drains; "
    "try again when that is over"
)

Told = Callable[[str], Awaitable[None]]
"""Called with each step that may take long, for people."""


class Reload:
    """One reload of a proxy.

    Args:
        proxy: the proxy.
        told: called with each step.
        force: reasons against the reload are warnings, except that the file is wrong or has a field that is fixed.
        only_check: `prepare` stops before anything is changed, also at the shards.

    Attributes:
        outcome: the outcome so far: refused, until a step says more.
        is_prepared: the config may be put in force.
    """

    def __init__(self, proxy: Proxy, told: Told | None, *, force: bool = False, only_check: bool = False) -> None:
        self.outcome = Outcome(Result.REFUSED, proxy.routing.layout.epoch)
        self.is_prepared = False
        self._proxy = proxy
        self._progress = told
        self._holds = False  # the lock of all changes
        self._force = force
        self._only_check = only_check
        self._config = proxy.config
        self._before = self._next = proxy.routing.layout
        self._new: list[Shard] = []
        self._brought: list[Brought] = []
        self._moves: list[Move] = []
        self._keys: list[Keys] = []
        self._calls: list[Any] = []

    async def run(self, load: Callable[[], Config]) -> Outcome:
        """All steps, of a process that serves alone."""
        outcome = self.outcome
        try:
            await self.prepare(load)
            if not self.is_prepared:
                return outcome
            await self.close()
            await self.look()
            if not outcome.reasons and self._proxy.is_handing_over():
                outcome.reasons.append(HANDING_OVER)
            if outcome.reasons:
                return outcome
            self.install()
            self.open()
            await self.settle()
        finally:
            await self.end()
        return outcome

    # Before anything changes.

    async def prepare(self, load: Callable[[], Config]) -> None:
        """Does all that clients do not notice. `load` reads and checks the file, in a thread; raises ConfigError."""
        outcome, proxy = self.outcome, self._proxy
        await proxy.changes.acquire()
        self._holds = True
        try:
            config = await in_a_thread("the config", load)
            config = self._config = served_as(config, proxy.config)
        except ConfigError as error:
            outcome.reasons.append(str(error))
            return
        difference = outcome.difference = Difference.of(proxy.config, config)
        outcome.reasons += [
            f"{change} cannot change while esp runs; run esp serve --takeover, or restart esp"
            for change in difference.fixed
        ]
        if outcome.reasons:
            return
        if not difference:
            outcome.result = Result.UNCHANGED
            return
        self._before = proxy.routing.layout
        try:
            self._next = proxy.layout_of(config)
        except TlsFileError as error:  # a file has changed since the config was read
            outcome.reasons.append(str(error))
            return
        self._new = [shard for name, shard in self._next.shards.items() if self._before.shards.get(name) is not shard]
        await self._connect()
        await self._look_for_keys(difference)
        if outcome.reasons:
            return
        if self._only_check:
            outcome.result = Result.POSSIBLE
            return
        try:
            self._brought = await self._bring_leases()
        except MissingLeasesError as error:
            outcome.reasons.append(f"{error}; it would have keys before it has its leases")
            return
        self.is_prepared = True

    async def _connect(self) -> None:
        new = self._new
        if new:
            await self._tell(f"connecting {', '.join(shard.name for shard in new)}")
        missing = await self._proxy.running.prepare(self._next, CONNECT_SECONDS)
        for shard in new:
            if reason := shard.implausible or shard.unsafe:
                self.outcome.reasons.append(f"{shard_called(shard.name)} cannot be served: {reason}")
            elif shard.name in missing:
                why = "; ".join(f"{endpoint}: {trouble}" for endpoint, trouble in shard.troubles.items())
                self._object(f"{shard_called(shard.name)} cannot be reached: {why or 'no answer'}")

    async def _look_for_keys(self, difference: Difference) -> None:
        before, after = self._before, self._next
        moves = list(difference.moved)
        for shard in self._new:  # perhaps another cluster under the same name
            if shard.name in before.shards and before.shards[shard.name].is_ready:
                moves += [Move(part, shard.name, shard.name) for part in before.map.ranges_of(shard.name)]
        self._moves = [move for move in moves if not one_cluster(before.shards[move.source], after.shards[move.target])]
        if self._moves:
            await self._tell("looking for keys that would get out of sight")
        self._keys = await keys_of(self._moves, before.shards, after.shards)
        for found in self._keys:
            if fault := found.fault():
                self._object(fault)
            if news := found.news():
                self.outcome.notes.append(news)
        lower = {(found.move.source, found.move.target): found for found in self._keys if found.counts_lower}
        self.outcome.notes += [
            f"{target} is at revision {found.reached:,}, below {source} at {found.passed:,}: have clients list again "
            "that come back with a revision of moved keys, other than for a watch that ends now"
            for (source, target), found in lower.items()
        ]

    @property
    def _usable(self) -> list[Shard]:
        """The new shards that can be reached."""
        return [shard for shard in self._new if shard.is_ready]

    async def _bring_leases(self) -> list[Brought]:
        # A shard that only the map of the shards names has no endpoints, and no leases that anybody could have seen.
        others = [shard for shard in self._before.shards.values() if shard not in self._new and shard.endpoints]
        if not self._usable or not others:
            return []
        brought = await bring_leases(self._usable, others, self._tell, lenient=self._force)
        counts = Counter(name for _, name in brought)
        self.outcome.notes += [
            f"{shard_called(name)} was given {counted(count, 'lease')}" for name, count in counts.items()
        ]
        return brought

    # While calls for the keys that move are held.

    @property
    def closes(self) -> bool:
        """Whether keys get another owner, so that calls have to be held."""
        return bool(self._moves)

    async def close(self) -> None:
        """Holds the calls for keys that get another owner, and waits until those have ended that had begun."""
        if not self.closes:
            return
        sources = {move.source for move in self._moves}
        fence = self._proxy.close_keys([move.range for move in self._moves], sources)
        cut = await fence.ended(CLOSE_SECONDS)
        if cut:
            writes = "1 write" if cut == 1 else f"{cut:,} writes"
            where = ", ".join(sorted(sources))
            self.outcome.warnings.append(
                f"{writes} to {where} had no answer in time; the clients do not know the outcome"
            )

    async def look(self) -> None:
        """Refuses the reload if keys have come to a former owner since `prepare` that the new one does not have."""
        if not self.closes:
            return
        clean = {found.move: found.left for found in self._keys if not found.fault()}
        keys = {found.move: found for found in self._keys}
        for found in await keys_of(clean, self._before.shards, self._next.shards, LOOK_SECONDS):
            if found.left is None or not found.reached:
                continue  # as far as `prepare` has seen; `settle` looks once more, with more time
            if fault := found.fault():
                self._object(f"{fault} (they came while the reload was prepared)")
            keys[found.move] = found
        self._keys = list(keys.values())

    @property
    def former(self) -> Former:
        """The ranges that have moved, once the config is in force."""
        return self._before.former.after(self._came())

    def _came(self) -> list[Came]:
        return [Came(found.move.range, found.move.target, found.reached) for found in self._keys]

    # The change.

    def install(self) -> None:
        """Puts the config in force."""
        self._calls = self._proxy.calls_in_flight()
        self._proxy.install(self._next, self._config, self._came(), "reload of the file")
        self.outcome.result = Result.DONE

    def open(self) -> None:
        """Lets the calls begin that were held."""
        self._proxy.open_keys()

    async def end(self) -> None:
        """Gives the reload up, unless the config is in force."""
        self._proxy.open_keys()
        if self._next is not self._before:
            await self._proxy.running.forget(self._next, self._proxy.routing.layout)  # nothing, if it is in force
        self.outcome.epoch = self._proxy.routing.layout.epoch
        if self._holds:
            self._holds = False
            self._proxy.changes.release()

    # Afterwards.

    async def settle(self) -> None:
        """Looks once more when the calls of the former map have ended, for what they and others have done meanwhile."""
        await self._note()
        clean = {found.move: found.left for found in self._keys if not found.fault()}
        if not clean and not self._usable:
            return
        until = monotonic() + min(SETTLE_SECONDS, self._proxy.config.drain_seconds)
        while monotonic() < until and not all(call.is_over for call in self._calls):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
        warnings = self.outcome.warnings
        for found in await keys_of(clean, self._before.shards, self._next.shards):
            late = (found.left or 0) - (clean[found.move] or 0)
            if late > 0:
                warnings.append(
                    f"while the map changed, {counted(late, 'key')} came to {shard_called(found.move.source)} that "
                    f"{found.move.target} lacks: {found.move}; copy them"
                )
        try:
            await self._bring_leases()
        except MissingLeasesError as error:
            warnings.append(f"{error}; run esp lease-sync --apply")

    async def _note(self) -> None:
        """Tells the table of leases, which would have them granted once more."""
        table = self._proxy.leases.table
        for number, (lease, name) in enumerate(self._brought, 1):
            table.seen(lease, name, monotonic() + SEEN_SECONDS)
            if not number % NOTED_AT_ONCE:
                await asyncio.sleep(0)

    def _object(self, text: str) -> None:
        """Has a reason against the reload, or a warning if the reload is forced."""
        if self._force:
            self.outcome.warnings.append(text)
        else:
            self.outcome.reasons.append(text)

    async def _tell(self, text: str) -> None:
        if self._progress is not None:
            await self._progress(text)
