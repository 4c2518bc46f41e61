"""Endpoints of shards at which esp itself listens: each call would come back to esp for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from esp.core.config.fault import ConfigError
from esp.core.config.listen import Listen
from esp.core.config.shards import Endpoint
from esp.core.wording import shard_quoted

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")  # noqa: S104 - to connect to these is to connect here


def loops(
    shards: Mapping[str, Sequence[Endpoint]], listens: Sequence[Listen], path: Path | None
) -> Iterator[ConfigError]:
    """The endpoints of these shards that are addresses on which esp listens, as faults of the file at `path`."""
    for name, endpoints in shards.items():
        for endpoint in endpoints:
            for listen in listens:
                if listen.path is None and endpoint.port == listen.port and _is_same(listen.host, endpoint.host):
                    yield ConfigError(
                        path,
                        endpoint.line,
                        f"{shard_quoted(name)}: endpoint {endpoint} is where esp itself listens ({listen}); "
                        "name an etcd there, or listen elsewhere",
                    )
                    break


def _is_same(listen: str, host: str) -> bool:
    """Whether a server that listens on `listen` answers at `host`, as far as the names show."""
    return host == listen or (host in _THIS_MACHINE and listen in (*_THIS_MACHINE, "0.0.0.0", "::"))  # noqa: S104
