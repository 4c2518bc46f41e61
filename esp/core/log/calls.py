"""The lines of single calls: the access log, and the log of slow calls."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from functools import lru_cache
from logging import INFO
from math import inf
from typing import Final

from esp.core.config import LogConfig
from esp.core.keys import format_key
from esp.core.log.first_key import first_key
from esp.core.log.floods import of_process
from esp.core.log.lines import ACCESS, CallLine, Value, fields
from esp.core.log.text import in_one_line
from esp.core.wire.ended import EndedCall
from esp.core.wire.status import CODE_NAMES
from esp.core.wording import FEW, shards_called

access = logging.getLogger(ACCESS)
slow = logging.getLogger("esp.slow")

MAX_KEY: Final = 64
"""Bytes of a key that a line has."""
MAX_PATH: Final = 128
"""Bytes of a path that a line has: a client may make up any path."""
LASTING: Final = frozenset(
    (
        b"/etcdserverpb.Watch/Watch",
        b"/etcdserverpb.Lease/LeaseKeepAlive",
        b"/etcdserverpb.Maintenance/Snapshot",
        b"/v3lockpb.Lock/Lock",
        b"/v3electionpb.Election/Campaign",
        b"/v3electionpb.Election/Observe",
        b"/grpc.health.v1.Health/Watch",
        b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    )
)
"""RPCs that last as long as the client wants, or wait for other clients: none of them is slow."""
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-")


class CallLog:
    """Writes the lines of calls that have ended.

    Args:
        config: which calls have lines.
        draw: a random number from 0 to below 1.

    Attributes:
        least: the seconds from which on the calls are wanted here; 0 for all calls.
    """

    def __init__(self, config: LogConfig, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self.use(config)

    def use(self, config: LogConfig) -> None:
        """Puts another config in force; `least` may change."""
        self._one_of = config.access
        self._slow = inf if config.slow_seconds is None else config.slow_seconds
        self.least = 0.0 if self._one_of else self._slow

    def ended(self, call: EndedCall) -> None:
        """Writes the lines of a call."""
        took = call.at - call.opened
        if took >= self._slow and call.path not in LASTING:
            _tell_slow(call, took)
        if self._one_of and (self._one_of == 1 or self._draw() * self._one_of < 1) and access.isEnabledFor(INFO):
            log = of_process()
            if log is not None:
                at_shard = call.at - call.sent if call.server and call.sent else None
                path, code, trace = _path(call.path), _code(call.code), _trace(call.trace)
                log.tell_call(CallLine(call.peer, path, code, took, call.server, at_shard, trace))


def _tell_slow(call: EndedCall, took: float) -> None:
    if not slow.isEnabledFor(logging.WARNING):
        return
    about: dict[str, Value] = {
        "peer": call.peer,
        "method": _path(call.path),
        "code": _code(call.code),
        "seconds": round(took, 6),
    }
    if call.server:
        about["shard"] = call.server
    at_shards = call.upstream if call.waited else call.at - call.sent if call.sent else 0.0
    if at_shards:
        about["shard_seconds"] = round(at_shards, 6)
    if trace := _trace(call.trace):
        about["trace"] = trace
    key, is_cut = first_key(call.path, call.message, MAX_KEY)
    what = _path(call.path)
    if key:
        about["key"] = shown = format_key(key) + ("..." if is_cut else "")
        what += f' "{shown}"'
    if call.several:
        about["shards"] = list(call.several[:FEW])
    longest = max(zip(call.waited, call.several, strict=False), default=None) if len(call.waited) > 1 else None
    if longest is not None:
        about["slowest_shard"], about["slowest_seconds"] = longest[1], round(longest[0], 6)
    shards = shards_called((call.server,) if call.server else call.several, FEW) if call.server or call.several else ""
    where = f"waiting for {shards}" if shards else "in esp"
    if call.waited:
        most = f" (most at {longest[1]}: {longest[0]:.3f} s)" if longest is not None else ""
        where = f"{at_shards:.3f} s at {shards}{most}, {took - at_shards:.3f} s in esp"
    elif at_shards:
        where = f"{at_shards:.3f} s at {shards}, {call.sent - call.opened:.3f} s in esp before"
    slow.warning(
        "slow: %s of %s took %.3f s, %s: %s",
        what,
        call.peer,
        took,
        where,
        _code(call.code) + (f"; trace {trace}" if trace else ""),
        extra={**fields(**about), "kind": f"{_path(call.path)} {call.server}"},
    )


@lru_cache(256)
def _path(path: bytes) -> str:
    return in_one_line(path[:MAX_PATH].decode("ascii", "backslashreplace"))


def _trace(traceparent: bytes) -> str:
    """The id of the call's trace, if it has one; a client may send anything."""
    found = _TRACEPARENT.match(traceparent) if traceparent else None
    return "" if found is None else found[1].decode()


def _code(code: int) -> str:
    return CODE_NAMES[code] if 0 <= code < len(CODE_NAMES) else f"Code({code})"
