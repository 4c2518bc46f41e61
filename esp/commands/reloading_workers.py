"""Reloads of several workers: all of them take another config, or none does.

The supervisor reads the file, and gives its text to all workers. First each worker only checks what a reload would do.
If no worker objects, then each puts the config in force. A worker that objects only then ends, and begins anew with the
new config.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from esp.commands.reloading import COMMAND, answer_of
from esp.core import config as configs
from esp.core.background import Background, all_of
from esp.core.config import Config, ConfigError
from esp.core.control import Call, Control
from esp.core.former import Former
from esp.core.proxy import Proxy
from esp.core.reload import HANDING_OVER, ConfigFile, Outcome, Reloads, Result, log_outcome
from esp.core.workers import Channel, ChannelError, Supervisor

log = logging.getLogger("esp")

CHECK_SECONDS: Final = 60.0
RELOAD_SECONDS: Final = 600.0
"""The longest that a worker may take: a new shard may have to get very many leases."""

Answer = dict[str, Any]
Told = Callable[[str], Awaitable[None]]


class InWorker:
    """A worker's side.

    Args:
        proxy: the worker's proxy.
        parse: checks the text of a config; called in a thread.
        done: called with each config that was put in force.
    """

    def __init__(self, proxy: Proxy, parse: Callable[[str], Config], done: Callable[[Config], object]) -> None:
        self._text = ""
        self._proxy = proxy
        self._reloads = Reloads(proxy, lambda: parse(self._text), done)

    async def answer(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """The supervisor wants a reload, or only a check."""
        self._text = told["text"]
        answer = answer_of(await self._reloads.reload(None, force=told["force"], only_check=told["check"]))
        return answer if told["check"] else {**answer, "former": self._proxy.routing.layout.former.dump()}


class OfWorkers:
    """The supervisor's side.

    Args:
        config: the config that is in force.
        supervisor: the workers.
        parse: checks the text of a config.
        background: owner of the tasks.
        around: called with True before a reload, and with False after it.
        is_handing_over: whether another process takes over.
        former: the ranges that have moved at the processes before these.

    Attributes:
        config: the config that is in force, and with which workers begin from now on.
        former: the ranges that have moved; with these too.
    """

    def __init__(
        self,
        config: Config,
        supervisor: Supervisor,
        parse: Callable[[str], Config],
        background: Background,
        around: Callable[[bool], object],
        is_handing_over: Callable[[], bool],
        former: Former,
    ) -> None:
        self.config = config
        self.former = former
        self._supervisor = supervisor
        self._parse = parse
        self._background = background
        self._around = around
        self._is_handing_over = is_handing_over
        self._lock = asyncio.Lock()
        self._is_wanted = False

    def open(self, control: Control) -> None:
        """Takes the command `reload` from now on, and looks at the file as long as the config in force says so."""
        control.serve(COMMAND, self._answer)
        if self.config.path is not None:
            file = ConfigFile(self.config.path, self._file_changed)

            async def look() -> None:
                await file.run(lambda: self.config.watch_config, by_thread=False)

            self._background.keep("the look at the config file", look)

    @property
    def is_under_way(self) -> bool:
        """Whether workers are about to take another config, or some have taken it."""
        return self._lock.locked()

    def hung_up(self) -> None:
        """SIGHUP has come."""
        self._begin("SIGHUP", quiet=False)

    def _file_changed(self, is_first: bool) -> None:
        self._begin("the file has changed", quiet=is_first)

    def _begin(self, why: str, *, quiet: bool) -> None:
        if not self._is_wanted:
            self._is_wanted = True
            self._background.start(self._begun(why, quiet))

    async def _begun(self, why: str, quiet: bool) -> None:
        await self.reload(why, quiet=quiet)

    async def _answer(self, call: Call) -> Mapping[str, Any]:
        async def tell(step: str) -> None:
            await call.tell({"step": step})

        asked = call.request
        return await self.reload(
            "esp reload", force=asked.get("force") is True, only_check=asked.get("check") is True, told=tell
        )

    async def reload(
        self, why: str, *, force: bool = False, only_check: bool = False, quiet: bool = False, told: Told | None = None
    ) -> Answer:
        """As `Reloads.reload`, for all workers; the answer of one of them."""
        async with self._lock:
            self._is_wanted = False
            self._around(True)
            try:
                answer = await self._reload(force, only_check, told)
            finally:
                self._around(False)
        if answer["result"] != Result.UNCHANGED or not quiet:
            log_outcome(why, answer["result"], answer["lines"], answer["reasons"])
        return answer

    async def _reload(self, force: bool, only_check: bool, told: Told | None) -> Answer:
        assert isinstance(self.config.path, Path)
        try:
            text = configs.text_of(self.config.path)
            config = self._parse(text)
        except ConfigError as error:
            return _refused(str(error))
        if self._is_handing_over():
            return _refused(HANDING_OVER)
        channels = self._supervisor.channels()
        if len(channels) < self.config.workers:
            return _refused("a worker is about to begin anew; try again")
        if told is not None:
            await told(f"asking {len(channels)} workers")
        checked = await self._ask(channels, CHECK_SECONDS, text=text, force=force, check=True)
        first = checked[min(checked)]
        refusals = {number: answer for number, answer in checked.items() if answer["result"] == Result.REFUSED}
        if refusals:
            number, answer = next(iter(refusals.items()))
            if len(refusals) < len(checked):
                answer = {**answer, "reasons": [f"worker {number}: {reason}" for reason in answer["reasons"]]}
            return answer
        if only_check or all(answer["result"] == Result.UNCHANGED for answer in checked.values()):
            return first
        if told is not None:
            await told("putting the config in force")
        answers = await self._ask(channels, RELOAD_SECONDS, text=text, force=force, check=False)
        dumps = {number: answer.pop("former", []) for number, answer in answers.items()}
        done = {number: answer for number, answer in answers.items() if answer["result"] != Result.REFUSED}
        if not done:
            return answers[min(answers)]
        self.config = config
        self.former = Former.of_dumps(dumps[number] for number in done)
        answer = done[min(done)]
        for number in sorted(answers.keys() - done.keys()):
            text = f"worker {number} begins anew: {'; '.join(answers[number]['reasons'][:3])}"
            answer = {**answer, "warnings": [*answer["warnings"], text], "lines": [*answer["lines"], text]}
            self._end(number)
        return answer

    async def _ask(self, channels: Mapping[int, Channel], seconds: float, **fields: Any) -> dict[int, Answer]:
        async def ask(number: int, channel: Channel) -> tuple[int, Answer]:
            try:
                return number, dict(await channel.ask(COMMAND, seconds, **fields))
            except ChannelError as error:
                return number, _refused(f"worker {number}: {error}")

        return dict(await all_of([ask(number, channel) for number, channel in channels.items()]))

    def _end(self, number: int) -> None:
        """Lets a worker drain; the supervisor begins another in its place."""
        for state in self._supervisor.states():
            if state["worker"] == number and state["process"] is not None:
                os.kill(state["process"], signal.SIGTERM)


def _refused(reason: str) -> Answer:
    return answer_of(Outcome(Result.REFUSED, 0, reasons=[reason]))
