"""`esp bench`: a load on a proxy or an etcd, or on two in turns; says what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from textwrap import fill
from typing import Any, Final

from esp.commands import interruptible
from esp.commands.noted import config_at
from esp.commands.output import (
    INTERRUPTED,
    USAGE,
    CommandError,
    Format,
    complain,
    note,
    terminal_columns,
    write,
    write_json,
    write_table,
)
from esp.commands.progress import progress_bar
from esp.core import config as configs
from esp.core.config import Config, url_of
from esp.core.export import Etcd, config_of
from esp.core.keys import format_key
from esp.core.load import (
    PERCENTILES,
    Bench,
    Keys,
    Measured,
    NoKeysError,
    Plan,
    Target,
    TargetError,
    Workload,
    keys_in,
    spread_over,
)
from esp.core.wording import counted

BUSY: Final = 0.8
"""The share of a core from which on this client may be what limits the figures."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line.

    Attributes:
        targets: URLs, one or two; without any, the first listen address of the config.
        workloads: the loads, in this order.
        shards: the shards that get keys; all of the config without any.
        access: TLS files and user for all targets.
        plan: how the load is made.
        plot: the file to draw into, or None.
        output: format of the figures.
    """

    targets: Sequence[str]
    workloads: Sequence[Workload]
    shards: Sequence[str]
    access: Etcd
    plan: Plan
    plot: Path | None
    output: Format


def run(config: Path | None, options: Options) -> None:
    """Measure, and print the figures.

    Raises:
        ConfigError: the config or a target's URL is wrong.
        CommandError: a target cannot be used, or requests failed.
    """
    from esp.commands import bench_plot

    if options.plot is not None and options.plot.suffix not in bench_plot.SUFFIXES:
        raise CommandError(f'--plot draws {" or ".join(bench_plot.SUFFIXES)}; "{options.plot}" is neither', USAGE)
    loaded = config_at(config) if config is not None else None
    urls = options.targets
    if not urls:
        if loaded is None:
            raise CommandError("name a target, such as http://127.0.0.1:2379, or a config with -c", USAGE)
        urls = [_listens(loaded)]
    if options.shards and loaded is None:
        raise CommandError("--shard needs the config with the shards; add -c FILE", USAGE)
    keys = _keys(loaded, options.shards)
    access = options.access
    targets = [
        Target(config_of(Etcd([url], access.ca, access.cert, access.key, access.user, access.password_file), "target"))
        for url in urls
    ]
    for target in targets:
        note(f"target {target.name}: {counted(options.plan.connections, 'connection')}")
    for prefix in keys.prefixes:
        note(f'keys below "{format_key(prefix)}" are written, and deleted in the end')
    measured = _measure(options, targets, keys)
    if options.output is Format.JSON:
        _write_json(options, keys, measured)
    else:
        _write_text(options, keys, measured)
    if options.plot is not None:
        try:
            options.plot.write_text(bench_plot.drawn(measured, _about(options, keys), options.plot.suffix))
        except OSError as error:
            raise CommandError(f"{options.plot} cannot be written: {(error.strerror or str(error)).lower()}") from None
    failed = sum(sum(one.errors.values()) for one in measured)
    if failed or not all(one.requests for one in measured):
        raise CommandError(f"{counted(failed, 'request')} failed; the figures are of the others")


def _listens(config: Config) -> str:
    """The URL of the first address on which a proxy with this config listens for TCP."""
    for listen in config.listen:
        if listen.path is None:
            host = "127.0.0.1" if configs.is_wildcard(listen.host) else listen.host
            return url_of(host, listen.port, tls=listen.tls)
    raise CommandError("the config listens on no TCP address; name a target", USAGE)


def _keys(loaded: Config | None, shards: Sequence[str]) -> Keys:
    run = token_hex(4)
    if loaded is None:
        return keys_in(run)
    names = [shard.name for shard in loaded.shards]
    if (unknown := next((name for name in shards if name not in names), None)) is not None:
        raise CommandError(f'no shard is called "{unknown}"; there are {", ".join(names)}', USAGE)
    try:
        return spread_over(loaded, shards or names, run)
    except NoKeysError as error:
        raise CommandError(str(error)) from None


def _measure(options: Options, targets: Sequence[Target], keys: Keys) -> list[Measured]:
    left: list[str] = []

    async def main() -> list[Measured]:
        with progress_bar("s") as show:
            bench = Bench(options.plan, targets, keys, show)
            try:
                return await bench.run(options.workloads)
            finally:
                left.extend(bench.left)

    try:
        return interruptible.run(main())
    except TargetError as error:
        raise CommandError(str(error)) from None
    except KeyboardInterrupt:
        raise CommandError("interrupted; no figures", INTERRUPTED) from None
    finally:
        if left:
            prefixes = ", ".join(f'"{format_key(prefix)}"' for prefix in keys.prefixes)
            complain(f"keys below {prefixes} may be left in {', '.join(left)}; delete them with etcdctl del --prefix")


def _about(options: Options, keys: Keys) -> list[str]:
    """What was measured, and what was not."""
    plan = options.plan
    spread = ", ".join(keys.shards) if any(keys.shards) else "wherever the map puts one prefix"
    return [
        f"Closed loop: {counted(plan.connections, 'connection')}, {counted(plan.streams, 'request')} open on each; the "
        f"next one is sent when one is answered. {counted(plan.rounds, 'round')} of {plan.seconds:g} s for each target"
        f", in turns, after {plan.warm_up:g} s of warm-up. {counted(plan.keys, 'key')}, values of "
        f"{counted(plan.value_bytes, 'byte')}, in shards: {spread}.",
        "Latencies are from sending a request to its whole answer, in this client. Requests/s and the ratio are "
        "medians of the rounds. For watch a request is a put and its event; for keepalive one of a lease on a stream.",
        "Not measured: an open loop (clients that do not wait), deadlines, large answers, ranges over several shards, "
        "new connections, and other machines between the client and the target.",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f}" if seconds < 0.01 else f"{seconds * 1000:.1f}"


def _row(one: Measured) -> list[str]:
    latencies = (_ms(one.percentile(percent)) for percent in PERCENTILES)
    failed = str(sum(one.errors.values()))
    return [one.workload, one.target, f"{one.rate:,.0f}", *latencies, failed, f"{one.cpu:.0%}"]


def _write_text(options: Options, keys: Keys, measured: Sequence[Measured]) -> None:
    rows = []
    headers = ["LOAD", "TARGET", "REQ/S", *(f"P{percent:g} MS" for percent in PERCENTILES), "ERRORS", "CLIENT CPU"]
    for workload in options.workloads:
        of_it = [one for one in measured if one.workload == workload]
        rows += [_row(one) for one in of_it]
        if len(of_it) == 2:
            first, second = of_it
            ratios = [
                f"{first.percentile(percent) / second.percentile(percent):.2f}" if second.percentile(percent) else "-"
                for percent in PERCENTILES
            ]
            rows.append([workload, "first / second", f"{first.ratio(second):.2f}", *ratios, "", ""])
    write_table(headers, rows)
    write("")
    for line in _about(options, keys):
        write(fill(line, min(80, terminal_columns() or 80), break_on_hyphens=False))
    if max(one.cpu for one in measured) >= BUSY:
        share = max(one.cpu for one in measured)
        told = f"This client took up to {share:.0%} of a core, and may be what limits the figures: "
        write(fill(told + "run several at once, with fewer connections each.", 80))
    for one in measured:
        for text, count in one.errors.most_common(3):
            write(f"{one.target}: {one.workload}: {counted(count, 'time')}: {text}")


def _write_json(options: Options, keys: Keys, measured: Sequence[Measured]) -> None:
    plan = options.plan
    write_json(
        {
            "plan": {
                "connections": plan.connections,
                "streams": plan.streams,
                "rounds": plan.rounds,
                "seconds": plan.seconds,
                "warm_up": plan.warm_up,
                "keys": plan.keys,
                "value_bytes": plan.value_bytes,
                "shards": [name for name in keys.shards if name],
            },
            "measured": [_as_json(one) for one in measured],
            "ratios": [
                {"load": first.workload, "rate": first.ratio(second)}
                for first, second in pairwise(measured)
                if first.workload == second.workload
            ],
        }
    )


def _as_json(one: Measured) -> dict[str, Any]:
    return {
        "load": one.workload,
        "target": one.target,
        "requests": one.requests,
        "rate": one.rate,
        "rates": list(one.rates),
        "latency_seconds": {f"p{percent:g}": one.percentile(percent) for percent in PERCENTILES},
        "errors": dict(one.errors),
        "client_cpu": one.cpu,
    }
