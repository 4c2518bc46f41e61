"""One table of all workloads, out of the files of one or several runs: `python -m bench.table run.json more.json`.

`bench/run --json FILE` writes the files. If a workload is in several files, the last one counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from bench.measure import Sample
from bench.report import Samples, ratios, values
from bench.workloads import WORKLOADS

SHOWN = ("direct", "esp", "haproxy-h2", "grpc-proxy")
PROXIES = SHOWN[1:]


def _figure(samples: Samples, peer: str, field: str, digits: int) -> str:
    found = values(samples.get(peer, ()), field)
    return f"{median(found):,.{digits}f}" if found else "-"


def _ratio(samples: Samples, reference: str, field: str) -> str:
    found = ratios(samples, "esp", reference, field)
    return f"**{median(found):.2f}**" if found else "-"


def one_table(results: Mapping[str, Samples]) -> str:
    """A row for each workload: medians, and the medians of the ratios inside a round."""
    heads = ["workload", "requests/s: direct", *PROXIES, "esp / direct", "CPU µs: esp", *PROXIES[1:]]
    heads += ["esp / haproxy-h2", "esp / grpc-proxy"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, samples in results.items():
        about = WORKLOADS[name].about.replace(" (others: one etcd that holds all)", "")
        cells = [f"{about}, {WORKLOADS[name].concurrency}"]
        cells += [_figure(samples, peer, "throughput", 0) for peer in SHOWN]
        cells.append(_ratio(samples, "direct", "throughput"))
        cells += [_figure(samples, peer, "cpu_us", 1) for peer in PROXIES]
        cells += [_ratio(samples, reference, "cpu_us") for reference in PROXIES[1:]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def of_files(files: list[Path]) -> dict[str, dict[str, list[Sample]]]:
    """The samples of these files, by workload and peer."""
    results = {}
    for file in files:
        for name, peers in json.loads(file.read_text())["workloads"].items():
            results[name] = {peer: [Sample(**sample) for sample in samples] for peer, samples in peers.items()}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    print(one_table(of_files(parser.parse_args().files)), end="")


if __name__ == "__main__":
    main()
