"""The command line of `esp plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import (
    Access,
    ConfigOption,
    OutputOption,
    flag,
    number,
    option,
    path_option,
    takes_access,
)
from esp.commands.output import By, Format

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp plan", "What the shards of ./esp.yaml have, and what to move."),
            ("esp plan --from http://127.0.0.1:2379 --shards 3", "How to divide an etcd among three."),
            ("esp plan --by writes --watch 60", "Even by what is written in a minute."),
        ],
        {
            1: "A shard did not answer, or there is nothing to plan by; the line on stderr says more.",
            130: "Ctrl-C; nothing is written.",
        },
    )
)
@takes_access
def plan(
    shards: Annotated[
        int | None, number("--shards", min=1, max=100, about="The number of shards; else that of the config, or 3.")
    ] = None,
    by: Annotated[By, option("--by", metavar="keys|bytes|writes", about="What is to be even; else keys.")] = By.KEYS,
    depth: Annotated[
        int, number("--depth", metavar="D", min=1, max=8, about="Prefixes with so many separators stay whole.")
    ] = 2,
    from_: Annotated[
        str, option("--from", metavar="URL", about="An etcd or an esp in place of the config's shards.")
    ] = "",
    watch: Annotated[
        float,
        number("--watch", metavar="S", min=0.0, max=86_400.0, about="Seconds to watch writes; 0 for not at all."),
    ] = 10.0,
    separator: Annotated[str, option("--separator", metavar="TEXT", about="What ends a prefix; else a slash.")] = "/",
    keep: Annotated[
        list[str] | None, option("--keep", metavar="PREFIX", about="Keep this prefix whole; may be repeated.")
    ] = None,
    divide: Annotated[
        list[str] | None,
        option("--divide", metavar="PREFIX", about="This prefix may be divided anywhere; may be repeated."),
    ] = None,
    against: Annotated[bool, flag("--against", about="Show how even the map of the config is.")] = False,
    to: Annotated[
        Path | None, path_option("--to", about="Write the config to this file, which must not exist.")
    ] = None,
    *,
    access: Access,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Show where keys, bytes and writes are, and propose boundaries.

    Reads all keys, without their values, and one value of fifty. No boundary cuts what is listed, watched or locked as
    one: a prefix, a resource of Kubernetes, a lock. Nothing is changed.
    """
    from esp.commands import plan as module
    from esp.core.export import Etcd
    from esp.core.plan import Measure

    module.run(
        config,
        Etcd([from_] if from_ else [], *access),
        module.Options(
            shards,
            Measure(by),
            depth,
            watch,
            module.bytes_of(separator),
            [module.bytes_of(one) for one in keep or []],
            [module.bytes_of(one) for one in divide or []],
            against,
            to,
            output,
        ),
    )
