"""`esp serve` with several processes: the supervisor's side. `worker` has what is different in a worker."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any, Final, NoReturn

from esp.commands.operating import commanded
from esp.commands.output import INTERRUPTED, CommandError
from esp.commands.reloading import Reloading, Terminal
from esp.commands.reloading_workers import OfWorkers
from esp.commands.service import REST_SECONDS, Service
from esp.commands.takeover import begin_successor, young
from esp.commands.worker import Here
from esp.commands.workers_metrics import COMMAND as METRICS
from esp.commands.workers_metrics import MetricsOfAll
from esp.commands.workers_watches import Watches
from esp.core import sockets
from esp.core.apiservers import MAX_ROOTS
from esp.core.background import Background
from esp.core.config import Config
from esp.core.control import DeniedError
from esp.core.log.setup import Log
from esp.core.shared_tokens import Part, Ring, Ticks
from esp.core.sockets import Bound
from esp.core.takeover import HandOver, TakeoverError
from esp.core.wording import counted
from esp.core.workers import Balance, Supervisor, Watchdog

log = logging.getLogger("esp")

TICK_SECONDS: Final = 0.5

Serve = Callable[[Config, Here], Coroutine[Any, Any, None]]
"""Serves in this process, as a worker, until it is told to stop."""
RunLoop = Callable[[Coroutine[Any, Any, None]], None]


def run(
    config: Config,
    service: Service,
    lines: Log,
    serve: Serve,
    run_loop: RunLoop,
    told_ready: Callable[..., None],
    parse: Callable[[str], Config],
) -> None:
    """Serves with `config.workers` processes until SIGTERM or SIGINT.

    Args:
        config: the config of all workers.
        service: the service manager.
        lines: the log.
        serve: what a worker does.
        run_loop: runs a coroutine in a loop of its own.
        told_ready: logs that all workers serve; gets the config, the bound addresses, and the shards that are missing.
        parse: checks the text of another config, for a reload.

    Raises:
        CommandError: an address cannot be bound, or a worker could not begin to serve.
    """
    try:
        bound = list(service.bind(config.all_listen))
        sockets.listen(bound, config.all_listen)
    except OSError as error:
        raise CommandError(error.strerror or str(error)) from None
    whole = _Whole(config, service, bound, told_ready, parse)
    gc.collect()
    gc.freeze()  # the collector would write into pages that the processes share
    runner = asyncio.Runner()
    while runner.run(whole.next_start()) is not None:
        worker = whole.supervisor.fork([*(one.sock.fileno() for one in bound), *whole.balance.descriptors])
        if worker is not None:
            here = Here(worker, bound, whole.balance, whole.part(worker.number), whole.reloads.former)
            _work(here, whole.reloads.config, lines, serve, run_loop)
    runner.close()
    if whole.supervisor.fault is not None:
        raise CommandError(whole.supervisor.fault, whole.exit_code)
    log.info("stopped")


def _work(here: Here, config: Config, lines: Log, serve: Serve, run_loop: RunLoop) -> NoReturn:
    """The whole life of a worker. The process ends here: what is below on the stack is the supervisor's."""
    code = 1
    lines.fork(here.number)
    if sys.stderr is not None:
        faulthandler.enable()  # tells where the loop stands when the watchdog's SIGABRT comes
    try:
        run_loop(_serve(here, config, serve))
        code = 0
    except CommandError as error:
        log.error("%s", error)
    except BaseException:
        log.exception("a bug in esp; worker %d ends", here.number)
    finally:
        lines.close()
        os._exit(code)


async def _serve(here: Here, config: Config, serve: Serve) -> None:
    await here.open()
    fault = "a bug in esp, see the log"
    try:
        await serve(config, here)
        fault = ""
    except CommandError as error:
        fault = str(error)
        raise
    finally:
        await here.end(fault or None)


def _itself(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    return answer


class _Whole:
    """The supervisor with its signals, and with what it tells about all workers.

    Attributes:
        exit_code: of the command, if the start fails.
        reloads: have all workers take another config; knows the config that is in force.
    """

    reloads: OfWorkers

    def __init__(
        self,
        config: Config,
        service: Service,
        bound: Sequence[Bound],
        told_ready: Callable[..., None],
        parse: Callable[[str], Config],
    ) -> None:
        self.exit_code = 1
        self.background = Background()
        self.balance = Balance(config.workers)
        commands = {
            "may_serve": self._on_may_serve,
            "apiserver": self._on_apiserver,
        }
        self._apiservers: list[dict[str, Any]] = []
        self.supervisor = supervisor = Supervisor(config.workers, self.background, commands)
        limits = config.limits
        rings = [
            Ring.create(limits.max_shared_token_bytes, limits.max_tokens, len(config.shards))
            for _ in range(config.workers)
        ]
        self._before = service.before
        if self._before is not None:
            self._parts = self._before.tokens(rings)
            self._ticks, self._slots = self._before.ticks, self._before.slots_here
        else:
            self._ticks = Ticks()
            self._slots = self._ticks.take(config.workers), config.workers
            self._parts = [Part(ring, self._ticks, number, rings) for number, ring in enumerate(rings)]
        self._serves = asyncio.Event()
        self._hand_over = HandOver(
            self.background, bound, self, self._reachable, self._let_go, self._fingerprint, lambda: self.reloads.former
        )
        self._hand_over.predecessor = self._before
        self._asking: set[int] = set()  # the workers that could serve, at a takeover
        self._may_serve = False
        hand_over = self._hand_over
        self._watches = watches = Watches(supervisor, self.background, self._before, hand_over)
        supervisor.commands |= {
            "find": watches.on_find,
            "give_back": watches.on_give_back,
            "positions": watches.on_positions,
            METRICS: MetricsOfAll(supervisor, self.background).answer,
        }
        self.reloads = OfWorkers(
            config,
            self.supervisor,
            parse,
            self.background,
            self._on_reload,
            lambda: hand_over.is_under_way,
            service.former,
        )
        self._reloading = Reloading(self.reloads, _itself, self.background, lambda: self._config, by_thread=False)
        self._watchdog = Watchdog(self.balance, supervisor, lambda: self._config.limits.worker_timeout)
        self._terminal = Terminal()
        self._stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._service = service
        self._bound = bound
        self._told_ready = told_ready
        self._is_open = False
        self._is_hung_up = False  # SIGHUP has come, and its reload has not begun
        self._stack = AsyncExitStack()

    @property
    def _config(self) -> Config:
        return self.reloads.config

    def _on_reload(self, begins: bool) -> None:
        if begins:
            self._service.manager.reloading()
        else:
            self._service.manager.ready(self._state())

    def part(self, number: int) -> Part:
        """The part of a worker in the tokens."""
        return self._parts[number]

    async def shared(self) -> tuple[Sequence[Ring], Ticks, tuple[int, int]]:
        """The tokens of all workers, as `takeover.Tokens` has it."""
        seconds = self._config.limits.token_seconds
        return young(self._parts[0].rings, self._ticks, seconds), self._ticks, self._slots

    def _fingerprint(self) -> str:
        if self.reloads.is_under_way:
            raise DeniedError("a reload is under way; take over when it has ended")
        return self._config.map_sign

    def _reachable(self) -> list[str]:
        missing = self.supervisor.missing
        return [shard.name for shard in self._config.shards if shard.name not in missing]

    async def next_start(self) -> int | None:
        """As `Supervisor.next_start`; opens and closes what it needs in the loop."""
        if not self._is_open:
            self._is_open = True
            self._open()
            if self._before is not None:
                await self._before.open(self.background, self._watches.adopt)
            after = None if self._before is None else self._serves
            commands = {"takeover": self._hand_over}
            control = await self._stack.enter_async_context(commanded(self._config, self.background, commands, after))
            self._reloading.open(control)
        number = await self.supervisor.next_start()
        if number is None:
            if self._before is not None and not self._serves.is_set():
                await self._before.fails(self.supervisor.fault or "it was stopped")
            await self._stack.aclose()
            if not self._watches.are_owed:  # else the new process takes what it does not know for doubtful
                await self._hand_over.end_positions()
            await self.background.close()
            self.balance.close()
        return number

    def _open(self) -> None:
        self.supervisor.open()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came, number)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        loop.add_signal_handler(signal.SIGUSR2, self._begin_successor)
        self.background.start(self._tell_ready())
        self.background.keep("the service manager", self._tick)

    def _hung_up(self) -> None:
        """As `serve._Signals` does: SIGHUP means a reload, unless the terminal was closed.

        A worker may serve, and say that it is ready, before all are: until then a reload waits.
        """
        if not self.supervisor.stopping.is_set() and (self._stays or not self._terminal.is_gone):
            self._is_hung_up = True
            if self.supervisor.ready.is_set():
                self._reload_if_hung_up()
        elif not self._stays:
            self._came(signal.SIGHUP)

    def _reload_if_hung_up(self) -> None:
        if self._is_hung_up:
            self._is_hung_up = False
            self._reloading.hung_up()

    def _came(self, number: signal.Signals) -> None:
        supervisor = self.supervisor
        if supervisor.stopping.is_set():
            supervisor.cut()
            return
        if number is signal.SIGINT and not supervisor.ready.is_set():
            self.exit_code = INTERRUPTED
            supervisor.fail("interrupted before it was ready")
        self._service.manager.stopping(self._config.drain_seconds + REST_SECONDS)
        self._stop()

    def _stop(self) -> None:
        sockets.close(self._bound)
        seconds = self._config.drain_seconds
        log.info("stopping; calls in flight have %g s, a second signal cuts them", seconds)
        self.supervisor.stop(seconds, positions=self._hand_over.is_given)

    async def _tell_ready(self) -> None:
        await self.supervisor.ready.wait()
        if self._before is not None:
            self._before.serves()
        self._serves.set()
        self._told_ready(
            self._config, [one.address for one in self._bound if not one.listen.only_pages], self.supervisor.missing
        )
        self._service.manager.ready(self._state())
        self._reload_if_hung_up()

    # The takeover.

    def _begin_successor(self) -> None:
        self.background.start(begin_successor(self._service.manager))

    def _let_go(self, process: int) -> None:
        """Another process serves: this one drains."""
        self._service.manager.main_process(process)
        self._service.manager.close()
        self._watches.owes(self._config.workers)
        self._stop()

    async def _on_may_serve(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """Whether a worker may accept clients; waits while a map changes.

        At a takeover none may before all have asked, and not if a worker misses shards, or the running esp says no.
        """
        await self.reloads.is_settled.wait()
        if self._before is not None and not self._serves.is_set():
            try:
                self._before.check(told["missing"])
                self._asking.add(told["worker"])
                if len(self._asking) == self._config.workers:
                    await self._before.may_serve()
                    self._may_serve = True
            except TakeoverError as error:
                self.supervisor.fail(str(error))
                return {"may": False}
            while not self._may_serve and not self.supervisor.stopping.is_set():  # noqa: ASYNC110 - either may come first
                await asyncio.sleep(0.005)
        return {"may": not self.supervisor.stopping.is_set(), "apiservers": self._apiservers}

    async def _on_apiserver(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """A worker has recognised a kube-apiserver: tells the others, and those that begin later."""
        if len(self._apiservers) < MAX_ROOTS:
            self._apiservers.append({"sign": told["sign"], "roots": told["roots"]})
        for number, channel in self.supervisor.channels().items():
            if number != told["worker"]:
                channel.tell("apiserver", sign=told["sign"], roots=told["roots"])
        return {}

    # The service manager.

    def _state(self) -> str:
        serving, count = len(self.supervisor.channels()), self._config.workers
        return f"{serving} of {counted(count, 'worker')} serve {counted(len(self._config.shards), 'shard')}"

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.supervisor.ready.is_set() and not self.supervisor.stopping.is_set():
                self._service.manager.status(self._state())
                self._watchdog.look()
            self._service.manager.tick(monotonic())
