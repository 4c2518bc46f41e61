"""The command line of `esp serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import ConfigOption, flag, option, path_option
from esp.commands.output import USAGE, CommandError, LogFormat, LogLevel, manner

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp serve --local 3", "Try it: three etcds, and esp in front of them."),
            ("esp serve -c /etc/esp/esp.yaml", "Run the proxy with this config."),
            ("esp serve --takeover -c /etc/esp/esp.yaml", "Upgrade the running proxy without a pause."),
        ],
        {0: "Stopped by a signal.", 1: "Cannot serve, such as an address in use.", 130: "Ctrl-C before it was ready."},
    )
)
def serve(
    config: ConfigOption = None,
    local: Annotated[
        int | None,
        option("--local", metavar="N", min=1, max=26, about="Start N etcds on this machine as the shards."),
    ] = None,
    tls: Annotated[bool, flag("--tls", about="With --local: throw-away certificates, and TLS everywhere.")] = False,
    data_dir: Annotated[
        Path | None,
        path_option("--data-dir", metavar="DIR", about="Folder for the data and config of --local (.esp)."),
    ] = None,
    listen: Annotated[
        list[str] | None,
        option("--listen", metavar="URL", about="Listen address, in place of the config's addresses; may be repeated."),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        option("--log-format", metavar="text|json", about="Form of the log, in place of the config's log.format."),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        option(
            "--log-level",
            metavar="debug|info|warning|error",
            about="Lowest level that is logged, in place of the config's log.level.",
        ),
    ] = None,
    workers: Annotated[
        str | None,
        option(
            "--workers",
            metavar="N",
            about="Processes that serve, in place of the config's number; auto: one a processor.",
        ),
    ] = None,
    takeover: Annotated[
        bool, flag("--takeover", about="Take over from the running esp with this config, without a pause.")
    ] = False,
) -> None:
    """Run the proxy.

    It serves until SIGTERM or SIGINT; SIGHUP has it read its config again.
    """
    if local is not None and config is not None:
        raise CommandError("--local makes its own config; leave out -c", USAGE)
    if local is None and data_dir is not None:
        raise CommandError("--data-dir is only for --local; add --local 3 or leave it out", USAGE)
    if local is None and tls:
        raise CommandError("--tls is only for --local; TLS of a config is in the config: tls and shard_tls", USAGE)
    if local is not None and workers is not None:
        raise CommandError("--local serves with one process; leave out --workers", USAGE)
    if local is not None and takeover:
        raise CommandError("--local starts its own etcds, so nothing can take over; leave out --takeover", USAGE)
    from esp.commands import serve as command
    from esp.commands.logged import logged

    if local is not None and data_dir is None:
        data_dir = Path(".esp")
    if log_level is None and (manner.verbose or manner.quiet):
        log_level = LogLevel.DEBUG if manner.verbose else LogLevel.WARNING
    with logged(log_format, log_level) as lines:
        command.run(config, local, data_dir, listen or [], lines, workers, tls=tls, takeover=takeover)
