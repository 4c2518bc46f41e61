"""A worker of `esp serve`, from inside: what differs from a process that serves alone."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, Final

from esp.commands.output import CommandError
from esp.commands.reloading import COMMAND
from esp.commands.reloading_workers import InWorker
from esp.commands.workers_metrics import COMMAND as METRICS
from esp.commands.workers_metrics import MetricsHere
from esp.commands.workers_watches import FIND_SECONDS, finding
from esp.core.background import Background
from esp.core.config import Config, Listen
from esp.core.former import Former
from esp.core.proxy import Proxy
from esp.core.services.watch import Finding
from esp.core.shared_tokens import Part
from esp.core.sockets import Bound
from esp.core.workers import Balance, Channel, ChannelError, Worker

log = logging.getLogger("esp")

TOLD_SECONDS: Final = 2.0
"""How long a worker waits until the supervisor has taken note of its state."""
MAY_SECONDS: Final = 60.0
"""Seconds that a worker waits until it may serve: at a takeover until all can, and the running esp has said yes."""


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
        self._adopted: set[int] = set()  # the numbers of the positions that it was given
        self._background = Background()
        self._metrics = MetricsHere(self._background, self.number)
        commands = {
            "drain": self._on_drain,
            "cut": self._on_cut,
            "find": self._on_find,
            "give_back": self._on_give_back,
            "adopt": self._on_adopt,
            COMMAND: self._on_reload,
            "apiserver": self._on_apiserver,
            METRICS: self._metrics.tell,
        }
        self._channel = self._metrics.channel = Channel(self._background, commands)

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
        """Takes positions; the same only once, which may be told again because the answer came too late."""
        if self._proxy is not None and told["number"] not in self._adopted:
            self._adopted.add(told["number"])
            self._proxy.positions.adopt(told["positions"])
        return {}

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
        return [finding(one) for one in told["findings"]]

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
        self._metrics.use(proxy)

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
            told = await self._channel.ask("may_serve", MAY_SECONDS, worker=self.number, missing=list(missing))
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
