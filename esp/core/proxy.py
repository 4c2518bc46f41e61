"""A running proxy: listeners, services and shard clients put together."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from time import monotonic
from typing import Final

from esp.core import advertise, errors, sockets
from esp.core.apiservers import ApiServers
from esp.core.background import Background
from esp.core.config import Config, Listen
from esp.core.former import Came, Former
from esp.core.garbage import Garbage
from esp.core.gateway import Site
from esp.core.heap import Heap
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.log.calls import LASTING, CallLog
from esp.core.metrics.calls import Calls
from esp.core.metrics.hot import HotPrefixes
from esp.core.metrics.names import KNOWN
from esp.core.metrics.page import PATH as METRICS
from esp.core.metrics.page import MetricsPage, OnlyPages
from esp.core.metrics.scrape import Metrics, of_fences, of_moves, of_reloads, of_rerouted
from esp.core.metrics.walk import Parts
from esp.core.moves import LastMoves
from esp.core.routing import Routing
from esp.core.running import Running, unreachable
from esp.core.served import Served
from esp.core.server_certificates import ServerCertificates
from esp.core.services.fence import Fence
from esp.core.services.pages import Pages
from esp.core.services.rerouting import Rerouting
from esp.core.services.router import Router
from esp.core.services.watch import Others
from esp.core.shard import Shard
from esp.core.shared_tokens import Part
from esp.core.sockets import Bound
from esp.core.tls_files import TlsFiles
from esp.core.together import Together
from esp.core.tokens import MARK, Tokens
from esp.core.traces import Traces
from esp.core.ui.pages import StatusPage
from esp.core.wire.context import WireContext
from esp.core.wire.exchange import AnswerPage
from esp.core.wire.listener import Listener
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler, ServerCall, ServerStream
from esp.core.wire.transport import TICK_SECONDS
from esp.core.wording import FEW, shards_called
from esp.core.workers import Balance, Share

log = logging.getLogger("esp")

_ENDLESS: Final = LASTING - {b"/etcdserverpb.Maintenance/Snapshot"}


class Proxy:
    """Serves a config's shards as one etcd. Use as `async with Proxy(config) as proxy: await stop.wait()`.

    Entering binds the listeners and connects the shards; leaving drains: no new connections, GOAWAY, calls in flight
    finish, streams end so that clients resume elsewhere, and every task is awaited.

    Handlers are built from a layout, and built anew for another (`install`). The rest outlives layouts: tokens, leases,
    watches, samples, the gate, and the clients of shards that stay.

    Args:
        config: the shards, and how to serve them.
        bound: the listening sockets, which this proxy closes when it drains; by default it binds those of the config.
        accepts: clients are accepted from the beginning; else once `accept` is called.
        former: the ranges that have moved at other processes, whose tokens this one shares.

    Attributes:
        background: owner of every task and timer outside the wire; counts bugs.
        changes: held by whoever puts another layout in force, from the first step to the last.
        calls: counts the calls that have ended.
        fenced: counts the calls that were held, refused and cut while keys got another owner.
        gate: lets calls over several shards begin.
        is_handing_over: whether another process takes over with the layout in force, so that no reload may change it.
        reloads: the number of reloads, by their result.
        rerouted: counts the calls that shards have refused because they came by an outdated map.
        rerouting: these calls, while they wait for the next map; None if the map is in the file.
        look_for_map: has the map read from the shards, of the one with this name first; set by whoever follows the map.
        metrics: the page /metrics.
        positions: the positions of watchers over several shards, for clients that come again.
        on_tick: further steps of each tick, by their names; they get the time, and run only while the loop works.
        routing: the layout in force, and the tokens.
        running: the clients of shards.
        tls_files: the certificates of the listeners and of esp at the shards.
        together: the other proxies of the same shards; None if the map is in the file.
        traces: keeps the spans of traced calls; None if no call is traced.

    Raises:
        TlsFileError: a certificate of the listeners cannot be used.
    """

    def __init__(
        self,
        config: Config,
        bound: Sequence[Bound] | None = None,
        *,
        accepts: bool = True,
        former: Former | None = None,
    ) -> None:
        self.config = config
        self._bound = bound
        self._accepts = accepts
        self._share: Share | None = None
        self.context = WireContext(config.limits)
        self.background = Background()
        self.bound: list[Listen] = []
        self.metrics_bound: list[Listen] = []
        self.on_tick: dict[str, Callable[[float], object]] = {}
        self.reloads: Counter[str] = Counter()
        self.is_handing_over: Callable[[], bool] = lambda: False
        self.tls_files = TlsFiles()
        self._certificates = None if config.tls is None else ServerCertificates(config.tls, self.tls_files)
        self._garbage = Garbage(monotonic(), self.context.turns.time.leave_out)
        self._heap = Heap(self._garbage)
        self.running = Running(self.context, self.background, self.tls_files, self._outdated)
        self.calls = Calls(self.context, KNOWN)
        self._call_log = CallLog(config.log)
        self.calls.listen(self._call_log.ended, self._call_log.least)
        self._hot = HotPrefixes(config.hot_prefixes, monotonic())
        if config.hot_prefixes is not None:
            self.calls.listen(self._hot.ended, self._hot.least)
        self.traces = None if config.traces is None else Traces.of(config.traces, self.context)
        if self.traces is not None:
            self.calls.listen(self.traces.ended, inf)
        former = former or Former()
        if config.guards is not None:
            former = former.renewed(config.former)
        layout = replace(self.running.layout_of(config), former=former)
        protects = config.across_shards.protects_kubernetes
        apiservers = ApiServers(layout, config.apiserver_roots, protects=protects, compact_key=config.compact_key)
        self.routing = Routing(layout, Tokens(self.context), apiservers, self._refusing(config))
        self.rerouted: Counter[str] = Counter()
        self.look_for_map: Callable[[str | None], object] = lambda _: None
        self.changes = asyncio.Lock()
        self.rerouting = (
            None
            if config.guards is None
            else Rerouting(lambda: self.routing.layout, self._find, lambda name: self.look_for_map(name), self.rerouted)
        )
        self.together = (
            None
            if config.guards is None
            else Together(
                lambda: self.config,
                lambda: self.routing,
                self.background,
                self.context,
                self._find,
                self.advertised,
                lambda: self.bound,
            )
        )
        self._served = served = Served(
            config,
            lambda: self.routing,
            self.context,
            self.background,
            self.advertised,
            dict if self.together is None else self.together.members,
        )
        self.gate, self.leases, self.positions = served.gate, served.leases, served.watch.positions
        self._pages = Pages(self.routing, self.background, self.context.counters.pages, self._other_workers)
        self.metrics = Metrics(
            Parts(
                context=self.context,
                background=self.background,
                calls=self.calls,
                protocols=lambda: self._listener.protocols,
                routing=lambda: self.routing,
                gate=served.gate,
                leases=served.leases,
                watch=served.watch,
                samples=lambda: served.samples,
                tls_files=self.tls_files,
            )
        )
        self.metrics.more += [lambda: [of_reloads(self.reloads)], self._hot.families]
        if self.together is not None:
            self.metrics.more.append(self.together.families)
        self._metrics_page = MetricsPage(self.metrics, self.context.counters.pages, lambda: self._pages)
        self.moves = LastMoves()
        self.metrics.more.append(lambda: of_moves(self.moves.count, self.moves.unfinished))
        self._status_page = StatusPage(
            self.metrics, lambda: self.routing, self.moves, self.context.counters.pages, lambda: self._metrics_page
        )
        exchanges = {METRICS: self._metrics_page.exchange, **(self._status_page.exchanges if config.ui else {})}
        self._router = self._router_for(self.routing)
        self._fence: Fence | None = None
        self.fenced: Counter[str] = Counter()
        self.metrics.more.append(lambda: [of_fences(self.fenced)])
        self.metrics.more.append(
            lambda: of_rerouted(self.rerouted, 0 if self.rerouting is None else self.rerouting.waiting)
        )
        self._site = Site(
            self._find_page,
            cors=config.cors,
            hosts=config.host_whitelist,
            most_bytes=config.limits.max_json_bytes,
            exchanges=exchanges if config.metrics_for_clients else {},
        )
        self._listener = Listener(self.context, self._find, self._site)
        only_pages = OnlyPages(exchanges, self._find_page, self._status_page if config.ui else self._metrics_page)
        self._metrics_listener = Listener(self.context, only_pages.find, only_pages)

    # The layout.

    def layout_of(self, config: Config) -> Layout:
        """The next layout: the shard map of `config`, and its shards, as `Running.layout_of` has it.

        Raises:
            TlsFileError: a certificate of a shard cannot be used.
        """
        return self.running.layout_of(config, self.routing.layout)

    def install(
        self, layout: Layout, config: Config | None = None, came: Iterable[Came] | Former = (), how: str = ""
    ) -> None:
        """Puts another layout in force, at once, for every request that comes from now on.

        With the `config` of the layout, its other fields are put in force as well, without those of `reload.FIXED`.
        `came` are the ranges that come with this layout, or all that have moved. `how` tells people by what it came.

        Calls in flight finish with the handlers, the map and the shard clients that they began with. The clients of
        shards that have left end when these calls have ended, or `drain_seconds` later. A watch stream ends if its keys
        are divided differently now; its client resumes. If any keys have another owner now, calls end that may wait for
        hours: a lock that a shard grants later would be worth nothing. All other streams go on.
        """
        layout = layout.behind(self.routing.layout, came)
        if config is not None:
            self._adopt(config, layout)
        calls = self.calls_in_flight()
        before = self.routing
        self.routing = Routing(layout, before.tokens, before.apiservers, before.outdated)
        self.moves.take(before.layout.map, layout.map, how)
        self.running.install(layout)
        self.routing.apiservers.install(layout)
        self._served.install(self.routing)
        self._pages = Pages(self.routing, self.background, self.context.counters.pages, self._other_workers)
        self._router = self._router_for(self.routing)
        self._listener.forget_heads()
        if not before.layout.divides_alike(KeyRange(b"", None), layout):
            # With one shard, streams are passed on as they are, and would never hear of another.
            endless = _ENDLESS if len(before.shards) == 1 else ()
            for call in calls:
                if call.head.handler.waits or call.head.path in endless:
                    call.expire(errors.SERVER_STOPPED)
        left = [shard for name, shard in before.shards.items() if layout.shards.get(name) is not shard]
        if left:
            self.background.start(self._let_go(left, calls))
        if self.rerouting is not None:
            self.rerouting.installed()
        if self.together is not None:
            self.together.installed()
        self.context.flush()
        log.info(
            "layout %d is in force: %s; map %s", layout.epoch, shards_called(layout.shards, FEW), layout.map.fingerprint
        )

    def close_keys(self, ranges: Iterable[KeyRange], sources: Iterable[str]) -> Fence:
        """Holds all calls for these keys, which the shards with the names `sources` own, until `open_keys`."""
        self._fence = Fence(ranges, sources, self._find, self._listener.calls(), self.config.namespace, self.fenced)
        self._listener.forget_heads()
        return self._fence

    def open_keys(self) -> None:
        """Lets the calls begin that were held."""
        fence, self._fence = self._fence, None
        if fence is not None:
            self._listener.forget_heads()
            fence.open()

    def _refusing(self, config: Config) -> Callable[[ServerCall, bytes], None] | None:
        return None if config.guards is None else partial(self._outdated, None)

    def _outdated(self, shard: Shard | None, stream: ServerCall, message: bytes) -> None:
        """Takes over a call that a shard has refused because it came by an outdated map."""
        assert self.rerouting is not None, "only shards with a guard refuse so"
        self.rerouting.outdated(shard, stream, message)

    def calls_in_flight(self) -> list[ServerStream]:
        """The open calls of all clients, without streams."""
        return [call for call in self._listener.calls() if not call.head.handler.lasts]

    def _adopt(self, config: Config, layout: Layout) -> None:
        before, self.config = self.config, config
        self.context.install(config.limits)
        self._served.adopt(before, config, layout)
        self._site.install(cors=config.cors, hosts=config.host_whitelist, most_bytes=config.limits.max_json_bytes)
        self.routing.apiservers.expect(config.apiserver_roots, protects=config.across_shards.protects_kubernetes)
        if config.log != before.log:
            self._call_log.use(config.log)
            self.calls.listen(self._call_log.ended, self._call_log.least)
            for client in self.running.shards:
                client.observe()
        if config.hot_prefixes != before.hot_prefixes:
            self._hot.use(config.hot_prefixes, monotonic())
            self.calls.listen(self._hot.ended, self._hot.least)
            for client in self.running.shards:
                client.observe()
        if config.tls != before.tls and config.tls is not None and self._certificates is not None:
            self._certificates.install(config.tls)
        for shard in config.shards:
            layout.shards[shard.name].move(shard.endpoints)

    async def _let_go(self, shards: Sequence[Shard], calls: Sequence[ServerStream]) -> None:
        """Ends the clients of shards that have left the layout, when the calls that may need them have ended."""
        await self.running.leave(shards, calls, self.config.drain_seconds)
        for shard in shards:
            if shard.name not in self.routing.shards:
                self.gate.drop_shard(shard.name)
                self.calls.forget(shard.name)

    def _router_for(self, routing: Routing) -> Router:
        with_numbers = self._status_page if self.config.ui else self._metrics_page
        return self._served.router(
            routing,
            self.config,
            with_numbers if self.config.metrics_for_clients else self._pages,
            {} if self.together is None else self.together.handlers(),
        )

    def _find(self, head: RequestHead) -> Handler:
        handler = self._router.find(head)
        return handler if self._fence is None else self._fence.around(head, handler)

    def _find_page(self, method: str, target: str, answer: AnswerPage) -> None:
        self._pages.find(method, target, answer)

    def _server_context(self) -> ssl.SSLContext:
        assert self._certificates is not None, "a config with TLS listeners has certificates"
        return self._certificates.context()

    def advertised(self) -> tuple[str, ...]:
        """The URLs under which clients reach this proxy; none if it listens on a wildcard and advertises nothing."""
        return self.config.advertise or advertise.urls_of(self.bound)

    # The run.

    async def __aenter__(self) -> Proxy:
        """Starts.

        Raises:
            OSError: a listen address cannot be bound; nothing was started.
        """
        if self._bound is None:
            self._bound = sockets.bind(self.config.all_listen)
        self.bound = [one.address for one in self._bound if not one.listen.only_pages]
        self.metrics_bound = [one.address for one in self._bound if one.listen.only_pages]
        if self._accepts:
            await self.accept()
        self.running.install(self.routing.layout)
        if self.config.ui:
            log.addHandler(self._status_page.recent)
        self._garbage.start()
        self.context.turns.after_work = self._garbage.look
        self._served.start()
        self.background.keep("the look for kube-apiservers", self.routing.apiservers.run)
        self.background.keep("the TLS files", self.tls_files.watch)
        if self.traces is not None:
            self.background.keep("traces", self.traces.run)
        self.background.keep("the tick", self._tick)
        self.background.keep("the tick of the shards", self.running.tick)
        return self

    async def accept(self) -> None:
        """Begins to accept clients.

        Raises:
            OSError: another process was first to listen at an address.
        """
        assert self._bound is not None
        for one in self._bound:
            try:
                listener = self._metrics_listener if one.listen.only_pages else self._listener
                await listener.listen(one.sock, self._server_context if one.listen.tls else None)
            except OSError as error:  # another process has bound the same address, and was first to listen
                self._listener.close()
                self._metrics_listener.close()
                sockets.close(self._bound)
                raise sockets.cannot_listen(one.listen, self.config.all_listen, error) from None

    async def __aexit__(self, *exc: object) -> None:
        if self.together is not None and not self.is_handing_over():
            await self.together.hand_on()
        sockets.close(self._bound or ())  # of a proxy that has not accepted
        log.removeHandler(self._status_page.recent)
        self.context.turns.after_work = lambda: None
        self._garbage.stop()
        self._served.health.stop()
        self._served.watch.is_ending = True
        if not await self._listener.drain(errors.SERVER_STOPPED, self.config.drain_seconds):
            log.warning("some calls were still open after %g s and were cut", self.config.drain_seconds)
        if self.together is not None:
            await self.together.end()
        await self.running.gave_up()
        if self.traces is not None:
            await self.traces.close()
        await self._metrics_listener.drain(errors.SERVER_STOPPED, 0)
        await self.background.close()
        self.routing.tokens.close()

    def join(self, tokens: Part, others: Others, *, is_anew: bool = False) -> None:
        """Serves together with other processes, or after one. Called before there are clients.

        Args:
            tokens: the tokens of all.
            others: the watches of the others.
            is_anew: this process is in the place of one that has died with all that it knew of watches.
        """
        self.routing.tokens.share(tokens)
        positions = self.positions
        positions.others = others
        # The one that died may have had positions of others too, from a takeover: its own ring says too little.
        for shard in self.routing.shards if is_anew else ():
            highest = tokens.highest(shard)
            positions.doubt(shard, MARK if highest is None else highest)

    def _other_workers(self) -> list[str]:
        """The lines of `/readyz?verbose` about the map of the shards, and the processes that serve together."""
        layout = self.routing.layout
        lines = [f"[+]map of the shards: epoch {layout.epoch}, {layout.map.fingerprint}\n"] if layout.is_guarded else []
        if self.together is not None:
            lines += self.together.lines()
        return lines if self._share is None else [*lines, *self._share.lines()]

    def share_clients(self, balance: Balance, number: int) -> None:
        """Shares new clients with the other processes of `balance` that accept on the same sockets."""

        def take(descriptor: int, port: int) -> None:
            self.background.start(self._listener.take(descriptor, port))

        self._listener.balance = self._share = share = Share(balance, number, take)
        self.on_tick["the balance of the workers"] = share.tick
        share.open()

    def cut(self) -> None:
        """Ends the drain: cuts the calls for which it still waits."""
        self._listener.abort()

    async def connected(self, seconds: float) -> list[str]:
        """Waits until every shard is reachable, `seconds` at most; the names of the shards that are not."""
        return await unreachable(self.routing.shards.values(), seconds)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = monotonic()
            guard = self.background.guard
            guard("the clients' deadlines", partial(self._listener.tick, now))
            guard("the deadlines of those who scrape", partial(self._metrics_listener.tick, now))
            self._served.tick(now)
            if self._fence is not None:
                guard("calls that are held", partial(self._fence.tick, now))
            if self.rerouting is not None:
                guard("calls that wait for another map", partial(self.rerouting.tick, now))
            guard("tokens", self.routing.tokens.expire)
            guard("calls that have ended", self.calls.tick)
            guard("old garbage", partial(self._garbage.tick, now))
            guard("the heap", self._heap.tick)
            guard("hot prefixes", partial(self._hot.tick, now))
            self.context.flush()
            for name, step in tuple(self.on_tick.items()):
                guard(name, partial(step, now))
