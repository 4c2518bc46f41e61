"""A proxy follows the map that the shards hold: it reads the map, and puts each newer one in force.

The map is read at the start, whenever a key of the map changes on a shard (a watch on each), whenever a shard refuses a
call because it came by an outdated map, and every LOOK_SECONDS. None of this is needed for safety: the shards refuse
what comes by a wrong map.

The newest map counts, whichever shard tells it; no silent shard is waited for. An older map than the one in force is
taken only if every shard tells, and none a newer one: all of them were restored.

A change that the anchor has decided is prepared: connections are made by the guards of the map to come, so that the
change is no longer than it must be. Between the moment in which a shard ceases to own keys and the one in which another
begins to, the calls for them wait, and so do all calls for the other shard. If nobody goes on there for too long, the
proxy gives the move up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Final

from esp.core.config import Config
from esp.core.former import Former
from esp.core.giving_up import Hanging, MoveError, give_up
from esp.core.layout import Layout
from esp.core.proxy import Proxy
from esp.core.reload import MissingLeasesError, bring_leases
from esp.core.shard import GuardedShard, Shard, is_unsafe
from esp.core.shared_map import (
    DisagreeError,
    Held,
    Next,
    SharedMap,
    former_of,
    is_auth_on,
    newest,
    opening,
    read,
    served,
    watch,
)
from esp.core.tls_paths import TlsFileError
from esp.core.wire.status import RpcError, Status
from esp.core.wording import shard_called

log = logging.getLogger("esp.map")

LOOK_SECONDS: Final = 30.0
"""Seconds after which the map is read although nothing says that it has changed."""
OPENING_SECONDS: Final = 0.2
"""The same while a shard is about to own keys that another owns no more: calls wait for that."""
PAUSE_SECONDS: Final = 0.05
"""Seconds between two looks."""
ANSWER_SECONDS: Final = 2.0
"""Seconds that a shard has to tell its map."""
CONNECT_SECONDS: Final = 1.0
"""Seconds that the clients of a new map's shards have to connect before the map is in force."""


class Following:
    """Puts each newer map in force.

    Args:
        proxy: a proxy that serves by a map of the shards.

    Attributes:
        looks: how often the map was read.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.looks = 0
        self._proxy = proxy
        self._wanted = asyncio.Event()
        self._asked: set[str] = set()  # the shards that have refused calls since the last look
        self._trouble = self._anchor = ""
        self._opening: frozenset[str] = frozenset()  # the shards that are about to get the guard of the map in force
        self._prepared: tuple[SharedMap, Layout] | None = None
        self._watched: dict[Shard, asyncio.Task[None]] = {}
        self._hanging = Hanging()
        self._giving_up = False
        proxy.look_for_map = self.want

    def want(self, shard: str | None = None) -> None:
        """Has the map read soon: by the shard that has refused a call first, if one has."""
        if shard is not None:
            self._asked.add(shard)
        self._wanted.set()

    async def run(self) -> None:
        """Follows, until cancelled."""
        try:
            while True:
                self._watch()
                with suppress(TimeoutError):
                    async with asyncio.timeout(OPENING_SECONDS if self._opening else LOOK_SECONDS):
                        await self._wanted.wait()
                self._wanted.clear()
                await self._look()
                await self._learn_auth()
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            await self._proxy.background.end(self._watched.values())
            self._watched.clear()

    async def _learn_auth(self) -> None:
        """Leaves shards with auth whose etcd would give rights in a compared Put that a Put does not give."""
        for shard in self._proxy.routing.shards.values():
            if isinstance(shard, GuardedShard) and shard.is_ready and is_unsafe(shard.version):
                with suppress(RpcError):
                    shard.learn_auth(is_on=await is_auth_on(shard, ANSWER_SECONDS))

    async def _look(self) -> None:
        self.looks += 1
        proxy = self._proxy
        asked, self._asked = self._asked, set()
        shards = proxy.routing.shards
        if asked and await self._take(await self._read(shards[name] for name in asked if name in shards)):
            return
        found = await self._read(shards.values())
        if await self._take(found):
            return
        silent = [f"{shard_called(name)}: {held.message}" for name, held in found.items() if isinstance(held, Status)]
        if silent and len(silent) == len(found):
            self._tell(f"no shard tells it ({'; '.join(silent)})")
        rerouting = proxy.rerouting
        self._opening = opening(self._guards, self._anchor, found)
        if rerouting is not None:
            rerouting.looked(self._at_odds(found), self._opening)
        anchor = found.get(self._anchor)
        change = anchor.next if isinstance(anchor, Held) else None
        if self._hanging.is_due(change, found, monotonic()) and change is not None and not self._giving_up:
            self._giving_up = True
            proxy.background.start(self._give_up(change))

    async def _give_up(self, change: Next) -> None:
        """Ends a move that keeps clients waiting, and that nobody goes on with."""
        what = change.after.changes[-1].what
        shards = self._proxy.routing.shards
        try:
            result = await give_up(change, {name: one for name, one in shards.items() if one.is_ready}, {}, by="esp")
        except MoveError as error:
            log.warning("%s, and nobody goes on with that; it cannot be given up yet: %s", what, error)
        else:
            log.warning("%s: nobody went on with that; %s", what, result.changes[-1].what)
        finally:
            self._giving_up = False

    async def _read(self, shards: Iterable[Shard]) -> dict[str, Held | Status]:
        return await read([shard for shard in shards if shard.is_ready], ANSWER_SECONDS)

    def _at_odds(self, found: Mapping[str, Held | Status]) -> dict[str, str]:
        """The shards that have another guard than the map in force says, for no reason, and why, by name."""
        guards = self._guards
        return {
            name: f"{shard_called(name)} does not hold the guard of the map of the shards (epoch {self._epoch}): data "
            "was lost there, or restored from a backup (esp map fence gives it a new one), or the map was taken away; "
            "esp map show tells more"
            for name, held in found.items()
            if isinstance(held, Held) and held.guard != guards.get(name) and name not in self._opening
        }

    @property
    def _guards(self) -> Mapping[str, str]:
        return self._proxy.config.guards or {}

    @property
    def _epoch(self) -> int:
        return self._proxy.routing.layout.epoch

    async def _take(self, found: Mapping[str, Held | Status]) -> bool:
        """Puts the newest of these maps in force; False if that is in force already."""
        try:
            told = newest(found)
        except DisagreeError as error:
            self._tell(str(error))
            return False
        if told is None:
            return False
        self._tell("")
        self._anchor, self._opening = told.map.anchor, frozenset()
        is_new = await self._put_in_force(told.map, found)
        if isinstance(found.get(told.map.anchor), Held):  # no other shard knows of it
            self._proxy.moves.unfinished = _unfinished(told.change)
            await self._prepare(told.change)
        return is_new

    async def _put_in_force(self, shared: SharedMap, found: Mapping[str, Held | Status]) -> bool:
        proxy = self._proxy
        if shared.epoch < self._epoch and not self._all_tell(found):
            return False
        last = shared.moves[-1] if shared.moves else None
        if last is not None and shared.epoch > self._epoch and last.epoch == shared.epoch and last.source not in found:
            # Watches go over only if it is known where the history of their keys has ended.
            shards = [shard for name, shard in proxy.routing.shards.items() if name == last.source]
            found = {**found, **await self._read(shards)}
        known = proxy.routing.layout.former
        former = known.renewed(former_of(shared, found))
        if shared.map == proxy.config.shard_map and shared.guards == proxy.config.guards:
            if former.came != known.came:
                proxy.install(proxy.routing.layout, came=former)
            return False
        async with proxy.changes:
            config = served(proxy.config, shared, found)
            await self._install(proxy.layout_of(config), config, shared, former)
        if any(not one.is_known for one in former.came):
            self.want()  # the shards that were not asked, or do not own the keys yet
        return True

    async def _prepare(self, change: Next | None) -> None:
        """Begins the clients by the guards of the map to which a change leads; ends those of one that is given up."""
        proxy = self._proxy
        wanted = None if change is None or change.result.epoch <= self._epoch else change.result
        before, self._prepared = self._prepared, None
        if before is not None and before[0] == wanted:
            self._prepared = before
        elif wanted is not None:
            with suppress(TlsFileError):  # told when the map is put in force
                layout = proxy.layout_of(served(proxy.config, wanted))
                self._prepared = wanted, layout
                await proxy.running.prepare(layout, 0)
        if before is not None and self._prepared is not before:
            await proxy.running.forget(before[1], proxy.routing.layout)

    async def _install(self, layout: Layout, config: Config, shared: SharedMap, former: Former) -> None:
        proxy = self._proxy
        before = proxy.routing.layout
        missing = await proxy.running.prepare(layout, CONNECT_SECONDS)
        change = shared.changes[-1]
        how = f"map of the shards, epoch {shared.epoch}, by {change.by}: {change.what}"
        proxy.install(layout, config, former, how)
        added = [shard for name, shard in layout.shards.items() if name not in before.shards and shard.endpoints]
        if added:
            others = [shard for name, shard in layout.shards.items() if name in before.shards and shard.is_ready]
            proxy.background.start(_bring_leases(added, others))
        log.info(
            "the map of the shards has epoch %d now, before %d: %s, by %s at %s",
            shared.epoch,
            before.epoch,
            change.what,
            change.by,
            change.at,
        )
        unknown = [shard.name for shard in config.shards if not shard.endpoints]
        for name in unknown:
            log.error("shard %s: the map names it, and the config does not; add it to the config", name)
        for name in missing:
            if name not in unknown:
                log.warning("shard %s of the new map is not reached yet", name)

    def _all_tell(self, found: Mapping[str, Held | Status]) -> bool:
        return all(isinstance(found.get(name), Held) for name in self._proxy.routing.shards)

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("the map of the shards cannot be read: %s", trouble)
        self._trouble = trouble

    # The watches.

    def _watch(self) -> None:
        """Watches the map's keys on the shards in force, and on no others."""
        shards = set(self._proxy.routing.shards.values())
        for shard in [shard for shard in self._watched if shard not in shards]:
            self._watched.pop(shard).cancel()
        for shard in shards:
            if shard not in self._watched and shard.endpoints:
                name = f"the watch of the map on {shard_called(shard.name)}"
                self._watched[shard] = self._proxy.background.keep(
                    name, partial(watch, shard, partial(self.want, shard.name))
                )


def _unfinished(change: Next | None) -> str:
    if change is None:
        return ""
    last = change.after.changes[-1]
    return (
        f"A change of the map on the shards to epoch {change.after.epoch}, by {last.by} at {last.at}, is half done: "
        f"{last.what}. {change.cure}."
    )


async def _bring_leases(added: Sequence[Shard], others: Sequence[Shard]) -> None:
    """Gives shards that are new to the map all leases, as a reload does. A shard that is away gets them when needed."""

    async def tell(step: str) -> None:
        log.info("the map of the shards: %s", step)

    with suppress(MissingLeasesError):  # lenient: it is not raised
        await bring_leases([shard for shard in added if shard.is_ready], others, tell, lenient=True)
