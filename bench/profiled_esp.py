"""Runs `esp` with a profiler that SIGUSR1 switches on and off.

`bench/profile` starts it: `python -m bench.profiled_esp HOW FILE esp-arguments...`. HOW is "sample" or "cprofile"; what
was seen goes to FILE when esp ends.
"""

from __future__ import annotations

import cProfile
import marshal
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Protocol

INTERVAL = 0.001  # seconds of CPU time between samples; the kernel may round it up to its own tick
Place = tuple[str, int, str]  # file, line, function


class Profiler(Protocol):
    """Switched on and off while esp runs."""

    def switch(self) -> None: ...

    def write(self, path: Path) -> None: ...


class Sampler:
    """Looks every millisecond of CPU time at where the main thread is. Costs about a hundredth, and distorts little.

    Time inside C code (a socket write, say) counts for the line that called it.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.own: Counter[Place] = Counter()  # line: the function's first
        self.total: Counter[Place] = Counter()
        self.lines: Counter[Place] = Counter()
        self._on = False
        signal.signal(signal.SIGPROF, self._look)

    def switch(self) -> None:
        self._on = not self._on
        interval = INTERVAL if self._on else 0.0
        signal.setitimer(signal.ITIMER_PROF, interval, interval)

    def _look(self, signum: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.samples += 1
        code = frame.f_code
        self.own[code.co_filename, code.co_firstlineno, code.co_qualname] += 1
        self.lines[code.co_filename, frame.f_lineno, code.co_qualname] += 1
        seen = set()
        at: FrameType | None = frame
        while at is not None:
            seen.add((at.f_code.co_filename, at.f_code.co_firstlineno, at.f_code.co_qualname))
            at = at.f_back
        self.total.update(seen)

    def write(self, path: Path) -> None:
        tables = {"own": dict(self.own), "total": dict(self.total), "lines": dict(self.lines)}
        path.write_bytes(marshal.dumps({"samples": self.samples, **tables}))


class Tracer:
    """cProfile: exact counts of calls, but it slows small functions most, so its times mislead."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()
        self._on = False

    def switch(self) -> None:
        self._on = not self._on
        if self._on:
            self._profile.enable()
        else:
            self._profile.disable()

    def write(self, path: Path) -> None:
        self._profile.dump_stats(str(path))


def main() -> None:
    how, file = sys.argv[1], Path(sys.argv[2])
    profiler: Profiler = Sampler() if how == "sample" else Tracer()
    signal.signal(signal.SIGUSR1, lambda *_: profiler.switch())
    sys.argv = ["esp", *sys.argv[3:]]
    from esp.cli import main as esp

    try:
        esp()
    finally:
        profiler.write(file)


if __name__ == "__main__":
    main()
