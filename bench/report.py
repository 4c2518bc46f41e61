"""The tables, as Markdown, and the verdicts against what esp is to reach."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import Sample
from bench.peers import PEERS
from bench.startup import Startup
from bench.workloads import WORKLOADS

REFERENCES = ("haproxy-h2", "grpc-proxy")
Samples = Mapping[str, Sequence[Sample]]  # by peer, one for each round


@dataclass(frozen=True)
class Metric:
    """A column."""

    field: str
    title: str
    short: str
    digits: int


METRICS = (
    Metric("throughput", "requests/s", "req/s", 0),
    Metric("p50_us", "p50 µs", "p50", 0),
    Metric("p99_us", "p99 µs", "p99", 0),
    Metric("cpu_us", "CPU µs/request", "CPU", 1),
    Metric("peak_rss_mb", "peak RSS MB", "RSS", 1),
)


@dataclass(frozen=True)
class Target:
    """What esp is to reach in one workload, as a ratio to a peer in the same round."""

    workload: str
    field: str
    reference: str
    bound: float
    peer: str = "esp"

    @property
    def at_least(self) -> bool:
        """More is better."""
        return self.field == "throughput"


def _targets() -> Iterator[Target]:
    strict = {"8x16": 1.0, "64x1": 1.0, "1x1": 1.3}
    for method in ("put", "range"):
        for concurrency, bound in strict.items():
            yield Target(f"{method}-{concurrency}", "cpu_us", "haproxy-h2", bound)
            yield Target(f"{method}-{concurrency}", "cpu_us", "grpc-proxy", 0.35)
        yield Target(f"{method}-8x16", "cpu_us", "haproxy-h2-tls", 1.0, "esp-tls")
        yield Target(f"{method}-8x16", "throughput", "grpc-proxy", 1.5)
        yield Target(f"{method}-8x16", "throughput", "direct", 0.75)
    for concurrency in ("8x16", "1x1"):
        yield Target(f"deadline-{concurrency}", "cpu_us", "haproxy-h2", 1.3)
        yield Target(f"deadline-{concurrency}", "cpu_us", "grpc-proxy", 0.35)
    yield Target("put-1mib", "cpu_us", "haproxy-h2", 1.1)
    for paged in ("page-1000", "token-page", "sorted-1000"):
        yield Target(paged, "throughput", "direct", 0.9)


TARGETS = tuple(_targets())
ROUTE_MS, HELP_MS, READY_MS, IDLE_RSS_MB = 80.0, 80.0, 400.0, 60.0


def values(samples: Sequence[Sample], field: str) -> list[float]:
    """One figure for each round; empty where the peer has no such figure."""
    found = [getattr(sample, field) for sample in samples]
    return [value for value in found if value is not None]


def ratios(samples: Samples, peer: str, reference: str, field: str) -> list[float]:
    """The peer's figure over the reference's, round by round."""
    if peer not in samples or reference not in samples:
        return []
    pairs = zip(values(samples[peer], field), values(samples[reference], field), strict=False)
    return [ours / theirs for ours, theirs in pairs if theirs]


def spread(figures: Sequence[float], digits: int) -> str:
    """`median (min-max)`."""
    if not figures:
        return "-"
    return f"{median(figures):,.{digits}f} ({min(figures):,.{digits}f}-{max(figures):,.{digits}f})"


def workload_table(name: str, samples: Samples) -> str:
    """One workload: a row for each peer."""
    workload = WORKLOADS[name]
    titles = ["", *(metric.title for metric in METRICS), *(f"ratio of {metric.short}" for metric in METRICS)]
    lines = [f"### {name}: {workload.about}, {workload.concurrency}", ""]
    lines += ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for peer, its in samples.items():
        cells = [f"**{peer}**" if peer == "esp" else peer]
        cells += [spread(values(its, metric.field), metric.digits) for metric in METRICS]
        for metric in METRICS:
            paired = [ratios(samples, peer, reference, metric.field) for reference in REFERENCES]
            cells.append(" / ".join(f"{median(each):.2f}" if each else "-" for each in paired) if any(paired) else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def overview(results: Mapping[str, Samples]) -> str:
    """CPU per request and throughput, medians only: workloads down, peers across."""
    peers = [peer for peer in PEERS if any(peer in samples for samples in results.values())]
    parts = []
    for metric in (METRICS[3], METRICS[0]):
        shown = [peer for peer in peers if any(values(s.get(peer, ()), metric.field) for s in results.values())]
        lines = [f"### {metric.title}, median", "", "| workload | " + " | ".join(shown) + " |"]
        lines.append("|---|" + "---:|" * len(shown))
        for name, samples in results.items():
            figures = [values(samples.get(peer, ()), metric.field) for peer in shown]
            cells = [f"{median(each):,.{metric.digits}f}" if each else "-" for each in figures]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


Verdict = tuple[bool | None, str]  # (reached, sentence); None: not measured in this run


def verdicts(results: Mapping[str, Samples], startup: Startup | None) -> list[Verdict]:
    """One for each target."""
    found: list[Verdict] = []
    for target in TARGETS:
        if target.workload not in results or (target.peer != "esp" and target.peer not in results[target.workload]):
            continue
        paired = ratios(results[target.workload], target.peer, target.reference, target.field)
        what = "throughput" if target.at_least else "CPU per request"
        sign = "at least" if target.at_least else "at most"
        subject = "" if target.peer == "esp" else f", {target.peer}"
        wanted = f"{target.workload}{subject}: {what} {sign} {target.bound:.2f}x {target.reference}"
        if not paired:
            found.append((None, wanted))
            continue
        ratio = median(paired)
        reached = ratio >= target.bound if target.at_least else ratio <= target.bound
        found.append((reached, f"{wanted}: {ratio:.2f}x ({min(paired):.2f}-{max(paired):.2f})"))
    if startup:
        found += [
            (startup.route_ms <= ROUTE_MS, f"`esp route` answers within {ROUTE_MS:.0f} ms: {startup.route_ms:.0f} ms"),
            (startup.help_ms <= HELP_MS, f"`esp --help` answers within {HELP_MS:.0f} ms: {startup.help_ms:.0f} ms"),
            (startup.idle_mb < IDLE_RSS_MB, f"idle worker under {IDLE_RSS_MB:.0f} MB: {startup.idle_mb:.1f} MB"),
        ]
        found += [
            (its.ms < READY_MS, f"{peer}: start to ready under {READY_MS:.0f} ms: {its.ms:.0f} ms")
            for peer, its in startup.ready.items()
        ]
    return found


def verdict_lines(found: Sequence[Verdict]) -> str:
    """A Markdown list."""
    words = {True: "reached", False: "**MISSED**", None: "not measured"}
    return "\n".join(f"- {words[reached]}: {sentence}" for reached, sentence in found) + "\n"


def machine(peers: Sequence[str]) -> dict[str, str]:
    """What a reader must know about where this was measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "?")
    return {
        "machine": f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}",
        "peers": ", ".join(dict.fromkeys(filter(None, (PEERS[peer].version() for peer in peers)))),
        "load before": f"{os.getloadavg()[0]:.1f} (1 min average; other work disturbs the figures)",
    }


def as_json(head: Mapping[str, str], results: Mapping[str, Samples], startup: Startup | None) -> dict[str, Any]:
    """Every sample, for later comparison."""
    return {
        "head": dict(head),
        "workloads": {
            name: {peer: [dataclasses.asdict(sample) for sample in its] for peer, its in samples.items()}
            for name, samples in results.items()
        },
        "startup": dataclasses.asdict(startup) if startup else None,
    }
