"""What a load has measured, as plain values."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

PERCENTILES: Final = (50.0, 99.0, 99.9)


@dataclass(slots=True)
class Figures:
    """One round on one target.

    Attributes:
        seconds: the length of the round.
        cpu: CPU seconds of this process in the round.
        latencies: seconds of each request that was answered in the round.
        errors: requests that failed, by what they were told.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds of one workload on one target.

    Attributes:
        workload, target: their names.
        rates: requests per second of each round.
        latencies: seconds of all requests, in order of size.
        errors: failed requests, by what they were told.
        cpu: the share of one core that this process took, from 0 to 1, in the busiest round.
    """

    workload: str
    target: str
    rates: Sequence[float]
    latencies: Sequence[float]
    errors: Counter[str]
    cpu: float

    @classmethod
    def of(cls, workload: str, target: str, rounds: Sequence[Figures]) -> Measured:
        """The rounds of one target together."""
        latencies: array[float] = array("d")
        errors: Counter[str] = Counter()
        for one in rounds:
            latencies.extend(one.latencies)
            errors.update(one.errors)
        return cls(
            workload,
            target,
            [one.rate for one in rounds],
            sorted(latencies),
            errors,
            max((one.cpu / one.seconds for one in rounds if one.seconds), default=0.0),
        )

    @property
    def requests(self) -> int:
        """Requests that were answered."""
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Requests per second: the median of the rounds."""
        return median(self.rates) if self.rates else 0.0

    def percentile(self, percent: float) -> float:
        """The latency in seconds that so many per cent of the requests did not exceed; 0.0 without a request."""
        if not self.latencies:
            return 0.0
        place = -(-len(self.latencies) * percent // 100)  # rounded up: the nearest rank
        return self.latencies[max(0, min(len(self.latencies), int(place)) - 1)]

    def ratio(self, other: Measured) -> float:
        """The median over the rounds of this rate over the other's in the same round; 0.0 if the other has none."""
        pairs = [one / two for one, two in zip(self.rates, other.rates, strict=True) if two]
        return median(pairs) if pairs else 0.0
