"""The command line of `esp top`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import ConfigOption, OutputOption, argument, number, option, path_option
from esp.commands.output import Format

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp top", "The proxy of the config, live; q ends it."),
            ("esp top http://10.0.0.1:2379 http://10.0.0.2:2379", "Several proxies, together."),
            ("esp top -n 1 -o json", "What happened within two seconds, for scripts."),
        ],
        {1: "No proxy can be asked."},
    )
)
def top(
    urls: Annotated[
        list[str] | None, argument("[URL]...", "Running proxies; by default the one of the config.")
    ] = None,
    config: ConfigOption = None,
    interval: Annotated[
        float, number("-i", "--interval", metavar="SECONDS", min=0.2, max=3600, about="Time between two looks.")
    ] = 2.0,
    count: Annotated[int | None, option("-n", "--count", metavar="N", min=1, about="Look N times, then end.")] = None,
    cacert: Annotated[Path | None, path_option("--cacert", about="Whom https:// URLs are to be signed by.")] = None,
    cert: Annotated[Path | None, path_option("--cert", about="A certificate of yours, for https:// URLs.")] = None,
    key: Annotated[Path | None, path_option("--key", about="Its key.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show running proxies live, by shard and RPC.

    Reads the status page of each proxy (docs/ui.md). At a terminal q ends it. Otherwise it prints one picture after
    another, with -o json one line each.
    """
    from esp.commands import top as command

    tls = command.Tls(cacert, cert, key)
    command.run(urls or [], config, tls, output, interval=interval, count=count)
