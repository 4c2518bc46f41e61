"""How often a client may send PING: etcd's policy (grpc-go, internal/transport/http2_server.go, handlePing)."""

from __future__ import annotations

from typing import Final

from esp.core.wire.frames import ConnectionFault, ErrorCode

PING_SECONDS: Final = 5.0
PING_SECONDS_IDLE: Final = 7200.0
PING_STRIKES: Final = 2


class PingPolicy:
    """The PINGs of one client, and how many of them came too early."""

    __slots__ = ("_last", "_strikes")

    def __init__(self) -> None:
        self._last = 0.0
        self._strikes = 0

    def came(self, now: float, *, after_output: bool, has_calls: bool) -> None:
        """Counts a PING.

        Args:
            now: the time on the `monotonic` clock.
            after_output: HEADERS or DATA have left since the last PING: then a PING may come at any time.
            has_calls: whether the client has calls open; without any it may rarely send a PING.

        Raises:
            ConnectionFault: ENHANCE_YOUR_CALM, too many came too early.
        """
        if after_output:
            self._strikes = 0
        elif self._last and now - self._last < (PING_SECONDS if has_calls else PING_SECONDS_IDLE):
            self._strikes += 1
            if self._strikes > PING_STRIKES:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._last = now
