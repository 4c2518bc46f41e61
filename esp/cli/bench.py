"""The command line of `esp bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import (
    Access,
    ConfigOption,
    OutputOption,
    argument,
    number,
    option,
    path_option,
    takes_access,
)
from esp.commands.output import USAGE, CommandError, Format, Load

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp bench http://127.0.0.1:2379", "Puts and reads on a proxy."),
            ("esp bench -c esp.yaml --shard a http://a:2379 http://b:2379", "Two targets in turns."),
            ("esp bench http://127.0.0.1:2379 --plot bench.html", "With a drawing of the latencies."),
        ],
        {1: "A target cannot be used, or requests failed.", 130: "Ctrl-C; the keys of the run are deleted."},
    )
)
@takes_access
def bench(
    target: Annotated[list[str] | None, argument("[TARGET [TARGET]]")] = None,
    load: Annotated[
        list[Load] | None,
        option(
            "--load",
            metavar="put|range|txn|watch|keepalive",
            about="The load, by default put and range; may be repeated.",
        ),
    ] = None,
    connections: Annotated[int, number("--connections", min=1, max=10_000, about="Connections.")] = 8,
    streams: Annotated[int, number("--streams", min=1, max=1000, about="Requests open on each connection.")] = 16,
    seconds: Annotated[float, number("--seconds", metavar="S", min=0.1, about="Length of a round.")] = 5.0,
    rounds: Annotated[int, number("--rounds", min=1, max=1000, about="Rounds.")] = 3,
    warm_up: Annotated[
        float, number("--warm-up", metavar="S", min=0.0, about="Seconds that are not counted before the first.")
    ] = 1.0,
    keys: Annotated[int, number("--keys", min=1, max=1_000_000, about="Keys.")] = 1000,
    value_bytes: Annotated[int, number("--value-bytes", min=0, max=1_000_000, about="Bytes of a value.")] = 256,
    shard: Annotated[
        list[str] | None, option("--shard", metavar="SHARD", about="Keys of this shard only; may be repeated.")
    ] = None,
    plot: Annotated[Path | None, path_option("--plot", about="Draw the latencies: .html or .svg.")] = None,
    *,
    access: Access,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Measure a proxy or an etcd under load, or two in turns.

    The load writes keys of its own, below esp-bench/, and deletes them in the end. With -c they are spread over the
    shards of the config, each below the start of a range of its shard, and the target is by default the first listen
    address there.
    """
    if len(target or []) > 2:
        raise CommandError("there may be two targets; leave out the others", USAGE)
    from esp.commands import bench as module
    from esp.core.export import Etcd
    from esp.core.load import Plan, Workload

    plan = Plan(connections, streams, seconds, warm_up, rounds, keys, value_bytes)
    etcd = Etcd([], *access)
    loads = [Workload(one) for one in dict.fromkeys(load or [Load.PUT, Load.RANGE])]
    module.run(config, module.Options(target or [], loads, shard or [], etcd, plan, plot, output))
