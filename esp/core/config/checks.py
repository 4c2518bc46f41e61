"""What a config must be beyond its file: esp can serve with it where it listens."""

from __future__ import annotations

from esp.core.config.fault import ConfigError
from esp.core.config.values import Config
from esp.core.wording import shard_quoted

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")  # noqa: S104 - to connect to these is to connect here


def check_no_loop(config: Config) -> None:
    """Refuses a shard's endpoint at which esp itself listens: each call would come back to esp for ever.

    Raises:
        ConfigError: there is such an endpoint.
    """
    for shard in config.shards:
        for endpoint in shard.endpoints:
            for listen in config.all_listen:
                if listen.path is None and endpoint.port == listen.port and _is_same(listen.host, endpoint.host):
                    raise ConfigError(
                        config.path,
                        endpoint.line,
                        f"{shard_quoted(shard.name)}: endpoint {endpoint} is where esp itself listens ({listen}); "
                        "name an etcd there, or listen elsewhere",
                    )


def check_certificates(config: Config) -> None:
    """Refuses a listen address of TLS in a config that has no certificate.

    Raises:
        ConfigError: there is such an address.
    """
    of_tls = next((listen for listen in config.all_listen if listen.tls), None)
    if of_tls is not None and config.tls is None:
        from esp.core.config.listen_tls import needs_certificate  # as in `file`

        raise ConfigError(config.path, None, needs_certificate(of_tls))


def _is_same(listen: str, host: str) -> bool:
    """Whether a server that listens on `listen` answers at `host`, as far as the names show."""
    return host == listen or (host in _THIS_MACHINE and listen in (*_THIS_MACHINE, "0.0.0.0", "::"))  # noqa: S104
