"""The supervisor: starts the workers, begins those anew that have ended, and ends them all.

A worker that ends by itself begins again after a pause, which doubles each time that it does not last. The others go
on, and take its clients. If a worker cannot become ready at the very start, the supervisor ends them all: the fault is
the config's, or the machine's.

No thread may run in the supervisor, because it forks. It forks while its loop does not run: `next_start` returns, the
caller calls `fork`, and in the new process never again touches the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

from esp.core.background import FIRST_PAUSE, LONGEST_PAUSE, Background
from esp.core.workers.channel import Channel, Command

log = logging.getLogger("esp")

GRACE_SECONDS: Final = 5.0
"""Seconds that a worker has, after `drain_seconds`, to end; then it is killed."""
ABORT_SECONDS: Final = 1.0
"""Seconds that a worker whose loop stands still has to write where it stands; one that is stopped does not write."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


class Worker:
    """A worker, as its own process sees it.

    Attributes:
        number: its number, from 0.
        sock: its end of the channel.
        is_first: no worker has had this number before.
    """

    def __init__(self, number: int, sock: socket.socket, *, is_first: bool) -> None:
        self.number = number
        self.sock = sock
        self.is_first = is_first


class _Place:
    """A worker, as the supervisor sees it.

    Attributes:
        process: the id of the process; None between two lives.
        channel: the channel to the process.
        is_ready: the process has said that it serves.
        missing: the shards that it could not reach when it became ready.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: int | None = None
        self.channel: Channel | None = None
        self.sock: socket.socket | None = None
        self.is_ready = False
        self.missing: list[str] = []
        self.began = 0.0
        self.pause = 0.0
        self.killed_for_memory = 0


class Supervisor:
    """The workers of this process.

    Args:
        count: the number of workers.
        commands: the functions that answer questions of workers, beside the supervisor's own.

    Attributes:
        commands: these; more may be added before a worker begins.
        ready: set when all workers have become ready for the first time.
        stopping: set when the workers are to end.
        fault: why the start has failed; None if it has not.
        restarts: workers that have begun anew.
        stuck: those of them that were killed because their loop stood still.
    """

    def __init__(self, count: int, background: Background, commands: Mapping[str, Command] | None = None) -> None:
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.fault: str | None = None
        self.restarts = self.stuck = 0
        self._background = background
        self.commands = dict(commands or {})
        self._places = [_Place(number) for number in range(count)]
        self._due: deque[_Place] = deque(self._places)
        self._changed = asyncio.Event()

    def open(self) -> None:
        """Begins to look for workers that have ended. Called once, in the loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._collect)

    # Starting.

    async def next_start(self) -> int | None:
        """The number of the next worker to fork, once one is due; None when all have ended for good."""
        while True:
            for place in self._places:
                if place.sock is not None:
                    await self._connect(place)
            if self.stopping.is_set():
                if all(place.process is None for place in self._places):
                    return None
            elif self._due:
                return self._due[0].number
            await self._changed.wait()
            self._changed.clear()

    def fork(self, kept: Iterable[int]) -> Worker | None:
        """Forks the worker of `next_start`. Returns None here, and the worker in the new process.

        Called while no loop runs.

        Args:
            kept: the descriptors that the worker needs; all others, except standard ones, lead nowhere there.
        """
        place = self._due.popleft()
        ours, theirs = socket.socketpair()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        process = os.fork()
        if process == 0:
            signal.set_wakeup_fd(-1)  # else a signal to this process would reach the supervisor's loop as well
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL if number in (signal.SIGTERM, signal.SIGCHLD) else signal.SIG_IGN)
            _let_go_of_others({theirs.fileno(), *kept})
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return Worker(place.number, theirs, is_first=not place.began)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        place.process, place.sock, place.began, place.is_ready = process, ours, monotonic(), False
        place.killed_for_memory = killed_for_memory()
        return None

    async def _connect(self, place: _Place) -> None:
        sock, place.sock = place.sock, None
        assert sock is not None

        async def on_ready(told: Mapping[str, Any]) -> Mapping[str, Any]:
            place.is_ready, place.missing = True, list(told["missing"])
            if all(each.is_ready for each in self._places):
                self.ready.set()
            return {}

        async def on_fault(told: Mapping[str, Any]) -> Mapping[str, Any]:
            if not self.ready.is_set():
                self.fail(str(told["text"]))
            return {}

        place.channel = Channel(self._background, {**self.commands, "ready": on_ready, "fault": on_fault})
        await place.channel.open(sock)

    def fail(self, text: str) -> None:
        """Ends the workers because the start has failed; the first reason counts."""
        self.fault = self.fault or text
        self.stop(0.0)  # nobody has been served

    @property
    def missing(self) -> list[str]:
        """The shards that a worker could not reach when it became ready."""
        return list(dict.fromkeys(name for place in self._places for name in place.missing))

    def channels(self) -> dict[int, Channel]:
        """The channels to the workers that serve, by the workers' numbers."""
        return {place.number: place.channel for place in self._places if place.is_ready and place.channel is not None}

    def states(self) -> list[dict[str, Any]]:
        """For each worker its number, process, and whether it serves."""
        return [
            {"worker": place.number, "process": place.process, "is_ready": place.is_ready} for place in self._places
        ]

    # Ending.

    def _collect(self) -> None:
        """Takes note of the workers that have ended."""
        for place in self._places:
            if place.process is not None:
                done, status = os.waitpid(place.process, os.WNOHANG)
                if done:
                    self._ended(place, os.waitstatus_to_exitcode(status))
        self._changed.set()

    def _ended(self, place: _Place, code: int) -> None:
        process, place.process = place.process, None
        place.is_ready = False
        if place.channel is not None:
            place.channel.close()
            place.channel = None
        if self.stopping.is_set():
            return
        reason = reason_of(code, for_memory=killed_for_memory() > place.killed_for_memory)
        if not self.ready.is_set() and code != 0:
            self.fail(f"worker {place.number} {reason} before it was ready; see the log")
            return
        if monotonic() - place.began >= LONGEST_PAUSE:
            place.pause = 0.0
        place.pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, place.pause * 2))
        self.restarts += 1
        log.error(
            "worker %d (process %d) %s; another begins in %g s, and the others go on",
            place.number,
            process,
            reason,
            place.pause,
        )
        self._background.later(place.pause, lambda: self._start_again(place))

    def _start_again(self, place: _Place) -> None:
        self._due.append(place)
        self._changed.set()

    def end(self, number: int, drain_seconds: float) -> None:
        """Has one worker drain and end, which counts as gone from now on; another begins in its place."""
        place = self._places[number]
        if place.process is not None and place.is_ready:
            place.is_ready = False
            os.kill(place.process, signal.SIGTERM)
            process = place.process
            self._background.later(drain_seconds + GRACE_SECONDS, lambda: self._kill(place, process))

    def kill_stuck(self, number: int, seconds: float) -> None:
        """Kills a worker whose loop has not run for so many seconds; another begins in its place."""
        place = self._places[number]
        if place.process is None or not place.is_ready:
            return
        place.is_ready = False
        self.stuck += 1
        process = place.process
        log.error(
            "worker %d (process %d) stands still: its loop has not run for %g s (worker_timeout); it is killed",
            number,
            process,
            seconds,
        )
        os.kill(process, signal.SIGABRT)  # the log gets the place in the code
        self._background.later(ABORT_SECONDS, lambda: self._kill(place, process))

    def _kill(self, place: _Place, process: int) -> None:
        """Kills a worker that should have ended."""
        if place.process == process:
            log.error("worker %d (process %d) has not ended, and is killed", place.number, process)
            os.kill(process, signal.SIGKILL)

    def stop(self, drain_seconds: float, *, positions: bool = False) -> None:
        """Lets all workers drain and end, at the same time.

        Args:
            drain_seconds: what calls in flight have; a worker that has not ended soon after that is killed.
            positions: the workers give the positions of their watches.
        """
        if self.stopping.is_set():
            return
        self.stopping.set()
        self._changed.set()
        self._background.start(self._stop(drain_seconds, positions))

    async def _stop(self, drain_seconds: float, positions: bool) -> None:
        for place in self._places:
            if place.sock is not None:
                await self._connect(place)  # one that was forked just now
            if place.channel is not None:
                place.channel.tell("drain", positions=positions)
        await asyncio.sleep(drain_seconds + GRACE_SECONDS)
        for place in self._places:
            if place.process is not None:
                self._kill(place, place.process)

    def cut(self) -> None:
        """Ends the drain: the workers cut the calls for which they still wait."""
        for place in self._places:
            if place.channel is not None:
                place.channel.tell("cut")


def _let_go_of_others(kept: set[int]) -> None:
    """Turns all descriptors but `kept` and the standard ones into /dev/null.

    Their numbers stay taken: objects of the supervisor, which nobody uses here, may still close them one day.
    """
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/dev/fd"):
        number = int(name)
        if number > 2 and number != nowhere and number not in kept:
            try:
                os.fstat(number)
            except OSError:  # it was the listing's own
                continue
            os.dup2(nowhere, number, inheritable=False)


def reason_of(code: int, *, for_memory: bool = False) -> str:
    """The end of a process in words, from its exit code, which is negative for a signal."""
    if code >= 0:
        return "ended by itself" if code == 0 else f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if code == -signal.SIGKILL:
        memory = "the system says that memory ran out" if for_memory else "by somebody, or because memory ran out"
        return f"was killed by {name} ({memory})"
    return f"was killed by {name}"


def killed_for_memory() -> int:
    """How many processes of this control group the kernel has killed because memory ran out; 0 if it does not say."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        text = (Path("/sys/fs/cgroup") / group / "memory.events").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
