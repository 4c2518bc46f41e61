"""The state of one endpoint of a shard, as plain data for metrics and logs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

GAIN: Final = 0.125
"""The part of a smoothed round trip that the newest one makes up, as in TCP (RFC 6298)."""


class Connectivity(IntEnum):
    """The state of the connection to an endpoint; names and numbers are gRPC's (`grpc_connectivity_state`)."""

    IDLE = 0
    """Not in use, and the last attempt has not failed: esp asks only the endpoint that it uses, and failed ones."""
    CONNECTING = 1
    READY = 2
    TRANSIENT_FAILURE = 3
    """The last attempt has failed, or esp has left the endpoint for a reason."""


@dataclass(slots=True)
class EndpointState:
    """The state of one endpoint.

    Attributes:
        connectivity: the state of the connection for unary calls.
        trouble: why the last attempt failed or the last connection ended; "" since an attempt has succeeded.
        failures: the number of failed attempts and of connections that broke, since the start.
        round_trip: seconds from esp's last question for the status to the answer; None before the first.
        smoothed: the smoothed round trip in seconds; None before the first.
        answers: the number of round trips.
    """

    connectivity: Connectivity = Connectivity.IDLE
    trouble: str = ""
    failures: int = 0
    round_trip: float | None = None
    smoothed: float | None = None
    answers: int = 0

    def connecting(self) -> None:
        """An attempt begins."""
        self.connectivity = Connectivity.CONNECTING

    def ready(self) -> None:
        """The endpoint is in use from now on."""
        self.connectivity = Connectivity.READY
        self.trouble = ""

    def usable(self) -> None:
        """The endpoint is not in use, but could be."""
        self.connectivity = Connectivity.IDLE
        self.trouble = ""

    def failed(self, why: str) -> None:
        """An attempt has failed, or the connection is over."""
        self.connectivity = Connectivity.TRANSIENT_FAILURE
        self.trouble = why
        self.failures += 1

    def answered(self, seconds: float) -> None:
        """A status came `seconds` after its question."""
        self.round_trip = seconds
        self.smoothed = seconds if self.smoothed is None else self.smoothed + GAIN * (seconds - self.smoothed)
        self.answers += 1
