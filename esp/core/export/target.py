"""The config of one etcd cluster that is no shard of a config: to take keys out of, or to put them into."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from esp.core import config as configs
from esp.core.config import Config

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


def config_of(etcd: Etcd) -> Config:
    """A config in which this cluster is the only shard.

    Raises:
        ConfigError: something of it is wrong.
    """
    shard: dict[str, object] = {"name": NAME, "endpoints": list(etcd.endpoints), "ranges": [{"start": "", "end": ""}]}
    tls = {name: value for name, value in (("ca", etcd.ca), ("cert", etcd.cert), ("key", etcd.key)) if value}
    if tls:
        shard["tls"] = tls
    auth = {name: value for name, value in (("user", etcd.user), ("password_file", etcd.password_file)) if value}
    if auth:
        shard["auth"] = auth
    return configs.parse(json.dumps({"shards": [shard]}), None)  # every JSON is YAML
