"""Runs `esp` and notes the longest single steps of its event loop: what nobody else could come between.

`bench/attacks --steps` starts it: `python -m bench.stepped_esp FILE esp-arguments...`; what was seen goes to FILE, as
JSON, when esp ends. SIGUSR1 begins anew, so that what was before does not count.

A step lasts from one look at the clock of `Turns`, at which work can be put off, to the next, or to the end of what the
loop called. It is measured in CPU time of the thread, so a busy machine makes it no longer. A sampler names the line in
which most of it went by: the kernel lets that look every 1 to 4 ms, so a shorter step may go without.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic, thread_time
from types import FrameType
from typing import Any, NamedTuple

import uvloop

from esp.core.wire import accepted, transport, turns

LONG = 0.001  # seconds from which on a step is noted
MOST = 50  # that are kept
INTERVAL = 0.001  # seconds of CPU time between two looks of the sampler


class Step(NamedTuple):
    """One of the longest."""

    ms: float
    called: str  # by the loop
    ended: str  # the function that looked at the clock next
    lines: list[str]  # where it was seen, from the inside out


class Steps:
    """The longest steps, and how many there were of which length."""

    def __init__(self) -> None:
        self.longest: list[Step] = []
        self.lengths: Counter[int] = Counter()  # by whole ms
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

    def wrapped(self, function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
        """`function`, which the loop calls: a step begins with it and one ends with it."""
        name = name or getattr(function, "__qualname__", type(function).__name__)

        def step(*arguments: Any, **named: Any) -> Any:
            if self._depth:  # called by esp itself
                return function(*arguments, **named)
            self._depth += 1
            self._called, self._began = name, thread_time()
            self._seen.clear()
            try:
                return function(*arguments, **named)
            finally:
                self._depth -= 1
                self._end("its end")

        return step

    def clock(self) -> float:
        """The time, for `Turns`: here work can be put off."""
        if thread_time() - self._began > LONG:
            self._end(sys._getframe(1).f_code.co_qualname)
        self._began = thread_time()
        if self._seen:
            self._seen.clear()
        return monotonic()

    def _end(self, where: str) -> None:
        took = thread_time() - self._began
        if took > LONG:
            self.lengths[int(took * 1000)] += 1
            self.longest.append(Step(round(took * 1000, 2), self._called, where, list(self._seen)))
            if len(self.longest) > 2 * MOST:
                self._cut()

    def _cut(self) -> None:
        self.longest.sort(key=lambda step: -step.ms)
        del self.longest[MOST:]

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
        told = {"lengths": sorted(self.lengths.items()), "longest": [step._asdict() for step in self.longest]}
        path.write_text(json.dumps(told))


def instrument(steps: Steps) -> None:
    """Has every callback of the loop, and every look at the clock of the turns, noted."""

    class SteppedLoop(uvloop.Loop):
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
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
