"""`esp serve` as a service: the sockets that the service manager passes, and what esp tells the manager."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final

from esp.commands.operating import commanded
from esp.commands.output import USAGE, CommandError
from esp.commands.takeover import Before, OwnTokens, begin_successor, predecessor
from esp.core import activation
from esp.core.background import Background
from esp.core.config import Config, Listen
from esp.core.control import Control
from esp.core.former import Former
from esp.core.notify import ServiceManager
from esp.core.proxy import Proxy
from esp.core.sockets import Bound
from esp.core.takeover import HandOver, Predecessor, TakeoverError

log = logging.getLogger("esp")

REST_SECONDS: Final = 30.0
"""Seconds for all that a stop takes beside the drain; the etcds of --local have 10 of them."""
STEP: Final = "the service manager"


class Service:
    """What the environment says of the service manager: systemd, or nobody.

    Attributes:
        tells: this process logs what the config means for clients.
        before: the process from which this one takes over; None if there is none.
        stop: called when another process has taken over, and this one is to drain.

    Raises:
        CommandError: a descriptor that is passed is no socket that listens.
    """

    tells = True

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.stop: Callable[[], None] = lambda: None
        self.before: Predecessor | None = None
        self._tokens: OwnTokens | None = None
        self._hand_over: HandOver | None = None
        self._bound: Sequence[Bound] = ()
        self._background = Background()
        self._serves = asyncio.Event()
        self._has_given = False
        self.manager = ServiceManager.of(environ)
        if self.manager.watchdog_seconds is not None and sys.stderr is not None:
            faulthandler.enable()  # tells where the loop stands when the watchdog's SIGABRT comes
        try:
            self._passed = activation.passed(environ)
        except OSError as error:
            raise CommandError(str(error.strerror)) from None

    say = staticmethod(log.info)
    """Logs the steps of the process's life."""

    @property
    def former(self) -> Former:
        """The ranges that have moved at the processes before this one."""
        return Former() if self.before is None else self.before.former

    def take_over(self, config: Config) -> Predecessor:
        """Gets the sockets and the tokens of the running esp with this config.

        Raises:
            CommandError: none runs, or it does not hand over.
        """
        self.before = predecessor(config)
        return self.before

    def commanded(self, config: Config, proxy: Proxy) -> AbstractAsyncContextManager[Control]:
        """The control socket of this process; after a takeover it is opened when this one serves."""
        assert self._tokens is not None

        def reachable() -> list[str]:
            return [name for name, shard in proxy.routing.shards.items() if shard.is_ready]

        def let_go(process: int) -> None:
            self.manager.main_process(process)
            self._background.start(self._give_positions(proxy))
            self.stop()

        def fingerprint() -> str:
            return proxy.config.map_sign

        def former() -> Former:
            return proxy.routing.layout.former

        hand_over = HandOver(self._background, self._bound, self._tokens, reachable, let_go, fingerprint, former)
        hand_over.predecessor = self.before
        proxy.is_handing_over = lambda: hand_over.is_under_way
        self._hand_over = hand_over
        after = None if self.before is None else self._serves
        return commanded(config, proxy.background, {"takeover": self._hand_over}, after)

    async def _give_positions(self, proxy: Proxy) -> None:
        assert self._hand_over is not None
        while proxy.positions.watching and not self._has_given:  # noqa: ASYNC110 - watches end by themselves
            await asyncio.sleep(0.002)
        if not self._has_given:
            self._has_given = True
            self._hand_over.give_positions(proxy.positions.dump())
            await self._hand_over.end_positions()

    def begin_successor(self) -> None:
        """Starts a process that takes over from this one."""
        self._background.start(begin_successor(self.manager))

    async def joins(self, proxy: Proxy) -> None:
        """Called before the proxy has clients: after a takeover it knows the tokens of the process before it."""
        self._tokens = OwnTokens(proxy.routing.tokens, proxy.config, self.before)
        if self.before is not None:

            async def adopt(dumped: Sequence[Mapping[str, Any]]) -> None:
                proxy.positions.adopt(dumped)

            await self.before.open(self._background, adopt)
            proxy.join(self._tokens.part, Before(self.before))

    async def close(self, proxy: Proxy, _: object, error: BaseException | None, __: object) -> None:
        """Called when the proxy has ended; `error` is the reason of a start that failed."""
        if self.before is not None and not self._serves.is_set():
            await self.before.fails(str(error or "it was stopped"))
        if self._hand_over is not None and self._hand_over.is_given:
            await self._give_positions(proxy)
        await self._background.close()

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
        if self.before is not None:
            self._bound = bound = self.before.bind(addresses)
        else:
            self._bound = bound = activation.bind_rest(self._passed, addresses)
        return bound

    @property
    def accepts_late(self) -> bool:
        """Clients are accepted once the shards are connected: until then another process serves them better."""
        return self.before is not None

    async def serves(self, proxy: Proxy, missing: Sequence[str]) -> None:
        """Tells that the proxy serves; from now on its tick tells of its shards, and that its loop works.

        Raises:
            CommandError: at a takeover a shard is `missing` that the process before reaches, or that one gave up.
        """
        if self.before is not None:
            try:
                self.before.check(missing)
                await self.before.may_serve()
            except TakeoverError as error:
                raise CommandError(str(error)) from None
            await proxy.accept()
            self.before.serves()
        self._serves.set()
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
        if self._hand_over is not None and self._hand_over.is_given:
            self.manager.close()  # another process is the service now
        proxy.on_tick[STEP] = self.manager.tick
        self.manager.stopping(proxy.config.drain_seconds + REST_SECONDS)


def _state(proxy: Proxy) -> str:
    shards = proxy.routing.shards
    missing = [name for name, shard in shards.items() if not shard.is_ready]
    text = f"serves {len(shards)} {'shard' if len(shards) == 1 else 'shards'}"
    return f"{text}; {len(missing)} not reachable: {', '.join(missing)}" if missing else text
