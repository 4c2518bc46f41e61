"""What a command tells on stderr with -v: its config, whom it asks, what answers, how long it takes.

The clients of the shards tell what they do in the log. Without -v nobody hears it: the output has all that counts.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from esp.commands.output import complain, manner, note
from esp.core import config as configs
from esp.core.config import Config
from esp.core.log.lines import text_of
from esp.core.wording import counted

log = logging.getLogger("esp")
_of_clients = logging.getLogger("esp.shard")


def config_at(path: Path | None, *, in_shards: bool = False) -> Config:
    """The config that a command uses; see `esp.core.config.find` and `load`.

    Raises:
        ConfigError: there is no config, or the config is wrong.
    """
    found = configs.find(path, os.environ)
    loaded = configs.load(found, in_shards=in_shards)
    note_config(loaded)
    return loaded


def note_config(loaded: Config) -> None:
    """Notes which config is used, and what it has."""
    if not manner.verbose:
        return
    endpoints = sum(len(shard.endpoints) for shard in loaded.shards)
    shards = f"{counted(len(loaded.shards), 'shard')} with {counted(endpoints, 'endpoint')}"
    where = "the command line" if loaded.path is None else f"config {loaded.path.absolute()}"
    note(f"{where}: {shards}, map {loaded.shard_map.fingerprint}")
    for shard in loaded.shards:
        ways = [*(["TLS"] if shard.tls is not None else []), *([f"user {shard.user.name}"] if shard.user else [])]
        note(f"  {shard.name}: {', '.join(map(str, shard.endpoints))}{' by ' if ways else ''}{', '.join(ways)}")


def hear_clients() -> None:
    """Has what the clients of the shards do told on stderr with -v, each line once, and else nowhere."""
    if not any(isinstance(handler, logging.NullHandler) for handler in log.handlers):
        log.addHandler(logging.NullHandler())
    if manner.verbose and not any(isinstance(handler, _Notes) for handler in _of_clients.handlers):
        _of_clients.addHandler(_Notes())
        _of_clients.setLevel(logging.DEBUG)


class _Notes(logging.Handler):
    """Writes what is logged as notes; a line that came before is left out."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = text_of(record)
        if manner.verbose and not manner.quiet and text not in self._told:
            self._told.add(text)
            complain(text)
