"""The leases of all shards side by side, for `esp lease-sync`: compared, granted where missing, revoked as orphans.

The survey asks the shards with the shard client that the proxy uses. Nothing is kept between runs, so a run that was
cut short can simply be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from esp.core import errors
from esp.core.background import all_of
from esp.core.config import Config
from esp.core.connected_shards import UnreachableError, connected
from esp.core.lease_sync import CALL_SECONDS, Copied, CopyTtl, call, copy, each, revoke, time_to_live
from esp.core.own_keys import is_own_lease
from esp.core.pb import rpc_pb2
from esp.core.shard import LEASE_LEASES, Shard
from esp.core.shared_map import DisagreeError, newest, read
from esp.core.wire.status import RpcError

Progress = Callable[[int, int], None]
"""Called with the number of leases that are done, and the number of all."""


@dataclass(frozen=True, slots=True)
class LeaseOnShard:
    """One lease on one shard: seconds left and seconds granted, both as etcd rounds them; the number of its keys."""

    ttl: int
    granted_ttl: int
    keys: int


@dataclass(frozen=True, slots=True)
class LeaseView:
    """One lease on all shards, by name, in the order of the config.

    None stands for a shard that lacks the lease; at least one shard has it.
    """

    id: int
    on: Mapping[str, LeaseOnShard | None]

    @property
    def missing(self) -> list[str]:
        """The shards that lack the lease."""
        return [name for name, here in self.on.items() if here is None]

    @property
    def only_on(self) -> str | None:
        """The only shard that has the lease; None if several have the lease, or if there is only one shard."""
        holders = [name for name, here in self.on.items() if here is not None]
        return holders[0] if len(holders) == 1 and len(self.on) > 1 else None

    @property
    def ttl_spread(self) -> int:
        """Seconds between the first and the last end of the lease on its shards."""
        left = [here.ttl for here in self.on.values() if here is not None]
        return max(left) - min(left)

    def differs(self, skew: int) -> bool:
        """Whether a shard lacks the lease, or the ends on two shards are more than `skew` seconds apart."""
        return bool(self.missing) or self.ttl_spread > skew


class Done(StrEnum):
    """The outcome for one lease on one shard."""

    GRANTED = "granted"
    PRESENT = "present"
    """The lease was there meanwhile."""
    GONE = "gone"
    """The lease has ended everywhere meanwhile."""
    REVOKED = "revoked"
    KEPT = "kept"
    """The lease lives on another shard meanwhile."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Action:
    """One lease on one shard, and the outcome; `error` is etcd's text where the change failed."""

    lease: int
    shard: str
    done: Done
    error: str = ""


async def compare(config: Config, concurrency: int, progress: Progress) -> list[LeaseView]:
    """Every lease that lives on any shard, by id.

    Args:
        config: names the shards.
        concurrency: the number of leases that are read at the same time.
        progress: called after each lease.

    Raises:
        UnreachableError: a shard is unreachable, so nothing can be said about any lease.
    """
    async with connected(config) as shards:
        try:
            return await _Survey(shards, concurrency, progress).run()
        except RpcError as error:
            raise UnreachableError(f"a shard does not tell its leases: {error.status.message}") from None


async def grant_missing(
    config: Config, views: Sequence[LeaseView], concurrency: int, progress: Progress
) -> list[Action]:
    """Grants each lease, with the rest of its TTL, on the shards that lack it; failures are part of the answer.

    Raises:
        UnreachableError: a shard cannot be connected to.
    """
    actions: list[Action] = []
    async with connected(config) as shards:

        async def grant(work: tuple[LeaseView, str]) -> None:
            view, name = work
            sources = [shards[holder] for holder, here in view.on.items() if here is not None]
            try:
                copied = await copy(view.id, sources, shards[name], CopyTtl.REMAINING)
            except RpcError as error:
                actions.append(Action(view.id, name, Done.FAILED, error.status.message))
            else:
                actions.append(Action(view.id, name, _DONE[copied]))
            progress(len(actions), len(wanted))

        wanted = [(view, target) for view in views for target in view.missing]
        await each(wanted, grant, concurrency)
    return actions


_DONE: Final = {Copied.GRANTED: Done.GRANTED, Copied.PRESENT: Done.PRESENT, Copied.GONE: Done.GONE}


async def revoke_orphans(
    config: Config, views: Sequence[LeaseView], concurrency: int, progress: Progress
) -> list[Action]:
    """Revokes leases that live on one shard only, and so deletes their keys. Asks the other shards again before each.

    Raises:
        UnreachableError: a shard cannot be connected to; or the map of the shards has changed, so that there may be
            others. What is done is done.
    """
    actions: list[Action] = []
    async with connected(config) as shards:

        async def prune(view: LeaseView) -> None:
            assert view.only_on is not None
            await _must_stand(config, shards)
            orphaned = shards[view.only_on]
            try:
                others = await all_of([time_to_live(s, view.id) for s in shards.values() if s is not orphaned])
                if any(other.TTL >= 0 for other in others):
                    done = Done.KEPT
                else:
                    done = Done.REVOKED if await revoke(orphaned, view.id) else Done.GONE
                actions.append(Action(view.id, orphaned.name, done))
            except RpcError as error:
                actions.append(Action(view.id, orphaned.name, Done.FAILED, error.status.message))
            progress(len(actions), len(views))

        await each(views, prune, concurrency)
    return actions


class _Survey:
    """One comparison of all shards."""

    def __init__(self, shards: Mapping[str, Shard], concurrency: int, progress: Progress) -> None:
        self._shards = shards
        self._concurrency = concurrency
        self._progress = progress
        self._views: dict[int, LeaseView] = {}

    async def run(self) -> list[LeaseView]:
        """Reads all leases, and reads the leases that differ once more.

        Raises:
            RpcError: a shard's.
        """
        listed: dict[int, list[str]] = {}
        for name, ids in (await self._lists()).items():
            for lease_id in ids:
                listed.setdefault(lease_id, []).append(name)
        done = 0

        async def look(lease_id: int) -> None:
            nonlocal done
            await self._look(LeaseView(lease_id, dict.fromkeys(self._shards)), listed[lease_id])
            done += 1
            self._progress(done, len(listed))

        self._progress(0, len(listed))
        await each(listed, look, self._concurrency)
        await self._look_again()
        return sorted((view for view in self._views.values() if any(view.on.values())), key=lambda view: view.id)

    async def _look_again(self) -> None:
        """Reads differing leases again: a lease that was being granted or revoked was on some shards only."""
        lists = await self._lists()

        async def look(view: LeaseView) -> None:
            still = {name: here if view.id in lists[name] else None for name, here in view.on.items()}
            new = [name for name in view.missing if view.id in lists[name]]
            await self._look(replace(view, on=still), new)

        await each([view for view in self._views.values() if view.missing], look, self._concurrency)

    async def _look(self, view: LeaseView, holders: Sequence[str]) -> None:
        """Notes the lease as in `view`, but for these shards as they answer now."""
        answers = await all_of([time_to_live(self._shards[name], view.id, keys=True) for name in holders])
        on = dict(view.on)
        for name, answer in zip(holders, answers, strict=True):
            if answer.TTL >= 0:
                on[name] = LeaseOnShard(answer.TTL, answer.grantedTTL, len(answer.keys))
        self._views[view.id] = replace(view, on=on)

    async def _lists(self) -> dict[str, set[int]]:
        return dict(zip(self._shards, await all_of(map(_leases, self._shards.values())), strict=True))


async def _must_stand(config: Config, shards: Mapping[str, Shard]) -> None:
    """Raises UnreachableError: the shards hold another map than the one of the config, if that is one of the shards."""
    if config.guards is None:
        return
    found = await read(shards.values(), CALL_SECONDS)
    try:
        told = newest(found)
    except DisagreeError as error:
        raise UnreachableError(str(error)) from None
    if told is None or told.map.guards != config.guards:
        raise UnreachableError(f"{errors.MAP_CHANGED_MEANWHILE}; what is done is done: run the command again")


async def _leases(shard: Shard) -> set[int]:
    answer = await call(shard, LEASE_LEASES, rpc_pb2.LeaseLeasesRequest())
    return {lease.ID for lease in answer.leases if not is_own_lease(lease.ID)}
