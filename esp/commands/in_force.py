"""The map by which proxies serve, for commands that need it: that of the file, or the one that the shards hold."""

from __future__ import annotations

from esp.commands.output import CommandError
from esp.core.config import Config


def in_force(config: Config) -> Config:
    """The config, with the map of the shards if it says that they hold it.

    Raises:
        CommandError: the shards tell no map, or different ones.
    """
    if config.map == "file":
        return config
    import asyncio  # few configs are so, and `esp route` does without

    from esp.core.shared_map import NoMapError, first_map

    try:
        return asyncio.run(first_map(config))
    except NoMapError as error:
        raise CommandError(str(error)) from None
