"""The supervisor of workers: when one begins anew, and how the end of one is told."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence

import pytest

from esp.core.background import Background
from esp.core.workers import Supervisor
from esp.core.workers import supervisor as module
from esp.core.workers.supervisor import reason_of


def pauses_after(monkeypatch: pytest.MonkeyPatch, lives: Sequence[float]) -> list[float]:
    """The pauses after a worker's lives of so many seconds, each ended by SIGKILL; nothing is forked, nobody waits."""
    now, pauses = [1000.0], list[float]()

    def later(seconds: float, begin: Callable[[], object]) -> None:
        pauses.append(seconds)
        now[0] += seconds
        begin()

    async def live() -> None:
        async with Background() as background:
            supervisor = Supervisor(1, background)
            supervisor.ready.set()
            with monkeypatch.context() as patched:
                patched.setattr(background, "later", later)
                patched.setattr(module, "monotonic", lambda: now[0])
                patched.setattr(module.os, "fork", lambda: 77)
                patched.setattr(module.os, "waitpid", lambda process, _: (process, signal.SIGKILL))
                assert await supervisor.next_start() == 0
                for seconds in lives:
                    assert supervisor.fork([]) is None
                    next_one = asyncio.create_task(supervisor.next_start())
                    while supervisor._places[0].channel is None:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    now[0] += seconds
                    supervisor._collect()
                    assert await next_one == 0
            assert supervisor.restarts == len(lives)
            assert supervisor.fault is None

    asyncio.run(live())
    return pauses


def test_the_pause_doubles_each_time_that_a_worker_does_not_last_up_to_a_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pauses_after(monkeypatch, [1] * 11) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10]


def test_a_worker_that_has_lasted_begins_again_after_the_first_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses_after(monkeypatch, [0, 0, 0, 10, 9.9]) == [0.1, 0.2, 0.4, 0.1, 0.2]
    assert pauses_after(monkeypatch, [0] * 9 + [3600, 0]) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 0.1, 0.2]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended by itself"),
        (3, "ended with exit code 3"),
        (-11, "was killed by SIGSEGV"),
        (-9, "was killed by SIGKILL (by somebody, or because memory ran out)"),
        (-64, "was killed by SIGRTMAX"),
        (-50, "was killed by signal 50"),
    ],
)
def test_the_end_of_a_process_in_words(code: int, words: str) -> None:
    assert reason_of(code) == words


def test_where_the_kernel_says_so_memory_is_the_reason() -> None:
    assert reason_of(-9, for_memory=True) == "was killed by SIGKILL (the system says that memory ran out)"
