"""How many processes serve: the field `workers`, and the option of the same name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

MOST_WORKERS: Final = 64
"""The most workers: as many as there are numbers for processes in tokens."""
_GROUPS: Final = Path("/sys/fs/cgroup")


def workers_of(value: Any) -> int:
    """The number of workers; for "auto" as many as there are processors for this process.

    Raises:
        ValueError: the value is neither a number of workers nor "auto".
    """
    if value == "auto":
        return min(MOST_WORKERS, processors())
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_WORKERS:
        shown = "empty" if value is None or value == "" else f'"{value}"'
        raise ValueError(f'"workers" is {shown}; write a number from 1 to {MOST_WORKERS}, or auto')
    return value


def processors(groups: Path = _GROUPS) -> int:
    """The processors that this process may use: those of the machine, less what taskset or a container's quota bars."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        quota, period = (groups / group / "cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or "max": no quota
        return max(1, allowed)
