"""Runs `esp` and notes the longest single steps of its event loop, which nobody else could come between, and its turns.

`bench/attacks --steps` starts it: `python -m bench.stepped_esp FILE esp-arguments...`; what was seen goes to FILE, as
JSON, when esp ends. SIGUSR1 begins anew, so that what was before does not count.

A step lasts from one look at the clock of `Turns`, at which work can be put off, to the next, or to the end of what the
loop called. It is measured in CPU time of the thread, so a busy machine makes it no longer. A sampler names the line in
which most of it went by: the kernel lets that look every 1 to 4 ms, so a shorter step may go without.

A turn is all work between two looks at the sockets. A call needs three or four turns, so a neighbour waits for as many
of the longest ones, however short the steps are.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import thread_time
from types import FrameType
from typing import Any, NamedTuple

import uvloop

from esp.core.background import name_of
from esp.core.wire import accepted, transport, turns
from esp.core.wire.context import WireContext

LONG = 0.001  # seconds from which on a step is noted
MOST = 50  # that are kept
_PARTS = 6  # of a turn that are shown
INTERVAL = 0.001  # seconds of CPU time between two looks of the sampler


class Step(NamedTuple):
    """One of the longest."""

    ms: float
    called: str  # by the loop
    ended: str  # the function that looked at the clock next
    lines: list[str]  # where it was seen, from the inside out


class Turn(NamedTuple):
    """One of the longest turns."""

    ms: float
    parts: dict[str, float]  # ms by what was called, the longest first


class Steps:
    """The longest steps and turns, and how many there were of which length."""

    def __init__(self) -> None:
        self.longest: list[Step] = []
        self.lengths: Counter[int] = Counter()  # by whole ms
        self.turns: Counter[int] = Counter()
        self.longest_turns: list[Turn] = []
        self.mark: Callable[[Callable[[], None]], object] | None = None  # calls it in the next turn
        self._is_marked = False
        self._parts: defaultdict[str, float] = defaultdict(float)  # seconds of this turn, by what was called
        self._inner: list[float] = []  # seconds of the parts within each part that is at work
        self._called = ""
        self._began = 0.0
        self._seen: list[str] = []
        self._depth = 0
        gc.callbacks.append(self._collected)
        signal.signal(signal.SIGPROF, self._look)
        signal.signal(signal.SIGUSR1, lambda *_: self._begin_anew())
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def _begin_anew(self) -> None:
        self.longest.clear()
        self.lengths.clear()
        self.turns.clear()
        self.longest_turns.clear()

    def wrapped(self, function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
        """`function`, which the loop calls: a step begins with it and one ends with it."""
        name = name or getattr(function, "__qualname__", type(function).__name__)

        def step(*arguments: Any, **named: Any) -> Any:
            if self._depth:  # called by esp itself
                return function(*arguments, **named)
            self._depth += 1
            self._called, self._began = name, thread_time()
            self._seen.clear()
            if not self._is_marked and self.mark is not None:
                self._is_marked = True
                self.mark(self._end_turn)
            try:
                return part(*arguments, **named)
            finally:
                self._depth -= 1
                self._end("its end")

        part = self.part(function, name)
        return step

    def part(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function`, whose time stands by itself in the turns."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = thread_time()
            self._inner.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                took = thread_time() - began
                self._parts[_work_of(function) or name] += took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        return timed

    def _end_turn(self) -> None:
        self._is_marked = False
        took = sum(self._parts.values())
        if took > LONG:
            self.turns[int(took * 1000)] += 1
            longest = sorted(self._parts.items(), key=lambda part: -part[1])[:_PARTS]
            parts = {name: round(seconds * 1000, 2) for name, seconds in longest}
            self.longest_turns.append(Turn(round(took * 1000, 2), parts))
            if len(self.longest_turns) > 2 * MOST:
                self._cut()
        self._parts.clear()

    def clock(self) -> float:
        """The time, for `Turns`: here work can be put off."""
        if thread_time() - self._began > LONG:
            self._end(sys._getframe(1).f_code.co_qualname)
        self._began = thread_time()
        if self._seen:
            self._seen.clear()
        return thread_time()  # a busy machine makes no slice shorter

    def _end(self, where: str) -> None:
        took = thread_time() - self._began
        if took > LONG:
            self.lengths[int(took * 1000)] += 1
            self.longest.append(Step(round(took * 1000, 2), self._called, where, list(self._seen)))
            if len(self.longest) > 2 * MOST:
                self._cut()

    def _cut(self) -> None:
        self.longest.sort(key=lambda step: -step.ms)
        self.longest_turns.sort(key=lambda turn: -turn.ms)
        del self.longest[MOST:], self.longest_turns[MOST:]

    def _look(self, signum: int, frame: FrameType | None) -> None:
        self._seen.clear()
        while frame is not None and len(self._seen) < 4:
            file = Path(frame.f_code.co_filename)
            if file.name != Path(__file__).name:
                self._seen.append(f"{file.parent.name}/{file.name}:{frame.f_lineno} {frame.f_code.co_qualname}")
            frame = frame.f_back

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        self._seen.append(f"garbage collector, generation {info['generation']}, {phase}")

    def write(self, path: Path) -> None:
        """Everything, for whoever started this."""
        self._cut()
        told = {
            "lengths": sorted(self.lengths.items()),
            "longest": [step._asdict() for step in self.longest],
            "turns": sorted(self.turns.items()),
            "longest_turns": [turn._asdict() for turn in self.longest_turns],
        }
        path.write_text(json.dumps(told))


def _work_of(function: Callable[..., Any]) -> str:
    """The coroutine of a task's step; "" for any other function."""
    task = getattr(function, "__self__", None)
    return f"task {name_of(task.get_coro())}" if isinstance(task, asyncio.Task) else ""


def instrument(steps: Steps) -> None:
    """Has every callback of the loop, and every look at the clock of the turns, noted."""

    class SteppedLoop(uvloop.Loop):
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
            if steps.mark is None:
                steps.mark = super().call_soon
            return super().call_soon(steps.wrapped(callback), *args, context=context)

        def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
            return super().call_at(when, steps.wrapped(callback), *args, context=context)

        def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
            return super().call_later(delay, steps.wrapped(callback), *args, context=context)

    made = turns.Turns.__init__

    def begin(self: turns.Turns, clock: Callable[[], float] | None = None) -> None:
        made(self, clock or steps.clock)

    turns.Turns.__init__ = begin  # type: ignore[method-assign]
    for protocol in (transport.WireProtocol, accepted.ServerProtocol, transport.ClientProtocol):
        for name in ("connection_made", "data_received", "eof_received", "resume_writing", "connection_lost"):
            if name in vars(protocol):
                setattr(protocol, name, steps.wrapped(vars(protocol)[name], f"{protocol.__name__}.{name}"))
    for name in ("_serve_shards", "_serve_first", "_serve_line"):
        setattr(turns.Turns, name, steps.part(vars(turns.Turns)[name], f"Turns.{name}"))
    for name in ("go_on", "flush"):
        setattr(WireContext, name, steps.part(vars(WireContext)[name], f"WireContext.{name}"))
    uvloop.run = partial(uvloop.run, loop_factory=SteppedLoop)


def main() -> None:
    file = Path(sys.argv[1])
    steps = Steps()
    instrument(steps)
    sys.argv = ["esp", *sys.argv[2:]]
    from esp.cli import main as esp

    try:
        esp()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        steps.write(file)


if __name__ == "__main__":
    main()
