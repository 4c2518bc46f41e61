"""`esp map remove`: the map is taken from the shards, and proxies serve by their files again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from esp.commands import map_view as view
from esp.commands.map import CALL_SECONDS, carried_out, loaded, newest_of, run
from esp.commands.map_deciding import Confirm, confirming, decided, now, reaching, who
from esp.commands.output import CommandError, Format
from esp.core.config import Config
from esp.core.fleet import registered
from esp.core.shard import Shard
from esp.core.shared_map import Held, MapFormatError, Next, SharedMap, Told, with_new_guards
from esp.core.wire.status import RpcError
from esp.core.wording import shard_called

__all__ = ["confirming", "remove"]


def remove(config: Path | None, output: Format, confirm: Confirm, *, while_served: bool = False) -> None:
    """Take the map from all shards; with `while_served`, also while proxies are registered.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: it cannot be taken, the operator does not want it, or a step failed.
    """
    run(_remove(loaded(config), output, confirm, while_served=while_served))


async def _remove(used: Config, output: Format, confirm: Confirm, *, while_served: bool) -> None:
    async with reaching(used) as (shards, held):
        told = newest_of(held)
        change = told.change
        if change is None or not change.removes:
            _must_be_whole(told, held)
            if not while_served:
                await _must_be_unserved(shards[told.map.anchor])
            change = Next(told.map, _ended(told.map), removes=True)
            view.write_removal(change, output)
            if not confirm("Take the map from all of them?"):
                raise CommandError("nothing was done")
            await decided(shards, change)
        view.write_done(change.after, await carried_out(change, shards), {}, output, removed=True)


def _must_be_whole(told: Told, held: Mapping[str, Held]) -> None:
    """Refuses to take a map of which a shard is not there, or in another state.

    Raises:
        CommandError: so it is.
    """
    if missing := [name for name in told.map.names if name not in held]:
        raise CommandError(
            f"the map names {shard_called(missing[0])}, and the config does not; it would keep its guard"
        )
    if faults := view.faults_of(told):
        raise CommandError(faults)


async def _must_be_unserved(anchor: Shard) -> None:
    """Refuses to take the map from under proxies that serve by it.

    Raises:
        CommandError: some are registered, or nobody knows.
    """
    try:
        found = await registered(anchor, CALL_SECONDS)
    except RpcError as error:
        text = f"{shard_called(anchor.name)} does not tell which proxies are registered: {error.status.message}"
        raise CommandError(text) from None
    if found:
        urls = ", ".join(dict.fromkeys(url for one in found.values() for url in (one.urls or one.peers)))
        raise CommandError(
            f"proxies are registered that serve by the map ({urls or 'at unknown URLs'}); stop them first (one that "
            "was killed counts for 15 s), or add --while-served, and they refuse all calls"
        )


def _ended(before: SharedMap) -> SharedMap:
    try:
        return with_new_guards(before, (), at=now(), by=who(), what="the map is taken from the shards")
    except MapFormatError as error:
        raise CommandError(f"the map {error}") from None
