"""What a config must be beyond its file: esp can serve with it where it listens."""

from __future__ import annotations

from esp.core.config.fault import ConfigError
from esp.core.config.loops import loops
from esp.core.config.values import Config


def check_no_loop(config: Config) -> None:
    """Refuses a shard's endpoint at which esp itself listens: each call would come back to esp for ever.

    Raises:
        ConfigError: there is such an endpoint.
    """
    for fault in loops({shard.name: shard.endpoints for shard in config.shards}, config.all_listen, config.path):
        raise fault


def check_certificates(config: Config) -> None:
    """Refuses a listen address of TLS in a config that has no certificate.

    Raises:
        ConfigError: there is such an address.
    """
    of_tls = next((listen for listen in config.all_listen if listen.tls), None)
    if of_tls is not None and config.tls is None:
        from esp.core.config.listen_tls import needs_certificate  # as in `file`

        raise ConfigError(config.path, None, needs_certificate(of_tls))
