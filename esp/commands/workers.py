"""`esp serve` with several processes: the supervisor's side, and what is different in a worker."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from time import monotonic
from typing import Any, Final, NoReturn

from esp.commands.operating import commanded
from esp.commands.output import INTERRUPTED, CommandError
from esp.commands.reloading import COMMAND, Terminal
from esp.commands.reloading_workers import InWorker, OfWorkers
from esp.commands.service import REST_SECONDS, Service
from esp.commands.takeover import begin_successor, young
from esp.core import sockets
from esp.core.apiservers import MAX_ROOTS
from esp.core.background import Background, all_of
from esp.core.config import Config, Listen
from esp.core.control import DeniedError
from esp.core.former import Former
from esp.core.log.setup import Log
from esp.core.metrics import process
from esp.core.metrics.families import Family, counter, gauge, of_json, to_json
from esp.core.metrics.sums import Sums
from esp.core.proxy import Proxy
from esp.core.services.watch import Finding
from esp.core.shared_tokens import Part, Ring, Ticks
from esp.core.sockets import Bound
from esp.core.takeover import POSITIONS_SECONDS, HandOver, TakeoverError
from esp.core.tokens import Vector
from esp.core.workers import Balance, Channel, ChannelError, Supervisor, Worker

log = logging.getLogger("esp")

TOLD_SECONDS: Final = 2.0
"""How long a worker waits until the supervisor has taken note of its state."""
FIND_SECONDS: Final = 2 * POSITIONS_SECONDS
"""Seconds that a client waits at most for what other workers know of it."""
MAY_SECONDS: Final = 10.0
METRICS_SECONDS: Final = 4.0
"""Seconds after which /metrics is without the other workers; half of it for each of them."""
TICK_SECONDS: Final = 0.5

Serve = Callable[[Config, "Here"], Coroutine[Any, Any, None]]
"""Serves in this process, as a worker, until it is told to stop."""
RunLoop = Callable[[Coroutine[Any, Any, None]], None]


class Here:
    """A worker, from inside: in the place of the signals and of the service manager that a single process has.

    Attributes:
        number: the worker's number.
        former: the ranges that have moved before this worker began.
        tells: this process logs what the config means for clients; one of all does.
        stop: set when the worker is to drain and end.
        hurry: called when the drain is to be cut short.
    """

    def __init__(self, worker: Worker, bound: Sequence[Bound], balance: Balance, tokens: Part, former: Former) -> None:
        self.number = worker.number
        self.former = former
        self.tells = worker.number == 0 and worker.is_first
        self.stop = asyncio.Event()
        self.hurry: Callable[[], None] = lambda: None
        self._worker = worker
        self._bound = bound
        self._balance = balance
        self._tokens = tokens
        self._proxy: Proxy | None = None
        self._reloads: InWorker | None = None
        self._has_given = True  # the positions of its watches; before a takeover nobody wants them
        self._background = Background()
        commands = {
            "drain": self._on_drain,
            "cut": self._on_cut,
            "find": self._on_find,
            "give_back": self._on_give_back,
            "adopt": self._on_adopt,
            COMMAND: self._on_reload,
            "apiserver": self._on_apiserver,
            "metrics": self._on_metrics,
        }
        self._channel = Channel(self._background, commands)

    async def open(self) -> None:
        """Begins to listen to the supervisor. Called once, in the worker's loop."""
        await self._channel.open(self._worker.sock)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        self._background.start(self._outlive())

    async def end(self, fault: str | None) -> None:
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

    async def _on_drain(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        if told["positions"] and self._proxy is not None:
            self._has_given = False
            self._background.start(self._give_positions(self._proxy))
        self.stop.set()
        return {}

    async def _give_positions(self, proxy: Proxy) -> None:
        """Gives the positions of its watches to the supervisor, once all have ended."""
        while proxy.positions.watching and not self._has_given:  # noqa: ASYNC110 - watches end by themselves
            await asyncio.sleep(0.002)
        await self._give(proxy)

    async def _give(self, proxy: Proxy) -> None:
        if not self._has_given:
            self._has_given = True
            with suppress(ChannelError):
                await self._channel.ask("positions", TOLD_SECONDS, positions=proxy.positions.dump())

    async def close(self, proxy: Proxy, *_: object) -> None:
        """Called when the proxy has ended."""
        await self._give(proxy)

    async def _on_find(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._proxy is None:
            return {"has_ended": False, "shards": None, "revisions": None, "is_doubtful": True}
        found = self._proxy.positions.find(bytes.fromhex(told["watched"]), told["start"])
        shards, revisions = found.vector or (None, None)
        return {
            "has_ended": found.has_ended,
            "shards": shards,
            "revisions": revisions,
            "is_doubtful": found.is_doubtful,
        }

    async def _on_give_back(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._proxy is not None:
            self._proxy.positions.give_back(bytes.fromhex(told["watched"]))
        return {}

    async def _on_adopt(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._proxy is not None:
            self._proxy.positions.adopt(told["positions"])
        return {}

    # /metrics of any worker is that of all.

    def _ask_metrics(self, answer: Callable[[list[list[Family]]], None]) -> None:
        self._background.start(self._gather_metrics(answer))

    async def _gather_metrics(self, answer: Callable[[list[list[Family]]], None]) -> None:
        try:
            own = await self._on_metrics({})
            told = await self._channel.ask("metrics", METRICS_SECONDS, worker=self.number, **own)
            theirs = [of_json(families.encode()) for families in told["families"]]
        except (ChannelError, ValueError) as error:
            log.warning("/metrics has this worker only: %s", error)
            theirs = []
        answer(theirs)

    async def _on_metrics(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        """The families of this worker."""
        families: list[Family] = []
        for step in self._proxy.metrics.collect() if self._proxy is not None else ():
            if step is None:
                await asyncio.sleep(0)
            else:
                families.append(step)
        return {"families": to_json(families).decode()}

    # A kube-apiserver that one worker recognises is at work through all.

    def _found_apiserver(self, sign: str, roots: Iterable[bytes]) -> None:
        self._channel.tell("apiserver", worker=self.number, sign=sign, roots=[root.hex() for root in roots])

    async def _on_apiserver(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._proxy is not None:
            self._proxy.routing.apiservers.learn(told["sign"], [bytes.fromhex(root) for root in told["roots"]])
        return {}

    # Where clients that come again may have watched; as `Others` has it.

    async def find(self, watched: Hashable, start_revision: int) -> list[Finding]:
        """What all other workers, and the process before a takeover, know of a client that comes again."""
        assert isinstance(watched, bytes)
        try:
            told = await self._channel.ask(
                "find", FIND_SECONDS, worker=self.number, watched=watched.hex(), start=start_revision
            )
        except ChannelError as error:
            log.debug("where a client has watched: %s", error)
            return [Finding(False, None, True)]
        self._askers = told["workers"]
        return [_finding(one) for one in told["findings"]]

    def give_back(self, watched: Hashable, number: int) -> None:
        """The finding with this number was not the one of this client."""
        assert isinstance(watched, bytes)
        self._channel.tell("give_back", worker=self._askers[number], watched=watched.hex())

    def takes_configs(self, proxy: Proxy, parse: Callable[[str], Config], done: Callable[[Config], object]) -> None:
        """The supervisor may give another config from now on."""
        self._reloads = InWorker(proxy, parse, done)

    async def _on_reload(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._reloads is not None  # asked only once the worker serves
        return await self._reloads.answer(told)

    async def _on_cut(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        self.hurry()
        return {}

    def refuse_if_interrupted(self) -> None:
        """Nothing: the supervisor does it."""

    # As `Service` has them.

    def commanded(self, _: Config, __: Proxy) -> AbstractAsyncContextManager[object]:
        """Nothing: the operator commands the supervisor."""
        return nullcontext()

    async def joins(self, proxy: Proxy) -> None:
        """Called before the proxy has clients: it shares the tokens and the watches of all workers."""
        proxy.join(self._tokens, self, is_anew=not self._worker.is_first)
        self._proxy = proxy
        proxy.routing.apiservers.on_found = self._found_apiserver
        proxy.metrics.others = self._ask_metrics

    say = staticmethod(log.debug)

    def bind(self, _: Sequence[Listen]) -> Sequence[Bound]:
        """The sockets of the supervisor."""
        return self._bound

    accepts_late = True

    async def serves(self, proxy: Proxy, missing: Sequence[str]) -> None:
        """Takes its share of the clients, and tells the supervisor.

        Raises:
            CommandError: the takeover cannot be done.
        """
        try:
            told = await self._channel.ask("may_serve", MAY_SECONDS, missing=list(missing))
            if not told["may"]:
                return  # the supervisor has ended the start
            for apiserver in told["apiservers"]:
                await self._on_apiserver(apiserver)
            await proxy.accept()
        except ChannelError as error:
            raise CommandError(str(error)) from None
        proxy.share_clients(self._balance, self.number)
        self._channel.tell("ready", missing=list(missing))

    def stops(self, _: Proxy) -> None:
        """Nothing: the supervisor tells the service manager."""


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


def _finding(told: Mapping[str, Any]) -> Finding:
    vector = None if told["shards"] is None else Vector(tuple(told["shards"]), tuple(told["revisions"]))
    return Finding(told["has_ended"], vector, told["is_doubtful"])


async def _metrics(channel: Channel) -> list[Family] | None:
    """The families of a worker; None of a worker that does not answer."""
    try:
        return of_json((await channel.ask("metrics", METRICS_SECONDS / 2))["families"].encode())
    except (ChannelError, ValueError):
        return None


async def find(supervisor: Supervisor, told: Mapping[str, Any]) -> tuple[list[int], list[Mapping[str, Any]]]:
    """What all other workers know of a client that comes again: their numbers, and a finding of each.

    A place between two workers has the number -1, and is doubtful: the client may have watched at the one that ended.
    """
    others = [state for state in supervisor.states() if state["worker"] != told["worker"]]
    absent = sum(not state["is_ready"] for state in others)
    asked = {number: channel for number, channel in supervisor.channels().items() if number != told["worker"]}
    findings = await all_of(_find(channel, told) for channel in asked.values())
    return [*asked, *[-1] * absent], [*findings, *[_UNKNOWN] * absent]


async def _find(channel: Channel, told: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return await channel.ask("find", FIND_SECONDS / 2, watched=told["watched"], start=told["start"])
    except ChannelError:
        return _UNKNOWN


_UNKNOWN: Final = {"has_ended": False, "shards": None, "revisions": None, "is_doubtful": True}


class _Whole:
    """The supervisor with its signals, and with what it tells about all workers.

    Attributes:
        exit_code: of the command, if the start fails.
        reloads: have all workers take another config; knows the config that is in force.
    """

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
            "find": self._on_find,
            "give_back": self._on_give_back,
            "positions": self._on_positions,
            "apiserver": self._on_apiserver,
            "metrics": self._on_metrics,
        }
        self._apiservers: list[dict[str, Any]] = []
        self._sums = Sums()
        self.supervisor = Supervisor(config.workers, self.background, commands)
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
        self._owed_positions = 0
        hand_over = self._hand_over
        self.reloads = OfWorkers(
            config,
            self.supervisor,
            parse,
            self.background,
            self._on_reload,
            lambda: hand_over.is_under_way,
            service.former,
        )
        self._terminal = Terminal()
        self._stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._service = service
        self._bound = bound
        self._told_ready = told_ready
        self._is_open = False
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
        return self._config.shard_map.fingerprint

    def _reachable(self) -> list[str]:
        missing = self.supervisor.missing
        return [shard.name for shard in self._config.shards if shard.name not in missing]

    async def next_start(self) -> int | None:
        """As `Supervisor.next_start`; opens and closes what it needs in the loop."""
        if not self._is_open:
            self._is_open = True
            self._open()
            if self._before is not None:
                await self._before.open(self.background, self._adopt)
            after = None if self._before is None else self._serves
            commands = {"takeover": self._hand_over}
            control = await self._stack.enter_async_context(commanded(self._config, self.background, commands, after))
            self.reloads.open(control)
        number = await self.supervisor.next_start()
        if number is None:
            if self._before is not None and not self._serves.is_set():
                await self._before.fails(self.supervisor.fault or "it was stopped")
            await self._stack.aclose()
            if not self._owed_positions:  # else the new process takes what it does not know for doubtful
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
        """As `serve._Signals` does: SIGHUP means a reload, unless the terminal was closed."""
        serves = self.supervisor.ready.is_set() and not self.supervisor.stopping.is_set()
        if serves and (self._stays or not self._terminal.is_gone):
            self.reloads.hung_up()
        elif not self._stays:
            self._came(signal.SIGHUP)

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
            try:
                self._before.check(())
            except TakeoverError as error:
                self.supervisor.fail(str(error))
                return
            self._before.serves()
        self._serves.set()
        self._told_ready(
            self._config, [one.address for one in self._bound if not one.listen.only_pages], self.supervisor.missing
        )
        self._service.manager.ready(self._state())

    # The takeover.

    def _begin_successor(self) -> None:
        self.background.start(begin_successor(self._service.manager))

    def _let_go(self, process: int) -> None:
        """Another process serves: this one drains."""
        self._service.manager.main_process(process)
        self._service.manager.close()
        self._owed_positions = self._config.workers  # of a worker that has just died nobody can give them
        self._stop()

    async def _on_positions(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """A worker gives the positions of its watches."""
        self._hand_over.give_positions(told["positions"])
        self._owed_positions -= 1
        if not self._owed_positions:
            self.background.start(self._hand_over.end_positions())
        return {}

    async def _adopt(self, dumped: Sequence[Mapping[str, Any]]) -> None:
        """Gives positions of the process before to a worker; the others ask that one.

        Raises:
            ChannelError: the worker may not have them.
        """
        await self.supervisor.ready.wait()
        for channel in self.supervisor.channels().values():
            await channel.ask("adopt", FIND_SECONDS, positions=list(dumped))
            return
        raise ChannelError("no worker is ready")

    async def _on_may_serve(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """Whether a worker may accept clients: at a takeover not if it misses shards. Waits while a map changes."""
        await self.reloads.is_settled.wait()
        if self._before is not None and not self._serves.is_set():
            try:
                self._before.check(told["missing"])
            except TakeoverError as error:
                self.supervisor.fail(str(error))
                return {"may": False}
        return {"may": True, "apiservers": self._apiservers}

    async def _on_apiserver(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """A worker has recognised a kube-apiserver: tells the others, and those that begin later."""
        if len(self._apiservers) < MAX_ROOTS:
            self._apiservers.append({"sign": told["sign"], "roots": told["roots"]})
        for number, channel in self.supervisor.channels().items():
            if number != told["worker"]:
                channel.tell("apiserver", sign=told["sign"], roots=told["roots"])
        return {}

    async def _on_metrics(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """The families of all other workers, also of those that have ended, and of the supervisor."""
        channels = self.supervisor.channels()
        processes = {state["worker"]: state["process"] for state in self.supervisor.states()}
        asked = {number: channel for number, channel in channels.items() if number != told["worker"]}
        answers = await all_of(_metrics(channel) for channel in asked.values())
        others = dict(zip((processes[number] for number in asked), answers, strict=True))
        sums = self._sums.beside(processes[told["worker"]], of_json(told["families"].encode()), others)
        own = [
            *process.families(),
            gauge("esp_workers", "Processes that serve.", len(channels)),
            counter("esp_worker_restarts_total", "Workers that have ended and begun anew.", self.supervisor.restarts),
        ]
        return {"families": [to_json(sums).decode(), to_json(own).decode()]}

    # Watches of clients that come again.

    async def _on_find(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """Asks all other workers, and the process before, what they know of a client."""
        if self._before is not None:
            is_doubtful = await self._before.is_doubtful(told["start"] - 1)
        workers, findings = await find(self.supervisor, told)
        if self._before is not None:
            workers.append(-1)
            findings.append({**_UNKNOWN, "is_doubtful": is_doubtful})
        return {"workers": workers, "findings": findings}

    async def _on_give_back(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        channel = self.supervisor.channels().get(told["worker"])
        if channel is not None:
            channel.tell("give_back", watched=told["watched"])
        return {}

    # The service manager.

    def _state(self) -> str:
        serving, count = len(self.supervisor.channels()), self._config.workers
        return f"{serving} of {count} workers serve {len(self._config.shards)} shards"

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.supervisor.ready.is_set() and not self.supervisor.stopping.is_set():
                self._service.manager.status(self._state())
            self._service.manager.tick(monotonic())
