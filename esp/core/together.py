"""A proxy among others in front of the same shards, where these hold the map: it registers, asks, answers, hands on."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Final

from esp import __version__
from esp.core.advertise import urls_of
from esp.core.background import Background
from esp.core.config import Config, Listen, is_wildcard, url_of
from esp.core.fleet import KEYS, Peer, PeerError, Registered, Registration
from esp.core.metrics.families import Family
from esp.core.metrics.scrape import of_fellows
from esp.core.routing import Routing
from esp.core.services.anew import Find
from esp.core.services.fleet import Fellows, handlers
from esp.core.shared_map import watch
from esp.core.wire.context import WireContext
from esp.core.wire.server_stream import Handler
from esp.core.wording import counted, shard_called

log = logging.getLogger("esp.fleet")

BEGIN_SECONDS: Final = 3.0
"""Seconds that the start waits for a number."""
HAND_SECONDS: Final = 5.0
"""Seconds that the tokens may take on their way to another proxy, before the drain begins."""
FLUSH_SECONDS: Final = 0.02
"""Seconds between two looks for tokens that were minted while the proxy drains."""
LEAVE_SECONDS: Final = 2.0


class Together:
    """This process among the proxies of the same shards.

    Args:
        config: tells the config in force.
        routing: tells the routing in force.
        find: finds handlers, by the layout in force.
        advertised: tells the URLs under which clients reach this proxy.
        bound: tells the addresses on which it listens.

    Attributes:
        registration: of this process.
        fellows: the others, and what is asked of them.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        routing: Callable[[], Routing],
        background: Background,
        context: WireContext,
        find: Find,
        advertised: Callable[[], tuple[str, ...]],
        bound: Callable[[], Sequence[Listen]],
    ) -> None:
        self._config = config
        self._routing = routing
        self._background = background
        self._context = context
        self._advertised = advertised
        self._bound = bound
        self._leaves = False
        self._heir: Registered | None = None
        self._given = 0  # the newest token of this process that was handed on
        tokens = routing().tokens
        self._tokens = tokens
        self.registration = Registration(
            lambda: routing().shards,
            lambda: config().anchor,
            lambda: config().guards or {},
            self._describe,
            tokens,
        )
        self.fellows = Fellows(
            tokens,
            background,
            find,
            lambda: self.registration.others,
            lambda: self.registration.secret,
            self._peers,
            self.registration.want,
            lambda: self.registration.looks,
            self._connect,
        )

    def handlers(self) -> Mapping[bytes, Handler]:
        """The handlers of the RPCs between proxies, by path."""
        return handlers(self.fellows)

    def installed(self) -> None:
        """Another layout is in force."""
        self.fellows.installed()
        self.registration.want()

    # About this process.

    def _describe(self, number: int) -> Registered:
        return Registered(
            number=number,
            urls=self._advertised(),
            peers=self._peers(),
            version=__version__,
            epoch=self._routing().layout.epoch,
            heir_of=tuple(sorted({*self.fellows.heir_of, *self._tokens.shared_numbers()} - {number})),
            leaves=self._leaves,
        )

    def _peers(self) -> tuple[str, ...]:
        """The URLs under which other proxies reach this one and no other: what it advertises may lead to several.

        They are those of its listeners; of a wildcard, with the address by which it goes out.
        """
        urls = tuple(url for url in urls_of(self._bound()) if url.startswith("http"))
        if urls:
            return urls
        wild = [one for one in self._bound() if one.path is None and is_wildcard(one.host)]
        anchor = self._routing().shards.get(self._config().anchor)
        if not wild or anchor is None or not anchor.endpoints:
            return ()
        here = _address_towards(anchor.endpoints[0].host)
        return tuple(url_of(here, one.port, tls=one.tls) for one in wild[:1]) if here else ()

    def _connect(self, one: Registered) -> Peer:
        tls = self._config().tls
        return Peer(one.peers, self._context, None if tls is None else tls.files[0])

    def members(self) -> dict[str, tuple[str, ...]]:
        """The URLs of the registered proxies, by an id of each; nothing if this one is not registered."""
        if not self.registration.is_registered:
            return {}
        every = [self._advertised(), *(one.urls for one in self.registration.others.values() if not one.leaves)]
        return {sha256(repr(urls).encode()).hexdigest()[:16]: urls for urls in every if urls}

    def lines(self) -> list[str]:
        """The lines of `/readyz?verbose`."""
        here = self.registration
        if here.is_registered:
            others = counted(len({one.peers for one in here.others.values()} - {self._peers()}), "other proxy")
            return [f"[+]proxies: registered as number {here.number} on {shard_called(here.shard)}; {others}\n"]
        return [f"[+]proxies: not registered: {here.trouble}; {here.numbered()}\n"]

    def families(self) -> list[Family]:
        """The metrics."""
        here = self.registration
        number = here.number if here.is_registered and here.number is not None else -1
        fellows = self.fellows
        return of_fellows(
            fellows.counters, len(here.others), number, fellows.waiting, fellows.wanted, self._tokens.adopted
        )

    # The run.

    async def begin(self) -> None:
        """Registers, before there are clients, and goes on with that."""
        await self.registration.begin(BEGIN_SECONDS)
        self._background.keep("the registration of this proxy", self.registration.run)
        self._background.keep("the watch of other proxies", self._watch)

    async def _watch(self) -> None:
        while True:
            shard = self._routing().shards.get(self._config().anchor)
            if shard is None:
                await asyncio.sleep(LEAVE_SECONDS)
                continue
            task = self._background.keep(
                f"the watch of other proxies on {shard_called(shard.name)}",
                partial(watch, shard, self.registration.want, KEYS),
            )
            try:
                while self._routing().shards.get(self._config().anchor) is shard and not task.done():  # noqa: ASYNC110
                    await asyncio.sleep(LEAVE_SECONDS)
            finally:
                await self._background.end([task])

    # The end.

    async def hand_on(self) -> None:
        """Gives the tokens to another proxy, before the drain; `end` gives those that are minted meanwhile."""
        here = self.registration
        heirs = [one for one in here.others.values() if one.peers and one.peers != self._peers() and not one.leaves]
        if not here.is_registered or not heirs:
            return
        self._leaves = True
        here.want()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                while not here.has_told_to_leave:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(FLUSH_SECONDS)
        random.shuffle(heirs)
        for heir in heirs:
            try:
                async with asyncio.timeout(HAND_SECONDS):
                    await self._give(heir)
            except (PeerError, TimeoutError) as error:
                log.warning("the tokens are not handed on to number %d: %s", heir.number, error or "it takes too long")
                continue
            self._heir = heir
            self._background.keep("tokens for another proxy", partial(self._flush, heir))
            return

    async def _flush(self, heir: Registered) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            with suppress(PeerError):
                await self._give(heir)

    async def _give(self, heir: Registered) -> None:
        newest, tokens = self._tokens.newest, self._tokens.newer(self._given)
        if tokens:
            await self.fellows.hand_on(heir, tokens)
            self._given = (
                newest or 1
            )  # 1: only tokens of others were, which may be newer than what is minted from now on

    async def end(self) -> None:
        """Ends the registration, once all tokens are handed on. After the drain, while the shards are connected."""
        heir, here = self._heir, self.registration
        if heir is not None:
            with suppress(PeerError, TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._give(heir)
                    if self._given:
                        await self._is_known_as_heir(heir.number)
                        log.info("%s handed on to the proxy with number %d", counted_tokens(self.fellows), heir.number)
        await here.leave(LEAVE_SECONDS)
        self.fellows.close()

    async def _is_known_as_heir(self, number: int) -> None:
        """Returns when all can know who has the tokens: until then this process is registered as one that leaves."""
        while True:
            heir = self.registration.others.get(number)
            if heir is None or self.registration.number in heir.heir_of:
                return
            self.registration.want()
            await asyncio.sleep(FLUSH_SECONDS)


def counted_tokens(fellows: Fellows) -> str:
    """How many tokens were given to others, for people."""
    return counted(fellows.counters["given"], "token")


def _address_towards(host: str) -> str:
    """The address of this machine on the way to a host; "" if it cannot be told."""
    with suppress(OSError):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))
            return str(sock.getsockname()[0])
    return ""
