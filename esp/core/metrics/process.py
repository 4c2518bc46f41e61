"""The process, in the names that all Prometheus clients use, and the build of esp."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from time import process_time, time
from typing import Final

from esp import __version__, build
from esp.core.metrics.families import Family, counter, gauge

_PAGE: Final = resource.getpagesize()
_STARTED: Final = time()


def families() -> list[Family]:
    """CPU, memory, descriptors, start time, version. Where there is no /proc, memory and descriptors are missing."""
    found = [
        Family(
            "esp_build_info",
            "gauge",
            "1, with the version of esp and of Python, and whether esp is compiled or interpreted.",
            ("version", "python_version", "build"),
            [((__version__, ".".join(map(str, sys.version_info[:3])), build()), 1)],
            over_processes="max",
        ),
        counter("process_cpu_seconds_total", "User and system CPU time in seconds.", process_time()),
        gauge("process_start_time_seconds", "Start of the process, in seconds since 1970.", _start(), "min"),
        gauge("process_max_fds", "File descriptors that the process may have open.", _most_descriptors(), "max"),
    ]
    try:
        virtual, resident = Path("/proc/self/statm").read_text().split()[:2]
        # Linux 6.2 and later tell the number as the size of the folder.
        descriptors = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return found
    return [
        *found,
        gauge("process_virtual_memory_bytes", "Virtual memory in bytes.", int(virtual) * _PAGE),
        gauge("process_resident_memory_bytes", "Resident memory in bytes.", int(resident) * _PAGE),
        gauge("process_open_fds", "Open file descriptors.", descriptors),
    ]


def _most_descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _start() -> float:
    """The start of this process by the kernel's book; where that cannot be read, when this module was loaded."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        return float(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, StopIteration, IndexError):
        return _STARTED
