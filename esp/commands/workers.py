"""`esp serve` with several processes: the supervisor's side, and what is different in a worker."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from time import monotonic
from typing import Any, Final, NoReturn

from esp.commands.operating import commanded
from esp.commands.output import INTERRUPTED, CommandError
from esp.commands.service import REST_SECONDS, Service
from esp.core import sockets
from esp.core.background import Background
from esp.core.config import Config, Listen
from esp.core.log.setup import Log
from esp.core.proxy import Proxy
from esp.core.shared_tokens import Part, Ring, Ticks
from esp.core.sockets import Bound
from esp.core.workers import Balance, Channel, ChannelError, Supervisor, Worker

log = logging.getLogger("esp")

TOLD_SECONDS: Final = 2.0
"""How long a worker waits until the supervisor has taken note of its state."""
TICK_SECONDS: Final = 0.5

Serve = Callable[[Config, "Here"], Coroutine[Any, Any, None]]
"""Serves in this process, as a worker, until it is told to stop."""
RunLoop = Callable[[Coroutine[Any, Any, None]], None]


class Here:
    """A worker, from inside: in the place of the signals and of the service manager that a single process has.

    Attributes:
        number: the worker's number.
        tells: this process logs what the config means for clients; one of all does.
        stop: set when the worker is to drain and end.
        hurry: called when the drain is to be cut short.
    """

    def __init__(self, worker: Worker, bound: Sequence[Bound], balance: Balance, tokens: Part) -> None:
        self.number = worker.number
        self.tells = worker.number == 0 and worker.is_first
        self.stop = asyncio.Event()
        self.hurry: Callable[[], None] = lambda: None
        self._worker = worker
        self._bound = bound
        self._balance = balance
        self._tokens = tokens
        self._background = Background()
        self._channel = Channel(self._background, {"drain": self._on_drain, "cut": self._on_cut})

    async def open(self) -> None:
        """Begins to listen to the supervisor. Called once, in the worker's loop."""
        await self._channel.open(self._worker.sock)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        self._background.start(self._outlive())

    async def close(self, fault: str | None) -> None:
        """Ends the talk with the supervisor; `fault` is the reason of a start that failed."""
        if fault is not None:
            try:
                await self._channel.ask("fault", TOLD_SECONDS, text=fault)
            except ChannelError as error:
                log.debug("the supervisor: %s", error)
        await self._background.close()

    async def _outlive(self) -> None:
        """Ends with the supervisor: nobody would begin this worker anew, or could stop all workers."""
        await self._channel.gone.wait()
        if not self.stop.is_set():
            log.error("the supervisor of the workers is gone; this worker ends, as do the others")
            self.stop.set()

    async def _on_drain(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        self.stop.set()
        return {}

    async def _on_cut(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        self.hurry()
        return {}

    def refuse_if_interrupted(self) -> None:
        """Nothing: the supervisor does it."""

    # As `Service` has them.

    def commanded(self, _: Config, __: Proxy) -> AbstractAsyncContextManager[object]:
        """Nothing: the operator commands the supervisor."""
        return nullcontext()

    def joins(self, proxy: Proxy) -> None:
        """Called before the proxy has clients: it shares the tokens of all workers."""
        proxy.join(self._tokens)

    say = staticmethod(log.debug)

    def bind(self, _: Sequence[Listen]) -> Sequence[Bound]:
        """The sockets of the supervisor."""
        return self._bound

    def serves(self, proxy: Proxy, missing: Sequence[str]) -> None:
        """Tells the supervisor that the proxy serves, and takes its share of the clients."""
        proxy.share_clients(self._balance, self.number)
        self._channel.tell("ready", missing=list(missing))

    def stops(self, _: Proxy) -> None:
        """Nothing: the supervisor tells the service manager."""


def run(
    config: Config, service: Service, lines: Log, serve: Serve, run_loop: RunLoop, told_ready: Callable[..., None]
) -> None:
    """Serves with `config.workers` processes until SIGTERM, SIGINT or SIGHUP.

    Args:
        config: the config of all workers.
        service: the service manager.
        lines: the log.
        serve: what a worker does.
        run_loop: runs a coroutine in a loop of its own.
        told_ready: logs that all workers serve; gets the config, the bound addresses, and the shards that are missing.

    Raises:
        CommandError: an address cannot be bound, or a worker could not begin to serve.
    """
    try:
        bound = list(service.bind(config.all_listen))
        sockets.listen(bound, config.all_listen)
    except OSError as error:
        raise CommandError(error.strerror or str(error)) from None
    whole = _Whole(config, service, bound, told_ready)
    gc.collect()
    gc.freeze()  # the collector would write into pages that the processes share
    runner = asyncio.Runner()
    while runner.run(whole.next_start()) is not None:
        worker = whole.supervisor.fork([*(one.sock.fileno() for one in bound), *whole.balance.descriptors])
        if worker is not None:
            _work(Here(worker, bound, whole.balance, whole.part(worker.number)), config, lines, serve, run_loop)
    runner.close()
    if whole.supervisor.fault is not None:
        raise CommandError(whole.supervisor.fault, whole.exit_code)
    log.info("stopped")


def _work(here: Here, config: Config, lines: Log, serve: Serve, run_loop: RunLoop) -> NoReturn:
    """The whole life of a worker. The process ends here: what is below on the stack is the supervisor's."""
    code = 1
    lines.fork(here.number)
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
        await here.close(fault or None)


class _Whole:
    """The supervisor with its signals, and with what it tells about all workers.

    Attributes:
        exit_code: of the command, if the start fails.
    """

    def __init__(
        self, config: Config, service: Service, bound: Sequence[Bound], told_ready: Callable[..., None]
    ) -> None:
        self.exit_code = 1
        self.background = Background()
        self.balance = Balance(config.workers)
        self.supervisor = Supervisor(config.workers, config.drain_seconds, self.background)
        limits = config.limits
        self._ticks = Ticks()
        self._slot = self._ticks.take(config.workers)
        self._rings = [
            Ring.create(limits.max_shared_token_bytes, limits.max_tokens, len(config.shards))
            for _ in range(config.workers)
        ]
        self._config = config
        self._service = service
        self._bound = bound
        self._told_ready = told_ready
        self._is_open = False
        self._stack = AsyncExitStack()

    def part(self, number: int) -> Part:
        """The part of a worker in the tokens."""
        return Part(self._rings[number], self._ticks, self._slot + number, self._rings)

    async def next_start(self) -> int | None:
        """As `Supervisor.next_start`; opens and closes what it needs in the loop."""
        if not self._is_open:
            self._is_open = True
            self._open()
            await self._stack.enter_async_context(commanded(self._config, self.background, {}))
        number = await self.supervisor.next_start()
        if number is None:
            await self._stack.aclose()
            await self.background.close()
            self.balance.close()
        return number

    def _open(self) -> None:
        self.supervisor.open()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._came, number)
        self.background.start(self._tell_ready())
        self.background.keep("the service manager", self._tick)

    def _came(self, number: signal.Signals) -> None:
        supervisor = self.supervisor
        if supervisor.stopping.is_set():
            supervisor.cut()
            return
        if number is signal.SIGINT and not supervisor.ready.is_set():
            self.exit_code = INTERRUPTED
            supervisor.fail("interrupted before it was ready")
        sockets.close(self._bound)
        self._service.manager.stopping(self._config.drain_seconds + REST_SECONDS)
        seconds = self._config.drain_seconds
        log.info("stopping; calls in flight have %g s, a second signal cuts them", seconds)
        supervisor.stop()

    async def _tell_ready(self) -> None:
        await self.supervisor.ready.wait()
        self._told_ready(
            self._config, [one.address for one in self._bound if not one.listen.only_pages], self.supervisor.missing
        )
        self._service.manager.ready(self._state())

    def _state(self) -> str:
        serving, count = len(self.supervisor.channels()), self._config.workers
        return f"{serving} of {count} workers serve {len(self._config.shards)} shards"

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.supervisor.ready.is_set() and not self.supervisor.stopping.is_set():
                self._service.manager.status(self._state())
            self._service.manager.tick(monotonic())
