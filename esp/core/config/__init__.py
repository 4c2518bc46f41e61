"""The config file.

    schema       the JSON schema of the file, for editors
    effective    the values in force, and where each comes from
    checks       what a config must be beyond its file
    file         finds and reads the file, checks the whole
    values       `Config`, the values of a file
    loops        endpoints at which esp itself listens
    across       what esp serves over several shards
    limits       the limits
    fault        `ConfigError`
    shards       the `shards` of the file: names, endpoints, ranges
    all_ranges   the ranges of all shards, and the map that they make
    listen_tls   TLS of the listeners
    listen       listen URLs
    shard_tls    TLS towards the shards
    ranges       ranges of keys, as the file writes them
    addresses    addresses, and the right form of a wrong one
    control      where the operator's socket is
    log          the form of the log, and what it tells
    hot          whether prefixes with many calls are found
    traces       which calls are traced, and where their spans go
    workers      how many processes serve
    user         the user as whom esp asks shards
    fields       single values, and fields of the wrong shape
    shape        which fields a mapping may have
    yaml_lines   YAML values, each with its line

From the top down; each file imports only files below it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from esp.core.config.across import AcrossShards, Compaction
from esp.core.config.addresses import is_wildcard
from esp.core.config.checks import check_certificates, check_no_loop
from esp.core.config.control import Control
from esp.core.config.fault import ConfigError
from esp.core.config.file import faults_of, find, listen_of, load, parse, text_of
from esp.core.config.listen import Listen, url_of
from esp.core.config.log import LogConfig
from esp.core.config.shards import Endpoint, ShardConfig, endpoint_at
from esp.core.config.values import Config
from esp.core.config.workers import workers_of

if TYPE_CHECKING:
    from esp.core.config.effective import Effective
    from esp.core.config.hot import HotConfig
    from esp.core.config.listen_tls import ListenTls
    from esp.core.config.shard_tls import ShardTls
    from esp.core.config.traces import TracesConfig
    from esp.core.config.user import User, read_password

EXAMPLE: Final = Path(__file__).with_name("example.yaml")
"""A config with all fields and what they mean."""
_SELDOM: Final = {
    "HotConfig": "hot",
    "ListenTls": "listen_tls",
    "ShardTls": "shard_tls",
    "TracesConfig": "traces",
    "User": "user",
    "read_password": "user",
}
"""Names of fields that few files have, and their modules: loaded by whoever asks for them, or for such a file."""


def __getattr__(name: str) -> Any:
    if name not in _SELDOM:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_SELDOM[name]}"), name)


def effective_values(text: str, config: Config) -> list[Effective]:
    """Every value of a config that `text` has become, and its line; see `effective`."""
    from esp.core.config.effective import effective  # only one command needs it

    return effective(text, config)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file; see `schema`."""
    from esp.core.config.schema import schema  # only one command needs it

    return schema()


__all__ = [
    "EXAMPLE",
    "AcrossShards",
    "Compaction",
    "Config",
    "ConfigError",
    "Control",
    "Endpoint",
    "HotConfig",
    "Listen",
    "ListenTls",
    "LogConfig",
    "ShardConfig",
    "ShardTls",
    "TracesConfig",
    "User",
    "check_certificates",
    "check_no_loop",
    "effective_values",
    "endpoint_at",
    "faults_of",
    "find",
    "is_wildcard",
    "json_schema",
    "listen_of",
    "load",
    "parse",
    "read_password",
    "text_of",
    "url_of",
    "workers_of",
]
