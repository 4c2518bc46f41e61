"""What a command tells on stderr with -v: its config, whom it asks, what answers, how long it takes.

The clients of the shards tell what they do in the log. Without -v nobody hears it: the output has all that counts.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from esp.commands.in_force import in_force
from esp.commands.output import complain, manner, note
from esp.core import config as configs
from esp.core.config import Config
from esp.core.log.lines import text_of
from esp.core.wording import counted

log = logging.getLogger("esp")
_of_clients = logging.getLogger("esp.shard")


def config_at(path: Path | None) -> Config:
    """The config that a command uses, with the map in force; see `in_force`.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: the map is on the shards, and they do not tell it.
    """
    return note_config(in_force(configs.load(configs.find(path, os.environ))))


def file_at(path: Path | None) -> Config:
    """The config that a command uses, as the file has it.

    Raises:
        ConfigError: there is no config, or the config is wrong.
    """
    return note_config(configs.load(configs.find(path, os.environ)))


def note_config(loaded: Config) -> Config:
    """Notes which config is used, and what it has; the same config."""
    if not manner.verbose:
        return loaded
    endpoints = sum(len(shard.endpoints) for shard in loaded.shards)
    shards = f"{counted(len(loaded.shards), 'shard')} with {counted(endpoints, 'endpoint')}"
    where = "the command line" if loaded.path is None else f"config {loaded.path.absolute()}"
    note(f"{where}: {shards}, map {loaded.shard_map.fingerprint}")
    for shard in loaded.shards:
        ways = [*(["TLS"] if shard.tls is not None else []), *([f"user {shard.user.name}"] if shard.user else [])]
        note(f"  {shard.name}: {', '.join(map(str, shard.endpoints))}{' by ' if ways else ''}{', '.join(ways)}")
    return loaded


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
