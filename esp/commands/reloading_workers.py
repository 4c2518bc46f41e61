"""Reloads of several workers: all of them take another config, or none does, and no two maps serve at one time.

The supervisor reads the file, gives its text to all workers, and leads them through the steps of `Reload` together. The
decision is the supervisor's, at one moment: when all workers have prepared the config, and have closed the keys that
get another owner. Until then anything that goes wrong has all workers give up. From then on the config is in force: a
worker that dies begins anew with it, and one that cannot install it ends, and begins anew. The keys that move stay
closed in each worker until all have installed the config, or are gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from esp.commands.reloading import COMMAND, answer_of
from esp.core import config as configs
from esp.core.background import Background, all_of
from esp.core.config import Config, ConfigError
from esp.core.former import Former
from esp.core.proxy import Proxy
from esp.core.reload import (
    CLOSE_SECONDS,
    HANDING_OVER,
    LOOK_SECONDS,
    OneAtATime,
    Outcome,
    Reload,
    Result,
)
from esp.core.shared_map import served_as
from esp.core.wording import counted
from esp.core.workers import Channel, ChannelError, Supervisor

log = logging.getLogger("esp")

CHECK_SECONDS: Final = 60.0
RELOAD_SECONDS: Final = 600.0
"""The longest that a worker may prepare, and may settle: a new shard may have to get very many leases."""
SHORT_SECONDS: Final = 3.0
"""The longest that a worker may take for a step, beside what the step itself waits for."""

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
        self._proxy = proxy
        self._parse = parse
        self._done = done
        self._reload: Reload | None = None
        self._number = 0  # of the reload
        self._lock = asyncio.Lock()

    async def answer(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        """Does a step that the supervisor wants.

        Raises:
            ChannelError: the step is of a reload that was given up.
        """
        number, step = told["number"], told["step"]
        if step == "prepare" or step == "check":
            self._number = max(self._number, number)
        async with self._lock:
            if number != self._number:
                raise ChannelError("this reload was given up")
            if step in ("prepare", "check"):
                return await self._begin(told)
            reload = self._reload
            if reload is None:
                raise ChannelError("this reload was given up")
            match step:
                case "close":
                    await reload.close()
                case "look":
                    await reload.look()
                case "install":
                    reload.install()
                    self._proxy.reloads[Result.DONE] += 1
                    self._done(self._proxy.config)
                case "open":
                    reload.open()
                    await reload.settle()
                    await self._end(reload)
                case "end":
                    self._proxy.reloads[Result.REFUSED] += 1
                    await self._end(reload)
            return {**answer_of(reload.outcome), "former": reload.former.dump()}

    async def _begin(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._reload is not None:
            await self._end(self._reload)
        only_check = told["step"] == "check"
        reload = self._reload = Reload(self._proxy, None, force=told["force"], only_check=only_check)
        try:
            await reload.prepare(lambda: self._parse(told["text"]))
        finally:
            if not reload.is_prepared:
                await self._end(reload)
        if not only_check and not reload.is_prepared:
            self._proxy.reloads[reload.outcome.result] += 1
        return {
            **answer_of(reload.outcome),
            "is_prepared": reload.is_prepared,
            "closes": reload.closes,
            "former": reload.former.dump(),
        }

    async def _end(self, reload: Reload) -> None:
        self._reload = None
        await reload.end()


class OfWorkers(OneAtATime[Answer]):
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
        is_settled: set while all workers serve by the config in force: one that begins anew may serve only then.
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
        super().__init__(background, around)
        self.config = config
        self.former = former
        self.is_settled = asyncio.Event()
        self.is_settled.set()
        self._supervisor = supervisor
        self._parse = parse
        self._is_handing_over = is_handing_over
        self._numbers = count(1)

    def _said(self, answer: Answer) -> tuple[str, Sequence[str], Sequence[str]]:
        return answer["result"], answer["lines"], answer["reasons"]

    async def _reload(self, force: bool, only_check: bool, told: Told | None) -> Answer:
        assert isinstance(self.config.path, Path)
        try:
            text = configs.text_of(self.config.path)
            config = served_as(self._parse(text), self.config)
        except ConfigError as error:
            return _refused(str(error))
        if self._is_handing_over():
            return _refused(HANDING_OVER)
        channels = self._supervisor.channels()
        if len(channels) < self.config.workers:
            return _refused("a worker is about to begin anew; try again")
        if told is not None:
            await told(f"asking {counted(len(channels), 'worker')}")
        steps = _Steps(channels, next(self._numbers))
        checked = await steps.ask("check", CHECK_SECONDS, text=text, force=force)
        if refusal := _refusal(checked):
            return refusal
        if only_check or all(answer["result"] == Result.UNCHANGED for answer in checked.values()):
            return _of_client(checked[min(checked)])
        if told is not None:
            await told("putting the config in force")
        steps = _Steps(channels, next(self._numbers))
        try:
            refusal, former = await self._until_closed(steps, text, force)
            if refusal is None and self._supervisor.channels() != channels:
                refusal = _refused("a worker has ended; try again when it serves")
            if refusal is None and self._is_handing_over():
                refusal = _refused(HANDING_OVER)
            if refusal is not None:
                steps.tell("end")
                return refusal
        except BaseException:
            steps.tell("end")
            raise
        # Decided. From here on nothing turns back, and workers that begin anew begin with this config.
        self.config, self.former = config, former
        self.is_settled.clear()
        try:
            installed = await steps.ask("install", SHORT_SECONDS)
            failed = [number for number, answer in installed.items() if answer["result"] != Result.DONE]
            for number in failed:
                self._supervisor.end(number, self.config.drain_seconds)
            steps = steps.without(failed)
        finally:
            opening = asyncio.ensure_future(steps.ask("open", RELOAD_SECONDS))
            self.is_settled.set()  # the question has left
        answers = await opening
        return _done(answers, [(number, installed[number]) for number in failed], config)

    async def _until_closed(self, steps: _Steps, text: str, force: bool) -> tuple[Answer | None, Former]:
        """Has all workers prepare the config and close what moves; the refusal of one, or the moves."""
        prepared = await steps.ask("prepare", RELOAD_SECONDS, text=text, force=force)
        former = _former(prepared)
        refusal = _refusal(prepared, lambda answer: not answer.get("is_prepared"))
        if refusal is not None or not any(answer["closes"] for answer in prepared.values()):
            return refusal, former
        closed = await steps.ask("close", CLOSE_SECONDS + SHORT_SECONDS)
        if refusal := _refusal(closed, lambda answer: bool(answer["reasons"])):
            return refusal, former
        looked = await steps.first().ask("look", LOOK_SECONDS + SHORT_SECONDS)
        return _refusal(looked, lambda answer: bool(answer["reasons"])), _former(prepared, looked)


class _Steps:
    """The steps of one reload, of some workers."""

    def __init__(self, channels: Mapping[int, Channel], number: int) -> None:
        self._channels = channels
        self._number = number

    def first(self) -> _Steps:
        """The steps of one of these workers."""
        first = min(self._channels)
        return _Steps({first: self._channels[first]}, self._number)

    def without(self, numbers: list[int]) -> _Steps:
        """The steps of the other workers."""
        kept = {number: channel for number, channel in self._channels.items() if number not in numbers}
        return _Steps(kept, self._number)

    def tell(self, step: str) -> None:
        """Has all do a step; does not wait."""
        for channel in self._channels.values():
            channel.tell(COMMAND, step=step, number=self._number)

    async def ask(self, step: str, seconds: float, **fields: Any) -> dict[int, Answer]:
        """Has all do a step; their answers, by the workers' numbers. A worker without an answer refuses."""

        async def ask(number: int, channel: Channel) -> tuple[int, Answer]:
            try:
                told = await channel.ask(COMMAND, seconds, step=step, number=self._number, **fields)
                return number, dict(told)
            except ChannelError as error:
                return number, _refused(f"worker {number}: {error}")

        return dict(await all_of([ask(number, channel) for number, channel in self._channels.items()]))


def _refusal(
    answers: Mapping[int, Answer],
    refuses: Callable[[Answer], bool] = lambda answer: answer["result"] == Result.REFUSED,
) -> Answer | None:
    """The answer of a worker that refuses, if one does; with its number in front if others do not refuse."""
    refusals = {number: answer for number, answer in answers.items() if refuses(answer)}
    if not refusals:
        return None
    number, answer = min(refusals.items())
    reasons = answer["reasons"]
    if len(refusals) < len(answers):
        prefix = f"worker {number}: "
        reasons = [reason if reason.startswith(prefix) else prefix + reason for reason in reasons]
    return _of_client({**answer, "result": Result.REFUSED, "reasons": reasons})


def _done(answers: Mapping[int, Answer], failed: list[tuple[int, Answer]], config: Config) -> Answer:
    """The answer of a reload that was decided, although workers may have failed or ended since."""
    done = [answer for _, answer in sorted(answers.items()) if answer["result"] == Result.DONE]
    answer = done[0] if done else answer_of(Outcome(Result.DONE, config.shard_map.epoch))
    ended = [*failed, *((number, one) for number, one in answers.items() if one["result"] != Result.DONE)]
    texts = [f"worker {number} begins anew: {'; '.join(one['reasons'][:3])}" for number, one in sorted(ended)]
    warnings = [text for one in done[1:] for text in one["warnings"] if text not in answer["warnings"]]
    return _of_client(
        {
            **answer,
            "warnings": [*answer["warnings"], *warnings, *texts],
            "lines": [*answer["lines"], *(f"warning: {text}" for text in warnings), *texts],
        }
    )


def _former(*rounds: Mapping[int, Answer]) -> Former:
    """The moves of all these answers."""
    return Former.of_dumps(answer["former"] for answers in rounds for answer in answers.values() if "former" in answer)


def _of_client(answer: Answer) -> Answer:
    """An answer of a worker without what only the supervisor needs."""
    return {name: value for name, value in answer.items() if name not in ("former", "is_prepared", "closes")}


def _refused(reason: str) -> Answer:
    return answer_of(Outcome(Result.REFUSED, 0, reasons=[reason]))
