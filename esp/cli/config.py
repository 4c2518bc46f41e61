"""The command line of `esp config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp.cli.frame import command, group
from esp.cli.options import ConfigOption, OutputOption, argument, option, path_of
from esp.commands.output import USAGE, CommandError, Format, LogFormat, LogLevel

NAME = "config"
commands = typer.Typer(
    cls=group(
        [
            ("esp config check esp.yaml", "All mistakes at once."),
            ("esp config show", "What is in force, and where it comes from."),
            ("esp config example > esp.yaml", "A config to begin with."),
        ],
        "The file has faults; all are printed.",
    ),
    rich_markup_mode=None,
)

FileArgument = Annotated[
    Path | None,
    argument("[FILE]", "The config file, as with -c.", parser=path_of),
]


@commands.callback(invoke_without_command=True)
def config(context: typer.Context) -> None:
    """Check a config, show what is in force, or make one."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@commands.command(
    cls=command(
        [
            ("esp config check", "The config that esp would find."),
            ("esp config check new.yaml", "A config that is not in use yet."),
            ("esp config check -o json esp.yaml", "Lines and texts, for a script."),
        ],
        {0: "The file is good.", 1: "It has faults; all are printed.", 2: "Wrong usage, or no file that can be read."},
    )
)
def check(file: FileArgument = None, output: OutputOption = Format.TABLE, config: ConfigOption = None) -> None:
    """Find all mistakes of a config, offline.

    Each is printed with its line and its cure. Certificates and password files are read; no host name is looked up, and
    nothing is connected to.
    """
    from esp.commands import config as module

    module.check(_one(file, config), output)


@commands.command(
    cls=command(
        [
            ("esp config show", "Every field of the config that esp would find."),
            ("esp config show --workers auto | grep -v default", "Only what is not a default."),
            ("esp config show -o json esp.yaml", "For a script."),
        ],
    )
)
def show(
    file: FileArgument = None,
    listen: Annotated[list[str] | None, option("--listen", metavar="URL", about="As of esp serve.")] = None,
    workers: Annotated[str | None, option("--workers", metavar="N", about="As of esp serve.")] = None,
    log_format: Annotated[
        LogFormat | None,
        option("--log-format", metavar="text|json", about="As of esp serve."),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        option("--log-level", metavar="debug|info|warning|error", about="As of esp serve."),
    ] = None,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Show every value in force, and where it comes from.

    That is a line of the file, a flag, the environment, or esp's default. The flags are those of esp serve.
    """
    from esp.commands import config as module

    flags = module.Flags(
        listen or [],
        workers,
        None if log_format is None else log_format.value,
        None if log_level is None else log_level.value,
    )
    module.show(_one(file, config), flags, output)


@commands.command(
    cls=command(
        [
            ("esp config example", "All fields, each with what it means."),
            ("esp config example > esp.yaml", "A config to begin with."),
        ],
    )
)
def example() -> None:
    """Print a config with comments that passes the check."""
    from esp.commands import config as module

    module.example()


@commands.command(
    cls=command(
        [
            ("esp config schema > esp.schema.json", "For an editor that knows JSON schema."),
            ("esp config schema | jq .properties", "All fields."),
        ],
    )
)
def schema() -> None:
    """Print the JSON schema of a config, for editors.

    With the YAML language server, write as the first line of a config: # yaml-language-server: $schema=esp.schema.json
    """
    from esp.commands import config as module

    module.schema()


def _one(file: Path | None, config: Path | None) -> Path | None:
    if file is not None and config is not None:
        raise CommandError("the file is given twice, as FILE and with -c; leave one out", USAGE)
    return config if file is None else file
