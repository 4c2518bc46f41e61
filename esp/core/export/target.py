"""The config of one etcd cluster that is no shard of a config: to take keys out of, to put them into, or load on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from esp.core import config as configs
from esp.core.config import Config, ConfigError

NAME = "etcd"


@dataclass(frozen=True, slots=True)
class Etcd:
    """The endpoints of an etcd cluster, and how to speak to them; paths as given, "" for none."""

    endpoints: Sequence[str] = field(default_factory=list)
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""


def config_of(etcd: Etcd, what: str = "endpoint") -> Config:
    """A config in which this cluster is the only shard; `what` names its endpoints in messages.

    Raises:
        ConfigError: something of it is wrong; the text speaks of the options of the command line.
    """
    _check(etcd, what)
    shard: dict[str, object] = {"name": NAME, "endpoints": list(etcd.endpoints), "ranges": [{"start": "", "end": ""}]}
    tls = {name: value for name, value in (("ca", etcd.ca), ("cert", etcd.cert), ("key", etcd.key)) if value}
    if tls:
        shard["tls"] = tls
    if etcd.user:
        shard["auth"] = {"user": etcd.user, "password_file": etcd.password_file}
    try:
        return configs.parse(json.dumps({"shards": [shard]}), None)  # every JSON is YAML
    except ConfigError as error:  # of a file that cannot be used
        text = error.text.removeprefix('"tls": ')
        for field_, option in (("ca", "--cacert"), ("cert", "--cert"), ("key", "--key"), *_OF_USER):
            text = text.replace(f'"{field_}"', option)
        raise ConfigError(None, None, text) from None


_OF_USER = (("password_file", "--password-file"),)


def _check(etcd: Etcd, what: str) -> None:
    """Refuses what is wrong with the options, in the words of the command line."""
    try:
        endpoints = [configs.endpoint_at(url, what) for url in etcd.endpoints]
    except ValueError as error:
        raise ConfigError(None, None, str(error)) from None
    fault = ""
    plain = next((one for one in endpoints if not one.tls), None)
    twice = next((one for place, one in enumerate(endpoints) if one in endpoints[:place]), None)
    if twice is not None:
        fault = f"{what} {twice} is given twice; leave one out"
    elif plain is not None and any(one.tls for one in endpoints):
        fault = f"{what}s {plain} and {next(one for one in endpoints if one.tls)} differ: all are https://, or none"
    elif plain is not None and (etcd.ca or etcd.cert or etcd.key):
        cure = f"write https:// before the {what}, or leave them out"
        fault = f"--cacert, --cert and --key are for TLS, and {what} {plain} is plain; {cure}"
    elif bool(etcd.cert) != bool(etcd.key):
        fault = "--cert and --key go together; give both, the same file if it has both"
    elif bool(etcd.user) != bool(etcd.password_file):
        fault = "--user and --password-file go together; give both"
    if fault:
        raise ConfigError(None, None, fault)
