"""What the other workers of a proxy add to the metrics of one, such that no counter goes back when a worker ends.

A worker that has ended takes its counters with it. To Prometheus the smaller sum would seem to be a counter that began
anew, and what is left of it to have happened just then. So the counters of workers that have ended stay in the sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esp.core.metrics.families import Family, merge


class Sums:
    """Remembers what each worker, by its process, has told last."""

    def __init__(self) -> None:
        self._last: dict[int, Sequence[Family]] = {}
        self._ended: list[Family] = []  # counters and histograms of all workers that have ended

    def take(self, told: Mapping[int, Sequence[Family] | None]) -> None:
        """What all workers tell. None stands for a worker that does not answer: what it told last counts."""
        ended = [
            [family for family in last if family.kind != "gauge"]
            for process, last in self._last.items()
            if process not in told
        ]
        if ended:
            self._ended = merge([self._ended, *ended])
        self._last = {
            process: self._last.get(process, ()) if families is None else families for process, families in told.items()
        }

    def beside(self, process: int) -> list[Family]:
        """The families of all workers but one, and of workers that have ended, as one process."""
        others = [families for other, families in self._last.items() if other != process]
        return merge([*others, self._ended])
