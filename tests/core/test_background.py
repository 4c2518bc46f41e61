"""The supervisor: a bug in background work is logged and counted, and ends no other work."""

from __future__ import annotations

import ast
import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from esp.core import background as module
from esp.core.background import Background, all_of, first_of, in_a_thread

ROOT = Path(__file__).parent.parent.parent


class Bug(Exception):
    pass


def fails() -> None:
    raise Bug


async def fails_later() -> None:
    await asyncio.sleep(0)
    raise Bug


async def rest() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_work_that_fails_is_told_by_its_name_and_nothing_else_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        told = []
        async with Background() as background:
            other = background.start(asyncio.sleep(100))
            background.start(fails_later(), on_bug=lambda: told.append("bug"), on_end=lambda: told.append("end"))
            await rest()
            assert told == ["bug", "end"]
            assert background.failures == {"fails_later": 1}
            assert background.tasks == {other}
        assert other.cancelled()

    asyncio.run(test())
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "fails_later: a bug in esp" in record.message
    assert record.exc_info
    assert record.exc_info[0] is Bug


def test_work_that_was_cancelled_is_no_failure_and_its_end_is_told_even_if_it_never_ran() -> None:
    async def test() -> None:
        told = []
        async with Background() as background:
            background.start(fails_later(), on_bug=fails, on_end=lambda: told.append("end")).cancel()
            await rest()
            assert told == ["end"]
            assert not background.failures

    asyncio.run(test())


def test_work_that_is_kept_is_begun_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def test() -> None:
        tries = 0

        async def work() -> None:
            nonlocal tries
            tries += 1
            if tries < 12:
                raise Bug

        async with Background() as background:
            monkeypatch.setattr(module.asyncio, "sleep", noted)
            await background.keep("work", work)
            assert background.failures == {"work": 11}

    asyncio.run(test())
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0, 10.0]


def test_work_that_held_for_long_begins_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = [0.0], []

    async def noted(seconds: float) -> None:
        pauses.append(seconds)

    async def work() -> None:
        clock[0] += 11
        if len(pauses) < 3:
            raise Bug

    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.asyncio, "sleep", noted)
    asyncio.run(Background().again("work", work))
    assert pauses == [0.1, 0.1, 0.1]


def test_a_timer_that_fails_ends_what_it_was_for_and_a_cancelled_one_is_forgotten() -> None:
    async def test() -> None:
        told = []
        async with Background() as background:
            background.later(0, fails, lambda: told.append("bug"))
            background.later(0, lambda: told.append("due"))
            background.later(0, fails).cancel()
            background.later(1000, fails)
            await asyncio.sleep(0.01)
            assert sorted(told) == ["bug", "due"]
            assert background.failures == {"fails": 1}
            assert len(background.timers) == 1
        assert not background.timers

    asyncio.run(test())


def test_a_step_that_fails_lets_the_next_be_done_even_if_its_end_fails_too() -> None:
    background = Background()
    background.guard("step", fails, fails)
    assert background.failures == {"step": 1, "step: its end": 1}


def test_what_fails_over_and_over_is_summed_up_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    background = Background()
    for _ in range(50):
        background.guard("step", fails)
        clock[0] += 1
    assert background.failures == {"step": 50}
    assert [record.message for record in caplog.records] == [
        "step: a bug in esp",
        *["step: a bug in esp, 10 times since this was last told"] * 4,
    ]


def test_closing_also_ends_what_begins_while_others_end() -> None:
    async def test() -> None:
        background = Background()
        late: list[asyncio.Task[None]] = []

        async def work() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                late.append(background.start(asyncio.sleep(1000)))

        background.start(work())
        await rest()
        await background.close()
        assert late[0].cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(test())


def test_the_first_failure_cancels_the_rest_and_is_raised_as_it_came() -> None:
    async def test() -> None:
        cancelled = []

        async def waits() -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        with pytest.raises(Bug):
            await all_of([waits(), fails_later(), waits()])
        assert cancelled == [True, True]
        assert await all_of([asyncio.sleep(0, number) for number in range(3)]) == [0, 1, 2]

    asyncio.run(test())


class Attempts:
    """Work that does as it is told; what began, and what was let go of, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.dropped: list[str] = []

    def of(self, *names: str) -> list[Callable[[], Coroutine[Any, Any, str]]]:
        return [partial(getattr(self, name.split()[0]), name) for name in names]

    async def fails(self, name: str) -> str:
        self.begun.append(name)
        raise Bug(name)

    async def hangs(self, name: str) -> str:
        self.begun.append(name)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.dropped.append(name)
            raise
        return name

    async def succeeds(self, name: str) -> str:
        self.begun.append(name)
        return name

    async def insists(self, name: str) -> str:
        self.begun.append(name)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        return name


@pytest.mark.parametrize(
    ("names", "pause", "begun", "dropped"),
    [
        (["succeeds", "hangs"], 1000.0, ["succeeds"], []),
        (["fails", "fails too", "succeeds", "hangs"], 1000.0, ["fails", "fails too", "succeeds"], []),
        (["hangs", "hangs too", "succeeds", "fails"], 0.01, ["hangs", "hangs too", "succeeds"], ["hangs", "hangs too"]),
        (["insists", "hangs", "succeeds"], 0.01, ["insists", "hangs", "succeeds"], ["hangs", "insists"]),
    ],
)
def test_the_first_of_several_to_succeed(names: list[str], pause: float, begun: list[str], dropped: list[str]) -> None:
    async def test() -> None:
        attempts = Attempts()
        got = await first_of(attempts.of(*names), pause, attempts.dropped.append)
        assert got == "succeeds"
        await rest()
        assert (attempts.begun, sorted(attempts.dropped)) == (begun, dropped)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(test())


def test_all_that_were_to_succeed_fail() -> None:
    async def test() -> None:
        attempts = Attempts()
        with pytest.raises(ExceptionGroup) as failed:
            await first_of(attempts.of("fails", "fails too"), 1000, attempts.dropped.append)
        assert [str(error) for error in failed.value.exceptions] == ["fails", "fails too"]

    asyncio.run(test())


def test_who_waits_for_the_first_of_several_gives_up() -> None:
    async def test() -> None:
        attempts = Attempts()
        waiting = asyncio.create_task(
            first_of(attempts.of("hangs", "insists", "hangs too"), 0.001, attempts.dropped.append)
        )
        while len(attempts.begun) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await rest()
        assert sorted(attempts.dropped) == ["hangs", "hangs too", "insists"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(test())


BEGINS = frozenset(
    (
        "add_done_callback",
        "call_at",
        "call_later",
        "call_soon",
        "call_soon_threadsafe",
        "create_task",
        "ensure_future",
        "gather",
        "run_in_executor",
        "TaskGroup",
        "Thread",
        "to_thread",
    )
)
CORE = sorted(
    path for path in (ROOT / "esp" / "core").rglob("*.py") if path.name not in ("background.py", "transport.py")
)


def test_nothing_else_begins_tasks_or_timers() -> None:
    begun: dict[str, set[str]] = {}
    for path in CORE:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used |= {node.id for node in nodes if isinstance(node, ast.Name)}
        if used & BEGINS:
            begun[str(path.relative_to(ROOT))] = used & BEGINS
    assert begun == {}, "background.py has what this is for"


@pytest.mark.parametrize("fails", [False, True])
def test_work_in_a_thread_that_ends_after_it_was_given_up_is_no_fault(fails: bool) -> None:
    """As when Ctrl-C comes while a file is written."""
    faults: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        go_on, ended = threading.Event(), threading.Event()

        def work() -> None:
            go_on.wait()
            ended.set()
            if fails:
                raise OSError

        waiting = in_a_thread("work", work)
        waiting.cancel()
        go_on.set()
        await asyncio.get_running_loop().run_in_executor(None, ended.wait)
        for thread in threading.enumerate():
            if thread.name == "work":
                await asyncio.get_running_loop().run_in_executor(None, thread.join)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert faults == []
