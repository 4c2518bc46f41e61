"""The services of a running proxy: the parts of them that outlive layouts, and the router that each layout gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from esp.core.background import Background
from esp.core.config import Config
from esp.core.layout import Layout
from esp.core.routing import Routing
from esp.core.samples import Samples
from esp.core.services import auth, cluster, elsewhere, kv, lock, maintenance, own_keys, reflection
from esp.core.services.alarm import Alarms
from esp.core.services.defragment import PATH as DEFRAGMENT
from esp.core.services.defragment import Defragment
from esp.core.services.gate import Gate
from esp.core.services.health import HealthService
from esp.core.services.kv import Compactions
from esp.core.services.lease import KEEPALIVE_PATH, LEASES_PATHS, Leases
from esp.core.services.namespace import InNamespace
from esp.core.services.router import Router
from esp.core.services.watch import PATH as WATCH_PATH
from esp.core.services.watch import Watch
from esp.core.shard import GUARD_PERMISSION
from esp.core.wire.context import WireContext
from esp.core.wire.server_stream import Handler


class Served:
    """All services of etcd, for one proxy.

    Args:
        config: how to serve.
        routing: tells the routing in force.
        advertised: tells the URLs under which clients reach the proxy.
        members: tells the URLs of all registered proxies.

    Attributes:
        gate: lets calls over several shards begin.
        health: tells whether esp serves.
        leases: grants and renews leases, and repairs those that a shard has missed.
        samples: the samples of revisions, from which compactions get theirs; None for none.
        watch: serves watches.
    """

    def __init__(
        self,
        config: Config,
        routing: Callable[[], Routing],
        context: WireContext,
        background: Background,
        advertised: Callable[[], tuple[str, ...]],
        members: cluster.Members = dict,
    ) -> None:
        self._routing = routing
        self._context = context
        self._background = background
        self._advertised = advertised
        self._members = members
        self._namespace = None if config.namespace is None else InNamespace(config.namespace)
        self.gate = Gate(context, background, self._calls_sent)
        layout = routing().layout
        self.leases = Leases(layout, background, context, tolerant=config.leases == "tolerant")
        self.watch = Watch(routing(), background, context, hides_own_keys=config.guards is not None)
        self.health = HealthService(lambda: any(shard.is_ready for shard in self._routing().shards.values()))
        self.samples: Samples | None = None
        self._sampling: asyncio.Task[None] | None = None
        self._takes_any = config.compaction.takes_any
        self._set_samples(config, layout)

    def _calls_sent(self) -> Mapping[str, int]:
        """The calls sent to each shard, and the keepalives, which all shards get. Both wait for large calls."""
        keepalives = self._context.counters.messages_received[KEEPALIVE_PATH]
        return {name: shard.calls_sent + keepalives for name, shard in self._routing().shards.items()}

    def start(self) -> None:
        """Begins the work that goes on beside the calls."""
        self.leases.start()
        self._begin_sampling()

    def adopt(self, before: Config, config: Config, layout: Layout) -> None:
        """Serves as another config says, whose layout is about to be in force."""
        self.gate.install_limits()
        self.leases.table.tolerant = config.leases == "tolerant"
        if config.compaction != before.compaction:
            self._takes_any = config.compaction.takes_any
            self._set_samples(config, layout)
            self._begin_sampling()

    def install(self, routing: Routing) -> None:
        """Another layout is in force."""
        if self.samples is not None:
            self.samples.install(routing.layout)
        self.leases.install(routing.layout)
        self.watch.install(routing)

    def router(
        self, routing: Routing, config: Config, page: Handler, more: Mapping[bytes, Handler] = MappingProxyType({})
    ) -> Router:
        """The router of a layout; `page` serves what is not gRPC, `more` are further RPCs of esp's own."""
        gate = self.gate
        guarded = config.guards is not None
        served = {
            **kv.handlers(
                routing,
                gate,
                self.leases.retry,
                Compactions(routing, config.compaction, self.samples),
                deletes_across_shards=config.deletes_across_shards == "serve",
                snapshots=config.range_reads == "snapshot",
                txn_snapshots=config.txn_reads == "snapshot",
                snapshot_tries=config.limits.max_snapshot_tries,
            ),
            **self.leases.handlers(routing.layout, gate),
            **lock.handlers(routing, gate, self.leases),
            **self.watch.handlers(),
            **elsewhere.refusals(routing.shards, {DEFRAGMENT: "write defragment: sequential in esp's config"}),
            **maintenance.handlers(routing, gate),
            **auth.handlers(routing, gate, self._context, GUARD_PERMISSION if guarded else None),
            **Alarms(routing).handlers(gate),
            **cluster.handlers(routing.identity, self._advertised, self._members),
            **self.health.handlers(),
            **reflection.handlers(),
            **more,
        }
        if config.defragment == "sequential":
            served |= Defragment(routing.shards).handlers(gate)
        own = {*reflection.PATHS, *more}  # etcd has none
        if guarded:
            own |= {*own_keys.NEVER_PASSED, *LEASES_PATHS, cluster.MEMBER_LIST}
        if routing.layout.former:
            own |= {*kv.AT_REVISIONS, WATCH_PATH}  # they know which revisions mean nothing any more
        if self._namespace is not None or config.advertise:
            own.add(cluster.MEMBER_LIST)  # the shard's own members lead past this proxy, out of the namespace
        return Router(routing, gate, served, page, self._namespace, own, hides_own_keys=guarded)

    def _set_samples(self, config: Config, layout: Layout) -> None:
        key = config.compaction.key
        self.samples = None if key is None else Samples(layout, key, self._context)

    def _begin_sampling(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
        if self.samples is not None:
            work = partial(self._sample, self.samples)
            self._sampling = self._background.keep("the samples of revisions", work)

    async def _sample(self, samples: Samples) -> None:
        if not self._takes_any:
            await self._routing().apiservers.is_known.wait()
        await samples.run()

    def tick(self, now: float) -> None:
        """Looks at the deadlines of leases, of places at the shards, and of those who watch the health."""
        guard = self._background.guard
        guard("the leases' deadlines", partial(self.leases.tick, now))
        guard("the places at the shards", partial(self.gate.tick, now))
        guard("those who watch the health", self.health.tick)
