"""The result of a run as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Verdict:
    """What came of a run.

    Attributes:
        faults: sentences, one for each wrong answer; empty if all was right.
        counts: what was done.
        rates: the calls answered in each second.
    """

    faults: list[str]
    counts: Mapping[str, object]
    rates: list[int]

    @property
    def longest_pause(self) -> int:
        """The most seconds in a row without any answer."""
        longest = now = 0
        for rate in self.rates:
            now = 0 if rate else now + 1
            longest = max(longest, now)
        return longest


def text(verdict: Verdict, happened: Mapping[str, int], what: str) -> str:
    """The report in Markdown."""
    return "\n".join(_lines(verdict, happened, what))


def _lines(verdict: Verdict, happened: Mapping[str, int], what: str) -> Iterator[str]:
    yield what
    yield ""
    yield "| fault | times |"
    yield "|---|---|"
    for name, times in sorted(happened.items(), key=lambda item: -item[1]):
        yield f"| {name} | {times} |"
    yield ""
    yield "| load | |"
    yield "|---|---|"
    for name, count in verdict.counts.items():
        if isinstance(count, Mapping):
            shown = ", ".join(f"{key} {value:,}" for key, value in sorted(count.items()))
        else:
            shown = f"{count:,}"
        yield f"| {name} | {shown} |"
    if verdict.rates:
        yield f"| calls answered in a second | median {median(verdict.rates):,.0f}, least {min(verdict.rates):,} |"
        yield f"| longest time without any answer | {verdict.longest_pause} s |"
    yield ""
    yield f"Wrong answers: {len(verdict.faults) or 'none'}."
    for fault in verdict.faults[:50]:
        yield f"- {fault}"
