"""`esp serve`: the proxy, and with --local its own etcds."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from esp import __version__, build
from esp.commands.output import INTERRUPTED, USAGE, CommandError, flush, write
from esp.commands.reloading import Reloading, Terminal, answer_of
from esp.commands.service import Service
from esp.core import advertise, garbage, names, sockets
from esp.core import config as configs
from esp.core.config import Config, Listen
from esp.core.control import Control
from esp.core.descriptors import within_descriptors
from esp.core.following import Following
from esp.core.keys import format_key, format_range
from esp.core.kubernetes import cuts
from esp.core.local import LocalEtcdError
from esp.core.local_shards import CONFIG_NAME, LocalShards
from esp.core.log.lines import fields
from esp.core.log.setup import Log
from esp.core.proxy import Proxy
from esp.core.reload import Reloads
from esp.core.shared_map import Held, NoMapError, first_map, read
from esp.core.traces import ExportError
from esp.core.wording import FEW, counted, few, shard_called, shard_quoted, shards_called

if TYPE_CHECKING:
    from esp.commands.worker import Here

log = logging.getLogger("esp")

DEFAULT_LISTEN = "http://127.0.0.1:2379"
DEFAULT_TLS_LISTEN = "https://127.0.0.1:2379"
CONNECT_SECONDS = 3.0
"""Seconds to wait for the shards before the ready line names the unreachable ones."""


def run(
    config: Path | None,
    local: int | None,
    data_dir: Path | None,
    listen: list[str],
    lines: Log,
    workers: str | None = None,
    *,
    tls: bool = False,
    takeover: bool = False,
) -> None:
    """Serves until SIGTERM, SIGINT or SIGHUP, then drains; a second signal cuts the drain short.

    With `takeover` esp gets the sockets and the tokens of the running esp with the same config, which then drains. With
    SIGUSR2 esp starts a process that takes over from it.

    `lines` is the log of the process: it gets the form and the level of the config. `tls` is for new local shards.

    Raises:
        ConfigError: the config, or an address in it, is wrong; nothing was started.
        CommandError: a listen address is not available, and nothing was started or written; or an etcd did not start.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until esp serves, and somebody can take over
    service = Service(os.environ)
    try:
        if local is None:
            again = _Again(configs.find(config, os.environ), listen, lines, workers)
            found = _in_force(again.begin())
            if takeover:
                service.take_over(found)
            elif not names.has_address(found):
                _run_loop(names.check(found, CONNECT_SECONDS))
            if found.workers > 1:
                from esp.commands import workers as several  # a single process does not need it

                serve = partial(_serve_as_worker, again)
                several.run(found, service, lines, serve, _run_loop, _tell_ready, again.parse)
            else:
                _run_loop(_serve(found, None, service, again=again))
        else:
            assert data_dir is not None
            service.refuse_sockets()
            path = data_dir / CONFIG_NAME
            try:
                cluster = LocalShards.open(data_dir, local, tls=tls)
                default = DEFAULT_TLS_LISTEN if tls else DEFAULT_LISTEN
                _check_listen(path, listen)
                cluster.write_config(path, listen, default)
            except OSError as error:
                raise CommandError(_cannot_use(data_dir, error)) from None
            again = _Again(path, listen, lines)
            _run_loop(_serve(again.begin(), cluster, service, again=again))
    except LocalEtcdError as error:
        raise CommandError(str(error)) from None


def _check_listen(path: Path, listen: list[str]) -> None:
    """Refuses unavailable listen addresses before esp writes a config and starts etcds in vain.

    Raises:
        ConfigError: an address is wrong.
        CommandError: an address is not available.
    """
    if listen or not path.exists():
        addresses = list(configs.listen_of(listen or [DEFAULT_LISTEN]))
    else:
        addresses = list(configs.load(path).all_listen)
    try:
        sockets.check(addresses)
    except OSError as error:
        raise CommandError(error.strerror or str(error)) from None


class _Again:
    """Reads the config, at the start and for each reload, with what the command line says."""

    def __init__(self, path: Path, listen: list[str], lines: Log, workers: str | None = None) -> None:
        self._path = path
        self._listen = listen
        self._lines = lines
        self._workers = workers

    def begin(self) -> Config:
        """The config; the log is as the config says from here on.

        Raises:
            ConfigError, CommandError: as `read`.
        """
        config = configs.load(self._path)
        self.use(config)
        return self._merged(config)

    def use(self, config: Config) -> None:
        """Has the log as the config says."""
        self._lines.use(config.log.format, config.log.level)

    def read(self) -> Config:
        """The config as the file is now, with no more clients than the process has descriptors for.

        Raises:
            ConfigError: an address is wrong or needs a certificate, or a shard's endpoint is a listen address.
            CommandError: the number of workers is wrong.
        """
        return self.parse(configs.text_of(self._path))

    def parse(self, text: str) -> Config:
        """As `read`, from the text of the file."""
        config = self._merged(configs.parse(text, self._path))
        return replace(config, limits=within_descriptors(config.limits, len(config.shards)))

    def _merged(self, config: Config) -> Config:
        if self._workers is not None:
            try:
                config = replace(config, workers=configs.workers_of(self._workers))
            except ValueError as error:
                raise CommandError(str(error), USAGE) from None
        if self._listen:
            config = replace(config, listen=configs.listen_of(self._listen))
        configs.check_certificates(config)
        configs.check_no_loop(config)
        return config


def _tell_of(proxy: Proxy, again: _Again, config: Config) -> None:
    """Tells what a config means that was put in force while the proxy ran."""
    again.use(config)
    _warn_of_cuts(config)
    _look_at_names(proxy)


def _look_at_names(proxy: Proxy) -> None:
    proxy.background.start(_warn_of_unknown_names(proxy.config))
    proxy.background.start(_warn_of_advertised(proxy))


async def _warn_of_unknown_names(config: Config) -> None:
    async for where, shard, fault in names.faults(config, CONNECT_SECONDS):
        log.warning('%sshard "%s": %s; esp goes on trying', where, shard, fault)


async def _warn_of_advertised(proxy: Proxy) -> None:
    """Warns of URLs that do not lead clients to this proxy. With one shard MemberList may name the shard's members."""
    if len(proxy.config.shards) > 1 or proxy.config.namespace is not None:
        for fault in await advertise.faults(proxy.advertised(), proxy.bound):
            log.warning("%s%s", f"{proxy.config.path}: " if proxy.config.path else "", fault)


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _warn_of_unverified(config: Config) -> None:
    names = [shard.name for shard in config.shards if shard.tls is not None and not shard.tls.verify]
    if names:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        text = "the certificates of %s %s are not checked (insecure_skip_verify): whoever is on the way reads all"
        log.warning(text, "shard" if len(names) == 1 else "the shards", shown)


def _warn_of_cuts(config: Config) -> None:
    for root in config.apiserver_roots:
        for cut in cuts(config.shard_map, root):
            log.warning("for Kubernetes: %s", cut.explain())


async def _serve_as_worker(again: _Again, config: Config, here: Here) -> None:
    await _serve(config, None, here, here, again)


async def _serve(
    config: Config,
    cluster: LocalShards | None,
    service: Service | Here,
    signals: _Signals | Here | None = None,
    again: _Again | None = None,
) -> None:
    signals = signals or _Signals()
    async with AsyncExitStack() as stack:
        if cluster is not None:
            stack.push_async_callback(_stop_etcds, cluster, signals)
            if await _unless(signals.stop, _started(cluster)) is None:
                signals.refuse_if_interrupted()
                log.warning("stopped before it was ready")
                return
        # The ready line names the connected shards, so until then only warnings of the shard clients are logged.
        shard_log = logging.getLogger("esp.shard")
        if log.getEffectiveLevel() == logging.INFO:
            shard_log.setLevel(logging.WARNING)
        if service.tells:
            _warn_of_cuts(config)
            _warn_of_unverified(config)
        if service.tells and config.namespace is not None:
            keys, prefix = format_range(config.namespace.keys), format_key(config.namespace.prefix)
            log.info('namespace: clients see the keys %s, without "%s"', keys, prefix)
        config = replace(config, limits=within_descriptors(config.limits, len(config.shards)))
        try:
            bound = service.bind(config.all_listen)
            proxy = Proxy(config, bound, accepts=not service.accepts_late, former=service.former)
            stack.push_async_exit(partial(service.close, proxy))
            await service.joins(proxy)
            await stack.enter_async_context(proxy)
        except OSError as error:
            raise CommandError(error.strerror or str(error)) from None
        except ExportError as error:
            raise CommandError(str(error)) from None
        signals.hurry = proxy.cut
        if config.guards is not None:
            proxy.background.keep("the map of the shards", Following(proxy).run)
        control = await stack.enter_async_context(service.commanded(config, proxy))
        if isinstance(service, Service):
            service.stop = signals.stop.set
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR2, service.begin_successor if cluster is None else _stay)
        if again is not None and isinstance(service, Service) and isinstance(control, Control):
            reloads = Reloads(proxy, again.read, partial(_tell_of, proxy, again), partial(service.reloads, proxy))
            reloading = Reloading(reloads, answer_of, proxy.background, lambda: proxy.config)
            reloading.open(control)
            if cluster is None and isinstance(signals, _Signals):
                signals.reload = reloading.hung_up
        if again is not None and not isinstance(service, Service):
            service.takes_configs(proxy, again.parse, partial(_tell_of, proxy, again) if service.tells else again.use)
        if service.tells:
            _look_at_names(proxy)
        missing = await _unless(signals.stop, proxy.connected(CONNECT_SECONDS))
        shard_log.setLevel(logging.NOTSET)
        for shard in proxy.routing.shards.values():
            if reason := shard.implausible or shard.unsafe:
                raise CommandError(f"{shard_quoted(shard.name)} cannot be served: {reason}")
        if missing is not None and config.map == "file":
            await _refuse_if_mapped(proxy)
        if missing is not None and proxy.together is not None:
            await proxy.together.begin()
        if missing is not None:
            await service.serves(proxy, missing)
            if isinstance(service, Service):
                _tell_ready(config, proxy.bound, missing, cluster)
            garbage.in_short_steps()
            await signals.stop.wait()
        service.stops(proxy)
        service.say("stopping; calls in flight have %g s, a second signal cuts them", proxy.config.drain_seconds)
    if missing is None:
        signals.refuse_if_interrupted()
    service.say("stopped")


def _in_force(config: Config) -> Config:
    """The config with the map of the shards, if it says that they hold it.

    Raises:
        CommandError: no map can be served by.
    """
    found = [config]

    async def ask() -> None:
        try:
            found.append(await first_map(config))
        except NoMapError as error:
            raise CommandError(str(error)) from None

    if config.map == "shards":
        shard_log = logging.getLogger("esp.shard")
        shard_log.setLevel(logging.WARNING)  # these clients end at once, and the proxy's tell the same again
        try:
            _run_loop(ask())
        finally:
            shard_log.setLevel(logging.NOTSET)
    return found[-1]


async def _refuse_if_mapped(proxy: Proxy) -> None:
    """Refuses to serve by a file if a shard holds a map, since proxies that serve by that own other keys.

    Raises:
        CommandError: a shard holds a map.
    """
    ready = [shard for shard in proxy.routing.shards.values() if shard.is_ready]
    for name, held in (await read(ready, CONNECT_SECONDS)).items():
        if not isinstance(held, Held):
            continue
        if held.map is not None:
            raise CommandError(
                f"{shard_called(name)} holds a map for all proxies (epoch {held.map.epoch}), and the config has one of "
                "its own; write map: shards into the config, or take the map away with esp map remove"
            )
        if held.guard is not None:
            raise CommandError(
                f"{shard_called(name)} holds the guard of a map for all proxies, and the config has a map of its own; "
                "if the map is being taken away, esp map finish goes on with that"
            )


def _stay() -> None:
    log.error("SIGUSR2: with --local no other process can take over; the etcds are this one's children")


def _tell_ready(
    config: Config, bound: Sequence[Listen], missing: list[str], cluster: LocalShards | None = None
) -> None:
    urls = list(map(str, bound))
    names = [shard.name for shard in config.shards]
    shard_map = config.shard_map
    text = f"ready on {', '.join(urls)}; {shards_called(names, FEW)}"
    text += f"; esp {__version__} ({build()}), config {config.path}, map {shard_map.fingerprint}"
    if config.map == "shards":
        text += f" of epoch {shard_map.epoch}"
    if config.workers > 1:
        text += f"; {counted(config.workers, 'worker')}"
    if missing:
        text += "; not reachable yet"
        if len(names) > 1:
            text += f": {'all of them' if missing == names else few(missing)}"
    about = fields(
        listen=urls,
        shards=len(names),
        unreachable=len(missing),
        version=__version__,
        build=build(),
        config=None if config.path is None else str(config.path),
        map=shard_map.fingerprint,
        epoch=shard_map.epoch,
    )
    log.log(logging.WARNING if missing else logging.INFO, "%s", text, extra=about)
    if cluster is not None and config.path is not None:
        try:
            write("\n".join(cluster.summary(config.shard_map, urls, config.path)))
            flush()
        except CommandError as error:
            log.warning("%s", error)


async def _started(cluster: LocalShards) -> bool:
    try:
        await cluster.start()
    except OSError as error:
        raise CommandError(_cannot_use(cluster.data_dir, error)) from None
    return True


def _cannot_use(data_dir: Path, error: OSError) -> str:
    text = "it is a file" if isinstance(error, FileExistsError) else (error.strerror or str(error)).lower()
    return f"{error.filename or data_dir}: {text}; use another --data-dir"


async def _stop_etcds(cluster: LocalShards, signals: _Signals | Here) -> None:
    """Stops the etcds with SIGTERM; a signal to esp meanwhile kills them."""
    kill = asyncio.Event()
    signals.hurry = kill.set
    signals.stop.set()
    await _unless(kill, cluster.stop())


class _Signals:
    """The signals SIGTERM, SIGINT and SIGHUP.

    A closed terminal sends SIGHUP, which ends esp, but not under nohup. Otherwise SIGHUP means a reload; before esp
    serves, and with --local, it ends esp in any case.

    Attributes:
        reload: called at SIGHUP; None while that is the end.
        stop: set by the first signal.
        first: the first signal; None before it.
        hurry: called at each later signal.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.first: signal.Signals | None = None
        self.hurry: Callable[[], None] = lambda: None
        self.reload: Callable[[], None] | None = None
        self._terminal = Terminal()
        self._stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came, number)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    def _hung_up(self) -> None:
        if self.reload is not None and not self.stop.is_set() and (self._stays or not self._terminal.is_gone):
            self.reload()
        elif not self._stays:
            self._came(signal.SIGHUP)

    def _came(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            self.hurry()
        self.first = self.first or number
        self.stop.set()

    def refuse_if_interrupted(self) -> None:
        """Ends the command with exit code 130 if Ctrl-C came before esp was ready.

        Raises:
            CommandError: Ctrl-C was the first signal.
        """
        if self.first is signal.SIGINT:
            raise CommandError("interrupted before it was ready", INTERRUPTED)


Result = TypeVar("Result")


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`; None if `event` was set first and `work` was cancelled."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        done = working.done()
    finally:
        waiting.cancel()
        working.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
    return working.result() if done else None
