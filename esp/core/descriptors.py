"""The number of file descriptors that the process may have open, and the number of clients that follows."""

from __future__ import annotations

import contextlib
import logging
import resource
from dataclasses import replace
from typing import Final

from esp.core.wire.limits import Limits

log = logging.getLogger("esp")

RESERVE: Final = 64
"""Descriptors kept for other purposes than connections: log, listeners, files, clients that esp is about to refuse."""
RESERVE_PER_SHARD: Final = 6
"""Descriptors for each shard: two connections, and for each of them others that esp dials or that finish calls."""


def within_descriptors(limits: Limits, shards: int) -> Limits:
    """`limits`, with no more clients than the process has descriptors for.

    The soft limit of open files is raised to the hard one. esp serves one client even where the reserve does not fit.
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
        with contextlib.suppress(OSError, ValueError):  # macOS has a bound although it tells none
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
