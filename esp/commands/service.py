"""`esp serve` as a service: the sockets that the service manager passes, and what esp tells the manager."""

from __future__ import annotations

import faulthandler
import logging
import sys
from collections.abc import MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

from esp.commands.operating import commanded
from esp.commands.output import USAGE, CommandError
from esp.core import activation
from esp.core.config import Config, Listen
from esp.core.control import Control
from esp.core.notify import ServiceManager
from esp.core.proxy import Proxy
from esp.core.sockets import Bound

log = logging.getLogger("esp")

REST_SECONDS: Final = 30.0
"""Seconds for all that a stop takes beside the drain; the etcds of --local have 10 of them."""
STEP: Final = "the service manager"


class Service:
    """What the environment says of the service manager: systemd, or nobody.

    Attributes:
        tells: this process logs what the config means for clients.

    Raises:
        CommandError: a descriptor that is passed is no socket that listens.
    """

    tells = True

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.manager = ServiceManager.of(environ)
        if self.manager.watchdog_seconds is not None and sys.stderr is not None:
            faulthandler.enable()  # tells where the loop stands when the watchdog's SIGABRT comes
        try:
            self._passed = activation.passed(environ)
        except OSError as error:
            raise CommandError(str(error.strerror)) from None

    say = staticmethod(log.info)
    """Logs the steps of the process's life."""

    def commanded(self, config: Config, proxy: Proxy) -> AbstractAsyncContextManager[Control]:
        """The control socket of this process."""
        return commanded(config, proxy.background, {})

    def joins(self, proxy: Proxy) -> None:
        """Nothing: a single process has nobody to join."""

    def refuse_sockets(self) -> None:
        """Refuses sockets that are passed where esp chooses its own.

        Raises:
            CommandError: some are passed.
        """
        if self._passed:
            raise CommandError("esp serve --local takes no sockets from a service manager; start it without", USAGE)

    def bind(self, addresses: Sequence[Listen]) -> list[Bound]:
        """The sockets that are passed, and sockets bound to the addresses that have none.

        Raises:
            OSError: as `activation.bind_rest` does.
        """
        return activation.bind_rest(self._passed, addresses)

    def serves(self, proxy: Proxy, _: Sequence[str]) -> None:
        """Tells that the proxy serves; from now on its tick tells of its shards, and that its loop works."""
        self.manager.ready(_state(proxy))
        proxy.on_tick[STEP] = partial(self._tick, proxy)

    def _tick(self, proxy: Proxy, now: float) -> None:
        self.manager.status(_state(proxy))
        self.manager.tick(now)

    def reloads(self, proxy: Proxy, begins: bool) -> None:
        """Tells that the proxy takes another config, or has done so."""
        if begins:
            self.manager.reloading()
        else:
            self.manager.ready(_state(proxy))

    def stops(self, proxy: Proxy) -> None:
        """Tells that the proxy drains."""
        proxy.on_tick[STEP] = self.manager.tick
        self.manager.stopping(proxy.config.drain_seconds + REST_SECONDS)


def _state(proxy: Proxy) -> str:
    shards = proxy.routing.shards
    missing = [name for name, shard in shards.items() if not shard.is_ready]
    text = f"serves {len(shards)} {'shard' if len(shards) == 1 else 'shards'}"
    return f"{text}; {len(missing)} not reachable: {', '.join(missing)}" if missing else text
