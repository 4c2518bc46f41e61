"""Time: members whose clock differs from this machine's, and certificates of members that end soon.

A member's clock is known to a second: by the `Date` of its pages. etcd counts leases by a clock that nobody sets, so a
wrong clock does no harm to them; but certificates and tokens (--auth-token=jwt) are valid by it, and logs are hard to
compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from esp.core.health.facts import Finding, Kind, ShardHealth
from esp.core.tls_files import WARN_SECONDS, day_of

NOTED_SECONDS: Final = 1.0
"""From this difference on, beyond what the measurement leaves open, clocks are worth a note."""


def judge_clocks(shards: Iterable[ShardHealth]) -> Iterator[Finding]:
    """The notes about clocks that differ from this machine's."""
    for shard in shards:
        for health in shard.endpoints:
            clock = health.clock
            if clock is None:
                continue
            apart = max(clock.low, -clock.high)
            if apart >= NOTED_SECONDS:
                where = "ahead of" if clock.low > 0 else "behind"
                text = f"its clock is at least {apart:.0f} s {where} this machine's; let both take the time from NTP"
                yield Finding(Kind.CLOCK, (shard.name,), health.endpoint, text)


def judge_certificates(shards: Iterable[ShardHealth], now: float) -> Iterator[Finding]:
    """The notes about members' certificates that end soon. One that has ended makes its endpoint unreachable."""
    for shard in shards:
        for health in shard.endpoints:
            ends = health.certificate_ends
            if ends is not None and ends - now < WARN_SECONDS:
                text = f"its certificate {'has ended' if ends <= now else 'ends'} on {day_of(ends)}; renew it"
                yield Finding(Kind.CERTIFICATE, (shard.name,), health.endpoint, text)
