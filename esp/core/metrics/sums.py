"""What the other workers of a proxy add to the metrics of one, such that no counter goes back when a worker ends.

A worker that has ended takes its counters with it. To Prometheus the smaller sum would seem to be a counter that began
anew, and what is left of it to have happened just then. So the counters of workers that have ended stay in the sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esp.core.metrics.families import Family, merge


class Sums:
    """Remembers what each worker, by its process, has told at the last scrape."""

    def __init__(self) -> None:
        self._last: dict[int, Sequence[Family]] = {}
        self._ended: list[Family] = []  # counters and histograms of all workers that have ended

    def beside(self, asker: int, own: Sequence[Family], others: Mapping[int, Sequence[Family] | None]) -> list[Family]:
        """The families of the `others`, and of workers that have ended, as one process; `asker` has told its `own`.

        None stands for a worker that does not answer: what it told last counts.
        """
        now = {process: self._last.get(process, ()) if told is None else told for process, told in others.items()}
        ended = [
            [family for family in told if family.kind != "gauge"]
            for process, told in self._last.items()
            if process != asker and process not in now
        ]
        if ended:
            self._ended = merge([self._ended, *ended])
        self._last = {**now, asker: own}
        return merge([*now.values(), self._ended])
