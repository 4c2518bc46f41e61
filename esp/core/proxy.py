"""A running proxy: listeners, services and shard clients put together."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import monotonic

from esp.core import errors
from esp.core.apiservers import ApiServers
from esp.core.background import Background
from esp.core.config import Config, Listen
from esp.core.heap import Heap
from esp.core.kubernetes import assumed_roots
from esp.core.routing import Routing
from esp.core.samples import Samples
from esp.core.services import kv, maintenance, watch
from esp.core.services.compaction import Compactions
from esp.core.services.gate import Gate
from esp.core.services.lease import Leases
from esp.core.services.pages import Pages
from esp.core.services.router import Router
from esp.core.shard import Shard
from esp.core.tokens import Tokens
from esp.core.undivided import Undivided
from esp.core.wire.context import WireContext
from esp.core.wire.transport import TICK_SECONDS, Listener

log = logging.getLogger("esp")


class Proxy:
    """Serves a config's shards as one etcd. Use as `async with Proxy(config) as proxy: await stop.wait()`.

    Entering binds the listeners and connects the shards; leaving drains: no new connections, GOAWAY, calls in flight
    finish, streams end so that clients resume elsewhere, and every task is awaited.

    Attributes:
        background: owns every task and timer outside the wire; its counters tell of bugs.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.context = WireContext(config.limits)
        self.background = Background()
        self._heap = Heap()
        shards = [Shard(shard.name, shard.endpoints, self.context, self.background) for shard in config.shards]
        undivided = Undivided(config.shard_map, config.across_shards.refused, self.context.reached)
        apiservers = ApiServers(
            config.shard_map,
            shards,
            undivided,
            assumed_roots(config.kubernetes),
            protects=config.across_shards.protects_kubernetes,
        )
        self.routing = Routing(config.shard_map, shards, Tokens(len(shards), self.context), undivided, apiservers)
        self.bound: list[tuple[str, int]] = []
        pages = Pages(self.routing)
        self.leases = Leases(self.routing, self.background, self.context, tolerant=config.leases == "tolerant")
        self._samples = self._samples_for(config)
        self._gate = Gate(len(config.shards), self.context, self.background)
        served = {
            **kv.handlers(
                self.routing,
                self._gate,
                self.leases.retry,
                Compactions(self.routing, config.compaction, self._samples),
                deletes_across_shards=config.deletes_across_shards == "serve",
                snapshots=config.range_reads == "snapshot",
                txn_snapshots=config.txn_reads == "snapshot",
                snapshot_tries=config.limits.max_snapshot_tries,
            ),
            **self.leases.handlers(),
            **watch.handlers(self.routing, self.background),
            **maintenance.handlers(self.routing, self.background.start),
        }
        router = Router(self.routing, served, pages)
        self._listener = Listener(self.context, router.find, pages.find)

    def _samples_for(self, config: Config) -> Samples | None:
        if config.compaction.key is None or len(config.shards) == 1:
            return None
        return Samples(self.routing.shards, config.shard_map.owner(config.compaction.key), self.context)

    async def _sample(self, samples: Samples) -> None:
        if not self.config.compaction.takes_any:
            await self.routing.apiservers.is_known.wait()
        await samples.run()

    async def __aenter__(self) -> Proxy:
        """Starts.

        Raises:
            OSError: a listen address cannot be bound; nothing was started.
        """
        await self._bind(self.config.listen)
        for shard in self.routing.shards:
            self.background.start(shard.run())
        self.background.start(self.leases.run())
        self.background.keep("the look for kube-apiservers", self.routing.apiservers.run)
        if self._samples is not None:
            self.background.keep("the samples of revisions", partial(self._sample, self._samples))
        self.background.keep("the tick", self._tick)
        return self

    async def _bind(self, addresses: Sequence[Listen]) -> None:
        for address in addresses:
            try:
                self.bound += await self._listener.listen(address.host, address.port)
            except OSError as error:
                self._listener.close()
                raise _cannot_listen(address, error) from None

    async def __aexit__(self, *exc: object) -> None:
        if not await self._listener.drain(errors.SERVER_STOPPED, self.config.drain_seconds):
            log.warning("some calls were still open after %g s and were cut", self.config.drain_seconds)
        await self.background.close()
        self.routing.tokens.close()

    def cut(self) -> None:
        """Ends the calls that leaving still waits for."""
        self._listener.abort()

    async def connected(self, seconds: float) -> list[str]:
        """Waits until every shard is reachable, `seconds` at most; the names of those that are not."""
        deadline = monotonic() + seconds
        while True:
            missing = [shard.name for shard in self.routing.shards if not shard.is_ready]
            if not missing or monotonic() > deadline:
                return missing
            await asyncio.sleep(0.01)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = monotonic()
            guard = self.background.guard
            guard("the clients' deadlines", partial(self._listener.tick, now))
            for shard in self.routing.shards:
                guard(f"the deadlines of shard {shard.name}", partial(shard.tick, now))
            guard("the leases' deadlines", partial(self.leases.tick, now))
            guard("the places at the shards", partial(self._gate.tick, now))
            guard("tokens", self.routing.tokens.expire)
            guard("the heap", self._heap.tick)
            self.context.flush()


def check_listen(addresses: Sequence[Listen]) -> None:
    """Binds every address and lets it go: what a `Proxy` would fail on is known before anything else is started.

    Raises:
        OSError: as entering a `Proxy` does.
    """
    for address in addresses:
        try:
            for family, kind, protocol, _, bound in socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                with socket.socket(family, kind, protocol) as probe:
                    # As the listener does it: connections of an earlier run in TIME_WAIT are no hindrance.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind(bound)
        except OSError as error:
            raise _cannot_listen(address, error) from None


def _cannot_listen(address: Listen, error: OSError) -> OSError:
    return OSError(error.errno, f"cannot listen on {address}: {_reason(error)}")


def _reason(error: OSError) -> str:
    text = (error.strerror or str(error)).lower()
    if isinstance(error, socket.gaierror):
        return "the host name is not known; use an address of this machine"
    if error.errno == errno.EADDRINUSE:
        return "the port is in use; stop what listens there or name another with --listen"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    if error.errno == errno.EACCES:
        return f"permission denied; {_unprivileged_ports()}"
    return text


def _unprivileged_ports() -> str:
    """Which ports anybody may listen on, as a sentence; Linux lets its administrators say it."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return "a port below 1024 takes root, others do not"
    return f"use a port from {first} (net.ipv4.ip_unprivileged_port_start) on, or give esp CAP_NET_BIND_SERVICE"
