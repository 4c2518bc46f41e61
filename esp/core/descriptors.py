"""How many file descriptors the process may have open, and so how many clients."""

from __future__ import annotations

import contextlib
import logging
import resource
from dataclasses import replace
from typing import Final

from esp.core.wire.limits import Limits

log = logging.getLogger("esp")

RESERVE: Final = 64
"""Descriptors kept for all but connections: log, listeners, files, and clients that are just being refused."""
RESERVE_PER_SHARD: Final = 6
"""A connection for unary calls and one for streams; for each, another that is dialled or finishes its last calls."""


def within_descriptors(limits: Limits, shards: int) -> Limits:
    """Raises the process's soft limit of open files to its hard one; `limits` with the clients that has room for.

    Without room even for the reserve one client is served.
    """
    most = _raised()
    room = max(1, most - RESERVE - RESERVE_PER_SHARD * shards)
    if most == resource.RLIM_INFINITY or room >= limits.max_connections:
        return limits
    log.warning(
        "max_connections is %d instead of %d: this process may have only %d files open (ulimit -n)",
        room,
        limits.max_connections,
        most,
    )
    return replace(limits, max_connections=room)


def _raised() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS names no bound, but has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
