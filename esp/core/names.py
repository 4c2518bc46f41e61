"""The host names of the shards' endpoints at the start.

A name that is not known is that endpoint's trouble: esp says so, serves all other endpoints, and tries the name again
whenever its shard needs it. Only if no endpoint of any shard can be used, the config is wrong as a whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from esp.core.config import Config, ConfigError
from esp.core.shard import Lookups, UnknownNameError, is_address
from esp.core.wording import shard_quoted


def has_address(config: Config) -> bool:
    """Whether an endpoint is an address, so that `check` would find nothing."""
    return any(is_address(endpoint.host) for shard in config.shards for endpoint in shard.endpoints)


async def check(config: Config, seconds: float) -> None:
    """Refuses a config of which no endpoint can be used, because all of them have names that do not exist.

    Returns as soon as an endpoint may be used: it is an address, its name is known, or the name servers do not say
    within `seconds` that there is no such name. They may be away themselves while a machine starts.

    Raises:
        ConfigError: the name servers know none of the names.
    """
    if has_address(config):
        return
    lookups = Lookups()
    first: ConfigError | None = None
    for host, (shard, line) in _hosts(config).items():
        try:
            await lookups.addresses(host, seconds)
        except UnknownNameError as error:
            text = f"no endpoint of any shard can be used, the first is of {shard_quoted(shard)}: {error}"
            first = first or ConfigError(config.path, line, text)
        except OSError:
            return
        else:
            return
    if first is not None:
        raise first


async def faults(config: Config, seconds: float) -> AsyncIterator[tuple[str, str, OSError]]:
    """Each host name that is not known: its first line in the config file as `FILE:LINE: `, the shard, the fault.

    A name server has `seconds` for each name; names are looked up one after the other.
    """
    lookups = Lookups()
    for host, (shard, line) in _hosts(config).items():
        try:
            await lookups.addresses(host, seconds)
        except OSError as error:
            where = f"{config.path}:{line}: " if config.path and line else ""
            yield where, shard, error


def _hosts(config: Config) -> dict[str, tuple[str, int | None]]:
    """Each host once, with the name of its first shard and the line there."""
    hosts: dict[str, tuple[str, int | None]] = {}
    for shard in config.shards:
        for endpoint in shard.endpoints:
            hosts.setdefault(endpoint.host, (shard.name, endpoint.line))
    return hosts
